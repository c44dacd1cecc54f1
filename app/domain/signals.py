"""What a backend tells of its agent: the vocabulary of the port between an adapter and the engine.

An adapter translates its own frames into these, in order; the engine makes the log's events of them
(ids, what is opened and closed, the turn's state). A signal carries no id of ours.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from app.domain.details import Detail
from app.domain.events import (
    CompactionUpdated,
    Delivered,
    ErrorCode,
    Location,
    Notice,
    PermissionKind,
    PermissionOption,
    PermissionOutcome,
    PlanEntry,
    Question,
    TokenUsage,
    ToolKind,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """A piece of a message; a new `message` (the backend's own id) or another role begins a new one."""

    text: str
    message: str | None = None
    role: Literal["assistant", "user"] = "assistant"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningPiece:
    """A piece of reasoning."""

    text: str
    message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool call as it now stands, whole; `call` is the backend's own id, unique within its turn."""

    call: str
    name: str | None
    title: str | None
    kind: ToolKind
    status: Literal["in_progress", "completed", "failed", "cancelled"]
    detail: Detail
    locations: tuple[Location, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The plan as it now stands."""

    entries: tuple[PlanEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens and money so far."""

    usage: TokenUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What is in force at the backend; reported whole."""

    model: str | None
    mode: str | None
    thinking: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionAsked:
    """The agent waits for an answer to `request` (the backend's own id, unique while it is pending)."""

    request: str
    kind: PermissionKind
    title: str
    description: str | None = None
    call: str | None = None
    detail: Detail | None = None
    input: Any = None
    options: tuple[PermissionOption, ...] = ()
    questions: tuple[Question, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionSettled:
    """The backend's resolution of `request`, which is the truth: whoever answered."""

    request: str
    outcome: PermissionOutcome
    option_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnEnded:
    """The agent ended its turn by itself; `stop_reason` is ACP's word, or null where the backend has none."""

    stop_reason: str | None
    usage: TokenUsage | None = None
    reconciled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnStopped:
    """The agent's turn was cancelled: by us if we asked, else by `cause`."""

    cause: Literal["other_client", "replaced", "permission"] = "other_client"
    is_forced: bool = False
    """Whether the agent did not obey, and its process is ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnBroke:
    """The agent's turn ended with an error."""

    code: ErrorCode
    message: str
    retriable: bool = False
    delivered: Delivered = "yes"


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnUnknown:
    """The backend can no longer tell how the turn ended; `delivered` is what it knows of the prompt."""

    cause: str
    delivered: Delivered = "yes"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentDied:
    """The agent's process is gone, and with it everything that was pending; it has to be loaded again."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestsExpired:
    """Whatever the agent had asked can be answered no more: it is another process now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLost:
    """The link to the backend is down; the turn may go on behind it."""

    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRestored:
    """The link is back, and what happened meanwhile has been told.

    `pending` are the requests that still wait there; any other was answered while nobody looked.
    """

    pending: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignActivity:
    """Somebody else keeps the agent busy, or no longer does."""

    busy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryTold:
    """The history of a session that was adopted has been told to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StillRunning:
    """A sign of life of the turn, from a backend that tells no more of it before its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """The backend can no longer tell what happened between its positions `start` and `end`."""

    start: int | None
    end: int | None
    cause: str


TurnEnd: TypeAlias = TurnEnded | TurnStopped | TurnBroke | TurnUnknown
Signal: TypeAlias = (
    TextDelta
    | ReasoningPiece
    | ToolCall
    | Plan
    | Usage
    | Config
    | PermissionAsked
    | PermissionSettled
    | TurnEnd
    | AgentDied
    | RequestsExpired
    | LinkLost
    | LinkRestored
    | ForeignActivity
    | HistoryTold
    | StillRunning
    | Gap
    | CompactionUpdated
    | Notice
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """The backend's own position after a report: what to ask it for from here on."""

    epoch: str
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Signals that belong together: committed in one transaction, with the backend's position after them.

    `attempt` is the key under which the engine sent the prompt that they belong to; null for what happened
    outside our turns.
    """

    attempt: str | None
    signals: tuple[Signal, ...] = field(default=())
    cursor: Cursor | None = None
