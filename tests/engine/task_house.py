"""What tests of tasks do again and again: make one, wait for its end, and read its story in the log."""

from collections.abc import Mapping
from typing import Any

import anyio
import httpx

from tests.house import PATIENCE, House

Json = dict[str, Any]
ENDED = ("completed", "failed", "cancelled", "timed_out")


async def make(house: House, session: str, *steps: Mapping[str, Any], **headers: str) -> Json:
    """An admitted task."""
    answer = await house.post("/v1/tasks", {"session_id": session, "steps": list(steps)}, **headers)
    assert answer.status_code == 202, answer.text
    task: Json = answer.json()
    return task


async def settled(house: House, task_id: str) -> Json:
    """The task once it has ended."""
    return await ended(house.client, task_id)


async def done(house: House, task: Mapping[str, Any]) -> Json:
    """The same for one that was just made."""
    return await settled(house, task["task_id"])


async def ended(client: httpx.AsyncClient, task_id: str) -> Json:
    """The task once it has ended: its open turn is waited for, again and again."""
    with anyio.fail_after(PATIENCE):
        while True:
            answer = await client.get(f"/v1/tasks/{task_id}")
            assert answer.is_success, answer.text
            task: Json = answer.json()
            if task["status"] in ENDED:
                return task
            last = [step["turn_ids"][-1] for step in task["steps"] if step["turn_ids"]][-1]
            await client.get(f"/v1/turns/{last}/wait", params={"timeout_s": 10})


def statuses(task: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The task's state and its steps'."""
    return task["status"], [step["status"] for step in task["steps"]]


def turns(task: Mapping[str, Any]) -> list[str]:
    """Every turn of a task, in order."""
    return [turn for step in task["steps"] for turn in step["turn_ids"]]


def story(log: list[Json], task: Mapping[str, Any]) -> list[str]:
    """What the log tells of a task and of its turns, without what the agent said."""
    own = turns(task)
    told = []
    for event in log:
        if event["type"].startswith("task.") and event["data"]["task_id"] == task["task_id"]:
            assert event["turn_id"] is None
            assert event["data"]["turn_id"] in own
            told.append(f"{event['type']} {event['data']['step']}")
        elif event["turn_id"] in own and event["type"].startswith("turn."):
            told.append(f"{event['type']} {own.index(event['turn_id'])}")
    return told


def assert_whole(log: list[Json], task: Mapping[str, Any]) -> None:
    """No number is missing, every turn ends once, and what follows stands right behind its end."""
    assert [event["seq"] for event in log] == list(range(1, len(log) + 1))
    own = turns(task)
    assert len(set(own)) == len(own)
    for number, turn in enumerate(own):
        mine = [event for event in log if event["turn_id"] == turn]
        ends = [event for event in mine if event["type"].removeprefix("turn.") in (*ENDED, "indeterminate")]
        assert [event["seq"] for event in ends] == [mine[-1]["seq"]]
        after = log[mine[-1]["seq"]]  # numbers count from 1
        if number + 1 < len(own):
            assert (after["type"], after["turn_id"]) == ("turn.queued", own[number + 1])
        else:
            assert after["type"] == f"task.{task['status']}"
