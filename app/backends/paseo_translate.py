"""The daemon's words in ours: rows, permissions and usage become signals. Pure, and the only such place."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from app.backends.base import Unsupported
from app.domain import details
from app.domain.events import (
    CompactionUpdated,
    Location,
    Notice,
    PlanEntry,
    TokenUsage,
    ToolKind,
)
from app.domain.numbers import amount, count, whole
from app.domain.signals import Plan, ReasoningPiece, Signal, TextDelta, ToolCall
from app.paseo import items
from app.paseo.decoding import Opaque
from app.paseo.frames import Usage

SYSTEM_ERROR = "[System Error]"
"""How the daemon begins the row by which it tells of a failed turn: no answer of the agent."""
ABORTED = "Tool execution aborted"
"""What opencode calls a tool call that was broken off: cancelled, though it comes as `failed`."""
LOST = "[object Object]"
"""What this version of the daemon makes of an ACP agent's error."""

_KINDS: Mapping[str, ToolKind] = {
    "read": "read",
    "edit": "edit",
    "write": "edit",
    "delete": "delete",
    "move": "move",
    "search": "search",
    "grep": "search",
    "glob": "search",
    "execute": "execute",
    "shell": "execute",
    "bash": "execute",
    "think": "think",
    "fetch": "fetch",
    "webfetch": "fetch",
    "switch_mode": "switch_mode",
}
_STATUSES: Mapping[str, Literal["in_progress", "completed", "failed", "cancelled"]] = {
    "running": "in_progress",
    "completed": "completed",
    "failed": "failed",
    "canceled": "cancelled",
}


def row_signals(item: items.Item) -> list[Signal]:
    """What a row tells; a user's row tells nothing of its own, nor does one of an unknown kind."""
    match item:
        case items.AssistantMessage(text=text, message_id=message_id):
            return [] if system_error(item) is not None else [TextDelta(text=text, message=message_id)]
        case items.Reasoning(text=text):
            return [ReasoningPiece(text=text)]
        case items.ToolCall():
            return [tool_call(item)]
        case items.Todo(items=todo):
            return [Plan(entries=_plan(todo))]
        case items.Compaction(status=status, trigger=trigger, pre_tokens=tokens):
            return [CompactionUpdated(status=status, trigger=trigger, tokens_before=count(tokens))]
        case items.ErrorItem(message=message):
            return [Notice(level="error", code="backend_error", message=message)]
        case items.UserMessage() | Opaque():
            return []


def system_error(item: items.Item) -> str | None:
    """The daemon's word on a failed turn, if the row is one."""
    if isinstance(item, items.AssistantMessage) and item.text.startswith(SYSTEM_ERROR):
        return failure_words(item.text.removeprefix(SYSTEM_ERROR).strip())
    return None


def not_imported(provider: str, words: str) -> Unsupported:
    """That a provider is there, as everybody checks first, and its sessions cannot be adopted."""
    return Unsupported(f"sessions of the provider {provider} cannot be imported: {words}")


def failure_words(error: str) -> str:
    """Why a turn failed, in words: out of a provider's JSON, and plainly where the daemon lost them."""
    if error in ("", LOST):
        return f"the agent failed, and the daemon lost its words{error and f': {error}'}"
    try:
        found = msgspec.json.decode(error)
    except (msgspec.MsgspecError, ValueError):
        return error
    match found:
        case {"name": str(name), "data": {"message": str(message)}}:
            return f"{name}: {message}"
        case {"message": str(message)} | {"error": {"message": str(message)}}:
            return message
        case _:
            return error


def is_cancelled_tool(item: items.Item) -> bool:
    """Whether the row tells that a tool call was broken off."""
    return isinstance(item, items.ToolCall) and _status(item) == "cancelled"


def _status(call: items.ToolCall) -> Literal["in_progress", "completed", "failed", "cancelled"]:
    if call.status == "failed" and error_text(call.error) == ABORTED:
        return "cancelled"
    return _STATUSES.get(call.status, "in_progress")


def error_text(error: Any) -> str | None:
    """An error in words: null, a text, or an object with a `message`."""
    match error:
        case None | "":
            return None
        case str():
            return error
        case {"message": str(message)}:
            return message
        case _:
            return msgspec.json.encode(error).decode()


def tool_call(call: items.ToolCall) -> ToolCall:
    """A tool call as it now stands."""
    metadata = call.metadata or {}
    title = metadata.get("title")
    detail = tool_detail(call.detail)
    path = getattr(detail, "path", None)
    return ToolCall(
        call=call.call_id,
        name=call.name or None,
        title=title if isinstance(title, str) else call.name or None,
        kind=_kind(call, metadata),
        status=_status(call),
        detail=detail,
        locations=(Location(path=path),) if isinstance(path, str) and path else (),
        error=error_text(call.error),
    )


def _kind(call: items.ToolCall, metadata: Mapping[str, Any]) -> ToolKind:
    for word in (metadata.get("kind"), call.name, call.detail.__struct_config__.tag):
        if isinstance(word, str) and word.lower() in _KINDS:
            return _KINDS[word.lower()]
    return "other"


def tool_detail(detail: items.Detail) -> details.Detail:
    """What a tool call did, in our shape."""
    match detail:
        case items.Shell(command=command, cwd=cwd, output=output, exit_code=exit_code):
            return details.Shell(command=command, cwd=cwd, output=output, exit_code=whole(exit_code))
        case items.Read(file_path=path, content=content, offset=offset, limit=limit):
            return details.Read(path=path, content=content, offset=count(offset), limit=count(limit))
        case items.Edit(file_path=path, old_string=old, new_string=new, unified_diff=diff):
            return details.Edit(path=path, old_text=old, new_text=new, diff=diff)
        case items.Write(file_path=path, content=content):
            return details.Write(path=path, content=content)
        case items.Search(query=query, file_paths=paths, content=content):
            return details.Search(query=query, paths=tuple(paths or ()), matches=content)
        case items.Fetch(url=url, code=code, result=result):
            return details.Fetch(url=url, status=count(code), result=result)
        case items.SubAgent(description=description, log=log):
            return details.SubAgent(description=description, log=log)
        case items.Plan(text=text):
            return details.PlanText(text=text)
        case items.PlainText(label=label, text=text):
            return details.Text(label=label, text=text or "")
        case items.WorktreeSetup(worktree_path=path, branch_name=branch, log=log):
            return details.Text(label=f"worktree {branch} at {path}", text=log)
        case items.UnknownTool(input=given, output=output):
            return details.Unknown(input=given, output=output)
        case Opaque():
            return details.Unknown()


def _plan(todo: list[items.TodoItem]) -> tuple[PlanEntry, ...]:
    """The list as a plan: the first entry that is not done is the one in progress."""
    entries, current = [], True
    for entry in todo:
        if entry.completed:
            entries.append(PlanEntry(text=entry.text, status="completed"))
        else:
            entries.append(PlanEntry(text=entry.text, status="in_progress" if current else "pending"))
            current = False
    return tuple(entries)


def token_usage(usage: Usage | None) -> TokenUsage | None:
    """Tokens and money, if the provider tells."""
    if usage is None:
        return None
    return TokenUsage(
        input_tokens=count(usage.input_tokens),
        cached_input_tokens=count(usage.cached_input_tokens),
        output_tokens=count(usage.output_tokens),
        cost_usd=amount(usage.total_cost_usd),
        context_window_max=count(usage.context_window_max_tokens),
        context_window_used=count(usage.context_window_used_tokens),
    )
