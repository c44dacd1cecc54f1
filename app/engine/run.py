"""A started turn, as its host sees it: state, what is open of it, and what is being done to stop it.

No I/O: signals go in, events come out. The host commits what comes out, in one batch.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeAlias

from msgspec import UNSET

from app.domain.details import Unknown, bounded
from app.domain.events import (
    BackendDisconnected,
    BackendReconnected,
    CancelCause,
    CancelOutcome,
    Delivered,
    Error,
    Event,
    Limit,
    PermissionExpired,
    PermissionOutcome,
    PermissionRequested,
    PermissionResolved,
    ResolvedBy,
    Terminal,
    TokenUsage,
    TurnCancelled,
    TurnCompleted,
    TurnFailed,
    TurnIndeterminate,
    TurnReconciling,
    TurnRequiresAction,
    TurnResumed,
    TurnTimedOut,
)
from app.domain.ids import PermissionId, new_permission_id
from app.domain.sessions import PermissionPolicy
from app.domain.signals import (
    AgentDied,
    ForeignActivity,
    HistoryTold,
    LinkLost,
    LinkRestored,
    PermissionAsked,
    PermissionSettled,
    RequestsExpired,
    Signal,
    StillRunning,
    TurnBroke,
    TurnEnd,
    TurnEnded,
    TurnStopped,
    TurnUnknown,
    Usage,
)
from app.domain.text import clean, timestamp
from app.domain.transcript import Transcript
from app.domain.turns import ENDS, Step, Turn, TurnStatus, advance, ending

HOLD_S = 1.0
"""Seconds that a permission being answered holds the turn's terminal event back."""

Rung: TypeAlias = Literal["interrupt", "kill", "archive"]
_OUTCOMES: dict[Rung, CancelOutcome] = {
    "interrupt": "stopped",
    "kill": "forced",
    "archive": "backend_closed",
}


@dataclass
class Stop:
    """Somebody wants the turn to stop: a caller (`cause`) or a clock (`limit`)."""

    cause: CancelCause
    limit: Limit | None = None
    rung: Rung | None = None
    """How far the ladder was climbed; null before its first step."""
    until: float = 0.0
    """Monotonic time at which the next rung is due."""


@dataclass
class Waiting:
    """A permission that waits: for an answer, or for the backend's resolution of one."""

    id: PermissionId
    request: str
    for_person: bool
    is_question: bool
    expires_at: float | None
    """Monotonic time of its time-out, or at which an answer that was not taken is sent again."""
    policy_answer: Literal["allow", "deny"] | None = None
    """What the policy answers; null while a person is asked, or as long as only an earlier host knew."""
    sent: tuple[PermissionOutcome, str | None, ResolvedBy, str | None] | None = None
    """The answer that was sent: outcome, option, by, actor."""


@dataclass(frozen=True)
class Asked:
    """A permission request to be kept, and whether the policy answers it at once."""

    waiting: Waiting
    event: PermissionRequested
    expires_at: datetime | None
    answer_now: Literal["allow", "deny"] | None


@dataclass
class Told:
    """What came of some signals: events in order, permissions among them, and the turn's end if it came."""

    events: list[Event] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)


