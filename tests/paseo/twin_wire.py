"""A twin's front: who may connect, hello, the sessions behind the sockets."""

import ipaddress
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import anyio
from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from tests.paseo.twin_timeline import now

if TYPE_CHECKING:
    from tests.paseo.twin_daemon import Daemon

Json = dict[str, Any]

BEARER = "paseo.bearer."
VERSION = "0.1.65-beta.5"


def encode(message: Json) -> str:
    """A message in its envelope."""
    return json.dumps({"type": "session", "message": message}, ensure_ascii=False, separators=(",", ":"))


class Socket:
    """One connection; what is put into it leaves in order, however slowly the other end reads."""

    def __init__(self, connection: ServerConnection, daemon: "Daemon") -> None:
        self._connection = connection
        self._daemon = daemon
        self._frames: deque[str | bytes] = deque()
        self._more = anyio.Event()
        self.sent = 0
        request = connection.request
        headers = [] if request is None else request.headers.get_all("Sec-WebSocket-Protocol")
        self.offered = [name.strip() for header in headers for name in header.split(",")]

    def put(self, frame: str | bytes) -> None:
        """Send it soon."""
        self._frames.append(frame)
        self._more.set()

    async def write(self) -> None:
        """Send what is put in, until the connection ends."""
        while True:
            while self._frames:
                if self._daemon.faults.drops(self):
                    self.abort()
                    return
                try:
                    await self._connection.send(self._frames.popleft())
                except ConnectionClosed:
                    return
                self.sent += 1
            self._more = anyio.Event()
            await self._more.wait()

    def abort(self) -> None:
        """Drop the connection; the other end sees 1006."""
        self._connection.transport.abort()

    async def end(self) -> None:
        """Close without a code, after all that was put in; the other end sees 1005."""
        try:
            while self._frames:
                await self._connection.send(self._frames.popleft())
            async with self._connection.send_context():
                self._connection.protocol.send_close()
        except ConnectionClosed:
            pass

    async def close(self, code: int, reason: str) -> None:
        """Close with a code."""
        await self._connection.close(code, reason)


@dataclass
class Session:
    """What the daemon knows of one client id; it outlives its sockets by a while."""

    client_id: str
    sockets: list[Socket] = field(default_factory=list)
    sees_all: bool = True
    """Its app is new enough for providers that it does not know."""
    merge_enum: bool = True
    subscription: Json | None = None
    """The filter of its one subscription to updates of agents."""
    focus: str | None = None
    """The one agent whose streams it gets; set by a phone's heartbeat."""
    slots: dict[int, str] = field(default_factory=dict)
    terminals_of: set[str] = field(default_factory=set)
    left: float = 0.0

    def put(self, frame: str | bytes) -> None:
        """Send it to every socket; where there is none it is lost."""
        for socket in self.sockets:
            socket.put(frame)

    def send(self, kind: str, payload: Json) -> None:
        """Send a message."""
        self.put(encode({"type": kind, "payload": payload}))


def _recent(version: object) -> bool:
    try:
        return [int(part) for part in str(version).split("-")[0].split(".")] >= [0, 1, 45]
    except ValueError:
        return False


def hello_fault(hello: object) -> tuple[int, str] | None:
    """The close code and reason that a hello earns, if any."""
    if not isinstance(hello, dict) or hello.get("type") not in ("hello", "session"):
        return 4002, "Invalid hello"
    if hello["type"] == "session":
        return 4002, "Session message before hello"
    version = hello.get("protocolVersion")
    client_id = hello.get("clientId")
    if (
        not (isinstance(client_id, str) and client_id.strip())
        or hello.get("clientType") not in ("mobile", "browser", "cli", "mcp")
        or not isinstance(version, int | float)
    ):
        return 4002, "Invalid hello"
    return None if version == 1 else (4003, "Incompatible protocol version")


def open_session(daemon: "Daemon", hello: Json, socket: Socket) -> Session:
    """The session of a client id: the one of before, or a new one."""
    daemon.expire()
    session = daemon.sessions.setdefault(hello["clientId"], Session(hello["clientId"]))
    session.sees_all = _recent(hello.get("appVersion"))
    session.merge_enum = "reasoning_merge_enum" in hello.get("capabilities", {})
    session.sockets.append(socket)
    off = {"enabled": False, "reason": "It is switched off."}
    info = {
        "status": "server_info",
        "serverId": daemon.store.server_id,
        "hostname": "twin",
        "version": VERSION,
        "capabilities": {"voice": {"dictation": off, "voice": off}},
        "features": {"providersSnapshot": True},
    }
    socket.put(encode({"type": "status", "payload": info}))
    return session


