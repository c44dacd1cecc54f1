"""Sessions' rows: found within their owner, locked before anything that depends on them is written."""

import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import asyncpg
from sqlalchemy import Select, and_, case, delete, exists, func, literal, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain.errors import SessionNotFound
from app.domain.ids import Owner, Seq, SessionId, SessionKey, TurnId
from app.domain.permissions import WAITING
from app.domain.sessions import PermissionPolicy, Session
from app.domain.signals import Config, Cursor
from app.store.database import ring_after_commit, want_after_commit
from app.store.paging import Page, older_than, page
from app.store.tables import IntentRow, PermissionRow, SessionRow, TombstoneRow, TurnRow

_running = and_(TurnRow.session == SessionRow.id, TurnRow.started_at.is_not(None), TurnRow.ended_at.is_(None))
_current_turn = select(TurnRow.id).where(_running).scalar_subquery()
_current_status = select(TurnRow.status).where(_running).scalar_subquery()
_is_queued = exists().where(TurnRow.session == SessionRow.id, TurnRow.ended_at.is_(None))
_pending = (
    select(func.count())
    .select_from(PermissionRow)
    .where(PermissionRow.session == SessionRow.id, PermissionRow.status.in_(sorted(WAITING)))
    .scalar_subquery()
)
_activity = case(
    (_current_status == "requires_action", literal("requires_action")),
    (or_(_current_status.is_not(None), SessionRow.foreign_busy), literal("running")),
    (_is_queued, literal("queued")),
    else_=literal("idle"),
)
_host_is_alive = func.coalesce(SessionRow.host_until > func.now(), False)


def _query() -> Select[Any]:
    return select(SessionRow, _activity, _current_turn, _pending, _host_is_alive)


def _session(row: Any) -> Session:
    s, activity, current_turn, pending, host_is_alive = row
    return Session(
        key=SessionKey(s.id),
        owner=Owner(s.owner),
        session_id=SessionId(s.session_id),
        chat_id=s.chat_id,
        agent=s.agent,
        backend=s.backend,
        provider=s.provider,
        agent_session_id=s.agent_session_id,
        creation_key=s.creation_key,
        creating=s.creating,
        server_port=s.server_port,
        requested_cwd=s.requested_cwd,
        cwd=s.cwd,
        project_id=s.project_id,
        worktree_id=s.worktree_id,
        model=s.model,
        mode=s.mode,
        thinking=s.thinking,
        title=s.title,
        system_prompt=s.system_prompt,
        mcp_servers=s.mcp_servers,
        worktree=s.worktree,
        provider_session_id=s.provider_session_id,
        former_provider_session_id=s.former_provider_session_id,
        labels=s.labels,
        status=s.status,
        close_mode=s.close_mode,
        activity=activity,
        current_turn_id=TurnId(current_turn) if current_turn else None,
        pending_permissions=pending,
        agent_lost=s.agent_lost,
        foreign_busy=s.foreign_busy,
        archived=s.archived,
        oldest_seq=Seq(s.oldest_seq),
        last_seq=Seq(s.last_seq),
        policy=PermissionPolicy(
            mode=s.policy_mode, timeout_s=s.policy_timeout_s, on_timeout=s.policy_on_timeout
        ),
        cursor=None if s.epoch is None or s.seq is None else Cursor(epoch=s.epoch, seq=s.seq),
        host=s.host,
        host_generation=s.host_generation,
        host_is_alive=host_is_alive,
        created_at=s.created_at,
        last_active_at=s.last_active_at,
        closed_at=s.closed_at,
    )


async def find(db: AsyncSession, owner: Owner, session_id: SessionId) -> Session | None:
    """The owner's session of that id, unfinished creations included."""
    row = (
        await db.execute(_query().where(SessionRow.owner == owner, SessionRow.session_id == session_id))
    ).one_or_none()
    return _session(row) if row else None


async def find_by_chat(db: AsyncSession, owner: Owner, chat_id: str, agent: str) -> Session | None:
    """The owner's session of that natural key, unfinished creations included."""
    row = (
        await db.execute(
            _query().where(
                SessionRow.owner == owner, SessionRow.chat_id == chat_id, SessionRow.agent == agent
            )
        )
    ).one_or_none()
    return _session(row) if row else None


async def get(db: AsyncSession, owner: Owner, session_id: SessionId) -> Session:
    """The owner's session of that id.

    Raises:
        SessionNotFound: it is missing, somebody else's, or still being made.
    """
    session = await find(db, owner, session_id)
    if session is None or session.agent_session_id is None:
        raise SessionNotFound
    return session


