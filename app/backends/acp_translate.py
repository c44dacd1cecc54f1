"""ACP's updates in our vocabulary. Pure, and nothing that an agent writes raises here."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from app.domain.details import (
    Detail,
    Edit,
    Fetch,
    PlanText,
    Read,
    Search,
    Shell,
    SubAgent,
    Text,
    Unknown,
    Write,
    bounded,
)
from app.domain.events import Location, PlanEntry, TokenUsage, ToolKind, ToolStatus
from app.domain.numbers import amount, count, whole
from app.domain.signals import Plan, ReasoningPiece, Signal, TextDelta, ToolCall, Usage
from app.domain.text import shorten
from app.domain.touches import LAST_LINE

MAX_ERROR = 2048
"""UTF-8 bytes of a failed tool call's error text."""

_PATCHED = ("title", "kind", "status", "content", "locations", "rawInput", "rawOutput", "_meta")
"""The parts of a tool call that an update replaces when it has them."""

_STATUSES: Mapping[str, ToolStatus] = {"completed": "completed", "failed": "failed", "cancelled": "cancelled"}
_KINDS: Mapping[str, ToolKind] = {kind: kind for kind in get_args(ToolKind)}
_STEPS = {"pending", "in_progress", "completed"}
_TOOL_NAME = re.compile(r"[A-Za-z][\w.-]{0,63}")


class Translator:
    """Turns updates into signals; keeps the tool calls of a turn, which ACP sends as patches."""

    def __init__(self) -> None:
        self._calls: dict[str, dict[str, Any]] = {}
        self._told: dict[str, ToolCall] = {}

    def forget(self) -> None:
        """Begin a new turn."""
        self._calls.clear()
        self._told.clear()

    def signals(self, update: Mapping[str, Any]) -> Iterator[Signal]:
        """What `update` tells; nothing for kinds that we do not know or that tell nothing new."""
        match update:
            case {"sessionUpdate": "agent_message_chunk", "content": content}:
                if text := block_text(content):
                    yield TextDelta(text=text, message=_string(update.get("messageId")))
            case {"sessionUpdate": "agent_thought_chunk", "content": content}:
                if text := block_text(content):
                    yield ReasoningPiece(text=text, message=_string(update.get("messageId")))
            case {"sessionUpdate": "user_message_chunk", "content": content}:
                if text := block_text(content):
                    yield TextDelta(text=text, message=_string(update.get("messageId")), role="user")
            case {"sessionUpdate": "tool_call" | "tool_call_update", "toolCallId": str(call)}:
                now = self.patch(call, update)
                if now != self._told.get(call):
                    self._told[call] = now
                    yield now
            case {"sessionUpdate": "plan", "entries": list(entries)}:
                yield Plan(entries=tuple(_plan(entries)))
            case {"sessionUpdate": "plan_update", "plan": {"entries": list(entries)}}:
                yield Plan(entries=tuple(_plan(entries)))
            case {"sessionUpdate": "usage_update"}:
                yield Usage(usage=context_usage(update))

    def patch(self, call: str, patch: Mapping[str, Any]) -> ToolCall:
        """The tool call as it stands after `patch`."""
        known = self._calls.setdefault(call, {"name": _tool_name(patch)})
        new = {part: patch[part] for part in _PATCHED if patch.get(part) not in (None, {}, [])}
        match known, new:  # a permission request may say less of the input than the call before it
            case {"rawInput": dict(before)}, {"rawInput": dict(after)}:
                new["rawInput"] = before | after
        known.update(new)
        return _tool_call(call, known)


def block_text(block: Any) -> str:
    """A content block as text."""
    match block:
        case {"type": "text", "text": str(text)} | {"type": "resource", "resource": {"text": str(text)}}:
            return text
        case {"type": "resource_link", "uri": str(uri)}:
            return f"[{_string(block.get('name')) or uri}]({uri})"
        case {"type": ("image" | "audio" | "resource") as kind}:
            return f"[{kind}]"
        case _:
            return ""


def turn_usage(usage: Any) -> TokenUsage | None:
    """The tokens in a prompt's answer."""
    if not isinstance(usage, dict):
        return None
    return TokenUsage(
        input_tokens=count(usage.get("inputTokens")),
        cached_input_tokens=count(usage.get("cachedReadTokens")),
        output_tokens=count(usage.get("outputTokens")),
    )


def context_usage(update: Mapping[str, Any]) -> TokenUsage:
    """The context window and the cost in a `usage_update`."""
    cost = None
    match update.get("cost"):
        case {"amount": told, "currency": "USD"}:
            cost = amount(told)
    used, size = count(update.get("used")), count(update.get("size"))
    return TokenUsage(context_window_used=used, context_window_max=size, cost_usd=cost)


def _plan(entries: list[Any]) -> Iterator[PlanEntry]:
    for entry in entries:
        match entry:
            case {"content": str(text)}:
                status = entry.get("status")
                yield PlanEntry(text=text, status=status if status in _STEPS else "pending")


