"""A started turn without any I/O: whatever is told of it, in whatever order, its story is whole."""

from dataclasses import replace
from typing import Any, get_args

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.domain.details import Unknown
from app.domain.events import (
    CancelCause,
    Error,
    Limit,
    MessageCompleted,
    MessageDelta,
    PermissionExpired,
    PermissionRequested,
    PermissionResolved,
    ReasoningCompleted,
    ReasoningDelta,
    Terminal,
    ToolCallCompleted,
    ToolCallStarted,
    TurnFailed,
    TurnReconciling,
    TurnRequiresAction,
    TurnResumed,
)
from app.domain.sessions import PermissionPolicy
from app.domain.signals import (
    AgentDied,
    LinkLost,
    LinkRestored,
    PermissionAsked,
    PermissionSettled,
    ReasoningPiece,
    RequestsExpired,
    Signal,
    TextDelta,
    ToolCall,
    TurnBroke,
    TurnEnded,
    TurnStopped,
    TurnUnknown,
)
from app.domain.turns import ENDS, TRANSITIONS, Step, TurnStatus, advance, ending
from app.engine.run import HOLD_S, Run, Rung, Stop, Told, Waiting
from tests.engine.test_run import a_turn

REQUESTS = st.sampled_from(["r1", "r2", "r3"])
DELIVERED = st.sampled_from(["yes", "no", "unknown"])
TOLD: st.SearchStrategy[Signal] = st.one_of(
    st.builds(TextDelta, text=st.sampled_from(["", "a"]), message=st.sampled_from([None, "m1", "m2"])),
    st.builds(ReasoningPiece, text=st.just("hm"), message=st.sampled_from([None, "m1"])),
    st.builds(
        ToolCall,
        call=st.sampled_from(["c1", "c2"]),
        name=st.just("shell"),
        title=st.none(),
        kind=st.just("execute"),
        status=st.sampled_from(["in_progress", "completed", "failed", "cancelled"]),
        detail=st.just(Unknown()),
    ),
    st.builds(
        PermissionSettled,
        request=REQUESTS,
        outcome=st.sampled_from(["allowed", "denied", "cancelled", "unknown"]),
    ),
    st.builds(LinkLost, cause=st.just("cut")),
    st.builds(LinkRestored, pending=st.frozensets(REQUESTS)),
    st.just(RequestsExpired()),
    st.just(AgentDied(message="gone")),
)
ENDED: st.SearchStrategy[Signal] = st.one_of(
    st.builds(TurnEnded, stop_reason=st.just("end_turn"), reconciled=st.booleans()),
    st.builds(TurnStopped, is_forced=st.booleans()),
    st.builds(TurnBroke, code=st.just("provider_error"), message=st.just("x"), delivered=DELIVERED),
    st.builds(TurnUnknown, cause=st.just("x"), delivered=DELIVERED),
)
RUNGS: tuple[Rung, ...] = ("interrupt", "kill", "archive")
LEADS_TO = {(before, after) for before, steps in TRANSITIONS.items() for after in steps.values()}
ASKS = (TurnStatus.RUNNING, TurnStatus.REQUIRES_ACTION, TurnStatus.RECONCILING)


