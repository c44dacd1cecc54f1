"""The Paseo adapter over a twin of the daemon; a trap's test carries its number."""

import json
from http import HTTPStatus
from pathlib import Path
from typing import Any

import anyio
import pytest
from websockets.http11 import Request

from app.backends.base import (
    Agent,
    AgentLost,
    Answer,
    Attachment,
    BackendRejected,
    BackendUnavailable,
    Change,
    OpenAttempt,
    OutcomeUnknown,
    Place,
    ProviderNotFound,
    SendFailed,
    Unsupported,
)
from app.backends.paseo import PaseoBackend
from app.domain.events import Notice
from app.domain.signals import (
    Config,
    ForeignActivity,
    Gap,
    HistoryTold,
    LinkLost,
    LinkRestored,
    PermissionAsked,
    PermissionSettled,
    Report,
    Signal,
    TextDelta,
    ToolCall,
    TurnBroke,
    TurnEnded,
    TurnStopped,
    TurnUnknown,
)
from app.paseo.dialing import Options
from tests.backends.acp_house import PATIENCE, eventually, is_end, text
from tests.backends.paseo_house import SPEED, of, paseo_backend, play, prompt, reports_until, spec
from tests.paseo.scripted import QUICK, scripted_daemon
from tests.paseo.twin import Twin
from tests.paseo.twin_providers import History

pytestmark = pytest.mark.anyio


def ends(signals: list[Signal]) -> list[Signal]:
    return [signal for signal in signals if is_end(signal)]


def says(words: str) -> Any:
    return lambda signal: isinstance(signal, TextDelta) and words in signal.text


def asked(signal: Signal) -> bool:
    return isinstance(signal, PermissionAsked)


def settled(signal: Signal) -> bool:
    return isinstance(signal, PermissionSettled)


def restored(signal: Signal) -> bool:
    return isinstance(signal, LinkRestored)


def ran(signal: Signal) -> bool:
    return isinstance(signal, ToolCall) and signal.status == "completed"


def not_busy(signal: Signal) -> bool:
    return signal == ForeignActivity(busy=False)


# Creating, finding, loading

TOLD, UNTOLD = OpenAttempt("a-1", was_told=True), OpenAttempt("a-1", was_told=False)


