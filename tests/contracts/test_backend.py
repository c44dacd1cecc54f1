"""What the engine relies on, whatever the backend: one suite for every type.

A stage offers a backend whose agents play scripts, one command a line, in the language of the demo agent
(`python -m app.demo --help`). Where types differ, the stage says how.
"""

import json
import os
import re
import shlex
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import anyio
import pytest

from app.backends.base import (
    Agent,
    AgentLost,
    AgentSpec,
    Answer,
    Backend,
    BackendRejected,
    Change,
    Place,
    Prompt,
    ProviderNotFound,
    SendFailed,
    Unsupported,
)
from app.backends.paseo import PaseoBackend
from app.backends.paseo_cli import PaseoCliBackend
from app.backends.paseo_cli_following import CliPace
from app.domain.details import Edit, Read, Shell, Unknown
from app.domain.events import PlanEntry
from app.domain.signals import (
    AgentDied,
    Config,
    PermissionAsked,
    PermissionSettled,
    Plan,
    ReasoningPiece,
    Report,
    Signal,
    TextDelta,
    ToolCall,
    TurnBroke,
    TurnEnded,
    TurnStopped,
    Usage,
)
from tests.backends.acp_house import DEMO, PATIENCE, acp_backend, is_end, text, until
from tests.backends.paseo_cli_house import cli_backend
from tests.backends.paseo_house import SPEED, paseo_backend
from tests.paseo.twin import Twin

pytestmark = pytest.mark.anyio

PROVIDER = os.environ.get("ALAMEDA_TEST_PASEO_PROVIDER", "scripted")


@dataclass(frozen=True, kw_only=True)
class Traits:
    """How the types differ."""

    stop_reasons: bool = True
    """Whether it tells why a turn ended by itself: a refusal can be told from an answer."""
    names_messages: bool = True
    """Whether its messages have ids; without, neighbouring texts are one message."""
    error_texts: bool = True
    """Whether a provider's words on its failure arrive."""
    heals: bool = False
    """Whether an agent whose process died works again by itself; else it has to be loaded again."""
    chooses: str = "allow_always"
    """The kind of an option that is honoured, among those that allow."""
    models: tuple[str, str] = ("demo-1", "demo-2")
    every_status: bool = True
    """Whether a tool call is always told as running before it ends; else its start may be left out."""
    runs_what_it_asked: bool = True
    """Whether an agent runs a tool once it is allowed to."""
    tells_all: bool = True
    """Whether it tells of a turn while it runs, and more than words: else these alone, at its end."""
    sees_ends: bool = True
    """Whether it sees how a turn ends: else an end without an error is always reconciled."""


class Stage(Protocol):
    """A backend whose agents play scripts."""

    backend: Backend
    traits: Traits

    def spec(self, *, asks_questions: bool = False) -> AgentSpec:
        """What an agent is made of; every call with a creation key of its own."""

    def prompt(self, *script: str) -> Prompt:
        """A prompt that makes an agent play the script; every call is an attempt of its own."""

    def decided(self, signals: list[Signal]) -> str:
        """What became of the agent's request, as the agent itself understood it: `allowed` or `denied`."""

    def heard(self, signals: list[Signal]) -> str:
        """The answer to its question, as the agent understood it."""


@dataclass
class AcpStage:
    """The demo agent, which understands the language of the scripts itself."""

    backend: Backend
    traits: Traits = field(default_factory=Traits)
    made: int = 0

    def spec(self, *, asks_questions: bool = False) -> AgentSpec:
        self.made += 1
        return AgentSpec(creation_key=f"key-{self.made}", provider="acp", cwd=str(Path.cwd()))

    def prompt(self, *script: str) -> Prompt:
        self.made += 1
        return Prompt(attempt=f"attempt-{self.made}", text="\n".join(script))

    def decided(self, signals: list[Signal]) -> str:
        return text(signals)

    def heard(self, signals: list[Signal]) -> str:
        return text(signals).removeprefix("you said: ")


