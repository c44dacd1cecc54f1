"""A permission: the agent's question before it acts, and the nonce of the approval."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

from app.domain.events import PermissionKind, PermissionOption, PermissionOutcome, Question, ResolvedBy
from app.domain.ids import PermissionId, SessionId, SessionKey, TurnId

PermissionStatus: TypeAlias = Literal[
    "pending", "answering", "allowed", "denied", "unknown", "expired", "cancelled"
]
WAITING: frozenset[PermissionStatus] = frozenset({"pending", "answering"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A person's answer."""

    outcome: Literal["allow", "deny"]
    option_id: str | None = None
    message: str | None = None
    updated_input: Any = None
    answers: dict[str, Any] | None = None
    interrupt: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """A permission as it stands in the database."""

    id: PermissionId
    session: SessionKey
    session_id: SessionId
    turn_id: TurnId | None
    request: str
    tool_call_id: str | None
    kind: PermissionKind
    title: str
    description: str | None
    detail: Any
    input: Any
    options: tuple[PermissionOption, ...]
    questions: tuple[Question, ...]
    status: PermissionStatus
    outcome: PermissionOutcome | None
    option_id: str | None
    by: ResolvedBy | None
    actor: str | None
    refusal: str | None
    """Why the backend did not honour the last answer."""
    response: Response | None
    requested_at: datetime
    expires_at: datetime | None
    resolved_at: datetime | None
