"""Tasks: steps one after the other on a session that others use too, ended by whatever may end them."""

import random
from pathlib import Path
from typing import Any

import anyio
import pytest

from app.settings import BackendSettings
from app.store.database import Address
from tests.engine.replicas import two_houses
from tests.engine.task_house import assert_whole, done, make, settled, statuses, story, turns
from tests.engine.test_replicas import host_of
from tests.house import House, open_house
from tests.paseo.twin import Twin

Json = dict[str, Any]
ENDS = ("turn.completed", "turn.failed", "turn.cancelled", "turn.timed_out", "turn.indeterminate")


async def begun(house: House, session: str, count: int = 1, event: str = "message.delta") -> None:
    """Return once the log has so many events of a type."""
    async with house.stream(f"/v1/sessions/{session}/events/stream") as stream:
        await stream.until(event, count)


def positions_are_true(log: list[Json]) -> None:
    """Each `turn.queued` says how many turns were open at that moment, as the log itself tells."""
    opened: set[str] = set()
    for event in log:
        if event["type"] == "turn.queued":
            assert event["data"]["position"] == len(opened)
            opened.add(event["turn_id"])
        elif event["type"] in ENDS:
            opened.remove(event["turn_id"])


async def test_steps_run_one_after_the_other(house: House) -> None:
    """Each is a turn; the next is admitted right behind the end of the one before, in its transaction."""
    await house.ensure("s")
    steps: list[Json] = [{"name": name, "prompt": f"say {name}"} for name in ("plan", "build", "test")]
    task = await done(house, await make(house, "s", *steps))
    assert statuses(task) == ("completed", ["completed"] * 3)
    log = await house.log("s")
    assert_whole(log, task)
    assert story(log, task) == [
        *(
            "turn.queued 0",
            "task.started plan",
            "task.step_started plan",
            "turn.started 0",
            "turn.completed 0",
        ),
        *("turn.queued 1", "task.step_started build", "turn.started 1", "turn.completed 1"),
        *("turn.queued 2", "task.step_started test", "turn.started 2", "turn.completed 2"),
        "task.completed test",
    ]
    for step, turn_id in zip(steps, turns(task), strict=True):
        turn = await house.get(f"/v1/turns/{turn_id}")
        mine = [event["seq"] for event in log if event["turn_id"] == turn_id]
        assert (turn["first_seq"], turn["last_seq"]) == (mine[0], mine[-1])
        assert (turn["prompt"], turn["output_text"]) == (step["prompt"], step["name"])


async def test_the_stream_of_a_step_s_turn_ends_with_the_turn(house: House) -> None:
    """What follows in the same commit belongs to others."""
    await house.ensure("s")
    task = await make(house, "s", {"prompt": "say a"}, {"prompt": "say b"})
    async with house.stream(f"/v1/turns/{turns(task)[0]}/events/stream") as stream:
        frames = [frame for frame in await stream.to_end() if frame.id is not None and frame.event]
    assert [frames[0].event, frames[-1].event] == ["turn.queued", "turn.completed"]
    assert {frame.data["turn_id"] for frame in frames} == {turns(task)[0]}


async def test_a_task_waits_on_a_busy_session_and_lets_others_in_between(house: House) -> None:
    """It is `pending` until its first turn starts; each step queues behind what is there by then."""
    await house.ensure("s")
    await house.prompt("s", "say busy\nsleep 600")
    await begun(house, "s")
    task = await make(house, "s", {"prompt": "say a\nsleep 0.3"}, {"prompt": "say b"})
    assert statuses(task) == ("pending", ["pending", "pending"])
    other = await house.prompt("s", "say other", multitask_strategy="enqueue")
    log = await house.log("s")
    assert not any(event["type"].startswith("task.") for event in log)
    running = (await house.get("/v1/sessions/s"))["current_turn_id"]
    await house.post(f"/v1/turns/{running}/cancel")
    task = await done(house, task)
    assert task["status"] == "completed"
    log = await house.log("s")
    positions_are_true(log)
    started = [event["turn_id"] for event in log if event["type"] == "turn.started"]
    first, second = turns(task)
    assert started == [running, first, other["turn_id"], second]


