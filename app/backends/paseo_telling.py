"""What is told of an agent: frames and rows in, reports out, each under its own attempt. No I/O."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import anyio
import msgspec

from app.backends import paseo_history
from app.backends.base import AgentSpec, Reports
from app.backends.paseo_asking import SILENT_PROVIDER, Asked, Asking
from app.backends.paseo_permissions import permission_asked, resolution_outcome
from app.backends.paseo_settings import in_force
from app.backends.paseo_translate import (
    failure_words,
    is_cancelled_tool,
    row_signals,
    token_usage,
)
from app.backends.paseo_turns import FOREIGN, Owner, Trail, Turns
from app.domain.events import ErrorCode, Notice, PermissionOutcome
from app.domain.signals import (
    Config,
    Cursor,
    ForeignActivity,
    LinkLost,
    LinkRestored,
    PermissionSettled,
    Report,
    Signal,
    TextDelta,
    ToolCall,
    TurnBroke,
    TurnEnd,
    TurnEnded,
    TurnStopped,
    Usage,
)
from app.paseo import errors, frames, items, snapshots
from app.paseo.errors import Reason

FORCED_AFTER_S = 1.5
"""A cancel that took longer than this was forced: the agent works on, and has to be started anew."""
AT_REST = ("idle", "error", "closed")


@dataclass
class Sent:
    """The prompt of ours that runs, as far as we know."""

    attempt: str
    holds_link: bool = True
    """Whether this process wrote it: only then its absence from the timeline proves anything."""
    accepted: bool = False
    trail: Trail | None = None
    """What the timeline shows of it; null until its own row was seen there."""
    refusal: TurnBroke | None = None
    """A refusal of the daemon's that may be none: the turn may run all the same."""
    looks: int = 0
    """How often nothing showed that it started."""
    absences: int = 0
    """How often its row was looked for and not found."""
    stop_sent_at: float | None = None
    ending: TurnEnd | None = None
    """What its end means, whatever the daemon calls it."""
    started: anyio.Event = field(default_factory=anyio.Event)
    alive: anyio.Event = field(default_factory=anyio.Event)
    """Set by the first thing that the agent itself did, and by the end."""

    @property
    def is_delivered(self) -> bool:
        """Whether the daemon has it for certain."""
        return self.accepted or self.trail is not None


