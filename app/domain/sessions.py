"""A session: one agent, working in one directory, for one chat."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeAlias

from app.domain.events import Opened
from app.domain.ids import Owner, Seq, SessionId, SessionKey, TurnId
from app.domain.signals import Cursor

SessionStatus: TypeAlias = Literal["active", "closing", "closed"]
Activity: TypeAlias = Literal["idle", "queued", "running", "requires_action"]
IfExists: TypeAlias = Literal["reuse", "update", "reject"]
CloseMode: TypeAlias = Literal["cancel", "drain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionPolicy:
    """Who answers permission requests, and what happens when nobody does."""

    mode: Literal["ask", "allow", "deny"] = "ask"
    timeout_s: float = 900
    on_timeout: Literal["deny", "allow"] = "deny"

    @property
    def needs_admin(self) -> bool:
        """Whether it lets the agent act without a person."""
        return "allow" in (self.mode, self.on_timeout)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsureRequest:
    """A session as a caller wants it; null is "not said": never compared, never changed."""

    agent: str
    session_id: SessionId | None = None
    chat_id: str | None = None
    backend: str | None = None
    provider: str | None = None
    cwd: str | None = None
    worktree: Mapping[str, Any] | None = None
    project_id: str | None = None
    worktree_id: str | None = None
    model: str | None = None
    mode: str | None = None
    thinking: str | None = None
    title: str | None = None
    system_prompt: str | None = None
    mcp_servers: Mapping[str, Any] | None = None
    labels: Mapping[str, str] | None = None
    provider_session_id: str | None = None
    if_exists: IfExists = "reuse"
    permission_policy: PermissionPolicy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionChange:
    """Settings to change; null leaves one alone."""

    model: str | None = None
    mode: str | None = None
    thinking: str | None = None
    title: str | None = None
    labels: Mapping[str, str] | None = None
    permission_policy: PermissionPolicy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session as it stands in the database."""

    key: SessionKey
    owner: Owner
    session_id: SessionId
    chat_id: str
    agent: str
    backend: str
    provider: str
    agent_session_id: str | None
    creation_key: str
    creating: bool
    server_port: int | None
    requested_cwd: str | None
    cwd: str
    project_id: str | None
    worktree_id: str | None
    model: str | None
    mode: str | None
    thinking: str | None
    title: str | None
    system_prompt: str | None = field(repr=False)
    mcp_servers: Mapping[str, Any] = field(repr=False)
    worktree: Mapping[str, Any] | None
    provider_session_id: str | None
    former_provider_session_id: str | None
    labels: Mapping[str, str]
    status: SessionStatus
    close_mode: CloseMode | None
    activity: Activity
    current_turn_id: TurnId | None
    pending_permissions: int
    agent_lost: bool
    foreign_busy: bool
    archived: bool | None
    oldest_seq: Seq
    last_seq: Seq
    policy: PermissionPolicy
    cursor: Cursor | None
    host: str | None
    host_generation: int
    host_is_alive: bool
    created_at: datetime
    last_active_at: datetime
    closed_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ensured:
    """What ensure found or made."""

    session: Session
    opened: Opened
    backend_up: bool
