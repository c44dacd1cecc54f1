"""Bodies of permissions: the agent's question, and a person's answer."""

from typing import Any, Literal, Self

import msgspec
from pydantic import Field

from app.api.schemas.bodies import ListView, RequestBody, Timestamp, View
from app.api.schemas.text import JsonObject, LongText, Name, PlainJson
from app.domain.events import PermissionKind, PermissionOutcome, ResolvedBy
from app.domain.permissions import Permission, PermissionStatus, Response


class RespondBody(RequestBody):
    """A person's answer to a permission request."""

    outcome: Literal["allow", "deny"]
    option_id: Name | None = None
    message: LongText | None = None
    updated_input: PlainJson | None = None
    answers: JsonObject | None = Field(None, description="To the request's questions.")
    interrupt: bool | None = Field(None, json_schema_extra={"default": False})

    def to_domain(self) -> Response:
        """The answer."""
        return Response(
            outcome=self.outcome,
            option_id=self.option_id,
            message=self.message,
            updated_input=self.updated_input,
            answers=self.answers,
            interrupt=bool(self.interrupt),
        )


class PermissionOptionView(View):
    """A choice that the backend honours."""

    option_id: str
    label: str
    kind: str


class QuestionView(View):
    """A question to a person, with suggested answers."""

    question: str
    header: str | None
    options: list[str]
    multiple: bool


class PermissionView(View):
    """A permission: the agent's question before it acts."""

    permission_id: str
    session_id: str
    turn_id: str | None
    tool_call_id: str | None
    kind: PermissionKind
    title: str
    description: str | None
    detail: dict[str, Any] | None
    input: Any
    options: list[PermissionOptionView]
    questions: list[QuestionView]
    status: PermissionStatus
    outcome: PermissionOutcome | None
    option_id: str | None
    by: ResolvedBy | None
    actor: str | None
    requested_at: Timestamp
    expires_at: Timestamp | None
    resolved_at: Timestamp | None

    @classmethod
    def from_domain(cls, permission: Permission) -> Self:
        """A permission with all that a person needs to decide on it."""
        return cls(
            permission_id=permission.id,
            session_id=permission.session_id,
            turn_id=permission.turn_id,
            tool_call_id=permission.tool_call_id,
            kind=permission.kind,
            title=permission.title,
            description=permission.description,
            detail=msgspec.to_builtins(permission.detail),
            input=permission.input,
            options=[PermissionOptionView(**msgspec.structs.asdict(option)) for option in permission.options],
            questions=[QuestionView(**msgspec.to_builtins(question)) for question in permission.questions],
            status=permission.status,
            outcome=permission.outcome,
            option_id=permission.option_id,
            by=permission.by,
            actor=permission.actor,
            requested_at=permission.requested_at,
            expires_at=permission.expires_at,
            resolved_at=permission.resolved_at,
        )


class PermissionList(ListView[PermissionView]):
    """Permissions, newest first."""