class Teller:
    """Knows whose turn runs, what was told and up to where; puts everything into `reports`."""

    def __init__(self, agent: snapshots.Agent, spec: AgentSpec) -> None:
        self.reports = Reports()
        self.snapshot = agent
        self.state = in_force(agent, spec)
        self.cursor: Cursor | None = None
        self.turns = Turns()
        self.sent: Sent | None = None
        self.asked = Asking()
        self.is_stale = False
        """Whether the agent's process has to be started anew before the next prompt."""
        self.works_on = False
        """Whether the agent is known to work on after its turn was broken off: it is ended at once."""
        self.beyond_ours = False
        """Whether what is read stands behind somebody else's prompt, where no terminal event divides rows."""
        self.tells_config = True
        self.tells_history = False
        """Whether what is read is the history of a session that was adopted, and so nobody's turn."""
        self.told = ""
        """A name for the rows of the history that were told."""
        self._spec = spec
        self._is_busy: bool | None = None
        """Whether somebody else is said to keep it busy; null if an earlier process may have said so."""
        self._noticed = False
        self._usage = agent.last_usage
        self._left: set[str] = set()
        """Tool calls of earlier turns that may be told as cancelled again, in every later cancelled turn."""
        self._calls: dict[str, bool] = {}
        """Tool calls of the turn that runs, and whether each is to be told again."""

    def begin_new(self) -> None:
        """The agent was just made: nobody keeps it busy, and nobody has to be told."""
        self._is_busy = False

    # Our turn.

    @property
    def attempt(self) -> str | None:
        """The attempt that runs."""
        return self.sent.attempt if self.sent is not None else None

    def expect(self, sent: Sent) -> None:
        """A prompt is about to be sent, or was by an earlier process."""
        self.sent = sent
        self.turns.expect(sent.attempt, idle=self.snapshot.status in ("idle", "error"))
        self._noticed = False
        self._close_calls()

    def _close_calls(self) -> None:
        """A turn is over: its calls are closed, and those that it left open will be told of again."""
        self._left |= {call for call, again in self._calls.items() if again}
        self._calls.clear()

    def end(self, end: TurnEnd) -> None:
        """Tell the end of our turn, once."""
        sent, self.sent = self.sent, None
        if sent is None:
            return
        if isinstance(end, TurnStopped | TurnBroke):
            for asked in self.asked.unanswered(sent.attempt):
                self._settled(asked.request.id, "cancelled", None)
        self.put(sent.attempt, (end,))
        sent.started.set()
        sent.alive.set()

    def conclude(self, end: TurnEnd) -> None:
        """Tell an end that was found out: its terminal event was told to nobody."""
        if isinstance(end, TurnBroke) and end.code == "agent_process_dead":
            self.is_stale = True
        self.turns.ended_unseen()
        self._close_calls()
        self.end(end)

    def goes_on(self) -> None:
        """Our turn was found running, and everything up to now was told."""
        assert self.sent is not None
        self.turns.resume(self.sent.attempt)
        self.sent.started.set()
        for request in self.snapshot.pending_permissions:
            self._ask(request, self.sent.attempt)
        pending = frozenset(request.id for request in self.snapshot.pending_permissions)
        self.asked.keep(pending)
        self.put(self.sent.attempt, (LinkRestored(pending=pending),))

    def lost_sight(self, cause: str) -> None:
        """The link is down."""
        if self.sent is not None:
            self.put(self.sent.attempt, (LinkLost(cause=cause),))

    # Events.

    def event(self, frame: frames.StreamFrame) -> None:
        """Tell an event that is no row."""
        match frame.event:
            case frames.TurnStarted():
                self.turns.started()
                self._opened()
            case frames.TurnCompleted(usage=usage):
                self._ended(TurnEnded(stop_reason=None, usage=token_usage(usage)))
            case frames.TurnFailed(error=error):
                self._failed(error)
            case frames.TurnCancelled():
                self._ended(TurnStopped())
            case frames.PermissionRequested(request=request):
                owner = self.turns.row()
                self._opened()
                self._ask(request, owner.attempt if owner is not None else self.attempt)
            case frames.PermissionResolved(request_id=request_id, resolution=resolution):
                self._settled(request_id, resolution_outcome(resolution), resolution.selected_action_id)
            case _:
                pass

    def _opened(self) -> None:
        """A turn may have been opened: ours shows life, somebody else's is told of."""
        if self.sent is not None and self.turns.open == Owner(self.sent.attempt):
            self.sent.started.set()
        self._watch_foreign()

    def _failed(self, error: str) -> None:
        reason = errors.classify(error)
        if self.turns.open is None and reason is Reason.START_UNCERTAIN:
            return  # no refusal: the turn may run all the same
        is_dead = reason is Reason.PROCESS_DEAD
        if is_dead:
            self.is_stale = True
        code: ErrorCode = "agent_process_dead" if is_dead else "provider_error"
        self._ended(TurnBroke(code=code, message=failure_words(error), retriable=is_dead))

    def _ended(self, end: TurnEnd) -> None:
        """A terminal event came: whose turn it ends is known by order alone."""
        owner, sent = self.turns.ended(), self.sent
        self._close_calls()
        if sent is not None and owner == Owner(sent.attempt):
            if isinstance(end, TurnStopped):
                end = self._stopped(sent)
            elif isinstance(end, TurnEnded):
                end = self._completed(sent, end)
            self.end(sent.ending or end)
        self._watch_foreign()

    def _stopped(self, sent: Sent) -> TurnStopped:
        if sent.stop_sent_at is not None:
            is_forced = time.monotonic() - sent.stop_sent_at > FORCED_AFTER_S
            self.is_stale |= is_forced
            self.works_on = is_forced
            return TurnStopped(is_forced=is_forced)
        return TurnStopped(cause="replaced" if self.turns.is_foreign_next else "other_client")

    def _completed(self, sent: Sent, end: TurnEnded) -> TurnEnd:
        rows = sent.trail.rows if sent.trail is not None else 0
        read = end.usage.input_tokens if end.usage is not None else None
        if self._spec.provider == SILENT_PROVIDER and not rows and not read:
            message = "the agent ended its turn without doing anything"
            return TurnBroke(code="empty_turn", message=message, retriable=True)
        if end.usage is not None:
            self.put(sent.attempt, (Usage(usage=end.usage),))
        return end

    # Rows.

    def row(self, item: items.Item, seq: int, epoch: str, at: str, *, read: bool = False) -> None:
        """Tell one row, and with it our new position; `read` from the timeline, not told live."""
        if self.cursor is not None and epoch == self.cursor.epoch and seq <= self.cursor.seq:
            return
        self.cursor = Cursor(epoch=epoch, seq=seq)
        if isinstance(item, items.UserMessage):
            self._user_row(item, seq, at, read=read)
            return
        owner = None if self.beyond_ours else self.turns.row()
        ours = self.sent is not None and owner == Owner(self.sent.attempt)
        if self.sent is not None and ours:
            if self.sent.trail is not None:
                self.sent.trail.add(item)
            self.sent.alive.set()
        self._opened()
        told = () if self._is_stale_call(item) else tuple(row_signals(item))
        self.put(owner.attempt if owner is not None else None, told)

    def retrace(self, at: str) -> None:
        """The prompt of an earlier process was found behind us: the rows from here on are its turn's."""
        assert self.sent is not None
        self.turns.resume(self.sent.attempt)
        self.sent.trail = Trail(prompted_at=at)

    def _user_row(self, item: items.UserMessage, seq: int, at: str, *, read: bool) -> None:
        owner = self.turns.prompted(item.message_id)
        self.beyond_ours = read and owner == FOREIGN and self.sent is not None
        if owner != FOREIGN:
            if self.sent is not None:
                self.sent.trail = Trail(prompted_at=at)
            self.put(None, ())
            return
        if self.sent is not None and self.sent.trail is not None:
            self.sent.trail.follow(at, seq)
        self.put(None, (*self._notice(), TextDelta(text=item.text, role="user")))

    def _is_stale_call(self, item: items.Item) -> bool:
        """Whether the row tells again of an earlier turn's call, as in every cancelled turn."""
        if not isinstance(item, items.ToolCall):
            return False
        cancelled = is_cancelled_tool(item)
        if cancelled and item.call_id in self._left and item.call_id not in self._calls:
            return True
        self._calls[item.call_id] = cancelled or item.status == "running"
        return False

    def history(self, item: items.Item, seq: int, epoch: str) -> None:
        """Tell a row of a session that was adopted: nobody's turn."""
        self.cursor = Cursor(epoch=epoch, seq=seq)
        self.told = paseo_history.after(self.told, item)
        if isinstance(item, items.UserMessage):
            self.put(None, (TextDelta(text=item.text, role="user"),))
        else:
            self.put(None, tuple(row_signals(item)))

    def move_to(self, cursor: Cursor) -> None:
        """Take another position: nothing before it will be told."""
        self.cursor = cursor
        self.put(None, ())

    # Snapshots.

    def changed(self, agent: snapshots.Agent) -> None:
        """The agent's snapshot came, maybe again."""
        self.snapshot = agent
        self.asked.watch({request.id for request in agent.pending_permissions})
        self.settle_unsaid()
        if agent.status == "running":
            self.turns.running()
        elif agent.status in AT_REST:
            self.turns.rest()
        self._opened()
        ours = self.sent is not None and self.turns.open == Owner(self.sent.attempt)
        attempt = self.attempt if ours else None
        usage = token_usage(agent.last_usage)
        if agent.last_usage != self._usage and usage is not None and ours:
            self.put(attempt, (Usage(usage=usage),))
        self._usage = agent.last_usage
        self.watch_state(agent, attempt)

    def watch_state(self, agent: snapshots.Agent, attempt: str | None = None) -> None:
        """See what is in force, and tell what changed by itself."""
        if agent.status in ("initializing", "closed"):
            return  # it shows no mode while it starts
        before, self.state = self.state, in_force(agent, self._spec)
        now = Config(model=self.state.model, mode=self.state.mode, thinking=self.state.thinking)
        if self.tells_config and now != Config(
            model=before.model, mode=before.mode, thinking=before.thinking
        ):
            self.put(attempt, (now,))

    def settle_turns(self) -> None:
        """After a look with no turn of ours open: see whether somebody else's runs."""
        self.turns.found(running=self.snapshot.status == "running")
        self._watch_foreign()

    def _watch_foreign(self) -> None:
        """Say when somebody else begins or ends to keep the agent busy."""
        is_busy = self.turns.open == FOREIGN
        if is_busy != self._is_busy:
            told = ForeignActivity(busy=is_busy)
            self._is_busy = is_busy
            self.put(None, (told, *self._notice()) if is_busy else (told,))

    def _notice(self) -> tuple[Signal, ...]:
        """What comes before anything foreign, once between two prompts of ours."""
        if self._noticed:
            return ()
        self._noticed = True
        words = "another client of the daemon prompted this agent"
        return (Notice(level="info", code="foreign_activity", message=words),)

    def _ask(self, request: frames.PermissionRequest, attempt: str | None) -> None:
        self.asked.add(request, attempt)
        if self.sent is not None and attempt == self.sent.attempt:
            self.sent.alive.set()
        self.put(attempt, (permission_asked(request),))

    def _settled(self, request_id: str, outcome: PermissionOutcome, option_id: str | None) -> None:
        """A request is resolved; nothing, if that was told before."""
        asked = self.asked.pop(request_id)
        if asked is not None:
            settled = PermissionSettled(request=request_id, outcome=outcome, option_id=option_id)
            self.put(asked.attempt, (settled,))

    def settle(self, asked: Asked) -> None:
        """Settle a request whose resolution nobody tells: by our own answer, else unknown."""
        self._settled(asked.request.id, *(asked.answered or ("unknown", None)))

    def settle_unsaid(self) -> None:
        """Settle those that are no longer pending, once their resolution should have been told."""
        for asked in self.asked.unsaid():
            self.settle(asked)

    # Reports.

    def put(self, attempt: str | None, signals: Iterable[Signal]) -> None:
        """Report signals together with our position after them."""
        told = tuple(signals)
        at = self.cursor
        if at is not None and self.tells_history:  # for the next process: what follows is history too
            at = paseo_history.partly(self.told, at)
        self.reports.put_nowait(Report(attempt=attempt, signals=told, cursor=at), sum(map(_size, told)))

    def begin_at(self, cursor: Cursor | None) -> None:
        """Go on where another process stood, in the middle of a history perhaps."""
        if cursor is not None and (partly := paseo_history.taken_up(cursor)) is not None:
            self.tells_history = True
            self.told, cursor = partly
        self.cursor = cursor


def _size(signal: Signal) -> int:
    """About what a signal takes in memory."""
    match signal:
        case TextDelta(text=text):
            return len(text)
        case ToolCall(detail=detail):
            values = msgspec.structs.astuple(detail)
            return sum(len(value) for value in values if isinstance(value, str))
        case _:
            return 0
