"""The connections to PostgreSQL: a pool, one transaction a use-case; one that listens; one that appends."""

import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import anyio
import asyncpg
import structlog
from sqlalchemy import AdaptedConnection, event, text
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from app.domain.errors import DatabaseUnavailable
from app.domain.ids import Seq, SessionKey
from app.store.bell import CHANNEL, FREE, KEYS, WANTED, Bell, grown, payload

log = structlog.get_logger(__name__)

CONNECT_TIMEOUT = 5.0
"""Seconds to open a connection."""
COMMAND_TIMEOUT = 20.0
"""Seconds that one statement may take, as the client sees it; the server's own limit is a little less."""
LOCK_TIMEOUT_MS = 10_000
IDLE_IN_TRANSACTION_MS = 30_000
TRANSACTION_MS = 30_000
"""A process that is frozen in the middle of a message is not idle to the server, and no other limit ends it:
its locks would keep others from taking over for as long as it is frozen. PostgreSQL has it since 17."""
RECYCLE_S = 1800
"""Seconds after which a connection is replaced: a firewall may drop an old one without a word."""
POOL_TIMEOUT = 5.0
"""Seconds to wait for a connection of the pool before the answer is 503."""

Transaction: TypeAlias = AsyncSession
"""What `Database.begin` gives: handed on to the functions of this room, and used for nothing else."""

_T = TypeVar("_T")
_PASSING = {"57P01", "57P02", "57P03", "40001", "40P01", "25006", "53300", "55P03", "57014", "25P03", "25P04"}
"""SQLSTATEs that a later try may not meet: shutdown, recovery, serialisation, deadlock, too many."""
_FULL = {"53100", "58030"}
"""Disk full and I/O errors: no retry helps until an operator makes room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where PostgreSQL is: asyncpg's own arguments (`dsn`, or `host`, `user`, `password`, `database`)."""

    arguments: dict[str, Any] = field(repr=False)
    pooled: bool = False
    """Behind a pooler in transaction mode: no prepared statements, no session settings."""

    async def connect(
        self, *, command_timeout: float | None = COMMAND_TIMEOUT, **settings: str
    ) -> "asyncpg.Connection[asyncpg.Record]":
        """A connection of our own, outside any pool. Without `command_timeout` a statement has no limit."""
        arguments = dict(self.arguments)
        if self.pooled:
            arguments["statement_cache_size"] = 0
        else:
            arguments["server_settings"] = {"application_name": "alameda", **settings}
        return await asyncpg.connect(timeout=CONNECT_TIMEOUT, command_timeout=command_timeout, **arguments)


def is_outage(error: BaseException) -> bool:
    """Whether `error` says that the database cannot be reached or used now, and not that we are wrong."""
    if isinstance(error, ValueError):  # asyncpg's DataError: an argument of ours that it cannot encode
        return False
    if isinstance(
        error, (OSError, PoolTimeout, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError)
    ):
        return True
    if isinstance(error, DBAPIError):
        if error.connection_invalidated or isinstance(error, (OperationalError, InterfaceError)):
            return True
        original = error.orig.__cause__ if error.orig is not None else None
        return original is not None and is_outage(original)
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        return state.startswith("08") or state in _PASSING or state in _FULL
    return False


