"""Terminals on the daemon's machine: they outlive clients, not the daemon.

Output travels in binary frames: an opcode, a slot, the rest. Slots belong to our session on the daemon; the
same terminal always has the same one, so its followers here share it.
"""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeAlias

import anyio
import msgspec

from app.paseo.decoding import Frame, decode
from app.paseo.errors import LinkLost, PaseoError, Undecodable
from app.paseo.frames import Message
from app.paseo.link import Link
from app.paseo.requests import Requests, session_message
from app.paseo.snapshots import Done
from app.paseo.subscriptions import Mailbox

MAX_BYTES = 8 * 1024 * 1024
"""Bytes of output that a follower may leave unread; then it is closed with `Lagged` and captures instead."""

MAX_COLS = 1000
"""Columns of the widest terminal."""
LEAVE_S = 2.0
"""Seconds to tell the daemon that a terminal is no longer followed, also for whoever is cancelled."""


class Opcode(IntEnum):
    """The first byte of a terminal's binary frame; others are ignored."""

    OUTPUT = 1
    SNAPSHOT = 4


class Terminal(Frame, frozen=True):
    """A terminal in a list."""

    id: str
    name: str = ""
    cwd: str | None = None
    title: str | None = None


class Cell(Frame, frozen=True, gc=False):
    """A cell of a screen, without its looks."""

    char: str = " "


class CursorPosition(Frame, frozen=True):
    """Where the cursor stands, counted from 0."""

    row: int = 0
    col: int = 0


class Screen(Frame, frozen=True):
    """The whole screen, each row as it came: a cell has some hundred bytes, and a screen many cells."""

    rows: int
    cols: int
    grid: list[msgspec.Raw] = msgspec.field(default_factory=list)
    scrollback: list[msgspec.Raw] = msgspec.field(default_factory=list)
    cursor: CursorPosition = CursorPosition()
    title: str | None = None


class Capture(Frame, frozen=True):
    """Lines of a terminal as text; none for a terminal that is not there."""

    lines: list[str] = msgspec.field(default_factory=list)
    total_lines: int = 0


@dataclass(frozen=True, slots=True)
class Output:
    """Raw bytes of the program; a character may be split over two of these."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The screen as it was when following began, or began again elsewhere in this client."""

    data: bytes

    def screen(self) -> Screen:
        """The screen, its rows still unread; raises Undecodable."""
        screen = decode(Screen, self.data)
        if len(screen.grid) != screen.rows:
            raise Undecodable("a screen lacks rows")
        return screen

    def text(self) -> str:
        """The text up to the cursor, a row a line (a screen of 24×80 is some 200 KB); raises Undecodable.

        One of 64 MiB takes a tenth of a second: read it in a thread; after each row it lets others go on.
        """
        screen = self.screen()
        rows = [*screen.scrollback, *screen.grid]
        at = len(screen.scrollback) + max(0, screen.cursor.row)
        lines = [_row(row).rstrip() for row in rows[:at]]
        if at < len(rows):
            before = max(0, min(screen.cursor.col, screen.cols, MAX_COLS))
            lines.append(_row(rows[at]).rstrip().ljust(before))
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Exited:
    """The program ended; nobody tells how."""


TerminalNote: TypeAlias = Output | Snapshot | Exited


class _Created(Frame, frozen=True):
    terminal: Terminal


class _Listed(Frame, frozen=True):
    terminals: list[Terminal] = msgspec.field(default_factory=list)


class _Followed(Frame, frozen=True):
    terminal_id: str
    slot: int


