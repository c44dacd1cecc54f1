"""The rows of a timeline: what was said, thought, done, and planned.

`AssistantMessage` and `Reasoning` are deltas, to be appended; `ToolCall` (by its `call_id`) and `Todo` are
whole and replace what came before.
"""

from typing import Any, TypeAlias

import msgspec

from app.paseo.decoding import Frame, Opaque, Tagged


class Shell(Tagged, frozen=True, tag="shell"):
    """A command line."""

    command: str = ""
    cwd: str | None = None
    output: str | None = None
    exit_code: int | None = None


class Read(Tagged, frozen=True, tag="read"):
    """A file read."""

    file_path: str = ""
    content: str | None = None
    offset: int | None = None
    limit: int | None = None


class Edit(Tagged, frozen=True, tag="edit"):
    """A file changed; ACP agents' writes and deletions come as edits too."""

    file_path: str = ""
    old_string: str | None = None
    new_string: str | None = None
    unified_diff: str | None = None


class Write(Tagged, frozen=True, tag="write"):
    """A file written."""

    file_path: str = ""
    content: str | None = None


class Search(Tagged, frozen=True, tag="search"):
    """A search in files or on the web."""

    query: str = ""
    tool_name: str | None = None
    content: str | None = None
    file_paths: list[str] | None = None
    web_results: list[Any] | None = None
    annotations: list[Any] | None = None
    num_files: int | None = None
    num_matches: int | None = None
    duration_ms: float | None = None
    duration_seconds: float | None = None
    truncated: bool | None = None
    mode: str | None = None


class Fetch(Tagged, frozen=True, tag="fetch"):
    """A page fetched."""

    url: str = ""
    prompt: str | None = None
    result: str | None = None
    code: int | None = None
    code_text: str | None = None
    bytes: int | None = None
    duration_ms: float | None = None


class SubAgent(Tagged, frozen=True, tag="sub_agent"):
    """Another agent, started by this one."""

    sub_agent_type: str | None = None
    description: str | None = None
    child_session_id: str | None = None
    log: str = ""
    actions: list[Any] | None = None


class PlainText(Tagged, frozen=True, tag="plain_text"):
    """A tool of which there is only a text."""

    label: str | None = None
    text: str | None = None
    icon: str | None = None


class Plan(Tagged, frozen=True, tag="plan"):
    """A plan to be approved."""

    text: str = ""


class WorktreeSetup(Tagged, frozen=True, tag="worktree_setup"):
    """The making of a git worktree."""

    worktree_path: str = ""
    branch_name: str = ""
    log: str = ""
    commands: list[Any] = msgspec.field(default_factory=list)
    truncated: bool | None = None


class UnknownTool(Tagged, frozen=True, tag="unknown"):
    """A tool that the daemon does not know: its input and output, any JSON."""

    input: Any = None
    output: Any = None


Detail: TypeAlias = (
    Shell
    | Read
    | Edit
    | Write
    | Search
    | Fetch
    | SubAgent
    | PlainText
    | Plan
    | WorktreeSetup
    | UnknownTool
    | Opaque
)


class UserMessage(Tagged, frozen=True, tag="user_message"):
    """A prompt; `message_id` is the sender's, or the provider's after a reload."""

    text: str = ""
    message_id: str | None = None


class AssistantMessage(Tagged, frozen=True, tag="assistant_message"):
    """A piece of the agent's answer."""

    text: str = ""
    message_id: str | None = None


class Reasoning(Tagged, frozen=True, tag="reasoning"):
    """A piece of the agent's thoughts."""

    text: str = ""


class ToolCall(Tagged, frozen=True, tag="tool_call"):
    """A tool call as it now stands: `running`, `completed`, `failed` or `canceled`."""

    call_id: str
    name: str = ""
    status: str = ""
    detail: Detail = UnknownTool()
    error: Any = None
    metadata: dict[str, Any] | None = None


class TodoItem(Frame, frozen=True):
    """One thing to do."""

    text: str = ""
    completed: bool = False


class Todo(Tagged, frozen=True, tag="todo"):
    """The whole list."""

    items: list[TodoItem] = msgspec.field(default_factory=list)


class ErrorItem(Tagged, frozen=True, tag="error"):
    """An error in the timeline; no provider is known to write one."""

    message: str = ""


class Compaction(Tagged, frozen=True, tag="compaction"):
    """The agent's context is being, or was, made smaller."""

    status: str = ""
    trigger: str | None = None
    pre_tokens: int | None = None


Item: TypeAlias = (
    UserMessage | AssistantMessage | Reasoning | ToolCall | Todo | ErrorItem | Compaction | Opaque
)
