"""Tasks: admitted, read, cancelled, tried again. What comes between is decided where a step's turn ends."""

from collections.abc import Sequence
from functools import partial

import structlog

from app.domain.errors import Draining, TaskNotFound, TurnNotEnded, TurnNotFound, ValidationFailed
from app.domain.events import TurnCancelled, TurnQueued
from app.domain.ids import Owner, SessionId, TaskId, TurnId, new_task_id, new_turn_id
from app.domain.sessions import Session
from app.domain.tasks import StepRequest, Task, TaskStatus, turn_request
from app.domain.turns import PromptRequest, TurnStatus
from app.engine import stepping
from app.engine.ending import end_queued
from app.engine.lifecycle import Lifecycle
from app.engine.turns import CANCEL_S, Idempotency, Turns
from app.engine.waiting import look_until
from app.store import eventlog, sessions, tasks, turns
from app.store.database import Database, Transaction
from app.store.paging import Page
from app.store.turns import Admitted

log = structlog.get_logger(__name__)


class Tasks:
    """The use-cases on tasks, within the caller's owner."""

    def __init__(self, database: Database, lifecycle: Lifecycle, turns_: Turns, *, prompt_bytes: int) -> None:
        """`turns_` knows which prompts are taken now."""
        self._database = database
        self._lifecycle = lifecycle
        self._turns = turns_
        self._prompt_bytes = prompt_bytes

    # Admit.

    async def admit(
        self,
        owner: Owner,
        session_id: SessionId,
        steps: Sequence[StepRequest],
        idempotency: Idempotency | None = None,
    ) -> tuple[Task, bool]:
        """Admit a task, durably, with its first step's turn in the queue. The flag says "this was a repeat".

        Raises:
            SessionIsClosed, BackendSessionLost, QueueFull, Draining, BackendIsDown: not now.
            IdempotencyKeyReused, RequestInProgress: the key stands for something else, or for one under way.
        """
        self._check_sizes(steps)
        async with self._database.begin() as db:
            if idempotency is not None and (earlier := await self._earlier(db, owner, idempotency)):
                return earlier, True
            session = await self._open_session(db, owner, session_id)
            request = turn_request(steps[0])
            task_id = new_task_id()
            position = await self._check(db, session, request)
            await tasks.make(db, session.key, task_id, steps)
            turn_id = await _admit_turn(db, session, task_id, 0, request, position)
            await _keep(db, owner, idempotency, turn_id)
            task = await tasks.get(db, owner, task_id)
        log.info("task_admitted", task_id=task_id, session_id=session_id, steps=len(steps))
        return task, False

    async def retry(
        self, owner: Owner, task_id: TaskId, idempotency: Idempotency | None = None
    ) -> tuple[Task, bool]:
        """Have an ended task go on from the step that did not complete, with all its attempts again.

        Raises:
            TurnNotEnded: the task is still open.
            ValidationFailed: it completed.
            SessionIsClosed, BackendSessionLost, QueueFull, Draining, BackendIsDown: not now.
            IdempotencyKeyReused, RequestInProgress: as `admit`.
        """
        async with self._database.begin() as db:
            if idempotency is not None and (earlier := await self._earlier(db, owner, idempotency)):
                return earlier, True
            task = await tasks.get(db, owner, task_id)
            session = await self._open_session(db, owner, task.session_id)
            task = await tasks.get(db, owner, task_id)
            if not task.is_ended:
                raise TurnNotEnded(detail="The task is still open: cancel it, or wait for its end.")
            first = task.resumes_at
            if first is None:
                error = {"loc": ["path", "task_id"], "msg": "the task completed", "type": "task_completed"}
                raise ValidationFailed(errors=[error], detail="The task completed: nothing is left to retry.")
            step = task.steps[first]
            request = turn_request(step, retry_of=step.turn_ids[-1] if step.turn_ids else None)
            position = await self._check(db, session, request)
            await tasks.reopen(db, task, first)
            turn_id = await _admit_turn(db, session, task_id, first, request, position)
            await _keep(db, owner, idempotency, turn_id)
            task = await tasks.get(db, owner, task_id)
        log.info("task_retried", task_id=task_id, step=first)
        return task, False

    def _check_sizes(self, steps: Sequence[StepRequest]) -> None:
        errors = [
            {
                "loc": ["body", "steps", n, "prompt"],
                "msg": f"at most {self._prompt_bytes}",
                "type": "too_long",
            }
            for n, step in enumerate(steps)
            if len(step.prompt.encode()) > self._prompt_bytes
        ]
        if errors:
            raise ValidationFailed(errors=errors)

    async def _earlier(self, db: Transaction, owner: Owner, idempotency: Idempotency) -> Task | None:
        """The task that this key admitted or retried before; held until the transaction ends."""
        try:
            turn = await self._turns.earlier_in(db, owner, idempotency)
        except TurnNotFound:  # erased with its session: not run again either
            raise TaskNotFound from None
        if turn is None:
            return None
        assert turn.task_id is not None, "the key's hash covers the route"
        return await tasks.get(db, owner, turn.task_id)

    async def _open_session(self, db: Transaction, owner: Owner, session_id: SessionId) -> Session:
        """The session, its row locked until the transaction ends."""
        if self._lifecycle.draining:
            raise Draining
        return await sessions.lock_owned(db, owner, session_id)

    async def _check(self, db: Transaction, session: Session, request: PromptRequest) -> int:
        """How many turns are before the one that is to be admitted."""
        open_turns = await turns.open_turns(db, session.key)
        await self._turns.check(db, session, request, open_turns)
        return len(open_turns)

    # Read.

    async def get(self, owner: Owner, task_id: TaskId) -> Task:
        """The task.

        Raises:
            TaskNotFound: it is missing or somebody else's.
        """
        async with self._database.begin() as db:
            return await tasks.get(db, owner, task_id)

    async def list_tasks(
        self,
        owner: Owner,
        *,
        session_id: SessionId | None,
        status: TaskStatus | None,
        limit: int,
        cursor: str | None,
    ) -> Page[Task]:
        """A page of the owner's tasks, newest first."""
        async with self._database.begin() as db:
            return await tasks.list_tasks(
                db, owner, session_id=session_id, status=status, limit=limit, cursor=cursor
            )

    # Cancel.

    async def cancel(self, owner: Owner, task_id: TaskId) -> Task:
        """Have the task end with its open turn, which is stopped, and wait a while for that.

        An ended task is left as it is; one whose last step completes all the same has completed. One that has
        no open turn, which only an older version leaves behind, has ended at once.
        """
        async with self._database.begin() as db:
            task = await tasks.get(db, owner, task_id)
            await sessions.lock(db, task.session)
            task = await tasks.get(db, owner, task_id)
            if await stepping.end_orphans(db, task.session, task_id):
                return await tasks.get(db, owner, task_id)
            turn = await turns.get(db, owner, task.turn_id) if task.turn_id is not None else None
            if turn is not None:
                await tasks.request_cancel(db, task.session, task_id)
                if turn.status is TurnStatus.QUEUED:
                    await end_queued(db, turn, TurnCancelled(cause="caller", cancel_outcome=None))
                else:
                    await turns.request_cancel(db, turn.id, "caller")
                await sessions.want(db, task.session)
        return await self._wait(owner, task, CANCEL_S)

    async def _wait(self, owner: Owner, task: Task, timeout_s: float) -> Task:
        """The task once it has ended, or as it stands after that time."""
        if task.is_ended:
            return task
        seen = await look_until(
            partial(self.get, owner, task.id),
            lambda now: now.is_ended,
            session=task.session,
            bell=self._database.bell,
            lifecycle=self._lifecycle,
            timeout_s=timeout_s,
            poll_s=2.0,
        )
        return seen or task


async def _admit_turn(
    db: Transaction, session: Session, task_id: TaskId, step: int, request: PromptRequest, position: int
) -> TurnId:
    """Put a step's turn into the queue; the session's row is locked."""
    turn_id = new_turn_id()
    queued = eventlog.draft(session.session_id, turn_id, TurnQueued(position=position))
    await eventlog.record(db, session.key, queued)
    await tasks.admit(await tasks.connection_of(db), task_id, step, turn_id, request)
    await sessions.want(db, session.key)
    return turn_id


async def _keep(db: Transaction, owner: Owner, idempotency: Idempotency | None, turn_id: TurnId) -> None:
    if idempotency is not None:
        await turns.keep_admitted(db, owner, idempotency.key, Admitted(idempotency.request_sha256, turn_id))
