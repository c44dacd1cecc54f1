"""One agent of a Paseo daemon behind the `paseo` command, as its host holds it.

The command tells neither which turn ended nor how: only that the agent is at rest, whose prompts stand in its
log, and what followed them. So an end without an error is always `reconciled`, and where a prompt of somebody
else's stands after ours, or the daemon was away, nobody can say how ours ended.
"""

import hashlib
import time
from dataclasses import dataclass

import anyio
import structlog
from anyio.abc import TaskGroup

from app.backends.base import (
    AgentState,
    Answer,
    BackendRejected,
    BackendUnavailable,
    Change,
    OpenAttempt,
    Prompt,
    Reports,
    SendFailed,
    Unsupported,
)
from app.backends.paseo_archiving import put_away
from app.backends.paseo_translate import failure_words
from app.domain.events import Delivered, ErrorCode, Notice
from app.domain.signals import (
    Cursor,
    LinkLost,
    LinkRestored,
    Report,
    Signal,
    StillRunning,
    TextDelta,
    TurnBroke,
    TurnEnd,
    TurnEnded,
    TurnStopped,
    TurnUnknown,
)
from app.domain.text import shorten
from app.paseo import activity
from app.paseo.cli import PaseoCli
from app.paseo.cli_answers import Inspected, Waited
from app.paseo.errors import NotSent, PaseoError, Reason, Refused, Timeout, Undecodable, classify

log = structlog.get_logger(__name__)

