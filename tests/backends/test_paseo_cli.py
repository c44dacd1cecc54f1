"""The adapter over the `paseo` command: what is made once, what is told, and what nobody can know."""

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from app.backends.base import (
    AgentLost,
    AgentSpec,
    Attachment,
    BackendRejected,
    BackendUnavailable,
    OpenAttempt,
    OutcomeUnknown,
    Prompt,
    SendFailed,
)
from app.backends.paseo_cli import PaseoCliBackend
from app.backends.paseo_cli_agent import PaseoCliAgent
from app.backends.paseo_cli_following import CANNOT_ANSWER
from app.domain.events import Notice
from app.domain.signals import (
    Cursor,
    LinkLost,
    LinkRestored,
    Report,
    Signal,
    StillRunning,
    TextDelta,
    TurnBroke,
    TurnEnded,
    TurnStopped,
    TurnUnknown,
)
from app.paseo.cli import PaseoCli
from app.paseo.cli_running import CommandRunner
from tests.backends.acp_house import eventually, is_end, text, until
from tests.backends.paseo_cli_house import cli_backend
from tests.backends.paseo_house import play, reports_until
from tests.paseo.command import fault, heard, stand_in

pytestmark = pytest.mark.anyio

RECONCILED = TurnEnded(stop_reason=None, reconciled=True)


def spec(folder: Path, **parts: Any) -> AgentSpec:
    """What an agent is made of."""
    return AgentSpec(**({"creation_key": "key-1", "provider": "scripted", "cwd": str(folder)} | parts))


async def made(backend: PaseoCliBackend, folder: Path) -> PaseoCliAgent:
    """A new agent, greeted."""
    agent = await backend.create(spec(folder))
    assert isinstance(agent, PaseoCliAgent)
    return agent


def prompt(attempt: str, *lines: str) -> Prompt:
    """A prompt that plays a script."""
    return Prompt(attempt=attempt, text="\n".join(lines))


def agents(folder: Path) -> list[dict[str, Any]]:
    """The agents that the daemon has."""
    return list(json.loads((folder / "state.json").read_text())["agents"].values())


def called(folder: Path, verb: str) -> int:
    """How often a command was called."""
    return sum(call["argv"][0] == verb for call in heard(folder))


async def prompted_by_a_stranger(folder: Path, session: str, text: str) -> None:
    """A prompt of another user of the command, on the same daemon."""
    command, env = stand_in(folder)
    stranger = PaseoCli(CommandRunner(command, env=env))
    await stranger.send(session, text)
    await stranger.aclose()


def last_cursor(reports: list[Report]) -> Cursor:
    """The position after the last report that names one."""
    return next(report.cursor for report in reversed(reports) if report.cursor is not None)


# Making, once.


async def test_an_agent_whose_creation_was_not_answered_is_found_and_made_once(tmp_path: Path) -> None:
    async with cli_backend(tmp_path) as backend:
        fault(tmp_path, run="garbage")
        with pytest.raises(OutcomeUnknown):
            await backend.create(spec(tmp_path, title="Fix"))
        found = await backend.find(spec(tmp_path, title="Fix"))
        assert found is not None
        (only,) = agents(tmp_path)
        assert (found.state.session, only["title"]) == (only["id"], "Fix")
        assert only["labels"] == {"origin": "alameda", "alameda_key": "key-1"}
        assert await backend.find(spec(tmp_path, creation_key="key-2")) is None


async def test_an_agent_that_cannot_be_greeted_is_put_away_and_the_reason_is_told(tmp_path: Path) -> None:
    async with cli_backend(tmp_path) as backend:
        fault(tmp_path, wait="error")
        with pytest.raises(BackendRejected, match="out of credit"):
            await backend.create(spec(tmp_path))
        assert [agent["status"] for agent in agents(tmp_path)] == ["closed"]


async def test_without_a_daemon_nothing_is_made_and_health_says_how_to_cure_it(tmp_path: Path) -> None:
    async with cli_backend(tmp_path) as backend:
        (tmp_path / "down").touch()
        with pytest.raises(BackendUnavailable):
            await backend.create(spec(tmp_path))
        health = await backend.health()
        assert not health.up
        assert "ECONNREFUSED" in (health.detail or "")
        assert "paseo daemon start" in (health.detail or "")


