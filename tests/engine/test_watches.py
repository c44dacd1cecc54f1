"""What a process keeps of terminals' output: how much, for whom, and what is said when it breaks off."""

import shlex
import shutil
import tracemalloc
from pathlib import Path

import anyio
import httpx
import psutil
import pytest

from app.domain.ids import Owner, TerminalId
from app.engine.terminal_places import MOST_OF_ONE
from app.engine.terminal_streams import Bytes
from app.settings import Limits
from tests.engine.terminal_house import captured, open_terminal, output, streamed, type_into
from tests.engine.test_terminals_paseo import replica, session
from tests.house import PATIENCE, House, open_house
from tests.paseo.twin import Twin

RING = 4 * 1024 * 1024


async def test_searches_wait_without_a_copy_and_not_without_bound(database_url: str, folder: Path) -> None:
    """Each takes the ring's memory only when it is its turn; one too many is told when to come again."""
    async with open_house(database_url, folder, limits=Limits(terminal_ring_bytes=RING)) as house:
        await house.ensure("s")
        script = f"stty -onlcr; yes needle | head -c {RING - 100}; echo ende; read x"
        terminal = (await open_terminal(house, "s", "sh", "-c", script))["terminal_id"]
        await streamed(house, terminal, b"ende")
        path = f"/v1/terminals/{terminal}/search"
        turns = house.service.rooms.terminal_search.places.turns
        holders = [object() for _ in range(int(turns.total_tokens))]
        for holder in holders:
            turns.acquire_on_behalf_of_nowait(holder)
        answers: list[httpx.Response] = []

        async def search() -> None:
            answers.append(await house.client.get(path, params={"q": "ende"}))

        tracemalloc.start()
        try:
            async with anyio.create_task_group() as tasks:
                for _ in range(MOST_OF_ONE):
                    tasks.start_soon(search)
                with anyio.fail_after(PATIENCE):
                    while turns.statistics().tasks_waiting < MOST_OF_ONE:  # noqa: ASYNC110 - nobody tells
                        await anyio.sleep(0.01)
                for one_more in (path, "/v1/terminals/search", f"/v1/terminals/{terminal}/capture"):
                    refused = await house.client.get(one_more, params={"q": "ende"})
                    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
                    assert int(refused.headers["retry-after"]) >= 1
                assert tracemalloc.get_traced_memory()[1] < RING
                tracemalloc.stop()
                for holder in holders:
                    turns.release_on_behalf_of(holder)
        finally:
            tracemalloc.stop()
        assert [answer.status_code for answer in answers] == [200] * MOST_OF_ONE
        assert {(a.json()["source"], len(a.json()["matches"])) for a in answers} == {("ring", 1)}


async def test_stream_that_was_opened_keeps_its_ring_from_then_on(database_url: str, folder: Path) -> None:
    """Also before anybody reads it; as many as may be kept are in use, and whoever comes then is told so."""
    async with open_house(database_url, folder, limits=Limits(terminal_rings=1)) as house:
        await house.ensure("s")
        first = (await open_terminal(house, "s", "cat"))["terminal_id"]
        streams = house.service.rooms.terminal_streams
        tail = await streams.open(Owner("default"), TerminalId(first), "start")
        assert tail is not None
        second = (await open_terminal(house, "s", "sh", "-c", "echo needle; cat"))["terminal_id"]
        await captured(house, second, "needle")
        path = f"/v1/terminals/{second}/output/stream"
        answer = await house.client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_streams")
        assert "retry-after" in answer.headers
        found = await house.get(f"/v1/terminals/{second}/search", q="needle")
        assert (found["source"], len(found["matches"])) == ("capture", 1)
        await type_into(house, first, "hello\r")

        async def check() -> None:
            return None

        told = b""
        with anyio.fail_after(PATIENCE):
            async for step in streams.follow(tail, check, keys_version=0):
                told += step.data if isinstance(step, Bytes) else b""
                if told.endswith(b"hello\r\nhello\r\n"):
                    break
        tail.release()
        for terminal in (second, first):  # whichever is looked at, once nobody holds the other
            async with house.stream(f"/v1/terminals/{terminal}/output/stream") as stream:
                await stream.until("stream.ready")
                await type_into(house, terminal, "again\r")
                while b"again" not in output(stream.frames):
                    assert await stream.more()


