"""What can be asked of the daemon about agents, by name."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from app.paseo.frames import Resolution
from app.paseo.requests import Requests
from app.paseo.snapshots import Agent, AgentAnswer, AgentPage, Archived, Done, Loaded

T = TypeVar("T")


class Allow(
    msgspec.Struct, frozen=True, rename="camel", tag_field="behavior", tag="allow", omit_defaults=True
):
    """Yes. A question's answers go into `updated_input`, under `answers`; ACP agents ignore all of it."""

    selected_action_id: str | None = None
    updated_input: Any = None
    updated_permissions: Any = None


class Deny(msgspec.Struct, frozen=True, rename="camel", tag_field="behavior", tag="deny", omit_defaults=True):
    """No; with `interrupt`, the turn is cancelled too."""

    selected_action_id: str | None = None
    message: str | None = None
    interrupt: bool = False


class Agents:
    """The agents of one daemon, those of other clients too."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    async def request(
        self,
        kind: str,
        fields: Mapping[str, Any],
        into: type[T],
        *,
        deadline: float | None = None,
        before_write: Callable[[], None] | None = None,
    ) -> T:
        """Any request of the kinds in `requests.DEADLINES`, by its own name."""
        return await self._requests.ask(kind, fields, into, deadline=deadline, before_write=before_write)

    async def fetch_agents(
        self,
        *,
        labels: Mapping[str, str] | None = None,
        include_archived: bool = True,
        limit: int = 200,
        cursor: str | None = None,
    ) -> AgentPage:
        """A page of agents, newest first; all given labels must match."""
        filters: dict[str, Any] = {"includeArchived": include_archived}
        if labels:
            filters["labels"] = labels
        page = {"limit": limit} if cursor is None else {"limit": limit, "cursor": cursor}
        return await self.request("fetch_agents_request", {"filter": filters, "page": page}, AgentPage)

    async def fetch_agent(self, agent_id: str) -> Agent:
        """The agent as it is; this loads nothing."""
        return (await self.request("fetch_agent_request", {"agentId": agent_id}, AgentAnswer)).agent

    async def create_agent(
        self,
        provider: str,
        cwd: str,
        *,
        labels: Mapping[str, str] | None = None,
        git: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> Agent:
        """Make an agent; find it again by its labels if the answer is lost.

        `config` as on the wire: `title`, `model`, `modeId`, `thinkingOptionId`, `systemPrompt`, `mcpServers`;
        `git` too, for a new worktree.
        The directory may be moved to its repository's root, a wrong model or mode is taken and not used:
        compare what comes back. Secrets in `config` are shown to every client.
        """
        given = {name: value for name, value in config.items() if value is not None}
        fields = {"config": {"provider": provider, "cwd": cwd, **given}, "labels": labels or {}}
        if git is not None:
            fields["git"] = git
        return (await self.request("create_agent_request", fields, AgentAnswer)).agent

    async def import_agent(
        self, provider: str, session_id: str, *, cwd: str, labels: Mapping[str, str] | None = None
    ) -> Agent:
        """A new agent on a session of the provider, also if another agent has it, or if it never existed."""
        fields = {"provider": provider, "sessionId": session_id, "cwd": cwd, "labels": labels or {}}
        return (await self.request("import_agent_request", fields, AgentAnswer)).agent

    async def open_project(self, cwd: str) -> None:
        """Have the daemon know a directory; agents in one that it does not know stand in no list."""
        await self.request("open_project_request", {"cwd": cwd}, Done)

    async def refresh_agent(self, agent_id: str, *, deadline: float | None = None) -> int | None:
        """Start the agent's process anew; how many rows it has then. Unarchives, and may double history."""
        answer = await self.request("refresh_agent_request", {"agentId": agent_id}, Loaded, deadline=deadline)
        return answer.timeline_size

    async def send_message(
        self,
        agent_id: str,
        text: str,
        *,
        message_id: str,
        images: list[dict[str, str]] | None = None,
        attachments: list[dict[str, Any]] | None = None,
        before_write: Callable[[], None] | None = None,
    ) -> None:
        """Prompt. The same `message_id` twice runs twice; a running turn is replaced; an archive is undone.

        `before_write` runs right before the prompt leaves; what it raises keeps it from leaving.
        """
        fields: dict[str, Any] = {"agentId": agent_id, "text": text, "messageId": message_id}
        if images:
            fields["images"] = images
        if attachments:
            fields["attachments"] = attachments
        await self.request("send_agent_message_request", fields, Done, before_write=before_write)

    async def cancel(self, agent_id: str, *, deadline: float | None = None) -> None:
        """Cancel the turn, if one runs. No answer: no such agent, or it is not loaded."""
        await self.request("cancel_agent_request", {"agentId": agent_id}, Done, deadline=deadline)

    async def set_mode(self, agent_id: str, mode_id: str, *, deadline: float | None = None) -> None:
        """Set the mode. An unknown one is taken too, and an agent whose process is dead never answers."""
        fields = {"agentId": agent_id, "modeId": mode_id}
        await self.request("set_agent_mode_request", fields, Done, deadline=deadline)

    async def set_model(self, agent_id: str, model_id: str | None) -> None:
        """Set the model; as `set_mode`."""
        await self.request("set_agent_model_request", {"agentId": agent_id, "modelId": model_id}, Done)

    async def set_thinking(self, agent_id: str, option_id: str | None) -> None:
        """Set how hard it thinks; as `set_mode`."""
        fields = {"agentId": agent_id, "thinkingOptionId": option_id}
        await self.request("set_agent_thinking_request", fields, Done)

    async def update_agent(
        self, agent_id: str, *, name: str | None = None, labels: Mapping[str, str] | None = None
    ) -> None:
        """Rename it, or add and replace labels."""
        changes = {"name": name, "labels": labels}
        fields = {"agentId": agent_id, **{key: value for key, value in changes.items() if value is not None}}
        await self.request("update_agent_request", fields, Done)

    async def clear_attention(self, agent_id: str) -> None:
        """Lower the flag of the last end. An unknown agent gets no answer."""
        await self.request("clear_agent_attention", {"agentId": agent_id}, Done)

    async def archive(self, agent_id: str, *, deadline: float | None = None) -> str:
        """Put it away, with its process, also in mid-turn; when that was."""
        answer = await self.request(
            "archive_agent_request", {"agentId": agent_id}, Archived, deadline=deadline
        )
        return answer.archived_at

    async def delete(self, agent_id: str) -> None:
        """Forget it; also one that is not there. The provider's files stay."""
        await self.request("delete_agent_request", {"agentId": agent_id}, Done)

    async def answer_permission(self, agent_id: str, permission_id: str, answer: Allow | Deny) -> Resolution:
        """Answer a permission request; what comes back is the answer that counted, maybe another client's.

        Raises:
            RpcError: it is resolved already (`Reason.PERMISSION_GONE`).
        """
        return await self._requests.resolve(agent_id, permission_id, answer)
