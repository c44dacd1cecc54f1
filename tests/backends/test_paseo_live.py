"""A real Paseo daemon, through the adapter and through the whole service.

Start a daemon on this machine whose `config.json` has the demo agent as a provider:
`{"agents": {"providers": {"scripted": {"extends": "acp", "label": "Scripted",
"command": ["python3", "…/app/demo.py"]}}}}`; then
`PASEO_URL=http://127.0.0.1:6767 pytest -m live tests/backends/test_paseo_live.py`.
`ALAMEDA_TEST_PASEO_PROVIDER` names another provider that plays the demo agent's scripts, `PASEO_PASSWORD` the
daemon's password. The agents that are made are archived again; no other one is touched.
"""

import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from pydantic import HttpUrl, SecretStr

from app.backends.base import Agent, AgentSpec, Answer, Place, Prompt, ProviderNotFound
from app.backends.paseo import PaseoBackend
from app.domain.details import Edit, Read, Shell
from app.domain.signals import (
    PermissionAsked,
    PermissionSettled,
    Plan,
    ReasoningPiece,
    Signal,
    TextDelta,
    ToolCall,
    TurnBroke,
    TurnEnded,
    TurnStopped,
    TurnUnknown,
)
from app.paseo.address import Address
from app.paseo.client import PaseoClient, open_client
from app.paseo.errors import Refused
from app.settings import BackendSettings
from tests.house import House, open_house

URL = os.environ.get("PASEO_URL", "")
PASSWORD = os.environ.get("PASEO_PASSWORD") or None
PROVIDER = os.environ.get("ALAMEDA_TEST_PASEO_PROVIDER", "scripted")
PATIENCE = 30.0

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.live,
    pytest.mark.skipif(
        not URL,
        reason="NO REAL PASEO DAEMON WAS TESTED: start one with the demo agent as the provider `scripted`, "
        "then PASEO_URL=http://127.0.0.1:6767 pytest -m live tests/backends/test_paseo_live.py",
    ),
]


# Through the adapter.


@pytest.fixture
async def stranger() -> AsyncIterator[PaseoClient]:
    """Another client of the daemon, which is not Alameda."""
    async with open_client(Address.parse(URL), PASSWORD) as client:
        await client.wait_up(PATIENCE)
        yield client


class Stage:
    """The adapter on the daemon; every agent that it makes is archived at the end."""

    def __init__(self, backend: PaseoBackend, cwd: Path) -> None:
        self.backend = backend
        self.cwd = cwd
        self.sessions: list[str] = []

    def spec(self, **parts: Any) -> AgentSpec:
        """What an agent is made of."""
        given = {"creation_key": uuid4().hex, "provider": PROVIDER, "cwd": str(self.cwd)} | parts
        return AgentSpec(**given)

    async def agent(self) -> Agent:
        """A new agent."""
        agent = await self.backend.create(self.spec())
        self.sessions.append(agent.state.session)
        return agent


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    place = Place(filesystem="shared", default_cwd=tmp_path, roots=[tmp_path])
    async with anyio.create_task_group() as tasks:
        stage = Stage(PaseoBackend("paseo", URL, PASSWORD, place, PROVIDER, tasks), tmp_path)
        try:
            yield stage
        finally:
            with anyio.CancelScope(shield=True):
                for session in stage.sessions:
                    await stage.backend.archive(session)
                await stage.backend.aclose()


def is_end(signal: Signal) -> bool:
    """Whether a signal ends a turn."""
    return isinstance(signal, TurnEnded | TurnStopped | TurnBroke | TurnUnknown)


async def until(agent: Agent, wanted: Callable[[Signal], bool]) -> list[Signal]:
    """All signals up to the wanted one, and what came with it."""
    signals: list[Signal] = []
    with anyio.fail_after(PATIENCE):
        while not any(wanted(signal) for signal in signals):
            for report in await agent.reports.take():
                signals += report.signals
    return signals


async def play(agent: Agent, *script: str) -> list[Signal]:
    """Everything that a prompt brings, up to its end."""
    with anyio.fail_after(PATIENCE):
        await agent.prompt(Prompt(attempt=uuid4().hex, text="\n".join(script)))
    return await until(agent, is_end)


