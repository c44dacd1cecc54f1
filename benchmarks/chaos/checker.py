"""What has to be true after any run, whatever was killed in it. Pure: evidence in, violations out."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.domain.events import TERMINAL_TYPES

OPENED = {
    "message.delta": ("message", "message_id"),
    "reasoning.delta": ("message", "message_id"),
    "tool_call.started": ("tool call", "tool_call_id"),
    "permission.requested": ("permission", "permission_id"),
}
CLOSED = {
    "message.completed": ("message", "message_id"),
    "reasoning.completed": ("message", "message_id"),
    "tool_call.completed": ("tool call", "tool_call_id"),
    "permission.resolved": ("permission", "permission_id"),
    "permission.expired": ("permission", "permission_id"),
}


@dataclass(frozen=True)
class Row:
    """An event as it stands in the table."""

    session: str
    seq: int
    type: str
    turn: str | None
    body: str

    @property
    def frame(self) -> bytes:
        """The bytes that a stream has to send for it."""
        return f'id: {self.seq}\nevent: {self.type}\ndata: {{"seq":{self.seq},{self.body}\n\n'.encode()

    @property
    def data(self) -> Any:
        """The event's own part."""
        return json.loads(f'{{"seq":{self.seq},{self.body}')["data"]


@dataclass(frozen=True)
class TurnRow:
    """A turn as it stands in the table."""

    id: str
    session: str
    status: str
    delivered: str | None
    first_seq: int
    last_seq: int | None


@dataclass(frozen=True)
class Admitted:
    """A prompt that a client was told to be admitted."""

    key: str
    turn: str
    session: str
    text: str | None = None
    """What its agent says if it is left alone; null where that depends on somebody's answer."""
    recorded: bool = True
    """Whether its agent keeps a record of what it was asked."""


@dataclass
class Evidence:
    """All that was written and seen."""

    rows: list[Row] = field(default_factory=list)
    turns: list[TurnRow] = field(default_factory=list)
    seen: list[tuple[str, int, bytes]] = field(default_factory=list)
    """Session, id and bytes of every event that a follower got, in the order in which it got them."""
    admitted: list[Admitted] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    """How often an agent was asked with each key."""
    left_open: list[str] = field(default_factory=list)
    """What is still open in the tables: turns, permissions, intents, busy sessions."""
    told: list[str] = field(default_factory=list)
    """What clients saw that no client may see."""


def violations(evidence: Evidence) -> list[str]:
    """Every broken promise, in words; none is what has to come out."""
    logs: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(evidence.rows, key=lambda row: (row.session, row.seq)):
        logs[row.session].append(row)
    by_turn: dict[str, list[Row]] = defaultdict(list)
    for row in (row for log in logs.values() for row in log):
        if row.turn is not None:
            by_turn[row.turn].append(row)
    return [
        *evidence.told,
        *(f"left open: {what}" for what in evidence.left_open),
        *_unbroken(logs),
        *_as_seen(logs, evidence.seen),
        *_ends(evidence.turns, by_turn),
        *_closed(by_turn),
        *_true(evidence, by_turn),
    ]


def _unbroken(logs: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    for session, log in logs.items():
        numbers = [row.seq for row in log]
        if numbers != list(range(1, len(numbers) + 1)):
            yield f"{session}: the log has a gap or a double: {_breaks(numbers)}"


def _breaks(numbers: Sequence[int]) -> str:
    pairs = zip([0, *numbers], numbers, strict=False)
    return ", ".join(f"{before}→{after}" for before, after in pairs if after != before + 1)[:100]


def _as_seen(logs: Mapping[str, Sequence[Row]], seen: Sequence[tuple[str, int, bytes]]) -> Iterator[str]:
    frames = {(row.session, row.seq): row.frame for log in logs.values() for row in log}
    last: dict[str, int] = defaultdict(int)
    for session, seq, raw in seen:
        if seq != last[session] + 1:
            yield f"{session}: a follower saw {last[session]} and then {seq}"
        last[session] = seq
        written = frames.get((session, seq))
        if written is None:
            yield f"{session}: a follower saw event {seq}, which is not in the table"
        elif written != raw:
            yield f"{session}: a follower saw other bytes of event {seq} than the table has"


def _ends(turns: Sequence[TurnRow], by_turn: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    for turn in turns:
        rows = by_turn.get(turn.id, [])
        ends = [row for row in rows if row.type in TERMINAL_TYPES]
        if len(ends) != 1:
            yield f"{turn.id}: {len(ends)} terminal events"
        elif rows[-1] is not ends[0]:
            yield f"{turn.id}: {rows[-1].type} after its terminal event"
        elif ends[0].type != f"turn.{turn.status}" or ends[0].seq != turn.last_seq:
            yield f"{turn.id}: its row says {turn.status} at {turn.last_seq}, its log {ends[0].type}"
        if rows and (rows[0].type, rows[0].seq) != ("turn.queued", turn.first_seq):
            yield f"{turn.id}: begins with {rows[0].type}"


def _closed(by_turn: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    for turn, rows in by_turn.items():
        open_now: set[tuple[str, str]] = set()
        closed: Counter[tuple[str, str]] = Counter()
        for row in rows:
            if row.type in OPENED:
                what, name = OPENED[row.type]
                open_now.add((what, row.data[name]))
            elif row.type in CLOSED:
                what, name = CLOSED[row.type]
                closed[what, row.data[name]] += 1
        for what, name in open_now - closed.keys():
            yield f"{turn}: {what} {name} was never closed"
        for (what, name), count in closed.items():
            if count > 1 and what != "tool call":
                yield f"{turn}: {what} {name} was closed {count} times"


def _true(evidence: Evidence, by_turn: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    turns = {turn.id: turn for turn in evidence.turns}
    for one in evidence.admitted:
        turn = turns.get(one.turn)
        if turn is None:
            yield f"{one.turn}: was admitted and is not in the table"
            continue
        asked = evidence.asked[one.key]
        if asked > 1:
            yield f"{one.turn}: the agent was asked {asked} times with key {one.key}"
        if one.recorded and asked == 0 and turn.status == "completed":
            yield f"{one.turn}: is completed, and the agent was never asked"
        if one.recorded and asked and turn.delivered == "no":
            yield f"{one.turn}: is said not to have been delivered, and the agent was asked"
        rows = by_turn.get(one.turn, [])
        is_whole = turn.status == "completed" and not any(row.type == "backend.gap" for row in rows)
        if one.text is not None and is_whole and (said := _said(rows)) != _plain(one.text):
            yield f"{one.turn}: is completed without a gap, and says {_shortened(said)}"


def _said(rows: Sequence[Row]) -> str:
    return _plain("".join(row.data["text"] for row in rows if row.type == "message.delta"))


def _plain(text: str) -> str:
    return re.sub(r"\s+", "", text)


def _shortened(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:60]}…{text[-60:]}"
