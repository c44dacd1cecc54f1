"""The service in the test's own process: the real application on a real socket, a database of its own."""

import json
import socket
from collections.abc import AsyncIterator, Generator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import asyncpg
import httpx
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr

from app.api.protocol import EdgeProtocol
from app.main import House as Service
from app.main import create_app
from app.settings import Limits, Settings, Timing
from app.store.database import Address
from app.store.embedded import EmbeddedPostgres

PATIENCE = 20.0
"""Seconds after which a test that waits has failed."""


@dataclass(frozen=True)
class Frame:
    """One block of an event stream, as it came over the wire."""

    raw: bytes
    id: str | None
    event: str | None
    data: Any
    is_comment: bool

    @property
    def type(self) -> str | None:
        """The event's name."""
        return self.event

    @property
    def seq(self) -> int:
        """The event's number."""
        assert self.id is not None
        return int(self.id)


def parse_frames(raw: bytes) -> list[Frame]:
    """Every complete block of `raw` (WHATWG HTML, 9.2.6); a last one without its blank line is dropped."""
    frames = []
    for block in raw.split(b"\n\n")[:-1]:
        fields: dict[str, list[str]] = {}
        for line in block.decode().split("\n"):
            name, _, value = line.partition(":")
            fields.setdefault(name, []).append(value.removeprefix(" "))
        data = "\n".join(fields["data"]) if "data" in fields else None
        frames.append(
            Frame(
                raw=block + b"\n\n",
                id=fields["id"][-1] if "id" in fields else None,
                event=fields["event"][-1] if "event" in fields else None,
                data=json.loads(data) if data else None,
                is_comment=set(fields) == {""},
            )
        )
    return frames


def durable(frames: list[Frame]) -> list[Frame]:
    """The frames that are events of the log."""
    return [frame for frame in frames if frame.event is not None and not frame.event.startswith("stream.")]


def assert_unbroken(frames: list[Frame]) -> None:
    """Ids rise by one, and equal what the data says."""
    seqs = [frame.seq for frame in durable(frames)]
    assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
    assert all(frame.data["seq"] == frame.seq for frame in durable(frames))


LIVELY = {"backend_health": None, "agent_sessions": ["host", "host_generation", "host_until", "wanted"]}
"""What changes by itself in the database: a table, or columns of one."""


async def dump(address: Address, *without: str) -> dict[str, list[str]]:
    """Every row of every table as text, but for what changes by itself and the tables named in `without`."""
    connection = await asyncpg.connect(**address.arguments)
    try:
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        found = {}
        for (name,) in tables:
            lively = LIVELY.get(name, [])
            if lively is not None and name not in without:
                rows = await connection.fetch(
                    f'SELECT (to_jsonb(t) - $1::text[])::text AS line FROM "{name}" t', lively
                )
                found[name] = sorted(row["line"] for row in rows)
        return found
    finally:
        await connection.close()


def url_of(address: Address) -> str:
    """The address as a URL."""
    found = address.arguments
    return (
        f"postgresql://{found['user']}:{quote(found['password'], safe='')}@/{found['database']}"
        f"?host={quote(found['host'], safe='')}&port={found['port']}"
    )


def address_of(server: EmbeddedPostgres, database: str | None = None) -> Address:
    """One of a server's databases: its own, if none is named."""
    return Address(
        arguments={
            "host": server.host,
            "port": server.port,
            "user": server.user,
            "password": server.password,
            "database": database or server.database,
        }
    )


def outside_url(address: Address, data_dir: Path) -> str:
    """The same as other processes reach it: the server's own name of its host leads nowhere in them."""
    return url_of(Address(arguments={**address.arguments, "host": str(data_dir / "postgres")}))


