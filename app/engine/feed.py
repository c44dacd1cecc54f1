"""What followers read: each from its own cursor, replay and live by the same read, as slow as it likes.

A step is what happens on a stream; the edge makes bytes of it. Nothing is kept per follower but a number.
"""

from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import anyio
import structlog

from app.domain.errors import DatabaseUnavailable, InvalidCursor, TooManyStreams, ValidationFailed
from app.domain.events import DELTA_TYPES, EVENT_CLASSES, TERMINAL_TYPES
from app.domain.ids import KeyId, Owner, Seq, SessionId, SessionKey, TurnId
from app.domain.keys import Principal
from app.engine.lifecycle import Lifecycle
from app.store import sessions, turns
from app.store.bell import Wakeup
from app.store.database import Database
from app.store.eventlog import EventLog, Logged

T = TypeVar("T")

log = structlog.get_logger(__name__)

POLL_S = 1.0
"""Seconds between two looks at all followed sessions: covers a lost bell, and notices a lost database."""
OPEN_S = 10.0
"""Seconds for which opening a stream waits for the database."""
OWNER_DEFAULT = frozenset(
    name
    for name in EVENT_CLASSES
    if name.split(".")[0] in ("session", "turn", "permission", "file", "task", "backend")
)
"""What the stream over all of an owner's sessions shows if no types are asked for."""

Reason: TypeAlias = Literal[
    "draining",
    "slow_consumer",
    "session_closed",
    "turn_ended",
    "rebound",
    "auth_expired",
    "superseded",
    "database_unavailable",
    "too_many_streams",
    "rotate",
]
Cursor: TypeAlias = Seq | Literal["start", "now"]
"""Where a stream begins: after that event, before the oldest, or after the newest."""
Check: TypeAlias = Callable[[], Awaitable[Reason | None]]
"""Why the stream may not go on, if so; asked whenever keys or tickets have changed."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The stream is open."""

    session_id: SessionId
    after: Seq
    oldest_seq: Seq
    last_seq: Seq


@dataclass(frozen=True, slots=True)
class Events:
    """Durable events, in order."""

    events: list[Logged]


@dataclass(frozen=True, slots=True)
class Moved:
    """The cursor moved past events that are not shown."""

    seq: Seq


@dataclass(frozen=True, slots=True)
class Synced:
    """Everything up to here has been replayed; from now on live."""

    last_seq: Seq


@dataclass(frozen=True, slots=True)
class Reset:
    """The cursor is not in the log; the stream goes on from `resume_from`."""

    reason: Literal["too_old", "too_new"]
    resume_from: Seq


@dataclass(frozen=True, slots=True)
class Stalled:
    """The database does not answer."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The database answers again."""

    last_seq: Seq


@dataclass(frozen=True, slots=True)
class Closing:
    """The stream ends here."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing happened for a heartbeat's time."""


