"""A git directory of ours, in which git works on a repository's objects and its working tree.

It has no configuration but the object format, no reference, and copies of what else it needs.
"""

import errno
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio.to_thread

from app.domain.errors import UnsupportedByBackend
from app.engine.disk import read_disk
from app.engine.files import copy_regular
from app.engine.git import run_git
from app.engine.repositories import Repository
from app.process import Finished
from app.scratch import scratch_folder

MAX_INDEX = 256 * 1024 * 1024
"""Bytes of an index that is copied."""
MAX_EXCLUDE = 1024 * 1024
"""Bytes of the repository's own list of what is ignored."""
MIN_ROOM = 1024 * 1024
"""Bytes that are free where git works; with less, what it could not do is not the repository's fault."""
_OURS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What only writing meets."""


class Workshop:
    """Git, set to work on a repository from a directory of ours."""

    def __init__(self, found: Repository, own: Path, until: float) -> None:
        self.own = own
        self.root = found.root
        self.sparse = found.sparse
        self.until = until
        """Monotonic time at which whatever is done here ends."""
        self.blank = b"0" * 39 + b"1" if found.format == "sha1" else b"0" * 63 + b"1"
        """The name of an object that is nowhere."""
        self._env = {
            "GIT_WORK_TREE": str(found.root),
            "GIT_OBJECT_DIRECTORY": str(own / "objects"),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": f'"{_quoted(found.objects)}"',
        }

    async def git(
        self, words: Sequence[str], most: int, *, stdin: bytes | None = None, until: float | None = None
    ) -> Finished:
        """A run of git at the working tree's root."""
        given = None
        if stdin is not None:
            given = self.own / "given"
            await anyio.to_thread.run_sync(given.write_bytes, stdin)
        return await run_git(
            words,
            git_dir=self.own,
            cwd=self.root,
            env=self._env,
            until=self.until if until is None else until,
            most=most,
            stdin=given,
        )

    async def change(self, words: Sequence[str], stdin: bytes | None = None) -> bool:
        """A run that changes our index; false if it was cut off.

        Raises:
            UnsupportedByBackend: git gave up.
            OSError: there is no room for it.
        """
        done = await self.git(words, 0, stdin=stdin)
        if done.code not in (0, None):
            raise await self.refusal()
        return done.code == 0

    async def refusal(self) -> Exception:
        """Why git gave up: there is no room for what it writes, or it cannot read what is there."""
        left = await anyio.to_thread.run_sync(os.statvfs, self.own)
        if left.f_bavail * left.f_frsize < MIN_ROOM:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return UnsupportedByBackend(detail="git cannot compare this working tree")


@asynccontextmanager
async def open_workshop(found: Repository, until: float) -> AsyncIterator[Workshop]:
    """A workshop for a repository, until the end of the block.

    Raises:
        UnsupportedByBackend: its index is no file that can be read.
        OSError: there is no room for it.
    """
    async with scratch_folder("diff") as own:
        await read_disk(partial(_make_git_dir, own, found))
        yield Workshop(found, own, until)


def _make_git_dir(own: Path, found: Repository) -> None:
    for name in ("objects", "refs", "info"):
        (own / name).mkdir()
    (own / "HEAD").write_text("ref: refs/heads/none\n")
    version = 0 if found.format == "sha1" else 1
    extension = "" if found.format == "sha1" else f"[extensions]\n\tobjectformat = {found.format}\n"
    config = f"[core]\n\trepositoryformatversion = {version}\n\tbare = false\n{extension}"
    (own / "config").write_text(config)
    _copy(found.index, own / "index", MAX_INDEX)
    _copy(found.common / "info" / "exclude", own / "info" / "exclude", MAX_EXCLUDE)


def _copy(path: Path, to: Path, most: int) -> None:
    """Copy a file of the repository's, if it is there; never waits for one that is a pipe."""
    try:
        if copy_regular(path, to, most):
            return
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno in _OURS:
            raise
    raise UnsupportedByBackend(detail=f"the repository's {path.name} is no file that can be read")


def _quoted(path: Path) -> str:
    """A path as git reads it in a list: in C's quotes."""
    return str(path).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