async def test_a_list_that_the_command_makes_up_without_a_daemon_is_no_list(tmp_path: Path) -> None:
    """It ends well, names providers that nobody looked for, and leaves out the configured ones."""
    async with cli_backend(tmp_path) as backend:
        (tmp_path / "down").touch()
        with pytest.raises(BackendUnavailable, match="ECONNREFUSED"):
            await backend.providers()
        (tmp_path / "down").unlink()
        assert "scripted" in [one.id for one in await backend.providers()]


async def test_what_the_daemon_does_not_know_of_an_agent_is_shown_as_nothing(tmp_path: Path) -> None:
    async with cli_backend(tmp_path) as backend:
        agent = await made(backend, tmp_path)
        assert (agent.state.model, agent.state.thinking) == ("m1", None)
        state = json.loads((tmp_path / "state.json").read_text())
        state["agents"][agent.state.session]["model"] = "-"
        (tmp_path / "state.json").write_text(json.dumps(state))
        assert (await backend.load(spec(tmp_path), agent.state.session, None)).state.model is None


# Adopting.


async def test_an_adopted_agent_that_stands_in_no_list_is_made_once_and_not_said_to_be_archived(
    tmp_path: Path,
) -> None:
    """As in a directory that the daemon did not know: looked for in vain, it may be there all the same."""
    adopted = spec(tmp_path, provider="claude", provider_session_id="s-1")
    async with cli_backend(tmp_path) as backend:
        agent = await backend.create(adopted)
        with pytest.raises(BackendRejected, match="in no list"):
            await backend.find(adopted)
        with pytest.raises(BackendRejected, match="does not list it"):
            await agent.archive()
        assert len(agents(tmp_path)) == 1


async def test_what_an_adopted_session_holds_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text(json.dumps([["user", "first"], ["assistant", "answer"]]))
    adopted = spec(tmp_path, provider="claude", provider_session_id="s-1")
    async with cli_backend(tmp_path) as backend:
        agent = await backend.create(adopted)
        (report,) = await agent.reports.take()
        assert report.attempt is None
        (notice,) = report.signals
        assert isinstance(notice, Notice)
        assert (notice.code, notice.message) == ("import_history", "[User] first\nanswer\n")
        await agent.release()
        again = await backend.load(adopted, agent.state.session, report.cursor)
        assert [report.signals for report in await again.reports.take()] == [()]
        uncommitted = await backend.load(adopted, agent.state.session, None)
        assert [report.signals for report in await uncommitted.reports.take()] == [(notice,)]


async def test_an_import_that_was_not_answered_is_found_and_made_once(tmp_path: Path) -> None:
    """A second agent would write to the same session of the provider."""
    (tmp_path / "history.json").write_text(json.dumps([["user", "first"], ["assistant", "answer"]]))
    adopted = spec(tmp_path, provider="claude", provider_session_id="s-1", creation_key="key-2")
    async with cli_backend(tmp_path) as backend:
        await made(backend, tmp_path)  # so that the daemon knows the directory
        fault(tmp_path, **{"import": "garbage"})
        with pytest.raises(OutcomeUnknown):
            await backend.create(adopted)
        found = await backend.find(adopted)
        assert found is not None
        (report,) = await found.reports.take()
        assert [s.code for s in report.signals if isinstance(s, Notice)] == ["import_history"]
        assert len(agents(tmp_path)) == 2
        with pytest.raises(BackendRejected, match="in no list"):
            await backend.find(spec(tmp_path, provider="claude", provider_session_id="s-1", creation_key="x"))
        assert len(agents(tmp_path)) == 2
        with pytest.raises(BackendRejected, match="Codex binary not found"):
            await backend.create(spec(tmp_path, provider="codex", provider_session_id="s-2"))


# Turns.


