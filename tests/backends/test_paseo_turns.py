"""Which frames belong to which turn, and what became of one that nobody saw end: the tables, row by row."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.backends.paseo_judging import FAILED, GoesOn, NotStarted, Verdict, judge, judge_stored
from app.backends.paseo_turns import FOREIGN, Owner, Trail, Turns
from app.domain.signals import TurnBroke, TurnEnd, TurnEnded, TurnStopped, TurnUnknown
from app.paseo.items import AssistantMessage, ToolCall
from app.paseo.snapshots import Agent

OURS = Owner("a-1")


def expecting() -> Turns:
    turns = Turns()
    turns.expect("a-1", idle=True)
    return turns


# The correlation


def test_a_turn_opens_with_its_start_and_belongs_to_the_first_prompt_that_waits() -> None:
    turns = expecting()
    assert turns.prompted("a-1") == OURS
    assert turns.prompted("other") == FOREIGN
    turns.started()
    assert turns.open == OURS
    assert turns.row() == OURS
    assert turns.ended() == OURS
    turns.started()
    assert turns.ended() == FOREIGN


@pytest.mark.parametrize("opens", [Turns.running, Turns.row, Turns.started])
def test_a_provider_that_never_tells_a_start_opens_it_by_its_first_sign(opens: Any) -> None:
    turns = expecting()
    turns.prompted("a-1")
    opens(turns)
    assert turns.open == OURS


def test_signs_without_a_prompt_open_nothing_but_a_start_is_somebody_elses() -> None:
    turns = Turns()
    turns.running()
    assert turns.row() is None
    assert turns.open is None
    turns.started()
    assert turns.open == FOREIGN


def test_our_id_counts_once() -> None:
    turns = expecting()
    assert turns.prompted("a-1") == OURS
    assert turns.prompted("a-1") == FOREIGN
    turns.expect("a-2")
    assert turns.prompted("a-1") == FOREIGN
    assert turns.prompted("a-2") == Owner("a-2")
    assert turns.prompted(None) == FOREIGN


def test_rows_after_a_foreign_prompt_are_ours_until_our_turn_has_ended() -> None:
    turns = expecting()
    turns.prompted("a-1")
    turns.started()
    turns.prompted(None)
    turns.running()
    assert turns.row() == OURS
    assert turns.is_foreign_next
    assert turns.ended() == OURS
    turns.started()
    assert turns.row() == FOREIGN


def test_an_end_without_a_start_ends_the_first_prompt_that_waits() -> None:
    """Our agent ignored a foreigner's cancel: their prompt fails without having started."""
    turns = expecting()
    turns.prompted("a-1")
    turns.started()
    turns.prompted("other")
    assert turns.ended() == OURS
    assert turns.ended() == FOREIGN
    assert turns.ended() is None


def test_an_agent_at_rest_has_forgotten_what_it_only_echoed() -> None:
    turns = Turns()
    turns.prompted("echo")
    turns.expect("a-1", idle=True)
    turns.prompted("a-1")
    turns.started()
    assert turns.open == OURS


def test_what_is_found_at_a_look() -> None:
    turns = expecting()
    turns.prompted("a-1")
    turns.ended_unseen()
    assert turns.row() is None
    turns.found(running=True)
    assert turns.open == FOREIGN
    turns.rest()
    assert turns.row() is None
    turns.resume("a-1")
    assert (turns.open, turns.row()) == (OURS, OURS)
    turns.rest()
    assert turns.open == OURS


@st.composite
def conversations(draw: st.DrawFn) -> list[tuple[str, str | None]]:
    """Frames of one agent in an order that the protocol allows, each with the prompt that it belongs to.

    A turn is opened by any of three signs, or fails before; a prompt during a turn replaces it.
    """
    frames: list[tuple[str, str | None]] = []
    names = [f"p-{number}" for number in range(draw(st.integers(1, 6)))]
    waiting: str | None = None
    for number, name in enumerate(names):
        if waiting is None:
            frames.append(("user", name))
        waiting = None
        if draw(st.booleans()) and draw(st.booleans()):
            frames.append(("end", name))
            continue
        frames.append((draw(st.sampled_from(["started", "running", "row"])), name))
        frames += draw(
            st.lists(st.sampled_from([("row", name), ("running", name), ("started", name)]), max_size=4)
        )
        if number + 1 < len(names) and draw(st.booleans()):
            waiting = names[number + 1]
            frames += [("user", waiting), *([("running", name)] if draw(st.booleans()) else [])]
            frames += draw(st.lists(st.just(("row", name)), max_size=2))
        frames.append(("end", name))
    return frames


@given(conversations(), st.data())
def test_every_frame_finds_its_turn_in_every_order(
    frames: list[tuple[str, str | None]], data: st.DataObject
) -> None:
    mine = data.draw(st.sampled_from(sorted({name for _, name in frames if name is not None})))
    turns = Turns()
    turns.expect(mine)

    def of(name: str | None) -> Owner:
        return Owner(mine) if name == mine else FOREIGN

    for kind, name in frames:
        match kind:
            case "user":
                assert turns.prompted(name) == of(name)
            case "started":
                turns.started()
                assert turns.open == of(name)
            case "running":
                turns.running()
                assert turns.open == of(name)
            case "row":
                assert turns.row() == of(name)
            case _:
                assert turns.ended() == of(name)
    assert turns.open is None


