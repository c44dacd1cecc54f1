"""The diff of a working tree: whole, bounded, and made without running anything that the repository names."""

import os
import subprocess
from pathlib import Path
from typing import Any

import anyio
import pytest

from app.backends.base import Place
from app.domain.errors import PathNotAllowed, UnsupportedByBackend
from app.engine import diffs
from app.settings import BackendSettings
from tests.house import House, open_house
from tests.paseo.command import stand_in

pytestmark = pytest.mark.anyio


def git(cwd: Path, *words: str) -> str:
    """A run of git by the repository's user."""
    who = ("-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false")
    safe = ("-c", "protocol.file.allow=always")
    done = subprocess.run(["git", *who, *safe, *words], cwd=cwd, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def repository(folder: Path, **files: str) -> Path:
    """A repository with a commit of these files."""
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "-q", "-b", "main")
    for name, text in files.items():
        (folder / name).write_text(text)
    git(folder, "add", ".")
    git(folder, "commit", "-q", "--allow-empty", "-m", "first")
    return folder


async def diff(cwd: Path, *roots: Path) -> diffs.WorkingTreeDiff:
    """The diff, as the use-case makes it."""
    place = Place(filesystem="shared", default_cwd=cwd, roots=roots or (cwd,))
    return await diffs._diff(str(cwd), place)


def listed(found: diffs.WorkingTreeDiff) -> dict[str, tuple[int | None, int | None]]:
    """Counts of added and deleted lines by file."""
    return {one.path: (one.additions, one.deletions) for one in found.files}


async def test_it_shows_what_differs_from_the_last_commit(house: House) -> None:
    """Changed, deleted, staged and new files; what is ignored is not."""
    root = repository(house.cwd / "r", a="one\n", b="two\n", c="three\n")
    (root / "a").write_text("one\nmore\n")
    (root / "b").unlink()
    (root / "c").write_text("staged\n")
    git(root, "add", "c")
    (root / ".gitignore").write_text("*.log\n")
    (root / "x.log").write_text("no\n")
    (root / "né w").write_bytes(b"\xff new\n")
    await house.ensure("s-1", cwd=str(root))
    before = git(root, "status", "--porcelain")
    found = await house.get("/v1/sessions/s-1/diff")
    assert (found["root"], found["base"], found["truncated"]) == (
        str(root),
        git(root, "rev-parse", "HEAD"),
        False,
    )
    assert {one["path"]: (one["additions"], one["deletions"]) for one in found["files"]} == {
        ".gitignore": (1, 0),
        "a": (1, 0),
        "b": (0, 1),
        "c": (1, 1),
        "né w": (1, 0),
    }
    assert "+more\n" in found["diff"]
    assert "-two\n" in found["diff"]
    assert git(root, "status", "--porcelain") == before, "nothing in the repository has changed"


async def test_a_clean_tree_and_one_without_a_commit(tmp_path: Path) -> None:
    clean = await diff(repository(tmp_path / "clean", a="one\n"))
    assert (clean.files, clean.diff, clean.truncated) == ([], "", False)
    unborn = tmp_path / "unborn"
    unborn.mkdir()
    git(unborn, "init", "-q")
    (unborn / "a").write_text("one\n")
    found = await diff(unborn)
    assert (found.base, listed(found)) == (None, {"a": (1, 0)})


async def test_a_worktree_a_subfolder_and_another_object_format(tmp_path: Path) -> None:
    main = repository(tmp_path / "main", a="one\n")
    git(main, "worktree", "add", "-q", str(tmp_path / "other"), "-b", "other")
    (tmp_path / "other" / "a").write_text("two\n")
    (tmp_path / "other" / "deep").mkdir()
    found = await diff(tmp_path / "other" / "deep", tmp_path)
    assert (found.root, listed(found)) == (str(tmp_path / "other"), {"a": (1, 1)})
    modern = tmp_path / "modern"
    modern.mkdir()
    git(modern, "init", "-q", "--object-format=sha256")
    (modern / "a").write_text("one\n")
    git(modern, "add", ".")
    git(modern, "commit", "-q", "-m", "first")
    (modern / "a").write_text("two\n")
    found = await diff(modern)
    assert listed(found) == {"a": (1, 1)}
    assert found.base is not None
    assert len(found.base) == 64


async def test_an_index_in_parts_is_done_without(tmp_path: Path) -> None:
    root = repository(tmp_path / "r", a="one\n")
    git(root, "update-index", "--split-index")
    (root / "a").write_text("two\n")
    (root / "new").write_text("x\n")
    assert listed(await diff(root)) == {"a": (1, 1), "new": (1, 0)}


