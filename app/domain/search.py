"""Search in a terminal's text, in time linear in the text whatever is asked: RE2 never goes back."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import re2

from app.domain.errors import ValidationFailed
from app.domain.plain import columns

MAX_QUERY = 1000
"""Characters of what is searched for."""
MAX_MATCHES = 200
"""Matches of one answer."""
MAX_CONTEXT = 10
"""Lines before a match, and after it."""
MAX_TEXT = 500
"""Characters shown of a line; of a longer one those around the match."""
LONGEST_S = 2.0
"""Seconds of one search; past it the answer is what was found up to there, `truncated`."""
_PATTERN_BYTES = 1024 * 1024
"""Memory of a pattern; one that needs more is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """One place. `line` counts from 0; `column` and `length` are cells of the terminal."""

    line: int
    column: int
    length: int
    text: str
    before: list[str]
    after: list[str]


@dataclass(frozen=True, slots=True)
class Found:
    """Matches from the top down, and whether there may be more."""

    matches: list[Match]
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What to search for, and how much of it to show."""

    text: str
    regex: bool = False
    ignore_case: bool = False
    context: int = 0
    limit: int = 50

    def compiled(self) -> Any:
        """The pattern, one line at a time.

        Raises:
            ValidationFailed: it is no regular expression of RE2's syntax, or too large a one.
        """
        options = re2.Options()
        options.log_errors = False  # it would print what the caller searches for
        options.never_nl = True
        options.max_mem = _PATTERN_BYTES
        options.case_sensitive = not self.ignore_case
        pattern = self.text if self.regex else re2.escape(self.text)
        try:
            return re2.compile(f"(?m){pattern}".encode(), options)
        except re2.error:
            words = "must be a regular expression of RE2's syntax, and not too large a one"
            item = {"loc": ["query", "q"], "msg": words, "type": "regex"}
            raise ValidationFailed(errors=[item], detail=f"q: {words}") from None


@dataclass(slots=True)
class _Text:
    """The blocks looked at so far, each whole lines, and the number of each one's first line."""

    first: int
    blocks: list[tuple[int, bytes]] = field(default_factory=list)
    end: int = 0
    _split: tuple[int, list[bytes]] = (-1, [])

    def add(self, block: bytes) -> int:
        """Add a block; the number of its first line."""
        start = self.end if self.blocks else self.first
        self.blocks.append((start, block))
        self.end = start + block.count(b"\n") + (not block.endswith(b"\n"))
        return start

    def lines(self, start: int, end: int) -> list[bytes]:
        """The lines from `start` up to `end`, as far as there are such."""
        found: list[bytes] = []
        for index, (first, block) in enumerate(self.blocks):
            after = self.blocks[index + 1][0] if index + 1 < len(self.blocks) else self.end
            if after <= start or first >= end:
                continue
            if self._split[0] != index:
                self._split = (index, block.split(b"\n")[: after - first])
            found += self._split[1][max(0, start - first) : end - first]
        return found


@dataclass(frozen=True, slots=True)
class _Place:
    line: int
    column: int
    length: int
    text: str


def search(blocks: Iterable[bytes], query: Query, *, first_line: int = 0) -> Found:
    """The matches in text that comes as blocks of whole lines; the first line's number is `first_line`.

    Raises:
        ValidationFailed: the pattern is none.
    """
    pattern = query.compiled()
    deadline = time.monotonic() + LONGEST_S
    text = _Text(first_line)
    places: list[_Place] = []
    lines_left = 0
    truncated = False
    for block in blocks:
        time.sleep(0)  # lets another thread have the interpreter
        first = text.add(block)
        if len(places) > query.limit:
            lines_left -= block.count(b"\n")
            if lines_left < 0:
                break
            continue
        for place in _places(pattern, block, first, deadline):
            places.append(place)
            if len(places) > query.limit:
                lines_left = query.context - block.count(b"\n")
                break
        if time.monotonic() > deadline:
            truncated = True
            break
    return Found(
        [_match(place, text, query.context) for place in places[: query.limit]],
        truncated or len(places) > query.limit,
    )


def _places(pattern: Any, block: bytes, line: int, deadline: float) -> Iterator[_Place]:
    """Every match in a block that is not empty, until the deadline."""
    at = counted = 0
    start, end = -1, -1
    shown = ""
    while at <= len(block) and time.monotonic() < deadline:
        found = pattern.search(block, at)
        if found is None:
            return
        begin, stop = found.span()
        if begin == stop:  # of nothing there is nothing to show
            at = begin + 1
            continue
        line += block.count(b"\n", counted, begin)
        counted = begin
        if not start <= begin < end:
            start = block.rfind(b"\n", 0, begin) + 1
            end = block.find(b"\n", begin)
            end = len(block) if end < 0 else end
            shown = block[start:end].decode(errors="replace")
        head = block[start:begin].decode(errors="replace")
        hit = block[begin:stop].decode(errors="replace")
        column = columns(head)
        yield _Place(line, column, columns(head + hit) - column, _around(shown, len(head), len(hit)))
        at = stop


def _around(text: str, start: int, length: int) -> str:
    """At most `MAX_TEXT` characters of a line, with the match in their middle."""
    if len(text) <= MAX_TEXT:
        return text
    begin = max(0, min(start - max(0, MAX_TEXT - length) // 2, len(text) - MAX_TEXT))
    return text[begin : begin + MAX_TEXT]


def _match(place: _Place, text: _Text, context: int) -> Match:
    def shown(start: int, end: int) -> list[str]:
        if not context:
            return []
        return [line.decode(errors="replace")[:MAX_TEXT] for line in text.lines(start, end)]

    return Match(
        line=place.line,
        column=place.column,
        length=place.length,
        text=place.text,
        before=shown(max(text.first, place.line - context), place.line),
        after=shown(place.line + 1, place.line + 1 + context),
    )
