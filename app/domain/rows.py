"""A line of a terminal while it is written: what is overwritten, erased, inserted and deleted in it.

It may be longer than a row of any terminal, for where the terminal has wrapped it is not known. What moves
the rest of a row therefore reaches no further than the widest row: each movement takes bounded time.
"""

import re
from typing import Any, AnyStr

from wcwidth import wcwidth

TAB = 8
"""Columns from one tab stop to the next."""
MARKS = 16
"""Characters of a cell, its combining marks included; more are dropped, lest a line take ever longer."""
WIDEST = 1000
"""Columns of the widest row."""
MARK = b"\x01"
"""Stands for CSI before the sequences that are understood here: a number, or none, and one of `FINALS`."""
FINALS = b"@CDGJKPX`"
"""Insert blanks, right, left, to a column, erase (`J`, `K`), delete, blank out, to a column."""

_ERASE_END = MARK + b"K"
_STEPS = re.compile(rb"\r+|\x08+|\x01\d*[%b]|[^\r\x08\x01]+" % FINALS)
_TEXT_STEPS = re.compile(_STEPS.pattern.decode())

_NARROW_SET = (
    "\x00-\x7e\xa1-\xac\xae-\u02ff\u038e-\u03a1\u03a3-\u0482\u048a-\u052f\u2010-\u2027\u2030-\u205e"
    "\u2190-\u2319\u2400-\u2426\u2500-\u25fc\u2700-\u2704\u2800-\u28ff"
)
_WIDE_SET = (
    "\u231a\u231b\u23f3\u26a1\u2705\u2728\u274c\u3001-\u3020\u3041-\u3096\u30a1-\u30fe\u4e00-\u9fff"
    "\uac00-\ud7a3\uff01-\uff60\U0001f300-\U0001f320\U0001f32d-\U0001f335\U0001f337-\U0001f37c"
    "\U0001f37e-\U0001f393\U0001f3a0-\U0001f3ca\U0001f400-\U0001f43e\U0001f442-\U0001f4fc"
    "\U0001f4ff-\U0001f53d\U0001f5fb-\U0001f64f\U0001f680-\U0001f6c5\U0001f90c-\U0001f93a"
)
_NARROW = re.compile(f"[{_NARROW_SET}]*")
_KNOWN = re.compile(f"[{_NARROW_SET}{_WIDE_SET}]*")


def is_narrow(text: str) -> bool:
    """Whether every character surely takes one column: letters of Europe, arrows, bars, spinners."""
    return _NARROW.fullmatch(text) is not None


def is_known(text: str) -> bool:
    """Whether every character surely takes one column or two, and none joins another."""
    return _KNOWN.fullmatch(text) is not None


class Blanks:
    """How many blanks may still come of nothing but movements, in some lines together."""

    def __init__(self, left: int) -> None:
        self._left = left

    def take(self, count: int) -> int:
        """So many, or as many as are left."""
        count = min(count, self._left)
        self._left -= count
        return count


def written(line: bytes, blanks: Blanks) -> bytes:
    """What stands in a line in the end."""
    is_rewritten = MARK not in line and b"\b" not in line
    if line.isascii() and b"\t" not in line:
        return _rewritten(line.split(b"\r")) if is_rewritten else _written_bytes(line, blanks)
    text = line.decode(errors="replace")
    if "\t" not in text and is_narrow(text):
        if is_rewritten:
            return _rewritten(text.split("\r")).encode()
        strange = [character for character in set(text) if character > "\x7f"]
        if len(strange) <= 0x80:  # each stands for itself as one byte meanwhile
            there = {ord(character): 0x80 + index for index, character in enumerate(strange)}
            back = {0x80 + index: character for index, character in enumerate(strange)}
            in_bytes = _written_bytes(text.translate(there).encode("latin-1"), blanks)
            return in_bytes.decode("latin-1").translate(back).encode()
    elif is_rewritten and "\t" not in text and is_known(text):
        return _rewritten_wide(text)
    wide = _WideRow([], [" "], blanks)
    for step in _TEXT_STEPS.findall(text):
        match step[0]:
            case "\r":
                wide.at = 0
            case "\b":
                wide.at = max(0, wide.at - len(step))
            case "\x01":
                wide.edit(step[-1], step[1:-1])
            case _:
                for character in step:
                    wide.put(character)
    return "".join(wide.cells).encode()


def _rewritten(writings: list[AnyStr]) -> AnyStr:
    """Of each writing what is longer than all that followed."""
    seen = writings.pop()
    while writings:
        if len(before := writings.pop()) > len(seen):
            seen += before[len(seen) :]
    return seen


