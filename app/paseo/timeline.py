"""Reading an agent's timeline: whole rows, by position, whatever their size.

A frame that is too big for us costs the link, for all agents. A page that did so is asked for again with half
the rows; a row that does not fit by itself is skipped, and said to be.
"""

from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import anyio
import structlog

from app.paseo.errors import LinkLost, NotSent, Undecodable
from app.paseo.link import Link
from app.paseo.requests import Requests
from app.paseo.snapshots import Cursor, TimelinePage

PAGE = 200
"""Rows of a page, unless told otherwise."""

TRIES = 2
"""Times that a row by itself must fail to arrive: another agent's frame may have cost the link."""

LINK_TIMEOUT = 60.0
"""Seconds that a reader waits for the link to come back."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A row that cannot be read here: it is too big, or no JSON."""

    epoch: str
    seq: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A page, and the rows before or among it that were skipped. `cursor` is where the next one goes on."""

    page: TimelinePage
    gaps: list[Gap]
    cursor: Cursor | None


class Timeline:
    """The timelines of one daemon's agents. Reading one loads a stored agent: it starts its process."""

    def __init__(self, requests: Requests, link: Link) -> None:
        self._requests = requests
        self._link = link
        self._narrow = anyio.Lock()
        """Held by a reader whose pages have cost the link, so that the next loss can be blamed on it."""

    async def page(
        self,
        agent_id: str,
        *,
        direction: Literal["after", "before", "tail"],
        cursor: Cursor | None = None,
        limit: int = PAGE,
    ) -> TimelinePage:
        """One page of rows as they are stored, one for each `seq`.

        A `tail` may have more rows than `limit`. A cursor of another epoch brings `reset` and the tail.

        Raises:
            Refused: no such agent, or it cannot be loaded.
            LinkLost: also when the page is too big (`is_oversize`).
        """
        fields: dict[str, Any] = {
            "agentId": agent_id,
            "direction": direction,
            "limit": limit,
            "projection": "canonical",
        }
        if cursor is not None:
            fields["cursor"] = {"epoch": cursor.epoch, "seq": cursor.seq}
        assert 0 < limit <= PAGE, "0 would ask for everything"
        return await self._requests.ask("fetch_agent_timeline_request", fields, TimelinePage)

    async def end(self, agent_id: str) -> Cursor | None:
        """The position of the newest row; None when there is none."""
        return (await self.page(agent_id, direction="tail", limit=1)).end_cursor

    async def after(
        self, agent_id: str, cursor: Cursor | None, *, limit: int = PAGE
    ) -> AsyncIterator[Stretch]:
        """The rows after a position, page by page, to the end or to a `reset`; without one, from the start.

        At least one page comes. Each waits for the link where a too big one has cost it.

        Raises:
            As `page` does, except for pages that are too big after a known position.
        """
        size, tries, gaps = limit, 0, list[Gap]()
        while True:
            try:
                async with self._narrow if size < limit else nullcontext():
                    page = await self.page(agent_id, direction="after", cursor=cursor, limit=size)
            except NotSent:
                if size == limit and not tries and not gaps:
                    raise
                await self._link.wait_up(LINK_TIMEOUT)
                continue
            except (LinkLost, Undecodable) as error:
                if isinstance(error, LinkLost) and not error.is_oversize:
                    raise
                tries += 1
                if size > 1:
                    size, tries = size // 2, 0
                elif cursor is None:
                    raise  # the row's epoch is not known
                elif tries >= TRIES:
                    gaps.append(Gap(epoch=cursor.epoch, seq=cursor.seq + 1, reason=str(error)))
                    log.warning("paseo_row_skipped", agent=agent_id, seq=cursor.seq + 1, reason=str(error))
                    cursor, tries = Cursor(cursor.epoch, cursor.seq + 1), 0
                await self._link.wait_up(LINK_TIMEOUT)
                continue
            gaps += _missing(page, cursor)
            cursor = page.end_cursor or cursor
            yield Stretch(page=page, gaps=gaps, cursor=cursor)
            if page.reset or not page.has_newer:
                return
            size, tries, gaps = min(size * 2, limit), 0, []


def _missing(page: TimelinePage, cursor: Cursor | None) -> list[Gap]:
    """The rows of a page that came in no shape of a row: the rest of it was read without them."""
    end = page.end_cursor
    if cursor is None or end is None or page.reset or end.epoch != cursor.epoch:
        return []
    there = {seq for row in page.entries for seq in range(row.seq_start, row.seq_end + 1)}
    missing = [seq for seq in range(cursor.seq + 1, end.seq + 1) if seq not in there]
    return [Gap(epoch=end.epoch, seq=seq, reason="it has not the shape of a row") for seq in missing]
