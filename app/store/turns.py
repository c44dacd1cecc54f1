"""Turns' rows. A turn's state changes in the transaction that writes the event which says so."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg
import msgspec
from sqlalchemy import Select, delete, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased, defer

from app.domain.errors import TurnNotFound
from app.domain.events import (
    Error,
    Terminal,
    TokenUsage,
    TurnCancelled,
    TurnCompleted,
    TurnFailed,
    TurnIndeterminate,
    TurnTimedOut,
)
from app.domain.ids import Owner, Seq, SessionId, SessionKey, TaskId, TurnId
from app.domain.turns import PromptRequest, Turn, TurnStatus, advance, ending
from app.store.paging import Page, older_than, page
from app.store.tables import IdempotencyRow, SessionRow, TurnRow


def _query() -> Select[Any, Any, Any]:
    return (
        select(TurnRow, SessionRow.session_id, SessionRow.owner)
        .join(SessionRow, SessionRow.id == TurnRow.session)
        .options(defer(TurnRow.attachments, raiseload=True))  # megabytes, which only the agent needs
    )


def _turn(row: Any) -> Turn:
    t, session_id, owner = row
    return Turn(
        id=TurnId(t.id),
        session=SessionKey(t.session),
        session_id=SessionId(session_id),
        owner=Owner(owner),
        status=TurnStatus(t.status),
        attempt=t.attempt,
        request=PromptRequest(
            prompt=t.prompt,
            multitask_strategy=t.multitask_strategy,
            on_disconnect=t.on_disconnect,
            queue_timeout_s=t.queue_timeout_s,
            deadline_s=t.deadline_s,
            idle_timeout_s=t.idle_timeout_s,
            max_attempts=t.max_attempts,
            metadata=t.turn_metadata,
            retry_of=TurnId(t.retry_of) if t.retry_of else None,
        ),
        output_text=t.output_text,
        stop_reason=t.stop_reason,
        usage=None if t.usage is None else msgspec.convert(t.usage, TokenUsage),
        error=None if t.error is None else msgspec.convert(t.error, Error),
        cause=t.cause,
        limit=t.time_limit,
        delivered=t.delivered,
        cancel_outcome=t.cancel_outcome,
        cancel_cause=t.cancel_cause,
        cancel_requested_at=t.cancel_requested_at,
        first_seq=Seq(t.first_seq),
        last_seq=None if t.last_seq is None else Seq(t.last_seq),
        created_at=t.created_at,
        started_at=t.started_at,
        ended_at=t.ended_at,
        last_backend_event_at=t.last_backend_event_at,
        task_id=TaskId(t.task) if t.task else None,
    )


async def get(db: AsyncSession, owner: Owner, turn_id: TurnId) -> Turn:
    """The owner's turn of that id.

    Raises:
        TurnNotFound: it is missing or somebody else's.
    """
    row = (await db.execute(_query().where(TurnRow.id == turn_id, SessionRow.owner == owner))).one_or_none()
    if row is None:
        raise TurnNotFound
    return _turn(row)


async def by_id(db: AsyncSession, turn_id: TurnId) -> Turn | None:
    """The turn of that id, whoever's it is."""
    row = (await db.execute(_query().where(TurnRow.id == turn_id))).one_or_none()
    return _turn(row) if row else None


async def attachments(db: AsyncSession, turn_id: TurnId) -> list[dict[str, Any]]:
    """The attachments of a turn's prompt, which `Turn` does not carry."""
    return await db.scalar(select(TurnRow.attachments).where(TurnRow.id == turn_id)) or []


async def open_turns(db: AsyncSession, session: SessionKey) -> list[Turn]:
    """The session's open turns: the started one first, then the queue in its order."""
    rows = await db.execute(
        _query()
        .where(TurnRow.session == session, TurnRow.ended_at.is_(None))
        .order_by(TurnRow.started_at.is_(None), TurnRow.rank)
    )
    return [_turn(row) for row in rows]


async def last_turn(db: AsyncSession, session: SessionKey) -> Turn | None:
    """The session's newest turn that has ended."""
    row = (
        await db.execute(
            _query()
            .where(TurnRow.session == session, TurnRow.ended_at.is_not(None))
            .order_by(TurnRow.ended_at.desc(), TurnRow.id.desc())
            .limit(1)
        )
    ).one_or_none()
    return _turn(row) if row else None


