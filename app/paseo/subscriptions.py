"""Who follows which agent, and what becomes of a reader that is too slow.

The one reader of the socket serves everybody and never waits. A subscription's buffer has a bound: there it
is emptied and closed with `Lagged`, and its reader resumes from the agent's timeline.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

import anyio

from app.paseo.errors import Lagged, LinkLost, PaseoError
from app.paseo.frames import ServerInfo, StreamFrame
from app.paseo.snapshots import Agent

T = TypeVar("T")

MAX_NOTES = 10_000
MAX_BYTES = 32 * 1024 * 1024
"""A subscription's bounds, whichever is met first; bytes as on the wire. One note alone is always taken."""


class Mailbox(Generic[T]):
    """A bounded buffer with one reader and writers that never wait."""

    def __init__(self, max_notes: int = MAX_NOTES, max_bytes: int = MAX_BYTES) -> None:
        self._notes: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._max_notes = max_notes
        self._max_bytes = max_bytes
        self._is_closed = False
        self._error: PaseoError | None = None
        self._arrived = anyio.Event()

    def put(self, note: T, size: int = 0) -> None:
        """Add a note, or close the box as `Lagged`, empty, if it is full. Nothing once it is closed."""
        if self._is_closed:
            return
        if self._notes and (len(self._notes) >= self._max_notes or self._bytes + size > self._max_bytes):
            error = Lagged(f"{len(self._notes)} notes of {self._bytes} bytes were not read in time")
            self._notes.clear()
            self.close(error)
            return
        self._notes.append((note, size))
        self._bytes += size
        self._arrived.set()

    def close(self, error: PaseoError | None = None) -> None:
        """Nothing more comes. What is in the box can still be read; then comes `error`, or the end."""
        if not self._is_closed:
            self._is_closed, self._error = True, error
            self._arrived.set()

    async def receive(self) -> T:
        """The next note.

        Raises:
            Lagged: it was read too slowly.
            anyio.EndOfStream: the client was closed, or the box was.
        """
        await self.arrived()
        if not self._notes:
            self._check()
        note, size = self._notes.popleft()
        self._bytes -= size
        return note

    async def arrived(self) -> None:
        """Wait until there is something to take, or the end."""
        while not self._notes and not self._is_closed:
            self._arrived = anyio.Event()
            await self._arrived.wait()

    def drain(self) -> list[T]:
        """All notes that are there, without waiting. Raises as `receive` does, if nothing more can come."""
        if not self._notes:
            self._check()
            return []
        notes = [note for note, _ in self._notes]
        self._notes.clear()
        self._bytes = 0
        return notes

    def _check(self) -> None:
        if self._is_closed:
            raise self._error or anyio.EndOfStream

    def __aiter__(self) -> "Mailbox[T]":
        return self

    async def __anext__(self) -> T:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentChanged:
    """The agent as it now is; the same may be told again, and an older `updated_at` after a newer."""

    agent: Agent


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRemoved:
    """The agent was deleted. Not told for every deletion by others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkDown:
    """What the daemon says from here on until `LinkUp` is never told: look, then read the timeline."""

    lost: LinkLost


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkUp:
    """The link is there again, changes are told again, and requests can be sent."""

    server: ServerInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameDropped:
    """A frame of this agent, or of nobody knows whom, could not be read; its row may be in the timeline."""

    reason: str


Note: TypeAlias = StreamFrame | AgentChanged | AgentRemoved | LinkDown | LinkUp | FrameDropped
Subscription: TypeAlias = Mailbox[Note]


class Subscriptions:
    """The subscriptions of one client, by agent."""

    def __init__(self) -> None:
        self._boxes: dict[str, list[Subscription]] = {}
        self._is_closed = False

    @contextmanager
    def open(self, agent_id: str, max_notes: int, max_bytes: int) -> Iterator[Subscription]:
        """Everything about one agent from now on."""
        box: Subscription = Mailbox(max_notes, max_bytes)
        if self._is_closed:
            box.close()
        self._boxes.setdefault(agent_id, []).append(box)
        try:
            yield box
        finally:
            self._boxes[agent_id].remove(box)
            if not self._boxes[agent_id]:
                del self._boxes[agent_id]

    def has(self, agent_id: str) -> bool:
        """Whether anybody follows this agent; what nobody follows need not be read."""
        return agent_id in self._boxes

    def tell(self, agent_id: str, note: Note, size: int = 0) -> None:
        """Tell the followers of one agent."""
        for box in self._boxes.get(agent_id, ()):
            box.put(note, size)

    def tell_all(self, note: Note) -> None:
        """Tell every follower."""
        self._each(lambda box: box.put(note))

    def close(self) -> None:
        """The client is closed: readers come to the end of what they have."""
        self._is_closed = True
        self._each(lambda box: box.close())

    def _each(self, do: Callable[[Subscription], None]) -> None:
        for boxes in self._boxes.values():
            for box in boxes:
                do(box)
