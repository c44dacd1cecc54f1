"""Running the `paseo` command: its seats, the files that it is handed, and what its failures say."""

import os
import re
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import anyio
import anyio.to_thread
import msgspec
from msgspec import Struct

from app.paseo.address import Address
from app.paseo.errors import NotSent, Refused, Timeout, Undecodable
from app.process import Finished, TooMuchOutput, run
from app.scratch import Scratch

MAX_OUTPUT = 16 * 1024 * 1024
"""Bytes that one command may write."""
AT_ONCE = 16
"""Commands that run at the same time; each is a Node process. The others wait for a seat."""
MAX_WORDS = 2000
"""Characters of an error that are kept."""

_WAY = ("config.json", "paseo.pid")
"""Files in its home by which the command finds a daemon on this machine."""
_FAILED_TO = re.compile(r"Failed to [a-z ()]+: ")


class _Failure(Struct, frozen=True):
    code: str
    message: str


class _Failed(Struct, frozen=True):
    error: _Failure


class CommandRefused(Refused):
    """The command failed, in the daemon's words or its own; `code` is the command's."""

    def __init__(self, text: str, code: str | None = None) -> None:
        super().__init__(_FAILED_TO.sub("", text, count=1))
        self.code = code


class NoSeat(NotSent):
    """Too many commands were running, for too long: this one was not started."""


@asynccontextmanager
async def in_time(seats: anyio.Semaphore, seconds: float) -> AsyncIterator[None]:
    """One of the seats.

    Raises:
        NoSeat: none became free in time.
    """
    with anyio.move_on_after(seconds) as waiting:
        await seats.acquire()
    if waiting.cancelled_caught:
        raise NoSeat(f"too many paseo commands are running: none could be started within {seconds:g} s")
    try:
        yield
    finally:
        seats.release()


