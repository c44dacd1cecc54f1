"""A task's rows: what was decided on what has changed meanwhile is not written, and nothing with it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import anyio
import pytest
from sqlalchemy import text

from app.domain.errors import TaskNotFound
from app.domain.events import TurnCompleted, TurnQueued
from app.domain.ids import Owner, SessionId, TaskId, TurnId
from app.domain.tasks import StepRequest, Task, TaskStatus, Then, Verdict, turn_request
from app.domain.turns import TurnStatus
from app.store import eventlog, sessions, tasks, turns
from app.store.database import Address
from app.store.eventlog import Connection, Outdated
from app.store.leases import Lease
from app.store.turns import Progress
from tests.store.test_eventlog import PATIENCE, Store, opened, said

OWNER = Owner("default")
TASK, FIRST, SECOND = TaskId("tsk_1"), TurnId("trn_1"), TurnId("trn_2")
STEPS = [StepRequest(name="a", prompt="first"), StepRequest(name="b", prompt="second", deadline_s=7)]
QUEUED = TurnQueued(position=0)
END = TurnCompleted(stop_reason=None, usage=None, reconciled=False)
PROGRESS = Progress(status=TurnStatus.COMPLETED, output_text="", usage=None, event_at=None, end=END, after=1)
VERDICT = Verdict(then=Then.ADVANCE, step=TaskStatus.COMPLETED, task=TaskStatus.RUNNING)


@pytest.fixture
async def store(database_address: Address) -> AsyncIterator[Store]:
    """One process's part of the store."""
    async with opened(database_address) as running:
        yield running


async def admit(store: Store, lease: Lease, task: TaskId, turn: TurnId) -> Task:
    """A task with its first step's turn in the queue."""
    async with store.database.begin() as db:
        await sessions.lock(db, lease.session)
        await eventlog.record(db, lease.session, eventlog.draft(SessionId("s"), turn, QUEUED))
        await tasks.make(db, lease.session, task, STEPS)
        await tasks.admit(await tasks.connection_of(db), task, 0, turn, turn_request(STEPS[0]))
        return await tasks.get(db, OWNER, task)


async def advance(store: Store, lease: Lease, task: Task) -> None:
    """End the first step's turn and admit the next, as the host's batch does."""
    drafts = [eventlog.draft(SessionId("s"), turn, event) for turn, event in ((FIRST, END), (SECOND, QUEUED))]

    async def alongside(connection: Connection) -> None:
        await turns.write_progress(connection, FIRST, PROGRESS)
        await tasks.write_verdict(connection, task, VERDICT, others=0)
        await tasks.admit(connection, task.id, 1, SECOND, turn_request(STEPS[1]))

    with anyio.fail_after(PATIENCE):
        await store.log.append(lease.session, lease.generation, drafts, alongside)


async def test_the_end_of_a_step_and_the_next_step_s_turn_are_one_commit(store: Store) -> None:
    """The turn that ended keeps its own last event; the next one's first is right behind it."""
    lease = await store.hosted("s")
    task = await admit(store, lease, TASK, FIRST)
    assert (task.turn_id, task.step.attempts, task.version) == (FIRST, 1, 0)
    await advance(store, lease, task)
    async with store.database.begin() as db:
        after = await tasks.get(db, OWNER, TASK)
        ended, following = await turns.get(db, OWNER, FIRST), await turns.get(db, OWNER, SECOND)
    assert (after.current, after.turn_id, after.steps[0].status) == (1, SECOND, TaskStatus.COMPLETED)
    assert (ended.status, ended.last_seq) == (TurnStatus.COMPLETED, 2)
    assert (following.status, following.first_seq, following.task_id) == (TurnStatus.QUEUED, 3, TASK)
    assert (following.request.prompt, following.request.deadline_s) == ("second", 7)


async def cancel(store: Store, lease: Lease) -> None:
    async with store.database.begin() as db:
        await sessions.lock(db, lease.session)
        await tasks.request_cancel(db, lease.session)


async def queue_another(store: Store, lease: Lease) -> None:
    await admit(store, lease, TaskId("tsk_2"), TurnId("trn_9"))


@pytest.mark.parametrize("change", [cancel, queue_another])
async def test_a_step_does_not_follow_on_what_has_changed_meanwhile(
    store: Store, change: Callable[[Store, Lease], Awaitable[None]]
) -> None:
    """The whole batch is undone, and its neighbours in the same commit are written all the same."""
    lease, other = await store.hosted("s"), await store.hosted("o")
    task = await admit(store, lease, TASK, FIRST)
    await change(store, lease)
    before = await store.all(lease.session)
    outdated: list[Outdated] = []

    async def fail() -> None:
        try:
            await advance(store, lease, task)
        except Outdated as error:
            outdated.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(fail)
        for number in range(5):
            group.start_soon(store.append, other, said(f"{number}"))
    assert len(outdated) == 1
    assert await store.all(lease.session) == before
    assert len(await store.all(other.session)) == 5
    async with store.database.begin() as db:
        assert (await turns.get(db, OWNER, FIRST)).status is TurnStatus.QUEUED
        now = await tasks.get(db, OWNER, TASK)
    assert (now.current, now.turn_id) == (0, FIRST)


async def test_a_task_and_its_steps_are_read_in_one_moment(store: Store) -> None:
    """While a session is erased, and while steps end: each answer is whole, or there is no such task."""
    lease = await store.hosted("s")
    seen: list[Task] = []
    is_over = False

    async def look() -> None:
        while not is_over:
            async with store.database.begin() as db:
                page = await tasks.list_tasks(db, OWNER, session_id=None, status=None, limit=10, cursor=None)
                seen.extend(page.items)
            with suppress(TaskNotFound):
                async with store.database.begin() as db:
                    seen.append(await tasks.get(db, OWNER, TASK))

    async def change() -> None:
        nonlocal is_over
        for _ in range(40):
            await admit(store, lease, TASK, FIRST)
            for status in (TaskStatus.COMPLETED, TaskStatus.FAILED):
                async with store.database.begin() as db:
                    task = await tasks.get(db, OWNER, TASK)
                    verdict = Verdict(then=Then.END, step=status, task=status)
                    connection = await tasks.connection_of(db)
                    await tasks.write_verdict(connection, task, verdict, others=1)
            async with store.database.begin() as db:
                await db.execute(text("DELETE FROM turns"))
                await db.execute(text("DELETE FROM tasks"))
        is_over = True

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(look)
            group.start_soon(change)
    assert seen
    assert [task for task in seen if task.is_ended and task.step.status is not task.status] == []