async def test_a_turn_is_told_at_its_end_as_one_text(tmp_path: Path) -> None:
    async with cli_backend(tmp_path) as backend:
        agent = await made(backend, tmp_path)
        reports = await play(agent, "a-1", "think hm", "say one", "tool shell ls", "say two")
        signals = [signal for report in reports for signal in report.signals]
        assert signals == [TextDelta(text="one\ntwo"), RECONCILED]
        assert {report.attempt for report in reports} == {"a-1"}


async def test_a_long_turn_gives_signs_of_life(tmp_path: Path) -> None:
    async with cli_backend(tmp_path) as backend:
        agent = await made(backend, tmp_path)
        await agent.prompt(prompt("a-1", "sleep 20000", "say done"))
        signals = await until(agent, is_end)
        assert StillRunning() in signals
        assert text(signals) == "done"


async def test_a_permission_that_nobody_can_answer_ends_the_turn_and_allows_nothing(tmp_path: Path) -> None:
    async with cli_backend(tmp_path) as backend:
        agent = await made(backend, tmp_path)
        await agent.prompt(prompt("a-1", "say let me", "ask rm -rf /", "say removed"))
        signals = await until(agent, is_end)
        assert signals[-1] == TurnBroke(code="backend_rejected", message=CANNOT_ANSWER)
        assert text(signals) == "let me"
        assert not await agent.is_busy()
        assert called(tmp_path, "permit") == 0


async def test_a_prompt_never_ends_somebody_elses_turn(tmp_path: Path) -> None:
    async with cli_backend(tmp_path) as backend:
        agent = await made(backend, tmp_path)
        await prompted_by_a_stranger(tmp_path, agent.state.session, "sleep 600000")
        with pytest.raises(SendFailed) as refused:
            await agent.prompt(prompt("a-1", "say mine"))
        assert (refused.value.delivered, refused.value.retriable) == ("no", True)
        assert await agent.is_busy()


async def test_nobody_knows_how_a_turn_ended_that_somebody_else_prompted_over(tmp_path: Path) -> None:
    async with cli_backend(tmp_path) as backend:
        agent = await made(backend, tmp_path)
        await agent.prompt(prompt("a-1", "say mine", "sleep 600000"))
        await prompted_by_a_stranger(tmp_path, agent.state.session, "say theirs")
        assert (await until(agent, is_end))[-1] == TurnUnknown(cause="foreign_prompt")


async def test_attachments_and_prompts_to_nobody_are_not_delivered(tmp_path: Path) -> None:
    async with cli_backend(tmp_path) as backend:
        agent = await made(backend, tmp_path)
        with pytest.raises(SendFailed) as refused:
            await agent.prompt(Prompt(attempt="a", text="x", attachments=[Attachment(kind="text", data="y")]))
        assert (refused.value.delivered, refused.value.retriable) == ("no", False)
        await agent.reach()
        (tmp_path / "state.json").write_text(json.dumps({"speed": 10.0, "agents": {}}))
        with pytest.raises(SendFailed) as refused:
            await agent.prompt(prompt("a-1", "say x"))
        assert (refused.value.delivered, refused.value.retriable) == ("no", False)


async def test_a_prompt_whose_answer_was_lost_is_looked_for_and_not_sent_again(tmp_path: Path) -> None:
    async with cli_backend(tmp_path) as backend:
        agent = await made(backend, tmp_path)
        fault(tmp_path, send="garbage")
        reports = await play(agent, "a-1", "say arrived")
        signals = [signal for report in reports for signal in report.signals]
        assert text(signals) == "arrived"
        assert signals[-1] == RECONCILED
        fault(tmp_path, send="refuse-without-a-word")
        await agent.prompt(prompt("a-2", "say lost"))
        assert (await until(agent, is_end))[-1] == TurnUnknown(cause="unobserved", delivered="unknown")
        assert called(tmp_path, "send") == 2


async def test_a_daemon_that_was_away_is_waited_for_and_a_turn_that_still_runs_goes_on(
    tmp_path: Path,
) -> None:
    async with cli_backend(tmp_path) as backend:
        agent = await made(backend, tmp_path)
        await agent.prompt(prompt("a-1", "say on", "sleep 15000", "say and on"))
        (tmp_path / "down").touch()
        lost = await until(agent, lambda signal: isinstance(signal, LinkLost))
        assert not any(is_end(signal) for signal in lost)
        (tmp_path / "down").unlink()
        signals = await until(agent, is_end)
        assert LinkRestored() in signals
        assert signals[-1] == RECONCILED
        assert text(signals) == "onand on"


