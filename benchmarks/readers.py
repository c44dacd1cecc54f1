"""Readers of event streams: plain sockets in one thread, which count, and parse only what is asked for."""

import re
import selectors
import socket
import time
from collections.abc import Iterable
from typing import Self

from benchmarks.workload import MARK, STAMP_DIGITS, SYNCED

PATIENCE_S = 60.0
"""Seconds without the end of a measurement after which the run fails."""

_STAMP = re.compile(rb"%b(\d{%d})" % (MARK.encode(), STAMP_DIGITS))
_SHORT = 256
"""Bytes below which a chunk may be a comment."""
_KEEP = STAMP_DIGITS + len(SYNCED)


class _Reader:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.tail = b""
        self.is_synced = False


class Readers:
    """Open streams, and what came over them."""

    def __init__(self, port: int, key: str | None, *, stamps: bool = False) -> None:
        """`stamps`: take the moment of receipt of every event, and with it its age."""
        self.events = 0
        self.pings = 0
        self.reads = 0
        self.bytes = 0
        self.ages_ms: list[float] = []
        self._port = port
        self._authorization = f"Authorization: Bearer {key}\r\n" if key is not None else ""
        self._stamps = stamps
        self._selector = selectors.DefaultSelector()
        self._readers: list[_Reader] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, paths: Iterable[str]) -> None:
        """Open a stream for each path, and wait until all have caught up with their logs."""
        for path in paths:
            connection = socket.create_connection(("127.0.0.1", self._port))
            connection.sendall(
                f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{self._authorization}\r\n".encode()
            )
            reader = _Reader(connection)
            self._readers.append(reader)
            self._selector.register(connection, selectors.EVENT_READ, reader)
        until = time.monotonic() + PATIENCE_S
        while not all(reader.is_synced for reader in self._readers):
            self._read(until)

    def read_events(self, total: int) -> None:
        """Read until so many events have come in all."""
        until = time.monotonic() + PATIENCE_S
        while self.events < total:
            self._read(until)

    def read_for(self, seconds: float) -> None:
        """Read what comes in that time."""
        end = time.monotonic() + seconds
        while (rest := end - time.monotonic()) > 0:
            self._read(None, rest)

    def close(self) -> None:
        """Leave all streams."""
        for reader in self._readers:
            self._selector.unregister(reader.connection)
            reader.connection.close()
        self._readers.clear()

    def _read(self, until: float | None, wait_s: float = 1.0) -> None:
        if until is not None and time.monotonic() > until:
            raise TimeoutError(f"only {self.events} events came")
        for key, _ in self._selector.select(wait_s):
            reader: _Reader = key.data
            chunk = reader.connection.recv(256 * 1024)
            now = time.monotonic_ns()
            if not chunk:
                raise ConnectionError(f"a stream ended after {self.events} events")
            self.reads += 1
            self.bytes += len(chunk)
            self.events += chunk.count(MARK.encode())
            if not reader.is_synced:
                self._look_for_sync(reader, chunk)
            elif self._stamps:
                self._take_ages(reader, chunk, now)
            else:
                self.pings += len(chunk) < _SHORT and chunk.count(b": ping")

    def _look_for_sync(self, reader: _Reader, chunk: bytes) -> None:
        data = reader.tail + chunk
        if b"HTTP/1.1 200" not in data and data.startswith(b"HTTP/1.1 ") and len(data) > _KEEP:
            raise ConnectionError(data.decode(errors="replace"))
        reader.is_synced = SYNCED in data
        reader.tail = b"" if reader.is_synced else (data[:12] + data[12:][-_KEEP:])

    def _take_ages(self, reader: _Reader, chunk: bytes, now: int) -> None:
        data, end = reader.tail + chunk, 0
        for match in _STAMP.finditer(data):
            self.ages_ms.append((now - int(match[1])) / 1e6)
            end = match.end()
        reader.tail = data[max(end, len(data) - STAMP_DIGITS) :]
