"""The terminal's keyboard, read a line at a time without holding up anything else."""

import os
import termios
from contextlib import suppress
from typing import TextIO

import anyio

MAX_LINE = 64 * 1024
"""Bytes of one line; a terminal gives fewer."""


class Keyboard:
    """Lines that a person types."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def forget(self) -> None:
        """Drop what was typed already: it cannot be the answer to a question not yet seen."""
        with suppress(termios.error):
            termios.tcflush(self._descriptor, termios.TCIFLUSH)

    async def line(self) -> str | None:
        """The next line, without its end; None if there is none (Ctrl-D)."""
        await anyio.wait_readable(self._descriptor)
        try:
            text = os.read(self._descriptor, MAX_LINE)
        except OSError:  # hung up
            return None
        return text.decode(errors="replace").strip() if text else None


def keyboard(stdin: TextIO, stderr: TextIO) -> Keyboard | None:
    """The keyboard, where somebody sits before it and sees what is asked on stderr."""
    if not (stdin.isatty() and stderr.isatty()):
        return None
    descriptor = stdin.fileno()
    try:
        in_front = os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:  # a terminal without job control
        in_front = True
    return Keyboard(descriptor) if in_front else None
