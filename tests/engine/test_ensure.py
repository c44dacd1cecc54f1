"""Ensure-session: one agent however often, by whomever and across restarts; close, erase, open again."""

import sys
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from app.domain.events import TERMINAL_TYPES
from app.settings import BackendSettings
from tests.engine.replicas import agents, two_houses
from tests.house import House, open_house
from tests.system.test_paseo_recovery import eventually

Json = dict[str, Any]
SLOW = """
import json, os, sys, time
gate = os.environ["GATE"]
for line in sys.stdin:
    message = json.loads(line)
    method, number = message.get("method"), message.get("id")
    if number is None or method is None:
        continue
    result = {}
    if method == "initialize":
        result = {"protocolVersion": 1, "agentCapabilities": {"loadSession": True}}
    if method == "session/new":
        while not os.path.exists(gate):
            time.sleep(0.01)
        if open(gate).read() == "no":
            error = {"code": -32603, "message": "Internal error", "data": {"details": "no such model"}}
            print(json.dumps({"jsonrpc": "2.0", "id": number, "error": error}), flush=True)
            continue
        result = {"sessionId": "slow-1"}
    print(json.dumps({"jsonrpc": "2.0", "id": number, "result": result}), flush=True)
"""
"""An agent that makes no session before its gate, a file, is there."""


def slow_backend(folder: Path) -> tuple[dict[str, BackendSettings], Path]:
    """A backend whose agents wait for the gate, and the gate."""
    program, gate = folder / "slow.py", folder / "gate"
    program.write_text(SLOW)
    slow = BackendSettings(type="acp", command=(sys.executable, str(program)), env={"GATE": str(gate)})
    return {"slow": slow}, gate


async def put(house: House, name: str, **body: Any) -> httpx.Response:
    body = {"agent": "demo", "cwd": str(house.cwd), **body}
    return await house.client.put(f"/v1/sessions/{name}", json=body)


async def opened(house: House, name: str) -> list[Json]:
    """Every `session.opened` of a log."""
    return [event["data"] for event in await house.log(name) if event["type"] == "session.opened"]


def refused(answer: httpx.Response, status: int, code: str, **more: Any) -> None:
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    for name, value in more.items():
        assert answer.json()[name] == value


# One agent.


async def test_concurrent_ensures_on_two_replicas_make_one_agent(database_url: str, folder: Path) -> None:
    """The others wait, and get the same; exactly one says `created` (P91)."""
    async with two_houses(database_url, folder) as (first, second):
        before = len(agents())
        answers: list[httpx.Response] = []

        async def ensure(house: House) -> None:
            answers.append(await put(house, "s-1"))

        async with anyio.create_task_group() as tasks:
            for n in range(10):
                tasks.start_soon(ensure, (first, second)[n % 2])
        assert sorted(answer.status_code for answer in answers) == [200] * 9 + [201]
        assert len({answer.json()["agent_session_id"] for answer in answers}) == 1
        assert [a.json()["opened"] for a in answers if a.status_code == 201] == ["created"]
        assert {a.json()["opened"] for a in answers if a.status_code == 200} == {"reused"}
        assert [event["how"] for event in await opened(first, "s-1")] == ["created"]
        assert len(agents()) - before == 1
        assert len((await second.get("/v1/sessions"))["items"]) == 1


async def test_concurrent_ensures_by_chat_make_one_agent(database_url: str, folder: Path) -> None:
    """Without an id the natural key is `(chat_id, agent)`."""
    async with two_houses(database_url, folder) as (first, second):
        answers: list[httpx.Response] = []

        async def ensure(house: House) -> None:
            body = {"agent": "demo", "chat_id": "c-1", "cwd": str(house.cwd)}
            answers.append(await house.post("/v1/sessions", body))

        async with anyio.create_task_group() as tasks:
            for n in range(10):
                tasks.start_soon(ensure, (first, second)[n % 2])
        assert sorted(answer.status_code for answer in answers) == [200] * 9 + [201]
        (name,) = {answer.json()["session_id"] for answer in answers}
        assert name.startswith("ses_")
        assert len(await opened(first, name)) == 1


