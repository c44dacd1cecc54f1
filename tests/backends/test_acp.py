"""The adapter for ACP agents, against agents that behave badly in every way that was met."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from structlog.testing import capture_logs

from app.backends.acp import AcpBackend
from app.backends.acp_link import Deadlines
from app.backends.base import (
    AgentLost,
    Answer,
    Attachment,
    BackendRejected,
    BackendUnavailable,
    Change,
    Place,
    Prompt,
    Reports,
    SendFailed,
    Unsupported,
)
from app.domain.events import Notice
from app.domain.signals import (
    AgentDied,
    Config,
    PermissionAsked,
    PermissionSettled,
    Signal,
    TextDelta,
    ToolCall,
    TurnBroke,
    TurnEnded,
    TurnStopped,
)
from tests.backends.acp_house import (
    DEMO,
    PATIENCE,
    WILD,
    acp_backend,
    eventually,
    is_end,
    is_gone,
    spec,
    text,
    turn,
    until,
)

pytestmark = pytest.mark.anyio

HERE = Place(filesystem="shared", default_cwd=Path.cwd(), roots=[Path.cwd()])
CHOICE = {"optionId": "x", "kind": "allow_once", "name": "Go"}


def asks(**parts: object) -> str:
    """A script line that asks for a permission."""
    request = {"toolCall": {"toolCallId": "c1", "title": "ls"}, "options": [CHOICE]} | parts
    return f"request session/request_permission {json.dumps(request)}"


def said(words: str) -> str:
    """A script line with an update that says `words`."""
    update = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": words}}
    return f"update {json.dumps(update)}"


def pids(signals: Sequence[Signal]) -> list[int]:
    """The pids that a wild agent said first."""
    found: list[int] = json.loads(text(signals[:1]))
    return found


# Health and opening


async def test_a_missing_command_is_named_with_its_cure() -> None:
    async with acp_backend(["no-such-agent", "acp"]) as backend:
        health = await backend.health()
        assert not health.up
        assert health.detail is not None
        assert "no-such-agent not found in PATH: install it" in health.detail
        assert not (await backend.providers())[0].available
        with pytest.raises(BackendUnavailable, match="not found in PATH"):
            await backend.create(spec())


async def test_an_empty_command_stops_the_start() -> None:
    async with anyio.create_task_group() as tasks:
        with pytest.raises(ValueError, match="no command"):
            AcpBackend("acp", [], HERE, tasks)


async def test_the_version_and_the_choices_are_known_after_a_session() -> None:
    async with acp_backend(DEMO) as backend:
        assert not (await backend.providers())[0].models
        await backend.create(spec())
        assert (await backend.health()).version == "1"
        (provider,) = await backend.providers()
        assert [choice.id for choice in provider.models] == ["demo-1", "demo-2"]
        assert [choice.id for choice in provider.thinking] == ["off", "high"]


async def test_a_spec_that_the_agent_cannot_meet_makes_nothing() -> None:
    async with acp_backend(DEMO) as backend:
        with pytest.raises(Unsupported, match="it has demo-1, demo-2"):
            await backend.create(spec(model="gpt-1"))
        with pytest.raises(Unsupported, match="neither a url nor a command"):
            await backend.create(spec(mcp_servers={"x": {"type": "magic"}}))
        with pytest.raises(BackendRejected, match="is not a directory"):
            await backend.create(spec(cwd="/no/such/place"))
        backend.beat()


async def test_a_spec_is_met() -> None:
    servers = {
        "files": {"command": "mcp-files", "args": ["-v"], "env": {"A": "b"}},
        "web": {"url": "http://[::1]/"},
    }
    async with acp_backend(DEMO) as backend:
        agent = await backend.create(spec(model="demo-2", mode="plan", thinking="high", mcp_servers=servers))
        assert (agent.state.model, agent.state.mode, agent.state.thinking) == ("demo-2", "plan", "high")


async def test_a_failed_start_shows_what_the_agent_complained_of() -> None:
    async with acp_backend([*WILD, "stillborn"]) as backend:
        with pytest.raises(BackendRejected, match=r"exited with status 1\nno licence found"):
            await backend.create(spec())


async def test_an_agent_that_does_not_answer_is_ended_in_time() -> None:
    async with acp_backend([*WILD, "silent"], deadlines=Deadlines(initialize=0.2)) as backend:
        with anyio.fail_after(PATIENCE), pytest.raises(BackendRejected, match=r"no answer to initialize"):
            await backend.create(spec())


async def test_an_agent_of_another_protocol_version_is_rejected() -> None:
    async with acp_backend([*WILD, "future"]) as backend:
        with pytest.raises(BackendRejected, match="version 2 of ACP"):
            await backend.create(spec())


async def test_an_agent_that_is_not_logged_in_says_how_to() -> None:
    async with acp_backend([*WILD, "closed-door"]) as backend:
        with pytest.raises(BackendRejected, match=r"Authentication required.*run `wild login`"):
            await backend.create(spec())


async def test_a_session_that_the_agent_forgot_is_lost() -> None:
    async with acp_backend(WILD) as backend:
        with pytest.raises(AgentLost, match="Resource not found"):
            await backend.load(spec(), "unknown", None)
    async with acp_backend([*WILD, "forgetful"]) as backend:
        with pytest.raises(AgentLost, match="neither resume nor load"):
            await backend.load(spec(), "wild-1", None)


async def test_only_an_agent_that_can_be_loaded_again_is_resumable() -> None:
    async with acp_backend(WILD) as backend:
        assert (await backend.create(spec())).resumable
    async with acp_backend([*WILD, "forgetful"]) as backend:
        assert not (await backend.create(spec())).resumable


async def test_history_that_is_replayed_while_loading_is_not_told_again() -> None:
    async with acp_backend(WILD) as backend:
        agent = await backend.load(spec(), "wild-1", None)
        assert await turn(agent, "say new") == [TextDelta(text="new"), TurnEnded(stop_reason="end_turn")]


async def test_modes_and_models_of_old_agents_can_be_set() -> None:
    async with acp_backend([*WILD, "old"]) as backend:
        agent = await backend.create(spec())
        assert (agent.state.model, agent.state.mode, agent.state.thinking) == ("m1", "ask", None)
        assert (await agent.configure(Change(model="m2"))).model == "m2"
        assert (await agent.configure(Change(mode="code"))).mode == "code"
        with pytest.raises(Unsupported, match="no thinking to choose"):
            await agent.configure(Change(thinking="high"))
        assert any(isinstance(signal, Config) for signal in await turn(agent, "say done"))


# What an agent sees


async def test_t20_prompts_never_reach_an_argument_or_a_shell(tmp_path: Path) -> None:
    async with acp_backend(WILD) as backend:
        agent = await backend.create(spec(cwd=str(tmp_path)))
        for hostile in ("--settings x", "$(touch owned)", "`touch owned`", "; touch owned", "line\nline"):
            await turn(agent, hostile)
        arguments, cwd = json.loads(text(await turn(agent, "arguments")))
        assert arguments == [WILD[-1]]
        assert cwd == str(tmp_path)
        assert list(tmp_path.iterdir()) == []


async def test_p84_t17_an_agent_has_no_secret_of_ours_in_its_environment() -> None:
    ours = dict(os.environ) | {
        "DATABASE_URL": "canary",
        "ALAMEDA_API_KEY": "canary",
        "PASEO_PASSWORD": "canary",
        "AWS_SECRET_ACCESS_KEY": "canary",
        "LANG": "C.UTF-8",
        "EDITOR": "ed",
    }
    options = {"environ": ours, "pass_env": ["EDITOR"], "env": {"MODEL_KEY": "given"}}
    async with acp_backend(WILD, **options) as backend:
        agent = await backend.create(spec())
        environment = json.loads(text(await turn(agent, "environment")))
    assert "canary" not in environment.values()
    assert {name: environment.get(name) for name in ("LANG", "EDITOR", "MODEL_KEY")} == {
        "LANG": "C.UTF-8",
        "EDITOR": "ed",
        "MODEL_KEY": "given",
    }


@pytest.mark.parametrize("options", [{"pass_env": ["DATABASE_URL"]}, {"env": {"ALAMEDA_API_KEY": "x"}}])
async def test_p84_an_environment_with_a_secret_of_ours_stops_the_start(options: dict[str, Any]) -> None:
    async with anyio.create_task_group() as tasks:
        with pytest.raises(ValueError, match="may not have"):
            AcpBackend("acp", WILD, HERE, tasks, **options)


async def test_requests_that_were_never_offered_are_refused_and_the_agent_goes_on() -> None:
    async with acp_backend(WILD) as backend:
        agent = await backend.create(spec())
        for method in ("fs/write_text_file", "fs/read_text_file", "terminal/create", "_made/up"):
            signals = await turn(agent, f'request {method} {{"path": "/x", "content": "y"}}')
            assert json.loads(text(signals))["code"] == -32601
            assert signals[-1] == TurnEnded(stop_reason="end_turn")


async def test_t22_p85_a_port_that_an_agent_opens_is_reported() -> None:
    with capture_logs() as logs:
        async with acp_backend([*WILD, "doorbell"]) as backend:
            agent = await backend.create(spec())
            await eventually(lambda: any(line["event"] == "agent_listens" for line in logs))
            assert text(await turn(agent, "say fine")) == "fine"


async def test_attachments_go_along_as_far_as_the_agent_takes_them() -> None:
    note, image = Attachment(kind="text", name="n.txt", data="note"), Attachment(kind="image", data="aGk=")
    async with acp_backend(DEMO) as backend:
        agent = await backend.create(spec())
        await agent.prompt(Prompt(attempt="a", text="say hi", attachments=[note, image]))
        assert text(await until(agent, is_end)) == "hi"
    async with acp_backend(WILD) as backend:
        agent = await backend.create(spec())
        with pytest.raises(SendFailed, match="takes no images") as refused:
            await agent.prompt(Prompt(attempt="a", text="say hi", attachments=[image]))
        assert refused.value.delivered == "no"
        assert not await agent.is_busy()


# Permissions


async def test_permission_ids_are_ours_and_differ_though_the_agent_repeats_its_own() -> None:
    async with acp_backend(WILD) as backend:
        agent = await backend.create(spec())
        signals = await turn(agent, asks(), asks(), answer=Answer(allow=True))
        requests = [signal.request for signal in signals if isinstance(signal, PermissionAsked)]
        assert len(set(requests)) == 2
        assert [signal.request for signal in signals if isinstance(signal, PermissionSettled)] == requests


async def test_a_denial_without_an_option_to_reject_is_answered_as_cancelled() -> None:
    async with acp_backend(WILD) as backend:
        agent = await backend.create(spec())
        signals = await turn(agent, asks(), answer=Answer(allow=False))
        assert json.loads(text(signals)) == {"outcome": {"outcome": "cancelled"}}
        assert [s.outcome for s in signals if isinstance(s, PermissionSettled)] == ["denied"]


async def test_an_edited_input_is_refused_and_the_request_still_pending() -> None:
    async with acp_backend(WILD) as backend:
        agent = await backend.create(spec())
        await agent.prompt(Prompt(attempt="a", text=asks()))
        signals = await until(agent, lambda signal: isinstance(signal, PermissionAsked))
        request = next(signal.request for signal in signals if isinstance(signal, PermissionAsked))
        with pytest.raises(BackendRejected, match="edited input"):
            await agent.answer(request, Answer(allow=True, updated_input={"command": "ls"}))
        await agent.answer(request, Answer(allow=True))
        assert text(await until(agent, is_end)) == '{"outcome": {"outcome": "selected", "optionId": "x"}}'


async def test_a_permission_is_told_before_whatever_the_agent_writes_after_it() -> None:
    """The library handles each message in a task of its own; the order is the transport's."""
    ask = {"jsonrpc": "2.0", "id": 7, "method": "session/request_permission"}
    ask["params"] = {
        "sessionId": "wild-1",
        "toolCall": {"toolCallId": "c1", "title": "ls"},
        "options": [CHOICE],
    }
    script = []
    for number in range(50):
        script += [said(f"{number}"), f"raw {json.dumps(ask | {'id': 100 + number})}"]
    async with acp_backend(WILD) as backend:
        agent = await backend.create(spec())
        signals = await turn(agent, *script)
    kinds = [type(signal) for signal in signals if isinstance(signal, TextDelta | PermissionAsked)]
    assert kinds == [TextDelta, PermissionAsked] * 50
    settled = [signal.outcome for signal in signals if isinstance(signal, PermissionSettled)]
    assert settled == ["cancelled"] * 50
    assert is_end(signals[-1])


