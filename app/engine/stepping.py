"""What the start and the end of a step's turn make of its task, in the very transaction that logs them."""

from dataclasses import dataclass

from app.domain.events import TaskStarted, TaskStepStarted, Terminal, TurnQueued
from app.domain.ids import SessionId, SessionKey, TaskId, TurnId, new_turn_id
from app.domain.tasks import Task, TaskStatus, Then, Verdict, decide, ending_event, turn_request
from app.domain.turns import Turn
from app.store import eventlog, tasks
from app.store.database import Transaction
from app.store.eventlog import Connection, Draft


@dataclass(frozen=True, slots=True)
class Sequel:
    """What comes right after a turn's terminal event: one event, and what it stands for."""

    task: Task
    verdict: Verdict
    others: int
    """Open turns that the session has beside the one that ends: all are ahead of the next."""
    draft: Draft
    next_turn: TurnId | None
    """The task's next turn, which is admitted; null if the task has ended."""

    async def write(self, connection: Connection) -> None:
        """Write it, once the turn has ended and the draft is the session's last event.

        Raises:
            Outdated: what it was made of has changed; the transaction is to be undone.
        """
        task = self.task
        await tasks.write_verdict(connection, task, self.verdict, others=self.others)
        if self.next_turn is None:
            return
        if self.verdict.then is Then.REPEAT:
            position, request = task.current, turn_request(task.step, retry_of=task.turn_id)
        else:
            position = task.current + 1
            request = turn_request(task.steps[position])
        await tasks.admit(connection, task.id, position, self.next_turn, request)


async def sequel(db: Transaction, turn: Turn, end: Terminal, session_id: SessionId) -> Sequel | None:
    """What follows if `turn` ends so; null if it is no open task's. Nothing is written."""
    task = await tasks.by_id(db, turn.task_id) if turn.task_id is not None else None
    if task is None or task.turn_id != turn.id:
        return None
    verdict, others = decide(task, end), await tasks.count_others(db, turn.session, turn.id)
    if verdict.then is Then.END:
        draft = eventlog.draft(session_id, None, ending_event(task, verdict.task, turn.id))
        return Sequel(task, verdict, others, draft, None)
    next_turn = new_turn_id()
    draft = eventlog.draft(session_id, next_turn, TurnQueued(position=others))
    return Sequel(task, verdict, others, draft, next_turn)


async def end_orphans(db: Transaction, session: SessionKey, task_id: TaskId | None = None) -> int:
    """End what nothing else would: open tasks without an open turn, or one of them, as cancelled; how many.

    The session's row is locked by the caller.
    """
    found = [task for task in await tasks.orphans(db, session) if task_id in (None, task.id)]
    for task in found:
        verdict = Verdict(then=Then.END, step=TaskStatus.CANCELLED, task=TaskStatus.CANCELLED)
        event = ending_event(task, verdict.task, task.step.turn_ids[-1])
        await eventlog.record(db, session, eventlog.draft(task.session_id, None, event))
        others = await tasks.count_others(db, session, task.step.turn_ids[-1])
        await tasks.write_verdict(await tasks.connection_of(db), task, verdict, others=others)
    return len(found)


async def begin(db: Transaction, turn: Turn, session_id: SessionId) -> None:
    """Log that a step begins, right before its turn's first `turn.started`; the session's row is locked."""
    task = await tasks.by_id(db, turn.task_id) if turn.task_id is not None else None
    if task is None or task.turn_id != turn.id or turn.attempt > 0:
        return
    names = {"task_id": task.id, "step": task.step.name, "turn_id": turn.id}
    if task.status is TaskStatus.PENDING:
        await eventlog.record(db, turn.session, eventlog.draft(session_id, None, TaskStarted(**names)))
    await eventlog.record(db, turn.session, eventlog.draft(session_id, None, TaskStepStarted(**names)))
    await tasks.begin(db, task)