def _tool_name(patch: Mapping[str, Any]) -> str | None:
    """ACP has no names of tools: agents say them in `_meta`, or as the title that a call begins with."""
    match patch:
        case {"_meta": {"claudeCode": {"toolName": str(name)}}}:
            return name
        case {"title": str(title)} if _TOOL_NAME.fullmatch(title):
            return title
        case _:
            return None


def _tool_call(call: str, known: Mapping[str, Any]) -> ToolCall:
    status = _STATUSES.get(str(known.get("status")), "in_progress")
    detail = tool_detail(known)
    return ToolCall(
        call=call,
        name=known["name"],
        title=_string(known.get("title")),
        kind=_KINDS.get(str(known.get("kind")), "other"),
        status=status,
        detail=bounded(detail),
        locations=tuple(_locations(known)),
        error=_failure(known) if status == "failed" else None,
    )


def _locations(known: Mapping[str, Any]) -> Iterator[Location]:
    locations = known.get("locations")
    for location in locations if isinstance(locations, list) else ():
        match location:
            case {"path": str(path), "line": told} if 0 < (line := count(told) or 0) <= LAST_LINE:
                yield Location(path=path, line=line)
            case {"path": str(path)}:
                yield Location(path=path)


def tool_detail(known: Mapping[str, Any]) -> Detail:
    """What a tool call does, in the shape of its kind as far as the agent's own words allow."""
    given, output = known.get("rawInput"), known.get("rawOutput")
    raw: Mapping[str, Any] = given if isinstance(given, dict) else {}
    text = _text(known)
    title = _string(known.get("title"))
    path = _first(raw, "path", "filePath", "file_path", "abs_path", "absolute_path")
    path = path or next((location.path for location in _locations(known)), None)
    match known.get("kind"), _diff(known):
        case _, Edit() as diff:
            return diff
        case "execute", _:
            return Shell(
                command=_command(raw) or title or "",
                cwd=_first(raw, "cwd", "workdir", "working_directory", "directory"),
                output=text or _first(_mapping(output), "output", "stdout", "formatted_output"),
                exit_code=_exit_code(output),
            )
        case "read", _ if path:
            return Read(
                path=path, content=text, offset=count(raw.get("offset")), limit=count(raw.get("limit"))
            )
        case "edit", _ if path:
            old = _first(raw, "oldString", "old_string", "old_text", "oldText")
            new = _first(raw, "newString", "new_string", "new_text", "newText")
            if old is None and new is None and (content := _first(raw, "content", "contents")) is not None:
                return Write(path=path, content=content)
            return Edit(path=path, old_text=old, new_text=new, diff=_first(raw, "diff", "patch"))
        case "search", _:
            paths = tuple(dict.fromkeys(location.path for location in _locations(known)))
            return Search(
                query=_first(raw, "pattern", "query", "regex") or title,
                paths=paths or ((path,) if path else ()),
                matches=text,
            )
        case "fetch", _:
            return Fetch(url=_first(raw, "url", "uri") or _first(raw, "query"), result=text)
        case "think", _ if _first(raw, "prompt", "description"):
            return SubAgent(description=_first(raw, "description", "prompt"), log=text)
        case "switch_mode", _ if text or _first(raw, "plan"):
            return PlanText(text=_first(raw, "plan") or text or "")
    if given is None and output is None:
        return Text(label=title, text=text or "")
    return Unknown(input=given, output=text if output is None else output)


def _content(known: Mapping[str, Any]) -> Sequence[Any]:
    content = known.get("content")
    return content if isinstance(content, list) else ()


def _diff(known: Mapping[str, Any]) -> Edit | None:
    for part in _content(known):
        match part:
            case {"type": "diff", "path": str(path), "newText": str(new)}:
                return Edit(path=path, old_text=_string(part.get("oldText")), new_text=new)
    return None


def _text(known: Mapping[str, Any]) -> str | None:
    texts = [block_text(part["content"]) for part in _content(known) if "content" in _mapping(part)]
    return "\n".join(texts) if texts else None


def _command(raw: Mapping[str, Any]) -> str | None:
    match raw.get("command", raw.get("cmd")):
        case str(command):
            return command
        case list(words):
            return shlex.join(str(word) for word in words)
        case _:
            return None


def _exit_code(output: Any) -> int | None:
    match output:
        case {"exitCode": int(code)} | {"exit_code": int(code)} | {"metadata": {"exit": int(code)}}:
            return whole(code)
        case _:
            return None


def _failure(known: Mapping[str, Any]) -> str:
    output = known.get("rawOutput")
    error = _first(_mapping(output), "error", "message") or _string(output) or _text(known)
    return shorten(error or "the tool call failed", MAX_ERROR)[0]


def _first(raw: Mapping[str, Any], *keys: str) -> str | None:
    return next((value for key in keys if isinstance(value := raw.get(key), str)), None)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None
