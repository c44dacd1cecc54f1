"""The protocol: bounds on a request's head, before there is a request that the edge could look at."""

import asyncio
import socket

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 * 1024
"""Bytes of a request's head that are kept while it has not ended; the exact limit is the middleware's."""
HEAD_S = 30.0
"""Seconds in which a connection has to send a request's head."""

TARGET = "request_target"
"""Where `EdgeProtocol` leaves, in the scope's state, a request target that is more than a path."""


class EdgeProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with bounds on a request's head: `uvicorn.Config(http=EdgeProtocol)`.

    By itself it waits for ever for a head, keeps any amount of it, and hides a host that stands in the
    request target (RFC 9112, 3.2.2) from the application.
    """

    head_s = HEAD_S

    _head = 0
    _in_head = True
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Begin to wait for a first request."""
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            # asyncio does it only for sockets made with IPPROTO_TCP; without it a second write waits 40 ms.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; cut the connection if a head grows out of bounds."""
        was_in_head = self._in_head
        super().data_received(data)
        if was_in_head and self._in_head and not self.transport.is_closing():
            self._head += len(data)
            if self._head > HEAD_BYTES:
                self.send_400_response("Request header too large.")

    def on_message_begin(self) -> None:
        """A request's first byte is here; the rest of its head has to follow."""
        super().on_message_begin()
        self._in_head, self._head = True, 0
        self._await_head()

    def on_headers_complete(self) -> None:
        """A request's head is whole."""
        self._stop_waiting()
        self._in_head = False
        if not self.url.startswith(b"/"):
            self.scope["state"][TARGET] = self.url
        super().on_headers_complete()

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()
