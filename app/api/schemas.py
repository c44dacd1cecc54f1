"""Request and response bodies: strangers' JSON into the domain's values, and back.

A request field that is absent or null is "not said". The bounds are the contract's own; an operator may have
set lower ones, which the engine knows.
"""

import binascii
import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

import msgspec
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from app.backends.base import Choice, Provider
from app.domain.events import (
    CancelOutcome,
    Delivered,
    ErrorCode,
    Limit,
    Opened,
    PermissionKind,
    PermissionOutcome,
    ResolvedBy,
    ToolKind,
    ToolStatus,
)
from app.domain.ids import SESSION_ID_PATTERN, Owner, SessionId
from app.domain.items import Item, MessageItem
from app.domain.keys import ApiKey, Scope
from app.domain.permissions import Permission, PermissionStatus, Response
from app.domain.sessions import (
    Activity,
    CloseMode,
    EnsureRequest,
    IfExists,
    PermissionPolicy,
    Session,
    SessionChange,
    SessionStatus,
)
from app.domain.text import is_storable, timestamp
from app.domain.turns import OnDisconnect, PromptRequest, Strategy, Turn, TurnStatus

MAX_PROMPT_BYTES = 256 * 1024
"""UTF-8 bytes of a prompt's text, and of a system prompt."""
MAX_ATTACHMENTS = 20
MAX_METADATA_BYTES = 16 * 1024
"""UTF-8 bytes of a turn's metadata as compact JSON."""
MAX_MCP_BYTES = 64 * 1024
"""UTF-8 bytes of `mcp_servers` as compact JSON."""
MAX_LABELS = 64
MAX_CLOCK_S = 7 * 24 * 3600
"""Seconds that any clock of a turn or a permission may run."""
MAX_INTEGER = 2**63 - 1
"""Integers in free JSON fit 64 bits, as the readers of most languages want."""

OWN_LABELS = frozenset({"origin", "session", "chat", "project", "worktree", "agent", "alameda_key"})
"""Label names that are ours at the backend."""


# Building blocks.


def _storable(value: Any) -> Any:
    if isinstance(value, str) and not is_storable(value):
        raise ValueError("must hold neither NUL nor half a surrogate pair")
    return value


def _one_line(text: str) -> str:
    if any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in text):
        raise ValueError("must not hold control characters")
    return text


def _at_most_bytes(limit: int) -> AfterValidator:
    def check(text: str) -> str:
        if len(text.encode()) > limit:
            raise ValueError(f"must have at most {limit} bytes of UTF-8")
        return text

    return AfterValidator(check)


def _plain_json(value: Any) -> Any:
    """Refuse what Python's parser lets pass but other readers of JSON, or PostgreSQL, do not."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str() as text:
                _storable(text)
            case float() as number if not math.isfinite(number):
                raise ValueError("must not hold NaN or infinite numbers")
            case bool():
                pass
            case int() as number if abs(number) > MAX_INTEGER:
                raise ValueError("must not hold integers beyond 64 bits")
            case dict() as members:
                waiting += members.keys()
                waiting += members.values()
            case list() as items:
                waiting += items
    return value


def _json_at_most(limit: int) -> AfterValidator:
    def check(value: Any) -> Any:
        if len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()) > limit:
            raise ValueError(f"must have at most {limit} bytes as JSON")
        return value

    return AfterValidator(check)


def _is_null(value: object) -> bool:
    return value is None


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _image_data(text: str) -> str:
    try:
        binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        raise ValueError("must be base64 (RFC 4648, section 4)") from None
    return text


def _labels(labels: dict[str, str]) -> dict[str, str]:
    for name in labels:
        if name in OWN_LABELS:
            raise ValueError(f"{name!r} is a label of ours; take another name")
        if ":" in name:
            raise ValueError("a label's name must not hold a colon")
    return labels


_STORABLE = BeforeValidator(_storable)
_ONE_LINE = AfterValidator(_one_line)

Text = Annotated[str, _STORABLE]
"""Any text that the database and UTF-8 can hold."""
Name = Annotated[str, StringConstraints(min_length=1, max_length=128), _ONE_LINE, _STORABLE]
"""A name from elsewhere: of an agent, a chat, a project, a model."""
LongName = Annotated[str, StringConstraints(min_length=1, max_length=255), _ONE_LINE, _STORABLE]
"""A branch or a file."""
SessionIdText = Annotated[str, StringConstraints(pattern=SESSION_ID_PATTERN), _STORABLE]
LongText = Annotated[str, _at_most_bytes(MAX_PROMPT_BYTES), _STORABLE]
PromptText = Annotated[
    str, StringConstraints(min_length=1, pattern=r"\S"), _at_most_bytes(MAX_PROMPT_BYTES), _STORABLE
]
Title = Annotated[str, StringConstraints(min_length=1, max_length=200), _ONE_LINE, _STORABLE]
Path = Annotated[str, StringConstraints(min_length=1, max_length=4096), _STORABLE]
Labels = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64), _ONE_LINE, _STORABLE],
        Annotated[str, StringConstraints(max_length=256), _ONE_LINE, _STORABLE],
    ],
    Field(max_length=MAX_LABELS),
    AfterValidator(_labels),
]
PlainJson = Annotated[Any, AfterValidator(_plain_json)]
JsonObject = Annotated[dict[str, Any], BeforeValidator(_plain_json)]
Clock = Annotated[float, Field(gt=0, le=MAX_CLOCK_S)]
"""Seconds."""

Timestamp = Annotated[
    datetime,
    PlainSerializer(timestamp, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""RFC 3339 in UTC with milliseconds."""

