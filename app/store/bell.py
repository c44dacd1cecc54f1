"""Wake-ups without content: who listens for a session reads the log again when the bell rings.

Inside the process a wake-up is a flag, between processes a NOTIFY with sessions' internal ids. The truth is
always what is read afterwards, so a bell too many costs a read, and one too few is covered by a slow poll.
"""

from collections.abc import Callable, Iterable, Iterator, KeysView
from contextlib import contextmanager

import anyio

from app.domain.ids import SessionKey

CHANNEL = "alameda"
"""The NOTIFY channel. Payloads: internal ids joined by commas or `all` (their logs grew), the same after a
`!` (their hosts have something to do), or `keys` (an API key or ticket changed)."""

EVERYTHING = "all"
KEYS = "keys"
WANTED = "!"
MAX_PAYLOAD = 7000
"""Bytes; PostgreSQL refuses 8,000. A longer list of ids says `all`."""


class Wakeup:
    """A flag that rings are kept in until somebody waits; the buffer of one that a bell needs."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        """Wake whoever waits, or the next one to wait."""
        self._event.set()

    async def wait(self) -> None:
        """Return at once if it rang since the last wait, else when it rings."""
        await self._event.wait()
        self._event = anyio.Event()


class Bell:
    """Rings for the listeners of this process, and passes other processes' rings on to them."""

    def __init__(self) -> None:
        self._listeners: dict[SessionKey, set[Wakeup]] = {}
        self._watchers: set[Callable[[SessionKey | None], None]] = set()
        self._key_watchers: set[Callable[[], None]] = set()
        self._hosts: set[Callable[[SessionKey | None], None]] = set()

    @property
    def followed(self) -> KeysView[SessionKey]:
        """The sessions that somebody in this process listens for, as they change."""
        return self._listeners.keys()

    @contextmanager
    def listen(self, session: SessionKey, wakeup: Wakeup | None = None) -> Iterator[Wakeup]:
        """A wake-up for each ring of `session`. Listen first, then read: nothing falls between."""
        wakeup = wakeup or Wakeup()
        self._listeners.setdefault(session, set()).add(wakeup)
        try:
            yield wakeup
        finally:
            listeners = self._listeners[session]
            listeners.discard(wakeup)
            if not listeners:
                del self._listeners[session]

    @contextmanager
    def watch(self, call: Callable[[SessionKey | None], None]) -> Iterator[None]:
        """Call `call` with each session that rings, with null if any may have; it must not wait or raise."""
        self._watchers.add(call)
        try:
            yield
        finally:
            self._watchers.discard(call)

    def watch_keys(self, call: Callable[[], None]) -> None:
        """Call `call` whenever an API key may have changed, as long as the bell lives."""
        self._key_watchers.add(call)

    def watch_wanted(self, call: Callable[[SessionKey | None], None]) -> None:
        """Call `call` with each session whose host has something to do, with null if any may have."""
        self._hosts.add(call)

    def want(self, session: SessionKey | None) -> None:
        """Wake the session's host, if it is here."""
        for call in self._hosts:
            call(session)

    def ring(self, sessions: Iterable[SessionKey]) -> None:
        """Wake this process's listeners of `sessions`."""
        for session in sessions:
            for wakeup in self._listeners.get(session, ()):
                wakeup.set()
            for call in self._watchers:
                call(session)

    def ring_all(self) -> None:
        """Wake every listener of this process: something may have been missed."""
        for listeners in self._listeners.values():
            for wakeup in listeners:
                wakeup.set()
        for call in self._watchers:
            call(None)
        self.want(None)

    def heard(self, payload: str) -> None:
        """Pass a NOTIFY on."""
        if payload == KEYS:
            for call in self._key_watchers:
                call()
        elif payload.startswith(WANTED):
            for part in payload.removeprefix(WANTED).split(","):
                self.want(SessionKey(int(part)) if part.isdecimal() else None)
        elif payload == EVERYTHING:
            self.ring_all()
        else:
            self.ring(SessionKey(int(part)) for part in payload.split(",") if part.isdecimal())


def payload(sessions: Iterable[SessionKey]) -> str:
    """The NOTIFY that tells other processes of `sessions`."""
    text = ",".join(map(str, sessions))
    return text if len(text) <= MAX_PAYLOAD else EVERYTHING
