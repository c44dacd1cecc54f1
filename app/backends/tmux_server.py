"""A tmux server of our own, which outlives us: started without our environment, asked through libtmux."""

import hashlib
import logging
import os
import re
import secrets
import shlex
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
import structlog
from libtmux import Server
from libtmux.common import tmux_cmd
from libtmux.exc import LibTmuxException

from app.backends.acp_process import PASSED, child_environment
from app.backends.base import BackendRejected, BackendUnavailable
from app.backends.terminal_processes import end_sessions, leads
from app.backends.terminals import TerminalGone
from app.backends.tmux_place import TmuxPlace, find_place, make_private

T = TypeVar("T")

HISTORY_LINES = 10_000
"""Lines of scrollback that tmux keeps of a terminal."""
NO_SERVER = re.compile(r"no server running on |error connecting to .*\((No such file|Connection refused)")
"""What tmux says where none of its servers runs; any other failure says nothing of what runs."""
COMMAND_S = 5.0
"""Seconds that a command of tmux may take."""
FORGET_S = 2.0
"""Seconds to delete what was to be typed and could not be."""

logging.getLogger("libtmux").setLevel(logging.CRITICAL)  # it would log what it runs
log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class TmuxServer:
    """Only processes with the same folder on the same kernel reach it."""

    def __init__(
        self, folder: Path, environ: Mapping[str, str] | None = None, *, place: TmuxPlace | None = None
    ) -> None:
        """`folder` is ours alone; terminals get the usual names of `environ` (ours by default)."""
        self._program = shutil.which("tmux")
        self.folder = folder / "tmux"
        self.place = TmuxPlace(name="", socket="", past=None)
        if self._program is not None:
            try:
                self.place = place or find_place(self.folder)
            except OSError as error:
                log.warning("tmux_has_no_folder", error=error.strerror)
                self._program = None
        self._limiter = anyio.CapacityLimiter(8)
        self._starting = anyio.Lock()
        self._as_it_is: list[str] | None = None
        """The flags with which its `paste-buffer` changes nothing, once it was asked."""
        self.env = child_environment(os.environ if environ is None else environ, (), {})
        """What it and its clients have for an environment."""

    @property
    def is_there(self) -> bool:
        """Whether tmux is installed, and has a folder."""
        return self._program is not None

    def command(self, *arguments: str) -> list[str]:
        """A client of the server, to be run with `env` and in `folder`: a socket's path must be short."""
        assert self._program is not None
        return [self._program, "-N", "-S", self.place.socket, *arguments]

    async def start(self) -> None:
        """See that it runs."""
        if not self.is_there:
            raise BackendUnavailable("tmux is not installed on this machine")
        async with self._starting:
            await self._in_thread(self._start)

    async def running(self) -> list[str]:
        """The names of all its sessions; none where no server runs."""
        done = await self.run("list-sessions", "-F", "#{session_name}")
        if done.returncode:
            if NO_SERVER.match(" ".join(done.stderr)):
                return []
            raise BackendUnavailable("tmux does not say what runs")
        return list(done.stdout)

    async def is_running(self, handle: str) -> bool:
        """Whether it has a session of that name."""
        return handle in await self.running()

    async def kill(self, handle: str) -> None:
        """End a session with everything that runs in it; nothing if it is not there."""
        leaders = await self._leaders(handle)
        with anyio.CancelScope(shield=True):  # who leads them is known only now
            await self.hang_up(handle)
            await end_sessions(leaders)

    async def hang_up(self, handle: str) -> None:
        """End a session as when its window is closed: what ignores that goes on."""
        await self.run("kill-session", "-t", f"={handle}")

    async def _leaders(self, handle: str) -> set[int]:
        """The processes that lead what runs in a session; none if they are not of this machine's."""
        listed = await self.run("list-panes", "-s", "-t", f"={handle}", "-F", "#{pid} #{pane_pid}")
        peer = await self._in_thread(self._peer)
        found = set()
        for line in listed.stdout:
            server, leader = map(int, line.split())
            if leads(leader, server if peer is None else peer):
                found.add(leader)
        return found

    def _peer(self) -> int | None:
        """The server's number as this process sees it; null where the system does not tell."""
        if sys.platform != "linux":
            return None
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(COMMAND_S)
                try:
                    peer.connect(f"/proc/self/fd/{folder}/{self.place.socket}")
                except OSError:
                    return 0
                size = struct.calcsize("3i")  # its process, user and group
                told: tuple[int, int, int] = struct.unpack(
                    "3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
                )
                return told[0]
        finally:
            os.close(folder)

    async def must(self, command: str, handle: str, *arguments: str) -> tmux_cmd:
        """What tmux answers to a command on a terminal that has to be there."""
        done = await self.run(command, "-t", target(handle), *arguments)
        if done.returncode or done.stderr:
            if not await self.is_running(handle):
                raise TerminalGone("tmux has no such terminal")
            raise BackendRejected(f"tmux refused {command}")
        return done

    async def run(self, command: str, *arguments: str) -> tmux_cmd:
        """What tmux answers. libtmux hands its environment on, so a script of ours strips that first."""
        if not self.is_there:
            raise BackendUnavailable("tmux is not installed on this machine")
        return await self._in_thread(lambda: self._cmd(command, *arguments))

    async def paste(self, handle: str, data: bytes) -> None:
        """Type bytes. They go through a pipe and a buffer: an argument could be read by everybody here."""
        if not self.is_there:
            raise BackendUnavailable("tmux is not installed on this machine")
        buffer = f"alameda-{secrets.token_hex(8)}"
        if self._as_it_is is None:
            usage = await self.run("list-commands", "-F", "#{command_list_usage}", "paste-buffer")
            self._as_it_is = unchanged(" ".join(usage.stdout))
        paste = ("paste-buffer", "-d", *self._as_it_is, "-b", buffer, "-t", target(handle))
        typed = False
        try:
            done = await anyio.run_process(
                self.command("load-buffer", "-b", buffer, "-", ";", *paste),
                input=data,
                env=self.env,
                cwd=self.folder,
                check=False,
                start_new_session=True,
            )
            typed = done.returncode == 0
        except OSError as error:
            raise BackendUnavailable(f"tmux cannot be run: {error.strerror}") from None
        finally:
            if not typed:
                with anyio.move_on_after(FORGET_S, shield=True), suppress(BackendUnavailable):
                    await self.run("delete-buffer", "-b", buffer)
        if not typed:
            if not await self.is_running(handle):
                raise TerminalGone("tmux has no such terminal")
            raise BackendRejected("tmux refused to type")

    def _cmd(self, command: str, *arguments: str) -> tmux_cmd:
        return Server(socket_path=self.place.socket, tmux_bin=str(self._wrapper())).cmd(command, *arguments)

    def _wrapper(self) -> Path:
        """A script that runs tmux without our environment; it ends by itself if tmux never does."""
        assert self._program is not None
        kept = " ".join(f'${{{name}+{name}="${name}"}}' for name in PASSED)
        bound = f"timeout -k 1 {COMMAND_S + 1:g} " if shutil.which("timeout") else ""
        run = f'exec env -i {kept} {bound}{shlex.quote(self._program)} -N "$@"'
        script = f'#!/bin/sh\ncd -- "${{0%/*}}" && {run}\n'
        file = self.folder / f"tmux-{hashlib.sha256(script.encode()).hexdigest()[:12]}"
        if not file.exists():
            draft = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
            draft.write_text(script)
            draft.chmod(0o700)
            draft.replace(file)
        return file

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            with anyio.fail_after(COMMAND_S):
                return await anyio.to_thread.run_sync(work, limiter=self._limiter, abandon_on_cancel=True)
        except TimeoutError:
            raise BackendUnavailable("tmux does not answer") from None
        except (LibTmuxException, OSError, subprocess.SubprocessError, UnicodeError) as error:
            raise BackendUnavailable(f"tmux cannot be run: {type(error).__name__}") from None

    def _start(self) -> None:
        """Start the server unless it runs: it must not have our environment, which holds secrets."""
        assert self._program is not None
        make_private(self.folder)
        if self.place.past is not None:
            for left in self.folder.glob("socket-*"):
                if not left.name.startswith(self.place.socket):
                    left.unlink(missing_ok=True)
        subprocess.run(
            [
                *(self._program, "-S", self.place.socket, "-f", "/dev/null", "start-server", ";"),
                *("set-option", "-s", "exit-empty", "off", ";"),
                *("set-option", "-g", "history-limit", str(HISTORY_LINES)),
            ],
            env=self.env,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_S,
            check=False,
            start_new_session=True,
        )


def target(handle: str) -> str:
    """The one pane of a session, by its exact name."""
    return f"={handle}:"


def unchanged(usage: str) -> list[str]:
    """The flags with which `paste-buffer` changes nothing; from 3.7 on it shows controls without -S."""
    return ["-r", "-S"] if "S" in usage.partition("]")[0] else ["-r"]