async def test_a_step_that_fails_stops_the_task_or_not(house: House) -> None:
    """As the caller said for that step; what was not reached stays pending."""
    await house.ensure("s")
    steps: list[Json] = [
        {"prompt": "fail first", "on_failure": "continue"},
        {"prompt": "say second"},
        {"prompt": "fail third"},
        {"prompt": "say fourth"},
    ]
    task = await done(house, await make(house, "s", *steps))
    assert statuses(task) == ("failed", ["failed", "completed", "failed", "pending"])
    assert [step["error"] is None for step in task["steps"]] == [False, True, False, True]
    error = task["steps"][2]["error"]
    assert (error["code"], "third" in error["message"], error["retriable"]) == ("provider_error", True, True)
    log = await house.log("s")
    assert_whole(log, task)
    assert story(log, task)[-1] == "task.failed step-3"


async def test_a_task_whose_last_step_may_fail_completes(house: House) -> None:
    """The step says that it failed; the task got to its end."""
    await house.ensure("s")
    task = await done(house, await make(house, "s", {"prompt": "fail x", "on_failure": "continue"}))
    assert statuses(task) == ("completed", ["failed"])
    assert_whole(await house.log("s"), task)


async def test_attempts_run_a_failed_prompt_again_as_new_turns(house: House) -> None:
    """As many as the caller said, each a retry of the one before; the task's state tells only the last."""
    await house.ensure("s")
    steps: list[Json] = [{"prompt": "fail x", "max_attempts": 3}, {"prompt": "say never"}]
    task = await done(house, await make(house, "s", *steps))
    assert statuses(task) == ("failed", ["failed", "pending"])
    found = [await house.get(f"/v1/turns/{turn}") for turn in turns(task)]
    assert [turn["retry_of"] for turn in found] == [None, *turns(task)[:2]]
    assert {turn["prompt"] for turn in found} == {"fail x"}
    log = await house.log("s")
    assert_whole(log, task)
    assert story(log, task) == [
        *(
            "turn.queued 0",
            "task.started step-1",
            "task.step_started step-1",
            "turn.started 0",
            "turn.failed 0",
        ),
        *("turn.queued 1", "task.step_started step-1", "turn.started 1", "turn.failed 1"),
        *("turn.queued 2", "task.step_started step-1", "turn.started 2", "turn.failed 2"),
        "task.failed step-1",
    ]


@pytest.mark.parametrize("attempts", [1, 2])
async def test_a_step_that_passes_its_deadline_is_stopped_and_may_be_repeated(
    house: House, attempts: int
) -> None:
    """The agent was told to stop and did, so its prompt may be given again, if the caller said so."""
    await house.ensure("s")
    steps: list[Json] = [
        {"prompt": "say x\nsleep 600", "deadline_s": 0.3, "max_attempts": attempts},
        {"prompt": "say never"},
    ]
    task = await done(house, await make(house, "s", *steps))
    assert statuses(task) == ("timed_out", ["timed_out", "pending"])
    assert task["steps"][0]["error"]["code"] == "timed_out"
    assert "deadline" in task["steps"][0]["error"]["message"]
    found = [await house.get(f"/v1/turns/{turn}") for turn in turns(task)]
    assert [(turn["status"], turn["limit"], turn["cancel_outcome"]) for turn in found] == [
        ("timed_out", "deadline", "stopped")
    ] * attempts
    log = await house.log("s")
    assert_whole(log, task)
    assert story(log, task)[-1] == "task.timed_out step-1"


