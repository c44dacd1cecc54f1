"""Where a tmux server of ours is: in a folder, as one running kernel has it.

Neither the host's name nor the folder's path says that: a container that is made again has another name, and
two containers have different folders at the same path. So the folder has a number of its own, made once.
Processes with that folder on that kernel reach the same server by its socket, whatever container they are in:
it answers, or it is gone. On another kernel the same folder is a place of its own, with a socket of its own.
"""

import errno
import os
import re
import secrets
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_BOOT = Path("/proc/sys/kernel/random/boot_id")
"""Another number each time that the kernel starts, the same in all of its containers."""
_NUMBER = re.compile(r"[0-9a-f]{16}")
_OF_ONE_KERNEL = frozenset(
    {
        *("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "jfs", "reiserfs"),
        *("overlay", "aufs", "tmpfs", "ramfs"),
    }
)
"""File systems that one kernel at a time has mounted; any other may be shared with other machines."""


@dataclass(frozen=True, slots=True)
class TmuxPlace:
    """A folder on a kernel."""

    name: str
    """The same for all who reach the same server, and for nobody else."""
    socket: str
    """The socket's name in the folder."""
    past: str | None
    """How the names of the folder's earlier places begin, where nothing runs any more; null if others may."""


def find_place(folder: Path, kernel: str | None = None) -> TmuxPlace:
    """The place of a folder, which is made if it is not there, on this kernel.

    Raises:
        OSError: it cannot be made, or somebody else has it.
    """
    make_private(folder)
    number = _number(folder / "id")
    kernel = (kernel or _kernel()).replace("-", "")
    return TmuxPlace(
        name=f"{number}:{kernel}",
        socket=f"socket-{kernel[:12]}",
        past=f"{number}:" if _has_boots() and is_of_one_kernel(file_system(folder)) else None,
    )


def is_of_one_kernel(kind: str) -> bool:
    """Whether all that used a file system of this kind on other kernels have stopped."""
    return kind in _OF_ONE_KERNEL


def file_system(folder: Path) -> str:
    """The kind of the file system that the folder is on; empty if that is not known."""
    path = folder.resolve()
    kinds = {
        Path(one.mountpoint): one.fstype  # of two at one place the last is seen
        for one in psutil.disk_partitions(all=True)
        if path.is_relative_to(one.mountpoint)
    }
    return kinds[max(kinds, key=lambda place: len(place.parts))] if kinds else ""


def make_private(folder: Path) -> None:
    """See that the folder is there and nobody else's.

    Raises:
        OSError: it cannot be made, or somebody else has it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError("the folder of tmux is not ours alone")


def _number(file: Path) -> str:
    """The folder's number; whoever comes first makes it."""
    if not file.exists():
        draft = file.with_name(f"id.{secrets.token_hex(4)}")
        draft.write_text(secrets.token_hex(8))
        try:
            with suppress(FileExistsError):
                os.link(draft, file)
        finally:
            draft.unlink()
    number = file.read_text()
    if _NUMBER.fullmatch(number) is None:
        raise OSError(errno.EINVAL, "the folder's number is none")
    return number


def _has_boots() -> bool:
    return _BOOT.exists()


def _kernel() -> str:
    return _BOOT.read_text().strip() if _has_boots() else socket.gethostname()