# The judgement, in the same epoch

BEFORE, PROMPT, ROW, NEXT, AFTER = (f"2026-01-01T00:00:0{second}.000Z" for second in range(5))


def agent(status: str = "idle", flag: str | None = None, reason: str = "finished", **more: Any) -> Agent:
    return Agent(
        id="a",
        status=status,
        requires_attention=flag is not None,
        attention_timestamp=flag,
        attention_reason=reason if flag else None,
        **more,
    )


def trail(*items: Any, followed: bool = False) -> Trail:
    made = Trail(prompted_at=PROMPT)
    for item in items:
        made.add(item)
    if followed:
        made.follow(NEXT, 9)
    return made


SAID = AssistantMessage(text="hello")
FAILURE = AssistantMessage(text="[System Error] out of credit")
CANCELLED = ToolCall(call_id="c", status="canceled")
ABORTED = ToolCall(call_id="c", status="failed", error={"message": "Tool execution aborted"})
DONE = TurnEnded(stop_reason=None, reconciled=True)
BY_OTHERS = TurnStopped(cause="other_client")
OUT_OF_CREDIT = TurnBroke(code="provider_error", message="out of credit")


@pytest.mark.parametrize(
    ("found", "shown", "verdict"),
    [
        (agent(), trail(), NotStarted()),
        (agent("error"), trail(), NotStarted()),
        (agent(flag=BEFORE), trail(), NotStarted()),
        (agent("initializing"), trail(SAID), NotStarted()),
        (agent("running"), trail(), GoesOn()),
        (agent("running"), trail(SAID), GoesOn()),
        (agent("error", last_error="no"), trail(SAID), TurnBroke(code="provider_error", message="no")),
        (agent("error"), trail(FAILURE), OUT_OF_CREDIT),
        (agent("error", AFTER), trail(), TurnBroke(code="provider_error", message=FAILED)),
        (agent(), trail(SAID, CANCELLED), BY_OTHERS),
        (agent(), trail(SAID, ABORTED), BY_OTHERS),
        (agent(), trail(SAID), DONE),
        (agent(flag=AFTER), trail(), DONE),
        (agent("running", ROW), trail(SAID, followed=True), DONE),
        (agent("running", ROW), trail(CANCELLED, followed=True), BY_OTHERS),
        (agent("running", ROW, "error"), trail(FAILURE, followed=True), OUT_OF_CREDIT),
        (agent("running", NEXT), trail(SAID, followed=True), TurnStopped(cause="replaced")),
        (agent("idle", AFTER), trail(SAID, followed=True), TurnStopped(cause="replaced")),
        (agent(), trail(FAILURE, followed=True), OUT_OF_CREDIT),
        (agent(), trail(CANCELLED, followed=True), BY_OTHERS),
        (agent(), trail(SAID, followed=True), TurnUnknown(cause="unobserved")),
    ],
)
def test_what_became_of_a_turn(found: Agent, shown: Trail, verdict: Verdict) -> None:
    assert judge(found, shown) == verdict


def test_rows_behind_somebody_elses_prompt_are_no_part_of_ours() -> None:
    shown = trail(SAID, followed=True)
    shown.add(CANCELLED)
    shown.follow(AFTER, 12)
    assert (shown.rows, shown.has_cancelled_tool, shown.followed_at, shown.followed_by) == (1, False, NEXT, 9)


# The judgement of a daemon that is gone


@pytest.mark.parametrize(
    ("stored", "shown", "kind"),
    [
        (agent("error", AFTER, "error", last_user_message_at=PROMPT), None, TurnBroke),
        (agent("idle", AFTER, last_user_message_at=PROMPT), None, TurnEnded),
        (agent("idle", BEFORE, last_user_message_at=PROMPT), None, TurnUnknown),
        (agent("idle", AFTER, "error", last_user_message_at=PROMPT), None, TurnUnknown),
        (agent("running", AFTER, last_user_message_at=PROMPT), None, TurnUnknown),
        (agent("running"), None, TurnUnknown),
        (agent("closed"), trail(SAID), TurnUnknown),
        (agent("running", NEXT, last_user_message_at=NEXT), trail(SAID, followed=True), TurnStopped),
        (agent("running", ROW, last_user_message_at=NEXT), trail(SAID, followed=True), TurnEnded),
    ],
)
def test_what_became_of_a_turn_whose_daemon_was_killed(
    stored: Agent, shown: Trail | None, kind: type[TurnEnd]
) -> None:
    assert isinstance(judge_stored(stored, shown, delivered=True), kind)


@pytest.mark.parametrize("delivered", [True, False])
def test_what_is_not_known_says_what_is_known_of_the_delivery(delivered: bool) -> None:
    end = judge_stored(agent("running"), None, delivered=delivered)
    assert isinstance(end, TurnUnknown)
    assert end.delivered == ("yes" if delivered else "unknown")
    assert end.cause.startswith("daemon_restarted")
