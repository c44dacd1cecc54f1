"""The four ways in which a permission ends, each against the end of its turn; and what a person is told."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from app.settings import BackendSettings
from tests.engine.replicas import agents
from tests.engine.test_turns import asked, data_of, respond, seen, told, types_of
from tests.house import House, open_house
from tests.paseo.twin import Twin
from tests.system.test_paseo_recovery import backend, daemon_house

CONTRACT = {
    ("permission.resolved", "caller"): (("allowed", "denied", "unknown"), 409),
    ("permission.resolved", "policy"): (("allowed", "denied", "unknown"), 409),
    ("permission.resolved", "backend"): (("allowed", "denied", "unknown"), 409),
    ("permission.expired", "timeout"): (("expired",), 410),
    ("permission.expired", "backend"): (("expired",), 410),
    ("permission.resolved", "turn_end"): (("cancelled",), 409),
}
"""By event and `by`: the statuses that it may leave, and what a later answer gets."""


@dataclass
class Pending:
    """A turn that waits for a person."""

    house: House
    twin: Twin
    session: dict[str, Any]
    turn: str
    permission: str
    expires_at: datetime

    @property
    def agent(self) -> str:
        """The backend's id of the agent."""
        return str(self.session["agent_session_id"])

    async def cancel(self) -> None:
        """End the turn."""
        await self.house.post(f"/v1/turns/{self.turn}/cancel")

    async def end(self) -> tuple[str, str]:
        """How the permission ended: its one event and `by`; all that the contract says of that holds."""
        events = await told(self.house, self.turn)
        [ended] = [e for e in events if e["type"] in ("permission.resolved", "permission.expired")]
        data, found = ended["data"], (ended["type"], ended["data"]["by"])
        statuses, code = CONTRACT[found]
        view = await self.house.get(f"/v1/permissions/{self.permission}")
        assert view["status"] in statuses
        assert view["status"] in (data["outcome"], "expired")
        assert {name: view[name] for name in ("outcome", "option_id", "by", "actor")} == {
            name: data[name] for name in ("outcome", "option_id", "by", "actor")
        }
        if "cancelled" in statuses or found == ("permission.expired", "backend"):
            assert data["outcome"] == "cancelled"
        late = await respond(self.house, self.permission, "allow")
        problem = late.json()
        assert late.status_code == code
        if code == 409:
            assert problem["code"] == "permission_already_resolved"
            assert (problem["outcome"], problem["by"]) == (data["outcome"], data["by"])
            assert problem["at"] == view["resolved_at"]
        else:
            assert problem["code"] == "permission_expired"
        return found


async def pending(
    house: House, twin: Twin, name: str, *, script: str = "ask Go?\nhang", **policy: Any
) -> Pending:
    """A turn that asks, and does not end by itself after the answer."""
    session = await house.ensure(name, agent="scripted", permission_policy={"mode": "ask", **policy})
    turn = (await house.prompt(name, script))["turn_id"]
    frames = await seen(house, name, "turn.requires_action")
    [event] = [frame.data for frame in frames if frame.event == "permission.requested"]
    expires_at = datetime.fromisoformat(event["data"]["expires_at"])
    return Pending(house, twin, session, turn, event["data"]["permission_id"], expires_at)


async def answer(pending: Pending) -> None:
    """A person answers; whoever wins, that is said truthfully."""
    answer = await respond(pending.house, pending.permission, "allow")
    found = answer.json()
    if answer.status_code == 200:
        assert (found["status"], found["by"]) == ("allowed", "caller")
    else:
        assert (answer.status_code, found["code"]) == (409, "permission_already_resolved")


async def answer_elsewhere(pending: Pending) -> None:
    """Another client of the daemon answers, if the agent still waits."""
    process = pending.twin.agent(pending.agent).process
    if process is not None and process.asked:
        pending.twin.answer(pending.agent, "allow")


async def time_out(pending: Pending) -> None:
    """Nobody answers in time."""
    await anyio.sleep((pending.expires_at - datetime.now(UTC)).total_seconds())


async def restart(pending: Pending) -> None:
    """The daemon is killed and started again: a new epoch."""
    await pending.twin.restart()


RESOLVED, EXPIRED = "permission.resolved", "permission.expired"
TURN_END = (RESOLVED, "turn_end")
WAYS: dict[str, tuple[Callable[[Pending], Awaitable[None]], tuple[str, str]]] = {
    "answer": (answer, (RESOLVED, "caller")),
    "answer_elsewhere": (answer_elsewhere, (RESOLVED, "backend")),
    "time_out": (time_out, (EXPIRED, "timeout")),
    "restart": (restart, (EXPIRED, "backend")),
}
"""By name: what happens to the permission, and how it ends of that alone."""


@pytest.mark.parametrize("order", ["permission_first", "together", "turn_first"])
@pytest.mark.parametrize("way", WAYS)
async def test_permission_ends_once_and_truthfully_against_the_end_of_its_turn(
    way: str, order: str, database_url: str, folder: Path
) -> None:
    """Whichever is first counts; both at once is one of the two; never two ends, never one after the turn's."""
    act, alone = WAYS[way]
    async with daemon_house(database_url, folder, window=0.005) as (house, twin):
        count = 1 if way == "restart" else 4
        everyone: list[Pending] = []

        async def open_(number: int) -> None:
            everyone.append(await pending(house, twin, f"s-{number}", timeout_s=1.0 if way == "time_out" else 900))

        async with anyio.create_task_group() as tasks:
            for number in range(count):
                tasks.start_soon(open_, number)

        async def race(one: Pending) -> None:
            if order == "permission_first":
                await act(one)
                await seen(house, one.session["session_id"], alone[0])
                await one.cancel()
            elif order == "turn_first":
                await one.cancel()
                await act(one)
            else:
                async with anyio.create_task_group() as both:
                    both.start_soon(act, one)
                    if way == "time_out":
                        await time_out(one)
                    await anyio.sleep(random.uniform(0, 0.02))
                    both.start_soon(one.cancel)
            found = await one.end()
            expected = {"permission_first": {alone}, "turn_first": {TURN_END}, "together": {alone, TURN_END}}
            assert found in expected[order]

        async with anyio.create_task_group() as tasks:
            for one in everyone:
                tasks.start_soon(race, one)
