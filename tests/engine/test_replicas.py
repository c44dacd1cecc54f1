"""Several replicas on one database: what one hosts can be asked for, changed and ended at any other."""

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import anyio
import asyncpg
import httpx
import pytest

from app.settings import BackendSettings, Timing
from app.store.database import Address
from tests.house import House, Stream, durable, open_house, url_of
from tests.paseo.twin import Twin

Json = dict[str, Any]
Kind: TypeAlias = Literal["paseo", "acp"]
KINDS: tuple[Kind, ...] = ("paseo", "acp")
AGENT = {"paseo": "scripted", "acp": "demo"}
LONG = {"paseo": "say begun\nhang", "acp": "say begun\nsleep 600"}
"""A prompt whose turn goes on until it is stopped."""


@dataclass(frozen=True)
class Replicas:
    """Two replicas that share a daemon and a database."""

    kind: Kind
    first: House
    second: House
    name: str
    """What the first is called in the database."""
    address: Address

    async def host_of(self, session: str) -> str:
        """Which replica hosts a session."""
        return await host_of(self.address, session)


async def host_of(address: Address, session: str) -> str:
    connection = await asyncpg.connect(**address.arguments)
    try:
        query = "SELECT host FROM agent_sessions WHERE session_id = $1"
        return str(await connection.fetchval(query, session))
    finally:
        await connection.close()


@pytest.fixture(scope="module", params=KINDS)
async def replicas(
    request: pytest.FixtureRequest, shared_address: Address, run_folder: Path
) -> AsyncIterator[Replicas]:
    """Two replicas."""
    kind: Kind = request.param
    folder, url = Path(tempfile.mkdtemp(dir=run_folder)), url_of(shared_address)
    async with Twin() as twin:
        more: Json = {
            "backends": {"paseo": BackendSettings(type="paseo", url=twin.http, provider="scripted")},
            "timing": Timing(health_s=1.0, drain_s=0.0),
        }
        async with open_house(url, folder, **more) as first:
            alone = f"alone-{folder.name}"  # the replicas may be made more than once on the file's database
            await first.ensure(alone, agent=AGENT[kind])
            name = await host_of(shared_address, alone)
            async with open_house(url, folder, **more) as second:
                yield Replicas(kind, first, second, name, shared_address)


@dataclass(frozen=True)
class Case:
    """A session of the first replica, its host, and the other, where everything is asked for."""

    kind: Kind
    session: str
    agent_session_id: str
    host: House
    other: House

    @asynccontextmanager
    async def follow(self) -> AsyncIterator[Stream]:
        """The session's stream at the host."""
        async with self.host.stream(f"/v1/sessions/{self.session}/events/stream") as stream:
            yield stream

    async def begun(self) -> str:
        """A turn that runs until it is stopped, prompted at the host."""
        turn: str = (await self.host.prompt(self.session, LONG[self.kind]))["turn_id"]
        async with self.follow() as stream:
            await stream.until("message.delta")
        return turn

    async def send(self, method: str, path: str, body: Json | None = None, **headers: str) -> httpx.Response:
        """A request to the other replica."""
        return await self.other.client.request(method, f"/v1{path}", json=body, headers=headers)


def said(answer: httpx.Response, status: int) -> Json:
    """The JSON of an answer that has to have this status."""
    assert answer.status_code == status, answer.text
    found: Json = answer.json() if answer.content else {}
    return found


async def event(at: Case, kind: str) -> Json:
    """The newest event of that type in the log, as the other replica tells it."""
    found = [event for event in await at.other.log(at.session) if event["type"] == kind]
    assert found, f"no {kind}"
    last: Json = found[-1]
    return last


# What may be asked for at any replica: the answer, and the event.


async def ensured(at: Case) -> None:
    answer = await at.send(
        "PUT", f"/sessions/{at.session}", {"agent": AGENT[at.kind], "cwd": str(at.other.cwd)}
    )
    found = said(answer, 200)
    assert (found["opened"], found["agent_session_id"]) == ("reused", at.agent_session_id)


async def prompted(at: Case) -> None:
    turn = said(await at.send("POST", f"/sessions/{at.session}/turns", {"prompt": "say hello"}), 202)
    ended = await at.other.ended(turn["turn_id"])
    assert (ended["status"], ended["output_text"]) == ("completed", "hello")
    assert (await event(at, "turn.completed"))["turn_id"] == turn["turn_id"]


async def prompted_and_waited_for(at: Case) -> None:
    answer = await at.send("POST", f"/sessions/{at.session}/turns", {"prompt": "say hello"}, Prefer="wait=20")
    assert said(answer, 200)["output_text"] == "hello"


async def prompted_and_streamed(at: Case) -> None:
    body = {"session_id": at.session, "agent": AGENT[at.kind], "prompt": "say hello"}
    async with at.other.client.stream("POST", "/v1/prompt-stream", json=body) as answer:
        frames = durable(await Stream(answer, answer.aiter_raw()).to_end())
    assert [frames[0].event, frames[-1].event] == ["turn.queued", "turn.completed"]


async def interrupted(at: Case) -> None:
    running = await at.begun()
    body = {"prompt": "say instead", "multitask_strategy": "interrupt"}
    turn = said(await at.send("POST", f"/sessions/{at.session}/turns", body), 202)
    assert (await at.other.ended(turn["turn_id"]))["output_text"] == "instead"
    assert (await event(at, "turn.cancelled"))["turn_id"] == running


async def refused_as_busy(at: Case) -> None:
    running = await at.begun()
    found = said(await at.send("POST", f"/sessions/{at.session}/turns", {"prompt": "say no"}), 409)
    assert (found["code"], found["open_turn_id"]) == ("session_busy", running)


