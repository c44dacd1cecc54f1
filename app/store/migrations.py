"""The schema's migrations, run by one process at a time, each in a transaction of its own."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import stamina
import structlog
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.runtime.migration import MigrationInfo
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from app.store.database import Address, is_outage
from app.store.tables import Base

log = structlog.get_logger(__name__)

LOCK = 0x414C414D454441
"""Key of the advisory lock that replicas take before they migrate."""
LOCK_WAIT_S = 60.0
"""Seconds to wait for another replica's migration."""

ANSWER_S = 30.0
"""Seconds to wait for a database that does not answer: it may be starting beside us, or recovering."""
LOCK_TIMEOUT = "4s"
"""What a migration waits for a lock: it fails rather than queue traffic behind it. Its work has no limit."""
TELL_S = 10.0
"""Seconds between two words on a migration that takes long, such as an index of many rows."""

_PACKAGED = Path(__file__).parent.parent / "migrations"
_CHECKOUT = Path(__file__).parent.parent.parent / "alembic"


class MigrationLockTimeout(Exception):
    """Another process has been migrating for too long: look at it, then start again."""


class DatabaseDoesNotAnswer(OSError):
    """The database did not answer for too long: start it, or correct its URL."""


def _config(connection: Connection | None = None, applied: Callable[..., None] | None = None) -> Config:
    """`applied` is called with each migration that is done, in its transaction."""
    config = Config()
    config.set_main_option(
        "script_location", str(_PACKAGED if _PACKAGED.is_dir() else _CHECKOUT).replace("%", "%%")
    )
    config.attributes["connection"] = connection
    config.attributes["applied"] = applied
    return config


def _engine(address: Address, **settings: Any) -> AsyncEngine:
    return create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda **_: address.connect(**settings), poolclass=NullPool
    )


async def migrate(address: Address, *, answer_s: float = ANSWER_S) -> str:
    """Bring the schema to the newest revision, and return it. `address` is the server itself, not a pooler.

    A database that does not answer is asked again for `answer_s` seconds. What was done stays done: another
    call goes on from there.

    Raises:
        MigrationLockTimeout: another process holds the lock.
        DatabaseDoesNotAnswer: it did not within that time.
    """
    patience = stamina.retry_context(
        on=is_outage, attempts=None, timeout=answer_s, wait_initial=0.2, wait_max=2.0
    )
    try:
        async for attempt in patience:
            with attempt:
                return await _migrate(address)
    except Exception as error:
        if not is_outage(error):
            raise
        words = str(getattr(error, "orig", None) or error) or type(error).__name__
        raise DatabaseDoesNotAnswer(f"the database does not answer: {words}") from error
    raise AssertionError("an attempt returns or raises")


async def _migrate(address: Address) -> str:
    engine = _engine(address, command_timeout=None, statement_timeout="0", lock_timeout=LOCK_TIMEOUT)
    try:
        async with engine.connect() as connection:
            await _lock(connection)
            await _upgrade(connection)
            await connection.commit()
            revision = await connection.run_sync(
                lambda sync: MigrationContext.configure(sync).get_current_revision()
            )
            await connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK})
            await connection.commit()
            return revision or ""
    finally:
        await engine.dispose()


async def _upgrade(connection: AsyncConnection) -> None:
    """Run what is missing, and say in the log how it goes."""
    error: Exception | None = None
    async with anyio.create_task_group() as telling:
        telling.start_soon(_tell_of_long_work, time.monotonic())
        try:
            await connection.run_sync(lambda sync: command.upgrade(_config(sync, _tell_applied), "head"))
        except Exception as raised:  # outside the group it is itself, and no group of one
            error = raised
        telling.cancel_scope.cancel()
    if error is not None:
        raise error


async def _tell_of_long_work(since: float) -> None:
    while True:
        await anyio.sleep(TELL_S)
        log.info("schema_still_migrating", seconds=int(time.monotonic() - since))


def _tell_applied(*, step: MigrationInfo, **_: Any) -> None:
    log.info("schema_migrated", revision=step.up_revision_id)


async def _lock(connection: AsyncConnection) -> None:
    with anyio.move_on_after(LOCK_WAIT_S):
        while True:
            got = await connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK})
            await connection.commit()
            if got:
                return
            await anyio.sleep(0.2)
    raise MigrationLockTimeout


async def is_current(address: Address) -> bool:
    """Whether the database knows this version's newest revision; a newer schema counts as well."""
    engine = _engine(address)
    try:
        async with engine.connect() as connection:
            revision = await connection.run_sync(
                lambda sync: MigrationContext.configure(sync).get_current_revision()
            )
    finally:
        await engine.dispose()
    script = ScriptDirectory.from_config(_config())
    known = {entry.revision for entry in script.walk_revisions()}
    return revision == script.get_current_head() or (revision is not None and revision not in known)


async def differences(address: Address) -> list[object]:
    """What the tables in code and in the database do not have in common."""
    engine = _engine(address)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(
                lambda sync: list(compare_metadata(MigrationContext.configure(sync), Base.metadata))
            )
    finally:
        await engine.dispose()