async def test_a_time_out_that_nobody_confirmed_is_not_repeated(database_url: str, folder: Path) -> None:
    """The agent may still be working on it: not again, however many attempts are left."""
    async with Twin(window=0.005) as twin, open_house(database_url, folder, backends=paseo(twin)) as house:
        await house.ensure("s", agent="scripted")
        step = {"prompt": "say x\nhang", "deadline_s": 1, "max_attempts": 3}
        task = await make(house, "s", step, {"prompt": "say never"})
        await begun(house, "s")
        twin.faults.refuse_connections = True
        twin.drop()
        task = await done(house, task)
        assert statuses(task) == ("timed_out", ["timed_out", "pending"])
        [turn] = turns(task)
        assert (await house.get(f"/v1/turns/{turn}"))["cancel_outcome"] == "unconfirmed"
        assert task["steps"][0]["error"]["retriable"] is False
        assert twin.record.count("send_agent_message_request") == 1


async def test_a_later_attempt_may_succeed(database_url: str, folder: Path) -> None:
    """Then the step completed, its error is gone, and the task goes on."""
    async with Twin(window=0.005) as twin, open_house(database_url, folder, backends=paseo(twin)) as house:
        await house.ensure("s", agent="scripted")
        steps: list[Json] = [
            {"prompt": "sleep 20000", "deadline_s": 0.5, "max_attempts": 2},
            {"prompt": "say b"},
        ]
        task = await make(house, "s", *steps)
        await begun(house, "s", event="turn.timed_out")  # the next starts once the agent has settled
        twin.speed = 1000.0
        task = await done(house, task)
        assert statuses(task) == ("completed", ["completed", "completed"])
        assert [len(step["turn_ids"]) for step in task["steps"]] == [2, 1]
        assert task["steps"][0]["error"] is None
        assert_whole(await house.log("s"), task)


# Cancelled.


async def test_a_cancel_stops_the_running_step_and_the_task(house: House) -> None:
    """No further step begins; repeated, it changes nothing."""
    await house.ensure("s")
    task = await make(house, "s", {"prompt": "say a"}, {"prompt": "say b\nsleep 600"}, {"prompt": "say c"})
    await begun(house, "s", 2)
    answer = await house.post(f"/v1/tasks/{task['task_id']}/cancel")
    assert answer.status_code == 200
    assert statuses(answer.json()) == ("cancelled", ["completed", "cancelled", "pending"])
    log = await house.log("s")
    assert_whole(log, answer.json())
    assert story(log, answer.json())[-2:] == ["turn.cancelled 1", "task.cancelled step-2"]
    again = await house.post(f"/v1/tasks/{task['task_id']}/cancel")
    assert (again.status_code, again.json()) == (200, answer.json())
    assert await house.log("s") == log
    assert (await house.run("s", "say on"))["output_text"] == "on"


@pytest.mark.parametrize("by", ["task", "turn", "queue"])
async def test_a_task_that_waits_is_cancelled_without_having_begun(house: House, by: str) -> None:
    """Itself, or its turn: cancelled, or taken out of the queue."""
    await house.ensure("s")
    await house.prompt("s", "say busy\nsleep 600")
    await begun(house, "s")
    task = await make(house, "s", {"prompt": "say a", "max_attempts": 3, "on_failure": "continue"})
    [turn] = turns(task)
    if by == "task":
        answer = await house.post(f"/v1/tasks/{task['task_id']}/cancel")
    elif by == "turn":
        answer = await house.post(f"/v1/turns/{turn}/cancel")
    else:
        answer = await house.client.delete(f"/v1/turns/{turn}")
    assert answer.is_success
    task = await house.get(f"/v1/tasks/{task['task_id']}")
    assert statuses(task) == ("cancelled", ["cancelled"])
    log = await house.log("s")
    assert story(log, task) == ["turn.queued 0", "turn.cancelled 0", "task.cancelled step-1"]
    assert (await house.get(f"/v1/turns/{turn}"))["last_seq"] == log[-2]["seq"]


