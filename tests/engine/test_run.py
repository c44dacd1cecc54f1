"""A started turn without any I/O: signals in, events out."""

from datetime import UTC, datetime

import pytest

from app.domain.events import (
    PermissionExpired,
    PermissionRequested,
    PermissionResolved,
    TurnCancelled,
    TurnCompleted,
    TurnFailed,
    TurnIndeterminate,
    TurnRequiresAction,
    TurnResumed,
    TurnTimedOut,
)
from app.domain.ids import Owner, Seq, SessionId, SessionKey, TurnId
from app.domain.sessions import PermissionPolicy
from app.domain.signals import (
    AgentDied,
    LinkLost,
    PermissionAsked,
    PermissionSettled,
    Signal,
    TextDelta,
    TurnBroke,
    TurnEnded,
    TurnStopped,
)
from app.domain.turns import ENDS, PromptRequest, Turn, TurnStatus
from app.engine.run import Run, Stop, Told


def a_turn() -> Turn:
    """A turn whose first attempt has started."""
    return Turn(
        id=TurnId("trn_1"),
        session=SessionKey(1),
        session_id=SessionId("s"),
        owner=Owner("default"),
        status=TurnStatus.RUNNING,
        attempt=1,
        request=PromptRequest(prompt="go"),
        output_text="",
        stop_reason=None,
        usage=None,
        error=None,
        cause=None,
        limit=None,
        delivered=None,
        cancel_outcome=None,
        cancel_cause=None,
        cancel_requested_at=None,
        first_seq=Seq(1),
        last_seq=None,
        created_at=datetime.now(UTC),
        started_at=datetime.now(UTC),
        ended_at=None,
        last_backend_event_at=None,
    )


def tell(run: Run, *signals: Signal) -> list[object]:
    """Everything that the signals made."""
    return [event for signal in signals for event in run.tell(signal).events]


def test_a_message_is_completed_before_the_turn_is() -> None:
    """Whatever is open of the turn is closed before its terminal event."""
    events = tell(Run(a_turn(), PermissionPolicy()), TextDelta(text="hi"), TurnEnded(stop_reason="end_turn"))
    assert [type(event).__name__ for event in events] == ["MessageDelta", "MessageCompleted", "TurnCompleted"]


def test_the_idle_clock_runs_on_while_the_link_is_down() -> None:
    """It stands still while a person is asked or a tool runs, and for nothing else."""
    run = Run(a_turn(), PermissionPolicy())
    tell(run, LinkLost(cause="link_lost"))
    assert run.status is TurnStatus.RECONCILING
    assert run.idle_clock_runs


def test_nothing_follows_the_end() -> None:
    """A late signal of an ended turn makes no event."""
    run = Run(a_turn(), PermissionPolicy())
    tell(run, PermissionAsked(request="r", kind="tool", title="x"))
    run.waiting["r"].sent = ("allowed", None, "caller", "key")
    assert tell(run, TurnEnded(stop_reason=None), TextDelta(text="late"), TurnEnded(stop_reason=None)) == []


def test_a_permission_holds_the_turn_until_it_is_settled() -> None:
    """requires_action, the answer's resolution, resumed."""
    run = Run(a_turn(), PermissionPolicy())
    asked = tell(run, PermissionAsked(request="r", kind="tool", title="rm"))
    assert [type(event) for event in asked] == [PermissionRequested, TurnRequiresAction]
    assert run.status is TurnStatus.REQUIRES_ACTION
    settled = tell(run, PermissionSettled(request="r", outcome="allowed"))
    assert [type(event) for event in settled] == [PermissionResolved, TurnResumed]
    assert str(run.status) == "running"


def test_an_answer_on_its_way_holds_the_end_back_until_its_resolution() -> None:
    """The backend's resolution comes before the terminal event, and with it the end."""
    run = Run(a_turn(), PermissionPolicy())
    tell(run, PermissionAsked(request="r", kind="tool", title="rm"))
    run.waiting["r"].sent = ("allowed", "o", "caller", "key")
    assert tell(run, TurnEnded(stop_reason="end_turn")) == []
    events = tell(run, PermissionSettled(request="r", outcome="allowed", option_id="o"))
    assert [type(event) for event in events] == [PermissionResolved, TurnCompleted]


def test_an_answer_without_a_resolution_closes_as_it_was_sent() -> None:
    """After the wait it is closed with the answer that was sent, by whom it was sent."""
    run = Run(a_turn(), PermissionPolicy())
    tell(run, PermissionAsked(request="r", kind="tool", title="rm"))
    run.waiting["r"].sent = ("allowed", "o", "caller", "key")
    tell(run, TurnEnded(stop_reason="end_turn"))
    told = Told()
    assert run.held is not None
    run.finish(run.held[0], told)
    resolved = told.events[0]
    assert isinstance(resolved, PermissionResolved)
    assert (resolved.outcome, resolved.by, resolved.actor) == ("allowed", "caller", "key")