async def test_session_being_made_is_unknown_and_in_no_list(database_url: str, folder: Path) -> None:
    """404 until its agent is there; whoever ensures it meanwhile waits for the same."""
    backends, gate = slow_backend(folder)
    async with two_houses(database_url, folder, backends=backends) as (first, second):
        answers: list[httpx.Response] = []

        async def ensure(house: House) -> None:
            answers.append(await put(house, "s-1", agent="slow"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ensure, first)
            tasks.start_soon(ensure, second)
            with anyio.fail_after(20):
                while not agents("slow.py"):
                    assert (await first.get("/v1/sessions"))["items"] == []
            for path in ("", "/events", "/events/stream", "/snapshot", "/turns"):
                refused(await second.client.get(f"/v1/sessions/s-1{path}"), 404, "session_not_found")
            refused(await second.post("/v1/sessions/s-1/turns", {"prompt": "x"}), 404, "session_not_found")
            refused(await second.client.delete("/v1/sessions/s-1"), 404, "session_not_found")
            assert (await second.get("/v1/sessions"))["items"] == []
            assert answers == []
            gate.write_text("yes")
        assert sorted(answer.status_code for answer in answers) == [200, 201]
        assert len(agents("slow.py")) == 1


async def test_creation_that_failed_leaves_nothing(database_url: str, folder: Path) -> None:
    """502 with the backend's words; then the id is free, and works once the cause is cured."""
    backends, gate = slow_backend(folder)
    async with open_house(database_url, folder, backends=backends) as house:
        gate.write_text("no")
        answer = await put(house, "s-1", agent="slow")
        refused(answer, 502, "backend_error")
        assert "no such model" in answer.json()["detail"]
        refused(await house.client.get("/v1/sessions/s-1"), 404, "session_not_found")
        assert agents("slow.py") == []
        gate.write_text("yes")
        answer = await put(house, "s-1", agent="slow")
        assert (answer.status_code, answer.json()["last_seq"]) == (201, 1)


async def test_new_session_needs_its_backend(database_url: str, folder: Path) -> None:
    """503 for a new one; 200 with `backend_status: down` for one that is there."""
    backends, gate = slow_backend(folder)
    gate.write_text("yes")
    async with open_house(database_url, folder, backends=backends) as house:
        assert (await put(house, "s-1", agent="slow")).status_code == 201
    gone = {"slow": BackendSettings(type="acp", command=("/nowhere/agent",))}
    async with open_house(database_url, folder, backends=gone) as house:
        refused(await put(house, "s-2", agent="slow"), 503, "backend_unavailable")
        refused(await house.client.get("/v1/sessions/s-2"), 404, "session_not_found")
        answer = await put(house, "s-1", agent="slow")
        assert answer.status_code == 200, answer.text
        assert answer.json()["backend_status"] == "down"
        refused(await house.post("/v1/sessions/s-1/turns", {"prompt": "x"}), 503, "backend_unavailable")
        refused(await put(house, "s-3", backend="paseo"), 503, "backend_unavailable")


# Which row, and how it must be.


async def test_ensured_again_it_is_the_same(house: House) -> None:
    """200, nothing logged; what the request does not say is not compared."""
    first = await put(house, "s-1", title="A", labels={"a": "b"}, project_id="p")
    assert first.status_code == 201
    again = await house.client.put("/v1/sessions/s-1", json={"agent": "demo"})
    assert again.status_code == 200
    expected = {**first.json(), "opened": "reused"}
    got = again.json()
    assert {k: v for k, v in got.items() if k != "last_active_at"} == {
        k: v for k, v in expected.items() if k != "last_active_at"
    }
    assert again.json()["last_seq"] == 1
    shown = await house.get("/v1/sessions/s-1")
    assert shown["session_id"] == "s-1"
    assert shown["chat_id"] == "s-1"


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"agent": "other"}, ["agent"]),
        ({"chat_id": "c-2"}, ["chat_id"]),
        ({"backend": "paseo"}, ["backend"]),
        ({"provider": "other"}, ["provider"]),
        ({"cwd": "/"}, ["cwd"]),
        ({"backend": "paseo", "provider": "other"}, ["backend", "provider"]),
    ],
)
async def test_other_than_stored_is_a_conflict(house: House, body: Json, fields: list[str]) -> None:
    """409 `session_conflict` names the fields; nothing is changed."""
    await put(house, "s-1", chat_id="c-1")
    for if_exists in ("reuse", "update"):
        answer = await put(house, "s-1", if_exists=if_exists, **body)
        refused(answer, 409, "session_conflict")
        assert answer.json()["fields"] == fields
    assert (await house.get("/v1/sessions/s-1"))["last_seq"] == 1