@dataclass
class House:
    """A running service and a client that holds its first key."""

    url: str
    key: str
    client: httpx.AsyncClient
    service: Service
    app: FastAPI
    cwd: Path
    settings: Settings
    _names: Any = field(default_factory=lambda: iter(range(1, 10**6)))

    async def get(self, path: str, **params: Any) -> Any:
        """The JSON of a GET that must succeed."""
        answer = await self.client.get(path, params=params)
        assert answer.is_success, answer.text
        return answer.json()

    async def post(self, path: str, body: Mapping[str, Any] | None = None, **headers: str) -> httpx.Response:
        """The answer of a POST, whatever it is."""
        return await self.client.post(path, json=body, headers=headers)

    async def ensure(self, session_id: str | None = None, **body: Any) -> dict[str, Any]:
        """A session of the demo agent."""
        name = session_id or f"s-{next(self._names)}"
        answer = await self.client.put(
            f"/v1/sessions/{name}", json={"agent": "demo", "cwd": str(self.cwd), **body}
        )
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def prompt(self, session_id: str, prompt: str, **body: Any) -> dict[str, Any]:
        """An admitted turn."""
        answer = await self.post(f"/v1/sessions/{session_id}/turns", {"prompt": prompt, **body})
        assert answer.is_success, answer.text
        turn: dict[str, Any] = answer.json()
        return turn

    async def ended(self, turn_id: str) -> dict[str, Any]:
        """The turn once it has ended."""
        with anyio.fail_after(PATIENCE):
            while True:
                turn: dict[str, Any] = await self.get(f"/v1/turns/{turn_id}/wait", timeout_s=10)
                if turn["ended_at"] is not None:
                    return turn

    async def run(self, session_id: str, prompt: str, **body: Any) -> dict[str, Any]:
        """A turn from its prompt to its end."""
        return await self.ended((await self.prompt(session_id, prompt, **body))["turn_id"])

    async def log(self, session_id: str, **params: Any) -> list[dict[str, Any]]:
        """Every event of a session's log."""
        items: list[dict[str, Any]] = []
        after = 0
        while True:
            page = await self.get(f"/v1/sessions/{session_id}/events", after=after, limit=1000, **params)
            items += page["items"]
            after = page["next_after"]
            if after >= page["last_seq"]:
                return items

    @asynccontextmanager
    async def stream(
        self, path: str, *, headers: Mapping[str, str] | None = None, **params: Any
    ) -> AsyncIterator["Stream"]:
        """An open event stream."""
        async with self.client.stream("GET", path, params=params, headers=headers) as response:
            yield Stream(response, response.aiter_raw())

    async def follow(
        self, path: str, until: str, *, headers: Mapping[str, str] | None = None, **params: Any
    ) -> list[Frame]:
        """Every frame of a stream up to and with the first one named `until`."""
        async with self.stream(path, headers=headers, **params) as stream:
            return await stream.until(until)


class Stream:
    """An open event stream, read frame by frame."""

    def __init__(self, response: httpx.Response, chunks: AsyncIterator[bytes]) -> None:
        self.response = response
        self._chunks = chunks
        self.raw = b""
        """Everything that came so far."""
        self._read = 0

    @property
    def frames(self) -> list[Frame]:
        """Every complete frame that came so far."""
        return parse_frames(self.raw)

    async def more(self) -> bool:
        """Wait for more bytes; false at the end of the stream."""
        with anyio.fail_after(PATIENCE):
            try:
                self.raw += await anext(self._chunks)
            except StopAsyncIteration:
                return False
        return True

    async def until(self, event: str, count: int = 1) -> list[Frame]:
        """Every frame so far, once `count` of them are named `event`."""
        while sum(frame.event == event for frame in self.frames) < count:
            assert await self.more(), f"the stream ended before {event}: {self.raw[-2000:]!r}"
        return self.frames

    async def to_end(self) -> list[Frame]:
        """Every frame, once the stream has ended."""
        while await self.more():
            pass
        return self.frames


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


@asynccontextmanager
async def open_house(
    database_url: str,
    folder: Path,
    *,
    limits: Limits | None = None,
    timing: Timing | None = None,
    **more: Any,
) -> AsyncIterator[House]:
    """A service of its own on that database. Several may share one: they are replicas."""
    cwd = folder / "work"
    cwd.mkdir(exist_ok=True)
    key = f"alm_test_{'k' * 43}"
    settings = Settings(
        database_url=SecretStr(database_url),
        data_dir=folder,
        api_key=SecretStr(key),
        allowed_roots=(cwd,),
        database_pool=8,
        limits=limits or Limits(),
        timing=timing or Timing(health_s=1.0, drain_s=1.0),
        **more,
    )
    stack = AsyncExitStack()
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    application = create_app(settings)
    config = uvicorn.Config(
        application,
        http=EdgeProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,
    )
    server = _Server(config)
    limit = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    async with (
        stack,
        application.router.lifespan_context(application),
        anyio.create_task_group() as tasks,
        httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(PATIENCE, read=120),
            limits=limit,
            trust_env=False,
        ) as client,
    ):
        ended = anyio.Event()

        async def serve() -> None:
            try:
                await server.serve([listener])
            finally:  # also when the test was cancelled: its end waits for this
                ended.set()

        tasks.start_soon(serve)
        service: Service = application.state.house
        with anyio.fail_after(PATIENCE):
            await service.rooms.healths.looked.wait()
        try:
            yield House(url, key, client, service, application, cwd, settings)
        finally:
            service.rooms.lifecycle.drain()
            await client.aclose()
            server.should_exit = True
            with anyio.CancelScope(shield=True):
                await ended.wait()  # also when the test failed: else its socket's number is another's soon
