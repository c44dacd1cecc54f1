"""Streams among enemies: what is injected, who may open one, how it ends (T08, T09, T29)."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import httpx
import pytest

from app.settings import Limits
from app.store.database import Address
from tests.engine.replicas import two_houses
from tests.house import PATIENCE, House, Stream, assert_unbroken, durable, open_house

INJECTION = "x\ndata: forged\n\nevent: done\rid: 999\r\n\r\n: \x0b\x0c\x85\u2028\u2029end"
"""What would be fields and events of a stream, if it came through as it is."""
ONE_LINE = "x data: forged event: done \u2028id: 999\u2029"
"""The same for names, which take no control characters."""


@asynccontextmanager
async def browser(house: House) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a key."""
    async with httpx.AsyncClient(base_url=house.url, timeout=PATIENCE, trust_env=False) as client:
        yield client


async def ticket(house: House, **target: Any) -> str:
    answer = await house.post("/v1/stream-tickets", target)
    assert answer.status_code == 201, answer.text
    found: str = answer.json()["ticket"]
    return found


def assert_well_formed(raw: bytes) -> None:
    """Nothing but our own fields, one `data` line a frame, LF alone."""
    assert b"\r" not in raw
    assert b"\x00" not in raw
    for block in raw.decode().split("\n\n")[:-1]:
        fields = [line.partition(":")[0] for line in block.split("\n")]
        assert fields in (
            ["retry"],
            ["id"],
            [""],
            ["event", "data"],
            ["id", "event", "data"],
        ), block[:200]


async def test_t29_nothing_that_a_client_or_an_agent_says_ends_an_event(house: House) -> None:
    """In every field that they choose: one event stays one event, live and replayed."""
    injected = json.dumps(INJECTION)[1:-1]
    # The demo agent takes a line each; what it says has all the rest.
    words = INJECTION.replace("\n", "\\n").replace("\r", "\r ")
    script = "\n".join(
        [
            f"say {ONE_LINE}{words.splitlines()[0]}",
            f"think {ONE_LINE}",
            f"run {ONE_LINE}\x0b\x0c\x85",
            f"read /{ONE_LINE}",
            f"edit /{ONE_LINE}",
            f"plan {ONE_LINE}; {ONE_LINE}",
            f"question {ONE_LINE} | {ONE_LINE} | b",
        ]
    )
    async with house.client.stream("GET", "/v1/events/stream") as over_all:
        everything = Stream(over_all, over_all.aiter_raw())
        await everything.until("stream.synced")
        body = {
            "session_id": "s-1",
            "agent": "demo",
            "cwd": str(house.cwd),
            "chat_id": ONE_LINE,
            "project_id": ONE_LINE,
            "title": ONE_LINE,
            "labels": {"data\u2028 event": ONE_LINE},
            "prompt": f"{script}\n{INJECTION}",
            "metadata": {INJECTION: INJECTION},
        }
        async with house.client.stream("POST", "/v1/prompt-stream", json=body) as answer:
            assert answer.status_code == 200, await answer.aread()
            stream = Stream(answer, answer.aiter_raw())
            frames = await stream.until("permission.requested")
            asked = next(frame for frame in frames if frame.event == "permission.requested")
            name = asked.data["data"]["permission_id"]
            reply = {"outcome": "deny", "message": INJECTION}
            assert (await house.post(f"/v1/permissions/{name}/respond", reply)).status_code == 200
            live = await stream.to_end()
        assert_well_formed(stream.raw)
        answer = await house.client.patch(
            "/v1/sessions/s-1", json={"title": ONE_LINE + "2", "labels": {"x": ONE_LINE}}
        )
        assert answer.status_code == 200
        await everything.until("session.updated")
        assert_well_formed(everything.raw)
    async with house.stream("/v1/sessions/s-1/events/stream") as replay:
        frames = await replay.until("stream.synced")
    assert_well_formed(replay.raw)
    assert_unbroken(frames)
    assert {frame.event for frame in frames} >= {"tool_call.completed", "plan.updated", "session.updated"}
    assert "done" not in {frame.event for frame in frames + live}
    assert "999" not in {frame.id for frame in frames + live}
    (started,) = [frame for frame in frames if frame.event == "turn.started"]
    assert started.data["data"]["prompt"] == body["prompt"]
    assert injected.encode() in started.raw or b"\\ndata: forged\\n\\nevent: done\\r" in started.raw


