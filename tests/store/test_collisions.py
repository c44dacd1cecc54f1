"""Touches and collisions in the database: one indexed query a touch, one row a pair, whoever finds it."""

import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio
import asyncpg
import pytest
from sqlalchemy import text

from app.domain.collisions import Touched
from app.domain.ids import SessionKey
from app.domain.touches import MAX_RANGES, WHOLE, Change, TouchKind
from app.engine.collisions import Collisions
from app.store import touches
from app.store.bell import Bell
from app.store.database import Address, Database
from app.store.touches import MAX_OTHERS, MAX_PATH, MAX_RECENT, OTHERS

IDLE = timedelta(minutes=30)


def comparer(database: Database) -> Collisions:
    """What one process does about collisions; git is never asked."""
    return Collisions(database, idle_s=1800, may_read=lambda _: False)


class Store:
    """A process's database, and a connection like the appender's."""

    def __init__(self, database: Database, line: "asyncpg.Connection[asyncpg.Record]") -> None:
        self.database = database
        self.line = line

    async def session(self, name: str, project: str | None = "p", owner: str = "default") -> SessionKey:
        """A session of a project."""
        key = await self.line.fetchval(
            """
            INSERT INTO agent_sessions (owner, session_id, chat_id, agent, backend, provider, creation_key,
                cwd, agent_session_id, project_id)
            VALUES ($1, $2, $2, 'demo', 'demo', 'demo', $2, '/', $2, $3) RETURNING id
            """,
            owner,
            name,
            project,
        )
        return SessionKey(key)

    async def touch(
        self,
        session: SessionKey,
        path: str = "a.py",
        *,
        root: str | None = None,
        kind: TouchKind = "edit",
        changes: tuple[Change, ...] | None = None,
        remote: str | None = None,
    ) -> None:
        """Keep that a session has written a file, in a worktree of its own if none is named."""
        root = root or f"/w/{session}"
        touched = Touched(path=path, root=root, remote=remote, kind=kind, turn_id=None, edits=(changes,))
        await touches.write(self.line, session, [touched])

    async def others(self, session: SessionKey, path: str = "a.py") -> list[tuple[SessionKey, bool]]:
        """Who shares a file with a session."""
        async with self.database.begin() as db:
            return [
                (o.session, shared.same_lines) for o, shared in await touches.others(db, session, path, IDLE)
            ]

    async def told(self, session: SessionKey) -> list[dict[str, Any]]:
        """Everything in a session's log."""
        rows = await self.line.fetch("SELECT seq, body FROM events WHERE session = $1 ORDER BY seq", session)
        assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
        return [json.loads("{" + row["body"]) for row in rows]

    async def look(self, *sessions: SessionKey, times: int = 1) -> None:
        """Compare what the sessions wrote, all at once, in processes of their own."""
        async with anyio.create_task_group() as tasks:
            for session in sessions * times:
                tasks.start_soon(comparer(self.database).look, session)


@asynccontextmanager
async def opened(address: Address) -> AsyncIterator[Store]:
    database = Database(address, address, Bell(), pool_size=8)
    line = await asyncpg.connect(**address.arguments)
    try:
        yield Store(database, line)
    finally:
        await line.close()
        await database.aclose()


@pytest.fixture
async def store(database_address: Address) -> AsyncIterator[Store]:
    """A database of the test's own."""
    async with opened(database_address) as running:
        yield running


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """A plan's nodes."""
    return [plan, *(node for child in plan.get("Plans", ()) for node in nodes(child))]


async def explain(store: Store, session: SessionKey, path: str) -> list[dict[str, Any]]:
    """How PostgreSQL answers the one query of a touch: every node, with what it read."""
    async with store.database.begin() as db:
        found = await db.scalar(
            text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {OTHERS.text}"),
            {"session": session, "path": path, "idle": IDLE},
        )
    return nodes((json.loads(found) if isinstance(found, str) else found)[0]["Plan"])


async def run_turns(store: Store, *sessions: SessionKey) -> None:
    """A running turn of each of the sessions; of every one, if none is named."""
    await store.line.execute(
        """
        INSERT INTO turns (id, session, status, rank, prompt, on_disconnect, multitask_strategy,
            queue_timeout_s, deadline_s, idle_timeout_s, max_attempts, first_seq, started_at)
        SELECT 't-' || id, id, 'running', 1, '', 'continue', 'reject', 1, 1, 1, 1, 1, now()
        FROM agent_sessions WHERE $1 OR id = ANY($2::bigint[])
        """,
        not sessions,
        sessions,
    )