class CommandRunner:
    """Runs the command. `aclose` removes the folder in which prompts lie while they are handed over."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        url: str | None = None,
        password: str | None = None,
    ) -> None:
        """`url` is the daemon's address; without one the command has to know it.

        Raises:
            ValueError: there is no command, or the address is none that the command takes.
        """
        if not command:
            raise ValueError("there is no paseo command")
        self._command = list(command)
        self._env = dict(env)
        self._secrets = [form for form in {password, quote(password or "", safe="")} if form]
        if url is not None:
            self._env["PASEO_HOST"] = _host(url, password)
        elif password is not None:
            raise ValueError("a password for the paseo command needs the daemon's url")
        self._home = Path(
            self._env.get("PASEO_HOME") or Path(self._env.get("HOME", "~"), ".paseo").expanduser()
        )
        self._is_closed = False
        self._folder: Scratch | None = None
        self._making = anyio.Lock()
        self._seats = list(range(AT_ONCE))
        self._limit = anyio.Semaphore(AT_ONCE)
        self._running: set[anyio.CancelScope] = set()

    async def aclose(self) -> None:
        """End what runs, and remove what lies on disk; from now on nothing is run."""
        self._is_closed = True
        for scope in self._running:
            scope.cancel()
        for _ in range(AT_ONCE):  # a command that still ran would make its home again
            await self._limit.acquire()
        if self._folder is not None:
            await anyio.to_thread.run_sync(self._folder.remove)

    async def run(
        self, words: Sequence[str], arguments: Sequence[str], deadline: float, *, cut: bool = False
    ) -> Finished:
        """Run one command; half of its time at most goes by while it waits for a seat.

        With `cut`, what it wrote first is the answer of one that wrote too much; it has no status then.

        Raises:
            NoSeat: it had none in time; nothing was started.
            NotSent: it could not be started.
            Timeout: it did not end in time, or was ended with the backend: the outcome is unknown.
            Undecodable: it wrote too much.
        """
        argv = [*self._command, *words, *(["--", *arguments] if arguments else [])]
        if any("\0" in part for part in argv):
            raise NotSent("a NUL cannot be passed to the paseo command")
        until = anyio.current_time() + deadline
        try:
            async with in_time(self._limit, deadline / 2), self._seat() as env:
                with anyio.CancelScope() as scope:
                    self._running.add(scope)
                    try:
                        done = await run(
                            argv, env=env, deadline=until - anyio.current_time(), most=MAX_OUTPUT, cut=cut
                        )
                        if done.code is None and len(done.stdout) < MAX_OUTPUT:
                            raise TimeoutError
                        return done
                    finally:
                        self._running.remove(scope)
            raise Timeout(f"paseo {words[0]} was ended with the backend")
        except TimeoutError:  # an OSError itself
            raise Timeout(f"paseo {words[0]} did not end within {deadline:g} s") from None
        except OSError as error:
            raise NotSent(f"{self._command[0]} cannot be started: {error.strerror}") from None
        except TooMuchOutput:
            raise Undecodable(f"paseo {words[0]} wrote more than {MAX_OUTPUT} bytes") from None

    @asynccontextmanager
    async def _seat(self) -> AsyncIterator[dict[str, str]]:
        """An environment that no other command has at this moment.

        The command takes its client's id from its home, and two with one id hear each other's answers. What
        else it may read there, the way to its daemon, is the operator's.
        """
        seat = self._seats.pop()
        try:
            home = await self._own_folder(f"home-{seat}", *() if "PASEO_HOST" in self._env else _WAY)
            yield {**self._env, "PASEO_HOME": str(home)}
        finally:
            self._seats.append(seat)

    async def _own_folder(self, name: str, *links: str) -> Path:
        """A folder of ours, with links to those files of the command's own home."""
        async with self._making:
            if self._is_closed:
                raise NotSent("the backend is closed")
            if self._folder is None:
                self._folder = await anyio.to_thread.run_sync(Scratch, "paseo")
            folder = self._folder.path / name
            if not folder.exists():
                folder.mkdir(mode=0o700)
                for link in links:
                    (folder / link).symlink_to(self._home / link)
            return folder

    @asynccontextmanager
    async def file(self, text: str) -> AsyncIterator[Path]:
        """A file with a text, as long as the command reads it.

        Raises:
            NotSent: it cannot be written.
        """

        def write() -> Path:
            descriptor, name = tempfile.mkstemp(dir=folder, prefix="prompt-")  # exclusive, mode 0600
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(text.encode(errors="replace"))
            except BaseException:  # a disk that is full
                Path(name).unlink(missing_ok=True)
                raise
            return Path(name)

        try:
            folder = await self._own_folder("prompts")
            path = await anyio.to_thread.run_sync(write)
        except OSError as error:
            raise NotSent(f"the prompt cannot be handed over: {error.strerror}") from None
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def refused(self, done: Finished) -> NotSent | Timeout | CommandRefused:
        """What a command that ended badly says, without the password that its words may repeat."""
        assert done.code is not None
        if done.code < 0:
            return Timeout(f"the paseo command was ended by signal {-done.code}")
        said = done.stderr.decode(errors="replace").strip()
        code: str | None = None
        try:
            failure = msgspec.json.decode(said[max(0, said.find("{")) :], type=_Failed).error
            code, said = failure.code, failure.message
        except msgspec.MsgspecError:
            said = _one_line(said)
        for secret in self._secrets:
            said = said.replace(secret, "…")
        said = said[:MAX_WORDS] or f"the paseo command failed with status {done.code}"
        if code == "DAEMON_NOT_RUNNING" or said.startswith("Cannot connect to daemon"):
            return NotSent(said)
        return CommandRefused(said, code)


def _one_line(said: str) -> str:
    """What a command says of its failure in plain text, without the warnings or the traceback around it."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    named = [line for line in lines if line.lower().startswith("error: ")]
    return (named or lines[-1:] or [""])[0][:MAX_WORDS].removeprefix("Error: ").removeprefix("error: ")


def _host(url: str, password: str | None) -> str:
    address = Address.parse(url)
    if address.secure:
        raise ValueError("the paseo command reaches a daemon by http only")
    host = f"[{address.host}]" if ":" in address.host else address.host
    if password is None:
        return f"{host}:{address.port}"
    return f"tcp://{host}:{address.port}?password={quote(password, safe='')}"
