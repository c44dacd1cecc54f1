"""Whether git could merge what two worktrees of one repository have made of a file.

Git is asked in a scratch repository that borrows the objects of both, so that nothing of theirs is changed,
and nothing that stands in their configuration (filters, drivers, hooks, remotes) is run.
"""

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from app.domain.errors import PathNotAllowed, UnsupportedByBackend
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


class _CannotTell(Exception):
    """There is no git here, no repository, no common history, or it is all too large."""


async def conflicting(
    root: str, other_root: str, paths: Sequence[str], is_allowed: IsAllowed, *, within_s: float = MERGE_S
) -> frozenset[str] | None:
    """Which of `paths` conflict if the two worktrees are merged, with those files as they now are.

    Null if git cannot tell within `within_s` seconds, or would have to read what it may not.
    """
    try:
        with anyio.fail_after(within_s):
            return await _ask((root, other_root), paths, is_allowed, time.monotonic() + within_s)
    except (_CannotTell, PathNotAllowed, UnsupportedByBackend, OSError, TimeoutError, ValueError) as error:
        log.info("merge_not_tried", reason=type(error).__name__)
        return None


async def _ask(
    roots: Sequence[str], paths: Sequence[str], is_allowed: IsAllowed, until: float
) -> frozenset[str]:
    found = [await find_repository(root, is_allowed, until) for root in roots]
    changes = b""
    for number, repository in enumerate(found):
        if str(repository.root) != roots[number] or repository.head is None:
            raise _CannotTell
        changes += await read_disk(partial(_changes, number, repository, paths))
    async with scratch_folder("merge") as scratch:
        return await _merge(scratch, found, changes, paths, until)


async def _merge(
    scratch: Path, found: Sequence[Repository], changes: bytes, paths: Sequence[str], until: float
) -> frozenset[str]:
    async def git(*words: str, stdin: Path | None = None) -> tuple[int | None, bytes]:
        done = await run_git(words, git_dir=scratch, until=until, most=MAX_ANSWER, env=_WHO, stdin=stdin)
        return done.code, done.stdout

    made, _ = await git("init", "-q", "--bare", "--template=", f"--object-format={found[0].format}")
    if made != 0:
        raise _CannotTell
    stores = "\n".join(dict.fromkeys(str(repository.objects) for repository in found)) + "\n"
    await anyio.to_thread.run_sync((scratch / "objects/info/alternates").write_bytes, os.fsencode(stores))
    given = scratch / "changes"
    await anyio.to_thread.run_sync(given.write_bytes, changes)
    imported, _ = await git("fast-import", "--quiet", stdin=given)
    if imported != 0:
        raise _CannotTell
    status, answer = await git(
        *("merge-tree", "--write-tree", "--name-only", "-z", "--no-messages"),
        *("refs/heads/side-0", "refs/heads/side-1"),
    )
    if status not in (0, 1):  # no common history, a git before 2.38, or more conflicts than are read
        raise _CannotTell
    conflicts = answer.split(b"\x00")[1:] if status == 1 else []
    return frozenset(path for path in paths if path.encode() in conflicts)


def _changes(number: int, found: Repository, paths: Sequence[str]) -> bytes:
    """A commit on top of HEAD, for `git fast-import`: the files as the worktree now has them."""
    lines = [
        f"commit refs/heads/side-{number}\ncommitter alameda <alameda@localhost> 0 +0000\n".encode(),
        f"data 3\nnow\nfrom {found.head}\n".encode(),
    ]
    room = MAX_BYTES
    for path in paths:
        quoted = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").encode()
        content, mode = _content(found.root, path, room)
        if content is None:
            lines.append(b'D "%s"\n' % quoted)
        else:
            room -= len(content)
            lines.append(b'M %s inline "%s"\ndata %d\n%s\n' % (mode, quoted, len(content), content))
    return b"".join([*lines, b"\n"])


def _content(root: Path, path: str, room: int) -> tuple[bytes | None, bytes]:
    """The file's content and git's word for its mode; null if it is gone."""
    try:
        found = read_below(root, path, room)
    except (FileNotFoundError, NotADirectoryError):
        return None, b""
    if found is None:
        raise _CannotTell
    content, mode = found
    return content, b"100755" if mode & 0o100 else b"100644"
