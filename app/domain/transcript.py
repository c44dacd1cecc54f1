"""Signals in, events out: gives messages their ids and sees that whatever is opened is closed, once.

Pure. One transcript a turn, one more for what happens outside our turns.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import msgspec
from msgspec import UNSET

from app.domain.details import bounded
from app.domain.events import (
    BackendGap,
    CompactionUpdated,
    ConfigUpdated,
    Event,
    MessageCompleted,
    MessageDelta,
    Notice,
    PlanUpdated,
    ReasoningCompleted,
    ReasoningDelta,
    ToolCallCompleted,
    ToolCallStarted,
    ToolCallUpdated,
    UsageUpdated,
)
from app.domain.ids import MessageId, new_message_id
from app.domain.items import Item, MessageItem
from app.domain.signals import (
    Config,
    Gap,
    Plan,
    ReasoningPiece,
    TextDelta,
    ToolCall,
    Usage,
)
from app.domain.text import clean, shorten

MAX_MESSAGE = 1024 * 1024
"""UTF-8 bytes of a completed message, of reasoning, and of a turn's `output_text`; the deltas have it all."""

Said = TextDelta | ReasoningPiece | ToolCall | Plan | Usage | Config | Gap | CompactionUpdated | Notice


@dataclass
class Growing:
    """Text that grows by pieces, and keeps no more than about twice what will be shown of it."""

    pieces: list[str] = field(default_factory=list)
    kept: int = 0
    """Characters in `pieces`."""
    bytes: int = 0
    """UTF-8 bytes of all that was ever added."""

    def add(self, text: str) -> None:
        """Append `text`; the middle of what grows past the bound is dropped."""
        self.pieces.append(text)
        self.kept += len(text)
        self.bytes += len(text.encode())
        if self.kept > 2 * MAX_MESSAGE:
            short, _ = shorten("".join(self.pieces), MAX_MESSAGE)
            self.pieces, self.kept = [short], len(short)

    def text(self) -> tuple[str, int | None]:
        """The text, and its full size in bytes if it is not whole."""
        text, _ = shorten("".join(self.pieces), MAX_MESSAGE)
        return text, self.bytes if self.bytes > MAX_MESSAGE else None


@dataclass
class _Message:
    id: MessageId
    key: tuple[str, str | None]
    kind: Literal["assistant", "user", "reasoning"]
    text: Growing = field(default_factory=Growing)


class Transcript:
    """The open parts of a turn."""

    def __init__(self) -> None:
        self._message: _Message | None = None
        self._calls: dict[str, ToolCall] = {}
        self._closed_calls: set[str] = set()
        self._output = Growing()

    @classmethod
    def restored(cls, items: Iterable[Item]) -> "Transcript":
        """The transcript that another process wrote so far, from the items of its log."""
        transcript = cls()
        for item in items:
            if isinstance(item, MessageItem):
                if item.role == "assistant":
                    transcript._output.add(item.text)
                if item.is_open:
                    message = _Message(id=MessageId(item.message_id), key=(item.role, None), kind=item.role)
                    message.text.add(item.text)
                    transcript._message = message
                continue
            transcript._output = Growing()
            call = item.call
            if item.is_open:
                transcript._calls[call.tool_call_id] = ToolCall(
                    call=call.tool_call_id,
                    name=call.name,
                    title=call.title,
                    kind=call.kind,
                    status="in_progress",
                    detail=call.detail,
                    locations=tuple(call.locations),
                )
            else:
                transcript._closed_calls.add(call.tool_call_id)
        return transcript

    @property
    def output_text(self) -> str:
        """The assistant's text after the last tool call."""
        return self._output.text()[0]

    @property
    def has_open_call(self) -> bool:
        """Whether a tool call is open: then silence is no sign of death."""
        return bool(self._calls)

    def tell(self, signal: Said) -> list[Event]:
        """The events that `signal` makes, in order."""
        match signal:
            case TextDelta(text=text, message=message, role=role):
                return self._say(role, message, clean(text))
            case ReasoningPiece(text=text, message=message):
                return self._say("reasoning", message, clean(text))
            case ToolCall():
                return self._call(signal)
            case Plan(entries=entries):
                return [PlanUpdated(entries=list(entries))]
            case Usage(usage=usage):
                return [UsageUpdated(**msgspec.structs.asdict(usage))]
            case Config(model=model, mode=mode, thinking=thinking):
                return [ConfigUpdated(model=model, mode=mode, thinking=thinking)]
            case Gap(start=start, end=end, cause=cause):
                return [BackendGap(from_=start, to=end, cause=cause)]
            case CompactionUpdated() | Notice():
                return [signal]

    def close(self) -> list[Event]:
        """End whatever is open: the message is complete as it stands, tool calls are cancelled."""
        events = self._complete_message()
        for call in self._calls.values():
            events.append(_tool_event(ToolCallCompleted, call, status="cancelled"))
        self._closed_calls.update(self._calls)
        self._calls.clear()
        return events

    def _say(
        self, kind: Literal["assistant", "user", "reasoning"], message: str | None, text: str
    ) -> list[Event]:
        events: list[Event] = []
        key = (kind, message)
        if self._message is None or self._message.key != key:
            events += self._complete_message()
            self._message = _Message(id=new_message_id(), key=key, kind=kind)
        if not text:
            return events
        self._message.text.add(text)
        if kind == "reasoning":
            events.append(ReasoningDelta(message_id=self._message.id, text=text))
        else:
            events.append(MessageDelta(message_id=self._message.id, role=kind, text=text))
            if kind == "assistant":
                self._output.add(text)
        return events

    def _complete_message(self) -> list[Event]:
        message, self._message = self._message, None
        if message is None or not message.text.pieces:
            return []
        text, size = message.text.text()
        truncated, full = (True, size) if size else (UNSET, UNSET)
        if message.kind == "reasoning":
            return [ReasoningCompleted(message_id=message.id, text=text, truncated=truncated, bytes=full)]
        return [
            MessageCompleted(
                message_id=message.id, role=message.kind, text=text, truncated=truncated, bytes=full
            )
        ]

    def _call(self, call: ToolCall) -> list[Event]:
        if call.call in self._closed_calls:
            return []
        events: list[Event] = []
        before = self._calls.get(call.call)
        if before is None:
            events += self._complete_message()
            self._output = Growing()
            events.append(_tool_event(ToolCallStarted, call, status="in_progress"))
        if call.status == "in_progress":
            if before is not None and before != call:
                events.append(_tool_event(ToolCallUpdated, call, status="in_progress"))
            self._calls[call.call] = call
        else:
            self._calls.pop(call.call, None)
            self._closed_calls.add(call.call)
            events.append(_tool_event(ToolCallCompleted, call, status=call.status))
        return events


def _tool_event(
    cls: type[ToolCallStarted] | type[ToolCallUpdated] | type[ToolCallCompleted],
    call: ToolCall,
    *,
    status: Literal["in_progress", "completed", "failed", "cancelled"],
) -> Event:
    return cls(
        tool_call_id=clean(call.call),
        name=None if call.name is None else clean(call.name),
        title=None if call.title is None else clean(call.title),
        kind=call.kind,
        status=status,
        locations=list(call.locations),
        detail=bounded(call.detail),
        error=None if call.error is None or status == "in_progress" else shorten(clean(call.error))[0],
    )