async def test_what_an_agent_asked_dies_with_it() -> None:
    """It is not settled: the engine lets it expire."""
    async with acp_backend(WILD) as backend:
        agent = await backend.create(spec())
        await agent.prompt(Prompt(attempt="a", text=asks()))
        asked = await until(agent, lambda signal: isinstance(signal, PermissionAsked))
        await agent.kill()
        signals = await until(agent, is_end)
        died, stopped = signals
        assert isinstance(died, AgentDied)
        assert stopped == TurnStopped()
        request = next(signal.request for signal in asked if isinstance(signal, PermissionAsked))
        with pytest.raises(BackendRejected):
            await agent.answer(request, Answer(allow=True))


async def test_a_malformed_permission_request_is_refused_and_nobody_is_asked() -> None:
    async with acp_backend(WILD) as backend:
        agent = await backend.create(spec())
        signals = await turn(agent, 'request session/request_permission {"toolCall": 3}')
        assert json.loads(text(signals))["code"] == -32602
        assert not any(isinstance(signal, PermissionAsked) for signal in signals)


# Ends of turns


async def test_an_agent_that_ends_its_turn_normally_after_an_interrupt_has_stopped() -> None:
    async with acp_backend(WILD) as backend:
        agent = await backend.create(spec())
        await agent.prompt(Prompt(attempt="a", text="await-cancel"))
        await until(agent, lambda signal: isinstance(signal, TextDelta))
        await agent.interrupt()
        assert (await until(agent, is_end))[-1] == TurnStopped()


