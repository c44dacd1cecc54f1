"""Where a file that an agent wrote lies in its worktree: as the disk has it, or by the path's text alone."""

import os
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import PurePosixPath

import anyio

from app.backends.base import Place
from app.domain.collisions import Touched
from app.domain.events import Event
from app.domain.ids import TurnId
from app.domain.sessions import Session
from app.domain.text import is_storable
from app.domain.touches import Change, Touch, shifted, touches_of
from app.engine.disk import read_disk
from app.engine.files import read_regular
from app.store.touches import MAX_PATH

DISK_S = 2.0
"""Seconds that the disk has to answer; after that a path is taken by its text."""
MAX_SNIPPET_FILE = 1024 * 1024
"""Bytes of a file in which the place of an edit is looked for."""
MAX_EDITS = 100
"""Writes of one file in a batch whose lines are carried along; of more nobody tells."""


async def find_touched(
    session: Session, place: Place, events: Iterable[tuple[TurnId | None, Event]]
) -> list[Touched]:
    """The files that `events` say were written, each once; a session without a project takes no part.

    What lies outside the session's worktree, or has a path too long to be kept, takes no part either.
    """
    if session.project_id is None:
        return []
    told = [(call, turn, touch) for call, (turn, event) in enumerate(events) for touch in touches_of(event)]
    if not told:
        return []
    touches = [touch for _, _, touch in told]
    found: Sequence[_Found | None] | None = None
    if place.filesystem == "shared":
        with anyio.move_on_after(DISK_S):
            found = await read_disk(partial(_on_disk, session.cwd, touches))
    if found is None:
        found = [_by_text(session.cwd, session.cwd, touch) for touch in touches]
    remote = None if place.filesystem == "shared" else session.backend
    touched: dict[str, Touched] = {}
    edits: defaultdict[str, dict[int, tuple[Change, ...] | None]] = defaultdict(dict)
    for (call, turn, touch), at in zip(told, found, strict=True):
        if at is None or not _can_be_kept(at.path):
            continue
        if edits[at.path].get(call) is None:  # a call may name a file twice, and tell of it once
            edits[at.path][call] = at.changes
        made = tuple(edits[at.path].values())
        touched[at.path] = Touched(
            path=at.path,
            root=at.root,
            remote=remote,
            kind=touch.kind,
            turn_id=turn,
            edits=made if len(made) <= MAX_EDITS else (None,),
        )
    return list(touched.values())


class _Found:
    """Where a touch lies."""

    __slots__ = ("changes", "path", "root")

    def __init__(self, root: str, path: str, changes: tuple[Change, ...] | None) -> None:
        self.root = root
        self.path = path
        self.changes = changes


def _can_be_kept(path: str) -> bool:
    return is_storable(path) and len(path.encode()) <= MAX_PATH


def _by_text(root: str, cwd: str, touch: Touch) -> _Found | None:
    root = _plain(root)
    path = PurePosixPath(_plain(posixpath.join(_plain(cwd), touch.path)))
    if not path.is_relative_to(root) or str(path) == root:
        return None
    return _Found(root, str(path.relative_to(root)), touch.changes)


def _plain(path: str) -> str:
    """An absolute path in one spelling of many; two slashes at its beginning are one, as everywhere else."""
    return unicodedata.normalize("NFC", "/" + posixpath.normpath(path).lstrip("/"))


def _on_disk(cwd: str, touches: Sequence[Touch]) -> list[_Found | None]:
    root = _spelled(worktree_root(cwd))
    return [_one_on_disk(cwd, root, touch) for touch in touches]


def _one_on_disk(cwd: str, root: str, touch: Touch) -> _Found | None:
    try:
        path = os.path.join(cwd, touch.path)
        parent, name = os.path.split(os.path.normpath(path) if touch.path.endswith("/") else path)
        if touch.kind in ("delete", "move") or name in ("", ".", ".."):  # the link itself is what goes
            where = os.path.join(os.path.realpath(parent), name)
        else:  # what is written through a link is its target
            where = os.path.realpath(path)
        where = _spelled(os.path.normpath(where))
        if where == root or not where.startswith(root.rstrip("/") + "/"):
            return None
    except (OSError, ValueError):  # a loop of links, a name too long, a NUL
        return _by_text(root, cwd, touch)
    root = _repository(where, root)
    changes = touch.changes
    if changes is None and touch.snippet:
        changes = _changes_at(where, touch.snippet, touch.within)
    return _Found(root, os.path.relpath(where, root), changes)


def _repository(path: str, root: str) -> str:
    """The root of the repository within the worktree at `root` that the file lies in; mostly that root."""
    directory = os.path.dirname(path)
    while directory != root:
        if os.path.lexists(os.path.join(directory, ".git")):
            return directory
        directory = os.path.dirname(directory)
    return root


def worktree_root(cwd: str) -> str:
    """The root of the git worktree that `cwd` lies in; without one `cwd` itself. Links are resolved."""
    start = directory = os.path.realpath(cwd)
    while True:
        if os.path.lexists(os.path.join(directory, ".git")):
            return directory
        above = os.path.dirname(directory)
        if above == directory:
            return start
        directory = above


def _spelled(path: str) -> str:
    """The path as the directories spell it, where the file system takes upper and lower case for the same."""
    found = "/"
    for name in path.split("/")[1:]:
        here = os.path.join(found, name)
        if name.swapcase() != name and _is_same(here, os.path.join(found, name.swapcase())):
            name = spelling(name, _names(found))
        found = os.path.join(found, name)
    return found


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:  # it may be passed through, and not be listed
        return []


def _is_same(one: str, other: str) -> bool:
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except OSError:
        return False


def spelling(name: str, names: Sequence[str]) -> str:
    """How a directory that lists `names` spells `name`."""
    if name in names:
        return name
    wanted = _folded(name)
    return next((each for each in names if _folded(each) == wanted), name)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _changes_at(path: str, snippet: str, within: Sequence[Change]) -> tuple[Change, ...] | None:
    """What changed where the file has `snippet` now; null if it is not there exactly once."""
    try:
        found = read_regular(path, MAX_SNIPPET_FILE)
    except (OSError, ValueError):  # it is gone again, or not ours to read
        found = None
    if found is None:
        return None
    content, _ = found
    wanted = snippet.encode(errors="replace")
    at = content.find(wanted)
    if at < 0 or content.find(wanted, at + 1) >= 0:
        return None
    return shifted(within, content.count(b"\n", 0, at) + 1)
