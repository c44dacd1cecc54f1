"""A task: steps on one session, one turn after the other. `decide` says what follows on a turn's end.

```
pending ──the first turn starts──▶ running
pending | running ──▶ completed | failed | cancelled | timed_out
failed | cancelled | timed_out ──retry──▶ pending
```
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal, TypeAlias

from app.domain.events import (
    ErrorCode,
    Event,
    TaskCancelled,
    TaskCompleted,
    TaskFailed,
    TaskTimedOut,
    Terminal,
    TurnCancelled,
    TurnCompleted,
    TurnFailed,
    TurnIndeterminate,
    TurnTimedOut,
)
from app.domain.ids import Owner, SessionId, SessionKey, TaskId, TurnId
from app.domain.turns import PromptRequest

OnFailure: TypeAlias = Literal["stop", "continue"]
StepErrorCode: TypeAlias = ErrorCode | Literal["indeterminate", "timed_out"]
"""A turn's codes, and the two ends of a turn that have none."""


class TaskStatus(StrEnum):
    """Where a task stands, or one of its steps; a step that was not reached stays `pending`."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"


ENDED = frozenset({TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.TIMED_OUT})
"""The states in which a task has no open turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRequest:
    """A step as a caller asks for it."""

    name: str
    prompt: str
    deadline_s: float = 3600
    max_attempts: int = 1
    on_failure: OnFailure = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepError:
    """Why a step did not complete; `retriable` says whether the same prompt may succeed later."""

    code: StepErrorCode
    message: str
    retriable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStep:
    """A step as it stands in the database. Its prompt stays there: only the turn needs it."""

    name: str
    deadline_s: float
    max_attempts: int
    on_failure: OnFailure
    status: TaskStatus
    attempts: int
    """Turns that it has had since the task was made, or last retried."""
    turn_ids: Sequence[TurnId]
    """All its turns, oldest first; the last may be open."""
    error: StepError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task as it stands in the database. While it has not ended, exactly one turn of it is open."""

    id: TaskId
    session: SessionKey
    session_id: SessionId
    owner: Owner
    status: TaskStatus
    steps: Sequence[TaskStep]
    current: int
    """The step that runs, or at which it ended; counts from 0."""
    cancel_requested: bool
    """Whether it is to end with its open turn."""
    version: int
    """Counts its changes, so that a decision on what was read is not written over a later one."""
    created_at: datetime
    ended_at: datetime | None

    @property
    def step(self) -> TaskStep:
        """The current step."""
        return self.steps[self.current]

    @property
    def turn_id(self) -> TurnId | None:
        """The open turn; null once the task has ended."""
        return None if self.is_ended else self.step.turn_ids[-1]

    @property
    def is_ended(self) -> bool:
        """Whether it has had its `task.completed`, `failed`, `cancelled` or `timed_out`."""
        return self.status in ENDED

    @property
    def resumes_at(self) -> int | None:
        """The step from which a retry goes on; null if nothing is left to do."""
        if self.status is TaskStatus.COMPLETED:
            return None
        is_done = self.step.status is TaskStatus.COMPLETED  # it was cancelled between two steps
        return self.current + 1 if is_done else self.current


class Then(StrEnum):
    """What comes after a step's turn."""

    REPEAT = "repeat"
    """Another turn of the same step."""
    ADVANCE = "advance"
    """The next step's first turn."""
    END = "end"
    """Nothing: the task has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the end of a step's turn makes of the step and of the task."""

    then: Then
    step: TaskStatus
    task: TaskStatus
    error: StepError | None = None


class TaskIsOver(AssertionError):
    """A turn of a task ended that had ended before."""


def decide(task: Task, end: Terminal) -> Verdict:
    """What follows on the end of the task's open turn.

    Raises:
        TaskIsOver: it has none.
    """
    if task.is_ended:
        raise TaskIsOver(f"task {task.id} is {task.status}")
    step = task.step
    if _may_repeat(end) and step.attempts < step.max_attempts and not task.cancel_requested:
        return Verdict(then=Then.REPEAT, step=step.status, task=task.status)
    status, error = _outcome(end)
    is_last = task.current == len(task.steps) - 1
    if status is TaskStatus.COMPLETED and is_last:
        ended = TaskStatus.COMPLETED  # also where a cancel came too late
    elif status is TaskStatus.CANCELLED or task.cancel_requested:
        ended = TaskStatus.CANCELLED
    elif status is TaskStatus.COMPLETED or step.on_failure == "continue":
        if not is_last:
            return Verdict(then=Then.ADVANCE, step=status, task=task.status, error=error)
        ended = TaskStatus.COMPLETED
    else:
        ended = status
    return Verdict(then=Then.END, step=status, task=ended, error=error)


def _may_repeat(end: Terminal) -> bool:
    """Whether `max_attempts` applies: never where the agent may still be at work, or may have done it."""
    match end:
        case TurnFailed(error=error):
            return error.retriable
        case TurnTimedOut(cancel_outcome=outcome):
            return outcome != "unconfirmed"
        case TurnCompleted() | TurnCancelled() | TurnIndeterminate():
            return False


def _outcome(end: Terminal) -> tuple[TaskStatus, StepError | None]:
    match end:
        case TurnCompleted():
            return TaskStatus.COMPLETED, None
        case TurnCancelled():
            return TaskStatus.CANCELLED, None
        case TurnFailed(error=error):
            return TaskStatus.FAILED, StepError(
                code=error.code, message=error.message, retriable=error.retriable
            )
        case TurnTimedOut(limit=limit):
            message = f"the turn passed its limit: {limit}"
            return TaskStatus.TIMED_OUT, StepError(
                code="timed_out", message=message, retriable=_may_repeat(end)
            )
        case TurnIndeterminate(cause=cause):
            message = f"nobody can tell whether the agent did it: {cause}"
            return TaskStatus.FAILED, StepError(code="indeterminate", message=message, retriable=False)


def ending_event(task: Task, status: TaskStatus, turn_id: TurnId) -> Event:
    """The event that tells of the task's end, with the step and the turn at which it came."""
    classes: dict[TaskStatus, type[TaskCompleted | TaskFailed | TaskCancelled | TaskTimedOut]] = {
        TaskStatus.COMPLETED: TaskCompleted,
        TaskStatus.FAILED: TaskFailed,
        TaskStatus.CANCELLED: TaskCancelled,
        TaskStatus.TIMED_OUT: TaskTimedOut,
    }
    return classes[status](task_id=task.id, step=task.step.name, turn_id=turn_id)


def turn_request(
    step: TaskStep | StepRequest, *, prompt: str = "", retry_of: TurnId | None = None
) -> PromptRequest:
    """What a step's turn is admitted with, in order like any other that may wait."""
    return PromptRequest(
        prompt=prompt, multitask_strategy="enqueue", deadline_s=step.deadline_s, retry_of=retry_of
    )
