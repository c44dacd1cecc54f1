"""The edge on a real server: raw sockets where a client library would tidy the request up."""

import json
import re
import resource
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx
import pytest
import structlog
import uvicorn
from anyio.abc import SocketStream
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.middleware.cors import CORSMiddleware
from structlog.testing import capture_logs

from app.api.edge import EdgeMiddleware, _check_json, _Refused, cors_options
from app.api.problems import install_handlers
from app.api.protocol import EdgeProtocol

CORS_ORIGIN = "https://app.example"
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass
class House:
    """A small application behind the edge, on a port of its own."""

    port: int
    done: list[Any] = field(default_factory=list)
    gone: anyio.Event = field(default_factory=anyio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=30)

    async def connect(self) -> SocketStream:
        return await anyio.connect_tcp("127.0.0.1", self.port)

    async def raw(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """The answer to exactly these bytes."""
        async with await self.connect() as connection:
            await connection.send(request.replace(b"PORT", str(self.port).encode()))
            return await answer_of(connection)


async def answer_of(connection: SocketStream) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer with a content length."""
    received = b""
    with anyio.fail_after(20):
        while b"\r\n\r\n" not in received:
            received += await connection.receive()
        head, _, body = received.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        while len(body) < int(headers.get("content-length", 0)):
            body += await connection.receive()
    return int(status.split()[1]), headers, body


def routes(app: FastAPI, house: House) -> None:
    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", **structlog.contextvars.get_contextvars()}

    @app.post("/v1/sessions/{session_id}/turns")
    @app.post("/v1/sessions/{session_id}/close")
    async def act(session_id: str, request: Request) -> dict[str, int]:
        size = len(await request.body())
        house.done.append(session_id)
        return {"size": size}

    @app.post("/v1/json")
    async def take(body: dict[str, Any]) -> dict[str, int]:
        house.done.append(body)
        return {"keys": len(body)}

    @app.get("/v1/bug")
    async def bug() -> None:
        raise RuntimeError("canary")

    @app.get("/v1/stream")
    async def stream(request: Request) -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            try:
                yield b"data: first\n\n"
                await anyio.sleep_forever()
            finally:
                house.gone.set()

        return StreamingResponse(
            chunks(), media_type="text/event-stream", headers={"Cache-Control": "no-store, x"}
        )

    @app.get("/v1/broken-stream")
    async def broken_stream() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"data: first\n\n"
            raise RuntimeError("canary")

        return StreamingResponse(chunks(), media_type="text/event-stream")


@asynccontextmanager
async def serving(
    *, protocol: type[EdgeProtocol] = EdgeProtocol, origins: tuple[str, ...] = (), **limits: Any
) -> AsyncGenerator[House, None]:
    """The application, served until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    house = House(port=listener.getsockname()[1])
    app = FastAPI()
    install_handlers(app)
    routes(app, house)
    if origins:
        app.add_middleware(CORSMiddleware, **cors_options(origins))
    hosts = ("127.0.0.1", "localhost", "[::1]")
    app.add_middleware(EdgeMiddleware, allowed_hosts=hosts, allowed_origins=origins, **limits)
    config = uvicorn.Config(
        app, http=protocol, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, [listener])
        try:
            yield house
        finally:
            server.should_exit = True


@pytest.fixture
async def house() -> AsyncGenerator[House, None]:
    """The application with the usual limits."""
    async with serving() as house:
        yield house


def code_of(body: bytes) -> str:
    code: str = json.loads(body)["code"]
    return code


# Host.


@pytest.mark.parametrize(
    "head",
    [
        "Host: evil.com",
        "Host: localhost.evil.com",
        "Host: 127.0.0.1.nip.io",
        "Host: localhost.",
        "Host: 0.0.0.0:PORT",
        "Host: ",
        "Host: localhost:PORT/health?",
        "Host: localhost@evil.com",
        "Host: [::1",
        "Host: ::1",
        "Host: localhost:PORT\r\nHost: localhost:PORT",
        "Host: localhost:PORT\r\nHost: evil.com",
        "X-Forwarded-Host: localhost",
    ],
)
@pytest.mark.parametrize("path", ["/health", "/v1/stream", "/nowhere"])
async def test_t04_p37_foreign_hosts_are_refused_everywhere(house: House, head: str, path: str) -> None:
    status, headers, body = await house.raw(f"GET {path} HTTP/1.1\r\n{head}\r\n\r\n".encode())
    assert (status, code_of(body)) == (400, "invalid_host")
    assert headers["content-type"] == "application/problem+json"
    assert headers["x-request-id"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:PORT", "127.0.0.1:PORT", "[::1]:80", "[::1]"])
async def test_t04_our_own_names_are_answered_on_any_port(house: House, host: str) -> None:
    status, _, _ = await house.raw(f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert status == 200


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("http://evil.com/health", 400),
        ("http://localhost@evil.com/health", 400),
        ("http:///health", 400),
        ("http://localhost:PORT/health", 200),
    ],
)
async def test_t04_a_host_in_the_request_target_counts(house: House, target: str, expected: int) -> None:
    status, _, _ = await house.raw(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert status == expected


# Origin.

OWN = "http://127.0.0.1:PORT"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),
        ({"Origin": OWN}, 200),
        ({"Origin": OWN, "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": CORS_ORIGIN, "Sec-Fetch-Site": "cross-site"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://127.0.0.1:PORT"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "http://localhost:PORT"}, 403),
        ({"Origin": CORS_ORIGIN + ".evil.com"}, 403),
        ({"Origin": ""}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": OWN, "Sec-Fetch-Site": "cross-site"}, 403),
    ],
    ids=str,
)
@pytest.mark.parametrize("content_type", [None, "application/json", "text/plain"])
async def test_t03_p34_a_foreign_page_cannot_act(
    headers: dict[str, str], expected: int, content_type: str | None
) -> None:
    async with serving(origins=(CORS_ORIGIN,)) as house, house.client() as http:
        sent = {name: value.replace("PORT", str(house.port)) for name, value in headers.items()}
        body = b"{}" if content_type else b""
        if content_type:
            sent["Content-Type"] = content_type
        answer = await http.post("/v1/sessions/s/close", headers=sent, content=body)
        assert answer.status_code == expected
        assert house.done == (["s"] if expected == 200 else [])
        if expected == 403:
            assert answer.json()["code"] == "origin_forbidden"
            assert "access-control-allow-origin" not in answer.headers
        for method in ("GET", "HEAD"):
            safe = await http.request(method, "/v1/nowhere", headers=sent)
            assert safe.status_code == 404


async def test_t03_two_origins_are_refused(house: House) -> None:
    status, _, body = await house.raw(
        b"POST /v1/sessions/s/close HTTP/1.1\r\nHost: localhost:PORT\r\nContent-Length: 0\r\n"
        b"Origin: http://localhost:PORT\r\nOrigin: https://evil.example\r\n\r\n"
    )
    assert (status, code_of(body), house.done) == (403, "origin_forbidden", [])


async def test_t05_only_configured_origins_may_read(house: House) -> None:
    async with house.client() as http:
        closed = await http.get("/health", headers={"Origin": CORS_ORIGIN})
        assert "access-control-allow-origin" not in closed.headers
    async with serving(origins=(CORS_ORIGIN,)) as open_house, open_house.client() as http:
        allowed = await http.get("/health", headers={"Origin": CORS_ORIGIN})
        assert allowed.headers["access-control-allow-origin"] == CORS_ORIGIN
        refused = await http.post("/v1/json", headers={"Origin": CORS_ORIGIN}, content=bytes(2**20 + 1))
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (413, CORS_ORIGIN)
        for origin in ("null", "https://evil.example", f"{CORS_ORIGIN}.evil.com"):
            foreign = await http.get("/health", headers={"Origin": origin})
            assert "access-control-allow-origin" not in foreign.headers
        preflight = {"Origin": CORS_ORIGIN, "Access-Control-Request-Method": "POST"}
        answer = await http.options("/v1/json", headers=preflight)
        assert answer.status_code == 200
        assert "access-control-allow-credentials" not in answer.headers


# Sizes.


@pytest.mark.parametrize(
    ("path", "limit"),
    [("/v1/sessions/s/turns", 8 * 2**20), ("/v1/sessions/s/close", 2**20)],
    ids=["prompt", "other"],
)
@pytest.mark.parametrize("chunked", [False, True])
async def test_t25_p36_bodies_up_to_the_limit_pass(
    house: House, path: str, limit: int, chunked: bool
) -> None:
    async def pieces(size: int) -> AsyncIterator[bytes]:
        for start in range(0, size, 2**16):
            yield bytes(min(2**16, size - start))

    async with house.client() as http:
        for size, expected in ((limit, 200), (limit + 1, 413)):
            content: Any = pieces(size) if chunked else bytes(size)
            answer = await http.post(path, content=content)
            assert answer.status_code == expected
            assert answer.headers["x-request-id"]
            if expected == 200:
                assert answer.json() == {"size": limit}
            else:
                assert answer.json()["code"] == "payload_too_large"
                assert answer.headers["connection"] == "close"


async def keep_sending(connection: SocketStream, piece: bytes, total: int) -> int:
    """Send `piece` over and over; the bytes that went out before the connection was cut, `total` if never."""
    sent = 0
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError), anyio.fail_after(30):
        while sent < total:
            await connection.send(piece)
            sent += len(piece)
    return sent


async def test_t25_p36_a_hundred_megabytes_in_chunks_are_cut_and_not_kept(house: House) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sent: list[int] = []

    async def upload(connection: SocketStream) -> None:
        sent.append(await keep_sending(connection, b"10000\r\n" + bytes(2**16) + b"\r\n", 100 * 2**20))

    async with await house.connect() as connection, anyio.create_task_group() as tasks:
        await connection.send(
            b"POST /v1/sessions/s/close HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        tasks.start_soon(upload, connection)
        status, headers, body = await answer_of(connection)
    assert (status, code_of(body), headers["connection"]) == (413, "payload_too_large", "close")
    assert sent[0] < 30 * 2**20
    assert house.done == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024


async def test_t25_a_declared_size_is_refused_before_a_byte_of_it(house: House) -> None:
    status, headers, body = await house.raw(
        b"POST /v1/json HTTP/1.1\r\nHost: localhost\r\nContent-Length: 104857600\r\n"
        b"Expect: 100-continue\r\n\r\n"
    )
    assert (status, code_of(body), headers["connection"]) == (413, "payload_too_large", "close")


@pytest.mark.parametrize("place", ["header", "query", "path"])
async def test_t25_a_large_head_is_refused(house: House, place: str) -> None:
    for size, expected in ((15_000, {200, 404}), (17_000, {413})):
        filler = "x" * size
        path = {"header": "/health", "query": f"/health?q={filler}", "path": f"/{filler}"}[place]
        header = f"X-Filler: {filler}\r\n" if place == "header" else ""
        status, _, _ = await house.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n".encode())
        assert status in expected


async def test_t25_a_head_without_end_is_cut(house: House) -> None:
    async with await house.connect() as connection:
        await connection.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Filler: ")
        assert await keep_sending(connection, b"x" * 2**16, 100 * 2**20) < 30 * 2**20


@pytest.mark.parametrize("depth", [64, 65, 100_000])
@pytest.mark.parametrize("brackets", ["[]", '{"a":}'], ids=["lists", "objects"])
async def test_t25_p36_json_up_to_64_levels_passes(house: House, depth: int, brackets: str) -> None:
    opening, closing = brackets[:-1], brackets[-1]
    inner = opening * (depth - 1) + ("1" if opening != "[" else "") + closing * (depth - 1)
    body = '{"strings": "[[[{{{\\"", "deep": ' + inner + "}"
    async with house.client() as http:
        answer = await http.post("/v1/json", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == (200 if depth == 64 else 400)
    assert depth == 64 or answer.json()["code"] == "malformed_json"
    assert len(house.done) == (depth == 64)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='[]{}"\\ax\n☃'),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='[]{}"\\a'), inner, max_size=4)
    ),
    max_leaves=40,
)


