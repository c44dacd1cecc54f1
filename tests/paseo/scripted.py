"""A daemon that says what a test tells it to, on a real socket."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import anyio
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from app.paseo.address import Address
from app.paseo.client import PaseoClient, open_client
from app.paseo.dialing import Options
from app.paseo.errors import PaseoError

SERVER = {
    "status": "server_info",
    "serverId": "srv_1",
    "hostname": "devbox",
    "version": "0.1.65-beta.5",
    "features": {"providersSnapshot": True},
}
AGENT = {"id": "a", "provider": "scripted", "cwd": "/w", "status": "idle"}
QUICK: dict[str, Any] = {
    "backoff_first": 0.01,
    "backoff_max": 0.02,
    "dial_timeout": 5.0,
    "hello_timeout": 5.0,
}


@dataclass
class Asked:
    """A message of the client, and the socket it came on."""

    socket: ServerConnection
    message: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.message["requestId"])

    async def answer(self, kind: str | None = None, **payload: Any) -> None:
        """The usual answer: the request's own kind with `_response`."""
        usual = self.message["type"].removesuffix("_request") + "_response"
        await say(self.socket, kind or usual, {"requestId": self.id, **payload})


async def say(socket: ServerConnection, kind: str, payload: dict[str, Any]) -> None:
    """One session message to one client."""
    await socket.send(json.dumps({"type": "session", "message": {"type": kind, "payload": payload}}))


@dataclass
class ScriptedDaemon:
    """It greets, answers pings and the client's own subscription; a test answers the rest by `next`."""

    port: int = 0
    greets: bool = True
    mute: bool = False
    close_with: tuple[int, str] | None = None
    """Instead of a greeting: how each socket is closed."""
    answers_watch: bool = True
    http: Callable[[Request], tuple[HTTPStatus, dict[str, str], str] | None] = lambda request: None
    hellos: list[dict[str, Any]] = field(default_factory=list)
    upgrades: list[Request] = field(default_factory=list)
    sockets: list[ServerConnection] = field(default_factory=list)
    watches: list[dict[str, Any]] = field(default_factory=list)
    strays: list[dict[str, Any]] = field(default_factory=list)
    """Frames that are neither hello, ping nor session message."""
    changed: anyio.Event = field(default_factory=anyio.Event)
    inbox: list[Asked] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def socket(self) -> ServerConnection:
        """The newest."""
        return self.sockets[-1]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for something to have happened here."""
        with anyio.fail_after(10):
            while not holds():
                await self.changed.wait()

    async def next(self, kind: str) -> Asked:
        """The next message of this kind that was not yet taken."""
        await self.until(lambda: any(asked.message["type"] == kind for asked in self.inbox))
        asked = next(asked for asked in self.inbox if asked.message["type"] == kind)
        self.inbox.remove(asked)
        return asked

    async def say(self, type_: str, /, **payload: Any) -> None:
        await say(self.socket, type_, payload)

    async def stream(self, agent_id: str, event: dict[str, Any], **position: Any) -> None:
        payload = {
            "agentId": agent_id,
            "event": {"provider": "scripted", **event},
            "timestamp": "T",
            **position,
        }
        await say(self.socket, "agent_stream", payload)

    def drop(self) -> None:
        """As if killed: the sockets are gone without a word."""
        for socket in self.sockets:
            socket.transport.abort()

    def tell(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()

    async def serve(self, socket: ServerConnection) -> None:
        try:
            await self._serve(socket)
        except ConnectionClosed:
            pass
        finally:
            self.tell()

    async def _serve(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        self.upgrades.append(socket.request)
        self.sockets.append(socket)
        self.tell()
        if self.close_with is not None:
            await socket.close(*self.close_with)
            return
        async for data in socket:
            await self._take(socket, json.loads(data))
            self.tell()

    async def _take(self, socket: ServerConnection, frame: dict[str, Any]) -> None:
        match frame["type"]:
            case "hello":
                self.hellos.append(frame)
                if self.greets:
                    await say(socket, "status", SERVER)
            case "ping":
                if not self.mute:
                    await socket.send('{"type":"pong"}')
            case "session" if "subscribe" in frame["message"]:
                self.watches.append(frame["message"])
                if self.answers_watch:
                    await Asked(socket, frame["message"]).answer(entries=[], pageInfo={"hasMore": False})
            case "session":
                self.inbox.append(Asked(socket, frame["message"]))
            case _:
                self.strays.append(frame)

    def on_upgrade(self, socket: ServerConnection, request: Request) -> Response | None:
        if (found := self.http(request)) is None:
            return None
        status, headers, body = found
        response = socket.respond(status, body)
        del response.headers["Content-Type"]
        for name, value in headers.items():
            response.headers[name] = value
        return response


def echo(socket: ServerConnection, offered: Any) -> Subprotocol | None:
    """What the daemon does: whatever is offered is echoed, be it right or wrong."""
    return offered[0] if offered else None


@asynccontextmanager
async def scripted_daemon(**settings: Any) -> AsyncIterator[ScriptedDaemon]:
    """A daemon on a free port, or on a given one: where another was before."""
    daemon = ScriptedDaemon(**settings)
    async with serve(
        daemon.serve,
        "127.0.0.1",
        daemon.port,
        compression=None,
        max_size=None,
        ping_interval=None,
        close_timeout=1,
        process_request=daemon.on_upgrade,
        select_subprotocol=echo,
    ) as server:
        daemon.port = next(iter(server.sockets)).getsockname()[1]
        yield daemon


@asynccontextmanager
async def connected(
    daemon: ScriptedDaemon, password: str | None = None, **options: Any
) -> AsyncIterator[PaseoClient]:
    """A client whose link to this daemon is up."""
    settings = Options(**{**QUICK, **options})
    async with open_client(Address.parse(daemon.url), password, options=settings) as client:
        await client.wait_up(5)
        yield client


class Outcome:
    """What came of a call."""

    def __init__(self) -> None:
        self.value: Any = None
        self.error: PaseoError | None = None

    async def of(self, call: Callable[[], Awaitable[Any]]) -> None:
        try:
            self.value = await call()
        except PaseoError as error:
            self.error = error


async def exchange(
    daemon: ScriptedDaemon,
    call: Callable[[], Awaitable[Any]],
    asked: str,
    kind: str | None = None,
    **payload: Any,
) -> Any:
    """Call, let the daemon answer, and give back or raise what came of it."""
    outcome = Outcome()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outcome.of, call)
            await (await daemon.next(asked)).answer(kind, **payload)
    if outcome.error is not None:
        raise outcome.error
    return outcome.value
