"""Bodies of the log: a page of it, and the session at a glance that it adds up to."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import msgspec
from pydantic import Field

from app.api.schemas.bodies import View
from app.api.schemas.permissions import PermissionView
from app.api.schemas.sessions import SessionView
from app.api.schemas.turns import TurnView
from app.domain.events import ToolKind, ToolStatus
from app.domain.items import Item, MessageItem
from app.domain.permissions import Permission
from app.domain.sessions import Session
from app.domain.turns import Turn


class EventPage(View):
    """A page of a session's log, ascending."""

    items: list[dict[str, Any]]
    next_after: int = Field(description="The last seq examined: `after` of the next page.")
    oldest_seq: int
    last_seq: int


class MessageView(View):
    """A message or a stretch of reasoning, as far as it has come."""

    type: Literal["message", "reasoning"]
    turn_id: str | None
    message_id: str
    role: Literal["assistant", "user"]
    text: str
    is_open: bool


class ToolCallView(View):
    """A tool call as it now stands."""

    type: Literal["tool_call"]
    turn_id: str | None
    tool_call_id: str
    name: str | None
    title: str | None
    kind: ToolKind
    status: ToolStatus
    locations: list[dict[str, Any]]
    detail: dict[str, Any]
    error: str | None
    is_open: bool


ItemView = Annotated[MessageView | ToolCallView, Field(discriminator="type")]
"""What a turn has said and done, piece by piece."""


def item_view(item: Item) -> MessageView | ToolCallView:
    """A message, reasoning or tool call as its owner sees it."""
    if isinstance(item, MessageItem):
        return MessageView(
            type="reasoning" if item.role == "reasoning" else "message",
            turn_id=item.turn_id,
            message_id=item.message_id,
            role="user" if item.role == "user" else "assistant",
            text=item.text,
            is_open=item.is_open,
        )
    return ToolCallView(
        type="tool_call", turn_id=item.turn_id, is_open=item.is_open, **msgspec.to_builtins(item.call)
    )


class SnapshotView(View):
    """A session at one instant: everything that its events up to `last_seq` tell of."""

    session: SessionView
    current_turn: TurnView | None
    queue: list[TurnView]
    pending_permissions: list[PermissionView]
    items: list[ItemView] = Field(description="Of the open turn, else of the last.")
    last_seq: int

    @classmethod
    def from_domain(
        cls,
        session: Session,
        *,
        backend_up: bool,
        current_turn: Turn | None,
        queue: Sequence[Turn],
        pending_permissions: Sequence[Permission],
        items: Sequence[Item],
    ) -> Self:
        """All of it from one read."""
        return cls(
            session=SessionView.from_domain(session, backend_up=backend_up),
            current_turn=TurnView.from_domain(current_turn) if current_turn is not None else None,
            queue=[TurnView.from_domain(turn) for turn in queue],
            pending_permissions=[PermissionView.from_domain(p) for p in pending_permissions],
            items=[item_view(item) for item in items],
            last_seq=session.last_seq,
        )
