"""What an index says need not be looked at is looked at: the diff is how a person sees what an agent did."""

import os
import struct
from collections.abc import Callable
from hashlib import sha1
from pathlib import Path

import pytest

from app.engine import indexes
from tests.engine.test_diffs import diff, git, listed, repository

pytestmark = pytest.mark.anyio


def assumed(root: Path) -> None:
    git(root, "update-index", "--assume-unchanged", "a", "gone")
    (root / "a").write_text("evil\n")
    (root / "gone").unlink()


def skipped(root: Path) -> None:
    git(root, "update-index", "--skip-worktree", "a", "gone")
    (root / "a").write_text("evil\n")
    (root / "gone").unlink()


def crafted(root: Path) -> None:
    """The index holds how the changed file looks, with the old one's object."""
    (root / "gone").unlink()
    git(root, "add", "gone")
    (root / "a").write_text("evil\n")
    os.utime(root / "a", (1, 1))
    found = (root / "a").stat()
    index = root / ".git" / "index"
    content = bytearray(index.read_bytes()[:-20])
    content[12:52] = struct.pack(
        ">10I",
        *divmod_ns(found.st_ctime_ns),
        *divmod_ns(found.st_mtime_ns),
        *(found.st_dev & 0xFFFFFFFF, found.st_ino & 0xFFFFFFFF, found.st_mode),
        *(found.st_uid, found.st_gid, found.st_size),
    )
    index.write_bytes(bytes(content) + sha1(content, usedforsecurity=False).digest())
    assert " a" not in git(root, "status", "--porcelain").split("\n"), "git itself is taken in"


def divmod_ns(ns: int) -> tuple[int, int]:
    return divmod(ns, 10**9)


@pytest.mark.parametrize("hide", [assumed, skipped, crafted])
async def test_t23_what_an_index_hides_is_told(tmp_path: Path, hide: Callable[[Path], None]) -> None:
    root = repository(tmp_path / "r", a="good\n", gone="x\n", same="same\n")
    hide(root)
    (root / "staged").write_text("new\n")
    git(root, "add", "staged")
    found = await diff(root)
    assert listed(found) == {"a": (1, 1), "gone": (0, 1), "staged": (1, 0)}
    assert not found.truncated


@pytest.mark.parametrize("hide", [assumed, skipped])
async def test_t23_also_where_there_are_too_many_files_to_read_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hide: Callable[[Path], None]
) -> None:
    """Then how files looked when the index was written is believed, no flag is, and the answer says so."""
    monkeypatch.setattr(indexes, "READ_SHARE", 0.0)
    root = repository(tmp_path / "r", a="good\n", gone="x\n", same="same\n")
    hide(root)
    found = await diff(root)
    assert listed(found) == {"a": (1, 1), "gone": (0, 1)}
    assert found.truncated


async def test_what_a_sparse_checkout_leaves_out_is_not_told_as_deleted(tmp_path: Path) -> None:
    """Nor can it be told from what was deleted, so the answer says that more may differ."""
    root = repository(tmp_path / "r", a="one\n")
    (root / "far").mkdir()
    (root / "far" / "b").write_text("two\n")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "second")
    git(root, "sparse-checkout", "set", "--cone", "near")
    assert not (root / "far").exists()
    (root / "a").write_text("changed\n")
    found = await diff(root)
    assert (listed(found), found.truncated) == ({"a": (1, 1)}, True)
    (root / "far").mkdir()
    (root / "far" / "b").write_text("changed\n")
    found = await diff(root)
    assert (listed(found), found.truncated) == ({"a": (1, 1), "far/b": (1, 1)}, False)


async def test_a_tree_of_many_files_is_read_within_the_time(tmp_path: Path) -> None:
    root = repository(tmp_path / "r", a="one\n")
    for number in range(5000):
        (root / f"f-{number}").write_text(f"{number}\n")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "many")
    (root / "f-7").write_text("changed\n")
    found = await diff(root)
    assert (listed(found), found.truncated) == ({"f-7": (1, 1)}, False)
