"""Which files a tool call wrote, and which of their lines, as far as the backend tells. Pure."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from msgspec import UNSET

from app.domain.details import Edit, Unknown, Write
from app.domain.events import Event, ToolCallCompleted
from app.domain.text import clean

TouchKind: TypeAlias = Literal["edit", "write", "delete", "move", "shell"]
Lines: TypeAlias = tuple[int, int]
"""A first and a last line, both included; lines count from 1."""

WHOLE: tuple[Lines, ...] = ((1, 2**31 - 1),)
"""Every line of a file: it was written whole, deleted or moved."""
MAX_FILES = 100
"""Files of one tool call that are kept; whatever names more is no edit that a person could follow."""
MAX_RANGES = 100
"""Stretches of lines of one touch; more become one that holds them all."""

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
    lines: tuple[Lines, ...] | None = None
    """The lines that changed, as the file was before; null if nobody tells."""
    snippet: str | None = None
    """What was put in: if `lines` is null, where this stands now are the lines."""
    within: tuple[Lines, ...] = ()
    """The lines that changed, counted from the snippet's first as 1."""


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
            yield from (Touch(path=each, kind=kind, lines=WHOLE) for each in [*named, *located])
        case _, Write(path=path):
            yield Touch(path=path, kind="write", lines=WHOLE)
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
    if edit.diff is not None and (lines := changed_lines(edit.diff)):
        return Touch(path=edit.path, kind="edit", lines=lines)
    if edit.new_text is None:
        return Touch(path=edit.path, kind="edit")
    if edit.old_text is None:
        return Touch(path=edit.path, kind="write", lines=WHOLE)
    within = (_changed_within(edit.old_text.splitlines(), edit.new_text.splitlines()),)
    told = next((at.line for at in call.locations if at.path == edit.path and at.line is not UNSET), None)
    if isinstance(told, int):
        return Touch(path=edit.path, kind="edit", lines=shifted(within, told))
    return Touch(path=edit.path, kind="edit", snippet=edit.new_text, within=within)


def _changed_within(old: list[str], new: list[str]) -> Lines:
    """The lines of `old` that are not in `new`; what is only put in has the lines on either side of it."""
    head, shorter = 0, min(len(old), len(new))
    while head < shorter and old[head] == new[head]:
        head += 1
    tail = 0
    while tail < shorter - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    last = len(old) - tail
    return (head + 1, last) if last > head else (max(head, 1), head + 1)


def shifted(lines: Iterable[Lines], first: int) -> tuple[Lines, ...]:
    """`lines`, counted from line `first` of the file instead of from 1."""
    return tuple((start + first - 1, end + first - 1) for start, end in lines)


def changed_lines(diff: str) -> tuple[Lines, ...]:
    """The lines of the file before that a unified diff changes; empty if it is none."""
    found: list[Lines] = []
    old = removed = added = old_left = new_left = 0

    def end_run() -> None:
        nonlocal removed, added
        if removed:
            found.append((old - removed, old - 1))
        elif added:
            found.append((max(old - 1, 1), max(old, 1)))
        removed = added = 0

    for line in diff.splitlines():
        if old_left <= 0 and new_left <= 0:
            end_run()
            if hunk := _HUNK.match(line):
                old, old_left, new_left = int(hunk[1]), int(hunk[2] or 1), int(hunk[4] or 1)
                if old_left == 0:
                    old += 1  # the hunk goes in after that line; 0: the file is new
                    if old == 1 and int(hunk[3]) == 1:
                        return WHOLE
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
    return merged(found)


def merged(lines: Iterable[Lines]) -> tuple[Lines, ...]:
    """`lines` in order, without overlap, and not more stretches than are kept."""
    found: list[Lines] = []
    for first, last in sorted(lines):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return tuple(found) if len(found) <= MAX_RANGES else ((found[0][0], found[-1][1]),)
