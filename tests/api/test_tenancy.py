"""Two owners on one service: neither sees, changes or even notices what is the other's (T11 to T13)."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.api.test_threats import walk
from tests.house import PATIENCE, House, Stream, durable

HERS = {"session_id": "shared-name", "chat_id": "chat", "project_id": "project", "title": "canary-title"}


@asynccontextmanager
async def tenant(house: House, owner: str = "other") -> AsyncIterator[httpx.AsyncClient]:
    """A client with a key of another owner that has every scope but `admin`."""
    body = {"name": "x", "owner": owner, "scopes": ["read", "prompt", "approve", "terminal"]}
    answer = await house.post("/v1/api-keys", body)
    assert answer.status_code == 201, answer.text
    headers = {"Authorization": f"Bearer {answer.json()['key']}"}
    async with httpx.AsyncClient(
        base_url=house.url, headers=headers, timeout=PATIENCE, trust_env=False
    ) as client:
        yield client


async def her_things(house: House) -> dict[str, str]:
    """A session of the first owner with an ended turn, an open one, a permission and a task that wait.

    A second session of hers has written the same file.
    """
    await house.ensure(HERS["session_id"], **{k: v for k, v in HERS.items() if k != "session_id"})
    ended = await house.run(HERS["session_id"], "edit canary-file\nsay canary-output")
    await house.ensure("shared-second", project_id=HERS["project_id"])
    await house.run("shared-second", "edit canary-file")
    (collision,) = (await house.get("/v1/collisions"))["items"]
    turn = await house.prompt(HERS["session_id"], "ask canary-command")
    async with house.stream(f"/v1/turns/{turn['turn_id']}/events/stream") as stream:
        frames = await stream.until("permission.requested")
    asked = next(frame for frame in frames if frame.event == "permission.requested")
    terminal = await house.post(f"/v1/sessions/{HERS['session_id']}/terminals", {"command": "cat"})
    steps = [{"name": "canary-step", "prompt": "say canary-task"}]
    task = await house.post("/v1/tasks", {"session_id": HERS["session_id"], "steps": steps})
    assert task.status_code == 202, task.text
    return {
        "session": HERS["session_id"],
        "terminal": terminal.json()["terminal_id"],
        "task": task.json()["task_id"],
        "ended": ended["turn_id"],
        "turn": turn["turn_id"],
        "collision": collision["collision_id"],
        "permission": asked.data["data"]["permission_id"],
    }


ROUTES: list[tuple[str, str, str, Any]] = [
    ("GET", "/v1/sessions/{}", "session", None),
    ("PATCH", "/v1/sessions/{}", "session", {"title": "mine"}),
    ("PATCH", "/v1/sessions/{}", "session", {}),
    ("DELETE", "/v1/sessions/{}", "session", None),
    ("GET", "/v1/sessions/{}/snapshot", "session", None),
    ("GET", "/v1/sessions/{}/diff", "session", None),
    ("POST", "/v1/sessions/{}/close", "session", None),
    ("POST", "/v1/sessions/{}/close", "session", {"mode": "drain"}),
    ("GET", "/v1/sessions/{}/events", "session", None),
    ("GET", "/v1/sessions/{}/events?after=3", "session", None),
    ("GET", "/v1/sessions/{}/events/stream", "session", None),
    ("GET", "/v1/sessions/{}/events/stream?from=now", "session", None),
    ("GET", "/v1/sessions/{}/turns", "session", None),
    ("POST", "/v1/sessions/{}/turns", "session", {"prompt": "say mine"}),
    ("POST", "/v1/sessions/{}/turns", "session", {"prompt": "x", "multitask_strategy": "interrupt"}),
    ("GET", "/v1/turns/{}", "turn", None),
    ("GET", "/v1/turns/{}", "ended", None),
    ("GET", "/v1/turns/{}/wait?timeout_s=1", "turn", None),
    ("GET", "/v1/turns/{}/wait", "ended", None),
    ("GET", "/v1/turns/{}/events/stream", "turn", None),
    ("GET", "/v1/turns/{}/events/stream", "ended", None),
    ("POST", "/v1/turns/{}/cancel", "turn", None),
    ("POST", "/v1/turns/{}/cancel", "ended", None),
    ("POST", "/v1/turns/{}/retry", "ended", None),
    ("POST", "/v1/turns/{}/retry", "turn", None),
    ("DELETE", "/v1/turns/{}", "turn", None),
    ("DELETE", "/v1/turns/{}", "ended", None),
    ("GET", "/v1/sessions/{}/terminals", "session", None),
    ("POST", "/v1/sessions/{}/terminals", "session", {"command": "true"}),
    ("GET", "/v1/terminals/search?q=x&session_id={}", "session", None),
    ("GET", "/v1/terminals/{}", "terminal", None),
    ("DELETE", "/v1/terminals/{}", "terminal", None),
    ("GET", "/v1/terminals/{}/output/stream", "terminal", None),
    ("POST", "/v1/terminals/{}/input", "terminal", {"data": "mine"}),
    ("POST", "/v1/terminals/{}/resize", "terminal", {"rows": 5, "cols": 5}),
    ("GET", "/v1/terminals/{}/capture", "terminal", None),
    ("GET", "/v1/terminals/{}/search?q=x", "terminal", None),
    ("GET", "/v1/tasks/{}", "task", None),
    ("POST", "/v1/tasks/{}/cancel", "task", None),
    ("POST", "/v1/tasks/{}/retry", "task", None),
    ("GET", "/v1/collisions/{}", "collision", None),
    ("GET", "/v1/permissions/{}", "permission", None),
    ("POST", "/v1/permissions/{}/respond", "permission", {"outcome": "allow"}),
    ("POST", "/v1/permissions/{}/respond", "permission", {"outcome": "deny", "option_id": "x"}),
]
MISSING = {
    "session": "no-such-name",
    "terminal": "ter_x",
    "turn": "trn_x",
    "ended": "trn_x",
    "task": "tsk_x",
    "collision": "col_x",
    "permission": "prm_x",
}
SHARED = {
    ("PUT", "/v1/sessions/{}"),  # makes one of the caller's own: T13
    ("GET", "/v1/backends/{}"),
    ("GET", "/v1/backends/{}/providers"),
    ("POST", "/v1/backends/{}/drain"),
    ("POST", "/v1/backends/{}/resume"),
    ("DELETE", "/v1/api-keys/{}"),
    ("GET", "/console/static/{}"),
}
"""Routes with a name in their path that is nobody's: the operator's, with `admin`, or everybody's."""