@pytest.mark.parametrize("field", ["agent", "chat_id", "project_id", "title", "model", "provider"])
async def test_t29_names_take_no_control_characters(house: House, field: str) -> None:
    """They are refused at the door, whatever the encoder would make of them."""
    for character in "\n\r\x00\x1b\x7f\x85":
        body = {"agent": "demo", "cwd": str(house.cwd), field: f"demo{character}data: x"}
        answer = await house.client.put("/v1/sessions/s-1", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")


@pytest.mark.parametrize("encoding", ["gzip", "br", "gzip, deflate, br, zstd", "*"])
async def test_streams_are_neither_kept_nor_compressed_nor_buffered(house: House, encoding: str) -> None:
    """By whichever route they are opened, and whatever a client would take."""
    session = await house.ensure("s-1")
    turn = await house.run("s-1", "say x")
    prompt = {"prompt": "say y"}
    base = {"agent": "demo", "cwd": session["cwd"], "session_id": "s-1"}
    for method, path, body, accept in (
        ("GET", "/v1/sessions/s-1/events/stream", None, "*/*"),
        ("GET", f"/v1/turns/{turn['turn_id']}/events/stream", None, "*/*"),
        ("GET", "/v1/events/stream", None, "*/*"),
        ("POST", "/v1/sessions/s-1/turns", prompt, "text/event-stream"),
        ("POST", "/v1/prompt-stream", {**base, **prompt, "multitask_strategy": "enqueue"}, "*/*"),
    ):
        headers = {"Accept-Encoding": encoding, "Accept": accept}
        async with house.client.stream(method, path, json=body, headers=headers) as answer:
            assert answer.status_code == 200, path
            assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
            directives = {part.strip() for part in answer.headers["cache-control"].split(",")}
            assert directives == {"no-store", "no-transform"}
            assert answer.headers["x-accel-buffering"] == "no"
            assert "content-encoding" not in answer.headers
            assert "content-length" not in answer.headers
            assert answer.headers["x-request-id"]
            assert answer.headers["x-content-type-options"] == "nosniff"
            first = await anext(answer.aiter_raw())
            assert first.startswith(b"retry: 2000\n\nevent: stream.ready\n")


# T08: revocation.


async def test_t08_a_revoked_key_is_refused_on_every_replica(database_url: str, folder: Path) -> None:
    """For requests too, within five seconds; both replicas had just recognised it."""
    async with two_houses(database_url, folder) as (first, second), browser(first) as one:
        await first.ensure("s-1")
        made = (await first.post("/v1/api-keys", {"name": "x", "scopes": ["read"]})).json()
        own = {"Authorization": f"Bearer {made['key']}"}
        async with second.stream("/v1/sessions/s-1/events/stream", headers=own) as stream:
            await stream.until("stream.synced")
            for house in (first, second):
                answer = await one.get(f"{house.url}/v1/sessions", headers=own)
                assert answer.status_code == 200
            with anyio.fail_after(5):
                revoked = await first.client.delete(f"/v1/api-keys/{made['key_id']}")
                assert revoked.status_code == 204
                assert (await stream.to_end())[-1].data == {"reason": "auth_expired"}
                for house in (first, second):
                    answer = await one.get(f"{house.url}/v1/sessions", headers=own)
                    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        assert (await first.client.delete(f"/v1/api-keys/{made['key_id']}")).status_code == 204
        listed = await second.get("/v1/api-keys")
        assert next(k for k in listed["items"] if k["key_id"] == made["key_id"])["revoked_at"] is not None


async def test_t08_the_answer_of_a_prompt_ends_with_its_key_but_its_turn_goes_on(house: House) -> None:
    """The stream says why; the turn is nobody's connection."""
    await house.ensure("s-1")
    made = (await house.post("/v1/api-keys", {"name": "x", "scopes": ["prompt"]})).json()
    headers = {"Authorization": f"Bearer {made['key']}", "Accept": "text/event-stream"}
    body = {"prompt": "ask wait", "on_disconnect": "cancel"}
    async with house.client.stream("POST", "/v1/sessions/s-1/turns", json=body, headers=headers) as answer:
        stream = Stream(answer, answer.aiter_raw())
        frames = await stream.until("permission.requested")
        await house.client.delete(f"/v1/api-keys/{made['key_id']}")
        assert (await stream.to_end())[-1].data == {"reason": "auth_expired"}
    asked = next(frame for frame in frames if frame.event == "permission.requested")
    assert (await house.get(f"/v1/turns/{asked.data['turn_id']}"))["ended_at"] is None
    await house.post(f"/v1/permissions/{asked.data['data']['permission_id']}/respond", {"outcome": "allow"})
    assert (await house.ended(asked.data["turn_id"]))["status"] == "completed"


# T09: tickets.


async def test_t09_a_ticket_opens_nothing_but_its_stream(house: House) -> None:
    """No route, no other stream, no other spelling; and it is no key."""
    await house.ensure("s-1")
    await house.ensure("s-2")
    turn = await house.run("s-1", "say x")
    one, two = await ticket(house, session_id="s-1"), await ticket(house, turn_id=turn["turn_id"])
    everything = await ticket(house, all=True)
    own = {
        one: "/v1/sessions/s-1/events/stream",
        two: f"/v1/turns/{turn['turn_id']}/events/stream",
        everything: "/v1/events/stream",
    }
    async with browser(house) as client:
        for text, mine in own.items():
            for path in (
                *own.values(),
                "/v1/sessions/s-2/events/stream",
                "/v1/sessions/s-1",
                "/v1/sessions/s-1/events",
                "/v1/sessions/s-1/snapshot",
                "/v1/sessions",
                f"/v1/turns/{turn['turn_id']}",
                "/v1/api-keys",
            ):
                async with client.stream("GET", path, params={"ticket": text}) as answer:
                    assert answer.status_code == (200 if path == mine else 401), (mine, path)
            assert (await client.get(mine, headers={"Authorization": f"Bearer {text}"})).status_code == 401
            answer = await client.post("/v1/sessions/s-1/close", params={"ticket": text})
            assert answer.status_code == 401
            assert (await client.get(mine, params={"ticket": text[:-1]})).status_code == 401
            assert (await client.get(mine, params={"ticket": f"{text} "})).status_code == 401
            assert (await client.get(mine, params={"ticket": ""})).status_code == 401


@pytest.mark.parametrize(
    ("age", "is_opened", "ended", "expected"),
    [(59, False, None, 200), (61, False, None, 401), (7200, True, 590, 200), (7200, True, 610, 401)],
)
async def test_t09_a_ticket_opens_in_time_by_the_database_s_clock(
    house: House, database_address: Address, age: int, is_opened: bool, ended: int | None, expected: int
) -> None:
    """Within a minute of its making, and again within ten of its stream's last end."""
    await house.ensure("s-1")
    text = await ticket(house, session_id="s-1")
    path = "/v1/sessions/s-1/events/stream"
    if is_opened:
        async with browser(house) as client, client.stream("GET", path, params={"ticket": text}) as answer:
            await Stream(answer, answer.aiter_raw()).until("stream.synced")
    connection = await asyncpg.connect(**database_address.arguments)
    try:
        with anyio.fail_after(PATIENCE):
            while is_opened and not await connection.fetchval("SELECT last_ended_at FROM stream_tickets"):
                await connection.execute("SELECT pg_sleep(0.02)")
        await connection.execute(
            "UPDATE stream_tickets SET created_at = now() - make_interval(secs => $1::int),"
            " last_ended_at = now() - make_interval(secs => $2::int)",
            age,
            ended,
        )
    finally:
        await connection.close()
    async with browser(house) as client, client.stream("GET", path, params={"ticket": text}) as answer:
        assert answer.status_code == expected


async def test_t09_a_ticket_is_as_much_as_its_key_may(house: House) -> None:
    """It needs `read`, is for the owner's own, and dies with its key."""
    await house.ensure("s-1")
    made = (await house.post("/v1/api-keys", {"name": "x", "scopes": ["prompt", "admin"]})).json()
    own = {"Authorization": f"Bearer {made['key']}"}
    for target in ({"session_id": "s-1"}, {"all": True}, {"session_id": "missing"}):
        answer = await house.client.post("/v1/stream-tickets", json=target, headers=own)
        assert answer.status_code == 403
    made = (await house.post("/v1/api-keys", {"name": "x", "owner": "other", "scopes": ["read"]})).json()
    own = {"Authorization": f"Bearer {made['key']}"}
    answer = await house.client.post("/v1/stream-tickets", json={"session_id": "s-1"}, headers=own)
    assert answer.status_code == 404
    text = (await house.client.post("/v1/stream-tickets", json={"all": True}, headers=own)).json()["ticket"]
    assert (await house.client.delete(f"/v1/api-keys/{made['key_id']}")).status_code == 204
    async with browser(house) as client:
        answer = await client.get("/v1/events/stream", params={"ticket": text})
        assert answer.status_code == 401
        answer = await client.get("/v1/sessions/s-1/events/stream", params={"ticket": text})
        assert answer.status_code == 401


async def test_t09_openings_at_once_on_two_replicas_leave_one_stream(database_url: str, folder: Path) -> None:
    """All but the last are told that they are superseded."""
    async with two_houses(database_url, folder) as (first, second), browser(first) as client:
        await first.ensure("s-1")
        text = await ticket(first, session_id="s-1")
        closed: list[str] = []
        seen = anyio.Event()

        async def follow(house: House) -> None:
            url = f"{house.url}/v1/sessions/s-1/events/stream"
            async with client.stream("GET", url, params={"ticket": text}) as answer:
                assert answer.status_code == 200
                stream = Stream(answer, answer.aiter_raw())
                frames = await stream.to_end()
            closed.append(frames[-1].data["reason"])
            if len(closed) == 5:
                seen.set()

        async with anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(follow, (first, second)[number % 2])
            with anyio.fail_after(PATIENCE):
                await seen.wait()
            assert closed == ["superseded"] * 5
            await first.run("s-1", "say x")
            await first.post("/v1/sessions/s-1/close")
        assert closed[5:] == ["session_closed"]


# T26: many at once.


async def test_t26_openings_at_once_do_not_pass_the_bound(database_url: str, folder: Path) -> None:
    """All look at the count before any is counted: still no more are open than may be."""
    async with open_house(database_url, folder, limits=Limits(streams_per_key=3)) as house:
        await house.ensure("s-1")
        statuses: list[int] = []
        all_answered = anyio.Event()

        async def follow() -> None:
            async with house.client.stream("GET", "/v1/sessions/s-1/events/stream") as answer:
                statuses.append(answer.status_code)
                if len(statuses) == 12:
                    all_answered.set()
                await all_answered.wait()

        async with anyio.create_task_group() as tasks:
            for _ in range(12):
                tasks.start_soon(follow)
        assert sorted(statuses) == [200] * 3 + [429] * 9


async def test_t12_a_stream_of_durable_events_has_only_its_turn(house: House) -> None:
    """A turn's stream shows no other turn, with whatever cursor it is opened."""
    await house.ensure("s-1")
    one, two = await house.run("s-1", "say one"), await house.run("s-1", "say two")
    for cursor in (0, 1, one["last_seq"], two["last_seq"] - 1, 10**6):
        path = f"/v1/turns/{one['turn_id']}/events/stream"
        async with house.client.stream("GET", path, headers={"Last-Event-ID": str(cursor)}) as answer:
            assert answer.status_code in (200, 204)
            if answer.status_code == 200:
                stream = Stream(answer, answer.aiter_raw())
                await stream.more()
                assert {f.data["turn_id"] for f in durable(stream.frames)} <= {one["turn_id"]}
                assert b"say two" not in stream.raw
