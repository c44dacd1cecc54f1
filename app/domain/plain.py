"""A terminal's raw output as the lines of text that a person saw.

CSI, OSC and the other escape sequences are removed. What moves the cursor within a line, and what erases,
inserts or deletes there, does so, as `rows` has it. Movements to other lines are not followed: what a program
paints over the whole screen is left out.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from wcwidth import wcswidth, wcwidth

from app.domain.ring import LONGEST_SWITCH, SCREEN, lines_ended
from app.domain.rows import FINALS, MARK, TAB, Blanks, is_narrow, written

BLOCK = 64 * 1024
"""Bytes that are looked at in one go: short enough for a thread not to hold up the others."""
MAX_LINE = 128 * 1024
"""Bytes of a line that are looked at in one go; a longer one comes in pieces."""
BLANKS = 4 * BLOCK
"""Blanks that come of nothing but movements, in one block: some bytes can ask for a whole row of them."""

_RETURNS = re.compile(rb"\r{2,}")  # with the line feed after them it would cost their square where none comes
_UNDERSTOOD = re.compile(rb"\x1b\[(\d{0,9}[%b])" % FINALS)
_FREQUENT = [
    (b"\x1b[K", MARK + b"K"),
    (b"\x1b[0K", MARK + b"K"),
    (b"\x1b[1G", MARK + b"G"),
    (b"\x1b[G", MARK + b"G"),
    (b"\x1b[2K", MARK + b"2K"),
]
_AFRESH = (b"\r" + MARK + b"K", b"\r" + MARK + b"2K", MARK + b"2K\r")
_MOVES = re.compile(rb"\x1b\[(?:\d{0,9}[@CDGPX`]|[12][JK])")
_ERASED_END = re.compile(rb"\x010?[JK]")
_ESCAPES = re.compile(
    rb"\x1b(?:"
    rb"\[[0-?]*[ -/]*[@-~]?"  # CSI
    rb"|\][^\x01\x07\x1b\n]*(?:\x07|\x1b\\)?"  # OSC
    rb"|[PX^_][^\x01\x1b\n]*(?:\x1b\\)?"  # DCS, SOS, PM, APC
    rb"|[ -/]*[0-~]"
    rb")?"
)
_C1 = re.compile(rb"\xc2[\x80-\x9f]")
_CONTROLS = bytes(code for code in (*range(0x20), 0x7F) if code not in b"\t\n\r\b" + MARK)


class Block(NamedTuple):
    """Lines, each but the last with its end; without that the next newer block goes on with the same line."""

    line: int
    """The first one's number."""
    text: bytes
    """In UTF-8."""


def plain_blocks(raw: bytes, *, full_screen: bool = False) -> Iterator[bytes]:
    """The text of `raw` in UTF-8, from its beginning on, each block but the last ending at a line's end.

    `full_screen`: a program had the whole screen at the beginning of `raw`. A line that is too long comes in
    several blocks.
    """
    start = 0
    while start < len(raw):
        end = _block_end(raw, start)
        piece, full_screen = _without_full_screens(raw[start:end], full_screen)
        if text := _plain(piece):
            yield text
        start = end


def newest_first(raw: bytes, *, full_screen: bool, first_line: int, is_cut: bool) -> Iterator[Block]:
    """The same text, from its end on. Lines are numbered from `first_line`, those of full screens are not.

    `is_cut`: the first line has lost its beginning, and is left out.
    """
    start = raw.find(b"\n") + 1 if is_cut else 0
    ended, full_screen = lines_ended(raw, 0, start, full_screen)
    line = first_line + ended
    places = []
    while start < len(raw):
        end = _block_end(raw, start)
        places.append((start, end, line, full_screen))
        ended, full_screen = lines_ended(raw, start, end, full_screen)
        line += ended
        start = end
    for start, end, line, full_screen in reversed(places):
        piece, _ = _without_full_screens(raw[start:end], full_screen)
        yield Block(line, _plain(piece))


