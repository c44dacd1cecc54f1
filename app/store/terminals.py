"""Terminals' rows: made before the terminal is, marked as closed with the event that tells of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, delete, func, insert, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain.errors import TerminalNotFound
from app.domain.events import TerminalClosed, TerminalOpened
from app.domain.ids import Owner, SessionId, SessionKey, TerminalId
from app.domain.sessions import Session
from app.domain.terminals import Terminal, TerminalStatus
from app.store import eventlog
from app.store.paging import Page, older_than, page
from app.store.tables import SessionRow, TerminalRow

UNFINISHED_S = 60
"""Seconds after which a terminal whose making was not finished is looked for and ended."""


def _query() -> Select[Any, Any, Any]:
    """The terminals that were made and whose sessions are there, with what is shown of those."""
    return (
        select(TerminalRow, SessionRow.session_id, SessionRow.backend)
        .join(SessionRow, SessionRow.id == TerminalRow.session)
        .where(TerminalRow.handle.is_not(None))
    )


def _terminal(row: Any) -> Terminal:
    t, session_id, backend = row
    return Terminal(
        id=TerminalId(t.id),
        session=SessionKey(t.session),
        session_id=SessionId(session_id),
        backend=backend,
        kind=t.kind,
        place=t.place,
        handle=t.handle,
        name=t.name,
        command=t.command,
        args=t.args,
        cwd=t.cwd,
        rows=t.rows,
        cols=t.cols,
        created_at=t.created_at,
        closed_at=t.closed_at,
    )


async def get(db: AsyncSession, owner: Owner, terminal_id: TerminalId) -> Terminal:
    """The owner's terminal of that id.

    Raises:
        TerminalNotFound: it is missing, somebody else's, or still being made.
    """
    row = (
        await db.execute(_query().where(TerminalRow.id == terminal_id, SessionRow.owner == owner))
    ).one_or_none()
    if row is None:
        raise TerminalNotFound
    return _terminal(row)


async def list_terminals(
    db: AsyncSession, session: SessionKey, *, status: TerminalStatus | None, limit: int, cursor: str | None
) -> Page[Terminal]:
    """The session's terminals, newest first."""
    query = _query().where(TerminalRow.session == session)
    if status is not None:
        is_open = TerminalRow.closed_at.is_(None)
        query = query.where(is_open if status == "open" else ~is_open)
    condition = older_than(cursor, TerminalRow.created_at, TerminalRow.id)
    if condition is not None:
        query = query.where(condition)
    rows = await db.execute(
        query.order_by(TerminalRow.created_at.desc(), TerminalRow.id.desc()).limit(limit + 1)
    )
    return page([(t.created_at, t.id, t) for t in map(_terminal, rows)], limit)


async def open_of(
    db: AsyncSession, owner: Owner, *, session_id: SessionId | None, project_id: str | None, limit: int
) -> list[Terminal]:
    """The owner's open terminals, newest first, of one session or project if one is named."""
    query = _query().where(SessionRow.owner == owner, TerminalRow.closed_at.is_(None))
    if session_id is not None:
        query = query.where(SessionRow.session_id == session_id)
    if project_id is not None:
        query = query.where(SessionRow.project_id == project_id)
    rows = await db.execute(query.order_by(TerminalRow.created_at.desc(), TerminalRow.id.desc()).limit(limit))
    return [_terminal(row) for row in rows]


async def count_open(db: AsyncSession, session: SessionKey) -> int:
    """The session's terminals that are open or being made."""
    query = select(func.count()).where(TerminalRow.session == session, TerminalRow.closed_at.is_(None))
    return await db.scalar(query) or 0


async def add(db: AsyncSession, **values: Any) -> None:
    """Insert a terminal that is about to be made."""
    await db.execute(insert(TerminalRow).values(**values))


async def opened(db: AsyncSession, session: Session, terminal_id: TerminalId, handle: str) -> None:
    """Say in the session's log that the terminal is there. The session's row is locked."""
    name = await db.scalar(
        update(TerminalRow)
        .where(TerminalRow.id == terminal_id)
        .values(handle=handle)
        .returning(TerminalRow.name)
    )
    event = TerminalOpened(terminal_id=terminal_id, name=name)
    await eventlog.record(db, session.key, eventlog.draft(session.session_id, None, event))


async def close(db: AsyncSession, session: Session, terminal_id: TerminalId | None = None) -> None:
    """Say in the session's log that the terminal, or that every one, has ended. Its row is locked."""
    query = (
        update(TerminalRow)
        .where(
            TerminalRow.session == session.key,
            TerminalRow.handle.is_not(None),
            TerminalRow.closed_at.is_(None),
        )
        .values(closed_at=func.now())
        .returning(TerminalRow.id, TerminalRow.name)
    )
    if terminal_id is not None:
        query = query.where(TerminalRow.id == terminal_id)
    for closed_id, name in sorted((await db.execute(query)).all()):
        event = TerminalClosed(terminal_id=closed_id, name=name)
        await eventlog.record(db, session.key, eventlog.draft(session.session_id, None, event))


async def resize(db: AsyncSession, terminal_id: TerminalId, rows: int, cols: int) -> None:
    """Keep its size."""
    await db.execute(update(TerminalRow).where(TerminalRow.id == terminal_id).values(rows=rows, cols=cols))


async def drop(db: AsyncSession, terminal_id: TerminalId) -> None:
    """Forget a terminal whose making was not finished."""
    await db.execute(delete(TerminalRow).where(TerminalRow.id == terminal_id, TerminalRow.handle.is_(None)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsettled:
    """A terminal of which something may run, as the sweeper needs it."""

    id: TerminalId
    session: SessionKey | None
    place: str
    handle: str | None
    closed: bool
    """Whether it is to be ended: it or its session was closed, or its making was given up."""


async def unsettled(
    db: AsyncSession, places: Sequence[str], past: Sequence[str], session: SessionKey | None = None
) -> list[Unsettled]:
    """Every terminal of which something may run, or those of one session, at these places.

    Those also at places whose names begin as one of `past`.
    """
    is_late = TerminalRow.created_at < func.now() - text(f"interval '{UNFINISHED_S} seconds'")
    is_there = or_(
        TerminalRow.place.in_(places),
        *(TerminalRow.place.startswith(beginning, autoescape=True) for beginning in past),
    )
    query = select(TerminalRow, is_late).where(is_there, ~TerminalRow.gone)
    if session is not None:
        query = query.where(TerminalRow.session == session)
    rows = await db.execute(query)
    return [
        Unsettled(
            id=TerminalId(t.id),
            session=None if t.session is None else SessionKey(t.session),
            place=t.place,
            handle=t.handle,
            closed=t.closed_at is not None or (t.handle is None and late) or (t.session is None and late),
        )
        for t, late in rows
    ]


async def gone(db: AsyncSession, terminal_id: TerminalId) -> None:
    """Nothing of it runs any more: keep it for its session's list, or forget it with its session.

    One that is still being made is left alone.
    """
    await db.execute(delete(TerminalRow).where(TerminalRow.id == terminal_id, TerminalRow.session.is_(None)))
    await db.execute(
        update(TerminalRow)
        .where(TerminalRow.id == terminal_id, TerminalRow.handle.is_not(None))
        .values(gone=True, closed_at=func.coalesce(TerminalRow.closed_at, func.now()))
    )


async def session_of(db: AsyncSession, terminal_id: TerminalId) -> SessionKey | None:
    """The session of a terminal; null if either is gone."""
    key = await db.scalar(select(TerminalRow.session).where(TerminalRow.id == terminal_id))
    return None if key is None else SessionKey(key)
