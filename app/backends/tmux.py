"""Terminals on this machine, under a tmux server of our own, which outlives us.

Commands go through libtmux. What a program puts out comes raw, from a client of tmux's control mode that is
attached before the program starts.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from weakref import WeakValueDictionary

import anyio

from app.backends.base import BackendRejected, BackendUnavailable
from app.backends.terminals import Captured, Running, sliced, span
from app.backends.tmux_following import Following, following
from app.backends.tmux_place import TmuxPlace
from app.backends.tmux_server import COMMAND_S, TmuxServer, target
from app.domain.terminals import TerminalKind, TerminalSpec

_EXEC = (
    'unset TMUX TMUX_PANE; end=$1; cd -- "$2" && shift 2 || exit; trap : INT QUIT; (exec "$@"); '
    'printf "\\033]8765;%s\\007" "$end"; exec sleep 5'
)
"""Runs a program where it belongs, without telling it of our server; arguments stay arguments.

The shell stays until the program has ended, says so by a sequence that no terminal shows, and waits to be
ended: of a program that closes the terminal itself the last output may be lost, in tmux and before.
"""
_HOLD = ("sleep", "60")
"""Stands in a terminal until its program is started."""


class TmuxTerminals:
    """Implements `TerminalServer`; only processes with the same folder on the same kernel reach them."""

    kind: TerminalKind = "tmux"

    def __init__(
        self, folder: Path, environ: Mapping[str, str] | None = None, *, place: TmuxPlace | None = None
    ) -> None:
        """`folder` is ours alone; terminals get the usual names of `environ` (ours by default).

        `place` is the folder on this kernel, unless another one is named.
        """
        self._server = TmuxServer(folder, environ, place=place)
        self._typing: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()
        """A lock for each terminal into which somebody types."""
        self._shell = self._server.env.get("SHELL") or "/bin/sh"
        self.place = self._server.place.name
        self.past = self._server.place.past

    @property
    def is_there(self) -> bool:
        """Whether tmux is installed, and has a folder."""
        return self._server.is_there

    async def create(self, name: str, cwd: str, spec: TerminalSpec) -> str:
        """A terminal in which nothing runs yet."""
        await self._server.start()
        size = ("-x", str(spec.cols), "-y", str(spec.rows))
        done = await self._server.run("new-session", "-d", "-s", name, *size, "--", *_HOLD)
        if done.stderr:
            raise BackendRejected("tmux did not make the terminal")
        await self._server.must("set-option", name, "-w", "window-size", "manual")
        return name

    async def start(self, handle: str, cwd: str, spec: TerminalSpec) -> None:
        """Start the program in the terminal; whoever follows it misses nothing."""
        command = [spec.command, *spec.args] if spec.command is not None else [self._shell]
        run = ["sh", "-c", _EXEC, "sh", handle, cwd, *command]
        await self._server.must("respawn-pane", handle, "-k", "--", *map(_argument, run))

    @asynccontextmanager
    async def follow(self, handle: str) -> AsyncIterator[Following]:
        """Its output from now on, by a client of its own that tmux shows as attached."""
        async with following(self._server, handle) as found:
            yield found
            if found.died:
                await self._server.hang_up(handle)

    async def write(self, handle: str, data: str) -> None:
        """Type it as it is and in one piece; whoever came first types first."""
        typing = self._typing.setdefault(handle, anyio.Lock())
        with anyio.move_on_after(COMMAND_S):
            async with typing:
                return await self._server.paste(handle, data.encode())
        raise BackendUnavailable("tmux does not answer")

    async def resize(self, handle: str, rows: int, cols: int) -> None:
        """Change its size."""
        await self._server.must("resize-window", handle, "-x", str(cols), "-y", str(rows))

    async def capture(self, handle: str, *, start: int | None, end: int | None, ansi: bool) -> Captured:
        """Lines of the scrollback and the screen, without the empty ones below the last.

        Tmux is asked for those that are wanted and for the screen, which tells where the last one is.
        """
        looks = ("-e",) if ansi else ()
        if start not in (None, 0) or end is not None:
            past, screen = await self._rows(handle, looks, "0", "-")
            _drop_empty(screen)
            total = past + len(screen)
            first, after = span(total, start, end)
            if first >= min(past, after) and screen:
                return Captured(screen[max(0, first - past) : max(0, after - past)], total)
            if first < after and screen:
                now, rows = await self._rows(handle, looks, str(first - past), str(after - 1 - past))
                if now == past:  # else they have moved meanwhile
                    return Captured(rows + [""] * (after - first - len(rows)), total)
        _, lines = await self._rows(handle, looks, "-", "-")
        _drop_empty(lines)
        return Captured(sliced(lines, start, end), len(lines))

    async def _rows(self, handle: str, looks: Sequence[str], first: str, last: str) -> tuple[int, list[str]]:
        """How many rows the scrollback has, and rows as tmux counts them: the screen's first one is 0."""
        capture = ("capture-pane", "-t", target(handle), "-p", *looks, "-S", first, "-E", last)
        done = await self._server.must("display-message", handle, "-p", "#{history_size}", ";", *capture)
        past, *rows = done.stdout
        return int(past), rows

    async def text(self, handle: str) -> Captured:
        """Lines of the scrollback and the screen, whole where tmux has wrapped them."""
        done = await self._server.must("capture-pane", handle, "-p", "-J", "-S", "-")
        lines = [line.rstrip(" ") for line in done.stdout]
        while lines and not lines[-1]:
            lines.pop()
        return Captured(lines, len(lines))

    async def running(self) -> Sequence[Running]:
        """Every session of the server; none where no server runs."""
        return [Running(name, name) for name in await self._server.running()]

    async def kill(self, handle: str) -> None:
        """End it with everything that runs in it, but for what has left its session (`setsid`)."""
        await self._server.kill(handle)


def _drop_empty(rows: list[str]) -> None:
    """Drop the empty ones at the end."""
    while rows and not rows[-1].strip():
        rows.pop()


def _argument(text: str) -> str:
    """An argument as tmux takes it: one that ends with a semicolon would end the command."""
    return f"{text[:-1]}\\;" if text.endswith(";") else text
