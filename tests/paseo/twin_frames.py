"""What of a frame counts when a twin is compared with what was recorded."""

import base64
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby, zip_longest
from typing import Any

Json = dict[str, Any]

UNORDERED = (
    ("send_agent_message_response", "event turn_started"),
    ("send_agent_message_response", "event thread_started"),
    ("send_agent_message_response", "agent_update"),
    ("status agent_created", "event turn_started"),
    ("agent_update", "event permission_requested"),
    ("agent_update", "agent_permission_request"),
    ("agent_update", "wait_for_finish_response"),
    ("terminals_changed", "create_terminal_response"),
    ("terminals_changed", "kill_terminal_response"),
    ("terminals_changed", "subscribe_terminal_response"),
    ("terminals_changed", "binary 4"),
)
"""Pairs of frames of one client that may come in either order."""

REPEATED = ("terminals_changed", "providers_snapshot_update")
"""Frames that say the same thing as often as they like: a run of them counts as one."""

FREE = {
    ("hostname", "status server_info"),
    ("reason", "status server_info"),
    ("hostname", ""),
    ("message", "status error"),
    ("cwd", "providers_snapshot_update"),
    ("label", "providers_snapshot_update"),
    ("label", "get_providers_snapshot_response"),
    ("description", "providers_snapshot_update"),
    ("description", "get_providers_snapshot_response"),
}
"""Fields by kind of frame ("" is HTTP) that are this machine's or mere words: only their type counts."""

OPAQUE = ("models", "modes")
"""Lists of which only their being lists counts: what a provider happens to offer."""

IDS = (
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "<id>"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"), "<time>"),
    (re.compile(r"\bs-[0-9a-f]{32}\b"), "<session>"),
    (re.compile(r"\bses_\w+"), "<session>"),
    (re.compile(r"\bsrv_[\w-]+"), "<server>"),
    (re.compile(r"\bcall[-_][0-9a-f]{8,}"), "<call>"),
    (re.compile(r"\b(per|que|msg)_[\w-]+"), "<id>"),
    (re.compile(r"/worktrees/[^/]+/"), "/worktrees/<hash>/"),
    (re.compile(r"(?<=:)\d{4,5}$"), "<port>"),
)
"""What is another in every run."""

CHUNKS = re.compile(r"(c\d+ x*)+")
"""Text in pieces that a clock cuts: how many came is left open."""


@dataclass(frozen=True)
class Frame:
    """One frame, taken apart."""

    kind: str
    body: Any
    raw: bytes = b""


def parse(frame: Any) -> Frame:
    """A frame as it came, or as a transcript has it."""
    if isinstance(frame, dict) and "binary_base64" in frame:
        frame = base64.b64decode(frame["binary_base64"])
    if isinstance(frame, bytes):
        text = frame[2:].decode(errors="replace")
        return Frame(f"binary {frame[0]}", json.loads(text) if frame[0] == 4 else text, frame)
    if isinstance(frame, str):
        frame = json.loads(frame)
    if frame.get("type") != "session":
        return Frame(str(frame.get("type")), frame)
    message = frame["message"]
    return Frame(_kind(message), message)


def _kind(message: Json) -> str:
    kind, payload = str(message["type"]), message.get("payload", {})
    if kind == "status":
        return f"status {payload['status']}"
    if kind != "agent_stream":
        return kind
    event = payload["event"]
    if event["type"] != "timeline":
        return f"event {event['type']}"
    item = event["item"]
    running = " running" if item.get("status") == "running" else ""
    return f"row {item['type']}{running}"


