"""What is said of turns and permissions is true, at the moments at which it is hard to know."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import anyio

from app.domain.errors import DatabaseUnavailable
from app.engine.starting import Starter
from tests.house import House, open_house
from tests.paseo.twin import Twin
from tests.system.test_paseo_recovery import (
    CHUNKS,
    assert_ended_once,
    backend,
    chunks,
    daemon_house,
    eventually,
    plain,
)


@contextmanager
def hiccup(room: object, method: str, *, call: int) -> Iterator[None]:
    """The database does not answer when the method is called for that time."""
    real, calls = getattr(room, method), count(1)

    async def once(*args: Any) -> Any:
        if next(calls) == call:
            raise DatabaseUnavailable
        return await real(*args)

    setattr(room, method, once)
    try:
        yield
    finally:
        setattr(room, method, real)


async def test_answer_on_its_way_is_not_yet_an_answer(database_url: str, folder: Path) -> None:
    """The second caller is told 409 with nobody and never; then the first learns that it is still pending."""
    async with daemon_house(database_url, folder) as (house, twin):
        await house.ensure("s", agent="scripted")
        turn = await house.prompt("s", "ask Deploy\nsay done")
        path = f"/v1/turns/{turn['turn_id']}/events/stream"
        asked = (await house.follow(path, "turn.requires_action"))[-1].data["data"]["permission_ids"]
        twin.faults.ignored = {"agent_permission_response"}
        answers: list[Any] = []

        async def respond(outcome: str) -> None:
            answer = await house.post(f"/v1/permissions/{asked[0]}/respond", {"outcome": outcome})
            answers.append((outcome, answer.status_code, answer.json()))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(respond, "allow")
            await twin.record.wait("agent_permission_response")
            await respond("deny")
        second = next(one for one in answers if one[0] == "deny")
        assert second[1] != 409 or second[2]["by"] is not None


async def test_policy_answers_after_a_restart_too(database_url: str, folder: Path) -> None:
    """We are stopped between the request and the policy's answer."""
    async with Twin() as twin:
        async with open_house(database_url, folder, backends=backend(twin)) as first:
            await first.ensure("s", agent="scripted", permission_policy={"mode": "allow"})
            twin.faults.ignored = {"agent_permission_response"}
            turn = await first.prompt("s", "ask Deploy\nsay done")
            await twin.record.wait("agent_permission_response")
        twin.faults.ignored = set()
        async with open_house(database_url, folder, backends=backend(twin)) as second:
            with anyio.move_on_after(12):
                await second.ended(turn["turn_id"])
            found = await second.get(f"/v1/turns/{turn['turn_id']}")
            assert found["status"] == "completed"


async def test_cancel_of_a_turn_that_becomes_indeterminate_is_unconfirmed(
    database_url: str, folder: Path
) -> None:
    """The agent may still be working."""
    async with daemon_house(database_url, folder) as (house, twin):
        await house.ensure("s", agent="scripted")
        turn = await house.prompt("s", f"chunks {CHUNKS} 50 5")
        await house.follow(f"/v1/turns/{turn['turn_id']}/events/stream", "message.delta")
        twin.faults.ignored = {"cancel_agent_request"}
        answers: list[Any] = []

        async def cancel() -> None:
            answers.append((await house.post(f"/v1/turns/{turn['turn_id']}/cancel")).json())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel)
            await twin.record.wait("cancel_agent_request")
            await twin.restart()
        assert answers[0]["status"] == "indeterminate"
        assert answers[0]["cancel_outcome"] == "unconfirmed"


async def test_timeout_during_the_back_off_knows_that_nothing_was_delivered(
    database_url: str, folder: Path
) -> None:
    """`turn.retrying` is written only where the prompt is known not to have been delivered."""
    async with daemon_house(database_url, folder) as (house, twin):
        await house.ensure("s", agent="scripted")
        twin.faults.late = {"clear_agent_attention": 1.0}
        turn = await house.prompt("s", "say never", deadline_s=4, max_attempts=9)
        await twin.record.wait("clear_agent_attention")
        twin.faults.refuse_connections = True
        twin.drop()
        ended = await house.ended(turn["turn_id"])
        assert twin.record.count("send_agent_message_request") == 0
        assert (ended["status"], ended["delivered"]) == ("timed_out", "no")


