"""Terminals at the edge: what is refused and how, tickets, revoked keys, and what never stands in a log."""

import json
from typing import Any

import anyio
import asyncpg
import httpx
import jsonschema_rs
import pytest

from app.store.database import Address
from tests.engine.terminal_house import captured, open_terminal, output, streamed, type_into
from tests.house import PATIENCE, House, Stream

BAD_BODIES: list[tuple[str, Any]] = [
    ("/v1/sessions/s/terminals", {"rows": 0}),
    ("/v1/sessions/s/terminals", {"cols": 100_000}),
    ("/v1/sessions/s/terminals", {"rows": "24"}),
    ("/v1/sessions/s/terminals", {"command": ""}),
    ("/v1/sessions/s/terminals", {"command": "a\x00b"}),
    ("/v1/sessions/s/terminals", {"command": "a", "args": ["\x00"]}),
    ("/v1/sessions/s/terminals", {"command": "a", "args": ["x" * 9000]}),
    ("/v1/sessions/s/terminals", {"command": "a", "args": ["é" * 100] * 50}),
    ("/v1/sessions/s/terminals", {"command": "a", "args": [1]}),
    ("/v1/sessions/s/terminals", {"command": "a", "args": "x"}),
    ("/v1/sessions/s/terminals", {"args": ["x"]}),
    ("/v1/sessions/s/terminals", {"command": None, "args": ["x"]}),
    ("/v1/sessions/s/terminals", {"name": "two\nlines"}),
    ("/v1/sessions/s/terminals", {"cwd": "/"}),
    ("/v1/sessions/s/terminals", {"env": {"A": "b"}}),
    ("/v1/sessions/s/terminals", []),
    ("input", {}),
    ("input", {"data": ""}),
    ("input", {"data": 7}),
    ("input", {"data": "x" * 70_000}),
    ("input", {"data": "x", "more": 1}),
    ("resize", {"rows": 24}),
    ("resize", {"rows": 24, "cols": 0}),
    ("resize", {"rows": 10**9, "cols": 80}),
]
BAD_QUERIES = [
    "search",
    "search?q=",
    f"search?q={'x' * 1001}",
    "search?q=%00",
    "search?q=(&regex=true",
    "search?q=(%3F=x)&regex=true",
    "search?q=x&limit=0",
    "search?q=x&limit=201",
    "search?q=x&context=11",
    "search?q=x&regex=perhaps",
    "capture?start=x",
    f"capture?end={10**12}",
    "capture?ansi=2",
]


async def test_bad_input_has_its_code_and_changes_nothing(house: House) -> None:
    await house.ensure("s")
    terminal = (await open_terminal(house, "s", "cat"))["terminal_id"]
    own = f"/v1/terminals/{terminal}/"
    log = await house.log("s")
    for path, body in BAD_BODIES:
        path = path if path.startswith("/") else own + path
        answer = await house.client.post(path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed"), (path, body)
    half = await house.client.post(
        own + "input", content=rb'{"data": "\ud800"}', headers={"Content-Type": "application/json"}
    )
    assert (half.status_code, half.json()["code"]) == (422, "validation_failed")
    for query in BAD_QUERIES:
        answer = await house.client.get(own + query)
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed"), query
    answer = await house.client.get("/v1/terminals/search?q=(&regex=true")
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    for cursor in ("x", "1", "abc.", ".5", "abc.-1", "ABC.5", f"abc.{10**20}", "abc.5.6", "ab\u00e9.1"):
        answer = await house.client.get(own + "output/stream", params={"after": cursor})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_cursor"), cursor
    for path in ("/v1/terminals/none", "/v1/terminals/none/capture", "/v1/terminals/none/output/stream"):
        answer = await house.client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "terminal_not_found"), path
    answer = await house.client.get("/v1/sessions/none/terminals")
    assert (answer.status_code, answer.json()["code"]) == (404, "session_not_found")
    answer = await house.client.get("/v1/sessions/s/terminals?cursor=x")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_cursor")
    assert await house.log("s") == log
    assert len((await house.get("/v1/sessions/s/terminals"))["items"]) == 1


