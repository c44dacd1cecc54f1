"""The least that can talk to a twin: for the twin's own tests, and for tests that need another client."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any
from uuid import uuid4

import anyio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

Json = dict[str, Any]


class Talk:
    """One connection: what was got on it, in order."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.got: list[Json] = []
        """Messages out of their envelope; a binary frame is `{"type": "binary", "data": bytes}`."""
        self.closed = anyio.Event()
        self._more = anyio.Event()
        self._ids = count(1)

    async def listen(self) -> None:
        """Take what comes, to the end of the connection."""
        try:
            async for raw in self.connection:
                binary = isinstance(raw, bytes)
                frame: Json = {"type": "binary", "data": raw} if binary else json.loads(raw)
                self.got.append(frame["message"] if frame["type"] == "session" else frame)
                self._more.set()
                self._more = anyio.Event()
        except ConnectionClosed:
            pass
        self.closed.set()
        self._more.set()

    async def tell(self, kind: str, **fields: Any) -> None:
        """Send a message."""
        message = {"type": kind, **fields}
        await self.connection.send(json.dumps({"type": "session", "message": message}))

    async def ask(self, kind: str, **fields: Any) -> Json:
        """Send a request; its answer's payload."""
        name = f"r{next(self._ids)}"
        await self.tell(kind, requestId=name, **fields)
        found = await self.wait(lambda message: message.get("payload", {}).get("requestId") == name)
        payload: Json = found["payload"]
        return payload

    async def wait(self, wanted: Callable[[Json], object], after: int = 0) -> Json:
        """The first message of this kind, once it has come."""
        with anyio.fail_after(8):
            while True:
                for message in self.got[after:]:
                    if wanted(message):
                        return message
                after = len(self.got)
                if self.closed.is_set():
                    raise ConnectionError(self.connection.close_code, self.connection.close_reason)
                await self._more.wait()

    async def event(self, kind: str, after: int = 0) -> Json:
        """The first event of this type, of any agent."""
        found = await self.wait(lambda message: stream_type(message) == kind, after)
        payload: Json = found["payload"]
        return payload

    async def idle(self, after: int) -> None:
        """Wait for the end of a turn that began after that many messages."""
        await self.wait(
            lambda message: (
                message["type"] == "agent_update"
                and message["payload"].get("agent", {}).get("status") in ("idle", "error")
            ),
            after,
        )

    async def agent(self, provider: str = "scripted", cwd: str = "/tmp", **more: Any) -> str:
        """A new agent; its id."""
        answer = await self.ask(
            "create_agent_request", config={"provider": provider, "cwd": cwd}, labels={}, **more
        )
        return str(answer["agentId"])

    async def run(self, agent_id: str, text: str, **more: Any) -> list[Json]:
        """Prompt and wait for the end; what came meanwhile."""
        before = len(self.got)
        await self.ask("send_agent_message_request", agentId=agent_id, text=text, **more)
        await self.idle(before)
        return self.got[before:]

    async def rows(self, agent_id: str) -> list[Json]:
        """All items of an agent's timeline, one a row."""
        page = await self.ask(
            "fetch_agent_timeline_request", agentId=agent_id, limit=0, projection="canonical"
        )
        return [entry["item"] for entry in page["entries"]]

    async def end(self) -> int | None:
        """The close code, once the connection has ended."""
        with anyio.fail_after(8):
            await self.closed.wait()
        return self.connection.close_code


def stream_type(message: Json) -> str | None:
    """An event's type, for a message that is one."""
    if message["type"] != "agent_stream":
        return None
    return str(message["payload"]["event"]["type"])


def events(messages: list[Json]) -> list[str]:
    """The events' types, but for the naming of sessions; a row by its item's type."""
    found = []
    for message in messages:
        if (kind := stream_type(message)) == "timeline":
            found.append(str(message["payload"]["event"]["item"]["type"]))
        elif kind not in (None, "thread_started", "attention_required"):
            found.append(str(kind))
    return found


@asynccontextmanager
async def talk(url: str, client_id: str | None = None, *, subscribe: bool = True) -> AsyncIterator[Talk]:
    """A client that has said hello and, if it likes, subscribed to every agent."""
    named = {"clientId": client_id or f"cid_{uuid4().hex}", "clientType": "cli", "protocolVersion": 1}
    async with (
        connect(url, max_size=None, compression=None, proxy=None) as connection,
        anyio.create_task_group() as tasks,
    ):
        client = Talk(connection)
        tasks.start_soon(client.listen)
        with suppress(ConnectionClosed):
            await connection.send(json.dumps({"type": "hello", "appVersion": "0.1.65", **named}))
        await client.wait(lambda message: message.get("payload", {}).get("status") == "server_info")
        if subscribe:
            await client.ask("fetch_agents_request", filter={"includeArchived": True}, subscribe={})
        yield client
        tasks.cancel_scope.cancel()