@dataclass
class PaseoStage:
    """The agents of a twin of the daemon, to whom the scripts are translated."""

    backend: Backend
    home: Path
    traits: Traits = field(
        default_factory=lambda: Traits(
            stop_reasons=False,
            names_messages=False,
            error_texts=False,
            heals=True,
            chooses="allow_once",
            models=("m1", "m2"),
            every_status=False,
            runs_what_it_asked=False,
        )
    )
    made: int = 0

    def spec(self, *, asks_questions: bool = False) -> AgentSpec:
        self.made += 1
        provider = "opencode" if asks_questions else "scripted"
        return AgentSpec(creation_key=f"key-{self.made}", provider=provider, cwd=str(self.home))

    def prompt(self, *script: str) -> Prompt:
        self.made += 1
        lines, is_deaf = [], False
        for line in script:
            verb, _, rest = line.partition(" ")
            is_deaf = is_deaf or verb == "ignore-cancel"
            sleeps_deaf = is_deaf and verb == "sleep"
            lines += [f"stubborn {float(rest) * 1000}"] if sleeps_deaf else _for_twin(verb, rest)
        return Prompt(attempt=f"attempt-{self.made}", text="\n".join(lines))

    def decided(self, signals: list[Signal]) -> str:
        outcome = json.loads(text(signals).removeprefix("permission: "))["outcome"]
        return {"allow": "allowed", "reject": "denied"}[outcome["optionId"]]

    def heard(self, signals: list[Signal]) -> str:
        (call,) = [s for s in signals if isinstance(s, ToolCall) and s.status == "completed"]
        assert isinstance(call.detail, Unknown)
        answers = json.loads(call.detail.output)
        return str(answers["Pick"])


@dataclass
class CliStage(PaseoStage):
    """The agents of the stand-in for the `paseo` command, which play the twin's scripts."""

    traits: Traits = field(
        default_factory=lambda: Traits(
            stop_reasons=False,
            names_messages=False,
            error_texts=False,
            heals=True,
            tells_all=False,
            sees_ends=False,
        )
    )


@dataclass
class LiveStage(AcpStage):
    """A real daemon whose provider is the demo agent: the same language, seen through the daemon."""

    home: Path = field(default_factory=Path.cwd)

    def spec(self, *, asks_questions: bool = False) -> AgentSpec:
        if asks_questions:
            pytest.skip("the daemon passes no questions of ACP agents on")
        # The daemon outlives the stage: a key or an attempt that was used before would be found again.
        return AgentSpec(creation_key=uuid4().hex, provider=PROVIDER, cwd=str(self.home))

    def prompt(self, *script: str) -> Prompt:
        return Prompt(attempt=f"trn_{uuid4().hex}", text="\n".join(script))


LIVE = Traits(
    stop_reasons=False,
    names_messages=False,
    error_texts=False,
    heals=True,
    chooses="allow_once",
    every_status=False,
)


LIVE_CLI = replace(LIVE, tells_all=False, sees_ends=False)
PASEO = os.environ.get("ALAMEDA_TEST_PASEO_COMMAND", "")
"""The real `paseo` command, as a shell would split it."""


@asynccontextmanager
async def live_backend(home: Path) -> AsyncIterator[PaseoBackend]:
    """A backend at the real daemon."""
    place = Place(filesystem="shared", default_cwd=home, roots=[home])
    password = os.environ.get("PASEO_PASSWORD") or None
    async with anyio.create_task_group() as tasks:
        backend = PaseoBackend("paseo", os.environ["PASEO_URL"], password, place, PROVIDER, tasks)
        try:
            yield backend
        finally:
            await backend.aclose()
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def live_cli_backend(home: Path) -> AsyncIterator[PaseoCliBackend]:
    """A backend at the real daemon, by the real command."""
    place = Place(filesystem="shared", default_cwd=home, roots=[home])
    password = os.environ.get("PASEO_PASSWORD") or None
    env = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
    async with anyio.create_task_group() as tasks:
        backend = PaseoCliBackend(
            "cli",
            shlex.split(PASEO),
            place,
            PROVIDER,
            tasks,
            env=env,
            url=os.environ["PASEO_URL"],
            password=password,
            pace=CliPace(greeting=20, wait=5, again=1.0),
        )
        try:
            yield backend
        finally:
            await backend.aclose()
            tasks.cancel_scope.cancel()