def text(signals: list[Signal]) -> str:
    """What the agent said."""
    return "".join(s.text for s in signals if isinstance(s, TextDelta) and s.role == "assistant")


async def test_the_daemon_is_up_and_offers_the_scripted_agent(stage: Stage) -> None:
    providers = {provider.id: provider for provider in await stage.backend.providers()}
    assert providers[PROVIDER].available
    health = await stage.backend.health()
    assert health.up
    assert health.version
    with pytest.raises(ProviderNotFound):
        await stage.backend.create(stage.spec(provider="nobody"))


async def test_a_turn_is_told_whole_and_in_order(stage: Stage) -> None:
    script = ("think hm", "say one", "run ls -l", "read /etc/hosts", "edit /tmp/x", "plan dig; plant")
    signals = await play(await stage.agent(), *script, "tokens 100 20", "say two")
    assert text(signals) == "onetwo"
    assert [s.text for s in signals if isinstance(s, ReasoningPiece)] == ["hm"]
    done = [s for s in signals if isinstance(s, ToolCall) and s.status == "completed"]
    assert [call.kind for call in done] == ["execute", "read", "edit"]
    match [call.detail for call in done]:
        case [Shell(command="ls -l", exit_code=0), Read(path="/etc/hosts"), Edit(path="/tmp/x")]:
            pass
        case details:
            pytest.fail(f"other details: {details}")
    plan = [s for s in signals if isinstance(s, Plan)][-1]
    assert [(entry.text, entry.status) for entry in plan.entries] == [
        ("dig", "completed"),
        ("plant", "completed"),
    ]
    (end,) = [s for s in signals if is_end(s)]
    assert isinstance(end, TurnEnded)
    assert end.usage is not None
    assert (end.usage.input_tokens, end.usage.output_tokens) == (100, 20)


@pytest.mark.parametrize(("allow", "outcome"), [(True, "allowed"), (False, "denied")])
async def test_an_answer_reaches_the_agent(stage: Stage, allow: bool, outcome: str) -> None:
    agent = await stage.agent()
    await agent.prompt(Prompt(attempt=uuid4().hex, text="ask rm -rf build"))
    signals = await until(agent, lambda signal: isinstance(signal, PermissionAsked))
    (asked,) = [signal for signal in signals if isinstance(signal, PermissionAsked)]
    assert (asked.kind, asked.title) == ("tool", "rm -rf build")
    await agent.answer(asked.request, Answer(allow=allow))
    signals = await until(agent, is_end)
    assert [s.outcome for s in signals if isinstance(s, PermissionSettled)] == [outcome]
    assert text(signals) == outcome


async def test_a_failure_and_a_crash_end_the_turn_and_the_agent_answers_again(stage: Stage) -> None:
    agent = await stage.agent()
    failed = (await play(agent, "say a", "fail on fire"))[-1]
    assert isinstance(failed, TurnBroke)
    assert failed.code == "provider_error"
    assert text(await play(agent, "say still here")) == "still here"
    died = await play(agent, "say last words", "crash")
    assert text(died) == "last words"
    assert isinstance(died[-1], TurnBroke)
    assert died[-1].code == "agent_process_dead"
    assert text(await play(agent, "say back")) == "back"


@pytest.mark.parametrize("stubborn", [False, True], ids=["willing", "stubborn"])
async def test_a_cancelled_agent_takes_the_next_prompt(stage: Stage, stubborn: bool) -> None:
    agent = await stage.agent()
    script = (["ignore-cancel"] if stubborn else []) + ["say working", "sleep 600"]
    await agent.prompt(Prompt(attempt=uuid4().hex, text="\n".join(script)))
    await until(agent, lambda signal: isinstance(signal, TextDelta))
    await agent.interrupt()
    assert isinstance((await until(agent, is_end))[-1], TurnStopped)
    assert text(await play(agent, "say next")) == "next"


