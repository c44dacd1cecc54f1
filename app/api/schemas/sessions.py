"""Bodies of sessions: what may be changed, how one is closed, and how one looks."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, field_validator
from pydantic.json_schema import SkipJsonSchema

from app.api.schemas.bodies import MAX_CLOCK_S, ListView, RequestBody, Timestamp, View, is_null
from app.api.schemas.text import ONE_LINE, STORABLE, Name, Title
from app.domain.events import Opened
from app.domain.sessions import Activity, CloseMode, PermissionPolicy, Session, SessionChange, SessionStatus
from app.engine.diffs import WorkingTreeDiff

MAX_LABELS = 64
"""Labels of one session."""
OWN_LABELS = frozenset({"origin", "session", "chat", "project", "worktree", "agent", "alameda_key"})
"""Label names that are ours at the backend."""


def _labels(labels: dict[str, str]) -> dict[str, str]:
    for name in labels:
        if name in OWN_LABELS:
            raise ValueError(f"{name!r} is a label of ours; take another name")
        if ":" in name:
            raise ValueError("a label's name must not hold a colon")
    return labels


Labels = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64), ONE_LINE, STORABLE],
        Annotated[str, StringConstraints(max_length=256), ONE_LINE, STORABLE],
    ],
    Field(max_length=MAX_LABELS),
    AfterValidator(_labels),
]
"""A session's labels, all of them."""


class PolicyBody(RequestBody):
    """Who answers permission requests, and what happens when nobody does."""

    mode: Literal["ask", "allow", "deny"] | None = Field(None, json_schema_extra={"default": "ask"})
    timeout_s: Annotated[float, Field(ge=1, le=MAX_CLOCK_S)] | None = Field(
        None, json_schema_extra={"default": 900}
    )
    on_timeout: Literal["deny", "allow"] | None = Field(None, json_schema_extra={"default": "deny"})

    def to_domain(self) -> PermissionPolicy:
        """The whole policy: what is not said has its default."""
        return PermissionPolicy(**{name: value for name, value in self if value is not None})


def optional_policy(body: PolicyBody | None) -> PermissionPolicy | None:
    """The policy that a body names; null if it names none."""
    return body.to_domain() if body is not None else None


class PatchSession(RequestBody):
    """Settings to change; what is absent stays."""

    model: Name | SkipJsonSchema[None] = None
    mode: Name | SkipJsonSchema[None] = None
    thinking: Name | SkipJsonSchema[None] = None
    title: Title | SkipJsonSchema[None] = None
    labels: Labels | SkipJsonSchema[None] = None
    permission_policy: PolicyBody | SkipJsonSchema[None] = None

    @field_validator("*", mode="before")
    @classmethod
    def _is_said(cls, value: object) -> object:
        if value is None:
            raise ValueError("a setting cannot be cleared; leave it out to keep it as it is")
        return value

    def to_domain(self) -> SessionChange:
        """The change."""
        return SessionChange(
            model=self.model,
            mode=self.mode,
            thinking=self.thinking,
            title=self.title,
            labels=self.labels,
            permission_policy=optional_policy(self.permission_policy),
        )


class CloseBody(RequestBody):
    """How to close: cancel the open turn, or let it end first."""

    mode: CloseMode | None = Field(None, json_schema_extra={"default": "cancel"})

    def to_domain(self) -> CloseMode:
        """The mode; `cancel` if none is said."""
        return self.mode or "cancel"


class PolicyView(View):
    """Who answers permission requests, and what happens when nobody does."""

    mode: Literal["ask", "allow", "deny"]
    timeout_s: float
    on_timeout: Literal["deny", "allow"]


class SessionView(View):
    """A session."""

    session_id: str
    opened: Opened | None = Field(None, exclude_if=is_null, description="How; in answers to ensure only.")
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


class SessionList(ListView[SessionView]):
    """Sessions, newest first."""


class ChangedFileView(View):
    """A file that differs; no counts for a binary one."""

    path: str = Field(description="Relative to `root`.")
    additions: int | None
    deletions: int | None


class DiffView(View):
    """What differs between a commit and the working tree, files that git does not know yet included."""

    root: str = Field(description="The working tree's directory.")
    base: str | None = Field(description="The commit that was compared with; null if there is none yet.")
    files: list[ChangedFileView]
    diff: str = Field(description="A unified diff.")
    truncated: bool = Field(description="Whether more differs than is told: a bound of size or time was met.")

    @classmethod
    def from_domain(cls, found: WorkingTreeDiff) -> Self:
        """The diff of a session's working tree."""
        files = [
            ChangedFileView(path=one.path, additions=one.additions, deletions=one.deletions)
            for one in found.files
        ]
        return cls(root=found.root, base=found.base, files=files, diff=found.diff, truncated=found.truncated)
