"""Search in terminals: in the ring that this process has of one, or in a capture that reaches further."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

import anyio
import anyio.to_thread
import structlog

from app.backends.terminals import Captured, TerminalServer
from app.domain.errors import BackendFailed, BackendIsDown, DomainError, Draining, TerminalNotFound
from app.domain.ids import Owner, SessionId, TerminalId
from app.domain.plain import Block, captured_blocks, newest_first
from app.domain.reach import lines_reached
from app.domain.ring import Ring
from app.domain.search import Found, Match, Query, search
from app.domain.terminals import Terminal
from app.engine.lifecycle import Lifecycle
from app.engine.terminal_places import Places
from app.engine.terminals import Terminals, told
from app.store import sessions, terminals
from app.store.database import Database

log = structlog.get_logger(__name__)

Source: TypeAlias = Literal["ring", "capture"]

MAX_TERMINALS = 50
"""Terminals that one search looks through, the newest first."""
ALL_S = 10.0
"""Seconds after which a search over several asks no more of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was found in one terminal, and where."""

    terminal: Terminal
    matches: list[Match]
    source: Source
    truncated: bool
    is_cut_off: bool = False
    """Whether there is more in the terminal, which could not be reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What was found in several; those that could not be looked through, or not wholly, are named."""

    found: list[Answer]
    unreachable: list[Terminal]
    truncated: bool


class TerminalSearch:
    """The use-case, within the caller's owner."""

    def __init__(self, database: Database, lifecycle: Lifecycle, rooms: Terminals, places: Places) -> None:
        self._lifecycle = lifecycle
        self._database = database
        self._terminals = rooms
        self.places = places

    async def search(self, owner: Owner, terminal_id: TerminalId, query: Query) -> Answer:
        """What one terminal has.

        Raises:
            TerminalNotFound: it is missing, somebody else's, or ended and nothing is kept of it here.
            BackendIsDown: it cannot be reached from here.
            ValidationFailed: the pattern is none.
            RateLimited: too many wait for their turn.
            Draining: the process has begun to drain before it was through.
        """
        query.compiled()
        with self.places.taken(owner):
            return await self._search(await self._terminals.get(owner, terminal_id), query)

    async def search_all(
        self, owner: Owner, query: Query, *, session_id: SessionId | None, project_id: str | None
    ) -> Answers:
        """What the owner's open terminals have, at most `query.limit` matches altogether.

        Raises:
            SessionNotFound, ValidationFailed, RateLimited, Draining: as for one.
        """
        query.compiled()
        with self.places.taken(owner):
            return await self._search_all(owner, query, session_id, project_id)

    async def _search_all(
        self, owner: Owner, query: Query, session_id: SessionId | None, project_id: str | None
    ) -> Answers:
        async with self._database.begin() as db:
            if session_id is not None:
                await sessions.get(db, owner, session_id)
            listed = await terminals.open_of(
                db, owner, session_id=session_id, project_id=project_id, limit=MAX_TERMINALS + 1
            )
        found: list[Answer] = []
        unreachable: list[Terminal] = []
        left, truncated = query.limit, len(listed) > MAX_TERMINALS
        until = anyio.current_time() + ALL_S
        for terminal in listed[:MAX_TERMINALS]:
            if not left or anyio.current_time() > until:
                truncated = True
                break
            try:
                answer = await self._search(terminal, replace(query, limit=left))
            except TerminalNotFound:
                continue  # it has just ended
            except Draining:
                raise
            except DomainError:
                unreachable.append(terminal)
                continue
            left -= len(answer.matches)
            truncated = truncated or answer.truncated
            if answer.is_cut_off:
                unreachable.append(terminal)
            if answer.matches:
                found.append(answer)
        return Answers(found=found, unreachable=unreachable, truncated=truncated)

    async def _search(self, terminal: Terminal, query: Query) -> Answer:
        watches = self._terminals.watches
        watch = watches.get(terminal.id)
        if terminal.status == "closed":
            if watch is None:
                raise TerminalNotFound(
                    detail="the terminal has ended, and nothing of its output is kept here"
                )
            answer = await self._in_ring(terminal, watch.ring, query)
            is_whole = watch.ring.is_whole and watch.in_sight
            return replace(answer, truncated=answer.truncated or not is_whole)
        server = self._terminals.servers.at(terminal)
        if watch is None:
            watches.start(terminal, server)  # if there is room, a later search has a ring
            async with self.places.captures:
                return await self._in_capture(terminal, await self._captured(server, terminal), query)
        with watch.held():
            ring, known = watch.ring, watch.ring.end
            if ring.is_whole and watch.in_sight and not ring.is_full_screen:
                return await self._in_ring(terminal, ring, query)
            async with self.places.captures:
                try:
                    captured = await self._captured(server, terminal)
                except (BackendIsDown, BackendFailed, TerminalNotFound) as error:
                    answer = await self._in_ring(terminal, ring, query)
                    cut_off = not isinstance(error, TerminalNotFound)
                    return replace(answer, truncated=True, is_cut_off=cut_off)
                goes_on = watch.ring is ring and watch.in_sight and not ring.is_full_screen
                if not goes_on or not await self._reaches(ring, known, captured.total_lines):
                    return await self._in_capture(terminal, captured, query)
            return await self._in_ring(terminal, ring, query)

    async def _captured(self, server: TerminalServer, terminal: Terminal) -> Captured:
        """All lines as they stand there."""
        with told():
            return await server.text(terminal.handle)

    async def _reaches(self, ring: Ring, known: int, lines: int) -> bool:
        """Whether the ring surely has so many of the newest lines; those past `known` do not count."""
        if not lines or known <= ring.base:
            return False
        async with self.places.turns:
            raw, after = ring.content(), max(0, known - ring.base)

            def work() -> bool:
                later = raw[after:]
                return lines_reached(raw, lines + later.count(b"\n")) - later.count(b"\n") >= lines

            return await anyio.to_thread.run_sync(work, limiter=self.places.threads)

    async def _in_ring(self, terminal: Terminal, ring: Ring, query: Query) -> Answer:
        async with self.places.turns:
            raw, full_screen, first = ring.content(), ring.full_screen_at_base, ring.first_line
            blocks = newest_first(raw, full_screen=full_screen, first_line=first, is_cut=ring.base > 0)
            return _answer(terminal, "ring", await self._in_thread(blocks, query))

    async def _in_capture(self, terminal: Terminal, captured: Captured, query: Query) -> Answer:
        async with self.places.turns:
            found = await self._in_thread(captured_blocks(captured.lines), query)
            return _answer(terminal, "capture", found)

    async def _in_thread(self, blocks: Iterator[Block], query: Query) -> Found:
        """Search in a thread, which stops within a fraction of a second when this task is cancelled.

        Raises:
            Draining: the process has begun to drain meanwhile.
        """
        is_cancelled = False
        lifecycle = self._lifecycle

        def given_up() -> bool:
            return is_cancelled or lifecycle.draining

        work = partial(search, blocks, query, given_up=given_up)
        try:
            found = await anyio.to_thread.run_sync(work, limiter=self.places.threads, abandon_on_cancel=True)
        finally:
            is_cancelled = True
        if lifecycle.draining and found.truncated:
            raise Draining
        return found


def _answer(terminal: Terminal, source: Source, found: Found) -> Answer:
    return Answer(terminal=terminal, matches=found.matches, source=source, truncated=found.truncated)