async def crowd(store: Store, sessions: int, files: int = 10) -> SessionKey:
    """A project of many sessions at work on files of their own, each in a collision with the next; two more
    share a file: one of these."""
    await store.line.execute(
        """
        INSERT INTO agent_sessions (owner, session_id, chat_id, agent, backend, provider, creation_key, cwd,
            agent_session_id, project_id)
        SELECT 'default', 'n-' || n, 'n-' || n, 'demo', 'demo', 'demo', 'n', '/', 'n', 'p'
        FROM generate_series(1, $1::int) n
        """,
        sessions,
    )
    await store.line.execute(
        """
        INSERT INTO file_touches (session, path, owner, project_id, root, kind, pending)
        SELECT s.id, 'src/' || s.id || '/' || f, 'default', 'p', '/w', 'edit', false
        FROM agent_sessions s, generate_series(1, $1::int) f
        """,
        files,
    )
    await store.line.execute(
        """
        INSERT INTO collisions (id, owner, project_id, path, session_a, session_b, severity, overlap, touches)
        SELECT 'col_' || a.id, 'default', 'p', 'a.py', a.id, b.id, 'merge', 'same_file', '[]'
        FROM agent_sessions a JOIN agent_sessions b ON b.id = a.id + 1
        """
    )
    one, two = await store.session("one"), await store.session("two")
    await run_turns(store)
    await store.touch(one)
    await store.touch(two)
    await store.line.execute("ANALYZE agent_sessions, file_touches, collisions, turns")
    return two


@pytest.mark.parametrize("changes", [((2**63, 1, 1),), ((2**63 - 1, 1, 1),), ((-(2**70), 1, 1),)])
async def test_a_touch_that_cannot_be_kept_costs_nothing_else(
    store: Store, changes: tuple[Change, ...]
) -> None:
    """What is written in the same transaction, before it and after, stands."""
    one = await store.session("one")
    async with store.line.transaction():
        await store.touch(one, "a.py")
        await store.touch(one, "b.py", changes=changes)
        await store.touch(one, "c.py")
    kept = await store.line.fetch("SELECT path FROM file_touches ORDER BY path")
    assert [row["path"] for row in kept] == ["a.py", "c.py"]


async def test_the_query_of_a_touch_reads_as_much_among_5000_sessions_as_among_10(
    database_address: Address, store: Store
) -> None:
    """Indexes all the way: no table is scanned, and the pages read grow as an index's depth does."""
    pages = []
    for sessions in (10, 5_000):
        await store.line.execute("TRUNCATE agent_sessions CASCADE")
        two = await crowd(store, sessions)
        found = await explain(store, two, "a.py")
        assert found[0]["Actual Rows"] == 1
        pages.append(found[0]["Shared Hit Blocks"] + found[0]["Shared Read Blocks"])
        if sessions > 10:  # among ten rows a scan is right
            scans = [node for node in found if "Scan" in node["Node Type"]]
            assert scans
            assert not [node for node in scans if node["Node Type"] == "Seq Scan"], scans
            assert "file_touches_file_idx" in {node.get("Index Name") for node in scans}
            assert all(node["Actual Rows"] <= 2 for node in scans), scans
    assert pages[1] <= pages[0] + 12, pages


async def test_a_file_that_thousands_write_costs_no_more(store: Store) -> None:
    """Those that wrote it last are looked at, and no other row of it is read."""
    two = await crowd(store, 3_000, files=1)
    await store.line.execute("UPDATE file_touches SET path = 'a.py' WHERE path <> 'a.py'")
    await store.line.execute("VACUUM ANALYZE file_touches")
    found = await explain(store, two, "a.py")
    assert found[0]["Actual Rows"] == MAX_OTHERS
    scans = [node for node in found if node.get("Relation Name") == "file_touches"]
    assert scans
    assert not [node for node in scans if node["Node Type"] == "Seq Scan"], scans
    assert all(node["Actual Rows"] <= MAX_RECENT for node in scans), scans


