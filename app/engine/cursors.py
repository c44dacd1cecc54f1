"""Where a stream begins, and which events it shows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from app.domain.errors import InvalidCursor, ValidationFailed
from app.domain.events import DELTA_TYPES, EVENT_CLASSES
from app.domain.ids import Seq, SessionId, SessionKey, TurnId
from app.engine.steps import Reset
from app.store.eventlog import Logged

OWNER_DEFAULT = frozenset(
    name
    for name in EVENT_CLASSES
    if name.split(".")[0] in ("session", "turn", "permission", "file", "task", "backend")
)
"""What the stream over all of an owner's sessions shows if no types are asked for."""


Cursor: TypeAlias = Seq | Literal["start", "now"]
"""Where a stream begins: after that event, before the oldest, or after the newest."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events are shown."""

    types: frozenset[str] | None = None
    deltas: bool = True
    turn: TurnId | None = None

    @property
    def shows_all(self) -> bool:
        """Whether nothing is left out."""
        return self.types is None and self.deltas and self.turn is None

    def shows(self, event: Logged) -> bool:
        """Whether `event` is shown."""
        if self.turn is not None and event.turn_id != self.turn:
            return False
        if not self.deltas and event.type in DELTA_TYPES:
            return False
        return self.types is None or event.type in self.types

    @classmethod
    def parse(cls, types: str | None, *, deltas: bool = True, turn: TurnId | None = None) -> "Filter":
        """The filter of a comma list of types; `turn.*` is all of a noun.

        Raises:
            ValidationFailed: there is no such type.
        """
        if types is None or not types.strip(", "):
            return cls(deltas=deltas, turn=turn)
        wanted: set[str] = set()
        for pattern in filter(None, (part.strip() for part in types.split(","))):
            found = {
                name
                for name in EVENT_CLASSES
                if name == pattern or (pattern.endswith(".*") and name.startswith(pattern[:-1]))
            }
            if not found:
                raise ValidationFailed(
                    errors=[{"loc": ["query", "types"], "msg": "no such event type", "type": "unknown_type"}]
                )
            wanted |= found
        return cls(types=frozenset(wanted), deltas=deltas, turn=turn)


def parse_cursor(last_event_id: str | None, after: str | None, from_: str | None) -> Cursor:
    """The cursor that a request names: `Last-Event-ID`, else `after`, else `from`, else the start.

    Raises:
        InvalidCursor: it is not a number that could be a cursor.
    """
    text = last_event_id if last_event_id else after
    if text is None:
        return "now" if from_ == "now" else "start"
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:
        raise InvalidCursor
    return Seq(int(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """A stream that may be opened: everything that can be refused has been checked."""

    session: SessionKey
    session_id: SessionId
    after: Seq
    oldest_seq: Seq
    last_seq: Seq
    reset: Reset | None
    moved: bool
    filter: Filter
    is_at_end: bool
    """Nothing will ever come: the turn ended, or the session is closed, and the cursor is past it."""


def following_from(
    session: SessionKey,
    session_id: SessionId,
    cursor: Cursor,
    oldest: Seq,
    last: Seq,
    shown: Filter,
) -> Callable[..., Following]:
    """A stream from `cursor` on; what is left to say is whether and where its subject has ended."""
    first, reset = Seq(oldest - 1), None
    after = first if cursor == "start" else last if cursor == "now" else cursor
    if after > last:
        reset = Reset("too_new", last)
    elif after < first:
        reset = Reset("too_old", first)
    start = reset.resume_from if reset else after

    def following(*, ended: bool, end: Seq) -> Following:
        return Following(
            session=session,
            session_id=session_id,
            after=start,
            oldest_seq=oldest,
            last_seq=last,
            reset=reset,
            moved=reset is not None or cursor == "now",
            filter=shown,
            is_at_end=ended and reset is None and after >= end,
        )

    return following
