"""The event log: per session 1, 2, 3 … without gap or double, committed before anybody sees it.

Numbers come from the session's row under its lock. A host's events pass one appender, which commits whatever
has gathered for many sessions as one batch, fenced by each session's host generation. Live and replay are the
same `read`; the newest events of followed sessions are also kept in memory, behind that same `read`.
"""

import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import anyio
import asyncpg
import msgspec
import structlog
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain.errors import DatabaseUnavailable, SessionNotFound
from app.domain.events import Event
from app.domain.ids import Seq, SessionId, SessionKey, TurnId
from app.domain.text import timestamp
from app.domain.turns import Turn
from app.store.bell import CHANNEL, EVERYTHING, MAX_PAYLOAD
from app.store.database import Database, ring_after_commit
from app.store.tables import EventRow, SessionRow

log = structlog.get_logger(__name__)

PAGE = 500
"""Events that one read returns at most."""
MAX_BATCH = 2_000
"""Events that one commit takes at most."""
TAIL_BYTES = 3 * 1024 * 1024
TAILS_BYTES = 256 * 1024 * 1024
"""Bounds of what is kept in memory of one followed session, and of all together; the rest is read from the
database. One holds a batch of the bound's size with some room, so that a burst is encoded once for all its
followers; all together hold about 80 such, and what was not written to for longest leaves first."""
EVENT_BYTES = 400
"""What an event takes in memory beside its text and its frame."""

_encoder = msgspec.json.Encoder()


class Logged(msgspec.Struct, eq=False, gc=False):
    """A committed event. `body` is its `data:` line after `{"seq":N,`."""

    seq: Seq
    type: str
    turn_id: TurnId | None
    body: str
    _frame: bytes = b""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Logged) and (self.seq, self.type, self.turn_id, self.body) == (
            other.seq,
            other.type,
            other.turn_id,
            other.body,
        )

    @property
    def data(self) -> str:
        """The JSON text of the whole event: the one place where number and text are joined."""
        return f'{{"seq":{self.seq},{self.body}'

    @property
    def frame(self) -> bytes:
        """The event as a stream tells it, made once for all who follow."""
        if not self._frame:
            self._frame = f"id: {self.seq}\nevent: {self.type}\ndata: {self.data}\n\n".encode()
        return self._frame

    @property
    def weight(self) -> int:
        """About how many bytes it takes in memory, framed."""
        return 2 * len(self.body) + EVENT_BYTES

    @property
    def at(self) -> datetime:
        """When it was written, by the clock of the process that wrote it."""
        return datetime.fromisoformat(msgspec.json.decode("{" + self.body, type=_At).at)


class Draft(msgspec.Struct, frozen=True, gc=False):
    """An encoded event that has no number yet."""

    type: str
    turn_id: TurnId | None
    body: str


class _At(msgspec.Struct):
    at: str


class _Envelope(msgspec.Struct, frozen=True, gc=False):
    type: str
    session_id: str
    turn_id: str | None
    at: str
    data: Any


def draft(session_id: SessionId, turn_id: TurnId | None, event: Event) -> Draft:
    """Encode `event`. The text is ASCII where a line could be split by a careless reader."""
    envelope = _Envelope(event.type, session_id, turn_id, _now(), event)
    body = _encoder.encode(envelope).decode()[1:]
    if not body.isascii():
        for character, escaped in (("\u2028", "\\u2028"), ("\u2029", "\\u2029"), ("\x85", "\\u0085")):
            body = body.replace(character, escaped)
    return Draft(event.type, turn_id, body)


def _now() -> str:
    """The `timestamp` of this moment."""
    milliseconds = time.time_ns() // 1_000_000
    return f"{_second(milliseconds // 1000)}{milliseconds % 1000:03d}Z"


@lru_cache(maxsize=1)
def _second(second: int) -> str:
    """Its part before the milliseconds, worded once a second."""
    return timestamp(datetime.fromtimestamp(second, UTC)).removesuffix("000Z")


Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
"""What a batch is written on: handed on to the functions of this room, and used for nothing else."""

