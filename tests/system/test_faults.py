"""The whole process under faults: killed, stopped, started twice, its database taken away."""

import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import psutil
import pytest
from anyio.abc import Process, TaskStatus

from app.domain.events import TERMINAL_TYPES
from app.store.embedded import EmbeddedPostgres, embedded_postgres
from tests.house import Frame, Stream, address_of, assert_unbroken, durable, outside_url

PATIENCE = 30.0
"""Seconds after which a test that waits has failed."""
ROOT = Path(__file__).parent.parent.parent
KEY = f"alm_test_{'k' * 43}"


@dataclass
class Serving:
    """A service in a process of its own, and a client that holds its key."""

    process: Process
    url: str
    client: httpx.AsyncClient
    cwd: Path
    seen: list[psutil.Process] = field(default_factory=list)
    """Every process that was found below it."""

    def below(self) -> list[psutil.Process]:
        """All processes below the service."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        self.seen += [process for process in found if process not in self.seen]
        return found

    def postmaster(self) -> psutil.Process:
        """Its PostgreSQL."""
        return next(p for p in psutil.Process(self.process.pid).children() if "postgres" in p.name())

    async def get(self, path: str, **params: Any) -> Any:
        """The JSON of a GET that must succeed."""
        answer = await self.client.get(path, params=params)
        assert answer.is_success, answer.text
        return answer.json()

    async def ensure(self, session_id: str) -> dict[str, Any]:
        """A session of the demo agent."""
        body = {"agent": "demo", "cwd": str(self.cwd)}
        answer = await self.client.put(f"/v1/sessions/{session_id}", json=body)
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def prompt(self, session_id: str, prompt: str, **body: Any) -> str:
        """The id of an admitted turn."""
        answer = await self.client.post(f"/v1/sessions/{session_id}/turns", json={"prompt": prompt, **body})
        assert answer.is_success, answer.text
        turn: str = answer.json()["turn_id"]
        return turn

    async def ended(self, turn_id: str) -> dict[str, Any]:
        """The turn once it has ended."""
        with anyio.fail_after(PATIENCE):
            while True:
                turn: dict[str, Any] = await self.get(f"/v1/turns/{turn_id}/wait", timeout_s=10)
                if turn["ended_at"] is not None:
                    return turn

    @asynccontextmanager
    async def stream(self, path: str, after: int | None = None) -> AsyncIterator[Stream]:
        """An open event stream."""
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        async with self.client.stream("GET", path, headers=headers) as response:
            yield Stream(response, response.aiter_raw())

    async def log(self, session_id: str) -> list[Frame]:
        """The whole log as a stream tells it now."""
        async with self.stream(f"/v1/sessions/{session_id}/events/stream") as stream:
            return durable(await stream.until("stream.synced"))

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.below()
        self.process.terminate()
        with anyio.fail_after(PATIENCE):
            return await self.process.wait()

    async def kill(self) -> None:
        """SIGKILL."""
        self.below()
        self.process.kill()
        with anyio.fail_after(PATIENCE):
            await self.process.wait()


def environment(folder: Path, **more: str) -> dict[str, str]:
    """The service's environment."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "ALAMEDA_PORT": "0",
        "ALAMEDA_DATA_DIR": str(folder / "data"),
        "ALAMEDA_ALLOWED_ROOTS": str(folder / "work"),
        "ALAMEDA_API_KEY": KEY,
        "ALAMEDA_TIMING__DRAIN_S": "1",
        "PASEO_URL": "http://127.0.0.1:9",
        **more,
    }


@asynccontextmanager
async def serving(folder: Path, *, user: str | None = None, **more: str) -> AsyncIterator[Serving]:
    """A service on the folder's data directory, stopped at the end if it still runs."""
    folder.chmod(0o711)
    cwd = folder / "work"
    cwd.mkdir(exist_ok=True)
    rights: dict[str, Any] = {} if user is None else {"user": user, "extra_groups": []}
    with open(folder / "stderr", "ab") as errors:
        process = await anyio.open_process(
            [sys.executable, "-m", "app", "serve"],
            stderr=errors,
            cwd=folder,
            env=environment(folder, **more),
            **rights,
        )
    try:
        url = await _first_words(process, folder)
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=PATIENCE,
            limits=limits,
            trust_env=False,
        ) as client:
            yield Serving(process, url, client, cwd)
    finally:
        with anyio.CancelScope(shield=True):
            if process.returncode is None:
                process.terminate()
                with anyio.move_on_after(15) as patience:
                    await process.wait()
                if patience.cancelled_caught:
                    process.kill()
            await process.aclose()