async def test_an_agent_is_found_by_its_key_and_a_strangers_is_not(
    stage: Stage, stranger: PaseoClient
) -> None:
    made = await stranger.create_agent(PROVIDER, str(stage.cwd), labels={"origin": "alameda"})
    stage.sessions.append(made.id)
    spec = stage.spec()
    assert await stage.backend.find(spec) is None
    agent = await stage.backend.create(spec)
    stage.sessions.append(agent.state.session)
    await agent.release()
    found = await stage.backend.find(spec)
    assert found is not None
    assert found.state.session == agent.state.session
    await stranger.send_message(made.id, "say not yours", message_id=uuid4().hex)
    assert text(await play(found, "say mine")) == "mine"


async def test_what_somebody_else_prompts_is_no_turn_of_ours(stage: Stage, stranger: PaseoClient) -> None:
    agent = await stage.agent()
    await agent.prompt(Prompt(attempt="ours", text="say ours\nsleep 600"))
    await until(agent, lambda signal: isinstance(signal, TextDelta))
    await stranger.send_message(agent.state.session, "say theirs", message_id=uuid4().hex)
    told: list[Signal] = []
    with anyio.fail_after(PATIENCE):
        while not any(is_end(signal) for signal in told):
            told += [s for r in await agent.reports.take() for s in r.signals if r.attempt == "ours"]
    assert [signal for signal in told if is_end(signal)] == [TurnStopped(cause="replaced")]
    assert "theirs" not in text(told)


# Through the whole service.


class Wire:
    """A relay between the service and the daemon whose connections can be cut, and refused."""

    def __init__(self) -> None:
        self.refuses = False
        self._sockets: set[SocketStream] = set()

    async def serve(self, client: SocketStream) -> None:
        """Pass bytes both ways until one side ends."""
        address = Address.parse(URL)
        async with client:
            if self.refuses:
                return
            async with await anyio.connect_tcp(*_host_and_port(address)) as daemon:
                self._sockets |= {client, daemon}
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_pass, client, daemon, tasks.cancel_scope)
                    tasks.start_soon(_pass, daemon, client, tasks.cancel_scope)
                self._sockets -= {client, daemon}

    def cut(self) -> None:
        """Reset every connection, without a word."""
        for stream in self._sockets:
            raw = stream.extra(SocketAttribute.raw_socket)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with suppress(OSError):
                raw.shutdown(socket.SHUT_RDWR)


def _host_and_port(address: Address) -> tuple[str, int]:
    url = HttpUrl(URL)
    assert url.host is not None and url.port is not None, f"{address} is no TCP address"
    return url.host, url.port


async def _pass(source: SocketStream, sink: SocketStream, scope: anyio.CancelScope) -> None:
    with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        while True:
            await sink.send(await source.receive())
    scope.cancel()


@asynccontextmanager
async def relay() -> AsyncIterator[tuple[str, Wire]]:
    """The daemon's address by way of a relay."""
    wire = Wire()
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, wire.serve)
        yield f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}", wire
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def live_house(database_url: str, folder: Path, url: str = URL) -> AsyncIterator[House]:
    """The service with the daemon as its only backend, once it has seen that the daemon is up."""
    password = SecretStr(PASSWORD) if PASSWORD else None
    paseo = BackendSettings(type="paseo", url=HttpUrl(url), password=password, provider=PROVIDER)
    async with open_house(database_url, folder, backends={"paseo": paseo}) as house:
        await _eventually(lambda: house.client.get("/health"), lambda seen: bool(seen.is_success))
        yield house


async def opened(house: House, name: str) -> dict[str, Any]:
    """A session on the daemon."""
    return await house.ensure(name, agent=PROVIDER, backend="paseo")


async def started(house: House, name: str, prompt: str) -> dict[str, Any]:
    """A turn that has said something."""
    turn = await house.prompt(name, prompt, multitask_strategy="enqueue")
    await house.follow(f"/v1/turns/{turn['turn_id']}/events/stream", "message.delta")
    return turn


def said(log: list[dict[str, Any]], turn_id: str | None) -> str:
    """All the text of a turn, as the log has it."""
    return "".join(
        e["data"]["text"]
        for e in log
        if e["type"] == "message.delta" and e["turn_id"] == turn_id and e["data"]["role"] == "assistant"
    )


