"""Files and repositories that an agent, or whoever made them, may have laid as a trap."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path


def read_regular(path: str | Path, most: int) -> tuple[bytes, int] | None:
    """A regular file's content and mode; null if it is none, or has more than `most` bytes.

    A symbolic link is not followed, and a pipe is not waited for.

    Raises:
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > most:
            return None
        return file.read(most), found.st_mode


def git_environment(more: Mapping[str, str]) -> dict[str, str]:
    """What git is run with: nobody's configuration, no question, no lock of the index."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": os.devnull,
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        **more,
    }
