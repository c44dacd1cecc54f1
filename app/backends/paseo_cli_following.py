"""A turn behind the `paseo` command, seen to its end.

The command tells neither which turn ended nor how: only that the agent is at rest, whose prompts stand in its
log, and what followed them. So an end without an error is always `reconciled`, and where a prompt of somebody
else's stands after ours, or the daemon was away, nobody can say how ours ended.
"""

from dataclasses import dataclass, field

import anyio
import structlog
from anyio.abc import TaskGroup

from app.backends.base import Reports
from app.backends.paseo_cli_reading import after_prompt, is_followed, position, read
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
from app.paseo import activity
from app.paseo.cli import Log, PaseoCli
from app.paseo.cli_answers import Waited
from app.paseo.cli_running import NoSeat
from app.paseo.errors import NotSent, PaseoError, Reason, Refused, Undecodable, classify

log = structlog.get_logger(__name__)

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
    """Before a command that failed is tried again; then twice as long each time."""
    longest_again: float = 15.0
    """The longest of these waits: so late it may be noticed that the daemon is back."""


@dataclass
class CliTurn:
    """A prompt of ours that has not ended."""

    attempt: str
    text: str
    is_sure: bool = False
    """Whether the daemon has said that it started."""
    was_told: bool = False
    """Whether an earlier host had told something of it, so that it had arrived."""
    failure: str | None = None
    """What the daemon said of it, if it failed."""
    is_stopped: bool = False
    """Whether the daemon has said that it stopped it for us, or was asked to and not heard."""
    stopping: anyio.Event | None = None
    """Set once a stop that was asked for has been answered: the turn may be seen at rest before that."""
    looking: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    """Whatever waits for the turn's end right now."""
    was_running: bool = False
    """Whether it was seen to run, after its host was gone."""


