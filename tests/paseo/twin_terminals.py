"""A twin's terminals: a small shell that echoes lines, a screen of plain characters, binary frames."""

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

if TYPE_CHECKING:
    from tests.paseo.twin_daemon import Daemon
    from tests.paseo.twin_wire import Session

Json = dict[str, Any]

OUTPUT, INPUT, RESIZE, SNAPSHOT = 1, 2, 3, 4
"""The opcodes: byte 0 of a binary frame. Byte 1 is the slot."""

STYLE = dict.fromkeys(("bold", "italic", "underline", "dim", "inverse", "strikethrough"), False)
PROMPT = "# "


@dataclass
class Terminal:
    """One terminal and what is on it."""

    id: str
    name: str
    cwd: str
    title: str
    rows: int = 24
    cols: int = 80
    lines: list[str] = field(default_factory=lambda: [""])
    typed: str = ""
    interactive: bool = True

    def describe(self) -> Json:
        """How it stands in a list."""
        return {"id": self.id, "name": self.name, "title": self.title}

    def write(self, text: str) -> None:
        """Put text on the screen."""
        first, *rest = text.replace("\r\n", "\n").split("\n")
        self.lines[-1] += first
        self.lines += rest

    def snapshot(self) -> Json:
        """The screen and what has left it at the top."""

        def cells(line: str) -> list[Json]:
            return [{"char": char, **STYLE} for char in line[: self.cols].ljust(self.cols)]

        shown = self.lines[-self.rows :]
        blank = [""] * (self.rows - len(shown))
        return {
            "rows": self.rows,
            "cols": self.cols,
            "grid": [cells(line) for line in shown + blank],
            "scrollback": [cells(line) for line in self.lines[: -self.rows]],
            "cursor": {"row": len(shown) - 1, "col": min(len(shown[-1]), self.cols - 1)},
            "title": self.title,
        }


class Terminals:
    """All terminals of a daemon; they die with it."""

    def __init__(self, daemon: "Daemon") -> None:
        self._daemon = daemon
        self.all: dict[str, Terminal] = {}

    def create(self, cwd: str, name: str | None, command: str | None, arguments: list[str]) -> Terminal:
        """Start a terminal; with `-c` it runs `sleep`, `echo` and `exit` and then ends by itself."""
        title = " ".join([(command or "sh").rpartition("/")[2], *arguments])
        terminal = Terminal(str(uuid4()), name or f"Terminal {len(self.all) + 1}", cwd, title)
        self.all[terminal.id] = terminal
        if arguments[:1] == ["-c"]:
            terminal.interactive = False
            self._daemon.work(self._play, terminal, " ".join(arguments[1:]))
        else:
            terminal.write(PROMPT)
        for _ in range(2):
            self.changed(cwd)
        return terminal

    def list(self, cwd: str | None) -> list[Json]:
        """The terminals of a folder, or all."""
        return [one.describe() for one in self.all.values() if cwd is None or one.cwd == cwd]

    def changed(self, cwd: str) -> None:
        """Tell those who subscribed to the list."""
        for session in self._daemon.sessions.values():
            if cwd in session.terminals_of:
                session.send("terminals_changed", {"cwd": cwd, "terminals": self.list(cwd)})

    def subscribe(self, session: "Session", terminal_id: str) -> int | None:
        """A slot of the session, the same one if it has one already."""
        if terminal_id not in self.all:
            return None
        known = [slot for slot, other in session.slots.items() if other == terminal_id]
        slot = known[0] if known else max(session.slots, default=-1) + 1
        session.slots[slot] = terminal_id
        return slot

    def show(self, session: "Session", slot: int) -> None:
        """Send the whole screen."""
        screen = json.dumps(self.all[session.slots[slot]].snapshot(), separators=(",", ":"))
        session.put(bytes([SNAPSHOT, slot]) + screen.encode())

    def frame(self, session: "Session", frame: bytes) -> None:
        """A binary frame of a client; one for a slot that is not taken is lost silently."""
        opcode, slot = frame[0] if frame else 0, frame[1] if len(frame) > 1 else 0
        if opcode not in (INPUT, RESIZE):
            told = {"status": "error", "message": "Invalid message: unknown binary frame"}
            session.send("status", told)
        elif slot in session.slots:
            payload = frame[2:].decode(errors="replace")
            message = {"type": "input", "data": payload} if opcode == INPUT else json.loads(payload)
            self.input(session.slots[slot], {"type": "resize", **message})

    def input(self, terminal_id: str, message: Json) -> None:
        """Type, or change the size."""
        terminal = self.all.get(terminal_id)
        if terminal is None:
            return
        if message["type"] == "resize":
            terminal.rows, terminal.cols = message["rows"], message["cols"]
        elif message["type"] == "input":
            self._type(terminal, message["data"])

    def _type(self, terminal: Terminal, data: str) -> None:
        echo = data.replace("\r\n", "\n").replace("\r", "\n")
        if not terminal.interactive:
            self.output(terminal, echo.replace("\n", "\r\n"))
            return
        told, ends = "", False
        for char in echo:
            told += "\r\n" if char == "\n" else char
            if char != "\n":
                terminal.typed += char
                continue
            line, terminal.typed = terminal.typed.strip(), ""
            ends = ends or line == "exit"
            if line and not ends:
                answer = line.removeprefix("echo ") if line.startswith("echo ") else f"sh: {line}: not found"
                told += f"{answer}\r\n"
            told += "" if ends else PROMPT
        self.output(terminal, told)
        if ends:
            self.end(terminal)

    def output(self, terminal: Terminal, text: str) -> None:
        """Show text, to those who watch."""
        terminal.write(text)
        for session in self._daemon.sessions.values():
            for slot, other in session.slots.items():
                if other == terminal.id:
                    session.put(bytes([OUTPUT, slot]) + text.encode())

    async def _play(self, terminal: Terminal, script: str) -> None:
        last = ""
        for step in script.split(";"):
            verb, _, rest = step.strip().partition(" ")
            if verb == "sleep":
                await self._daemon.pause(float(rest))
            elif verb == "echo":
                last = f"{rest}\r\n"
        if terminal.id in self.all:
            del self.all[terminal.id]
            self.changed(terminal.cwd)
            self.output(terminal, last)
            self.tell_exit(terminal)
            self.changed(terminal.cwd)

    def end(self, terminal: Terminal) -> None:
        """The program ended by itself."""
        del self.all[terminal.id]
        self.tell_exit(terminal)
        self.changed(terminal.cwd)

    def tell_exit(self, terminal: Terminal) -> None:
        """Tell those who watch that nothing more will come."""
        for session in self._daemon.sessions.values():
            for slot in [slot for slot, other in session.slots.items() if other == terminal.id]:
                session.send("terminal_stream_exit", {"terminalId": terminal.id})
                del session.slots[slot]
