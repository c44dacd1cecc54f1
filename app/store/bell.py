"""Wake-ups without content: who listens for a session reads the log again when the bell rings.

Inside the process a wake-up is a flag, between processes a NOTIFY with sessions' internal ids and how far
their logs reach. The truth is always what is read afterwards: a bell too many costs a read, one too few is
covered by a slow poll.

The bell also knows how far the logs reach that somebody here follows, so that whoever has read to a log's
`head` need not ask the database. That is safe because whatever goes past a known head rings. NOTIFYs come in
the order of commits, so they and the poll may say where a head is; the answers of this process's own commits
come in any order, so they only move a head that is known. Any ring without a number makes it unknown again.
"""

from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping
from contextlib import contextmanager

import anyio

from app.domain.ids import Seq, SessionKey

CHANNEL = "alameda"
"""The NOTIFY channel. Payloads: internal ids joined by commas or `all` (something changed; `id:last` where a
log grew to there), the same without numbers after a `!` (their hosts have something to do), `free` (a session
with something to do was handed back), or `keys` (an API key or ticket changed)."""

EVERYTHING = "all"
KEYS = "keys"
FREE = "free"
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
        self._takers: set[Callable[[], None]] = set()
        self._heads: dict[SessionKey, Seq] = {}
        self.forgotten = 0
        """Grows whenever a head becomes unknown: what was asked before that is too old to tell one."""

    @property
    def followed(self) -> KeysView[SessionKey]:
        """The sessions that somebody in this process listens for, as they change."""
        return self._listeners.keys()

    @contextmanager
    def listen(self, session: SessionKey) -> Iterator[Wakeup]:
        """A wake-up for each ring of `session`. Listen first, then read: nothing falls between."""
        wakeup = Wakeup()
        self._listeners.setdefault(session, set()).add(wakeup)
        try:
            yield wakeup
        finally:
            listeners = self._listeners[session]
            listeners.discard(wakeup)
            if not listeners:
                del self._listeners[session]
                self._forget(session)

    def head(self, session: SessionKey) -> Seq | None:
        """How far the log of a followed session reaches; null if that is not known."""
        return self._heads.get(session)

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

    def watch_free(self, call: Callable[[], None]) -> None:
        """Call `call` whenever a process has handed back a session that somebody should take."""
        self._takers.add(call)

    def want(self, session: SessionKey | None) -> None:
        """Wake the session's host, if it is here."""
        for call in self._hosts:
            call(session)

    def ring(self, sessions: Iterable[SessionKey]) -> None:
        """Wake this process's listeners of `sessions`: something changed, and their logs may have grown."""
        for session in sessions:
            self._forget(session)
            self._wake(session)

    def grew(self, lasts: Mapping[SessionKey, Seq], *, tells_heads: bool) -> None:
        """Wake the listeners of logs that have grown to there, unless they know; 0 says as much as `ring`.

        `tells_heads`: these numbers are as new as everything that was heard before.
        """
        for session, last in lasts.items():
            if not last:
                self.ring([session])
            elif self._learn(session, last, tells_heads):
                self._wake(session)

    def appended(self, lasts: Mapping[SessionKey, Seq]) -> None:
        """The same for what the appender of this process has committed, whose echo wakes nobody."""
        for session, last in lasts.items():
            if not last:
                self.ring([session])
            else:
                self._learn(session, last, False)
                self._wake(session)

    def _learn(self, session: SessionKey, last: Seq, tells_head: bool) -> bool:
        """Move a head forward; false if it is known to be there already."""
        head = self._heads.get(session)
        if head is not None and head >= last:
            return False
        if head is not None or (tells_head and session in self._listeners):
            self._heads[session] = last
        return True

    def _forget(self, session: SessionKey) -> None:
        self.forgotten += 1
        self._heads.pop(session, None)

    def _wake(self, session: SessionKey) -> None:
        for wakeup in self._listeners.get(session, ()):
            wakeup.set()
        for call in self._watchers:
            call(session)

    def ring_all(self) -> None:
        """Wake every listener of this process: something may have been missed."""
        self.forgotten += 1
        self._heads.clear()
        self.wake_all()
        self.want(None)

    def wake_all(self) -> None:
        """Wake every listener of this process for something that is in no log."""
        for listeners in self._listeners.values():
            for wakeup in listeners:
                wakeup.set()
        for call in self._watchers:
            call(None)

    def heard(self, payload: str, *, is_echo: bool = False) -> None:
        """Pass a NOTIFY on.

        `is_echo`: our own appender's. It may come before the answer, when what it tells of is not in memory
        yet, so it wakes nobody and only says where the heads are.
        """
        if is_echo:
            for session, last in _lasts(payload).items():
                self._learn(session, last, True)
        elif payload == KEYS:
            for call in self._key_watchers:
                call()
        elif payload == FREE:
            for call in self._takers:
                call()
        elif payload.startswith(WANTED):
            for part in payload.removeprefix(WANTED).split(","):
                self.want(SessionKey(int(part)) if part.isdecimal() else None)
        elif payload == EVERYTHING:
            self.ring_all()
        else:
            self.grew(_lasts(payload), tells_heads=True)


def payload(sessions: Iterable[SessionKey]) -> str:
    """The NOTIFY that tells other processes of `sessions`."""
    return _bounded(map(str, sessions))


def grown(lasts: Mapping[SessionKey, Seq]) -> str:
    """The NOTIFY that tells other processes how far logs reach by now; 0 where that is not known."""
    return _bounded(f"{session}:{last}" if last else str(session) for session, last in sorted(lasts.items()))


def _lasts(payload: str) -> dict[SessionKey, Seq]:
    parts = (part.partition(":") for part in payload.split(","))
    return {
        SessionKey(int(key)): Seq(int(last) if last.isdecimal() else 0)
        for key, _, last in parts
        if key.isdecimal()
    }


def _bounded(parts: Iterable[str]) -> str:
    text = ",".join(parts)
    return text if len(text) <= MAX_PAYLOAD else EVERYTHING
