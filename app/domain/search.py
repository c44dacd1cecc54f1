"""Search in a terminal's text, in time linear in the text whatever is asked: RE2 never goes back.

Linear is not short yet: a costly pattern takes a thousand steps for a byte, and nothing interrupts RE2. So
patterns have a bound, and so has the text that it is given in one go.
"""

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import re2

from app.domain.errors import ValidationFailed
from app.domain.plain import Block, character_start, columns

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
MAX_PROGRAM = 3000
"""Instructions of an expression; RE2 may look at each of them for each byte."""
MAX_CLASSES = 20
"""Classes of Unicode in an expression: to read one takes as long as a thousand other characters."""
WINDOW = 8 * 1024
"""Bytes that are matched in one go; a longer match is not found whole."""
_OVERLAP = 1024
"""Bytes at a window's end in which no match begins: the next window has them whole."""

_ESCAPED = re.compile(r"\\Q.*?(?:\\E|\Z)|\\(.)", re.DOTALL)


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
    """The newest matches, from the top down, and whether there may be older ones."""

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
            ValidationFailed: it is no regular expression of RE2's syntax, or too costly a one.
        """
        options = re2.Options()
        options.log_errors = False  # it would print what the caller searches for
        options.never_nl = True
        options.max_mem = _PATTERN_BYTES
        options.case_sensitive = not self.ignore_case
        text = self.text if self.regex else re2.escape(self.text)
        escaped = _ESCAPED.findall(self.text) if self.regex else []
        classes = escaped.count("p") + escaped.count("P")
        if "C" not in escaped and classes <= MAX_CLASSES:  # \C is a byte by itself, a line's end too
            try:
                pattern = re2.compile(f"(?m){text}".encode(), options)
            except re2.error:
                pattern = None
            if pattern is not None and (not self.regex or pattern.programsize <= MAX_PROGRAM):
                return pattern
        words = "must be a regular expression of RE2's syntax without \\C, and not too large a one"
        item = {"loc": ["query", "q"], "msg": words, "type": "regex"}
        raise ValidationFailed(errors=[item], detail=f"q: {words}")


@dataclass(slots=True)
class _Text:
    """The blocks looked at so far, the newest first, each with the number of its last line."""

    blocks: list[tuple[Block, int]] = field(default_factory=list)
    _split: tuple[int, list[bytes]] = (-1, [])

    def add(self, block: Block) -> None:
        last = block.line + block.text.count(b"\n") - block.text.endswith(b"\n")
        self.blocks.append((block, last))

    def lines(self, start: int, end: int) -> list[str]:
        """What is shown of the lines from `start` up to `end`, as far as there are such."""
        found: dict[int, bytes] = {}
        for index in range(len(self.blocks) - 1, -1, -1):
            block, last = self.blocks[index]
            if last < start or block.line >= end or not block.text:
                continue
            if self._split[0] != index:
                self._split = (index, block.text.split(b"\n"))
            for number in range(max(start, block.line), min(end, last + 1)):
                before = found.get(number, b"")
                if len(before) < 4 * MAX_TEXT:
                    found[number] = before + self._split[1][number - block.line]
        return [line.decode(errors="replace")[:MAX_TEXT] for line in found.values()]


@dataclass(frozen=True, slots=True)
class _Place:
    line: int
    column: int
    length: int
    text: str


def search(blocks: Iterable[Block], query: Query, *, given_up: Callable[[], bool] = lambda: False) -> Found:
    """The newest matches in text that comes as blocks, the newest first.

    `given_up`: nobody waits for the answer any more; asked every fraction of a second.

    Raises:
        ValidationFailed: the pattern is none.
    """
    pattern = query.compiled()
    deadline = time.monotonic() + LONGEST_S

    def is_over() -> bool:
        return time.monotonic() > deadline or given_up()

    text = _Text()
    places: list[_Place] = []  # the newest first
    truncated = False
    for block in blocks:
        time.sleep(0)  # lets another thread have the interpreter
        text.add(block)
        if not truncated:
            left = query.limit - len(places)
            spans = deque(_spans(pattern, block.text, is_over), left + 1)
            if truncated := len(spans) > left:
                spans.popleft()
            places += reversed(list(_places(block, spans, is_over)))
        if is_over():
            truncated = True
            break
        if truncated and (not places or block.line < places[-1].line - query.context):
            break
    return Found([_match(place, text, query.context) for place in reversed(places)], truncated)


def _spans(pattern: Any, text: bytes, is_over: Callable[[], bool]) -> Iterator[tuple[int, int]]:
    """Where every match in a block is that is not empty, until it is over."""
    at = 0
    while at < len(text):
        start, end = at, _window_end(text, at)
        is_whole = end == len(text) or text[end - 1] == 0x0A
        while at < end:
            if is_over():
                return
            found = pattern.search(text, at, end)
            if found is None:
                at = end if is_whole else max(at, end - _OVERLAP)
                break
            begin, stop = found.span()
            if not is_whole and begin > start and (begin > end - _OVERLAP or stop == end):
                at = begin
                break
            if begin == stop:  # of nothing there is nothing to show
                at = begin + 1
                continue
            yield begin, stop
            at = stop


def _window_end(text: bytes, start: int) -> int:
    """As many whole lines as there is room for, or a part of one."""
    end = start + WINDOW
    if end >= len(text):
        return len(text)
    return text.rfind(b"\n", start, end) + 1 or character_start(text, end)


def _places(block: Block, spans: Iterable[tuple[int, int]], is_over: Callable[[], bool]) -> Iterator[_Place]:
    """Where the matches of a block are, in lines and columns."""
    text, line = block.text, block.line
    counted = at = column = characters = 0
    end = -1
    shown = ""
    for begin, stop in spans:
        if begin > end:
            line += text.count(b"\n", counted, begin)
            start = at = text.rfind(b"\n", 0, begin) + 1
            counted = begin
            end = text.find(b"\n", begin)
            end = len(text) if end < 0 else end
            shown = text[start:end].decode(errors="replace")
            column = characters = 0
        head = text[at:begin].decode(errors="replace")
        hit = text[begin:stop].decode(errors="replace")
        column, characters, at = columns(head, column), characters + len(head), stop
        after = columns(hit, column)
        yield _Place(line, column, after - column, _around(shown, characters, len(hit)))
        column, characters = after, characters + len(hit)
        if is_over():
            return


def _around(text: str, start: int, length: int) -> str:
    """At most `MAX_TEXT` characters of a line, with the match in their middle."""
    if len(text) <= MAX_TEXT:
        return text
    begin = max(0, min(start - max(0, MAX_TEXT - length) // 2, len(text) - MAX_TEXT))
    return text[begin : begin + MAX_TEXT]


def _match(place: _Place, text: _Text, context: int) -> Match:
    return Match(
        line=place.line,
        column=place.column,
        length=place.length,
        text=place.text,
        before=text.lines(place.line - context, place.line) if context else [],
        after=text.lines(place.line + 1, place.line + 1 + context) if context else [],
    )
