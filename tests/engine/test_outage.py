"""The database is away: what goes on, what stops after one lease time, and how it is told afterwards."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx

from app.settings import BackendSettings, Timing
from app.store.database import Address
from tests.cable import Cable, cable_to
from tests.engine.replicas import agents
from tests.house import Frame, House, Stream, assert_unbroken, durable, open_house
from tests.paseo.twin import Twin
from tests.system.test_paseo_recovery import assert_ended_once, chunks, eventually, plain

LEASE_S = 2.0
TIMING = Timing(lease_s=LEASE_S, heartbeat_s=0.5, health_s=1.0, drain_s=0.0)
ROWS = 22_000
"""More than a subscription and the pipe behind it keep together."""
STEADY = Timing(heartbeat_s=0.5)
STREAM = "/v1/sessions/s/events/stream"


def paseo(twin: Twin) -> dict[str, BackendSettings]:
    """The twin as the Paseo backend."""
    return {"paseo": BackendSettings(type="paseo", url=twin.http, provider="scripted")}


@asynccontextmanager
async def cut_off(
    address: Address, folder: Path, timing: Timing = TIMING, **more: Any
) -> AsyncIterator[tuple[House, Cable]]:
    """A service whose way to the database can be cut."""
    async with cable_to(address) as cable, open_house(cable.url, folder, timing=timing, **more) as house:
        try:
            yield house, cable
        finally:
            cable.mend()


async def beats(stream: Stream, count: int) -> None:
    """Return after so many more heartbeats: what lasts, lasts."""
    start = len(stream.frames)
    while sum(frame.is_comment for frame in stream.frames[start:]) < count:
        assert await stream.more()


async def outlast_the_lease(stream: Stream) -> None:
    """Return when the lease has run out, and some renewals have failed after that."""
    await stream.until("stream.stalled")
    await beats(stream, int(1.75 * LEASE_S / TIMING.heartbeat_s))


def text_of(frames: list[Frame]) -> str:
    """All that was said."""
    return "".join(f.data["data"]["text"] for f in durable(frames) if f.event == "message.delta")


def assert_told_in_order(frames: list[Frame]) -> None:
    """Stalled once, resumed once with the log's end, and no event lost, doubled or out of place."""
    control = [f for f in frames if f.event in ("stream.stalled", "stream.resumed")]
    assert [f.event for f in control] == ["stream.stalled", "stream.resumed"]
    assert control[0].data == {"reason": "database_unavailable"}
    before = durable(frames[: frames.index(control[1])])
    assert before[-1].seq <= control[1].data["last_seq"]
    assert_unbroken(frames)


# After one lease time.


async def test_paseo_turn_is_taken_up_from_its_cursor_when_the_database_is_back(
    database_address: Address, folder: Path
) -> None:
    """It went on in the daemon; all of it is told, once, and it was sent once."""
    async with Twin() as twin, cut_off(database_address, folder, backends=paseo(twin)) as (house, cable):
        await house.ensure("s", agent="scripted")
        async with house.stream(STREAM) as stream:
            turn = await house.prompt("s", "chunks 300 20 5")
            await stream.until("message.delta")
            cable.cut()
            await outlast_the_lease(stream)
            cable.mend()
            frames = await stream.until("turn.completed")
        assert_told_in_order(frames)
        assert plain(text_of(frames)) == chunks(300)
        assert_ended_once(await house.log("s"), turn["turn_id"])
        assert twin.record.count("send_agent_message_request") == 1