class Hosting(RuleBasedStateMachine):
    """Does to a run what its host does: tells it signals, sends answers, stops it, minds its clocks."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = 100.0
        self.run = Run(a_turn(), PermissionPolicy(), now=lambda: self.clock)
        self.events: list[Any] = []
        self.statuses = [TurnStatus.RUNNING]
        self.held: Terminal | None = None

    @initialize(
        mode=st.sampled_from(["ask", "ask", "allow", "deny"]), on_timeout=st.sampled_from(["allow", "deny"])
    )
    def begin(self, mode: Any, on_timeout: Any) -> None:
        """A policy for the whole turn."""
        self.run.policy = PermissionPolicy(mode=mode, timeout_s=10, on_timeout=on_timeout)

    def heard(self, told: Told) -> None:
        """Keep what came of it, and follow the states that the events tell of; the policy answers at once."""
        for event in told.events:
            self.events.append(event)
            status = self.statuses[-1]
            if isinstance(event, Terminal):
                status = advance(status, ending(event))
            elif isinstance(event, TurnRequiresAction):
                status = advance(status, Step.ASK)
            elif isinstance(event, TurnReconciling):
                status = advance(status, Step.LOSE)
            elif isinstance(event, TurnResumed):
                status = advance(status, Step.REGAIN if event.cause == "reconciled" else Step.SETTLE)
            self.statuses.append(status)
        for asked in told.asked:
            if asked.answer_now is not None:
                self.send(asked.waiting, asked.answer_now == "allow", "policy")

    def send(self, waiting: Waiting, allow: bool, by: Any) -> None:
        """An answer is on its way to the agent."""
        waiting.sent = ("allowed" if allow else "denied", None, by, None)
        waiting.expires_at = None

    @property
    def unsent(self) -> list[Waiting]:
        """What nobody has answered."""
        return [waiting for waiting in self.run.waiting.values() if waiting.sent is None]

    @precondition(lambda self: self.run.status is not TurnStatus.RETRYING)
    @rule(signal=TOLD)
    def tell(self, signal: Signal) -> None:
        """The agent does something."""
        self.heard(self.run.tell(signal))

    @precondition(lambda self: self.run.status is not TurnStatus.RETRYING)
    @rule(signal=ENDED)
    def tell_the_end(self, signal: Signal) -> None:
        """The agent's turn ends, somehow."""
        self.heard(self.run.tell(signal))

    @precondition(lambda self: self.run.status in ASKS)
    @rule(request=REQUESTS, kind=st.sampled_from(["tool", "question", "plan"]), is_too_large=st.booleans())
    def ask(self, request: str, kind: Any, is_too_large: bool) -> None:
        """The agent asks for a permission, maybe for one that nobody could read."""
        command = "x" * 100_000 if is_too_large else "rm"
        asked = PermissionAsked(request=request, kind=kind, title="rm", input={"command": command})
        self.heard(self.run.tell(asked))

    @precondition(lambda self: self.unsent)
    @rule(data=st.data(), allow=st.booleans())
    def answer(self, data: st.DataObject, allow: bool) -> None:
        """A person answers."""
        self.send(data.draw(st.sampled_from(self.unsent)), allow, "caller")

    @precondition(lambda self: any(waiting.sent for waiting in self.run.waiting.values()))
    @rule()
    def take_back(self) -> None:
        """An answer did not reach the agent."""
        for waiting in self.run.waiting.values():
            waiting.sent = None

    @rule(cause=st.sampled_from(get_args(CancelCause)), limit=st.sampled_from([None, *get_args(Limit)]))
    def ask_to_stop(self, cause: Any, limit: Any) -> None:
        """A caller or a clock wants it to stop."""
        if self.run.stop is None and not self.run.is_over:
            self.run.stop = Stop(cause=cause, limit=limit)

    @precondition(lambda self: self.run.stop is not None and self.run.status not in ENDS)
    @rule()
    def climb(self) -> None:
        """The next step of the cancel ladder; after the last the host ends the turn."""
        stop = self.run.stop
        assert stop is not None
        if self.run.status is TurnStatus.RETRYING or stop.rung == RUNGS[-1]:
            told = Told()
            self.run.end(self.run.stopped("unconfirmed"), told)
            self.heard(told)
        else:
            stop.rung = RUNGS[0 if stop.rung is None else RUNGS.index(stop.rung) + 1]

    @precondition(lambda self: self.run.status not in ENDS)
    @rule()
    def overflow(self) -> None:
        """More happened than could be kept: the host ends the turn."""
        error = Error(code="buffer_overflow", message="x", retriable=False)
        told = Told()
        self.run.end(TurnFailed(error=error, delivered="yes"), told)
        self.heard(told)

    @precondition(lambda self: self.run.status is TurnStatus.RUNNING and not self.run.is_over)
    @rule()
    def fail_to_send(self) -> None:
        """The attempt was never delivered: it comes again."""
        self.run.status = advance(self.run.status, Step.RETRY)
        self.statuses.append(self.run.status)

    @precondition(lambda self: self.run.status is TurnStatus.RETRYING)
    @rule()
    def start_again(self) -> None:
        """The next attempt has started."""
        self.run.turn = replace(self.run.turn, attempt=self.run.turn.attempt + 1)
        self.run.status = advance(self.run.status, Step.START)
        self.statuses.append(self.run.status)

    @precondition(lambda self: self.run.status not in ENDS)
    @rule()
    def give_up(self) -> None:
        """The lease ran out: nobody can tell how it goes on."""
        told = Told()
        self.run.expire_all(told)
        self.run.finish(self.run.lost("lease_lost"), told)
        self.heard(told)

    @rule(seconds=st.sampled_from([0.1, HOLD_S, 11.0]))
    def let_time_pass(self, seconds: float) -> None:
        """What is due is done: the end is held back no longer, the time-out's answer is sent."""
        self.clock += seconds
        if self.run.held is not None and self.run.held[1] <= self.clock:
            told = Told()
            self.run.finish(self.run.held[0], told)
            self.heard(told)
        for waiting in self.unsent:
            if waiting.expires_at is not None and waiting.expires_at <= self.clock:
                self.send(waiting, self.run.allows_on_timeout(waiting), "timeout")

    @invariant()
    def tells_the_states_of_the_contract(self) -> None:
        """The events tell the run's own state, step by step as the table allows."""
        assert self.statuses[-1] is self.run.status
        steps = zip(self.statuses, self.statuses[1:], strict=False)
        assert all(before is after or (before, after) in LEADS_TO for before, after in steps)

    @invariant()
    def ends_once_and_last(self) -> None:
        """One terminal event for an ended turn, none for an open one, nothing behind it."""
        ends = [number for number, event in enumerate(self.events) if isinstance(event, Terminal)]
        assert ends == ([len(self.events) - 1] if self.run.status in ENDS else [])

    @invariant()
    def keeps_to_the_end_that_it_knows(self) -> None:
        """What holds an end back does not change it."""
        if self.run.held is not None:
            self.held = self.held or self.run.held[0]
            assert self.run.held[0] is self.held

    @invariant()
    def closes_once_what_was_opened(self) -> None:
        """Messages, tool calls, permissions: nothing is closed twice, or before it was opened."""
        opened: set[tuple[str, str]] = set()
        closed: list[tuple[str, str]] = []
        for event in self.events:
            match event:
                case MessageDelta(message_id=id) | ReasoningDelta(message_id=id):
                    assert ("message", id) not in closed
                    opened.add(("message", id))
                case ToolCallStarted(tool_call_id=id):
                    opened.add(("call", id))
                case PermissionRequested(permission_id=id):
                    opened.add(("permission", id))
                case MessageCompleted(message_id=id) | ReasoningCompleted(message_id=id):
                    closed.append(("message", id))
                case ToolCallCompleted(tool_call_id=id):
                    closed.append(("call", id))
                case PermissionResolved(permission_id=id) | PermissionExpired(permission_id=id):
                    closed.append(("permission", id))
            assert set(closed) <= opened
        assert len(closed) == len(set(closed))
        if self.run.status in ENDS:
            assert set(closed) == opened

    @invariant()
    def permissions_end_as_the_contract_says(self) -> None:
        """`expired` is by the time-out or by the backend; `cancelled` is by the end of the turn."""
        for event in self.events:
            if isinstance(event, PermissionExpired):
                assert event.by in ("timeout", "backend")
                assert event.by == "timeout" or event.outcome == "cancelled"
            elif isinstance(event, PermissionResolved):
                assert event.by in ("caller", "policy", "backend", "turn_end")
                assert (event.by == "turn_end") is (event.outcome == "cancelled")

    @invariant()
    def waits_for_a_person_only_while_one_is_asked(self) -> None:
        """`requires_action` names everything that waits for a person, and lasts as long as something does."""
        for_person = {waiting.id for waiting in self.run.waiting.values() if waiting.for_person}
        if self.run.status is TurnStatus.REQUIRES_ACTION:
            assert for_person
            named = [event for event in self.events if isinstance(event, TurnRequiresAction)][-1]
            assert for_person <= set(named.permission_ids)
        elif self.run.status is TurnStatus.RUNNING and not self.run.is_over:
            assert not for_person


TestHosting = Hosting.TestCase
TestHosting.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