def _for_twin(verb: str, rest: str) -> list[str]:
    """A command of the demo agent, in the twin's language."""
    simple: Mapping[str, Callable[[], list[str]]] = {
        "stream": lambda: [f"say chunk-{number} " for number in range(1, int(rest) + 1)],
        "run": lambda: [f"tool shell {rest}"],
        "read": lambda: [f"tool read {rest}"],
        "edit": lambda: [f"tool edit {rest}"],
        "ignore-cancel": list,
        "sleep": lambda: [f"sleep {float(rest) * 1000}"],
        "tokens": lambda: [f"usage {rest}"],
        "plan": lambda: [f"plan {rest}", f"plan {';'.join('+' + step.strip() for step in rest.split(';'))}"],
        "question": lambda: [f"tool question {_question(rest)}"],
    }
    known = simple.get(verb)
    return known() if known is not None else [f"{verb} {rest}".strip()]


def _question(rest: str) -> str:
    text, *options = [part.strip() for part in rest.split("|")]
    labels = [{"label": option, "description": ""} for option in options]
    return json.dumps({"questions": [{"question": text, "header": "Pick", "options": labels}]})


NO_DAEMON = (
    "THE CONTRACT WAS NOT TRIED ON A REAL PASEO DAEMON: start one with the demo agent as the provider "
    "`scripted`, then PASEO_URL=http://127.0.0.1:6767 pytest -m live tests/contracts"
)

NO_COMMAND = (
    "THE CONTRACT WAS NOT TRIED ON THE REAL PASEO COMMAND: as above, with ALAMEDA_TEST_PASEO_COMMAND=paseo"
)


@pytest.fixture(
    params=[
        "acp",
        "paseo",
        "paseo-cli",
        pytest.param(
            "live",
            marks=[pytest.mark.live, pytest.mark.skipif("PASEO_URL" not in os.environ, reason=NO_DAEMON)],
        ),
        pytest.param(
            "live-cli",
            marks=[
                pytest.mark.live,
                pytest.mark.skipif(not (PASEO and "PASEO_URL" in os.environ), reason=NO_COMMAND),
            ],
        ),
    ]
)
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    """One stage for each type of backend."""
    if request.param == "acp":
        async with acp_backend(DEMO) as backend:
            yield AcpStage(backend)
        return
    if request.param == "live":
        async with live_backend(tmp_path) as real:
            yield LiveStage(real, LIVE, home=tmp_path)
        return
    if request.param == "live-cli":
        async with live_cli_backend(tmp_path) as client:
            yield LiveStage(client, LIVE_CLI, home=tmp_path)
        return
    if request.param == "paseo-cli":
        async with cli_backend(tmp_path) as command:
            yield CliStage(command, tmp_path)
        return
    async with Twin(tmp_path, speed=SPEED) as twin, paseo_backend(twin) as daemon:
        yield PaseoStage(daemon, tmp_path)


async def test_a_backend_that_is_there_is_up(stage: Stage) -> None:
    health = await stage.backend.health()
    assert health.up
    assert health.detail is None


async def test_it_names_its_providers_and_its_default_is_one_of_them(stage: Stage) -> None:
    providers = await stage.backend.providers()
    assert stage.backend.default_provider in [provider.id for provider in providers]


async def test_a_new_agent_tells_what_is_in_force(stage: Stage) -> None:
    agent = await stage.backend.create(stage.spec())
    assert agent.state.session
    assert agent.state.model
    assert agent.state.mode
    assert not await agent.is_busy()


async def test_an_unknown_provider_is_named_as_such(stage: Stage) -> None:
    strange = AgentSpec(creation_key="key", provider="nobody", cwd=str(Path.cwd()))
    with pytest.raises(ProviderNotFound) as refused:
        await stage.backend.create(strange)
    assert refused.value.provider == "nobody"
    assert stage.backend.default_provider in refused.value.available


async def test_nothing_is_found_where_nothing_was_made(stage: Stage) -> None:
    assert await stage.backend.find(stage.spec()) is None


async def test_what_an_agent_says_and_thinks_comes_in_order_before_the_one_end(stage: Stage) -> None:
    agent = await stage.backend.create(stage.spec())
    await agent.prompt(stage.prompt("think hm", "say one", "say two"))
    signals = await until(agent, is_end)
    told = [signal.text for signal in signals if isinstance(signal, TextDelta | ReasoningPiece)]
    assert "".join(told) == ("hmonetwo" if stage.traits.tells_all else "onetwo")
    messages = {signal.message for signal in signals if isinstance(signal, TextDelta)}
    assert len(messages) == 2 if stage.traits.names_messages else messages == {None}
    reason = "end_turn" if stage.traits.stop_reasons else None
    end = TurnEnded(stop_reason=reason, reconciled=not stage.traits.sees_ends)
    assert [signal for signal in signals if is_end(signal)] == [end]
    assert is_end(signals[-1])


