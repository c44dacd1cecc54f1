"""How collisions end, and what keeps their telling alive: on a database of the test's own."""

from pathlib import Path
from typing import Any, cast

import anyio
import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain.ids import Owner
from app.engine.collisions import Collisions
from app.store import collisions, eventlog, touches
from app.store.collisions import Pair
from app.store.database import Address
from tests.engine.worktrees import two_worktrees
from tests.store.test_collisions import IDLE, Store, comparer, store

__all__ = ["store"]


async def test_a_session_that_is_being_closed_is_no_idle_one(store: Store) -> None:
    """While its agent is archived another process may sweep; an idle partner changes nothing."""
    one, two, three = [await store.session(name) for name in ("one", "two", "three")]
    for session in (one, two, three):
        await store.touch(session)
        await store.look(session)
    await store.line.execute("UPDATE agent_sessions SET status = 'closing' WHERE id = $1", one)
    await store.line.execute(
        "UPDATE agent_sessions SET last_active_at = now() - interval '31 minutes' WHERE id = $1", three
    )
    await comparer(store.database).sweep()
    rows = await store.line.fetch("SELECT session_a, session_b, resolution FROM collisions")
    assert {(row["session_a"], row["session_b"]): row["resolution"] for row in rows} == {
        (one, two): "session_closed",
        (one, three): "session_closed",
        (two, three): "session_idle",
    }


async def test_a_collision_that_is_told_while_one_of_the_two_closes_is_resolved(store: Store) -> None:
    """Whoever tells holds both sessions' rows: who leaves waits, and then finds it."""
    one, two = await store.session("one"), await store.session("two")
    await store.touch(one)
    await store.touch(two)
    pair = Pair.of(one, two)
    async with anyio.create_task_group() as tasks, store.database.begin() as db:
        parties = await collisions.lock(db, pair, IDLE)
        tasks.start_soon(comparer(store.database).leave, one)
        with anyio.fail_after(5):
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            while await store.line.fetchval(waits) == 0:
                pass
        opened = await collisions.open_one(
            db, pair, "a.py", severity="merge", overlap="same_file", merge_conflict=None
        )
        assert opened is not None
        for key in (one, two):
            draft = eventlog.draft(parties[key].session_id, None, opened.opened())
            await eventlog.record(db, key, draft)
    assert await store.line.fetchval("SELECT resolution FROM collisions") == "session_closed"
    for key in (one, two):
        assert [e["type"] for e in await store.told(key)] == ["file.collision", "file.collision_resolved"]


async def test_files_are_forgotten_in_the_order_in_which_they_are_looked_at(
    store: Store, database_address: Address
) -> None:
    """Two that lock the same rows in two orders end each other."""
    one = await store.session("one")
    for path in ("b.py", "a.py"):  # as they lie in the table, and would be found without an index
        await store.touch(one, path)
    database = await store.line.fetchval("SELECT quote_ident(current_database())")
    for plan in ("indexscan", "bitmapscan", "indexonlyscan"):
        await store.line.execute(f"ALTER DATABASE {database} SET enable_{plan} = off")
    other = await asyncpg.connect(**database_address.arguments)

    async def forget() -> None:
        async with store.database.begin() as db:
            await touches.forget(db, one)

    try:
        async with anyio.create_task_group() as tasks, store.line.transaction():
            await store.line.execute("SELECT FROM file_touches WHERE path = 'a.py' FOR UPDATE")
            tasks.start_soon(forget)
            with anyio.fail_after(5):
                waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
                while await other.fetchval(waits) == 0:
                    pass
            free = "SELECT path FROM file_touches WHERE path = 'b.py' FOR UPDATE SKIP LOCKED"
            assert await other.fetchval(free) == "b.py"
    finally:
        await other.close()
    assert await store.line.fetchval("SELECT count(*) FROM file_touches") == 0


async def test_what_cannot_be_looked_at_keeps_nobody_else_waiting(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the agent that wrote it, nor the others; it is tried again."""
    one, two = [str(path) for path in two_worktrees(tmp_path)]
    first, second = await store.session("first"), await store.session("second")
    await store.touch(first, root=one, remote=None)
    await store.touch(second, root=two, remote=None)
    good, other = await store.session("good"), await store.session("other")
    for session in (good, other):
        await store.touch(session, "good.py")
    await store.line.execute("UPDATE file_touches SET touched_at = now() - interval '10 s'")

    def broken(_: Path) -> bool:
        raise ZeroDivisionError

    spoiled = Collisions(store.database, idle_s=1800, may_read=broken)
    await spoiled.look(second)
    await spoiled.sweep()
    assert [event["type"] for event in await store.told(good)] == ["file.collision"]
    assert await store.told(first) == []
    async with store.database.begin() as db:
        assert {touch.session for touch in await touches.pending(db)} == {first, second}
    await comparer(store.database).sweep()
    assert [event["type"] for event in await store.told(first)] == ["file.collision"]


async def test_a_sweep_that_fails_is_followed_by_the_next(store: Store) -> None:
    """Whatever befalls it: it is no task that ends the process."""
    one, two = await store.session("one"), await store.session("two")
    await store.touch(one)
    await store.touch(two)
    await store.line.execute("UPDATE file_touches SET touched_at = now() - interval '10 s'")
    await store.line.execute("ALTER TABLE collisions RENAME TO away")
    running = Collisions(store.database, idle_s=0.2, may_read=lambda _: False)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(running.run)
        await anyio.sleep(0.5)  # it has failed by now
        await store.line.execute("ALTER TABLE away RENAME TO collisions")
        await store.line.execute("UPDATE agent_sessions SET last_active_at = now() + interval '1 hour'")
        with anyio.fail_after(10):
            while not await store.told(one):
                pass
        tasks.cancel_scope.cancel()


async def test_a_file_is_never_listed_without_who_wrote_it(store: Store) -> None:
    """Whatever is forgotten meanwhile: each statement sees another moment."""
    for name in ("one", "two"):
        await store.touch(await store.session(name))

    class Meanwhile:
        """A transaction; after its first statement everything is forgotten."""

        def __init__(self, db: AsyncSession) -> None:
            self._db = db

        async def execute(self, statement: Any) -> Any:
            found = await self._db.execute(statement)
            await store.line.execute("DELETE FROM file_touches")
            return found

    async with store.database.begin() as db:
        found = await touches.list_files(
            cast(AsyncSession, Meanwhile(db)), Owner("default"), "p", idle=IDLE, limit=10, cursor=None
        )
    assert [len(file.sides) for file in found.items] == [2]