Alongside: TypeAlias = Callable[[Connection], Awaitable[None]]
"""What a write also changes, in the same transaction; it may run again with the same batch."""


class LeaseLost(Exception):
    """Another process hosts the session now: its events are not ours to write any more."""


class Outdated(Exception):
    """What the events were made of has changed meanwhile; raised alongside a write, which is then undone."""


@dataclass(eq=False)
class _Write:
    session: SessionKey
    generation: int
    drafts: Sequence[Draft]
    alongside: Alongside | None
    done: anyio.Event = field(default_factory=anyio.Event)
    error: BaseException | None = None
    last: int = 0


_APPEND = """
WITH want AS (
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS w(id, generation, n)
), locked AS (
    SELECT s.id, w.n FROM agent_sessions s JOIN want w ON s.id = w.id AND s.host_generation = w.generation
    WHERE s.host IS NOT NULL
    ORDER BY s.id FOR NO KEY UPDATE OF s
), upd AS (
    UPDATE agent_sessions s SET last_seq = s.last_seq + l.n, last_batch = $4, last_active_at = now()
    FROM locked l WHERE s.id = l.id AND s.last_batch IS DISTINCT FROM $4
    RETURNING s.id, s.last_seq - l.n AS base, s.last_seq AS last
), ins AS (
    INSERT INTO events (session, seq, turn_id, type, body)
    SELECT e.session, u.base + e.k, e.turn_id, e.type, e.body
    FROM unnest($5::bigint[], $6::bigint[], $7::text[], $8::text[], $9::text[])
        AS e(session, k, turn_id, type, body)
    JOIN upd u ON u.id = e.session
), bell AS (
    SELECT string_agg(id || ':' || last, ',') AS line FROM upd WHERE last > base
)
SELECT l.id, u.base, (
    SELECT pg_notify($10, CASE WHEN length(line) <= $11 THEN line ELSE $12 END) FROM bell
    WHERE line IS NOT NULL
)
FROM locked l LEFT JOIN upd u ON u.id = l.id
"""
"""One statement numbers, keeps and notifies; what is not in its answer has lost its lease."""


_PAGE = "SELECT seq, type, turn_id, body FROM events WHERE session = $1 AND seq > $2 ORDER BY seq LIMIT $3"


def _arguments(batch: list[_Write], number: UUID) -> tuple[Any, ...]:
    drafts = [event for write in batch for event in write.drafts]
    return (
        [write.session for write in batch],
        [write.generation for write in batch],
        [len(write.drafts) for write in batch],
        number,
        [write.session for write in batch for _ in write.drafts],
        [k for write in batch for k in range(1, len(write.drafts) + 1)],
        [event.turn_id for event in drafts],
        [event.type for event in drafts],
        [event.body for event in drafts],
        CHANNEL,
        MAX_PAYLOAD,
        EVERYTHING,
    )


class _Tail:
    """The newest events of one session, without a hole."""

    def __init__(self, base: Seq) -> None:
        self.base = base
        self.events: list[Logged] = []
        self.weight = 0

    @property
    def last(self) -> int:
        return self.base + len(self.events)

    def extend(self, events: Iterable[Logged]) -> None:
        for event in events:
            self.events.append(event)
            self.weight += event.weight
        old = 0
        while self.weight > TAIL_BYTES:
            self.weight -= self.events[old].weight
            old += 1
        del self.events[:old]
        self.base = Seq(self.base + old)

    def after(self, seq: Seq, limit: int) -> list[Logged]:
        start = seq - self.base
        return self.events[start : start + limit]