async def test_an_interrupting_prompt_cancels_the_task(house: House) -> None:
    """Its step's turn was cancelled, which is no failure that `on_failure` could pass over."""
    await house.ensure("s")
    steps: list[Json] = [
        {"prompt": "say a\nsleep 600", "on_failure": "continue", "max_attempts": 2},
        {"prompt": "say b"},
    ]
    task = await make(house, "s", *steps)
    await begun(house, "s")
    other = await house.prompt("s", "say other", multitask_strategy="interrupt")
    assert (await house.ended(other["turn_id"]))["output_text"] == "other"
    task = await settled(house, task["task_id"])
    assert statuses(task) == ("cancelled", ["cancelled", "pending"])


async def test_a_close_cancels_every_task_of_the_session(house: House) -> None:
    """The one that runs and those that wait; `session.closed` is the last event."""
    await house.ensure("s")
    made = [await make(house, "s", {"prompt": f"say {n}\nsleep 600"}, {"prompt": "say x"}) for n in range(3)]
    await begun(house, "s")
    assert (await house.post("/v1/sessions/s/close")).json()["status"] == "closed"
    ended = [await house.get(f"/v1/tasks/{task['task_id']}") for task in made]
    assert [statuses(task) for task in ended] == [("cancelled", ["cancelled", "pending"])] * 3
    log = await house.log("s")
    for task in ended:
        assert_whole(log, task)
    assert log[-1]["type"] == "session.closed"


async def test_a_drained_session_ends_its_open_step_and_begins_none(house: House) -> None:
    """The task is cancelled between two steps, and a retry later begins with the next one."""
    await house.ensure("s")
    task = await make(house, "s", {"prompt": "say a\nask Go on?"}, {"prompt": "say b"})
    await begun(house, "s", event="permission.requested")
    await house.post("/v1/sessions/s/close", {"mode": "drain"})
    ((asked,), _) = (await house.get("/v1/permissions", status="pending")).values()
    await house.post(f"/v1/permissions/{asked['permission_id']}/respond", {"outcome": "allow"})
    await begun(house, "s", event="session.closed")
    task = await settled(house, task["task_id"])
    assert statuses(task) == ("cancelled", ["completed", "pending"])
    await house.ensure("s")
    task = await done(house, (await house.post(f"/v1/tasks/{task['task_id']}/retry")).json())
    assert statuses(task) == ("completed", ["completed", "completed"])
    assert [len(step["turn_ids"]) for step in task["steps"]] == [1, 1]


async def test_a_cancel_that_races_a_step_s_end_is_one_or_the_other(house: House) -> None:
    """Whatever comes first: no step begins after the cancel, none is lost, and each is told of once."""
    await house.ensure("s")
    ends = set()
    for _ in range(12):
        task = await make(house, "s", *({"prompt": f"say {n}"} for n in range(4)))
        others: list[str] = []

        async def crowd(others: list[str] = others) -> None:
            for _ in range(3):
                one = await house.prompt("s", "say other", multitask_strategy="enqueue")
                others.append(one["turn_id"])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(crowd)
            await anyio.sleep(random.uniform(0, 0.2))
            answer = await house.post(f"/v1/tasks/{task['task_id']}/cancel")
        assert answer.status_code == 200, answer.text
        task = answer.json()
        ends.add(task["status"])
        done_steps = [step for step in task["steps"] if step["status"] == "completed"]
        if task["status"] == "completed":
            assert len(done_steps) == 4
        else:
            assert task["status"] == "cancelled"
            later = task["steps"][len(done_steps) :]
            assert later[0]["status"] in ("cancelled", "pending")
            assert {step["status"] for step in later[1:]} <= {"pending"}
        for turn in others:
            await house.ended(turn)
        log = await house.log("s")
        assert_whole(log, task)
        positions_are_true(log)
    assert "cancelled" in ends


# Tried again.


