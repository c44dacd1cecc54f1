"""The demo agent, by itself and with the ACP library's own client."""

import subprocess
import sys
from asyncio.subprocess import Process
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, cast

import acp
import anyio
import pytest
from acp.client import ClientSideConnection
from acp.schema import (
    AgentMessageChunk,
    AllowedOutcome,
    ClientCapabilities,
    DeniedOutcome,
    PermissionOption,
    RequestPermissionResponse,
    ToolCallUpdate,
)

from app import demo

pytestmark = pytest.mark.anyio


class Client:
    """A client that allows or denies everything and keeps what it is told."""

    def __init__(self, option: str | None = None) -> None:
        self.option = option
        self.kinds: list[str] = []
        self.text = ""
        self.told = anyio.Event()

    async def session_update(self, session_id: str, update: Any, **_: Any) -> None:
        self.kinds.append(update.session_update)
        if isinstance(update, AgentMessageChunk):
            self.text += update.content.text
        self.told.set()

    async def request_permission(
        self, session_id: str, tool_call: ToolCallUpdate, options: list[PermissionOption], **_: Any
    ) -> RequestPermissionResponse:
        if self.option is None:
            return RequestPermissionResponse(outcome=DeniedOutcome(outcome="cancelled"))
        return RequestPermissionResponse(outcome=AllowedOutcome(outcome="selected", option_id=self.option))

    async def create_elicitation(self, message: str, mode: Any, **_: Any) -> Any:
        return acp.AcceptElicitationResponse(action="accept", content={"answer": f"to {message}"})


def demo_for(client: Client) -> AbstractAsyncContextManager[tuple[ClientSideConnection, Process]]:
    """A demo agent whose client is the library's; it knows only the methods that the demo calls."""
    all_of_it = cast("acp.Client", client)
    return acp.spawn_agent_process(all_of_it, *demo.COMMAND_LINE, use_unstable_protocol=True)


async def play(client: Client, script: str) -> acp.PromptResponse:
    """One prompt to a new demo agent, through the library's client, which checks every message."""
    async with demo_for(client) as (agent, _):
        with anyio.fail_after(20):
            await agent.initialize(protocol_version=1, client_capabilities=ClientCapabilities())
            session = await agent.new_session(cwd=str(Path.cwd()))
            return await agent.prompt(session_id=session.session_id, prompt=[acp.text_block(script)])


def test_help_explains_every_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app.demo", "--help"], capture_output=True, text=True, timeout=20, check=True
    )
    for command in demo.COMMANDS:
        assert command in done.stdout


def test_it_is_itself_also_where_another_project_has_an_app(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "demo.py").write_text("print('an impostor')")
    (tmp_path / "json.py").write_text("print('an impostor')")
    done = subprocess.run(
        [*demo.COMMAND_LINE, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=20, check=True
    )
    assert "impostor" not in done.stdout


def test_every_command_can_be_played() -> None:
    for command in demo.COMMANDS:
        name = command.partition(" ")[0].replace("-", "_")
        assert callable(getattr(demo.Turn, name)), command


async def test_everything_it_sends_is_valid_acp() -> None:
    script = "think a\nsay b\nread /c\nedit /d\nrun e\nplan f; g\ntokens 1 2\nmode plan\nstream 3 1"
    client = Client()
    end = await play(client, script)
    assert (end.stop_reason, end.usage and end.usage.output_tokens) == ("end_turn", 2)
    assert set(client.kinds) == {
        "agent_thought_chunk",
        "agent_message_chunk",
        "tool_call",
        "tool_call_update",
        "plan",
        "usage_update",
        "config_option_update",
    }
    assert client.text == "bchunk-1 chunk-2 chunk-3 "


@pytest.mark.parametrize(
    ("option", "said"), [("yes", "allowed"), ("always", "allowed"), ("no", "denied"), (None, "denied")]
)
async def test_it_does_what_it_is_allowed_to(option: str | None, said: str) -> None:
    client = Client(option)
    await play(client, "ask rm")
    assert client.text == said


async def test_it_takes_answers() -> None:
    client = Client()
    await play(client, "question why?")
    assert client.text == "you said: to why?"


async def test_a_prompt_that_is_no_script_gets_a_friendly_answer_in_pieces() -> None:
    client = Client()
    await play(client, "What can you do?\nsay nothing")
    assert "I heard: What can you do? say nothing" in client.text
    assert "--help" in client.text
    assert 20 <= client.kinds.count("agent_message_chunk") <= 60


@pytest.mark.parametrize(("script", "reason"), [("refuse", "refusal"), ("say x", "end_turn")])
async def test_it_ends_with_the_reason_it_is_told(script: str, reason: str) -> None:
    assert (await play(Client(), script)).stop_reason == reason


@pytest.mark.parametrize(
    ("script", "words"), [("fail no money", "no money"), ("stream many", "many"), ("mode x", "'x'")]
)
async def test_it_fails_as_told_and_for_a_script_that_makes_no_sense(script: str, words: str) -> None:
    with pytest.raises(acp.RequestError) as failed:
        await play(Client(), script)
    assert words in str(failed.value.data)


async def test_it_stops_when_asked_to_unless_told_not_to() -> None:
    client = Client()
    async with demo_for(client) as (agent, _):
        await agent.initialize(protocol_version=1)
        session = (await agent.new_session(cwd=str(Path.cwd()))).session_id
        for script, reason in (
            ("say x\nsleep 600", "cancelled"),
            ("ignore-cancel\nsay x\nsleep 0.2", "end_turn"),
        ):
            client.told = anyio.Event()
            ends: list[str] = []

            async def prompt(script: str, ends: list[str]) -> None:
                done = await agent.prompt(session_id=session, prompt=[acp.text_block(script)])
                ends.append(done.stop_reason)

            with anyio.fail_after(20):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(prompt, script, ends)
                    await client.told.wait()
                    await agent.cancel(session_id=session)
            assert ends == [reason]


async def test_it_takes_up_any_session_and_ends_with_its_client() -> None:
    async with demo_for(Client()) as (agent, process):
        await agent.initialize(protocol_version=1)
        loaded = await agent.load_session(cwd=str(Path.cwd()), session_id="of-long-ago")
        assert [option.id for option in loaded.config_options or []] == ["model", "mode", "thinking"]
        changed = await agent.set_config_option(config_id="model", session_id="of-long-ago", value="demo-2")
        assert changed.config_options[0].current_value == "demo-2"
    assert process.returncode == 0
