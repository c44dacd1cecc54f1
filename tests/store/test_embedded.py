"""The embedded PostgreSQL keeps its promises as root and as an ordinary user, whatever died before.

The numbers in the names are those of the pitfalls that the tests guard against. Run as root, a good part of
the file runs once more as `nobody`.
"""

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import anyio
import asyncpg
import psutil
import pytest
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import create_async_engine

from app.store import embedded
from app.store.datadir import (
    DataDirectoryBusy,
    DataDirectoryUnusable,
    EmbeddedPostgresError,
    ServerUserMissing,
    holder,
    server_user,
)
from app.store.embedded import EmbeddedPostgres, PostgresNotReady, embedded_postgres
from app.store.pgbinaries import BUNDLE, LOG_LIMIT, PACKAGE, ProgramFailed, install
from app.store.pgdata import left_behind

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
AS_ROOT = os.geteuid() == 0
SERVER_USER = server_user("nobody")

as_root = pytest.mark.skipif(not AS_ROOT, reason="needs root: it is about what root does")
as_ordinary = pytest.mark.skipif(AS_ROOT, reason="runs as nobody in a process of its own")

ORDINARY = "sqlalchemy or ordinary or p48 or p57 or p58 or p60 or p62 or t19 or t24 or stop"
"""What the same tests must also show as an ordinary user."""

SERVE = """
import sys, anyio, structlog
from pathlib import Path
from app.store.embedded import embedded_postgres

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))

async def main():
    programs_dir = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    async with embedded_postgres(Path(sys.argv[1]), programs_dir=programs_dir) as pg:
        pg.announce("http://127.0.0.1:4242")
        print(pg.pid, flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)

anyio.run(main)
"""
"""A process of ours that serves until its input ends, or it is killed."""


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory that every user may enter, as root's own of pytest is not; no server in it survives."""
    directory = Path(tempfile.mkdtemp(prefix="alameda-test-")).resolve()
    directory.chmod(0o711)
    yield directory
    for database in directory.rglob("postgres"):
        end_what_is_left(database.parent)
    shutil.rmtree(directory)


def end_what_is_left(data_dir: Path) -> None:
    """A test that failed may leave a server behind."""
    if process := left_behind(data_dir / "postgres", SERVER_USER):
        process.kill()
        process.wait(5)


@pytest.fixture
def data_dir(base: Path) -> Path:
    return base / "data"


def as_server_user(*command: str | Path) -> subprocess.Popen[bytes]:
    """A process of the user who runs the server, so that nothing but the manager's care protects it."""
    if AS_ROOT:
        return subprocess.Popen(command, user=SERVER_USER.pw_uid, group=SERVER_USER.pw_gid, extra_groups=[])
    return subprocess.Popen(command)


@asynccontextmanager
async def connected(pg: EmbeddedPostgres, *, password: str = "") -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(
        host=pg.host,
        port=pg.port,
        user=pg.user,
        password=password or pg.password,
        database=pg.database,
        timeout=10,
    )
    try:
        yield connection
    finally:
        await connection.close()


async def write_row(pg: EmbeddedPostgres) -> None:
    async with connected(pg) as connection:
        await connection.execute(
            "CREATE TABLE kept (word text CHECK (word <> 'no')); INSERT INTO kept VALUES ('yes')"
        )


async def read_rows(pg: EmbeddedPostgres) -> list[str]:
    async with connected(pg) as connection:
        return [row["word"] for row in await connection.fetch("SELECT word FROM kept")]


async def read_rows_when_ready(pg: EmbeddedPostgres) -> list[str]:
    with anyio.fail_after(20):
        while True:
            with suppress(
                OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError
            ):
                return await read_rows(pg)
            await anyio.sleep(0.02)


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """The directory of `made`; its file `pid_lines` has what the server's pid file said."""
    with tempfile.TemporaryDirectory(prefix="alameda-test-") as directory:
        Path(directory).chmod(0o711)
        data_dir = Path(directory) / "data"

        async def make() -> None:
            async with embedded_postgres(data_dir) as pg:
                await write_row(pg)
                shutil.copy(data_dir / "postgres" / "postmaster.pid", data_dir / "pid_lines")

        anyio.run(make)
        yield data_dir


@pytest.fixture
def made(template: Path) -> Iterator[Path]:
    """A data directory with a database that has one row and does not run; tests share it and leave it so."""
    yield template
    end_what_is_left(template)


