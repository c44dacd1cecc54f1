"""Migrations: from every older revision, with data in every table, one done before the next begins."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError
from structlog.testing import capture_logs

from app.store import migrations
from app.store.database import Address
from app.store.embedded import EmbeddedPostgres
from app.store.tables import Base
from tests.house import address_of, open_house, url_of

pytestmark = pytest.mark.anyio

_numbers = count(1)
REVISIONS = [one.revision for one in ScriptDirectory.from_config(migrations._config()).walk_revisions()][::-1]
ROWS = """
INSERT INTO agent_sessions (owner, session_id, chat_id, agent, backend, provider, creation_key, cwd,
    agent_session_id, project_id, status, closed_at, archived, last_seq)
SELECT 'default', n, n, 'demo', 'demo', 'demo', n, '/', n, 'p', status,
    CASE status WHEN 'closed' THEN now() END, CASE status WHEN 'closed' THEN true END, 2
FROM (VALUES ('s-1', 'active'), ('s-2', 'closed')) v(n, status);
INSERT INTO turns (id, session, status, rank, prompt, on_disconnect, multitask_strategy, queue_timeout_s,
    deadline_s, idle_timeout_s, max_attempts, first_seq, last_seq, started_at, ended_at, output_text, task)
SELECT 'trn_' || id, id, 'completed', 0, 'say x', 'continue', 'reject', 1, 1, 1, 1, 1, 2, now(), now(), 'x',
    'tsk_' || id FROM agent_sessions;
INSERT INTO events (session, seq, turn_id, type, body)
SELECT s.id, n, 'trn_' || s.id, type, format(
    '"session_id":"%s","turn_id":"trn_%s","type":"%s","at":"2026-01-01T00:00:00.000Z","data":{}}',
    s.session_id, s.id, type)
FROM agent_sessions s, unnest('{turn.queued,turn.completed}'::text[]) WITH ORDINALITY t(type, n);
INSERT INTO permissions (id, session, turn_id, request, kind, title, options, questions, shown_sha256, status,
    outcome, resolved_by, resolved_at)
SELECT 'prm_' || id, id, 'trn_' || id, 'r', 'tool', 'Run', '[]', '[]', '\\x00', 'allowed', 'allowed',
    'caller', now() FROM agent_sessions;
INSERT INTO intents (id, session, kind, body, result, done_at)
SELECT gen_random_uuid(), id, 'close', '{}', '{}', now() FROM agent_sessions;
INSERT INTO idempotency_keys (owner, key, request_sha256, turn_id)
SELECT 'default', 'k-' || id, '\\x00', 'trn_' || id FROM agent_sessions;
INSERT INTO session_tombstones VALUES ('default', 's-0', 7);
INSERT INTO api_keys (id, owner, name, secret_sha256, scopes)
VALUES ('key_1', 'other', 'n', '\\x01', '{read}');
INSERT INTO stream_tickets (ticket_sha256, owner, target) VALUES ('\\x02', 'default', '/v1/events/stream');
INSERT INTO backend_drains (backend) VALUES ('other');
INSERT INTO backend_health (backend, replica, up) VALUES ('other', 'gone', true);
INSERT INTO file_touches (session, path, owner, project_id, root, kind, turn_id, lines, pending)
SELECT id, 'a.py', 'default', 'p', '/w', 'edit', 'trn_' || id, '{[1,5)}', false FROM agent_sessions;
INSERT INTO collisions (id, owner, project_id, path, session_a, session_b, severity, overlap, touches,
    resolved_at, resolution)
SELECT 'col_1', 'default', 'p', 'a.py', min(id), max(id), 'merge', 'same_file',
    '[{"side": "a", "turn_id": null, "kind": "edit", "at": "2026-01-01T00:00:00Z"},
      {"side": "b", "turn_id": null, "kind": "edit", "at": "2026-01-01T00:00:00Z"}]', now(), 'session_closed'
FROM agent_sessions;
INSERT INTO terminals (id, session, kind, place, handle, cwd, rows, cols, closed_at, gone)
SELECT 'trm_' || id, id, 'tmux', 'here', 'h', '/', 24, 80, now(), true FROM agent_sessions;
INSERT INTO tasks (id, session, status, ended_at)
SELECT 'tsk_' || id, id, 'completed', now() FROM agent_sessions;
INSERT INTO task_steps (task, position, name, prompt, deadline_s, max_attempts, on_failure, status, attempts,
    turn_ids)
