"""Turns from admission to their one terminal event: strategies, cancel, permissions, clocks, replays."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from app.domain.events import TERMINAL_TYPES
from tests.engine.replicas import agents, two_houses
from tests.house import Frame, House, durable

Event = dict[str, Any]


async def told(house: House, turn: str) -> list[Event]:
    """The events of an ended turn; checked for what is true of every turn's."""
    view = await house.ended(turn)
    events = [event for event in await house.log(view["session_id"]) if event["turn_id"] == turn]
    types = [event["type"] for event in events]
    assert types[0] == "turn.queued"
    assert [type_ for type_ in types if type_ in TERMINAL_TYPES] == [types[-1]]
    assert types[-1] == f"turn.{view['status']}"
    assert (events[0]["seq"], events[-1]["seq"]) == (view["first_seq"], view["last_seq"])
    assert_closed(events)
    return events


def assert_closed(events: list[Event]) -> None:
    """Whatever was opened is closed once: messages, tool calls, permissions."""
    opened: dict[str, list[str]] = {"message": [], "reasoning": [], "tool": [], "permission": []}
    closed: dict[str, list[str]] = {"message": [], "reasoning": [], "tool": [], "permission": []}
    for event in events:
        data = event["data"]
        match event["type"]:
            case "message.delta" | "reasoning.delta":
                opened[event["type"].split(".")[0]].append(data["message_id"])
            case "message.completed" | "reasoning.completed":
                closed[event["type"].split(".")[0]].append(data["message_id"])
            case "tool_call.started":
                opened["tool"].append(data["tool_call_id"])
            case "tool_call.completed":
                closed["tool"].append(data["tool_call_id"])
            case "permission.requested":
                opened["permission"].append(data["permission_id"])
            case "permission.resolved" | "permission.expired":
                closed["permission"].append(data["permission_id"])
    for what, ids in opened.items():
        assert sorted(set(ids)) == sorted(closed[what]), what


def types_of(events: list[Event]) -> list[str]:
    return [event["type"] for event in events]


def data_of(events: list[Event], type_: str) -> Any:
    """The data of the only event of that type."""
    (event,) = [event for event in events if event["type"] == type_]
    return event["data"]


async def seen(house: House, session: str, event: str, count: int = 1, **params: Any) -> list[Frame]:
    """Every event of a session up to now, once `count` of them are of that type."""
    return durable_until(
        await _read(house, f"/v1/sessions/{session}/events/stream", event, count, **params), event, count
    )


async def _read(house: House, path: str, event: str, count: int, **params: Any) -> list[Frame]:
    async with house.stream(path, **params) as stream:
        return await stream.until(event, count)


def durable_until(frames: list[Frame], event: str, count: int) -> list[Frame]:
    """The events up to and with the `count`th of that type."""
    found: list[Frame] = []
    for frame in durable(frames):
        found.append(frame)
        count -= frame.event == event
        if count == 0:
            break
    return found


async def asked(house: House, session: str, count: int = 1) -> str:
    """The id of the permission that a session asks for."""
    permission: str = (await seen(house, session, "permission.requested", count))[-1].data["data"][
        "permission_id"
    ]
    return permission


async def respond(house: House, permission: str, outcome: str, **body: Any) -> Any:
    return await house.post(f"/v1/permissions/{permission}/respond", {"outcome": outcome, **body})


@asynccontextmanager
async def held(house: House) -> AsyncIterator[tuple[str, str]]:
    """A session whose turn waits for a person; the person allows at the end of the block."""
    session = (await house.ensure())["session_id"]
    turn = await house.prompt(session, "ask Delete?")
    permission = await asked(house, session)
    yield session, turn["turn_id"]
    await respond(house, permission, "allow")
    await told(house, turn["turn_id"])


# What a turn tells.