async def _first_words(process: Process, folder: Path) -> str:
    """The URL that the service prints once it serves."""
    said = b""
    assert process.stdout is not None
    try:
        with anyio.fail_after(PATIENCE):
            while b"\n" not in said:
                said += await process.stdout.receive()
    except anyio.EndOfStream:
        pytest.fail(f"the service did not start:\n{(folder / 'stderr').read_text()[-3000:]}")
    return said.decode().split("\n")[0].rpartition(" ")[2]


async def all_gone(processes: list[psutil.Process]) -> None:
    """Return once none of these runs any more; who has ended and was not reaped yet does not run."""
    left = processes
    with anyio.fail_after(PATIENCE):
        while left:
            _, alive = await anyio.to_thread.run_sync(psutil.wait_procs, left, 0.1)
            left = [process for process in alive if not _is_zombie(process)]


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def terminals(frames: list[Frame]) -> list[tuple[str, str]]:
    """Every terminal event, as turn and type."""
    return [(f.data["turn_id"], f.data["type"]) for f in durable(frames) if f.event in TERMINAL_TYPES]


async def interrupted_turn(
    service: Serving, session: str, prompt: str, deltas: int
) -> tuple[str, list[Frame]]:
    """A turn, and what a follower had seen of it after some deltas; the follower is gone by then."""
    await service.ensure(session)
    turn = await service.prompt(session, prompt)
    async with service.stream(f"/v1/sessions/{session}/events/stream") as stream:
        return turn, durable(await stream.until("message.delta", deltas))


async def goes_on_after(service: Serving, session: str, turn: str, seen: list[Frame]) -> list[Frame]:
    """The follower that comes back with its cursor sees the end of the turn, and the log is unbroken."""
    path = f"/v1/sessions/{session}/events/stream"
    async with service.stream(path, after=seen[-1].seq) as stream:
        rest = durable(await stream.until("turn.indeterminate"))
    assert_unbroken(seen + rest)
    whole = await service.log(session)
    assert [f.raw for f in whole] == [f.raw for f in seen + rest]
    assert terminals(whole) == [(turn, "turn.indeterminate")]
    assert whole[-1].event == "turn.indeterminate"
    assert (await service.get(f"/v1/turns/{turn}"))["status"] == "indeterminate"
    return whole


async def works(service: Serving, session: str) -> None:
    """The session's next prompt is done."""
    turn = await service.ended(await service.prompt(session, "say again"))
    assert (turn["status"], turn["output_text"]) == ("completed", "again")


async def test_killed_in_mid_turn_it_comes_back_with_an_unbroken_log(folder: Path) -> None:
    """What a follower received is there again; the turn is `indeterminate`; no child of the dead is left."""
    async with serving(folder) as service:
        turn, seen = await interrupted_turn(service, "s-1", "stream 200 20", 20)
        agents = [p for p in service.below() if "postgres" not in p.name()]
        assert agents
        await service.kill()
    await all_gone(agents)
    async with serving(folder) as service:
        await goes_on_after(service, "s-1", turn, seen)
        await works(service, "s-1")
        assert await service.stop() == 0
        await all_gone(service.seen)


async def test_killed_together_with_its_database_it_comes_back_with_an_unbroken_log(folder: Path) -> None:
    """A machine that lost its power keeps every event that anybody had seen."""
    async with serving(folder) as service:
        turn, seen = await interrupted_turn(service, "s-1", "stream 200 20", 20)
        postmaster = service.postmaster()
        await service.kill()
        postmaster.kill()
    await all_gone(service.seen)
    async with serving(folder) as service:
        await goes_on_after(service, "s-1", turn, seen)
        await works(service, "s-1")


