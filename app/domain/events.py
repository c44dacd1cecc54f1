"""The closed union of durable events: each struct is the `data` of the event type that it names.

A struct's `type` is the public event name (noun, dot, what happened). Field order is the order on the wire.
"""

from typing import Any, ClassVar, Literal, TypeAlias

from msgspec import UNSET, Struct, UnsetType, field

from app.domain.details import Detail
from app.domain.text import Cut

Delivered: TypeAlias = Literal["yes", "no", "unknown"]
Limit: TypeAlias = Literal["queue", "deadline", "idle"]
CancelOutcome: TypeAlias = Literal["stopped", "forced", "backend_closed", "already_ended", "unconfirmed"]
CancelCause: TypeAlias = Literal[
    "caller",
    "interrupt",
    "replaced",
    "other_client",
    "permission",
    "session_closed",
    "disconnect",
    "shutdown",
]
ErrorCode: TypeAlias = Literal[
    "provider_error",
    "agent_process_dead",
    "backend_rejected",
    "backend_session_lost",
    "backend_unavailable",
    "empty_turn",
    "buffer_overflow",
    "internal_error",
]
Opened: TypeAlias = Literal["created", "reused", "resumed", "imported", "rebound", "replaced"]
ToolKind: TypeAlias = Literal[
    "read", "edit", "delete", "move", "search", "execute", "think", "fetch", "switch_mode", "other"
]
ToolStatus: TypeAlias = Literal["in_progress", "completed", "failed", "cancelled"]
PermissionKind: TypeAlias = Literal["tool", "plan", "question", "mode", "other"]
PermissionOutcome: TypeAlias = Literal["allowed", "denied", "cancelled", "unknown"]
ResolvedBy: TypeAlias = Literal["caller", "policy", "timeout", "backend", "turn_end"]
Severity: TypeAlias = Literal["overwrite", "merge"]
Overlap: TypeAlias = Literal["same_lines", "same_file"]
Resolution: TypeAlias = Literal["session_closed", "session_idle"]


class _Data(Struct, frozen=True, kw_only=True):
    type: ClassVar[str]


class Error(Struct, frozen=True, kw_only=True):
    """Why a turn failed; `retriable` says whether the same prompt may succeed later."""

    code: ErrorCode
    message: str
    retriable: bool


class TokenUsage(Struct, frozen=True, kw_only=True):
    """Tokens and money, each null where the backend does not tell."""

    input_tokens: int | None = None
    cached_input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    context_window_max: int | None = None
    context_window_used: int | None = None


class SessionOpened(_Data, frozen=True, kw_only=True):
    """The backend's agent is there: made, resumed, re-bound or replaced."""

    type: ClassVar[str] = "session.opened"
    how: Opened
    agent_session_id: str
    cwd: str | None
    model: str | None
    mode: str | None


class SessionUpdated(_Data, frozen=True, kw_only=True):
    """Settings of the session changed."""

    type: ClassVar[str] = "session.updated"
    changed: dict[str, Any]


class SessionClosed(_Data, frozen=True, kw_only=True):
    """The session was closed; `archived` is false if the backend did not archive its agent (yet)."""

    type: ClassVar[str] = "session.closed"
    reason: str
    archived: bool


class TurnQueued(_Data, frozen=True, kw_only=True):
    """A prompt was admitted; `position` 0 starts as soon as the agent is free."""

    type: ClassVar[str] = "turn.queued"
    position: int


class TurnStarted(_Data, frozen=True, kw_only=True):
    """An attempt is about to be sent to the agent."""

    type: ClassVar[str] = "turn.started"
    attempt: int
    prompt: str


class TurnRequiresAction(_Data, frozen=True, kw_only=True):
    """The turn waits for a person; the ids of all permissions that wait."""

    type: ClassVar[str] = "turn.requires_action"
    permission_ids: list[str]


class TurnReconciling(_Data, frozen=True, kw_only=True):
    """We lost sight of the agent and are finding out what happened."""

    type: ClassVar[str] = "turn.reconciling"
    cause: str


class TurnResumed(_Data, frozen=True, kw_only=True):
    """The turn goes on after `turn.requires_action` or `turn.reconciling`."""

    type: ClassVar[str] = "turn.resumed"
    cause: str


class TurnRetrying(_Data, frozen=True, kw_only=True):
    """An attempt failed before it was delivered; the next one comes after `delay_s` seconds."""

    type: ClassVar[str] = "turn.retrying"
    attempt: int
    delay_s: float
    error: Error


class TurnCompleted(_Data, frozen=True, kw_only=True):
    """The agent ended its turn by itself."""

    type: ClassVar[str] = "turn.completed"
    stop_reason: str | None
    usage: TokenUsage | None
    reconciled: bool = False


class TurnFailed(_Data, frozen=True, kw_only=True):
    """The turn ended with an error."""

    type: ClassVar[str] = "turn.failed"
    error: Error
    delivered: Delivered


