"""Keyset pages: newest first by `(created_at, id)`, so that a page never shifts under its reader."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

from sqlalchemy import ColumnElement, tuple_
from sqlalchemy.orm import InstrumentedAttribute

from app.domain.errors import InvalidCursor

T = TypeVar("T")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Items, and the cursor of the next page; null on the last."""

    items: list[T]
    next_cursor: str | None


def encode_cursor(created_at: datetime, row: int | str) -> str:
    """The cursor that goes on after this row."""
    return f"{(created_at - _EPOCH) // timedelta(microseconds=1)}~{row}"


def older_than(
    cursor: str | None,
    created_at: ColumnElement[datetime] | InstrumentedAttribute[datetime],
    row: ColumnElement[str] | InstrumentedAttribute[int] | InstrumentedAttribute[str],
) -> ColumnElement[bool] | None:
    """The condition for rows past `cursor`; null from the newest on.

    Raises:
        InvalidCursor: it is none of ours.
    """
    if cursor is None:
        return None
    micros, separator, last = cursor.partition("~")
    try:
        at = _EPOCH + timedelta(microseconds=int(micros))
        key: int | str = int(last) if row.type.python_type is int else last
    except (ValueError, OverflowError):
        raise InvalidCursor from None
    if not separator or (isinstance(key, int) and not 0 <= key < 2**63) or "\x00" in last:
        raise InvalidCursor
    return tuple_(created_at, row) < tuple_(at, key)


def page(items: list[tuple[datetime, int | str, T]], limit: int) -> Page[T]:
    """A page of `limit` items out of a query for one more than that."""
    shown = items[:limit]
    more = len(items) > limit
    return Page([item for _, _, item in shown], encode_cursor(shown[-1][0], shown[-1][1]) if more else None)