async def test_ensure_at_a_takeover_leaves_the_running_turn_alone(database_url: str, folder: Path) -> None:
    """The client of a replica that was stopped ensures its session at another, while its turn runs."""
    async with Twin() as twin, open_house(database_url, folder, backends=backend(twin)) as second:
        async with open_house(database_url, folder, backends=backend(twin)) as first:
            await first.ensure("s", agent="scripted")
            turn = await first.prompt("s", f"chunks {CHUNKS} 20 5", deadline_s=20)
            await first.follow(f"/v1/turns/{turn['turn_id']}/events/stream", "message.delta")
            await first.service.leave()  # SIGTERM: it hands its leases back
            await second.ensure("s", agent="scripted")
        with anyio.move_on_after(12):
            ended = await second.ended(turn["turn_id"])
        ended = await second.get(f"/v1/turns/{turn['turn_id']}")
        assert twin.record.count("refresh_agent_request") == 0, "the agent was restarted under its turn"
        assert ended["status"] == "completed"
        assert plain(ended["output_text"]) == chunks()


async def test_patch_at_a_takeover_leaves_the_running_turn_alone(database_url: str, folder: Path) -> None:
    """The same by a PATCH of a setting, which is a configure intent."""
    async with Twin() as twin, open_house(database_url, folder, backends=backend(twin)) as second:
        async with open_house(database_url, folder, backends=backend(twin)) as first:
            await first.ensure("s", agent="scripted")
            turn = await first.prompt("s", f"chunks {CHUNKS} 20 5", deadline_s=20)
            await first.follow(f"/v1/turns/{turn['turn_id']}/events/stream", "message.delta")
            await first.service.leave()
            await second.client.patch("/v1/sessions/s", json={"mode": "plan"})
        with anyio.move_on_after(12):
            await second.ended(turn["turn_id"])
        ended = await second.get(f"/v1/turns/{turn['turn_id']}")
        assert twin.record.count("refresh_agent_request") == 0
        assert ended["status"] == "completed"


async def test_prompt_that_never_arrived_is_not_said_to_be_delivered(database_url: str, folder: Path) -> None:
    """The link broke with the prompt on it, then our process ended: nobody knows whether it arrived."""
    async with Twin() as twin:
        async with open_house(database_url, folder, backends=backend(twin)) as first:
            await first.ensure("s", agent="scripted")
            await first.run("s", "say before")
            twin.faults.ignored = {"send_agent_message_request"}
            turn = await first.prompt("s", "say never")
            await twin.record.wait("send_agent_message_request", 2)
            twin.faults.refuse_connections = True
            twin.drop()
            await first.follow("/v1/sessions/s/events/stream", "turn.reconciling")
        twin.faults.ignored = set()
        twin.faults.refuse_connections = False
        async with open_house(database_url, folder, backends=backend(twin)) as second:
            ended = await second.ended(turn["turn_id"])
            log = await second.log("s")
            assert_ended_once(log, turn["turn_id"])
            assert ended["status"] == "indeterminate"
            assert ended["delivered"] == "unknown", f"delivered is said to be {ended['delivered']}"


async def test_policy_answer_is_repeated_when_the_link_breaks_under_it(
    database_url: str, folder: Path
) -> None:
    """Nobody is asked, so nobody but the policy can answer."""
    async with daemon_house(database_url, folder) as (house, twin):
        await house.ensure("s", agent="scripted", permission_policy={"mode": "allow"})
        twin.faults.drop_before = "agent_permission_response"
        turn = await house.prompt("s", "ask Deploy\nsay done")
        await eventually(lambda: twin.faults.drop_before is None)
        await house.follow("/v1/sessions/s/events/stream", "turn.resumed")
        with anyio.move_on_after(15):
            await house.ended(turn["turn_id"])
        found = await house.get(f"/v1/turns/{turn['turn_id']}")
        assert found["status"] == "completed"


async def test_session_is_not_busy_for_ever_because_of_a_foreign_turn_that_ended_unseen(
    database_url: str, folder: Path
) -> None:
    """We were stopped while somebody else kept the agent busy; now nobody does."""
    async with Twin() as twin:
        async with open_house(database_url, folder, backends=backend(twin)) as first:
            session = await first.ensure("s", agent="scripted")
            await twin.prompt(session["agent_session_id"], "chunks 50 20 5")
            with anyio.fail_after(10):
                while (await first.get("/v1/sessions/s"))["activity"] != "running":  # noqa: ASYNC110
                    await anyio.sleep(0.05)
        agent = twin.agent(session["agent_session_id"])
        await eventually(lambda: agent.snapshot()["status"] != "running")
        async with open_house(database_url, folder, backends=backend(twin)) as second:
            answer = await second.post("/v1/sessions/s/turns", {"prompt": "say mine"})
            assert answer.status_code == 202


