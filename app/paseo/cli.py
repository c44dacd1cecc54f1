"""The `paseo` command as a way to a daemon, for hosts where nothing else reaches it.

Every call starts a process (1.5 to 2.5 seconds), and its exit status says little: it is 0 also for a turn
that failed or asks, so each answer's own `status` is read. What is not as documented is no answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import anyio
import msgspec

from app.paseo.cli_answers import (
    Archived,
    Inspected,
    Listed,
    ListedProvider,
    Made,
    Reloaded,
    SentMessage,
    Stopped,
    Waited,
)
from app.paseo.cli_running import CommandRefused, CommandRunner, in_time
from app.paseo.errors import Reason, Timeout, Undecodable

WAITS = 12
"""Of the commands that run at the same time, the most that wait for turns: the other seats are for what must
not wait."""
CALL_S = 30.0
"""Seconds that a command gets which only asks or tells."""
CROWDED_S = 5
"""Seconds of a single wait while other turns are to be waited for as well: each has its look in time."""
LAST_ITEMS = 100
"""Of a log that is too long, how many items at its end are read."""
MARGIN_S = 15.0
"""Seconds that a waiting command gets beyond what it was told to wait."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Log:
    """What a log shows: from its beginning to its end, unless it is too long to be read."""

    text: str
    is_whole: bool = True
    is_cut: bool = False
    """Whether its end is missing too."""


class PaseoCli:
    """What the command can do. `aclose` closes what runs it, too."""

    def __init__(self, runner: CommandRunner) -> None:
        self._runner = runner
        self._waiting = anyio.Semaphore(WAITS)

    async def aclose(self) -> None:
        """Remove what lies on disk."""
        await self._runner.aclose()

    async def look(self, deadline: float | None = None) -> None:
        """See that there is a daemon which answers."""
        await self._ask(list[Listed], "ls", deadline=deadline)

    async def labelled(self, label: str) -> list[Listed]:
        """The agents with a label (`key=value`), also those that were put away."""
        return await self._ask(list[Listed], "ls", "-a", f"--label={label}")

    async def providers(self) -> list[ListedProvider]:
        """What the daemon can run. Where it finds none, the command makes up a list: that is none."""
        found = await self._ask(list[ListedProvider], "provider", "ls")
        await self.look()
        return found

    async def start(
        self, text: str, *, provider: str, cwd: str, title: str | None, labels: Sequence[str] = ()
    ) -> Made:
        """Make an agent, which needs a first prompt here; `text` shows in the list of processes."""
        options = ["-d", f"--provider={provider}", f"--cwd={cwd}", *(f"--label={one}" for one in labels)]
        options += [] if title is None else [f"--title={title}"]
        return await self._ask(Made, "run", *options, arguments=[text])

    async def adopt(self, session: str, *, provider: str, cwd: str, labels: Sequence[str] = ()) -> Made:
        """Make an agent on a session that its provider has."""
        options = [f"--provider={provider}", f"--cwd={cwd}", *(f"--label={one}" for one in labels)]
        return await self._ask(Made, "import", *options, arguments=[session])

    async def inspect(self, agent: str) -> Inspected:
        """How an agent is stored."""
        found = await self._ask(Inspected, "inspect", arguments=[agent])
        if found.id != agent:  # it is gone, and another one is called like it
            raise CommandRefused(f"Agent not found: {agent}")
        return found

    async def send(self, agent: str, text: str) -> SentMessage:
        """Prompt an agent; returns once its turn has started. The text goes by a file of ours alone."""
        async with self._runner.file(text) as path:
            return await self._ask(
                SentMessage, "send", "--no-wait", f"--prompt-file={path}", arguments=[agent]
            )

    async def wait(self, agent: str, seconds: int) -> Waited:
        """Wait until the agent is at rest or asks something, or so long; shorter while others want to."""
        deadline = seconds + MARGIN_S
        until = anyio.current_time() + deadline
        async with in_time(self._waiting, deadline / 2):
            if self._waiting.statistics().tasks_waiting:
                seconds = min(seconds, CROWDED_S)
            return await self._ask(
                Waited,
                "wait",
                f"--timeout={seconds}",
                arguments=[agent],
                deadline=until - anyio.current_time(),
            )

    async def logs(self, agent: str) -> Log:
        """What happened with an agent, as text for people (see `activity`); of a long one its end."""
        return await self._log(agent, LAST_ITEMS)

    async def talk(self, agent: str) -> Log:
        """The same, only prompts and words; of one that is too long the last prompt and its answer."""
        return await self._log(agent, 2, "--filter=message")

    async def last_prompt(self, agent: str) -> Log:
        """The same, only the last prompt, whoever sent it."""
        return await self._log(agent, 1, "--filter=user_message", "--tail=1")

    async def _log(self, agent: str, last: int, *options: str) -> Log:
        try:
            done = await self._runner.run(["logs", *options], [agent], CALL_S)
            is_whole = True
        except Undecodable:
            options, is_whole = (*options, f"--tail={last}"), False
            done = await self._runner.run(["logs", *options], [agent], CALL_S, cut=True)
        if done.code not in (0, None):
            raise self._runner.refused(done)
        return Log(done.stdout.decode(errors="replace"), is_whole=is_whole, is_cut=done.code is None)

    async def stop(self, agent: str) -> bool:
        """Stop the agent's turn; false if it ran none."""
        if (await self._ask(Stopped, "stop", arguments=[agent])).stopped_count > 0:
            return True
        if (await self.inspect(agent)).status == "running":
            raise Timeout(
                "the daemon did not say that it stopped the turn"
            )  # the command ends well all the same
        return False

    async def reload(self, agent: str) -> None:
        """Start the agent's process anew; takes it out of the archive."""
        try:
            await self._ask(Reloaded, "agent", "reload", arguments=[agent])
        except CommandRefused as refused:
            await self._look_again(agent, refused)

    async def archive(self, agent: str) -> None:
        """Put an agent away, whatever it is doing; one that is put away already stays so."""
        try:
            await self._ask(Archived, "archive", "--force", arguments=[agent])
        except CommandRefused as refused:
            if refused.code != "AGENT_ALREADY_ARCHIVED":
                await self._look_again(agent, refused)

    async def _look_again(self, agent: str, refused: CommandRefused) -> NoReturn:
        """Some commands know only listed agents: the last that changed, in directories that are known."""
        if refused.reason is Reason.AGENT_NOT_FOUND:
            await self.inspect(agent)
            raise CommandRefused("the agent is there, but the paseo command does not list it") from None
        raise refused

    async def _ask(
        self, shape: type[T], *words: str, arguments: Sequence[str] = (), deadline: float | None = None
    ) -> T:
        """The answer of a command.

        Raises:
            NotSent: nothing happened: it was not started, if only for want of a seat, or found no daemon.
            Timeout: it did not end in time, or was ended by somebody: the outcome is unknown.
            CommandRefused: it failed.
            Undecodable: it ended well, and what it says is not as documented.
        """
        done = await self._runner.run([*words, "--json"], arguments, deadline or CALL_S)
        if done.code != 0:
            raise self._runner.refused(done)
        try:
            return msgspec.json.decode(done.stdout, type=shape)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Undecodable(f"paseo {words[0]} gave an answer of another form: {error}") from None
