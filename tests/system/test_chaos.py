"""Everything at once: replicas, daemon and database are killed under clients, and every promise is checked.

`ALAMEDA_CHAOS_KILLS` and `ALAMEDA_CHAOS_CLIENTS` make it longer, as does `python -m benchmarks.chaos --help`.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos.checker import Admitted, Evidence, Row, TurnRow, violations
from benchmarks.chaos.run import run

KILLS = int(os.environ.get("ALAMEDA_CHAOS_KILLS", "6"))
CLIENTS = int(os.environ.get("ALAMEDA_CHAOS_CLIENTS", "8"))


async def test_whatever_is_killed_every_promise_holds(capsys: pytest.CaptureFixture[str]) -> None:
    """At random moments of a random seed, which the figures name."""
    seed = int.from_bytes(os.urandom(3))
    with tempfile.TemporaryDirectory(prefix="alameda-chaos-") as folder:
        evidence, figures = await run(
            Path(folder), kills=KILLS, clients=CLIENTS, seed=seed, say=lambda _: None
        )
    with capsys.disabled():
        sys.stdout.write(f"\nseed {seed}: {figures}\n")
    assert violations(evidence) == [], f"seed {seed}"
    assert figures.kills >= KILLS
    assert figures.seen == figures.events > 0
    assert figures.turns["completed"] > 0


# The checker goes red.


async def test_a_promise_that_is_broken_behind_the_service_s_back_is_noticed() -> None:
    with tempfile.TemporaryDirectory(prefix="alameda-chaos-") as folder:
        evidence, _ = await run(
            Path(folder),
            kills=0,
            clients=2,
            seed=1,
            say=lambda _: None,
            sabotage="DELETE FROM events WHERE seq = 3",
        )
    assert {what.split(": ")[1][:12] for what in violations(evidence)} >= {"the log has ", "a follower s"}


def row(seq: int, type_: str, turn: str | None = "t", **data: Any) -> Row:
    """An event as the log writes it."""
    body = json.dumps({"type": type_, "session_id": "s", "turn_id": turn, "at": "now", "data": data})[1:]
    return Row("s", seq, type_, turn, body)


def sound() -> Evidence:
    """A run of one turn in which every promise holds."""
    rows = [
        row(1, "session.opened", None),
        row(2, "turn.queued"),
        row(3, "turn.started"),
        row(4, "message.delta", message_id="m", text="a "),
        row(5, "message.delta", message_id="m", text="b"),
        row(6, "message.completed", message_id="m", text="a b"),
        row(7, "permission.requested", permission_id="p"),
        row(8, "permission.resolved", permission_id="p"),
        row(9, "turn.completed"),
    ]
    evidence = Evidence(
        rows=rows,
        turns=[TurnRow("t", "s", "completed", "yes", 2, 9)],
        seen=[("s", one.seq, one.frame) for one in rows],
        admitted=[Admitted("key", "t", "s", text="ab")],
    )
    evidence.asked["key"] = 1
    return evidence


def test_a_sound_run_has_no_violation() -> None:
    assert violations(sound()) == []


def a_row_is_missing(evidence: Evidence) -> None:
    del evidence.rows[3]


def a_number_is_used_twice(evidence: Evidence) -> None:
    evidence.rows.append(replace(evidence.rows[3], turn=None))


def a_byte_is_another(evidence: Evidence) -> None:
    evidence.rows[4] = replace(evidence.rows[4], body=evidence.rows[4].body.replace('"now"', '"nov"'))


def a_follower_sees_one_twice(evidence: Evidence) -> None:
    evidence.seen.insert(5, evidence.seen[4])


def a_follower_sees_what_is_not_written(evidence: Evidence) -> None:
    evidence.seen.append(("s", 10, b"id: 10\n\n"))


def a_second_end(evidence: Evidence) -> None:
    evidence.rows.append(row(10, "turn.cancelled"))


def no_end(evidence: Evidence) -> None:
    evidence.rows.pop()
    evidence.seen.pop()


def something_follows_the_end(evidence: Evidence) -> None:
    evidence.rows.append(row(10, "plan.updated"))


def another_end_than_the_row_says(evidence: Evidence) -> None:
    evidence.turns[0] = replace(evidence.turns[0], status="failed")


def a_permission_stays_open(evidence: Evidence) -> None:
    evidence.rows[7] = row(8, "plan.updated")
    evidence.seen[7] = ("s", 8, evidence.rows[7].frame)


def a_permission_ends_twice(evidence: Evidence) -> None:
    evidence.rows[5] = row(6, "permission.expired", permission_id="p")
    evidence.seen[5] = ("s", 6, evidence.rows[5].frame)


def the_agent_is_asked_twice(evidence: Evidence) -> None:
    evidence.asked["key"] = 2


def it_is_called_done_and_nobody_was_asked(evidence: Evidence) -> None:
    evidence.asked["key"] = 0


def it_is_called_undelivered_and_was_asked(evidence: Evidence) -> None:
    evidence.turns[0] = replace(evidence.turns[0], delivered="no")


def text_is_lost(evidence: Evidence) -> None:
    evidence.rows[4] = row(5, "message.delta", message_id="m", text="")
    evidence.seen[4] = ("s", 5, evidence.rows[4].frame)


def an_admitted_turn_is_gone(evidence: Evidence) -> None:
    evidence.turns.clear()


def something_is_left_open(evidence: Evidence) -> None:
    evidence.left_open.append("permission p pending")


def a_client_saw_a_500(evidence: Evidence) -> None:
    evidence.told.append("a 500")


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (a_row_is_missing, "a gap or a double"),
        (a_number_is_used_twice, "a gap or a double"),
        (a_byte_is_another, "other bytes of event 5"),
        (a_follower_sees_one_twice, "a follower saw 5 and then 5"),
        (a_follower_sees_what_is_not_written, "event 10, which is not in the table"),
        (a_second_end, "2 terminal events"),
        (no_end, "0 terminal events"),
        (something_follows_the_end, "plan.updated after its terminal event"),
        (another_end_than_the_row_says, "its row says failed"),
        (a_permission_stays_open, "permission p was never closed"),
        (a_permission_ends_twice, "permission p was closed 2 times"),
        (the_agent_is_asked_twice, "asked 2 times"),
        (it_is_called_done_and_nobody_was_asked, "the agent was never asked"),
        (it_is_called_undelivered_and_was_asked, "not to have been delivered"),
        (text_is_lost, "says a"),
        (an_admitted_turn_is_gone, "is not in the table"),
        (something_is_left_open, "left open"),
        (a_client_saw_a_500, "a 500"),
    ],
)
def test_the_checker_names_what_is_broken(broken: Callable[[Evidence], None], words: str) -> None:
    evidence = deepcopy(sound())
    broken(evidence)
    found = violations(evidence)
    assert any(words in what for what in found), found
