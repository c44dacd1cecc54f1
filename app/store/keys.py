"""API keys and stream tickets: only hashes are kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain.errors import ApiKeyNotFound
from app.domain.ids import KeyId, Owner
from app.domain.keys import ApiKey, Scope
from app.store.database import ring_keys_after_commit
from app.store.paging import Page, older_than, page
from app.store.tables import ApiKeyRow, TicketRow

TICKET_OPENS_S = 60
"""Seconds in which a new ticket opens its stream."""
TICKET_REOPENS_S = 600
"""Seconds after a stream's last end in which its ticket opens it again."""

TICKET_LIVES_S = 24 * 3600
"""Seconds after its last opening in which a ticket opens its stream again if nobody saw that stream end:
the process that served it was killed."""


def _key(row: ApiKeyRow) -> ApiKey:
    return ApiKey(
        id=KeyId(row.id),
        owner=Owner(row.owner),
        name=row.name,
        scopes=tuple(row.scopes),  # type: ignore[arg-type]  # only scopes are ever written
        created_at=row.created_at,
        revoked_at=row.revoked_at,
    )


async def add(
    db: AsyncSession, key_id: KeyId, owner: Owner, name: str, scopes: Sequence[Scope], secret_sha256: bytes
) -> ApiKey | None:
    """Insert a key; null if the id is taken."""
    row = await db.scalar(
        insert(ApiKeyRow)
        .values(id=key_id, owner=owner, name=name, scopes=list(scopes), secret_sha256=secret_sha256)
        .on_conflict_do_nothing()
        .returning(ApiKeyRow)
    )
    return _key(row) if row is not None else None


async def find(db: AsyncSession, key_id: KeyId) -> tuple[ApiKey, bytes] | None:
    """The key of that id and the hash of its secret, revoked or not."""
    row = await db.get(ApiKeyRow, key_id)
    return (_key(row), row.secret_sha256) if row is not None else None


async def exist(db: AsyncSession) -> bool:
    """Whether there is any key that is not revoked."""
    return await db.scalar(select(ApiKeyRow.id).where(ApiKeyRow.revoked_at.is_(None)).limit(1)) is not None


async def list_keys(db: AsyncSession, *, limit: int, cursor: str | None) -> Page[ApiKey]:
    """All keys, newest first."""
    query = select(ApiKeyRow)
    condition = older_than(cursor, ApiKeyRow.created_at, ApiKeyRow.id)
    if condition is not None:
        query = query.where(condition)
    rows = await db.scalars(query.order_by(ApiKeyRow.created_at.desc(), ApiKeyRow.id.desc()).limit(limit + 1))
    return page([(k.created_at, k.id, k) for k in map(_key, rows)], limit)


async def revoke(db: AsyncSession, key_id: KeyId) -> None:
    """Revoke a key, everywhere, once committed.

    Raises:
        ApiKeyNotFound: there is none of that id.
    """
    done = await db.scalar(
        update(ApiKeyRow)
        .where(ApiKeyRow.id == key_id)
        .values(revoked_at=func.coalesce(ApiKeyRow.revoked_at, func.now()))
        .returning(ApiKeyRow.id)
    )
    if done is None:
        raise ApiKeyNotFound
    ring_keys_after_commit(db)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """A ticket that may be used now."""

    key_id: KeyId | None
    owner: Owner
    target: str


async def add_ticket(
    db: AsyncSession, ticket_sha256: bytes, *, key_id: KeyId | None, owner: Owner, target: str
) -> None:
    """Insert a ticket for one stream."""
    await db.execute(
        insert(TicketRow).values(ticket_sha256=ticket_sha256, key_id=key_id, owner=owner, target=target)
    )


def _seconds(count: int) -> ColumnElement[Any]:
    return func.now() - text(f"interval '{count} seconds'")


_usable = or_(
    and_(TicketRow.opening.is_(None), TicketRow.created_at > _seconds(TICKET_OPENS_S)),
    and_(
        TicketRow.opening.is_not(None),
        or_(
            and_(TicketRow.last_ended_at.is_(None), TicketRow.opened_at > _seconds(TICKET_LIVES_S)),
            TicketRow.last_ended_at > _seconds(TICKET_REOPENS_S),
        ),
    ),
)


async def find_ticket(db: AsyncSession, ticket_sha256: bytes) -> Ticket | None:
    """The ticket, if it may open its stream now, by the database's clock."""
    row = await db.scalar(select(TicketRow).where(TicketRow.ticket_sha256 == ticket_sha256, _usable))
    if row is None:
        return None
    return Ticket(key_id=KeyId(row.key_id) if row.key_id else None, owner=Owner(row.owner), target=row.target)


async def open_ticket(db: AsyncSession, ticket_sha256: bytes, opening: UUID) -> None:
    """Note the stream that the ticket opened now; an older one is superseded."""
    await db.execute(
        update(TicketRow)
        .where(TicketRow.ticket_sha256 == ticket_sha256)
        .values(opening=opening, opened_at=func.now(), last_ended_at=None)
    )
    ring_keys_after_commit(db)


async def ticket_opening(db: AsyncSession, ticket_sha256: bytes) -> UUID | None:
    """The stream that the ticket opened last."""
    return await db.scalar(select(TicketRow.opening).where(TicketRow.ticket_sha256 == ticket_sha256))


async def end_ticket(db: AsyncSession, ticket_sha256: bytes, opening: UUID) -> None:
    """Note that the ticket's stream ended; from now on its time to open again runs."""
    await db.execute(
        update(TicketRow)
        .where(TicketRow.ticket_sha256 == ticket_sha256, TicketRow.opening == opening)
        .values(last_ended_at=func.now())
    )


async def end_every_stream(db: AsyncSession) -> None:
    """Note that every ticket's stream has ended: for a process that knows it is alone, and just starts."""
    await db.execute(
        update(TicketRow)
        .where(TicketRow.opening.is_not(None), TicketRow.last_ended_at.is_(None))
        .values(last_ended_at=func.now())
    )


async def sweep_tickets(db: AsyncSession) -> None:
    """Delete tickets that can open nothing any more."""
    await db.execute(delete(TicketRow).where(~_usable))