async def test_an_agent_is_made_under_its_labels_and_without_a_prompt(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        wanted = spec(
            tmp_path,
            title="Fix",
            model="m2",
            mode="plan",
            system_prompt="Be brief.",
            mcp_servers={"docs": {"type": "http", "url": "https://mcp.example.com"}},
            labels={"session": "s-1", "team": "blue"},
        )
        agent = await backend.create(wanted)
        (made,) = twin.record.of("create_agent_request")
        assert made.message["labels"] == {
            "session": "s-1",
            "team": "blue",
            "origin": "alameda",
            "alameda_key": "key",
        }
        assert "initialPrompt" not in made.message
        assert made.message["config"]["mcpServers"]["docs"]["type"] == "http"
        assert (agent.state.model, agent.state.mode, agent.state.cwd) == ("m2", "plan", str(tmp_path))


async def test_an_agent_whose_creation_was_not_answered_is_found_by_its_key_alone(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        twin.faults.drop_after = "create_agent_request"
        with pytest.raises(OutcomeUnknown):
            await backend.create(spec(tmp_path, labels={"team": "blue"}))
        await backend.create(spec(tmp_path, creation_key="other", labels={"team": "blue"}))
        agent = await backend.find(spec(tmp_path))
        assert agent is not None
        assert twin.agent(agent.state.session).labels["alameda_key"] == "key"
        assert text(of(await play(agent, "a-1", "say hello"), "a-1")) == "hello"


async def test_agents_of_other_clients_are_never_adopted(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        await twin.crowd(2, rate=50)
        assert await backend.find(spec(tmp_path)) is None


async def test_a_provider_whose_sessions_the_daemon_cannot_import_is_not_said_to_be_missing(
    tmp_path: Path,
) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        with pytest.raises(Unsupported, match="No client registered"):
            await backend.create(spec(tmp_path, "acp", provider_session_id="s-1"))


async def test_what_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        with pytest.raises(ProviderNotFound):
            await backend.create(spec(tmp_path, "nope"))
        for provider in ("missing-binary", "switched-off"):
            with pytest.raises(BackendRejected) as refused:
                await backend.create(spec(tmp_path, provider))
            assert not isinstance(refused.value, ProviderNotFound)
        with pytest.raises(BackendRejected, match="does not exist"):
            await backend.create(spec(tmp_path / "nowhere"))
        twin.faults.refuse_connections = True
        twin.drop()
        await eventually(lambda: not backend._client.link.is_up)
        with pytest.raises(BackendUnavailable):
            with anyio.fail_after(PATIENCE):
                await backend.create(spec(tmp_path))


async def test_trap_23_a_directory_that_was_moved_to_its_repository_is_shown(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    async with Twin(speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path / "deep" / "down"))
        assert agent.state.cwd == str(tmp_path)


async def test_a_worktree_is_made_for_the_agent(tmp_path: Path) -> None:
    heads = tmp_path / ".git" / "refs" / "heads"
    heads.mkdir(parents=True)
    (heads / "main").write_text("0" * 40)
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    async with Twin(speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path, worktree={"branch": "Fix/1", "base": "main"}))
        (made,) = twin.record.of("create_agent_request")
        assert made.message["git"] == {
            "createWorktree": True,
            "worktreeSlug": "fix-1",
            "createNewBranch": True,
            "newBranchName": "Fix/1",
            "baseBranch": "main",
        }
        assert agent.state.cwd is not None
        assert agent.state.cwd != str(tmp_path)
        assert text(of(await play(agent, "a-1", "say hello"), "a-1")) == "hello"
        with pytest.raises(BackendRejected, match="Base branch not found"):
            await backend.create(spec(tmp_path, worktree={"branch": "x", "base": "nope"}))


async def test_trap_25_a_session_of_the_provider_is_adopted_with_its_history_once(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        first = await backend.create(spec(tmp_path, "scripted-history"))
        await play(first, "a-1", "say one", "tool read README.md")
        session = twin.agent(first.state.session).session_id
        adopting = spec(
            tmp_path, "scripted-history", creation_key="new", provider_session_id=session, mode="plan"
        )
        agent = await backend.create(adopting)
        assert agent.state.session != first.state.session
        assert agent.state.mode == "plan"
        reports = await play(agent, "a-2", "say two")
        history = of(reports, None)
        user, said = [signal for signal in history if isinstance(signal, TextDelta)]
        assert (user.role, user.text.splitlines()[0], said.text) == ("user", "say one", "one")
        assert [s.status for s in history if isinstance(s, ToolCall)][-1] == "completed"
        assert text(of(reports, "a-2")) == "two"
        found = await backend.find(adopting)
        assert found is not None
        assert found.state.session == agent.state.session


async def test_an_adopted_session_without_history_says_so_and_an_unknown_one_is_refused(
    tmp_path: Path,
) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path, provider_session_id="s-unknown"))
        notice, told = of(await reports_until(agent, lambda s: isinstance(s, HistoryTold)), None)
        assert isinstance(notice, Notice)
        assert isinstance(told, HistoryTold)
        assert notice.code == "import_empty"
        with pytest.raises(BackendRejected, match="lost its words"):
            await backend.create(spec(tmp_path, "scripted-history", provider_session_id="s-nowhere"))
        with pytest.raises(BackendRejected, match="resume"):
            await backend.create(spec(tmp_path, "scripted-noload", provider_session_id="s-elsewhere"))
        with pytest.raises(Unsupported):
            await backend.create(spec(tmp_path, provider_session_id="s", system_prompt="no"))


async def test_an_agent_that_was_archived_behind_our_back_is_revived(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        await play(agent, "a-1", "say one")
        await backend.archive(agent.state.session)
        await eventually(lambda: agent.reports._closed)
        with pytest.raises(SendFailed):
            await agent.prompt(prompt("a-2", "say no"))
        again = await backend.load(spec(tmp_path), agent.state.session, None)
        assert text(of(await play(again, "a-2", "say two"), "a-2")) == "two"
        assert twin.agent(agent.state.session).archived is None


async def test_trap_27_an_agent_that_was_archived_silently_is_revived_by_a_prompt(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        twin.agent(agent.state.session).archived = "2026-01-01T00:00:00.000Z"
        assert text(of(await play(agent, "a-1", "say one"), "a-1")) == "one"
        assert twin.agent(agent.state.session).archived is None
        assert twin.record.count("refresh_agent_request") == 1


async def test_an_agent_that_cannot_be_resumed_is_lost_and_stays_archived(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path, "scripted-noload"))
        await agent.archive()
        with pytest.raises(AgentLost):
            await backend.load(spec(tmp_path, "scripted-noload"), agent.state.session, None)
        assert twin.agent(agent.state.session).archived is not None
        with pytest.raises(AgentLost):
            await backend.load(spec(tmp_path), "00000000-0000-0000-0000-000000000000", None)


async def test_trap_12_a_released_or_archived_agent_takes_no_prompt(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        await agent.archive()
        with pytest.raises(SendFailed) as refused:
            await agent.prompt(prompt("a-1", "say no"))
        assert refused.value.delivered == "no"
        assert twin.record.count("send_agent_message_request") == 0


async def test_trap_12_a_prompt_never_ends_somebody_elses_turn(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        await twin.prompt(agent.state.session, "say theirs\nhang")
        await reports_until(agent, says("theirs"))
        assert await agent.is_busy()
        with pytest.raises(SendFailed) as refused:
            await agent.prompt(prompt("a-1", "say ours"))
        assert (refused.value.delivered, refused.value.retriable) == ("no", True)
        await agent.interrupt()
        await reports_until(agent, not_busy)
        assert text(of(await play(agent, "a-1", "say ours"), "a-1")) == "ours"


async def test_trap_27_an_agent_that_was_deleted_ends_its_turn_as_lost(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        await agent.prompt(prompt("a-1", "say one", "hang"))
        await reports_until(agent, says("one"))
        async with paseo_backend(twin) as other:
            await other._client.delete(agent.state.session)
        (broke,) = ends(of(await reports_until(agent, is_end), "a-1"))
        assert isinstance(broke, TurnBroke)
        assert (broke.code, broke.delivered) == ("backend_session_lost", "yes")
        await eventually(lambda: agent.reports._closed)


# Settings


async def test_trap_24_settings_are_checked_against_the_lists_and_what_is_in_force_is_shown(
    tmp_path: Path,
) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        odd = await backend.create(spec(tmp_path, model="no such model", mode="no such mode"))
        assert (odd.state.model, odd.state.mode) == ("m1", "default")
        agent = await backend.create(spec(tmp_path, "scripted-thinking"))
        assert agent.state.thinking == "low"
        state = await agent.configure(Change(model="m2", mode="plan", thinking="high", title="New"))
        assert (state.model, state.mode, state.thinking) == ("m2", "plan", "high")
        assert twin.agent(state.session).title == "New"
        for change in (Change(model="m9"), Change(mode="m9"), Change(thinking="m9")):
            with pytest.raises(Unsupported):
                await agent.configure(change)
        assert agent.state == state
        with pytest.raises(Unsupported):
            await odd.configure(Change(thinking="high"))
        reports = await play(agent, "a-1", "say done")
        assert not any(isinstance(signal, Config) for report in reports for signal in report.signals)


async def test_providers_that_are_still_looked_at_are_waited_for(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED, probe_delay=0.02) as twin, paseo_backend(twin) as backend:
        await twin.restart()
        found = {provider.id: provider for provider in await backend.providers()}
        assert [model.id for model in found["scripted"].models] == ["m1", "m2"]
        assert [mode.id for mode in found["scripted"].modes] == ["default", "plan"]
        assert [option.id for option in found["scripted-thinking"].thinking] == ["low", "high"]
        assert not found["missing-binary"].available
        assert "switched-off" not in found


async def test_health_tells_the_version_and_what_is_wrong(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        health = await backend.health()
        assert health.up
        assert health.version == "0.1.65-beta.5"
        await twin.kill()
        await eventually(lambda: not backend._client.link.is_up)
        health = await backend.health()
        assert not health.up
        assert health.detail is not None
        assert "paseo daemon start" in health.detail


async def test_health_tells_a_daemon_of_which_only_the_websocket_does_not_answer(tmp_path: Path) -> None:
    """As behind a proxy that passes no upgrades, or after the daemon's greeting got stuck."""
    place = Place(filesystem="shared", default_cwd=tmp_path, roots=[tmp_path])

    def answer(request: Request) -> tuple[HTTPStatus, dict[str, str], str]:
        if request.path == "/api/health":
            return HTTPStatus.OK, {}, '{"status":"ok"}'
        return HTTPStatus.BAD_GATEWAY, {}, ""

    async with scripted_daemon(http=answer) as daemon, anyio.create_task_group() as tasks:
        backend = PaseoBackend("paseo", daemon.url, None, place, "scripted", tasks, options=Options(**QUICK))
        try:
            health = await backend.health()
        finally:
            await backend.aclose()
            tasks.cancel_scope.cancel()
    assert not health.up
    assert health.detail is not None
    assert "502" in health.detail
    assert "It answers over HTTP" in health.detail


# Permissions


async def test_a_permission_can_be_answered_only_with_what_is_honoured(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        await agent.prompt(prompt("a-1", "asks one;two"))
        first = of(await reports_until(agent, asked), "a-1")
        request = next(signal for signal in first if isinstance(signal, PermissionAsked))
        assert [option.option_id for option in request.options] == ["allow", "reject"]
        for answer in (
            Answer(allow=True, option_id="always"),
            Answer(allow=True, option_id="reject"),
            Answer(allow=True, updated_input={"command": "rm"}),
        ):
            with pytest.raises(BackendRejected):
                await agent.answer(request.request, answer)
        with pytest.raises(BackendRejected):
            await agent.answer("no such request", Answer(allow=True))
        assert twin.record.count("agent_permission_response") == 0
        await agent.answer(request.request, Answer(allow=True, option_id="allow"))
        await agent.interrupt()
        rest = of(await reports_until(agent, is_end), "a-1")
        assert PermissionSettled(request=request.request, outcome="allowed", option_id="allow") in rest
        assert [s.outcome for s in rest if isinstance(s, PermissionSettled)] == ["allowed", "cancelled"]
        assert ends(rest) == [TurnStopped()]


async def test_trap_11_a_permission_that_another_client_answered_first_is_settled_by_it(
    tmp_path: Path,
) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        await agent.prompt(prompt("a-1", "ask make", "sleep 1000"))
        signals = of(await reports_until(agent, asked), "a-1")
        request = next(signal for signal in signals if isinstance(signal, PermissionAsked)).request
        twin.answer(agent.state.session, "deny")
        with pytest.raises(BackendRejected):
            await agent.answer(request, Answer(allow=True))
        rest = of(await reports_until(agent, settled), "a-1")
        (told,) = [signal for signal in rest if isinstance(signal, PermissionSettled)]
        assert told.request == request
        assert told.outcome in ("denied", "unknown")  # the daemon tells no resolution of a contested one


async def test_a_permission_that_another_client_answers_is_settled(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        twin.faults.foreign_answer = "deny"
        reports = await play(agent, "a-1", "ask make", "sleep 500")
        told = [signal for signal in of(reports, "a-1") if settled(signal)]
        assert [signal.outcome for signal in told if isinstance(signal, PermissionSettled)] == ["denied"]


async def test_trap_16_a_resolution_after_the_end_carries_the_turn_that_it_belongs_to(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        await agent.prompt(prompt("a-1", "ask make"))
        signals = of(await reports_until(agent, asked), "a-1")
        request = next(signal for signal in signals if isinstance(signal, PermissionAsked)).request
        await agent.answer(request, Answer(allow=True))
        reports = await reports_until(agent, settled)
        assert PermissionSettled(request=request, outcome="allowed") in of(reports, "a-1")


async def test_a_provider_that_tells_no_resolution_is_watched_for_it(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path, "opencode"))
        for attempt, allow, outcome in (("a-1", True, "allowed"), ("a-2", False, "denied")):
            await agent.prompt(prompt(attempt, "ask make"))
            signals = of(await reports_until(agent, asked), attempt)
            request = next(signal for signal in signals if isinstance(signal, PermissionAsked)).request
            await agent.answer(request, Answer(allow=allow, message=None if allow else "rather not"))
            told = of(await reports_until(agent, is_end), attempt)
            assert PermissionSettled(request=request, outcome=outcome) in told  # type: ignore[arg-type]
            assert ends(told)[0] == told[-1]


async def test_the_answers_to_a_question_go_back_with_the_question(tmp_path: Path) -> None:
    questions = {"questions": [{"question": "Which?", "header": "Pick", "options": [{"label": "A"}]}]}
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path, "opencode"))
        await agent.prompt(prompt("a-1", f"tool question {json.dumps(questions)}"))
        signals = of(await reports_until(agent, asked), "a-1")
        request = next(signal for signal in signals if isinstance(signal, PermissionAsked))
        assert request.questions[0].options == ("A",)
        await agent.answer(request.request, Answer(allow=True, answers={"Pick": "A"}))
        (answer,) = twin.record.of("agent_permission_response")
        assert answer.message["response"]["updatedInput"] == {**questions, "answers": {"Pick": "A"}}
        assert isinstance(ends(of(await reports_until(agent, is_end), "a-1"))[0], TurnEnded)


async def test_pending_permissions_are_asked_again_after_the_link_was_lost(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        await agent.prompt(prompt("a-1", "asks one;two", "say done"))
        requests: list[str] = []
        while len(requests) < 2:
            told = of(await reports_until(agent, asked), "a-1")
            requests += [signal.request for signal in told if isinstance(signal, PermissionAsked)]
        twin.drop()
        told = of(await reports_until(agent, restored), "a-1")
        kinds = [type(signal) for signal in told]
        assert kinds == [LinkLost, PermissionAsked, PermissionAsked, LinkRestored]
        assert told[-1] == LinkRestored(pending=frozenset(requests))
        for request in requests:
            await agent.answer(request, Answer(allow=True))
        assert isinstance(ends(of(await reports_until(agent, is_end), "a-1"))[0], TurnEnded)


# Stopping, and processes that die


async def test_trap_16_a_stubborn_agent_is_started_anew_before_the_next_prompt(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED, force_after=17.0) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        await agent.prompt(prompt("a-1", "say one", "stubborn 20000"))
        await reports_until(agent, says("one"))
        await agent.interrupt()
        assert ends(of(await reports_until(agent, is_end), "a-1")) == [TurnStopped(is_forced=True)]
        await twin.record.wait("refresh_agent_request")  # at once: it would work on
        assert text(of(await play(agent, "a-2", "say two"), "a-2")) == "two"
        assert twin.record.count("refresh_agent_request") == 1


@pytest.mark.parametrize("provider", ["scripted", "opencode"])
async def test_a_turn_that_is_cancelled_before_it_has_started_stops(tmp_path: Path, provider: str) -> None:
    """The daemon answers such a cancel at once, and then starts the turn all the same."""
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path, provider))
        twin.providers[provider].prompt_delay = 2.0
        await agent.prompt(prompt("a-1", "hang"))
        await twin.record.wait("send_agent_message_request")
        await agent.interrupt()
        assert ends(of(await reports_until(agent, is_end), "a-1")) == [TurnStopped()]


async def test_trap_22_what_a_restarted_process_replays_is_not_told(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path, "scripted-history"))
        reports = await play(agent, "a-1", "say one", "crash")
        (broke,) = ends(of(reports, "a-1"))
        assert isinstance(broke, TurnBroke)
        assert broke.code == "agent_process_dead"
        assert text(of(reports, "a-1")) == "one"
        reports = await play(agent, "a-2", "say two")
        assert [s for s in of(reports, None) if not isinstance(s, ForeignActivity)] == []
        assert text(of(reports, "a-2")) == "two"


async def test_a_killed_agent_has_stopped_and_works_again(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        await agent.prompt(prompt("a-1", "say one", "hang"))
        await reports_until(agent, says("one"))
        await agent.kill()
        assert ends(of(await reports_until(agent, is_end), "a-1")) == [TurnStopped()]
        assert text(of(await play(agent, "a-2", "say two"), "a-2")) == "two"


async def test_trap_10_an_agent_that_cannot_be_started_anew_is_not_called_stopped(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        await agent.prompt(prompt("a-1", "say one", "hang"))
        await reports_until(agent, says("one"))
        twin.faults.ignored.add("refresh_agent_request")
        await agent.kill()
        assert not agent.reports.has_reports
        twin.faults.ignored.clear()
        await agent.archive()


async def test_a_process_that_died_while_idle_is_probed_and_replaced(tmp_path: Path) -> None:
    """It takes the prompt, says that a turn started, and nothing follows."""
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        await play(agent, "a-1", "exitlater 1")
        process = twin.agent(agent.state.session).process
        assert process is not None
        await eventually(lambda: process.dead)
        (broke,) = ends(of(await play(agent, "a-2", "say two"), "a-2"))
        assert isinstance(broke, TurnBroke)
        assert broke.code == "agent_process_dead"
        assert text(of(await play(agent, "a-3", "say three"), "a-3")) == "three"
        assert twin.record.count("send_agent_message_request", text="say two") == 1


async def test_a_quiet_agent_whose_process_lives_is_left_alone(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        reports = await play(agent, "a-1", "sleep 9000", "say at last")
        assert text(of(reports, "a-1")) == "at last"
        assert twin.record.count("set_agent_mode_request") == 1
        assert twin.record.count("cancel_agent_request") == 0


# Other clients


async def test_a_foreign_prompt_replaces_our_turn(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        await agent.prompt(prompt("a-1", "say ours", "hang"))
        await reports_until(agent, says("ours"))
        await twin.prompt(agent.state.session, "say theirs", "a-1")  # even under our own id
        reports = await reports_until(agent, not_busy)
        assert ends(of(reports, "a-1")) == [TurnStopped(cause="replaced")]
        outside = of(reports, None)
        assert [s.text for s in outside if isinstance(s, TextDelta)] == ["say theirs", "theirs"]
        assert [s.code for s in outside if isinstance(s, Notice)] == ["foreign_activity"]
        assert isinstance(outside[0], Notice)
        assert [s.busy for s in outside if isinstance(s, ForeignActivity)] == [True, False]


async def test_a_foreign_cancel_is_called_so(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        for key, provider in (("one", "scripted"), ("two", "opencode")):
            agent = await backend.create(spec(tmp_path, provider, creation_key=key))
            await agent.prompt(prompt("a-1", "say ours", "toolstart shell make", "hang"))
            await reports_until(agent, lambda signal: isinstance(signal, ToolCall))
            await twin.cancel(agent.state.session)
            signals = of(await reports_until(agent, is_end), "a-1")
            assert ends(signals) == [TurnStopped(cause="other_client")]
            assert [s.status for s in signals if isinstance(s, ToolCall)] == ["cancelled"]


async def test_trap_08_what_others_do_outside_our_turns_is_told_as_theirs(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        await twin.crowd(2, rate=100)
        for number in range(2):
            await twin.prompt(agent.state.session, f"say theirs {number}\nsleep 300")
            reports = await reports_until(agent, not_busy)
            assert {report.attempt for report in reports} == {None}
            signals = of(reports, None)
            said = [s.text for s in signals if isinstance(s, TextDelta) and s.role == "assistant"]
            assert said == [f"theirs {number}"]
            assert sum(isinstance(signal, Notice) for signal in signals) == (number == 0)
        assert not await agent.is_busy()


async def test_calls_that_an_earlier_turn_left_open_are_not_told_again(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        await play(agent, "a-1", "toolstart shell make", "say one")
        for attempt in ("a-2", "a-3"):
            await agent.prompt(prompt(attempt, "say more", "hang"))
            await reports_until(agent, says("more"))
            await agent.interrupt()
            signals = of(await reports_until(agent, is_end), attempt)
            assert not any(isinstance(signal, ToolCall) for signal in signals)


# What is sent and what comes


async def test_attachments_reach_the_agent(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        image = Attachment(kind="image", mime_type="image/png", data="aGk=")
        note = Attachment(kind="text", name="log.txt", data="say from the file")
        await agent.prompt(prompt("a-1", "blocks", attachments=[image, note]))
        said = text(of(await reports_until(agent, is_end), "a-1"))
        parts = json.loads(said[len("blocks: ") : said.index("]") + 1])
        assert [part["type"] for part in parts] == ["text", "image", "text"]
        assert said.endswith("from the file")


async def test_what_is_no_text_is_refused_and_a_nul_is_not(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        for words in ("say \ud800", "x" * (100 * 1024 * 1024)):
            with pytest.raises(SendFailed) as refused:
                await agent.prompt(prompt("a-1", words))
            assert (refused.value.delivered, refused.value.retriable) == ("no", False)
        assert text(of(await play(agent, "a-2", "say a\x00b"), "a-2")) == "a\x00b"


async def test_rows_that_are_too_big_are_a_gap_and_the_rest_is_told(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin, max_size=100_000) as backend:
        agent = await backend.create(spec(tmp_path))
        await agent.prompt(
            prompt("a-1", "say before", "tool read x", "chunks 1 0 200000", "tool read y", "say after")
        )
        reports = await reports_until(agent, is_end)
        signals = of(reports, "a-1")
        assert any(isinstance(signal, Gap) for signal in signals)
        assert text(signals) == "beforeafter"
        assert isinstance(ends(signals)[0], TurnEnded)


async def test_a_huge_frame_costs_the_link_and_no_turn(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        await agent.prompt(prompt("a-1", "say before", "hang"))
        await reports_until(agent, says("before"))
        twin.flood()
        signals = of(await reports_until(agent, restored), "a-1")
        assert [type(signal) for signal in signals] == [LinkLost, LinkRestored]
        await agent.interrupt()
        assert ends(of(await reports_until(agent, is_end), "a-1")) == [TurnStopped()]


async def test_a_reader_that_was_too_slow_catches_up(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED, window=0.0) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        agent.reports.MAX_REPORTS = 50
        await agent.prompt(prompt("a-1", "chunks 11000 0 0", "say last"))
        await twin_idle(twin, agent)
        signals = of(await reports_until(agent, is_end), "a-1")
        said = text(signals).split()
        assert said == [*(f"c{number}" for number in range(11000)), "last"]


async def twin_idle(twin: Twin, agent: Agent) -> None:
    """Wait until the agent's turn is over in the daemon."""
    await eventually(lambda: twin.agent(agent.state.session).status == "idle")


# Losing sight


async def test_trap_32_what_repeats_and_goes_back_is_told_once(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        found = twin.agent(agent.state.session)
        for _ in range(3):
            twin.running.update(found)
        twin.strange(agent.state.session)
        reports = await play(agent, "a-1", "mode plan", "say one")
        told = [s for report in reports for s in report.signals if isinstance(s, Config)]
        assert [config.mode for config in told] == ["plan"]
        assert text(of(reports, "a-1")) == "one"


@pytest.mark.parametrize("provider", ["scripted", "opencode"])
async def test_trap_14_a_turn_that_ends_while_nobody_looks_is_told_whole(
    tmp_path: Path, provider: str
) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path, provider))
        for number, script in enumerate(("say rest", "fail oh")):
            await agent.prompt(prompt(f"a-{number}", "say begun", "tool search x", "sleep 3000", script))
            await reports_until(agent, ran)
            twin.faults.refuse_connections = True
            twin.drop()
            await eventually(lambda: twin.agent(agent.state.session).status in ("idle", "error"))
            twin.faults.refuse_connections = False
            signals = of(await reports_until(agent, is_end), f"a-{number}")
            if number == 0:
                assert ends(signals) == [TurnEnded(stop_reason=None, reconciled=True)]
                assert text(signals) == "rest"
            else:
                assert isinstance(signals[-1], TurnBroke)
                assert text(signals) == ""


async def test_a_provider_that_is_slow_to_take_the_prompt_never_makes_a_false_end(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path, "opencode"))
        twin.providers["opencode"].prompt_delay = 4.0
        await agent.prompt(prompt("a-1", "say at last"))
        await twin.record.wait("send_agent_message_request")
        twin.drop()
        signals = of(await reports_until(agent, is_end), "a-1")
        assert isinstance(ends(signals)[0], TurnEnded)
        assert text(signals) == "at last"


async def test_a_prompt_that_no_provider_takes_is_indeterminate_and_its_agent_archived(
    tmp_path: Path,
) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path, "opencode"))
        twin.providers["opencode"].prompt_delay = 14.9
        await agent.prompt(prompt("a-1", "say never"))
        await eventually(lambda: len(twin.agent(agent.state.session).timeline.rows) == 1)
        twin.drop()
        (end,) = ends(of(await reports_until(agent, is_end), "a-1"))
        assert end == TurnUnknown(cause="never_started", delivered="yes")
        await eventually(lambda: twin.agent(agent.state.session).archived is not None)


async def test_trap_13_a_prompt_that_never_arrived_may_be_sent_again_and_only_then(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        twin.faults.drop_before = "send_agent_message_request"
        await agent.prompt(prompt("a-1", "say one"))
        (broke,) = ends(of(await reports_until(agent, is_end), "a-1"))
        assert isinstance(broke, TurnBroke)
        assert (broke.code, broke.delivered, broke.retriable) == ("backend_unavailable", "no", True)
        twin.faults.drop_after = "send_agent_message_request"
        signals = of(await play(agent, "a-2", "say two"), "a-2")
        assert text(signals) == "two"
        assert twin.record.count("send_agent_message_request") == 2


async def test_a_new_process_tells_the_rest_of_a_turn(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin:
        async with paseo_backend(twin) as backend:
            agent = await backend.create(spec(tmp_path))
            await agent.prompt(prompt("a-1", "say one", "tool search x", "sleep 5000", "say two"))
            reports = await reports_until(
                agent, lambda s: isinstance(s, ToolCall) and s.status == "completed"
            )
            cursor = reports[-1].cursor
        async with paseo_backend(twin) as backend:
            again = await backend.load(spec(tmp_path), agent.state.session, cursor, TOLD)
            reports = await reports_until(again, is_end)
            signals = of(reports, "a-1")
            assert isinstance(signals[0], LinkRestored)
            assert text(signals) == "two"
            assert ends(signals) == [TurnEnded(stop_reason=None)]
        assert twin.record.count("send_agent_message_request") == 1


async def test_a_new_process_cannot_tell_whether_an_absent_prompt_arrives_yet(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        cursor = agent.reports.drain()[-1].cursor
        await agent.release()
        again = await backend.load(spec(tmp_path), agent.state.session, cursor, UNTOLD)
        (end,) = ends(of(await reports_until(again, is_end), "a-1"))
        assert end == TurnUnknown(cause="prompt_not_found", delivered="unknown")


async def test_foreign_activity_while_away_is_told_at_the_next_load(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        cursor = agent.reports.drain()[-1].cursor
        await agent.release()
        await twin.prompt(agent.state.session, "say theirs\nhang")
        await eventually(lambda: len(twin.agent(agent.state.session).timeline.rows) == 2)
        again = await backend.load(spec(tmp_path), agent.state.session, cursor)
        signals = [s for report in again.reports.drain() for s in report.signals]
        assert ForeignActivity(busy=True) in signals
        assert [s.text for s in signals if isinstance(s, TextDelta) and s.role == "assistant"] == ["theirs"]


async def test_trap_21_a_killed_daemon_leaves_a_turn_indeterminate_and_an_agent_that_works(
    tmp_path: Path,
) -> None:
    for history in ("whole", "empty"):
        async with Twin(speed=SPEED) as twin, paseo_backend(twin) as backend:
            agent = await backend.create(spec(tmp_path))
            await play(agent, "a-1", "say one")
            await agent.prompt(prompt("a-2", "say two", "hang"))
            await reports_until(agent, says("two"))
            await twin.restart(history=history)
            signals = of(await reports_until(agent, is_end), "a-2")
            (end,) = ends(signals)
            assert isinstance(end, TurnUnknown)
            assert end.delivered == "yes"
            assert text(signals) == ""
            reports = await play(agent, "a-3", "say three")
            assert text(of(reports, "a-3")) == "three"
            assert text(of(reports, None)) == ""


async def test_trap_18_an_agent_that_a_new_daemon_cannot_load_is_judged_and_lost(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        await agent.prompt(prompt("a-1", "say one", "hang"))
        await reports_until(agent, says("one"))
        await twin.restart(history="unloadable")
        (end,) = ends(of(await reports_until(agent, is_end), "a-1"))
        assert isinstance(end, TurnUnknown)
        await eventually(lambda: agent.reports.is_closed)
        with pytest.raises(AgentLost):
            await backend.load(spec(tmp_path), agent.state.session, None)


async def test_a_daemon_that_was_killed_after_the_end_shows_it(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin:
        async with paseo_backend(twin) as backend:
            agent = await backend.create(spec(tmp_path))
            await agent.prompt(prompt("a-1", "say one", "sleep 2000", "say two"))
            cursor = (await reports_until(agent, says("one")))[-1].cursor
        await twin_idle(twin, agent)
        await twin.restart()
        async with paseo_backend(twin) as backend:
            again = await backend.load(spec(tmp_path), agent.state.session, cursor, TOLD)
            signals = of(await reports_until(again, is_end), "a-1")
            assert isinstance(signals[-2], Gap)
            assert signals[-1] == TurnEnded(stop_reason=None, reconciled=True)


async def test_an_orderly_stop_leaves_a_turn_indeterminate(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        await agent.prompt(prompt("a-1", "say one", "hang"))
        await reports_until(agent, says("one"))
        await twin.restart(orderly=True)
        (end,) = ends(of(await reports_until(agent, is_end), "a-1"))
        assert isinstance(end, TurnUnknown)
        assert text(of(await play(agent, "a-2", "say two"), "a-2")) == "two"


# opencode


async def test_an_empty_turn_of_opencode_is_no_success(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path, "opencode"))
        twin.providers["opencode"].settle = 60.0
        await play(agent, "a-1", "fail oh")
        (broke,) = ends(of(await play(agent, "a-2", "say two"), "a-2"))
        assert isinstance(broke, TurnBroke)
        assert broke.code == "empty_turn"


async def test_a_false_refusal_of_opencode_is_none(tmp_path: Path) -> None:
    """It says that it failed to start, and runs."""
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path, "opencode"))
        twin.providers["opencode"].settle = 60.0
        twin.providers["opencode"].false_start = "refused"
        await play(agent, "a-1", "fail oh")
        signals = of(await play(agent, "a-2", "say two"), "a-2")
        assert text(signals) == "two"
        assert isinstance(ends(signals)[0], TurnEnded)


async def test_trap_26_failures_are_told_in_words(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        for provider, words in (("scripted", "lost its words"), ("opencode", "APIError: out of credit")):
            agent = await backend.create(spec(tmp_path, provider, creation_key=provider))
            signals = of(await play(agent, "a-1", "say one", "fail out of credit"), "a-1")
            (broke,) = ends(signals)
            assert isinstance(broke, TurnBroke)
            assert words in broke.message
            assert text(signals) == "one"


async def test_a_server_of_opencode_that_died_is_started_anew(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path, "opencode"))
        (broke,) = ends(of(await play(agent, "a-1", "crash"), "a-1"))
        assert isinstance(broke, TurnBroke)
        assert broke.code == "agent_process_dead"
        assert text(of(await play(agent, "a-2", "say two"), "a-2")) == "two"


async def test_an_interrupt_of_opencode_is_willing(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path, "opencode"))
        await agent.prompt(prompt("a-1", "say one", "hang"))
        await reports_until(agent, says("one"))
        await agent.interrupt()
        assert ends(of(await reports_until(agent, is_end), "a-1")) == [TurnStopped()]
        assert twin.record.count("refresh_agent_request") == 0


# Traps that need few words


async def test_trap_15_deltas_are_joined_and_a_call_may_begin_with_its_end(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        signals = of(await play(agent, "a-1", "say one", "say two", "tool shell ls"), "a-1")
        assert [s.text for s in signals if isinstance(s, TextDelta)] == ["onetwo"]
        assert [s.status for s in signals if isinstance(s, ToolCall)] == ["completed"]


async def test_trap_17_the_flag_is_no_end_and_is_lowered_before_each_prompt(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        for number in range(3):
            assert len(ends(of(await play(agent, f"a-{number}", "say one"), f"a-{number}"))) == 1
            await twin_idle(twin, agent)
            assert twin.agent(agent.state.session).attention == "finished"
        assert twin.record.count("clear_agent_attention") == 3
        twin.faults.never.add("clear_agent_attention")  # it may also stay unanswered


async def test_trap_19_and_20_an_agent_is_looked_at_before_it_is_read_in_whole_rows(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        await agent.prompt(prompt("a-1", "say one", "hang"))
        await reports_until(agent, says("one"))
        before = len(twin.record.received)
        twin.drop()
        await reports_until(agent, restored)
        asked_for = [found.message for found in twin.record.received[before:] if found.type != "ping"]
        assert [message["type"] for message in asked_for][-2:] == [
            "fetch_agent_request",
            "fetch_agent_timeline_request",
        ]
        assert asked_for[-1]["projection"] == "canonical"
        assert asked_for[-1]["direction"] == "after"


async def test_trap_28_secrets_come_back_in_no_report(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        servers = {"docs": {"type": "http", "url": "https://e", "headers": {"Authorization": "s3cret"}}}
        agent = await backend.create(spec(tmp_path, mcp_servers=servers, system_prompt="s3cret"))
        reports = await play(agent, "a-1", "say one", "plan a;b", "tool shell ls")
        assert "s3cret" not in repr(reports)
        assert "s3cret" not in repr(agent.state)


async def test_a_permission_that_was_raised_and_answered_while_we_were_away_leaves_no_trace(
    tmp_path: Path,
) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path))
        await agent.prompt(prompt("a-1", "ask make", "sleep 3000", "say done"))
        await reports_until(agent, asked)
        twin.faults.refuse_connections = True
        twin.drop()
        twin.answer(agent.state.session, "allow")
        twin.faults.refuse_connections = False
        signals = of(await reports_until(agent, is_end), "a-1")
        assert LinkRestored() in signals
        assert text(signals).endswith("done")
        assert isinstance(ends(signals)[0], TurnEnded)


async def test_a_daemon_that_dies_while_nothing_runs_is_no_news(tmp_path: Path) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        agent = await backend.create(spec(tmp_path, "scripted-history"))
        await play(agent, "a-1", "say one")
        for orderly in (False, True):
            await twin.restart(orderly=orderly)
            await twin.record.wait("refresh_agent_request", 1 + orderly)
            name = f"a-{2 + orderly}"
            reports = await play(agent, name, "say more")
            assert text(of(reports, name)) == "more"
            assert text(of(reports, None)) == ""


async def test_a_history_that_was_told_in_part_is_told_to_its_end_by_the_next_host(tmp_path: Path) -> None:
    """All of it as nobody's turn and nobody's activity."""
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        first = await backend.create(spec(tmp_path, "scripted-history"))
        await play(first, "a-1", "say one")
        await play(first, "a-2", "say two")
        session = twin.agent(first.state.session).session_id
        adopting = spec(tmp_path, "scripted-history", creation_key="new", provider_session_id=session)
        agent = await backend.create(adopting)
        whole: list[Report] = []
        while "two" not in text(of(whole, None)):
            whole += await agent.reports.take()
        partly = next(r.cursor for r in whole if r.signals and r.cursor is not None)
        assert partly.epoch.startswith("history:")
        await agent.release()
        again = await backend.load(adopting, agent.state.session, partly)
        rest: list[Report] = []
        while not rest or rest[-1].cursor is None or rest[-1].cursor.epoch.startswith("history:"):
            rest += await again.reports.take()
        signals = of(rest, None)
        assert "two" in text(signals)
        assert not any(isinstance(signal, Notice) for signal in signals)
        assert ForeignActivity(busy=True) not in signals


async def test_an_import_whose_answer_was_lost_is_found_again_wherever_it_works(tmp_path: Path) -> None:
    """The daemon lists no agent in a directory that it does not know, as an import may make one."""
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        first = await backend.create(spec(tmp_path, "scripted-history"))
        await play(first, "a-1", "say one")
        session = twin.agent(first.state.session).session_id
        adopting = spec(fresh, "scripted-history", creation_key="new", provider_session_id=session)
        made = await backend.create(adopting)
        found = await backend.find(adopting)
        assert found is not None
        assert found.state.session == made.state.session


@pytest.mark.parametrize("history", ["whole", "empty"])
async def test_a_history_is_told_on_from_a_new_epoch_only_if_that_begins_as_it_was_told(
    tmp_path: Path, history: History
) -> None:
    """A daemon that is started anew has its provider give it again: the same rows, or none that fit."""
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as backend:
        first = await backend.create(spec(tmp_path, "scripted-history"))
        await play(first, "a-1", "say one")
        await play(first, "a-2", "think hm", "tool read x", "say two")
        session = twin.agent(first.state.session).session_id
        adopting = spec(tmp_path, "scripted-history", creation_key="new", provider_session_id=session)
        agent = await backend.create(adopting)
        reports: list[Report] = []
        while "two" not in text(of(reports, None)):
            reports += await agent.reports.take()
        await agent.release()
        told = next(n for n, r in enumerate(reports) if "one" in text(r.signals)) + 1
        partly = reports[told - 1].cursor
        await twin.restart(history=history)
        again = await backend.load(adopting, agent.state.session, partly)
        rest: list[Report] = []
        while not rest or rest[-1].cursor is None or rest[-1].cursor.epoch.startswith("history:"):
            rest += await again.reports.take()
        notices = [s.code for s in of(rest, None) if isinstance(s, Notice)]
        if history == "whole":
            whole = [*of(reports[:told], None), *of(rest, None)]
            assert [s for s in whole if not isinstance(s, ForeignActivity)] == [
                s for s in of(reports, None) if not isinstance(s, ForeignActivity)
            ]
            assert notices == []
        else:
            assert (notices, text(of(rest, None))) == (["import_incomplete"], "")
        assert text(of(await play(again, "a-3", "say three"), "a-3")) == "three"
