"""Whether git could merge what two worktrees of one repository have made of a file.

Git is asked in a scratch repository that borrows the objects of both, so that nothing of theirs is changed,
and nothing that stands in their configuration (filters, drivers, hooks) is run.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from subprocess import DEVNULL

import anyio
import anyio.to_thread
import structlog

from app.engine.files import git_environment, read_regular
from app.scratch import Scratch

log = structlog.get_logger(__name__)

MERGE_S = 3.0
"""Seconds that the answer may take; the agent's next events wait for it."""
MAX_BYTES = 16 * 1024 * 1024
"""Bytes of one worktree's files that git is asked about at once."""
_ENVIRONMENT = {
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_AUTHOR_NAME": "alameda",
    "GIT_AUTHOR_EMAIL": "alameda@localhost",
    "GIT_COMMITTER_NAME": "alameda",
    "GIT_COMMITTER_EMAIL": "alameda@localhost",
}


class _CannotTell(Exception):
    """There is no git here, no repository, no common history, or it is all too large."""


async def conflicting(
    root: str, other_root: str, paths: Sequence[str], *, within_s: float = MERGE_S
) -> frozenset[str] | None:
    """Which of `paths` conflict if the two worktrees are merged, with those files as they now are.

    Null if git cannot tell within `within_s` seconds.
    """
    try:
        with anyio.fail_after(within_s):
            return await _ask(root, other_root, paths)
    except (_CannotTell, OSError, TimeoutError, ValueError) as error:
        log.info("merge_not_tried", reason=type(error).__name__)
        return None


async def _ask(root: str, other_root: str, paths: Sequence[str]) -> frozenset[str]:
    heads = [await _head(one) for one in (root, other_root)]
    objects = "\n".join(dict.fromkeys(objects for _, objects in heads)) + "\n"
    changes = b""
    for number, ((head, _), one) in enumerate(zip(heads, (root, other_root), strict=True)):
        changes += await anyio.to_thread.run_sync(_changes, number, head, one, paths, abandon_on_cancel=True)
    hashing = "sha256" if len(heads[0][0]) == 64 else "sha1"
    folder = await anyio.to_thread.run_sync(Scratch, "merge")
    scratch = folder.path
    try:
        await _git(scratch, "init", "-q", "--bare", "--template=", f"--object-format={hashing}")
        alternates = scratch / "objects" / "info" / "alternates"
        await anyio.to_thread.run_sync(alternates.write_bytes, os.fsencode(objects))
        await _git(scratch, "fast-import", "--quiet", given=changes)
        status, answer = await _run(
            scratch,
            *("merge-tree", "--write-tree", "--name-only", "-z", "--no-messages"),
            *("refs/heads/side-0", "refs/heads/side-1"),
        )
        if status not in (0, 1):  # no common history, or a git before 2.38
            raise _CannotTell
        conflicts = answer.split(b"\x00")[1:] if status == 1 else []
        return frozenset(path for path in paths if path.encode() in conflicts)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(folder.remove)


async def _head(root: str) -> tuple[str, str]:
    """What a worktree stands on, and where its repository keeps objects."""
    answer = await _git(
        Path(root),
        *("-c", "core.fsmonitor=false", "rev-parse", "--path-format=absolute"),
        *("--git-common-dir", "--verify", "HEAD^{commit}"),
    )
    directory, _, head = os.fsdecode(answer).rstrip("\n").rpartition("\n")
    if not directory.startswith("/") or "\n" in directory:
        raise _CannotTell
    return head, f"{directory}/objects"


def _changes(number: int, head: str, root: str, paths: Sequence[str]) -> bytes:
    """A commit on top of `head`, for `git fast-import`: the files as the worktree now has them."""
    lines = [
        f"commit refs/heads/side-{number}\ncommitter alameda <alameda@localhost> 0 +0000\n".encode(),
        f"data 3\nnow\nfrom {head}\n".encode(),
    ]
    room = MAX_BYTES
    for path in paths:
        quoted = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").encode()
        content, mode = _content(root, path, room)
        if content is None:
            lines.append(b'D "%s"\n' % quoted)
        else:
            room -= len(content)
            lines.append(b'M %s inline "%s"\ndata %d\n%s\n' % (mode, quoted, len(content), content))
    return b"".join([*lines, b"\n"])


def _content(root: str, path: str, room: int) -> tuple[bytes | None, bytes]:
    """The file's content and git's word for its mode; null if it is gone."""
    try:
        found = read_regular(f"{root}/{path}", room)
    except (FileNotFoundError, NotADirectoryError):
        return None, b""
    if found is None:
        raise _CannotTell
    content, mode = found
    return content, b"100755" if mode & 0o100 else b"100644"


async def _git(folder: Path, *arguments: str, given: bytes | None = None) -> bytes:
    status, answer = await _run(folder, *arguments, given=given)
    if status != 0:
        raise _CannotTell
    return answer


async def _run(folder: Path, *arguments: str, given: bytes | None = None) -> tuple[int, bytes]:
    """Git's exit status and output; it is killed if the wait for it ends."""
    done = await anyio.run_process(
        ["git", *arguments],
        input=given or None,
        stdin=None if given else DEVNULL,
        stderr=DEVNULL,
        check=False,
        cwd=folder,
        env=git_environment(_ENVIRONMENT),
    )
    return done.returncode, done.stdout
