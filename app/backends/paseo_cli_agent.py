"""One agent of a Paseo daemon behind the `paseo` command, as its host holds it."""

import time

import structlog
from anyio.abc import TaskGroup

from app.backends.base import (
    AgentLost,
    AgentState,
    Answer,
    BackendRejected,
    BackendUnavailable,
    Change,
    OpenAttempt,
    Prompt,
    SendFailed,
    Unsupported,
)
from app.backends.paseo_archiving import put_away
from app.backends.paseo_cli_following import CliFollower, CliPace, CliTurn
from app.backends.paseo_cli_reading import position
from app.backends.paseo_translate import failure_words
from app.domain.events import Delivered, Notice
from app.domain.signals import Cursor, Signal, TurnStopped
from app.domain.text import shorten
from app.paseo import activity
from app.paseo.cli import Log, PaseoCli
from app.paseo.cli_answers import Inspected
from app.paseo.errors import NotSent, PaseoError, Reason, Refused, Timeout, Undecodable

log = structlog.get_logger(__name__)

FRESH_S = 2.0
"""Seconds for which a look at the agent is as good as another one: each takes about as long."""


class PaseoCliAgent:
    """Implements `Agent`. `take_up` comes first."""

    resumable = True

    def __init__(self, cli: PaseoCli, found: Inspected, tasks: TaskGroup, pace: CliPace) -> None:
        self.state = AgentState(
            session=found.id, cwd=found.cwd, model=found.model, mode=found.mode, thinking=found.thinking
        )
        self._cli = cli
        self._id = found.id
        self._follower = CliFollower(cli, found.id, tasks, pace)
        self.reports = self._follower.reports
        self._is_released = False
        self._reached: tuple[float, Inspected] | None = None

    async def take_up(
        self,
        found: Inspected,
        cursor: Cursor | None,
        attempt: OpenAttempt | None,
        *,
        tells_history: bool = False,
    ) -> None:
        """Go on after `cursor`, with the attempt that its last host had sent.

        Raises:
            PaseoError: the log cannot be read.
        """
        talk = await self._cli.talk(self._id)
        if attempt is None:
            self._follower.passed(talk.text)
            history = self._history(await self._cli.logs(self._id)) if tells_history else ()
            self._follower.tell(None, *history, cursor=position(talk.text))
            return
        self._follower.seen = cursor
        turn = CliTurn(attempt.name, attempt.text, was_told=attempt.was_told)
        turn.was_running = found.status == "running"
        self._follower.follow_up(turn)

    def _history(self, told: Log) -> tuple[Signal, ...]:
        """What the agent had done before: as the text that it is, for nothing in it tells who spoke."""
        text = told.text
        if text.strip() in ("", activity.NOTHING):
            message = "the provider has told nothing of the session that was adopted"
            return (Notice(level="warning", code="import_empty", message=message),)
        history = Notice(level="info", code="import_history", message=shorten(text)[0])
        if told.is_whole:
            return (history,)
        message = "the history of the session that was adopted is too long to be read: this is its end"
        return (Notice(level="warning", code="import_incomplete", message=message), history)

    # Prompting.

    async def prompt(self, prompt: Prompt) -> None:
        """Send a prompt; returns when the daemon has started the turn."""
        if self._is_released:
            raise SendFailed("the agent was put away", delivered="no", retriable=False)
        if self._follower.turn is not None:
            raise SendFailed("the agent is running a turn", delivered="no", retriable=True)
        if prompt.attachments:
            raise SendFailed("the paseo command takes no attachments", delivered="no", retriable=False)
        await self._prepare()
        turn = CliTurn(prompt.attempt, prompt.text)
        try:
            await self._cli.send(self._id, prompt.text)
            turn.is_sure = True
        except NotSent as error:
            raise SendFailed(str(error), delivered="no", retriable=True) from None
        except Refused as error:
            if error.reason is not Reason.START_UNCERTAIN:
                listed = error.reason in (Reason.AGENT_NOT_FOUND, Reason.CANNOT_RESUME)
                delivered: Delivered = "no" if listed else "unknown"
                raise SendFailed(failure_words(error.text), delivered=delivered, retriable=False) from None
        except (Timeout, Undecodable) as error:
            log.info("paseo_cli_send_unanswered", error=type(error).__name__)  # it is looked for
        self._follower.follow_up(turn)

    async def _prepare(self) -> None:
        """A prompt would end a turn that runs: see that none does, and that there is a process."""
        reached, self._reached = self._reached, None
        try:
            if self._follower.is_stale:
                await self._cli.reload(self._id)
                self._follower.is_stale, reached = False, None
            if self._follower.is_behind:
                self._follower.passed((await self._cli.talk(self._id)).text)
                self._follower.is_behind = False
            if reached is not None and time.monotonic() - reached[0] < FRESH_S:
                found = reached[1]
            else:
                found = await self._cli.inspect(self._id)
        except Refused as error:
            raise SendFailed(error.text, delivered="no", retriable=False) from None
        except PaseoError as error:
            raise SendFailed(str(error), delivered="no", retriable=True) from None
        if found.status in ("running", "initializing"):
            raise SendFailed("somebody else keeps the agent busy", delivered="no", retriable=True)

    async def reach(self) -> None:
        """See that the command finds the agent; the prompt that follows relies on what was seen."""
        try:
            self._reached = (time.monotonic(), await self._cli.inspect(self._id))
        except Refused as error:
            if error.reason is not Reason.AGENT_NOT_FOUND:
                raise BackendUnavailable(error.text) from None
            await self.release()  # so that it is not held for the next prompt
            raise AgentLost(error.text) from None
        except PaseoError as error:
            raise BackendUnavailable(str(error)) from None

    # Stopping.

    async def interrupt(self) -> None:
        """Stop the turn; its end comes as a signal."""
        if self._follower.turn is not None:
            await self._follower.stop(self._follower.turn)

    async def kill(self) -> None:
        """Start the agent's process anew; an open turn ends as stopped."""
        turn = self._follower.turn
        try:
            await self._cli.reload(self._id)
        except PaseoError as error:
            self._follower.is_stale = True
            log.warning("paseo_cli_reload_failed", error=type(error).__name__)
            return
        if turn is not None:
            self._follower.scope.cancel()
            turn.is_stopped = True
            await self._follower.conclude(turn, TurnStopped())

    async def answer(self, request: str, answer: Answer) -> None:
        """Always refused: the command's short ids of requests are not told."""
        raise BackendRejected("this permission request is not pending")

    async def configure(self, change: Change) -> AgentState:
        """Always refused."""
        raise Unsupported("the paseo command changes no settings here")

    async def is_busy(self) -> bool:
        """Whether a turn runs, ours or anybody's."""
        if self._follower.turn is not None:
            return True
        try:
            return (await self._cli.inspect(self._id)).status == "running"
        except PaseoError:
            return False

    async def archive(self) -> None:
        """Archive the agent, with its process, and let it go."""
        try:
            await put_away(self._cli, self._id)
        finally:
            await self.release()

    async def release(self) -> None:
        """Stop following; the agent and its turn go on in the daemon."""
        self._is_released = True
        self._follower.scope.cancel()
        self.reports.close()