async def test_a_turn_that_ended_while_the_daemon_was_away_may_have_died_with_it(tmp_path: Path) -> None:
    async with cli_backend(tmp_path) as backend:
        agent = await made(backend, tmp_path)
        await agent.prompt(prompt("a-1", "say on", "sleep 600000"))
        (tmp_path / "down").touch()
        await until(agent, lambda signal: isinstance(signal, LinkLost))
        state = json.loads((tmp_path / "state.json").read_text())
        for one in state["agents"].values():
            one |= {"status": "idle", "lines": []}
        (tmp_path / "state.json").write_text(json.dumps(state))
        (tmp_path / "down").unlink()
        assert (await until(agent, is_end))[-1] == TurnUnknown(cause="daemon_away")


# Another host.


async def left(folder: Path, *script: str) -> tuple[str, Cursor]:
    """An agent whose host prompted it with a script, and is gone: its session, and where its host stood."""
    async with cli_backend(folder) as backend:
        agent = await made(backend, folder)
        told = await play(agent, "a-0", "say before")
        await agent.prompt(prompt("a-1", *script))
        return agent.state.session, last_cursor(told)


@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        (("say on", "sleep 8000", "say and on"), ["onand on", RECONCILED]),
        (("say quick",), ["quick", RECONCILED]),
        (("say a", "fail boom"), ["a", "broke"]),
        (("sleep 0",), ["", TurnUnknown(cause="unobserved")]),
    ],
    ids=["runs", "ended", "failed", "silent"],
)
async def test_the_next_host_finds_out_what_became_of_the_turn(
    tmp_path: Path, script: tuple[str, ...], wanted: list[Any]
) -> None:
    session, cursor = await left(tmp_path, *script)
    if "sleep 8000" not in script:
        await anyio.sleep(0.1)
    async with cli_backend(tmp_path) as backend:
        attempt = OpenAttempt("a-1", was_told=False, text="\n".join(script))
        agent = await backend.load(spec(tmp_path), session, cursor, attempt)
        signals = await until(agent, is_end)
        end = "broke" if isinstance(signals[-1], TurnBroke) else signals[-1]
        assert [text(signals), end] == wanted
        assert LinkRestored() in signals


async def test_the_next_host_does_not_take_an_earlier_turn_for_the_open_one(tmp_path: Path) -> None:
    """The same words were prompted before: only what stands after the committed position counts."""
    async with cli_backend(tmp_path) as backend:
        agent = await made(backend, tmp_path)
        told = await play(agent, "a-0", "say same")
        attempt = OpenAttempt("a-1", was_told=False, text="say same")
        again = await backend.load(spec(tmp_path), agent.state.session, last_cursor(told), attempt)
        assert (await until(again, is_end))[-1] == TurnUnknown(cause="unobserved", delivered="unknown")


async def test_an_agent_put_away_behind_our_back_is_taken_out_and_one_that_is_gone_is_lost(
    tmp_path: Path,
) -> None:
    async with cli_backend(tmp_path) as backend:
        agent = await made(backend, tmp_path)
        await agent.archive()
        await backend.archive(agent.state.session)  # twice is no error
        again = await backend.load(spec(tmp_path), agent.state.session, None)
        reports = await play(again, "a-1", "say back")
        assert text([signal for report in reports for signal in report.signals]) == "back"
        await backend.archive("nobody")
        with pytest.raises(AgentLost):
            await backend.load(spec(tmp_path), "nobody", None)