def test_an_unanswered_permission_is_cancelled_with_its_turn() -> None:
    """By `turn_end`, in the same batch, before the terminal event."""
    run = Run(a_turn(), PermissionPolicy())
    tell(run, PermissionAsked(request="r", kind="tool", title="rm"))
    events = tell(run, TurnEnded(stop_reason="end_turn"))
    assert isinstance(events[0], PermissionResolved)
    assert (events[0].outcome, events[0].by) == ("cancelled", "turn_end")


def test_a_dead_agent_expires_what_it_asked() -> None:
    """Nobody can answer a process that is gone; the turn fails after that."""
    run = Run(a_turn(), PermissionPolicy())
    tell(run, PermissionAsked(request="r", kind="tool", title="rm"))
    events = tell(run, AgentDied(message="x"), TurnBroke(code="agent_process_dead", message="x"))
    assert [type(event) for event in events] == [PermissionExpired, TurnResumed, TurnFailed]


@pytest.mark.parametrize(
    ("stop", "end"),
    [
        (Stop(cause="caller", rung="interrupt"), TurnCancelled(cause="caller", cancel_outcome="stopped")),
        (Stop(cause="interrupt", rung="kill"), TurnCancelled(cause="interrupt", cancel_outcome="forced")),
        (
            Stop(cause="caller", limit="idle", rung="interrupt"),
            TurnTimedOut(limit="idle", delivered="yes", cancel_outcome="stopped"),
        ),
    ],
)
@pytest.mark.parametrize("how", [TurnStopped(), TurnBroke(code="agent_process_dead", message="killed")])
def test_what_we_stopped_ends_as_we_asked(stop: Stop, end: object, how: Signal) -> None:
    """Whatever the agent calls it."""
    run = Run(a_turn(), PermissionPolicy())
    run.stop = stop
    assert tell(run, how) == [end]


def test_a_completion_that_was_faster_than_our_interrupt_stands() -> None:
    """Cancel asked for, but not yet sent: the agent's own word is the last."""
    run = Run(a_turn(), PermissionPolicy())
    run.stop = Stop(cause="caller")
    [event] = tell(run, TurnEnded(stop_reason="end_turn"))
    assert isinstance(event, TurnCompleted)


def test_a_foreign_stop_is_not_called_ours() -> None:
    """Somebody else cancelled."""
    [event] = tell(Run(a_turn(), PermissionPolicy()), TurnStopped())
    assert event == TurnCancelled(cause="other_client", cancel_outcome=None)


def test_what_nobody_can_tell_is_indeterminate() -> None:
    """The end that the agent's process met while its host was away."""
    run = Run(a_turn(), PermissionPolicy())
    tell(run, TextDelta(text="x"))
    run.lost_cause = "lease_lost"
    event = tell(run, TurnStopped())[-1]
    assert isinstance(event, TurnIndeterminate)
    assert (event.cause, event.delivered) == ("lease_lost", "yes")


@pytest.mark.parametrize("mode", ["allow", "deny"])
def test_an_immediate_answer_of_the_policy_asks_nobody(mode: str) -> None:
    """Neither requires_action nor resumed is written."""
    run = Run(a_turn(), PermissionPolicy(mode=mode))  # type: ignore[arg-type]  # both are modes
    told = run.tell(PermissionAsked(request="r", kind="tool", title="rm"))
    assert [type(event) for event in told.events] == [PermissionRequested]
    assert told.asked[0].answer_now == mode
    assert str(run.status) == "running"


def test_a_policy_never_answers_a_question_with_yes() -> None:
    """`allow` is for acts, not for questions."""
    run = Run(a_turn(), PermissionPolicy(mode="allow", on_timeout="allow"))
    told = run.tell(PermissionAsked(request="r", kind="question", title="which?"))
    assert told.asked[0].answer_now is None
    assert not run.allows_on_timeout(run.waiting["r"])


def test_t16_a_request_too_large_to_show_whole_is_denied() -> None:
    """Nobody approves what they could not read."""
    run = Run(a_turn(), PermissionPolicy(mode="allow"))
    told = run.tell(PermissionAsked(request="r", kind="tool", title="x", input={"command": "a" * 100_000}))
    assert told.asked[0].answer_now == "deny"


def test_an_ended_run_is_in_an_end_state() -> None:
    """So that the batch that ends it says so."""
    run = Run(a_turn(), PermissionPolicy())
    tell(run, TurnEnded(stop_reason="end_turn"))
    assert run.status in ENDS
