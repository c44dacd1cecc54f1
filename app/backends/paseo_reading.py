"""An agent's timeline, read on from where it was last told, and back to a prompt of an earlier process."""

from app.backends import paseo_history
from app.backends.paseo_telling import Sent, Teller
from app.domain.events import Notice
from app.domain.signals import Cursor, Gap, HistoryTold
from app.paseo import snapshots
from app.paseo.client import PaseoClient
from app.paseo.items import UserMessage

LOOK_BACK = 200
"""Rows that are looked through first for a prompt of an earlier process; each further step takes twice."""
SEARCHES = 10
"""Times that the told part of a history is looked for in a new epoch, before its rest is given up."""


class Reader:
    """Reads one agent's timeline into the `teller`. Reading loads an agent that is only stored."""

    def __init__(self, client: PaseoClient, teller: Teller) -> None:
        self._client = client
        self._teller = teller
        self._id = teller.snapshot.id
        self._searches = 0

    async def read_on(self, *, patient: bool) -> bool:
        """Tell the rows after our position; true if there is another epoch, whose rows are not told.

        The rest of an adopted history is told from another epoch too, if that begins with what was told.
        """
        teller, at = self._teller, self._teller.cursor
        if at is None and not teller.tells_history:
            await self.move_to_end()
            return False
        position = None if at is None else snapshots.Cursor(epoch=at.epoch, seq=at.seq)
        async for stretch in self._client.timeline.after(self._id, position):
            page = stretch.page
            if page.agent is not None:
                teller.snapshot = page.agent
            if position is not None and (page.reset or page.epoch != position.epoch):
                if teller.tells_history and await self._finds_again(position.seq):
                    return await self.read_on(patient=patient)
                self._end_history(is_whole=False)
                return True
            for gap in stretch.gaps:
                if teller.tells_history:
                    teller.told = paseo_history.after(teller.told, None)
                teller.put(teller.attempt, (Gap(start=gap.seq, end=gap.seq, cause=gap.reason),))
            for row in page.entries:
                if teller.tells_history:
                    teller.history(row.item, row.seq_end, page.epoch)
                else:
                    teller.row(row.item, row.seq_end, page.epoch, row.timestamp, read=True)
            if stretch.cursor is not None:
                teller.move_to(Cursor(epoch=stretch.cursor.epoch, seq=stretch.cursor.seq))
            elif teller.cursor is None:
                teller.move_to(Cursor(epoch=page.epoch, seq=0))
            if patient:
                await teller.reports.room()
            elif not teller.reports.has_room:
                return False
        self._end_history(is_whole=True)
        return False

    async def _finds_again(self, seq: int) -> bool:
        """Whether another epoch begins with the rows that were told, up to `seq`; we stand behind it then."""
        self._searches += 1
        if self._searches > SEARCHES:
            return False
        told, epoch = "", None
        async for stretch in self._client.timeline.after(self._id, None):
            page = stretch.page
            epoch = epoch or page.epoch
            if page.epoch != epoch:
                return True  # once more another one: look again
            for _ in stretch.gaps:
                told = paseo_history.after(told, None)
            for row in page.entries:
                if row.seq_end <= seq:
                    told = paseo_history.after(told, row.item)
            if stretch.cursor is not None and stretch.cursor.seq >= seq:
                break
        if epoch is None or told != self._teller.told:
            return False
        self._teller.move_to(Cursor(epoch=epoch, seq=seq))
        return True

    def _end_history(self, *, is_whole: bool) -> None:
        """What is read from here on is no history; its end is said to the next process as well."""
        teller = self._teller
        if not teller.tells_history:
            return
        if not is_whole:
            words = (
                "the daemon was started anew while the adopted session was read, and gives another history"
            )
            teller.put(
                None,
                (
                    Notice(
                        level="warning", code="import_incomplete", message=f"{words}: the rest is not told"
                    ),
                ),
            )
        elif teller.cursor is not None and teller.cursor.seq == 0:
            words = "the provider gave nothing back of the session that was adopted"
            teller.put(None, (Notice(level="warning", code="import_empty", message=words),))
        teller.tells_history = False
        teller.put(None, (HistoryTold(),))

    async def move_to_end(self) -> None:
        """Take the timeline's end as the position: nothing before it is told."""
        page = await self._client.timeline.page(self._id, direction="tail", limit=1)
        if page.agent is not None:
            self._teller.snapshot = page.agent
        seq = page.end_cursor.seq if page.end_cursor is not None else 0
        self._teller.move_to(Cursor(epoch=page.epoch, seq=seq))

    async def look_back(self, sent: Sent, cursor: Cursor) -> None:
        """Find the prompt before our position: what an earlier process had told already of its turn."""
        rows: list[snapshots.Row] = []
        upper, step = cursor.seq, LOOK_BACK
        while upper > 0:
            lower = max(0, upper - step)
            found = await self._between(cursor.epoch, lower, upper)
            if found is None:
                return  # another epoch
            rows = [*found, *rows]
            if any(_is_prompt(row, sent) for row in found):
                self._retrace(sent, rows)
                return
            upper, step = lower, step * 2

    async def _between(self, epoch: str, lower: int, upper: int) -> list[snapshots.Row] | None:
        rows: list[snapshots.Row] = []
        async for stretch in self._client.timeline.after(self._id, snapshots.Cursor(epoch=epoch, seq=lower)):
            if stretch.page.reset or stretch.page.epoch != epoch:
                return None
            rows += [row for row in stretch.page.entries if row.seq_end <= upper]
            if stretch.cursor is None or stretch.cursor.seq >= upper:
                break
        return rows

    def _retrace(self, sent: Sent, rows: list[snapshots.Row]) -> None:
        for row in rows:
            if _is_prompt(row, sent) and sent.trail is None:
                self._teller.retrace(row.timestamp)
            elif sent.trail is not None and isinstance(row.item, UserMessage):
                sent.trail.follow(row.timestamp, row.seq_end)
                self._teller.beyond_ours = True
            elif sent.trail is not None:
                sent.trail.add(row.item)


def _is_prompt(row: snapshots.Row, sent: Sent) -> bool:
    return isinstance(row.item, UserMessage) and row.item.message_id == sent.attempt