class EventLog:
    """Appends to and reads from every session's log."""

    def __init__(self, database: Database, *, tails_bytes: int = TAILS_BYTES) -> None:
        self._database = database
        self._tails_bytes = tails_bytes
        self._waiting: deque[_Write] = deque()
        self._arrived = anyio.Event()
        self._tails: dict[SessionKey, _Tail] = {}
        """What was written to last stands last."""
        self._tails_weight = 0
        self.stalled = False
        """Whether appends wait because the database does not answer."""
        self.on_stall: list[Callable[[bool], None]] = []
        """Called when `stalled` changes; must not wait or raise."""
        self.measure: Callable[[float], None] = lambda seconds: None
        """Called with the seconds that an append took; must not wait or raise."""

    async def append(
        self,
        session: SessionKey,
        generation: int,
        drafts: Sequence[Draft],
        alongside: Alongside | None = None,
    ) -> Seq:
        """Number the drafts and keep them, with what `alongside` changes, in one transaction.

        Waits for as long as the database is down. Cancelling the wait does not undo the write.

        Returns:
            The number of the last of them; 0 if a commit's answer was lost and had to be found out.
        Raises:
            LeaseLost: the host generation has moved on; nothing was written.
            Outdated: `alongside` did; nothing was written.
        """
        write, came_at = _Write(session, generation, drafts, alongside), time.monotonic()
        self._waiting.append(write)
        self._arrived.set()
        await write.done.wait()
        if write.error is not None:
            raise write.error
        self.measure(time.monotonic() - came_at)
        return Seq(write.last)

    async def run(self) -> None:
        """Commit what has gathered, again and again: fast when busy, prompt when quiet, no timer."""
        try:
            while True:
                while not self._waiting:
                    self._arrived = anyio.Event()
                    await self._arrived.wait()
                await self._commit(self._gather())
        finally:
            self._database.appender.close()

    def _gather(self) -> list[_Write]:
        """The next batch: whole writes, one a session (its order is its writers' own)."""
        batch: dict[SessionKey, _Write] = {}
        later: deque[_Write] = deque()
        room = MAX_BATCH
        while self._waiting and room > 0:
            write = self._waiting.popleft()
            if write.session in batch:
                later.append(write)
                continue
            batch[write.session] = write
            room -= len(write.drafts)
        self._waiting.extendleft(reversed(later))
        return list(batch.values())

    async def _commit(self, batch: list[_Write]) -> None:
        """Commit a batch, however long the database is away; if one write is refused, the others go on."""
        number, pause = uuid4(), 0.05
        while True:
            try:
                await self._write(batch, number)
            except DatabaseUnavailable:
                self._stall(True)
                await anyio.sleep(pause)
                pause = min(pause * 2, 0.5)
                continue
            except (Outdated, asyncpg.PostgresError, ValueError, TypeError, asyncpg.InterfaceError) as error:
                if len(batch) > 1:
                    for write in batch:
                        await self._commit([write])
                    return
                if not isinstance(error, Outdated):
                    log.error("append_refused", error=type(error).__name__)
                batch[0].error = error
            break
        self._stall(False)
        for write in batch:
            write.done.set()

    async def _write(self, batch: list[_Write], number: UUID) -> None:
        changes = [(write.session, write.alongside) for write in batch if write.alongside is not None]
        async with self._database.appender.use() as connection, AsyncExitStack() as stack:
            if changes:  # else the statement is its own transaction
                await stack.enter_async_context(connection.transaction())
            rows = await connection.fetch(_APPEND, *_arguments(batch, number))
            bases: dict[int, int | None] = {row["id"]: row["base"] for row in rows}
            for session, alongside in changes:
                if bases.get(session) is not None:
                    await alongside(connection)
        grown: dict[SessionKey, Seq] = {}
        for write in batch:
            if write.session not in bases:
                write.error = LeaseLost()
                grown[write.session] = Seq(0)  # the lost answer of an earlier try may have been a success
                continue
            base = bases[write.session]
            if base is None:  # it was
                self._drop_tail(write.session)
                grown[write.session] = Seq(0)
            else:
                write.last = base + len(write.drafts)
                self._extend_tail(write, Seq(base))
                if write.drafts:
                    grown[write.session] = Seq(write.last)
        self._database.bell.appended(grown)
        self._database.logged(event.type for write in batch if write.error is None for event in write.drafts)

    def _extend_tail(self, write: _Write, base: Seq) -> None:
        tail = self._drop_tail(write.session)
        if tail is None or tail.last != base:
            if write.session not in self._database.bell.followed:
                return
            tail = _Tail(base)
        tail.extend(
            Logged(Seq(base + k), event.type, event.turn_id, event.body)
            for k, event in enumerate(write.drafts, start=1)
        )
        self._tails[write.session] = tail
        self._tails_weight += tail.weight
        while self._tails_weight > self._tails_bytes:
            self._drop_tail(next(iter(self._tails)))

    def _drop_tail(self, session: SessionKey) -> _Tail | None:
        tail = self._tails.pop(session, None)
        if tail is not None:
            self._tails_weight -= tail.weight
        return tail

    def _stall(self, stalled: bool) -> None:
        if stalled != self.stalled:
            self.stalled = stalled
            log.warning("database_stalled" if stalled else "database_resumed")
            for call in self.on_stall:
                call(stalled)

    async def read(self, session: SessionKey, *, after: Seq, limit: int = PAGE) -> list[Logged]:
        """The events past `after`, in order, at most `limit`; empty at the end of the log."""
        tail = self._tails.get(session)
        if tail is not None and tail.base <= after < tail.last:
            return tail.after(after, limit)
        head = self._database.bell.head(session)
        if head is not None and after >= head:
            return []
        async with self._database.raw() as connection:
            rows = await connection.fetch(_PAGE, session, after, limit)
        return [Logged(*row) for row in rows]

    def forget_unfollowed(self) -> None:
        """Drop what is kept in memory for sessions that nobody in this process follows."""
        followed = self._database.bell.followed
        for session in [key for key in self._tails if key not in followed]:
            self._drop_tail(session)


