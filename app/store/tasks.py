"""Tasks' rows. A task changes in the transaction that ends or starts its turn, under the session's lock."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import asyncpg
import msgspec
from sqlalchemy import JSON, Select, exists, func, insert, select, update
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain.errors import TaskNotFound
from app.domain.ids import Owner, SessionId, SessionKey, TaskId, TurnId
from app.domain.tasks import ENDED, StepError, StepRequest, Task, TaskStatus, TaskStep, Verdict
from app.domain.turns import PromptRequest
from app.store.eventlog import Connection, Outdated
from app.store.paging import Page, older_than, page
from app.store.tables import SessionRow, TaskRow, TaskStepRow, TurnRow

_STEPS = (
    select(
        func.json_agg(
            aggregate_order_by(
                func.json_build_object(  # without the prompt: megabytes, which only a turn needs
                    *(part for one in fields(TaskStep) for part in (one.name, getattr(TaskStepRow, one.name)))
                ),
                TaskStepRow.position,
            ),
            type_=JSON,
        )
    )
    .where(TaskStepRow.task == TaskRow.id)
    .correlate(TaskRow)
    .scalar_subquery()
)
"""A task's steps, read in the statement that reads the task: another would see a later moment."""


def _query() -> Select[Any, Any, Any, Any]:
    query = select(TaskRow, SessionRow.session_id, SessionRow.owner, _STEPS)
    query = query.join(SessionRow, SessionRow.id == TaskRow.session)
    return query.execution_options(populate_existing=True)  # a transaction reads again under its lock


def _task(row: Any) -> Task:
    task, session_id, owner, steps = row
    return Task(
        id=TaskId(task.id),
        session=SessionKey(task.session),
        session_id=SessionId(session_id),
        owner=Owner(owner),
        status=TaskStatus(task.status),
        steps=[_step(step) for step in steps],
        current=task.current,
        cancel_requested=task.cancel_requested,
        version=task.version,
        created_at=task.created_at,
        ended_at=task.ended_at,
    )


def _step(row: dict[str, Any]) -> TaskStep:
    error = row["error"]
    status = TaskStatus(row["status"])
    return TaskStep(**row | {"status": status, "error": None if error is None else StepError(**error)})


async def get(db: AsyncSession, owner: Owner, task_id: TaskId) -> Task:
    """The owner's task of that id.

    Raises:
        TaskNotFound: it is missing or somebody else's.
    """
    row = (await db.execute(_query().where(TaskRow.id == task_id, SessionRow.owner == owner))).one_or_none()
    if row is None:
        raise TaskNotFound
    return _task(row)


async def by_id(db: AsyncSession, task_id: TaskId) -> Task | None:
    """The task of that id, whoever's it is."""
    row = (await db.execute(_query().where(TaskRow.id == task_id))).one_or_none()
    return None if row is None else _task(row)


async def orphans(db: AsyncSession, session: SessionKey) -> list[Task]:
    """The session's open tasks of which no turn is open, oldest first; its row is locked by the caller.

    Nothing of ours leaves one. A replica of a version that knows no tasks ends a turn and nothing with it.
    """
    has_turn = exists().where(TurnRow.task == TaskRow.id, TurnRow.ended_at.is_(None))
    query = _query().where(TaskRow.session == session, TaskRow.ended_at.is_(None), ~has_turn)
    return [_task(row) for row in await db.execute(query.order_by(TaskRow.created_at, TaskRow.id))]


async def list_tasks(
    db: AsyncSession,
    owner: Owner,
    *,
    session_id: SessionId | None,
    status: TaskStatus | None,
    limit: int,
    cursor: str | None,
) -> Page[Task]:
    """The owner's tasks, newest first."""
    query = _query().where(SessionRow.owner == owner)
    if session_id is not None:
        query = query.where(SessionRow.session_id == session_id)
    if status is not None:
        query = query.where(TaskRow.status == status)
    condition = older_than(cursor, TaskRow.created_at, TaskRow.id)
    if condition is not None:
        query = query.where(condition)
    rows = await db.execute(query.order_by(TaskRow.created_at.desc(), TaskRow.id.desc()).limit(limit + 1))
    return page([(t.created_at, t.id, t) for t in map(_task, rows)], limit)


async def make(db: AsyncSession, session: SessionKey, task_id: TaskId, steps: Sequence[StepRequest]) -> None:
    """Insert a task whose first turn is still to be admitted; the session's row is locked by the caller."""
    await db.execute(insert(TaskRow).values(id=task_id, session=session))
    await db.execute(
        insert(TaskStepRow),
        [{"task": task_id, "position": n, **asdict(step)} for n, step in enumerate(steps)],
    )


