"""Terminals on this machine, under a tmux server of our own, which outlives us.

Commands go through libtmux. What a program puts out comes raw, from a client of tmux's control mode that is
attached before the program starts.
"""

import hashlib
import logging
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
from anyio.abc import Process
from libtmux import Server
from libtmux.common import tmux_cmd
from libtmux.exc import LibTmuxException

from app.backends.acp_process import PASSED, child_environment
from app.backends.base import BackendRejected, BackendUnavailable
from app.backends.terminals import Captured, FollowLost, Running, TerminalGone, sliced
from app.domain.terminals import TerminalKind, TerminalSpec

T = TypeVar("T")

LEAVE_S = 2.0
"""Seconds that a client of control mode has to go before it is killed."""
HISTORY_LINES = 10_000
"""Lines of scrollback that tmux keeps of a terminal."""
WRITE_BYTES = 4096
"""Bytes that one command types; tmux takes 16 KiB with everything around."""
NO_SERVER = ("no server running", "No such file", "Connection refused")
"""What tmux says where none of its servers runs; any other failure says nothing of what runs."""
COMMAND_S = 5.0
"""Seconds that a command of tmux may take."""
MAX_CONTROL_LINE = 4 * 1024 * 1024
"""Bytes of a line in control mode; tmux writes far shorter ones."""
_SOCKET_PATH = 100
"""Bytes of a socket's path, of which Linux takes 107."""
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

logging.getLogger("libtmux").setLevel(logging.CRITICAL)  # it would log what is typed


