"""A turn: one prompt and all that came of it. Its state machine is this table, and nothing else.

```
queued ──start──▶ running ◀──start── retrying ◀──retry── running
running ──ask──▶ requires_action ──settle──▶ running
running | requires_action ──lose──▶ reconciling ──regain──▶ running
queued ──▶ failed | cancelled | timed_out          every other open state ──▶ any end
```
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, TypeAlias

from app.domain.events import (
    CancelOutcome,
    Delivered,
    Error,
    Limit,
    Terminal,
    TokenUsage,
    TurnCancelled,
    TurnCompleted,
    TurnFailed,
    TurnIndeterminate,
    TurnTimedOut,
)
from app.domain.ids import Owner, Seq, SessionId, SessionKey, TaskId, TurnId


class TurnStatus(StrEnum):
    """Where a turn stands; open until it has one of the five ends."""

    QUEUED = "queued"
    RUNNING = "running"
    REQUIRES_ACTION = "requires_action"
    RECONCILING = "reconciling"
    RETRYING = "retrying"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    INDETERMINATE = "indeterminate"


class Step(StrEnum):
    """What can happen to a turn."""

    START = "start"
    ASK = "ask"
    SETTLE = "settle"
    LOSE = "lose"
    REGAIN = "regain"
    RETRY = "retry"
    COMPLETE = "complete"
    FAIL = "fail"
    CANCEL = "cancel"
    TIME_OUT = "time_out"
    GIVE_UP = "give_up"


ENDS = frozenset(
    {
        TurnStatus.COMPLETED,
        TurnStatus.FAILED,
        TurnStatus.CANCELLED,
        TurnStatus.TIMED_OUT,
        TurnStatus.INDETERMINATE,
    }
)
"""The states of a turn that has had its one terminal event."""

OPEN = frozenset(TurnStatus) - ENDS

_ENDINGS = {
    Step.COMPLETE: TurnStatus.COMPLETED,
    Step.FAIL: TurnStatus.FAILED,
    Step.CANCEL: TurnStatus.CANCELLED,
    Step.TIME_OUT: TurnStatus.TIMED_OUT,
    Step.GIVE_UP: TurnStatus.INDETERMINATE,
}
_BEFORE_DELIVERY = {step: _ENDINGS[step] for step in (Step.FAIL, Step.CANCEL, Step.TIME_OUT)}

TRANSITIONS: Mapping[TurnStatus, Mapping[Step, TurnStatus]] = {
    TurnStatus.QUEUED: {Step.START: TurnStatus.RUNNING, **_BEFORE_DELIVERY},
    TurnStatus.RUNNING: {
        Step.ASK: TurnStatus.REQUIRES_ACTION,
        Step.LOSE: TurnStatus.RECONCILING,
        Step.RETRY: TurnStatus.RETRYING,
        **_ENDINGS,
    },
    TurnStatus.REQUIRES_ACTION: {
        Step.ASK: TurnStatus.REQUIRES_ACTION,
        Step.SETTLE: TurnStatus.RUNNING,
        Step.LOSE: TurnStatus.RECONCILING,
        **_ENDINGS,
    },
    TurnStatus.RECONCILING: {Step.REGAIN: TurnStatus.RUNNING, **_ENDINGS},
    TurnStatus.RETRYING: {Step.START: TurnStatus.RUNNING, **_ENDINGS},
    **{end: {} for end in ENDS},
}
"""Every state and every step that it allows; a pair that is not here is a bug of the caller."""


class IllegalStep(AssertionError):
    """A step that the turn's state does not allow."""


def advance(status: TurnStatus, step: Step) -> TurnStatus:
    """The state after `step`.

    Raises:
        IllegalStep: the state does not allow it; an ended turn allows nothing.
    """
    try:
        return TRANSITIONS[status][step]
    except KeyError:
        raise IllegalStep(f"a turn that is {status} cannot {step}") from None


def ending(event: Terminal) -> Step:
    """The step that a terminal event stands for."""
    match event:
        case TurnCompleted():
            return Step.COMPLETE
        case TurnFailed():
            return Step.FAIL
        case TurnCancelled():
            return Step.CANCEL
        case TurnTimedOut():
            return Step.TIME_OUT
        case TurnIndeterminate():
            return Step.GIVE_UP


Strategy: TypeAlias = Literal["reject", "enqueue", "interrupt"]
OnDisconnect: TypeAlias = Literal["continue", "cancel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRequest:
    """A prompt as a caller sends it; times are seconds."""

    prompt: str
    attachments: Sequence[Mapping[str, Any]] = ()
    """Left out where a turn is only read: they may be megabytes."""
    multitask_strategy: Strategy = "reject"
    on_disconnect: OnDisconnect = "continue"
    queue_timeout_s: float = 3600
    deadline_s: float = 3600
    idle_timeout_s: float = 600
    max_attempts: int = 3
    metadata: Mapping[str, Any] = field(default_factory=dict)
    retry_of: TurnId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A turn as it stands in the database."""

    id: TurnId
    session: SessionKey
    session_id: SessionId
    owner: Owner
    status: TurnStatus
    attempt: int
    request: PromptRequest
    output_text: str
    stop_reason: str | None
    usage: TokenUsage | None
    error: Error | None
    cause: str | None
    limit: Limit | None
    delivered: Delivered | None
    cancel_outcome: CancelOutcome | None
    cancel_cause: str | None
    cancel_requested_at: datetime | None
    first_seq: Seq
    last_seq: Seq | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    last_backend_event_at: datetime | None
    task_id: TaskId | None = None
    """The task that it is a step's turn of."""

    @property
    def is_ended(self) -> bool:
        """Whether it has had its terminal event."""
        return self.status in ENDS
