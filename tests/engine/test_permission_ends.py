"""The four ways in which a permission ends, each against the end of its turn; and what a person is told."""

import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.engine.test_turns import data_of, respond, seen, told, types_of
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
    house: House,
    twin: Twin,
    name: str,
    *,
    agent: str = "scripted",
    script: str = "ask Go?\nhang",
    **policy: Any,
) -> Pending:
    """A turn that asks, and does not end by itself after the answer."""
    session = await house.ensure(name, agent=agent, permission_policy={"mode": "ask", **policy})
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
WAYS: dict[str, tuple[Callable[[Pending], Coroutine[Any, Any, None]], tuple[str, str]]] = {
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
    """Whichever is first counts; both at once is one of the two; never both, never after the turn's end."""
    act, alone = WAYS[way]
    async with daemon_house(database_url, folder, window=0.005) as (house, twin):
        count = 1 if way == "restart" else 4
        everyone: list[Pending] = []

        async def open_(number: int) -> None:
            soon = 4.0 if order == "turn_first" else 1.0  # else it is over before all have asked
            timeout_s = soon if way == "time_out" else 900
            everyone.append(await pending(house, twin, f"s-{number}", timeout_s=timeout_s))

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


@pytest.mark.parametrize("way", ["answer", "time_out"])
async def test_agent_of_our_own_is_raced_the_same(way: str, database_url: str, folder: Path) -> None:
    """What a child of ours asks ends once too, by its answer or by the end of its turn."""
    act, alone = WAYS[way]
    async with daemon_house(database_url, folder) as (house, twin):

        async def race(number: int) -> None:
            timeout_s = 1.0 if way == "time_out" else 900
            one = await pending(
                house, twin, f"s-{number}", agent="demo", script="ask Go?\nsleep 600", timeout_s=timeout_s
            )
            async with anyio.create_task_group() as both:
                both.start_soon(act, one)
                if way == "time_out":
                    await time_out(one)
                await anyio.sleep(random.uniform(0, 0.02))
                both.start_soon(one.cancel)
            assert await one.end() in (alone, TURN_END)

        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(race, number)


@pytest.mark.parametrize("mode", ["allow", "deny"])
async def test_policy_and_a_cancel_at_the_same_time_are_one_end(
    mode: str, database_url: str, folder: Path
) -> None:
    """Either the policy's answer counted, or the turn's end."""
    async with daemon_house(database_url, folder, window=0.005) as (house, twin):

        async def race(number: int) -> None:
            name = f"s-{number}"
            session = await house.ensure(name, agent="scripted", permission_policy={"mode": mode})
            turn = (await house.prompt(name, "ask Go?\nhang"))["turn_id"]
            asked = (await seen(house, name, "permission.requested"))[-1]
            await house.post(f"/v1/turns/{turn}/cancel")
            permission = asked.data["data"]["permission_id"]
            one = Pending(house, twin, session, turn, permission, datetime.now(UTC))
            assert await one.end() in ((RESOLVED, "policy"), TURN_END)

        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(race, number)


# Two answers.


async def test_answer_that_another_client_beat_is_told_what_counted(database_url: str, folder: Path) -> None:
    """409 with what is recorded, by `backend`; ours is recorded as ours only if it counted."""
    async with daemon_house(database_url, folder, window=0.005) as (house, twin):

        async def race(number: int) -> None:
            one = await pending(house, twin, f"s-{number}")
            answers: list[Any] = []

            async def deny() -> None:
                answers.append(await respond(house, one.permission, "deny"))

            async with anyio.create_task_group() as both:
                both.start_soon(deny)
                await anyio.sleep(number * 0.003)
                await answer_elsewhere(one)
            [ours] = answers
            found = ours.json()
            await one.cancel()
            end = await one.end()
            if ours.status_code == 200:
                assert (found["status"], found["by"], end) == ("denied", "caller", (RESOLVED, "caller"))
            else:
                assert (ours.status_code, found["code"]) == (409, "permission_already_resolved")
                assert found["outcome"] in ("allowed", "unknown")  # of a contested one nobody tells
                assert (found["by"], end) == ("backend", (RESOLVED, "backend"))

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(race, number)


async def test_answer_that_the_daemon_refuses_as_too_late_is_told_so(database_url: str, folder: Path) -> None:
    """Another client was first while ours was on its way; what counted is then told by nobody."""
    async with daemon_house(database_url, folder, window=0.005) as (house, twin):
        one = await pending(house, twin, "s")
        twin.faults.late = {"agent_permission_response": 0.004}
        async with anyio.create_task_group() as both:

            async def deny() -> None:
                ours = await respond(house, one.permission, "deny")
                assert (ours.status_code, ours.json()["code"]) == (409, "permission_already_resolved")
                assert (ours.json()["outcome"], ours.json()["by"]) == ("unknown", "backend")

            both.start_soon(deny)
            await twin.record.wait("agent_permission_response")
            await answer_elsewhere(one)
        await one.cancel()
        assert await one.end() == (RESOLVED, "backend")


async def test_answer_at_the_very_time_out_is_one_or_the_other(house: House) -> None:
    """200 and by the caller, or 410 and expired."""

    async def race(number: int) -> None:
        name = f"s-{number}"
        await house.ensure(name, permission_policy={"mode": "ask", "timeout_s": 1})
        turn = (await house.prompt(name, "ask Go?\nsay on"))["turn_id"]
        frames = await seen(house, name, "turn.requires_action")
        [event] = [frame.data["data"] for frame in frames if frame.event == "permission.requested"]
        due = (datetime.fromisoformat(event["expires_at"]) - datetime.now(UTC)).total_seconds()
        await anyio.sleep(due + (number - 4) * 0.003)
        answer = await respond(house, event["permission_id"], "allow")
        events = await told(house, turn)
        if answer.status_code == 200:
            assert (answer.json()["status"], answer.json()["by"]) == ("allowed", "caller")
            assert data_of(events, RESOLVED)["by"] == "caller"
        else:
            assert (answer.status_code, answer.json()["code"]) == (410, "permission_expired")
            assert data_of(events, EXPIRED)["by"] == "timeout"
            view = await house.get(f"/v1/permissions/{event['permission_id']}")
            assert (view["by"], view["actor"]) == ("timeout", None)

    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(race, number)


# Several at once.


async def test_each_of_several_pending_permissions_ends_in_its_own_way(
    database_url: str, folder: Path
) -> None:
    """`turn.requires_action` names all that wait, `turn.resumed` comes after the last."""
    async with daemon_house(database_url, folder, window=0.005) as (house, twin):
        policy = {"mode": "ask", "timeout_s": 2, "on_timeout": "deny"}
        session = await house.ensure("s", agent="scripted", permission_policy=policy)
        turn = (await house.prompt("s", "asks A;B;C\nhang"))["turn_id"]
        frames = await seen(house, "s", "turn.requires_action", 3)
        ids = [
            frame.data["data"]["permission_ids"] for frame in frames if frame.event == "turn.requires_action"
        ]
        assert ids == [ids[2][:1], ids[2][:2], ids[2]]
        assert len((await house.get("/v1/permissions", status="pending"))["items"]) == 3
        assert (await house.get("/v1/sessions/s"))["pending_permissions"] == 3
        assert (await respond(house, ids[2][2], "allow")).json()["status"] == "allowed"
        twin.answer(session["agent_session_id"], "deny")
        await seen(house, "s", "turn.resumed")
        await house.post(f"/v1/turns/{turn}/cancel")
        events = await told(house, turn)
        ends = [
            (event["data"]["permission_id"], event["data"]["outcome"], event["data"]["by"])
            for event in events
            if event["type"] in (RESOLVED, EXPIRED)
        ]
        assert sorted(ends) == sorted(
            [
                (ids[2][2], "allowed", "caller"),
                (ids[2][0], "denied", "backend"),
                (ids[2][1], "denied", "timeout"),
            ]
        )
        types = types_of(events)
        assert types.count("turn.resumed") == 1
        assert types.index("turn.resumed") > types.index(EXPIRED)


async def test_end_of_the_turn_ends_all_that_are_pending(database_url: str, folder: Path) -> None:
    """Each once, by `turn_end`, before the terminal event."""
    async with daemon_house(database_url, folder, window=0.005) as (house, _):
        await house.ensure("s", agent="scripted")
        turn = (await house.prompt("s", "asks A;B;C"))["turn_id"]
        await seen(house, "s", "turn.requires_action", 3)
        await house.post(f"/v1/turns/{turn}/cancel")
        events = await told(house, turn)
        ends = [event["data"] for event in events if event["type"] == RESOLVED]
        assert [(end["outcome"], end["by"]) for end in ends] == [("cancelled", "turn_end")] * 3
        assert len((await house.get("/v1/permissions", status="cancelled"))["items"]) == 3


# The policy, and restarts of ours.


@pytest.mark.parametrize(("on_timeout", "outcome"), [("deny", "denied"), ("allow", "allowed")])
async def test_nobodys_answer_is_given_in_the_policys_time(
    on_timeout: str, outcome: str, database_url: str, folder: Path
) -> None:
    """`expires_at` is when; the end says `timeout`; the turn goes on and ends as the agent decides."""
    async with daemon_house(database_url, folder, window=0.005) as (house, _):
        policy = {"mode": "ask", "timeout_s": 1, "on_timeout": on_timeout}
        await house.ensure("s", agent="scripted", permission_policy=policy)
        turn = (await house.prompt("s", "ask Go?\nsay on"))["turn_id"]
        events = await told(house, turn)
        [asked] = [event for event in events if event["type"] == "permission.requested"]
        [expired] = [event for event in events if event["type"] == EXPIRED]
        due = datetime.fromisoformat(asked["data"]["expires_at"])
        waited = due - datetime.fromisoformat(asked["at"])
        assert abs(waited.total_seconds() - 1) < 0.5
        assert datetime.fromisoformat(expired["at"]) >= due
        assert (expired["data"]["outcome"], expired["data"]["by"]) == (outcome, "timeout")
        view = await house.get(f"/v1/turns/{turn}")
        assert view["status"] == "completed"
        assert view["output_text"].endswith("on")


async def test_permission_outlives_its_host_with_its_id_and_its_time_out(
    database_url: str, folder: Path
) -> None:
    """The next process expires it when the first one would have."""
    async with Twin(window=0.005) as twin:
        async with open_house(database_url, folder, backends=backend(twin)) as first:
            one = await pending(first, twin, "s", script="ask Go?\nsay on", timeout_s=2)
        async with open_house(database_url, folder, backends=backend(twin)) as second:
            view = await second.get(f"/v1/permissions/{one.permission}")
            assert view["status"] == "pending"
            assert datetime.fromisoformat(view["expires_at"]) == one.expires_at
            events = await told(second, one.turn)
            [expired] = [event for event in events if event["type"] == EXPIRED]
            assert expired["data"]["permission_id"] == one.permission
            assert expired["data"]["by"] == "timeout"
            assert (await second.get(f"/v1/turns/{one.turn}"))["status"] == "completed"


@pytest.mark.parametrize("outage", ["link", "host"])
@pytest.mark.parametrize(("mode", "outcome"), [("allow", "allowed"), ("deny", "denied")])
async def test_policys_answer_that_was_lost_is_given_again(
    mode: str, outcome: str, outage: str, database_url: str, folder: Path
) -> None:
    """The link broke, or our process ended, before the daemon took it: nobody else would ever answer."""
    async with Twin(window=0.005) as twin:
        async with open_house(database_url, folder, backends=backend(twin)) as first:
            await first.ensure("s", agent="scripted", permission_policy={"mode": mode})
            if outage == "link":
                twin.faults.drop_before = "agent_permission_response"
            else:
                twin.faults.ignored = {"agent_permission_response"}
            turn = (await first.prompt("s", "ask Go?\nsay on"))["turn_id"]
            await twin.record.wait("agent_permission_response")
            if outage == "link":
                await first.ended(turn)
        twin.faults.ignored = set()
        async with open_house(database_url, folder, backends=backend(twin)) as second:
            events = await told(second, turn)
            resolved = data_of(events, RESOLVED)
            assert (resolved["outcome"], resolved["by"]) == (outcome, "policy")
            assert types_of(events)[-1] == "turn.completed"


async def test_answer_that_cannot_be_delivered_leaves_the_permission_as_it_was(
    database_url: str, folder: Path
) -> None:
    """503 while the daemon is away; pending as before, and answered when it is back."""
    async with daemon_house(database_url, folder, window=0.005) as (house, twin):
        one = await pending(house, twin, "s", script="ask Go?\nsay on")
        twin.faults.refuse_connections = True
        twin.drop()
        await seen(house, "s", "turn.reconciling")
        early = await respond(house, one.permission, "allow")
        assert (early.status_code, early.json()["code"]) == (503, "backend_unavailable")
        view = await house.get(f"/v1/permissions/{one.permission}")
        assert (view["status"], view["actor"]) == ("pending", None)
        assert datetime.fromisoformat(view["expires_at"]) == one.expires_at
        twin.faults.refuse_connections = False
        await seen(house, "s", "turn.resumed")
        answer = await respond(house, one.permission, "allow")
        assert (answer.status_code, answer.json()["status"]) == (200, "allowed")
        assert data_of(await told(house, one.turn), RESOLVED)["by"] == "caller"
