"""A terminal's raw output as the lines of text that a person saw.

CSI, OSC and the other escape sequences are removed; a carriage return and a backspace move the cursor, so
that what comes after them overwrites; what erases a line's end or a whole line does. Other movements of the
cursor are not followed: what a program paints over the whole screen is left out.
"""

import re
from collections.abc import Iterator

from wcwidth import wcswidth, wcwidth

from app.domain.ring import SCREEN

BLOCK = 64 * 1024
"""Bytes that are looked at in one go: short enough for a thread not to hold up the others."""
MAX_LINE = 1024 * 1024
"""Bytes of a line; a longer one is broken there."""
MARKS = 16
"""Characters of a cell, its combining marks included; more are dropped, lest a line take ever longer."""
TAB = 8
"""Columns from one tab stop to the next."""

_ERASE = re.compile(rb"\x1b\[([02]?)K")
_ESCAPES = re.compile(
    rb"\x1b(?:"
    rb"\[[0-?]*[ -/]*[@-~]?"  # CSI
    rb"|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?"  # OSC
    rb"|[PX^_][^\x1b\n]*(?:\x1b\\)?"  # DCS, SOS, PM, APC
    rb"|[ -/]*[0-~]"
    rb")?"
)
_ERASED_END, _ERASED_LINE = b"\x01", b"\x02"
_CONTROLS = bytes(code for code in (*range(0x20), 0x7F) if code not in b"\t\n\r\b\x01\x02")
_MOVES = re.compile(rb"\r+|\x08+|[\x01\x02]|[^\r\x08\x01\x02]+")


def plain_blocks(raw: bytes, *, full_screen: bool = False) -> Iterator[bytes]:
    """The text of `raw` in UTF-8, block by block, each but the last ending at a line's end.

    `full_screen`: a program had the whole screen at the beginning of `raw`.
    """
    start = 0
    while start < len(raw):
        end = _block_end(raw, start)
        piece, full_screen = _without_full_screens(raw[start:end], full_screen)
        text = _plain(piece)
        if end < len(raw) and raw[end - 1 : end] != b"\n":
            text += b"\n"  # the line was too long
        if text:
            yield text
        start = end


def _block_end(raw: bytes, start: int) -> int:
    if start + BLOCK >= len(raw):
        return len(raw)
    end = raw.rfind(b"\n", start, start + BLOCK)
    if end < 0:
        end = raw.find(b"\n", start + BLOCK, start + MAX_LINE)
    return end + 1 if end >= 0 else min(start + MAX_LINE, len(raw))


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
    block = block.translate(None, _ERASED_END + _ERASED_LINE)
    if b"\r\n" in block:
        block = re.sub(rb"\r+\n", b"\n", block)
    moves = b"\r" in block or b"\b" in block
    if b"\x1b" in block:
        if moves:
            block = _ERASE.sub(lambda found: _ERASED_LINE if found[1] == b"2" else _ERASED_END, block)
        block = _ESCAPES.sub(b"", block)
    block = block.translate(None, _CONTROLS)
    if moves:
        lines = block.split(b"\n")
        for index, line in enumerate(lines):
            if b"\r" in line or b"\b" in line:
                lines[index] = _overwritten(line)
        block = b"\n".join(lines).translate(None, _ERASED_END + _ERASED_LINE)
    try:
        block.decode()
    except UnicodeDecodeError:
        block = block.decode(errors="replace").encode()
    return block


def _overwritten(line: bytes) -> bytes:
    """What stands in a line in the end."""
    if not line.isascii() or b"\t" in line:
        return _overwritten_cells(line.decode(errors="replace")).encode()
    cells, at = bytearray(), 0
    for move in _MOVES.findall(line):
        match move[:1]:
            case b"\r":
                at = 0
            case b"\b":
                at = max(0, at - len(move))
            case b"\x01":
                del cells[at:]
            case b"\x02":
                cells = bytearray()
            case _:
                if at > len(cells):
                    cells += b" " * (at - len(cells))
                cells[at : at + len(move)] = move
                at += len(move)
    return bytes(cells)


def _overwritten_cells(line: str) -> str:
    """The same where characters are none, one or two cells wide; the second cell of one is empty."""
    cells: list[str] = []
    at = 0
    for character in line:
        match character:
            case "\r":
                at = 0
            case "\b":
                at = max(0, at - 1)
            case "\x01":
                del cells[at:]
            case "\x02":
                cells.clear()
            case _:
                cells += [" "] * (at - len(cells))
                width = TAB - at % TAB if character == "\t" else wcwidth(character)
                if width <= 0:
                    if at and len(cells[at - 1]) < MARKS:
                        cells[at - 1] += character
                    continue
                if at < len(cells) and not cells[at]:
                    cells[at - 1] = " "
                cells[at : at + width] = [character, *[""] * (width - 1)]
                if at + width < len(cells) and not cells[at + width]:
                    cells[at + width] = " "
                at += width
    return "".join(cells)


def columns(text: str) -> int:
    """How many columns `text` takes at a line's beginning."""
    if "\t" not in text:
        return len(text) if text.isascii() else max(0, wcswidth(text))
    at = 0
    for index, part in enumerate(text.split("\t")):
        if index:
            at += TAB - at % TAB
        at += len(part) if part.isascii() else max(0, wcswidth(part))
    return at