async def test_paseo_turn_of_a_host_that_is_cut_off_is_told_on_by_another(
    database_address: Address, database_url: str, folder: Path
) -> None:
    """The other replica goes on from the cursor; the one that comes back writes nothing of its own."""
    async with (
        Twin() as twin,
        cut_off(database_address, folder, backends=paseo(twin)) as (house, cable),
        open_house(database_url, folder, timing=TIMING, backends=paseo(twin)) as other,
    ):
        await house.ensure("s", agent="scripted")
        async with house.stream(STREAM) as here, other.stream(STREAM) as there:
            turn = await house.prompt("s", "chunks 300 20 5")
            await there.until("message.delta")
            cable.cut()
            frames = await there.until("turn.completed")
            cable.mend()
            seen = await here.until("turn.completed")
        assert plain(text_of(frames)) == chunks(300)
        assert_unbroken(frames)
        assert_told_in_order(seen)
        assert [f.raw for f in durable(seen)] == [f.raw for f in durable(frames)]
        assert_ended_once(await other.log("s"), turn["turn_id"])
        assert twin.record.count("send_agent_message_request") == 1


async def test_host_without_a_lease_does_nothing_to_its_agent(
    database_address: Address, folder: Path
) -> None:
    """A deadline that passes meanwhile is acted upon when the lease is renewed."""
    async with Twin() as twin, cut_off(database_address, folder, backends=paseo(twin)) as (house, cable):
        await house.ensure("s", agent="scripted")
        async with house.stream(STREAM) as stream:
            turn = await house.prompt("s", "say begun\nhang", deadline_s=LEASE_S + 1)
            await stream.until("message.delta")
            cable.cut()
            await outlast_the_lease(stream)
            assert twin.record.count("cancel_agent_request") == 0
            cable.mend()
            await stream.until("turn.timed_out")
        assert (await house.ended(turn["turn_id"]))["limit"] == "deadline"
        assert twin.record.count("cancel_agent_request") == 1


async def test_agent_of_ours_is_ended_and_its_turn_is_indeterminate(
    database_address: Address, folder: Path
) -> None:
    """While the database is away already; what it had said is in the log, and it can be prompted again."""
    await eventually(lambda: not agents())  # those of other tests
    async with cut_off(database_address, folder) as (house, cable):
        made = await house.ensure("s")
        async with house.stream(STREAM) as stream:
            turn = await house.prompt("s", "stream 100000 20")
            await stream.until("message.delta")
            assert len(agents()) == 1
            cable.cut()
            await outlast_the_lease(stream)
            await eventually(lambda: not agents())
            cable.mend()
            frames = await stream.until("turn.indeterminate")
        assert_told_in_order(frames)
        said = text_of(frames).split()
        assert said == [f"chunk-{n}" for n in range(1, len(said) + 1)]
        ended = await house.ended(turn["turn_id"])
        assert (ended["status"], ended["cause"], ended["delivered"]) == ("indeterminate", "lease_lost", "yes")
        assert_ended_once(await house.log("s"), turn["turn_id"])
        assert (await house.run("s", "say again"))["output_text"] == "again"
        assert (await house.get("/v1/sessions/s"))["agent_session_id"] == made["agent_session_id"]


async def test_hosts_renew_before_others_take_over_after_an_outage(
    database_address: Address, folder: Path
) -> None:
    """Whoever is back first leaves the others a lease time: their leases ran out for all of them."""
    timing = Timing(lease_s=6.0, heartbeat_s=0.5, health_s=1.0, drain_s=0.0)
    async with (
        Twin() as twin,
        cut_off(database_address, folder, timing, backends=paseo(twin)) as (house, cable),
        cut_off(database_address, folder, timing, backends=paseo(twin)) as (other, others),
    ):
        await house.ensure("s", agent="scripted")
        turn = (await house.prompt("s", "say begun\nhang"))["turn_id"]
        async with other.stream(STREAM) as stream:
            await stream.until("message.delta")
            cable.cut()
            others.cut()
            await stream.until("stream.stalled")
            await beats(stream, 15)  # longer than a lease
            others.mend()
            await stream.until("stream.resumed")
            await beats(stream, 6)  # longer than from one look for silent hosts to the next
            cable.mend()
            answer = await other.post(f"/v1/turns/{turn}/cancel")
            assert answer.json()["cancel_outcome"] == "stopped"
            frames = await stream.until("turn.cancelled")
        assert_unbroken(frames)
        assert "turn.reconciling" not in [f.event for f in frames]


