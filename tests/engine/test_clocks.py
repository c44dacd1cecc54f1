"""The three limits of a turn, at every moment of it: what ends, as what, and what the agent was told."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.engine.test_turns import data_of, seen, told, types_of
from tests.house import House, open_house
from tests.paseo.twin import Twin
from tests.system.test_paseo_recovery import backend, daemon_house


def ended(events: list[dict[str, Any]]) -> tuple[str, str, str | None]:
    """A timed-out turn's limit, what is known of its delivery, and what came of stopping it."""
    data = data_of(events, "turn.timed_out")
    return data["limit"], data["delivered"], data["cancel_outcome"]


@asynccontextmanager
async def scripted(database_url: str, folder: Path) -> AsyncIterator[tuple[House, Twin, str]]:
    """A session with an agent of the daemon's."""
    async with daemon_house(database_url, folder, window=0.005) as (house, twin):
        yield house, twin, (await house.ensure("s", agent="scripted"))["agent_session_id"]


@pytest.mark.parametrize(
    ("limits", "script", "limit"),
    [
        ({"deadline_s": 0.5}, "say x\nhang", "deadline"),
        ({"deadline_s": 0.5}, "chunks 10000 20", "deadline"),
        ({"deadline_s": 0.5, "idle_timeout_s": 0.2}, "ask Go?", "deadline"),
        ({"deadline_s": 0.5, "idle_timeout_s": 0.2}, "toolstart search x\nhang", "deadline"),
        ({"idle_timeout_s": 0.5}, "say x\nhang", "idle"),
        ({"idle_timeout_s": 0.5}, "hang", "idle"),
    ],
)
async def test_running_turn_is_stopped_at_its_limit(
    limits: dict[str, float], script: str, limit: str, database_url: str, folder: Path
) -> None:
    """The agent is told before it is said; a person who is asked, or a tool, stops the idle clock."""
    async with scripted(database_url, folder) as (house, twin, agent):
        turn = (await house.prompt("s", script, **limits))["turn_id"]
        assert ended(await told(house, turn)) == (limit, "yes", "stopped")
        assert twin.record.count("cancel_agent_request", agentId=agent) == 1
        assert twin.agent(agent).snapshot()["status"] == "idle"
        view = await house.get(f"/v1/turns/{turn}")
        assert (view["status"], view["limit"], view["cancel_outcome"]) == ("timed_out", limit, "stopped")
        assert (await house.run("s", "say on"))["output_text"] == "on"


async def test_agent_that_does_not_obey_is_forced_at_the_limit(database_url: str, folder: Path) -> None:
    """`forced`, and the next turn has a process that works."""
    async with scripted(database_url, folder) as (house, twin, agent):
        turn = (await house.prompt("s", "say x\nstubborn 20000", deadline_s=0.5))["turn_id"]
        assert ended(await told(house, turn)) == ("deadline", "yes", "forced")
        assert twin.record.count("cancel_agent_request", agentId=agent) == 1
        assert (await house.run("s", "say on"))["output_text"] == "on"


async def test_limits_of_a_running_turn_do_not_count_in_the_queue(database_url: str, folder: Path) -> None:
    """Deadline and idle time count from the start; the queue's own clock ends at the start."""
    async with scripted(database_url, folder) as (house, _, _):
        first = (await house.prompt("s", "say x\nsleep 1200"))["turn_id"]
        limits = {"queue_timeout_s": 5, "deadline_s": 1, "idle_timeout_s": 1}
        second = await house.prompt("s", "say y", multitask_strategy="enqueue", **limits)
        assert (await house.ended(second["turn_id"]))["status"] == "completed"
        assert (await house.ended(first))["status"] == "completed"


async def test_queued_turn_times_out_while_the_backend_is_down(database_url: str, folder: Path) -> None:
    """It was never delivered, and there was nothing to stop."""
    async with scripted(database_url, folder) as (house, twin, _):
        twin.faults.refuse_connections = True
        twin.drop()
        turn = await house.prompt("s", "say x", multitask_strategy="enqueue", queue_timeout_s=0.5)
        events = await told(house, turn["turn_id"])
        assert types_of(events) == ["turn.queued", "turn.timed_out"]
        assert ended(events) == ("queue", "no", None)
        assert twin.record.count("send_agent_message_request") == 0


async def test_deadline_includes_the_pauses_before_an_attempt_comes_again(
    database_url: str, folder: Path
) -> None:
    """It ends a turn that waits for its next attempt: nothing runs, and nothing was delivered."""
    async with scripted(database_url, folder) as (house, twin, _):
        twin.faults.ignored = {"clear_agent_attention"}
        turn = (await house.prompt("s", "say x", deadline_s=2))["turn_id"]
        await twin.record.wait("clear_agent_attention")
        twin.faults.refuse_connections = True
        twin.drop()
        events = await told(house, turn)
        assert types_of(events) == ["turn.queued", "turn.started", "turn.retrying", "turn.timed_out"]
        assert ended(events) == ("deadline", "no", "stopped")
        assert twin.record.count("send_agent_message_request") == 0


