"""Which frames belong to which turn: nothing on the daemon's wire names one, order is all there is. Pure.

And what became of a turn that ended while nobody looked: judged from the agent's snapshot and the rows since
its prompt, or, when the daemon was killed, from the snapshot that it had stored.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from app.backends.paseo_translate import is_cancelled_tool, is_system_error
from app.domain.signals import TurnBroke, TurnEnd, TurnEnded, TurnStopped, TurnUnknown
from app.paseo.items import UserMessage
from app.paseo.snapshots import Agent, Row


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose turn it is: an attempt of ours, or, if that is null, somebody else's."""

    attempt: str | None


FOREIGN = Owner(None)


class Turns:
    """The prompts that were written into the timeline and the turn that runs, of one agent."""

    def __init__(self) -> None:
        self._pending: deque[Owner] = deque()
        self._counted: set[str] = set()
        self._expected: str | None = None
        self.open: Owner | None = None
        """Whose turn runs; null if none does."""
        self._seen_running = False

    def expect(self, attempt: str, *, idle: bool) -> None:
        """A prompt is about to be sent. An agent at rest has forgotten what was echoed and never started."""
        self._expected = attempt
        if idle and self.open is None:
            self._pending.clear()
        self._seen_running = False

    def take_up(self, attempt: str) -> None:
        """A prompt that an earlier process sent, of which neither row nor start was seen by this one."""
        self._expected = attempt

    def resume(self, attempt: str) -> None:
        """A turn of ours was found running."""
        self._expected = attempt
        self._counted.add(attempt)
        self._pending.clear()
        self.open = Owner(attempt)

    def prompted(self, message_id: str | None) -> Owner:
        """A user's row came; whose it is. Our own id counts once: others may use the same."""
        ours = message_id is not None and message_id == self._expected and message_id not in self._counted
        owner = Owner(message_id) if ours else FOREIGN
        if ours and message_id is not None:
            self._counted.add(message_id)
        self._pending.append(owner)
        return owner

    def started(self) -> None:
        """The daemon says that a turn started."""
        if self.open is None:
            self.open = self._pending.popleft() if self._pending else FOREIGN

    def running(self) -> None:
        """The agent's snapshot says `running`; some providers never say more."""
        self._seen_running = True
        if self.open is None and self._pending:
            self.started()

    def row(self) -> Owner | None:
        """A row that is no user's came; whose turn it belongs to, null for none."""
        if self.open is None and self._pending:
            self.started()
        return self.open

    def ended(self) -> Owner | None:
        """A terminal event came; whose turn it ends, null if there was none to end."""
        owner, self.open = self.open, None
        if owner is None and self._pending:
            owner = self._pending.popleft()  # it never started
        self._seen_running = False
        return owner

    def ended_unseen(self) -> None:
        """The turn that ran is over, and its terminal event was told to nobody."""
        self.open = None

    @property
    def is_foreign(self) -> bool:
        """Whether somebody else's turn runs, or their prompt waits to."""
        return self.open == FOREIGN or (self.open is None and FOREIGN in self._pending)


@dataclass(frozen=True, slots=True)
class Since:
    """The rows since our prompt: `ours` up to the next user's row, and that row, if there is one."""

    prompt: Row
    ours: Sequence[Row]
    follower: Row | None


def since_prompt(rows: Sequence[Row], attempt: str) -> Since | None:
    """The part of a timeline that began with the prompt of `attempt`; null if it is not there."""
    for index, row in enumerate(rows):
        if isinstance(row.item, UserMessage) and row.item.message_id == attempt:
            rest = rows[index + 1 :]
            for at, later in enumerate(rest):
                if isinstance(later.item, UserMessage):
                    return Since(row, rest[:at], later)
            return Since(row, rest, None)
    return None


@dataclass(frozen=True, slots=True)
class NotStarted:
    """The prompt is in the timeline, and nothing shows that a provider has taken it yet."""


@dataclass(frozen=True, slots=True)
class GoesOn:
    """The turn runs."""


Verdict = NotStarted | GoesOn | TurnEnd


def judge(agent: Agent, since: Since) -> Verdict:
    """What became of a turn, in the epoch in which it was prompted."""
    flag = agent.attention_timestamp if agent.requires_attention else None
    if since.follower is None:
        return _judge_last(agent, since, flag)
    if flag is None:
        if since.ours and is_system_error(since.ours[-1].item):
            return _failed(since)
        if any(is_cancelled_tool(row.item) for row in since.ours):
            return TurnStopped(cause="other_client")
        return TurnUnknown(cause="unobserved")
    if flag >= since.follower.timestamp:
        return TurnStopped(cause="replaced")
    return _failed(since) if agent.attention_reason == "error" else _quiet_end(since)


def _judge_last(agent: Agent, since: Since, flag: str | None) -> Verdict:
    if agent.status == "running":
        return GoesOn()
    flagged = flag is not None and flag > since.prompt.timestamp
    if not since.ours and not flagged:
        return NotStarted()
    if agent.status == "error":
        message = agent.last_error or "the agent's turn failed"
        return TurnBroke(code="provider_error", message=message, retriable=False)
    return _quiet_end(since)


def _quiet_end(since: Since) -> TurnEnd:
    if any(is_cancelled_tool(row.item) for row in since.ours):
        return TurnStopped(cause="other_client")
    return TurnEnded(stop_reason=None, reconciled=True)


def _failed(since: Since) -> TurnBroke:
    texts = [row.item.text for row in since.ours if is_system_error(row.item) and hasattr(row.item, "text")]
    return TurnBroke(code="provider_error", message=texts[-1] if texts else "the agent's turn failed")


def judge_stored(stored: Agent, *, delivered: bool) -> TurnEnd:
    """What became of a turn whose daemon is gone, from the snapshot as it lay before anything was loaded."""
    flagged = (
        stored.requires_attention
        and stored.attention_timestamp is not None
        and stored.attention_timestamp > (stored.last_user_message_at or "")
    )
    if flagged and stored.status == "error":
        return TurnBroke(code="provider_error", message="the agent's turn failed; the daemon lost its words")
    if flagged and stored.status in ("idle", "closed") and stored.attention_reason == "finished":
        return TurnEnded(stop_reason=None, reconciled=True)
    return TurnUnknown(
        cause="daemon_restarted: the agent may still be working"
        if delivered
        else "daemon_restarted: nobody can tell whether the prompt arrived"
    )
