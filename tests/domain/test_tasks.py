"""What follows on the end of a step's turn: every state and every end, and any sequence of them."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.domain.events import (
    Error,
    Terminal,
    TurnCancelled,
    TurnCompleted,
    TurnFailed,
    TurnIndeterminate,
    TurnTimedOut,
)
from app.domain.ids import Owner, SessionId, SessionKey, TaskId, TurnId
from app.domain.tasks import (
    ENDED,
    OnFailure,
    Task,
    TaskIsOver,
    TaskStatus,
    TaskStep,
    Then,
    Verdict,
    decide,
    ending_event,
)


def failed(*, retriable: bool) -> TurnFailed:
    error = Error(code="provider_error", message="broken", retriable=retriable)
    return TurnFailed(error=error, delivered="yes")


ENDS: dict[str, Terminal] = {
    "completed": TurnCompleted(stop_reason="end_turn", usage=None, reconciled=False),
    "failed+": failed(retriable=True),
    "failed-": failed(retriable=False),
    "timed_out+": TurnTimedOut(limit="deadline", delivered="yes", cancel_outcome="stopped"),
    "timed_out-": TurnTimedOut(limit="idle", delivered="yes", cancel_outcome="unconfirmed"),
    "timed_out0": TurnTimedOut(limit="queue", delivered="no", cancel_outcome=None),
    "cancelled": TurnCancelled(cause="interrupt", cancel_outcome="stopped"),
    "indeterminate": TurnIndeterminate(cause="host_lost", delivered="yes", last_backend_event_at=None),
}
"""Every end of a turn: `+` and `0` may be repeated, `-` may not."""

TABLE = """
end                              attempts  on_failure  step   cancel │ then     step       task
completed                        *         *           last   *      │ end      completed  completed
completed                        *         *           other  no     │ advance  completed  =
completed                        *         *           other  yes    │ end      completed  cancelled
failed+,timed_out+,timed_out0    left      *           *      no     │ repeat   =          =
failed+                          none      stop        *      no     │ end      failed     failed
failed+                          none      continue    other  no     │ advance  failed     =
failed+                          none      continue    last   no     │ end      failed     completed
failed+                          *         *           *      yes    │ end      failed     cancelled
failed-,indeterminate            *         stop        *      no     │ end      failed     failed
failed-,indeterminate            *         continue    other  no     │ advance  failed     =
failed-,indeterminate            *         continue    last   no     │ end      failed     completed
failed-,indeterminate            *         *           *      yes    │ end      failed     cancelled
timed_out+,timed_out0            none      stop        *      no     │ end      timed_out  timed_out
timed_out+,timed_out0            none      continue    other  no     │ advance  timed_out  =
timed_out+,timed_out0            none      continue    last   no     │ end      timed_out  completed
timed_out+,timed_out0            *         *           *      yes    │ end      timed_out  cancelled
timed_out-                       *         stop        *      no     │ end      timed_out  timed_out
timed_out-                       *         continue    other  no     │ advance  timed_out  =
timed_out-                       *         continue    last   no     │ end      timed_out  completed
timed_out-                       *         *           *      yes    │ end      timed_out  cancelled
cancelled                        *         *           *      *      │ end      cancelled  cancelled
"""
"""What docs/tasks.md says, row by row; `=` is what it was before."""

CASES = list(product(ENDS, ("left", "none"), ("stop", "continue"), ("other", "last"), ("no", "yes")))


def rows() -> Iterator[tuple[list[str], list[str]]]:
    for line in TABLE.strip().splitlines()[1:]:
        given, _, expected = line.partition("│")
        yield given.split(), expected.split()


def expected(case: tuple[str, ...], status: TaskStatus) -> tuple[str, str, str]:
    """What the one row says that fits the case."""
    fitting = [
        then
        for given, then in rows()
        if all(cell == "*" or value in cell.split(",") for cell, value in zip(given, case, strict=True))
    ]
    assert len(fitting) == 1, case
    then, step, task = fitting[0]
    return then, step if step != "=" else str(status), task if task != "=" else str(status)


def step(
    *,
    status: TaskStatus = TaskStatus.PENDING,
    attempts: int = 0,
    max_attempts: int = 2,
    on_failure: OnFailure = "stop",
) -> TaskStep:
    return TaskStep(
        name="s",
        deadline_s=60,
        max_attempts=max_attempts,
        on_failure=on_failure,
        status=status,
        attempts=attempts,
        turn_ids=[TurnId(f"trn_{n}") for n in range(attempts)],
        error=None,
    )


def task_of(steps: list[TaskStep], current: int, status: TaskStatus, *, cancel: bool = False) -> Task:
    return Task(
        id=TaskId("tsk_1"),
        session=SessionKey(1),
        session_id=SessionId("s-1"),
        owner=Owner("o"),
        status=status,
        steps=steps,
        current=current,
        cancel_requested=cancel,
        version=0,
        created_at=datetime(2026, 11, 1, tzinfo=UTC),
        ended_at=None,
    )


def task_for(case: tuple[str, ...], status: TaskStatus) -> Task:
    _, attempts, on_failure, position, cancel = case
    now = step(
        status=status,
        attempts=1 if attempts == "left" else 2,
        on_failure="continue" if on_failure == "continue" else "stop",
    )
    steps = [step(), now] if position == "last" else [now, step()]
    return task_of(steps, steps.index(now), status, cancel=cancel == "yes")


@pytest.mark.parametrize("status", sorted(set(TaskStatus) - ENDED))
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_every_end_of_a_turn_leads_where_the_table_says(case: tuple[str, ...], status: TaskStatus) -> None:
    """Each of the 128 cases is in exactly one row of the table."""
    verdict = decide(task_for(case, status), ENDS[case[0]])
    assert (verdict.then, verdict.step, verdict.task) == expected(case, status)
    assert (verdict.then is Then.END) == (verdict.task in ENDED)


@pytest.mark.parametrize("status", sorted(ENDED))
@pytest.mark.parametrize("end", ENDS)
def test_an_ended_task_has_no_turn_that_could_end(end: str, status: TaskStatus) -> None:
    """The first end is the last."""
    with pytest.raises(TaskIsOver):
        decide(task_of([step(attempts=1)], 0, status), ENDS[end])


@pytest.mark.parametrize(
    ("end", "code", "retriable"),
    [
        ("completed", None, None),
        ("failed+", "provider_error", True),
        ("failed-", "provider_error", False),
        ("timed_out+", "timed_out", True),
        ("timed_out-", "timed_out", False),
        ("timed_out0", "timed_out", True),
        ("cancelled", None, None),
        ("indeterminate", "indeterminate", False),
    ],
)
def test_a_step_says_why_it_did_not_complete(end: str, code: str | None, retriable: bool | None) -> None:
    """Also those ends of a turn that have no error of their own."""
    error = decide(task_of([step(attempts=2)], 0, TaskStatus.RUNNING), ENDS[end]).error
    found = (None, None) if error is None else (error.code, error.retriable)
    assert found == (code, retriable)


@pytest.mark.parametrize("status", sorted(ENDED))
def test_every_end_of_a_task_has_its_event(status: TaskStatus) -> None:
    """Named like the state."""
    event = ending_event(task_of([step()], 0, status), status, TurnId("trn_0"))
    assert event.type == f"task.{status}"


@pytest.mark.parametrize(
    ("status", "steps", "current", "resumes"),
    [
        (TaskStatus.COMPLETED, ["completed", "completed"], 1, None),
        (TaskStatus.COMPLETED, ["failed", "completed"], 1, None),
        (TaskStatus.FAILED, ["completed", "failed", "pending"], 1, 1),
        (TaskStatus.TIMED_OUT, ["timed_out", "pending"], 0, 0),
        (TaskStatus.CANCELLED, ["completed", "cancelled"], 1, 1),
        (TaskStatus.CANCELLED, ["completed", "pending"], 0, 1),
        (TaskStatus.FAILED, ["failed", "failed", "pending"], 1, 1),
    ],
)
def test_a_retry_goes_on_from_the_step_that_did_not_complete(
    status: TaskStatus, steps: list[str], current: int, resumes: int | None
) -> None:
    """What was allowed to fail is not done again, and what completed neither."""
    task = task_of([step(status=TaskStatus(one), attempts=1) for one in steps], current, status)
    assert task.resumes_at == resumes


class Walk(RuleBasedStateMachine):
    """Any ends in any order, a cancel and retries in between: no step is lost, doubled or out of order."""

    task: Task

    @initialize(
        steps=st.lists(
            st.tuples(st.integers(1, 3), st.sampled_from(["stop", "continue"])), min_size=1, max_size=4
        )
    )
    def admit(self, steps: list[tuple[int, OnFailure]]) -> None:
        """A task, and the turns that its steps had so far: the position of each."""
        made = [step(max_attempts=most, on_failure=on_failure) for most, on_failure in steps]
        self.task = task_of(made, 0, TaskStatus.PENDING)
        self.turns: list[int] = []
        self.rounds = 1
        self.ends: list[tuple[int, str]] = []
        self._turn(0)

    def _turn(self, position: int) -> None:
        self.turns.append(position)
        now = self.task.steps[position]
        turn_ids = [*now.turn_ids, TurnId(f"trn_{len(self.turns)}")]
        self._change(position, attempts=now.attempts + 1, turn_ids=turn_ids)
        self.task = replace(self.task, current=position)

    def _change(self, position: int, **values: object) -> None:
        steps = list(self.task.steps)
        steps[position] = replace(steps[position], **values)  # type: ignore[arg-type]  # whatever it has
        self.task = replace(self.task, steps=steps)

    @precondition(lambda self: not self.task.is_ended)
    @rule()
    def start(self) -> None:
        """The open turn starts."""
        self._change(self.task.current, status=TaskStatus.RUNNING)
        self.task = replace(self.task, status=TaskStatus.RUNNING)

    @precondition(lambda self: not self.task.is_ended)
    @rule(end=st.sampled_from(sorted(ENDS)))
    def end(self, end: str) -> None:
        """The open turn ends, and what is decided happens."""
        position = self.task.current
        self.ends.append((position, end))
        verdict = decide(self.task, ENDS[end])
        self._apply(verdict, position)

    def _apply(self, verdict: Verdict, position: int) -> None:
        self._change(position, status=verdict.step, error=verdict.error)
        self.task = replace(self.task, status=verdict.task)
        if verdict.then is not Then.END:
            self._turn(position + (verdict.then is Then.ADVANCE))

    @rule()
    def cancel(self) -> None:
        """Somebody wants it to end; too late if it has."""
        if not self.task.is_ended:
            self.task = replace(self.task, cancel_requested=True)

    @precondition(lambda self: self.task.is_ended and self.task.resumes_at is not None)
    @rule()
    def retry(self) -> None:
        """It goes on."""
        first = self.task.resumes_at
        assert first is not None and first < len(self.task.steps)
        for position in range(first, len(self.task.steps)):
            self._change(position, status=TaskStatus.PENDING, attempts=0, error=None)
        self.task = replace(self.task, status=TaskStatus.PENDING, cancel_requested=False)
        self.rounds += 1
        self._turn(first)

    @invariant()
    def steps_come_in_order(self) -> None:
        """The next turn is of the same step or of the next one, and none is left out."""
        assert all(
            0 <= after - before <= 1 for before, after in zip(self.turns, self.turns[1:], strict=False)
        )
        assert self.turns[0] == 0

    @invariant()
    def an_open_task_has_one_open_turn(self) -> None:
        """And an ended one has none."""
        assert len(self.turns) - len(self.ends) == (0 if self.task.is_ended else 1)

    @invariant()
    def nothing_is_repeated_that_may_not_be(self) -> None:
        """But by a retry: what completed, or of which nobody knows, has no second turn."""
        ended_so = [position for position, end in self.ends if end in ("completed", "indeterminate")]
        assert all(ended_so.count(position) <= self.rounds for position in ended_so)
        assert all(one.attempts <= one.max_attempts for one in self.task.steps)
        completed = [position for position, end in self.ends if end == "completed"]
        assert len(set(completed)) == len(completed)

    @invariant()
    def what_is_behind_is_settled_and_what_is_ahead_untouched(self) -> None:
        """Only a step that completed or may fail has a later one."""
        for position, one in enumerate(self.task.steps):
            if position < self.task.current:
                assert one.status is TaskStatus.COMPLETED or one.on_failure == "continue"
                assert one.status not in (TaskStatus.CANCELLED, TaskStatus.PENDING, TaskStatus.RUNNING)
            elif position > self.task.current:
                assert (one.status, one.turn_ids) == (TaskStatus.PENDING, [])


TestWalk = Walk.TestCase
