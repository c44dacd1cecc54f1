"""Server-Sent Events (WHATWG HTML, 9.2): steps of the feed made bytes, and the response that writes them.

A page becomes one write. Frames are `id`, `event`, one `data` line, LF only; control frames have no `id`.
"""

import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import Any

import anyio
import structlog
from sse_starlette.sse import EventSourceResponse
from starlette.types import Receive, Scope, Send

from app.engine.steps import Closing, Events, FeedStep, Idle, Moved, Ready, Reset, Resumed, Stalled, Synced
from app.store.eventlog import Logged

log = structlog.get_logger(__name__)

RETRY_MS = 2000
"""How long an EventSource waits before it opens a stream again."""
RETRY = f"retry: {RETRY_MS}\n\n".encode()
"""The bytes that tell it."""

_PING = b": ping\n\n"


def frames(events: Sequence[Logged], *, ids: bool = True) -> bytes:
    """Durable events on the wire; the replayed frame is byte for byte the live one."""
    if ids:
        return b"".join([event.frame for event in events])
    return "".join(f"event: {e.type}\ndata: {e.data}\n\n" for e in events).encode()


def control(name: str, data: dict[str, Any]) -> bytes:
    """A control frame `stream.<name>`: no `id`, so that a reader's cursor stays where it is."""
    return f"event: stream.{name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def closing(reason: str) -> bytes:
    """The farewell."""
    return control("closing", {"reason": reason})


def encode(step: FeedStep, *, ids: bool = True) -> bytes:
    """The bytes of one step."""
    match step:
        case Events(events=events):
            return frames(events, ids=ids)
        case Idle():
            return _PING
        case Moved(seq=seq):
            return f"id: {seq}\n\n".encode()
        case Ready(session_id=session_id, after=after, oldest_seq=oldest_seq, last_seq=last_seq):
            data = {"session_id": session_id, "after": after, "oldest_seq": oldest_seq, "last_seq": last_seq}
            return RETRY + control("ready", data if ids else {"session_id": None})
        case Synced(last_seq=last_seq):
            return control("synced", {"last_seq": last_seq if ids else None})
        case Stalled():
            return control("stalled", {"reason": "database_unavailable"})
        case Resumed(last_seq=last_seq):
            return control("resumed", {"last_seq": last_seq if ids else None})
        case Closing(reason=reason):
            return closing(reason)
        case Reset():
            raise AssertionError("a reset names its session's snapshot: encode it with `reset`")


def reset(step: Reset, session_id: str) -> bytes:
    """The bytes of a reset."""
    data = {
        "reason": step.reason,
        "resume_from": step.resume_from,
        "snapshot_url": f"/v1/sessions/{session_id}/snapshot",
    }
    return control("reset", data)


async def encoded(steps: AsyncGenerator[FeedStep], session_id: str | None) -> AsyncGenerator[bytes]:
    """The bytes of a whole stream; `session_id` is null on the stream over all sessions, which has no ids."""
    async with aclosing(steps):
        async for step in steps:
            if isinstance(step, Reset):
                yield reset(step, session_id or "")
            else:
                yield encode(step, ids=session_id is not None)


async def refusal(reason: str) -> AsyncGenerator[bytes]:
    """A stream that says why there is none now: an EventSource dies of every status but 200 and 204."""
    yield RETRY + closing(reason)


class EventStream(EventSourceResponse):
    """An event stream that ends with its generator, or when its reader has gone or stopped reading."""

    def __init__(
        self,
        content: AsyncGenerator[bytes],
        *,
        headers: dict[str, str] | None = None,
        send_timeout_s: float = 25.0,
        counted: AbstractContextManager[None] | None = None,
        on_lost: Callable[[], Any] | None = None,
        on_end: Callable[[], Any] | None = None,
    ) -> None:
        """`counted` is held while the stream is open; `on_lost` is awaited if the reader left before the end,
        `on_end` in any case."""
        super().__init__(
            content,
            headers={"Cache-Control": "no-store, no-transform", **(headers or {})},
            sep="\n",
            ping=0,
        )
        self._content = content
        self._send_timeout_s = send_timeout_s
        self._sending_since: float | None = None
        self._counted = counted or nullcontext()
        self._on_lost = on_lost
        self._on_end = on_end
        self._finished = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write until the generator ends. The feed's own farewell ends it at shutdown, no library does."""
        try:
            with self._counted:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._write, send, tasks.cancel_scope)
                    await self._watch_reader(receive)
                    tasks.cancel_scope.cancel()
        finally:
            with anyio.move_on_after(5.0, shield=True):
                if not self._finished and self._on_lost is not None:
                    await self._on_lost()
                if self._on_end is not None:
                    await self._on_end()

    async def _write(self, send: Send, scope: anyio.CancelScope) -> None:
        try:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            async with aclosing(self._content) as chunks:
                async for chunk in chunks:
                    self._sending_since = anyio.current_time()
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    self._sending_since = None
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            self._finished = True
        except Exception:
            log.exception("stream_crashed")
        scope.cancel()

    async def _watch_reader(self, receive: Receive) -> None:
        """Return once the reader has left, or has taken in nothing for as long as one write may last.

        Looks at a write no sooner than it may be late, so that a write that returns at once needs no timer.
        """
        while True:
            since = self._sending_since
            begun = anyio.current_time() if since is None else since
            with anyio.CancelScope(deadline=begun + self._send_timeout_s):
                while (await receive())["type"] != "http.disconnect":
                    pass
                return
            if since is not None and since == self._sending_since:
                log.info("slow_consumer_cut")  # the listening socket's TCP_USER_TIMEOUT closes the connection
                return
