"""Lists of collisions, of a project's files and of tasks: their pages are read by indexes."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain.ids import Owner, SessionId
from app.domain.tasks import TaskStatus
from app.store import collisions, tasks, touches
from app.store.database import Address
from app.store.touches import MAX_OTHERS
from tests.store.test_collisions import IDLE, Store, nodes, opened

ME = Owner("default")
LISTED = {"collisions", "file_touches", "tasks", "task_steps"}
OWNERS, PROJECTS, SESSIONS = 10, 20, 2_000


@pytest.fixture
async def store(database_address: Address) -> AsyncIterator[Store]:
    """A database of the test's own."""
    async with opened(database_address) as running:
        yield running


@pytest.fixture
async def crowded(store: Store) -> Store:
    """Many owners with many projects; old collisions, old tasks, and a few open ones."""
    for statement in (
        """
        INSERT INTO agent_sessions (owner, session_id, chat_id, agent, backend, provider, creation_key, cwd,
            agent_session_id, project_id)
        SELECT CASE n % {owners} WHEN 0 THEN 'default' ELSE 'o-' || n % {owners} END, 'n-' || n, 'n-' || n,
            'demo', 'demo', 'demo', 'n', '/', 'n', 'p-' || n / {owners} % {projects}
        FROM generate_series(1, {sessions}) n
        """,
        """
        INSERT INTO file_touches (session, path, owner, project_id, root, kind, pending)
        SELECT s.id, 'src/' || f, s.owner, s.project_id, '/w', 'edit', false
        FROM agent_sessions s, generate_series(1, 10) f
        """,
        """
        INSERT INTO collisions (id, owner, project_id, path, session_a, session_b, severity, overlap, touches,
            opened_at, resolved_at, resolution)
        SELECT 'col_' || a.id || '_' || n, a.owner, a.project_id, 'f-' || n, a.id, a.id + 1, 'merge',
            'same_file', '[{{"side": "a", "turn_id": null, "kind": "edit", "at": "2026-01-01T00:00:00Z"}},
            {{"side": "b", "turn_id": null, "kind": "edit", "at": "2026-01-01T00:00:00Z"}}]',
            now() - (a.id + n) * interval '1s', CASE WHEN n > 1 OR a.id % 50 > 0 THEN now() END,
            CASE WHEN n > 1 OR a.id % 50 > 0 THEN 'session_closed' END
        FROM agent_sessions a, generate_series(1, 5) n WHERE a.id < {sessions}
        """,
        """
        INSERT INTO tasks (id, session, status, created_at, ended_at)
        SELECT 'tsk_' || s.id || '_' || n, s.id, 'completed', now() - (s.id + n) * interval '1s', now()
        FROM agent_sessions s, generate_series(1, 5) n
        """,
        """
        INSERT INTO task_steps (task, position, name, prompt, deadline_s, max_attempts, on_failure)
        SELECT id, 0, 'a', 'x', 1, 1, 'stop' FROM tasks
        """,
    ):
        filled = statement.format(owners=OWNERS, projects=PROJECTS, sessions=SESSIONS)
        await store.line.execute(filled)
    await store.line.execute("ANALYZE")
    return store


@contextmanager
def statements(store: Store) -> Iterator[list[tuple[str, tuple[Any, ...]]]]:
    """What is asked meanwhile, with its arguments."""
    asked: list[tuple[str, tuple[Any, ...]]] = []

    def note(_: Any, __: Any, statement: str, arguments: Any, *___: Any) -> None:
        asked.append((statement, arguments))

    engine = store.database._engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(engine, "before_cursor_execute", note)


Ask = Callable[[AsyncSession, str | None], Awaitable[Any]]


def _collisions(**filters: Any) -> Ask:
    asked = {"project_id": None, "status": None, **filters}
    return lambda db, cursor: collisions.list_collisions(db, ME, limit=50, cursor=cursor, **asked)


def _tasks(**filters: Any) -> Ask:
    asked = {"session_id": None, "status": None, **filters}
    return lambda db, cursor: tasks.list_tasks(db, ME, limit=50, cursor=cursor, **asked)


def _files(db: AsyncSession, cursor: str | None) -> Awaitable[Any]:
    return touches.list_files(db, ME, "p-1", idle=IDLE, limit=5, cursor=cursor)


async def test_pages_are_read_by_indexes(crowded: Store) -> None:
    """The first and the second, of every list and filter; no list is read from its beginning to its end."""
    asks: dict[str, Ask] = {
        "collisions": _collisions(),
        "open": _collisions(status="open"),
        "project": _collisions(project_id="p-1"),
        "open of a project": _collisions(project_id="p-10", status="open"),
        "tasks": _tasks(),
        "completed": _tasks(status=TaskStatus.COMPLETED),
        "of a session": _tasks(session_id=SessionId("n-10")),
        "files": _files,
    }
    for name, ask in asks.items():
        cursor = None
        for _ in range(2):
            with statements(crowded) as asked:
                async with crowded.database.begin() as db:
                    page = await ask(db, cursor)
            assert page.items, name
            for statement, arguments in asked:
                if not statement.startswith("SELECT"):
                    continue
                found = await crowded.line.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *arguments)
                plan = nodes(json.loads(found)[0]["Plan"])
                scanned = {node["Relation Name"] for node in plan if node["Node Type"] == "Seq Scan"}
                # What is joined to a page may come from the whole of a table that is as small as here.
                assert not scanned & LISTED, (name, statement)
            cursor = page.next_cursor
            if cursor is None:
                break


async def test_of_a_file_that_all_write_the_last_are_shown(store: Store) -> None:
    """Not thousands in one answer."""
    keys = [await store.session(f"s-{n}") for n in range(MAX_OTHERS + 5)]
    for key in keys:
        await store.touch(key)
        await store.touch(key, "b.py")
    async with store.database.begin() as db:
        page = await touches.list_files(db, ME, "p", idle=IDLE, limit=50, cursor=None)
    assert [file.path for file in page.items] == ["b.py", "a.py"]
    for file in page.items:
        assert [side.session for side in file.sides] == keys[: -MAX_OTHERS - 1 : -1]


async def test_what_only_idle_sessions_wrote_is_forgotten(store: Store) -> None:
    """What a live session wrote stays, however old."""
    idle, live = await store.session("idle"), await store.session("live")
    for number in range(3):
        await store.touch(idle, f"{number}.py")
        await store.touch(live, f"{number}.py")
    await store.line.execute("UPDATE file_touches SET touched_at = now() - interval '31 minutes'")
    await store.line.execute(
        "UPDATE agent_sessions SET last_active_at = now() - interval '31 minutes' WHERE id = $1", idle
    )
    async with store.database.begin() as db:
        await touches.forget_idle(db, IDLE)
    left = await store.line.fetch("SELECT DISTINCT session FROM file_touches")
    assert [row["session"] for row in left] == [live]
