"""A Paseo daemon's twin: a real server on a real port, with scripted agents, that misbehaves on command.

In a test: `async with Twin() as twin: ... connect(twin.url)`. As a process, to be killed and started again on
what it has stored: `python tests/paseo/twin.py --port 6767 --home DIR`.
"""

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import anyio
from anyio.abc import TaskStatus
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.paseo.twin_daemon import Daemon
from tests.paseo.twin_faults import Faults, Record
from tests.paseo.twin_mischief import LARGEST, Mischief
from tests.paseo.twin_providers import History, providers
from tests.paseo.twin_serving import attend
from tests.paseo.twin_store import Store
from tests.paseo.twin_wire import choose_subprotocol, process_request, respond

Json = dict[str, Any]


class Twin(Mischief):
    """The daemon over all its restarts: what is stored, what it heard, and how it misbehaves."""

    def __init__(
        self,
        home: Path | None = None,
        *,
        port: int = 0,
        password: str | None = None,
        hostnames: list[str] | None = None,
        speed: float = 1.0,
        window: float = 0.06,
        force_after: float = 2.0,
        hello_timeout: float = 15.0,
        session_ttl: float = 90.0,
        probe_delay: float = 0.0,
        opencode: bool = True,
        history: History | None = None,
    ) -> None:
        """`speed` divides every time that a provider takes, `window` and `force_after`; all are seconds."""
        self.port = port
        self.password = password
        self.hostnames = hostnames or []
        self.speed = speed
        self.window = window
        self.force_after = force_after
        self.hello_timeout = hello_timeout
        self.session_ttl = session_ttl
        self.probe_delay = probe_delay
        self.providers = providers(opencode=opencode)
        self.history = history
        """What every provider gives back of a session, in place of its own habit."""
        self.faults = Faults()
        self.record = Record()
        self.loading = anyio.Lock()
        self.refreshing: set[str] = set()
        self.daemon: Daemon | None = None
        self._own_home = home is None
        self.home = Path(tempfile.mkdtemp(prefix="twin-")) if home is None else home
        self.store = Store(home)
        self._stack = AsyncExitStack()
        self._ending = anyio.Event()
        self._ended = anyio.Event()
        self._ended.set()

    async def __aenter__(self) -> Self:
        self.tasks = await self._stack.enter_async_context(anyio.create_task_group())
        await self.start(history=self.history)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        with anyio.CancelScope(shield=True):
            await self.kill()
        self.tasks.cancel_scope.cancel()
        if self._own_home:
            shutil.rmtree(self.home, ignore_errors=True)
        return await self._stack.__aexit__(kind, error, trace)

    @property
    def url(self) -> str:
        """Where its WebSocket is."""
        return f"ws://127.0.0.1:{self.port}/ws"

    @property
    def http(self) -> str:
        """Where its HTTP is."""
        return f"http://127.0.0.1:{self.port}"

    # Starting and ending

    async def start(self, *, history: History | None = None) -> None:
        """Start the daemon on what is stored; `history` says what its providers still know."""
        self.history = history
        self._ending, self._ended = anyio.Event(), anyio.Event()
        await self.tasks.start(self._run)

    async def _run(self, *, task_status: TaskStatus[None]) -> None:
        try:
            await self._serve(task_status)
        finally:  # also when the test was cancelled: whoever ends it waits for this
            self._ended.set()

    async def _serve(self, task_status: TaskStatus[None]) -> None:
        async with anyio.create_task_group() as tasks:
            daemon = Daemon(self, tasks)
            async with serve(
                partial(attend, daemon),
                "127.0.0.1",
                self.port,
                process_request=self._http,
                select_subprotocol=choose_subprotocol,
                compression=None,
                ping_interval=None,
                max_size=LARGEST,
            ) as server:
                self.port = next(iter(server.sockets)).getsockname()[1]
                self.daemon, self._listener = daemon, server.server
                task_status.started()
                await self._ending.wait()
            tasks.cancel_scope.cancel()

    async def kill(self) -> None:
        """`kill -9`: the connections drop (1006), agents stay as they were last written down."""
        if self.daemon is None:
            await self._ended.wait()
            return
        daemon, self.daemon = self.daemon, None
        daemon.closed = True
        self._listener.close()
        for socket in list(daemon.sockets):
            socket.abort()
        self._ending.set()
        await self._ended.wait()

    async def stop(self) -> None:
        """An orderly stop: agents are closed, then the connections (1005)."""
        if self.daemon is None:
            await self._ended.wait()
            return
        daemon, self.daemon = self.daemon, None
        for agent in list(daemon.agents.values()):
            daemon.unload(agent)
        daemon.closed = True
        # First of all nobody new: a connection that is accepted while the server closes would hang.
        self._listener.close()
        for socket in list(daemon.sockets):
            await socket.end()
        self._ending.set()
        await self._ended.wait()

    async def restart(self, *, history: History | None = None, orderly: bool = False) -> None:
        """Kill or stop it, and start it again on the same port."""
        await (self.stop() if orderly else self.kill())
        await self.start(history=history)

    # The control route of the subprocess

    async def _http(self, connection: ServerConnection, request: Request) -> Response | None:
        if self.daemon is None or self.faults.refuse_connections:
            connection.transport.abort()
            return respond(HTTPStatus.SERVICE_UNAVAILABLE, {})
        if request.path.startswith("/twin/"):
            parts = urlsplit(request.path)
            arguments = json.loads(parse_qs(parts.query).get("q", ["{}"])[0])
            return respond(HTTPStatus.OK, await self.control(parts.path.removeprefix("/twin/"), arguments))
        return process_request(self.daemon, request)

    async def control(self, command: str, arguments: Json) -> Any:
        """Do what `GET /twin/<command>?q=<JSON>` says.

        `faults` and `provider` set fields, `received` lists messages, the others are methods of that name.
        """
        match command:
            case "faults":
                for name, value in arguments.items():
                    old = getattr(self.faults, name)
                    setattr(self.faults, name, set(value) if isinstance(old, set) else value)
            case "provider":
                provider = self.providers[arguments.pop("id")]
                for name, value in arguments.items():
                    setattr(provider, name, value)
            case "history":
                self.history = arguments["history"]
            case "received":
                found = self.record.of(**arguments) if arguments else self.record.received
                return [{"client": one.client_id, "message": one.message} for one in found]
            case "agents":
                return [agent.snapshot() for agent in self.running.agents.values()]
            case "prompt" | "cancel" | "crowd":
                return await getattr(self, command)(**arguments)
            case "drop" | "answer" | "new_epoch" | "send" | "flood" | "strange":
                getattr(self, command)(**arguments)
            case _:
                return {"error": f"unknown command: {command}"}
        return {}


async def _signals() -> AsyncIterator[signal.Signals]:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        async for number in received:
            yield number


async def _serve(options: argparse.Namespace) -> None:
    options.home.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(options).items() if value is not None}
    async with Twin(**settings) as twin:
        sys.stdout.write(f"{twin.url}\n")
        sys.stdout.flush()
        async for _ in _signals():
            await twin.stop()
            return


def main() -> None:
    """Run it as a program, until SIGTERM or a client ends it; it prints its URL first."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--password")
    parser.add_argument("--hostname", action="append", dest="hostnames")
    parser.add_argument("--history", choices=("whole", "empty", "unloadable"))
    for name in ("speed", "window", "force-after", "hello-timeout", "session-ttl", "probe-delay"):
        parser.add_argument(f"--{name}", type=float)
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
