"""Folders of ours in the temporary directory, and the end of those that a killed process left there.

Whoever uses one holds a lock in it, which no child inherits and which falls with the process, however that
ends. A folder without a lock is one that was only just made, or what a command that outlived its process made
again after its folder was removed: nobody uses it once it is old.
"""

import fcntl
import os
import re
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from shutil import rmtree

import anyio
import anyio.to_thread

PREFIX = "alameda-"
_NAME = re.compile(PREFIX + r"(diff|git|merge|paseo)-[a-z0-9_]{8}")
_LOCK = ".in-use"
ABANDONED_S = 24 * 3600.0
"""Seconds after which nobody is about to lock a folder any more, and no command of a killed process runs."""


class Scratch:
    """A folder that only its user may read (mode 0700), from now until `remove`. Every call blocks."""

    def __init__(self, purpose: str) -> None:
        """Make one; `purpose` shows in its name.

        Raises:
            OSError: it cannot be made.
        """
        assert _NAME.fullmatch(f"{PREFIX}{purpose}-12345678"), "nobody would remove it"
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-"))
            try:
                self._lock = _lock(self.path / _LOCK, make=True)
                return
            except FileNotFoundError:  # swept before it was locked
                continue
            except BaseException:
                rmtree(self.path, ignore_errors=True)
                raise

    def remove(self) -> None:
        """Remove it, with whatever is in it; may be called again."""
        _clear(self.path)
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


@asynccontextmanager
async def scratch_folder(purpose: str) -> AsyncIterator[Path]:
    """A folder until the end of the block; as `Scratch`, without holding up the event loop."""
    scratch = await anyio.to_thread.run_sync(Scratch, purpose)
    try:
        yield scratch.path
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(scratch.remove)


def sweep() -> int:
    """Remove the folders that nobody uses any more; how many those were. Blocks."""
    removed = 0
    with suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            if _NAME.fullmatch(entry.name) is None or not entry.is_dir(follow_symlinks=False):
                continue
            with suppress(OSError):  # in use, or gone by itself
                found = entry.stat(follow_symlinks=False)
                if found.st_uid != os.geteuid():
                    continue
                lock: int | None = None
                try:
                    lock = _lock(Path(entry.path) / _LOCK)
                except FileNotFoundError:
                    if time.time() - found.st_mtime < ABANDONED_S:
                        continue
                _clear(Path(entry.path))
                if lock is not None:
                    os.close(lock)
                removed += not os.path.lexists(entry.path)
    return removed


def _clear(path: Path) -> None:
    """Remove a folder, its lock last: one that somebody still writes into is found by the next sweep."""
    with suppress(OSError):
        for inside in path.iterdir():
            if inside.is_dir() and not inside.is_symlink():
                rmtree(inside, ignore_errors=True)
            elif inside.name != _LOCK:
                inside.unlink(missing_ok=True)
        if {inside.name for inside in path.iterdir()} <= {_LOCK}:
            rmtree(path, ignore_errors=True)


def _lock(path: Path, *, make: bool = False) -> int:
    """Take the lock of a folder.

    Raises:
        FileNotFoundError: there is none, or not any more.
        OSError: somebody else holds it.
    """
    lock = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if make else 0), 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if make else fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_nlink == 0:  # it was removed between the opening and the locking
            raise FileNotFoundError(path)
    except BaseException:
        os.close(lock)
        raise
    return lock
