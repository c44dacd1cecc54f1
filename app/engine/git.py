"""Git, run on what an agent may have laid as a trap: nobody's configuration, no helper, and bounds."""

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from app.domain.errors import UnsupportedByBackend
from app.process import Finished, run

MEMORY_KIB = 1024 * 1024
"""KiB of address space that a run of git has: what a small object unpacks to is not bounded by its size."""
FILE_BLOCKS = 512 * 1024
"""Blocks of 512 bytes that a file which git writes may have."""

_LIMITED = (
    f"{{ ulimit -c 0; ulimit -v {MEMORY_KIB}; ulimit -f {FILE_BLOCKS}; }} 2>/dev/null; "
    'cd -- "$1" 2>/dev/null || exit 128; shift; exec "$@" 2>/dev/null'
)
"""A script of ours around the directory and the command, which come as its arguments.

A limit that is unknown is left out. The directory is entered here: one that is gone is git's failure then,
and one on a disk that hangs holds up nothing of ours.
"""

_SETTINGS = {
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "core.attributesFile": os.devnull,
    "core.excludesFile": os.devnull,
    "core.bigFileThreshold": "16m",  # what is larger is told as a binary file, without reading it
    "core.packedGitWindowSize": "16m",
    "core.packedGitLimit": "256m",
    "core.deltaBaseCacheLimit": "32m",
    "core.preloadIndex": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "protocol.allow": "never",
}


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for number, (key, value) in enumerate(_SETTINGS.items()):
        settings |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": os.devnull,
        "LC_ALL": "C",
        "MALLOC_ARENA_MAX": "1",  # each arena reserves address space
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_COUNT": str(len(_SETTINGS)),
        **settings,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_LITERAL_PATHSPECS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        **more,
    }


async def run_git(
    words: Sequence[str],
    *,
    git_dir: Path,
    until: float,
    most: int,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: Path | None = None,
) -> Finished:
    """A run of git, cut off at its bounds: `until`, in monotonic time, and `most` bytes of output.

    `git_dir` is a directory of ours, never the agent's: what a repository configures is run. A `cwd` that is
    not there any more is status 128, as git's own failures are.

    Raises:
        UnsupportedByBackend: there is no git here.
        OSError: it could not be started.
    """
    git = shutil.which("git")
    if git is None:
        raise UnsupportedByBackend(detail="git is not installed on this machine")
    return await run(
        ["/bin/sh", "-c", _LIMITED, "sh", str(cwd or git_dir), git, "--no-pager", *words],
        env=_environment({"GIT_DIR": str(git_dir), **(env or {})}),
        deadline=max(0.0, until - time.monotonic()),
        most=max(most, 1),
        cwd=str(git_dir),
        stdin=stdin,
        cut=True,
    )