def chunks(count: int) -> str:
    """What the demo agent says for `stream COUNT`."""
    return "".join(f"chunk-{number} " for number in range(1, count + 1))


async def close_all(house: House, stranger: PaseoClient) -> None:
    """Close every session; the daemon has archived their agents then."""
    for session in (await house.get("/v1/sessions"))["items"]:
        answer = await house.post(f"/v1/sessions/{session['session_id']}/close")
        assert answer.status_code == 200, answer.text
        with suppress(Refused):
            assert (await stranger.fetch_agent(session["agent_session_id"])).is_archived


async def test_ten_ensures_make_one_agent_that_outlives_the_service(
    database_url: str, folder: Path, stranger: PaseoClient
) -> None:
    """A service that starts again on the same database goes on with the same agent."""
    found: list[str] = []

    async def ensure(house: House) -> None:
        found.append((await opened(house, "same"))["agent_session_id"])

    async with live_house(database_url, folder) as house, anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(ensure, house)
    async with live_house(database_url, folder) as house:
        await ensure(house)
        assert len(set(found)) == 1
        key = (await stranger.fetch_agent(found[0])).labels["alameda_key"]
        assert len((await stranger.fetch_agents(labels={"alameda_key": key})).entries) == 1
        await close_all(house, stranger)


async def test_health_and_the_list_know_nothing_of_a_strangers_agents(
    database_url: str, folder: Path, stranger: PaseoClient
) -> None:
    async with live_house(database_url, folder) as house:
        made = await stranger.create_agent(PROVIDER, str(house.cwd), labels={"session": "mine"})
        mine = await opened(house, "mine")
        assert mine["opened"] == "created"
        assert mine["agent_session_id"] != made.id
        await stranger.send_message(made.id, "say not yours", message_id=uuid4().hex)
        assert (await house.run("mine", "say mine"))["output_text"] == "mine"
        assert "not yours" not in str(await house.log("mine"))
        assert [s["session_id"] for s in (await house.get("/v1/sessions"))["items"]] == ["mine"]
        health = (await house.get("/health"))["backends"]["paseo"]
        assert health["status"] == "up"
        assert health["version"]
        await stranger.archive(made.id)
        await close_all(house, stranger)


async def test_a_cut_socket_loses_nothing_and_doubles_nothing(
    database_url: str, folder: Path, stranger: PaseoClient
) -> None:
    async with relay() as (url, wire), live_house(database_url, folder, url) as house:
        await opened(house, "s")
        turn = await started(house, "s", "stream 200 10\nrun ls\nstream 50 10")
        wire.cut()
        assert (await house.ended(turn["turn_id"]))["status"] == "completed"
        log = await house.log("s")
        assert said(log, turn["turn_id"]) == chunks(200) + chunks(50)
        assert [e["type"] for e in log if e["type"].startswith("backend.")] == [
            "backend.disconnected",
            "backend.reconnected",
        ]
        await close_all(house, stranger)


@pytest.mark.parametrize(
    ("last", "status"), [("say end", "completed"), ("fail oh no", "failed")], ids=["completed", "failed"]
)
async def test_a_turn_that_ended_while_the_link_was_down_is_judged(
    database_url: str, folder: Path, stranger: PaseoClient, last: str, status: str
) -> None:
    async with relay() as (url, wire), live_house(database_url, folder, url) as house:
        session = await opened(house, "s")
        turn = await started(house, "s", f"stream 50 10\n{last}")
        wire.refuses = True
        wire.cut()
        await _until_at_rest(stranger, session["agent_session_id"])
        wire.refuses = False
        ended = await house.ended(turn["turn_id"])
        assert ended["status"] == status
        told = said(await house.log("s"), turn["turn_id"])
        assert told == chunks(50) + ("end" if status == "completed" else "")
        await close_all(house, stranger)


