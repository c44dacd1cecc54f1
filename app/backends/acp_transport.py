"""JSON-RPC messages as lines on a child's pipes: the transport below the ACP library's connection.

The library handles each message in a task of its own. Order is kept here: updates are handed over as they are
read, and of every other message the first step is taken before the next line is read.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Protocol

import anyio
import anyio.lowlevel
import msgspec
import structlog
from anyio.abc import ByteReceiveStream, ByteSendStream

from app.domain.text import clean

MAX_LINE = 16 * 1024 * 1024
"""Bytes of one message; an agent that sends a longer line is ended."""

MAX_GARBAGE = 100
"""Lines in a row that are no messages; after one more the agent is ended."""

_SUSPECT = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
"""What a line must contain for a string in it to have a NUL or a surrogate."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def parse(line: bytes) -> dict[str, Any] | None:
    """The message in a line, with every string storable; null for anything else."""
    try:
        message = msgspec.json.decode(line)
    except (ValueError, RecursionError):  # stricter than the standard library, about lone surrogates for one
        try:
            message = json.loads(line.decode(errors="replace"))
        except (ValueError, RecursionError):
            return None
    if not isinstance(message, dict):
        return None
    return {clean(key): _cleaned(item) for key, item in message.items()} if _SUSPECT.search(line) else message


def _cleaned(value: Any) -> Any:
    match value:
        case str():
            return clean(value)
        case dict():
            return {clean(key): _cleaned(item) for key, item in value.items()}
        case list():
            return [_cleaned(item) for item in value]
        case _:
            return value


class Inlet(Protocol):
    """Where what is read goes; see `Listener`, which is one."""

    async def room(self) -> None: ...
    def on_update(self, params: Mapping[str, Any], size: int) -> None: ...
    def on_sent(self, method: str, whole: bool) -> None: ...
    def on_garbage(self) -> None: ...


class JsonLines:
    """Implements the library's `Transport`; `fault` says why it ended if not by the agent's end of file.

    An agent that does not read what we send within `send_timeout` seconds is regarded as stuck.
    """

    def __init__(
        self, stdin: ByteSendStream, stdout: ByteReceiveStream, inlet: Inlet, *, send_timeout: float
    ) -> None:
        self.ended = anyio.Event()
        self.fault: str | None = None
        self._stdin = stdin
        self._stdout = stdout
        self._inlet = inlet
        self._send_timeout = send_timeout
        self._sending = anyio.Lock()
        self._buffer = bytearray()
        self._garbage = 0

    async def send(self, message: dict[str, Any]) -> None:
        """Write a message whole.

        Raises:
            ConnectionError: the agent is gone, or does not read. Answers to it are dropped silently then.
        """
        line = msgspec.json.encode(message, enc_hook=str) + b"\n"
        method = message.get("method")
        try:
            with anyio.fail_after(self._send_timeout):
                async with self._sending:
                    await self._stdin.send(line)
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            if isinstance(error, TimeoutError):
                self._end("it does not read what is sent to it")
            if method is not None:
                self._inlet.on_sent(method, False)
                raise ConnectionError(str(error)) from None
        else:
            if method is not None:
                self._inlet.on_sent(method, True)

    async def receive(self) -> dict[str, Any] | None:
        """The next message for the library; null at the end."""
        await anyio.lowlevel.checkpoint()  # the first step of what was received before
        while not self.ended.is_set():
            await self._inlet.room()
            line = await self._line()
            if line is None:
                break
            if not line.strip():
                continue
            message = self._sorted(parse(line), len(line))
            if message is not None:
                return message
        self.ended.set()
        return None

    async def close(self) -> None:
        """Nothing to close: the child owns its pipes."""

    def _sorted(self, message: dict[str, Any] | None, size: int) -> dict[str, Any] | None:
        """`message` if it is a request or an answer that the library can take."""
        match message:
            case {"id": bool()}:  # to Python, True is the request 1
                pass
            case {"method": "session/update", "params": dict(params)}:
                self._garbage = 0
                self._inlet.on_update(params, size)
                return None
            case {"method": str(), "id": int() | str()}:
                self._garbage = 0
                return message
            case {"method": str(method)} if message is not None and "id" not in message:
                self._garbage = 0
                log.debug("agent_notification_ignored", method=method[:100])
                return None
            case {"id": int(number), "error": dict() | str() | list() as error}:
                self._garbage = 0
                return {"jsonrpc": "2.0", "id": number, "error": _error(error)}
            case {"id": int(number), "result": result}:
                self._garbage = 0
                return {"jsonrpc": "2.0", "id": number, "result": result}
        self._garbage += 1
        if self._garbage == 1:
            self._inlet.on_garbage()
        elif self._garbage > MAX_GARBAGE:
            self._end(f"it wrote more than {MAX_GARBAGE} lines in a row that are no ACP messages")
        return None

    async def _line(self) -> bytes | None:
        """The next line without its end; null at the end of the file."""
        looked = 0
        while (end := self._buffer.find(b"\n", looked)) < 0:
            looked = len(self._buffer)
            if looked > MAX_LINE:
                self._end(f"it wrote a line of more than {MAX_LINE} bytes")
                return None
            try:
                self._buffer += await self._stdout.receive(65536)
            except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
                rest = bytes(self._buffer)
                self._buffer.clear()
                return rest or None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _end(self, fault: str) -> None:
        self.fault = self.fault or fault
        self.ended.set()


def _error(error: Any) -> dict[str, Any]:
    match error:
        case {"code": int(code), "message": str(message)}:
            return {"code": code, "message": message, "data": error.get("data")}
        case _:
            return {"code": -32603, "message": "Internal error", "data": error}
