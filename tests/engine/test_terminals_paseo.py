"""Terminals of sessions on a Paseo daemon: binary frames, snapshots, links that break, replicas."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from app.settings import BackendSettings
from tests.engine.terminal_house import (
    captured,
    closed,
    last_id,
    logged,
    open_terminal,
    output,
    streamed,
    type_into,
)
from tests.house import PATIENCE, House, open_house
from tests.paseo.twin import Twin


@asynccontextmanager
async def replica(twin: Twin, database_url: str, folder: Path, **more: Any) -> AsyncIterator[House]:
    """A service over the daemon, its link up."""
    backends = {"paseo": BackendSettings(type="paseo", url=twin.http, provider="scripted")}
    async with open_house(database_url, folder, backends=backends, **more) as house:
        with anyio.fail_after(PATIENCE):
            while (await house.get("/v1/backends/paseo"))["status"] != "up":  # noqa: ASYNC110
                await anyio.sleep(0.05)
        yield house


async def session(house: House, name: str = "s") -> None:
    await house.ensure(name, agent="scripted")


async def search(house: House, terminal_id: str, q: str, **params: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await house.get(f"/v1/terminals/{terminal_id}/search", q=q, **params)
    return answer


def there(twin: Twin) -> dict[str, str]:
    """The daemon's terminals, names by id."""
    assert twin.daemon is not None
    return {one.id: one.name for one in twin.daemon.terminals.all.values()}


async def test_terminal_of_a_daemon_is_used_from_its_first_byte_to_its_last(
    database_url: str, folder: Path
) -> None:
    """What it had shown before it was followed is told too; its name there says whose it is."""
    async with Twin() as twin, replica(twin, database_url, folder) as house:
        assert (await house.get("/v1/backends/paseo"))["capabilities"]["terminals"] is True
        await session(house)
        made = await open_terminal(house, "s", name="build", rows=30, cols=100)
        terminal = made["terminal_id"]
        assert (made["kind"], made["status"], made["name"]) == ("paseo", "open", "build")
        assert list(there(twin).values()) == [f"build ({terminal})"]
        await type_into(house, terminal, "echo grün\r")
        frames = await streamed(house, terminal, b"gr\xc3\xbcn\r\n# ")
        assert output(frames) == "# echo grün\r\ngrün\r\n# ".encode()
        answer = await search(house, terminal, "grün")
        assert answer["source"] == "ring"
        assert [(m["line"], m["column"], m["length"]) for m in answer["matches"]] == [(0, 7, 4), (1, 0, 4)]
        assert (await captured(house, terminal, "grün"))[:2] == ["# echo grün", "grün"]
        path = f"/v1/terminals/{terminal}/capture"
        assert await house.get(path, start=1, end=1) == {"lines": ["grün"], "total_lines": 3}
        assert await house.get(path, start=-2, end=-2) == {"lines": ["grün"], "total_lines": 3}
        assert await house.get(path, end=-4) == {"lines": [], "total_lines": 3}
        assert twin.daemon is not None
        (shell,) = twin.daemon.terminals.all.values()
        assert (shell.rows, shell.cols) == (30, 100)
        async with house.stream(f"/v1/terminals/{terminal}/output/stream", after=last_id(frames)) as stream:
            await stream.until("stream.ready")
            await type_into(house, terminal, "exit\r")
            frames = await stream.to_end()
        assert frames[-1].data == {"reason": "terminal_closed"}
        await closed(house, terminal)
        assert logged(await house.log("s")) == [("terminal.opened", terminal), ("terminal.closed", terminal)]
        # What it put out can still be read for a while; after the last of it nothing comes.
        whole = await streamed(house, terminal, b"exit\r\n")
        path = f"/v1/terminals/{terminal}/output/stream"
        assert (await house.client.get(path, headers={"Last-Event-ID": last_id(whole)})).status_code == 204
        assert len((await search(house, terminal, "exit"))["matches"]) == 1