FeedStep: TypeAlias = Ready | Events | Moved | Synced | Reset | Stalled | Resumed | Closing | Idle


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events are shown."""

    types: frozenset[str] | None = None
    deltas: bool = True
    turn: TurnId | None = None

    @property
    def shows_all(self) -> bool:
        """Whether nothing is left out."""
        return self.types is None and self.deltas and self.turn is None

    def shows(self, event: Logged) -> bool:
        """Whether `event` is shown."""
        if self.turn is not None and event.turn_id != self.turn:
            return False
        if not self.deltas and event.type in DELTA_TYPES:
            return False
        return self.types is None or event.type in self.types

    @classmethod
    def parse(cls, types: str | None, *, deltas: bool = True, turn: TurnId | None = None) -> "Filter":
        """The filter of a comma list of types; `turn.*` is all of a noun.

        Raises:
            ValidationFailed: there is no such type.
        """
        if types is None or not types.strip(", "):
            return cls(deltas=deltas, turn=turn)
        wanted: set[str] = set()
        for pattern in filter(None, (part.strip() for part in types.split(","))):
            found = {
                name
                for name in EVENT_CLASSES
                if name == pattern or (pattern.endswith(".*") and name.startswith(pattern[:-1]))
            }
            if not found:
                raise ValidationFailed(
                    errors=[{"loc": ["query", "types"], "msg": "no such event type", "type": "unknown_type"}]
                )
            wanted |= found
        return cls(types=frozenset(wanted), deltas=deltas, turn=turn)


def parse_cursor(last_event_id: str | None, after: str | None, from_: str | None) -> Cursor:
    """The cursor that a request names: `Last-Event-ID`, else `after`, else `from`, else the start.

    Raises:
        InvalidCursor: it is not a number that could be a cursor.
    """
    text = last_event_id if last_event_id else after
    if text is None:
        return "now" if from_ == "now" else "start"
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:
        raise InvalidCursor
    return Seq(int(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """A stream that may be opened: everything that can be refused has been checked."""

    session: SessionKey
    session_id: SessionId
    after: Seq
    oldest_seq: Seq
    last_seq: Seq
    reset: Reset | None
    moved: bool
    filter: Filter
    is_at_end: bool
    """Nothing will ever come: the turn ended, or the session is closed, and the cursor is past it."""


class Patience:
    """How long opening one stream waits for the database, all its steps together."""

    def __init__(self) -> None:
        self._until = anyio.current_time() + OPEN_S

    async def wait_for(self, look: Callable[[], Awaitable[T]]) -> T:
        """What `look` finds, tried again while the database is away.

        Raises:
            DatabaseUnavailable: it stayed away.
        """
        while True:
            with anyio.CancelScope(deadline=self._until):
                try:
                    return await look()
                except DatabaseUnavailable:
                    await anyio.sleep(0.25)
                    continue
            raise DatabaseUnavailable


class StreamPlace:
    """The place of one stream: given back at its end, or at once if it is never opened."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back: Callable[[], None] | None = give_back

    def give_back(self) -> None:
        """Give the place back, once, however often this is called."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()

    def __enter__(self) -> None:
        """The stream is open."""

    def __exit__(self, *_: object) -> None:
        self.give_back()


class Streams:
    """How many streams are open, for each key and for this process; each bound answers with 429."""

    def __init__(self, *, per_key: int, total: int) -> None:
        self._per_key = per_key
        self._total = total
        self._open: Counter[KeyId | Owner] = Counter()
        self._none = anyio.Event()

    @property
    def open(self) -> int:
        """Streams that are open now."""
        return self._open.total()

    def take(self, caller: Principal) -> "StreamPlace":
        """A place for one more stream, taken from now on until it is given back.

        Raises:
            TooManyStreams: close one first.
        """
        name = caller.key_id or caller.owner
        if self.open >= self._total or self._open[name] >= self._per_key:
            raise TooManyStreams
        self._open[name] += 1
        return StreamPlace(lambda: self._give_back(name))

    def _give_back(self, name: KeyId | Owner) -> None:
        self._open[name] -= 1
        if self._open[name] <= 0:
            del self._open[name]
        if not self._open:
            self._none.set()

    async def all_closed(self) -> None:
        """Wait until no stream is open."""
        while self._open:
            self._none = anyio.Event()
            await self._none.wait()


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
        lifecycle.on_drain.append(database.bell.ring_all)
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
        following = _following(session.key, session_id, cursor, session.oldest_seq, session.last_seq, shown)
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
        following = _following(
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
                if self._lifecycle.draining:
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
                if self._lifecycle.draining:
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


def _following(
    session: SessionKey,
    session_id: SessionId,
    cursor: Cursor,
    oldest: Seq,
    last: Seq,
    shown: Filter,
) -> Callable[..., Following]:
    """A stream from `cursor` on; what is left to say is whether and where its subject has ended."""
    first, reset = Seq(oldest - 1), None
    after = first if cursor == "start" else last if cursor == "now" else cursor
    if after > last:
        reset = Reset("too_new", last)
    elif after < first:
        reset = Reset("too_old", first)
    start = reset.resume_from if reset else after

    def following(*, ended: bool, end: Seq) -> Following:
        return Following(
            session=session,
            session_id=session_id,
            after=start,
            oldest_seq=oldest,
            last_seq=last,
            reset=reset,
            moved=reset is not None or cursor == "now",
            filter=shown,
            is_at_end=ended and reset is None and after >= end,
        )

    return following


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
