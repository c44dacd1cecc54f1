"""A terminal's output as a stream: from a byte of the ring on, as slow as its reader likes."""

import re
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, TypeAlias

import anyio

from app.domain.errors import BackendIsDown, DatabaseUnavailable, InvalidCursor, TooManyStreams
from app.domain.ids import Owner, TerminalId
from app.domain.ring import Ring
from app.domain.terminals import Terminal
from app.engine.feed import Check, Feed
from app.engine.lifecycle import Lifecycle
from app.engine.steps import Closing, Idle
from app.engine.terminals import Terminals
from app.engine.watches import Watch

PAGE_BYTES = 32 * 1024
"""Bytes of output in one frame."""

_CURSOR = re.compile(r"([0-9a-f]{1,32})\.([0-9]{1,18})\Z")


@dataclass(frozen=True, slots=True)
class Position:
    """A byte of a ring."""

    ring: str
    offset: int


Beginning: TypeAlias = Position | Literal["start", "now"]
"""Where a stream begins: at that byte, at the oldest that is kept, or after the newest."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The stream is open; `start` and `end` are the offsets of what the ring holds."""

    terminal_id: TerminalId
    ring: str
    offset: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Bytes:
    """Raw output up to `offset` of the ring."""

    ring: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Restarted:
    """The position is not in the ring: what follows begins at `offset` of this one."""

    reason: Literal["other_ring", "too_old", "too_new"]
    ring: str
    offset: int


TerminalStep: TypeAlias = Opened | Bytes | Restarted | Closing | Idle


def parse_position(last_event_id: str | None, after: str | None, begin: str | None) -> Beginning:
    """Where a stream begins: Last-Event-ID, else `after`, else `from`, else at the oldest byte.

    Raises:
        InvalidCursor: it is none of ours.
    """
    text = last_event_id if last_event_id else after
    if text is None:
        return "now" if begin == "now" else "start"
    found = _CURSOR.match(text)
    if found is None:
        raise InvalidCursor
    return Position(found[1], int(found[2]))


@dataclass(frozen=True, slots=True)
class Tail:
    """A terminal that can be followed, and from where."""

    terminal: Terminal
    watch: Watch
    begin: Beginning
    release: Callable[[], None]
    """To be called once nobody follows it, or nobody will: until then its output is kept."""


class TerminalStreams:
    """Opens and follows streams of output."""

    def __init__(
        self,
        rooms: Terminals,
        feed: Feed,
        lifecycle: Lifecycle,
        *,
        heartbeat_s: float,
        rotate_s: float | None,
    ) -> None:
        self._terminals = rooms
        self._feed = feed
        self._lifecycle = lifecycle
        self._heartbeat_s = heartbeat_s
        self._rotate_s = rotate_s
        lifecycle.on_leave.append(rooms.watches.wake_all)

    async def open(self, owner: Owner, terminal_id: TerminalId, begin: Beginning) -> Tail | None:
        """The terminal, followed; null if it has ended and nothing more can be told.

        Raises:
            TerminalNotFound: it is missing or somebody else's.
            BackendIsDown: it cannot be reached from here.
            TooManyStreams: this replica follows as many terminals as it may.
        """
        terminal = await self._terminals.get(owner, terminal_id)
        watch = self._terminals.watches.get(terminal_id)
        if watch is None:
            if terminal.status == "closed":
                return None
            watch = self._terminals.watches.start(terminal, self._terminals.servers.at(terminal))
            if watch is None:
                raise TooManyStreams
        with ExitStack() as stack:
            stack.enter_context(watch.held())
            await watch.attached()
            if not watch.is_attached:
                raise BackendIsDown(detail="the terminal cannot be followed now")
            if watch.ended and begin in ("now", Position(watch.ring.id, watch.ring.end)):
                return None
            return Tail(terminal, watch, begin, stack.pop_all().close)

    async def follow(self, tail: Tail, check: Check, *, keys_version: int) -> AsyncGenerator[TerminalStep]:
        """Everything on the stream, until it ends; `Closing` is the last step."""
        watch = tail.watch
        started = anyio.current_time()
        with watch.listen() as wakeup:  # listen, then read: nothing falls between
            ring = watch.ring
            offset, restarted = _begin(ring, tail.begin)
            yield Opened(tail.terminal.id, ring.id, offset, ring.base, ring.end)
            if restarted is not None:
                yield restarted
            while True:
                if self._lifecycle.leaving:
                    yield Closing("draining")
                    return
                if self._feed.keys_version != keys_version:
                    try:
                        version = self._feed.keys_version
                        reason = await check()
                    except DatabaseUnavailable:
                        reason = None  # asked again at the next round
                    else:
                        keys_version = version
                    if reason is not None:
                        yield Closing(reason)
                        return
                if watch.ring is not ring:
                    ring, offset = watch.ring, watch.ring.base
                    yield Restarted("other_ring", ring.id, offset)
                if offset < ring.base:
                    offset = ring.base
                    yield Restarted("too_old", ring.id, offset)
                if data := ring.read(offset, PAGE_BYTES):
                    offset += len(data)
                    yield Bytes(ring.id, offset, data)
                    continue
                if watch.ended:
                    yield Closing("terminal_closed")
                    return
                if self._rotate_s is not None and anyio.current_time() - started > self._rotate_s:
                    yield Closing("rotate")
                    return
                with anyio.move_on_after(self._heartbeat_s) as rest:
                    await wakeup.wait()
                if rest.cancelled_caught:
                    yield Idle()


def _begin(ring: Ring, begin: Beginning) -> tuple[int, Restarted | None]:
    if begin == "start":
        return ring.base, None
    if begin == "now":
        return ring.end, None
    if begin.ring != ring.id:
        return ring.base, Restarted("other_ring", ring.id, ring.base)
    if begin.offset < ring.base:
        return ring.base, Restarted("too_old", ring.id, ring.base)
    if begin.offset > ring.end:
        return ring.end, Restarted("too_new", ring.id, ring.end)
    return begin.offset, None