FRESH_S = 2.0
"""Seconds for which a look at the agent is as good as another one: each takes about as long."""
LOOKS = 3
"""Looks for a prompt of which nobody knows whether it arrived, or for what came of it."""
CANNOT_ANSWER = (
    "the agent asked for a permission, which nobody can answer by the paseo command; it was stopped"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CliPace:
    """Waits, in seconds; a test has shorter ones."""

    look: float = 30.0
    """Between two looks at a daemon that is up, each a process of its own; a third of it while it is down."""
    greeting: int = 60
    """For an agent to answer its greeting."""
    wait: int = 20
    """How long a command waits for a turn at a time: it ends by itself that soon if we are killed."""
    again: float = 2.0
    """Before a command that failed is tried again."""


@dataclass
class _Turn:
    """A prompt of ours that has not ended."""

    attempt: str
    text: str
    is_sure: bool = False
    """Whether the daemon has said that it started."""
    was_told: bool = False
    is_stopped: bool = False
    """Whether the daemon has said that it stopped it for us, or was asked to and not heard."""
    stopping: anyio.Event | None = None
    """Set once a stop that was asked for has been answered: the turn may be seen at rest before that."""
    was_running: bool = False
    """Whether it was seen to run, after its host was gone."""


class PaseoCliAgent:
    """Implements `Agent`. `take_up` comes first."""

    resumable = True

    def __init__(self, cli: PaseoCli, found: Inspected, tasks: TaskGroup, pace: CliPace) -> None:
        self.reports = Reports()
        self.state = AgentState(
            session=found.id, cwd=found.cwd, model=found.model, mode=found.mode, thinking=found.thinking
        )
        self._cli = cli
        self._id = found.id
        self._tasks = tasks
        self._pace = pace
        self._scope = anyio.CancelScope()
        self._turn: _Turn | None = None
        self._is_released = False
        self._is_stale = False
        """Whether the agent's process has to be started anew before the next prompt."""
        self._seen: Cursor | None = None
        """How far the agent's log was told, or passed over."""
        self._is_behind = False
        """Whether a turn's end could not be read: else the same prompt again would be taken for that one."""
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
        text = await self._cli.logs(self._id)
        if attempt is None:
            self._pass(text)
            history = self._history(text) if tells_history else ()
            self._tell(None, *history, cursor=_cursor(text))
            return
        self._seen = cursor
        turn = _Turn(attempt.name, attempt.text, was_told=attempt.was_told)
        turn.was_running = found.status == "running"
        self._follow_up(turn)

    def _history(self, text: str) -> tuple[Signal, ...]:
        """What the agent had done before: as the text that it is, for nothing in it tells who spoke."""
        if text.strip() in ("", activity.NOTHING):
            message = "the provider has told nothing of the session that was adopted"
            return (Notice(level="warning", code="import_empty", message=message),)
        return (Notice(level="info", code="import_history", message=shorten(text)[0]),)

    # Prompting.

    async def prompt(self, prompt: Prompt) -> None:
        """Send a prompt; returns when the daemon has started the turn."""
        if self._is_released:
            raise SendFailed("the agent was put away", delivered="no", retriable=False)
        if self._turn is not None:
            raise SendFailed("the agent is running a turn", delivered="no", retriable=True)
        if prompt.attachments:
            raise SendFailed("the paseo command takes no attachments", delivered="no", retriable=False)
        await self._prepare()
        turn = _Turn(prompt.attempt, prompt.text)
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
        self._follow_up(turn)

    async def _prepare(self) -> None:
        """A prompt would end a turn that runs: see that none does, and that there is a process."""
        reached, self._reached = self._reached, None
        try:
            if self._is_stale:
                await self._cli.reload(self._id)
                self._is_stale, reached = False, None
            if self._is_behind:
                self._pass(await self._cli.logs(self._id))
                self._is_behind = False
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

    # Following a turn.

    def _follow_up(self, turn: _Turn) -> None:
        self._turn, self._scope = turn, anyio.CancelScope()
        self._tasks.start_soon(self._follow, turn, self._scope, name=f"paseo-cli {self._id}")

    async def _follow(self, turn: _Turn, scope: anyio.CancelScope) -> None:
        """See the turn to its end, whatever becomes of the way to the daemon."""
        try:
            with scope:
                end = await self._end_of(turn)
                await self._conclude(turn, end)
        except Exception:  # its neighbours live on
            log.exception("paseo_cli_agent_crashed")
            self._over(turn, TurnBroke(code="internal_error", message="the adapter failed"))

    async def _end_of(self, turn: _Turn) -> TurnEnd | None:
        """How the turn ended; null: without an error, as far as can be seen."""
        if not turn.is_sure:
            if not await self._arrived(turn):
                delivered: Delivered = "yes" if turn.was_told else "unknown"
                return TurnUnknown(cause="unobserved", delivered=delivered)
            self._tell(turn.attempt, LinkRestored())
        was_away, seen_running, looks = False, False, 0
        while True:
            try:
                answer = await self._cli.wait(self._id, self._pace.wait)
            except PaseoError as error:
                if isinstance(error, Refused) and error.reason is Reason.AGENT_NOT_FOUND:
                    return TurnUnknown(cause="backend_session_lost")
                if not was_away:
                    self._tell(turn.attempt, LinkLost(cause=str(error)))
                was_away, seen_running = True, False
                await anyio.sleep(self._pace.again)
                continue
            if answer.status == "timeout":
                self._tell(turn.attempt, LinkRestored() if was_away else StillRunning())
                was_away, seen_running = False, True
                continue
            if turn.stopping is not None:
                await turn.stopping.wait()
            if (was_away or turn.was_running) and not (seen_running or turn.is_stopped):
                # A daemon that was started again says `idle` of a turn that died with it.
                return TurnUnknown(cause="daemon_away" if was_away else "unobserved")
            if answer.status == "idle" and not (turn.is_sure or turn.is_stopped) and looks < LOOKS:
                looks += 1
                if not await self._said(turn):  # it may start yet
                    await anyio.sleep(self._pace.again)
                    continue
            return await self._judged(turn, answer)

    async def _arrived(self, turn: _Turn) -> bool:
        """Whether the prompt stands in the agent's log."""
        for look in range(LOOKS):
            if look:
                await anyio.sleep(self._pace.again)
            if await self._said(turn) is not None:
                return True
        return False

    async def _said(self, turn: _Turn) -> str | None:
        """What stands after the turn's prompt; null if it does not stand there, or cannot be read now."""
        try:
            return self._after_prompt(turn, await self._cli.logs(self._id))
        except PaseoError as error:
            log.info("paseo_cli_log_unread", error=type(error).__name__)
            return None

    async def _judged(self, turn: _Turn, answer: Waited) -> TurnEnd | None:
        if answer.status == "idle":
            return TurnStopped() if turn.is_stopped else None
        if answer.status == "permission":
            await self._stop(turn)
            return TurnBroke(code="backend_rejected", message=CANNOT_ANSWER)
        words = answer.message or ""
        code: ErrorCode = "provider_error"
        match classify(words):
            case Reason.AGENT_NOT_FOUND:
                return TurnUnknown(cause="backend_session_lost")
            case Reason.PROCESS_DEAD:
                code, self._is_stale = "agent_process_dead", True
            case _:
                pass
        return TurnStopped() if turn.is_stopped else TurnBroke(code=code, message=failure_words(words))

    async def _conclude(self, turn: _Turn, end: TurnEnd | None) -> None:
        """Tell what the agent said, then the end."""
        try:
            text = await self._cli.logs(self._id)
        except PaseoError as error:
            log.info("paseo_cli_log_unread", error=type(error).__name__)
            message = "what the agent said could not be read"
            self._tell(turn.attempt, Notice(level="warning", code="output_unread", message=message))
            self._is_behind = True
            self._over(turn, end or TurnEnded(stop_reason=None, reconciled=True))
            return
        said = self._after_prompt(turn, text)
        if said is not None and (words := activity.words(said)):
            self._tell(turn.attempt, TextDelta(text=words))
        if said is not None and activity.is_followed(said) and not turn.is_stopped:
            end = TurnUnknown(cause="foreign_prompt")  # what is shown is the end of that one
        elif end is None and not (turn.is_sure or said):
            end = TurnUnknown(cause="unobserved")
        elif end is None:
            end = TurnEnded(stop_reason=None, reconciled=True)
        self._pass(text)
        self._over(turn, end, _cursor(text))

    def _after_prompt(self, turn: _Turn, text: str) -> str | None:
        """What stands after the turn's prompt; null if that does not stand there."""
        seen = self._seen
        if seen is None:
            return activity.answer_to(turn.text, text)
        if _cursor(text[: seen.seq]) == seen:
            return activity.answer_to(turn.text, text[seen.seq :])
        return activity.answer_to(turn.text, text, last=True)  # it was written anew

    def _over(self, turn: _Turn, end: TurnEnd, cursor: Cursor | None = None) -> None:
        if self._turn is turn:
            self._turn = None
            self._tell(turn.attempt, end, cursor=cursor)

    def _tell(self, attempt: str | None, *signals: Signal, cursor: Cursor | None = None) -> None:
        size = sum(len(one.text) for one in signals if isinstance(one, TextDelta))
        self.reports.put_nowait(Report(attempt=attempt, signals=signals, cursor=cursor), size)

    def _pass(self, text: str) -> None:
        self._seen = None if text.strip() == activity.NOTHING else _cursor(text)

    async def reach(self) -> None:
        """See that the command finds the agent; the prompt that follows relies on what was seen."""
        try:
            self._reached = (time.monotonic(), await self._cli.inspect(self._id))
        except PaseoError as error:
            raise BackendUnavailable(str(error)) from None

    # Stopping.

    async def interrupt(self) -> None:
        """Stop the turn; its end comes as a signal."""
        if self._turn is not None:
            await self._stop(self._turn)

    async def _stop(self, turn: _Turn) -> None:
        turn.stopping = answered = anyio.Event()
        was_stopped = True  # as far as anybody knows, until it is answered
        try:
            was_stopped = await self._cli.stop(self._id)
        except PaseoError as error:
            self._is_stale = True
            was_stopped = not isinstance(error, NotSent | Refused)
            log.info("paseo_cli_stop_failed", error=type(error).__name__)
        finally:
            turn.is_stopped |= was_stopped
            answered.set()

    async def kill(self) -> None:
        """Start the agent's process anew; an open turn ends as stopped."""
        turn = self._turn
        try:
            await self._cli.reload(self._id)
        except PaseoError as error:
            self._is_stale = True
            log.warning("paseo_cli_reload_failed", error=type(error).__name__)
            return
        if turn is not None:
            self._scope.cancel()
            turn.is_stopped = True
            await self._conclude(turn, TurnStopped())

    async def answer(self, request: str, answer: Answer) -> None:
        """Always refused: the command's short ids of requests are not told."""
        raise BackendRejected("this permission request is not pending")

    async def configure(self, change: Change) -> AgentState:
        """Always refused."""
        raise Unsupported("the paseo command changes no settings here")

    async def is_busy(self) -> bool:
        """Whether a turn runs, ours or anybody's."""
        if self._turn is not None:
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
        self._scope.cancel()
        self.reports.close()


def _cursor(text: str) -> Cursor:
    """A position in a log: how long it was, and a name for what stood there."""
    return Cursor(epoch=hashlib.sha256(text.encode(errors="replace")).hexdigest()[:32], seq=len(text))
