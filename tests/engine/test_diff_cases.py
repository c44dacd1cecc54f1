"""What a working tree may hold and what state its repository may be in: always an answer, never a 500."""

import os
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest
from anyio.abc import TaskStatus

from app.backends.base import Place
from app.domain.errors import RateLimited, UnsupportedByBackend
from app.domain.ids import Owner
from app.engine import diffs, indexes
from app.engine.seats import Seats
from tests.engine.test_diffs import diff, git, listed, repository
from tests.house import House

pytestmark = pytest.mark.anyio


async def test_binary_renamed_unusual_and_linked_files_are_told(house: House) -> None:
    """A rename is a file that went and one that came; a link is its own text; names are shown as text."""
    root = repository(house.cwd / "r", **{"old name": "one\ntwo\n", "mode": "x\n"})
    (root / "bytes").write_bytes(bytes(range(256)))
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "more")
    (root / "bytes").write_bytes(bytes(255))
    (root / "old name").rename(root / "new name")
    (root / "mode").chmod(0o755)
    (root / "link").symlink_to("/etc/passwd")
    for name in (b"\xff\xfe", b"tab\t\nline", b'"quote"'):
        Path(os.fsdecode(os.path.join(os.fsencode(root), name))).write_text("x\n")
    os.mkfifo(root / "pipe")
    await house.ensure("s", cwd=str(root))
    found = await house.get("/v1/sessions/s/diff")
    assert found.keys() == {"root", "base", "files", "diff", "truncated"}
    told = {one["path"]: (one["additions"], one["deletions"]) for one in found["files"]}
    assert told == {
        "bytes": (None, None),
        "old name": (0, 2),
        "new name": (2, 0),
        "mode": (0, 0),
        "link": (1, 0),
        "\ufffd\ufffd": (1, 0),
        "tab\t\nline": (1, 0),
        '"quote"': (1, 0),
    }
    assert "+/etc/passwd" in found["diff"]
    assert "root:" not in found["diff"]
    assert found["truncated"] is False


async def test_a_detached_head_and_packed_references(tmp_path: Path) -> None:
    root = repository(tmp_path / "r", a="one\n")
    git(root, "commit", "-q", "--allow-empty", "-m", "second")
    head = git(root, "rev-parse", "HEAD")
    git(root, "pack-refs", "--all")
    git(root, "gc", "-q")
    assert (await diff(root)).base == head
    git(root, "checkout", "-q", "--detach", "HEAD~1")
    (root / "a").write_text("two\n")
    found = await diff(root)
    assert found.base == git(root, "rev-parse", "HEAD") != head
    assert listed(found) == {"a": (1, 1)}


async def test_a_merge_that_stopped_at_a_conflict(tmp_path: Path) -> None:
    root = repository(tmp_path / "r", a="one\n", b="same\n")
    git(root, "checkout", "-q", "-b", "side")
    (root / "a").write_text("theirs\n")
    git(root, "commit", "-q", "-a", "-m", "theirs")
    git(root, "checkout", "-q", "main")
    (root / "a").write_text("ours\n")
    git(root, "commit", "-q", "-a", "-m", "ours")
    with pytest.raises(subprocess.CalledProcessError):
        git(root, "merge", "side")
    found = await diff(root)
    assert "a" in listed(found)
    assert not found.truncated


async def test_a_submodule_that_moved_on_is_one_line(tmp_path: Path) -> None:
    """Its own changes are its own; a session that works in it sees them, and the working tree is its."""
    inner = repository(tmp_path / "inner", x="x\n")
    root = repository(tmp_path / "r", a="one\n")
    git(root, "submodule", "add", "-q", str(inner), "sub")
    git(root, "commit", "-q", "-m", "with it")
    (root / "sub" / "x").write_text("changed\n")
    assert listed(await diff(root)) == {}
    found = await diff(root / "sub", root)
    assert (found.root, listed(found)) == (str(root / "sub"), {"x": (1, 1)})
    git(root / "sub", "commit", "-q", "-a", "-m", "moved")
    found = await diff(root)
    assert listed(found) == {"sub": (1, 1)}
    assert "+Subproject commit" in found.diff


async def test_a_repository_within_the_working_tree_is_not_looked_into(tmp_path: Path) -> None:
    root = repository(tmp_path / "r", a="one\n")
    repository(root / "own", secret="x\n")
    assert listed(await diff(root)) == {}


async def test_what_the_repository_itself_excludes_is_not_new(tmp_path: Path) -> None:
    """By `.git/info/exclude`, which all its worktrees share."""
    root = repository(tmp_path / "r", a="one\n")
    (root / ".git" / "info").mkdir(exist_ok=True)
    (root / ".git" / "info" / "exclude").write_text("*.log\n")
    git(root, "worktree", "add", "-q", str(tmp_path / "other"), "-b", "other")
    for where in (root, tmp_path / "other"):
        (where / "x.log").write_text("no\n")
        (where / "new").write_text("yes\n")
        assert listed(await diff(where, tmp_path)) == {"new": (1, 0)}