async def test_killed_postgres_is_started_again_under_a_running_turn(folder: Path) -> None:
    """The turn goes on, its events wait, and the open stream gets them all in order."""
    async with serving(folder) as service:
        await service.ensure("s-1")
        turn = await service.prompt("s-1", "stream 200 10")
        async with service.stream("/v1/sessions/s-1/events/stream") as stream:
            await stream.until("message.delta", 20)
            service.postmaster().kill()
            frames = await stream.until("turn.completed")
        assert_unbroken(frames)
        control = [f.event for f in frames if f.event in ("stream.stalled", "stream.resumed")]
        assert control == ["stream.stalled", "stream.resumed"]
        pieces = [f.data["data"]["text"] for f in durable(frames) if f.event == "message.delta"]
        assert "".join(pieces).split() == [f"chunk-{n}" for n in range(1, 201)]
        assert [f.raw for f in await service.log("s-1")] == [f.raw for f in durable(frames)]
        assert (await service.ended(turn))["status"] == "completed"
        await works(service, "s-1")


async def test_stopped_it_tells_every_stream_and_leaves_nothing_behind(folder: Path) -> None:
    """SIGTERM: `stream.closing {draining}` on 200 streams, exit code 0 within ten seconds."""
    async with serving(folder) as service:
        await service.ensure("s-1")
        await service.ended(await service.prompt("s-1", "say hello"))
        path = "/v1/sessions/s-1/events/stream"
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(service.stream(path)) for _ in range(200)]
            for stream in streams:
                await stream.until("stream.synced")
            with anyio.fail_after(10):
                code = await service.stop()
            farewells = [(await stream.to_end())[-1] for stream in streams]
        assert code == 0
        assert {(f.event, f.data["reason"]) for f in farewells} == {("stream.closing", "draining")}
        await all_gone(service.seen)


async def test_stopped_in_mid_turn_it_ends_the_turn_truthfully(folder: Path) -> None:
    """An agent of ours ends with us: `turn.cancelled {cause: shutdown}`, and the stream says `draining`."""
    async with serving(folder) as service:
        await service.ensure("s-1")
        turn = await service.prompt("s-1", "say first\nsleep 600")
        async with service.stream("/v1/sessions/s-1/events/stream") as stream:
            await stream.until("message.delta")
            assert await service.stop() == 0
            frames = await stream.to_end()
        assert (frames[-1].event, frames[-1].data) == ("stream.closing", {"reason": "draining"})
        await all_gone(service.seen)
    async with serving(folder) as service:
        whole = await service.log("s-1")
        assert_unbroken(whole)
        assert terminals(whole) == [(turn, "turn.cancelled")]
        assert whole[-1].data["data"] == {"cause": "shutdown", "cancel_outcome": "stopped"}
        assert whole[-2].event == "message.completed"
        await works(service, "s-1")


@pytest.mark.parametrize("is_cancelled", [False, True], ids=["running", "being cancelled"])
async def test_stopped_under_an_unwilling_agent_it_ends_the_turn_truthfully(
    folder: Path, is_cancelled: bool
) -> None:
    """An agent that does not stop when asked is ended with us, and its turn with it."""
    async with serving(folder) as service:
        await service.ensure("s-1")
        turn = await service.prompt("s-1", "ignore-cancel\nsay first\nsleep 600")
        async with service.stream("/v1/sessions/s-1/events/stream") as stream:
            await stream.until("message.delta")
        async with anyio.create_task_group() as tasks:
            if is_cancelled:
                tasks.start_soon(service.client.post, f"/v1/turns/{turn}/cancel")
                async with service.stream("/v1/sessions/s-1/events/stream") as stream:
                    await stream.until("stream.synced")
            with anyio.fail_after(12):
                assert await service.stop() == 0
            tasks.cancel_scope.cancel()
        await all_gone(service.seen)
    async with serving(folder) as service:
        ended = await service.ended(turn)
        assert ended["status"] in ("cancelled", "indeterminate")
        whole = await service.log("s-1")
        assert_unbroken(whole)
        assert len(terminals(whole)) == 1
        await works(service, "s-1")


async def run_database(
    folder: Path, *, task_status: TaskStatus[tuple[EmbeddedPostgres, anyio.Event]]
) -> None:
    """A PostgreSQL of the test's own, until the event is set."""
    stop = anyio.Event()
    async with embedded_postgres(folder) as server:
        task_status.started((server, stop))
        await stop.wait()


async def beats(stream: Stream, start: int, count: int) -> None:
    """Return after so many heartbeats past the frame number `start`."""
    while sum(frame.is_comment for frame in stream.frames[start:]) < count:
        assert await stream.more()


@dataclass
class Outage:
    """A service on a PostgreSQL that the test starts and stops."""

    service: Serving
    stop: Callable[[], None]
    start: Callable[[], Awaitable[None]]
    environment: dict[str, str]
    """What other replicas need."""


