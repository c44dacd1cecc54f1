"""What becomes of a turn of ours that was lost sight of: judged at once, or looked at again and again."""

import time
from dataclasses import dataclass

import structlog

from app.backends.base import AgentSpec
from app.backends.paseo_judging import GoesOn, NotStarted, judge, judge_stored
from app.backends.paseo_telling import Sent, Teller
from app.backends.paseo_turns import Turns
from app.domain.events import Delivered
from app.domain.signals import Gap, RequestsExpired, TurnBroke, TurnEnded, TurnUnknown
from app.paseo import snapshots
from app.paseo.client import PaseoClient
from app.paseo.errors import PaseoError

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long is waited for what; seconds."""

    look: float = 1.0
    """Between two looks at a turn of which nothing is known."""
    start: float = 20.0
    """For a provider that is slow to take a prompt."""
    start_with_mcp: float = 90.0
    """The same where MCP servers are started first."""
    silence: float = 30.0
    """After the start of a turn without a row, until the agent's process is probed."""
    probe: float = 15.0
    refresh: float = 8.0
    busy: float = 2.0
    """For an agent to leave `running` before the next prompt."""
    reach: float = 5.0
    """For a link that is down, before a prompt."""
    turnstile: float = 30.0
    """For the reading of what was missed, before a prompt."""
    cancel: float = 2.0
    """For a turn to start, before it is cancelled."""
    again: float = 1.0
    """Until a catching-up is tried again that failed with the link up."""


class Settler:
    """Settles one agent's turns whenever everything up to now was told."""

    def __init__(self, client: PaseoClient, teller: Teller, spec: AgentSpec, pace: Pace) -> None:
        self.look_at: float | None = None
        """When to look again at a turn of which nothing is known; monotonic."""
        self.owes_word = False
        """Whether our turn was lost sight of, and nobody was told that it goes on."""
        self._client = client
        self._teller = teller
        self._id = teller.snapshot.id
        self._pace = pace
        self._patience = pace.start_with_mcp if spec.mcp_servers else pace.start

    def settle(self) -> None:
        """Everything was told up to now: see what becomes of our turn, or whether somebody else's runs."""
        teller, sent = self._teller, self._teller.sent
        if sent is None:
            teller.settle_turns()
            return
        if sent.trail is None:
            self._not_found(sent)
            return
        verdict = judge(teller.snapshot, sent.trail)
        if isinstance(verdict, GoesOn):
            self.goes_on()
        elif isinstance(verdict, NotStarted):
            self._not_started(sent)
        else:
            teller.conclude(verdict)
            teller.changed(teller.snapshot)

    def goes_on(self) -> None:
        self._teller.goes_on()
        self.owes_word, self.look_at = False, None

    def conclude_followed(self) -> None:
        """Our turn is over, for somebody else's prompt came after it while nobody looked."""
        assert self._teller.sent is not None and self._teller.sent.trail is not None
        verdict = judge(self._teller.snapshot, self._teller.sent.trail)
        assert not isinstance(verdict, NotStarted | GoesOn), "it was followed"
        self._teller.conclude(verdict)

    def look_soon(self) -> None:
        """Nobody knows whether the prompt was taken: look, again and again."""
        self.look_at = time.monotonic() + self._pace.look

    @property
    def needs_look(self) -> bool:
        """Whether there is a turn of which nothing is known, or nobody was told."""
        sent = self._teller.sent
        return sent is not None and (self.owes_word or not sent.alive.is_set())

    async def settle_or_give_up(self) -> bool:
        """Settle after one of the looks; true if the agent was given up."""
        sent = self._teller.sent
        self.settle()
        if sent is not None and self._teller.sent is sent and sent.looks * self._pace.look > self._patience:
            return await self._give_up(sent)
        return False

    def _not_started(self, sent: Sent) -> None:
        sent.looks += 1
        self.look_soon()

    def _not_found(self, sent: Sent) -> None:
        """Our prompt is not in the timeline. That proves something only to whoever held the link."""
        sent.looks += 1
        sent.absences += self._teller.snapshot.status != "initializing"
        if sent.absences < 2 and sent.looks * self._pace.look <= self._patience:
            self.look_soon()
        elif sent.holds_link and not sent.accepted and sent.absences >= 2:
            words = "the link was lost before the prompt arrived"
            self._teller.conclude(
                TurnBroke(code="backend_unavailable", message=words, delivered="no", retriable=True)
            )
        else:
            delivered: Delivered = "yes" if sent.accepted else "unknown"
            self._teller.conclude(TurnUnknown(cause="prompt_not_found", delivered=delivered))

    async def _give_up(self, sent: Sent) -> bool:
        """No provider has taken the prompt, and it may still run: nothing else may be sent to this agent."""
        if sent.refusal is not None:
            self._teller.is_stale = True
            self._teller.conclude(sent.refusal)
            return False
        self._teller.conclude(TurnUnknown(cause="never_started", delivered="yes"))
        try:
            await self._client.archive(self._id)
        except PaseoError as error:
            log.warning("paseo_archive_failed", error=type(error).__name__)
        return True

    def judge_stored_turn(self, stored: snapshots.Agent) -> None:
        """The daemon is another process, or cannot load the agent: what it had stored is all there is."""
        sent = self._teller.sent
        if sent is not None:
            self._teller.put(sent.attempt, (RequestsExpired(),))
            verdict = judge_stored(stored, sent.trail, delivered=sent.is_delivered)
            if isinstance(verdict, TurnEnded):
                gap = Gap(start=None, end=None, cause="the daemon was restarted")
                self._teller.put(sent.attempt, (gap,))
            self._teller.conclude(verdict)
        self._teller.turns = Turns()