async def test_who_shares_a_file_is_found_within_owner_project_and_life(store: Store) -> None:
    """Nobody else's session, no other project's, none that is closed or has been idle for long."""
    mine = await store.session("mine")
    await store.touch(mine)
    yours = await store.session("yours")
    for session in (
        yours,
        await store.session("other-project", "q"),
        await store.session("other-owner", owner="other"),
        await store.session("no-project", None),
        closed := await store.session("closed"),
        closing := await store.session("closing"),
        idle := await store.session("idle"),
    ):
        await store.touch(session)
    await store.touch(await store.session("other-file"), "b.py")
    await store.line.execute("UPDATE agent_sessions SET status = 'closed' WHERE id = $1", closed)
    await store.line.execute("UPDATE agent_sessions SET status = 'closing' WHERE id = $1", closing)
    await store.line.execute(
        "UPDATE agent_sessions SET last_active_at = now() - interval '31 minutes' WHERE id = $1", idle
    )
    assert await store.others(mine) == [(yours, False)]
    await run_turns(store, idle, closing)
    found = {key for key, _ in await store.others(mine)}
    assert found == {yours, idle, closing}, "a turn that runs is life"


@pytest.mark.parametrize(
    ("mine", "yours", "same"),
    [
        (((1, 3, 3),), ((3, 3, 3),), True),
        (((1, 3, 3),), ((4, 2, 2),), False),
        (((1, 3, 3), (10, 3, 9)), ((5, 2, 2), (11, 1, 1)), True),
        (((5, 0, 7),), ((5, 1, 1),), True),
        (((5, 0, 7),), ((6, 1, 1),), False),
        (WHOLE, ((99, 1, 1),), True),
        (None, ((1, 3, 3),), False),
        (None, WHOLE, False),
        (None, None, False),
    ],
)
async def test_lines_that_both_changed_are_the_same_lines(
    store: Store, mine: tuple[Change, ...] | None, yours: tuple[Change, ...] | None, same: bool
) -> None:
    """In two worktrees each counts in its file as it was before its first write; what goes in between two
    lines touches both."""
    one, two = await store.session("one"), await store.session("two")
    await store.touch(one, changes=mine)
    await store.touch(two, changes=yours)
    assert await store.others(one) == [(two, same)]
    assert await store.others(two) == [(one, same)]


async def test_lines_are_carried_along_as_a_session_goes_on(store: Store) -> None:
    """Ten lines put in above: what it then calls line 30 was line 20."""
    one, two, three = [await store.session(name) for name in ("one", "two", "three")]
    await store.touch(two, changes=((20, 1, 1),))
    await store.touch(three, changes=((30, 1, 1),))
    await store.touch(one, changes=((1, 0, 10),))
    assert await store.others(one) == [(three, False), (two, False)]
    await store.touch(one, changes=((30, 1, 1),))
    assert await store.others(one) == [(three, False), (two, True)]


async def test_after_a_write_of_which_nobody_tells_the_lines_no_more_are_told(store: Store) -> None:
    """What surely changed before stays; a file written whole is known again."""
    one, two = await store.session("one"), await store.session("two")
    await store.touch(two, changes=((7, 3, 3),))
    for changes, same in ((((1, 1, 1),), False), (None, False), (((8, 1, 1),), False), (WHOLE, True)):
        await store.touch(one, changes=changes)
        assert await store.others(one) == [(two, same)], changes
    three = await store.session("three")
    await store.touch(three, changes=((7, 1, 1),))
    await store.touch(three, changes=None)
    assert (await store.others(three))[-1] == (two, True)


async def test_of_more_stretches_than_are_kept_nobody_tells(store: Store) -> None:
    """One that held them all would hold lines that nobody changed."""
    one, two = await store.session("one"), await store.session("two")
    await store.touch(two, changes=((4, 1, 1),))
    await store.touch(one, changes=tuple((3 * n, 1, 1) for n in range(1, MAX_RANGES + 2)))
    assert await store.others(one) == [(two, False)]
    assert await store.line.fetchval("SELECT hunks FROM file_touches WHERE session = $1", one) is None


async def test_in_one_worktree_lines_are_counted_in_what_the_other_left(store: Store) -> None:
    """Who writes after the other sees its lines; once both have, nobody can tell which are the same."""
    one, two = await store.session("one"), await store.session("two")
    await store.touch(one, root="/w", changes=((1, 0, 10),))
    await store.touch(one, root="/w", changes=((30, 1, 1),))
    await store.touch(two, root="/w", changes=((20, 1, 1),))
    assert await store.others(two) == [(one, False)]
    await store.touch(two, root="/w", changes=((30, 1, 1),))
    assert await store.others(two) == [(one, True)]
    await store.touch(one, root="/w", changes=((30, 1, 1),))
    assert await store.others(one) == [(two, False)], "its own count does not know what the other put in"
    await store.touch(two, root="/w", changes=WHOLE)
    assert await store.others(two) == [(one, True)]