async def test_refused_stream_s_ticket_can_be_used_later(database_url: str, folder: Path) -> None:
    """An EventSource dies of a 429: with a ticket the same is said in a stream."""
    async with open_house(database_url, folder, limits=Limits(terminal_rings=1)) as house:
        await house.ensure("s")
        first, second = [(await open_terminal(house, "s", "cat"))["terminal_id"] for _ in range(2)]
        ticket = (await house.post("/v1/stream-tickets", {"terminal_id": first})).json()["ticket"]
        path, headers = f"/v1/terminals/{first}/output/stream", {"Authorization": ""}
        async with house.stream(f"/v1/terminals/{second}/output/stream") as stream:
            await stream.until("stream.ready")
            answer = await house.client.get(path, params={"ticket": ticket}, headers=headers)
            assert (answer.status_code, b"too_many_streams" in answer.content) == (200, True)
        async with house.stream(path, headers=headers, ticket=ticket) as stream:
            await stream.until("stream.ready")


async def test_ring_that_gives_way_frees_the_daemon_s_slot(database_url: str, folder: Path) -> None:
    """It is cancelled when it unsubscribes; without that word the daemon would go on sending."""
    limits = Limits(terminal_rings=1)
    async with Twin() as twin, replica(twin, database_url, folder, limits=limits) as house:
        await session(house)
        terminals = [(await open_terminal(house, "s", name=f"n{i}"))["terminal_id"] for i in range(3)]
        await streamed(house, terminals[-1], b"# ")
        assert twin.daemon is not None
        daemon = twin.daemon
        last = [one.id for one in daemon.terminals.all.values() if "n2" in one.name]
        with anyio.fail_after(PATIENCE):
            while [t for one in daemon.sessions.values() for t in one.slots.values()] != last:  # noqa: ASYNC110
                await anyio.sleep(0.01)


async def test_lost_client_of_tmux_is_a_gap_and_no_end(house: House) -> None:
    """The terminal goes on, and so does its stream, in another ring."""
    await house.ensure("s")
    terminal = (await open_terminal(house, "s", "cat"))["terminal_id"]
    async with house.stream(f"/v1/terminals/{terminal}/output/stream") as stream:
        await stream.until("stream.ready")
        (client,) = [one for one in psutil.Process().children() if "attach-session" in one.cmdline()]
        client.kill()
        frames = await stream.until("stream.reset")
        assert next(f for f in frames if f.event == "stream.reset").data["reason"] == "other_ring"
        await type_into(house, terminal, "after\r")
        while b"after" not in output(stream.frames):
            assert await stream.more()
        assert "stream.closing" not in {frame.event for frame in stream.frames}


async def test_watch_that_crashes_does_not_say_that_its_terminal_ended(
    database_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here tmux says, once, what nobody can read."""
    program = shutil.which("tmux")
    assert program is not None
    script, mark = folder / "bin" / "tmux", shlex.quote(str(folder / "garbled"))
    script.parent.mkdir()
    says = r"printf '%%session-changed $0 x\n'; sleep 0.3; printf '%%output %%0 \\x\n'"
    garble = f"touch {mark}; {says}; exec cat"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *attach-session*) [ -e {mark} ] || {{ {garble}; }};; esac\n'
        f'exec {program} "$@"\n'
    )
    script.chmod(0o700)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
    async with open_house(database_url, folder) as house:
        await house.ensure("s")
        terminal = (await open_terminal(house, "s", "cat"))["terminal_id"]
        async with house.stream(f"/v1/terminals/{terminal}/output/stream") as stream:
            frames = await stream.until("stream.reset")
            await type_into(house, terminal, "after\r")
            while b"after" not in output(stream.frames):
                assert await stream.more()
            assert "stream.closing" not in {frame.event for frame in frames + stream.frames}
        assert (await house.get(f"/v1/terminals/{terminal}"))["status"] == "open"
