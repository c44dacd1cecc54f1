"""What has changed in a session's working tree, as git tells it without running anything of the repository's.

An agent, or whoever made the repository, may have put programs into its configuration: filters, external
diffs, a file system monitor, hooks, commands for a remote. So git works in a directory of ours with a
configuration of ours, on the repository's objects, a copy of its index, and its working tree. With the
repository's own configuration it is only asked where things are and what HEAD names; that reads no object.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from app.backends.base import Place
from app.backends.registry import Registry
from app.domain.errors import PathNotAllowed, RateLimited, UnsupportedByBackend
from app.domain.ids import Owner, SessionId
from app.engine.files import git_environment, read_regular
from app.engine.paths import check_requested, lies_below
from app.process import Finished, run
from app.scratch import Scratch
from app.store import sessions
from app.store.database import Database

MAX_DIFF = 1024 * 1024
"""Bytes of a diff; the rest is cut off."""
MAX_LIST = 1024 * 1024
"""Bytes of the list of changed files."""
MAX_INDEX = 256 * 1024 * 1024
"""Bytes of an index that is copied."""
GIT_S = 10.0
"""Seconds that all of a diff may take."""
AT_ONCE = 4
"""Diffs that are made at the same time."""

EMPTY_TREE = {
    "sha1": "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
    "sha256": "6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321",
}
"""What a repository without a commit is compared with, by the object format."""
_ENVIRONMENT = {
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_LITERAL_PATHSPECS": "1",
}
FATAL = 128
"""The status with which git gives up."""
_DIFF = ("diff", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames", "--ignore-submodules=dirty")


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


@dataclass(frozen=True, slots=True)
class _Repository:
    root: Path
    objects: Path
    index: Path
    format: str
    head: str | None


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
    until = anyio.current_time() + GIT_S * 0.9
    found = await _repository(cwd, place, until)
    base = found.head or EMPTY_TREE[found.format]
    scratch = await anyio.to_thread.run_sync(Scratch, "diff")
    own = scratch.path
    try:
        await anyio.to_thread.run_sync(_make_git_dir, own, found)
        env = {
            "GIT_DIR": str(own),
            "GIT_WORK_TREE": str(found.root),
            "GIT_OBJECT_DIRECTORY": str(own / "objects"),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": f'"{_quoted(found.objects)}"',
        }
        whole = await _know_new_files(found, base, own, env, until)
        listed = await _git([*_DIFF, "--numstat", "-z", base, "--", "."], found.root, env, until, MAX_LIST)
        shown = await _git([*_DIFF, "--patch", base, "--", "."], found.root, env, until, MAX_DIFF)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(scratch.remove)
    if listed.code not in (0, None) or shown.code not in (0, None):
        raise UnsupportedByBackend(detail="git cannot compare this working tree")
    return WorkingTreeDiff(
        root=str(found.root),
        base=found.head,
        files=_files(listed.stdout),
        diff=shown.stdout.decode(errors="replace"),
        truncated=not whole or None in (listed.code, shown.code),
    )


async def _know_new_files(
    found: _Repository, base: str, own: Path, env: dict[str, str], until: float
) -> bool:
    """Put files that git does not know into our index, as empty ones; false if not all of them.

    `git add` would do it too, and ask the submodules how they are: that runs what they name.
    """
    others = ["ls-files", "--others", "--exclude-standard", "-z", "--", "."]
    listed = await _git(others, found.root, env, until, MAX_LIST)
    if listed.code == FATAL:  # an index in parts, or a broken one: without it every file is read
        await anyio.to_thread.run_sync(partial((own / "index").unlink, missing_ok=True))
        await _git(["read-tree", base], found.root, env, until, 0)
        listed = await _git(others, found.root, env, until, MAX_LIST)
    names = [name for name in listed.stdout.split(b"\0")[:-1] if not name.endswith(b"/")]
    blank = b"0" * 39 + b"1" if found.format == "sha1" else b"0" * 63 + b"1"
    entries = b"".join(b"100644 " + blank + b"\t" + name + b"\0" for name in names)
    await anyio.to_thread.run_sync((own / "new").write_bytes, entries)
    words = ["update-index", "-z", "--index-info"]
    added = await _git(words, found.root, env, until, 0, stdin=own / "new")
    return (listed.code, added.code) == (0, 0)


async def _repository(cwd: str, place: Place, until: float) -> _Repository:
    """Where the repository keeps its things; this asks git, and runs nothing that its configuration names."""
    asked = ["--show-toplevel", "--show-object-format", "--git-dir", "--git-common-dir"]
    asked += ["--git-path", "objects", "--git-path", "index"]
    words = ["-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}"]
    told = await _git([*words, "rev-parse", "--path-format=absolute", *asked], cwd, {}, until, 65536)
    lines = told.stdout.decode(errors="surrogateescape").splitlines()
    if told.code != 0 or len(lines) != 6:
        raise UnsupportedByBackend(detail="the session's directory is in no git working tree")
    head = await _git([*words, "rev-parse", "--verify", "--quiet", "HEAD"], cwd, {}, until, 1000)
    root, form, *parts = lines
    places = [Path(root), *map(Path, parts)]
    await anyio.to_thread.run_sync(partial(_check_places, places, Path(parts[2]), place))
    commit = head.stdout.decode().strip() if head.code == 0 else None
    return _Repository(Path(root), Path(parts[2]), Path(parts[3]), form, commit)


def _check_places(places: Sequence[Path], objects: Path, place: Place) -> None:
    """Refuse a repository that borrows from outside the roots: it could show what the caller may not see."""
    alternates = objects / "info" / "alternates"
    borrowed = (
        _read(alternates, 65536).decode(errors="surrogateescape").splitlines()
        if _is_there(alternates)
        else []
    )
    stores = [objects, *(objects / line for line in borrowed if line and not line.startswith("#"))]
    # Git unquotes a quoted line, follows the alternates of alternates, and whatever a symbolic link leads to.
    strays = (
        any(line.startswith('"') for line in borrowed)
        or any(_is_there(store / "info" / "alternates") for store in stores[1:])
        or any(not lies_below(path, place) for path in [*places, *stores])
        or any(_has_links(store) for store in stores)
    )
    if strays:
        raise PathNotAllowed(detail="the repository lies outside the allowed roots, in part at least")


def _has_links(store: Path) -> bool:
    """Whether any file or folder of an object store is a symbolic link; git makes none."""
    folders = [store]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
        except OSError:  # it is not there, or not ours to read: git will say so
            continue
    return False


def _make_git_dir(own: Path, found: _Repository) -> None:
    """Make it a git directory that has no configuration but the object format."""
    for name in ("objects", "refs"):
        (own / name).mkdir()
    (own / "HEAD").write_text("ref: refs/heads/none\n")
    version = 0 if found.format == "sha1" else 1
    extension = "" if found.format == "sha1" else f"[extensions]\n\tobjectformat = {found.format}\n"
    config = f"[core]\n\trepositoryformatversion = {version}\n\tbare = false\n{extension}"
    (own / "config").write_text(config)
    if _is_there(found.index):
        (own / "index").write_bytes(_read(found.index, MAX_INDEX))


def _is_there(path: Path) -> bool:
    return os.path.lexists(path)


def _read(path: Path, most: int) -> bytes:
    """A regular file's content; never waits for one that is a pipe."""
    try:
        found = read_regular(path, most)
    except OSError:
        raise UnsupportedByBackend(detail=f"the repository's {path.name} cannot be read") from None
    if found is None:
        raise UnsupportedByBackend(detail=f"the repository's {path.name} is no file of a usual size")
    return found[0]


def _quoted(path: Path) -> str:
    """A path as git reads it in a list: in C's quotes."""
    return str(path).replace("\\", "\\\\").replace('"', '\\"')


async def _git(
    words: Sequence[str],
    cwd: str | Path,
    env: dict[str, str],
    until: float,
    most: int,
    *,
    stdin: Path | None = None,
) -> Finished:
    """A run of git, cut off at its bounds."""
    seconds = max(0.0, until - anyio.current_time())
    command = ["git", "--no-pager", *words]
    try:
        return await run(
            command,
            env=git_environment({**_ENVIRONMENT, **env}),
            deadline=seconds,
            most=max(most, 1),
            cwd=str(cwd),
            stdin=stdin,
            cut=True,
        )
    except OSError:
        raise UnsupportedByBackend(detail="git is not installed on this machine") from None


def _files(listed: bytes) -> list[ChangedFile]:
    """The files of `--numstat -z`; a last one that was cut off is left out."""
    files = []
    for line in listed.decode(errors="replace").split("\0")[:-1]:
        added, deleted, path = line.split("\t", 2)
        counts = (int(added), int(deleted)) if added != "-" else (None, None)
        files.append(ChangedFile(path, *counts))
    return files