def before(seq: Seq) -> Seq:
    """The cursor whose next event is `seq`."""
    return Seq(seq - 1)


async def read_page(
    db: AsyncSession, session: SessionKey, *, after: Seq, limit: int = PAGE, turn: TurnId | None = None
) -> list[Logged]:
    """The events past `after`, in order, within a transaction; of one turn only, if it is named."""
    query = select(EventRow.seq, EventRow.type, EventRow.turn_id, EventRow.body).where(
        EventRow.session == session, EventRow.seq > after
    )
    if turn is not None:
        query = query.where(EventRow.turn_id == turn)
    rows = await db.execute(query.order_by(EventRow.seq).limit(limit))
    return [
        Logged(Seq(seq), type_, TurnId(turn_id) if turn_id else None, body)
        for seq, type_, turn_id, body in rows
    ]


async def record(db: AsyncSession, session: SessionKey, one: Draft) -> Seq:
    """Append within a caller's own transaction: the session's row stays locked until it commits.

    Returns:
        Its number.
    """
    last = await db.scalar(
        update(SessionRow)
        .where(SessionRow.id == session)
        .values(last_seq=SessionRow.last_seq + 1)
        .returning(SessionRow.last_seq)
    )
    if last is None:
        raise SessionNotFound
    await db.execute(
        insert(EventRow).values(session=session, seq=last, turn_id=one.turn_id, type=one.type, body=one.body)
    )
    ring_after_commit(db, session, last=Seq(last))
    db.info.setdefault("logged", []).append(one.type)
    return Seq(last)


async def read_turn(db: AsyncSession, session: SessionKey, turn: Turn) -> AsyncIterator[Logged]:
    """Every event of a turn, in order, page by page within a transaction."""
    after = before(turn.first_seq)
    while page := await read_page(db, session, after=after, turn=turn.id):
        for event in page:
            yield event
        after = page[-1].seq
