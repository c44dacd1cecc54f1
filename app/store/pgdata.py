"""The directory of the embedded database itself: how it is made, and which server works in it."""

import os
import pwd
import secrets
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import anyio
import psutil
import structlog

from app.store.datadir import DataDirectoryUnusable
from app.store.pgbinaries import Programs

log = structlog.get_logger(__name__)

ROLE = "alameda"
"""The one role: it owns everything."""

DATABASE = "alameda"
"""The database that is there from the first start on."""

FIRST_WORDS = f"""\
CREATE DATABASE {DATABASE};
ALTER ROLE {ROLE} SET log_error_verbosity = terse;
"""
"""Said before a database is used at all. Terse, since an error's details carry rows."""


async def have_database(pgdata: Path, programs: Programs) -> None:
    """See that `pgdata` is a database of ours; it is made if there is nothing.

    Raises:
        DataDirectoryUnusable: something else is there, or the disk refused.
        ProgramFailed: initdb did.
    """
    try:
        if not await anyio.Path(pgdata).exists():
            await _make_database(pgdata, programs)
    except OSError as error:
        raise DataDirectoryUnusable(
            f"no database can be made in {pgdata.parent} ({error}): make room or set its rights, "
            "or set DATABASE_URL"
        ) from None
    owner = (await anyio.Path(pgdata).stat()).st_uid
    if owner != programs.user.pw_uid:
        name = programs.user.pw_name
        raise DataDirectoryUnusable(
            f"{pgdata} belongs to user id {owner}, but PostgreSQL would run as {name}: run the service "
            f"as the user who ran it before, or chown -R {name} '{pgdata}'"
        )
    for file in ("PG_VERSION", "password"):
        if not await anyio.Path(pgdata, file).exists():
            raise DataDirectoryUnusable(f"{pgdata} is no database of ours, {file} is missing: move it away")


async def _make_database(pgdata: Path, programs: Programs) -> None:
    """Make the database beside its place, then move it there; an interrupted one is never taken for it."""
    prefix = f"{pgdata.name}.new-"
    draft = await anyio.to_thread.run_sync(_new_draft, pgdata.parent, prefix, programs)
    try:
        database, password = draft / "database", draft / "password"
        await programs.run(
            "initdb",
            *(
                "-D",
                database,
                "--username",
                ROLE,
                "--pwfile",
                password,
                "--auth=scram-sha-256",
                "--encoding=UTF8",
            ),
            # PostgreSQL's own locale: sorts the same on every system, after every upgrade of one
            *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
        )
        await programs.run(
            "postgres",
            *("--single", "-D", database, "-c", "exit_on_error=on", "postgres"),
            script=FIRST_WORDS,
        )
        password.rename(database / "password")
        _sync(database)
        database.rename(pgdata)
        _sync(pgdata.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    log.info("postgres_database_made", pgdata=str(pgdata))


def _new_draft(parent: Path, prefix: str, programs: Programs) -> Path:
    """A directory of the server's user with a new password in it; what earlier attempts left is removed."""
    for remains in parent.glob(f"{prefix}*"):
        shutil.rmtree(remains, ignore_errors=True)
    # Named anew each time: the initdb of a process that was killed may still be writing to its own.
    draft = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    with open(draft / "password", "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as password:
        password.write(secrets.token_hex(32))
        password.flush()
        os.fsync(password.fileno())
    programs.own(draft / "password")
    programs.own(draft)
    return draft


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def left_behind(pgdata: Path, user: pwd.struct_passwd) -> psutil.Process | None:
    """The living server that the pid file names, known by what it is: the number may be anybody's by now.

    It need not answer queries yet.
    """
    with suppress(psutil.NoSuchProcess, OSError):
        if (pid := recorded_pid(pgdata)) is None:
            return None
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE or process.name() != "postgres":
            return None
        if process.uids().effective != user.pw_uid:
            return None
        try:
            return process if os.path.samefile(process.cwd(), pgdata) else None
        except psutil.AccessDenied:  # root without CAP_SYS_PTRACE, as in containers: no more can be seen
            return process
    return None


def recorded_pid(pgdata: Path) -> int | None:
    """What the first line of the pid file says; the file may be missing or incomplete."""
    try:
        return abs(int(_pid_file(pgdata)[0])) or None
    except (IndexError, ValueError):
        return None


def recorded_socket_directory(pgdata: Path) -> str | None:
    """The fifth line of the pid file; None until the server has come that far."""
    lines = _pid_file(pgdata)
    return lines[4] or None if len(lines) > 4 else None


def _pid_file(pgdata: Path) -> list[str]:
    try:
        return (pgdata / "postmaster.pid").read_text(errors="replace").splitlines()
    except OSError:
        return []
