"""The newest output of a terminal: raw bytes under a bound, each with its offset since the ring began."""

import re
import secrets

SCREEN = re.compile(rb"\x1b\[\?(?:[\d;]{0,24};)?0{0,3}(?:1049|1047|47)(?:;[\d;]{0,24})?([hl])")
"""A program takes the whole screen (`h`) or gives it back (`l`): DEC's private modes, as xterm has them.

One sequence may name other modes as well.
"""
LONGEST_SWITCH = 64
"""Bytes of the longest such sequence."""


def lines_ended(raw: bytes, start: int, end: int, full_screen: bool) -> tuple[int, bool]:
    """How many lines end there while no program has the whole screen, and whether one has it at `end`.

    A switch counts where it begins; `full_screen`: one has it at `start`.
    """
    if not full_screen and raw.find(b"\x1b[?", start, end) < 0:
        return raw.count(b"\n", start, end), False
    ended = 0
    for switch in SCREEN.finditer(raw, start, end + LONGEST_SWITCH):
        if switch.start() >= end:
            break
        if not full_screen:
            ended += raw.count(b"\n", start, switch.start())
        full_screen, start = switch[1] == b"h", switch.end()
    if not full_screen and start < end:
        ended += raw.count(b"\n", start, end)
    return ended, full_screen


class Ring:
    """Raw output, the oldest of it dropped past `limit` bytes. Offsets mean nothing in another ring."""

    def __init__(self, limit: int, *, complete: bool) -> None:
        """`complete`: it begins with the terminal's first output. `limit` holds at least a few sequences."""
        assert limit >= 2 * LONGEST_SWITCH
        self.id = secrets.token_hex(6)
        self.base = 0
        """Offset of the oldest byte that is kept."""
        self.first_line = 0
        """Lines that ended before `base`, those of full screens not counted."""
        self.full_screen_at_base = False
        """Whether a program had the whole screen at `base`."""
        self.is_full_screen = False
        """Whether a program has the whole screen now: then the output is no text, only the screen is."""
        self._limit = limit
        self._complete = complete
        self._data = bytearray()

    @property
    def end(self) -> int:
        """Offset after the newest byte."""
        return self.base + len(self._data)

    @property
    def is_whole(self) -> bool:
        """Whether it holds everything that the terminal ever put out."""
        return self._complete and self.base == 0

    def miss_beginning(self) -> None:
        """The terminal has put out something that is not in it."""
        self._complete = False

    def append(self, data: bytes) -> None:
        """Add output."""
        seam = bytes(self._data[-LONGEST_SWITCH:]) + data
        if toggles := SCREEN.findall(seam):
            self.is_full_screen = toggles[-1] == b"h"
        self._data += data
        if (over := len(self._data) - self._limit) > 0:
            self._drop(over)

    def _drop(self, count: int) -> None:
        dropped = bytes(self._data[: count + LONGEST_SWITCH])
        ended, self.full_screen_at_base = lines_ended(dropped, 0, count, self.full_screen_at_base)
        self.first_line += ended
        del self._data[:count]
        self.base += count

    def read(self, offset: int, most: int) -> bytes:
        """Up to `most` bytes from `offset` on, which must not lie before `base`."""
        assert offset >= self.base
        start = offset - self.base
        return bytes(self._data[start : start + most])

    def content(self) -> bytes:
        """Everything that is kept."""
        return bytes(self._data)
