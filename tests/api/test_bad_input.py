"""Bad input: each a problem with its stable code, never a 500, and nothing is lost by it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from anyio.abc import SocketStream

from app.store.database import Address
from tests.house import PATIENCE, House, dump

JSON = {"Content-Type": "application/json"}


@asynccontextmanager
async def unchanged(address: Address) -> AsyncIterator[None]:
    """Nothing in the database is different at the end, but for intents: what was done is kept for an hour."""
    before = await dump(address, "intents")
    yield
    assert await dump(address, "intents") == before


def assert_problem(answer: httpx.Response, *expected: tuple[int, str]) -> None:
    """An RFC 9457 problem with a stable code, and a request id."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    assert {"type", "title", "status", "detail", "code", "instance"} <= body.keys()
    assert body["status"] == answer.status_code
    assert body["type"] == f"urn:alameda:problem:{body['code']}"
    assert body["instance"] == answer.request.url.path
    assert len(answer.headers["x-request-id"]) >= 16
    assert (answer.status_code, body["code"]) in expected, answer.text[:400]


INVALID = (422, "validation_failed")
MALFORMED = (400, "malformed_json")

UNREADABLE: list[tuple[bytes, tuple[int, str]]] = [
    (b"", INVALID),
    (b"{", MALFORMED),
    (b"{}x", MALFORMED),
    (b"{'agent': 'demo'}", MALFORMED),
    (b'{"agent": "demo",}', MALFORMED),
    (b'{"agent": "\x01"}', MALFORMED),
    (b'{"agent": "\xff"}', MALFORMED),
    (b'{"agent": "\xed\xa0\x80"}', MALFORMED),
    (b"\x00", MALFORMED),
    ('{"agent": "demo"}'.encode("utf-16"), MALFORMED),
    (b"[" * 100_000, MALFORMED),
    (b'{"a":' * 65 + b"1" + b"}" * 65, MALFORMED),
    (b"9" * 5000, MALFORMED),
    (b"null", INVALID),
    (b"[]", INVALID),
    (b'["agent"]', INVALID),
    (b'"demo"', INVALID),
    (b"1", INVALID),
    (b"NaN", INVALID),
    (b"-Infinity", INVALID),
    (b"{}", INVALID),
]


async def test_a_body_that_is_no_object_is_refused_on_every_route(
    house: House, database_address: Address
) -> None:
    """Not JSON, not UTF-8, too deep, or no object."""
    await house.ensure("s-1")
    async with unchanged(database_address):
        for method, path in (
            ("PUT", "/v1/sessions/s-1"),
            ("POST", "/v1/sessions"),
            ("POST", "/v1/sessions/s-1/turns"),
            ("POST", "/v1/prompt-stream"),
            ("POST", "/v1/tasks"),
            ("POST", "/v1/permissions/prm_x/respond"),
            ("POST", "/v1/stream-tickets"),
            ("POST", "/v1/api-keys"),
        ):
            for content, expected in UNREADABLE:
                answer = await house.client.request(method, path, content=content, headers=JSON)
                assert_problem(answer, expected)


SESSION_VALUES: list[tuple[str, str]] = [
    (field, value)
    for field in (
        *(
            "agent",
            "session_id",
            "chat_id",
            "backend",
            "provider",
            "cwd",
            "project_id",
            "worktree_id",
            "model",
        ),
        *("mode", "thinking", "title", "system_prompt", "provider_session_id", "if_exists"),
    )
    for value in ('"\\ud800"', '"x\\udfff"', '"a\\u0000b"', "1", "true", "[]", "{}", "NaN")
] + [
    ("agent", '""'),
    ("agent", "null"),
    ("session_id", '"-x"'),
    ("session_id", '"a/b"'),
    ("session_id", '"é"'),
    ("session_id", '"a\\n"'),
    ("title", '""'),
    ("backend", '"UPPER"'),
    ("backend", '"a\\n"'),
    ("if_exists", '"replace"'),
    ("labels", "[]"),
    ("labels", '{"a": 1}'),
    ("labels", '{"a": null}'),
    ("labels", '{"\\ud800": "x"}'),
    ("labels", '{"x": "\\u0000"}'),
    ("labels", '{"a:b": "x"}'),
    ("labels", '{"": "x"}'),
    ("mcp_servers", '"x"'),
    ("mcp_servers", '{"x": {"type": "http", "url": "\\ud800"}}'),
    ("mcp_servers", '{"x": {"type": "http", "n": NaN}}'),
    ("mcp_servers", '{"x": {"type": "http", "n": 9223372036854775808}}'),
    ("worktree", '"main"'),
    ("worktree", '{"branch": "\\u0000"}'),
    ("worktree", "{}"),
    ("permission_policy", '"ask"'),
    ("permission_policy", '{"mode": "always"}'),
    ("permission_policy", '{"timeout_s": -1}'),
    ("permission_policy", '{"timeout_s": 1e999}'),
    ("permission_policy", '{"timeout_s": "900"}'),
    ("permission_policy", '{"what": 1}'),
    ("no_such_field", "1"),
    ("owner", '"other"'),
    ("\\ud800", "1"),
    ("__proto__", "{}"),
]


