"""The output of terminals as this process hears it: for each terminal that somebody asked about, a ring.

A ring lives as long as its terminal is followed; what is missed begins a new one. Nothing of it is kept in
the database: another process, or this one after a restart, has rings of its own.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import anyio
import structlog
from anyio.abc import TaskGroup

from app.backends.base import BackendError
from app.backends.terminals import Following, FollowLost, TerminalGone, TerminalServer
from app.domain.ids import TerminalId
from app.domain.ring import Ring
from app.domain.terminals import Terminal
from app.store.bell import Wakeup

log = structlog.get_logger(__name__)

ATTACH_S = 5.0
"""Seconds that a request waits until a terminal is followed."""
ENDED_S = 600.0
"""Seconds for which the output of a terminal that has ended can still be read."""
AGAIN_S = 0.25
AGAIN_MAX_S = 10.0
"""Seconds between two tries to follow a terminal again, doubled up to the most."""


class Watch:
    """One terminal, followed by this process."""

    def __init__(self, terminal_id: TerminalId, handle: str, server: TerminalServer, ring: Ring) -> None:
        self.terminal_id = terminal_id
        self.handle = handle
        self.server = server
        self.ring = ring
        """What it has put out since it was followed without a gap; another one after a gap."""
        self.in_sight = False
        """Whether the ring goes on to now: false from a lost link until the terminal is followed again."""
        self.ended = False
        """Whether the terminal has ended; not whether it is out of sight, for then it is looked for."""
        self.users = 0
        """How many hold it; while there are any it gives way to no other."""
        self.used_at = anyio.current_time()
        self.scope = anyio.CancelScope()
        self._attached = anyio.Event()
        self._listeners: set[Wakeup] = set()

    async def attached(self) -> None:
        """Wait until it is followed, or has ended; a few seconds at most."""
        with anyio.move_on_after(ATTACH_S):
            await self._attached.wait()

    @property
    def is_attached(self) -> bool:
        """Whether it is followed, or has ended."""
        return self._attached.is_set()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep it: while it is held it gives way to no other."""
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1
            self.used_at = anyio.current_time()

    @contextmanager
    def listen(self) -> Iterator[Wakeup]:
        """A wake-up whenever something came, and whenever streams have to look."""
        wakeup = Wakeup()
        self._listeners.add(wakeup)
        try:
            yield wakeup
        finally:
            self._listeners.discard(wakeup)

    def wake(self) -> None:
        """Let every stream look."""
        for wakeup in self._listeners:
            wakeup.set()

    def begin(self, ring: Ring) -> None:
        """It is followed from now on; another ring takes the place of one with a gap."""
        self.ring = ring
        self.in_sight = True
        self._attached.set()
        self.wake()

    def append(self, data: bytes) -> None:
        """It has put this out."""
        self.ring.append(data)
        self.wake()

    def end(self) -> None:
        """It has ended: nothing more will come."""
        self.used_at = anyio.current_time()
        self.ended = True
        self._attached.set()
        self.wake()


class Watches:
    """All that this process follows; of those that nobody holds the one not used for longest gives way."""

    def __init__(
        self,
        tasks: TaskGroup,
        *,
        ring_bytes: int,
        most: int,
    ) -> None:
        self.on_end: Callable[[TerminalId], Awaitable[None]] | None = None
        """Awaited for a terminal that has ended."""
        self._tasks = tasks
        self._ring_bytes = ring_bytes
        self._most = most
        self._watches: dict[TerminalId, Watch] = {}

    def get(self, terminal_id: TerminalId) -> Watch | None:
        """The watch of a terminal, if it has one."""
        watch = self._watches.get(terminal_id)
        if watch is not None:
            watch.used_at = anyio.current_time()
        return watch

    def start(self, terminal: Terminal, server: TerminalServer) -> Watch | None:
        """Follow a terminal, whose earlier output is not known, unless that is done already.

        Null if as many as may be are held.
        """
        return self.get(terminal.id) or self.start_new(terminal.id, terminal.handle, server, fresh=False)

    def start_new(
        self, terminal_id: TerminalId, handle: str, server: TerminalServer, *, fresh: bool = True
    ) -> Watch | None:
        """Follow a terminal that was just made, so that its ring begins with it if it is `fresh`."""
        if not self._make_room():
            return None
        watch = Watch(terminal_id, handle, server, Ring(self._ring_bytes, complete=fresh))
        self._watches[terminal_id] = watch
        self._tasks.start_soon(self._serve, watch, name=f"terminal {terminal_id}")
        return watch

    def wake_all(self) -> None:
        """Let every stream look."""
        for watch in self._watches.values():
            watch.wake()

    def forget_ended(self) -> None:
        """Drop what terminals that ended a while ago have put out."""
        before = anyio.current_time() - ENDED_S
        for watch in list(self._watches.values()):
            if watch.ended and not watch.users and watch.used_at < before:
                del self._watches[watch.terminal_id]

    def _make_room(self) -> bool:
        """Let go of those that nobody holds, the ended first; false if that is not enough."""
        while len(self._watches) >= self._most:
            idle = [watch for watch in self._watches.values() if not watch.users]
            if not idle:
                return False
            last = min(idle, key=lambda watch: (not watch.ended, watch.used_at))
            del self._watches[last.terminal_id]
            last.scope.cancel()
        return True

    async def _serve(self, watch: Watch) -> None:
        """One terminal's task: whatever befalls it reaches no other."""
        with watch.scope:
            await self._follow(watch)
            watch.end()
            try:
                if self.on_end is not None:
                    await self.on_end(watch.terminal_id)
            except Exception:  # the sweeper finds it
                log.exception("terminal_end_not_told", terminal_id=watch.terminal_id)

    async def _follow(self, watch: Watch) -> None:
        """Follow it until it has ended, with a new ring after everything that may have left a gap."""
        ring, pause = watch.ring, AGAIN_S
        while True:
            try:
                async with watch.server.follow(watch.handle) as following:
                    if ring.is_whole:
                        await _begin(ring, following)
                    watch.begin(ring)
                    ring, pause = Ring(self._ring_bytes, complete=False), AGAIN_S
                    try:
                        async for data in following:
                            watch.append(data)
                    except Exception:
                        watch.in_sight = False  # at once: to leave may take a while
                        raise
                return
            except TerminalGone:
                return
            except (FollowLost, BackendError):
                pass
            except Exception:
                log.exception("terminal_watch_crashed", terminal_id=watch.terminal_id)
            await anyio.sleep(pause)
            pause = min(pause * 2, AGAIN_MAX_S)


async def _begin(ring: Ring, following: Following) -> None:
    """Put into the ring of a terminal that was just made what it has shown before it was followed."""
    shown = await following.shown()
    if shown is None:
        ring.miss_beginning()
    else:
        ring.append(shown)