async def test_turn_tells_what_the_agent_did_and_closes_everything(house: House) -> None:
    """Messages, reasoning, tools, plan, usage; the answer is the text after the last tool call."""
    session = (await house.ensure())["session_id"]
    script = "say before\nthink hm\nrun ls\nedit x\nplan a; b\ntokens 3 4\nsay one\nsay two"
    turn = await house.prompt(session, script, metadata={"mine": [1, None]})
    assert turn["status"] in ("queued", "running")
    events = await told(house, turn["turn_id"])
    assert types_of(events)[:2] == ["turn.queued", "turn.started"]
    assert data_of(events, "turn.started") == {"attempt": 1, "prompt": script}
    view = await house.get(f"/v1/turns/{turn['turn_id']}")
    assert (view["status"], view["stop_reason"], view["attempt"]) == ("completed", "end_turn", 1)
    assert view["output_text"] == "onetwo"
    assert view["metadata"] == {"mine": [1, None]}
    assert view["usage"]["input_tokens"] == 3
    assert view["usage"]["output_tokens"] == 4
    assert data_of(events, "turn.completed")["usage"] == view["usage"]
    assert view["delivered"] == "yes"
    calls = [event["data"] for event in events if event["type"] == "tool_call.completed"]
    assert [(call["kind"], call["status"]) for call in calls] == [
        ("execute", "completed"),
        ("edit", "completed"),
    ]


async def test_text_of_the_deltas_is_the_text_of_the_message(house: House) -> None:
    """`message.completed` repeats what was streamed."""
    session = (await house.ensure())["session_id"]
    events = await told(house, (await house.prompt(session, "stream 50"))["turn_id"])
    deltas = [event["data"]["text"] for event in events if event["type"] == "message.delta"]
    assert data_of(events, "message.completed")["text"] == "".join(deltas)
    assert "".join(deltas).split() == [f"chunk-{n}" for n in range(1, 51)]


@pytest.mark.parametrize(
    ("script", "status", "check"),
    [
        ("fail no such model", "failed", {"code": "provider_error"}),
        ("say x\ncrash", "failed", {"code": "agent_process_dead"}),
        ("run ls\nfail x", "failed", {"code": "provider_error"}),
    ],
)
async def test_turn_that_fails_says_why_and_the_next_one_works(
    house: House, script: str, status: str, check: dict[str, Any]
) -> None:
    """An error of the agent ends its turn, and nothing else."""
    session = (await house.ensure())["session_id"]
    turn = await house.prompt(session, script)
    events = await told(house, turn["turn_id"])
    view = await house.get(f"/v1/turns/{turn['turn_id']}")
    assert view["status"] == status
    assert view["error"].items() >= check.items()
    assert data_of(events, "turn.failed") == {"error": view["error"], "delivered": "yes"}
    after = await house.run(session, "say again")
    assert (after["status"], after["output_text"]) == ("completed", "again")


async def test_refused_turn_is_completed_with_its_stop_reason(house: House) -> None:
    """A refusal is an end like any other."""
    session = (await house.ensure())["session_id"]
    turn = await house.run(session, "say no\nrefuse")
    assert (turn["status"], turn["stop_reason"]) == ("completed", "refusal")


async def test_agent_that_writes_no_messages_loses_nothing(house: House) -> None:
    """Garbage on its output and much on its error output do not disturb the turn."""
    session = (await house.ensure())["session_id"]
    turn = await house.run(session, "stderr 300000\ngarbage 3\nsay fine")
    assert (turn["status"], turn["output_text"]) == ("completed", "fine")


# Strategies.


async def test_second_prompt_is_refused_while_a_turn_is_open(house: House) -> None:
    """`reject` is the default, and names the open turn."""
    async with held(house) as (session, turn):
        answer = await house.post(f"/v1/sessions/{session}/turns", {"prompt": "say x"})
        assert (answer.status_code, answer.json()["code"]) == (409, "session_busy")
        assert answer.json()["open_turn_id"] == turn
        assert (await house.get(f"/v1/sessions/{session}"))["activity"] == "requires_action"


async def test_queued_prompts_run_in_their_order(house: House) -> None:
    """Each starts only after the terminal event of the one before."""
    async with held(house) as (session, first):
        queued = [
            (await house.prompt(session, f"say {n}", multitask_strategy="enqueue"))["turn_id"]
            for n in range(4)
        ]
        busy = await house.post(f"/v1/sessions/{session}/turns", {"prompt": "say x"})
        assert (busy.status_code, busy.json()["open_turn_id"]) == (409, first)
        snapshot = await house.get(f"/v1/sessions/{session}/snapshot")
        assert snapshot["current_turn"]["turn_id"] == first
        assert [turn["turn_id"] for turn in snapshot["queue"]] == queued
        listed = await house.get(f"/v1/sessions/{session}/turns", status="queued")
        assert [turn["turn_id"] for turn in listed["items"]] == queued[::-1]
    for turn in queued:
        assert (await house.ended(turn))["status"] == "completed"
    log = [e for e in await house.log(session) if e["type"] in ("turn.started", *TERMINAL_TYPES)]
    assert [(e["turn_id"], e["type"]) for e in log] == [
        (turn, type_) for turn in (first, *queued) for type_ in ("turn.started", "turn.completed")
    ]
    positions = [
        e["data"]["position"]
        for e in await house.log(session, types="turn.queued")
        if e["type"] == "turn.queued"
    ]
    assert positions[1:] == sorted(positions[1:])