LISTS = [
    "/v1/sessions",
    "/v1/sessions?chat_id=chat",
    "/v1/sessions?project_id=project",
    "/v1/sessions?agent=demo&backend=demo&status=active",
    "/v1/sessions?activity=requires_action",
    "/v1/sessions?cursor={cursor}",
    "/v1/tasks",
    "/v1/tasks?status=pending",
    "/v1/tasks?session_id={session}",
    "/v1/tasks?cursor={cursor}",
    "/v1/permissions",
    "/v1/permissions?status=pending",
    "/v1/permissions?session_id={session}",
    "/v1/collisions",
    "/v1/collisions?project_id=project&status=open",
    "/v1/collisions?cursor={cursor}",
    "/v1/projects/project/files",
    "/v1/projects/project/files?cursor={cursor}",
]
NO_LISTS = {
    "/v1/events/stream",  # T12
    "/v1/terminals/search",
    "/v1/backends",
    "/v1/api-keys",
}
"""Routes under /v1 that need no id to be read, and show nothing of another's or need `admin`."""


async def test_t11_every_route_is_in_a_table_of_this_file(house: House) -> None:
    """A new route that takes an id, or lists what is somebody's, fails here until it is added."""
    told = {(method, path.partition("?")[0]) for method, path, _, _ in ROUTES}
    lists = {path.partition("?")[0].replace("/project/", "/{}/") for path in LISTS}
    for method, path in walk(house.app):
        plain = re.sub(r"\{\w+\}", "{}", path)
        if method == "GET" and plain.startswith("/v1/") and (method, plain) not in told | SHARED:
            assert plain in lists | NO_LISTS, f"{plain} shows nobody's, its caller's or everybody's things?"
        elif "{}" in plain:
            assert (method, plain) in told | SHARED, f"{method} {plain} is tested with nobody else's id"


