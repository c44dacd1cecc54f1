"""The link to one ACP agent: its process, the JSON-RPC connection over its pipes, and the tasks of both."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import anyio
import structlog
from acp.connection import Connection
from acp.exceptions import RequestError
from anyio.abc import TaskGroup, TaskStatus

from app.backends.acp_process import Child, listening
from app.backends.acp_transport import JsonLines
from app.backends.base import BackendRejected, BackendUnavailable

PROTOCOL = 1
"""The version of ACP that we speak."""

CLIENT: Mapping[str, Any] = {
    "protocolVersion": PROTOCOL,
    "clientCapabilities": {
        "fs": {"readTextFile": False, "writeTextFile": False},
        "terminal": False,
        "elicitation": {"form": {}},
    },
    "clientInfo": {"name": "alameda", "title": "Alameda", "version": "0.1.0"},
}
"""What we say of ourselves: an agent does its own reading, writing and running, but may ask questions."""

AUTH_REQUIRED = -32000
"""ACP's error code of an agent that is not logged in."""

INVALID = (-32600, -32601, -32602)
"""JSON-RPC's error codes for what is wrong with a request itself."""

LAST_WORDS = 10.0
"""Seconds in which what a dead agent had written can still be read."""

LAST_MOMENT = 1.0
"""Seconds that `end` waits for them, should their reader stand still."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds that an agent has for each request; a turn has none here, the engine limits it."""

    initialize: float = 30.0
    create: float = 60.0
    load: float = 60.0
    configure: float = 15.0
    send: float = 30.0
    close: float = 10.0


class Listener(Protocol):
    """What a link tells its owner, in order. Only `room` and `on_request` may wait."""

    async def room(self) -> None:
        """Wait until more can be taken in; meanwhile nothing is read from the agent."""

    def on_update(self, params: Mapping[str, Any], size: int) -> None:
        """A `session/update`; `size` is that of its line."""

    async def on_request(self, method: str, params: Any, is_notification: bool) -> Any:
        """The answer to a request; up to its first wait this runs before anything later is read."""

    def on_sent(self, method: str, whole: bool) -> None:
        """A request of ours was written, or it broke off."""

    def on_garbage(self) -> None:
        """The agent began to write what are no messages."""

    def on_end(self, message: str) -> None:
        """The process has ended with all below it, and everything it wrote was told. Comes once."""