@pytest.mark.parametrize(
    ("script", "end"),
    [
        ('result {"stopReason": "cancelled"}', TurnStopped()),
        ('result {"stopReason": "tired"}', TurnEnded(stop_reason="tired")),
        ('result {"stopReason": 7}', TurnEnded(stop_reason=None)),
        ("result null", TurnEnded(stop_reason=None)),
        (
            'error {"code": -32603, "message": "Internal error", "data": {"errorName": "ModelNotFound"}}',
            TurnBroke(code="provider_error", message="Internal error: ModelNotFound", retriable=True),
        ),
        (
            'error {"code": -32000, "message": "Authentication required"}',
            TurnBroke(
                code="provider_error",
                message="Authentication required. "
                "The agent is not logged in on this machine: run `wild login`",
            ),
        ),
        ('error "what"', TurnBroke(code="provider_error", message="Internal error: what", retriable=True)),
    ],
)
async def test_every_answer_to_a_prompt_is_one_end(script: str, end: Signal) -> None:
    async with acp_backend(WILD) as backend:
        agent = await backend.create(spec())
        assert await turn(agent, "say x", script) == [TextDelta(text="x"), end]
        assert not await agent.is_busy()


async def test_a_killed_process_is_told_with_its_signal() -> None:
    async with acp_backend(WILD) as backend:
        agent = await backend.create(spec())
        text_, died, broke = await turn(agent, "say x", "die")
        assert text_ == TextDelta(text="x")
        assert died == AgentDied(message="the agent's process was ended by signal 9")
        assert isinstance(broke, TurnBroke)
        assert (broke.code, broke.delivered) == ("agent_process_dead", "yes")
        backend.beat()


