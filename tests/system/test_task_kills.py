"""Tasks whose steps end in every way at once, as the process is killed; more often with `ALAMEDA_KILLS`."""

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import anyio
import httpx
import pytest

from tests.engine.task_house import Json, assert_whole, ended, turns
from tests.system.test_faults import PATIENCE, Serving, all_gone, serving
from tests.system.test_tasks import KILLS, make, until

LONG = {"prompt": "say x\nsleep 600"}
NEXT = {"prompt": "say y"}

Act = Callable[[Serving, str, Json], Awaitable[object]]


async def nothing(service: Serving, session: str, task: Json) -> None:
    """The step ends by itself."""


async def cancel_task(service: Serving, session: str, task: Json) -> None:
    await service.client.post(f"/v1/tasks/{task['task_id']}/cancel")


async def cancel_turn(service: Serving, session: str, task: Json) -> None:
    await service.client.post(f"/v1/turns/{turns(task)[-1]}/cancel")


async def dequeue(service: Serving, session: str, task: Json) -> None:
    await service.client.delete(f"/v1/turns/{turns(task)[-1]}")


async def close(service: Serving, session: str, task: Json) -> None:
    await service.client.post(f"/v1/sessions/{session}/close")


async def drain(service: Serving, session: str, task: Json) -> None:
    await service.client.post(f"/v1/sessions/{session}/close", json={"mode": "drain"})


async def delete(service: Serving, session: str, task: Json) -> None:
    await service.client.delete(f"/v1/sessions/{session}")


async def interrupt(service: Serving, session: str, task: Json) -> None:
    await service.prompt(session, "say other", multitask_strategy="interrupt")


async def retry(service: Serving, session: str, task: Json) -> None:
    await service.client.post(f"/v1/tasks/{task['task_id']}/retry")


WAYS: dict[str, tuple[list[Json], Act, set[str]]] = {
    "completed": ([{"prompt": "say x\nsleep 0.3"}, NEXT], nothing, {"completed"}),
    "failed": ([{"prompt": "say x\nsleep 0.3\nfail x", "max_attempts": 3}, NEXT], nothing, set()),
    "timed-out": ([{**LONG, "deadline_s": 0.5}, NEXT], nothing, {"timed_out"}),
    "repeated": ([{**LONG, "deadline_s": 0.5, "max_attempts": 3}, NEXT], nothing, {"timed_out"}),
    "task": ([LONG, NEXT], cancel_task, {"cancelled"}),
    "turn": ([LONG, NEXT], cancel_turn, {"cancelled"}),
    "queue": ([NEXT, NEXT], dequeue, {"cancelled", "completed"}),
    "close": ([LONG, NEXT], close, {"cancelled"}),
    "drain": ([{"prompt": "say x\nsleep 0.3"}, NEXT], drain, {"cancelled", "completed"}),
    "delete": ([LONG, NEXT], delete, {"cancelled"}),
    "interrupt": ([LONG, NEXT], interrupt, {"cancelled"}),
    "retry": ([{"prompt": "fail x"}, NEXT], retry, set()),
}
"""A session each: the task's steps, what is done to it, and how it may end if the kill does not end its turn:
then it has failed, since nobody can know what the agent did."""


async def begin(service: Serving, way: str, session: str) -> Json:
    """The way's task, with its turn where it is to be ended."""
    steps, _, _ = WAYS[way]
    if way == "queue":
        await service.ensure(session)
        await service.prompt(session, "say busy\nsleep 600")
    task = await make(service, session, "demo", *steps)
    if way == "retry":
        return await ended(service.client, task["task_id"])
    await until(service, session, "message.delta", 1)  # in its own turn, or in the one before it
    return task


async def settle(service: Serving, way: str, session: str, task: Json) -> None:
    """The task has ended, as it may, and its log tells so without a hole; or it is gone with its session."""
    if way == "delete":
        answer = await service.client.get(f"/v1/tasks/{task['task_id']}")
        if answer.status_code == 404:
            return
    if way == "queue":  # the kill has ended the turn before it
        for turn in (await service.get(f"/v1/sessions/{session}/turns"))["items"]:
            await service.ended(turn["turn_id"])
    task = await ended(service.client, task["task_id"])
    assert task["status"] in WAYS[way][2] | {"failed"}, (way, task)
    log = [frame.data for frame in await service.log(session)]
    assert [event["seq"] for event in log] == list(range(1, len(log) + 1))
    if way != "retry":  # which goes on after an end
        assert_whole(log, task)


@pytest.mark.parametrize("number", range(max(1, KILLS // 3)))
async def test_killed_as_steps_end_in_every_way_no_task_is_left_behind(folder: Path, number: int) -> None:
    """Each of them has ended after the restart; none waits for a turn that will never come."""
    tasks: dict[str, Json] = {}
    async with serving(folder) as service:

        async def prepare(way: str) -> None:
            tasks[way] = await begin(service, way, f"s-{way}")

        async with anyio.create_task_group() as group:
            for way in WAYS:
                group.start_soon(prepare, way)

        async def act(way: str) -> None:
            with suppress(httpx.HTTPError, AssertionError):  # it is killed meanwhile
                await WAYS[way][1](service, f"s-{way}", tasks[way])

        agents = [process for process in service.below() if "postgres" not in process.name()]
        async with anyio.create_task_group() as group:
            for way in WAYS:
                group.start_soon(act, way)
            await anyio.sleep(random.uniform(0, 0.5))
            await service.kill()
        await all_gone(agents)
    async with serving(folder) as service:
        with anyio.fail_after(PATIENCE * 2):
            for way, task in tasks.items():
                await settle(service, way, f"s-{way}", task)
        for status in ("pending", "running"):
            left = (await service.get("/v1/tasks", status=status))["items"]
            assert [one["session_id"] for one in left] == []
