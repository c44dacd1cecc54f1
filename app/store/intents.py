"""Intents: what any replica wants a session's host to do, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from uuid import UUID

from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from app.domain.ids import SessionKey
from app.store.database import ring_after_commit
from app.store.sessions import want
from app.store.tables import IntentRow

IntentKind: TypeAlias = Literal["open", "configure", "close"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """One wish. `result` or `error` is set once it is done."""

    id: UUID
    session: SessionKey
    kind: IntentKind
    body: Mapping[str, Any]
    done: bool
    result: Mapping[str, Any] | None
    error: Mapping[str, Any] | None


def _intent(row: IntentRow) -> Intent:
    return Intent(
        id=row.id,
        session=SessionKey(row.session),
        kind=row.kind,  # type: ignore[arg-type]  # the check constraint allows no other
        body=row.body,
        done=row.done_at is not None,
        result=row.result,
        error=row.error,
    )


async def write(db: AsyncSession, session: SessionKey, kind: IntentKind, body: Mapping[str, Any]) -> UUID:
    """Write a wish and ring for the host once committed."""
    number: UUID = uuid7()
    await db.execute(insert(IntentRow).values(id=number, session=session, kind=kind, body=dict(body)))
    await want(db, session)
    return number


async def get(db: AsyncSession, number: UUID) -> Intent | None:
    """The wish as it stands; null once it has been swept away."""
    row = await db.get(IntentRow, number)
    return _intent(row) if row else None


async def pending(db: AsyncSession, session: SessionKey) -> list[Intent]:
    """What is still to be done for a session, oldest first."""
    rows = await db.scalars(
        select(IntentRow)
        .where(IntentRow.session == session, IntentRow.done_at.is_(None))
        .order_by(IntentRow.created_at, IntentRow.id)
    )
    return [_intent(row) for row in rows]


async def finish(
    db: AsyncSession,
    intent: Intent,
    *,
    result: Mapping[str, Any] | None = None,
    error: Mapping[str, Any] | None = None,
) -> None:
    """Write what came of a wish and ring for whoever waits."""
    await db.execute(
        update(IntentRow)
        .where(IntentRow.id == intent.id)
        .values(result=result, error=error, done_at=func.now())
    )
    ring_after_commit(db, intent.session)


async def sweep(db: AsyncSession) -> None:
    """Delete what was done more than an hour ago."""
    await db.execute(delete(IntentRow).where(IntentRow.done_at < func.now() - text("interval '1 hour'")))
