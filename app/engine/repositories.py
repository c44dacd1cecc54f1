"""Where the git repository of a directory keeps its things, found without running git in it.

An agent, or whoever made the repository, may have put programs into its configuration, and links that lead
out of what the caller may see. So its files are read here, within bounds, and git only ever works in a
directory of ours, on the objects that this names. Whoever can write there can still change them between the
check and the use: an agent is not contained by this, but nothing that lies there is trusted.
"""

import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

import anyio.to_thread

from app.domain.errors import PathNotAllowed, UnsupportedByBackend
from app.engine.disk import read_disk
from app.engine.files import read_below, read_regular
from app.engine.git import run_git
from app.scratch import scratch_folder

MAX_POINTER = 8192
"""Bytes of a file that names a place: `.git`, `commondir`, a reference."""
MAX_CONFIG = 1024 * 1024
"""Bytes of a repository's configuration."""
MAX_ALTERNATES = 64 * 1024
"""Bytes of the list of places from which objects are borrowed."""
MAX_PACKED_REFS = 32 * 1024 * 1024
"""Bytes of `packed-refs`."""
MAX_SYMREFS = 5
"""References that name another reference, one after the other."""

_T = TypeVar("_T")

IsAllowed: TypeAlias = Callable[[Path], bool]
"""Whether a path, its links followed, is one that may be read."""

_OBJECT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_OWN_REFS = ("refs/bisect/", "refs/worktree/", "refs/rewritten/")
"""What each linked worktree has for itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A git working tree, and where its repository keeps its things; all of it may be read."""

    root: Path
    """The working tree's root."""
    git_dir: Path
    """What is the working tree's own: its index."""
    common: Path
    """What it shares with the repository's other worktrees."""
    format: str
    """How objects are named: `sha1` or `sha256`."""
    head: str | None
    """The object that HEAD names; null if there is no commit yet."""
    settings: Mapping[str, str]
    """Its configuration, the working tree's own over the shared one, without what they would include."""

    @property
    def sparse(self) -> bool:
        """Whether it is set up to check out a part of its files only."""
        return _is_set(self.settings, "core.sparsecheckout")

    @property
    def objects(self) -> Path:
        """Where the objects are."""
        return self.common / "objects"

    @property
    def index(self) -> Path:
        """The index, if there is one."""
        return self.git_dir / "index"


async def find_repository(cwd: str, is_allowed: IsAllowed, until: float) -> Repository:
    """The repository in whose working tree `cwd` lies.

    Raises:
        UnsupportedByBackend: there is none, it cannot be read, or not until then (monotonic time).
        PathNotAllowed: a part of it lies where nothing may be read.
    """

    def find() -> tuple[Path, Path, Path, bytes]:
        root, git_dir, common = _places(cwd)
        if not all(map(is_allowed, (root, git_dir, common))):
            raise PathNotAllowed(detail="the repository lies outside the allowed roots, in part at least")
        _check_objects(common / "objects", is_allowed, until)
        return root, git_dir, common, _read(common / "config", MAX_CONFIG, True)

    root, git_dir, common, config = await _reading(find)
    settings = await _parsed(config, until)
    if _is_set(settings, "extensions.worktreeconfig"):
        own = await _reading(partial(_read, git_dir / "config.worktree", MAX_CONFIG, True))
        settings |= await _parsed(own, until)
    if settings.get("extensions.refstorage", "files").lower() != "files":
        raise UnsupportedByBackend(detail="the repository keeps its references in a way that is not read")
    form = settings.get("extensions.objectformat", "sha1").lower()
    head = await _reading(partial(_head, git_dir, common))
    if form not in ("sha1", "sha256") or (head is not None and len(head) != (40 if form == "sha1" else 64)):
        raise UnsupportedByBackend(detail="the repository names its objects in a way that is not read")
    elsewhere = settings.get("core.worktree")  # a submodule's leads back to where it was found
    if elsewhere is not None and (git_dir / elsewhere).resolve() != root:
        raise PathNotAllowed(detail="the repository's working tree is another directory")
    return Repository(root=root, git_dir=git_dir, common=common, format=form, head=head, settings=settings)


def _is_set(settings: Mapping[str, str], name: str) -> bool:
    return settings.get(name, "false").lower() not in ("false", "no", "off", "0", "")


async def _reading(read: Callable[[], _T]) -> _T:
    """What `read` finds; a disk that does not answer is not waited for longer than the caller waits."""
    try:
        return await read_disk(read)
    except (OSError, RuntimeError):  # RuntimeError: a loop of links
        raise UnsupportedByBackend(detail="the repository's files cannot be read") from None