class Terminals:
    """The terminals of one daemon."""

    def __init__(self, requests: Requests, link: Link) -> None:
        self._requests = requests
        self._link = link
        self._boxes: dict[str, list[Mailbox[TerminalNote]]] = {}
        self._slots: dict[int, str] = {}

    async def create(
        self,
        cwd: str,
        *,
        name: str | None = None,
        command: str | None = None,
        arguments: list[str] | None = None,
    ) -> Terminal:
        """Start a program, by default the shell. One that cannot start "succeeds" and then vanishes."""
        fields = _given({"cwd": cwd, "name": name, "command": command, "args": arguments})
        return (await self._requests.ask("create_terminal_request", fields, _Created)).terminal

    async def running(self, cwd: str | None = None) -> list[Terminal]:
        """The terminals below a directory, or all."""
        answer = await self._requests.ask("list_terminals_request", _given({"cwd": cwd}), _Listed)
        return answer.terminals

    async def write(self, terminal_id: str, data: str) -> None:
        """Type; no answer tells whether it arrived."""
        await self._say(terminal_id, {"type": "input", "data": data})

    async def resize(self, terminal_id: str, rows: int, columns: int) -> None:
        """Change its size: best before following it, for the first snapshot shows the whole screen."""
        await self._say(terminal_id, {"type": "resize", "rows": rows, "cols": columns})

    async def capture(
        self,
        terminal_id: str,
        *,
        start: int | None = None,
        end: int | None = None,
        strip_ansi: bool | None = None,
    ) -> Capture:
        """Lines of it, `end` included; as plain text unless `strip_ansi` is false."""
        fields = _given({"terminalId": terminal_id, "start": start, "end": end, "stripAnsi": strip_ansi})
        return await self._requests.ask("capture_terminal_request", fields, Capture)

    async def kill(self, terminal_id: str) -> None:
        """End it; also one that is not there."""
        await self._requests.ask("kill_terminal_request", {"terminalId": terminal_id}, Done)

    @asynccontextmanager
    async def follow(self, terminal_id: str) -> AsyncIterator[Mailbox[TerminalNote]]:
        """A snapshot, then its output until it exits. A lost link ends it with `LinkLost`: follow again."""

        def on_answer(message: Message) -> None:  # the snapshot may be the very next frame
            with suppress(Undecodable):
                self._slots[decode(_Followed, message.payload).slot] = terminal_id

        box: Mailbox[TerminalNote] = Mailbox(max_bytes=MAX_BYTES)
        self._boxes.setdefault(terminal_id, []).append(box)
        try:
            fields = {"terminalId": terminal_id}
            await self._requests.ask("subscribe_terminal_request", fields, _Followed, on_answer=on_answer)
            yield box
        finally:
            await self._leave(terminal_id, box)

    def on_binary(self, data: bytes) -> None:
        """A binary frame; one of another kind, or to a slot that is no longer followed, is ignored."""
        terminal_id = self._slots.get(data[1]) if len(data) > 1 else None
        for box in self._boxes.get(terminal_id or "", ()):
            if data[0] == Opcode.OUTPUT:
                box.put(Output(data[2:]), len(data))
            elif data[0] == Opcode.SNAPSHOT:
                box.put(Snapshot(data[2:]), len(data))

    def on_exit(self, terminal_id: str) -> None:
        """A program ended."""
        for box in self._boxes.get(terminal_id, ()):
            box.put(Exited())
            box.close()

    def on_down(self, lost: LinkLost | None) -> None:
        """The link was lost, or the client closed: slots mean nothing any more."""
        self._slots.clear()
        for boxes in self._boxes.values():
            for box in boxes:
                box.close(lost)

    async def _say(self, terminal_id: str, message: Mapping[str, Any]) -> None:
        text = session_message("terminal_input", {"terminalId": terminal_id, "message": message})
        await self._link.notify(text)

    async def _leave(self, terminal_id: str, box: Mailbox[TerminalNote]) -> None:
        boxes = self._boxes[terminal_id]
        boxes.remove(box)
        if boxes:
            return
        del self._boxes[terminal_id]
        self._slots = {slot: name for slot, name in self._slots.items() if name != terminal_id}
        with anyio.move_on_after(LEAVE_S, shield=True), suppress(PaseoError):  # else the slot stays taken
            await self._link.notify(
                session_message("unsubscribe_terminal_request", {"terminalId": terminal_id})
            )


def _row(row: msgspec.Raw) -> str:
    time.sleep(0)  # lets another thread have the interpreter
    return "".join([cell.char for cell in decode(list[Cell], row)])


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
