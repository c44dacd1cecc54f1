"""The directory that holds the embedded database: who may enter it, and which process has it."""

import fcntl
import json
import os
import pwd
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio

LOCK_PATIENCE = 1.0
"""Seconds we wait for a lock that is held: a process just ending, or a `holder` that looks."""


class EmbeddedPostgresError(Exception):
    """The embedded database cannot be had; the message says why, and what cures it."""


class ServerUserMissing(EmbeddedPostgresError):
    """There is no user whom PostgreSQL would accept to run as."""


class DataDirectoryUnusable(EmbeddedPostgresError):
    """The data directory cannot be made, entered or trusted as it is."""


class DataDirectoryBusy(EmbeddedPostgresError):
    """Another process has the data directory; trying again helps once that one has ended."""

    def __init__(self, data_dir: Path, pid: int | None, url: str | None) -> None:
        self.pid = pid
        self.url = url
        process = "another process" if pid is None else f"process {pid}"
        address = "" if url is None else f" at {url}"
        super().__init__(
            f"{data_dir} is in use by {process}{address}: use that one, stop it first, "
            "choose another ALAMEDA_DATA_DIR, or set DATABASE_URL to run several"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The process that has a data directory; `url` is None until it listens."""

    pid: int | None
    """None in the instant between its lock and its first word."""
    url: str | None


def server_user(run_as: str) -> pwd.struct_passwd:
    """The user whom PostgreSQL runs as: ourselves or, since it refuses root, the system user `run_as`.

    Raises:
        ServerUserMissing: there is none, or `run_as` is root.
    """
    uid = os.geteuid()
    try:
        user = pwd.getpwnam(run_as) if uid == 0 else pwd.getpwuid(uid)
    except KeyError:
        who = f"no system user {run_as!r} exists" if uid == 0 else f"user id {uid} has no passwd entry"
        raise ServerUserMissing(
            f"{who}, and PostgreSQL does not run without one: add it, or set DATABASE_URL"
        ) from None
    if user.pw_uid == 0:
        raise ServerUserMissing(
            "PostgreSQL does not run as root: name another system user, or set DATABASE_URL"
        )
    return user


def prepare(data_dir: Path, user: pwd.struct_passwd) -> Path:
    """Make what is missing of `data_dir`; a directory that was there before is never changed.

    Returns:
        The same directory, absolute and free of links.
    Raises:
        DataDirectoryUnusable: `user` could not work in it, or others could.
    """
    data_dir = data_dir.resolve()
    line = (data_dir, *data_dir.parents)
    try:
        for directory in reversed([directory for directory in line if not directory.exists()]):
            directory.mkdir()
            directory.chmod(0o711 if os.geteuid() == 0 else 0o700)  # mkdir's mode is cut by the umask
        if not os.access(data_dir, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError("no right to read and write")
        if data_dir.stat().st_mode & 0o002:
            raise PermissionError("everybody may write to it, chmod o-w")
    except OSError as error:
        raise DataDirectoryUnusable(
            f"the data directory {data_dir} cannot be made or used ({error}): make one for this user, "
            "choose another ALAMEDA_DATA_DIR, or set DATABASE_URL"
        ) from None
    for directory in line:
        if os.geteuid() == 0 and not _may_enter(user, directory):
            raise DataDirectoryUnusable(
                f"{directory} cannot be entered by user {user.pw_name}, who runs PostgreSQL: "
                f"chmod 711 '{directory}', choose another ALAMEDA_DATA_DIR, or set DATABASE_URL"
            )
    return data_dir


def _may_enter(user: pwd.struct_passwd, directory: Path) -> bool:
    status = directory.stat()
    if status.st_uid == user.pw_uid:
        return bool(status.st_mode & 0o100)
    return bool(status.st_mode & (0o010 if status.st_gid == user.pw_gid else 0o001))


class DirectoryLock:
    """A lock on a data directory; it goes with the process, however that ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.announce(None)

    @classmethod
    async def take(cls, data_dir: Path) -> Self:
        """Take the lock, or say who has it.

        Raises:
            DataDirectoryBusy: another process has it.
        """
        try:
            descriptor = os.open(
                data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise DataDirectoryUnusable(
                f"{data_dir / 'lock'} cannot be opened ({error.strerror}): run as the user who owns it"
            ) from None
        try:
            with anyio.move_on_after(LOCK_PATIENCE):
                while True:
                    if _flock(descriptor, fcntl.LOCK_EX):
                        return cls(descriptor)
                    await anyio.sleep(0.05)
            other = _read_holder(descriptor)
            raise DataDirectoryBusy(data_dir, other.pid, other.url)
        except OSError as error:
            os.close(descriptor)
            raise DataDirectoryUnusable(
                f"{data_dir / 'lock'} cannot be used ({error.strerror}): make room, or set DATABASE_URL"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise

    def announce(self, url: str | None) -> None:
        """Tell those who ask where we listen."""
        text = json.dumps({"pid": os.getpid(), "url": url}).encode()
        os.pwrite(self._descriptor, text, 0)
        os.ftruncate(self._descriptor, len(text))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)  # the file stays: whoever removes it may lock another one than the next


def holder(data_dir: Path) -> Holder | None:
    """The living process that has `data_dir`; None if nobody has.

    Raises:
        DataDirectoryUnusable: the lock belongs to another user.
    """
    try:
        descriptor = os.open(data_dir / "lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataDirectoryUnusable(
            f"{data_dir / 'lock'} cannot be read ({error.strerror}): run as the user who runs the service"
        ) from None
    try:
        return None if _flock(descriptor, fcntl.LOCK_SH) else _read_holder(descriptor)
    finally:
        os.close(descriptor)


def _flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_holder(descriptor: int) -> Holder:
    text = os.pread(descriptor, 4096, 0).decode(errors="replace")
    try:
        found, _ = json.JSONDecoder().raw_decode(text)  # a longer, older text may still follow
        return Holder(pid=found["pid"], url=found["url"])
    except ValueError:
        return Holder(pid=None, url=None)