class TmuxTerminals:
    """Implements `TerminalServer`; only processes with the same folder on the same machine reach them."""

    kind: TerminalKind = "tmux"

    def __init__(self, folder: Path, environ: Mapping[str, str] | None = None) -> None:
        """`folder` is ours alone; terminals get the usual names of `environ` (ours by default)."""
        self._program = shutil.which("tmux")
        self._folder = _short(folder / "tmux")
        self._socket = self._folder / "socket"
        self._env = child_environment(os.environ if environ is None else environ, (), {})
        self._shell = self._env.get("SHELL") or "/bin/sh"
        self._limiter = anyio.CapacityLimiter(8)
        self._starting = anyio.Lock()
        self.place = f"{socket.gethostname()}:{self._socket}"

    @property
    def is_there(self) -> bool:
        """Whether tmux is installed."""
        return self._program is not None

    # What the engine wants.

    async def create(self, name: str, cwd: str, spec: TerminalSpec) -> str:
        """A terminal in which nothing runs yet."""
        await self._ensure_server()
        size = ("-x", str(spec.cols), "-y", str(spec.rows))
        done = await self._run("new-session", "-d", "-s", name, *size, "--", *_HOLD)
        if done.stderr:
            raise BackendRejected("tmux did not make the terminal")
        await self._must("set-option", name, "-w", "window-size", "manual")
        return name

    async def start(self, handle: str, cwd: str, spec: TerminalSpec) -> None:
        """Start the program in the terminal; whoever follows it misses nothing."""
        command = [spec.command, *spec.args] if spec.command is not None else [self._shell]
        run = ["sh", "-c", _EXEC, "sh", handle, cwd, *command]
        await self._must("respawn-pane", handle, "-k", "--", *map(_argument, run))

    @asynccontextmanager
    async def follow(self, handle: str) -> AsyncIterator["_Following"]:
        """Its output from now on, by a client of its own that tmux shows as attached."""
        if self._program is None or not await self._is_running(handle):
            raise TerminalGone("tmux has no such terminal")
        attach = ["-C", "attach-session", "-f", "read-only,ignore-size", "-t", f"={handle}"]
        try:
            process = await anyio.open_process(
                [self._program, "-N", "-S", str(self._socket), *attach],
                stderr=subprocess.DEVNULL,
                env=self._env,
                start_new_session=True,
            )
        except OSError as error:
            raise FollowLost(f"no client of tmux could be started: {error.strerror}") from None
        async with process:
            try:
                following = _Following(process, handle, lambda: self._is_running(handle))
                await following.attached()
                yield following
                if following.died:
                    await self.kill(handle)
            finally:
                # It goes by itself; a signal to one that has just gone would confuse whoever waits for it.
                with anyio.move_on_after(LEAVE_S, shield=True):
                    assert process.stdin is not None
                    await process.stdin.aclose()
                    await process.wait()

    async def write(self, handle: str, data: str) -> None:
        """Type, in pieces that tmux takes; NUL is a key that has no text."""
        for piece in _pieces(data):
            if piece == "\0":
                await self._must("send-keys", handle, "-H", "00")
            else:
                await self._must("send-keys", handle, "-l", "--", _argument(piece))

    async def resize(self, handle: str, rows: int, cols: int) -> None:
        """Change its size."""
        await self._must("resize-window", handle, "-x", str(cols), "-y", str(rows))

    async def capture(self, handle: str, *, start: int | None, end: int | None, ansi: bool) -> Captured:
        """Lines of the scrollback and the screen, without the empty ones below the last."""
        colours = ("-e",) if ansi else ()
        done = await self._must("capture-pane", handle, "-p", *colours, "-S", "-")
        lines = list(done.stdout)
        while lines and not lines[-1].strip():
            lines.pop()
        return Captured(sliced(lines, start, end), len(lines))

    async def running(self) -> Sequence[Running]:
        """Every session of the server; none where no server runs."""
        if not (self._folder / "tmux").exists():
            return []
        done = await self._run("list-sessions", "-F", "#{session_name}")
        if done.returncode:
            said = " ".join(done.stderr)
            if any(words in said for words in NO_SERVER):
                return []
            raise BackendUnavailable("tmux does not say what runs")
        return [Running(name, name) for name in done.stdout]

    async def kill(self, handle: str) -> None:
        """End it with everything that runs in it."""
        if (self._folder / "tmux").exists():
            await self._run("kill-session", "-t", f"={handle}")

    # tmux itself.

    async def _is_running(self, handle: str) -> bool:
        return handle in {one.handle for one in await self.running()}

    async def _must(self, command: str, handle: str, *arguments: str) -> tmux_cmd:
        """What tmux answers to a command on a terminal that has to be there."""
        done = await self._run(command, "-t", _target(handle), *arguments)
        if done.returncode or done.stderr:
            if not await self._is_running(handle):
                raise TerminalGone("tmux has no such terminal")
            raise BackendRejected(f"tmux refused {command}")
        return done

    async def _run(self, command: str, *arguments: str) -> tmux_cmd:
        """What tmux answers. libtmux hands its environment on, so a script of ours strips that first."""
        if not self.is_there:
            raise BackendUnavailable("tmux is not installed on this machine")
        return await self._in_thread(lambda: self._server().cmd(command, *arguments))

    def _server(self) -> Server:
        return Server(socket_path=str(self._socket), tmux_bin=str(self._folder / "tmux"))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            with anyio.fail_after(COMMAND_S):
                return await anyio.to_thread.run_sync(work, limiter=self._limiter, abandon_on_cancel=True)
        except (LibTmuxException, OSError, subprocess.SubprocessError, UnicodeError) as error:
            raise BackendUnavailable(f"tmux cannot be run: {type(error).__name__}") from None

    async def _ensure_server(self) -> None:
        if not self.is_there:
            raise BackendUnavailable("tmux is not installed on this machine")
        async with self._starting:
            await self._in_thread(self._start_server)

    def _start_server(self) -> None:
        """Start the server unless it runs: it must not have our environment, which holds secrets."""
        assert self._program is not None
        _make_private(self._folder)
        wrapper = self._folder / "tmux"
        kept = " ".join(f'${{{name}+{name}="${name}"}}' for name in PASSED)
        # A call that a stuck server never answers ends by itself: its thread waits for it.
        bound = f"timeout -k 1 {COMMAND_S + 1:g} " if shutil.which("timeout") else ""
        script = f'#!/bin/sh\nexec env -i {kept} {bound}{self._program} -N "$@"\n'
        if not wrapper.exists() or wrapper.read_text() != script:
            draft = self._folder / f"tmux.{os.getpid()}"
            draft.write_text(script)
            draft.chmod(0o700)
            draft.replace(wrapper)
        subprocess.run(
            [
                *(self._program, "-S", str(self._socket), "-f", "/dev/null", "start-server", ";"),
                *("set-option", "-s", "exit-empty", "off", ";"),
                *("set-option", "-g", "history-limit", str(HISTORY_LINES)),
            ],
            env=self._env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_S,
            check=False,
            start_new_session=True,
        )


