"""Bodies of ensure-session: a session as it is wanted."""

from typing import Annotated

from pydantic import Field, StringConstraints

from app.api.schemas.bodies import RequestBody
from app.api.schemas.sessions import Labels, PolicyBody, optional_policy
from app.api.schemas.text import (
    JsonObject,
    LongName,
    LongText,
    Name,
    Path,
    SessionIdText,
    Title,
    json_at_most,
    optional_id,
)
from app.domain.ids import SessionId
from app.domain.sessions import EnsureRequest, IfExists

MAX_MCP_BYTES = 64 * 1024
"""UTF-8 bytes of `mcp_servers` as compact JSON."""


class WorktreeBody(RequestBody):
    """A worktree that the backend is to make."""

    branch: LongName
    base: LongName | None = None


class EnsureFields(RequestBody):
    """What every ensure says, prompt-stream's too."""

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
    mcp_servers: Annotated[JsonObject, json_at_most(MAX_MCP_BYTES)] | None = Field(
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
            permission_policy=optional_policy(self.permission_policy),
        )


class EnsureBody(EnsureFields):
    """A session as it is wanted; its id stands in the path."""

    def to_domain(self, session_id: SessionId | None) -> EnsureRequest:
        """The request for the session of that id, or, if null, of the chat and agent."""
        return self._ensure(session_id)


class EnsureByChatBody(EnsureFields):
    """A session as it is wanted, found by chat and agent; an id is made if none is given."""

    session_id: SessionIdText | None = None

    def to_domain(self) -> EnsureRequest:
        """The request for the session of the id in the body, or of the chat and agent."""
        return self._ensure(optional_id(self.session_id))