T = TypeVar("T")


class _Request(BaseModel):
    # Strict: "3" is no number. Hidden: a stray repr in a log shows no prompt.
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class _View(BaseModel):
    model_config = ConfigDict(hide_input_in_errors=True)


class ListView(_View, Generic[T]):
    """A page of a list, newest first."""

    items: list[T]
    next_cursor: str | None = Field(None, description="`cursor` of the next page; null on the last.")


# Sessions.


class PolicyBody(_Request):
    """Who answers permission requests, and what happens when nobody does."""

    mode: Literal["ask", "allow", "deny"] | None = Field(None, json_schema_extra={"default": "ask"})
    timeout_s: Annotated[float, Field(ge=1, le=MAX_CLOCK_S)] | None = Field(
        None, json_schema_extra={"default": 900}
    )
    on_timeout: Literal["deny", "allow"] | None = Field(None, json_schema_extra={"default": "deny"})

    def to_domain(self) -> PermissionPolicy:
        """The whole policy: what is not said has its default."""
        return PermissionPolicy(**_said(self))


class WorktreeBody(_Request):
    """A worktree that the backend is to make."""

    branch: LongName
    base: LongName | None = None


class _EnsureFields(_Request):
    agent: Name
    chat_id: Name | None = Field(None, description="Unique per agent; by default the session's id.")
    backend: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")] | None = None
    provider: Name | None = None
    cwd: Path | None = Field(None, description="Absolute, within the allowed roots.")
    worktree: WorktreeBody | None = None
    project_id: Name | None = None
    worktree_id: Name | None = None
    model: Name | None = None
    mode: Name | None = None
    thinking: Name | None = None
    title: Title | None = None
    system_prompt: LongText | None = Field(None, repr=False, description="Never shown again.")
    mcp_servers: Annotated[JsonObject, _json_at_most(MAX_MCP_BYTES)] | None = Field(
        None, repr=False, description="By name; never shown again."
    )
    labels: Labels | None = None
    provider_session_id: Name | None = Field(None, description="Adopts this session of the provider's.")
    if_exists: IfExists | None = Field(None, json_schema_extra={"default": "reuse"})
    permission_policy: PolicyBody | None = None

    def _ensure(self, session_id: SessionId | None) -> EnsureRequest:
        return EnsureRequest(
            agent=self.agent,
            session_id=session_id,
            chat_id=self.chat_id,
            backend=self.backend,
            provider=self.provider,
            cwd=self.cwd,
            worktree=self.worktree.model_dump() if self.worktree is not None else None,
            project_id=self.project_id,
            worktree_id=self.worktree_id,
            model=self.model,
            mode=self.mode,
            thinking=self.thinking,
            title=self.title,
            system_prompt=self.system_prompt,
            mcp_servers=self.mcp_servers,
            labels=self.labels,
            provider_session_id=self.provider_session_id,
            if_exists=self.if_exists or "reuse",
            permission_policy=_policy(self.permission_policy),
        )