async def test_id_and_chat_of_two_sessions_are_a_conflict(house: House) -> None:
    """Neither is touched."""
    await put(house, "s-1", chat_id="c-1")
    await put(house, "s-2", chat_id="c-2")
    refused(await put(house, "s-1", chat_id="c-2"), 409, "session_conflict")


async def test_session_that_is_there_can_be_rejected(house: House) -> None:
    """`if_exists: reject`."""
    assert (await put(house, "s-1", if_exists="reject")).status_code == 201
    refused(await put(house, "s-1", if_exists="reject"), 409, "session_exists")


async def test_session_that_is_there_can_be_updated(house: House) -> None:
    """Model, mode, thinking, title, labels, policy; what is in force is shown and logged."""
    await put(house, "s-1")
    policy = {"mode": "deny", "timeout_s": 5, "on_timeout": "deny"}
    answer = await put(
        house,
        "s-1",
        if_exists="update",
        model="demo-2",
        mode="plan",
        thinking="high",
        title="New",
        labels={"x": "y"},
        permission_policy=policy,
    )
    assert answer.status_code == 200, answer.text
    view = answer.json()
    assert (view["model"], view["mode"], view["thinking"]) == ("demo-2", "plan", "high")
    assert (view["title"], view["labels"], view["permission_policy"]) == ("New", {"x": "y"}, policy)
    changed: Json = {}
    for event in await house.log("s-1"):
        if event["type"] == "session.updated":
            changed |= event["data"]["changed"]
    assert changed == {
        "model": "demo-2",
        "mode": "plan",
        "thinking": "high",
        "title": "New",
        "labels": {"x": "y"},
        "permission_policy": policy,
    }
    plain = await put(house, "s-1", title="Ignored")
    assert plain.json()["title"] == "New"
    unknown = await put(house, "s-1", if_exists="update", model="demo-9")
    refused(unknown, 422, "unsupported_by_backend")


async def test_natural_key_rebinds(house: House) -> None:
    """Same agent, same log, new id; the old id is unknown and may be made again, counting on."""
    old = (await put(house, "s-1", chat_id="c-1")).json()
    await house.run("s-1", "say before")
    last = (await house.get("/v1/sessions/s-1"))["last_seq"]
    new = (await put(house, "s-2", chat_id="c-1")).json()
    assert new["opened"] == "rebound"
    assert new["agent_session_id"] == old["agent_session_id"]
    assert new["last_seq"] == last + 1
    refused(await house.client.get("/v1/sessions/s-1"), 404, "session_not_found")
    assert {event["session_id"] for event in await house.log("s-2")} == {"s-1", "s-2"}
    assert (await house.run("s-2", "say after"))["session_id"] == "s-2"
    again = (await put(house, "s-1", chat_id="c-2")).json()
    assert again["opened"] == "created"
    assert again["oldest_seq"] == last + 1
    back = await put(house, "s-1", chat_id="c-1")
    refused(back, 409, "session_conflict")


