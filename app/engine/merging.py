"""Whether git could merge what two worktrees of one repository have made of a file.

Git is asked in a scratch repository that borrows the objects of both, so that nothing of theirs is changed,
and nothing that stands in their configuration (filters, drivers, hooks, remotes) is run.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from app.domain.errors import PathNotAllowed, UnsupportedByBackend
from app.engine.attributes import CannotTell, set_apart
from app.engine.disk import read_disk
from app.engine.files import read_below
from app.engine.git import run_git
from app.engine.repositories import IsAllowed, Repository, find_repository
from app.scratch import scratch_folder

log = structlog.get_logger(__name__)

MERGE_S = 3.0
"""Seconds that the answer may take; the agent's next events wait for it."""
MAX_BYTES = 16 * 1024 * 1024
"""Bytes of one worktree's files that git is asked about at once."""
MAX_ANSWER = 1024 * 1024
"""Bytes of the names of files that conflict."""
_WHO = {
    "GIT_AUTHOR_NAME": "alameda",
    "GIT_AUTHOR_EMAIL": "alameda@localhost",
    "GIT_COMMITTER_NAME": "alameda",
    "GIT_COMMITTER_EMAIL": "alameda@localhost",
}


class Unrelated(Exception):
    """The two are repositories without any common history: nobody will merge them."""


@dataclass(frozen=True, slots=True)
class _Side:
    """One worktree's files as they now are."""

    changes: bytes
    """A commit of them on top of HEAD, for `git fast-import`."""
    gone: frozenset[str]
    """Those that are not there."""
    with_cr: frozenset[str]
    """Those that have a carriage return."""


async def conflicting(
    root: str, other_root: str, paths: Sequence[str], is_allowed: IsAllowed, *, within_s: float = MERGE_S
) -> dict[str, bool | None]:
    """Whether each of `paths` conflicts if the two worktrees are merged, with those files as they now are.

    Null for what git cannot tell: within `within_s` seconds, or without reading what it may not, or because
    the repository merges that file by rules of its own, or has it under another name.

    Raises:
        Unrelated: they are two repositories that have nothing in common.
    """
    try:
        with anyio.fail_after(within_s):
            return await _ask((root, other_root), paths, is_allowed, time.monotonic() + within_s)
    except (CannotTell, PathNotAllowed, UnsupportedByBackend, OSError, TimeoutError, ValueError) as error:
        log.info("merge_not_tried", reason=type(error).__name__)
        return dict.fromkeys(paths)


async def _ask(
    roots: Sequence[str], paths: Sequence[str], is_allowed: IsAllowed, until: float
) -> dict[str, bool | None]:
    found = [await find_repository(root, is_allowed, until) for root in roots]
    sides: list[_Side] = []
    for number, repository in enumerate(found):
        if str(repository.root) != roots[number] or repository.head is None:
            raise CannotTell
        sides.append(await read_disk(partial(_side, number, repository, paths)))
    async with scratch_folder("merge") as scratch:
        told = await _merge(scratch, found, sides, paths, until)
        for number, (repository, side) in enumerate(zip(found, sides, strict=True)):
            tree = scratch / f"tree-{number}"
            told |= dict.fromkeys(
                await set_apart(
                    repository, paths, with_cr=side.with_cr, git_dir=scratch, tree=tree, until=until
                )
            )
        return told


async def _merge(
    scratch: Path, found: Sequence[Repository], sides: Sequence[_Side], paths: Sequence[str], until: float
) -> dict[str, bool | None]:
    async def git(*words: str, stdin: Path | None = None) -> tuple[int | None, bytes]:
        done = await run_git(words, git_dir=scratch, until=until, most=MAX_ANSWER, env=_WHO, stdin=stdin)
        return done.code, done.stdout

    made, _ = await git("init", "-q", "--bare", "--template=", f"--object-format={found[0].format}")
    if made != 0:
        raise CannotTell
    stores = "\n".join(dict.fromkeys(str(repository.objects) for repository in found)) + "\n"
    await anyio.to_thread.run_sync((scratch / "objects/info/alternates").write_bytes, os.fsencode(stores))
    given = scratch / "changes"
    await anyio.to_thread.run_sync(given.write_bytes, b"".join(side.changes for side in sides))
    imported, _ = await git("fast-import", "--quiet", stdin=given)
    if imported != 0:
        raise CannotTell
    heads = ("refs/heads/side-0", "refs/heads/side-1")
    status, answer = await git("merge-tree", "--write-tree", "--name-only", "-z", "--no-messages", *heads)
    if status not in (0, 1):  # no common history, a git before 2.38, or more conflicts than are read
        if await git("merge-base", *heads) == (1, b""):
            raise Unrelated
        raise CannotTell
    conflicts = set(answer.split(b"\x00")[1:-1]) if status == 1 else set()
    told: dict[str, bool | None] = {path: path.encode() in conflicts for path in paths}
    if conflicts - {path.encode() for path in paths}:
        # What one side has no more it may have under another name, and a conflict is told of that one.
        gone = sides[0].gone | sides[1].gone
        told |= {path: None for path in gone if not told[path]}
    return told


def _side(number: int, found: Repository, paths: Sequence[str]) -> _Side:
    lines = [
        f"commit refs/heads/side-{number}\ncommitter alameda <alameda@localhost> 0 +0000\n".encode(),
        f"data 3\nnow\nfrom {found.head}\n".encode(),
    ]
    room = MAX_BYTES
    gone, with_cr = set(), set()
    for path in paths:
        quoted = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").encode()
        content, mode = _content(found.root, path, room)
        if content is None:
            gone.add(path)
            lines.append(b'D "%s"\n' % quoted)
        else:
            room -= len(content)
            if b"\r" in content:
                with_cr.add(path)
            lines.append(b'M %s inline "%s"\ndata %d\n%s\n' % (mode, quoted, len(content), content))
    return _Side(b"".join([*lines, b"\n"]), frozenset(gone), frozenset(with_cr))


def _content(root: Path, path: str, room: int) -> tuple[bytes | None, bytes]:
    """The file's content and git's word for its mode; null if it is gone."""
    try:
        found = read_below(root, path, room)
    except (FileNotFoundError, NotADirectoryError):
        return None, b""
    if found is None:
        raise CannotTell
    content, mode = found
    return content, b"100755" if mode & 0o100 else b"100644"