class Database:
    """The pool, and what rings after a commit."""

    def __init__(self, address: Address, direct: Address, bell: Bell, *, pool_size: int = 20) -> None:
        """`direct` reaches the server itself, for LISTEN, migrations and locks; often the same address."""
        self.bell = bell
        self.direct = direct
        self.wanted_here: Callable[[SessionKey], None] = bell.want
        """Called for a session for which this process wrote an intent: it may host it, if nobody does."""
        self.logged: Callable[[Iterable[str]], None] = lambda types: None
        """Called with the types of events that this process committed; must not wait or raise."""
        self.appender = Line(self._open)
        """The connection of this process's one appender."""
        self._address = address
        self._engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=self._open,
            connect_args={"prepared_statement_cache_size": 0} if address.pooled else {},
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT,
            pool_recycle=RECYCLE_S,
            hide_parameters=True,  # prompts and agents' words never stand in an error
        )
        event.listen(self._engine.sync_engine, "checkout", _check_open)
        self._session = async_sessionmaker(self._engine, expire_on_commit=False, autoflush=False)

    async def _open(self, **_: Any) -> "asyncpg.Connection[asyncpg.Record]":
        connection = await self._address.connect(
            statement_timeout=str(int(COMMAND_TIMEOUT * 1000) - 1000),
            lock_timeout=str(LOCK_TIMEOUT_MS),
            idle_in_transaction_session_timeout=str(IDLE_IN_TRANSACTION_MS),
        )
        if self._address.pooled or connection.get_server_version() < (17,):
            return connection
        try:
            await connection.execute(f"SET transaction_timeout = {TRANSACTION_MS}")
        except BaseException:  # the pool has never had it, so nobody else would close it
            connection.terminate()
            raise
        return connection

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncSession]:
        """A transaction: commits at the end of the block, or not at all; then rings for `ring_after_commit`.

        Raises:
            DatabaseUnavailable: it cannot be reached or used now. The commit's outcome may be unknown.
        """
        try:
            async with self._session.begin() as db:
                yield db
                for line in _notifications(db):
                    await db.execute(
                        text("SELECT pg_notify(:channel, :line)"), {"channel": CHANNEL, "line": line}
                    )
        except Exception as error:
            if is_outage(error):
                log.debug("database_unavailable", error=type(error).__name__)
                raise DatabaseUnavailable from error
            raise
        self.bell.grew(db.info.get("ring", {}), tells_heads=False)
        if logged := db.info.get("logged"):
            self.logged(logged)
        for session in db.info.get("wanted", ()):
            self.wanted_here(session)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncSession]:
        """A read-only transaction that sees one moment of the database (REPEATABLE READ)."""
        async with self.begin() as db:
            await db.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
            yield db

    @asynccontextmanager
    async def raw(self) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        """A pooled connection without SQLAlchemy around it, for the hot path.

        Raises:
            DatabaseUnavailable: it cannot be reached or used now. The outcome may be unknown.
        """
        with _outages():
            async with self._engine.connect() as connection:
                driver = (await connection.get_raw_connection()).driver_connection
                assert driver is not None
                try:
                    yield driver
                except BaseException:
                    await connection.invalidate()
                    raise

    async def retrying(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """The result of `work`, tried again for as long as the database is unavailable.

        `work` has to be idempotent: a try whose commit was answered by silence may have committed.
        """
        pause = 0.05
        while True:
            try:
                return await work()
            except DatabaseUnavailable:
                await anyio.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(pause * 2, 1.0)

    async def is_up(self) -> bool:
        """Whether a query works now; takes at most about the connect and pool time-outs."""
        try:
            async with self.begin() as db:
                await db.execute(text("SELECT 1"))
        except DatabaseUnavailable:
            return False
        return True

    async def listen_for_ever(self) -> None:
        """Hear other processes' bells; after a lost connection everybody looks for what was missed."""
        pause = 0.1
        while True:
            try:
                connection = await self.direct.connect()
                lost = anyio.Event()
                try:
                    connection.add_termination_listener(lambda _, lost=lost: lost.set())
                    await connection.add_listener(CHANNEL, self._heard)
                    self.bell.ring_all()
                    self.bell.heard(KEYS)  # a key may have been revoked while nobody heard
                    pause = 0.1
                    await lost.wait()
                finally:
                    connection.terminate()
            except Exception as error:
                if not is_outage(error):
                    raise
                log.debug("bell_not_connected", error=type(error).__name__)
            await anyio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(pause * 2, 2.0)

    def _heard(self, _: object, pid: int, __: str, payload: object) -> None:
        is_echo = pid == self.appender.pid and not self._address.pooled  # a pooler makes its pids up
        self.bell.heard(str(payload), is_echo=is_echo)

    async def aclose(self) -> None:
        """Close the pool."""
        await self._engine.dispose()


class Line:
    """One task's own connection: opened when it is used, and again once it was lost or anything failed."""

    def __init__(self, connect: Callable[[], Awaitable["asyncpg.Connection[asyncpg.Record]"]]) -> None:
        self._connect = connect
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._expires_at = 0.0

    @asynccontextmanager
    async def use(self) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        """The connection.

        Raises:
            DatabaseUnavailable: it cannot be reached or used now. The outcome may be unknown.
        """
        try:
            with _outages():
                if self._connection is not None and time.monotonic() > self._expires_at:
                    self.close()
                if self._connection is None or self._connection.is_closed():
                    self._connection = await self._connect()
                    self._expires_at = time.monotonic() + RECYCLE_S
                yield self._connection
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int | None:
        """The server's process behind it; null if it is not open."""
        return None if self._connection is None else self._connection.get_server_pid()

    def close(self) -> None:
        """Close the connection, whatever it is doing."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()


def _check_open(connection: AdaptedConnection, *_: object) -> None:
    """Replace pooled connections whose server has gone: the driver knows by itself, without a round trip."""
    if connection.driver_connection.is_closed():
        raise InvalidatePoolError


@contextmanager
def _outages() -> Iterator[None]:
    """Say `DatabaseUnavailable` whatever the driver calls it."""
    try:
        yield
    except Exception as error:
        if is_outage(error):
            raise DatabaseUnavailable from error
        raise


def ring_after_commit(db: AsyncSession, session: SessionKey, *, last: Seq | None = None) -> None:
    """Wake everybody who follows `session`, here and in other processes, once `db` has committed.

    `last`: the transaction makes its log grow to there.
    """
    ring: dict[SessionKey, Seq] = db.info.setdefault("ring", {})
    ring[session] = max(ring.get(session, Seq(0)), last or Seq(0))


def want_after_commit(db: AsyncSession, session: SessionKey) -> None:
    """Wake the session's host, wherever it is, once `db` has committed."""
    db.info.setdefault("wanted", set()).add(session)


def offer_after_commit(db: AsyncSession) -> None:
    """Have every process look for sessions that it could host, once `db` has committed."""
    db.info["free"] = True


def ring_keys_after_commit(db: AsyncSession) -> None:
    """Make every process look at the API keys again, once `db` has committed."""
    db.info["keys"] = True


def _notifications(db: AsyncSession) -> list[str]:
    lines = []
    if ring := db.info.get("ring"):
        lines.append(grown(ring))
    if wanted := db.info.get("wanted"):
        lines.append(WANTED + payload(sorted(wanted)))
    if db.info.get("free"):
        lines.append(FREE)
    if db.info.get("keys"):
        lines.append(KEYS)
    return lines