async def test_rebound_back_the_log_goes_on(house: House) -> None:
    """The numbers are the row's own: an id that comes back to it meets no gap and no double."""
    await put(house, "s-1", chat_id="c-1")
    await put(house, "s-2", chat_id="c-1")
    back = (await put(house, "s-1", chat_id="c-1")).json()
    assert back["opened"] == "rebound"
    assert [event["seq"] for event in await house.log("s-1")] == [1, 2, 3]


async def test_path_outside_the_roots_is_refused(house: House, tmp_path: Path) -> None:
    """422, and nothing is made."""
    outside = house.cwd / "way-out"
    outside.symlink_to(tmp_path)
    for cwd in ("/", str(tmp_path), str(house.cwd / ".."), str(outside), str(house.cwd) + "-x"):
        refused(await put(house, "s-1", cwd=cwd), 422, "path_not_allowed")
    refused(await house.client.get("/v1/sessions/s-1"), 404, "session_not_found")


async def test_unknown_provider_and_backend_are_named(house: House) -> None:
    """422 and 404."""
    refused(await put(house, "s-1", provider="nobody"), 422, "provider_not_found")
    refused(await put(house, "s-1", backend="nobody"), 404, "backend_not_found")
    refused(await put(house, "s-1", model="demo-9"), 422, "unsupported_by_backend")
    assert (await house.get("/v1/sessions"))["items"] == []


# Closed, erased, restarted.


async def test_closed_session_is_opened_again_by_an_ensure(house: House) -> None:
    """`resumed`, with the same agent and log; until then prompts are refused."""
    made = (await put(house, "s-1")).json()
    await house.run("s-1", "say before")
    closed = await house.post("/v1/sessions/s-1/close")
    assert (closed.status_code, closed.json()["status"]) == (200, "closed")
    assert closed.json()["archived"] is True
    log = await house.log("s-1")
    assert log[-1]["type"] == "session.closed"
    assert log[-1]["data"]["archived"] is True
    refused(await house.post("/v1/sessions/s-1/turns", {"prompt": "x"}), 409, "session_closed")
    refused(await house.client.patch("/v1/sessions/s-1", json={"title": "x"}), 409, "session_closed")
    again = await house.post("/v1/sessions/s-1/close")
    assert again.status_code == 200
    assert len(await house.log("s-1")) == len(log)
    opened_again = await put(house, "s-1", if_exists="reject")
    assert (opened_again.status_code, opened_again.json()["opened"]) == (200, "resumed")
    assert opened_again.json()["agent_session_id"] == made["agent_session_id"]
    assert opened_again.json()["closed_at"] is None
    assert [event["how"] for event in await opened(house, "s-1")] == ["created", "resumed"]
    assert (await house.run("s-1", "say after"))["status"] == "completed"


