"""Tasks in a process that is killed, between two steps or in one: none is lost, and none doubled.

`ALAMEDA_KILLS` makes the random test kill more often than it does by default.
"""

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.engine.task_house import Json, assert_whole, ended, statuses, story, turns
from tests.paseo.twin import Twin
from tests.system.test_faults import PATIENCE, Serving, own_database, serving

KILLS = int(os.environ.get("ALAMEDA_KILLS", "3"))
STEPS = 5
SENT = "send_agent_message_request"


async def make(service: Serving, session: str, agent: str, *steps: dict[str, Any]) -> Json:
    """A new session's task."""
    body = {"agent": agent, "cwd": str(service.cwd)}
    answer = await service.client.put(f"/v1/sessions/{session}", json=body)
    assert answer.is_success, answer.text
    answer = await service.client.post("/v1/tasks", json={"session_id": session, "steps": list(steps)})
    assert answer.status_code == 202, answer.text
    task: Json = answer.json()
    return task


async def log_of(service: Serving, session: str) -> list[Json]:
    """The whole log."""
    return [frame.data for frame in await service.log(session)]


async def until(service: Serving, session: str, event: str, count: int) -> None:
    """Return once the log has so many events of a type."""
    with anyio.fail_after(PATIENCE):
        async with service.stream(f"/v1/sessions/{session}/events/stream") as stream:
            await stream.until(event, count)


def paseo(twin: Twin) -> dict[str, str]:
    """The environment in which the service finds the twin."""
    return {"PASEO_URL": twin.http}


def prompts(twin: Twin) -> list[str]:
    """What the daemon was asked to do for a task, in order."""
    sent = [str(one.message["text"]) for one in twin.record.of(SENT)]
    return [text for text in sent if not text.startswith("say other")]


async def is_whole(service: Serving, task: Json, twin: Twin, steps: list[dict[str, Any]]) -> None:
    """Every step was prompted once, in order, and the log tells of it once."""
    task = await ended(service.client, task["task_id"])
    assert statuses(task) == ("completed", ["completed"] * len(steps))
    assert [len(step["turn_ids"]) for step in task["steps"]] == [1] * len(steps)
    log = await log_of(service, "s")
    assert_whole(log, task)
    told = story(log, task)
    assert [one for one in told if one.startswith("task.")] == [
        "task.started step-1",
        *(f"task.step_started step-{n}" for n in range(1, len(steps) + 1)),
        f"task.completed step-{len(steps)}",
    ]
    assert prompts(twin) == [step["prompt"] for step in steps]


async def said(service: Serving, turn_id: str) -> None:
    """Return once the agent has said something in that turn."""
    with anyio.fail_after(PATIENCE):
        async with service.stream(f"/v1/turns/{turn_id}/events/stream") as stream:
            await stream.until("message.delta")


async def current(service: Serving, task: Json, step: int) -> str:
    """The turn of a step, once it is there."""
    with anyio.fail_after(PATIENCE):
        while True:
            found = await service.get(f"/v1/tasks/{task['task_id']}")
            if found["steps"][step]["turn_ids"]:
                turn: str = found["steps"][step]["turn_ids"][-1]
                return turn
            await until(service, "s", "turn.queued", step + 1)


@pytest.mark.parametrize("where", ["in a step", "between two steps"])
async def test_killed_in_or_after_every_step_it_loses_and_doubles_none(folder: Path, where: str) -> None:
    """Between two steps somebody else's turn runs, so that the next step's is there and has not begun."""
    steps = [{"prompt": f"say {n}\nsleep 500"} for n in range(STEPS)]
    async with Twin(window=0.005) as twin:
        task: Json = {}
        for number in range(STEPS):
            async with serving(folder, **paseo(twin)) as service:
                if not task:
                    task = await make(service, "s", "scripted", *steps)
                await said(service, await current(service, task, number))
                if where == "between two steps":
                    prompt = f"say other {number}\nsleep 500"
                    await said(service, await service.prompt("s", prompt, multitask_strategy="enqueue"))
                    found = await service.get(f"/v1/tasks/{task['task_id']}")
                    expected = ["completed"] * (number + 1) + ["pending"] * (STEPS - number - 1)
                    assert [step["status"] for step in found["steps"]] == expected
                await service.kill()
        async with serving(folder, **paseo(twin)) as service:
            await is_whole(service, task, twin, steps)


@pytest.mark.parametrize("moment", ["turn.queued", "turn.started", "turn.completed"])
async def test_killed_as_a_step_begins_it_tells_what_it_cannot_know(folder: Path, moment: str) -> None:
    """The prompt may just have left: that step is `indeterminate`, or was prompted once; none is lost."""
    steps = [{"prompt": f"say {n}\nsleep 400", "on_failure": "continue"} for n in range(STEPS)]
    async with Twin(window=0.005) as twin:
        task: Json = {}
        for number in range(STEPS):
            async with serving(folder, **paseo(twin)) as service:
                if not task:
                    task = await make(service, "s", "scripted", *steps)
                await until(service, "s", moment, number + 1)
                await service.kill()
        async with serving(folder, **paseo(twin)) as service:
            await goes_through(service, task, twin)