async def test_t11_what_is_another_owner_s_is_as_if_it_were_not_there(house: House) -> None:
    """Every route, with ids that exist and with ids that do not: the same 404, word for word."""
    hers = await her_things(house)
    log = await house.log(hers["session"])
    async with tenant(house) as client:
        for method, path, what, body in ROUTES:
            answers = []
            for names in (hers, MISSING):
                answer = await client.request(method, path.format(names[what]), json=body)
                assert answer.status_code == 404, (method, path, answer.text)
                told = {**answer.json(), "instance": ""}
                headers = {k: v for k, v in answer.headers.items() if k not in ("date", "x-request-id")}
                answers.append((told, {**headers, "content-length": ""}))
            assert answers[0] == answers[1], (method, path)
            assert hers[what] not in json.dumps(answers[0])
        task = {"session_id": hers["session"], "steps": [{"prompt": "say mine"}]}
        refused = await client.post("/v1/tasks", json=task)
        assert (refused.status_code, refused.json()["code"]) == (404, "session_not_found")
        for body in (
            {"session_id": hers["session"]},
            {"turn_id": hers["turn"]},
            {"terminal_id": hers["terminal"]},
        ):
            assert (await client.post("/v1/stream-tickets", json=body)).status_code == 404
    assert await house.log(hers["session"]) == log
    assert (await house.get(f"/v1/sessions/{hers['session']}"))["pending_permissions"] == 1


async def test_t11_lists_show_the_caller_s_own_only(house: House) -> None:
    """Whatever filter or cursor is given; counts say nothing either."""
    hers = await her_things(house)
    await house.ensure("another")
    page = await house.get("/v1/sessions", limit=1)
    assert page["next_cursor"] is not None
    for form in (path for path in LISTS if "?" not in path):
        assert (await house.get(form))["items"], f"there is nothing of hers in {form}"
    async with tenant(house) as client:
        for form in LISTS:
            path = form.format(cursor=page["next_cursor"], session=hers["session"])
            answer = await client.get(path)
            assert answer.status_code == 200, path
            assert answer.json() == {"items": [], "next_cursor": None}, path
        found = (await client.get("/v1/terminals/search?q=canary")).json()
        assert "canary" not in json.dumps(found)


async def test_t12_a_cursor_of_another_session_leaks_nothing(house: House) -> None:
    """A number says nothing: what comes is the reader's own log, or a reset to its end."""
    hers = await her_things(house)
    last = (await house.get(f"/v1/sessions/{hers['session']}"))["last_seq"]
    async with tenant(house) as client:
        body = {"agent": "demo", "cwd": str(house.cwd)}
        assert (await client.put("/v1/sessions/mine", json=body)).status_code == 201
        for cursor in (1, last - 1, last, last + 1000, 10**17):
            async with client.stream(
                "GET", "/v1/sessions/mine/events/stream", headers={"Last-Event-ID": str(cursor)}
            ) as response:
                stream = Stream(response, response.aiter_raw())
                frames = await stream.until("stream.synced")
            assert b"canary" not in stream.raw
            assert {frame.data["session_id"] for frame in durable(frames)} <= {"mine"}
            own = (await client.get("/v1/sessions/mine")).json()["last_seq"]
            assert ("stream.reset" in {frame.event for frame in frames}) is (cursor > own)