async def test_a_session_that_cannot_be_described_so_is_refused(
    house: House, database_address: Address
) -> None:
    """Types, texts that nothing can hold, unknown fields: in ensure, in prompt-stream, and in a change."""
    await house.ensure("s-1")
    async with unchanged(database_address):
        for field, value in SESSION_VALUES:
            base = {"agent": "demo", "cwd": str(house.cwd), "session_id": "s-2"}
            base.pop(field, None)
            rest = json.dumps(base)[1:-1]
            answer = await house.client.post(
                "/v1/sessions", content=f'{{{rest}, "{field}": {value}}}'.encode(), headers=JSON
            )
            assert_problem(answer, INVALID)
            answer = await house.client.post(
                "/v1/prompt-stream",
                content=f'{{{rest}, "prompt": "x", "{field}": {value}}}'.encode(),
                headers=JSON,
            )
            assert_problem(answer, INVALID)
            answer = await house.client.patch(
                "/v1/sessions/s-1", content=f'{{"{field}": {value}}}'.encode(), headers=JSON
            )
            assert_problem(answer, INVALID)


async def test_null_in_a_change_is_refused_and_changes_nothing(
    house: House, database_address: Address
) -> None:
    """A setting cannot be cleared; in an ensure, null is "not said"."""
    await house.ensure("s-1", title="kept", labels={"team": "blue"})
    async with unchanged(database_address):
        for field in ("model", "mode", "thinking", "title", "labels", "permission_policy"):
            answer = await house.client.patch("/v1/sessions/s-1", json={"title": "other", field: None})
            assert_problem(answer, INVALID)
            [error] = answer.json()["errors"]
            assert (error["loc"], "cannot be cleared" in error["msg"]) == (["body", field], True)
    ensured = await house.ensure("s-1", title=None, labels=None, if_exists="update")
    assert (ensured["title"], ensured["labels"]) == ("kept", {"team": "blue"})


TURN_VALUES: list[tuple[str, str]] = [
    ("prompt", value) for value in ('"\\ud800"', '"\\u0000"', '""', '" \\n"', "1", "[]", "{}", "null", "true")
] + [
    ("attachments", "{}"),
    ("attachments", '["x"]'),
    ("attachments", '[{"type": "video"}]'),
    ("attachments", '[{"type": "text"}]'),
    ("attachments", '[{"type": "text", "text": "\\ud800"}]'),
    ("attachments", '[{"type": "text", "text": "x", "name": "\\u0000"}]'),
    ("attachments", '[{"type": "image", "mime_type": "text/html", "data": "AAAA"}]'),
    ("attachments", '[{"type": "image", "mime_type": "image/png", "data": "!!!!"}]'),
    ("multitask_strategy", '"now"'),
    ("on_disconnect", "true"),
    ("queue_timeout_s", "-1"),
    ("queue_timeout_s", '"9"'),
    ("deadline_s", "0"),
    ("deadline_s", "NaN"),
    ("deadline_s", "Infinity"),
    ("deadline_s", "1e400"),
    ("idle_timeout_s", "9223372036854775808"),
    ("max_attempts", "0"),
    ("max_attempts", "1.5"),
    ("max_attempts", "true"),
    ("max_attempts", "9223372036854775808"),
    ("max_attempts", "-1"),
    ("metadata", "[]"),
    ("metadata", '{"\\ud800": 1}'),
    ("metadata", '{"a": ["\\u0000"]}'),
    ("metadata", '{"a": NaN}'),
    ("metadata", '{"a": 1e400}'),
    ("metadata", '{"a": 9223372036854775808}'),
    ("retry_of", '"trn_x"'),
    ("text", '"x"'),
]