async def _until_at_rest(client: PaseoClient, agent: str) -> None:
    with anyio.fail_after(PATIENCE):
        while (await client.fetch_agent(agent)).status == "running":  # noqa: ASYNC110 - nothing tells of it
            await anyio.sleep(0.05)


@pytest.mark.parametrize("ends_meanwhile", [False, True])
async def test_a_turn_outlives_its_service(
    database_url: str, folder: Path, stranger: PaseoClient, ends_meanwhile: bool
) -> None:
    async with live_house(database_url, folder) as house:
        session = await opened(house, "s")
        turn = await started(house, "s", "stream 200 20\nsay end")
    if ends_meanwhile:
        await _until_at_rest(stranger, session["agent_session_id"])
    async with live_house(database_url, folder) as house:
        ended = await house.ended(turn["turn_id"])
        assert ended["status"] == "completed"
        assert ended["attempt"] == 1
        log = await house.log("s")
        assert said(log, turn["turn_id"]) == chunks(200) + "end"
        (end,) = [e for e in log if e["type"] == "turn.completed"]
        assert end["data"]["reconciled"] is ends_meanwhile
        await close_all(house, stranger)


async def test_a_permission_outlives_the_service_and_is_answered(
    database_url: str, folder: Path, stranger: PaseoClient
) -> None:
    async with live_house(database_url, folder) as house:
        await opened(house, "s")
        turn = await house.prompt("s", "ask make")
        path = f"/v1/turns/{turn['turn_id']}/events/stream"
        asked = (await house.follow(path, "turn.requires_action"))[-1].data["data"]["permission_ids"]
    async with live_house(database_url, folder) as house:
        assert [p["permission_id"] for p in (await house.get("/v1/permissions"))["items"]] == asked
        answer = await _eventually(
            lambda: house.post(f"/v1/permissions/{asked[0]}/respond", {"outcome": "allow"}),
            lambda answer: bool(answer.status_code != 503),
        )
        assert answer.json()["status"] == "allowed"
        assert (await house.ended(turn["turn_id"]))["output_text"] == "allowed"
        await close_all(house, stranger)


async def _eventually(call: Callable[[], Awaitable[Any]], holds: Callable[[Any], bool]) -> Any:
    with anyio.fail_after(PATIENCE):
        while not holds(answer := await call()):  # noqa: ASYNC110 - nothing tells of it
            await anyio.sleep(0.1)
    return answer


async def test_somebody_elses_prompt_replaces_ours_and_is_told_apart(
    database_url: str, folder: Path, stranger: PaseoClient
) -> None:
    async with live_house(database_url, folder) as house:
        session = await opened(house, "s")
        turn = await started(house, "s", "say ours\nsleep 600")
        await stranger.send_message(session["agent_session_id"], "say theirs", message_id=uuid4().hex)
        ended = await house.ended(turn["turn_id"])
        assert (ended["status"], ended["cause"]) == ("cancelled", "replaced")
        again = await house.run("s", "say ours again", multitask_strategy="enqueue")
        assert again["output_text"] == "ours again"
        log = await house.log("s")
        assert said(log, None) == "theirs"
        assert "foreign_activity" in [e["data"].get("code") for e in log if e["type"] == "notice"]
        await close_all(house, stranger)


async def test_closing_in_mid_turn_archives_the_agent_and_opening_takes_it_back(
    database_url: str, folder: Path, stranger: PaseoClient
) -> None:
    async with live_house(database_url, folder) as house:
        before = await opened(house, "s")
        turn = await started(house, "s", "say busy\nsleep 600")
        await close_all(house, stranger)
        ended = await house.ended(turn["turn_id"])
        assert (ended["status"], ended["cause"]) == ("cancelled", "session_closed")
        after = await opened(house, "s")
        assert after["opened"] == "resumed"
        assert after["agent_session_id"] == before["agent_session_id"]
        assert (await house.run("s", "say back"))["output_text"] == "back"
        await close_all(house, stranger)


# What a real daemon does and the adapter does not stand yet.