class TurnTimedOut(_Data, frozen=True, kw_only=True):
    """The turn passed one of its limits and was stopped."""

    type: ClassVar[str] = "turn.timed_out"
    limit: Limit
    delivered: Delivered
    cancel_outcome: CancelOutcome | None


class TurnCancelled(_Data, frozen=True, kw_only=True):
    """The turn was cancelled, by whom `cause` says."""

    type: ClassVar[str] = "turn.cancelled"
    cause: CancelCause
    cancel_outcome: CancelOutcome | None


class TurnIndeterminate(_Data, frozen=True, kw_only=True):
    """The agent may or may not have done the work; nobody can tell, and it is never run again by itself."""

    type: ClassVar[str] = "turn.indeterminate"
    cause: str
    delivered: Delivered
    last_backend_event_at: str | None


class MessageDelta(_Data, frozen=True, kw_only=True):
    """A piece of a message."""

    type: ClassVar[str] = "message.delta"
    message_id: str
    role: Literal["assistant", "user"]
    text: str


class MessageCompleted(Cut, frozen=True, kw_only=True):
    """A whole message; one over 1 MiB keeps its head and tail."""

    type: ClassVar[str] = "message.completed"
    message_id: str
    role: Literal["assistant", "user"]
    text: str


class ReasoningDelta(_Data, frozen=True, kw_only=True):
    """A piece of the agent's reasoning."""

    type: ClassVar[str] = "reasoning.delta"
    message_id: str
    text: str


class ReasoningCompleted(Cut, frozen=True, kw_only=True):
    """A whole stretch of reasoning; one over 1 MiB keeps its head and tail."""

    type: ClassVar[str] = "reasoning.completed"
    message_id: str
    text: str