SELECT 'tsk_' || id, 0, 'step-1', 'say x', 60, 1, 'stop', 'completed', 1, array['trn_' || id]
FROM agent_sessions;
"""
"""A row or two in every table, of sessions on which nothing is open."""
READ = {
    "0001": (
        *("/v1/sessions", "/v1/sessions/s-1", "/v1/sessions/s-1/events", "/v1/sessions/s-1/turns"),
        *("/v1/permissions", "/v1/backends"),
    ),
    "0002_collisions": ("/v1/collisions", "/v1/projects/p/files"),
    "0003_terminals": ("/v1/sessions/s-1/terminals?status=closed",),
    "0004_tasks": ("/v1/tasks",),
}
"""What reads the tables that a revision brought."""


@asynccontextmanager
async def empty_database(server: EmbeddedPostgres) -> AsyncIterator[Address]:
    """A database without a schema."""
    name = f"migrated_{os.getpid()}_{next(_numbers)}"
    admin = await asyncpg.connect(**address_of(server).arguments)
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        yield address_of(server, name)
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


async def upgrade(address: Address, revision: str) -> None:
    """Bring it to a revision that is not the newest."""
    engine = migrations._engine(address)
    async with engine.connect() as connection:
        await connection.run_sync(lambda sync: command.upgrade(migrations._config(sync), revision))
        await connection.commit()
    await engine.dispose()


async def columns(line: "asyncpg.Connection[asyncpg.Record]") -> dict[str, list[str]]:
    """The tables that there are, and the columns that can be written."""
    rows = await line.fetch(
        "SELECT table_name, column_name FROM information_schema.columns "
        "WHERE table_schema = 'public' AND is_generated = 'NEVER'"
    )
    found: dict[str, list[str]] = {}
    for table, column in rows:
        found.setdefault(table, []).append(column)
    return found


async def fill(address: Address, source: Address) -> dict[str, int]:
    """Copy the rows of a newer schema into all the tables, as far as those know their columns."""
    new, old = await asyncpg.connect(**source.arguments), await asyncpg.connect(**address.arguments)
    try:
        await new.execute(ROWS)
        counts = {}
        known = await columns(old)
        for table in (one.name for one in Base.metadata.sorted_tables if one.name in known):
            names = ", ".join(f'"{name}"' for name in known[table])
            rows = await new.fetch(f'SELECT {names} FROM "{table}"')
            await old.copy_records_to_table(table, records=rows, columns=known[table])
            counts[table] = len(rows)
        assert known.keys() - counts.keys() == {"alembic_version"}
        assert all(counts.values()), "every table has rows"
        return counts
    finally:
        await new.close()
        await old.close()


@pytest.mark.parametrize("revision", REVISIONS[:-1])
async def test_from_every_older_revision_with_rows_in_every_table(
    postgres: EmbeddedPostgres, database_address: Address, folder: Path, revision: str
) -> None:
    """They are all there afterwards, and read as ever; the schema is that of a new database."""
    async with empty_database(postgres) as address:
        await upgrade(address, revision)
        counts = await fill(address, database_address)
        assert await migrations.migrate(address) == REVISIONS[-1]
        assert await migrations.differences(address) == []
        line = await asyncpg.connect(**address.arguments)
        for table, rows in counts.items():
            assert await line.fetchval(f'SELECT count(*) FROM "{table}"') == rows, table
        await line.close()
        async with open_house(url_of(address), folder) as house:
            for brought, paths in READ.items():
                for path in paths:
                    found: dict[str, Any] = await house.get(path)
                    is_there = REVISIONS.index(brought) <= REVISIONS.index(revision)
                    assert bool(found.get("items", True)) == is_there, path


SLOW = """
CREATE FUNCTION slow() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN IF tg_tag = 'CREATE INDEX' THEN {what}; END IF; END $$;
CREATE EVENT TRIGGER slow ON ddl_command_start EXECUTE FUNCTION slow();
"""


async def test_each_migration_is_done_before_the_next_begins(postgres: EmbeddedPostgres) -> None:
    """What one of them locked is free while the next works, and one that fails undoes itself alone."""
    async with empty_database(postgres) as address:
        await upgrade(address, "0003_terminals")
        line = await asyncpg.connect(**address.arguments)
        failing = "IF to_regclass('task_steps') IS NOT NULL AND EXISTS (SELECT FROM alembic_version WHERE"
        failing += " version_num = '0004_tasks') THEN RAISE 'no'; END IF"
        await line.execute(SLOW.format(what=failing))
        with pytest.raises(DBAPIError):
            await migrations.migrate(address)
        assert await line.fetchval("SELECT version_num FROM alembic_version") == "0004_tasks"
        await line.execute("DROP EVENT TRIGGER slow")
        assert await migrations.migrate(address) == REVISIONS[-1]
        await line.close()


async def test_a_migration_may_take_long_and_says_so(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No time-out ends it: not the one of our own statements, and not the database's default."""
    monkeypatch.setattr(migrations, "TELL_S", 0.1)
    defaults = {"command_timeout": 0.3}
    monkeypatch.setattr(Address.connect, "__kwdefaults__", defaults)
    async with empty_database(postgres) as address:
        await upgrade(address, "0005_list_indexes")
        line = await asyncpg.connect(**address.arguments)
        await line.execute(SLOW.format(what="PERFORM pg_sleep(0.6)"))
        await line.execute(f"ALTER DATABASE {address.arguments['database']} SET statement_timeout = '300ms'")
        with capture_logs() as logs:
            assert await migrations.migrate(address, answer_s=1.0) == REVISIONS[-1]
        told = [one["event"] for one in logs]
        assert "schema_still_migrating" in told
        later = REVISIONS[REVISIONS.index("0005_list_indexes") + 1 :]
        assert [one["revision"] for one in logs if one["event"] == "schema_migrated"] == later
        await line.close()


async def test_a_migration_does_not_queue_traffic_behind_it(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives up waiting for a lock, and says that the database does not answer."""
    async with empty_database(postgres) as address:
        await upgrade(address, "0003_terminals")
        line = await asyncpg.connect(**address.arguments)
        async with line.transaction():
            await line.execute("LOCK TABLE turns IN ACCESS SHARE MODE")
            with pytest.raises(migrations.DatabaseDoesNotAnswer, match="lock timeout"):
                await migrations.migrate(address, answer_s=0.1)
        assert await migrations.migrate(address) == REVISIONS[-1]
        await line.close()