async def test_closed_session_opened_with_update_is_changed_too(house: House) -> None:
    """`update` says how the session is to be, closed or not."""
    await put(house, "s-1")
    await house.post("/v1/sessions/s-1/close")
    answer = await put(house, "s-1", if_exists="update", title="New", model="demo-2", labels={"a": "b"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["opened"] == "resumed"
    assert (answer.json()["title"], answer.json()["labels"]) == ("New", {"a": "b"})
    assert answer.json()["model"] == "demo-2"


async def test_close_ends_the_turn_and_the_queue(house: House) -> None:
    """`cancel`, the default: the running turn is stopped, queued ones never start."""
    await put(house, "s-1")
    running = (await house.prompt("s-1", "say begun\nsleep 600"))["turn_id"]
    queued = (await house.prompt("s-1", "say x", multitask_strategy="enqueue"))["turn_id"]
    await house.follow(f"/v1/turns/{running}/events/stream", "message.delta")
    answer = await house.post("/v1/sessions/s-1/close", {"mode": "cancel"})
    assert (answer.status_code, answer.json()["status"]) == (200, "closed")
    for turn, outcome in ((running, "stopped"), (queued, None)):
        view = await house.get(f"/v1/turns/{turn}")
        assert (view["status"], view["cause"]) == ("cancelled", "session_closed")
        assert view["cancel_outcome"] == outcome
    types = [event["type"] for event in await house.log("s-1")]
    assert types[-1] == "session.closed"
    assert sum(type_ in TERMINAL_TYPES for type_ in types) == 2
    await eventually(lambda: not agents())


async def test_draining_close_lets_the_turn_end(house: House) -> None:
    """202 and `closing`; nothing new is taken; after the turn it is closed."""
    await put(house, "s-1")
    turn = (await house.prompt("s-1", "ask Delete?"))["turn_id"]
    queued = (await house.prompt("s-1", "say x", multitask_strategy="enqueue"))["turn_id"]
    async with house.stream("/v1/sessions/s-1/events/stream") as stream:
        frames = await stream.until("permission.requested")
        asked = next(f for f in frames if f.event == "permission.requested").data["data"]["permission_id"]
        answer = await house.post("/v1/sessions/s-1/close", {"mode": "drain"})
        assert (answer.status_code, answer.json()["status"]) == (202, "closing")
        refused(await house.post("/v1/sessions/s-1/turns", {"prompt": "x"}), 409, "session_closed")
        refused(await put(house, "s-1"), 409, "session_closed")
        assert (await house.ended(queued))["cause"] == "session_closed"
        again = await house.post("/v1/sessions/s-1/close", {"mode": "drain"})
        assert (again.status_code, again.json()["status"]) == (202, "closing")
        await house.post(f"/v1/permissions/{asked}/respond", {"outcome": "allow"})
        frames = await stream.to_end()
    assert frames[-1].data == {"reason": "session_closed"}
    assert (await house.get(f"/v1/turns/{turn}"))["status"] == "completed"
    assert (await house.get("/v1/sessions/s-1"))["status"] == "closed"


async def test_draining_close_right_after_a_prompt_answers_at_once(house: House) -> None:
    """Whether the turn had just started or not: it either runs to its end, or never starts."""
    for n in range(8):
        name = f"s-{n}"
        await put(house, name)
        turn = (await house.prompt(name, "stream 20 5"))["turn_id"]
        with anyio.fail_after(15):
            answer = await house.post(f"/v1/sessions/{name}/close", {"mode": "drain"})
        ended = await house.ended(turn)
        if answer.status_code == 200:
            assert answer.json()["status"] == "closed"
            assert ended["status"] in ("completed", "cancelled")
        else:
            assert (answer.status_code, ended["status"]) == (202, "completed")


async def test_draining_close_can_be_hurried(house: House) -> None:
    """A later `cancel` does not wait any more."""
    await put(house, "s-1")
    turn = (await house.prompt("s-1", "sleep 600"))["turn_id"]
    await house.follow(f"/v1/turns/{turn}/events/stream", "turn.started")
    assert (await house.post("/v1/sessions/s-1/close", {"mode": "drain"})).status_code == 202
    answer = await house.post("/v1/sessions/s-1/close", {"mode": "cancel"})
    assert (answer.status_code, answer.json()["status"]) == (200, "closed")
    assert (await house.get(f"/v1/turns/{turn}"))["cause"] == "session_closed"
    assert [e["type"] for e in await house.log("s-1")].count("session.closed") == 1


async def test_erased_session_counts_on_when_made_again(database_url: str, folder: Path) -> None:
    """204; unknown; the same id begins where it stopped, with a new agent, on any replica."""
    async with two_houses(database_url, folder) as (first, second):
        old = (await put(first, "s-1")).json()
        turn = await first.run("s-1", "say before")
        assert (await second.client.delete("/v1/sessions/s-1")).status_code == 204
        for house in (first, second):
            refused(await house.client.get("/v1/sessions/s-1"), 404, "session_not_found")
            refused(await house.client.get(f"/v1/turns/{turn['turn_id']}"), 404, "turn_not_found")
        refused(await first.client.delete("/v1/sessions/s-1"), 404, "session_not_found")
        new = await put(second, "s-1")
        assert (new.status_code, new.json()["opened"]) == (201, "created")
        assert new.json()["agent_session_id"] != old["agent_session_id"]
        assert new.json()["oldest_seq"] == new.json()["last_seq"] == turn["last_seq"] + 2  # after its close
        assert (await second.client.delete("/v1/sessions/s-1")).status_code == 204
        third = (await put(first, "s-1")).json()
        assert third["oldest_seq"] == new.json()["last_seq"] + 2


async def test_service_that_comes_back_has_the_same_agent(database_url: str, folder: Path) -> None:
    """The row is what finds it: same agent, same log, `reused`."""
    async with open_house(database_url, folder) as house:
        made = (await put(house, "s-1", model="demo-2")).json()
        await house.run("s-1", "say before")
        log = await house.log("s-1")
    await eventually(lambda: not agents())
    async with open_house(database_url, folder) as house:
        answer = await put(house, "s-1")
        assert (answer.status_code, answer.json()["opened"]) == (200, "reused")
        assert answer.json()["agent_session_id"] == made["agent_session_id"]
        assert answer.json()["model"] == "demo-2"
        assert await house.log("s-1") == log
        assert (await house.run("s-1", "say after"))["output_text"] == "after"
    async with open_house(database_url, folder) as house:
        assert (await house.run("s-1", "say at once"))["output_text"] == "at once"


async def test_working_directory_that_is_gone_loses_the_agent(database_url: str, folder: Path) -> None:
    """A prompt says `backend_session_lost`, never silent amnesia; an ensure says `replaced`."""
    async with open_house(database_url, folder) as house:
        where = house.cwd / "tree"
        where.mkdir()
        made = (await put(house, "s-1", cwd=str(where))).json()
    where.rmdir()
    async with open_house(database_url, folder) as house:
        turn = await house.run("s-1", "say x", multitask_strategy="enqueue")
        assert (turn["status"], turn["error"]["code"]) == ("failed", "backend_session_lost")
        refused(await house.post("/v1/sessions/s-1/turns", {"prompt": "x"}), 409, "backend_session_lost")
        where.mkdir()
        answer = await put(house, "s-1", cwd=str(where))
        assert answer.status_code == 200, answer.text
        assert answer.json()["agent_session_id"] == made["agent_session_id"]
        assert (await house.run("s-1", "say x"))["status"] == "completed"


async def test_agent_that_is_lost_is_replaced_by_an_ensure(database_url: str, folder: Path) -> None:
    """A prompt says `backend_session_lost`; the next ensure makes a new agent, and says so."""
    backends, gate = slow_backend(folder)
    gate.write_text("yes")
    async with open_house(database_url, folder, backends=backends) as house:
        made = (await put(house, "s-1", agent="slow")).json()
    program = folder / "slow.py"
    forgetful = SLOW.replace('method == "session/new"', 'method in ("session/new", "session/load")')
    program.write_text(
        forgetful.replace('"slow-1"', '"slow-2"').replace('== "no"', '== "no" or "load" in method')
    )
    async with open_house(database_url, folder, backends=backends) as house:
        turn = await house.run("s-1", "x", multitask_strategy="enqueue")
        assert (turn["status"], turn["error"]["code"]) == ("failed", "backend_session_lost")
        refused(await house.post("/v1/sessions/s-1/turns", {"prompt": "x"}), 409, "backend_session_lost")
        answer = await put(house, "s-1", agent="slow")
        assert (answer.status_code, answer.json()["opened"]) == (200, "replaced")
        assert answer.json()["agent_session_id"] != made["agent_session_id"]
        assert [event["how"] for event in await opened(house, "s-1")] == ["created", "replaced"]
        assert (await house.post("/v1/sessions/s-1/turns", {"prompt": "x"})).status_code == 202
