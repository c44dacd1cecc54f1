"""The response that writes an event stream: how it ends, and what a reader that stops reading costs."""

from collections.abc import AsyncGenerator
from typing import Any

import anyio
from starlette.types import Message

from app.api.sse import EventStream

PATIENCE = 20.0
"""Seconds after which a test that waits has failed."""


class Reader:
    """A reader over ASGI that takes in what it is sent only as long as `reads` is set."""

    def __init__(self) -> None:
        self.reads = anyio.Event()
        self.reads.set()
        self.left = anyio.Event()
        self.got: list[Message] = []
        self.sent_more = False

    async def receive(self) -> Message:
        """The request's empty body, then that it has left."""
        if not self.sent_more:
            self.sent_more = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take in a message."""
        await self.reads.wait()
        self.got.append(message)

    async def read(self, stream: EventStream) -> None:
        """Read until the stream ends."""
        with anyio.fail_after(PATIENCE):
            await stream({"type": "http", "method": "GET"}, self.receive, self.send)

    @property
    def body(self) -> bytes:
        """What came."""
        return b"".join(message.get("body", b"") for message in self.got)


class Ends:
    """What was told of a stream's end."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def lost(self) -> None:
        """The reader left before the end."""
        self.calls.append("lost")

    async def end(self) -> None:
        """The stream is over."""
        self.calls.append("end")

    def stream(self, content: AsyncGenerator[bytes], **more: Any) -> EventStream:
        """A stream that tells us."""
        return EventStream(content, on_lost=self.lost, on_end=self.end, **more)


async def test_stream_ends_with_its_generator() -> None:
    """Each chunk is one message; the reader was there to the end."""
    ends, reader = Ends(), Reader()

    async def chunks() -> AsyncGenerator[bytes]:
        yield b"one\n\n"
        yield b"two\n\n"

    await reader.read(ends.stream(chunks()))
    assert reader.body == b"one\n\ntwo\n\n"
    assert [message.get("more_body") for message in reader.got] == [None, True, True, False]
    assert ends.calls == ["end"]


async def test_reader_that_stops_reading_is_cut() -> None:
    """Once one write has lasted too long, however long it was open before; its generator is closed."""
    ends, reader = Ends(), Reader()
    closed = anyio.Event()

    async def chunks() -> AsyncGenerator[bytes]:
        try:
            for _ in range(5):
                await anyio.sleep(0.1)
                yield b"read\n\n"
            reader.reads = anyio.Event()
            yield b"not read\n\n"
            raise AssertionError("the write before this one never returned")
        finally:
            closed.set()

    await reader.read(ends.stream(chunks(), send_timeout_s=0.2))
    assert closed.is_set()
    assert reader.body == b"read\n\n" * 5
    assert ends.calls == ["lost", "end"]


async def test_slow_reader_is_not_cut() -> None:
    """As long as no single write lasts too long, although all of them together do."""
    ends, reader = Ends(), Reader()

    async def slowly(message: Message) -> None:
        await anyio.sleep(0.15)
        await Reader.send(reader, message)

    async def chunks() -> AsyncGenerator[bytes]:
        for _ in range(6):
            yield b"read\n\n"

    with anyio.fail_after(PATIENCE):
        stream = ends.stream(chunks(), send_timeout_s=0.4)
        await stream({"type": "http", "method": "GET"}, reader.receive, slowly)
    assert reader.body == b"read\n\n" * 6
    assert ends.calls == ["end"]


async def test_reader_that_leaves_ends_the_stream() -> None:
    """While the generator waits."""
    ends, reader = Ends(), Reader()
    closed = anyio.Event()

    async def chunks() -> AsyncGenerator[bytes]:
        try:
            yield b"one\n\n"
            reader.left.set()
            await anyio.sleep_forever()
        finally:
            closed.set()

    await reader.read(ends.stream(chunks()))
    assert closed.is_set()
    assert ends.calls == ["lost", "end"]


async def test_generator_that_fails_ends_only_its_stream() -> None:
    """It is logged; no error reaches the server."""
    ends, reader = Ends(), Reader()

    async def chunks() -> AsyncGenerator[bytes]:
        yield b"one\n\n"
        raise ZeroDivisionError

    await reader.read(ends.stream(chunks()))
    assert reader.body == b"one\n\n"
    assert ends.calls == ["lost", "end"]