async def by_key(db: AsyncSession, key: SessionKey) -> Session | None:
    """The session with that internal id, whoever's it is."""
    row = (await db.execute(_query().where(SessionRow.id == key))).one_or_none()
    return _session(row) if row else None


async def lock(db: AsyncSession, key: SessionKey, *, generation: int | None = None) -> Session | None:
    """The session, its row locked until the transaction ends; null if it is gone.

    With `generation`: null also if another host has it by now.
    """
    query = select(SessionRow.id).where(SessionRow.id == key)
    if generation is not None:
        query = query.where(SessionRow.host_generation == generation, SessionRow.host.is_not(None))
    if await db.scalar(query.with_for_update(key_share=True)) is None:
        return None
    return await by_key(db, key)


async def lock_owned(db: AsyncSession, owner: Owner, session_id: SessionId) -> Session:
    """The owner's session of that id, its row locked until the transaction ends.

    Raises:
        SessionNotFound: it is missing, somebody else's, or still being made.
    """
    query = select(SessionRow.id).where(
        SessionRow.owner == owner,
        SessionRow.session_id == session_id,
        SessionRow.agent_session_id.is_not(None),
    )
    key = await db.scalar(query.with_for_update(key_share=True))
    session = await by_key(db, SessionKey(key)) if key is not None else None
    if session is None:
        raise SessionNotFound
    return session


async def list_sessions(
    db: AsyncSession,
    owner: Owner,
    *,
    equal: Mapping[str, str | None],
    activity: str | None,
    label: tuple[str, str] | None,
    limit: int,
    cursor: str | None,
) -> Page[Session]:
    """The owner's sessions, newest first. `equal` holds columns and the values they must have."""
    query = _query().where(SessionRow.owner == owner, SessionRow.agent_session_id.is_not(None))
    for column, value in equal.items():
        if value is not None:
            query = query.where(getattr(SessionRow, column) == value)
    if activity is not None:
        query = query.where(_activity == activity)
    if label is not None:
        query = query.where(SessionRow.labels.contains({label[0]: label[1]}))
    condition = older_than(cursor, SessionRow.created_at, SessionRow.id)
    if condition is not None:
        query = query.where(condition)
    rows = await db.execute(
        query.order_by(SessionRow.created_at.desc(), SessionRow.id.desc()).limit(limit + 1)
    )
    return page([(s.created_at, s.key, s) for s in map(_session, rows)], limit)


async def last_seqs(db: AsyncSession, owner: Owner, project_id: str | None) -> dict[SessionKey, Seq]:
    """Where each of the owner's logs stands now."""
    query = select(SessionRow.id, SessionRow.last_seq).where(SessionRow.owner == owner)
    if project_id is not None:
        query = query.where(SessionRow.project_id == project_id)
    return {SessionKey(key): Seq(seq) for key, seq in await db.execute(query)}


async def positions(db: AsyncSession, keys: Sequence[SessionKey]) -> dict[SessionKey, Seq]:
    """Where the logs of these sessions stand; one that is gone is left out."""
    rows = await db.execute(select(SessionRow.id, SessionRow.last_seq).where(SessionRow.id.in_(keys)))
    return {SessionKey(key): Seq(seq) for key, seq in rows}


async def belongs(db: AsyncSession, owner: Owner, project_id: str | None, key: SessionKey) -> bool:
    """Whether the session is the owner's, and of that project if one is named."""
    query = select(SessionRow.id).where(SessionRow.id == key, SessionRow.owner == owner)
    if project_id is not None:
        query = query.where(SessionRow.project_id == project_id)
    return await db.scalar(query) is not None


async def may_adopt(
    db: AsyncSession,
    provider: str,
    provider_session_id: str,
    *,
    elsewhere: Sequence[str] = (),
    but: SessionKey | None = None,
) -> bool:
    """Whether no other session, of any owner, has adopted that session of a provider.

    A closed one does not count, unless it is just being opened, nor does one of the backends `elsewhere`,
    whose daemon is another one. One transaction at a time asks, after it has locked the row of a session that
    is there.
    """
    name = f"adopt:{provider}:{provider_session_id}"
    await db.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))
    opening = exists().where(
        IntentRow.session == SessionRow.id, IntentRow.kind == "open", IntentRow.done_at.is_(None)
    )
    query = select(SessionRow.id).where(
        SessionRow.provider == provider,
        SessionRow.backend.not_in(elsewhere),
        SessionRow.provider_session_id == provider_session_id,
        or_(SessionRow.status != "closed", opening),
    )
    if but is not None:
        query = query.where(SessionRow.id != but)
    return await db.scalar(query.limit(1)) is None


