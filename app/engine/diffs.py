"""What has changed in a session's working tree, as git tells it without running anything of the repository's.

Git works in a directory of ours with a configuration of ours, on the repository's objects, a copy of its
index, and its working tree.
"""

import os
import time
from dataclasses import dataclass
from functools import partial

import anyio
import structlog

from app.backends.base import Place
from app.backends.registry import Registry
from app.domain.errors import BackendIsDown, PathNotAllowed, UnsupportedByBackend
from app.domain.ids import Owner, SessionId
from app.engine.disk import read_disk
from app.engine.indexes import know_files
from app.engine.paths import check_requested, lies_below
from app.engine.repositories import IsAllowed, Repository, find_repository
from app.engine.seats import Seats
from app.engine.traps import find_trap
from app.engine.workshop import Workshop, open_workshop
from app.store import sessions
from app.store.database import Database

log = structlog.get_logger(__name__)

MAX_DIFF = 1024 * 1024
"""Bytes of a diff; the rest is cut off."""
MAX_LIST = 1024 * 1024
"""Bytes of the list of changed files."""
GIT_S = 10.0
"""Seconds that all of a diff may take, from when it has a seat."""
LOOK_SHARE = 0.2
"""Of that time: what looking for traps may take, before git goes where they may be."""
WAIT_S = 10.0
"""Seconds to wait for a seat."""
AT_ONCE = 4
"""Diffs that are made at the same time."""
PER_OWNER = 2
"""How many of them may be one owner's."""

EMPTY_TREE = {
    "sha1": "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
    "sha256": "6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321",
}
"""What a repository without a commit is compared with, by the object format."""
_DIFF = ("diff", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames")


@dataclass(frozen=True, slots=True)
class ChangedFile:
    """A file that differs, relative to the working tree's root; no counts for a binary one."""

    path: str
    additions: int | None
    deletions: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingTreeDiff:
    """What differs between a commit and the working tree, files that git does not know yet included."""

    root: str
    base: str | None
    """The commit that was compared with; null if there is none yet."""
    files: list[ChangedFile]
    diff: str
    truncated: bool
    """Whether a bound was met: more differs than is told."""


class Diffs:
    """The use-case `diff`, within the caller's owner."""

    def __init__(self, database: Database, registry: Registry) -> None:
        self._database = database
        self._registry = registry
        self._seats = Seats(AT_ONCE, PER_OWNER)

    async def of(self, owner: Owner, session_id: SessionId) -> WorkingTreeDiff:
        """The diff of the session's working tree, as it stands.

        Raises:
            SessionNotFound: it is missing, or somebody else's.
            UnsupportedByBackend: its files are not on this machine, or nothing that git can compare.
            PathNotAllowed: its directory is gone, or the repository lies outside the allowed roots.
            RateLimited: too many diffs are being made.
            BackendIsDown: a disk does not answer or is full.
        """
        async with self._database.begin() as db:
            session = await sessions.get(db, owner, session_id)
        backend = self._registry.get(session.backend)
        if backend is None or backend.place.filesystem != "shared":
            raise UnsupportedByBackend(detail=f"the files of {session.backend} are not on this machine")
        async with self._seats.take(owner, WAIT_S):
            with anyio.move_on_after(GIT_S):
                return await _of_directory(session.cwd, backend.place)
        log.warning("diff_not_made", error="a disk does not answer")
        raise BackendIsDown(detail="the disk of the session's directory does not answer")


async def _of_directory(cwd: str, place: Place) -> WorkingTreeDiff:
    try:
        try:
            here = await read_disk(partial(check_requested, cwd, place))
        except OSError:
            raise PathNotAllowed(detail="the directory may not be read") from None
        return await _diff(here, place)
    except OSError as error:  # of what is ours: the session's files are refused by a word of their own
        log.warning("diff_not_made", error=error.strerror or type(error).__name__)
        raise BackendIsDown(detail="no diff can be made on this machine now") from None


async def _diff(cwd: str, place: Place) -> WorkingTreeDiff:
    until = time.monotonic() + GIT_S * 0.9
    is_allowed = partial(lies_below, place=place)
    try:
        found = await find_repository(cwd, is_allowed, until)
        trap = await read_disk(partial(find_trap, found.root, time.monotonic() + GIT_S * LOOK_SHARE))
        if trap is not None:
            raise UnsupportedByBackend(detail=f"git would wait for ever for {trap}, which is no file")
        async with open_workshop(found, until) as shop:
            return await _compared(found, shop, is_allowed)
    except (UnsupportedByBackend, OSError):
        if await read_disk(partial(_is_gone, cwd)):
            raise PathNotAllowed(detail="the directory is gone") from None
        raise


def _is_gone(cwd: str) -> bool:
    return not os.path.isdir(cwd)


async def _compared(found: Repository, shop: Workshop, is_allowed: IsAllowed) -> WorkingTreeDiff:
    base = found.head or EMPTY_TREE[found.format]
    known = await know_files(shop, base, is_allowed)
    diff = [*_DIFF, f"--ignore-submodules={'dirty' if known.may_ask_submodules else 'all'}"]
    listed = await shop.git([*diff, "--numstat", "-z", base, "--", "."], MAX_LIST)
    shown = await shop.git([*diff, "--patch", base, "--", "."], MAX_DIFF)
    if listed.code not in (0, None) or shown.code not in (0, None):
        raise await shop.refusal()
    huge = [ChangedFile(name.decode(errors="replace"), None, None) for name in known.huge]
    return WorkingTreeDiff(
        root=os.fsencode(found.root).decode(errors="replace"),
        base=found.head,
        files=sorted([*_files(listed.stdout), *huge], key=lambda file: file.path),
        diff=shown.stdout.decode(errors="replace"),
        truncated=not known.is_whole or bool(huge) or None in (listed.code, shown.code),
    )


def _files(listed: bytes) -> list[ChangedFile]:
    """The files of `--numstat -z`; a last one that was cut off is left out."""
    files = []
    for line in listed.decode(errors="replace").split("\0")[:-1]:
        added, deleted, path = line.split("\t", 2)
        counts = (int(added), int(deleted)) if added != "-" else (None, None)
        files.append(ChangedFile(path, *counts))
    return files
