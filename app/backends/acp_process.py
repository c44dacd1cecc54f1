"""An agent's process under its guard (`guard.py`): started without a shell, drained, kept alive, ended."""

import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import anyio
import psutil
import structlog
from anyio.abc import ByteReceiveStream, ByteSendStream, Process

from app.domain.text import clean

GUARD = Path(__file__).with_name("guard.py")

GRACE = 1.0
"""Seconds that the agent's processes have between SIGTERM and SIGKILL."""

GUARD_TIMEOUT = GRACE + 8.0
"""Seconds that the guard has to end them all; after that the group is killed without it."""

TAIL = 2048
"""Bytes of stderr that are kept for error messages."""

MAX_LOGGED_LINE = 1024
"""Bytes of a line of stderr that go to the log."""

PASSED = (
    *("HOME", "PATH", "SHELL", "TERM", "USER", "LOGNAME", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ"),
    *("TMPDIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS"),
)
"""What an agent sees of our own environment; everything else has to be configured."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def is_secret(name: str) -> bool:
    """Whether an environment variable is ours alone, and never an agent's."""
    return name.startswith("ALAMEDA_") or name in {"DATABASE_URL", "PASEO_PASSWORD"}


def child_environment(
    ours: Mapping[str, str], passed: Sequence[str], extra: Mapping[str, str]
) -> dict[str, str]:
    """An agent's environment: the usual names and `passed` from ours, then `extra`.

    Raises:
        ValueError: `passed` or `extra` names a secret of ours.
    """
    if refused := [name for name in (*passed, *extra) if is_secret(name)]:
        raise ValueError(f"an agent's environment may not have {', '.join(refused)}")
    return {name: ours[name] for name in (*PASSED, *passed) if name in ours} | dict(extra)


def listening(pid: int) -> list[str]:
    """The addresses at which a process and those below it accept connections; blocks for milliseconds."""
    found = set()
    with suppress(psutil.Error):
        leader = psutil.Process(pid)
        for process in (leader, *leader.children(recursive=True)):
            with suppress(psutil.Error):
                for socket_ in process.net_connections("inet"):
                    if socket_.status == psutil.CONN_LISTEN:
                        found.add(f"{socket_.laddr.ip}:{socket_.laddr.port}")
    return sorted(found)


class Child:
    """A running agent process. Whoever starts it runs `drain` and `watch` in tasks; `hang_up` ends it."""

    def __init__(self, process: Process, lifeline: socket.socket) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self.stdin: ByteSendStream = process.stdin
        self.stdout: ByteReceiveStream = process.stdout
        self.status: int | None = None
        """The exit status, a signal as 128 more than its number; null while it runs, or if nobody saw it."""
        self.pid: int | None = None
        """The agent's own process, also the number of its group; null until the guard has told."""
        self.ended = anyio.Event()
        self.drained = anyio.Event()
        self._stderr: ByteReceiveStream = process.stderr
        self._process = process
        self._lifeline = lifeline
        self._watching = anyio.CancelScope(shield=True)
        self._tail = b""

    @classmethod
    async def start(
        cls, command: Sequence[str], *, cwd: str, env: Mapping[str, str], silence: float
    ) -> "Child":
        """Start `command` below a guard that ends it when we are silent for `silence` seconds.

        Raises:
            OSError: not even the guard could be started.
        """
        ours, guards = socket.socketpair()
        ours.setblocking(False)
        guard = [sys.executable, "-I", "-S", str(GUARD), str(guards.fileno()), str(silence), str(GRACE)]
        try:
            process = await anyio.open_process(
                [*guard, *command], cwd=cwd, env=env, start_new_session=True, pass_fds=[guards.fileno()]
            )
        except BaseException:
            ours.close()
            raise
        finally:
            guards.close()
        return cls(process, ours)

    @property
    def complaint(self) -> str:
        """The last of what the agent wrote to stderr."""
        return clean(self._tail.decode(errors="replace")).strip()

    def beat(self) -> None:
        """Tell the guard that we live. Never waits: a full socket says the same."""
        with suppress(OSError):
            self._lifeline.send(b".")

    def hang_up(self) -> None:
        """Have everything ended; `ended` tells when nothing is left. May be called twice."""
        with suppress(OSError):
            self._lifeline.shutdown(socket.SHUT_WR)
        self._watching.deadline = min(self._watching.deadline, anyio.current_time() + GUARD_TIMEOUT)

    async def watch(self) -> None:
        """Return when nothing of the agent runs. Not to be cancelled: `hang_up` ends it."""
        with self._watching:
            await self._read_lifeline()
        if self.status is None:
            self._kill_without_guard()
        self._lifeline.close()
        with anyio.move_on_after(1, shield=True):  # waits for the pipes too, which a stranger may hold
            await self.stdin.aclose()
            await self._process.wait()
        self.ended.set()

    async def drain(self) -> None:
        """Read stderr to its end, so that the agent never blocks on it."""
        with suppress(anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
            while True:
                chunk = await self._stderr.receive(8192)
                self._tail = (self._tail + chunk)[-TAIL:]
                for line in chunk.splitlines():
                    log.debug("agent_stderr", line=line[:MAX_LOGGED_LINE].decode(errors="replace"))
        self.drained.set()

    async def discard(self) -> None:
        """Read stdout to its end when nobody else does any more: a pipe is closed by that alone."""
        with anyio.move_on_after(1, shield=True), suppress(anyio.EndOfStream, anyio.ClosedResourceError):
            while True:
                await self.stdout.receive()

    async def _read_lifeline(self) -> None:
        heard = b""
        while True:
            await anyio.wait_readable(self._lifeline)
            try:
                if not (said := self._lifeline.recv(1024)):
                    return
            except BlockingIOError:
                continue
            except OSError:
                return
            *lines, heard = (heard + said).split(b"\n")
            for word, number in (line.split() for line in lines):
                if word == b"started":
                    self.pid = int(number)
                else:
                    self.status = int(number)

    def _kill_without_guard(self) -> None:
        """The guard was killed or is stuck: the group at least can be ended from here."""
        with suppress(ProcessLookupError, PermissionError):
            if self.pid is not None:
                os.killpg(self.pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            self._process.kill()