async def test_interrupting_prompt_goes_to_the_head(house: House) -> None:
    """The running turn is cancelled, the queued ones stay behind the new one."""
    session = (await house.ensure())["session_id"]
    running = await house.prompt(session, "say begun\nsleep 600")
    await seen(house, session, "message.delta")
    queued = await house.prompt(session, "say queued", multitask_strategy="enqueue")
    urgent = await house.prompt(session, "say urgent", multitask_strategy="interrupt")
    for turn, status in ((running, "cancelled"), (urgent, "completed"), (queued, "completed")):
        assert (await house.ended(turn["turn_id"]))["status"] == status
    events = await told(house, running["turn_id"])
    assert data_of(events, "turn.cancelled") == {"cause": "interrupt", "cancel_outcome": "stopped"}
    started = [e["turn_id"] for e in await house.log(session) if e["type"] == "turn.started"]
    assert started == [running["turn_id"], urgent["turn_id"], queued["turn_id"]]


async def test_interrupting_an_idle_session_just_runs(house: House) -> None:
    """There is nothing to cancel."""
    session = (await house.ensure())["session_id"]
    turn = await house.prompt(session, "say x", multitask_strategy="interrupt")
    assert (await house.ended(turn["turn_id"]))["status"] == "completed"


async def test_queued_turn_can_be_taken_out(house: House) -> None:
    """204; it stays readable as cancelled, and was never started."""
    async with held(house) as (session, running):
        queued = (await house.prompt(session, "say x", multitask_strategy="enqueue"))["turn_id"]
        assert (await house.client.delete(f"/v1/turns/{queued}")).status_code == 204
        events = await told(house, queued)
        assert types_of(events) == ["turn.queued", "turn.cancelled"]
        assert events[-1]["data"] == {"cause": "caller", "cancel_outcome": None}
        for turn in (queued, running):
            answer = await house.client.delete(f"/v1/turns/{turn}")
            assert (answer.status_code, answer.json()["code"]) == (409, "turn_not_queued")
        missing = await house.client.delete("/v1/turns/trn_missing")
        assert (missing.status_code, missing.json()["code"]) == (404, "turn_not_found")


async def test_queued_turn_can_be_cancelled_like_any_other(house: House) -> None:
    """It never ran, so there is nothing to stop."""
    async with held(house) as (session, _):
        queued = (await house.prompt(session, "say x", multitask_strategy="enqueue"))["turn_id"]
        answer = await house.post(f"/v1/turns/{queued}/cancel")
        assert answer.status_code == 200
        assert answer.json()["status"] == "cancelled"
        assert answer.json()["cause"] == "caller"
        await told(house, queued)


# Cancel.


async def test_willing_agent_is_stopped(house: House) -> None:
    """`stopped`; what was open is closed; the session works on with the same process."""
    session = (await house.ensure())["session_id"]
    turn = (await house.prompt(session, "think hm\nsay begun\nsleep 600"))["turn_id"]
    await seen(house, session, "message.delta")
    answer = await house.post(f"/v1/turns/{turn}/cancel")
    assert answer.status_code == 200
    assert answer.json()["cancel_outcome"] == "stopped"
    events = await told(house, turn)
    assert types_of(events)[-2:] == ["message.completed", "turn.cancelled"]
    assert events[-1]["data"] == {"cause": "caller", "cancel_outcome": "stopped"}
    again = await house.post(f"/v1/turns/{turn}/cancel")
    assert again.status_code == 200
    assert again.json()["status"] == "cancelled"
    assert (await house.run(session, "say on"))["output_text"] == "on"