async def test_what_a_foreign_turn_said_is_completed_when_it_ends(database_url: str, folder: Path) -> None:
    """Nobody has to wait for our next turn to know that the message is whole."""
    async with daemon_house(database_url, folder) as (house, twin):
        session = await house.ensure("s", agent="scripted")
        await twin.prompt(session["agent_session_id"], "say theirs")
        async with house.stream("/v1/sessions/s/events/stream") as stream:
            frames = await stream.until("message.completed", 2)  # the prompt's and the answer's
        assert frames[-1].data["data"]["text"] == "theirs"
        assert frames[-1].data["turn_id"] is None


async def test_queue_timeout_counts_while_the_agent_is_loaded(database_url: str, folder: Path) -> None:
    """`queue_timeout_s` until the start: a turn that starts later than that did not time out."""
    async with Twin() as twin:
        async with open_house(database_url, folder, backends=backend(twin)) as first:
            await first.ensure("s", agent="scripted")
        async with open_house(database_url, folder, backends=backend(twin)) as second:
            twin.faults.late = {"fetch_agent_request": 4.0}
            ended = await second.run("s", "say late", queue_timeout_s=1)
            assert (ended["status"], ended["limit"]) == ("timed_out", "queue")


async def test_answer_that_another_client_was_faster_with_is_not_called_ours(
    database_url: str, folder: Path
) -> None:
    """409, and `by: backend`: somebody else denied what our caller wanted to allow."""
    async with daemon_house(database_url, folder) as (house, twin):
        session = await house.ensure("s", agent="scripted")
        turn = await house.prompt("s", "ask Deploy\nsay done")
        path = f"/v1/turns/{turn['turn_id']}/events/stream"
        asked = (await house.follow(path, "turn.requires_action"))[-1].data["data"]["permission_ids"]
        twin.faults.late = {"agent_permission_response": 0.3}

        async def foreign() -> None:
            await twin.record.wait("agent_permission_response")
            twin.answer(session["agent_session_id"], "deny")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(foreign)
            answer = await house.post(f"/v1/permissions/{asked[0]}/respond", {"outcome": "allow"})
        found = await house.get(f"/v1/permissions/{asked[0]}")
        assert found["by"] == "backend", f"denied by another client, and said to be by {found['by']}"
        assert answer.status_code == 409


async def test_late_answer_is_409_and_not_422(database_url: str, folder: Path) -> None:
    """Another client has resolved it, and the host has not written that down yet."""
    async with daemon_house(database_url, folder) as (house, twin):
        session = await house.ensure("s", agent="scripted")
        turn = await house.prompt("s", "ask Deploy\nsay done")
        path = f"/v1/turns/{turn['turn_id']}/events/stream"
        asked = (await house.follow(path, "turn.requires_action"))[-1].data["data"]["permission_ids"]
        host = next(iter(house.service._hosts._hosts.values()))
        look = host._look

        async def slow_look() -> bool:  # the database takes its time
            await anyio.sleep(0.5)
            return await look()

        host._look = slow_look  # type: ignore[method-assign]
        codes: list[Any] = []

        async def respond() -> None:
            answer = await house.post(f"/v1/permissions/{asked[0]}/respond", {"outcome": "allow"})
            codes.append((answer.status_code, answer.json().get("code"), answer.json().get("detail")))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(respond)
            await anyio.sleep(0.2)
            twin.answer(session["agent_session_id"], "deny")
        assert codes[0][0] == 409


async def test_foreign_prompt_at_the_same_moment_is_waited_for(database_url: str, folder: Path) -> None:
    """A turn that meets foreign activity waits like `enqueue`; it does not fail after three looks."""
    async with daemon_house(database_url, folder) as (house, twin):
        session = await house.ensure("s", agent="scripted")
        commit = Starter._commit_start

        async def raced(self: Starter, turn: Any) -> Any:
            started = await commit(self, turn)
            Starter._commit_start = commit  # type: ignore[method-assign]
            await twin.prompt(session["agent_session_id"], "chunks 800 20 5")
            return started

        Starter._commit_start = raced  # type: ignore[method-assign]
        turn = await house.prompt("s", "say ours")
        with anyio.move_on_after(40):
            ended = await house.ended(turn["turn_id"])
        ended = await house.get(f"/v1/turns/{turn['turn_id']}")
        assert ended["status"] == "completed"