async def test_a_retry_goes_on_from_the_failed_step(house: House) -> None:
    """What completed is not run again; the step has all its attempts once more, and its old turns."""
    await house.ensure("s")
    steps: list[Json] = [{"prompt": "say a"}, {"prompt": "fail b", "max_attempts": 2}, {"prompt": "say c"}]
    task = await done(house, await make(house, "s", *steps))
    assert statuses(task) == ("failed", ["completed", "failed", "pending"])
    answer = await house.post(f"/v1/tasks/{task['task_id']}/retry")
    assert answer.status_code == 202
    assert (answer.json()["status"], answer.json()["ended_at"]) == ("pending", None)
    assert answer.json()["steps"][1]["error"] is None
    task = await done(house, answer.json())
    assert statuses(task) == ("failed", ["completed", "failed", "pending"])
    assert [len(step["turn_ids"]) for step in task["steps"]] == [1, 4, 0]
    found = [await house.get(f"/v1/turns/{turn}") for turn in turns(task)]
    assert [turn["retry_of"] for turn in found] == [None, None, *turns(task)[1:4]]
    told = [one for one in story(await house.log("s"), task) if one.startswith("task.")]
    assert told == [
        *("task.started step-1", "task.step_started step-1"),
        *("task.step_started step-2", "task.step_started step-2", "task.failed step-2"),
        *(
            "task.started step-2",
            "task.step_started step-2",
            "task.step_started step-2",
            "task.failed step-2",
        ),
    ]


async def test_only_one_of_many_retries_is_taken(house: House) -> None:
    """The others find the task open."""
    await house.ensure("s")
    task = await done(house, await make(house, "s", {"prompt": "sleep 600", "deadline_s": 0.2}))
    codes: list[int] = []

    async def retry() -> None:
        codes.append((await house.post(f"/v1/tasks/{task['task_id']}/retry")).status_code)

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(retry)
    assert sorted(codes) == [202, *[409] * 7]
    assert len(turns(await settled(house, task["task_id"]))) == 2


# Elsewhere.


async def test_any_replica_takes_shows_and_cancels_a_task(
    database_url: str, database_address: Address, folder: Path
) -> None:
    """What one hosts, the other admits to, follows to its end and stops; both tell the same."""
    async with two_houses(database_url, folder) as (first, second):
        await first.ensure("s")
        host = await host_of(database_address, "s")
        task = await make(second, "s", {"prompt": "say a"}, {"prompt": "say b"})
        assert statuses(await done(second, task)) == ("completed", ["completed", "completed"])
        running = await make(second, "s", {"prompt": "say c"}, {"prompt": "say d\nsleep 600"})
        await begun(second, "s", 4)
        waiting = await make(first, "s", {"prompt": "say e"}, {"prompt": "say f"})
        for one, expected in ((waiting, ["cancelled", "pending"]), (running, ["completed", "cancelled"])):
            answer = await second.post(f"/v1/tasks/{one['task_id']}/cancel")
            assert (answer.status_code, statuses(answer.json())) == (200, ("cancelled", expected))
            assert await first.get(f"/v1/tasks/{one['task_id']}") == answer.json()
            assert_whole(await first.log("s"), answer.json())
        assert await host_of(database_address, "s") == host
        assert await first.log("s") == await second.log("s")


async def test_a_host_that_leaves_right_after_a_step_hands_the_next_one_on(
    database_url: str, folder: Path
) -> None:
    """The next step's turn is there, and somebody wants it, although its host has not looked again."""
    async with Twin(window=0.005) as twin:
        task: Json = {}
        for number in range(6):
            async with open_house(database_url, folder, backends=paseo(twin)) as house:
                if not task:
                    await house.ensure("s", agent="scripted")
                    task = await make(house, "s", *({"prompt": f"say step {n}\nsleep 20"} for n in range(8)))
                await begun(house, "s", number + 1, "turn.completed")
        async with open_house(database_url, folder, backends=paseo(twin)) as house:
            task = await done(house, task)
            assert statuses(task) == ("completed", ["completed"] * 8)
            assert_whole(await house.log("s"), task)
        sent = [one.message["text"] for one in twin.record.of("send_agent_message_request")]
        assert sent == [f"say step {n}\nsleep 20" for n in range(8)]


def paseo(twin: Twin) -> dict[str, BackendSettings]:
    """The twin as the configured Paseo backend."""
    return {"paseo": BackendSettings(type="paseo", url=twin.http, provider="scripted")}