class Location(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A place in a file; lines count from 1."""

    path: str
    line: int | UnsetType = UNSET


class _ToolCall(_Data, frozen=True, kw_only=True):
    tool_call_id: str
    name: str | None
    title: str | None
    kind: ToolKind
    status: ToolStatus
    locations: list[Location]
    detail: Detail
    error: str | None


class ToolCallStarted(_ToolCall, frozen=True, kw_only=True):
    """A tool call began. Always before its `tool_call.completed`."""

    type: ClassVar[str] = "tool_call.started"


class ToolCallUpdated(_ToolCall, frozen=True, kw_only=True):
    """A tool call as it now stands: whole, not a patch."""

    type: ClassVar[str] = "tool_call.updated"


class ToolCallCompleted(_ToolCall, frozen=True, kw_only=True):
    """A tool call ended: completed, failed or cancelled."""

    type: ClassVar[str] = "tool_call.completed"


class PlanEntry(Struct, frozen=True, kw_only=True):
    """A step of the agent's plan."""

    text: str
    status: Literal["pending", "in_progress", "completed"]


class PlanUpdated(_Data, frozen=True, kw_only=True):
    """The agent's plan as it now stands."""

    type: ClassVar[str] = "plan.updated"
    entries: list[PlanEntry]


class UsageUpdated(TokenUsage, frozen=True, kw_only=True):
    """Tokens and money of the session so far."""

    type: ClassVar[str] = "usage.updated"


class ConfigUpdated(_Data, frozen=True, kw_only=True):
    """What is in force at the backend."""

    type: ClassVar[str] = "config.updated"
    model: str | None
    mode: str | None
    thinking: str | None


class CompactionUpdated(_Data, frozen=True, kw_only=True):
    """The agent compacted its context."""

    type: ClassVar[str] = "compaction.updated"
    status: str
    trigger: str | None
    tokens_before: int | None


class PermissionOption(Struct, frozen=True, kw_only=True):
    """A choice that the backend honours; `kind` is ACP's: allow_once, allow_always, reject_once, …"""

    option_id: str
    label: str
    kind: str


class Question(Struct, frozen=True, kw_only=True):
    """A question to a person, with suggested answers."""

    question: str
    header: str | None = None
    options: tuple[str, ...] = ()
    multiple: bool = False


class PermissionRequested(_Data, frozen=True, kw_only=True, omit_defaults=True):
    """The agent asks before it acts."""

    type: ClassVar[str] = "permission.requested"
    permission_id: str
    tool_call_id: str | UnsetType = UNSET
    kind: PermissionKind
    title: str
    description: str | None
    detail: Detail | None
    input: Any
    options: list[PermissionOption]
    questions: list[Question] | UnsetType = UNSET
    expires_at: str | None


class PermissionResolved(_Data, frozen=True, kw_only=True):
    """A permission was answered, or its turn ended."""

    type: ClassVar[str] = "permission.resolved"
    permission_id: str
    outcome: PermissionOutcome
    option_id: str | None
    by: ResolvedBy
    actor: str | None


class PermissionExpired(_Data, frozen=True, kw_only=True):
    """Nobody answered in time, or the agent that asked is gone."""

    type: ClassVar[str] = "permission.expired"
    permission_id: str
    outcome: PermissionOutcome
    option_id: str | None
    by: ResolvedBy
    actor: str | None


class CollisionSession(Struct, frozen=True, kw_only=True):
    """One of the sessions that touch the file."""

    session_id: str
    turn_id: str | None
    worktree_id: str | None
    kind: str
    at: str


class FileCollision(_Data, frozen=True, kw_only=True):
    """Two live sessions of one project write the same file; told once more if it comes to the same lines."""

    type: ClassVar[str] = "file.collision"
    collision_id: str
    path: str
    severity: Severity
    overlap: Overlap
    merge_conflict: bool | None
    sessions: list[CollisionSession]


class FileCollisionResolved(_Data, frozen=True, kw_only=True):
    """A collision is over: one of the sessions was closed, or has been idle for long."""

    type: ClassVar[str] = "file.collision_resolved"
    collision_id: str
    path: str
    severity: Severity
    overlap: Overlap
    sessions: list[CollisionSession]
    reason: Resolution


class TerminalOpened(_Data, frozen=True, kw_only=True):
    """A terminal was made through us."""

    type: ClassVar[str] = "terminal.opened"
    terminal_id: str
    name: str | None


class TerminalClosed(_Data, frozen=True, kw_only=True):
    """A terminal ended."""

    type: ClassVar[str] = "terminal.closed"
    terminal_id: str
    name: str | None


class _Task(_Data, frozen=True, kw_only=True):
    task_id: str
    step: str | None
    turn_id: str | None


class TaskStarted(_Task, frozen=True, kw_only=True):
    """A task begins to run: its first step's turn starts, or the first after a retry."""

    type: ClassVar[str] = "task.started"


class TaskStepStarted(_Task, frozen=True, kw_only=True):
    """A step's turn starts; again for every turn that the step gets."""

    type: ClassVar[str] = "task.step_started"


class TaskCompleted(_Task, frozen=True, kw_only=True):
    """Every step completed, or was allowed to fail."""

    type: ClassVar[str] = "task.completed"


class TaskFailed(_Task, frozen=True, kw_only=True):
    """A step failed, and the task stopped there."""

    type: ClassVar[str] = "task.failed"


class TaskCancelled(_Task, frozen=True, kw_only=True):
    """The task was cancelled."""

    type: ClassVar[str] = "task.cancelled"


class TaskTimedOut(_Task, frozen=True, kw_only=True):
    """A step passed its limit, and the task stopped there."""

    type: ClassVar[str] = "task.timed_out"


class BackendDisconnected(_Data, frozen=True, kw_only=True):
    """The link to the backend is down while a turn is open."""

    type: ClassVar[str] = "backend.disconnected"
    cause: str


class BackendReconnected(_Data, frozen=True, kw_only=True):
    """The link to the backend is back."""

    type: ClassVar[str] = "backend.reconnected"
    cause: str | None = None


class BackendGap(_Data, frozen=True, kw_only=True):
    """What the backend could no longer tell us: its own positions `from` to `to`, null where unknown."""

    type: ClassVar[str] = "backend.gap"
    from_: int | None = field(name="from")
    to: int | None
    cause: str


class Notice(_Data, frozen=True, kw_only=True):
    """Something that a person following the session should know."""

    type: ClassVar[str] = "notice"
    level: Literal["info", "warning", "error"]
    code: str
    message: str


Terminal: TypeAlias = TurnCompleted | TurnFailed | TurnTimedOut | TurnCancelled | TurnIndeterminate
Event: TypeAlias = (
    SessionOpened
    | SessionUpdated
    | SessionClosed
    | TurnQueued
    | TurnStarted
    | TurnRequiresAction
    | TurnReconciling
    | TurnResumed
    | TurnRetrying
    | Terminal
    | MessageDelta
    | MessageCompleted
    | ReasoningDelta
    | ReasoningCompleted
    | ToolCallStarted
    | ToolCallUpdated
    | ToolCallCompleted
    | PlanUpdated
    | UsageUpdated
    | ConfigUpdated
    | CompactionUpdated
    | PermissionRequested
    | PermissionResolved
    | PermissionExpired
    | FileCollision
    | FileCollisionResolved
    | TerminalOpened
    | TerminalClosed
    | TaskStarted
    | TaskStepStarted
    | TaskCompleted
    | TaskFailed
    | TaskCancelled
    | TaskTimedOut
    | BackendDisconnected
    | BackendReconnected
    | BackendGap
    | Notice
)

EVENT_CLASSES: dict[str, type[Event]] = {cls.type: cls for cls in Event.__args__}
"""Every durable event, by its public name, in the order of the contract."""

TERMINAL_TYPES = frozenset(cls.type for cls in Terminal.__args__)
"""The events that end a turn: exactly one a turn, and its last."""

DELTA_TYPES = frozenset({MessageDelta.type, ReasoningDelta.type})
"""What `deltas=false` leaves out."""