async def test_reports_carry_the_attempt_that_they_belong_to(stage: Stage) -> None:
    agent = await stage.backend.create(stage.spec())
    for _ in range(2):
        prompt = stage.prompt("say hello")
        await agent.prompt(prompt)
        reports: list[Report] = []
        with anyio.fail_after(PATIENCE):
            while not any(is_end(signal) for report in reports for signal in report.signals):
                reports += await agent.reports.take()
        assert {report.attempt for report in reports if report.signals} == {prompt.attempt}


async def test_a_long_stream_keeps_its_order(stage: Stage) -> None:
    agent = await stage.backend.create(stage.spec())
    await agent.prompt(stage.prompt("stream 3000"))
    signals = await until(agent, is_end)
    assert re.findall(r"chunk-\d+", text(signals)) == [f"chunk-{number}" for number in range(1, 3001)]


async def test_a_tool_call_is_told_whole_from_start_to_end(stage: Stage) -> None:
    _only_if(stage.traits.tells_all)
    agent = await stage.backend.create(stage.spec())
    await agent.prompt(stage.prompt("run ls -l", "read /etc/hosts", "edit /tmp/x"))
    calls: dict[str, list[ToolCall]] = {}
    for signal in await until(agent, is_end):
        if isinstance(signal, ToolCall):
            calls.setdefault(signal.call, []).append(signal)
    run, read, edit = calls.values()
    for told in run, read, edit:
        assert told[0].status == "in_progress" or not stage.traits.every_status
        assert [call.status for call in told].count("completed") == 1
        assert told[-1].status == "completed"
    assert (run[-1].kind, read[-1].kind, edit[-1].kind) == ("execute", "read", "edit")
    match run[-1].detail, read[-1].detail, edit[-1].detail:
        case Shell(command="ls -l", output=str(), exit_code=0 | None), Read(path="/etc/hosts"), Edit(
            path="/tmp/x"
        ):
            pass
        case details:
            pytest.fail(f"other details: {details}")


async def test_a_plan_is_told_whole_each_time(stage: Stage) -> None:
    _only_if(stage.traits.tells_all)
    agent = await stage.backend.create(stage.spec())
    await agent.prompt(stage.prompt("plan dig; plant"))
    plans = [signal for signal in await until(agent, is_end) if isinstance(signal, Plan)]
    assert plans[0].entries[1] == PlanEntry(text="plant", status="pending")
    assert plans[-1].entries == (
        PlanEntry(text="dig", status="completed"),
        PlanEntry(text="plant", status="completed"),
    )


async def test_tokens_are_told(stage: Stage) -> None:
    _only_if(stage.traits.tells_all)
    agent = await stage.backend.create(stage.spec())
    await agent.prompt(stage.prompt("tokens 100 20"))
    signals = await until(agent, is_end)
    assert any(isinstance(signal, Usage) for signal in signals)
    match signals[-1]:
        case TurnEnded(usage=usage) if usage is not None:
            assert (usage.input_tokens, usage.output_tokens) == (100, 20)
        case end:
            pytest.fail(f"another end: {end}")


@pytest.mark.parametrize(
    ("allow", "outcome", "said"), [(True, "allowed", "allowed"), (False, "denied", "denied")]
)
async def test_an_answer_to_a_permission_reaches_the_agent(
    stage: Stage, allow: bool, outcome: str, said: str
) -> None:
    _only_if(stage.backend.capabilities.permissions)
    agent = await stage.backend.create(stage.spec())
    await agent.prompt(stage.prompt("ask rm -rf build"))
    asked = _asked(await until(agent, lambda signal: isinstance(signal, PermissionAsked)))
    assert asked.kind == "tool"
    assert asked.title == "rm -rf build"
    assert {option.kind for option in asked.options} >= {"allow_once", "reject_once"}
    assert await agent.is_busy()
    await agent.answer(asked.request, Answer(allow=allow))
    signals = await until(agent, is_end)
    settled = [signal for signal in signals if isinstance(signal, PermissionSettled)]
    assert [(signal.request, signal.outcome) for signal in settled] == [(asked.request, outcome)]
    assert stage.decided(signals) == said
    ran = any(isinstance(signal, ToolCall) and signal.status == "completed" for signal in signals)
    assert ran is (allow and stage.traits.runs_what_it_asked)


