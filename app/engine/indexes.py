"""What git is to compare: an index made anew from what the repository's names, and the files that are new.

An index also says what git need not look at: flags that a user or an agent set, and how each file looked when
it was last seen. Nothing of that is believed: git reads every file once.
"""

import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio.to_thread

from app.domain.errors import UnsupportedByBackend
from app.engine.disk import read_disk
from app.engine.files import read_regular
from app.engine.repositories import MAX_POINTER, IsAllowed
from app.engine.workshop import Workshop

MAX_INDEXED = 64 * 1024 * 1024
"""Bytes of the list of what is in an index."""
MAX_NEW = 1024 * 1024
"""Bytes of the list of new files."""
MAX_NEW_FILE = 64 * 1024 * 1024
"""Bytes of a new file at which git looks; a larger one is told as a binary one."""
READ_SHARE = 0.5
"""Of the time that is left: what reading every file may take."""


@dataclass(slots=True)
class _Vetted:
    """The entries of an index, and which of them need care."""

    entries: list[bytes] = field(default_factory=list)
    """As git takes them in again."""
    no_files: list[bytes] = field(default_factory=list)
    """Where the working tree has what is no file: a pipe, a device. Git would wait for it."""
    assumed: list[bytes] = field(default_factory=list)
    """What git is told to take for unchanged."""
    skipped: list[bytes] = field(default_factory=list)
    """What git is told not to look for."""
    absent: list[bytes] = field(default_factory=list)
    """Of those, what is not there."""
    may_ask_submodules: bool = True
    """Whether what git reads of its submodules may be read, of all of them."""


@dataclass(frozen=True, slots=True)
class Known:
    """What our index knows."""

    may_ask_submodules: bool
    huge: list[bytes]
    """New files that are too large to be looked at; they are not in it."""
    is_whole: bool
    """Whether everything that may differ is in it and was read."""


async def know_files(shop: Workshop, base: str, is_allowed: IsAllowed) -> Known:
    """Have our index say what git is to compare with `base`.

    Raises:
        UnsupportedByBackend: git cannot compare it, or there are too many files.
        OSError: there is no room for it.
    """
    vetted = await _vetted(shop, is_allowed)
    if vetted is None:  # an index in parts, a broken or a hostile one
        await anyio.to_thread.run_sync(partial((shop.own / "index").unlink, missing_ok=True))
        await shop.git(["read-tree", base], 0)
        vetted = await _vetted(shop, is_allowed)
    if vetted is None:
        raise await shop.refusal()
    was_read = await _read_every_file(shop, vetted)
    is_whole, huge = await _know_new_files(shop, vetted.no_files)
    # What a sparse checkout leaves out cannot be told from what was deleted.
    is_whole &= was_read and not (shop.sparse and vetted.absent)
    return Known(vetted.may_ask_submodules, huge, is_whole)


async def _vetted(shop: Workshop, is_allowed: IsAllowed) -> _Vetted | None:
    """The entries of our copy of the index; null if git cannot read it, or one leads out."""
    listed = await shop.git(["ls-files", "-v", "--stage", "-z"], MAX_INDEXED)
    if listed.code is None:
        raise UnsupportedByBackend(detail="the working tree has too many files")
    if listed.code != 0:
        return None
    return await read_disk(partial(_vet, os.fsencode(shop.root), listed.stdout, is_allowed, shop.until))


def _vet(root: bytes, listed: bytes, is_allowed: IsAllowed, until: float) -> _Vetted | None:
    """Look at every name of an index before git does; null if one leads out of the working tree."""
    found = _Vetted()
    for number, line in enumerate(listed.split(b"\0")[:-1]):
        tag, entry = line[:1], line[2:]
        name = entry.partition(b"\t")[2]
        if {part.lower() for part in name.split(b"/")} & {b"", b".", b"..", b".git"}:
            return None
        if number % 1000 == 999 and time.monotonic() > until:
            raise UnsupportedByBackend(detail="the working tree has too many files")
        found.entries.append(entry)
        if tag.islower():
            found.assumed.append(name)
        if tag in b"Ss":
            found.skipped.append(name)
        path = os.path.join(root, name)
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            if tag in b"Ss":
                found.absent.append(name)
            continue
        if entry.startswith(b"160000"):
            found.may_ask_submodules &= not os.path.lexists(path + b"/.git") or _may_be_asked(
                path, is_allowed
            )
        elif not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
            found.no_files.append(name)
    return found