class Link:
    """One agent process and its connection. `serve` runs until it has ended; `hang_up` ends it."""

    def __init__(self, child: Child, listener: Listener, deadlines: Deadlines) -> None:
        self.capabilities: Mapping[str, Any] = {}
        self.version: str | None = None
        self.gone = anyio.Event()
        """Set when nothing of the agent runs and the listener knows."""
        self.tasks: TaskGroup
        """For what lives as long as the link."""
        self._child = child
        self._listener = listener
        self._login = "log in with its own command"
        self._over = anyio.Event()
        self._lines = JsonLines(child.stdin, child.stdout, listener, send_timeout=deadlines.send)
        self._connection: Connection

    @property
    def is_up(self) -> bool:
        """Whether it can still be used."""
        return not self._over.is_set()

    async def serve(self, *, task_status: TaskStatus[None]) -> None:
        """Run everything of this agent until its process has ended. A failure stays here."""
        try:
            await self._serve(task_status)
        except Exception:
            log.exception("acp_agent_crashed")
        finally:
            self._listener.on_end(self.obituary())
            self.gone.set()

    async def _serve(self, task_status: TaskStatus[None]) -> None:
        try:
            async with anyio.create_task_group() as self.tasks:
                self.tasks.start_soon(self._child.drain)
                self.tasks.start_soon(self._child.watch)
                self._connection = Connection(self._listener.on_request, self._lines)
                self.tasks.start_soon(self._end_with, self._lines.ended)
                self.tasks.start_soon(self._end_with, self._child.ended)
                task_status.started()
                try:
                    await self._over.wait()
                finally:
                    self._child.hang_up()
                    with anyio.CancelScope(shield=True):
                        await self._child.ended.wait()
                with anyio.move_on_after(LAST_WORDS):
                    await self._lines.ended.wait()
                    await self._child.drained.wait()
                self.tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                with suppress(ConnectionError):
                    await self._connection.close()
                await self._child.discard()

    def hang_up(self) -> None:
        """End the agent's process and all below it; `gone` tells when."""
        self._child.hang_up()

    async def end(self) -> None:
        """End the process and return when nothing of it runs; its end is told then, or a moment later."""
        self.hang_up()
        await self._child.ended.wait()
        with anyio.move_on_after(LAST_MOMENT):
            await self.gone.wait()

    def beat(self) -> None:
        """Tell the guard that we live."""
        self._child.beat()

    def obituary(self) -> str:
        """How the process ended, in a sentence, and the last of what it wrote to stderr."""
        status = self._child.status
        how = "has ended"
        if self._lines.fault:
            how = f"was ended: {self._lines.fault}"
        elif status is not None:
            how = f"was ended by signal {status - 128}" if status > 128 else f"exited with status {status}"
        return "\n".join(filter(None, (f"the agent's process {how}", self._child.complaint)))

    async def initialize(self, deadline: float) -> None:
        """Say hello, and learn what the agent can.

        Raises:
            BackendUnavailable: it died, or did not answer within `deadline` seconds.
            BackendRejected: it is no ACP agent of our version.
        """
        try:
            result = await self.request("initialize", CLIENT, deadline)
        except RequestError as error:
            raise BackendRejected(self.words(error)) from None
        match result:
            case {"protocolVersion": int(version)} if version == PROTOCOL:
                pass
            case {"protocolVersion": version}:
                raise BackendRejected(f"the agent speaks version {version!r} of ACP, not {PROTOCOL}")
            case _:
                raise BackendRejected("the agent's answer to initialize is not ACP's")
        match result.get("agentCapabilities"):
            case dict(capabilities):
                self.capabilities = capabilities
        match result.get("agentInfo"):
            case {"version": str(of_agent)}:
                self.version = of_agent
        match result.get("authMethods"):
            case [{"description": str(how)}, *_] | [{"name": str(how)}, *_]:
                self._login = how

    async def request(self, method: str, params: Mapping[str, Any], deadline: float) -> Any:
        """The agent's answer.

        Raises:
            RequestError: it refused.
            BackendUnavailable: it died, or did not answer within `deadline` seconds.
        """
        try:
            with anyio.fail_after(deadline):
                return await self._connection.send_request(method, dict(params))
        except TimeoutError:
            raise BackendUnavailable(f"no answer to {method} within {deadline:g} s") from None
        except ConnectionError:
            self.hang_up()
            await self.gone.wait()
            raise BackendUnavailable(self.obituary()) from None

    async def call(self, method: str, params: Mapping[str, Any]) -> Any:
        """As `request`, without a deadline; ConnectionError if the agent dies."""
        return await self._connection.send_request(method, dict(params))

    async def notify(self, method: str, params: Mapping[str, Any]) -> None:
        """Send a notification; a dead agent is no error."""
        with suppress(ConnectionError):
            await self._connection.send_notification(method, dict(params))

    def words(self, error: RequestError) -> str:
        """A refusal in the agent's words; how to log in if that is what it lacks."""
        message = str(error)
        match error.data:
            case str(more) | {"details": str(more)} | {"message": str(more)} | {"errorName": str(more)}:
                message = f"{message}: {more}"
        if error.code == AUTH_REQUIRED:
            message = f"{message}. The agent is not logged in on this machine: {self._login}"
        return message

    async def look_for_ports(self) -> None:
        """Warn the operator if the agent accepts connections: who reaches it there drives it past us."""
        if self._child.pid is not None:
            ports = await anyio.to_thread.run_sync(listening, self._child.pid, abandon_on_cancel=True)
            if ports:
                log.warning("agent_listens", ports=ports)

    async def _end_with(self, event: anyio.Event) -> None:
        await event.wait()
        self._over.set()