async def test_link_that_breaks_is_a_gap_and_says_so(database_url: str, folder: Path) -> None:
    """What is put out meanwhile is missing in the ring: another one begins, and search falls back."""
    async with Twin() as twin, replica(twin, database_url, folder) as house:
        await session(house)
        terminal = (await open_terminal(house, "s"))["terminal_id"]
        await type_into(house, terminal, "echo before\r")
        async with house.stream(f"/v1/terminals/{terminal}/output/stream") as stream:
            while b"before\r\n# " not in output(stream.frames):
                assert await stream.more()
            ready = next(frame for frame in stream.frames if frame.event == "stream.ready")
            twin.drop()
            frames = await stream.until("stream.reset")
            reset = next(frame for frame in frames if frame.event == "stream.reset")
            assert reset.data["reason"] == "other_ring"
            assert not reset.data["resume_from"].startswith(ready.data["ring"])
            assert reset.data["capture_url"] == f"/v1/terminals/{terminal}/capture"
            await type_into(house, terminal, "echo after\r")
            while b"after\r\n# " not in output(stream.frames):
                assert await stream.more()
        answer = await search(house, terminal, "before")
        assert (answer["source"], len(answer["matches"])) == ("capture", 2)


async def test_any_replica_follows_a_daemon_s_terminal_with_a_ring_of_its_own(
    database_url: str, folder: Path
) -> None:
    async with (
        Twin() as twin,
        replica(twin, database_url, folder) as first,
        replica(twin, database_url, folder) as second,
    ):
        await session(first)
        terminal = (await open_terminal(first, "s"))["terminal_id"]
        await type_into(first, terminal, "echo one\r")
        frames = await streamed(first, terminal, b"one\r\n# ")
        path = f"/v1/terminals/{terminal}/output/stream"
        async with second.stream(path, headers={"Last-Event-ID": last_id(frames)}) as stream:
            await stream.until("stream.reset")
            await type_into(second, terminal, "echo two\r")
            while b"two\r\n# " not in output(stream.frames):
                assert await stream.more()
            assert b"one" not in output(stream.frames)
        answer = await search(second, terminal, "one")
        assert (answer["source"], len(answer["matches"])) == ("capture", 2)
        assert (await search(first, terminal, "two"))["source"] == "ring"
        assert (await second.client.delete(f"/v1/terminals/{terminal}")).status_code == 204
        await closed(first, terminal)
        assert there(twin) == {}
        assert logged(await first.log("s")) == [("terminal.opened", terminal), ("terminal.closed", terminal)]


async def test_terminal_survives_our_restart_and_not_the_daemon_s(database_url: str, folder: Path) -> None:
    """After ours it is found by its row; after the daemon's it is gone, and the log says so once."""
    async with Twin() as twin:
        async with replica(twin, database_url, folder) as first:
            await session(first)
            terminal = (await open_terminal(first, "s"))["terminal_id"]
            await type_into(first, terminal, "echo before\r")
            await streamed(first, terminal, b"before\r\n# ")
        async with replica(twin, database_url, folder) as second:
            seen = await search(second, terminal, "before")
            assert (seen["source"], len(seen["matches"])) == ("capture", 2)
            await type_into(second, terminal, "echo after\r")
            await captured(second, terminal, "after")
            await twin.kill()
            answer = await second.client.get(f"/v1/terminals/{terminal}/capture")
            assert (answer.status_code, answer.json()["code"]) == (503, "backend_unavailable")
            assert (await second.get(f"/v1/terminals/{terminal}"))["status"] == "open"
            await twin.start()
            await closed(second, terminal)
            assert logged(await second.log("s"))[1:] == [("terminal.closed", terminal)]
            answer = await second.client.get(f"/v1/terminals/{terminal}/capture")
            assert (answer.status_code, answer.json()["code"]) == (404, "terminal_not_found")


async def test_session_of_a_daemon_ends_its_terminals(database_url: str, folder: Path) -> None:
    """On the daemon as well; those of others there stay."""
    async with Twin() as twin, replica(twin, database_url, folder) as house:
        await session(house)
        assert twin.daemon is not None
        foreign = twin.daemon.terminals.create("/elsewhere", "foreign", None, []).id
        await open_terminal(house, "s")
        await open_terminal(house, "s")
        assert len(there(twin)) == 3
        assert (await house.client.delete("/v1/sessions/s")).status_code == 204
        with anyio.fail_after(PATIENCE):
            while set(there(twin)) != {foreign}:  # noqa: ASYNC110 - the twin has nothing to wait on
                await anyio.sleep(0.02)


async def test_terminal_that_cannot_be_made_leaves_nothing(database_url: str, folder: Path) -> None:
    """Known as failed: no row, no event, and a code that says what happened."""
    async with Twin() as twin, replica(twin, database_url, folder) as house:
        await session(house)
        await twin.kill()
        answer = await house.post("/v1/sessions/s/terminals", {})
        assert (answer.status_code, answer.json()["code"]) == (503, "backend_unavailable")
        assert await house.get("/v1/sessions/s/terminals") == {"items": [], "next_cursor": None}
        assert logged(await house.log("s")) == []
