"""Play a recorded transcript to a twin, and put what came beside what was recorded."""

import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from tests.paseo.twin import Twin
from tests.paseo.twin_frames import Frame, Shape, parse

Json = dict[str, Any]

TRANSCRIPTS = Path(__file__).parent / "transcripts"
PATIENCE = 8.0
"""Seconds to wait for what was recorded."""

SETTLE = 0.05
"""Seconds in which frames that were never recorded would show themselves."""

TEXT = ("row assistant_message", "row reasoning")
UNCOUNTED = ("terminals_changed", "row tool_call running", *TEXT)
"""Frames that come as often as they like; text counts by its length."""


@dataclass
class Line:
    """One line of a transcript."""

    t: float
    dir: str
    frame: Any
    client: str


def read(name: str) -> tuple[Json, list[Line]]:
    """A transcript: its head and its lines."""
    head, *lines = (TRANSCRIPTS / f"{name}.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    meta: Json = json.loads(head)["meta"]
    return meta, [Line(one["t"], one["dir"], one["frame"], one.get("client", "")) for one in found]


@dataclass
class Client:
    """One client of a transcript: what it should have got and what it got."""

    expected: list[Frame] = field(default_factory=list)
    got: list[Frame] = field(default_factory=list)
    more: anyio.Event = field(default_factory=anyio.Event)
    connection: ClientConnection | None = None
    closed: anyio.Event = field(default_factory=anyio.Event)

    async def listen(self, connection: ClientConnection) -> None:
        """Take what comes, to the end of the connection."""
        try:
            async for raw in connection:
                self.got.append(parse(raw))
                self.more.set()
                self.more = anyio.Event()
        except ConnectionClosed:
            pass
        self.closed.set()

    def lacks(self, shape: Shape) -> str | None:
        """What was recorded by now and has not come."""
        for kind in {frame.kind for frame in self.expected}:
            mine = [frame for frame in self.got if frame.kind == kind]
            theirs = [frame for frame in self.expected if frame.kind == kind]
            if kind in TEXT:
                have, want = (sum(len(shape.text(one)) for one in some) for some in (mine, theirs))
            else:
                have, want = len(mine), len(theirs) if kind not in UNCOUNTED else 0
            if have < want:
                return f"{kind}: {have} of {want}"
        return None

    async def catch_up(self, shape: Shape) -> None:
        """Wait until what was recorded by now has come."""
        with anyio.move_on_after(PATIENCE):
            while self.lacks(shape) is not None:
                await self.more.wait()
            return
        raise AssertionError(f"still lacking {self.lacks(shape)}; got {[one.kind for one in self.got]}")


class Replay:
    """One transcript against one twin."""

    def __init__(self, name: str, twin: Twin, shape: Shape) -> None:
        self.meta, self.lines = read(name)
        self.twin = twin
        self.shape = shape
        self.clients: dict[str, Client] = {}
        self.known: dict[str, str] = {}
        """Recorded ids, and the ids in their place."""

    async def run(self) -> None:
        """Do what was done, when what was recorded before it has come."""
        async with AsyncExitStack() as stack:
            self.tasks = await stack.enter_async_context(anyio.create_task_group())
            before = 0.0
            for number, line in enumerate(self.lines):
                client = self.clients.setdefault(line.client, Client())
                if line.dir == "recv":
                    client.expected.append(parse(line.frame))
                elif line.dir == "send":
                    await self._catch_up()
                    if client.connection is None:
                        await anyio.sleep((line.t - before) / self.twin.speed if before else 0)
                        await self._connect(client)
                    await self._send(client, line.frame)
                else:
                    if line.frame["event"] == "socket_closed":
                        before = line.t
                    await self._event(client, line, number)
            await self._catch_up()
            await anyio.sleep(SETTLE)
            for client in self.clients.values():
                if client.connection is not None:
                    await client.connection.close()
            self.tasks.cancel_scope.cancel()

    async def _catch_up(self) -> None:
        for client in self.clients.values():
            await client.catch_up(self.shape)

    async def _connect(self, client: Client, **options: Any) -> None:
        url = options.pop("url", self.twin.url)
        options |= {"host": "127.0.0.1", "port": self.twin.port}
        client.connection = await connect(url, max_size=None, compression=None, proxy=None, **options)
        client.closed = anyio.Event()
        self.tasks.start_soon(client.listen, client.connection)

    async def _send(self, client: Client, frame: Any) -> None:
        assert client.connection is not None
        self._learn()
        if isinstance(frame, dict) and "binary_base64" in frame:
            await client.connection.send(parse(frame).raw)
        else:
            text = frame if isinstance(frame, str) else json.dumps(self._mapped(frame))
            await client.connection.send(text)

    async def _event(self, client: Client, line: Line, number: int) -> None:
        event = line.frame
        match event["event"]:
            case "socket_closed":
                await self._closed(client, event, number)
            case "daemon_killed" | "daemon_stopped":
                await self._catch_up()
                await (self.twin.kill() if event["event"] == "daemon_killed" else self.twin.stop())
            case "daemon_started":
                await self.twin.kill()
                await self.twin.start()
            case "silent_client":
                await self._connect(client)
            case "http":
                await self._http(event)
            case "connecting":
                await self._upgrade(client, event, self.lines[number + 1].frame)

    async def _closed(self, client: Client, event: Json, number: int) -> None:
        if client.connection is None:
            return
        alive = any(
            line.frame.get("event", "").startswith("daemon")
            for line in self.lines[max(0, number - 3) : number]
            if line.dir == "event"
        )
        await self._catch_up()
        if event["code"] == 1000:
            await anyio.sleep(SETTLE)
            await client.connection.close()
        elif event["code"] == 1006 and not alive:
            client.connection.transport.abort()
        with anyio.fail_after(PATIENCE):
            await client.closed.wait()
        found = client.connection.close_code, client.connection.close_reason
        assert found == (event["code"], event["reason"])
        client.connection = None

    async def _http(self, event: Json) -> None:
        request, path = event["request"], event["request"]["path"]
        headers = {name: self._here(value) for name, value in request["headers"].items()}
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.request(request["method"], f"{self.twin.http}{path}", headers=headers)
        body = answer.json() if "json" in answer.headers["content-type"] else ""
        assert answer.status_code == event["status"]
        assert answer.headers["content-type"] == event["headers"]["content-type"]
        assert "access-control-allow-origin" not in event["headers"] or (
            "access-control-allow-origin" in answer.headers
        )
        recorded = event["body"] if isinstance(event["body"], dict) else ""
        assert self.shape.value(body) == self.shape.value(recorded)

    async def _upgrade(self, client: Client, event: Json, result: Json) -> None:
        names = [Subprotocol(name) for name in event.get("subprotocols", [])]
        headers = dict(event["headers"])
        options: Json = {"additional_headers": headers, "subprotocols": names or None}
        if "Host" in headers:
            options["url"] = f"ws://{headers.pop('Host')}/ws"
        if "origin" in event:
            options["origin"] = self._here(event["origin"])
        try:
            await self._connect(client, **options)
        except InvalidStatus as refused:
            status, said = refused.response.status_code, (refused.response.body or b"").decode()
            expected = result.get("body")
        else:
            assert client.connection is not None
            status, said, expected = 101, str(client.connection.subprotocol), str(result.get("subprotocol"))
        assert (status, said) == (result["status"], expected)

    def _here(self, text: str) -> str:
        """The recorded port is this one's."""
        return text.replace("127.0.0.1:6767", f"127.0.0.1:{self.twin.port}")

    def _learn(self) -> None:
        """Put the ids that came beside those that were recorded, frame by frame of a kind."""
        for client in self.clients.values():
            for kind in {frame.kind for frame in client.expected}:
                theirs = [frame for frame in client.expected if frame.kind == kind]
                mine = [frame for frame in client.got if frame.kind == kind]
                for recorded, came in zip(theirs, mine, strict=False):
                    self.known.update(_pairs(recorded.body, came.body))

    def _mapped(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._mapped(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self._mapped(one) for one in value]
        if not isinstance(value, str):
            return value
        for recorded, here in self.known.items():
            if len(value) >= 8 and recorded.startswith(value):
                return here[: len(value)]
        return self.shape.localize(value)


def _pairs(recorded: Any, came: Any) -> Iterator[tuple[str, str]]:
    if isinstance(recorded, dict) and isinstance(came, dict):
        for key in recorded.keys() & came.keys():
            yield from _pairs(recorded[key], came[key])
    elif isinstance(recorded, list) and isinstance(came, list):
        for one, other in zip(recorded, came, strict=False):
            yield from _pairs(one, other)
    elif isinstance(recorded, str) and isinstance(came, str) and recorded != came and _may_be_id(recorded):
        yield recorded, came


def _may_be_id(text: str) -> bool:
    return len(text) > 8 and " " not in text and "/" not in text
