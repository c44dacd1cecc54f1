"""What has changed in a session's working tree, as git tells it without running anything of the repository's.

Git works in a directory of ours with a configuration of ours, on the repository's objects, a copy of its
index, and its working tree.
"""

import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from app.backends.base import Place
from app.backends.registry import Registry
from app.domain.errors import RateLimited, UnsupportedByBackend
from app.domain.ids import Owner, SessionId
from app.engine.files import copy_regular, read_regular
from app.engine.git import run_git
from app.engine.paths import check_requested, lies_below
from app.engine.repositories import MAX_POINTER, IsAllowed, Repository, find_repository
from app.process import Finished
from app.scratch import scratch_folder
from app.store import sessions
from app.store.database import Database

MAX_DIFF = 1024 * 1024
"""Bytes of a diff; the rest is cut off."""
MAX_LIST = 1024 * 1024
"""Bytes of the list of changed files."""
MAX_INDEX = 256 * 1024 * 1024
"""Bytes of an index that is copied."""
MAX_INDEXED = 64 * 1024 * 1024
"""Bytes of the list of what is in an index."""
MAX_NEW_FILE = 64 * 1024 * 1024
"""Bytes of a new file at which git looks; a larger one is told as a binary one."""
MAX_EXCLUDE = 1024 * 1024
"""Bytes of the repository's own list of what is ignored."""
GIT_S = 10.0
"""Seconds that all of a diff may take."""
AT_ONCE = 4
"""Diffs that are made at the same time."""

EMPTY_TREE = {
    "sha1": "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
    "sha256": "6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321",
}
"""What a repository without a commit is compared with, by the object format."""
FATAL = 128
"""The status with which git gives up."""
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
        self._seats = anyio.CapacityLimiter(AT_ONCE)

    async def of(self, owner: Owner, session_id: SessionId) -> WorkingTreeDiff:
        """The diff of the session's working tree, as it stands.

        Raises:
            SessionNotFound: it is missing, or somebody else's.
            UnsupportedByBackend: its files are not on this machine, or are in no git repository.
            PathNotAllowed: its directory is gone, or the repository lies outside the allowed roots.
            RateLimited: too many diffs are being made.
        """
        async with self._database.begin() as db:
            session = await sessions.get(db, owner, session_id)
        backend = self._registry.get(session.backend)
        if backend is None or backend.place.filesystem != "shared":
            raise UnsupportedByBackend(detail=f"the files of {session.backend} are not on this machine")
        cwd = await anyio.to_thread.run_sync(check_requested, session.cwd, backend.place)
        with anyio.move_on_after(GIT_S):
            async with self._seats:
                return await _diff(cwd, backend.place)
        raise RateLimited(retry_after_s=int(GIT_S))


async def _diff(cwd: str, place: Place) -> WorkingTreeDiff:
    until = time.monotonic() + GIT_S * 0.9
    is_allowed = partial(lies_below, place=place)
    found = await find_repository(cwd, is_allowed, until)
    async with scratch_folder("diff") as own:
        await anyio.to_thread.run_sync(_make_git_dir, own, found)
        return await _in_own(found, _Workshop(found, own, until), is_allowed)


async def _in_own(found: Repository, shop: "_Workshop", is_allowed: IsAllowed) -> WorkingTreeDiff:
    base = found.head or EMPTY_TREE[found.format]
    indexed = await shop.git(["ls-files", "--stage", "-z"], MAX_INDEXED)
    kept, is_safe = await anyio.to_thread.run_sync(_vet, found.root, indexed.stdout, is_allowed, shop.until)
    if indexed.code != 0 or not is_safe:  # an index in parts, a broken or a hostile one
        await anyio.to_thread.run_sync(partial((shop.own / "index").unlink, missing_ok=True))
        await shop.git(["read-tree", base], 0)
        indexed = await shop.git(["ls-files", "--stage", "-z"], MAX_INDEXED)
        kept, is_safe = await anyio.to_thread.run_sync(
            _vet, found.root, indexed.stdout, is_allowed, shop.until
        )
    if indexed.code is None:
        raise UnsupportedByBackend(detail="the working tree has too many files")
    if not is_safe:
        raise UnsupportedByBackend(detail="git cannot compare this working tree")
    diff = [*_DIFF, f"--ignore-submodules={'dirty' if kept.may_ask_submodules else 'all'}"]
    whole, huge = await _know_new_files(shop, found.root, kept.no_files)
    listed = await shop.git([*diff, "--numstat", "-z", base, "--", "."], MAX_LIST)
    shown = await shop.git([*diff, "--patch", base, "--", "."], MAX_DIFF)
    if listed.code not in (0, None) or shown.code not in (0, None):
        raise UnsupportedByBackend(detail="git cannot compare this working tree")
    return WorkingTreeDiff(
        root=os.fsencode(found.root).decode(errors="replace"),
        base=found.head,
        files=sorted([*_files(listed.stdout), *huge], key=lambda file: file.path),
        diff=shown.stdout.decode(errors="replace"),
        truncated=not whole or bool(huge) or None in (listed.code, shown.code),
    )


