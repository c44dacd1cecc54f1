"""A twin's timeline: numbered rows, read in pages, as they are or projected."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

Json = dict[str, Any]

PAGE = 200
"""Rows of a page that names no limit, except of one read with `after`."""

MERGES = {"assistant_message": "assistant_merge", "reasoning": "reasoning_merge"}
"""Text that is a delta, and what a projection says when it joined some."""


def now() -> str:
    """The time as the daemon writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Row:
    """One row; it never changes under its number."""

    seq: int
    item: Json
    timestamp: str


@dataclass
class Entry:
    """One or several rows, as one thing to show."""

    item: Json
    timestamp: str
    ranges: list[list[int]]
    collapsed: list[str] = field(default_factory=list)

    def json(self, provider: str) -> Json:
        """The entry as it travels."""
        return {
            "provider": provider,
            "item": self.item,
            "timestamp": self.timestamp,
            "seqStart": self.ranges[0][0],
            "seqEnd": self.ranges[-1][1],
            "sourceSeqRanges": [{"startSeq": first, "endSeq": last} for first, last in self.ranges],
            "collapsed": self.collapsed,
        }


def plain(rows: Sequence[Row]) -> list[Entry]:
    """One entry a row."""
    return [Entry(row.item, row.timestamp, [[row.seq, row.seq]]) for row in rows]


def project(rows: Sequence[Row]) -> list[Entry]:
    """Neighbouring text joined, the updates of a tool call folded into its first place."""
    entries: list[Entry] = []
    calls: dict[str, Entry] = {}
    for row in rows:
        kind, last = row.item["type"], entries[-1] if entries else None
        if kind in MERGES and last is not None and last.item["type"] == kind:
            last.item = {**last.item, "text": last.item["text"] + row.item["text"]}
            _extend(last, row.seq, MERGES[kind])
        elif kind == "tool_call" and row.item["callId"] in calls:
            entry = calls[row.item["callId"]]
            entry.item = row.item
            _extend(entry, row.seq, "tool_lifecycle")
        else:
            entries.append(Entry(row.item, row.timestamp, [[row.seq, row.seq]]))
            if kind == "tool_call":
                calls[row.item["callId"]] = entries[-1]
    return entries


def _extend(entry: Entry, seq: int, why: str) -> None:
    if entry.ranges[-1][1] + 1 == seq:
        entry.ranges[-1][1] = seq
    else:
        entry.ranges.append([seq, seq])
    if why not in entry.collapsed:
        entry.collapsed.append(why)


class Timeline:
    """The rows of one epoch; whoever loads the agent anew starts another."""

    def __init__(self) -> None:
        self.epoch = str(uuid4())
        self.rows: list[Row] = []

    def append(self, item: Json) -> Row:
        """Number a row."""
        row = Row(len(self.rows) + 1, item, now())
        self.rows.append(row)
        return row

    def last_text(self) -> str | None:
        """The last unbroken piece of the agent's text, whichever turn it is from."""
        pieces: list[str] = []
        for row in reversed(self.rows):
            if row.item["type"] == "assistant_message":
                pieces.insert(0, row.item["text"])
            elif pieces:
                break
        return "".join(pieces) if pieces else None

    def page(self, request: Json, provider: str, *, merge_enum: bool) -> Json:
        """The answer to a timeline request, without its ids and its agent."""
        cursor = request.get("cursor")
        direction = request.get("direction") or ("after" if cursor else "tail")
        projection = request.get("projection") or "projected"
        limit = request.get("limit", 0 if direction == "after" else PAGE)
        stale = cursor is not None and cursor["epoch"] != self.epoch
        rows = self._select("stale" if stale else direction, cursor, limit, projection)
        entries = (plain if projection == "canonical" else project)(rows)
        if not merge_enum:
            for entry in entries:
                entry.collapsed = [name for name in entry.collapsed if name != "reasoning_merge"]
        last = len(self.rows)
        return {
            "direction": direction,
            "projection": projection,
            "epoch": self.epoch,
            "reset": stale,
            "staleCursor": stale,
            "gap": False,
            "window": {"minSeq": min(1, last), "maxSeq": last, "nextSeq": last + 1},
            "startCursor": {"epoch": self.epoch, "seq": rows[0].seq} if rows else None,
            "endCursor": {"epoch": self.epoch, "seq": rows[-1].seq} if rows else None,
            "hasOlder": rows[0].seq > 1 if rows else last > 0 and direction == "after",
            "hasNewer": rows[-1].seq < last if rows else last > 0 and direction == "before",
            "entries": [entry.json(provider) for entry in entries],
            "error": None,
        }

    def _select(self, direction: str, cursor: Json | None, limit: int, projection: str) -> Sequence[Row]:
        rows = self.rows
        if direction == "after":
            rest = rows[cursor["seq"] if cursor else 0 :]
            return rest[:limit] if limit else rest
        if direction == "before":
            rows = rows[: max(0, cursor["seq"] - 1)] if cursor else rows
        if not limit or not rows:
            return rows
        if direction == "tail" and projection == "canonical":
            # As many rows as the last `limit` projected items cover.
            items = project(rows)[-limit:]
            return rows[min(item.ranges[0][0] for item in items) - 1 :]
        return rows[-limit:]


def unreadable(request: Json, error: str) -> Json:
    """The same answer when there is nothing to read."""
    return {
        "direction": request.get("direction") or ("after" if request.get("cursor") else "tail"),
        "projection": request.get("projection") or "projected",
        "epoch": "",
        "reset": False,
        "staleCursor": False,
        "gap": False,
        "window": {"minSeq": 0, "maxSeq": 0, "nextSeq": 0},
        "startCursor": None,
        "endCursor": None,
        "hasOlder": False,
        "hasNewer": False,
        "entries": [],
        "error": error,
    }