def _rewritten_wide(text: str) -> bytes:
    """The same, where a cell is a character, and NUL stands for the second cell of a wide one."""
    wide = {ord(character): character + "\0" for character in set(text) if not is_narrow(character)}
    writings = text.translate(wide).split("\r")
    seen = writings.pop()
    while writings:
        if len(before := writings.pop()) > len(seen):
            rest = before[len(seen) :]
            seen += " " + rest[1:] if rest[0] == "\0" else rest
    return seen.replace("\0", "").encode()


def _written_bytes(line: bytes, blanks: Blanks) -> bytes:
    row = _Row(bytearray(), b" ", blanks)
    cells, at = row.cells, 0
    for step in _STEPS.findall(line):
        match step[0]:
            case 0x0D:
                at = 0
            case 0x08:
                at = max(0, at - len(step))
            case 0x01 if step == _ERASE_END:  # by far the most frequent
                del cells[at:]
            case 0x01:
                row.at = at
                row.edit(chr(step[-1]), step[1:-1])
                at = row.at
            case _:
                if at > len(cells):
                    row.at = at
                    row.fill()
                    at = row.at
                end = at + len(step)
                cells[at:end] = step
                at = end
    return bytes(cells)


class _Row:
    """Cells of one byte each, and where the cursor is."""

    def __init__(self, cells: Any, blank: Any, blanks: Blanks) -> None:
        self.cells = cells
        self.at = 0
        self._blank = blank
        self._blanks = blanks

    def edit(self, final: str, number: Any) -> None:
        """Do what a sequence says."""
        count = min(int(number or 0), WIDEST)
        cells, at, many = self.cells, self.at, max(1, count)
        match final:
            case "C":
                self.at = max(at, min(at + many, max(len(cells), WIDEST - 1)))
            case "D":
                self.at = max(0, at - many)
            case "G" | "`":
                self.at = many - 1
            case "K" | "J":
                self._erase(count)
            case "X":
                self._blank_out(at, at + many)
            case "P" if at < len(cells):
                self._part(at)
                self._part(at + many)
                end = at + WIDEST
                rest = cells[at + many : end]
                if end < len(cells):
                    rest += self._blank * (WIDEST - len(rest))
                cells[at:end] = rest
            case "@" if at < len(cells):
                end = at + WIDEST
                room = WIDEST if end < len(cells) else max(WIDEST, len(cells)) - at
                many = self._blanks.take(min(many, room))
                self._part(at)
                self._part(at + room - many)  # what comes to stand past the row's end is lost
                cells[at:end] = (self._blank * many + cells[at:end])[:room]

    def _erase(self, what: int) -> None:
        """To the end, from the beginning up to the cursor, or all of it; a screen's rest is its line's."""
        if what == 0:
            self._part(self.at)
            del self.cells[self.at :]
        elif what == 1:
            self._blank_out(max(0, self.at + 1 - WIDEST), self.at + 1)
        elif what == 2:
            del self.cells[:]

    def _blank_out(self, start: int, end: int) -> None:
        self._part(start)
        self._part(end)
        if end >= len(self.cells):
            del self.cells[start:]
        else:
            self.cells[start:end] = self._blank * (end - start)

    def fill(self) -> None:
        """See that there are cells up to the cursor."""
        if (missing := self.at - len(self.cells)) > 0:
            self.cells += self._blank * self._blanks.take(missing)
            self.at = len(self.cells)

    def _part(self, at: int) -> None:
        """See that no character stands on both sides of a column."""


class _WideRow(_Row):
    """Cells that hold a character each, with its marks; one of several columns is followed by empty cells."""

    def put(self, text: str) -> None:
        """Write one character."""
        if text == "\t":
            return self._tab()
        self.fill()
        width = wcwidth(text)
        if width <= 0:
            self._add_mark(text)
            return None
        self._part(self.at)
        self._part(self.at + width)
        self.cells[self.at : self.at + width] = [text, *[""] * (width - 1)]
        self.at += width
        return None

    def _tab(self) -> None:
        """Go to the next stop; over cells that nobody has written it is kept as it is."""
        width = TAB - self.at % TAB
        if self.at >= len(self.cells):
            self.fill()
            width = TAB - self.at % TAB
            self.cells += ["\t", *[""] * (width - 1)]
        self.at += width

    def _add_mark(self, mark: str) -> None:
        at = self._owner(self.at - 1)
        if at >= 0 and len(self.cells[at]) < MARKS:
            self.cells[at] += mark

    def _owner(self, at: int) -> int:
        """The cell whose character stands in this one."""
        while at > 0 and not self.cells[at]:
            at -= 1
        return at

    def _part(self, at: int) -> None:
        if 0 < at < len(self.cells) and not self.cells[at]:
            start = self._owner(at)
            end = at
            while end < len(self.cells) and not self.cells[end]:
                end += 1
            self.cells[start:end] = [" "] * (end - start)
