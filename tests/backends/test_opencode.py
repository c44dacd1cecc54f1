"""The real opencode, driven through the adapter; only its model is a stand-in on this machine."""

import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from anyio.abc import SocketAttribute, SocketStream
from structlog.testing import capture_logs

from app.backends.acp import AcpBackend
from app.backends.base import AgentLost, Answer, Prompt
from app.domain.details import Shell
from app.domain.signals import PermissionSettled, TextDelta, ToolCall, TurnEnded, TurnStopped, Usage
from tests.backends.acp_house import PATIENCE, acp_backend, eventually, is_end, spec, text, turn, until

OPENCODE = os.environ.get("ALAMEDA_TEST_OPENCODE") or shutil.which("opencode")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.opencode,
    pytest.mark.skipif(
        OPENCODE is None,
        reason="no opencode in PATH: npm install -g opencode-ai, or set ALAMEDA_TEST_OPENCODE to its path",
    ),
]


class Model:
    """Speaks OpenAI's chat completions, streamed: a bash call when asked to run something, else an echo."""

    def __init__(self) -> None:
        self.held = anyio.Event()
        """Set when a prompt with the word `hold` hangs here for good."""

    async def serve(self, client: SocketStream) -> None:
        """Answer one request and close; who goes away before, goes."""
        async with client:
            with suppress(anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError):
                await self._answer(client)

    async def _answer(self, client: SocketStream) -> None:
        request = await _request(client)
        await client.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        messages = request["messages"]
        last = json.dumps(messages[-1].get("content"))
        if "hold" in last:
            await _say(client, {"content": "holding"})
            self.held.set()
            await anyio.sleep_forever()
        if messages[-1]["role"] == "tool":
            await _say(client, {"content": "the tool "}, {"content": "has run"}, finish="stop")
        elif "please run" in last and request.get("tools"):
            arguments = json.dumps({"command": "echo from-the-shell", "description": "Says hello"})
            function = {"name": "bash", "arguments": arguments}
            call = {"index": 0, "id": "call_1", "type": "function", "function": function}
            await _say(client, {"tool_calls": [call]}, finish="tool_calls")
        else:
            await _say(client, {"content": "hello "}, {"content": "there"}, finish="stop")


async def _request(client: SocketStream) -> dict[str, Any]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += await client.receive()
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
    )
    while len(body) < length:
        body += await client.receive()
    request: dict[str, Any] = json.loads(body)
    return request


async def _say(client: SocketStream, *deltas: dict[str, Any], finish: str | None = None) -> None:
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "stand-in"}
    for delta in deltas:
        choices = [{"index": 0, "delta": {"role": "assistant"} | delta, "finish_reason": None}]
        await client.send(b"data: " + json.dumps(chunk | {"choices": choices}).encode() + b"\n\n")
    if finish:
        usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}], "usage": usage}
        await client.send(b"data: " + json.dumps(chunk | end).encode() + b"\n\ndata: [DONE]\n\n")


@asynccontextmanager
async def stand_in() -> AsyncIterator[tuple[str, Model]]:
    """A model on a free port of this machine."""
    model = Model()
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, model.serve)
        yield f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}/v1", model
        tasks.cancel_scope.cancel()


def environment(url: str, home: Path) -> dict[str, str]:
    """A private home, and a configuration that knows only the stand-in."""
    model = {"name": "Stand-in", "tool_call": True, "limit": {"context": 32000, "output": 4000}}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": url, "apiKey": "none"},
        "models": {"stand-in": model},
    }
    config = {
        "provider": {"local": provider},
        "model": "local/stand-in",
        "small_model": "local/stand-in",
        "permission": {"bash": "ask"},
        "autoupdate": False,
        "share": "disabled",
    }
    return {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_DATA_HOME": str(home / "data"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_STATE_HOME": str(home / "state"),
        "OPENCODE_CONFIG_CONTENT": json.dumps(config),
        "OPENCODE_DISABLE_AUTOUPDATE": "true",
        "OPENCODE_DISABLE_MODELS_FETCH": "true",
        "OPENCODE_DISABLE_LSP_DOWNLOAD": "true",
    }


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[tuple[AcpBackend, Model]]:
    """Opencode as a backend, and its model."""
    assert OPENCODE is not None
    async with AsyncExitStack() as stack:
        url, model = await stack.enter_async_context(stand_in())
        opencode = acp_backend([OPENCODE, "acp"], env=environment(url, tmp_path))
        yield await stack.enter_async_context(opencode), model


