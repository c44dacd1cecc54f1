"""Terminals of a real Paseo daemon, through the whole service; `test_paseo_live.py` says how to run it."""

from pathlib import Path

import pytest

from tests.backends.test_paseo_live import URL, live_house, opened, relay
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

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.live,
    pytest.mark.skipif(
        not URL, reason="NO REAL PASEO DAEMON WAS TESTED: see tests/backends/test_paseo_live.py"
    ),
]


async def test_a_program_is_followed_typed_to_resized_and_ended(database_url: str, folder: Path) -> None:
    async with live_house(database_url, folder) as house:
        await opened(house, "s")
        made = await open_terminal(house, "s", "cat", name="cat", rows=10, cols=40)
        terminal = made["terminal_id"]
        assert (made["kind"], made["status"], made["rows"], made["cols"]) == ("paseo", "open", 10, 40)
        await type_into(house, terminal, "grün; ✓\r")
        frames = await streamed(house, terminal, "grün; ✓\r\n".encode() * 2)
        answer = await house.post(f"/v1/terminals/{terminal}/resize", {"rows": 20, "cols": 60})
        assert (answer.json()["rows"], answer.json()["cols"]) == (20, 60)
        assert "grün; ✓" in await captured(house, terminal, "grün; ✓")
        found = await house.get(f"/v1/terminals/{terminal}/search", q="; ✓")
        assert [(m["line"], m["column"]) for m in found["matches"]] == [(0, 4), (1, 4)]
        async with house.stream(
            f"/v1/terminals/{terminal}/output/stream", headers={"Last-Event-ID": last_id(frames)}
        ) as stream:
            await stream.until("stream.ready")
            await type_into(house, terminal, "\x04")
            ended = await stream.to_end()
        assert ended[-1].data == {"reason": "terminal_closed"}
        await closed(house, terminal)
        assert logged(await house.log("s")) == [("terminal.opened", terminal), ("terminal.closed", terminal)]
        assert (await house.post("/v1/sessions/s/close")).status_code == 200


async def test_a_shell_knows_its_size(database_url: str, folder: Path) -> None:
    async with live_house(database_url, folder) as house:
        await opened(house, "s")
        terminal = (await open_terminal(house, "s", "sh", rows=11, cols=55))["terminal_id"]
        await type_into(house, terminal, "stty size; echo seen\r")
        assert "11 55" in await captured(house, terminal, "11 55")
        await house.post(f"/v1/terminals/{terminal}/resize", {"rows": 22, "cols": 66})
        await type_into(house, terminal, "stty size; echo again\r")
        assert "22 66" in await captured(house, terminal, "22 66")
        assert (await house.client.delete(f"/v1/terminals/{terminal}")).status_code == 204
        await closed(house, terminal)


async def test_a_terminal_outlives_the_service_and_ends_with_its_session(
    database_url: str, folder: Path
) -> None:
    async with live_house(database_url, folder) as house:
        await opened(house, "s")
        terminal = (await open_terminal(house, "s", "sh"))["terminal_id"]
        await type_into(house, terminal, "echo before; sleep 1; echo while-away\r")
        frames = await streamed(house, terminal, b"before\r\n")
    async with live_house(database_url, folder) as house:
        lines = await captured(house, terminal, "while-away")
        assert "before" in lines
        path = f"/v1/terminals/{terminal}/output/stream"
        async with house.stream(path, headers={"Last-Event-ID": last_id(frames)}) as stream:
            await stream.until("stream.reset")
            await type_into(house, terminal, "echo after\r")
            while b"after\r\n" not in output(stream.frames):
                assert await stream.more()
        found = await house.get(f"/v1/terminals/{terminal}/search", q="^before$", regex=True)
        assert (found["source"], len(found["matches"])) == ("capture", 1)
        assert (await house.post("/v1/sessions/s/close")).status_code == 200
        await closed(house, terminal)
        assert logged(await house.log("s"))[-1] == ("terminal.closed", terminal)


async def test_a_link_that_breaks_is_a_gap_and_says_so(database_url: str, folder: Path) -> None:
    async with relay() as (url, wire), live_house(database_url, folder, url) as house:
        await opened(house, "s")
        terminal = (await open_terminal(house, "s", "sh"))["terminal_id"]
        await type_into(house, terminal, "echo before\r")
        path = f"/v1/terminals/{terminal}/output/stream"
        async with house.stream(path) as stream:
            while b"before\r\n" not in output(stream.frames):
                assert await stream.more()
            wire.cut()
            await stream.until("stream.reset")
            await type_into(house, terminal, "echo after\r")
            while b"after\r\n" not in output(stream.frames):
                assert await stream.more()
        found = await house.get(f"/v1/terminals/{terminal}/search", q="^before$", regex=True)
        assert (found["source"], len(found["matches"])) == ("capture", 1)
        assert (await house.client.delete(f"/v1/terminals/{terminal}")).status_code == 204


async def test_much_output_arrives_whole_and_is_searched(database_url: str, folder: Path) -> None:
    """What a follower gets has every line once, in order."""
    async with live_house(database_url, folder) as house:
        await opened(house, "s")
        terminal = (await open_terminal(house, "s", "cat", cols=200))["terminal_id"]
        script = "i=0; while [ $i -lt 20000 ]; do echo line-$i; i=$((i+1)); done; echo the-end\r"
        shell = (await open_terminal(house, "s", "sh", cols=200))["terminal_id"]
        path = f"/v1/terminals/{shell}/output/stream"
        async with house.stream(path) as stream:
            await type_into(house, shell, script)
            while b"\nthe-end\r\n" not in output(stream.frames):
                assert await stream.more()
            told = output(stream.frames)
        lines = [line for line in told.decode().split("\r\n") if line.startswith("line-")]
        assert lines == [f"line-{n}" for n in range(20_000)]
        found = await house.get(f"/v1/terminals/{shell}/search", q="line-1234", limit=20)
        assert (found["source"], len(found["matches"])) == ("ring", 11)
        assert (await house.post("/v1/sessions/s/close")).status_code == 200
        await closed(house, terminal)
        await closed(house, shell)