async def test_a_prompt_that_cannot_be_run_so_is_refused(house: House, database_address: Address) -> None:
    """Its text, its attachments, its clocks."""
    await house.ensure("s-1")
    async with unchanged(database_address):
        for field, value in TURN_VALUES:
            rest = "" if field == "prompt" else '"prompt": "say x", '
            content = f'{{{rest}"{field}": {value}}}'.encode()
            answer = await house.client.post("/v1/sessions/s-1/turns", content=content, headers=JSON)
            assert_problem(answer, INVALID)


async def test_other_bodies_are_refused_too(house: House, database_address: Address) -> None:
    """Answers to permissions, tickets, keys, close."""
    await house.ensure("s-1")
    async with unchanged(database_address):
        for path, content in (
            ("/v1/permissions/prm_x/respond", '{"outcome": "maybe"}'),
            ("/v1/permissions/prm_x/respond", '{"outcome": "allow", "message": "\\ud800"}'),
            ("/v1/permissions/prm_x/respond", '{"outcome": "allow", "updated_input": NaN}'),
            ("/v1/permissions/prm_x/respond", '{"outcome": "allow", "answers": []}'),
            ("/v1/permissions/prm_x/respond", '{"outcome": "allow", "interrupt": 1}'),
            ("/v1/stream-tickets", '{"session_id": "s-1", "all": true}'),
            ("/v1/stream-tickets", '{"all": false}'),
            ("/v1/stream-tickets", '{"session_id": "\\u0000"}'),
            ("/v1/api-keys", '{"name": "x", "scopes": []}'),
            ("/v1/api-keys", '{"name": "x", "scopes": ["root"]}'),
            ("/v1/api-keys", '{"name": "x", "scopes": "read"}'),
            ("/v1/api-keys", '{"name": "\\ud800", "scopes": ["read"]}'),
            ("/v1/api-keys", '{"name": "x", "owner": "", "scopes": ["read"]}'),
            ("/v1/api-keys", '{"name": "x", "key": "alm_a_b", "scopes": ["read"]}'),
            ("/v1/sessions/s-1/close", '{"mode": "now"}'),
            ("/v1/sessions/s-1/close", "[]"),
            ("/v1/sessions/s-1/close", '{"force": true}'),
        ):
            answer = await house.client.post(path, content=content.encode(), headers=JSON)
            assert_problem(answer, INVALID)


async def test_a_field_given_twice_has_one_value(house: House) -> None:
    """The last, as everywhere in Python; there is no second reader who would see the first."""
    content = f'{{"agent": "x", "agent": "demo", "cwd": "/etc", "cwd": "{house.cwd}"}}'.encode()
    answer = await house.client.put("/v1/sessions/s-1", content=content, headers=JSON)
    assert (answer.status_code, answer.json()["cwd"]) == (201, str(house.cwd))


LISTS = (
    "/v1/sessions",
    "/v1/tasks",
    "/v1/permissions",
    "/v1/collisions",
    "/v1/projects/p/files",
    "/v1/api-keys",
    "/v1/sessions/s-1/turns",
    "/v1/sessions/s-1/events",
)
NUMBERS = (
    *("0", "-1", "x", "", "1.5", "1e2", "0x10", "%D9%A3", "%00", "%EF%BC%91"),
    *("9223372036854775807", "9223372036854775808", "99999999999999999999999999", "NaN", "true", "null"),
)
CURSORS = (
    *(
        "x",
        "",
        "~",
        "1~",
        "~1",
        "1~x",
        "-1~-1",
        "%00",
        "1~%00",
        "%D9%A3",
        "1;DROP",
        "'",
        "a" * 201,
        "a" * 5000,
    ),
    *("99999999999999999999~1", "-99999999999999999999~1", "1~9223372036854775808", "NaN~1", "1e3~1"),
)