async def test_an_agent_archived_by_somebody_else_is_revived_by_a_prompt(
    database_url: str, folder: Path, stranger: PaseoClient
) -> None:
    """The daemon loads it with a new epoch, and by then the prompt is on its way."""
    async with live_house(database_url, folder) as house:
        session = await opened(house, "s")
        await house.run("s", "say one")
        await stranger.archive(session["agent_session_id"])
        turn = await house.run("s", "say two\nsleep 1\nsay three")
        assert (turn["status"], turn["output_text"]) == ("completed", "twothree")
        await close_all(house, stranger)


async def test_an_agent_deleted_by_somebody_else_is_replaced_by_an_ensure(
    database_url: str, folder: Path, stranger: PaseoClient
) -> None:
    async with live_house(database_url, folder) as house:
        session = await opened(house, "s")
        await stranger.delete(session["agent_session_id"])
        answer = await house.post("/v1/sessions/s/turns", {"prompt": "say gone"})
        if answer.status_code == 202:
            assert (await house.ended(answer.json()["turn_id"]))["error"]["code"] == "backend_session_lost"
        else:
            assert answer.json()["code"] == "backend_session_lost"
        assert (await opened(house, "s"))["opened"] == "replaced"
        assert (await house.run("s", "say new"))["output_text"] == "new"
        await close_all(house, stranger)


async def test_a_crash_while_the_link_was_down_is_known_as_one(
    database_url: str, folder: Path, stranger: PaseoClient
) -> None:
    """Unless the process is started anew the daemon takes the next prompt and never answers it."""
    async with relay() as (url, wire), live_house(database_url, folder, url) as house:
        session = await opened(house, "s")
        turn = await started(house, "s", "stream 30 10\ncrash")
        wire.refuses = True
        wire.cut()
        await _until_at_rest(stranger, session["agent_session_id"])
        wire.refuses = False
        assert (await house.ended(turn["turn_id"]))["error"]["code"] == "agent_process_dead"
        again = await house.run("s", "say back", multitask_strategy="enqueue")
        assert (again["status"], again["output_text"]) == ("completed", "back"), again["error"]
        await close_all(house, stranger)


async def test_a_cancel_that_found_no_link_is_made_good_before_the_next_prompt(
    database_url: str, folder: Path, stranger: PaseoClient
) -> None:
    """The cancelled turn still runs; its end is not the next one's."""
    async with relay() as (url, wire), live_house(database_url, folder, url) as house:
        await opened(house, "s")
        turn = await started(house, "s", "stream 3000 20")
        wire.refuses = True
        wire.cut()
        await house.post(f"/v1/turns/{turn['turn_id']}/cancel")
        wire.refuses = False
        assert (await house.ended(turn["turn_id"]))["status"] == "cancelled"
        again = await house.run("s", "say next", multitask_strategy="enqueue")
        assert (again["status"], again["output_text"]) == ("completed", "next"), again["error"]
        await close_all(house, stranger)


async def test_a_session_of_the_provider_is_adopted_and_its_history_told_once(
    database_url: str, folder: Path, stranger: PaseoClient
) -> None:
    """Its history, or that the provider gave nothing back: never neither, never both."""
    async with live_house(database_url, folder) as house:
        made = await opened(house, "old")
        await house.run("old", "say one")
        persistence = (await stranger.fetch_agent(made["agent_session_id"])).persistence
        assert persistence is not None
        body = {"agent": PROVIDER, "cwd": str(house.cwd), "provider_session_id": persistence.session_id}
        assert (await house.client.delete("/v1/sessions/old")).status_code == 204
        answer = await house.client.put("/v1/sessions/new", json=body)
        assert (answer.status_code, answer.json()["opened"]) == (201, "imported")
        assert (await house.run("new", "say two"))["output_text"] == "two"
        answer = await house.client.put("/v1/sessions/new", json=body)
        assert (answer.status_code, answer.json()["opened"]) == (200, "reused")
    async with live_house(database_url, folder) as house:
        assert (await house.run("new", "say three"))["output_text"] == "three"
        log = await house.log("new")
        is_empty = "import_empty" in [e["data"].get("code") for e in log if e["type"] == "notice"]
        assert said(log, None) == ("" if is_empty else "one")
        await close_all(house, stranger)
