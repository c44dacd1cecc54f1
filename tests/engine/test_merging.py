"""Git's word on whether two worktrees can be merged: real repositories, and what stands in a bad one."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from app.backends.base import Place
from app.engine import merging
from app.engine.paths import lies_below
from tests.engine.worktrees import git, two_worktrees, write


async def conflicting(
    one: Path, two: Path, paths: list[str], root: Path | None = None, within_s: float = 3.0
) -> frozenset[str] | None:
    """What conflicts, asked as the service asks it, which may read below `root`; null if it tells of none."""
    place = Place(filesystem="shared", default_cwd=one, roots=(root or one.parent,))
    may_read = partial(lies_below, place=place)
    told = await merging.conflicting(str(one), str(two), paths, may_read, within_s=within_s)
    assert list(told) == paths
    if set(told.values()) == {None}:
        return None
    return frozenset(path for path, conflicts in told.items() if conflicts)


async def test_git_is_asked_what_really_conflicts(tmp_path: Path) -> None:
    """Lines far apart merge, the same line does not; nothing of either worktree is changed by asking."""
    one, two = two_worktrees(tmp_path)
    write(one, 2, "mine\n")
    write(two, 18, "yours\n")
    before = [git(where, "status", "--porcelain=v2", "--branch") for where in (one, two)]
    objects = sorted(path for path in (one / ".git").rglob("*"))
    assert await conflicting(one, two, ["a.txt"]) == frozenset()
    write(two, 2, "yours\n")
    assert await conflicting(one, two, ["a.txt"]) == frozenset({"a.txt"})
    assert [git(where, "status", "--porcelain=v2", "--branch") for where in (one, two)] == before
    assert sorted(path for path in (one / ".git").rglob("*")) == objects


async def test_what_was_committed_counts_as_well(tmp_path: Path) -> None:
    one, two = two_worktrees(tmp_path)
    write(one, 2, "mine\n")
    git(one, "commit", "-q", "-a", "-m", "mine")
    write(two, 2, "yours\n")
    git(two, "commit", "-q", "-a", "-m", "yours")
    assert await conflicting(one, two, ["a.txt"]) == frozenset({"a.txt"})


async def test_a_deleted_a_new_and_an_equal_file(tmp_path: Path) -> None:
    one, two = two_worktrees(tmp_path, "gone.txt", "equal.txt")
    (one / "gone.txt").unlink()
    write(two, 3, "yours\n", "gone.txt")
    for where in (one, two):
        write(where, 3, "the same\n", "equal.txt")
        (where / "new.txt").write_text(f"{where.name}\n")
        (where / "empty.txt").write_text("")
    names = ["gone.txt", "new.txt", "equal.txt", "empty.txt"]
    assert await conflicting(one, two, names) == frozenset({"gone.txt", "new.txt"})


@pytest.mark.parametrize(
    "name", ['q"uote', "back\\slash", "caf\u00e9", "a b", "new\nline", "-dash", "dir/x,y"]
)
async def test_any_name_is_asked_about(tmp_path: Path, name: str) -> None:
    one, two = two_worktrees(tmp_path, name)
    write(one, 2, "mine\n", name)
    write(two, 2, "yours\n", name)
    assert await conflicting(one, two, [name]) == frozenset({name})


async def test_two_clones_of_one_repository_are_merged_too(tmp_path: Path) -> None:
    one, _ = two_worktrees(tmp_path)
    git(tmp_path, "clone", "-q", str(one), "clone")
    write(one, 2, "mine\n")
    write(tmp_path / "clone", 2, "yours\n")
    assert await conflicting(one, tmp_path / "clone", ["a.txt"]) == frozenset({"a.txt"})


def _no_repository(one: Path, two: Path) -> None:
    (two / ".git").unlink()


def _no_history(one: Path, two: Path) -> None:
    (two / ".git").unlink()
    git(two, "init", "-q")


def _other_history(one: Path, two: Path) -> None:
    _no_history(one, two)
    git(two, "add", ".")
    git(two, "commit", "-q", "-m", "another root")


def _a_link(one: Path, two: Path) -> None:
    (two / "a.txt").unlink()
    (two / "a.txt").symlink_to("/etc/passwd")


def _a_pipe(one: Path, two: Path) -> None:
    (two / "a.txt").unlink()
    os.mkfifo(two / "a.txt")


def _too_large(one: Path, two: Path) -> None:
    with (two / "a.txt").open("wb") as file:
        file.truncate(merging.MAX_BYTES + 1)


def _gone(one: Path, two: Path) -> None:
    two.rename(two.parent / "away")


@pytest.mark.parametrize("spoil", [_no_repository, _no_history, _a_link, _a_pipe, _too_large, _gone])
async def test_what_git_cannot_tell_is_null(tmp_path: Path, spoil: Callable[[Path, Path], None]) -> None:
    one, two = two_worktrees(tmp_path)
    spoil(one, two)
    assert await conflicting(one, two, ["a.txt"]) is None


async def test_repositories_without_a_common_history_are_no_worktrees_of_one(tmp_path: Path) -> None:
    one, two = two_worktrees(tmp_path)
    _other_history(one, two)
    with pytest.raises(merging.Unrelated):
        await conflicting(one, two, ["a.txt"])


async def test_a_conflict_in_a_file_that_one_side_has_renamed_is_not_denied(tmp_path: Path) -> None:
    """Git tells of it under the new name; what it tells of another file is no answer for this one either."""
    one, two = two_worktrees(tmp_path, "a.txt", "b.txt", "c.txt")
    write(one, 2, "mine\n")
    write(one, 2, "mine\n", "c.txt")
    git(one, "commit", "-q", "-a", "-m", "mine")
    git(one, "mv", "a.txt", "z.txt")
    git(one, "commit", "-q", "-m", "rename")
    write(two, 2, "yours\n")
    assert await merging.conflicting(str(one), str(two), ["a.txt"], lambda _: True) == {"a.txt": None}
    write(two, 2, "yours\n", "c.txt")
    git(two, "commit", "-q", "-a", "-m", "yours")
    told = await merging.conflicting(str(one), str(two), ["a.txt", "b.txt"], lambda _: True)
    assert told == {"a.txt": None, "b.txt": False}
    write(one, 2, "yours\n", "z.txt")
    write(one, 2, "yours\n", "c.txt")
    git(one, "commit", "-q", "-a", "-m", "the same")
    assert await merging.conflicting(str(one), str(two), ["a.txt"], lambda _: True) == {"a.txt": False}


@pytest.mark.parametrize(
    ("attributes", "config", "crlf", "told"),
    [
        ("*.txt merge=union", "", False, None),
        ("*.txt -merge", "", False, None),
        ("*.txt merge", "", False, True),
        ("*.txt filter=x", "", False, None),
        ("*.txt ident", "", False, None),
        ("*.txt text eol=crlf", "", True, None),
        ("* text=auto", "", True, None),
        ("* text=auto", "", False, True),
        ("*.md merge=union", "", False, True),
        ("*.txt -text", "", True, True),
        ("[attr]own merge=union\n*.txt own", "", False, None),
        ("", "core.autocrlf", True, None),
        ("", "core.autocrlf", False, True),
        ("", "core.attributesFile", False, None),
    ],
)
@pytest.mark.parametrize("where", ["sub/.gitattributes", ".gitattributes", "info"])
async def test_a_file_that_git_merges_by_rules_of_its_own_is_not_judged(
    tmp_path: Path, attributes: str, config: str, crlf: bool, told: bool | None, where: str
) -> None:
    """Wherever the rules stand; where they change nothing, a conflict is one."""
    if where.startswith("sub/") and attributes.startswith("[attr]"):
        return  # git takes such a rule only from the root
    one, two = two_worktrees(tmp_path, "sub/a.txt")
    file = one / ".git" / "info" / "attributes" if where == "info" else one / where
    file.parent.mkdir(exist_ok=True)
    if attributes:
        file.write_text(f"{attributes}\n")
    if config:
        git(one, "config", config, "true")
    for tree, text in ((one, "mine\n"), (two, "yours\n")):
        write(tree, 2, text, "sub/a.txt")
        if crlf:
            content = (tree / "sub" / "a.txt").read_bytes()
            (tree / "sub" / "a.txt").write_bytes(content.replace(b"\n", b"\r\n"))
    answer = await merging.conflicting(str(one), str(two), ["sub/a.txt"], lambda _: True)
    assert answer == {"sub/a.txt": told}


async def test_a_working_tree_s_own_configuration_counts_as_the_repository_s(tmp_path: Path) -> None:
    """`config.worktree` can name attributes, too (git-config, CONFIGURATION FILE)."""
    one, two = two_worktrees(tmp_path)
    write(one, 2, "mine\n")
    write(two, 2, "yours\n")
    assert await merging.conflicting(str(one), str(two), ["a.txt"], lambda _: True) == {"a.txt": True}
    git(one, "config", "extensions.worktreeConfig", "true")
    git(one, "config", "--worktree", "core.attributesFile", "elsewhere")
    assert await merging.conflicting(str(one), str(two), ["a.txt"], lambda _: True) == {"a.txt": None}


async def test_nothing_that_a_repository_configures_is_run(tmp_path: Path) -> None:
    """Filters, merge drivers, hooks, a file system monitor: an agent can write all of them."""
    one, two = two_worktrees(tmp_path)
    ran = tmp_path / "ran"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    hooks = one / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for hook in ("post-index-change", "reference-transaction", "pre-commit", "pre-merge-commit"):
        (hooks / hook).symlink_to(program)
    attributes = one / ".git" / "info" / "attributes"
    attributes.parent.mkdir(exist_ok=True)
    attributes.write_text("* filter=bad merge=bad diff=bad\n")
    write(one, 2, "mine\n")
    write(two, 2, "yours\n")
    for key in ("filter.bad.clean", "filter.bad.process", "merge.bad.driver", "diff.bad.command"):
        git(one, "config", key, str(program))
    git(one, "config", "core.fsmonitor", str(program))
    ran.unlink(missing_ok=True)
    assert await conflicting(one, two, ["a.txt"]) is None, "nobody knows how those would merge it"
    attributes.unlink()
    assert await conflicting(one, two, ["a.txt"]) == frozenset({"a.txt"})
    assert not ran.exists()


async def test_a_git_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is gone afterwards, and nothing lies about."""
    one, two = two_worktrees(tmp_path)
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "git").write_text("#!/bin/sh\nexec sleep 60\n")
    (folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    began = time.monotonic()
    assert await conflicting(one, two, ["a.txt"], within_s=0.3) is None
    assert time.monotonic() - began < 10