async def test_queries_that_make_no_sense_are_refused(house: House, database_address: Address) -> None:
    """Limits, cursors and filters of every list."""
    await house.ensure("s-1")
    async with unchanged(database_address):
        for path in LISTS:
            for number in NUMBERS:
                assert_problem(await house.client.get(f"{path}?limit={number}"), INVALID)
            for cursor in CURSORS:
                name = "after" if path.endswith("/events") else "cursor"
                answer = await house.client.get(f"{path}?{name}={cursor}")
                if name == "after" or path == "/v1/sessions" or "~" not in cursor:
                    assert_problem(answer, (400, "invalid_cursor"))
                else:  # there, what follows the time is text
                    assert answer.status_code in (200, 400)
        for name in ("chat_id", "project_id", "backend", "agent", "label"):
            for value in ("%00", "a%00b", "x" * 500):
                assert_problem(await house.client.get(f"/v1/sessions?{name}={value}"), INVALID)
            answer = await house.client.get(f"/v1/sessions?{name}=k:%ED%A0%80%FF")
            assert answer.status_code == 200
        for query in ("status=x", "activity=x", "label=x", "status=", "status=active%00"):
            assert_problem(await house.client.get(f"/v1/sessions?{query}"), INVALID)
        for query in ("status=x", "session_id=-", "session_id=%00", "session_id=a%0a"):
            assert_problem(await house.client.get(f"/v1/permissions?{query}"), INVALID)
            assert_problem(await house.client.get(f"/v1/tasks?{query}"), INVALID)
        for query in ("types=x", "types=*", "types=turn", "types=%00", "deltas=x"):
            assert_problem(await house.client.get(f"/v1/sessions/s-1/events?{query}"), INVALID)
        for after in ("abc", "-1", "%2B1", "1.0", "1_0", "%201", "9" * 19):
            answer = await house.client.get(f"/v1/sessions/s-1/events?after={after}")
            assert_problem(answer, (400, "invalid_cursor"))


async def test_streams_are_refused_before_they_begin(house: House, database_address: Address) -> None:
    """Cursors, types, filters: a problem, and never a 200 that breaks."""
    await house.ensure("s-1")
    turn = await house.run("s-1", "say x")
    paths = (
        "/v1/sessions/s-1/events/stream",
        f"/v1/turns/{turn['turn_id']}/events/stream",
        "/v1/events/stream",
    )
    async with unchanged(database_address):
        for path in paths:
            for cursor in (
                b"-1",
                b"x",
                b"1.0",
                b"1e3",
                b"\xff",
                "٣".encode(),
                b"9" * 19,
                b"1,2",
                b"0x1",
                b"+1",
            ):
                answer = await house.client.get(path, headers={b"Last-Event-ID": cursor})
                assert_problem(answer, (400, "invalid_cursor"))
            for name in ("after", "starting_after"):
                for number in ("", "-1", "x", "%00", "1%0a", "%D9%A3", "9" * 30):
                    assert_problem(await house.client.get(f"{path}?{name}={number}"), (400, "invalid_cursor"))
            for query in ("from=x", "from=", "types=x", "types=turn", "types=%00", "deltas=x"):
                assert_problem(await house.client.get(f"{path}?{query}"), INVALID)
        for value in ("%00", "a%00b", "x" * 500):
            assert_problem(await house.client.get(f"/v1/events/stream?project_id={value}"), INVALID)


async def test_ids_that_cannot_be_are_refused(house: House, database_address: Address) -> None:
    """In paths: a bad form is a 422, a good one that names nothing a 404."""
    async with unchanged(database_address):
        for bad in ("-x", "%00", "a%00", "a%0a", "é", "a b", "..%5c", "%F0%9F%92%A9", "a" * 129, "%ED%A0%80"):
            for method, path in (
                ("GET", "/v1/sessions/{}"),
                ("DELETE", "/v1/sessions/{}"),
                ("POST", "/v1/sessions/{}/close"),
                ("GET", "/v1/sessions/{}/events/stream"),
                ("GET", "/v1/turns/{}x%00"),
                ("POST", "/v1/turns/{}%00/cancel"),
                ("GET", "/v1/tasks/{}%00"),
                ("POST", "/v1/tasks/{}%00/retry"),
                ("GET", "/v1/permissions/{}%00"),
                ("GET", "/v1/backends/{}%00"),
                ("DELETE", "/v1/api-keys/{}%00"),
            ):
                assert_problem(await house.client.request(method, path.format(bad)), INVALID)
        for method, path, code in (
            ("GET", "/v1/sessions/none", "session_not_found"),
            ("GET", "/v1/turns/none", "turn_not_found"),
            ("POST", "/v1/turns/none/retry", "turn_not_found"),
            ("GET", "/v1/tasks/none", "task_not_found"),
            ("POST", "/v1/tasks/none/cancel", "task_not_found"),
            ("POST", "/v1/tasks/none/retry", "task_not_found"),
            ("GET", "/v1/permissions/none", "permission_not_found"),
            ("GET", "/v1/backends/none", "backend_not_found"),
            ("GET", "/v1/backends/none/providers", "backend_not_found"),
            ("POST", "/v1/backends/none/drain", "backend_not_found"),
            ("DELETE", "/v1/api-keys/none", "api_key_not_found"),
            ("GET", "/v1/none", "not_found"),
            ("GET", "/v1/sessions/a%2fb", "session_not_found"),
        ):
            answer = await house.client.request(method, path)
            expected = (404, code) if "%2f" not in path else (404, "not_found")
            assert_problem(answer, expected)