@asynccontextmanager
async def own_database(folder: Path, **settings: str) -> AsyncIterator[Outage]:
    """A service whose streams beat each second, on a database of the test's own."""
    database = folder / "database"
    folder.chmod(0o711)
    async with anyio.create_task_group() as tasks:
        server, stopping = await tasks.start(run_database, database)

        async def start() -> None:
            nonlocal stopping
            _, stopping = await tasks.start(run_database, database)

        url = outside_url(address_of(server), database)
        try:
            more = {"DATABASE_URL": url, "ALAMEDA_TIMING__HEARTBEAT_S": "1", **settings}
            async with serving(folder, **more) as service:
                yield Outage(service, lambda: stopping.set(), start, more)
        finally:
            stopping.set()


async def test_running_turn_outlives_a_database_that_is_away_for_seconds(folder: Path) -> None:
    """Streams say so once and keep beating, prompts are refused, openings wait; then everything in order."""
    async with own_database(folder) as outage:
        service = outage.service
        await service.ensure("s-1")
        turn = await service.prompt("s-1", "stream 1000 10")
        path = "/v1/sessions/s-1/events/stream"
        opened: list[int] = []

        async def open_another() -> None:
            async with service.stream(path) as stream:
                opened.append(stream.response.status_code)
                await stream.until("stream.ready")

        async with service.stream(path) as stream, anyio.create_task_group() as tasks:
            await stream.until("message.delta", 20)
            outage.stop()
            stalled = len(await stream.until("stream.stalled"))
            await beats(stream, stalled, 1)
            refused = await service.client.post("/v1/sessions/s-1/turns", json={"prompt": "x"})
            assert refused.status_code == 503, refused.text
            assert refused.json()["code"] == "database_unavailable"
            assert "retry-after" in refused.headers
            tasks.start_soon(open_another)
            await beats(stream, stalled, 5)
            assert opened == []
            await outage.start()
            frames = await stream.until("turn.completed")
        assert opened == [200]
        assert_unbroken(frames)
        control = [f for f in frames if f.event in ("stream.stalled", "stream.resumed")]
        assert [f.event for f in control] == ["stream.stalled", "stream.resumed"]
        assert control[0].data == {"reason": "database_unavailable"}
        before = durable(frames[: frames.index(control[1])])
        assert before[-1].seq <= control[1].data["last_seq"] < durable(frames)[-1].seq
        pieces = [f.data["data"]["text"] for f in durable(frames) if f.event == "message.delta"]
        assert "".join(pieces).split() == [f"chunk-{n}" for n in range(1, 1001)]
        assert [f.raw for f in await service.log("s-1")] == [f.raw for f in durable(frames)]
        assert (await service.ended(turn))["status"] == "completed"
        await works(service, "s-1")


async def test_opening_waits_for_the_database_even_to_find_out_who_asks(folder: Path) -> None:
    """By key and by ticket; a ticket whose wait was in vain is told so on a stream."""
    async with own_database(folder) as outage:
        service = outage.service
        await service.ensure("s-1")
        path = "/v1/sessions/s-1/events/stream"
        made = await service.client.post("/v1/stream-tickets", json={"session_id": "s-1"})
        ticketed = f"{path}?ticket={made.json()['ticket']}"
        opened: list[int] = []

        async def open_one(path: str) -> None:
            async with service.stream(path) as stream:
                opened.append(stream.response.status_code)
                await stream.until("stream.ready")

        async with service.stream(path) as stream, anyio.create_task_group() as tasks:
            await stream.until("stream.synced")
            outage.stop()
            stalled = len(await stream.until("stream.stalled"))
            await beats(stream, stalled, 6)  # by now no key is remembered
            tasks.start_soon(open_one, path)
            tasks.start_soon(open_one, ticketed)
            await beats(stream, stalled, 7)
            assert opened == []
            await outage.start()
        assert opened == [200, 200]


