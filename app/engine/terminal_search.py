"""Search in terminals: in the ring that this process has of one, or in a capture that reaches further."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import anyio
import anyio.to_thread
import structlog

from app.backends.terminals import Captured, TerminalServer
from app.domain.errors import BackendIsDown, DomainError, TerminalNotFound
from app.domain.ids import Owner, SessionId, TerminalId
from app.domain.plain import plain_blocks
from app.domain.ring import Ring
from app.domain.search import Found, Match, Query, search
from app.domain.terminals import Terminal
from app.engine.terminals import Terminals, told
from app.store import sessions, terminals
from app.store.database import Database

log = structlog.get_logger(__name__)

Source: TypeAlias = Literal["ring", "capture"]

MAX_TERMINALS = 50
"""Terminals that one search looks through, the newest first."""
ALL_S = 10.0
"""Seconds after which a search over several asks no more of them."""
SEARCHES = 2
"""Searches that run at once in this process; the others wait for their turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was found in one terminal, and where."""

    terminal: Terminal
    matches: list[Match]
    source: Source
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What was found in several; those that could not be looked through are named."""

    found: list[Answer]
    unreachable: list[Terminal]
    truncated: bool


class TerminalSearch:
    """The use-case, within the caller's owner."""

    def __init__(self, database: Database, rooms: Terminals) -> None:
        self._database = database
        self._terminals = rooms
        self._turn = anyio.CapacityLimiter(SEARCHES)

    async def search(self, owner: Owner, terminal_id: TerminalId, query: Query) -> Answer:
        """What one terminal has.

        Raises:
            TerminalNotFound: it is missing, somebody else's, or ended and nothing is kept of it here.
            BackendIsDown: it cannot be reached from here.
            ValidationFailed: the pattern is none.
        """
        query.compiled()
        return await self._search(await self._terminals.get(owner, terminal_id), query)

    async def search_all(
        self, owner: Owner, query: Query, *, session_id: SessionId | None, project_id: str | None
    ) -> Answers:
        """What the owner's open terminals have, at most `query.limit` matches altogether."""
        query.compiled()
        async with self._database.begin() as db:
            if session_id is not None:
                await sessions.get(db, owner, session_id)
            listed = await terminals.open_of(
                db, owner, session_id=session_id, project_id=project_id, limit=MAX_TERMINALS + 1
            )
        found: list[Answer] = []
        unreachable: list[Terminal] = []
        left = query.limit
        until = anyio.current_time() + ALL_S
        for terminal in listed[:MAX_TERMINALS]:
            if not left:
                break
            if anyio.current_time() > until:
                unreachable.append(terminal)
                continue
            try:
                answer = await self._search(terminal, replace(query, limit=left))
            except TerminalNotFound:
                continue  # it has just ended
            except DomainError:
                unreachable.append(terminal)
                continue
            left -= len(answer.matches)
            if answer.matches:
                found.append(answer)
        truncated = not left or len(listed) > MAX_TERMINALS or any(one.truncated for one in found)
        return Answers(found=found, unreachable=unreachable, truncated=truncated)

    async def _search(self, terminal: Terminal, query: Query) -> Answer:
        watch = self._terminals.watches.get(terminal.id)
        ring = watch.ring if watch is not None else None
        if terminal.status == "closed":
            if ring is None:
                raise TerminalNotFound
            return self._answer(terminal, "ring", await self._in_ring(ring, query))
        server = self._terminals.servers.at(terminal)
        if watch is None and self._terminals.watches.has_room():
            self._terminals.watches.start(terminal, server)  # so that a later search has a ring
        if ring is not None and ring.is_whole and not ring.is_full_screen:
            return self._answer(terminal, "ring", await self._in_ring(ring, query))
        captured = await self._captured(server, terminal, ring)
        if ring is not None and (
            captured is None or not (ring.is_full_screen or captured.total_lines > ring.lines)
        ):
            return self._answer(terminal, "ring", await self._in_ring(ring, query))
        assert captured is not None
        blocks = ["\n".join(captured.lines).encode(errors="replace")] if captured.lines else []
        return self._answer(terminal, "capture", await self._in_thread(lambda: search(blocks, query)))

    async def _captured(
        self, server: TerminalServer, terminal: Terminal, ring: Ring | None
    ) -> Captured | None:
        """All lines as they stand there; null if they cannot be had and there is a ring."""
        try:
            with told():
                return await server.capture(terminal.handle, start=None, end=None, ansi=False)
        except (BackendIsDown, TerminalNotFound):
            if ring is None:
                raise
            return None

    async def _in_ring(self, ring: Ring, query: Query) -> Found:
        raw, full_screen, first = ring.content(), ring.full_screen_at_base, ring.first_line
        if ring.base:  # a line whose beginning is gone is none, and may begin within a sequence
            cut = raw.find(b"\n") + 1
            raw, first = raw[cut:], first + (cut > 0)
        return await self._in_thread(
            lambda: search(plain_blocks(raw, full_screen=full_screen), query, first_line=first)
        )

    async def _in_thread(self, work: Callable[[], Found]) -> Found:
        return await anyio.to_thread.run_sync(work, limiter=self._turn)

    def _answer(self, terminal: Terminal, source: Source, found: Found) -> Answer:
        return Answer(terminal=terminal, matches=found.matches, source=source, truncated=found.truncated)
