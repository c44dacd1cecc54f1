"""What every test has: one PostgreSQL a run, one database a test, the service on a real socket."""

import functools
import inspect
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import anyio
import asyncpg
import pytest

from app.store.database import Address
from app.store.embedded import EmbeddedPostgres, embedded_postgres
from app.store.migrations import migrate
from tests.house import House, address_of, open_house, url_of

_numbers = count(1)
_TEMPLATE = "alameda_template"

LONGEST_S = float(os.environ.get("ALAMEDA_TEST_LONGEST_S", "200"))
"""Seconds after which a test has hung, and fails where it waits; the longest takes 40 on two cores."""


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Bound every asynchronous test: one that hangs fails by name, and the others go on."""
    play = pyfuncitem.obj
    if inspect.iscoroutinefunction(play):

        @functools.wraps(play)
        async def bounded(*args: object, **kwargs: object) -> None:
            with anyio.fail_after(LONGEST_S):
                await play(*args, **kwargs)

        pyfuncitem.obj = bounded
    return (yield)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The service runs on asyncio; so do its tests."""
    return "asyncio"


@pytest.fixture(scope="session")
def run_folder() -> Iterator[Path]:
    """A folder for the whole run that PostgreSQL's unprivileged user can pass through."""
    folder = Path(tempfile.mkdtemp(prefix="alameda-tests-"))
    folder.chmod(0o711)
    yield folder
    for server in folder.glob("**/tmux/socket-*"):
        subprocess.run(["tmux", "-S", server.name, "kill-server"], cwd=server.parent, check=False)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
async def postgres(run_folder: Path, anyio_backend: str) -> AsyncIterator[EmbeddedPostgres]:
    """The run's PostgreSQL, with a migrated database to copy."""
    async with embedded_postgres(run_folder / "data") as server:
        admin = await _connect(server, server.database)
        await admin.execute(f"CREATE DATABASE {_TEMPLATE}")
        await admin.close()
        await migrate(address_of(server, _TEMPLATE))
        yield server


async def _connect(server: EmbeddedPostgres, database: str) -> "asyncpg.Connection[asyncpg.Record]":
    return await asyncpg.connect(**address_of(server, database).arguments)


@asynccontextmanager
async def _new_database(postgres: EmbeddedPostgres) -> AsyncIterator[Address]:
    name = f"test_{os.getpid()}_{next(_numbers)}"
    admin = await _connect(postgres, postgres.database)
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
        yield address_of(postgres, name)
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


@pytest.fixture
async def database_address(postgres: EmbeddedPostgres) -> AsyncIterator[Address]:
    """A database of the test's own, with the schema in it."""
    async with _new_database(postgres) as address:
        yield address


@pytest.fixture(scope="module")
async def shared_address(postgres: EmbeddedPostgres) -> AsyncIterator[Address]:
    """A database that the tests of one file share."""
    async with _new_database(postgres) as address:
        yield address


@pytest.fixture
def database_url(database_address: Address) -> str:
    """The same database as a URL."""
    return url_of(database_address)


@pytest.fixture
def folder(run_folder: Path) -> Path:
    """A folder of the test's own."""
    return Path(tempfile.mkdtemp(dir=run_folder))


@pytest.fixture
async def house(database_url: str, folder: Path) -> AsyncIterator[House]:
    """The service, with the demo agent."""
    async with open_house(database_url, folder) as running:
        yield running