async def test_an_agent_that_is_not_among_the_last_is_neither_lost_nor_taken_for_archived(
    tmp_path: Path,
) -> None:
    """Some commands look only among the agents that changed last, and say that there is no other."""
    async with cli_backend(tmp_path) as backend:
        agent = await made(backend, tmp_path)
        state = json.loads((tmp_path / "state.json").read_text())
        mine = state["agents"][agent.state.session]
        for number in range(200):
            state["agents"][f"other-{number}"] = mine | {"id": f"other-{number}", "updated": "9999"}
        (tmp_path / "state.json").write_text(json.dumps(state))
        with pytest.raises(BackendRejected, match="does not list it"):
            await agent.archive()
        mine["archived"] = "2026-01-01T00:00:00.000Z"
        (tmp_path / "state.json").write_text(json.dumps(state))
        with pytest.raises(BackendRejected, match="does not list it"):
            await backend.load(spec(tmp_path), agent.state.session, None)


async def test_an_agent_that_is_only_called_like_ours_is_not_ours(tmp_path: Path) -> None:
    """The command finds agents by their names as well, and a caller chooses those."""
    async with cli_backend(tmp_path) as backend:
        await backend.create(spec(tmp_path, title="11111111-1111-4111-8111-111111111111"))
        with pytest.raises(AgentLost):
            await backend.load(spec(tmp_path), "11111111-1111-4111-8111-111111111111", None)


# Stopping.


async def test_a_released_agent_leaves_its_turn_to_the_daemon_and_no_process_behind(tmp_path: Path) -> None:
    async with cli_backend(tmp_path) as backend:
        agent = await made(backend, tmp_path)
        await agent.prompt(prompt("a-1", "say on", "sleep 600000"))
        await eventually(lambda: called(tmp_path, "wait") == 2)
        with anyio.fail_after(5):
            await agent.release()
    assert [one["status"] for one in agents(tmp_path)] == ["running"]


async def test_a_turn_seen_at_rest_before_its_stop_was_answered_was_stopped(tmp_path: Path) -> None:
    async with cli_backend(tmp_path) as backend:
        agent = await made(backend, tmp_path)
        await agent.prompt(prompt("a-1", "say on", "sleep 600000"))
        fault(tmp_path, stop="late")
        await agent.interrupt()
        assert (await until(agent, is_end))[-1] == TurnStopped()


async def test_a_stop_that_the_daemon_did_not_hear_may_have_stopped_the_turn(tmp_path: Path) -> None:
    """The command ends well, and says on the side that it failed."""
    async with cli_backend(tmp_path) as backend:
        agent = await made(backend, tmp_path)
        await agent.prompt(prompt("a-1", "say on", "sleep 600000"))
        fault(tmp_path, stop="unheard")
        await agent.interrupt()
        assert await agent.is_busy()
        await agent.kill()
        assert (await until(agent, is_end))[-1] == TurnStopped()


async def test_a_turn_that_ended_before_the_stop_is_not_said_to_be_stopped(tmp_path: Path) -> None:
    async with cli_backend(tmp_path) as backend:
        agent = await made(backend, tmp_path)
        await agent.prompt(prompt("a-1", "say quick"))
        await eventually(lambda: agents(tmp_path)[0]["status"] == "idle")
        await agent.interrupt()
        signals: list[Signal] = [s for r in await reports_until(agent, is_end) for s in r.signals]
        assert signals[-1] in (RECONCILED, TurnStopped())
        assert text(signals) == "quick"


async def test_the_same_prompt_again_is_not_taken_for_the_one_before(tmp_path: Path) -> None:
    """After a turn that was killed, and after one whose log could not be read."""
    async with cli_backend(tmp_path) as backend:
        agent = await made(backend, tmp_path)
        script = ("say same", "sleep 3000", "say and more")
        await agent.prompt(prompt("a-1", *script))
        await agent.kill()
        assert await until(agent, is_end) == [TextDelta(text="same"), TurnStopped()]
        fault(tmp_path, talk="refuse-without-a-word")
        signals = [s for r in await play(agent, "a-2", *script) for s in r.signals]
        assert [s.code for s in signals if isinstance(s, Notice)] == ["output_unread"]
        assert signals[-1] == RECONCILED
        signals = [s for r in await play(agent, "a-3", *script) for s in r.signals]
        assert text(signals) == "sameand more"
        assert signals[-1] == RECONCILED


# What is hard to read.


