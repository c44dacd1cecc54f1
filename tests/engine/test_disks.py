"""Disks that hang, are full or lose the session's directory: an answer in time, and nothing else held up."""

import threading
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from app.backends.base import Place
from app.engine import diffs, disk, workshop
from app.engine.disk import read_disk
from tests.engine.test_diffs import git, repository
from tests.house import House

pytestmark = pytest.mark.anyio


async def test_threads_that_a_disk_holds_are_bounded_and_take_nobody_else_s_place() -> None:
    answers, hanging = threading.Event(), threading.Semaphore(0)

    def hang() -> None:
        hanging.release()
        answers.wait()

    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(disk.MAX_READERS):
                tasks.start_soon(read_disk, hang)
            for _ in range(disk.MAX_READERS):
                await anyio.to_thread.run_sync(hanging.acquire)
            tasks.cancel_scope.cancel()
        with anyio.move_on_after(0.05) as full:
            await read_disk(lambda: None)
        assert full.cancelled_caught, "one more would be a thread more"
        assert await anyio.to_thread.run_sync(lambda: "done") == "done"
    finally:
        answers.set()
    with anyio.fail_after(5):
        for _ in range(disk.MAX_READERS * 2):
            assert await read_disk(lambda: "done") == "done"


async def test_what_is_given_up_before_it_began_gives_its_place_back() -> None:
    for _ in range(disk.MAX_READERS * 2):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await read_disk(lambda: None)
    with anyio.fail_after(5):
        assert await read_disk(lambda: "done") == "done"


async def test_a_disk_that_hangs_ends_with_the_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the very first look at the directory."""
    await house.ensure("s", cwd=str(repository(house.cwd / "r", a="one\n")))
    answers = threading.Event()

    def hang(cwd: str | None, place: Place) -> str:
        answers.wait()
        return str(cwd)

    monkeypatch.setattr(diffs, "check_requested", hang)
    monkeypatch.setattr(diffs, "GIT_S", 0.2)
    try:
        with anyio.fail_after(5):
            answer = await house.client.get("/v1/sessions/s/diff")
    finally:
        answers.set()
    assert (answer.status_code, answer.json()["code"]) == (503, "backend_unavailable")
    assert "retry-after" in answer.headers


async def test_a_directory_that_comes_and_goes_is_never_a_bug(house: House) -> None:
    """At whatever moment it goes: a diff, or a word that it is gone."""
    root = repository(house.cwd / "r", a="one\n")
    await house.ensure("s", cwd=str(root))
    seen: set[tuple[int, str | None]] = set()
    is_over = False

    async def toggle() -> None:
        while not is_over:
            root.rename(house.cwd / "away")
            await anyio.sleep(0.02)
            (house.cwd / "away").rename(root)
            await anyio.sleep(0.03)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(toggle)
        for _ in range(30):
            answer = await house.client.get("/v1/sessions/s/diff")
            seen.add((answer.status_code, answer.json().get("code")))
        is_over = True
    assert seen <= {(200, None), (422, "path_not_allowed"), (422, "unsupported_by_backend")}


@pytest.mark.parametrize("moment", ["find_trap", "know_files"])
async def test_a_directory_that_goes_in_the_middle_is_gone(
    house: House, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    root = repository(house.cwd / "r", a="one\n")
    await house.ensure("s", cwd=str(root))
    original = getattr(diffs, moment)

    def goes(*arguments: object) -> object:
        root.rename(house.cwd / "away")
        return original(*arguments)

    monkeypatch.setattr(diffs, moment, goes)
    answer = await house.client.get("/v1/sessions/s/diff")
    assert (answer.status_code, answer.json()["code"]) == (422, "path_not_allowed")
    assert answer.json()["detail"] == "the directory is gone"


async def test_no_room_of_ours_is_no_bug(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where no folder can be made, nor where git has no room to write."""
    root = repository(house.cwd / "r", a="one\n")
    await house.ensure("s", cwd=str(root))
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(house.cwd / "nowhere"))
        answer = await house.client.get("/v1/sessions/s/diff")
    assert (answer.status_code, answer.json()["code"]) == (503, "backend_unavailable")
    name = git(root, "rev-parse", "HEAD^{tree}")
    (root / ".git" / "objects" / name[:2] / name[2:]).unlink()
    answer = await house.client.get("/v1/sessions/s/diff")
    assert (answer.status_code, answer.json()["code"]) == (422, "unsupported_by_backend")
    monkeypatch.setattr(workshop, "MIN_ROOM", 2**63)
    answer = await house.client.get("/v1/sessions/s/diff")
    assert (answer.status_code, answer.json()["code"]) == (503, "backend_unavailable")


async def test_files_that_may_not_be_looked_at_are_a_refusal(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = repository(house.cwd / "r", a="one\n")
    await house.ensure("s", cwd=str(root))

    def refuse(self: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    answer = await house.client.get("/v1/sessions/s/diff")
    assert (answer.status_code, answer.json()["code"]) == (422, "path_not_allowed")