async def followed(at: Case) -> None:
    path = f"/v1/sessions/{at.session}/events/stream"
    async with at.follow() as here, at.other.stream(path) as there:
        await there.until("stream.synced")
        await at.host.prompt(at.session, "say one\nsay two")
        seen = [durable(await stream.until("turn.completed")) for stream in (here, there)]
    assert [frame.raw for frame in seen[0]] == [frame.raw for frame in seen[1]]


async def waited_for(at: Case) -> None:
    turn = await at.begun()
    async with anyio.create_task_group() as tasks:
        ends: list[Json] = []

        async def wait() -> None:
            ends.append(said(await at.send("GET", f"/turns/{turn}/wait?timeout_s=20"), 200))

        tasks.start_soon(wait)
        await at.host.post(f"/v1/turns/{turn}/cancel")
    assert ends[0]["status"] == "cancelled"


async def read(at: Case) -> None:
    await at.begun()
    for path in (
        f"/sessions/{at.session}",
        f"/sessions/{at.session}/snapshot",
        f"/sessions/{at.session}/events",
        f"/sessions/{at.session}/turns",
    ):
        here = await at.host.get(f"/v1{path}")
        assert said(await at.send("GET", path), 200) == here


async def cancelled(at: Case) -> None:
    turn = await at.begun()
    found = said(await at.send("POST", f"/turns/{turn}/cancel"), 200)
    assert (found["status"], found["cause"], found["cancel_outcome"]) == ("cancelled", "caller", "stopped")
    assert (await event(at, "turn.cancelled"))["data"]["cause"] == "caller"


async def answered(at: Case) -> None:
    turn = (await at.host.prompt(at.session, "ask Deploy\nsay done"))["turn_id"]
    async with at.follow() as stream:
        await stream.until("turn.requires_action")
    (asked,) = said(await at.send("GET", "/permissions?status=pending"), 200)["items"]
    path = f"/permissions/{asked['permission_id']}/respond"
    assert said(await at.send("POST", path, {"outcome": "allow"}), 200)["status"] == "allowed"
    assert (await at.other.ended(turn))["status"] == "completed"
    assert (await event(at, "permission.resolved"))["data"]["by"] == "caller"
    assert (
        said(await at.send("POST", path, {"outcome": "deny"}), 409)["code"] == "permission_already_resolved"
    )


async def changed(at: Case) -> None:
    body = {"mode": "plan", "title": "Fix", "labels": {"team": "blue"}}
    found = said(await at.send("PATCH", f"/sessions/{at.session}", body), 200)
    assert {name: found[name] for name in body} == body
    events = [event for event in await at.host.log(at.session) if event["type"] == "session.updated"]
    assert {k: v for event in events for k, v in event["data"]["changed"].items()} == body
    assert (await at.host.get(f"/v1/sessions/{at.session}"))["mode"] == "plan"


async def retried(at: Case) -> None:
    first = await at.host.run(at.session, "say again")
    turn = said(await at.send("POST", f"/turns/{first['turn_id']}/retry"), 202)
    ended = await at.other.ended(turn["turn_id"])
    assert (ended["output_text"], ended["retry_of"]) == ("again", first["turn_id"])


async def dequeued(at: Case) -> None:
    await at.begun()
    queued = (await at.host.prompt(at.session, "say never", multitask_strategy="enqueue"))["turn_id"]
    said(await at.send("DELETE", f"/turns/{queued}"), 204)
    found = await event(at, "turn.cancelled")
    assert (found["turn_id"], found["data"]["cause"]) == (queued, "caller")


async def closed(at: Case) -> None:
    turn = await at.begun()
    found = said(await at.send("POST", f"/sessions/{at.session}/close"), 200)
    assert (found["status"], found["archived"]) == ("closed", True)
    log = await at.host.log(at.session)
    assert [one["type"] for one in log[-2:]] == ["turn.cancelled", "session.closed"]
    assert log[-2]["turn_id"] == turn
    refused = await at.host.post(f"/v1/sessions/{at.session}/turns", {"prompt": "say late"})
    assert said(refused, 409)["code"] == "session_closed"


async def erased(at: Case) -> None:
    await at.begun()
    said(await at.send("DELETE", f"/sessions/{at.session}"), 204)
    for house in (at.host, at.other):
        assert (await house.client.get(f"/v1/sessions/{at.session}")).status_code == 404


Operation: TypeAlias = Callable[[Case], Awaitable[None]]
OPERATIONS: tuple[Operation, ...] = (
    ensured,
    prompted,
    prompted_and_waited_for,
    prompted_and_streamed,
    interrupted,
    refused_as_busy,
    followed,
    waited_for,
    read,
    cancelled,
    answered,
    changed,
    retried,
    dequeued,
    closed,
    erased,
)


@pytest.mark.parametrize("operation", OPERATIONS, ids=[each.__name__ for each in OPERATIONS])
async def test_what_one_replica_hosts_is_served_by_every_other(
    replicas: Replicas, operation: Operation
) -> None:
    """The answer and the event are those of the host itself, which stays the only one."""
    session = f"{operation.__name__}-{replicas.kind}"
    made = await replicas.first.ensure(session, agent=AGENT[replicas.kind])
    host = await replicas.host_of(session)
    first_hosts = host == replicas.name  # it nearly always does: it claims at once what it was asked for
    at, other = (replicas.first, replicas.second) if first_hosts else (replicas.second, replicas.first)
    await operation(Case(replicas.kind, session, made["agent_session_id"], at, other))
    if operation not in (closed, erased):
        assert await replicas.host_of(session) == host