def _places(cwd: str) -> tuple[Path, Path, Path]:
    """The root of the working tree, its git directory, and the one that all worktrees share."""
    start = Path(os.path.realpath(cwd))
    for directory in (start, *start.parents):
        git_dir = _git_dir(directory)
        if git_dir is not None:
            pointer = git_dir / "commondir"
            common = git_dir
            if os.path.lexists(pointer):
                common = _resolved(git_dir / _text(_read(pointer, MAX_POINTER)))
            if all((common / name).is_dir() for name in ("objects", "refs")):
                return directory, git_dir, common
    raise UnsupportedByBackend(detail="the session's directory is in no git working tree")


def _git_dir(directory: Path) -> Path | None:
    here = directory / ".git"
    try:
        found = here.lstat()
    except PermissionError:
        raise UnsupportedByBackend(detail="the session's directory may not be read") from None
    except OSError:
        return None
    if stat.S_ISREG(found.st_mode):
        pointer = _text(_read(here, MAX_POINTER))
        if not pointer.startswith("gitdir: "):
            raise UnsupportedByBackend(detail="the repository's .git names no directory")
        here = directory / pointer.removeprefix("gitdir: ")
    here = _resolved(here)
    return here if os.path.lexists(here / "HEAD") else None


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a NUL
        raise UnsupportedByBackend(detail="the repository's files lead nowhere") from None


def _head(git_dir: Path, common: Path) -> str | None:
    name = "HEAD"
    for _ in range(MAX_SYMREFS):
        base = git_dir if name == "HEAD" or name.startswith(_OWN_REFS) else common
        try:
            found = read_below(base, name, MAX_POINTER)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None if name == "HEAD" else _packed(common, name)
        except (OSError, ValueError):
            found = None
        text = "" if found is None else _text(found[0]).strip()
        if _OBJECT.fullmatch(text):
            return text
        name = text.removeprefix("ref:").strip()
        if not (text.startswith("ref:") and name.startswith("refs/")):
            break
    raise UnsupportedByBackend(detail="the repository's HEAD cannot be read")


def _packed(common: Path, name: str) -> str | None:
    wanted = os.fsencode(name)
    for line in _read(common / "packed-refs", MAX_PACKED_REFS, True).split(b"\n"):
        value, _, ref = line.partition(b" ")
        if ref == wanted and _OBJECT.fullmatch(text := value.decode(errors="replace")):
            return text
    return None


async def _parsed(config: bytes, until: float) -> dict[str, str]:
    """A configuration's settings, the last of each name; what it would include is not."""
    async with scratch_folder("git") as scratch:
        file = scratch / "config"
        await anyio.to_thread.run_sync(file.write_bytes, config)
        words = ["config", "--file", "-", "--no-includes", "--null", "--list"]
        told = await run_git(words, git_dir=scratch, until=until, most=4 * MAX_CONFIG, stdin=file)
    if told.code != 0:
        raise UnsupportedByBackend(detail="the repository's config cannot be read")
    settings: dict[str, str] = {}
    for item in _text(told.stdout).split("\0")[:-1]:
        key, is_set, value = item.partition("\n")
        settings[key] = value if is_set else "true"
    return settings


def _check_objects(objects: Path, is_allowed: IsAllowed, until: float) -> None:
    """Refuse objects that are borrowed from where nothing may be read: they would show it."""
    borrowed = _text(_read(objects / "info" / "alternates", MAX_ALTERNATES, True)).split("\n")
    lines = [line for line in borrowed if line and not line.startswith("#")]
    stores = [objects, *(_resolved(objects / line) for line in lines)]
    # Git unquotes a quoted line, follows the alternates of alternates, and whatever a symbolic link leads to.
    if (
        any(line.startswith('"') for line in lines)
        or any(os.path.lexists(store / "info" / "alternates") for store in stores[1:])
        or not all(map(is_allowed, stores))
        or any(entry.is_symlink() for store in stores for entry in _entries(store, until))
    ):
        raise PathNotAllowed(detail="the repository lies outside the allowed roots, in part at least")


def _entries(store: Path, until: float) -> Iterator["os.DirEntry[str]"]:
    """Every file and folder of an object store, links not followed; git makes no link."""
    folders = [str(store)]
    while folders:
        _check_time(until)
        try:
            with os.scandir(folders.pop()) as entries:
                for number, entry in enumerate(entries):
                    if number % 1000 == 999:
                        _check_time(until)
                    yield entry
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except OSError:  # it is not there, or not ours to read: git will say so
            continue


def _check_time(until: float) -> None:
    if time.monotonic() > until:
        raise UnsupportedByBackend(detail="the repository is too large to be looked through")


def _text(content: bytes) -> str:
    return os.fsdecode(content).rstrip("\r\n")


def _read(path: Path, most: int, may_be_missing: bool = False) -> bytes:
    """A regular file's content; never waits for one that is a pipe."""
    try:
        found = read_regular(path, most)
    except FileNotFoundError:
        if may_be_missing:
            return b""
        found = None
    except (OSError, ValueError):
        found = None
    if found is None:
        raise UnsupportedByBackend(detail=f"the repository's {path.name} is no file that can be read")
    return found[0]
