"""Terminals under a kill -9 of the whole service."""

import subprocess
from pathlib import Path
from typing import Any

import anyio

from tests.engine.terminal_house import output
from tests.house import Stream
from tests.system.test_faults import PATIENCE, Serving, all_gone, serving


async def lines(service: Serving, terminal: str, wanted: str) -> list[str]:
    """The lines of the terminal, once `wanted` is one of them."""
    with anyio.fail_after(PATIENCE):
        while True:
            found: list[str] = (await service.get(f"/v1/terminals/{terminal}/capture"))["lines"]
            if wanted in found:
                return found
            await anyio.sleep(0.05)


async def typed(service: Serving, terminal: str, data: str) -> None:
    answer = await service.client.post(f"/v1/terminals/{terminal}/input", json={"data": data})
    assert answer.status_code == 204, answer.text


async def test_terminal_outlives_a_killed_service_and_is_taken_up_by_the_next(folder: Path) -> None:
    """What was typed before stands in its scrollback; the next service finds it, uses it, and ends it."""
    async with serving(folder) as first:
        await first.ensure("s")
        body: dict[str, Any] = {"command": "sh", "args": ["-c", "while read x; do echo got $x; done"]}
        answer = await first.client.post("/v1/sessions/s/terminals", json=body)
        assert answer.status_code == 201, answer.text
        terminal: str = answer.json()["terminal_id"]
        await typed(first, terminal, "one\r")
        path = f"/v1/terminals/{terminal}/output/stream"
        async with first.client.stream("GET", path) as response:
            stream = Stream(response, response.aiter_raw())
            while b"got one" not in output(stream.frames):
                assert await stream.more()
            cursor = [frame.id for frame in stream.frames if frame.id is not None][-1]
            clients = [process for process in first.below() if "tmux" in process.name()]
            assert clients
            await first.kill()
        await all_gone(clients)
    async with serving(folder) as second:
        assert (await second.get(f"/v1/terminals/{terminal}"))["status"] == "open"
        found = await second.get(f"/v1/terminals/{terminal}/search", q="got one")
        assert (found["source"], len(found["matches"])) == ("capture", 1)
        async with second.client.stream("GET", path, headers={"Last-Event-ID": cursor}) as response:
            stream = Stream(response, response.aiter_raw())
            await stream.until("stream.reset")
            await typed(second, terminal, "two\r")
            while b"got two" not in output(stream.frames):
                assert await stream.more()
        assert "got one" in await lines(second, terminal, "got two")
        assert (await second.client.delete("/v1/sessions/s")).status_code == 204
        (socket,) = map(str, (folder / "data" / "tmux").glob("socket-*"))
        with anyio.fail_after(PATIENCE):
            while True:
                listed = await anyio.run_process(["tmux", "-S", socket, "list-sessions"], check=False)
                if not listed.stdout:
                    break
                await anyio.sleep(0.05)
    subprocess.run(["tmux", "-S", socket, "kill-server"], check=False)
