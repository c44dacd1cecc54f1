"""A tmux server of our own, which outlives us: started without our environment, asked through libtmux."""

import hashlib
import logging
import os
import secrets
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
from libtmux import Server
from libtmux.common import tmux_cmd
from libtmux.exc import LibTmuxException

from app.backends.acp_process import PASSED, child_environment
from app.backends.base import BackendRejected, BackendUnavailable
from app.backends.terminal_processes import end_sessions, leads
from app.backends.terminals import TerminalGone

T = TypeVar("T")

HISTORY_LINES = 10_000
"""Lines of scrollback that tmux keeps of a terminal."""
NO_SERVER = ("no server running", "No such file", "Connection refused")
"""What tmux says where none of its servers runs; any other failure says nothing of what runs."""
COMMAND_S = 5.0
"""Seconds that a command of tmux may take."""
FORGET_S = 2.0
"""Seconds to delete what was to be typed and could not be."""
_SOCKET_PATH = 100
"""Bytes of a socket's path, of which Linux takes 107."""

logging.getLogger("libtmux").setLevel(logging.CRITICAL)  # it would log what it runs


class TmuxServer:
    """Only processes with the same folder on the same machine reach it."""

    def __init__(self, folder: Path, environ: Mapping[str, str] | None = None) -> None:
        """`folder` is ours alone; terminals get the usual names of `environ` (ours by default)."""
        self._program = shutil.which("tmux")
        self._folder = _short(folder / "tmux")
        self._socket = self._folder / "socket"
        self._limiter = anyio.CapacityLimiter(8)
        self._starting = anyio.Lock()
        self._as_it_is: list[str] | None = None
        """The flags with which its `paste-buffer` changes nothing, once it was asked."""
        self.env = child_environment(os.environ if environ is None else environ, (), {})
        """What it and its clients have for an environment."""
        self.place = f"{socket.gethostname()}:{self._socket}"

    @property
    def is_there(self) -> bool:
        """Whether tmux is installed."""
        return self._program is not None

    def command(self, *arguments: str) -> list[str]:
        """A client of the server, to be run with `env`."""
        assert self._program is not None
        return [self._program, "-N", "-S", str(self._socket), *arguments]

    async def start(self) -> None:
        """See that it runs."""
        if not self.is_there:
            raise BackendUnavailable("tmux is not installed on this machine")
        async with self._starting:
            await self._in_thread(self._start)

    async def running(self) -> list[str]:
        """The names of all its sessions; none where no server runs."""
        if not self._was_started:
            return []
        done = await self.run("list-sessions", "-F", "#{session_name}")
        if done.returncode:
            said = " ".join(done.stderr)
            if any(words in said for words in NO_SERVER):
                return []
            raise BackendUnavailable("tmux does not say what runs")
        return list(done.stdout)

    async def is_running(self, handle: str) -> bool:
        """Whether it has a session of that name."""
        return handle in await self.running()

    async def kill(self, handle: str) -> None:
        """End a session with everything that runs in it; nothing if it is not there."""
        if not self._was_started:
            return
        leaders = await self._leaders(handle)
        with anyio.CancelScope(shield=True):  # who leads them is known only now
            await self.hang_up(handle)
            await end_sessions(leaders)

    async def hang_up(self, handle: str) -> None:
        """End a session as when its window is closed: what ignores that goes on."""
        if self._was_started:
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
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(COMMAND_S)
            try:
                peer.connect(str(self._socket))
            except OSError:
                return 0
            told: tuple[int, int, int] = struct.unpack(
                "3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            )
            return told[0]

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
        return await self._in_thread(lambda: self._server().cmd(command, *arguments))

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
                cwd="/",
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

    @property
    def _was_started(self) -> bool:
        return (self._folder / "tmux").exists()

    def _server(self) -> Server:
        return Server(socket_path=str(self._socket), tmux_bin=str(self._folder / "tmux"))

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
            env=self.env,
            cwd="/",
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