class EnsureBody(_EnsureFields):
    """A session as it is wanted; its id stands in the path."""

    def to_domain(self, session_id: SessionId | None) -> EnsureRequest:
        """The request for the session of that id, or, if null, of the chat and agent."""
        return self._ensure(session_id)


class EnsureByChatBody(_EnsureFields):
    """A session as it is wanted, found by chat and agent; an id is made if none is given."""

    session_id: SessionIdText | None = None

    def to_domain(self) -> EnsureRequest:
        """The request for the session of the id in the body, or of the chat and agent."""
        return self._ensure(_session_id(self.session_id))


class PatchSession(_Request):
    """Settings to change; what is absent stays."""

    model: Name | None = None
    mode: Name | None = None
    thinking: Name | None = None
    title: Title | None = None
    labels: Labels | None = None
    permission_policy: PolicyBody | None = None

    def to_domain(self) -> SessionChange:
        """The change."""
        return SessionChange(
            model=self.model,
            mode=self.mode,
            thinking=self.thinking,
            title=self.title,
            labels=self.labels,
            permission_policy=_policy(self.permission_policy),
        )


class CloseBody(_Request):
    """How to close: cancel the open turn, or let it end first."""

    mode: CloseMode | None = Field(None, json_schema_extra={"default": "cancel"})

    def to_domain(self) -> CloseMode:
        """The mode; `cancel` if none is said."""
        return self.mode or "cancel"


class PolicyView(_View):
    """Who answers permission requests, and what happens when nobody does."""

    mode: Literal["ask", "allow", "deny"]
    timeout_s: float
    on_timeout: Literal["deny", "allow"]


class SessionView(_View):
    """A session."""

    session_id: str
    opened: Opened | None = Field(None, exclude_if=_is_null, description="How; in answers to ensure only.")
    chat_id: str
    agent: str
    backend: str
    backend_status: Literal["up", "down"]
    provider: str
    agent_session_id: str | None
    server_port: int | None
    requested_cwd: str | None
    cwd: str
    project_id: str | None
    worktree_id: str | None
    model: str | None
    mode: str | None
    thinking: str | None
    title: str | None
    labels: dict[str, str]
    status: SessionStatus
    activity: Activity
    current_turn_id: str | None
    pending_permissions: int
    oldest_seq: int
    last_seq: int
    permission_policy: PolicyView
    created_at: Timestamp
    last_active_at: Timestamp
    closed_at: Timestamp | None

    @classmethod
    def from_domain(cls, session: Session, *, opened: Opened | None = None, backend_up: bool) -> Self:
        """A session as its owner sees it: without the system prompt and the MCP servers."""
        return cls(**_session_fields(session, opened, backend_up))


class ClosedSessionView(SessionView):
    """A session that was closed, or is closing."""

    archived: bool | None = Field(
        description="False if the backend did not archive its agent (yet); null while the session drains."
    )

    @classmethod
    def from_domain(cls, session: Session, *, opened: Opened | None = None, backend_up: bool) -> Self:
        """A session and whether its agent was archived."""
        return cls(**_session_fields(session, opened, backend_up), archived=session.archived)


class DiffView(_View):
    """The working tree's diff, unified."""

    diff: str
    truncated: bool = False


def _session_fields(session: Session, opened: Opened | None, backend_up: bool) -> dict[str, Any]:
    policy = session.policy
    names = SessionView.model_fields.keys() - {"opened", "backend_status", "permission_policy"}
    return {
        **{name: getattr(session, name) for name in names},
        "opened": opened,
        "backend_status": "up" if backend_up else "down",
        "permission_policy": PolicyView(
            mode=policy.mode, timeout_s=policy.timeout_s, on_timeout=policy.on_timeout
        ),
        "labels": dict(session.labels),
    }


# Turns.


class ImageAttachment(_Request):
    """An image."""

    type: Literal["image"]
    mime_type: Annotated[
        str, StringConstraints(max_length=106, pattern=r"^image/[A-Za-z0-9.+-]{1,100}$"), _STORABLE
    ]
    data: Annotated[str, StringConstraints(min_length=4), AfterValidator(_image_data), _STORABLE] = Field(
        repr=False, description="Base64.", json_schema_extra={"contentEncoding": "base64"}
    )