async def test_unwilling_agent_is_forced(house: House) -> None:
    """Its process is ended: `forced`; the next prompt has a new one, with the same session."""
    session = (await house.ensure())["session_id"]
    turn = (await house.prompt(session, "ignore-cancel\nsay begun\nsleep 600"))["turn_id"]
    await seen(house, session, "message.delta")
    answer = await house.post(f"/v1/turns/{turn}/cancel")
    assert answer.status_code == 200, answer.text
    assert answer.json()["cancel_outcome"] == "forced"
    events = await told(house, turn)
    assert events[-1]["data"] == {"cause": "caller", "cancel_outcome": "forced"}
    assert (await house.run(session, "say on"))["output_text"] == "on"


async def test_ended_turn_stays_as_it_is(house: House) -> None:
    """A cancel that comes too late changes nothing."""
    session = (await house.ensure())["session_id"]
    turn = await house.run(session, "say done")
    answer = await house.post(f"/v1/turns/{turn['turn_id']}/cancel")
    assert answer.status_code == 200
    assert answer.json()["status"] == "completed"
    assert len(await house.log(session)) == turn["last_seq"]


async def test_cancel_and_completion_race_for_one_terminal_event(house: House) -> None:
    """Whoever wins, there is one (P89)."""
    session = (await house.ensure())["session_id"]
    for number in range(10):
        turn = (await house.prompt(session, f"stream {number * 5}"))["turn_id"]
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(house.post, f"/v1/turns/{turn}/cancel")
        await told(house, turn)


# Permissions.


async def test_permission_is_allowed_by_its_answer(house: House) -> None:
    """The backend's resolution is what is recorded, and the turn goes on."""
    session = (await house.ensure())["session_id"]
    turn = (await house.prompt(session, "ask Delete?"))["turn_id"]
    permission = await asked(house, session)
    (pending,) = (await house.get("/v1/permissions", status="pending", session_id=session))["items"]
    assert pending["permission_id"] == permission
    assert pending["title"] == "Delete?"
    answer = await respond(house, permission, "allow", option_id="yes")
    assert (answer.status_code, answer.json()["status"]) == (200, "allowed")
    events = await told(house, turn)
    types = types_of(events)
    at = types.index("permission.requested")
    assert types[at : at + 2] == ["permission.requested", "turn.requires_action"]
    assert data_of(events, "turn.requires_action") == {"permission_ids": [permission]}
    resolved = data_of(events, "permission.resolved")
    assert (resolved["outcome"], resolved["by"], resolved["option_id"]) == ("allowed", "caller", "yes")
    assert types.index("turn.resumed") == types.index("permission.resolved") + 1
    assert (await house.get(f"/v1/turns/{turn}"))["output_text"] == "allowed"
    assert (await house.get("/v1/permissions", status="pending"))["items"] == []


async def test_permission_is_denied_by_its_answer(house: House) -> None:
    """The tool call fails, the turn goes on."""
    session = (await house.ensure())["session_id"]
    turn = (await house.prompt(session, "ask Delete?"))["turn_id"]
    answer = await respond(house, await asked(house, session), "deny")
    assert (answer.status_code, answer.json()["status"]) == (200, "denied")
    events = await told(house, turn)
    assert data_of(events, "permission.resolved")["outcome"] == "denied"
    view = await house.get(f"/v1/turns/{turn}")
    assert (view["status"], view["output_text"]) == ("completed", "denied")


async def test_denial_can_end_the_turn(house: House) -> None:
    """`interrupt: true`."""
    session = (await house.ensure())["session_id"]
    turn = (await house.prompt(session, "ask Delete?\nsleep 600"))["turn_id"]
    answer = await respond(house, await asked(house, session), "deny", interrupt=True)
    assert answer.status_code == 200, answer.text
    events = await told(house, turn)
    assert types_of(events)[-1] == "turn.cancelled"