# What does not fit.


async def test_what_does_not_fit_is_fetched_again_from_the_daemon(
    database_address: Address, folder: Path
) -> None:
    """More than is kept comes while nothing can be written: the timeline has it still."""
    async with (
        Twin() as twin,
        cut_off(database_address, folder, STEADY, backends=paseo(twin)) as (
            house,
            cable,
        ),
    ):
        await house.ensure("s", agent="scripted")
        rows = "\n".join(f"say {n}.\nthink t" for n in range(ROWS // 2))  # one row each: they take turns
        async with house.stream(STREAM, types="turn.*") as stream:
            turn = await house.prompt("s", f"say begun.\nsleep 500\n{rows}\nsleep 1\nsay end.")
            await house.follow(STREAM, "message.delta")
            cable.cut()
            agent = twin.agent(next(iter(twin.running.agents)))
            await eventually(lambda: agent.snapshot()["status"] == "idle")
            await stream.until("stream.stalled")
            await beats(stream, 8)  # all of it has come by then, or was left where it is
            cable.mend()
        assert (await house.ended(turn["turn_id"]))["status"] == "completed"
        said = [e["data"]["text"] for e in await house.log("s") if e["type"] == "message.delta"]
        assert "".join(said) == "begun." + "".join(f"{n}." for n in range(ROWS // 2)) + "end."
        assert twin.record.count("fetch_agent_timeline_request") > 20


async def test_turn_of_an_agent_that_cannot_tell_again_fails(database_address: Address, folder: Path) -> None:
    """It is stopped at once, and says why once that can be written: `buffer_overflow`."""
    await eventually(lambda: not agents())  # those of other tests
    async with cut_off(database_address, folder, Timing()) as (house, cable):
        await house.ensure("s")
        async with house.stream(STREAM, types="turn.*") as stream:
            turn = await house.prompt("s", "sleep 0.5\nstream 30000 0\nsleep 600")
            await stream.until("turn.started")
            cable.cut()
            await eventually(lambda: not agents())
            cable.mend()
            await stream.until("turn.failed")
        ended = await house.ended(turn["turn_id"])
        assert (ended["error"]["code"], ended["delivered"]) == ("buffer_overflow", "yes")
        said = [e["data"]["text"] for e in await house.log("s") if e["type"] == "message.delta"]
        words = "".join(said).split()
        assert words == [f"chunk-{n}" for n in range(1, len(words) + 1)]
        assert (await house.run("s", "say again"))["output_text"] == "again"


# What is refused.


async def test_opening_a_stream_waits_ten_seconds_for_the_database(
    database_address: Address, folder: Path
) -> None:
    """Then by key a 503, and by ticket a stream that says so: an EventSource would die of the 503."""
    async with cut_off(database_address, folder, Timing()) as (house, cable):
        await house.ensure("s")
        made = await house.post("/v1/stream-tickets", {"session_id": "s"})
        cable.cut()
        answers: dict[str, httpx.Response] = {}
        took: dict[str, float] = {}

        async def open_one(query: str) -> None:
            started = anyio.current_time()
            answers[query] = await house.client.get(STREAM + query)
            took[query] = anyio.current_time() - started

        ticketed = f"?ticket={made.json()['ticket']}"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_one, "")
            tasks.start_soon(open_one, ticketed)
        refused = answers[""]
        assert (refused.status_code, refused.json()["code"]) == (503, "database_unavailable")
        assert int(refused.headers["Retry-After"]) > 0
        assert answers[ticketed].status_code == 200
        assert answers[ticketed].text == (
            'retry: 2000\n\nevent: stream.closing\ndata: {"reason":"database_unavailable"}\n\n'
        )
        assert all(9.5 < seconds < 16 for seconds in took.values()), took