async def count_open(db: AsyncSession, owner: Owner) -> int:
    """The owner's sessions that are not closed."""
    query = select(func.count()).select_from(SessionRow)
    return await db.scalar(query.where(SessionRow.owner == owner, SessionRow.status != "closed")) or 0


async def load(db: AsyncSession) -> dict[str, dict[str, int]]:
    """Open turns of each backend, as `running` and `queued`."""
    rows = await db.execute(
        select(
            SessionRow.backend,
            func.count().filter(TurnRow.started_at.is_not(None)),
            func.count().filter(TurnRow.started_at.is_(None)),
        )
        .join(TurnRow, and_(TurnRow.session == SessionRow.id, TurnRow.ended_at.is_(None)))
        .group_by(SessionRow.backend)
    )
    return {backend: {"running": running, "queued": queued} for backend, running, queued in rows}


async def make(db: AsyncSession, values: Mapping[str, Any]) -> SessionKey | None:
    """Insert a session whose agent is still to be made; null if one of its unique keys is taken.

    Its numbers go on from where an erased session of that id stopped.
    """
    erased = await db.scalar(
        select(TombstoneRow.last_seq).where(
            TombstoneRow.owner == values["owner"], TombstoneRow.session_id == values["session_id"]
        )
    )
    last = erased or 0
    key = await db.scalar(
        insert(SessionRow)
        .values(**values, last_seq=last, oldest_seq=last + 1)
        .on_conflict_do_nothing()
        .returning(SessionRow.id)
    )
    return SessionKey(key) if key is not None else None


async def change(db: AsyncSession, key: SessionKey, **values: Any) -> None:
    """Set columns of a session."""
    await db.execute(update(SessionRow).where(SessionRow.id == key).values(**values))


async def want(db: AsyncSession, key: SessionKey) -> None:
    """Say that there is something to do for the session's host, and wake it once committed."""
    await change(db, key, wanted=True)
    want_after_commit(db, key)


async def close(db: AsyncSession, key: SessionKey, *, archived: bool) -> None:
    """Mark a session as closed."""
    await change(db, key, status="closed", close_mode=None, closed_at=func.now(), archived=archived)


async def want_archiving(db: AsyncSession) -> None:
    """Have closed sessions hosted whose agent the backend has not archived yet."""
    await db.execute(
        update(SessionRow)
        .where(SessionRow.archived.is_(False), SessionRow.host.is_(None))
        .values(wanted=True)
    )


async def now(db: AsyncSession) -> datetime:
    """The database's clock."""
    return (await db.execute(select(func.now()))).scalar_one()


def new_creation_key() -> str:
    """A key under which an agent is made, and found again by its label."""
    return secrets.token_urlsafe(18)


async def write_cursor(
    connection: "asyncpg.Connection[asyncpg.Record]", key: SessionKey, cursor: Cursor
) -> None:
    """Keep the backend's position, with the batch that it belongs to."""
    await connection.execute(
        "UPDATE agent_sessions SET epoch = $2, seq = $3 WHERE id = $1", key, cursor.epoch, cursor.seq
    )


async def write_config(
    connection: "asyncpg.Connection[asyncpg.Record]", key: SessionKey, config: Config
) -> None:
    """Keep what is in force at the backend, with the batch that tells of it."""
    await connection.execute(
        "UPDATE agent_sessions SET model = $2, mode = $3, thinking = $4 WHERE id = $1",
        key,
        config.model,
        config.mode,
        config.thinking,
    )


async def write_foreign_busy(
    connection: "asyncpg.Connection[asyncpg.Record]", key: SessionKey, busy: bool
) -> None:
    """Keep whether somebody else uses the agent, with the batch that tells of it."""
    await connection.execute("UPDATE agent_sessions SET foreign_busy = $2 WHERE id = $1", key, busy)


async def bury(db: AsyncSession, owner: Owner, session_id: SessionId, last_seq: Seq) -> None:
    """Remember where the numbers of a session id stopped."""
    statement = insert(TombstoneRow).values(owner=owner, session_id=session_id, last_seq=last_seq)
    await db.execute(
        statement.on_conflict_do_update(
            index_elements=[TombstoneRow.owner, TombstoneRow.session_id],
            set_={"last_seq": func.greatest(TombstoneRow.last_seq, statement.excluded.last_seq)},
        )
    )


async def erase(db: AsyncSession, key: SessionKey) -> None:
    """Delete a session with its log, turns and permissions, and what was still to be done for it."""
    await db.execute(delete(SessionRow).where(SessionRow.id == key))
    await db.execute(delete(IntentRow).where(IntentRow.session == key, IntentRow.done_at.is_(None)))
    ring_after_commit(db, key)