async def test_first_answer_wins(database_url: str, folder: Path) -> None:
    """Of ten at once over two replicas one is taken; the others get 409 with what it was."""
    async with two_houses(database_url, folder) as (first, second):
        session = (await first.ensure())["session_id"]
        turn = (await first.prompt(session, "ask Delete?"))["turn_id"]
        permission = await asked(second, session)
        answers = []

        async def answer(house: House, outcome: str) -> None:
            answers.append((outcome, await respond(house, permission, outcome)))

        async with anyio.create_task_group() as tasks:
            for n in range(10):
                tasks.start_soon(answer, (first, second)[n % 2], ("allow", "deny")[n // 2 % 2])
        (won,) = [(outcome, a.json()) for outcome, a in answers if a.status_code == 200]
        expected = {"allow": "allowed", "deny": "denied"}[won[0]]
        assert won[1]["status"] == expected
        for _, lost in answers:
            if lost.status_code != 200:
                assert (lost.status_code, lost.json()["code"]) == (409, "permission_already_resolved")
                assert lost.json()["outcome"] == expected
                assert lost.json()["by"] == "caller"
        late = await respond(first, permission, "allow")
        assert late.status_code == 409
        await told(first, turn)


async def test_unanswered_permission_expires_and_the_turn_goes_on(house: House) -> None:
    """After `timeout_s` the `on_timeout` answer is sent; a later one gets 410."""
    policy = {"mode": "ask", "timeout_s": 1, "on_timeout": "deny"}
    session = (await house.ensure(permission_policy=policy))["session_id"]
    turn = (await house.prompt(session, "ask Delete?"))["turn_id"]
    permission = await asked(house, session)
    events = await told(house, turn)
    expired = data_of(events, "permission.expired")
    assert (expired["permission_id"], expired["outcome"], expired["by"]) == (permission, "denied", "timeout")
    assert "turn.resumed" in types_of(events)
    assert (await house.get(f"/v1/turns/{turn}"))["output_text"] == "denied"
    late = await respond(house, permission, "allow")
    assert (late.status_code, late.json()["code"]) == (410, "permission_expired")
    assert (await house.get(f"/v1/permissions/{permission}"))["status"] == "expired"


async def test_timeout_may_allow_but_never_answers_a_question(house: House) -> None:
    """`on_timeout: allow` is for tools; a question that times out is denied."""
    policy = {"mode": "ask", "timeout_s": 1, "on_timeout": "allow"}
    session = (await house.ensure(permission_policy=policy))["session_id"]
    turn = await house.run(session, "ask Delete?")
    assert turn["output_text"] == "allowed"
    turn = await house.run(session, "question Which? | A | B")
    assert turn["output_text"] == "you did not say"
    events = await told(house, turn["turn_id"])
    assert data_of(events, "permission.expired")["outcome"] == "denied"


@pytest.mark.parametrize(("mode", "outcome"), [("allow", "allowed"), ("deny", "denied")])
async def test_policy_answers_at_once(house: House, mode: str, outcome: str) -> None:
    """Nobody waits, so neither `turn.requires_action` nor `turn.resumed` is written."""
    session = (await house.ensure(permission_policy={"mode": mode}))["session_id"]
    turn = await house.run(session, "ask Delete?")
    assert turn["output_text"] == outcome
    events = await told(house, turn["turn_id"])
    resolved = data_of(events, "permission.resolved")
    assert (resolved["outcome"], resolved["by"]) == (outcome, "policy")
    assert not {"turn.requires_action", "turn.resumed"} & set(types_of(events))


async def test_policy_never_answers_a_question(house: House) -> None:
    """`allow` asks a person after all."""
    session = (await house.ensure(permission_policy={"mode": "allow"}))["session_id"]
    turn = (await house.prompt(session, "question Which? | A | B"))["turn_id"]
    permission = await asked(house, session)
    found = await house.get(f"/v1/permissions/{permission}")
    assert (found["kind"], found["status"]) == ("question", "pending")
    answer = await respond(house, permission, "allow", answers={"answer": "B"})
    assert answer.status_code == 200, answer.text
    await told(house, turn)
    assert (await house.get(f"/v1/turns/{turn}"))["output_text"] == "you said: B"


async def test_permission_that_is_pending_at_the_end_of_its_turn_is_closed_with_it(house: House) -> None:
    """Cancelled by the end of the turn, before the terminal event; a later answer gets 409."""
    session = (await house.ensure())["session_id"]
    turn = (await house.prompt(session, "ask Delete?"))["turn_id"]
    permission = await asked(house, session)
    assert (await house.post(f"/v1/turns/{turn}/cancel")).status_code == 200
    events = await told(house, turn)
    assert types_of(events)[-1] == "turn.cancelled"
    assert data_of(events, "permission.resolved")["outcome"] == "cancelled"
    late = await respond(house, permission, "allow")
    assert (late.status_code, late.json()["code"]) == (409, "permission_already_resolved")
    assert (await house.get(f"/v1/permissions/{permission}"))["status"] == "cancelled"


async def test_permission_of_an_agent_that_died_has_expired(house: House) -> None:
    """Nobody can answer it any more: 410; the turn has failed, and the next one works."""
    session = (await house.ensure())["session_id"]
    turn = (await house.prompt(session, "ask Delete?"))["turn_id"]
    permission = await asked(house, session)
    for process in agents():
        process.kill()
    events = await told(house, turn)
    assert data_of(events, "turn.failed")["error"]["code"] == "agent_process_dead"
    expired = data_of(events, "permission.expired")
    assert (expired["permission_id"], expired["outcome"], expired["by"]) == (
        permission,
        "cancelled",
        "backend",
    )
    late = await respond(house, permission, "allow")
    assert (late.status_code, late.json()["code"]) == (410, "permission_expired")
    assert (await house.run(session, "say on"))["output_text"] == "on"


async def test_option_that_was_not_offered_is_refused(house: House) -> None:
    """422, and the permission is still pending."""
    session = (await house.ensure())["session_id"]
    await house.prompt(session, "ask Delete?")
    permission = await asked(house, session)
    answer = await respond(house, permission, "allow", option_id="never-offered")
    assert (answer.status_code, answer.json()["code"]) == (422, "unsupported_by_backend")
    assert (await house.get(f"/v1/permissions/{permission}"))["status"] == "pending"
    assert (await respond(house, permission, "allow", option_id="always")).status_code == 200
    missing = await respond(house, "prm_missing", "allow")
    assert (missing.status_code, missing.json()["code"]) == (404, "permission_not_found")


# Admission once.


async def test_same_key_and_body_is_the_same_turn(database_url: str, folder: Path) -> None:
    """On any replica, in the form now asked for; another body or route is refused."""
    async with two_houses(database_url, folder) as (first, second):
        session = (await first.ensure())["session_id"]
        path, body = f"/v1/sessions/{session}/turns", {"prompt": "say once", "metadata": {"a": 1, "b": 2}}
        key = {"Idempotency-Key": "k-1"}
        one = await first.post(path, body, **key)
        assert one.status_code in (200, 202)
        assert "idempotent-replayed" not in one.headers
        turn = one.json()["turn_id"]
        await first.ended(turn)
        again = await second.client.post(
            path,
            content='{"metadata": {"b": 2, "a": 1}, "prompt": "say once"}',
            headers={**key, "Content-Type": "application/json"},
        )
        assert (again.status_code, again.json()["turn_id"]) == (200, turn)
        assert again.json()["status"] == "completed"
        assert again.headers["idempotent-replayed"] == "true"
        streamed = await second.post(path, body, Accept="text/event-stream", **key)
        assert streamed.headers["idempotent-replayed"] == "true"
        assert b"event: turn.completed" in streamed.content
        other = await second.post(path, {"prompt": "say twice"}, **key)
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
        retried = await first.post(f"/v1/turns/{turn}/retry", None, **key)
        assert (retried.status_code, retried.json()["code"]) == (422, "idempotency_key_reused")
        assert len((await first.get(path))["items"]) == 1


async def test_concurrent_prompts_with_one_key_are_one_turn(database_url: str, folder: Path) -> None:
    """The others get the same turn, or are told that the first is in flight."""
    async with two_houses(database_url, folder) as (first, second):
        session = (await first.ensure())["session_id"]
        path, answers = f"/v1/sessions/{session}/turns", []

        async def prompt(house: House) -> None:
            answers.append(await house.post(path, {"prompt": "say once"}, **{"Idempotency-Key": "k"}))

        async with anyio.create_task_group() as tasks:
            for n in range(10):
                tasks.start_soon(prompt, (first, second)[n % 2])
        codes = {answer.status_code for answer in answers}
        assert codes <= {200, 202, 409}
        assert {a.json()["code"] for a in answers if a.status_code == 409} <= {"request_in_progress"}
        assert len({a.json()["turn_id"] for a in answers if a.status_code != 409}) == 1
        assert len((await first.get(path))["items"]) == 1


async def test_refused_prompt_does_not_use_up_its_key(house: House) -> None:
    """Only admissions are kept."""
    key = {"Idempotency-Key": "k"}
    async with held(house) as (session, _):
        path = f"/v1/sessions/{session}/turns"
        assert (await house.post(path, {"prompt": "say x"}, **key)).status_code == 409
    answer = await house.post(path, {"prompt": "say y"}, **key)
    assert answer.status_code == 202
    await house.ended(answer.json()["turn_id"])


async def test_prompt_stream_with_a_key_is_replayed(house: House) -> None:
    """One session, one turn, the same bytes."""
    body = {"agent": "demo", "prompt": "say once", "cwd": str(house.cwd)}
    key = {"Idempotency-Key": "k"}
    one = await house.post("/v1/prompt-stream", body, **key)
    two = await house.post("/v1/prompt-stream", body, **key)
    assert two.headers["idempotent-replayed"] == "true"
    assert one.headers["location"] == two.headers["location"]
    assert len((await house.get("/v1/sessions"))["items"]) == 1


# Waiting.


async def test_prefer_wait_answers_with_the_ended_turn(house: House) -> None:
    """200 once ended, else 202; never a 504."""
    session = (await house.ensure())["session_id"]
    path = f"/v1/sessions/{session}/turns"
    answer = await house.post(path, {"prompt": "say quick"}, Prefer="wait=20")
    assert (answer.status_code, answer.json()["status"]) == (200, "completed")
    answer = await house.post(path, {"prompt": "ask Delete?"}, Prefer="wait=0")
    assert answer.status_code == 202
    turn = answer.json()["turn_id"]
    assert answer.headers["location"] == f"/v1/turns/{turn}"
    await respond(house, await asked(house, session), "allow")
    await told(house, turn)


async def test_wait_is_a_long_poll(database_url: str, folder: Path) -> None:
    """202 while the turn is open; 200 as soon as it ends, on any replica."""
    async with two_houses(database_url, folder) as (first, second):
        session = (await first.ensure())["session_id"]
        turn = (await first.prompt(session, "ask Delete?"))["turn_id"]
        permission = await asked(first, session)
        for house in (first, second):
            answer = await house.client.get(f"/v1/turns/{turn}/wait", params={"timeout_s": 0})
            assert (answer.status_code, answer.json()["status"]) == (202, "requires_action")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(respond, first, permission, "allow")
            answer = await second.client.get(f"/v1/turns/{turn}/wait", params={"timeout_s": 60})
        assert (answer.status_code, answer.json()["status"]) == (200, "completed")


# Again, on the caller's own decision.


async def test_retry_is_a_new_turn_with_the_same_prompt_and_limits(house: House) -> None:
    """Only of an ended turn; the old one stays as it is."""
    session = (await house.ensure())["session_id"]
    body = {"deadline_s": 77, "idle_timeout_s": 66, "max_attempts": 2, "metadata": {"a": 1}}
    turn = await house.run(session, "fail once", **body)
    answer = await house.post(f"/v1/turns/{turn['turn_id']}/retry")
    assert answer.status_code == 202
    retried = answer.json()
    assert retried["turn_id"] != turn["turn_id"]
    assert retried["retry_of"] == turn["turn_id"]
    assert (retried["prompt"], retried["max_attempts"]) == ("fail once", 2)
    assert (await house.ended(retried["turn_id"]))["status"] == "failed"
    assert await house.get(f"/v1/turns/{turn['turn_id']}") == turn


async def test_open_turn_cannot_be_retried(house: House) -> None:
    """409 `turn_not_ended`."""
    async with held(house) as (_, turn):
        answer = await house.post(f"/v1/turns/{turn}/retry")
        assert (answer.status_code, answer.json()["code"]) == (409, "turn_not_ended")


# Clocks.


async def test_turn_that_waited_too_long_in_the_queue_times_out(house: House) -> None:
    """It was never delivered."""
    async with held(house) as (session, _):
        turn = await house.prompt(session, "say x", multitask_strategy="enqueue", queue_timeout_s=0.2)
        events = await told(house, turn["turn_id"])
        assert types_of(events) == ["turn.queued", "turn.timed_out"]
        assert events[-1]["data"] == {"limit": "queue", "delivered": "no", "cancel_outcome": None}


@pytest.mark.parametrize(
    ("limits", "script", "limit"),
    [
        ({"deadline_s": 0.3}, "say x\nsleep 600", "deadline"),
        ({"deadline_s": 0.3}, "stream 100000 10", "deadline"),
        ({"idle_timeout_s": 0.3}, "say x\nsleep 600", "idle"),
        ({"idle_timeout_s": 0.3}, "sleep 600", "idle"),
        ({"deadline_s": 0.5}, "ask Delete?", "deadline"),
    ],
)
async def test_turn_that_takes_too_long_is_stopped(
    house: House, limits: dict[str, float], script: str, limit: str
) -> None:
    """`timed_out`, after the agent was told to stop; then the session works on."""
    session = (await house.ensure())["session_id"]
    turn = (await house.prompt(session, script, **limits))["turn_id"]
    events = await told(house, turn)
    ended = data_of(events, "turn.timed_out")
    assert (ended["limit"], ended["cancel_outcome"]) == (limit, "stopped")
    view = await house.get(f"/v1/turns/{turn}")
    assert (view["limit"], view["cancel_outcome"]) == (limit, "stopped")
    assert (await house.run(session, "say on"))["output_text"] == "on"


async def test_idle_clock_stands_still_while_a_person_is_asked(house: House) -> None:
    """A person may take longer than an agent."""
    policy = {"mode": "ask", "timeout_s": 1.5, "on_timeout": "deny"}
    session = (await house.ensure(permission_policy=policy))["session_id"]
    turn = await house.run(session, "ask Delete?", idle_timeout_s=0.5)
    assert (turn["status"], turn["output_text"]) == ("completed", "denied")


async def test_sign_of_life_keeps_a_turn_alive(house: House) -> None:
    """Each piece restarts the idle clock."""
    session = (await house.ensure())["session_id"]
    turn = await house.run(session, "stream 30 50", idle_timeout_s=0.6)
    assert turn["status"] == "completed"


# Connections.


async def test_lost_connection_cancels_only_if_the_caller_wanted_it_so(house: House) -> None:
    """`on_disconnect: cancel`; by default the turn goes on."""
    session = (await house.ensure())["session_id"]
    path = f"/v1/sessions/{session}/turns"
    for wish, cause in (("cancel", "disconnect"), ("continue", "caller")):
        body = {"prompt": "say begun\nsleep 600", "on_disconnect": wish}
        async with house.client.stream(
            "POST", path, json=body, headers={"Accept": "text/event-stream"}
        ) as response:
            turn = response.headers["location"].rpartition("/")[2]
            await _read(house, f"/v1/turns/{turn}/events/stream", "message.delta", 1)
        if wish == "continue":
            assert (await house.get(f"/v1/turns/{turn}"))["status"] == "running"
            await house.post(f"/v1/turns/{turn}/cancel")
        events = await told(house, turn)
        assert events[-1]["data"]["cause"] == cause


async def test_reading_a_stream_to_its_end_is_no_lost_connection(house: House) -> None:
    """The turn had ended by itself."""
    session = (await house.ensure())["session_id"]
    body = {"prompt": "say done", "on_disconnect": "cancel"}
    await house.post(f"/v1/sessions/{session}/turns", body, Accept="text/event-stream")
    (turn,) = (await house.get(f"/v1/sessions/{session}/turns"))["items"]
    assert turn["status"] == "completed"


# Replicas.


async def test_queued_turn_runs_on_another_replica_when_its_host_leaves(
    database_url: str, folder: Path
) -> None:
    """The turn that ran there is ended truthfully, the queue goes on elsewhere, the log is one."""
    async with two_houses(database_url, folder) as (first, second):
        session = (await first.ensure())["session_id"]
        running = (await first.prompt(session, "say begun\nsleep 600"))["turn_id"]
        await seen(first, session, "message.delta")
        queued = (await second.prompt(session, "say elsewhere", multitask_strategy="enqueue"))["turn_id"]
        with anyio.fail_after(20):
            await first.service.leave()
        events = await told(second, running)
        assert events[-1]["data"] == {"cause": "shutdown", "cancel_outcome": "stopped"}
        view = await second.ended(queued)
        assert (view["status"], view["output_text"]) == ("completed", "elsewhere")
        await told(second, queued)
        assert [e["seq"] for e in await second.log(session)] == list(range(1, view["last_seq"] + 1))


async def test_prompt_may_arrive_at_any_replica(database_url: str, folder: Path) -> None:
    """Prompt, cancel, answer: written as a wish, done by the host."""
    async with two_houses(database_url, folder) as (first, second):
        session = (await first.ensure())["session_id"]
        turn = (await second.prompt(session, "ask Delete?\nsleep 600"))["turn_id"]
        permission = await asked(second, session)
        assert (await respond(second, permission, "allow")).status_code == 200
        answer = await second.post(f"/v1/turns/{turn}/cancel")
        assert answer.json()["cancel_outcome"] == "stopped"
        await told(second, turn)