async def test_what_is_not_offered_has_its_code(house: House, database_address: Address) -> None:
    """Backends, providers, models, modes."""
    base = {"agent": "demo", "cwd": str(house.cwd)}
    async with unchanged(database_address):
        for more, expected in (
            ({"backend": "none"}, (404, "backend_not_found")),
            ({"provider": "none"}, (422, "provider_not_found")),
            ({"model": "none"}, (422, "unsupported_by_backend")),
            ({"mode": "none"}, (422, "unsupported_by_backend")),
            ({"worktree": {"branch": "x"}}, (422, "unsupported_by_backend")),
            ({"provider_session_id": "x"}, (422, "unsupported_by_backend")),
            ({"cwd": "/nowhere"}, (422, "path_not_allowed")),
        ):
            assert_problem(await house.client.put("/v1/sessions/s-1", json={**base, **more}), expected)


async def test_methods_and_slashes_that_are_not_there(house: House, database_address: Address) -> None:
    """405 with `Allow`, or 404; never a redirect, which a client would follow with its key."""
    await house.ensure("s-1")
    async with unchanged(database_address):
        for method in ("POST", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "CONNECT"):
            answer = await house.client.request(method, "/v1/sessions/s-1/snapshot")
            assert_problem(answer, (405, "method_not_allowed"))
            assert answer.headers["allow"] == "GET"
        for path in (
            "/v1/sessions/",
            "/v1/sessions/s-1/",
            "/v1/sessions/s-1/events/",
            "/health/",
            "/v1/",
            "//",
        ):
            for method in ("GET", "POST"):
                answer = await house.client.request(method, house.url + path)
                assert_problem(answer, (404, "not_found"))


async def test_headers_that_make_no_sense(house: House) -> None:
    """They are refused where they mean something, else left alone; no byte of them comes back."""
    await house.ensure("s-1")
    for key in (b"", b"\xff", "é".encode(), b"k" * 256):
        answer = await house.client.post(
            "/v1/sessions/s-1/turns", json={"prompt": "x"}, headers={b"Idempotency-Key": key}
        )
        assert_problem(answer, INVALID)
    for prefer in (
        b"wait=",
        b"wait=-1",
        b"wait=x",
        b"wait=0",
        b"\xff",
        b"respond-async, wait=0",
        b"wait=1e9",
    ):
        answer = await house.client.post(
            "/v1/sessions/s-1/turns",
            json={"prompt": "say x", "multitask_strategy": "enqueue"},
            headers={b"Prefer": prefer},
        )
        assert answer.status_code in (200, 202), (prefer, answer.text)
    for request_id in (b"a b", b"\xff", b"x" * 200, b"{}", b"<script>"):
        answer = await house.client.get("/livez", headers={b"X-Request-ID": request_id})
        assert answer.headers["x-request-id"].encode() != request_id
    for value in (b"\xff\xfe", b"Bearer \xff", b"Bearer " + b"x" * 4000):
        answer = await house.client.get("/v1/sessions", headers={b"Authorization": value})
        assert_problem(answer, (401, "unauthenticated"))


async def raw(house: House, request: bytes) -> bytes:
    """Everything that comes back for these bytes."""
    host, port = house.url.removeprefix("http://").split(":")
    stream: SocketStream
    async with await anyio.connect_tcp(host, int(port)) as stream:
        await stream.send(request)
        received = b""
        with anyio.fail_after(PATIENCE):
            try:
                while True:
                    received += await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return received


