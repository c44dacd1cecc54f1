"""How far the history of an adopted session was told, said so that it can be found again.

A daemon that is started anew has its provider give the history once more, in another epoch. Where its rows
are the ones that were told, one by one, the telling goes on behind them; where they are not, nobody can say
which of them were told, and the rest is not.
"""

import hashlib

import msgspec

from app.domain.signals import Cursor
from app.paseo import items

HISTORY = "history:"
"""Begins the epoch of a committed position up to which only a part of an adopted history was told."""


def after(told: str, item: items.Item | None) -> str:
    """A name for the rows that were told, after one more; null is a row that could not be read."""
    return hashlib.sha256(told.encode() + msgspec.json.encode(_lasting(item))).hexdigest()[:32]


def _lasting(item: items.Item | None) -> tuple[str | None, ...]:
    """What a provider gives back of a row each time that it is asked."""
    match item:
        case None:
            return (None,)
        case items.UserMessage(text=text):
            return "user", text
        case items.AssistantMessage(text=text):
            return "assistant", text
        case items.Reasoning(text=text):
            return "reasoning", text
        case items.ToolCall(call_id=call, name=name, status=status):
            return "tool", call, name, status
        case items.Todo(items=steps):
            return "todo", *(f"{step.completed} {step.text}" for step in steps)
        case _:
            return (type(item).__name__,)


def partly(told: str, at: Cursor) -> Cursor:
    """The position as it is committed, while more of the history is to come."""
    return Cursor(epoch=f"{HISTORY}{told}:{at.epoch}", seq=at.seq)


def taken_up(committed: Cursor) -> tuple[str, Cursor] | None:
    """What was told up to a committed position, and that position; null if the whole history was told."""
    if not committed.epoch.startswith(HISTORY):
        return None
    told, _, epoch = committed.epoch.removeprefix(HISTORY).rpartition(":")
    return told, Cursor(epoch=epoch, seq=committed.seq)