def password_fault(daemon: "Daemon", socket: Socket) -> str | None:
    """Why the connection is closed with 4401, if it is; the upgrade has succeeded by then."""
    offered = [name.removeprefix(BEARER) for name in socket.offered if name.startswith(BEARER)]
    if daemon.faults.refuse_password:
        return "Incorrect password"
    if daemon.password is None:
        return None
    if not offered:
        return "Password required"
    return None if offered[0] == daemon.password else "Incorrect password"


def choose_subprotocol(_connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """The first one offered is echoed, right or wrong."""
    return offered[0] if offered else None


# HTTP


def host_name(header: str) -> str:
    """A Host header without its port."""
    return header[1:].partition("]")[0] if header.startswith("[") else header.partition(":")[0]


def host_allowed(header: str, more: list[str]) -> bool:
    """IP literals, localhost and what was configured."""
    name = host_name(header).lower()
    if name == "localhost" or name.endswith(".localhost") or "true" in more:
        return True
    if any(name == known.lstrip(".") or (known[0] == "." and name.endswith(known)) for known in more):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def origin_allowed(origin: str, host: str, port: int) -> bool:
    """The same origin, the app's, or this machine's with this port."""
    known = {f"http://{host}", "paseo://app", f"http://localhost:{port}", f"http://127.0.0.1:{port}"}
    return origin in known


def respond(status: HTTPStatus, body: object, kind: str = "application/json", **more: str) -> Response:
    """An answer over HTTP."""
    text = body if isinstance(body, str) else json.dumps(body)
    data = text.encode()
    headers = Headers(
        {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(data)),
            "Connection": "close",
            **{name.replace("_", "-"): value for name, value in more.items()},
        }
    )
    return Response(status, status.phrase, headers, data)


def no_such_page(method: str, path: str) -> Response:
    """What is not there is not there in HTML."""
    page = f"<!DOCTYPE html>\n<title>Error</title>\n<pre>Cannot {method} {path}</pre>\n"
    return respond(HTTPStatus.NOT_FOUND, page, "text/html")


def process_request(daemon: "Daemon", request: Request) -> Response | None:
    """Answer plain HTTP and refuse some upgrades; None lets the handshake go on."""
    host, path = (request.headers.get_all("Host") or [""])[0], request.path.partition("?")[0]
    upgrade = request.headers.get("Upgrade", "").lower() == "websocket"
    if not host_allowed(host, daemon.hostnames):
        if upgrade:
            return respond(HTTPStatus.FORBIDDEN, "Host not allowed", "text/plain")
        return respond(HTTPStatus.FORBIDDEN, {"error": "Invalid Host header"})
    origin = request.headers.get("Origin")
    allowed = origin is not None and origin_allowed(origin, host, daemon.port)
    if upgrade:
        if path != "/ws":
            return respond(HTTPStatus.BAD_REQUEST, "", "text/plain")
        if origin is not None and not allowed:
            return respond(HTTPStatus.FORBIDDEN, "Origin not allowed", "text/plain")
        return None
    cors = {"Access_Control_Allow_Origin": origin} if allowed and origin is not None else {}
    if request.method == "OPTIONS":
        return respond(HTTPStatus.NO_CONTENT, "", "text/plain", **cors)
    if path == "/api/health":
        return respond(HTTPStatus.OK, {"status": "ok", "timestamp": now()}, **cors)
    if path.startswith("/api/"):
        credentials = request.headers.get("Authorization")
        if daemon.password is not None and credentials != f"Bearer {daemon.password}":
            return respond(HTTPStatus.UNAUTHORIZED, {"error": "Unauthorized"})
    if path == "/api/status":
        status = {"status": "server_info", "serverId": daemon.store.server_id, "hostname": "twin"}
        listen = {"version": VERSION, "listen": f"127.0.0.1:{daemon.port}"}
        return respond(HTTPStatus.OK, status | listen, **cors)
    if path == "/api/files/download":
        if "token=" not in request.path:
            return respond(HTTPStatus.BAD_REQUEST, {"error": "Missing download token"})
        return respond(HTTPStatus.FORBIDDEN, {"error": "Invalid or expired token"})
    return no_such_page(request.method, path)