async def list_turns(
    db: AsyncSession, session: SessionKey, *, status: TurnStatus | None, limit: int, cursor: str | None
) -> Page[Turn]:
    """The session's turns, newest first."""
    query = _query().where(TurnRow.session == session)
    if status is not None:
        query = query.where(TurnRow.status == status)
    condition = older_than(cursor, TurnRow.created_at, TurnRow.id)
    if condition is not None:
        query = query.where(condition)
    rows = await db.execute(query.order_by(TurnRow.created_at.desc(), TurnRow.id.desc()).limit(limit + 1))
    return page([(t.created_at, t.id, t) for t in map(_turn, rows)], limit)


async def lock_owner(db: AsyncSession, owner: Owner) -> None:
    """Let one transaction at a time count and admit for an owner. Taken last: after the session's row."""
    await db.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"owner:{owner}", 0))))


async def count_open(db: AsyncSession, owner: Owner) -> int:
    """The owner's open turns."""
    query = select(func.count()).select_from(TurnRow).join(SessionRow, SessionRow.id == TurnRow.session)
    return await db.scalar(query.where(SessionRow.owner == owner, TurnRow.ended_at.is_(None))) or 0


async def count_by_state(db: AsyncSession) -> dict[str, int]:
    """All open turns, as `running` and `queued`."""
    queued, total = (
        await db.execute(
            select(func.count().filter(TurnRow.started_at.is_(None)), func.count()).where(
                TurnRow.ended_at.is_(None)
            )
        )
    ).one()
    return {"running": total - queued, "queued": queued}


async def make(
    db: AsyncSession,
    session: SessionKey,
    turn_id: TurnId,
    request: PromptRequest,
    *,
    first_seq: Seq,
    at_head: bool,
) -> None:
    """Insert a queued turn; the session's row is locked by the caller."""
    edge = func.min(TurnRow.rank) - 1 if at_head else func.max(TurnRow.rank) + 1
    rank = (
        select(func.coalesce(edge, 0))
        .where(TurnRow.session == session, TurnRow.ended_at.is_(None))
        .scalar_subquery()
    )
    await db.execute(
        insert(TurnRow).values(
            id=turn_id,
            session=session,
            status=TurnStatus.QUEUED,
            rank=rank,
            retry_of=request.retry_of,
            prompt=request.prompt,
            attachments=list(request.attachments),
            turn_metadata=dict(request.metadata),
            on_disconnect=request.on_disconnect,
            multitask_strategy=request.multitask_strategy,
            queue_timeout_s=request.queue_timeout_s,
            deadline_s=request.deadline_s,
            idle_timeout_s=request.idle_timeout_s,
            max_attempts=request.max_attempts,
            first_seq=first_seq,
        )
    )


async def start(db: AsyncSession, turn: Turn, *, attempt: int, generation: int) -> bool:
    """Mark an attempt as started; false if the turn is not (or no longer) the next to start."""
    ahead = aliased(TurnRow)
    done = await db.scalar(
        update(TurnRow)
        .where(
            TurnRow.id == turn.id,
            TurnRow.ended_at.is_(None),
            TurnRow.attempt == attempt - 1,
            TurnRow.cancel_requested_at.is_(None),
            TurnRow.status.in_([TurnStatus.QUEUED, TurnStatus.RETRYING]),
            ~select(ahead.id)
            .where(ahead.session == TurnRow.session, ahead.ended_at.is_(None), ahead.rank < TurnRow.rank)
            .exists(),
        )
        .values(
            status=TurnStatus.RUNNING,
            attempt=attempt,
            generation=generation,
            started_at=func.coalesce(TurnRow.started_at, func.now()),
        )
        .returning(TurnRow.id)
    )
    return done is not None


async def request_cancel(db: AsyncSession, turn_id: TurnId, cause: str) -> None:
    """Write the wish to cancel an open turn; the first one's cause stands."""
    await db.execute(
        update(TurnRow)
        .where(TurnRow.id == turn_id, TurnRow.ended_at.is_(None), TurnRow.cancel_requested_at.is_(None))
        .values(cancel_requested_at=func.now(), cancel_cause=cause)
    )