async def test_a_session_with_the_real_opencode(stage: tuple[AcpBackend, Model], tmp_path: Path) -> None:
    """Text, a tool call with a permission, a cancel, a restart: all through the same adapter."""
    backend, model = stage
    work = tmp_path / "work"
    work.mkdir()
    agent = await backend.create(spec(cwd=str(work)))
    assert agent.state.model == "local/stand-in"
    assert agent.state.mode == "build"

    signals = await turn(agent, "say hello")
    assert text(signals) == "hello there"
    assert any(isinstance(signal, Usage) for signal in signals)
    assert isinstance(signals[-1], TurnEnded)
    assert signals[-1].stop_reason == "end_turn"
    assert signals[-1].usage is not None
    assert signals[-1].usage.input_tokens == 11

    signals = await turn(agent, "please run it", answer=Answer(allow=True))
    assert text(signals) == "the tool has run"
    assert [signal.outcome for signal in signals if isinstance(signal, PermissionSettled)] == ["allowed"]
    calls = [signal for signal in signals if isinstance(signal, ToolCall)]
    assert (calls[0].name, calls[0].kind, calls[0].status) == ("bash", "execute", "in_progress")
    assert calls[-1].status == "completed"
    match calls[-1].detail:
        case Shell(command="echo from-the-shell", output="from-the-shell\n", exit_code=0):
            pass
        case detail:
            pytest.fail(f"another detail: {detail}")

    signals = await turn(agent, "please run it", answer=Answer(allow=False))
    assert [signal.outcome for signal in signals if isinstance(signal, PermissionSettled)] == ["denied"]
    assert [s.status for s in signals if isinstance(s, ToolCall)][-1] == "failed"

    await agent.prompt(Prompt(attempt="held", text="hold"))
    with anyio.fail_after(PATIENCE):
        await model.held.wait()
    await until(agent, lambda signal: isinstance(signal, TextDelta))
    await agent.interrupt()
    assert (await until(agent, is_end))[-1] == TurnStopped()

    with anyio.fail_after(PATIENCE):
        await agent.release()
    again = await backend.load(spec(cwd=str(work)), agent.state.session, None)
    assert text(await turn(again, "say hello")) == "hello there"
    with anyio.fail_after(PATIENCE):
        await again.archive()


async def test_p85_the_port_that_opencode_opens_is_reported_and_asks_for_a_password(
    stage: tuple[AcpBackend, Model], tmp_path: Path
) -> None:
    """Without one, any process of this machine could drive the agent past us (T22)."""
    backend, _ = stage
    with capture_logs() as logs:
        agent = await backend.create(spec(cwd=str(tmp_path)))
        await eventually(lambda: any(line["event"] == "agent_listens" for line in logs))
    (port,) = [line["ports"][0] for line in logs if line["event"] == "agent_listens"]
    async with httpx.AsyncClient(trust_env=False) as stranger:
        assert (await stranger.get(f"http://{port}/session")).status_code == 401
    assert text(await turn(agent, "say hello")) == "hello there"


async def test_a_session_that_opencode_does_not_know_is_lost(
    stage: tuple[AcpBackend, Model], tmp_path: Path
) -> None:
    backend, _ = stage
    with pytest.raises(AgentLost):
        await backend.load(spec(cwd=str(tmp_path)), "ses_unknown", None)