async def test_host_that_was_paused_is_fenced_out_by_the_replica_that_took_over(folder: Path) -> None:
    """Its lease ran out: another replica ends the turn and runs the queue; the late host writes nothing."""
    async with own_database(folder, ALAMEDA_TIMING__LEASE_S="4") as outage:
        paused = outage.service
        (folder / "other").mkdir()
        async with serving(
            folder, **{**outage.environment, "ALAMEDA_DATA_DIR": str(folder / "other")}
        ) as taker:
            await paused.ensure("s-1")
            turn, seen = await interrupted_turn(paused, "s-1", "stream 100000 20", 20)
            queued = await taker.prompt("s-1", "say elsewhere", multitask_strategy="enqueue")
            agents = paused.below()
            path = "/v1/sessions/s-1/events/stream"
            psutil.Process(paused.process.pid).suspend()
            try:
                async with taker.stream(path, after=seen[-1].seq) as stream:
                    rest = durable(await stream.until("turn.completed"))
                await all_gone(agents)
            finally:
                psutil.Process(paused.process.pid).resume()
            assert terminals(seen + rest) == [(turn, "turn.indeterminate"), (queued, "turn.completed")]
            assert_unbroken(seen + rest)
            await works(paused, "s-1")
            await works(taker, "s-1")
            whole = await paused.log("s-1")
            assert_unbroken(whole)
            assert [f.raw for f in whole] == [f.raw for f in await taker.log("s-1")]
            assert [f.raw for f in whole[: len(seen + rest)]] == [f.raw for f in seen + rest]
            assert len(terminals(whole)) == 4


async def test_second_service_on_the_same_data_directory_names_the_first(folder: Path) -> None:
    """It stops, and says who is there and where."""
    async with serving(folder) as service:
        with anyio.fail_after(PATIENCE):
            second = await anyio.run_process(
                [sys.executable, "-m", "app", "serve"], check=False, cwd=folder, env=environment(folder)
            )
        assert second.returncode not in (0, None)
        said = second.stderr.decode()
        assert str(service.process.pid) in said
        assert service.url in said
        assert "Traceback" not in said
        await service.ensure("s-1")
        await works(service, "s-1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALAMEDA_PORT", "eighty"),
        ("ALAMEDA_HOST", "0.0.0.0"),
        ("ALAMEDA_API_KEY", "secret"),
        ("DATABASE_URL", "mysql://x"),
        ("ALAMEDA_TIMING__HEARTBEAT_S", "0"),
        ("ALAMEDA_LIMITS__STREAMS", "none"),
        ("ALAMEDA_ALLOWED_ROOTS", "relative"),
        ("ALAMEDA_CONFIG", "/nowhere/alameda.toml"),
    ],
)
async def test_wrong_setting_stops_the_start_and_names_itself(folder: Path, name: str, value: str) -> None:
    """Exit code 2, one message without a traceback."""
    with anyio.fail_after(PATIENCE):
        done = await anyio.run_process(
            [sys.executable, "-m", "app", "serve"],
            check=False,
            cwd=folder,
            env=environment(folder, **{name: value}),
        )
    assert done.returncode == 2
    said = done.stderr.decode()
    assert name in said
    assert "Traceback" not in said


async def test_taken_port_stops_the_start_and_names_itself(folder: Path) -> None:
    """Somebody else listens there already."""
    (folder / "other").mkdir()
    async with serving(folder) as service:
        port = service.url.rpartition(":")[2]
        with anyio.fail_after(PATIENCE):
            second = await anyio.run_process(
                [sys.executable, "-m", "app", "serve"],
                check=False,
                cwd=folder,
                env=environment(folder / "other", ALAMEDA_PORT=port),
            )
    assert second.returncode not in (0, None)
    assert port in second.stderr.decode()
    assert "Traceback" not in second.stderr.decode()


def _nobody_can_run_it() -> bool:
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import app.main"],
            user="nobody",
            extra_groups=[],
            cwd="/",
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=False,
        )
    except OSError:
        return False
    return done.returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="already an ordinary user")
async def test_ordinary_user_can_run_it(folder: Path) -> None:
    """No root needed: the database is the user's own."""
    if not _nobody_can_run_it():
        pytest.skip("this Python is closed to other users")
    folder.chmod(0o711)
    home = Path(tempfile.mkdtemp(dir=folder))
    for path in (home, home / "work"):
        path.mkdir(exist_ok=True)
        os.chown(path, pwd.getpwnam("nobody").pw_uid, -1)
    async with serving(home, user="nobody", HOME=str(home)) as service:
        await service.ensure("s-1")
        await works(service, "s-1")
        assert {p.username() for p in service.below()} == {"nobody"}
        assert await service.stop() == 0
        await all_gone(service.seen)