async def test_in_one_worktree_a_third_session_moves_the_lines_too(store: Store) -> None:
    """Only what the last one before has left is counted in the same text."""
    one, two, three = [await store.session(name) for name in ("one", "two", "three")]
    await store.touch(one, root="/w", changes=((30, 1, 1),))
    await store.touch(two, root="/w", changes=((1, 0, 10),))
    await store.touch(three, root="/w", changes=((30, 1, 1),))
    assert await store.others(three) == [(two, False), (one, False)]


async def test_the_longest_path_that_is_kept_fits_the_index(store: Store) -> None:
    """Of the longest project and owner, in characters that do not shrink."""
    path = secrets.token_hex(MAX_PATH // 2)
    owner, project = secrets.token_hex(64), "".join(chr(0x1F600 + n % 64) for n in range(128))
    one = await store.session("one", project, owner)
    two = await store.session("two", project, owner)
    await store.touch(one, path)
    await store.touch(two, path)
    assert await store.others(one, path) == [(two, False)]


async def test_both_logs_are_told_once_however_many_look_at_once(store: Store) -> None:
    """Two sessions, looked at by ten processes each: one row, one event in each log, the same words."""
    one, two = await store.session("one"), await store.session("two")
    await store.touch(one, root="/w/1", changes=((1, 2, 2),))
    await store.touch(two, root="/w/2", kind="write", changes=WHOLE)
    await store.look(one, two, times=10)
    logs = [await store.told(session) for session in (one, two)]
    assert [len(log) for log in logs] == [1, 1]
    (first,), (second,) = logs
    assert (first["type"], first["data"]) == ("file.collision", second["data"])
    data = first["data"]
    assert (data["path"], data["severity"], data["overlap"]) == ("a.py", "merge", "same_lines")
    assert [(each["session_id"], each["kind"]) for each in data["sessions"]] == [
        ("one", "edit"),
        ("two", "write"),
    ]
    assert await store.line.fetchval("SELECT count(*) FROM collisions") == 1
    assert not await store.line.fetchval("SELECT bool_or(pending) FROM file_touches")
    await store.touch(one)
    await store.look(one)
    assert [len(await store.told(session)) for session in (one, two)] == [1, 1]


async def test_a_collision_that_comes_to_the_same_lines_is_told_once_more(store: Store) -> None:
    one, two = await store.session("one"), await store.session("two")
    for session, line in ((one, 1), (two, 9), (one, 9), (two, 9)):
        await store.touch(session, changes=((line, 1, 1),))
        await store.look(session)
    told = [event["data"] for event in await store.told(two)]
    assert [data["overlap"] for data in told] == ["same_file", "same_lines"]
    assert len({data["collision_id"] for data in told}) == 1
    assert told == [event["data"] for event in await store.told(one)]


@pytest.mark.parametrize(
    ("mine", "yours", "severity"),
    [
        (("/w", None), ("/w", None), "overwrite"),
        (("/w", None), ("/v", None), "merge"),
        (("/w", "far"), ("/w", "far"), "overwrite"),
        (("/w", "far"), ("/w", "near"), "merge"),
        (("/w", "far"), ("/w", None), "merge"),
    ],
)
async def test_one_worktree_is_one_root_on_one_disk(
    store: Store, mine: tuple[str, str | None], yours: tuple[str, str | None], severity: str
) -> None:
    one, two = await store.session("one"), await store.session("two")
    await store.touch(one, root=mine[0], remote=mine[1])
    await store.touch(two, root=yours[0], remote=yours[1])
    await store.look(one)
    (event,) = await store.told(two)
    assert (event["data"]["severity"], event["data"]["merge_conflict"]) == (severity, None)


@pytest.mark.parametrize("remote", [None, "far"])
async def test_one_file_is_one_from_whatever_root_it_is_seen(store: Store, remote: str | None) -> None:
    """Told once, by its path from the root further up, whoever is asked; its lines are counted as in one."""
    one, two = await store.session("one"), await store.session("two")
    await store.touch(one, "sub/a.py", root="/w", remote=remote, changes=((1, 0, 10),))
    await store.touch(two, "a.py", root="/w/sub/", remote=remote, changes=((5, 1, 1),))
    assert await store.others(two, "a.py") == [(one, True)]
    assert await store.others(one, "sub/a.py") == [(two, False)], "nobody knows what two has left of them"
    await store.look(one, two, times=2)
    await store.touch(one, "sub/a.py", root="/w", remote=remote)
    await store.look(one)
    for key in (one, two):
        told = [event["data"] for event in await store.told(key)]
        assert {(each["path"], each["severity"], each["collision_id"]) for each in told} == {
            ("sub/a.py", "overwrite", told[0]["collision_id"])
        }
        assert [each["session_id"] for each in told[-1]["sessions"]] == ["one", "two"]
    await store.touch(await store.session("elsewhere"), "a.py", root="/w/sub", remote="other")
    assert [key for key, _ in await store.others(one, "sub/a.py")] == []


async def test_on_disks_that_nobody_sees_two_roots_have_no_lines_in_common(store: Store) -> None:
    """They may be two repositories; in one root a file written whole is all its lines."""
    one, two = await store.session("one"), await store.session("two")
    await store.touch(one, root="/one", remote="far", changes=((3, 1, 1),))
    await store.touch(two, root="/two", remote="far", changes=((3, 1, 1),))
    assert await store.others(one) == [(two, False)]
    await store.touch(one, root="/one", remote="far", changes=WHOLE)
    assert await store.others(one) == [(two, False)]
    await store.touch(one, root="/two", remote="far", changes=WHOLE)
    assert await store.others(one) == [(two, True)]


async def test_many_who_write_one_file_are_told_in_pairs_and_never_deadlock(store: Store) -> None:
    """Twelve at once, each compared by two processes: every pair once, and every log without a hole."""
    keys = [await store.session(f"s-{n}") for n in range(12)]
    for key in keys:
        await store.touch(key)
    with anyio.fail_after(60):
        await store.look(*keys, times=2)
    assert await store.line.fetchval("SELECT count(*) FROM collisions") == 12 * 11 // 2
    for key in keys:
        assert len(await store.told(key)) == 11


async def test_a_touch_is_compared_with_a_bounded_number_of_sessions(store: Store) -> None:
    keys = [await store.session(f"s-{n}") for n in range(MAX_OTHERS + 5)]
    for key in keys:
        await store.touch(key)
    found = [key for key, _ in await store.others(keys[0])]
    assert found == keys[:4:-1], "those that touched it last"


async def test_what_a_process_left_unsaid_is_told_by_another(store: Store) -> None:
    """Killed between the batch and the telling: the touch still waits, and any process finds it."""
    one, two = await store.session("one"), await store.session("two")
    await store.touch(one)
    await store.touch(two)
    collisions = comparer(store.database)
    await collisions.sweep()
    assert await store.told(one) == [], "its own process may just be about to"
    await store.line.execute("UPDATE file_touches SET touched_at = now() - interval '1 minute'")
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(collisions.sweep)
    assert [len(await store.told(session)) for session in (one, two)] == [1, 1]


async def test_a_session_idle_for_long_is_in_no_collision_any_more(store: Store) -> None:
    """Both logs are told once, what it wrote is forgotten, and its next write begins anew."""
    one, two = await store.session("one"), await store.session("two")
    await store.touch(one)
    await store.touch(two)
    await store.look(one)
    collisions = comparer(store.database)
    await collisions.sweep()
    assert [event["type"] for event in await store.told(one)] == ["file.collision"]
    await store.line.execute(
        "UPDATE agent_sessions SET last_active_at = now() - interval '31 minutes' WHERE id = $1", one
    )
    await store.line.execute("UPDATE file_touches SET touched_at = now() - interval '31 minutes'")
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(collisions.sweep)
    for session in (one, two):
        told = await store.told(session)
        assert [event["type"] for event in told] == ["file.collision", "file.collision_resolved"]
        assert told[1]["data"]["reason"] == "session_idle"
        assert told[1]["data"]["collision_id"] == told[0]["data"]["collision_id"]
    left = await store.line.fetch("SELECT session FROM file_touches")
    assert [row["session"] for row in left] == [two], "who is not idle keeps what it wrote"
    await store.line.execute("UPDATE agent_sessions SET last_active_at = now()")
    await store.touch(one)
    await store.look(one)
    told = await store.told(two)
    assert [event["type"] for event in told][2:] == ["file.collision"]
    assert told[2]["data"]["collision_id"] != told[0]["data"]["collision_id"]
