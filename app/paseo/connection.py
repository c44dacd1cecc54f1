"""One WebSocket to the daemon, from its greeting to its end; it is never used again."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

from app.paseo.errors import TOO_BIG, LinkLost, NotSent
from app.paseo.frames import ServerInfo

PING = b'{"type":"ping"}'
"""A sign of life that asks for another."""

MAX_OUTGOING = 96 * 1024 * 1024
"""Bytes of a message of ours; the daemon closes the link at 100 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a socket ended: 1005 an orderly stop, 1006 a kill or the network, 1009 a message too big."""

    code: int
    reason: str
    by_us: bool

    def __str__(self) -> str:
        said = {1005: "the daemon stopped", 1006: "the connection broke", TOO_BIG: "a message was too big"}
        words = self.reason or said.get(self.code, "the daemon closed the connection")
        return f"{words} ({self.code}{', by us' if self.by_us else ''})"


class Socket(ClientConnection):
    """The library's socket, which also remembers when it last heard anything, be it half a frame."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.heard_at = time.monotonic()

    def data_received(self, data: bytes) -> None:
        self.heard_at = time.monotonic()
        super().data_received(data)


class Connection:
    """A socket on which the daemon has greeted us; `server` is its greeting."""

    def __init__(self, socket: Socket, server: ServerInfo, early: list[bytes]) -> None:
        self.server = server
        self._socket = socket
        self._early = early
        self._writing = anyio.Lock()

    @property
    def heard_at(self) -> float:
        """When the last byte came, by the monotonic clock."""
        return self._socket.heard_at

    async def read(self, on_frame: Callable[[bytes], None]) -> Ended:
        """Hand over every frame until the socket ends. `on_frame` never waits and never raises."""
        for data in self._early:
            on_frame(data)
        try:
            while True:
                on_frame(await self._socket.recv(decode=False))
        except ConnectionClosed as closed:
            return ended_by(closed)

    async def send(self, data: bytes, *, text: bool = True, before_write: Callable[[], None]) -> None:
        """Write one frame; `before_write` runs when nothing stands between it and the socket.

        Raises:
            NotSent: the socket was not open, or the message is too big. What `before_write` raises passes.
            LinkLost: the socket ended during or after the write.
        """
        if len(data) > MAX_OUTGOING:
            raise NotSent(f"the message has {len(data)} bytes, and the daemon takes no more than 100 MiB")
        async with self._writing:
            if self._socket.state is not State.OPEN:
                raise NotSent("the link to the daemon is closing")
            before_write()
            try:
                await self._socket.send(data, text=text)
            except ConnectionClosed as closed:
                ended = ended_by(closed)
                raise LinkLost(str(ended), code=ended.code, by_us=ended.by_us) from None

    def abort(self) -> None:
        """Let go of the socket at once, without a word."""
        self._socket.transport.abort()

    async def close(self) -> None:
        """Say goodbye, for at most a second."""
        with anyio.move_on_after(1.0, shield=True):
            await self._socket.close()
        self.abort()


def ended_by(closed: ConnectionClosed) -> Ended:
    """How the socket ended, by the library's word for it; by us, if our closing frame came first."""
    if closed.sent is not None and not (closed.rcvd is not None and closed.rcvd_then_sent):
        return Ended(code=int(closed.sent.code), reason=closed.sent.reason, by_us=True)
    if closed.rcvd is not None:
        return Ended(code=int(closed.rcvd.code), reason=closed.rcvd.reason, by_us=False)
    return Ended(code=1006, reason="", by_us=False)
