"""Several processes on one database: restarted one after the other under traffic, killed, paused."""

import os
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import psutil
import pytest
import structlog

from app.domain.events import TERMINAL_TYPES
from app.store.database import Address
from tests.house import Frame, Stream, assert_unbroken, durable, outside_url
from tests.paseo.twin import Twin
from tests.system.balancer import Balancer, balancing
from tests.system.test_faults import (
    KEY,
    PATIENCE,
    Serving,
    all_gone,
    interrupted_turn,
    serving,
    terminals,
    works,
)
from tests.system.test_paseo_recovery import chunks, plain

log = structlog.get_logger(__name__)

ROUNDS = int(os.environ.get("ALAMEDA_ROUNDS", "1"))
"""How often each replica is restarted; more than by default to look for what is rare."""
CHATS = 3
CHUNKS = 60
UNREADY_S = 1.0
EVENT_SOURCE_RETRY_S = 0.2
"""Seconds after which a reader opens its stream again: a browser takes 2, as `retry` says."""


@pytest.fixture
def shared_url(database_address: Address, run_folder: Path) -> str:
    """The test's database as another process reaches it."""
    return outside_url(database_address, run_folder / "data")


class Replica:
    """A place where a process runs, again and again on the same port."""

    def __init__(self, folder: Path, name: str, environment: dict[str, str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self._folder = folder
        self._environment = {
            **environment,
            "ALAMEDA_DATA_DIR": str(folder / name),
            "ALAMEDA_PORT": str(self.port),
            "ALAMEDA_TIMING__UNREADY_S": str(UNREADY_S),
        }

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Serving]:
        """The process, from its start to its end."""
        async with serving(self._folder, **self._environment) as service:
            yield service


@dataclass
class Chat:
    """A session, its client and its follower, all behind the balancer."""

    session: str
    client: httpx.AsyncClient
    cwd: Path
    answers: Counter[int] = field(default_factory=Counter)
    turns: list[str] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    opened: int = 0
    goodbyes: Counter[str] = field(default_factory=Counter)
    more: anyio.Event = field(default_factory=anyio.Event)

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """The JSON of an answer that has to be whole and no refusal."""
        answer = await self.client.request(method, path, json=body, headers=headers)
        self.answers[answer.status_code] += 1
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    async def talk(self, stop: anyio.Event) -> None:
        """Ensure, prompt and wait, again and again; every turn has its whole text."""
        body = {"agent": "scripted", "provider": "scripted", "cwd": str(self.cwd)}
        while not stop.is_set():
            await self.ask("PUT", f"/v1/sessions/{self.session}", body)
            prompt = {"prompt": f"chunks {CHUNKS} 10 5", "multitask_strategy": "enqueue"}
            turn = await self.ask("POST", f"/v1/sessions/{self.session}/turns", prompt)
            while turn["ended_at"] is None:
                turn = await self.ask("GET", f"/v1/turns/{turn['turn_id']}/wait?timeout_s=5")
            assert turn["status"] == "completed", turn
            assert plain(turn["output_text"]) == chunks(CHUNKS)
            await self.ask("GET", f"/v1/sessions/{self.session}/snapshot")
            self.turns.append(turn["turn_id"])
            self.more.set()
            self.more = anyio.Event()

    async def follow(self) -> None:
        """Read the session's stream, and open it again whenever it ends, as an EventSource does."""
        path = f"/v1/sessions/{self.session}/events/stream"
        while True:
            headers = {"Last-Event-ID": str(self.frames[-1].seq)} if self.frames else {}
            async with self.client.stream("GET", path, headers=headers) as answer:
                self.answers[answer.status_code] += 1
                assert answer.status_code == 200, await answer.aread()
                self.opened += 1
                stream, seen = Stream(answer, answer.aiter_raw()), 0
                while await stream.more():
                    new = durable(stream.frames)[seen:]
                    seen += len(new)
                    self.frames += new
                last = stream.frames[-1]
                assert last.event == "stream.closing", stream.raw[-500:]
                self.goodbyes[last.data["reason"]] += 1
            await anyio.sleep(EVENT_SOURCE_RETRY_S)

    async def next_turn(self) -> None:
        """Return once a turn that begins from now on has ended."""
        for _ in range(2):
            await self.more.wait()


async def restart(replica: Replica, service: Serving, balancer: Balancer, other: Replica) -> None:
    """SIGTERM, and wait for the end: unready is seen first, and until then and after nothing is refused."""
    upstream = next(one for one in balancer.upstreams if one.port == replica.port)
    assert next(one for one in balancer.upstreams if one.port == other.port).is_in
    del upstream.looks[:-1]
    service.process.terminate()
    await upstream.until(503)
    late = await service.client.put("/v1/sessions/late", json={"agent": "demo", "cwd": str(service.cwd)})
    assert late.is_success, late.text  # it came from a balancer that has not looked yet
    with anyio.fail_after(PATIENCE):
        assert await service.process.wait() == 0
        await upstream.until(None)
    assert upstream.looks == [200, 503, None]


async def test_rolling_restart_fails_no_request_and_loses_no_event(shared_url: str, folder: Path) -> None:
    """Twice around under traffic: no 5xx, nothing cut, no event lost or doubled, every turn whole."""
    async with Twin() as twin, AsyncExitStack() as stack:
        environment = {"DATABASE_URL": shared_url, "PASEO_URL": twin.http}
        replicas = [Replica(folder, name, environment) for name in ("one", "two")]
        running: dict[Replica, Serving] = {}
        ends: dict[Replica, AsyncExitStack] = {}

        async def start(replica: Replica) -> None:
            ends[replica] = await stack.enter_async_context(AsyncExitStack())
            running[replica] = await ends[replica].enter_async_context(replica.running())

        for replica in replicas:
            await start(replica)
        balancer = await stack.enter_async_context(balancing([replica.port for replica in replicas]))
        for upstream in balancer.upstreams:
            await upstream.until(200)
        client = await stack.enter_async_context(
            httpx.AsyncClient(
                base_url=balancer.url,
                headers={"Authorization": f"Bearer {KEY}", "Connection": "close"},
                timeout=PATIENCE,
                trust_env=False,
            )
        )
        cwd = running[replicas[0]].cwd
        chats = [Chat(f"s-{n}", client, cwd) for n in range(CHATS)]
        stop, restarts = anyio.Event(), 0
        async with anyio.create_task_group() as readers:
            async with anyio.create_task_group() as talking:
                for chat in chats:
                    body = {"agent": "scripted", "provider": "scripted", "cwd": str(cwd)}
                    await chat.ask("PUT", f"/v1/sessions/{chat.session}", body)
                    talking.start_soon(chat.talk, stop)
                    readers.start_soon(chat.follow)
                for _ in range(ROUNDS):
                    for replica, other in (replicas, replicas[::-1]):
                        await chats[0].next_turn()
                        await restart(replica, running[replica], balancer, other)
                        await ends[replica].aclose()
                        restarts += 1
                        await start(replica)
                        upstream = next(u for u in balancer.upstreams if u.port == replica.port)
                        await upstream.until(200)
                await chats[0].next_turn()
                stop.set()
            for chat in chats:
                events = await chat.ask("GET", f"/v1/sessions/{chat.session}/events?limit=1")
                with anyio.fail_after(PATIENCE):
                    while chat.frames[-1].seq < events["last_seq"]:  # noqa: ASYNC110 - its reader has no event
                        await anyio.sleep(0.05)
            readers.cancel_scope.cancel()
        sent = [one.message["messageId"] for one in twin.record.of("send_agent_message_request")]
        turns = [turn for chat in chats for turn in chat.turns]
        assert len(sent) == len(set(sent)) == len(turns)
        for chat in chats:
            assert_unbroken(chat.frames)
            assert chat.frames[0].seq == 1
            ended = [(f.data["turn_id"], f.event) for f in chat.frames if f.event in TERMINAL_TYPES]
            assert ended == [(turn, "turn.completed") for turn in chat.turns]
            for turn in chat.turns:
                deltas = [
                    f.data["data"]["text"]
                    for f in chat.frames
                    if f.event == "message.delta" and f.data["turn_id"] == turn
                ]
                assert plain("".join(deltas)) == chunks(CHUNKS)
            assert set(chat.goodbyes) <= {"draining"}
        answers = sum((chat.answers for chat in chats), Counter[int]())
        assert balancer.unserved == 0
        assert set(answers) <= {200, 201, 202}
        log.info(
            "rolled",
            restarts=restarts,
            requests=answers.total(),
            answers=dict(answers),
            turns=len(turns),
            events=sum(len(chat.frames) for chat in chats),
            streams=sum(chat.opened for chat in chats),
        )


# A host that is gone, or seems to be.

LEASE_S = "2"


@asynccontextmanager
async def two_processes(folder: Path, url: str, **more: str) -> AsyncIterator[tuple[Serving, Serving]]:
    """Two replicas with a short lease; the second starts once the first serves."""
    environment = {"DATABASE_URL": url, "ALAMEDA_TIMING__LEASE_S": LEASE_S, **more}
    async with AsyncExitStack() as stack:
        services = []
        for name in ("one", "two"):
            own = {**environment, "ALAMEDA_DATA_DIR": str(folder / name), "ALAMEDA_TIMING__UNREADY_S": "0"}
            services.append(await stack.enter_async_context(serving(folder, **own)))
        yield services[0], services[1]


async def test_turn_of_an_agent_that_died_with_its_host_is_ended_by_another_replica(
    shared_url: str, folder: Path
) -> None:
    """kill -9: the child ends with it, nobody knows how far it came, and the session is resumed."""
    async with two_processes(folder, shared_url) as (killed, taker):
        session = await killed.ensure("s-1")
        turn, seen = await interrupted_turn(killed, "s-1", "stream 100000 20", 5)
        children = killed.below()
        assert children
        await killed.kill()
        await all_gone(children)
        async with taker.stream("/v1/sessions/s-1/events/stream", after=seen[-1].seq) as stream:
            rest = durable(await stream.until("turn.indeterminate"))
        assert_unbroken(seen + rest)
        assert terminals(seen + rest) == [(turn, "turn.indeterminate")]
        assert rest[-1].data["data"]["cause"] == "host_lost"
        await works(taker, "s-1")
        assert (await taker.get("/v1/sessions/s-1"))["agent_session_id"] == session["agent_session_id"]


async def paseo_session(service: Serving, session: str) -> None:
    """A session of the twin's scripted agent."""
    body = {"agent": "scripted", "provider": "scripted", "cwd": str(service.cwd)}
    answer = await service.client.put(f"/v1/sessions/{session}", json=body)
    assert answer.is_success, answer.text


def sent(twin: Twin, turn: str) -> int:
    """How often a turn's prompt reached the daemon."""
    messages = twin.record.of("send_agent_message_request")
    return sum(one.message["messageId"].startswith(turn) for one in messages)


async def test_queued_turn_of_a_paused_host_is_sent_once(shared_url: str, folder: Path) -> None:
    """Another replica sends it; the host that wakes finds the first turn's end, and sends nothing."""
    async with (
        Twin() as twin,
        two_processes(folder, shared_url, PASEO_URL=twin.http) as (paused, taker),
    ):
        await paseo_session(paused, "s-1")
        first = await paused.prompt("s-1", "chunks 50 20 5")
        second = await paused.prompt("s-1", "say second", multitask_strategy="enqueue")
        async with paused.stream("/v1/sessions/s-1/events/stream") as stream:
            await stream.until("message.delta")
        process = psutil.Process(paused.process.pid)
        process.suspend()
        try:
            ended = await taker.ended(second)
        finally:
            process.resume()
        assert (ended["status"], ended["output_text"]) == ("completed", "second")
        assert (await taker.ended(first))["status"] == "completed"
        third = await paused.ended(await paused.prompt("s-1", "say third"))
        assert third["output_text"] == "third"
        assert [sent(twin, turn) for turn in (first, second, third["turn_id"])] == [1, 1, 1]
        log = await paused.log("s-1")
        assert_unbroken(log)
        assert len(terminals(log)) == 3


async def test_prompt_that_a_paused_host_was_about_to_send_never_leaves(
    shared_url: str, folder: Path
) -> None:
    """Its start is committed and something was waited for; when it wakes the session is another's."""
    async with (
        Twin() as twin,
        two_processes(folder, shared_url, PASEO_URL=twin.http) as (paused, taker),
    ):
        await paseo_session(paused, "s-1")
        twin.faults.late["clear_agent_attention"] = 4.0  # time enough to pause it, also on a busy machine
        turn = await paused.prompt("s-1", "say never")
        with anyio.fail_after(PATIENCE):
            await twin.record.wait("clear_agent_attention")
        process = psutil.Process(paused.process.pid)
        process.suspend()
        try:
            ended = await taker.ended(turn)
        finally:
            process.resume()
        assert ended["status"] == "indeterminate"
        assert sent(twin, turn) == 0
        twin.faults.late.clear()
        for service in (paused, taker):
            done = await service.ended(await service.prompt("s-1", "say again"))
            assert done["output_text"] == "again"
        assert sent(twin, turn) == 0


async def test_embedded_database_that_is_away_for_long_ends_no_turn(folder: Path) -> None:
    """Nobody else can have taken the session: there a lease that was not renewed still holds."""
    async with serving(folder, ALAMEDA_TIMING__LEASE_S="1") as service:
        await service.ensure("s-1")
        turn = await service.prompt("s-1", "stream 200 20")
        async with service.stream("/v1/sessions/s-1/events/stream") as stream:
            await stream.until("message.delta")
            postmaster = service.postmaster()
            servers = [postmaster, *postmaster.children(recursive=True)]
            for process in servers:
                process.suspend()
            await anyio.sleep(3.0)  # three lease times
            for process in servers:
                process.resume()
            frames = await stream.until("turn.completed")
        assert_unbroken(frames)
        pieces = [f.data["data"]["text"] for f in durable(frames) if f.event == "message.delta"]
        assert "".join(pieces).split() == [f"chunk-{n}" for n in range(1, 201)]
        assert (await service.ended(turn))["status"] == "completed"