async def test_terminal_that_has_ended_is_shown_and_not_used(house: House) -> None:
    await house.ensure("s")
    terminal = (await open_terminal(house, "s", "sh", "-c", "echo needle; cat"))["terminal_id"]
    await streamed(house, terminal, b"needle")
    await house.client.delete(f"/v1/terminals/{terminal}")
    for method, path, body in (
        ("POST", "input", {"data": "x"}),
        ("POST", "resize", {"rows": 5, "cols": 5}),
        ("GET", "capture", None),
    ):
        answer = await house.client.request(method, f"/v1/terminals/{terminal}/{path}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (404, "terminal_not_found"), path
        assert answer.json()["detail"].startswith("the terminal has ended; what is kept of its output"), path
    assert (await house.get(f"/v1/terminals/{terminal}"))["status"] == "closed"
    assert len((await house.get(f"/v1/terminals/{terminal}/search", q="needle"))["matches"]) == 1


async def test_directory_that_is_gone_is_refused(house: House) -> None:
    """It is looked at again when it is used (T18)."""
    folder = house.cwd / "here"
    folder.mkdir()
    await house.ensure("s", cwd=str(folder))
    folder.rmdir()
    folder.symlink_to("/")
    answer = await house.post("/v1/sessions/s/terminals", {})
    assert (answer.status_code, answer.json()["code"]) == (422, "path_not_allowed")


async def ticket_for(house: House, terminal: str) -> str:
    answer = await house.post("/v1/stream-tickets", {"terminal_id": terminal})
    assert answer.status_code == 201
    ticket: str = answer.json()["ticket"]
    return ticket


async def test_t09_ticket_opens_its_terminal_s_stream_and_nothing_else(house: House) -> None:
    """Not another terminal's, not a session's; a newer opening ends the older stream."""
    await house.ensure("s")
    one, other = [(await open_terminal(house, "s", "cat"))["terminal_id"] for _ in range(2)]
    ticket = await ticket_for(house, one)
    async with httpx.AsyncClient(base_url=house.url, timeout=PATIENCE, trust_env=False) as client:
        for path in (
            f"/v1/terminals/{other}/output/stream",
            "/v1/sessions/s/events/stream",
            "/v1/events/stream",
            f"/v1/terminals/{one}",
            f"/v1/terminals/{one}/capture",
        ):
            assert (await client.get(path, params={"ticket": ticket})).status_code == 401, path
        path = f"/v1/terminals/{one}/output/stream"
        async with client.stream("GET", path, params={"ticket": ticket}) as older:
            first = Stream(older, older.aiter_raw())
            await first.until("stream.ready")
            await type_into(house, one, "hello\r")
            while b"hello" not in output(first.frames):
                assert await first.more()
            async with client.stream("GET", path, params={"ticket": ticket}) as newer:
                await Stream(newer, newer.aiter_raw()).until("stream.ready")
                frames = await first.to_end()
            assert frames[-1].data == {"reason": "superseded"}
        session = (await house.post("/v1/stream-tickets", {"session_id": "s"})).json()["ticket"]
        assert (await client.get(path, params={"ticket": session})).status_code == 401


async def test_t08_revoked_key_ends_the_stream_of_a_terminal(house: House) -> None:
    await house.ensure("s")
    terminal = (await open_terminal(house, "s", "cat"))["terminal_id"]
    made = (await house.post("/v1/api-keys", {"name": "x", "scopes": ["terminal"]})).json()
    headers = {"Authorization": f"Bearer {made['key']}"}
    async with house.stream(f"/v1/terminals/{terminal}/output/stream", headers=headers) as stream:
        await stream.until("stream.ready")
        await house.client.delete(f"/v1/api-keys/{made['key_id']}")
        frames = await stream.to_end()
    assert frames[-1].data == {"reason": "auth_expired"}


async def test_stream_of_a_terminal_says_goodbye_when_the_service_drains(house: House) -> None:
    await house.ensure("s")
    terminal = (await open_terminal(house, "s", "cat"))["terminal_id"]
    ticket = await ticket_for(house, terminal)
    path = f"/v1/terminals/{terminal}/output/stream"
    async with house.stream(path) as stream:
        await stream.until("stream.ready")
        house.service.rooms.lifecycle.drain()
        assert (await stream.to_end())[-1].data == {"reason": "draining"}
    answer = await house.client.get(path, params={"ticket": ticket}, headers={"Authorization": ""})
    assert (answer.status_code, b"draining" in answer.content) == (200, True)
    answer = await house.client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (503, "draining")


async def test_t29_t30_output_breaks_no_frame_and_neither_it_nor_input_is_logged(
    house: House, capfd: pytest.CaptureFixture[str]
) -> None:
    await house.ensure("s")
    terminal = (await open_terminal(house, "s", "cat", name="canary-name"))["terminal_id"]
    await type_into(house, terminal, "canary-typed\r\n\n\nid: 7\nevent: x\ndata: y\n\n\r")
    await captured(house, terminal, "data: y")
    await house.get(f"/v1/terminals/{terminal}/search", q="canary-query")
    await house.client.get(f"/v1/terminals/{terminal}/search", params={"q": "canary-query(", "regex": True})
    async with house.stream(f"/v1/terminals/{terminal}/output/stream") as stream:
        while b"data: y" not in output(stream.frames):
            assert await stream.more()
        named = {frame.event for frame in stream.frames if frame.event is not None}
        assert named <= {"stream.ready", "terminal.output"}
    assert "canary" not in "".join(capfd.readouterr())


async def test_empty_last_event_id_is_none(house: House) -> None:
    """As on every stream: a client that has seen nothing begins where it would without the header."""
    await house.ensure("s")
    terminal = (await open_terminal(house, "s", "sh", "-c", "echo hello; cat"))["terminal_id"]
    await streamed(house, terminal, b"hello", headers={"Last-Event-ID": ""})


async def test_frames_of_a_terminal_are_as_described(house: House) -> None:
    document = await house.get("/openapi.json")
    schema = {"$ref": "#/components/schemas/TerminalFrame", "components": document["components"]}
    frame = jsonschema_rs.validator_for(schema)
    await house.ensure("s")
    terminal = (await open_terminal(house, "s", "echo", "hello"))["terminal_id"]
    path = f"/v1/terminals/{terminal}/output/stream"
    frames = await house.follow(path, "stream.closing", headers={"Last-Event-ID": "abc.1"})
    told = [one for one in frames if one.event is not None]
    assert {one.event for one in told} == {
        *("stream.ready", "stream.reset", "terminal.output", "stream.closing")
    }
    for one in told:
        payload = {"event": one.event, "data": json.dumps(one.data)}
        assert frame.is_valid(payload | ({"id": one.id} if one.id is not None else {}))
        name = "Terminal" + "".join(
            part.capitalize() for part in str(one.event).replace("terminal.", "").split(".")
        )
        data = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        jsonschema_rs.validator_for(data).validate(one.data)


async def test_terminal_whose_making_was_not_finished_is_ended(
    house: House, database_address: Address
) -> None:
    """We were killed between making it and saying so: nobody sees it, and a later look puts it away."""
    await house.ensure("s")
    terminal = (await open_terminal(house, "s", "cat"))["terminal_id"]
    connection = await asyncpg.connect(**database_address.arguments)
    try:
        await connection.execute(
            "UPDATE terminals SET handle = NULL, created_at = now() - interval '2 minutes'"
        )
        assert (await house.client.get(f"/v1/terminals/{terminal}")).status_code == 404
        with anyio.fail_after(PATIENCE):
            while await connection.fetchval("SELECT count(*) FROM terminals"):  # noqa: ASYNC110
                await anyio.sleep(0.05)
    finally:
        await connection.close()
    (socket,) = (house.settings.data_dir / "tmux").glob("socket-*")
    tmux = await anyio.run_process(["tmux", "-S", str(socket), "list-sessions"], check=False)
    assert tmux.stdout == b""