def captured_blocks(lines: Sequence[str]) -> Iterator[Block]:
    """Lines that are plain already, from the last one on, as blocks of about the same size."""
    block: list[bytes] = []
    size = 0
    for number in range(len(lines) - 1, -1, -1):
        line = lines[number].encode(errors="replace") + b"\n"
        while len(line) > MAX_LINE:
            if block:
                yield Block(number + 1, b"".join(reversed(block)))
                block, size = [], 0
            start = character_start(line, len(line) - MAX_LINE)
            yield Block(number, line[start:])
            line = line[:start]
        block.append(line)
        size += len(line)
        if size >= BLOCK or not line.endswith(b"\n"):
            yield Block(number, b"".join(reversed(block)))
            block, size = [], 0
    if block:
        yield Block(0, b"".join(reversed(block)))


def _block_end(raw: bytes, start: int) -> int:
    if start + BLOCK >= len(raw):
        return len(raw)
    end = raw.rfind(b"\n", start, start + BLOCK)
    if end < 0:
        end = raw.find(b"\n", start + BLOCK, start + MAX_LINE)
    if end >= 0:
        return end + 1
    end = start + MAX_LINE
    if end >= len(raw):
        return len(raw)
    if (back := raw.rfind(b"\r", start + BLOCK, end)) >= 0:  # what stood there then was seen
        return back
    if (escape := raw.rfind(b"\x1b", end - LONGEST_SWITCH, end)) >= 0:
        return escape
    return character_start(raw, end)


def character_start(text: bytes, at: int) -> int:
    """Where the character begins that has the byte at `at`."""
    for start in range(at, max(0, at - 4), -1):
        if text[start] & 0xC0 != 0x80:
            return start
    return at


def _without_full_screens(block: bytes, full_screen: bool) -> tuple[bytes, bool]:
    if not full_screen and b"\x1b[?" not in block:
        return block, False
    kept, start = [], 0
    for toggle in SCREEN.finditer(block):
        if not full_screen:
            kept.append(block[start : toggle.start()])
        full_screen, start = toggle[1] == b"h", toggle.end()
    if not full_screen:
        kept.append(block[start:])
    return b"".join(kept), full_screen


def _plain(block: bytes) -> bytes:
    block = block.translate(None, MARK)
    if b"\r\r" in block:
        block = _RETURNS.sub(b"\r", block)
    block = block.replace(b"\r\n", b"\n")
    moves = b"\r" in block or b"\b" in block
    if b"\x1b" in block:
        moves = moves or _MOVES.search(block) is not None
        if moves:
            for sequence, marked in _FREQUENT:
                block = block.replace(sequence, marked)
            block = _UNDERSTOOD.sub(MARK + rb"\1", block)
        block = _ESCAPES.sub(b"", block)
        block = block.replace(MARK + b"G", b"\r")
    block = block.translate(None, _CONTROLS)
    if moves:
        blanks = Blanks(BLANKS)
        block = b"\n".join([_written(line, blanks) for line in block.split(b"\n")])
    try:
        block.decode()
    except UnicodeDecodeError:
        block = block.decode(errors="replace").encode()
    return _C1.sub(b"", block) if b"\xc2" in block else block


def _written(line: bytes, blanks: Blanks) -> bytes:
    if b"\r" in line and MARK in line:
        for afresh in _AFRESH:
            if (at := line.rfind(afresh)) >= 0:
                line = line[at + len(afresh) :]
    if b"\r" not in line and b"\b" not in line:
        if MARK not in line:
            return line
        plain = _ERASED_END.sub(b"", line)  # nothing stands there yet
        if MARK not in plain:
            return plain
    return written(line, blanks)


def columns(text: str, at: int = 0) -> int:
    """The column after `text` that begins in column `at`."""
    for index, part in enumerate(text.split("\t")):
        if index:
            at += TAB - at % TAB
        at += len(part) if part.isascii() else _width(part)
    return at


def _width(text: str) -> int:
    if is_narrow(text):
        return len(text)
    if (width := wcswidth(text)) >= 0:
        return width
    return sum(
        max(0, wcwidth(character)) for character in text
    )  # a control has no width, its neighbours have