def _end_values(event: Terminal) -> dict[str, Any]:
    match event:
        case TurnCompleted(stop_reason=stop_reason, usage=usage):
            return {"stop_reason": stop_reason, "usage": msgspec.to_builtins(usage), "delivered": "yes"}
        case TurnFailed(error=error, delivered=delivered):
            return {"error": msgspec.to_builtins(error), "delivered": delivered}
        case TurnTimedOut(limit=limit, delivered=delivered, cancel_outcome=outcome):
            return {"time_limit": limit, "delivered": delivered, "cancel_outcome": outcome}
        case TurnCancelled(cause=cause, cancel_outcome=outcome):
            return {"cause": cause, "cancel_outcome": outcome}
        case TurnIndeterminate(cause=cause, delivered=delivered):
            return {"cause": cause, "delivered": delivered}


async def end(db: AsyncSession, turn: Turn, event: Terminal, *, last_seq: Seq, output_text: str = "") -> None:
    """Write how a turn ended, within the transaction that logs `event`; the session's row is locked."""
    await db.execute(
        update(TurnRow)
        .where(TurnRow.id == turn.id, TurnRow.ended_at.is_(None))
        .values(
            status=advance(turn.status, ending(event)),
            ended_at=func.now(),
            last_seq=last_seq,
            output_text=output_text,
            **_end_values(event),
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a batch of events changes about the running turn, beside the events themselves."""

    status: TurnStatus
    output_text: str
    usage: TokenUsage | None
    event_at: datetime | None
    end: Terminal | None = None
    after: int = 0
    """Events of the batch that come after the turn's last one."""


async def write_progress(
    connection: "asyncpg.Connection[asyncpg.Record]", turn: TurnId, progress: Progress
) -> None:
    """The same for the host's batches, on the appender's own connection.

    The turn's last event has `progress.after` behind it: `last_seq` is the session's without those.
    """
    if progress.end is None:
        await connection.execute(
            "UPDATE turns SET status = $2, last_backend_event_at = coalesce($3, last_backend_event_at) "
            "WHERE id = $1 AND ended_at IS NULL",
            turn,
            str(progress.status),
            progress.event_at,
        )
        return
    values = _end_values(progress.end)
    await connection.execute(
        """
        UPDATE turns t SET status = $2, ended_at = now(), last_seq = s.last_seq - $12, output_text = $3,
            stop_reason = $4, usage = $5, error = $6, cause = $7, time_limit = $8, delivered = $9,
            cancel_outcome = $10, last_backend_event_at = coalesce($11, last_backend_event_at)
        FROM agent_sessions s WHERE t.id = $1 AND s.id = t.session AND t.ended_at IS NULL
        """,
        turn,
        str(progress.status),
        progress.output_text,
        values.get("stop_reason"),
        _json(values.get("usage") or progress.usage),
        _json(values.get("error")),
        values.get("cause"),
        values.get("time_limit"),
        values.get("delivered"),
        values.get("cancel_outcome"),
        progress.event_at,
        progress.after,
    )


def _json(value: Any) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


@dataclass(frozen=True, slots=True)
class Admitted:
    """What an Idempotency-Key stands for."""

    request_sha256: bytes
    turn_id: TurnId


async def find_admitted(db: AsyncSession, owner: Owner, key: str) -> Admitted | None:
    """What was admitted under that Idempotency-Key in the last 24 hours."""
    row = (
        await db.execute(
            select(IdempotencyRow.request_sha256, IdempotencyRow.turn_id).where(
                IdempotencyRow.owner == owner, IdempotencyRow.key == key
            )
        )
    ).one_or_none()
    return Admitted(row[0], TurnId(row[1])) if row else None


async def keep_admitted(db: AsyncSession, owner: Owner, key: str, admitted: Admitted) -> None:
    """Remember what was admitted under an Idempotency-Key."""
    await db.execute(
        insert(IdempotencyRow).values(
            owner=owner, key=key, request_sha256=admitted.request_sha256, turn_id=admitted.turn_id
        )
    )


async def claim_idempotency_key(db: AsyncSession, owner: Owner, key: str) -> bool:
    """Hold the key until the transaction ends; false if another request holds it now."""
    name = f"{len(owner)}:{owner}:{key}"
    return bool(await db.scalar(select(func.pg_try_advisory_xact_lock(func.hashtextextended(name, 0)))))


async def sweep_admitted(db: AsyncSession) -> None:
    """Forget Idempotency-Keys after 24 hours."""
    await db.execute(
        delete(IdempotencyRow).where(IdempotencyRow.created_at < func.now() - text("interval '24 hours'"))
    )