def depth_of(value: Any) -> int:
    match value:
        case dict():
            return 1 + max(map(depth_of, value.values()), default=0)
        case list():
            return 1 + max(map(depth_of, value), default=0)
        case _:
            return 0


@settings(max_examples=500)
@given(JSON, st.integers(0, 6), st.booleans())
def test_t25_depth_is_counted_as_a_parser_would(value: Any, limit: int, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    if depth_of(value) <= limit:
        _check_json(body, limit)
    else:
        with pytest.raises(_Refused):
            _check_json(body, limit)


@pytest.mark.parametrize("body", [b"\xff\xfe{\0}\0", b'{\0"\0a\0', b"{}\xff"])
async def test_p36_json_is_utf_8_only(house: House, body: bytes) -> None:
    async with house.client() as http:
        answer = await http.post("/v1/json", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_json")


# Time.


async def test_p07_a_body_that_does_not_come_is_given_up() -> None:
    async with serving(body_read_s=0.05) as house:
        status, headers, body = await house.raw(
            b"POST /v1/json HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{"
        )
    assert (status, code_of(body), headers["connection"]) == (400, "malformed_json", "close")
    assert "in time" in json.loads(body)["detail"]


class Impatient(EdgeProtocol):
    """Waits for a head for a moment only."""

    head_s = 0.2


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: local"])
async def test_p07_t27_a_head_that_does_not_come_is_given_up(sent: bytes) -> None:
    async with serving(protocol=Impatient) as house, await house.connect() as connection:
        if sent:
            await connection.send(sent)
        with anyio.fail_after(10), pytest.raises(anyio.EndOfStream):
            await connection.receive()


async def test_p07_a_stream_outlives_the_limit_for_heads() -> None:
    async with serving(protocol=Impatient) as house, await house.connect() as connection:
        await connection.send(b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"data: first" in await connection.receive()
        async with await house.connect() as other:
            with anyio.fail_after(10), pytest.raises(anyio.EndOfStream):
                await other.receive()
        assert not house.gone.is_set()


async def test_a_client_that_leaves_in_the_middle_of_its_body_does_no_harm(house: House) -> None:
    with capture_logs() as records:
        async with await house.connect() as connection:
            await connection.send(b"POST /v1/json HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
        async with house.client() as http:
            assert (await http.get("/health")).status_code == 200
    assert house.done == []
    assert all(record["event"] == "request" for record in records)


# Answers.


async def test_security_headers_and_request_ids_are_on_every_answer(house: House) -> None:
    async with house.client() as http:
        for path in ("/health", "/nowhere", "/v1/bug"):
            answer = await http.get(path)
            assert SECURITY_HEADERS.items() <= dict(answer.headers).items()
            assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])


async def test_a_route_keeps_its_own_cache_control(house: House) -> None:
    async with house.client() as http, http.stream("GET", "/v1/stream") as answer:
        assert answer.headers.get_list("cache-control") == ["no-store, x"]
        assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [
        ("a.B_c-1", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("a b", False),
        ("<script>", False),
        ("", False),
    ],
)
async def test_t30_only_harmless_request_ids_are_taken_over(house: House, given: str, is_kept: bool) -> None:
    async with house.client() as http:
        answer = await http.get("/health", headers={"X-Request-ID": given})
    assert answer.headers.get_list("x-request-id") == [answer.json()["request_id"]]
    assert (answer.headers["x-request-id"] == given) is is_kept


TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("traceparent", "expected"),
    [
        (f"00-{TRACE}-b7ad6b7169203331-01", TRACE),
        (f"cc-{TRACE}-b7ad6b7169203331-01-later", TRACE),
        (f"00-{TRACE}-b7ad6b7169203331-01-more", None),
        (f"ff-{TRACE}-b7ad6b7169203331-01", None),
        (f"00-{TRACE.upper()}-b7ad6b7169203331-01", None),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        ("nonsense", None),
    ],
)
async def test_traceparent_is_honoured_if_it_is_one(
    house: House, traceparent: str, expected: str | None
) -> None:
    async with house.client() as http:
        answer = await http.get("/health", headers={"traceparent": traceparent})
        after = await http.get("/health")
    assert answer.json().get("trace_id") == expected
    assert "trace_id" not in after.json()


async def test_t30_p09_one_log_line_a_request_without_what_the_client_wrote(house: House) -> None:
    with capture_logs() as records:
        async with house.client() as http:
            await http.post("/v1/sessions/canary/close?ticket=canary", headers={"Authorization": "canary"})
            await http.get("/canary")
    first, second = (record for record in records if record["event"] == "request")
    assert (first["method"], first["route"], first["status"]) == (
        "POST",
        "/v1/sessions/{session_id}/close",
        200,
    )
    assert first["seconds"] >= 0
    assert (second["route"], second["status"], second["log_level"]) == (None, 404, "info")
    assert "canary" not in str(records)


async def test_t31_a_bug_is_logged_once_and_says_nothing(house: House) -> None:
    with capture_logs() as records:
        async with house.client() as http:
            answer = await http.get("/v1/bug")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert answer.json()["instance"] == "/v1/bug"
    assert "canary" not in answer.text
    assert [record["event"] for record in records] == ["request_failed", "request"]


async def test_p15_a_stream_that_breaks_does_not_end_cleanly(house: House) -> None:
    with capture_logs() as records:
        async with house.client() as http, http.stream("GET", "/v1/broken-stream") as answer:
            with pytest.raises(httpx.RemoteProtocolError):
                async for _ in answer.aiter_bytes():
                    pass
    assert [record["event"] for record in records] == ["request_failed", "request"]


async def test_p14_p32_a_disconnect_reaches_the_stream(house: House) -> None:
    with capture_logs() as records:
        async with house.client() as http, http.stream("GET", "/v1/stream") as answer:
            first = await anext(answer.aiter_bytes())
            assert first == b"data: first\n\n"
            assert records == []
        with anyio.fail_after(10):
            await house.gone.wait()


async def test_p32_the_edge_passes_a_stream_on_piece_by_piece(house: House) -> None:
    async with house.client() as http, http.stream("GET", "/v1/stream") as answer:
        assert await anext(answer.aiter_bytes()) == b"data: first\n\n"
        assert not house.gone.is_set()


async def test_the_api_speaks_no_websocket(house: House) -> None:
    status, _, _ = await house.raw(
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert status == 403


@pytest.mark.parametrize("path", ["//health", "/health/", "/%68ealth/..;/", "/..;/health", "/health%2f"])
async def test_t06_p33_variants_of_a_path_are_other_paths(house: House, path: str) -> None:
    status, _, _ = await house.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert status in (404, 307)


@pytest.mark.parametrize("path", ["/v1/a%0d%0aSet-Cookie:x", "/v1/%00", "/v1/%ff%ed%a0%80", "/v1/<script>"])
async def test_t29_t31_a_strange_path_comes_back_as_json_only(house: House, path: str) -> None:
    status, headers, body = await house.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert (status, code_of(body)) == (404, "not_found")
    assert headers["content-type"] == "application/problem+json"
    assert "set-cookie" not in headers
