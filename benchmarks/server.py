"""What both servers share: the service's own uvicorn and socket options, led by lines on standard input.

A line is a JSON object with `do`; each is answered by one line. The end of the input ends the process.
"""

import asyncio
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import Any

import anyio
import uvicorn

from app.api.protocol import EdgeProtocol

SEND_BUFFER = 256 * 1024
"""Bytes of the kernel's send buffer, as the service sets it."""

Answer = dict[str, Any]
Command = Callable[[Answer], Awaitable[Answer]]
Opened = AbstractAsyncContextManager[tuple[Any, Command]]
"""An ASGI application while it is open, and what it does when it is told to."""


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def _listener() -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    listener.bind(("127.0.0.1", 0))
    listener.listen(4096)
    listener.setblocking(False)
    return listener


async def _lines() -> AsyncIterator[Answer]:
    async for line in anyio.wrap_file(sys.stdin):
        yield json.loads(line)


def _say(answer: Answer) -> None:
    print(json.dumps(answer), flush=True)


async def _serve(opened: Opened) -> None:
    listener = _listener()
    async with opened as (application, command), anyio.create_task_group() as tasks:
        config = uvicorn.Config(
            application,
            http=EdgeProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
            backlog=4096,
        )
        server = _Server(config)
        tasks.start_soon(server.serve, [listener])
        _say({"port": listener.getsockname()[1]})
        async for line in _lines():
            _say({"cpu": time.process_time()} if line["do"] == "cpu" else await command(line))
        server.should_exit = True


def run(opened: Opened) -> None:
    """Serve until standard input ends."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with suppress(ImportError):  # there is none for Windows and some Pythons
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(opened))
