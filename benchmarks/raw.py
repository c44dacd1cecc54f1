"""`python -m benchmarks.raw`: a bare ASGI application that writes ready bytes, one write an event.

One task a connection, which only waits for the reader to leave; whoever emits calls `send`. Nothing is
stored, encoded or joined: it is what uvicorn and the kernel cost.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup
from starlette.types import Receive, Scope, Send

from benchmarks import server
from benchmarks.server import Answer, Command
from benchmarks.workload import HEARTBEAT_S, SYNCED, Work, text, ticks

_HEAD = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
_FRAME = (
    b'id: %d\nevent: message.delta\ndata: {"seq":%d,"type":"message.delta","session_id":"s-1",'
    b'"turn_id":"trn_00000000-0000-7000-8000-000000000000","at":"2026-01-01T00:00:00.000Z",'
    b'"data":{"message_id":"msg_00000000-0000-7000-8000-000000000000","role":"assistant","text":"%b"}}\n\n'
)


@dataclass(eq=False)
class _Subscriber:
    send: Send
    is_idle: bool = True

    async def write(self, data: bytes) -> None:
        self.is_idle = False
        await self.send({"type": "http.response.body", "body": data, "more_body": True})


@dataclass(eq=False)
class _Source:
    work: Work
    subscribers: set[_Subscriber] = field(default_factory=set)

    async def emit(self) -> None:
        ready = _FRAME % (1, 1, text(0).encode())
        async for number in ticks(self.work, a_turn=1):
            if self.work.rate is not None:
                ready = _FRAME % (number, number, text(time.monotonic_ns()).encode())
            for subscriber in self.subscribers:
                await subscriber.write(ready)


class _Raw:
    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        self._sources: list[_Source] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`/source/{index}` is live, `/replay/{events}` is written at once."""
        kind, number = scope["path"].strip("/").split("/")
        await send({"type": "http.response.start", "status": 200, "headers": _HEAD})
        subscriber = _Subscriber(send)
        if kind == "replay":
            ready = _FRAME % (1, 1, text(0).encode())
            for _ in range(int(number)):
                await subscriber.write(ready)
                await asyncio.sleep(0)
        await subscriber.write(b"event: %b\ndata: {}\n\n" % SYNCED)
        subscribers = self._sources[int(number)].subscribers if kind == "source" else set()
        subscribers.add(subscriber)
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        finally:
            subscribers.discard(subscriber)

    async def command(self, line: Answer) -> Answer:
        match line["do"]:
            case "arm":
                self._sources = [_Source(Work(**work)) for work in line["works"]]
            case "go":
                for source in self._sources:
                    self._tasks.start_soon(source.emit)
        return {}

    async def beat(self) -> None:
        """One timer for all: whoever was idle gets a comment."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            for source in self._sources:
                for subscriber in list(source.subscribers):
                    if subscriber.is_idle:
                        await subscriber.write(b": ping\n\n")
                    subscriber.is_idle = True


@asynccontextmanager
async def _opened() -> AsyncIterator[tuple[_Raw, Command]]:
    async with anyio.create_task_group() as tasks:
        raw = _Raw(tasks)
        tasks.start_soon(raw.beat)
        yield raw, raw.command
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    server.run(_opened())