async def test_a_permission_is_answered_with_the_option_that_was_chosen_and_only_once(stage: Stage) -> None:
    _only_if(stage.backend.capabilities.permissions)
    agent = await stage.backend.create(stage.spec())
    await agent.prompt(stage.prompt("ask make"))
    asked = _asked(await until(agent, lambda signal: isinstance(signal, PermissionAsked)))
    with pytest.raises(BackendRejected):
        await agent.answer(asked.request, Answer(allow=True, option_id="nobody offered this"))
    chosen = next(option for option in asked.options if option.kind == stage.traits.chooses)
    await agent.answer(asked.request, Answer(allow=True, option_id=chosen.option_id))
    with pytest.raises(BackendRejected):
        await agent.answer(asked.request, Answer(allow=True))
    signals = await until(agent, is_end)
    assert PermissionSettled(request=asked.request, outcome="allowed", option_id=chosen.option_id) in signals


async def test_a_question_gets_its_answer(stage: Stage) -> None:
    _only_if(stage.backend.capabilities.permissions)
    agent = await stage.backend.create(stage.spec(asks_questions=True))
    await agent.prompt(stage.prompt("question Which colour? | red | blue"))
    asked = _asked(await until(agent, lambda signal: isinstance(signal, PermissionAsked)))
    assert asked.kind == "question"
    (question,) = asked.questions
    assert question.question == "Which colour?"
    assert question.options == ("red", "blue")
    await agent.answer(
        asked.request, Answer(allow=True, answers={question.header or question.question: "blue"})
    )
    assert stage.heard(await until(agent, is_end)) == "blue"


async def test_an_interrupted_agent_stops(stage: Stage) -> None:
    agent = await stage.backend.create(stage.spec())
    await agent.prompt(stage.prompt("say working", "sleep 600"))
    await _working(stage, agent)
    await agent.interrupt()
    assert [signal for signal in await until(agent, is_end) if is_end(signal)] == [TurnStopped()]
    assert not await agent.is_busy()
    assert text(await _play(stage, agent, "say still here")) == "still here"


async def test_interrupting_settles_what_was_asked_first(stage: Stage) -> None:
    _only_if(stage.backend.capabilities.permissions)
    agent = await stage.backend.create(stage.spec())
    await agent.prompt(stage.prompt("ask make"))
    asked = _asked(await until(agent, lambda signal: isinstance(signal, PermissionAsked)))
    await agent.interrupt()
    signals = await until(agent, is_end)
    settled = PermissionSettled(request=asked.request, outcome="cancelled")
    assert signals.index(settled) < signals.index(TurnStopped())
    with pytest.raises(BackendRejected):
        await agent.answer(asked.request, Answer(allow=True))


async def test_a_stubborn_agent_can_be_killed_and_its_session_loaded(stage: Stage) -> None:
    agent = await stage.backend.create(stage.spec())
    await agent.prompt(stage.prompt("ignore-cancel", "say no", "sleep 600"))
    await _working(stage, agent)
    await agent.interrupt()
    with anyio.fail_after(PATIENCE):
        await agent.kill()
    (end,) = [signal for signal in await until(agent, is_end) if is_end(signal)]
    assert end in (TurnStopped(), TurnStopped(is_forced=True)), "killed by us, or by the backend before"
    again = await stage.backend.load(stage.spec(), agent.state.session, None)
    assert text(await _play(stage, again, "say back")) == "back"


async def test_interrupting_an_idle_agent_does_nothing(stage: Stage) -> None:
    agent = await stage.backend.create(stage.spec())
    await agent.interrupt()
    assert text(await _play(stage, agent, "say here")) == "here"


async def test_a_crash_is_told_with_the_turn_that_it_broke(stage: Stage) -> None:
    agent = await stage.backend.create(stage.spec())
    signals = await _play(stage, agent, "say last words", "crash")
    assert text(signals) == "last words"
    broke = signals[-1]
    assert isinstance(broke, TurnBroke)
    assert broke.code == "agent_process_dead"
    if stage.traits.heals:
        assert text(await _play(stage, agent, "say back")) == "back"
        return
    assert isinstance(signals[-2], AgentDied)
    with pytest.raises(SendFailed) as refused:
        await agent.prompt(stage.prompt("say hello"))
    assert refused.value.delivered == "no"
    again = await stage.backend.load(stage.spec(), agent.state.session, None)
    assert text(await _play(stage, again, "say back")) == "back"


