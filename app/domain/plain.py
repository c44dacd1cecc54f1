"""A terminal's raw output as the lines of text that a person saw.

CSI, OSC and the other escape sequences are removed. What moves the cursor within a line, and what erases,
inserts or deletes there, does so, as `rows` has it. Movements to other lines are not followed: what a program
paints over the whole screen is left out.
"""

import re
from collections.abc import Iterator

from wcwidth import wcswidth, wcwidth

from app.domain.ring import SCREEN
from app.domain.rows import FINALS, MARK, TAB, Blanks, written

BLOCK = 64 * 1024
"""Bytes that are looked at in one go: short enough for a thread not to hold up the others."""
MAX_LINE = 1024 * 1024
"""Bytes of a line; a longer one is broken there."""
BLANKS = 4 * BLOCK
"""Blanks that come of nothing but movements, in one block: some bytes can ask for a whole row of them."""

_RETURNS = re.compile(rb"\r{2,}")  # with the line feed after them it would cost their square where none comes
_UNDERSTOOD = re.compile(rb"\x1b\[(\d{0,9}[%b])" % FINALS)
_MOVES = re.compile(rb"\x1b\[(?:\d{0,9}[@CDGPX`]|[12][JK])")
_ERASED_END = re.compile(rb"\x010?[JK]")
_ESCAPES = re.compile(
    rb"\x1b(?:"
    rb"\[[0-?]*[ -/]*[@-~]?"  # CSI
    rb"|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?"  # OSC
    rb"|[PX^_][^\x1b\n]*(?:\x1b\\)?"  # DCS, SOS, PM, APC
    rb"|[ -/]*[0-~]"
    rb")?"
)
_C1 = re.compile(rb"\xc2[\x80-\x9f]")
_CONTROLS = bytes(code for code in (*range(0x20), 0x7F) if code not in b"\t\n\r\b" + MARK)


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
    block = block.translate(None, MARK)
    if b"\r\r" in block:
        block = _RETURNS.sub(b"\r", block)
    block = block.replace(b"\r\n", b"\n")
    moves = b"\r" in block or b"\b" in block
    if b"\x1b" in block:
        moves = moves or _MOVES.search(block) is not None
        if moves:
            block = block.replace(b"\x1b[K", MARK + b"K")  # by far the most frequent
            block = _UNDERSTOOD.sub(MARK + rb"\1", block)
        block = _ESCAPES.sub(b"", block)
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
    if (width := wcswidth(text)) >= 0:
        return width
    return sum(
        max(0, wcwidth(character)) for character in text
    )  # a control has no width, its neighbours have