async def test_an_answer_that_looks_like_a_prompt_or_a_thought_is_told_and_ends_its_turn(
    tmp_path: Path,
) -> None:
    async with cli_backend(tmp_path) as backend:
        agent = await made(backend, tmp_path)
        for number, words in enumerate(("[User] hello", "[Thought] x", "[System Error] boom")):
            reports = await play(agent, f"a-{number}", "think hm", f"say {words}")
            signals = [signal for report in reports for signal in report.signals]
            assert signals == [TextDelta(text=words), RECONCILED]


async def test_an_answer_that_repeats_its_prompt_may_be_somebody_elses_turn(tmp_path: Path) -> None:
    """Nothing tells that from the same prompt sent again."""
    async with cli_backend(tmp_path) as backend:
        agent = await made(backend, tmp_path)
        await agent.prompt(prompt("a-1", "say mine", "sleep 3000"))
        await prompted_by_a_stranger(tmp_path, agent.state.session, "say mine\nsleep 3000")
        assert (await until(agent, is_end))[-1] == TurnUnknown(cause="foreign_prompt")


LONG = 17 * 1024 * 1024
"""More than is kept of what one command says."""


async def test_a_message_that_is_too_long_to_be_read_ends_its_turn_and_the_next_ones_are_told(
    tmp_path: Path,
) -> None:
    """Its wait cannot be read, and the agent is not said to be away; its words are told as far as they go."""
    async with cli_backend(tmp_path) as backend:
        agent = await made(backend, tmp_path)
        reports = await play(agent, "a-1", f"long {LONG}")
        signals = [signal for report in reports for signal in report.signals]
        assert not any(isinstance(signal, LinkLost) for signal in signals)
        assert signals[-1] == RECONCILED
        assert [signal.code for signal in signals if isinstance(signal, Notice)] == ["output_truncated"]
        assert 15 * 1024 * 1024 < len(text(signals)) < LONG
        for number in (2, 3):
            reports = await play(agent, f"a-{number}", "think hm", "say again")
            signals = [signal for report in reports for signal in report.signals]
            assert signals == [TextDelta(text="again"), RECONCILED]
    async with cli_backend(tmp_path) as backend:
        held = await backend.load(spec(tmp_path), agent.state.session, None)
        signals = [signal for report in await play(held, "a-4", "say again") for signal in report.signals]
        assert signals == [TextDelta(text="again"), RECONCILED]


async def test_a_prompt_whose_answer_was_lost_is_not_taken_for_the_one_before_it_in_a_long_talk(
    tmp_path: Path,
) -> None:
    async with cli_backend(tmp_path) as backend:
        agent = await made(backend, tmp_path)
        await play(agent, "a-1", f"long {LONG}")
        await play(agent, "a-2", "say same")
        fault(tmp_path, send="refuse-without-a-word")
        reports = await play(agent, "a-3", "say same")
        assert reports[-1].signals[-1] == TurnUnknown(cause="unobserved", delivered="unknown")


async def test_a_wait_that_cannot_be_read_is_no_absence_of_the_daemon(tmp_path: Path) -> None:
    async with cli_backend(tmp_path) as backend:
        agent = await made(backend, tmp_path)
        fault(tmp_path, wait="garbage")
        reports = await play(agent, "a-1", "say one")
        signals = [signal for report in reports for signal in report.signals]
        assert signals == [TextDelta(text="one"), RECONCILED]


async def test_what_an_agent_too_long_to_be_read_holds_is_told_from_its_end(tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text(
        json.dumps([["assistant", "x" * LONG], ["user", "first"], ["assistant", "answer"]])
    )
    async with cli_backend(tmp_path) as backend:
        agent = await backend.create(spec(tmp_path, provider="claude", provider_session_id="s-1"))
        told = await reports_until(agent, lambda signal: isinstance(signal, Notice))
        codes = [s.code for report in told for s in report.signals if isinstance(s, Notice)]
        assert codes == ["import_incomplete", "import_history"]
        signals = [signal for report in await play(agent, "a-1", "say on") for signal in report.signals]
        assert signals == [TextDelta(text="on"), RECONCILED]
