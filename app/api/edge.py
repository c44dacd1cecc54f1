"""The edge: what every request passes before a route sees it, and every answer on its way out.

Pure ASGI, so that streams are not buffered and `http.disconnect` reaches them. Decisions are made on the ASGI
scope's path and on raw headers, never on a URL put together from them.
"""

import re
import time
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import anyio
import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import (
    INVALID_HOST,
    MALFORMED_JSON,
    ORIGIN_FORBIDDEN,
    PAYLOAD_TOO_LARGE,
    Problem,
    internal_error,
    problem_response,
)
from app.api.protocol import TARGET

log = structlog.get_logger()

LINGER_S = 2.0
"""Seconds in which a refused client may finish sending, so that it reads the refusal and not a reset."""
LINGER_BYTES = 16 * 1024 * 1024
"""Bytes that are thrown away meanwhile; past it the connection is cut."""

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing, so that any page may send them."""
PROMPT_ROUTES = re.compile(r"/v1/(?:prompt-stream|tasks|sessions/[^/]+/turns)\Z")
"""The routes, by POST, whose bodies may carry attachments."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}\Z")
"""A request id that is taken over: harmless in a log and in a header."""
_TRACEPARENT = re.compile(
    rb"(?!ff)(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-[0-9a-f]{2}(?P<more>-.*)?\Z"
)
"""A `traceparent` of any version (W3C Trace Context, 3.2)."""
_HOST = re.compile(rb"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?\Z")
"""A host and perhaps a port, as in `Host` (RFC 9110, 7.2)."""
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
"""What a browser leaves out of `Origin`, by scheme."""

_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'"),
)
"""For every answer that does not bring its own."""
_SAME_ORIGIN = (b"cross-origin-resource-policy", b"same-origin")
"""One more of them, where no other origin is allowed."""


def cors_options(origins: Sequence[str]) -> dict[str, Any]:
    """What Starlette's CORSMiddleware is given for these exact origins: no cookies, every header listed."""
    return {
        "allow_origins": list(origins),
        "allow_methods": ["GET", "POST", "PUT", "PATCH", "DELETE"],
        "allow_headers": [
            "Authorization",
            "Content-Type",
            "Idempotency-Key",
            "Last-Event-ID",
            "Prefer",
            "X-Request-ID",
            "traceparent",
        ],
        "expose_headers": [
            "Content-Location",
            "Idempotent-Replayed",
            "Location",
            "Preference-Applied",
            "Retry-After",
            "X-Request-ID",
        ],
        "allow_credentials": False,
        "max_age": 600,
    }


class _Refused(Exception):
    """The request goes no further."""

    def __init__(self, problem: Problem, detail: str) -> None:
        super().__init__(detail)
        self.problem = problem
        self.detail = detail


class _Gone(Exception):
    """The client left before its request was whole."""