async def reopen(db: AsyncSession, task: Task, first: int) -> None:
    """Have an ended task begin again at a step; the session's row is locked by the caller."""
    await db.execute(
        update(TaskStepRow)
        .where(TaskStepRow.task == task.id, TaskStepRow.position >= first)
        .values(status=TaskStatus.PENDING, attempts=0, error=None)
    )
    await db.execute(
        update(TaskRow)
        .where(TaskRow.id == task.id)
        .values(
            status=TaskStatus.PENDING,
            current=first,
            cancel_requested=False,
            version=TaskRow.version + 1,
            ended_at=None,
        )
    )


async def request_cancel(db: AsyncSession, session: SessionKey, task_id: TaskId | None = None) -> None:
    """Have an open task of the session end with its open turn; all of them, if none is named."""
    query = update(TaskRow).where(TaskRow.session == session, TaskRow.ended_at.is_(None))
    if task_id is not None:
        query = query.where(TaskRow.id == task_id)
    await db.execute(query.values(cancel_requested=True, version=TaskRow.version + 1))


async def begin(db: AsyncSession, task: Task) -> None:
    """Note that the current step's turn starts, and with it a task that was pending."""
    await db.execute(
        update(TaskStepRow)
        .where(TaskStepRow.task == task.id, TaskStepRow.position == task.current)
        .values(status=TaskStatus.RUNNING)
    )
    await db.execute(
        update(TaskRow)
        .where(TaskRow.id == task.id)
        .values(status=TaskStatus.RUNNING, version=TaskRow.version + 1)
    )


async def count_others(db: AsyncSession, session: SessionKey, turn_id: TurnId) -> int:
    """The session's open turns beside this one."""
    query = select(func.count()).select_from(TurnRow)
    return (
        await db.scalar(
            query.where(TurnRow.session == session, TurnRow.ended_at.is_(None), TurnRow.id != turn_id)
        )
        or 0
    )


# On a connection: the same for the host's batches and for the transactions of any replica.


async def connection_of(db: AsyncSession) -> Connection:
    """The connection of a transaction that has begun: what is written on it belongs to that transaction."""
    raw = await (await db.connection()).get_raw_connection()
    connection: asyncpg.Connection[asyncpg.Record] | None = raw.driver_connection
    assert connection is not None and connection.is_in_transaction()
    return connection


async def write_verdict(connection: Connection, task: Task, verdict: Verdict, *, others: int) -> None:
    """Write what a turn's end makes of its task. The turn has ended, and the session's row is locked.

    Raises:
        Outdated: the task, or how many other turns are open (`others`), is not what was decided on.
    """
    unchanged = await connection.fetchval(
        """
        SELECT t.version = $2 AND (
            SELECT count(*) FROM turns u WHERE u.session = t.session AND u.ended_at IS NULL
        ) = $3 FROM tasks t WHERE t.id = $1
        """,
        task.id,
        task.version,
        others,
    )
    if not unchanged:
        raise Outdated
    await connection.execute(
        "UPDATE task_steps SET status = $3, error = $4 WHERE task = $1 AND position = $2",
        task.id,
        task.current,
        str(verdict.step),
        None if verdict.error is None else msgspec.json.encode(verdict.error).decode(),
    )
    await connection.execute(
        "UPDATE tasks SET status = $2, ended_at = CASE WHEN $3 THEN now() END, version = version + 1 "
        "WHERE id = $1",
        task.id,
        str(verdict.task),
        verdict.task in ENDED,
    )


async def admit(
    connection: Connection, task_id: TaskId, position: int, turn_id: TurnId, request: PromptRequest
) -> None:
    """Insert a step's queued turn with the step's prompt; its `turn.queued` is the session's last event."""
    await connection.execute(
        """
        INSERT INTO turns (id, session, status, rank, retry_of, prompt, on_disconnect, multitask_strategy,
            queue_timeout_s, deadline_s, idle_timeout_s, max_attempts, first_seq, task)
        SELECT $3, a.id, 'queued', coalesce((
                SELECT max(o.rank) + 1 FROM turns o WHERE o.session = a.id AND o.ended_at IS NULL
            ), 0), $4, s.prompt, $5, $6, $7, $8, $9, $10, a.last_seq, t.id
        FROM tasks t JOIN task_steps s ON s.task = t.id JOIN agent_sessions a ON a.id = t.session
        WHERE t.id = $1 AND s.position = $2
        """,
        task_id,
        position,
        turn_id,
        request.retry_of,
        request.on_disconnect,
        request.multitask_strategy,
        float(request.queue_timeout_s),
        float(request.deadline_s),
        float(request.idle_timeout_s),
        request.max_attempts,
    )
    await connection.execute(
        "UPDATE task_steps SET attempts = attempts + 1, turn_ids = turn_ids || $3::text "
        "WHERE task = $1 AND position = $2",
        task_id,
        position,
        turn_id,
    )
    await connection.execute("UPDATE tasks SET current = $2 WHERE id = $1", task_id, position)
    await connection.execute(  # a host that is leaving does not look again
        "UPDATE agent_sessions a SET wanted = true FROM tasks t WHERE t.id = $1 AND a.id = t.session", task_id
    )