class _Following:
    """The output that a client of control mode tells of, up to the program's end."""

    shown = b""

    def __init__(self, process: Process, handle: str, is_running: Callable[[], Awaitable[bool]]) -> None:
        assert process.stdout is not None
        self.died = False
        """Whether the program has ended, and its last output was told."""
        self._out = process.stdout
        self._is_running = is_running
        self._end = f"\x1b]8765;{handle}\x07".encode()
        self._line = b""
        """What came of a line that has not ended."""
        self._held = b""
        """Output that may be the beginning of the end."""
        self._early: list[bytes] = []

    async def attached(self) -> None:
        """Wait until tmux tells this client what happens."""
        with anyio.move_on_after(COMMAND_S):
            attached = False
            while not attached:
                for line in await self._lines():
                    attached = attached or line.startswith(b"%session-changed")
                    if line.startswith(b"%exit"):
                        raise TerminalGone("tmux has no such terminal")
                    if line.startswith(b"%output "):
                        self._early.append(line)
            return
        raise FollowLost("tmux does not answer")

    async def _lines(self) -> list[bytes]:
        try:
            chunk = await self._out.receive(64 * 1024)
        except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
            raise FollowLost("the client of tmux has ended") from None
        *lines, self._line = (self._line + chunk).split(b"\n")
        if len(self._line) > MAX_CONTROL_LINE:
            raise FollowLost("tmux writes too long a line")
        return lines

    async def __aiter__(self) -> AsyncIterator[bytes]:
        lines = self._early
        while True:
            told = b"".join([_raw(line) for line in lines if line.startswith(b"%output ")])
            if told and (told := self._before_end(told)):
                yield told
            if self.died:
                return
            try:
                lines = await self._lines()
            except FollowLost:
                if await self._is_running():
                    raise
                return

    def _before_end(self, told: bytes) -> bytes:
        """Output without the sequence that says it is the last; a part of that is held back."""
        told = self._held + told
        at = told.find(self._end)
        self.died = at >= 0
        if not self.died:
            at = told.rfind(b"\x1b", max(0, len(told) - len(self._end)))
            at = at if at >= 0 and self._end.startswith(told[at:]) else len(told)
        self._held = told[at:]
        return told[:at]


def _raw(line: bytes) -> bytes:
    """What `%output %<pane> <text>` says: controls and backslashes stand there in octal."""
    told = line.split(b" ", 2)[2]
    return told.decode("unicode_escape").encode("latin-1") if b"\\" in told else told


def _target(handle: str) -> str:
    """The one pane of a session, by its exact name."""
    return f"={handle}:"


def _argument(text: str) -> str:
    """An argument as tmux takes it: one that ends with a semicolon would end the command."""
    return f"{text[:-1]}\\;" if text.endswith(";") else text


def _pieces(data: str) -> list[str]:
    """`data` in pieces of at most `WRITE_BYTES` bytes; each NUL is a piece."""
    pieces, piece, size = [], "", 0
    for character in data:
        width = len(character.encode())
        if piece and (character == "\0" or piece == "\0" or size + width > WRITE_BYTES):
            pieces.append(piece)
            piece, size = "", 0
        piece += character
        size += width
    return [*pieces, piece] if piece else pieces


def _short(folder: Path) -> Path:
    """The folder itself, or one in the system's temporary folder where a socket's path would be too long."""
    if len(os.fsencode(folder / "socket")) <= _SOCKET_PATH:
        return folder
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"alameda-{os.geteuid()}-{digest}"


def _make_private(folder: Path) -> None:
    """See that the folder is there and nobody else's.

    Raises:
        OSError: it cannot be made, or somebody else has it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError("the folder of tmux is not ours alone")
