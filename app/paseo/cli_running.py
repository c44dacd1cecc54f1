"""Running the `paseo` command: its seats, the files that it is handed, and what its failures say."""

import os
import re
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from shutil import rmtree
from urllib.parse import quote

import anyio
import anyio.to_thread
import msgspec
from msgspec import Struct

from app.paseo.address import Address
from app.paseo.errors import NotSent, Refused, Timeout, Undecodable
from app.process import Finished, TooMuchOutput, run

MAX_OUTPUT = 16 * 1024 * 1024
"""Bytes that one command may write."""
AT_ONCE = 16
"""Commands that run at the same time; each is a Node process. The others wait their turn."""
MAX_WORDS = 2000
"""Characters of an error that are kept."""

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
        self._has_own_home = "PASEO_HOME" in env
        self._folder: Path | None = None
        self._seats = list(range(AT_ONCE))
        self._limit = anyio.Semaphore(AT_ONCE)

    async def aclose(self) -> None:
        """Remove what lies on disk."""
        folder, self._folder = self._folder, None
        if folder is not None:
            await anyio.to_thread.run_sync(partial(rmtree, folder, ignore_errors=True))

    async def run(self, words: Sequence[str], arguments: Sequence[str], deadline: float) -> Finished:
        argv = [*self._command, *words, *(["--", *arguments] if arguments else [])]
        if any("\0" in part for part in argv):
            raise NotSent("a NUL cannot be passed to the paseo command")
        try:
            async with self._seat() as env:
                return await run(argv, env=env, deadline=deadline, most=MAX_OUTPUT)
        except TimeoutError:  # an OSError itself
            raise Timeout(f"paseo {words[0]} did not end within {deadline:g} s") from None
        except OSError as error:
            raise NotSent(f"{self._command[0]} cannot be started: {error.strerror}") from None
        except TooMuchOutput:
            raise Undecodable(f"paseo {words[0]} wrote more than {MAX_OUTPUT} bytes") from None

    @asynccontextmanager
    async def _seat(self) -> AsyncIterator[dict[str, str]]:
        """An environment that no other command has at this moment.

        The command takes its client's id from its home, and two with one id hear each other's answers.
        """
        async with self._limit:
            seat = self._seats.pop()
            try:
                if self._has_own_home:
                    yield self._env
                else:
                    home = await self._own_folder(f"home-{seat}")
                    yield {**self._env, "PASEO_HOME": str(home)}
            finally:
                self._seats.append(seat)

    async def _own_folder(self, name: str) -> Path:
        def make() -> Path:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="alameda-paseo-"))
            folder = self._folder / name
            folder.mkdir(mode=0o700, exist_ok=True)
            return folder

        return await anyio.to_thread.run_sync(make)

    @asynccontextmanager
    async def file(self, text: str) -> AsyncIterator[Path]:
        def write() -> Path:
            descriptor, name = tempfile.mkstemp(dir=folder, prefix="prompt-")  # exclusive, mode 0600
            with os.fdopen(descriptor, "wb") as file:
                file.write(text.encode(errors="replace"))
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
