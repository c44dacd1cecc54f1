"""What happens on a stream, step by step; the edge makes bytes of it."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from app.domain.ids import Seq, SessionId
from app.store.eventlog import Logged

Reason: TypeAlias = Literal[
    "draining",
    "slow_consumer",
    "session_closed",
    "turn_ended",
    "terminal_closed",
    "rebound",
    "auth_expired",
    "superseded",
    "database_unavailable",
    "too_many_streams",
    "rotate",
]
"""Why we end a stream."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The stream is open."""

    session_id: SessionId
    after: Seq
    oldest_seq: Seq
    last_seq: Seq


@dataclass(frozen=True, slots=True)
class Events:
    """Durable events, in order."""

    events: list[Logged]


@dataclass(frozen=True, slots=True)
class Moved:
    """The cursor moved past events that are not shown."""

    seq: Seq


@dataclass(frozen=True, slots=True)
class Synced:
    """Everything up to here has been replayed; from now on live."""

    last_seq: Seq


@dataclass(frozen=True, slots=True)
class Reset:
    """The cursor is not in the log; the stream goes on from `resume_from`."""

    reason: Literal["too_old", "too_new"]
    resume_from: Seq


@dataclass(frozen=True, slots=True)
class Stalled:
    """The database does not answer."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The database answers again."""

    last_seq: Seq


@dataclass(frozen=True, slots=True)
class Closing:
    """The stream ends here."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing happened for a heartbeat's time."""


FeedStep: TypeAlias = Ready | Events | Moved | Synced | Reset | Stalled | Resumed | Closing | Idle