class TextAttachment(_Request):
    """A named text, such as a log."""

    type: Literal["text"]
    name: LongName | None = None
    text: Text = Field(repr=False)


Attachment = Annotated[ImageAttachment | TextAttachment, Field(discriminator="type")]


class _PromptFields(_Request):
    # Not called `prompt`: PromptStreamBody has a method of that name.
    text: PromptText = Field(
        alias="prompt", repr=False, description=f"At most {MAX_PROMPT_BYTES} bytes of UTF-8."
    )
    attachments: Annotated[list[Attachment], Field(max_length=MAX_ATTACHMENTS)] | None = None
    multitask_strategy: Strategy | None = Field(None, json_schema_extra={"default": "reject"})
    on_disconnect: OnDisconnect | None = Field(None, json_schema_extra={"default": "continue"})
    queue_timeout_s: Annotated[float, Field(ge=0, le=MAX_CLOCK_S)] | None = Field(
        None, json_schema_extra={"default": 3600}
    )
    deadline_s: Clock | None = Field(None, json_schema_extra={"default": 3600})
    idle_timeout_s: Clock | None = Field(None, json_schema_extra={"default": 600})
    max_attempts: Annotated[int, Field(ge=1, le=10), BeforeValidator(_whole)] | None = Field(
        None, json_schema_extra={"default": 3}
    )
    metadata: Annotated[JsonObject, _json_at_most(MAX_METADATA_BYTES)] | None = Field(
        None, description="The caller's own; shown with the turn."
    )

    def _prompt(self) -> PromptRequest:
        said = {
            name: getattr(self, name)
            for name in _PromptFields.model_fields
            if name not in ("text", "attachments") and getattr(self, name) is not None
        }
        attachments = [part.model_dump(exclude_none=True) for part in self.attachments or ()]
        return PromptRequest(prompt=self.text, attachments=attachments, **said)


class PromptBody(_PromptFields):
    """A prompt."""

    def to_domain(self) -> PromptRequest:
        """The request; what is not said has its default."""
        return self._prompt()


class PromptStreamBody(_EnsureFields, _PromptFields):
    """A session as it is wanted, and a prompt for it."""

    session_id: SessionIdText | None = None

    def ensure(self) -> EnsureRequest:
        """The session's part."""
        return self._ensure(_session_id(self.session_id))

    def prompt(self) -> PromptRequest:
        """The prompt's part."""
        return self._prompt()


class ErrorView(_View):
    """Why a turn failed."""

    code: ErrorCode
    message: str
    retriable: bool


class UsageView(_View):
    """Tokens and money, each null where the backend does not tell."""

    input_tokens: int | None
    cached_input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None
    context_window_max: int | None
    context_window_used: int | None


class TurnView(_View):
    """A turn: one prompt and all that came of it."""

    turn_id: str
    session_id: str
    status: TurnStatus
    attempt: int
    max_attempts: int
    retry_of: str | None
    prompt: str
    metadata: dict[str, Any]
    output_text: str = Field(description="The assistant's text after the last tool call.")
    stop_reason: str | None
    usage: UsageView | None
    error: ErrorView | None
    cause: str | None
    limit: Limit | None
    delivered: Delivered | None
    cancel_outcome: CancelOutcome | None
    first_seq: int
    last_seq: int | None
    created_at: Timestamp
    started_at: Timestamp | None
    ended_at: Timestamp | None
    stream_url: str

    @classmethod
    def from_domain(cls, turn: Turn) -> Self:
        """A turn as its owner sees it."""
        return cls(
            turn_id=turn.id,
            session_id=turn.session_id,
            status=turn.status,
            attempt=turn.attempt,
            max_attempts=turn.request.max_attempts,
            retry_of=turn.request.retry_of,
            prompt=turn.request.prompt,
            metadata=dict(turn.request.metadata),
            output_text=turn.output_text,
            stop_reason=turn.stop_reason,
            usage=UsageView(**msgspec.structs.asdict(turn.usage)) if turn.usage is not None else None,
            error=ErrorView(**msgspec.structs.asdict(turn.error)) if turn.error is not None else None,
            cause=turn.cause,
            limit=turn.limit,
            delivered=turn.delivered,
            cancel_outcome=turn.cancel_outcome,
            first_seq=turn.first_seq,
            last_seq=turn.last_seq,
            created_at=turn.created_at,
            started_at=turn.started_at,
            ended_at=turn.ended_at,
            stream_url=f"/v1/turns/{turn.id}/events/stream",
        )


