"""An agent's frames, read without a gap: live, and after every gap caught up with from its timeline.

One task reads them. Whoever prompts or restarts the agent meanwhile holds the turnstile.
"""

import time

import anyio
import structlog

from app.backends.base import AgentSpec
from app.backends.paseo_reading import Reader
from app.backends.paseo_settling import Pace, Settler
from app.backends.paseo_telling import Sent, Teller
from app.backends.paseo_turns import Trail, Turns
from app.domain.events import Delivered
from app.domain.signals import TurnBroke, TurnStopped
from app.paseo import errors, frames, snapshots
from app.paseo.client import PaseoClient
from app.paseo.errors import PaseoError
from app.paseo.items import UserMessage
from app.paseo.subscriptions import AgentChanged, AgentRemoved, FrameDropped, LinkDown, LinkUp, Note

log = structlog.get_logger(__name__)

MAX_KEPT = 10_000
"""Notes that are kept while something before them is missing; past that, they are dropped."""


class Lost(Exception):
    """The daemon no longer has the agent, or cannot load it; the text is its own."""


class Follower:
    """Follows one agent; everything it finds goes through the `teller`."""

    def __init__(self, client: PaseoClient, teller: Teller, spec: AgentSpec, pace: Pace) -> None:
        self.teller = teller
        self.turnstile = anyio.Lock(fast_acquire=True)
        """Held by whoever reads the timeline or restarts the agent."""
        self.is_behind = False
        """Whether something was missed that has to be read from the timeline."""
        self.is_lost = False
        self.reader = Reader(client, teller)
        self.settler = Settler(client, teller, spec, pace)
        self._client = client
        self._pace = pace
        self._id = teller.snapshot.id
        self._opening = client.subscribe(self._id)
        self._notes = self._opening.__enter__()
        self._kept: list[Note] = []
        """What came while something before it was missing."""
        self._stored: snapshots.Agent | None = None
        self._skips_gaps = False
        self._was_reloaded = False
        self._again_at: float | None = None
        """When to try again to catch up, if that failed; monotonic."""

    def close(self) -> None:
        """Stop listening; may be called again."""
        self._opening.__exit__(None, None, None)
        self.teller.reports.close()

    async def run(self) -> None:
        """Follow until the agent is lost or archived, or the client is closed."""
        while not self.is_lost:
            await self.teller.reports.room()
            await self._wait()
            async with self.turnstile:
                try:
                    await self._step()
                except anyio.EndOfStream:
                    break
        self.close()

    async def _step(self) -> None:
        try:
            self.take()
            self.teller.settle_unsaid()
            if self.is_lost or not self._client.link.is_up:
                return
            if self.teller.works_on and self.teller.sent is None:
                self.teller.works_on = False
                await self.refresh()
            if self.is_behind:
                if _is_due(self._again_at):
                    await self.catch_up(patient=True)
            elif self.settler.look_at is not None and _is_due(self.settler.look_at):
                await self._look()
        except errors.Lagged:
            self._subscribe_anew()
        except Lost as lost:
            self._lose(str(lost))
        except PaseoError as error:
            log.info("paseo_catch_up_failed", error=type(error).__name__)
            self.is_behind = True
            self._again_at = time.monotonic() + self._pace.again

    async def _wait(self) -> None:
        """Until something came, or is due."""
        due = [self.teller.asked.unsaid_at]
        if self._client.link.is_up:
            due.append((self._again_at or 0.0) if self.is_behind else self.settler.look_at)
        at = min((each for each in due if each is not None), default=None)
        with anyio.move_on_after(None if at is None else max(0.0, at - time.monotonic())):
            await self._notes.arrived()

    def _subscribe_anew(self) -> None:
        self._opening.__exit__(None, None, None)
        self._opening = self._client.subscribe(self._id)
        self._notes = self._opening.__enter__()
        self._kept.clear()
        self.is_behind, self._again_at = True, None

    # What comes.

    def take(self) -> None:
        """Tell what has come, in order, as far as nothing before it is missing."""
        notes = self._notes.drain()
        for note in notes:
            self._take(note)

    def _take(self, note: Note) -> None:
        match note:
            case LinkDown(lost=lost):
                self._kept.clear()
                self._stored = None
                if not self.is_behind:
                    self.teller.lost_sight(str(lost))
                self.is_behind, self._again_at = True, None
            case LinkUp():
                self.is_behind, self._again_at = True, None
            case FrameDropped():
                self.is_behind = True
            case _ if self.is_behind:
                if len(self._kept) >= MAX_KEPT:
                    self._kept.clear()  # its rows are read, and ends are judged
                self._kept.append(note)
            case frames.StreamFrame():
                self._frame(note)
            case AgentChanged(agent=agent):
                self._changed(agent)
            case AgentRemoved():
                self._lose("the agent was deleted")

    def _frame(self, frame: frames.StreamFrame) -> None:
        if not isinstance(frame.event, frames.Timeline):
            self.teller.event(frame)
        elif frame.seq is not None and frame.epoch is not None:
            cursor = self.teller.cursor
            follows = cursor is not None and frame.epoch == cursor.epoch and frame.seq <= cursor.seq + 1
            if follows or self._skips_gaps:
                self.teller.row(frame.event.item, frame.seq, frame.epoch, frame.timestamp)
            else:
                self.is_behind = True
                self._kept.append(frame)

    def _changed(self, agent: snapshots.Agent) -> None:
        self._was_reloaded |= agent.status == "initializing"
        self.teller.changed(agent)
        if agent.is_archived and not self._skips_gaps:
            self.teller.conclude(TurnStopped(cause="other_client"))
            self.is_lost = True  # for this process: whoever needs it takes it out of the archive
        elif agent.status == "closed" and not agent.is_archived:
            self.is_behind = True  # by a stop of the daemon, or deleted: a look will tell

    def _lose(self, words: str) -> None:
        sent = self.teller.sent
        delivered: Delivered = "yes" if sent is not None and sent.is_delivered else "unknown"
        log.warning("paseo_agent_lost", reason=words[:200])
        self.teller.conclude(TurnBroke(code="backend_session_lost", message=words, delivered=delivered))
        self.is_lost = True

    # Catching up.

    async def take_up(self, stored: snapshots.Agent, sent: Sent | None) -> None:
        """Begin behind the teller's cursor, with a prompt of an earlier process, if it sent one.

        Raises:
            Lost: it cannot be loaded, and no turn waits for a judgement.
        """
        self._stored = stored
        if sent is not None:
            self.teller.expect(sent)
        self.is_behind = True
        try:
            if sent is not None and self.teller.cursor is not None:
                await self.reader.look_back(sent, self.teller.cursor)
        except errors.Refused:
            pass  # it cannot be loaded: catching up will say so, and judge
        try:
            await self.catch_up(patient=False)
        except Lost:
            if sent is None or self.teller.sent is not None:
                raise
            self.is_lost = True  # and what became of the turn was told

    async def catch_up(self, *, patient: bool) -> None:
        """Look first, for loading wipes the evidence; then read on; then go live; then judge, if need be.

        Impatient, it stops where the reports are full, and is still behind then.

        Raises:
            Lost: the agent is gone.
            PaseoError: the link is, or the daemon does not answer.
        """
        teller = self.teller
        try:
            stored = self._stored or await self._client.fetch_agent(self._id)
        except errors.Refused as error:
            raise Lost(error.text) from None
        try:
            self._stored = stored
            is_fresh = await self.reader.read_on(patient=patient)
        except errors.Refused as error:
            self.settler.judge_stored_turn(stored)
            raise Lost(error.text) from None
        if is_fresh:
            self._stored = None
            self._kept.clear()
            self.settler.judge_stored_turn(stored)
            await self.refresh()
            self._caught_up()
            return
        if not teller.reports.has_room and not patient:
            return
        self._stored = None
        came = [*self._kept, *self._notes.drain()]
        self._kept.clear()
        sent = teller.sent
        trail = sent.trail if sent is not None and teller.beyond_ours else None
        is_followed_live = trail is not None and _is_live(trail, teller.snapshot, came)
        self._caught_up()
        if trail is not None and not is_followed_live:
            self.settler.conclude_followed()  # an end that came since may be theirs
        for note in came:
            self._take(note)
        if is_followed_live and teller.sent is sent and not self.is_behind:
            self.settler.goes_on()
        elif not self.is_behind:
            self.settler.settle()

    async def read_up(self) -> None:
        """See that nothing up to now is unread, with no turn of ours open; raises as `catch_up` does."""
        if not self.is_behind and not await self.reader.read_on(patient=False):
            self.take()
        else:
            self.is_behind = True
        if self.is_behind:
            await self.catch_up(patient=False)
        else:
            self.teller.settle_turns()

    def _caught_up(self) -> None:
        self.is_behind, self._again_at, self.settler.look_at = False, None, None
        self.settler.owes_word = self.teller.sent is not None
        self.teller.beyond_ours = False

    async def _look(self) -> None:
        """See whether anything shows that our turn started, and how it goes."""
        self.settler.look_at = None
        if self.settler.needs_look:
            await self.reader.read_on(patient=True)
            self.take()
            if not self.is_behind and self.teller.sent is not None:
                self.is_lost |= await self.settler.settle_or_give_up()

    async def refresh(self) -> None:
        """Start the process anew and take the timeline's end as our position: what it replays is not told.

        Raises:
            PaseoError: it was not started anew, as far as can be seen.
        """
        self.take()
        self._was_reloaded, self._skips_gaps = False, True
        self.is_behind, self._again_at = False, None
        try:
            try:
                await self._client.refresh_agent(self._id, deadline=self._pace.refresh)
            except errors.Timeout:  # of two at once one is never answered, nor is one that failed
                self.take()
                agent = await self._client.fetch_agent(self._id)
                if not self._was_reloaded or agent.status not in ("idle", "error"):
                    raise
            self.take()
            self.teller.is_stale = False
            await self.reader.move_to_end()
            self.take()
        finally:
            self._skips_gaps = False
        if self.teller.sent is None:
            self.teller.turns = Turns()
            self.teller.settle_turns()


def _is_due(at: float | None) -> bool:
    return at is None or at <= time.monotonic()


def _is_live(trail: Trail, agent: snapshots.Agent, came: list[Note]) -> bool:
    """Whether all from the end of our turn on came live, although the next prompt was read as well."""
    for note in came:
        match note:
            case frames.StreamFrame(event=frames.Timeline(item=UserMessage()), seq=seq):
                if seq == trail.followed_by:
                    flag = agent.attention_timestamp if agent.requires_attention else None
                    return flag is None or flag >= (trail.followed_at or "")
            case frames.StreamFrame(
                event=frames.TurnCompleted() | frames.TurnFailed() | frames.TurnCancelled()
            ):
                return True
            case _:
                pass
    return False
