"""Identities, each its own type, so that one never passes for another."""

import secrets
from typing import NewType

from uuid_utils.compat import uuid7

SessionId = NewType("SessionId", str)
"""The caller's own name for a session, or `ses_<uuid7>` made by us; unique per owner."""

SessionKey = NewType("SessionKey", int)
"""The internal id of a session's row: the only foreign key of everything else, never shown."""

TurnId = NewType("TurnId", str)
PermissionId = NewType("PermissionId", str)
TerminalId = NewType("TerminalId", str)
TaskId = NewType("TaskId", str)
MessageId = NewType("MessageId", str)
KeyId = NewType("KeyId", str)
CollisionId = NewType("CollisionId", str)
Owner = NewType("Owner", str)
"""The name that an API key belongs to; everything is looked up within it."""

Seq = NewType("Seq", int)
"""Position in a session's log: 1, 2, 3 …; 0 is before the first."""

SESSION_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"


def new_session_id() -> SessionId:
    """A session id for a caller who gave none; sorts by time."""
    return SessionId(f"ses_{uuid7()}")


def new_turn_id() -> TurnId:
    """A turn id; sorts by time."""
    return TurnId(f"trn_{uuid7()}")


def new_terminal_id() -> TerminalId:
    """A terminal id; sorts by time."""
    return TerminalId(f"ter_{uuid7()}")


def new_task_id() -> TaskId:
    """A task id; sorts by time."""
    return TaskId(f"tsk_{uuid7()}")


def new_message_id() -> MessageId:
    """A message id, given at the message's first event."""
    return MessageId(f"msg_{uuid7()}")


def new_collision_id() -> CollisionId:
    """A collision id; sorts by time."""
    return CollisionId(f"col_{uuid7()}")


def new_permission_id() -> PermissionId:
    """An unguessable permission id: the nonce of the approval, used once."""
    return PermissionId(f"prm_{secrets.token_urlsafe(24)}")