# Permissions.


class RespondBody(_Request):
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


class PermissionOptionView(_View):
    """A choice that the backend honours."""

    option_id: str
    label: str
    kind: str


class QuestionView(_View):
    """A question to a person, with suggested answers."""

    question: str
    header: str | None
    options: list[str]
    multiple: bool


class PermissionView(_View):
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


# The log, and a session at a glance.


class EventPage(_View):
    """A page of a session's log, ascending."""

    items: list[dict[str, Any]]
    next_after: int = Field(description="The last seq examined: `after` of the next page.")
    oldest_seq: int
    last_seq: int


class MessageView(_View):
    """A message or a stretch of reasoning, as far as it has come."""

    type: Literal["message", "reasoning"]
    turn_id: str | None
    message_id: str
    role: Literal["assistant", "user"]
    text: str
    is_open: bool


class ToolCallView(_View):
    """A tool call as it now stands."""

    type: Literal["tool_call"]
    turn_id: str | None
    tool_call_id: str
    name: str | None
    title: str | None
    kind: ToolKind
    status: ToolStatus
    locations: list[dict[str, Any]]
    detail: dict[str, Any]
    error: str | None
    is_open: bool


ItemView = Annotated[MessageView | ToolCallView, Field(discriminator="type")]


def item_view(item: Item) -> MessageView | ToolCallView:
    """A message, reasoning or tool call as its owner sees it."""
    if isinstance(item, MessageItem):
        return MessageView(
            type="reasoning" if item.role == "reasoning" else "message",
            turn_id=item.turn_id,
            message_id=item.message_id,
            role="user" if item.role == "user" else "assistant",
            text=item.text,
            is_open=item.is_open,
        )
    return ToolCallView(
        type="tool_call", turn_id=item.turn_id, is_open=item.is_open, **msgspec.to_builtins(item.call)
    )


class SnapshotView(_View):
    """A session at one instant: everything that its events up to `last_seq` tell of."""

    session: SessionView
    current_turn: TurnView | None
    queue: list[TurnView]
    pending_permissions: list[PermissionView]
    items: list[ItemView] = Field(description="Of the open turn, else of the last.")
    last_seq: int

    @classmethod
    def from_domain(
        cls,
        session: Session,
        *,
        backend_up: bool,
        current_turn: Turn | None,
        queue: Sequence[Turn],
        pending_permissions: Sequence[Permission],
        items: Sequence[Item],
    ) -> Self:
        """All of it from one read."""
        return cls(
            session=SessionView.from_domain(session, backend_up=backend_up),
            current_turn=TurnView.from_domain(current_turn) if current_turn is not None else None,
            queue=[TurnView.from_domain(turn) for turn in queue],
            pending_permissions=[PermissionView.from_domain(p) for p in pending_permissions],
            items=[item_view(item) for item in items],
            last_seq=session.last_seq,
        )


# Operations.


class DatabaseHealth(_View):
    """The database."""

    status: Literal["up", "down"]
    latency_ms: float | None = None
    version: str | None = None
    embedded: bool | None = None
    detail: str | None = None


class BackendHealth(_View):
    """A backend at the last look."""

    status: Literal["up", "down"]
    counted: bool = Field(description="Whether it counts for the service's own status.")
    latency_ms: float | None = None
    version: str | None = None
    tested: bool | None = Field(None, description="Whether Alameda was tested with that version.")
    detail: str | None = Field(None, description="What is wrong, and how to cure it.")


class StreamCounts(_View):
    """Streams of this replica."""

    open: int


class TurnCounts(_View):
    """Open turns."""

    running: int
    queued: int


class HealthView(_View):
    """The service's health; without a key only `status`."""

    status: Literal["ok", "degraded", "down"]
    version: str | None = Field(None, exclude_if=_is_null)
    uptime_s: float | None = Field(None, exclude_if=_is_null)
    database: DatabaseHealth | None = Field(None, exclude_if=_is_null)
    backends: dict[str, BackendHealth] | None = Field(None, exclude_if=_is_null)
    streams: StreamCounts | None = Field(None, exclude_if=_is_null)
    turns: TurnCounts | None = Field(None, exclude_if=_is_null)


