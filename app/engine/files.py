"""Files that an agent, or whoever made them, may have laid as a trap."""

import os
import stat
from pathlib import Path

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CHUNK = 1024 * 1024


def read_regular(path: str | Path, most: int) -> tuple[bytes, int] | None:
    """A regular file's content and mode; null if it is none, or has more than `most` bytes.

    A symbolic link is not followed, and a pipe is not waited for.

    Raises:
        OSError: it cannot be read.
    """
    return _read(os.open(path, _READ), most)


def read_below(root: str | Path, path: str, most: int) -> tuple[bytes, int] | None:
    """The same for a path relative to `root`, on the way to which no folder is a symbolic link either.

    Raises:
        OSError: it cannot be read.
        ValueError: the path leads out, or is none.
    """
    *folders, name = path.split("/")
    if any(part in ("", ".", "..") for part in (*folders, name)):
        raise ValueError("not a path below")
    here = os.open(root, _FOLDER)
    try:
        for folder in folders:
            below = os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = below
        descriptor = os.open(name, _READ, dir_fd=here)
    finally:
        os.close(here)
    return _read(descriptor, most)


def _read(descriptor: int, most: int) -> tuple[bytes, int] | None:
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > most:
            return None
        content = file.read(most + 1)  # it may have grown
        return (content, found.st_mode) if len(content) <= most else None


def copy_regular(path: Path, to: Path, most: int) -> bool:
    """Copy a regular file with its times; false if it is none, or has more than `most` bytes.

    Raises:
        OSError: it cannot be read, or not be written.
    """
    descriptor = os.open(path, _READ)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > most:
            return False
        with to.open("xb") as copy:
            while most >= 0 and (chunk := file.read(min(_CHUNK, most + 1))):
                copy.write(chunk)
                most -= len(chunk)
        os.utime(to, ns=(found.st_atime_ns, found.st_mtime_ns))  # git mistrusts what changed after its index
    return most >= 0
