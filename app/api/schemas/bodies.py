"""What every body has: how strictly a request is read, and what a view and a page of a list are."""

from datetime import datetime
from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema

from app.domain.text import timestamp

MAX_CLOCK_S = 7 * 24 * 3600
"""Seconds that any clock of a turn or a permission may run."""

Clock = Annotated[float, Field(gt=0, le=MAX_CLOCK_S)]
"""Seconds, more than none."""

Timestamp = Annotated[
    datetime,
    PlainSerializer(timestamp, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""RFC 3339 in UTC with milliseconds."""

T = TypeVar("T")
"""What a list is of."""


class RequestBody(BaseModel):
    """What a stranger sends, or a part of it."""

    # Strict: "3" is no number. Hidden: a stray repr in a log shows no prompt.
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class View(BaseModel):
    """What a caller is shown, or a part of it."""

    model_config = ConfigDict(hide_input_in_errors=True)


class ListView(View, Generic[T]):
    """A page of a list, newest first."""

    items: list[T]
    next_cursor: str | None = Field(None, description="`cursor` of the next page; null on the last.")


def is_null(value: object) -> bool:
    """For `exclude_if`: a field that is null is left out of the answer."""
    return value is None