class ProbeView(_View):
    """Whether the process answers, or is ready."""

    status: Literal["ok", "unready"]
    detail: str | None = Field(None, exclude_if=_is_null)


class CapabilitiesView(_View):
    """What a backend can do; the rest is `unsupported_by_backend`."""

    permissions: bool
    settings: bool
    attachments: list[str]
    system_prompt: bool
    mcp_servers: bool
    worktrees: bool
    imports: bool
    terminals: bool


class BackendView(BackendHealth):
    """A backend: its health, what it can do, and what it has to do."""

    name: str
    type: str
    default: bool
    draining: bool
    filesystem: Literal["shared", "remote"]
    capabilities: CapabilitiesView
    turns: TurnCounts


class ChoiceView(_View):
    """A model, a mode or a thinking option that may be set."""

    id: str
    label: str
    description: str | None


class ProviderView(_View):
    """A kind of agent that a backend can run. Empty lists: not known, anything may be tried."""

    id: str
    label: str
    available: bool
    detail: str | None
    models: list[ChoiceView]
    modes: list[ChoiceView]
    thinking: list[ChoiceView]

    @classmethod
    def from_domain(cls, provider: Provider) -> Self:
        """A provider and what may be chosen there."""
        return cls(
            id=provider.id,
            label=provider.label,
            available=provider.available,
            detail=provider.detail,
            models=_choices(provider.models),
            modes=_choices(provider.modes),
            thinking=_choices(provider.thinking),
        )


def _choices(choices: Sequence[Choice]) -> list[ChoiceView]:
    return [ChoiceView(id=c.id, label=c.label, description=c.description) for c in choices]


class CreateKeyBody(_Request):
    """An API key to be made."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=100), _ONE_LINE, _STORABLE]
    owner: Name | None = Field(None, json_schema_extra={"default": "default"})
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=16)] = Field(
        description="No scope implies another."
    )

    def owned_by(self) -> Owner:
        """The owner; `default` if none is said."""
        return Owner(self.owner or "default")


class KeyView(_View):
    """An API key, without its secret."""

    key_id: str
    owner: str
    name: str
    scopes: list[Scope]
    created_at: Timestamp
    revoked_at: Timestamp | None

    @classmethod
    def from_domain(cls, key: ApiKey) -> Self:
        """A key as it is listed."""
        return cls(**_key_fields(key))


class CreatedKeyView(KeyView):
    """A key just made, with its secret: shown this once."""

    key: str = Field(repr=False)

    @classmethod
    def made(cls, key: ApiKey, secret: str) -> Self:
        """A key and its whole text, `alm_<id>_<secret>`."""
        return cls(**_key_fields(key), key=secret)


def _key_fields(key: ApiKey) -> dict[str, Any]:
    return {
        "key_id": key.id,
        "owner": key.owner,
        "name": key.name,
        "scopes": list(key.scopes),
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
    }


class TicketBody(_Request):
    """The one stream that a ticket is to open."""

    session_id: SessionIdText | None = None
    turn_id: Name | None = None
    terminal_id: Name | None = None
    all: Literal[True] | None = Field(None, description="The stream over all sessions.")

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if sum(target is not None for target in self.__dict__.values()) != 1:
            raise ValueError("exactly one of session_id, turn_id, terminal_id, all must be given")
        return self


class TicketView(_View):
    """A ticket: `?ticket=` on its stream opens it before `expires_at`."""

    ticket: str = Field(repr=False)
    expires_at: Timestamp


class SessionList(ListView[SessionView]):
    """Sessions, newest first."""


class TurnList(ListView[TurnView]):
    """Turns of a session, newest first."""


class PermissionList(ListView[PermissionView]):
    """Permissions, newest first."""


class BackendList(ListView[BackendView]):
    """Every backend."""


class ProviderList(ListView[ProviderView]):
    """A backend's providers."""


class KeyList(ListView[KeyView]):
    """API keys, newest first."""


def _said(body: BaseModel) -> Mapping[str, Any]:
    return {name: value for name, value in body if value is not None}


def _policy(body: PolicyBody | None) -> PermissionPolicy | None:
    return body.to_domain() if body is not None else None


def _session_id(text: str | None) -> SessionId | None:
    return SessionId(text) if text is not None else None