async def test_a_provider_failure_ends_the_turn_and_not_the_agent(stage: Stage) -> None:
    agent = await stage.backend.create(stage.spec())
    match (await _play(stage, agent, "fail out of credit"))[-1]:
        case TurnBroke(code="provider_error", message=message):
            assert ("out of credit" if stage.traits.error_texts else "lost its words") in message
        case end:
            pytest.fail(f"another end: {end}")
    assert text(await _play(stage, agent, "say go on")) == "go on"


async def test_a_refusal_is_an_end_with_its_own_reason(stage: Stage) -> None:
    agent = await stage.backend.create(stage.spec())
    assert (await _play(stage, agent, "refuse"))[-1] == TurnEnded(
        stop_reason="refusal" if stage.traits.stop_reasons else None, reconciled=not stage.traits.sees_ends
    )


async def test_two_prompts_at_once_are_refused_before_they_are_sent(stage: Stage) -> None:
    agent = await stage.backend.create(stage.spec())
    await agent.prompt(stage.prompt("sleep 600"))
    with pytest.raises(SendFailed) as refused:
        await agent.prompt(stage.prompt("say hello"))
    assert refused.value.delivered == "no"
    await agent.interrupt()
    assert (await until(agent, is_end))[-1] == TurnStopped()


async def test_settings_can_be_changed_and_unknown_ones_are_refused(stage: Stage) -> None:
    _only_if(stage.backend.capabilities.settings)
    agent = await stage.backend.create(stage.spec())
    one, other = stage.traits.models
    assert agent.state.model == one
    state = await agent.configure(Change(model=other, mode="plan"))
    assert (state.model, state.mode) == (other, "plan")
    assert agent.state == state
    with pytest.raises(Unsupported):
        await agent.configure(Change(mode="no such mode"))
    assert agent.state == state


async def test_a_mode_that_the_agent_changes_itself_is_told(stage: Stage) -> None:
    _only_if(stage.backend.capabilities.settings)
    agent = await stage.backend.create(stage.spec())
    signals = await _play(stage, agent, "mode plan")
    assert [signal.mode for signal in signals if isinstance(signal, Config)] == ["plan"]
    assert agent.state.mode == "plan"


async def test_a_released_agent_can_be_loaded_again_and_tells_nothing_twice(stage: Stage) -> None:
    agent = await stage.backend.create(stage.spec())
    await _play(stage, agent, "say before")
    with anyio.fail_after(PATIENCE):
        await agent.release()
    again = await stage.backend.load(stage.spec(), agent.state.session, None)
    assert again.state.session == agent.state.session
    assert text(await _play(stage, again, "say after")) == "after"


async def test_an_archived_agent_is_released(stage: Stage) -> None:
    agent = await stage.backend.create(stage.spec())
    with anyio.fail_after(PATIENCE):
        await agent.archive()
    with pytest.raises((SendFailed, AgentLost)):
        await agent.prompt(stage.prompt("say hello"))


async def test_agents_do_not_hear_each_other(stage: Stage) -> None:
    one, two = await stage.backend.create(stage.spec()), await stage.backend.create(stage.spec())
    await one.prompt(stage.prompt("say one", "sleep 600"))
    await _working(stage, one)
    assert text(await _play(stage, two, "say two", "crash")) == "two"
    await one.interrupt()
    assert (await until(one, is_end))[-1] == TurnStopped()


def _asked(signals: list[Signal]) -> PermissionAsked:
    (asked,) = [signal for signal in signals if isinstance(signal, PermissionAsked)]
    return asked


def _only_if(holds: bool) -> None:
    if not holds:
        pytest.skip("this type of backend says that it cannot")


async def _working(stage: Stage, agent: Agent) -> None:
    """Wait until the agent is seen to work."""
    if stage.traits.tells_all:
        await until(agent, lambda signal: isinstance(signal, TextDelta))
    assert await agent.is_busy()


async def _play(stage: Stage, agent: Agent, *script: str) -> list[Signal]:
    await agent.prompt(stage.prompt(*script))
    return await until(agent, is_end)