class EdgeMiddleware:
    """The outermost of an application's own middleware (`app.add_middleware`, last)."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        allowed_hosts: Iterable[str],
        allowed_origins: Iterable[str] = (),
        header_bytes: int = 16 * 1024,
        body_bytes: int = 1024 * 1024,
        prompt_body_bytes: int = 8 * 1024 * 1024,
        json_depth: int = 64,
        body_read_s: float = 30,
    ) -> None:
        self._app = app
        self._hosts = frozenset(_bracketed(host.lower()) for host in allowed_hosts)
        self._origins = frozenset(origin.lower() for origin in allowed_origins)
        self._header_bytes = header_bytes
        self._body_bytes = body_bytes
        self._prompt_body_bytes = prompt_body_bytes
        self._json_depth = json_depth
        self._body_read_s = body_read_s
        self._headers = _SECURITY_HEADERS if self._origins else (*_SECURITY_HEADERS, _SAME_ORIGIN)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on; in both cases give the answer its headers and write the one line of the log."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send, self._headers)
        try:
            await self._handle(exchange, receive)
        finally:
            exchange.log_line()

    async def _handle(self, exchange: "_Exchange", receive: Receive) -> None:
        scope = exchange.scope
        try:
            self._check_size(scope)
            self._check_host(exchange)
            self._check_origin(exchange)
            if exchange.has_body:
                receive = await self._read(exchange, receive)
        except _Refused as refusal:
            await self._refuse(exchange, receive, refusal)
            return
        except _Gone:
            return
        try:
            await self._app(scope, receive, exchange.send)
        except Exception:
            # Caught here, so that it is logged once; what has begun is cut off by the server.
            log.exception("request_failed", method=scope["method"], route=exchange.route)
            if exchange.status is None:
                answer = internal_error(instance=scope["path"], request_id=exchange.request_id)
                answer.headers.update(self._cors(exchange))
                await answer(scope, receive, exchange.send)

    def _check_size(self, scope: Scope) -> None:
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if size > self._header_bytes:
            raise _Refused(
                PAYLOAD_TOO_LARGE, f"The request's header is larger than {self._header_bytes} bytes."
            )

    def _check_host(self, exchange: "_Exchange") -> None:
        hosts = exchange.values(b"host")
        if len(hosts) != 1:
            raise _Refused(INVALID_HOST, "The request must have exactly one Host header.")
        target = exchange.scope["state"].get(TARGET)
        if target is not None:
            hosts.append(_authority(target))
        for host in hosts:
            match = _HOST.match(host)
            if match is None or match["name"].decode().lower() not in self._hosts:
                raise _Refused(INVALID_HOST, "The service does not answer to this host name.")

    def _check_origin(self, exchange: "_Exchange") -> None:
        """Refuse what a page of another origin may have sent: a browser runs it even where CORS is closed."""
        if exchange.scope["method"] in SAFE_METHODS:
            return
        origins = [value.decode("latin-1").lower() for value in exchange.values(b"origin")]
        if len(origins) == 1 and origins[0] in self._origins:
            return
        scheme = exchange.scope["scheme"]
        host = exchange.values(b"host")[0].decode("latin-1").lower()
        own = f"{scheme}://{host.removesuffix(_DEFAULT_PORTS.get(scheme, ''))}"
        if any(origin != own for origin in origins) or b"cross-site" in exchange.values(b"sec-fetch-site"):
            raise _Refused(ORIGIN_FORBIDDEN, "Pages of this origin may not act here.")

    def _body_limit(self, scope: Scope) -> int:
        is_prompt = scope["method"] == "POST" and PROMPT_ROUTES.match(scope["path"]) is not None
        return self._prompt_body_bytes if is_prompt else self._body_bytes

    async def _read(self, exchange: "_Exchange", receive: Receive) -> Receive:
        """Take in the whole body; the `receive` that gives it, and after it the server's own messages."""
        limit = self._body_limit(exchange.scope)
        too_large = _Refused(PAYLOAD_TOO_LARGE, f"The body is larger than {limit} bytes.")
        declared = exchange.values(b"content-length")
        if declared and (not declared[0].isdigit() or len(declared[0]) > 18 or int(declared[0]) > limit):
            raise too_large
        body = bytearray()
        try:
            with anyio.fail_after(self._body_read_s):
                more = True
                while more:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise _Gone
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise too_large
                    more = message.get("more_body", False)
        except TimeoutError:
            raise _Refused(MALFORMED_JSON, "The body did not arrive in time.") from None
        content = bytes(body)
        if any(b"json" in value.lower() for value in exchange.values(b"content-type")):
            _check_json(content, self._json_depth)
        waiting: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        return replay

    async def _refuse(self, exchange: "_Exchange", receive: Receive, refusal: _Refused) -> None:
        """Answer; where a body may still be on its way, end the connection after it was given a moment."""
        headers = self._cors(exchange)
        if exchange.has_body:
            headers["Connection"] = "close"
        answer = problem_response(
            refusal.problem, instance=exchange.scope["path"], detail=refusal.detail, headers=headers
        )
        await exchange.send(
            {"type": "http.response.start", "status": answer.status_code, "headers": answer.raw_headers}
        )
        if exchange.has_body:
            await exchange.send({"type": "http.response.body", "body": answer.body, "more_body": True})
            await _discard(receive)
            await exchange.send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await exchange.send({"type": "http.response.body", "body": answer.body, "more_body": False})

    def _cors(self, exchange: "_Exchange") -> dict[str, str]:
        """What lets an allowed page read an answer that the CORS middleware did not see."""
        origins = [value.decode("latin-1") for value in exchange.values(b"origin")]
        if len(origins) == 1 and origins[0].lower() in self._origins:
            return {
                "Access-Control-Allow-Origin": origins[0],
                "Access-Control-Expose-Headers": "X-Request-ID",
                "Vary": "Origin",
            }
        return {}


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, send: Send, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.scope = scope
        self.status: int | None = None
        self._send = send
        self._headers = headers
        self._began = time.monotonic()
        given = self.values(b"x-request-id")
        is_given = len(given) == 1 and _REQUEST_ID.match(given[0])
        self.request_id = given[0].decode("ascii") if is_given else uuid4().hex
        scope.setdefault("state", {})["request_id"] = self.request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=self.request_id)
        trace_id = _trace_id(self.values(b"traceparent"))
        if trace_id is not None:
            structlog.contextvars.bind_contextvars(trace_id=trace_id)

    def values(self, name: bytes) -> list[bytes]:
        """The values of every header of that name, as they came."""
        return [value for key, value in self.scope["headers"] if key == name]

    @property
    def has_body(self) -> bool:
        """Whether the request says that it has a body."""
        length = self.values(b"content-length")
        return bool(self.values(b"transfer-encoding")) or (bool(length) and length != [b"0"])

    @property
    def route(self) -> str | None:
        """The path of the route that answered, with its parameters' names; never what the client wrote."""
        return getattr(self.scope.get("route"), "path", None)

    async def send(self, message: Message) -> None:
        """Pass an answer on; its head gets the request id, and the security headers that it lacks."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = [pair for pair in message.get("headers", ()) if pair[0].lower() != b"x-request-id"]
            names = {name.lower() for name, _ in own}
            message["headers"] = [
                *own,
                *(pair for pair in self._headers if pair[0] not in names),
                (b"x-request-id", self.request_id.encode("ascii")),
            ]
        await self._send(message)

    def log_line(self) -> None:
        """The one line of this request: no query string, no header, nothing that the client chose freely."""
        log.info(
            "request",
            method=self.scope["method"],
            route=self.route,
            status=self.status,
            seconds=round(time.monotonic() - self._began, 4),
        )


def _check_json(body: bytes, depth: int) -> None:
    """Refuse JSON that is too deep for a recursive parser, or not UTF-8, without parsing it.

    What is inside strings is cut out; what is left of the brackets is added up as steps down and up. A parser
    stops at the first error, and up to there it has seen the same brackets.
    """
    try:
        if b"\0" in body:  # a sign of UTF-16, which Python's parser would take
            raise ValueError
        body.decode()
    except ValueError:
        raise _Refused(MALFORMED_JSON, "JSON is UTF-8 (RFC 8259).") from None
    if body.count(b"[") + body.count(b"{") <= depth:
        return
    outside = b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    steps = memoryview(outside.translate(_STEPS, delete=_NO_BRACKETS)).cast("b")
    if max(accumulate(steps), default=0) > depth:
        raise _Refused(MALFORMED_JSON, f"The JSON is nested deeper than {depth} levels.")


_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""A bracket as a signed byte: one step down, or one up."""
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
"""Every other byte."""


async def _discard(receive: Receive) -> None:
    discarded = 0
    with anyio.move_on_after(LINGER_S):
        while discarded < LINGER_BYTES:
            message = await receive()
            discarded += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body", False):
                return


def _trace_id(values: list[bytes]) -> str | None:
    """The trace id of a valid `traceparent` (W3C Trace Context, 3.2)."""
    match = _TRACEPARENT.match(values[0]) if len(values) == 1 else None
    if match is None or not int(match["trace"], 16) or not int(match["span"], 16):
        return None
    if match["version"] == b"00" and match["more"]:
        return None
    return match["trace"].decode("ascii")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _authority(target: bytes) -> bytes:
    """The host and port of a target in absolute form; empty if it has none."""
    try:
        return urlsplit(target).netloc
    except ValueError:
        return b""