async def test_a_change_in_the_moment_of_a_commit_is_seen(tmp_path: Path) -> None:
    """Of the same size, at the time that the index has: git looks into what is not older than its index."""
    root = repository(tmp_path / "r", a="one\n")
    then = (root / "a").stat().st_mtime_ns
    os.utime(root / ".git" / "index", ns=(then, then))
    (root / "a").write_text("two\n")
    os.utime(root / "a", ns=(then, then))
    assert listed(await diff(root)) == {"a": (1, 1)}


async def test_a_linked_working_directory_is_where_it_leads(house: House) -> None:
    """And one that leads out since is refused."""
    root = repository(house.cwd / "r", a="one\n")
    (root / "a").write_text("two\n")
    (house.cwd / "link").symlink_to(root)
    await house.ensure("s", cwd=str(house.cwd / "link"))
    found = await house.get("/v1/sessions/s/diff")
    assert (found["root"], [one["path"] for one in found["files"]]) == (str(root), ["a"])
    root.rename(house.cwd / "moved")
    root.symlink_to("/etc")
    answer = await house.client.get("/v1/sessions/s/diff")
    assert (answer.status_code, answer.json()["code"]) == (422, "path_not_allowed")


async def test_objects_that_are_missing_or_broken_are_a_refusal(house: House) -> None:
    root = repository(house.cwd / "r", a="one\n")
    await house.ensure("s", cwd=str(root))
    for folder in (root / ".git" / "objects").glob("??"):
        for file in folder.iterdir():
            file.chmod(0o644)
            file.write_bytes(b"no object")
    answer = await house.client.get("/v1/sessions/s/diff")
    assert (answer.status_code, answer.json()["code"]) == (422, "unsupported_by_backend")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
async def test_a_file_that_may_not_be_read_is_a_refusal(house: House) -> None:
    root = repository(house.cwd / "r", a="one\n")
    (root / "a").write_text("two\n")
    (root / "a").chmod(0)
    await house.ensure("s", cwd=str(root))
    answer = await house.client.get("/v1/sessions/s/diff")
    assert (answer.status_code, answer.json()["code"]) == (422, "unsupported_by_backend")


async def test_more_files_than_are_told_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes, "MAX_NEW", 100)
    root = repository(tmp_path / "r", a="one\n")
    for number in range(50):
        (root / f"f-{number}").write_text("x\n")
    found = await diff(root)
    assert found.truncated
    assert 0 < len(found.files) < 50


async def test_too_many_at_once_are_asked_to_come_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a wait, and of one owner before all seats are taken; nobody's git is one more."""
    monkeypatch.setattr(diffs, "WAIT_S", 0.1)
    root = repository(house.cwd / "r", a="one\n")
    await house.ensure("s", cwd=str(root))
    seats = house.service.rooms.diffs._seats
    mine, others = [Owner("default")] * diffs.PER_OWNER, [Owner(f"{n}") for n in range(diffs.AT_ONCE)]
    for owners in (mine, others):
        async with AsyncExitStack() as taken:
            for owner in owners:
                await _sit(taken, seats, owner)
            answer = await house.client.get("/v1/sessions/s/diff")
            assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
            assert answer.headers["retry-after"] == "1"
        assert (await house.client.get("/v1/sessions/s/diff")).status_code == 200
    async with AsyncExitStack() as taken:
        for owner in [Owner("greedy")] * diffs.PER_OWNER:
            await _sit(taken, seats, owner)
        with pytest.raises(RateLimited):
            await _sit(taken, seats, Owner("greedy"))
        assert (await house.client.get("/v1/sessions/s/diff")).status_code == 200
    assert seats._owners == {}


async def test_the_time_of_a_diff_begins_with_its_seat(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it has waited for one."""
    await house.ensure("s", cwd=str(repository(house.cwd / "r", a="one\n")))
    left: list[float] = []

    async def look(cwd: str, place: Place) -> diffs.WorkingTreeDiff:
        left.append(anyio.current_effective_deadline() - anyio.current_time())
        raise UnsupportedByBackend

    monkeypatch.setattr(diffs, "_of_directory", look)
    found = house.service.rooms.diffs
    async with anyio.create_task_group() as tasks, AsyncExitStack() as taken:
        for _ in range(diffs.PER_OWNER):
            await _sit(taken, found._seats, Owner("default"))
        tasks.start_soon(house.client.get, "/v1/sessions/s/diff")
        with anyio.fail_after(5):
            while not found._seats._owners[Owner("default")].statistics().tasks_waiting:  # noqa: ASYNC110
                await anyio.sleep(0.02)
        await anyio.sleep(0.3)
    assert diffs.GIT_S - 0.2 < left[0] <= diffs.GIT_S


async def _sit(taken: AsyncExitStack, seats: Seats, owner: Owner) -> None:
    """Take a seat, in a task of its own as a request does."""
    tasks = await taken.enter_async_context(anyio.create_task_group())
    taken.callback(tasks.cancel_scope.cancel)

    async def sit(*, task_status: TaskStatus[None]) -> None:
        try:
            async with seats.take(owner, 0.1):
                task_status.started()
                await anyio.sleep_forever()
        except RateLimited:
            refused.append(True)
            task_status.started()

    refused: list[bool] = []
    await tasks.start(sit)
    if refused:
        raise RateLimited