async def test_t23_nothing_that_the_repository_names_is_run(tmp_path: Path) -> None:
    """Filters, external diffs, text conversions, monitors (submodules' too), hooks, commands of remotes."""
    trap = tmp_path / "trap"
    trap.write_text(f'#!/bin/sh\necho "$0 $*" >> {tmp_path}/sprung\ncat\n')
    trap.chmod(0o755)
    inner = repository(tmp_path / "inner", x="x\n")
    root = repository(tmp_path / "r", a="one\n", b="two\n")
    git(root, "submodule", "add", "-q", str(inner), "sub")
    (root / ".gitattributes").write_text("* filter=evil diff=evil\n")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "second")
    for name in ("post-index-change", "pre-commit", "fsmonitor-watchman", "reference-transaction"):
        hook = root / ".git" / "hooks" / name
        hook.write_text(trap.read_text())
        hook.chmod(0o755)
    for key, value in {
        "core.fsmonitor": str(trap),
        "core.hooksPath": str(root / ".git" / "hooks"),
        "core.pager": str(trap),
        "core.sshCommand": str(trap),
        "diff.external": str(trap),
        "diff.evil.command": str(trap),
        "diff.evil.textconv": str(trap),
        "filter.evil.clean": str(trap),
        "filter.evil.smudge": str(trap),
        "filter.evil.process": str(trap),
        "filter.evil.required": "true",
        "extensions.partialClone": "evil",
        "remote.evil.url": f"ext::{trap}",
        "remote.evil.promisor": "true",
        "remote.evil.uploadpack": str(trap),
        "protocol.ext.allow": "always",
        "pager.diff": str(trap),
        "interactive.diffFilter": str(trap),
    }.items():
        git(root, "config", key, value)
    git(root / "sub", "config", "core.fsmonitor", str(trap))
    (root / "a").write_text("changed\n")
    (root / "new").write_text("new\n")
    (root / "sub" / "x").write_text("dirty\n")
    blob = git(root, "rev-parse", "HEAD:b")
    (root / ".git" / "objects" / blob[:2] / blob[2:]).unlink()  # what a partial clone would fetch
    (tmp_path / "sprung").unlink(missing_ok=True)
    found = await diff(root, tmp_path)
    assert {"a", "new"} <= listed(found).keys()
    assert not (tmp_path / "sprung").exists(), (tmp_path / "sprung").read_text()
    subprocess.run(["git", "status"], cwd=root, capture_output=True, check=False)
    assert (tmp_path / "sprung").exists(), "the traps are set"


async def test_t18_what_lies_outside_the_roots_is_not_shown(tmp_path: Path) -> None:
    """Neither by the place of the repository, nor by objects or a working tree that it borrows."""
    root = tmp_path / "allowed"
    secret = repository(tmp_path / "secret", key="secret\n")
    parent = repository(tmp_path / "parent", a="a\n")
    (parent / "sub").mkdir()
    with pytest.raises(PathNotAllowed):
        await diff(parent / "sub")
    elsewhere = root / "elsewhere"
    elsewhere.mkdir(parents=True)
    (elsewhere / ".git").write_text(f"gitdir: {secret}/.git\n")
    with pytest.raises(PathNotAllowed):
        await diff(elsewhere, root)
    borrowing = repository(root / "borrowing", a="a\n")
    (borrowing / ".git" / "objects" / "info" / "alternates").write_text(f"{secret}/.git/objects\n")
    head = borrowing / ".git" / "refs" / "heads" / "main"
    head.write_text(git(secret, "rev-parse", "HEAD") + "\n")
    with pytest.raises(PathNotAllowed):
        await diff(borrowing, root)
    alternates = borrowing / ".git" / "objects" / "info" / "alternates"
    alternates.write_text(f'"{secret}/.git/objects"\n')
    with pytest.raises(PathNotAllowed):
        await diff(borrowing, root)
    lender = repository(root / "lender", a="a\n")
    (lender / ".git" / "objects" / "info" / "alternates").write_text(f"{secret}/.git/objects\n")
    alternates.write_text(f"{lender}/.git/objects\n")
    with pytest.raises(PathNotAllowed):
        await diff(borrowing, root)
    alternates.unlink()
    for folder in (secret / ".git" / "objects").glob("??"):
        (borrowing / ".git" / "objects" / f"{folder.name}").symlink_to(folder)
    with pytest.raises(PathNotAllowed):
        await diff(borrowing, root)
    pointing = repository(root / "pointing", a="a\n")
    git(pointing, "config", "core.worktree", str(secret))
    with pytest.raises(PathNotAllowed):
        await diff(pointing, root)


async def test_a_trap_in_the_repositorys_own_files_holds_nothing_up(tmp_path: Path) -> None:
    root = repository(tmp_path / "r", a="one\n")
    (root / ".git" / "index").unlink()
    os.mkfifo(root / ".git" / "index")
    os.mkfifo(root / "pipe")
    with anyio.fail_after(5), pytest.raises(UnsupportedByBackend):
        await diff(root)


async def test_it_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = repository(tmp_path / "r", a="one\n")
    (root / "big").write_text("line of text\n" * 200_000)
    found = await diff(root)
    assert found.truncated
    assert len(found.diff) == diffs.MAX_DIFF
    monkeypatch.setattr(diffs, "GIT_S", 0.0)
    with pytest.raises(UnsupportedByBackend):
        await diff(root)


async def test_nothing_of_ours_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    root = repository(tmp_path / "r", a="one\n")
    await diff(root)
    assert {one.name for one in tmp_path.iterdir()} == {"r"}


async def test_where_there_is_none_it_is_a_422(database_url: str, folder: Path) -> None:
    """No repository, files that are elsewhere, a directory that is gone; 404 for a stranger's."""
    command, env = stand_in(folder)
    far = BackendSettings(
        type="paseo-cli",
        command=command,
        env=env,
        provider="scripted",
        filesystem="remote",
        roots=(Path("/far"),),
    )
    async with open_house(database_url, folder, backends={"far": far}) as house:
        await house.ensure("plain")
        await house.ensure("far", agent="scripted", backend="far", cwd="/far/repo")
        gone = house.cwd / "gone"
        gone.mkdir()
        await house.ensure("gone", cwd=str(gone))
        gone.rmdir()
        for name, expected in (
            ("plain", (422, "unsupported_by_backend")),
            ("far", (422, "unsupported_by_backend")),
            ("gone", (422, "path_not_allowed")),
            ("missing", (404, "session_not_found")),
        ):
            answer = await house.client.get(f"/v1/sessions/{name}/diff")
            body: dict[str, Any] = answer.json()
            assert (answer.status_code, body["code"]) == expected, name
