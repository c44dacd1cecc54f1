"""Files at which git waits for ever: pipes with the names of those that it reads in every folder."""

import os
import stat
import time
from contextlib import suppress
from pathlib import Path

NAMES = frozenset({".gitignore", ".gitattributes", ".gitmodules"})
"""Git reads these wherever they are in a working tree."""


def find_trap(root: Path, until: float) -> str | None:
    """A pipe, a socket or a device that git would read in this working tree, relative to its root.

    Null if there is none, or none was found until then (monotonic time).
    """
    folders = [os.fspath(root)]
    while folders and time.monotonic() < until:
        with suppress(OSError), os.scandir(folders.pop()) as entries:  # what is not ours to read, git cannot
            for number, entry in enumerate(entries):
                if number % 1000 == 999 and time.monotonic() > until:
                    return None
                if entry.name.lower() in NAMES and _is_trap(entry):  # a file system may not tell cases apart
                    return os.fsencode(os.path.relpath(entry.path, root)).decode(errors="replace")
                if entry.name != ".git" and entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
    return None


def _is_trap(entry: "os.DirEntry[str]") -> bool:
    try:
        mode = entry.stat().st_mode
    except OSError:  # a link that leads nowhere
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