async def goes_through(service: Serving, task: Json, twin: Twin) -> None:
    """Every step has had one turn, in order, and what it says of it is so."""
    task = await ended(service.client, task["task_id"])
    assert_at_most_once(task, twin)
    assert task["status"] == "completed"
    assert [len(step["turn_ids"]) for step in task["steps"]] == [1] * len(task["steps"])
    assert_whole(await log_of(service, "s"), task)
    order = [int(text.split("\n")[0].removeprefix("say ")) for text in prompts(twin)]
    assert order == sorted(order)


def assert_at_most_once(task: Json, twin: Twin) -> None:
    """No prompt came twice; one that did not come at all is of a step of which nobody could know that."""
    came = Counter(text.split("\n")[0] for text in prompts(twin))
    for number, step in enumerate(task["steps"]):
        if step["status"] == "completed":
            assert came[f"say {number}"] == 1
        elif step["status"] == "failed":
            assert step["error"]["code"] == "indeterminate"
            assert came[f"say {number}"] <= 1
        else:
            assert came[f"say {number}"] == 0


async def test_killed_at_random_moments_it_loses_and_doubles_none(folder: Path) -> None:
    """Steps that take no time, so that most kills fall around their ends."""
    steps = [{"prompt": f"say {n}", "on_failure": "continue"} for n in range(60)]
    async with Twin(window=0.005) as twin:
        task: Json = {}
        for _ in range(KILLS):
            async with serving(folder, **paseo(twin)) as service:
                if not task:
                    task = await make(service, "s", "scripted", *steps)
                await anyio.sleep(random.uniform(0.2, 0.8))
                await service.kill()
        async with serving(folder, **paseo(twin)) as service:
            await goes_through(service, task, twin)


async def test_killed_under_an_agent_of_ours_the_step_is_never_run_again(folder: Path) -> None:
    """Nobody can tell what it did: `indeterminate`, whatever attempts are left; the caller may retry."""
    steps: list[Json] = [
        {"prompt": "say a"},
        {"prompt": "say b\nsleep 1", "max_attempts": 5},
        {"prompt": "say c"},
    ]
    async with serving(folder) as service:
        task = await make(service, "s", "demo", *steps)
        await until(service, "s", "message.delta", 2)
        await service.kill()
    async with serving(folder) as service:
        task = await ended(service.client, task["task_id"])
        assert statuses(task) == ("failed", ["completed", "failed", "pending"])
        assert task["steps"][1]["error"]["code"] == "indeterminate"
        assert [len(step["turn_ids"]) for step in task["steps"]] == [1, 1, 0]
        assert_whole(await log_of(service, "s"), task)
        answer = await service.client.post(f"/v1/tasks/{task['task_id']}/retry")
        assert answer.status_code == 202, answer.text
        task = await ended(service.client, task["task_id"])
        assert statuses(task) == ("completed", ["completed"] * 3)
        assert [len(step["turn_ids"]) for step in task["steps"]] == [1, 2, 1]


async def test_a_killed_replica_s_task_goes_on_at_the_other(folder: Path) -> None:
    """It takes the session over once the lease has run out, and runs the remaining steps."""
    steps = [{"prompt": f"say {n}\nsleep 300"} for n in range(4)]
    async with Twin(window=0.005) as twin, own_database(folder) as outage:
        (folder / "other").mkdir()
        more = {**outage.environment, **paseo(twin), "ALAMEDA_TIMING__LEASE_S": "3"}
        more["ALAMEDA_DATA_DIR"] = str(folder / "other")
        await outage.service.stop()  # which knows another daemon
        (folder / "third").mkdir()
        third = {**more, "ALAMEDA_DATA_DIR": str(folder / "third")}
        async with serving(folder / "other", **more) as first:
            task = await make(first, "s", "scripted", *steps)
            async with serving(folder / "third", **third) as second:
                await until(first, "s", "turn.completed", 1)
                await first.kill()
                await is_whole(second, task, twin, steps)


async def test_the_database_goes_away_between_two_steps(folder: Path) -> None:
    """What ended and what follows wait together, and are committed together."""
    steps = [{"prompt": f"say {n}\nsleep 0.4"} for n in range(6)]
    async with own_database(folder) as outage:
        service = outage.service
        task = await make(service, "s", "demo", *steps)
        with anyio.fail_after(PATIENCE):
            async with service.stream("/v1/sessions/s/events/stream") as stream:
                await stream.until("message.delta", 2)
                outage.stop()
                await stream.until("stream.stalled")
                await anyio.sleep(0.5)  # by then the step has ended, and nobody could write that
                await outage.start()
                await stream.until("task.completed")
        task = await ended(service.client, task["task_id"])
        assert statuses(task) == ("completed", ["completed"] * 6)
        assert len(turns(task)) == 6
        assert_whole(await log_of(service, "s"), task)
