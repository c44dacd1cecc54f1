"""What followers read: each from its own cursor, replay and live by the same read, as slow as it likes.

A step is what happens on a stream; the edge makes bytes of it. Nothing is kept per follower but a number.
"""

from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeAlias

import anyio
import structlog

from app.domain.errors import DatabaseUnavailable
from app.domain.events import TERMINAL_TYPES
from app.domain.ids import Owner, Seq, SessionId, SessionKey, TurnId
from app.engine.cursors import Cursor, Filter, Following, following_from
from app.engine.lifecycle import Lifecycle
from app.engine.steps import Closing, Events, FeedStep, Idle, Moved, Ready, Reason, Resumed, Stalled, Synced
from app.store import sessions, turns
from app.store.bell import Wakeup
from app.store.database import Database
from app.store.eventlog import EventLog, Logged

log = structlog.get_logger(__name__)

POLL_S = 1.0
"""Seconds between two looks at all followed sessions: covers a lost bell, and notices a lost database."""

Check: TypeAlias = Callable[[], Awaitable[Reason | None]]
"""Why the stream may not go on, if so; asked whenever keys or tickets have changed."""


class Feed:
    """Opens and follows streams."""

    def __init__(
        self,
        database: Database,
        events: EventLog,
        lifecycle: Lifecycle,
        *,
        heartbeat_s: float,
        rotate_s: float | None,
    ) -> None:
        self._database = database
        self._events = events
        self._lifecycle = lifecycle
        self._heartbeat_s = heartbeat_s
        self._rotate_s = rotate_s
        self._outage = False
        self._gone: set[SessionKey] = set()
        self._keys_version = 0
        self._resting: OrderedDict[Wakeup, float] = OrderedDict()
        """Who waits for the bell, and when its heartbeat is due; who began to wait first stands first."""
        events.on_stall.append(lambda _: database.bell.ring_all())
        lifecycle.on_leave.append(database.bell.ring_all)
        database.bell.watch_keys(self._keys_changed)

    @property
    def keys_version(self) -> int:
        """Grows whenever an API key or a ticket may have changed."""
        return self._keys_version

    def _keys_changed(self) -> None:
        self._keys_version += 1
        self._database.bell.wake_all()

    async def run(self) -> None:
        """Look at all followed sessions every now and then, and let silent streams beat, until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._beat)
            await self._poll()

    async def _beat(self) -> None:
        """One timer for all streams: as they all rest equally long, only the first has to be looked at."""
        due = anyio.current_time() + self._heartbeat_s
        while True:
            await anyio.sleep_until(due)
            due = anyio.current_time() + self._heartbeat_s
            while self._resting:
                wakeup, at = self._resting.popitem(last=False)
                if at > anyio.current_time():
                    self._resting[wakeup] = due = at
                    self._resting.move_to_end(wakeup, last=False)
                    break
                wakeup.set()

    async def _poll(self) -> None:
        bell = self._database.bell
        while True:
            await anyio.sleep(POLL_S)
            followed, forgotten = list(bell.followed), bell.forgotten
            try:
                async with self._database.begin() as db:
                    found = await sessions.positions(db, followed)
            except DatabaseUnavailable:
                self._set_outage(True)
                continue
            self._set_outage(False)
            bell.grew(found, tells_heads=bell.forgotten == forgotten)
            self._gone = {key for key in followed if key not in found}
            if self._gone:
                bell.ring(self._gone)
            self._events.forget_unfollowed()

    def _set_outage(self, outage: bool) -> None:
        if outage != self._outage:
            self._outage = outage
            self._keys_version += not outage  # a revocation may have been missed
            self._database.bell.ring_all()

    async def open_session(
        self,
        owner: Owner,
        session_id: SessionId,
        cursor: Cursor,
        shown: Filter,
    ) -> Following:
        """A stream of a session's log from `cursor` on.

        Raises:
            SessionNotFound, DatabaseUnavailable: it cannot be opened.
        """
        async with self._database.begin() as db:
            session = await sessions.get(db, owner, session_id)
        following = following_from(
            session.key, session_id, cursor, session.oldest_seq, session.last_seq, shown
        )
        return following(ended=session.status == "closed", end=session.last_seq)

    async def open_turn(self, owner: Owner, turn_id: TurnId, cursor: Cursor, shown: Filter) -> Following:
        """A stream of one turn's events, from its first on.

        Raises:
            TurnNotFound, DatabaseUnavailable: it cannot be opened.
        """
        async with self._database.begin() as db:
            turn = await turns.get(db, owner, turn_id)
            session = await sessions.get(db, owner, turn.session_id)
        start = Seq(turn.first_seq - 1)
        if cursor == "start":
            at: Cursor = Seq(max(start, session.oldest_seq - 1))
        else:
            at = start if cursor != "now" and cursor < start else cursor
        following = following_from(
            session.key, session.session_id, at, session.oldest_seq, session.last_seq, shown
        )
        return following(ended=turn.is_ended, end=turn.last_seq or session.last_seq)

    async def follow(
        self, following: Following, check: Check, *, keys_version: int, rotates: bool = True
    ) -> AsyncGenerator[FeedStep]:
        """Everything that happens on the stream, until it ends; `Closing` is the last step.

        `keys_version` was read before the caller was recognised: what changed since is looked at.
        """
        session, after, shown = following.session, following.after, following.filter
        started = anyio.current_time()
        synced = stalled = was_closed = False
        with self._database.bell.listen(session) as wakeup:  # listen, then read: nothing falls between
            yield Ready(following.session_id, after, following.oldest_seq, following.last_seq)
            if following.reset is not None:
                yield following.reset
            if following.moved:
                yield Moved(after)
            while True:
                if self._lifecycle.leaving:
                    yield Closing("draining")
                    return
                try:
                    if self._keys_version != keys_version:
                        keys_version = self._keys_version
                        reason = await check()
                        if reason is not None:
                            yield Closing(reason)
                            return
                    page = [] if self._is_out else await self._events.read(session, after=after)
                    if stalled and not self._is_out:
                        stalled = False
                        yield Resumed(await self._last_seq(session))
                except DatabaseUnavailable:
                    self._set_outage(True)
                    page = []
                if self._is_out and not stalled:
                    stalled = True
                    yield Stalled()
                if page:
                    page, rebound = _before_rebinding(page, following)
                    visible = page if shown.shows_all else [event for event in page if shown.shows(event)]
                    if page:
                        after = page[-1].seq
                        was_closed = page[-1].type == "session.closed"
                    if visible:
                        yield Events(visible)
                    if page and (not visible or visible[-1].seq != after):
                        yield Moved(after)
                    if rebound:
                        yield Closing("rebound")
                        return
                    if shown.turn is not None and _ends(page, shown.turn):
                        yield Closing("turn_ended")
                        return
                    continue
                if not self._is_out:
                    if not synced:
                        synced = True
                        yield Synced(after)
                    if was_closed or session in self._gone:
                        yield Closing("session_closed")
                        return
                if rotates and self._rotate_s is not None and anyio.current_time() - started > self._rotate_s:
                    yield Closing("rotate")
                    return
                if not await self._rest(wakeup):
                    yield Idle()

    @property
    def _is_out(self) -> bool:
        return self._outage or self._events.stalled

    async def _rest(self, wakeup: Wakeup) -> bool:
        """Wait for the bell; false if a heartbeat is due."""
        self._resting[wakeup] = anyio.current_time() + self._heartbeat_s
        try:
            await wakeup.wait()
        finally:
            was_resting = self._resting.pop(wakeup, None) is not None
        return was_resting

    async def _last_seq(self, session: SessionKey) -> Seq:
        async with self._database.begin() as db:
            return (await sessions.positions(db, [session])).get(session, Seq(0))

    async def follow_owner(
        self, owner: Owner, project_id: str | None, shown: Filter, check: Check, keys_version: int
    ) -> AsyncGenerator[FeedStep]:
        """What happens from now on in all of the owner's sessions: live only."""
        dirty: set[SessionKey] = set()
        wakeup = Wakeup()
        everything = True

        def rang(session: SessionKey | None) -> None:
            nonlocal everything
            everything = everything or session is None
            if session is not None:
                dirty.add(session)
            wakeup.set()

        at: dict[SessionKey, Seq] | None = None
        foreign: set[SessionKey] = set()
        stalled = False
        with self._database.bell.watch(rang):
            while True:
                if self._lifecycle.leaving:
                    yield Closing("draining")
                    return
                try:
                    if self._keys_version != keys_version:
                        keys_version = self._keys_version
                        reason = await check()
                        if reason is not None:
                            yield Closing(reason)
                            return
                    if everything:
                        everything = False
                        async with self._database.begin() as db:
                            now = await sessions.last_seqs(db, owner, project_id)
                        if at is None:
                            at = now
                            yield Ready(SessionId(""), Seq(0), Seq(0), Seq(0))
                            yield Synced(Seq(0))
                        dirty.update(key for key, seq in now.items() if at.get(key) != seq)
                    if stalled:
                        stalled = False
                        yield Resumed(Seq(0))
                    assert at is not None
                    for session in [key for key in dirty if key not in foreign]:
                        dirty.discard(session)
                        if session not in at:
                            async with self._database.begin() as db:
                                if not await sessions.belongs(db, owner, project_id, session):
                                    foreign.add(session)
                                    continue
                            at[session] = Seq(0)
                        while page := await self._events.read(session, after=at[session]):
                            at[session] = page[-1].seq
                            if visible := [event for event in page if shown.shows(event)]:
                                yield Events(visible)
                    dirty.clear()
                except DatabaseUnavailable:
                    everything = True
                    if not stalled:
                        stalled = True
                        yield Stalled()
                    await anyio.sleep(0.5)
                    continue
                if not await self._rest(wakeup):
                    yield Idle()


def _ends(page: list[Logged], turn: TurnId) -> bool:
    return any(event.turn_id == turn and event.type in TERMINAL_TYPES for event in page)


def _before_rebinding(page: list[Logged], following: Following) -> tuple[list[Logged], bool]:
    """The part of the page before the session got another name, and whether that was not all of it."""
    for index, event in enumerate(page):
        if (
            event.type == "session.opened"
            and event.seq > following.last_seq
            and '"how":"rebound"' in event.body
            and f'"session_id":"{following.session_id}"' not in event.body
        ):
            return page[:index], True
    return page, False
