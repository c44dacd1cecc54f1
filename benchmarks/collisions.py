"""`python -m benchmarks.collisions`: what a written file costs among few sessions and among many.

On an embedded PostgreSQL: a project of sessions at work, each on files of its own, and files that two of
them share. Measured are the one query that every write asks, and a whole write: kept, looked at, told if
there is somebody to tell. As many sessions write in both runs, so that as many pages are changed. The figure
that counts is the ratio of the two sizes. Nothing fails; it prints.
"""

import argparse
import asyncio
import logging
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from statistics import median

import anyio.to_thread
import asyncpg
import structlog

from app.domain.collisions import Touched
from app.domain.ids import SessionKey
from app.engine.collisions import Collisions
from app.store import touches
from app.store.bell import Bell
from app.store.database import Address, Database
from app.store.embedded import EmbeddedPostgres, embedded_postgres
from app.store.migrations import migrate

IDLE = timedelta(minutes=30)

_CROWD = """
INSERT INTO agent_sessions (owner, session_id, chat_id, agent, backend, provider, creation_key, cwd,
    agent_session_id, project_id)
SELECT 'default', 'n-' || n, 'n-' || n, 'demo', 'demo', 'demo', 'n', '/', 'n', 'p'
FROM generate_series(1, $1::int) n
"""
_TURNS = """
INSERT INTO turns (id, session, status, rank, prompt, on_disconnect, multitask_strategy,
    queue_timeout_s, deadline_s, idle_timeout_s, max_attempts, first_seq, started_at)
SELECT 't-' || id, id, 'running', 1, '', 'continue', 'reject', 1, 1, 1, 1, 1, now() FROM agent_sessions
"""
_FILES = """
INSERT INTO file_touches (session, path, owner, project_id, root, kind, pending)
SELECT s.id, 'src/' || s.id || '/' || f, 'default', 'p', '/w/' || s.id, 'edit', false
FROM agent_sessions s, generate_series(1, $1::int) f
"""


async def _fill(line: "asyncpg.Connection[asyncpg.Record]", sessions: int, files: int) -> None:
    await line.execute("TRUNCATE agent_sessions CASCADE")
    await line.execute(_CROWD, sessions)
    await line.execute(_TURNS)
    await line.execute(_FILES, files)
    await line.execute("VACUUM ANALYZE")


async def _times(work: Callable[[int], Awaitable[None]], rounds: int) -> float:
    """The median, in milliseconds."""
    found = []
    for number in range(rounds):
        began = time.perf_counter()
        await work(number)
        found.append((time.perf_counter() - began) * 1000)
    return median(found)


async def measure(
    postgres: EmbeddedPostgres, sessions: int, writers: int, files: int, rounds: int
) -> dict[str, float]:
    """What each thing costs among so many sessions, of which `writers` write."""
    arguments = {
        "host": postgres.host,
        "port": postgres.port,
        "user": postgres.user,
        "password": postgres.password,
        "database": postgres.database,
    }
    address = Address(arguments=arguments)
    await migrate(address)
    database = Database(address, address, Bell(), pool_size=4)
    line = await address.connect()
    collisions = Collisions(database, idle_s=IDLE.total_seconds(), may_read=lambda _: False)
    try:
        await _fill(line, sessions, files)
        rows = await line.fetch("SELECT id FROM agent_sessions ORDER BY id")
        keys = [SessionKey(row[0]) for row in rows[:: sessions // writers]]

        def written(path: str) -> list[Touched]:
            return [
                Touched(path=path, root="/w", remote="far", kind="edit", turn_id=None, edits=(((1, 9, 9),),))
            ]

        async def ask(number: int) -> None:
            key = keys[number % len(keys)]
            async with database.begin() as db:
                await touches.others(db, key, f"src/{key}/1", IDLE)

        async def write(number: int) -> None:
            key = keys[number % len(keys)]
            await touches.write(line, key, written(f"src/{key}/1"))
            await collisions.look(key)

        async def tell(number: int) -> None:
            for key in (keys[0], keys[-1]):
                await touches.write(line, key, written(f"shared-{number}"))
            await collisions.look(keys[-1])

        await _times(ask, rounds // 5)
        return {
            "the query of a write": await _times(ask, rounds),
            "a write that meets nobody": await _times(write, rounds),
            "a write that meets another": await _times(tell, rounds // 2),
        }
    finally:
        await line.close()
        await database.aclose()


async def _main(few: int, many: int, files: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="alameda-bench-") as name:
        folder = Path(name)
        await anyio.to_thread.run_sync(folder.chmod, 0o711)  # for PostgreSQL's own user
        async with embedded_postgres(folder / "data") as postgres:
            base = await measure(postgres, few, few, files, rounds)
            found = await measure(postgres, many, few, files, rounds)
    print(f"{'median':<28}{few:>8} sessions{many:>8} sessions    ratio")
    for what, before in base.items():
        print(f"{what:<28}{before:>14.2f} ms{found[what]:>14.2f} ms{found[what] / before:>8.2f}x")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.collisions", description=__doc__)
    parser.add_argument("--few", type=int, default=10, help="sessions of the one run [%(default)s]")
    parser.add_argument("--many", type=int, default=5_000, help="sessions of the other [%(default)s]")
    parser.add_argument("--files", type=int, default=20, help="that each has written [%(default)s]")
    parser.add_argument("--rounds", type=int, default=400, help="of which the median counts [%(default)s]")
    given = parser.parse_args()
    if not 2 <= given.few <= given.many or given.files < 1 or given.rounds < 10:
        parser.error("at least 2 sessions, and not more of few than of many; 1 file; 10 rounds")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    asyncio.run(_main(given.few, given.many, given.files, given.rounds))


if __name__ == "__main__":
    main()