@pytest.mark.parametrize(
    "request_",
    [
        b"FOO /v1/sessions HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/sessions HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET /v1/sessions\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
        b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\n%s\r\n\r\n0\r\n\r\n"
        % b"Content-Length: 3\r\nTransfer-Encoding: chunked",
    ],
    ids=["method", "version", "no version", "tls", "nul", "negative", "two lengths", "smuggling"],
)
async def test_what_is_no_http_ends_the_connection(house: House, request_: bytes) -> None:
    """With a 400 at most, and without a word of what was sent."""
    answer = await raw(
        house, request_ + b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ") or b"HTTP/1.1 401 " in answer, answer
    assert b"HTTP/1.1 500" not in answer
    assert answer.count(b"HTTP/1.1 ") <= 1
    assert (await house.client.get("/livez")).status_code == 200


async def test_bad_requests_in_the_middle_of_a_turn_lose_nothing(house: House) -> None:
    """The log goes on without a hole, whatever else is thrown at its session."""
    await house.ensure("s-1")
    turn = await house.prompt("s-1", "stream 50 5\nsay end")
    for content, _ in UNREADABLE:
        for path in ("/v1/sessions/s-1/turns", "/v1/prompt-stream"):
            await house.client.post(path, content=content, headers=JSON)
    for path in ("/v1/sessions/s-1/close", "/v1/stream-tickets"):
        assert (await house.client.post(path, content=b"[", headers=JSON)).status_code == 400
    ended = await house.ended(turn["turn_id"])
    assert (ended["status"], ended["output_text"].endswith("end\n")) == ("completed", True) or (
        ended["status"] == "completed" and ended["output_text"].endswith("end")
    )
    seqs = [event["seq"] for event in await house.log("s-1")]
    assert seqs == list(range(1, len(seqs) + 1))


async def test_t31_refusals_say_nothing_of_our_inside_or_of_the_input(house: House) -> None:
    """Failures of every kind: no traceback, SQL, path, module, or value that was sent."""
    canary = "canary-7f3a"
    session = await house.ensure("s-1")
    turn = await house.run("s-1", f"fail {canary}-agent")
    base = {"agent": "demo", "cwd": str(house.cwd)}
    requests: list[tuple[str, str, Any]] = [
        ("PUT", "/v1/sessions/s-2", {**base, "title": [canary]}),
        ("PUT", "/v1/sessions/s-2", {**base, "permission_policy": {"mode": canary}}),
        ("PUT", "/v1/sessions/s-2", {**base, "cwd": f"/{canary}"}),
        ("PUT", "/v1/sessions/s-2", {**base, "cwd": "/etc"}),
        ("PUT", "/v1/sessions/s-2", {**base, "mcp_servers": {"x": {"command": canary}}}),
        ("PUT", "/v1/sessions/s-1", {**base, "cwd": f"/{canary}"}),
        ("PUT", "/v1/sessions/s-1", {**base, "backend": "paseo"}),
        ("PUT", "/v1/sessions/s-1", {**base, "if_exists": "reject"}),
        ("PUT", "/v1/sessions/s-1", {**base, "agent": "other"}),
        ("PUT", "/v1/sessions/s-2", {**base, "backend": "paseo"}),
        ("POST", "/v1/sessions/s-1/turns", {"prompt": {"x": canary}}),
        ("POST", "/v1/sessions/s-1/turns", {"prompt": "x", "metadata": canary}),
        ("POST", "/v1/sessions/s-1/turns", {"prompt": canary * 50_000}),
        ("POST", f"/v1/turns/{turn['turn_id']}/respond", {"prompt": canary}),
        ("DELETE", f"/v1/turns/{turn['turn_id']}", None),
        ("GET", f"/v1/sessions?cursor={canary}", None),
        ("GET", f"/v1/sessions?status={canary}", None),
        ("GET", f"/v1/sessions?chat_id={canary}%00", None),
        ("GET", f"/v1/sessions/s-1/events?types={canary}", None),
        ("GET", f"/v1/sessions/s-1/events/stream?after={canary}", None),
        ("GET", f"/v1/turns/none/wait?timeout_s={canary}", None),
        ("POST", "/v1/permissions/none/respond", {"outcome": canary}),
        ("POST", "/v1/api-keys", {"name": "x", "scopes": [canary]}),
        ("PATCH", "/v1/sessions/s-1", {"mode": "none"}),
    ]
    for method, path, body in requests:
        answer = await house.client.request(method, path, json=body)
        assert answer.status_code >= 400, (method, path, answer.text)
        assert answer.status_code != 500
        assert answer.headers["content-type"] == "application/problem+json"
        for word in (
            canary,
            "Traceback",
            "SELECT",
            "asyncpg",
            "sqlalchemy",
            "pydantic",
            ".py",
            str(house.cwd),
        ):
            assert word not in answer.text, (method, path, answer.text)
    assert session["cwd"] == str(house.cwd)