def plant_pid_file(data_dir: Path, pid: int | str) -> None:
    """Leave the pid file of a server that was killed, and whose number is somebody else's now."""
    _, *rest = (data_dir / "pid_lines").read_text().splitlines(keepends=True)
    pid_file = data_dir / "postgres" / "postmaster.pid"
    pid_file.write_text(f"{pid}\n" + "".join(rest))
    os.chown(pid_file, SERVER_USER.pw_uid, SERVER_USER.pw_gid)
    pid_file.chmod(0o600)


async def until(condition: Callable[[], object]) -> None:
    """Wait for what no event tells us: the state of a foreign process, or of a file."""
    with anyio.fail_after(20):
        while True:
            if condition():
                return
            await anyio.sleep(0.01)


@contextmanager
def serving(
    data_dir: Path, *more: Path, python: str = sys.executable, user: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process that serves `data_dir`; its first line of output is the server's pid."""
    child = subprocess.Popen(
        [python, "-c", SERVE, data_dir, *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
        user=user,
        group=user,
        extra_groups=None if user is None else [],
    )
    with child:
        try:
            yield child
        finally:
            child.kill()


def first_line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    if line := child.stdout.readline():
        return line.strip()
    assert child.stderr is not None
    pytest.fail(child.stderr.read())


def wrapped(base: Path, **scripts: str) -> Path:
    """A directory of programs like the real one (`$REAL` in the scripts), some of them replaced."""
    real = install(base, SERVER_USER)
    directory = base / "wrapped"
    directory.mkdir()
    directory.chmod(0o755)
    for program in real.iterdir():
        (directory / program.name).symlink_to(program)
    for name, script in scripts.items():
        (directory / name).unlink()
        (directory / name).write_text(f"#!/bin/sh\nREAL='{real}'\n{script}\n")
        (directory / name).chmod(0o755)
    return directory


def world_writable(base: Path) -> Path:
    directory = base / "marks"
    directory.mkdir()
    directory.chmod(0o777)
    return directory


def ordinary_python() -> str:
    """An interpreter of this version that `nobody` may run too."""
    for python in (sys.executable, "/usr/local/bin/python3", f"/usr/bin/python3.{sys.version_info.minor}"):
        with suppress(OSError, subprocess.CalledProcessError):
            found = subprocess.run(
                [python, "-c", "import sys; print(sys.version_info.minor)"],
                capture_output=True,
                check=True,
                user="nobody",
                cwd="/",
            )
            if int(found.stdout) == sys.version_info.minor:
                return python
    pytest.skip("no interpreter of this version that nobody may run: install one outside of root's home")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_rows_are_there_after_a_stop_and_a_second_start(made: Path) -> None:
    async with embedded_postgres(made) as pg:
        assert await read_rows(pg) == ["yes"]


async def test_sqlalchemy_connects_by_the_same_words(made: Path) -> None:
    async with embedded_postgres(made) as pg:
        query = {"host": pg.host, "port": str(pg.port)}
        url = URL.create("postgresql+asyncpg", pg.user, pg.password, database=pg.database, query=query)
        engine = create_async_engine(url)
        async with engine.connect() as connection:
            assert await connection.scalar(text("SELECT current_database()")) == "alameda"
        await engine.dispose()


async def test_p57_a_stale_pid_that_belongs_to_an_innocent_process_is_neither_believed_nor_killed(
    made: Path,
) -> None:
    with as_server_user("sleep", "60") as innocent:
        try:
            plant_pid_file(made, innocent.pid)
            async with embedded_postgres(made) as pg:
                assert pg.pid != innocent.pid
                assert await read_rows(pg) == ["yes"]
            assert innocent.poll() is None
        finally:
            innocent.kill()


async def test_p57_a_failed_start_does_not_touch_the_innocent_process_either(base: Path, made: Path) -> None:
    with as_server_user("sleep", "60") as innocent:
        try:
            plant_pid_file(made, innocent.pid)
            broken = wrapped(base, postgres="echo no room left on this device >&2; exit 1")
            with pytest.raises(PostgresNotReady, match="no room left on this device"):
                async with embedded_postgres(made, programs_dir=broken):
                    pytest.fail("it cannot have started")
            assert innocent.poll() is None
        finally:
            innocent.kill()


async def test_p58_a_zombie_is_not_a_server(made: Path) -> None:
    with as_server_user("true") as zombie:
        await until(lambda: psutil.Process(zombie.pid).status() == psutil.STATUS_ZOMBIE)
        plant_pid_file(made, zombie.pid)
        async with embedded_postgres(made) as pg:
            assert await read_rows(pg) == ["yes"]


@pytest.mark.parametrize("kept", [0, 1, 7])
async def test_p59_a_pid_file_that_was_not_written_to_its_end_is_no_obstacle(made: Path, kept: int) -> None:
    with serving(made) as other:
        pid = int(first_line(other))
        other.kill()
        other.wait()
    pid_file = made / "postgres" / "postmaster.pid"
    whole = pid_file.read_text().splitlines(keepends=True)
    assert len(whole) == 8
    if (
        kept == 0
    ):  # the server is there, its file is not yet: nothing can be told, and PostgreSQL itself refuses
        process = psutil.Process(pid)
        process.kill()
        await until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
        plant_pid_file(made, "not yet a number")
        with pytest.raises(PostgresNotReady, match=r"postmaster\.pid"):
            async with embedded_postgres(made):
                pytest.fail("it cannot have started")
        pid_file.unlink()
    else:
        pid_file.write_text("".join(whole[:kept]))
    async with embedded_postgres(made) as pg:
        assert (pg.pid == pid) is (kept > 0)
        assert await read_rows(pg) == ["yes"]


async def test_p60_a_server_that_outlived_us_is_taken_over_and_stopped_in_the_end(made: Path) -> None:
    with serving(made) as other:
        pid = int(first_line(other))
        other.kill()
        other.wait()
    assert holder(made) is None
    survivor = psutil.Process(pid)
    async with embedded_postgres(made) as pg:
        assert pg.pid == pid
        assert await read_rows(pg) == ["yes"]
    assert not survivor.is_running() or survivor.status() == psutil.STATUS_ZOMBIE


async def test_p60_a_server_that_was_taken_over_is_restarted_too(made: Path) -> None:
    with serving(made) as other:
        pid = int(first_line(other))
        other.kill()
        other.wait()
    async with embedded_postgres(made) as pg:
        assert pg.pid == pid
        os.kill(pid, signal.SIGKILL)
        await until(lambda: pg.pid not in (None, pid))
        assert await read_rows_when_ready(pg) == ["yes"]


@as_root
async def test_p61_a_closed_directory_is_named_with_its_cure_and_stays_as_it_is(base: Path) -> None:
    closed = base / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(DataDirectoryUnusable, match=f"chmod 711 '{closed}'"):
        async with embedded_postgres(closed / "alameda"):
            pytest.fail("nobody cannot get there")
    assert mode(closed) == 0o700


@as_root
async def test_p61_no_directory_that_was_there_before_changes_its_mode(base: Path) -> None:
    parents = [base / "a", base / "a" / "b"]
    for parent, rights in zip(parents, (0o711, 0o751), strict=True):
        parent.mkdir()
        parent.chmod(rights)
    real = install(base, SERVER_USER)
    packages = [real, *real.parents]
    before = [mode(path) for path in packages]
    async with embedded_postgres(parents[-1] / "new" / "data"):
        assert [mode(parent) for parent in parents] == [0o711, 0o751]
        assert [mode(parents[-1] / "new"), mode(parents[-1] / "new" / "data")] == [0o711, 0o711]
        assert [mode(path) for path in packages] == before


@pytest.mark.parametrize("name", ["a b 'c' $d/" + "ä/" * 40, "long-" * 40])
async def test_p62_any_path_will_do_and_its_socket_stays_in_it(base: Path, name: str) -> None:
    async with embedded_postgres(base / name) as pg:
        await write_row(pg)
        assert stat.S_ISSOCK((base / name / "postgres" / f".s.PGSQL.{pg.port}").stat().st_mode)
        sockets = psutil.Process(pg.pid).net_connections(kind="unix")
        assert {str(socket.laddr) for socket in sockets} - {""} == {f"./.s.PGSQL.{pg.port}"}


async def test_p62_without_proc_the_socket_is_in_a_private_directory(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "PROC_FD", Path("/nowhere"))  # what a system without /proc looks like
    async with embedded_postgres(made) as pg:
        private = Path(pg.host)
        assert mode(private) == 0o700
        assert private.stat().st_uid == SERVER_USER.pw_uid
        assert pg.pid is not None
        os.kill(pg.pid, signal.SIGKILL)
        await until(lambda: pg.pid is None)
        assert await read_rows_when_ready(pg) == ["yes"]
        assert Path(pg.host) == private
    assert not private.exists()


async def test_p63_a_start_may_take_longer_than_ten_seconds(base: Path, made: Path) -> None:
    slow = wrapped(base, postgres='sleep 10.5; exec "$REAL/postgres" "$@"')
    began = anyio.current_time()
    async with embedded_postgres(made, programs_dir=slow) as pg:
        assert anyio.current_time() - began > 10
        assert await read_rows(pg) == ["yes"]


async def test_a_start_that_takes_too_long_ends_with_an_error_and_without_a_process(
    base: Path, made: Path
) -> None:
    marks = world_writable(base)
    stuck = wrapped(base, postgres=f"echo $$ > '{marks}/pid'; exec sleep 60")
    with pytest.raises(PostgresNotReady, match="answers no query"):
        async with embedded_postgres(made, programs_dir=stuck, start_timeout=0.5):
            pytest.fail("it cannot have started")
    assert not psutil.pid_exists(int((marks / "pid").read_text()))


async def test_t24_nothing_listens_on_the_network_and_a_wrong_password_is_refused(made: Path) -> None:
    async with embedded_postgres(made) as pg:
        assert psutil.Process(pg.pid).net_connections(kind="inet") == []
        with pytest.raises(asyncpg.InvalidPasswordError):
            async with connected(pg, password="guessed"):
                pytest.fail("that was not the password")
        hba = (made / "postgres" / "pg_hba.conf").read_text().splitlines()
        methods = {line.split()[-1] for line in hba if line and not line.startswith("#")}
        assert methods == {"scram-sha-256"}


async def test_t19_only_the_servers_user_can_read_what_we_keep(made: Path) -> None:
    async with embedded_postgres(made):
        assert mode(made) == (0o711 if AS_ROOT else 0o700)
        assert mode(made / "postgres") == 0o700
        for file in ("postgres/password", "lock", "postgres.log"):
            assert mode(made / file) == 0o600
        assert {path.name for path in made.iterdir()} <= {"postgres", "lock", "postgres.log", "pid_lines"}


@as_root
async def test_t24_another_local_user_does_not_even_reach_the_socket(made: Path) -> None:
    async with embedded_postgres(made) as pg:
        socket = made / "postgres" / f".s.PGSQL.{pg.port}"
        assert socket.is_socket()
        stranger = subprocess.run(
            [
                ordinary_python(),
                "-c",
                f"import socket; socket.socket(socket.AF_UNIX).connect({str(socket)!r})",
            ],
            user=12345,
            group=12345,
            extra_groups=[],
            capture_output=True,
            text=True,
            cwd="/",
        )
        assert "PermissionError" in stranger.stderr


async def test_a_data_directory_that_everybody_may_write_to_is_refused(data_dir: Path) -> None:
    data_dir.mkdir()
    data_dir.chmod(0o777)
    with pytest.raises(DataDirectoryUnusable, match="chmod o-w"):
        async with embedded_postgres(data_dir):
            pytest.fail("others could replace the database")
    assert mode(data_dir) == 0o777


async def test_a_second_process_is_told_who_has_the_directory(made: Path) -> None:
    assert holder(made) is None
    with serving(made) as other:
        pid = int(first_line(other))
        with pytest.raises(DataDirectoryBusy, match=r"http://127\.0\.0\.1:4242") as refused:
            async with embedded_postgres(made):
                pytest.fail("the other one has it")
        assert (refused.value.pid, refused.value.url) == (other.pid, "http://127.0.0.1:4242")
        found = holder(made)
        assert found is not None
        assert (found.pid, found.url) == (other.pid, "http://127.0.0.1:4242")
        assert psutil.pid_exists(pid)
        assert other.stdin is not None
        other.stdin.close()
        assert other.wait(20) == 0
    assert not psutil.pid_exists(pid)
    assert holder(made) is None


async def test_the_directory_is_free_again_after_a_start_that_failed(base: Path, data_dir: Path) -> None:
    full = wrapped(base, initdb="echo could not write: No space left on device >&2; exit 1")
    for _ in range(2):
        with pytest.raises(ProgramFailed, match="No space left on device"):
            async with embedded_postgres(data_dir, programs_dir=full):
                pytest.fail("there is no database")
    assert [path.name for path in data_dir.glob("postgres*")] == ["postgres.log"]
    async with embedded_postgres(data_dir) as pg:
        await write_row(pg)


async def test_p48_a_server_that_dies_is_started_again_and_its_rows_are_there(made: Path) -> None:
    async with embedded_postgres(made) as pg:
        for _ in range(2):
            first = pg.pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            await until(lambda: pg.pid is None)
            assert await read_rows_when_ready(pg) == ["yes"]


async def test_p48_a_server_that_cannot_start_again_is_tried_until_it_can(made: Path) -> None:
    async with embedded_postgres(made) as pg:
        control = made / "postgres" / "global" / "pg_control"
        control.rename(made / "aside")
        assert pg.pid is not None
        os.kill(pg.pid, signal.SIGKILL)
        said = made / "postgres.log"
        await until(lambda: said.read_text().count("pg_control") > embedded.LAUNCHES)
        (made / "aside").rename(control)
        assert await read_rows_when_ready(pg) == ["yes"]


async def test_an_initdb_that_was_killed_with_us_is_done_again(base: Path, data_dir: Path) -> None:
    marks = world_writable(base)
    write_pid = f"echo $$ > '{marks}/new' && mv '{marks}/new' '{marks}/pid'"
    half = 'mkdir "$2" && echo 18 > "$2/PG_VERSION"'
    programs = wrapped(base, initdb=f"{half} && {write_pid} && exec sleep 60")
    with serving(data_dir, programs) as other:
        await until((marks / "pid").exists)
        other.kill()
        other.wait()
    orphan = psutil.Process(int((marks / "pid").read_text()))
    try:
        assert len(list(data_dir.glob("postgres.new-*"))) == 1
        async with embedded_postgres(data_dir) as pg:
            await write_row(pg)
        assert list(data_dir.glob("postgres.new-*")) == []
    finally:
        orphan.kill()


async def test_a_stop_during_initdb_leaves_neither_process_nor_files(base: Path, data_dir: Path) -> None:
    marks = world_writable(base)
    programs = wrapped(base, initdb=f"echo $$ > '{marks}/new' && mv '{marks}/new' '{marks}/pid'; sleep 60")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve_until_cancelled, data_dir, programs)
        await until((marks / "pid").exists)
        initdb = psutil.Process(int((marks / "pid").read_text()))
        await until(initdb.children)
        children = initdb.children()
        tasks.cancel_scope.cancel()
    assert not initdb.is_running()
    await until(lambda: not any(is_alive(child) for child in children))
    assert [path.name for path in data_dir.glob("postgres*")] == ["postgres.log"]


def is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


async def serve_until_cancelled(data_dir: Path, programs_dir: Path | None = None) -> None:
    async with embedded_postgres(data_dir, programs_dir=programs_dir):
        await anyio.sleep_forever()


async def test_a_stop_during_the_start_leaves_no_server(base: Path, made: Path) -> None:
    marks = world_writable(base)
    slow = wrapped(base, postgres=f"echo $$ > '{marks}/new' && mv '{marks}/new' '{marks}/pid'; exec sleep 60")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve_until_cancelled, made, slow)
        await until((marks / "pid").exists)
        tasks.cancel_scope.cancel()
    assert not psutil.pid_exists(int((marks / "pid").read_text()))


