"""A private PostgreSQL beside the service, so that it runs where there is no database server.

In the data directory are `postgres` (the database and, in `password`, its role's password), `lock`,
`postgres.log` and, as root, `programs-<version>` if the installed ones are closed to the user who runs them.
"""

import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import anyio
import asyncpg
import psutil
import structlog

from app.store.datadir import DirectoryLock, EmbeddedPostgresError, prepare, server_user
from app.store.pgbinaries import Programs, install
from app.store.pgdata import (
    DATABASE,
    ROLE,
    have_database,
    left_behind,
    recorded_pid,
    recorded_socket_directory,
)

log = structlog.get_logger(__name__)

START_TIMEOUT = 60.0
"""Seconds until a query must work; recovery after a crash is part of them."""

LAUNCHES = 4
"""How often one start may try: what a killed server left behind needs a moment to go."""

POLL = 0.02
"""Seconds between two looks at a server that is starting or stopping."""

WATCH = 0.2
"""Seconds until a server's death is noticed."""

FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0
"""Seconds before a dead server is started again; doubled each time, until one has lived `STABLE`."""

STABLE = 60.0
"""Seconds of life after which a server's next death counts as its first."""

QUERY_TIMEOUT = 5.0
"""Seconds the query may take that shows that a server is ready."""

STOP = (
    (signal.SIGINT, 10.0),  # fast: clients are cut off, everything is written
    (signal.SIGQUIT, 7.0),  # immediate: the next start recovers; after 5 s it kills its own children
    (signal.SIGKILL, 1.0),  # a suspended process hears nothing else
)
"""How a server is asked to end, and the seconds it then has."""

SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "max_wal_size": "256MB",
    "max_parallel_workers_per_gather": "0",  # they share memory of which a container has 64 MB
    "logging_collector": "off",
    "log_min_error_statement": "panic",  # statements may carry prompts
}
"""The server's configuration, given at every start and so never out of date."""

PROC_FD = Path("/proc/self/fd")
"""Our open files, where the system shows them: a short way to a socket in a directory of any name."""


class PostgresNotReady(EmbeddedPostgresError):
    """The server did not come up; the message carries the end of its log."""