class Run:
    """One started turn."""

    def __init__(
        self,
        turn: Turn,
        policy: PermissionPolicy,
        transcript: Transcript | None = None,
        *,
        last_event_at: datetime | None = None,
        age_s: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.turn = turn
        self.status = turn.status
        self.written = turn.status
        """The status that the database knows."""
        self.policy = policy
        self.transcript = transcript or Transcript()
        self.waiting: dict[str, Waiting] = {}
        self.usage: TokenUsage | None = None
        self.stop: Stop | None = None
        self.held: tuple[Terminal, float] | None = None
        """A terminal event that waits for a resolution, and until when."""
        self.delivered: Delivered = "unknown" if last_event_at is None else "yes"
        self.last_event_at = last_event_at
        self.lost_cause: str | None = None
        """Why nobody can tell how the turn goes on, once that is so."""
        self.idle_since = now()
        self.started = now() - age_s
        """Monotonic time of the first `turn.started`, from which its deadline counts."""
        self._now = now
        self._link_is_down = False

    @property
    def attempt(self) -> str:
        """The name of the attempt that runs: reports about it carry it."""
        return attempt_name(self.turn)

    @property
    def is_over(self) -> bool:
        """Whether its end is known and only held back."""
        return self.held is not None

    @property
    def idle_clock_runs(self) -> bool:
        """Whether silence means something: it does not while a person is asked or a tool runs."""
        is_watched = self.status in (TurnStatus.RUNNING, TurnStatus.RECONCILING)
        return is_watched and not self.transcript.has_open_call

    def allows_on_timeout(self, waiting: Waiting) -> bool:
        """What is answered for a person who did not; a question is never answered so."""
        return self.policy.on_timeout == "allow" and not waiting.is_question

    def tell(self, signal: Signal) -> Told:
        """What `signal` makes of the turn."""
        told = Told()
        if self.status in ENDS or (self.is_over and not isinstance(signal, PermissionSettled)):
            return told
        self.idle_since = self._now()
        if isinstance(signal, TurnBroke | TurnUnknown):
            self.delivered = signal.delivered
        elif not isinstance(signal, LinkLost | LinkRestored | RequestsExpired):
            self.last_event_at = datetime.now(UTC)
            self.delivered = "yes"
        match signal:
            case PermissionAsked():
                self._ask(signal, told)
            case PermissionSettled(request=request, outcome=outcome, option_id=option_id):
                self._settle(request, outcome, option_id, told)
            case TurnEnded() | TurnStopped() | TurnBroke() | TurnUnknown():
                self.end(self._terminal(signal), told)
            case AgentDied() | RequestsExpired():
                self.expire_all(told)
            case LinkLost(cause=cause):
                self._link_is_down = True
                told.events.append(BackendDisconnected(cause=cause))
                self.lose_sight(cause, told)
            case LinkRestored(pending=pending):
                if self._link_is_down:
                    told.events.append(BackendReconnected())
                self._link_is_down = False
                self.regain(pending, told)
            case ForeignActivity() | HistoryTold() | StillRunning():
                pass
            case _:
                if isinstance(signal, Usage):
                    self.usage = signal.usage
                told.events += self.transcript.tell(signal)
        return told

    def end(self, terminal: Terminal, told: Told) -> None:
        """End the turn: now, or as soon as an answer on its way has been resolved. The first end stands."""
        if self.is_over:
            return
        if any(waiting.sent for waiting in self.waiting.values()):
            self.held = (terminal, self._now() + HOLD_S)
            return
        self.finish(terminal, told)

    def finish(self, terminal: Terminal, told: Told) -> None:
        """End the turn now: close whatever is open of it, then its one terminal event."""
        self.held = None
        told.events += self.transcript.close()
        for waiting in self.waiting.values():
            outcome, option_id, by, actor = waiting.sent or ("cancelled", None, "turn_end", None)
            told.events.append(_resolution(waiting, outcome, option_id, by, actor))
        self.waiting.clear()
        self.status = advance(self.status, ending(terminal))
        told.events.append(terminal)

    def lose_sight(self, cause: str, told: Told) -> None:
        """Nobody can see at this moment how the turn goes on."""
        if self.status in (TurnStatus.RUNNING, TurnStatus.REQUIRES_ACTION):
            self.status = advance(self.status, Step.LOSE)
            told.events.append(TurnReconciling(cause=cause))

    def regain(self, pending: frozenset[str], told: Told) -> None:
        """We see the agent again; of what was asked, only `pending` still waits there."""
        for request in [request for request in self.waiting if request not in pending]:
            self._settle(request, "unknown", None, told)  # answered while nobody looked
        if self.status is TurnStatus.RECONCILING:
            self.status = advance(self.status, Step.REGAIN)
            told.events.append(TurnResumed(cause="reconciled"))
            self._require_action(told)

    def expire_all(self, told: Told) -> None:
        """The agent that asked is gone: nobody can answer any more."""
        for waiting in self.waiting.values():
            told.events.append(
                PermissionExpired(
                    permission_id=waiting.id, outcome="cancelled", option_id=None, by="backend", actor=None
                )
            )
        self.waiting.clear()
        self._resume(told)

    def lost(self, cause: str) -> Terminal:
        """The end of a turn of which nobody can tell how it went."""
        return TurnIndeterminate(
            cause=cause,
            delivered="yes" if self.last_event_at is not None else self.delivered,
            last_backend_event_at=None if self.last_event_at is None else timestamp(self.last_event_at),
        )

    def stopped(self, outcome: CancelOutcome) -> Terminal:
        """The end of a turn that we stopped."""
        assert self.stop is not None
        if self.stop.limit is not None:
            return TurnTimedOut(limit=self.stop.limit, delivered=self.delivered, cancel_outcome=outcome)
        return TurnCancelled(cause=self.stop.cause, cancel_outcome=outcome)

    def _terminal(self, end: TurnEnd) -> Terminal:
        if self.lost_cause is not None:
            return self.lost(self.lost_cause)
        asked_to_stop = self.stop is not None and self.stop.rung is not None
        match end:
            case TurnEnded(stop_reason=stop_reason, usage=usage, reconciled=reconciled):
                return TurnCompleted(
                    stop_reason=stop_reason, usage=usage or self.usage, reconciled=reconciled
                )
            case TurnStopped(cause=cause, is_forced=is_forced):
                if asked_to_stop:
                    return self.stopped("forced") if is_forced else self._stopped_by_ladder()
                return TurnCancelled(cause=cause, cancel_outcome=None)
            case TurnBroke(code=code, message=message, retriable=retriable, delivered=delivered):
                if asked_to_stop:
                    return self._stopped_by_ladder()
                error = Error(code=code, message=clean(message), retriable=retriable)
                return TurnFailed(error=error, delivered=delivered)
            case TurnUnknown(cause=cause):
                return self.lost(cause)

    def _stopped_by_ladder(self) -> Terminal:
        assert self.stop is not None and self.stop.rung is not None
        return self.stopped(_OUTCOMES[self.stop.rung])

    def _ask(self, asked: PermissionAsked, told: Told) -> None:
        is_question = asked.kind == "question"
        mode = "ask" if is_question and self.policy.mode == "allow" else self.policy.mode
        answer: Literal["allow", "deny"] | None = None if mode == "ask" else mode
        detail = None if asked.detail is None else bounded(asked.detail)
        shown = bounded(Unknown(input=asked.input))
        assert isinstance(shown, Unknown)
        if (detail is not None and detail.truncated is not UNSET) or shown.truncated is not UNSET:
            answer = "deny"
        duplicate = self.waiting.get(asked.request)
        if duplicate is not None:  # told again, or an id used twice: neither can be answered safely
            if not duplicate.for_person and duplicate.sent is None:  # the policy's answer was not taken
                duplicate.policy_answer = duplicate.policy_answer or answer or "deny"
                duplicate.expires_at = self._now()
            return
        for_person = answer is None
        waiting = Waiting(
            id=new_permission_id(),
            request=asked.request,
            for_person=for_person,
            is_question=is_question,
            expires_at=self._now() + self.policy.timeout_s if for_person else None,
            policy_answer=answer,
        )
        expires_at = datetime.now(UTC) + timedelta(seconds=self.policy.timeout_s) if for_person else None
        event = PermissionRequested(
            permission_id=waiting.id,
            tool_call_id=UNSET if asked.call is None else clean(asked.call),
            kind=asked.kind,
            title=clean(asked.title),
            description=None if asked.description is None else clean(asked.description),
            detail=detail,
            input=shown.input,
            options=list(asked.options),
            questions=list(asked.questions) or UNSET,
            expires_at=None if expires_at is None else timestamp(expires_at),
        )
        self.waiting[asked.request] = waiting
        told.events.append(event)
        told.asked.append(Asked(waiting, event, expires_at, answer))
        if waiting.for_person and self.status is not TurnStatus.RECONCILING:
            self._require_action(told)

    def _require_action(self, told: Told) -> None:
        ids: list[str] = [waiting.id for waiting in self.waiting.values() if waiting.for_person]
        if ids:
            self.status = advance(self.status, Step.ASK)
            told.events.append(TurnRequiresAction(permission_ids=ids))

    def _settle(self, request: str, outcome: PermissionOutcome, option_id: str | None, told: Told) -> None:
        waiting = self.waiting.pop(request, None)
        if waiting is None:
            return
        by: ResolvedBy = "turn_end" if outcome == "cancelled" else "backend"
        actor = None
        if waiting.sent is not None and waiting.sent[0] == outcome:
            _, _, by, actor = waiting.sent
        told.events.append(_resolution(waiting, outcome, option_id, by, actor))
        if self.held is not None:
            if not any(other.sent for other in self.waiting.values()):
                self.finish(self.held[0], told)
            return
        self._resume(told)

    def _resume(self, told: Told) -> None:
        still = any(waiting.for_person for waiting in self.waiting.values())
        if self.status is TurnStatus.REQUIRES_ACTION and not still:
            self.status = advance(self.status, Step.SETTLE)
            told.events.append(TurnResumed(cause="permission"))


def attempt_name(turn: Turn) -> str:
    """The name of the turn's attempt, the same in every process: what the backend calls the message."""
    return f"{turn.id}.{turn.attempt}"


def _resolution(
    waiting: Waiting, outcome: PermissionOutcome, option_id: str | None, by: ResolvedBy, actor: str | None
) -> Event:
    cls = PermissionExpired if by == "timeout" else PermissionResolved
    return cls(permission_id=waiting.id, outcome=outcome, option_id=option_id, by=by, actor=actor)