class Shape:
    """How a run's frames are made comparable; `loose` where a clock or a model decides how text is cut."""

    def __init__(self, paths: dict[str, str], *, loose: bool) -> None:
        self._paths = paths
        """Recorded paths, and the paths in their place."""
        self._loose = loose

    def localize(self, text: str) -> str:
        """A recorded text with this run's paths."""
        for recorded, here in self._paths.items():
            text = text.replace(recorded, here)
        return text

    def text(self, frame: Frame) -> str:
        """A row's text, without pieces that a clock cuts."""
        text = CHUNKS.sub("", frame.body["payload"]["event"]["item"]["text"])
        return "<APIError>" if '"APIError"' in text else text

    def value(self, value: Any, key: str = "", within: str = "") -> Any:
        """A value without what is another in every run."""
        if (key, within) in FREE:
            return f"<{type(value).__name__}>"
        if isinstance(value, dict):
            return self._object(value, within)
        if isinstance(value, list):
            if key in OPAQUE:
                return "<list>"
            if key == "availableModes":
                return [one["id"] for one in value]
            if key in ("grid", "scrollback"):
                return [("".join(cell["char"] for cell in row), sorted(row[0])) for row in value]
            return [self.value(one, within=within) for one in value]
        if isinstance(value, str):
            return self._string(value, key)
        if key in ("clientSentAt", "serverReceivedAt", "serverSentAt"):
            return "<ms>"
        return value

    def _object(self, value: Json, within: str) -> Json:
        found = {name: self.value(one, name, within) for name, one in value.items()}
        if self._loose:
            for name in ("seq", "minSeq", "maxSeq", "nextSeq", "seqStart", "seqEnd", "startSeq", "endSeq"):
                if name in found:
                    found[name] = "<seq>"
            for name in ("usage", "lastUsage", "detail", "input", "body", "output"):
                if found.get(name) is not None:
                    found[name] = f"<{name}>"
            if "entries" in found and "epoch" in found:
                found["entries"] = [self.entry(one) for one in self._folded(value["entries"])]
        return found

    def _string(self, value: str, key: str) -> str:
        for recorded, here in self._paths.items():
            value = value.replace(here, recorded)
        if key in ("nextCursor", "prevCursor"):
            return "<cursor>"
        if self._loose and '"APIError"' in value:
            return "<APIError>"
        for pattern, name in IDS:
            value = pattern.sub(name, value)
        return value

    def entry(self, item: Json) -> Any:
        """An entry of a timeline, where only its item counts."""
        return self.value(item)

    def _folded(self, entries: Iterable[Json]) -> list[Json]:
        """The items of a timeline's entries, text joined and cut by no clock, the running calls left out."""
        items = [one["item"] for one in entries if one["item"].get("status") != "running"]
        return list(_joined(items))

    def frames(self, frames: list[Frame]) -> list[tuple[str, Any]]:
        """A client's frames in a form that is equal for equal runs."""
        if self._loose:
            frames = self._cut_loose(frames)
        found = normal_form([(frame.kind, self.value(frame.body, within=frame.kind)) for frame in frames])
        for kind in REPEATED:
            found = [
                pair
                for is_kind, run in groupby(found, key=lambda pair, kind=kind: pair[0] == kind)  # type: ignore[misc]  # a bound name
                for pair in (_once(list(run), kind) if is_kind else run)
            ]
        return found

    def _cut_loose(self, frames: list[Frame]) -> list[Frame]:
        kept: list[Frame] = []
        for frame in frames:
            if frame.kind in ("row assistant_message", "row reasoning"):
                text = self.text(frame)
                if not text:
                    continue
                if kept and kept[-1].kind == frame.kind:
                    text = self.text(kept.pop()) + text
                kept.append(Frame(frame.kind, _with_text(frame.body, text)))
            elif frame.kind != "row tool_call running":
                kept.append(frame)
        return kept


def differences(came: Any, recorded: Any, path: str = "") -> Iterable[str]:
    """What differs, and where."""
    if isinstance(came, dict) and isinstance(recorded, dict):
        for key in sorted(came.keys() | recorded.keys()):
            if key not in came or key not in recorded:
                where = "was not recorded" if key in came else "did not come"
                yield f"{path}.{key} {where}: {came.get(key, recorded.get(key))!r}"
            else:
                yield from differences(came[key], recorded[key], f"{path}.{key}")
    elif isinstance(came, list) and isinstance(recorded, list) and len(came) == len(recorded):
        for place, (one, other) in enumerate(zip(came, recorded, strict=True)):
            yield from differences(one, other, f"{path}[{place}]")
    elif came != recorded:
        yield f"{path}: {came!r} came, {recorded!r} was recorded"


def compare(came: list[tuple[str, Any]], recorded: list[tuple[str, Any]]) -> list[str]:
    """How two runs differ: first in what came when, else frame by frame."""
    kinds = [kind for kind, _ in came], [kind for kind, _ in recorded]
    if kinds[0] != kinds[1]:
        pairs = enumerate(zip_longest(*kinds))
        return [f"{place}: {one} came, {other} was recorded" for place, (one, other) in pairs if one != other]
    return [
        f"{place} {kind}{found}"
        for place, ((kind, mine), (_, theirs)) in enumerate(zip(came, recorded, strict=True))
        for found in differences(mine, theirs)
    ]


def _once(run: list[tuple[str, Any]], kind: str) -> list[tuple[str, Any]]:
    if kind == "providers_snapshot_update":
        return run[-1:]
    return [pair for place, pair in enumerate(run) if place == 0 or pair != run[place - 1]]


def _with_text(body: Json, text: str) -> Json:
    payload = body["payload"]
    item = {**payload["event"]["item"], "text": text}
    return {**body, "payload": {**payload, "event": {**payload["event"], "item": item}}}


def _joined(items: Iterable[Json]) -> Iterable[Json]:
    last: Json | None = None
    for item in items:
        if item["type"] in ("assistant_message", "reasoning"):
            item = {**item, "text": CHUNKS.sub("", item["text"])}
            if last is not None and last["type"] == item["type"]:
                last = {**last, "text": last["text"] + item["text"]}
                continue
        if last is not None and last.get("text") != "":
            yield last
        last = item
    if last is not None and last.get("text") != "":
        yield last


def normal_form(frames: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The first, by name, of all orders that differ only where the order is not fixed."""
    free = {frozenset(pair) for pair in UNORDERED}
    rest, found = list(frames), []
    while rest:
        first = [
            place
            for place, (kind, _) in enumerate(rest)
            if all(frozenset((kind, other)) in free for other, _ in rest[:place])
        ]
        found.append(rest.pop(min(first, key=lambda place: (rest[place][0], place))))
    return found