async def test_t12_the_stream_over_all_sessions_is_over_the_caller_s_own(house: House) -> None:
    """Two owners live at once in a project and a session of the same names; neither hears the other."""
    async with (
        tenant(house) as client,
        client.stream("GET", "/v1/events/stream?types=turn.*,message.*,session.*") as mine,
        client.stream("GET", "/v1/events/stream?project_id=project&types=turn.*,message.*") as narrow,
    ):
        streams = [Stream(mine, mine.aiter_raw()), Stream(narrow, narrow.aiter_raw())]
        for stream in streams:
            await stream.until("stream.synced")
        await her_things(house)
        body = {"agent": "demo", "cwd": str(house.cwd), "project_id": "project", "prompt": "say mine"}
        answer = await client.post("/v1/prompt-stream", json={**body, "session_id": HERS["session_id"]})
        assert answer.status_code == 200
        for stream in streams:
            frames = await stream.until("turn.completed")
            assert b"canary" not in stream.raw
            completed = [frame for frame in frames if frame.event == "message.completed"]
            assert [frame.data["data"]["text"].strip() for frame in completed] == ["mine"]


@pytest.mark.parametrize("by", ["session_id", "chat"])
async def test_t13_ensure_attaches_nobody_to_another_owner_s_session(house: House, by: str) -> None:
    """The same name makes a session of the caller's own, with an agent of its own."""
    hers = await her_things(house)
    before = await house.get(f"/v1/sessions/{hers['session']}")
    async with tenant(house) as client:
        body = {"agent": "demo", "cwd": str(house.cwd), "chat_id": HERS["chat_id"]}
        made: dict[str, Any] = {}
        for if_exists in ("reject", "update", "reuse"):
            if by == "session_id":
                path = f"/v1/sessions/{HERS['session_id']}"
                answer = await client.put(path, json={**body, "if_exists": if_exists, "title": "mine"})
            else:
                answer = await client.post(
                    "/v1/sessions", json={**body, "if_exists": if_exists, "title": "mine"}
                )
            made = answer.json()
            assert answer.status_code == (201 if if_exists == "reject" else 200), answer.text
            assert made["agent_session_id"] != before["agent_session_id"]
            assert (made["title"], made["pending_permissions"]) == ("mine", 0)
        await client.delete(f"/v1/sessions/{made['session_id']}")
    after = await house.get(f"/v1/sessions/{hers['session']}")
    assert {**after, "last_active_at": ""} == {**before, "last_active_at": ""}


async def test_t11_an_idempotency_key_is_the_owner_s_own(house: House) -> None:
    """Two owners may take the same key for different requests; neither gets the other's turn."""
    await house.ensure("s")
    answer = await house.post("/v1/sessions/s/turns", {"prompt": "say hers"}, **{"Idempotency-Key": "k"})
    assert answer.status_code == 202
    async with tenant(house) as client:
        body = {"agent": "demo", "cwd": str(house.cwd)}
        assert (await client.put("/v1/sessions/s", json=body)).status_code == 201
        mine = await client.post(
            "/v1/sessions/s/turns", json={"prompt": "say mine"}, headers={"Idempotency-Key": "k"}
        )
        assert mine.status_code == 202
        assert "idempotent-replayed" not in mine.headers
        assert mine.json()["turn_id"] != answer.json()["turn_id"]


async def test_t11_ids_cannot_be_guessed(house: House) -> None:
    """A permission's id is the nonce of the approval; no id is a counter."""
    hers = await her_things(house)
    await house.ensure("s-2")
    turn = await house.prompt("s-2", "ask more")
    async with house.stream(f"/v1/turns/{turn['turn_id']}/events/stream") as stream:
        frames = await stream.until("permission.requested")
    second = next(f.data["data"]["permission_id"] for f in frames if f.event == "permission.requested")
    for name in (hers["permission"], second):
        assert len(name.removeprefix("prm_")) >= 22
    assert hers["permission"][:12] != second[:12]