async def test_an_agent_that_reads_no_more_makes_the_prompt_fail_as_unknown() -> None:
    async with acp_backend(WILD, deadlines=Deadlines(send=0.3)) as backend:
        agent = await backend.create(spec())
        await turn(agent, "say x")
        agent_pid = pids(await turn(agent, "children"))[0]
        psutil.Process(agent_pid).suspend()
        with pytest.raises(SendFailed) as failed, anyio.fail_after(PATIENCE):
            await agent.prompt(Prompt(attempt="a", text="x" * 4_000_000))
        assert failed.value.delivered == "unknown"
        (died,) = await until(agent, lambda signal: isinstance(signal, AgentDied))
        assert died == AgentDied(message="the agent's process was ended: it does not read what is sent to it")


# Processes


async def test_p80_a_line_longer_than_a_stream_reader_takes_arrives_whole() -> None:
    async with acp_backend(WILD) as backend:
        agent = await backend.create(spec())
        assert text(await turn(agent, "say " + "x" * 5_000_000)) == "x" * 5_000_000


async def test_p80_a_line_over_the_bound_ends_that_agent() -> None:
    async with acp_backend(WILD) as backend:
        other = await backend.create(spec())
        agent = await backend.create(spec())
        signals = await turn(agent, "say x", f"long {17 * 1024 * 1024}", "say y")
        assert text(signals) == "x"
        assert isinstance(signals[-2], AgentDied)
        assert "a line of more than" in signals[-2].message
        assert text(await turn(other, "say fine")) == "fine"