def _may_be_asked(submodule: bytes, is_allowed: IsAllowed) -> bool:
    """Whether git, asked for a submodule's commit, reads nothing that may not be read."""
    try:
        here = os.fsdecode(os.path.join(submodule, b".git"))
        if not os.path.isdir(here):
            found = read_regular(here, MAX_POINTER)
            pointer = "" if found is None else os.fsdecode(found[0]).rstrip("\r\n")
            here = os.path.join(os.fsdecode(submodule), pointer.removeprefix("gitdir: "))
        places = [here, f"{here}/HEAD", f"{here}/refs", f"{here}/packed-refs", f"{here}/commondir"]
        return all(is_allowed(Path(each)) for each in places)
    except (OSError, RuntimeError, ValueError):
        return False


async def _read_every_file(shop: Workshop, vetted: _Vetted) -> bool:
    """Make our index anew, and have git read the files; false if there are too many of them.

    Then the repository's own index serves, without its flags: how the files looked is believed.
    """
    theirs, index = shop.own / "index.theirs", shop.own / "index"

    def put_away() -> None:
        with suppress(FileNotFoundError):
            index.rename(theirs)

    def put_back() -> None:
        (shop.own / "index.lock").unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            theirs.replace(index)

    await anyio.to_thread.run_sync(put_away)
    is_made = await shop.change(
        ["update-index", "-z", "--index-info"], b"".join(entry + b"\0" for entry in vetted.entries)
    )
    if is_made and shop.sparse:
        is_made = await _mark(shop, "--skip-worktree", vetted.absent)
    if is_made:
        left = shop.until - time.monotonic()
        words = ["update-index", "-q", "--unmerged", "--ignore-submodules", "--refresh"]
        done = await shop.git(words, 0, until=shop.until - left * (1 - READ_SHARE))
        if done.code in (0, 1):  # 1: files have changed
            return True
        if done.code is not None:
            raise await shop.refusal()
    await anyio.to_thread.run_sync(put_back)
    absent = set(vetted.absent) if shop.sparse else set()
    await _mark(shop, "--no-assume-unchanged", vetted.assumed)
    await _mark(shop, "--no-skip-worktree", [name for name in vetted.skipped if name not in absent])
    return False


async def _mark(shop: Workshop, flag: str, names: Sequence[bytes]) -> bool:
    """Set a flag of these entries in our index; false if that was cut off."""
    if not names:
        return True
    return await shop.change(
        ["update-index", flag, "-z", "--stdin"], b"".join(name + b"\0" for name in names)
    )


async def _know_new_files(shop: Workshop, no_files: Sequence[bytes]) -> tuple[bool, list[bytes]]:
    """Put files that git does not know into our index, as empty ones; false if not all of them.

    `git add` would do it too, and ask the submodules how they are: that runs what they name. What is no file
    any more leaves the index. What is too large to be looked at is returned.
    """
    listed = await shop.git(["ls-files", "--others", "--exclude-standard", "-z", "--", "."], MAX_NEW)
    names = [name for name in listed.stdout.split(b"\0")[:-1] if not name.endswith(b"/")]
    huge = await read_disk(partial(_larger, os.fsencode(shop.root), names))
    known = set(huge)
    entries = b"".join(b"100644 %s\t%s\0" % (shop.blank, name) for name in names if name not in known)
    entries += b"".join(b"0 %s\t%s\0" % (shop.blank, name) for name in no_files)
    is_known = await shop.change(["update-index", "-z", "--index-info"], entries)
    return listed.code == 0 and is_known, huge


def _larger(root: bytes, names: Sequence[bytes]) -> list[bytes]:
    found = []
    for name in names:
        with suppress(OSError):
            if os.lstat(os.path.join(root, name)).st_size > MAX_NEW_FILE:
                found.append(name)
    return found