class _Workshop:
    """A git directory of ours, set to work on a repository's objects and its working tree."""

    def __init__(self, found: Repository, own: Path, until: float) -> None:
        self.own = own
        self.until = until
        self.blank = b"0" * 39 + b"1" if found.format == "sha1" else b"0" * 63 + b"1"
        self._root = found.root
        self._env = {
            "GIT_WORK_TREE": str(found.root),
            "GIT_OBJECT_DIRECTORY": str(own / "objects"),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": f'"{_quoted(found.objects)}"',
        }

    async def git(self, words: Sequence[str], most: int, stdin: Path | None = None) -> Finished:
        """A run of git at the working tree's root."""
        return await run_git(
            words,
            git_dir=self.own,
            cwd=self._root,
            env=self._env,
            until=self.until,
            most=most,
            stdin=stdin,
        )


@dataclass(frozen=True, slots=True)
class _Vetted:
    """What an index has that needs care."""

    no_files: list[bytes]
    """Where the working tree has what is no file: a pipe, a device. Git would wait for it."""
    may_ask_submodules: bool
    """Whether what git reads of its submodules may be read, of all of them."""


def _vet(root: Path, indexed: bytes, is_allowed: IsAllowed, until: float) -> tuple[_Vetted, bool]:
    """Look at every name of an index before git does; false if one leads out of the working tree."""
    no_files, may_ask = [], True
    for number, entry in enumerate(indexed.split(b"\0")[:-1]):
        told, _, name = entry.partition(b"\t")
        if {part.lower() for part in name.split(b"/")} & {b"", b".", b"..", b".git"}:
            return _Vetted([], False), False
        if number % 1000 == 999 and time.monotonic() > until:
            raise UnsupportedByBackend(detail="the working tree has too many files")
        path = os.path.join(os.fsencode(root), name)
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            continue
        if told.startswith(b"160000"):
            may_ask &= not os.path.lexists(path + b"/.git") or _may_be_asked(path, is_allowed)
        elif not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
            no_files.append(name)
    return _Vetted(no_files, may_ask), True


def _may_be_asked(submodule: bytes, is_allowed: IsAllowed) -> bool:
    """Whether git, asked for a submodule's commit, reads nothing that may not be read."""
    try:
        here = os.fsdecode(os.path.join(submodule, b".git"))
        if not os.path.isdir(here):
            found = read_regular(here, MAX_POINTER)
            pointer = "" if found is None else os.fsdecode(found[0]).rstrip("\r\n")
            here = os.path.join(os.fsdecode(submodule), pointer.removeprefix("gitdir: "))
        places = [here, f"{here}/HEAD", f"{here}/refs", f"{here}/packed-refs", f"{here}/commondir"]
        return all(is_allowed(Path(each)) for each in places)
    except (OSError, RuntimeError, ValueError):
        return False


async def _know_new_files(
    shop: _Workshop, root: Path, no_files: Sequence[bytes]
) -> tuple[bool, list[ChangedFile]]:
    """Put files that git does not know into our index, as empty ones; false if not all of them.

    `git add` would do it too, and ask the submodules how they are: that runs what they name. What is no file
    any more leaves the index. What is too large to be looked at is returned.
    """
    listed = await shop.git(["ls-files", "--others", "--exclude-standard", "-z", "--", "."], MAX_LIST)
    names = [name for name in listed.stdout.split(b"\0")[:-1] if not name.endswith(b"/")]
    huge = set(await anyio.to_thread.run_sync(_larger, root, names))
    entries = b"".join(b"100644 %s\t%s\0" % (shop.blank, name) for name in names if name not in huge)
    entries += b"".join(b"0 %s\t%s\0" % (shop.blank, name) for name in no_files)
    await anyio.to_thread.run_sync((shop.own / "new").write_bytes, entries)
    added = await shop.git(["update-index", "-z", "--index-info"], 0, stdin=shop.own / "new")
    told = [ChangedFile(name.decode(errors="replace"), None, None) for name in huge]
    return (listed.code, added.code) == (0, 0), told


def _larger(root: Path, names: Sequence[bytes]) -> list[bytes]:
    found = []
    for name in names:
        with suppress(OSError):
            if os.lstat(os.path.join(os.fsencode(root), name)).st_size > MAX_NEW_FILE:
                found.append(name)
    return found


def _make_git_dir(own: Path, found: Repository) -> None:
    """Make it a git directory that has no configuration but the object format."""
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
    except OSError:
        pass
    raise UnsupportedByBackend(detail=f"the repository's {path.name} is no file that can be read")


def _quoted(path: Path) -> str:
    """A path as git reads it in a list: in C's quotes."""
    return str(path).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _files(listed: bytes) -> list[ChangedFile]:
    """The files of `--numstat -z`; a last one that was cut off is left out."""
    files = []
    for line in listed.decode(errors="replace").split("\0")[:-1]:
        added, deleted, path = line.split("\t", 2)
        counts = (int(added), int(deleted)) if added != "-" else (None, None)
        files.append(ChangedFile(path, *counts))
    return files
