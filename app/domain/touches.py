"""Which files a tool call wrote, and which of their lines, as far as the backend tells. Pure."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from msgspec import UNSET

from app.domain.details import Edit, Unknown, Write
from app.domain.events import Event, ToolCallCompleted
from app.domain.numbers import count
from app.domain.text import clean

TouchKind: TypeAlias = Literal["edit", "write", "delete", "move", "shell"]
Lines: TypeAlias = tuple[int, int]
"""A first and a last line, both included; lines count from 1."""

Change: TypeAlias = tuple[int, int, int]
"""The first line that changed, as the file was before, how many were taken out, and how many were put in."""

LAST_LINE = 2**31 - 1
"""The last line of a file that is all lines."""
MAX_LINE = 2**30
"""The last line that is believed to have changed; far from `LAST_LINE`, wherever later edits move it."""
WHOLE: tuple[Change, ...] = ((1, LAST_LINE, LAST_LINE),)
"""Every line of a file: it was written whole, deleted or moved."""
MAX_FILES = 100
"""Files of one tool call that are kept; whatever names more is no edit that a person could follow."""
MAX_RANGES = 100
"""Stretches of lines of one file that are kept; of more nobody tells which they are."""

_HUNK = re.compile(r"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@")
_NAMED = (
    *("path", "filePath", "file_path", "source", "destination", "from", "to"),
    *("oldPath", "newPath", "old_path", "new_path", "sourcePath", "destinationPath"),
)
"""What agents call the files that they delete or move."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Touch:
    """A file that a tool call wrote. `path` is as the agent said it, in its own directory."""

    path: str
    kind: TouchKind
    changes: tuple[Change, ...] | None = None
    """What changed, in order and apart from each other; null if nobody tells."""
    snippet: str | None = None
    """What was put in: if `changes` is null, they are where this stands now."""
    within: tuple[Change, ...] = ()
    """What changed, counted from the snippet's first line as 1."""


def touches_of(event: Event) -> list[Touch]:
    """The files that `event` tells of; only a tool call that completed is known to have written any."""
    if not isinstance(event, ToolCallCompleted) or event.status != "completed":
        return []
    found: dict[str, Touch] = {}
    for touch in _touches(event):
        path = clean(touch.path)
        if path and path not in found and len(found) < MAX_FILES:
            found[path] = touch
    return list(found.values())


def _touches(call: ToolCallCompleted) -> Iterator[Touch]:
    located = [location.path for location in call.locations]
    match call.kind, call.detail:
        case ("delete" | "move") as kind, detail:
            path = getattr(detail, "path", None)
            named = [path] if isinstance(path, str) else []
            named += _named(detail.input) if isinstance(detail, Unknown) else []
            yield from (Touch(path=each, kind=kind, changes=WHOLE) for each in [*named, *located])
        case _, Write(path=path):
            yield Touch(path=path, kind="write", changes=WHOLE)
        case _, Edit() as edit:
            yield _edited(call, edit)
            yield from (Touch(path=path, kind="edit") for path in located)
        case "edit", _:
            yield from (Touch(path=path, kind="edit") for path in located)
        case "execute", _:  # a command line tells nothing by itself
            yield from (Touch(path=path, kind="shell") for path in located)


def _named(given: Any) -> list[str]:
    members = given if isinstance(given, dict) else {}
    return [value for key in _NAMED if isinstance(value := members.get(key), str)]


def _edited(call: ToolCallCompleted, edit: Edit) -> Touch:
    if edit.truncated is not UNSET:  # its middle is missing, and with it what would tell the lines
        return Touch(path=edit.path, kind="edit")
    if edit.diff is not None and (changes := changes_of(edit.diff)):
        return Touch(path=edit.path, kind="edit", changes=_believable(changes))
    if edit.new_text is None:
        return Touch(path=edit.path, kind="edit")
    if edit.old_text is None:
        return Touch(path=edit.path, kind="write", changes=WHOLE)
    within = (_changed_within(_lines_in(edit.old_text), _lines_in(edit.new_text)),)
    told = next((at.line for at in call.locations if at.path == edit.path and at.line is not UNSET), None)
    if (line := count(told)) is not None:
        return Touch(path=edit.path, kind="edit", changes=_believable(shifted(within, line)))
    return Touch(path=edit.path, kind="edit", snippet=edit.new_text, within=within)


def _believable(changes: tuple[Change, ...]) -> tuple[Change, ...] | None:
    """`changes`, if a file can have such lines, and not too many of them; an agent may tell any number."""
    is_told = all(first > 0 and first + max(out, put_in) <= MAX_LINE for first, out, put_in in changes)
    return changes if is_told and len(changes) <= MAX_RANGES else None