async def test_timeout_after_a_takeover_knows_that_the_prompt_was_delivered(
    database_url: str, folder: Path
) -> None:
    """Its messages stand in the log."""
    async with Twin() as twin:
        async with open_house(database_url, folder, backends=backend(twin)) as first:
            await first.ensure("s", agent="scripted")
            turn = await first.prompt("s", f"chunks {CHUNKS} 100 5", deadline_s=5)
            await first.follow(f"/v1/turns/{turn['turn_id']}/events/stream", "message.delta")
        twin.faults.refuse_connections = True
        twin.drop()
        async with open_house(database_url, folder, backends=backend(twin)) as second:
            ended = await second.ended(turn["turn_id"])
            assert (ended["status"], ended["delivered"]) == ("timed_out", "yes")


async def test_answer_without_resolution_holds_the_end_back_for_a_second_only(
    database_url: str, folder: Path
) -> None:
    """At most 1 s, also while the backend says nothing at all."""
    async with daemon_house(database_url, folder) as (house, twin):
        session = await house.ensure("s", agent="scripted")
        turn = await house.prompt("s", "ask Deploy\nsay done")
        path = f"/v1/turns/{turn['turn_id']}/events/stream"
        asked = (await house.follow(path, "turn.requires_action"))[-1].data["data"]["permission_ids"]
        twin.faults.ignored = {"agent_permission_response"}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(house.post, f"/v1/permissions/{asked[0]}/respond", {"outcome": "allow"})
            await twin.record.wait("agent_permission_response")
            started = time.monotonic()
            agent = twin.agent(session["agent_session_id"])
            twin.running.stream(agent, {"type": "turn_completed", "provider": "acp"})
            await house.ended(turn["turn_id"])
            took = time.monotonic() - started
            tasks.cancel_scope.cancel()
        assert took < 2.0


async def test_refused_answer_does_not_stop_the_turn(house: House) -> None:
    """422: the option is not honoured; the permission is pending, and the turn goes on."""
    await house.ensure("s")
    turn = await house.prompt("s", "ask make clean\nsay after")
    await house.follow("/v1/sessions/s/events/stream", "turn.requires_action")
    permission = (await house.get("/v1/permissions", status="pending"))["items"][0]
    allow = next(o["option_id"] for o in permission["options"] if o["kind"].startswith("allow"))
    body: dict[str, Any] = {"outcome": "deny", "option_id": allow, "interrupt": True}
    answer = await house.post(f"/v1/permissions/{permission['permission_id']}/respond", body)
    await anyio.sleep(1)
    found = await house.get(f"/v1/turns/{turn['turn_id']}")
    assert answer.status_code == 422
    assert found["status"] == "requires_action", f"refused, and the turn is {found['status']} all the same"


async def test_prefer_wait_never_says_503_of_an_admitted_prompt(house: House) -> None:
    """The turn is admitted and runs; the database hiccups while we wait for its end."""
    await house.ensure("s")
    with hiccup(house.service.rooms.turns, "get", call=2):
        answer = await house.post("/v1/sessions/s/turns", {"prompt": "sleep 1\nsay x"}, Prefer="wait=5")
    listed = (await house.get("/v1/sessions/s/turns"))["items"]
    assert listed, "it was admitted"
    assert answer.status_code in (200, 202), "an admitted prompt is answered as one that was not"


async def test_lost_connection_in_an_outage_still_cancels(house: House) -> None:
    """on_disconnect=cancel fires when that connection ends for any reason but our own farewell."""
    await house.ensure("s")
    body = {"prompt": "sleep 6\nsay x", "on_disconnect": "cancel"}
    with hiccup(house.service.rooms.turns, "request_cancel", call=1):
        async with house.client.stream(
            "POST", "/v1/sessions/s/turns", json=body, headers={"Accept": "text/event-stream"}
        ) as response:
            async for chunk in response.aiter_raw():
                if b"turn.started" in chunk:
                    break
        await anyio.sleep(4)
    turn = (await house.get("/v1/sessions/s/turns"))["items"][0]
    assert turn["status"] == "cancelled"


async def test_permission_of_a_cancelled_turn_is_closed_by_its_turns_end(house: House) -> None:
    """`permission.resolved {outcome: cancelled, by: turn_end}`."""
    await house.ensure("s")
    turn = await house.prompt("s", "ask make clean")
    await house.follow("/v1/sessions/s/events/stream", "turn.requires_action")
    await house.post(f"/v1/turns/{turn['turn_id']}/cancel")
    found = [e["data"] for e in await house.log("s") if e["type"].startswith("permission.res")]
    assert [(one["outcome"], one["by"]) for one in found] == [("cancelled", "turn_end")]
