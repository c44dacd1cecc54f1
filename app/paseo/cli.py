"""The `paseo` command as a way to a daemon, for hosts where nothing else reaches it.

Every call starts a process (1.5 to 2.5 seconds), and its exit status says little: it is 0 also for a turn
that failed or asks, so each answer's own `status` is read. What is not as documented is no answer.
"""

import os
import re
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Literal, TypeVar
from urllib.parse import quote

import anyio
import anyio.to_thread
import msgspec
from msgspec import Struct, field

from app.paseo.address import Address
from app.paseo.errors import NotSent, Refused, Timeout, Undecodable
from app.process import Finished, TooMuchOutput, run

MAX_OUTPUT = 16 * 1024 * 1024
"""Bytes that one command may write."""
AT_ONCE = 16
"""Commands that run at the same time; each is a Node process. The others wait their turn."""
WAITS = 12
"""Of these, the most that wait for turns: the other seats are for what must not wait."""
CALL_S = 30.0
"""Seconds that a command gets which only asks or tells."""
MARGIN_S = 15.0
"""Seconds that a waiting command gets beyond what it was told to wait."""
MAX_WORDS = 2000
"""Characters of an error that are kept."""

T = TypeVar("T")
_FAILED_TO = re.compile(r"Failed to [a-z ()]+: ")


class Made(Struct, frozen=True, rename="camel"):
    """An agent that was made, or adopted."""

    agent_id: str
    status: Literal["created", "running", "completed", "error", "permission", "timeout"]
    provider: str
    cwd: str


class SentMessage(Struct, frozen=True, rename="camel"):
    """A prompt that the daemon has taken."""

    agent_id: str
    status: Literal["sent"]


class Waited(Struct, frozen=True, rename="camel"):
    """How an agent stands; `error` also for one that is unknown."""

    agent_id: str
    status: Literal["idle", "timeout", "permission", "error"]
    message: str | None = None


class Inspected(Struct, frozen=True):
    """An agent as it is stored; looking loads nothing."""

    id: str = field(name="Id")
    provider: str = field(name="Provider")
    status: Literal["initializing", "idle", "running", "error", "closed"] = field(name="Status")
    archived: bool = field(name="Archived")
    cwd: str = field(name="Cwd")
    model: str | None = field(name="Model", default=None)
    mode: str | None = field(name="Mode", default=None)
    thinking: str | None = field(name="Thinking", default=None)


class Listed(Struct, frozen=True):
    """An agent in the list."""

    id: str
    name: str
    status: str


class ListedProvider(Struct, frozen=True):
    """A provider in the list."""

    provider: str
    status: str
    label: str = ""
    enabled: str = "Enabled"


class Stopped(Struct, frozen=True, rename="camel"):
    """How many turns were stopped."""

    stopped_count: int


class Archived(Struct, frozen=True, rename="camel"):
    """An agent that was put away."""

    agent_id: str
    status: Literal["archived"]


class Reloaded(Struct, frozen=True, rename="camel"):
    """An agent whose process was started anew."""

    agent_id: str
    status: Literal["reloaded"]


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


class PaseoCli:
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
        self._waiting = anyio.Semaphore(WAITS)

    async def aclose(self) -> None:
        """Remove what lies on disk."""
        folder, self._folder = self._folder, None
        if folder is not None:
            await anyio.to_thread.run_sync(partial(rmtree, folder, ignore_errors=True))

    # What the command can do. Each raises what `_ask` raises.

    async def agents(self, *, archived: bool = False, deadline: float = CALL_S) -> list[Listed]:
        """The daemon's agents, whoever made them."""
        return await self._ask(list[Listed], "ls", *(["-a"] if archived else []), deadline=deadline)

    async def providers(self) -> list[ListedProvider]:
        """What the daemon can run."""
        return await self._ask(list[ListedProvider], "provider", "ls")

    async def start(self, text: str, *, provider: str, cwd: str, title: str) -> Made:
        """Make an agent, which needs a first prompt here; `text` shows in the list of processes."""
        options = ["-d", f"--provider={provider}", f"--cwd={cwd}", f"--title={title}"]
        return await self._ask(Made, "run", *options, arguments=[text])

    async def adopt(self, session: str, *, provider: str, cwd: str) -> Made:
        """Make an agent on a session that its provider has."""
        options = [f"--provider={provider}", f"--cwd={cwd}"]
        return await self._ask(Made, "import", *options, arguments=[session])

    async def inspect(self, agent: str) -> Inspected:
        """How an agent is stored."""
        return await self._ask(Inspected, "inspect", arguments=[agent])

    async def send(self, agent: str, text: str) -> SentMessage:
        """Prompt an agent; returns once its turn has started. The text goes by a file of ours alone."""
        async with self._file(text) as path:
            return await self._ask(
                SentMessage, "send", "--no-wait", f"--prompt-file={path}", arguments=[agent]
            )

    async def wait(self, agent: str, seconds: int) -> Waited:
        """Wait until the agent is at rest or asks something, or so long."""
        async with self._waiting:
            return await self._ask(
                Waited, "wait", f"--timeout={seconds}", arguments=[agent], deadline=seconds + MARGIN_S
            )

    async def logs(self, agent: str) -> str:
        """What happened with an agent, as text for people (see `activity`)."""
        done = await self._run(["logs"], [agent], CALL_S)
        if done.code != 0:
            raise self._refused(done)
        return done.stdout.decode(errors="replace")

    async def stop(self, agent: str) -> bool:
        """Stop the agent's turn; false if it ran none."""
        return (await self._ask(Stopped, "stop", arguments=[agent])).stopped_count > 0

    async def reload(self, agent: str) -> None:
        """Start the agent's process anew; takes it out of the archive."""
        await self._ask(Reloaded, "agent", "reload", arguments=[agent])

    async def archive(self, agent: str) -> None:
        """Put an agent away, whatever it is doing; one that is put away already stays so."""
        try:
            await self._ask(Archived, "archive", "--force", arguments=[agent])
        except CommandRefused as refused:
            if refused.code != "AGENT_ALREADY_ARCHIVED":
                raise

    # How it is run.

    async def _ask(
        self, shape: type[T], *words: str, arguments: Sequence[str] = (), deadline: float = CALL_S
    ) -> T:
        """The answer of a command.

        Raises:
            NotSent: nothing happened: it could not be started, or found no daemon.
            Timeout: it did not end in time, or was ended by somebody: the outcome is unknown.
            CommandRefused: it failed.
            Undecodable: it ended well, and what it says is not as documented.
        """
        done = await self._run([*words, "--json"], arguments, deadline)
        if done.code != 0:
            raise self._refused(done)
        try:
            return msgspec.json.decode(done.stdout, type=shape)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Undecodable(f"paseo {words[0]} gave an answer of another form: {error}") from None

    async def _run(self, words: Sequence[str], arguments: Sequence[str], deadline: float) -> Finished:
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
    async def _file(self, text: str) -> AsyncIterator[Path]:
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

    def _refused(self, done: Finished) -> NotSent | Timeout | CommandRefused:
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
