"""What agents of many kinds tell of their files, through the whole service: on a real disk, with real git."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from app.settings import BackendSettings
from tests.backends.acp_house import WILD
from tests.engine.worktrees import git, two_worktrees
from tests.house import House, open_house
from tests.system.test_collisions import join, told

NUMBERS = count(1)


@asynccontextmanager
async def wild_house(database_url: str, folder: Path) -> AsyncIterator[House]:
    """The service with an agent that tells whatever its prompt says, as `update` and JSON."""
    (folder / "work").mkdir(exist_ok=True)
    wild = {"wild": BackendSettings(type="acp", command=WILD)}
    async with open_house(database_url, folder, backends=wild) as house:
        yield house


def edited(path: Path, old: str | None = "a", new: str = "b", **at: Any) -> str:
    """A line of the wild agent's script: it has edited a file."""
    diff = {"type": "diff", "path": str(path), "oldText": old, "newText": new}
    call = {
        "sessionUpdate": "tool_call",
        "toolCallId": f"c-{next(NUMBERS)}",
        "title": "edit",
        "kind": "edit",
        "status": "completed",
        "content": [diff],
        "locations": [{"path": str(path), **at}],
    }
    return f"update {json.dumps(call)}"


async def test_a_line_that_no_file_has_costs_its_session_nothing(database_url: str, folder: Path) -> None:
    """The agent, its turn and whatever it tells next live on; the file is known, its lines are not."""
    async with wild_house(database_url, folder) as house:
        for name in ("one", "two"):
            await join(house, name, ".", agent="wild", backend="wild")
            lines = [2**63 - 1, 2**64, 10**30, True]
            script = [edited(house.cwd / f"{n}.txt", line=line) for n, line in enumerate(lines)]
            turn = await house.run(name, "\n".join([*script, "say done"]))
            assert (turn["status"], turn["output_text"]) == ("completed", "done")
        found = {event["data"]["path"]: event["data"]["overlap"] for event in await told(house, "one")}
        assert found == {f"{n}.txt": "same_file" for n in range(4)}
        calls = [event["data"] for event in await told(house, "one", "tool_call.completed")]
        assert all("line" not in call["locations"][0] for call in calls)


async def test_two_repositories_of_one_project_do_not_collide(database_url: str, folder: Path) -> None:
    """Each has a file of that name, and nobody will merge the two; a clone is no other repository."""
    async with wild_house(database_url, folder) as house:
        for name in ("p", "q"):
            (house.cwd / name).mkdir()
            two_worktrees(house.cwd / name)
        git(house.cwd / "q" / "one", "commit", "-q", "--amend", "-m", "not the same commit by chance")
        git(house.cwd / "p", "clone", "-q", "one", "clone")
        for name, tree in (("one", "p/one"), ("other", "q/one"), ("clone", "p/clone")):
            await join(house, name, tree, agent="wild", backend="wild")
            for _ in range(2):
                await house.run(name, edited(house.cwd / tree / "a.txt", "line 2\n", "x\n", line=2))
        assert await told(house, "other") == []
        (event,) = await told(house, "clone")
        assert {each["session_id"] for each in event["data"]["sessions"]} == {"one", "clone"}


@pytest.mark.parametrize("repository", ["none", "outer", "both", "inner"])
async def test_one_file_that_two_write_from_two_folders_is_overwritten(
    database_url: str, folder: Path, repository: str
) -> None:
    """Without git, in one worktree, and in a repository that lies in another one."""
    async with wild_house(database_url, folder) as house:
        (house.cwd / "p" / "sub").mkdir(parents=True)
        if repository in ("outer", "both"):
            git(house.cwd / "p", "init", "-q")
        if repository in ("inner", "both"):
            git(house.cwd / "p" / "sub", "init", "-q")
        file = house.cwd / "p" / "sub" / "a.txt"
        file.write_text("b\n")
        for name, tree in (("one", "p"), ("two", "p/sub")):
            await join(house, name, tree, agent="wild", backend="wild")
            await house.run(name, edited(file, "a\n", "b\n"))
        path = "sub/a.txt" if repository in ("none", "outer") else "a.txt"
        for name in ("one", "two"):
            (event,) = await told(house, name)
            found = event["data"]
            assert (found["path"], found["severity"], found["overlap"]) == (path, "overwrite", "same_lines")