async def test_p81_p83_killing_ends_grandchildren_that_hold_the_pipes_or_left_the_group() -> None:
    async with acp_backend(WILD) as backend:
        agent = await backend.create(spec())
        await agent.prompt(Prompt(attempt="a", text="children\nawait-cancel"))
        family = pids(await until(agent, lambda signal: isinstance(signal, TextDelta)))
        assert len(family) == 3
        with anyio.fail_after(PATIENCE):
            await agent.kill()
        await eventually(lambda: all(map(is_gone, family)))
        assert isinstance((await until(agent, is_end))[-1], TurnStopped)


async def test_p83_grandchildren_end_with_an_agent_that_crashes() -> None:
    async with acp_backend(WILD) as backend:
        agent = await backend.create(spec())
        signals = await turn(agent, "children", "die")
        assert isinstance(signals[-1], TurnBroke)
        await eventually(lambda: all(map(is_gone, pids(signals))))


async def test_p82_stderr_is_drained_and_a_dead_agent_is_a_normal_end() -> None:
    async with acp_backend(WILD) as backend:
        agent = await backend.create(spec())
        signals = await turn(agent, "stderr 2000000", "say still", "stderr 300000", "die")
        assert text(signals) == "still"
        assert isinstance(signals[-2], AgentDied)
        assert len(signals[-2].message) < 3000
        with pytest.raises(SendFailed) as failed:
            await agent.prompt(Prompt(attempt="b", text="say x"))
        assert (failed.value.delivered, failed.value.retriable) == ("no", True)
        await agent.interrupt()
        await agent.kill()
        await agent.release()


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[1, 2]",
        '"text"',
        '{"jsonrpc": "2.0"}',
        '{"id": true, "result": {"stopReason": "end_turn"}}',
        '{"id": [2], "result": {}}',
        '{"id": {"a": 1}, "method": "session/update"}',
        "[" * 100_000,
        '{"id": 1.0, "result": {}}',
        "\x1b[31mWARN\x1b[0m loading\x00",
    ],
)
async def test_p86_garbage_is_dropped_with_one_notice(line: str) -> None:
    async with acp_backend(WILD) as backend:
        agent = await backend.create(spec())
        signals = await turn(agent, "say x", f"raw {line}", f"raw {line}", "say y")
        assert text(signals) == "xy"
        assert [signal.code for signal in signals if isinstance(signal, Notice)] == ["agent_garbage"]
        assert signals[-1] == TurnEnded(stop_reason="end_turn")


@pytest.mark.parametrize(
    "line",
    [
        '{"jsonrpc": "2.0", "id": 99, "result": {"stopReason": "end_turn"}}',
        '{"jsonrpc": "2.0", "id": 99, "error": {"code": 1, "message": "?"}}',
        '{"jsonrpc": "2.0", "method": "made/up", "params": [1]}',
        '{"jsonrpc": "2.0", "method": "session/update", "params": {"sessionId": "other", "update": {}}}',
        "",
    ],
)
async def test_p86_messages_that_mean_nothing_to_us_change_nothing(line: str) -> None:
    async with acp_backend(WILD) as backend:
        agent = await backend.create(spec())
        signals = await turn(agent, "say x", f"raw {line}", "say y")
        assert signals == [TextDelta(text="x"), TextDelta(text="y"), TurnEnded(stop_reason="end_turn")]


