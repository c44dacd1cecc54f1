"""A terminal's raw output, from a client of tmux's control mode that is attached to it."""

import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.abc import Process

from app.backends.terminals import FollowLost, TerminalGone
from app.backends.tmux_server import COMMAND_S, TmuxServer

LEAVE_S = 2.0
"""Seconds that a client of control mode has to go before it is killed."""
MAX_CONTROL_LINE = 4 * 1024 * 1024
"""Bytes of a line in control mode; tmux writes far shorter ones."""


def end_of(handle: str) -> str:
    """A sequence that no terminal shows; it comes after the last output of a terminal's program."""
    return f"\x1b]8765;{handle}\x07"


@asynccontextmanager
async def following(server: TmuxServer, handle: str) -> AsyncIterator["Following"]:
    """The output from now on, by a client of its own that tmux shows as attached.

    Raises:
        TerminalGone: it is not there.
        FollowLost: it could not be followed.
    """
    if not server.is_there or not await server.is_running(handle):
        raise TerminalGone("tmux has no such terminal")
    attach = ["-C", "attach-session", "-f", "read-only,ignore-size", "-t", f"={handle}"]
    try:
        process = await anyio.open_process(
            server.command(*attach),
            stderr=subprocess.DEVNULL,
            env=server.env,
            cwd=server.folder,
            start_new_session=True,
        )
    except OSError as error:
        raise FollowLost(f"no client of tmux could be started: {error.strerror}") from None
    async with process:
        try:
            found = Following(process, handle, lambda: server.is_running(handle))
            await found.attached()
            yield found
        finally:
            # It goes by itself; a signal to one that has just gone would confuse whoever waits for it.
            with anyio.move_on_after(LEAVE_S, shield=True):
                assert process.stdin is not None
                await process.stdin.aclose()
                await process.wait()


class Following:
    """The output that a client of control mode tells of, up to the program's end."""

    def __init__(self, process: Process, handle: str, is_running: Callable[[], Awaitable[bool]]) -> None:
        assert process.stdout is not None
        self.died = False
        """Whether the program has ended, and its last output was told."""
        self._out = process.stdout
        self._is_running = is_running
        self._end = end_of(handle).encode()
        self._line = b""
        """What came of a line that has not ended."""
        self._held = b""
        """Output that may be the beginning of the end."""
        self._early: list[bytes] = []

    async def shown(self) -> bytes:
        """Nothing: a terminal that was just made has waited for its follower."""
        return b""

    async def attached(self) -> None:
        """Wait until tmux tells this client what happens."""
        with anyio.move_on_after(COMMAND_S):
            attached = False
            while not attached:
                for line in await self._lines():
                    attached = attached or line.startswith(b"%session-changed")
                    if line.startswith(b"%exit"):
                        raise FollowLost("tmux has let go of its client")  # whatever for
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