@pytest.mark.parametrize("limit", ["deadline", "idle"])
async def test_limits_end_a_turn_that_nobody_can_see(database_url: str, folder: Path, limit: str) -> None:
    """The link is down: the agent cannot be told, and may still be working."""
    limits = {"deadline": {"deadline_s": 1}, "idle": {"idle_timeout_s": 1}}[limit]
    async with scripted(database_url, folder) as (house, twin, _):
        turn = (await house.prompt("s", "say x\nhang", **limits))["turn_id"]
        await seen(house, "s", "message.delta")
        twin.faults.refuse_connections = True
        twin.drop()
        events = await told(house, turn)
        assert "turn.reconciling" in types_of(events)
        assert ended(events) == (limit, "yes", "unconfirmed")


async def test_deadline_tells_the_agent_to_stop_once_the_link_is_back(
    database_url: str, folder: Path
) -> None:
    """Passed while nobody could see; the agent is told as soon as it can be."""
    async with scripted(database_url, folder) as (house, twin, agent):
        turn = (await house.prompt("s", "say x\nhang", deadline_s=1))["turn_id"]
        started = await seen(house, "s", "message.delta")
        twin.faults.refuse_connections = True
        twin.drop()
        await seen(house, "s", "turn.reconciling")
        passed = datetime.fromisoformat(started[-1].data["at"]).timestamp() + 1.2
        await anyio.sleep(passed - datetime.now(UTC).timestamp())
        twin.faults.refuse_connections = False
        assert ended(await told(house, turn)) == ("deadline", "yes", "stopped")
        assert twin.record.count("cancel_agent_request", agentId=agent) == 1


async def test_agent_whose_process_died_unseen_is_idle(database_url: str, folder: Path) -> None:
    """It takes the prompt and does nothing: the idle limit ends the turn, and the next one works."""
    async with scripted(database_url, folder) as (house, twin, agent):
        await house.run("s", "say before")
        process = twin.agent(agent).process
        assert process is not None
        process.dead = True
        turn = (await house.prompt("s", "say never", idle_timeout_s=0.5))["turn_id"]
        limit, delivered, _ = ended(await told(house, turn))
        assert (limit, delivered) == ("idle", "yes")
        assert twin.record.count("cancel_agent_request", agentId=agent) == 1


@pytest.mark.parametrize("kind", ["deadline_s", "idle_timeout_s"])
async def test_limit_of_a_turn_that_was_taken_over_ends_it(
    kind: str, database_url: str, folder: Path
) -> None:
    """The next process stops the agent; the deadline counts from the first start, not from the take-over."""
    async with Twin(window=0.005) as twin:
        async with open_house(database_url, folder, backends=backend(twin)) as first:
            await first.ensure("s", agent="scripted")
            turn = (await first.prompt("s", "say x\nhang", **{kind: 3}))["turn_id"]
            await seen(first, "s", "message.delta")
        async with open_house(database_url, folder, backends=backend(twin)) as second:
            events = await told(second, turn)
            assert ended(events) == (kind.split("_")[0], "yes", "stopped")
            assert types_of(events).count("turn.started") == 1
            if kind == "deadline_s":
                [begun] = [event for event in events if event["type"] == "turn.started"]
                lasted = datetime.fromisoformat(events[-1]["at"]) - datetime.fromisoformat(begun["at"])
                assert 3 <= lasted.total_seconds() < 3 + 1.5
        assert twin.record.count("cancel_agent_request") == 1
        assert twin.record.count("send_agent_message_request") == 1


async def test_deadline_passed_while_nobody_hosted_the_turn_ends_it_at_once(
    database_url: str, folder: Path
) -> None:
    """The daemon is away too: what was told of the turn is still known to have been delivered."""
    async with Twin(window=0.005) as twin:
        async with open_house(database_url, folder, backends=backend(twin)) as first:
            await first.ensure("s", agent="scripted")
            turn = (await first.prompt("s", "say x\nhang", deadline_s=0.5))["turn_id"]
            await seen(first, "s", "message.delta")
            twin.faults.refuse_connections = True
            twin.drop()
            await seen(first, "s", "turn.reconciling")
        async with open_house(database_url, folder, backends=backend(twin)) as second:
            assert ended(await told(second, turn)) == ("deadline", "yes", "unconfirmed")


async def test_turn_that_was_never_delivered_is_taken_over_as_such(database_url: str, folder: Path) -> None:
    """It waits for its next attempt in another process: its deadline goes on, and nothing was delivered."""
    async with Twin(window=0.005) as twin:
        async with open_house(database_url, folder, backends=backend(twin)) as first:
            await first.ensure("s", agent="scripted")
            twin.faults.ignored = {"clear_agent_attention"}
            turn = (await first.prompt("s", "say x", deadline_s=4))["turn_id"]
            await twin.record.wait("clear_agent_attention")
            twin.faults.refuse_connections = True
            twin.drop()
            await seen(first, "s", "turn.retrying")
        async with open_house(database_url, folder, backends=backend(twin)) as second:
            events = await told(second, turn)
            assert ended(events) == ("deadline", "no", "stopped")
        assert twin.record.count("send_agent_message_request") == 0
