"""The states of a turn: exactly those steps that the contract's state line names."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from app.domain.events import TERMINAL_TYPES
from app.domain.turns import ENDS, OPEN, IllegalStep, Step, TurnStatus, advance

CONTRACT = """
queued → running | failed | cancelled | timed_out
running → requires_action
requires_action → running
running | requires_action → reconciling
reconciling → running | completed | failed | cancelled | timed_out | indeterminate
running → retrying
retrying → running | completed | failed | cancelled | timed_out | indeterminate
running | requires_action → completed | failed | cancelled | timed_out | indeterminate
"""
"""What may follow on what; `requires_action` may also be told again, when the set of who waits has grown."""
AIMS = {
    Step.START: TurnStatus.RUNNING,
    Step.ASK: TurnStatus.REQUIRES_ACTION,
    Step.SETTLE: TurnStatus.RUNNING,
    Step.LOSE: TurnStatus.RECONCILING,
    Step.REGAIN: TurnStatus.RUNNING,
    Step.RETRY: TurnStatus.RETRYING,
    Step.COMPLETE: TurnStatus.COMPLETED,
    Step.FAIL: TurnStatus.FAILED,
    Step.CANCEL: TurnStatus.CANCELLED,
    Step.TIME_OUT: TurnStatus.TIMED_OUT,
    Step.GIVE_UP: TurnStatus.INDETERMINATE,
}
"""Where each step leads."""
BACK_TO_RUNNING = {
    Step.START: {TurnStatus.QUEUED, TurnStatus.RETRYING},
    Step.SETTLE: {TurnStatus.REQUIRES_ACTION},
    Step.REGAIN: {TurnStatus.RECONCILING},
}
"""Three steps lead to `running`; each has its own beginning."""


def allowed() -> set[tuple[TurnStatus, TurnStatus]]:
    pairs = {(TurnStatus.REQUIRES_ACTION, TurnStatus.REQUIRES_ACTION)}
    for line in CONTRACT.strip().splitlines():
        before, after = (part.split(" | ") for part in line.split(" → "))
        pairs |= {(TurnStatus(b), TurnStatus(a)) for b in before for a in after}
    return pairs


@pytest.mark.parametrize("status", TurnStatus)
@pytest.mark.parametrize("step", Step)
def test_every_state_allows_exactly_the_steps_of_the_contract(status: TurnStatus, step: Step) -> None:
    """All hundred and ten pairs."""
    fits = (status, AIMS[step]) in allowed() and status in BACK_TO_RUNNING.get(step, {status})
    if fits:
        assert advance(status, step) is AIMS[step]
    else:
        with pytest.raises(IllegalStep):
            advance(status, step)


def test_open_and_ended_are_all_states() -> None:
    """Five of each, and a terminal event for each end."""
    assert set(TurnStatus) == ENDS | OPEN
    assert not ENDS & OPEN
    assert {f"turn.{end}" for end in ENDS} == set(TERMINAL_TYPES)


@pytest.mark.parametrize("status", sorted(OPEN))
def test_every_open_turn_can_end(status: TurnStatus) -> None:
    """From anywhere a cancel, a failure and a time-out are possible."""
    for step in (Step.FAIL, Step.CANCEL, Step.TIME_OUT):
        assert advance(status, step) in ENDS


class Walk(RuleBasedStateMachine):
    """Any steps in any order: the states stay within the contract, and the first end is the last."""

    def __init__(self) -> None:
        super().__init__()
        self.states = [TurnStatus.QUEUED]

    @rule(step=st.sampled_from(Step))
    def take(self, step: Step) -> None:
        """A step is taken or refused; a refused one changes nothing."""
        try:
            self.states.append(advance(self.states[-1], step))
        except IllegalStep:
            assert (self.states[-1], AIMS[step]) not in allowed() or AIMS[step] is TurnStatus.RUNNING

    @invariant()
    def keeps_to_the_contract(self) -> None:
        """One end, as the last state; never back to the queue; no reconciling or end before a start."""
        assert all(pair in allowed() for pair in zip(self.states, self.states[1:], strict=False))
        assert sum(state in ENDS for state in self.states) <= 1
        assert all(state in OPEN for state in self.states[:-1])
        assert TurnStatus.QUEUED not in self.states[1:]
        if self.states[-1] in (TurnStatus.COMPLETED, TurnStatus.INDETERMINATE):
            assert TurnStatus.RUNNING in self.states


TestWalk = Walk.TestCase