class EmbeddedPostgres:
    """A PostgreSQL that runs: where it is, and the care that keeps it running.

    Only this process can connect by `host`, which leads through an open descriptor of its own.
    """

    port: Final = 5432
    user: Final = ROLE
    database: Final = DATABASE

    def __init__(
        self, pgdata: Path, *, host: str, programs: Programs, lock: DirectoryLock, start_timeout: float
    ) -> None:
        self.host = host
        self.password = (pgdata / "password").read_text()
        self._pgdata = pgdata
        self._programs = programs
        self._lock = lock
        self._start_timeout = start_timeout
        self._postmaster: subprocess.Popen[bytes] | psutil.Process | None = None
        """Our child, or one that an earlier process of ours left behind."""
        self._answered = False

    @property
    def pid(self) -> int | None:
        """The server's process; None while there is none."""
        return self._postmaster.pid if self._postmaster and self._is_alive() else None

    def announce(self, url: str) -> None:
        """Tell `holder`, and whoever finds the data directory busy, where the service listens."""
        self._lock.announce(url)

    async def _start(self) -> None:
        """Have a server that answers: the one that is there already, or a new one.

        Raises:
            PostgresNotReady: no query worked in time, or the server ended each time.
        """
        self._answered = False
        launches, mark = 0, self._programs.log_size()
        with anyio.move_on_after(self._start_timeout):
            while not self._answered:
                if not self._is_alive():
                    self._postmaster = left_behind(self._pgdata, self._programs.user)
                if self._postmaster is None:
                    if launches == LAUNCHES:
                        break
                    await anyio.sleep(0.2 * launches)
                    launches += 1
                    self._launch()
                await self._ask()
        if not self._answered:
            what = "ended at each start" if self.pid is None else f"(process {self.pid}) answers no query"
            raise PostgresNotReady(
                f"PostgreSQL in {self._pgdata} {what}: look for a full disk or damage in "
                f"{self._programs.log}, or set DATABASE_URL. It said:\n{self._programs.log_tail(mark)}"
            )
        log.info("postgres_ready", pid=self.pid, attached=launches == 0)

    def _launch(self) -> None:
        """Start a child. Not in a thread: cancelled there, we would not know that we have one."""
        # "." is the directory of the database itself, in which the server works.
        arguments = ["-k", "." if self._by_descriptor() else self.host, "-p", str(self.port)]
        for name, value in SETTINGS.items():
            arguments += ["-c", f"{name}={value}"]
        # The pid file may name a stranger or a zombie. PostgreSQL would take that for another server and
        # refuse, unless it is told that this is its own grandparent.
        stale = recorded_pid(self._pgdata)
        env = {} if stale is None else {"PG_GRANDPARENT_PID": str(stale)}
        self._postmaster = self._programs.start("postgres", "-D", self._pgdata, *arguments, env=env)

    async def _ask(self) -> None:
        """See whether a query works; if not, wait a little."""
        if not self._by_descriptor() and isinstance(self._postmaster, psutil.Process):
            self.host = recorded_socket_directory(self._pgdata) or self.host
        try:
            connection = await asyncpg.connect(
                host=self.host,
                port=self.port,
                user=self.user,
                password=self.password,
                database=self.database,
                timeout=QUERY_TIMEOUT,
                command_timeout=QUERY_TIMEOUT,
            )
            try:
                self._answered = await connection.fetchval("SELECT true")
            finally:
                connection.terminate()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            await anyio.sleep(POLL)  # the last is what asyncpg says of a server that is killed just then

    def _by_descriptor(self) -> bool:
        return Path(self.host).parent == PROC_FD

    def _is_alive(self) -> bool:
        if isinstance(self._postmaster, subprocess.Popen):
            return self._postmaster.poll() is None
        try:
            process = self._postmaster
            return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    async def _keep_alive(self) -> None:
        """Start the server again whenever it has died, until cancelled."""
        delay = FIRST_DELAY
        born = anyio.current_time()
        while True:
            await anyio.sleep(WATCH)
            self._programs.trim_log()
            if self._is_alive():
                continue
            if anyio.current_time() - born > STABLE:
                delay = FIRST_DELAY
            log.error("postgres_died", status=getattr(self._postmaster, "returncode", None))
            while not self._is_alive():
                await anyio.sleep(delay)
                delay = min(delay * 2, LONGEST_DELAY)
                try:
                    await self._start()
                except EmbeddedPostgresError as error:
                    log.error("postgres_restart_failed", error=str(error), retry_in=delay)
            born = anyio.current_time()

    async def _stop(self) -> None:
        """End the server; one that we neither started nor had an answer from is not ours to signal."""
        if self._postmaster is None or (isinstance(self._postmaster, psutil.Process) and not self._answered):
            return
        for number, patience in STOP:
            with anyio.move_on_after(patience):
                with suppress(psutil.NoSuchProcess):
                    self._postmaster.send_signal(number)
                while True:
                    if not self._is_alive():
                        log.info("postgres_stopped", pid=self._postmaster.pid, signal=number.name)
                        return
                    await anyio.sleep(POLL)
        log.error("postgres_does_not_stop", pid=self._postmaster.pid)


@asynccontextmanager
async def embedded_postgres(
    data_dir: Path,
    *,
    run_as: str = "nobody",
    start_timeout: float = START_TIMEOUT,
    programs_dir: Path | None = None,
) -> AsyncIterator[EmbeddedPostgres]:
    """A PostgreSQL on `data_dir` that answers; if it dies it is started again; it stops when the block ends.

    As root it runs as the system user `run_as`. What the block raises comes out in an ExceptionGroup.

    Raises:
        DataDirectoryBusy: another process has the directory.
        EmbeddedPostgresError: anything else; the message names the cure.
    """
    user = server_user(run_as)
    data_dir = await anyio.to_thread.run_sync(prepare, data_dir, user)
    with ExitStack() as stack:
        lock = stack.enter_context(await DirectoryLock.take(data_dir))
        if programs_dir is None:
            programs_dir = await anyio.to_thread.run_sync(install, data_dir, user)
        programs = Programs(directory=programs_dir, user=user, log=data_dir / "postgres.log")
        pgdata = data_dir / "postgres"
        await have_database(pgdata, programs)
        host = _socket_directory(pgdata, programs, stack)
        server = EmbeddedPostgres(
            pgdata, host=host, programs=programs, lock=lock, start_timeout=start_timeout
        )
        try:
            await server._start()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(server._keep_alive)
                try:
                    yield server
                finally:
                    tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await server._stop()


def _socket_directory(pgdata: Path, programs: Programs, stack: ExitStack) -> str:
    """A short name for the database's own directory or, where the system has none, a private directory."""
    if PROC_FD.is_dir():
        descriptor = os.open(pgdata, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        return str(PROC_FD / str(descriptor))
    directory = stack.enter_context(
        tempfile.TemporaryDirectory(prefix="alameda-", ignore_cleanup_errors=True)
    )
    programs.own(Path(directory))
    return directory