@pytest.mark.parametrize(
    "update",
    [
        {},
        {"sessionUpdate": "made_up"},
        {"sessionUpdate": 3},
        {"sessionUpdate": "agent_message_chunk"},
        {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": 3}},
        {"sessionUpdate": "tool_call"},
        {"sessionUpdate": "plan", "entries": "none"},
        {"sessionUpdate": "usage_update", "used": "much", "cost": 3},
        {"sessionUpdate": "config_option_update", "configOptions": [3, {"id": 3}]},
        {"sessionUpdate": "current_mode_update", "currentModeId": None},
    ],
)
async def test_p86_updates_that_cannot_be_read_never_break_the_link(update: dict[str, object]) -> None:
    async with acp_backend(WILD) as backend:
        agent = await backend.create(spec())
        signals = await turn(agent, f"update {json.dumps(update)}", "say y")
        assert text(signals) == "y"
        assert signals[-1] == TurnEnded(stop_reason="end_turn")


async def test_p86_too_much_garbage_ends_that_agent() -> None:
    async with acp_backend(WILD) as backend:
        agent = await backend.create(spec())
        assert isinstance((await turn(agent, "junk 100"))[-1], TurnEnded)
        signals = await turn(agent, "junk 101", "await-cancel")
        assert isinstance(signals[-1], TurnBroke)
        assert "more than 100 lines in a row" in signals[-1].message


async def test_text_that_cannot_be_stored_is_cleaned() -> None:
    async with acp_backend(WILD) as backend:
        agent = await backend.create(spec())
        line = (
            '{"sessionUpdate": "tool_call", "toolCallId": "c", "title": "a\\u0000b\\ud800c \\ud83d\\ude00"}'
        )
        (call, _) = await turn(agent, f"update {line}")
        assert isinstance(call, ToolCall)
        assert call.title == "a\ufffdb\ufffdc \U0001f600"


async def test_a_reader_that_stands_still_holds_the_agent_back_and_loses_nothing() -> None:
    async with acp_backend(DEMO) as backend:
        agent = await backend.create(spec())
        count = Reports.MAX_REPORTS + 5_000
        await agent.prompt(Prompt(attempt="a", text=f"stream {count}"))
        await eventually(lambda: not agent.reports.has_room)
        signals = await until(agent, is_end)
        assert text(signals).split()[-1] == f"chunk-{count}"
        assert len(text(signals).split()) == count
        assert not agent.reports.overflowed


async def test_killing_does_not_wait_for_a_reader_that_stands_still() -> None:
    """The one who kills may be the reader itself."""
    async with acp_backend(DEMO) as backend:
        agent = await backend.create(spec())
        await agent.prompt(Prompt(attempt="a", text=f"stream {Reports.MAX_REPORTS + 5_000}"))
        await eventually(lambda: not agent.reports.has_room)
        with anyio.fail_after(5):
            await agent.kill()
        assert (await until(agent, is_end))[-1] == TurnStopped()


async def test_an_agent_that_overflows_a_stalled_reader_is_ended() -> None:
    async with acp_backend(DEMO) as backend:
        agent = await backend.create(spec())
        agent.reports.stall(True)
        await agent.prompt(Prompt(attempt="a", text=f"stream {Reports.MAX_REPORTS + 5_000}\nsleep 600"))
        with anyio.fail_after(PATIENCE):
            await agent.link.gone.wait()
        assert agent.reports.overflowed


async def test_the_failure_of_one_agent_reaches_no_other() -> None:
    async with acp_backend(DEMO) as backend:
        agents = [await backend.create(spec()) for _ in range(4)]
        async with anyio.create_task_group() as tasks:
            for agent in agents[:-1]:
                tasks.start_soon(turn, agent, "crash")
        assert text(await turn(agents[-1], "say fine")) == "fine"


async def test_closing_the_backend_leaves_no_process() -> None:
    before = set(psutil.Process().children(recursive=True))
    async with acp_backend(WILD) as backend:
        agent = await backend.create(spec())
        family = pids(await turn(agent, "children"))
    await eventually(lambda: all(map(is_gone, family)))
    await eventually(lambda: not set(psutil.Process().children(recursive=True)) - before)


async def test_cancelling_the_backends_tasks_leaves_no_process() -> None:
    """As when the process stops in a hurry: nobody calls `aclose`."""
    async with anyio.create_task_group() as tasks:
        backend = AcpBackend("acp", WILD, HERE, tasks)
        agent = await backend.create(spec())
        family = pids(await turn(agent, "children"))
        tasks.cancel_scope.cancel()
    await eventually(lambda: all(map(is_gone, family)))


async def test_t30_prompts_and_output_do_not_reach_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Neither ours nor the root logger, which the library writes to."""
    caplog.set_level(logging.DEBUG)
    with capture_logs() as logs:
        async with acp_backend(WILD) as backend:
            agent = await backend.create(spec())
            await turn(
                agent, "say canary", "raw canary", 'update {"sessionUpdate": "canary"}', 'error "canary"'
            )
            await turn(agent, 'request fs/canary {"canary": 1}', "die")
    loud = [line for line in logs if line["log_level"] != "debug"]
    assert "canary" not in json.dumps(loud)
    assert not [record for record in caplog.records if record.name == "root"]
    assert "canary" not in caplog.text