def _lines_in(text: str) -> list[str]:
    """Its lines as git counts them; Python's own way knows more ends of a line."""
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _changed_within(old: list[str], new: list[str]) -> Change:
    """What lies between the lines that both have at their beginning and at their end."""
    head, shorter = 0, min(len(old), len(new))
    while head < shorter and old[head] == new[head]:
        head += 1
    tail = 0
    while tail < shorter - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    return (head + 1, len(old) - tail - head, len(new) - tail - head)


def shifted(changes: Iterable[Change], first: int) -> tuple[Change, ...]:
    """`changes`, counted from line `first` of the file instead of from 1."""
    return tuple((start + first - 1, out, put_in) for start, out, put_in in changes)


def changes_of(diff: str) -> tuple[Change, ...]:
    """What a unified diff changes; empty if it is none."""
    found: list[Change] = []
    old = removed = added = old_left = new_left = 0

    def end_run() -> None:
        nonlocal removed, added
        if removed or added:
            found.append((max(old - removed, 1), removed, added))
        removed = added = 0

    for line in _lines_in(diff):
        if old_left <= 0 and new_left <= 0:
            end_run()
            if hunk := _HUNK.match(line):
                first = int(hunk[1])
                if found and first < found[-1][0] + found[-1][1]:
                    return ()  # hunks come in order
                old, old_left, new_left = first, int(hunk[2] or 1), int(hunk[4] or 1)
                if old_left == 0:
                    old += 1  # the hunk goes in after that line
            continue
        match line[:1]:
            case "-":
                old, removed, old_left = old + 1, removed + 1, old_left - 1
            case "+":
                added, new_left = added + 1, new_left - 1
            case "\\":
                pass
            case _:
                end_run()
                old, old_left, new_left = old + 1, old_left - 1, new_left - 1
    end_run()
    return tuple(found)


Hunk: TypeAlias = tuple[int, int, int]
"""A first line in the file as it was at the beginning, how many lines were there, and how many are now."""


def carried(hunks: Iterable[Hunk], change: Change) -> tuple[Hunk, ...]:
    """What has changed since the beginning, once `change` is made of the file as `hunks` have left it.

    Hunks are in order and apart from each other.
    """
    first, out, put_in = change
    end = first + out
    before: list[Hunk] = []
    after: list[Hunk] = []
    start, stop = first, end
    shift = shift_before = shift_inside = 0  # lines that the file has more, up to there
    for hunk in hunks:
        base, had, has = hunk
        here = base + shift
        shift += has - had
        if here + has < first:
            before.append(hunk)
            shift_before = shift
        elif here > end:
            after.append(hunk)
        else:
            start, stop = min(start, here), max(stop, here + has)
            shift_inside += has - had
    joined = (start - shift_before, (stop - start) - shift_inside, (stop - start) - out + put_in)
    return (*before, joined, *after)


def lines_at_first(hunks: Iterable[Hunk]) -> tuple[Lines, ...]:
    """The lines that were changed, as the file was at the beginning."""
    return tuple(_stretch(base, had) for base, had, _ in hunks)


def lines_now(hunks: Iterable[Hunk]) -> tuple[Lines, ...]:
    """The lines that were changed, as the file is now."""
    found, shift = [], 0
    for base, had, has in hunks:
        found.append(_stretch(base + shift, has))
        shift += has - had
    return tuple(found)


def _stretch(first: int, count: int) -> Lines:
    """So many lines; where there is none, those on either side."""
    return (first, first + count - 1) if count > 0 else (max(first - 1, 1), max(first, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What is known of the lines of a file that one session writes, from its first write on."""

    hunks: tuple[Hunk, ...] | None = ()
    """What has changed since; null once that cannot be told any more."""
    lines: tuple[Lines, ...] | None = None
    """Lines that surely changed, as the file was at first; null if nobody tells any."""

    def after(self, edits: Iterable[tuple[Change, ...] | None]) -> "Tally":
        """The same after more edits, each of the file as the one before has left it."""
        hunks, lines = self.hunks, self.lines
        for changes in edits:
            if changes == WHOLE:
                hunks = WHOLE
            elif changes is None or hunks is None:
                hunks = None
                continue
            else:
                for change in reversed(changes):  # the last first: it moves none of the others
                    hunks = carried(hunks, change)
            lines = lines_at_first(hunks)
            if len(hunks) > MAX_RANGES:
                hunks = lines = None
        return Tally(hunks=hunks, lines=lines)