class CliFollower:
    """Follows one agent's turns; everything it finds goes into `reports`."""

    def __init__(self, cli: PaseoCli, agent: str, tasks: TaskGroup, pace: CliPace) -> None:
        self.reports = Reports()
        self.turn: CliTurn | None = None
        self.scope = anyio.CancelScope()
        self.is_stale = False
        """Whether the agent's process has to be started anew before the next prompt."""
        self.seen: Cursor | None = None
        """How far the agent's log was told, or passed over."""
        self.is_behind = False
        """Whether a turn's end could not be read: else the same prompt again would be taken for that one."""
        self._cli = cli
        self._id = agent
        self._tasks = tasks
        self._pace = pace

    def follow_up(self, turn: CliTurn) -> None:
        """See a turn that was sent to its end, in a task of its own; `scope` ends that."""
        self.turn, self.scope = turn, anyio.CancelScope()
        self._tasks.start_soon(self._follow, turn, self.scope, name=f"paseo-cli {self._id}")

    async def _follow(self, turn: CliTurn, scope: anyio.CancelScope) -> None:
        """See the turn to its end, whatever becomes of the way to the daemon."""
        try:
            with scope:
                end = await self._end_of(turn)
                await self.conclude(turn, end)
        except Exception:  # its neighbours live on
            log.exception("paseo_cli_agent_crashed")
            self._over(turn, TurnBroke(code="internal_error", message="the adapter failed"))

    async def _end_of(self, turn: CliTurn) -> TurnEnd | None:
        """How the turn ended; null: without an error, as far as can be seen."""
        if not turn.is_sure:
            if not await self._arrived(turn):
                delivered: Delivered = "yes" if turn.was_told else "unknown"
                return TurnUnknown(cause="unobserved", delivered=delivered)
            self.tell(turn.attempt, LinkRestored())
        was_away, seen_running, looks, unread, pause = False, False, 0, 0, self._pace.again
        while True:
            answer: Waited | None = None
            try:
                with anyio.CancelScope() as turn.looking:
                    answer = await self._waited()
            except NoSeat:  # it says nothing about the daemon
                continue
            except Undecodable as error:  # the daemon is there, and what it says cannot be read
                log.info("paseo_cli_wait_unread", error=str(error))
                unread += 1
                if unread >= LOOKS:
                    return TurnUnknown(cause="unreadable_answer")
                await anyio.sleep(self._pace.again)
                continue
            except PaseoError as error:
                if isinstance(error, Refused) and error.reason is Reason.AGENT_NOT_FOUND:
                    return TurnUnknown(cause="backend_session_lost")
                if not was_away:
                    self.tell(turn.attempt, LinkLost(cause=str(error)))
                was_away, seen_running = True, False
                await anyio.sleep(pause)
                pause = min(2 * pause, self._pace.longest_again)
                continue
            pause, unread = self._pace.again, 0
            if answer is None:  # the daemon's word that it stopped it came before
                return TurnStopped()
            if answer.status == "timeout":
                self.tell(turn.attempt, LinkRestored() if was_away else StillRunning())
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

    async def _waited(self) -> Waited:
        """How the agent stands after a wait, which also shows what it did last: if that is too long to be
        read, how it is stored.

        Raises:
            PaseoError: neither can be had.
        """
        try:
            return await self._cli.wait(self._id, self._pace.wait)
        except Undecodable:
            match (await self._cli.inspect(self._id)).status:
                case "idle":
                    return Waited(self._id, "idle")
                case "error":
                    return Waited(self._id, "error")
                case "running" | "initializing":
                    await anyio.sleep(self._pace.again)  # such a wait may have been none
                    return Waited(self._id, "timeout")
                case "closed":
                    raise

    async def _arrived(self, turn: CliTurn) -> bool:
        """Whether the prompt stands in the agent's log."""
        for look in range(LOOKS):
            if look:
                await anyio.sleep(self._pace.again)
            if await self._said(turn) is not None:
                return True
        return False

    async def _said(self, turn: CliTurn) -> str | None:
        """What stands after the turn's prompt; null if it does not stand there, or cannot be read now."""
        try:
            return self._after_prompt(turn, await self._cli.talk(self._id))
        except PaseoError as error:
            log.info("paseo_cli_log_unread", error=type(error).__name__)
            return None

    async def _judged(self, turn: CliTurn, answer: Waited) -> TurnEnd | None:
        if answer.status == "idle":
            return TurnStopped() if turn.is_stopped else None
        if answer.status == "permission":
            await self.stop(turn)
            return TurnBroke(code="backend_rejected", message=CANNOT_ANSWER)
        words = turn.failure = answer.message or ""
        code: ErrorCode = "provider_error"
        match classify(words):
            case Reason.AGENT_NOT_FOUND:
                return TurnUnknown(cause="backend_session_lost")
            case Reason.PROCESS_DEAD:
                code, self.is_stale = "agent_process_dead", True
            case _:
                pass
        return TurnStopped() if turn.is_stopped else TurnBroke(code=code, message=failure_words(words))

    async def conclude(self, turn: CliTurn, end: TurnEnd | None) -> None:
        """Tell what the agent said, then the end."""
        try:
            talk, shown = await read(self._cli, self._id)
        except PaseoError as error:
            log.info("paseo_cli_log_unread", error=type(error).__name__)
            self._warn(turn, "output_unread", "what the agent said could not be read")
            self.is_behind = True
            self._over(turn, end or TurnEnded(stop_reason=None, reconciled=True))
            return
        said = self._after_prompt(turn, talk)
        followed = await is_followed(self._cli, self._id, turn.text, said, talk, is_sure=turn.is_sure)
        if said is not None and (words := activity.words(said, followed=followed, failure=turn.failure)):
            parts = activity.answer_to(turn.text, shown.text, last=True)
            self.tell(turn.attempt, TextDelta(text=activity.parted(words, parts or "")))
        if said is None and not talk.is_whole:
            self._warn(turn, "output_unread", "the agent's talk is too long to be read")
        elif talk.is_cut:
            self._warn(turn, "output_truncated", "what the agent said is too long to be read to its end")
        if followed and not turn.is_stopped:
            end = TurnUnknown(cause="foreign_prompt")  # what is shown is the end of that one
        elif end is None and not (turn.is_sure or said):
            end = TurnUnknown(cause="unobserved")
        elif end is None:
            end = TurnEnded(stop_reason=None, reconciled=True)
        self.passed(talk.text)
        self._over(turn, end, position(talk.text))

    def _warn(self, turn: CliTurn, code: str, message: str) -> None:
        self.tell(turn.attempt, Notice(level="warning", code=code, message=message))

    def _after_prompt(self, turn: CliTurn, talk: Log) -> str | None:
        return after_prompt(turn.text, talk, self.seen, is_sure=turn.is_sure)

    def _over(self, turn: CliTurn, end: TurnEnd, cursor: Cursor | None = None) -> None:
        if self.turn is turn:
            self.turn = None
            self.tell(turn.attempt, end, cursor=cursor)

    def tell(self, attempt: str | None, *signals: Signal, cursor: Cursor | None = None) -> None:
        """Report signals, and with them a position to be committed."""
        size = sum(len(one.text) for one in signals if isinstance(one, TextDelta))
        self.reports.put_nowait(Report(attempt=attempt, signals=signals, cursor=cursor), size)

    def passed(self, text: str) -> None:
        """Take all of a log as told: what comes next is looked for behind it."""
        self.seen = None if text.strip() == activity.NOTHING else position(text)

    async def stop(self, turn: CliTurn) -> None:
        """Ask the daemon to stop the turn; its end is told by whoever follows it. Never raises."""
        turn.stopping = answered = anyio.Event()
        was_stopped = True  # as far as anybody knows, until it is answered
        try:
            was_stopped = await self._cli.stop(self._id)
            if was_stopped:
                turn.looking.cancel()
        except PaseoError as error:
            self.is_stale = True
            was_stopped = not isinstance(error, NotSent | Refused)
            log.info("paseo_cli_stop_failed", error=type(error).__name__)
        finally:
            turn.is_stopped |= was_stopped
            answered.set()
