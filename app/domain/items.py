"""A turn's events, folded into the messages and tool calls that they tell of."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from app.domain.events import (
    MessageCompleted,
    MessageDelta,
    ReasoningCompleted,
    ReasoningDelta,
    ToolCallCompleted,
    ToolCallStarted,
    ToolCallUpdated,
)
from app.domain.ids import TurnId


@dataclass(kw_only=True)
class MessageItem:
    """A message or reasoning, as far as it has come."""

    turn_id: TurnId | None
    message_id: str
    role: Literal["assistant", "user", "reasoning"]
    pieces: list[str] = field(default_factory=list)
    is_open: bool = True

    @property
    def text(self) -> str:
        """What has been said so far."""
        return "".join(self.pieces)


@dataclass(kw_only=True)
class ToolItem:
    """A tool call as it now stands."""

    turn_id: TurnId | None
    call: ToolCallStarted | ToolCallUpdated | ToolCallCompleted

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return not isinstance(self.call, ToolCallCompleted)


Item = MessageItem | ToolItem
_FOLDED = {
    cls.type: cls
    for cls in (
        MessageDelta,
        MessageCompleted,
        ReasoningDelta,
        ReasoningCompleted,
        ToolCallStarted,
        ToolCallUpdated,
        ToolCallCompleted,
    )
}


class _Envelope(msgspec.Struct):
    data: msgspec.Raw


def fold(events: Iterable[tuple[str, TurnId | None, str]]) -> list[Item]:
    """The items that `(type, turn_id, JSON of the event)` tell of, in the order in which they began."""
    items: dict[tuple[str, str], Item] = {}
    for type_, turn_id, text in events:
        cls = _FOLDED.get(type_)
        if cls is not None:
            data = msgspec.json.decode(msgspec.json.decode(text, type=_Envelope).data, type=cls)
            _apply(items, turn_id, data)
    return list(items.values())


def _apply(items: dict[tuple[str, str], Item], turn_id: TurnId | None, data: Any) -> None:
    match data:
        case MessageDelta(message_id=key, role=role, text=text):
            _message(items, turn_id, key, role).pieces.append(text)
        case ReasoningDelta(message_id=key, text=text):
            _message(items, turn_id, key, "reasoning").pieces.append(text)
        case MessageCompleted(message_id=key, role=role, text=text):
            message = _message(items, turn_id, key, role)
            message.pieces, message.is_open = [text], False
        case ReasoningCompleted(message_id=key, text=text):
            message = _message(items, turn_id, key, "reasoning")
            message.pieces, message.is_open = [text], False
        case ToolCallStarted() | ToolCallUpdated() | ToolCallCompleted():
            items[("tool", data.tool_call_id)] = ToolItem(turn_id=turn_id, call=data)


def _message(
    items: dict[tuple[str, str], Item],
    turn_id: TurnId | None,
    key: str,
    role: Literal["assistant", "user", "reasoning"],
) -> MessageItem:
    item = items.setdefault(("message", key), MessageItem(turn_id=turn_id, message_id=key, role=role))
    assert isinstance(item, MessageItem)
    return item