async def test_a_stop_leaves_no_process_even_with_clients_at_work(made: Path) -> None:
    async with embedded_postgres(made) as pg:
        server = psutil.Process(pg.pid)
        client = await asyncpg.connect(host=pg.host, port=pg.port, user=pg.user, password=pg.password)
        await client.execute("BEGIN; CREATE TABLE unfinished ()")
        family = [server, *server.children(recursive=True)]
        assert len(family) > 3
    client.terminate()
    assert not any(is_alive(process) for process in family)


async def test_a_suspended_server_is_killed_in_the_end(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patience = tuple((number, 0.3) for number, _ in embedded.STOP)
    monkeypatch.setattr(embedded, "STOP", patience)  # the same order in less time
    async with embedded_postgres(made) as pg:
        server = psutil.Process(pg.pid)
        server.suspend()
    assert not server.is_running()


async def test_a_foreign_directory_in_the_place_of_the_database_is_left_alone(made: Path) -> None:
    (made / "postgres" / "PG_VERSION").rename(made / "aside")
    with pytest.raises(DataDirectoryUnusable, match="PG_VERSION is missing: move it away"):
        async with embedded_postgres(made):
            pytest.fail("that is no database")
    (made / "aside").rename(made / "postgres" / "PG_VERSION")
    async with embedded_postgres(made) as pg:
        assert await read_rows(pg) == ["yes"]


async def test_the_log_keeps_what_the_server_says_but_neither_rows_nor_statements(made: Path) -> None:
    async with embedded_postgres(made) as pg:
        async with connected(pg) as connection:
            await connection.execute(
                "CREATE TEMP TABLE prompts (words text, CHECK (words <> 'secret-prompt'))"
            )
            with pytest.raises(asyncpg.CheckViolationError):
                await connection.execute("INSERT INTO prompts VALUES ('secret-prompt')")
            with pytest.raises(asyncpg.CheckViolationError):
                await connection.execute("INSERT INTO prompts VALUES ($1)", "secret-prompt")
        said = (made / "postgres.log").read_text()
        assert "violates check constraint" in said
        assert "secret-prompt" not in said
        assert pg.password not in said


async def test_the_log_has_a_bound_while_the_server_runs(made: Path) -> None:
    async with embedded_postgres(made) as pg:
        written = made / "postgres.log"
        os.truncate(written, LOG_LIMIT + 1)
        await until(lambda: written.stat().st_size < LOG_LIMIT)
        assert (made / "postgres.log.1").stat().st_size > LOG_LIMIT
        async with connected(pg) as connection:
            with pytest.raises(asyncpg.UndefinedTableError):
                await connection.execute("SELECT FROM missing")
        assert "missing" in written.read_text()


@as_root
async def test_root_copies_the_programs_where_the_servers_user_cannot_read_them(
    base: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = install(base, SERVER_USER).parent
    packages = base / "closed"
    package = packages / PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copytree(real, package / BUNDLE, symlinks=True)
    libraries = real.parent.with_name(f"{PACKAGE}.libs")
    shutil.copytree(libraries, packages / libraries.name, symlinks=True)
    packages.chmod(0o700)
    monkeypatch.syspath_prepend(packages)
    async with embedded_postgres(data_dir) as pg:
        program = Path(psutil.Process(pg.pid).exe())
        assert program.is_relative_to(data_dir)
        await write_row(pg)
    assert mode(packages) == 0o700
    async with embedded_postgres(data_dir) as pg:
        assert await read_rows(pg) == ["yes"]


@as_root
@pytest.mark.parametrize("run_as", ["root", "no-such-user"])
async def test_root_needs_another_system_user_to_run_the_server(data_dir: Path, run_as: str) -> None:
    with pytest.raises(ServerUserMissing, match="DATABASE_URL"):
        async with embedded_postgres(data_dir, run_as=run_as):
            pytest.fail("PostgreSQL refuses that")
    assert not data_dir.exists()


@as_root
async def test_the_database_of_another_user_is_not_taken(made: Path) -> None:
    with pytest.raises(DataDirectoryUnusable, match="chown -R daemon"):
        async with embedded_postgres(made, run_as="daemon"):
            pytest.fail("it belongs to nobody")


@as_root
def test_a_user_id_without_a_passwd_entry_is_sent_to_database_url(base: Path) -> None:
    with pytest.raises(KeyError):
        pwd.getpwuid(54321)
    home = base / "home"
    home.mkdir()
    os.chown(home, 54321, 54321)
    with serving(home / "data", python=ordinary_python(), user=54321) as child:
        assert child.stderr is not None
        complaint = child.stderr.read()
        assert "user id 54321 has no passwd entry" in complaint
        assert "DATABASE_URL" in complaint
    assert not (home / "data").exists()


@as_ordinary
async def test_an_ordinary_user_is_told_when_the_directory_is_not_his() -> None:
    with pytest.raises(EmbeddedPostgresError, match="ALAMEDA_DATA_DIR"):
        async with embedded_postgres(Path("/var/lib/alameda-of-root")):
            pytest.fail("that belongs to root")


@as_root
def test_all_of_this_holds_for_an_ordinary_user() -> None:
    python = ordinary_python()
    run = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", ORDINARY, __file__],
        user=SERVER_USER.pw_uid,
        group=SERVER_USER.pw_gid,
        extra_groups=[],
        cwd=ROOT,
        env={
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PATH": os.defpath,
            "HOME": "/nonexistent",
        },
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
