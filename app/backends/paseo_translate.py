"""The daemon's words in ours: rows, permissions and usage become signals. Pure, and the only such place."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from app.domain import details
from app.domain.events import (
    CompactionUpdated,
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
from app.domain.signals import PermissionAsked, Plan, ReasoningPiece, Signal, TextDelta, ToolCall
from app.paseo import items
from app.paseo.decoding import Opaque
from app.paseo.frames import PermissionRequest, Resolution, Usage

SYSTEM_ERROR = "[System Error]"
"""How the daemon begins the row by which it tells of a failed turn: no answer of the agent."""
ABORTED = "Tool execution aborted"
"""What opencode calls a tool call that was broken off: cancelled, though it comes as `failed`."""

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
_PERMISSION_KINDS: tuple[PermissionKind, ...] = ("tool", "plan", "question", "mode", "other")


def row_signals(item: items.Item) -> list[Signal]:
    """What a row tells; a user's row tells nothing of its own, nor does one of an unknown kind."""
    match item:
        case items.AssistantMessage(text=text, message_id=message_id):
            return [] if is_system_error(item) else [TextDelta(text=text, message=message_id)]
        case items.Reasoning(text=text):
            return [ReasoningPiece(text=text)]
        case items.ToolCall():
            return [tool_call(item)]
        case items.Todo(items=todo):
            return [Plan(entries=_plan(todo))]
        case items.Compaction(status=status, trigger=trigger, pre_tokens=tokens):
            return [CompactionUpdated(status=status, trigger=trigger, tokens_before=tokens)]
        case items.ErrorItem(message=message):
            return [Notice(level="error", code="backend_error", message=message)]
        case items.UserMessage() | Opaque():
            return []


def is_system_error(item: items.Item) -> bool:
    """Whether the row is the daemon's word on a failed turn."""
    return isinstance(item, items.AssistantMessage) and item.text.startswith(SYSTEM_ERROR)


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
            return details.Shell(command=command, cwd=cwd, output=output, exit_code=exit_code)
        case items.Read(file_path=path, content=content, offset=offset, limit=limit):
            return details.Read(path=path, content=content, offset=offset, limit=limit)
        case items.Edit(file_path=path, old_string=old, new_string=new, unified_diff=diff):
            return details.Edit(path=path, old_text=old, new_text=new, diff=diff)
        case items.Write(file_path=path, content=content):
            return details.Write(path=path, content=content)
        case items.Search(query=query, file_paths=paths, content=content):
            return details.Search(query=query, paths=tuple(paths or ()), matches=content)
        case items.Fetch(url=url, code=code, result=result):
            return details.Fetch(url=url, status=code, result=result)
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
        input_tokens=usage.input_tokens,
        cached_input_tokens=usage.cached_input_tokens,
        output_tokens=usage.output_tokens,
        cost_usd=usage.total_cost_usd,
        context_window_max=usage.context_window_max_tokens,
        context_window_used=usage.context_window_used_tokens,
    )


def permission_asked(request: PermissionRequest) -> PermissionAsked:
    """A permission request, with the options that the daemon honours."""
    metadata = request.metadata or {}
    call = metadata.get("toolCallId")
    kind: PermissionKind = next((one for one in _PERMISSION_KINDS if one == request.kind), "other")
    return PermissionAsked(
        request=request.id,
        kind=kind,
        title=request.title or request.name or kind,
        description=request.description,
        call=call if isinstance(call, str) else None,
        detail=tool_detail(request.detail),
        input=request.input if request.input is not None else _raw_input(metadata),
        options=_options(request, metadata),
        questions=tuple(_questions(request.input)) if kind == "question" else (),
    )


def _raw_input(metadata: Mapping[str, Any]) -> Any:
    match metadata:
        case {"rawRequest": {"toolCall": {"rawInput": given}}}:
            return given
        case _:
            return None


def _options(request: PermissionRequest, metadata: Mapping[str, Any]) -> tuple[PermissionOption, ...]:
    """An ACP agent's answer is chosen by the daemon: of its options, only one for each answer counts."""
    if request.actions:
        return tuple(
            PermissionOption(
                option_id=str(action.get("id", "")),
                label=str(action.get("label", action.get("id", ""))),
                kind="allow_once" if action.get("behavior") == "allow" else "reject_once",
            )
            for action in request.actions
        )
    offered = [one for one in metadata.get("options") or [] if isinstance(one, dict)]
    honoured = (
        _first(offered, "allow_once", "allow_always"),
        _first(offered, "reject_once", "reject_always"),
    )
    return tuple(
        PermissionOption(
            option_id=str(one.get("optionId", "")), label=str(one.get("name", "")), kind=str(one["kind"])
        )
        for one in honoured
        if one is not None
    )


def _first(offered: list[dict[str, Any]], *kinds: str) -> dict[str, Any] | None:
    for kind in kinds:
        for one in offered:
            if one.get("kind") == kind:
                return one
    return None


def _questions(given: Any) -> list[Question]:
    found = given.get("questions") if isinstance(given, dict) else None
    questions = []
    for one in found if isinstance(found, list) else []:
        if isinstance(one, dict) and isinstance(one.get("question"), str):
            options = one.get("options") or []
            labels = [o.get("label") if isinstance(o, dict) else o for o in options]
            header = one.get("header")
            questions.append(
                Question(
                    question=one["question"],
                    header=header if isinstance(header, str) else None,
                    options=tuple(label for label in labels if isinstance(label, str)),
                    multiple=bool(one.get("multiple") or one.get("multiSelect")),
                )
            )
    return questions


def resolution_outcome(resolution: Resolution) -> PermissionOutcome:
    """How a permission ended; the daemon words a cancelled one as a denial that was interrupted."""
    match resolution.behavior:
        case "allow":
            return "allowed"
        case "deny":
            return "cancelled" if (resolution.message or "").lower() == "interrupted" else "denied"
        case _:
            return "unknown"
