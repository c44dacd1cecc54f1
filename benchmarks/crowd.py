"""`python -m benchmarks.crowd`: one daemon with many agents, of which some are ours and all are streaming.

A twin of the daemon runs in a process of its own; the client here follows some of its agents as the adapter
does and drops the others' frames unread. Shown are the frames that came, what one costs, how far the reading
lags, and whether memory grows. Nothing fails; it prints.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import anyio
import httpx
import psutil

from app.paseo.address import Address
from app.paseo.client import open_client
from app.paseo.frames import StreamFrame, Timeline
from app.paseo.subscriptions import Subscription

TWIN = Path(__file__).parent.parent / "tests" / "paseo" / "twin.py"


class Seen:
    """What was read."""

    def __init__(self) -> None:
        self.frames = 0
        self.gaps = 0
        self.most_unread = 0


async def follow(box: Subscription, seen: Seen) -> None:
    """Read everything of one agent; rows must have no hole."""
    last: int | None = None
    while True:
        await box.arrived()
        notes = box.drain()
        seen.most_unread = max(seen.most_unread, len(notes))
        for note in notes:
            if isinstance(note, StreamFrame) and isinstance(note.event, Timeline):
                seen.frames += 1
                if note.seq is not None:
                    seen.gaps += last is not None and note.seq != last + 1
                    last = note.seq


async def measure(url: str, ours: int, foreign: int, rate: float, seconds: float) -> None:
    """Follow `ours` of the daemon's streaming agents for a while."""
    process = psutil.Process()
    async with (
        httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as control,
        open_client(Address.parse(url)) as client,
        anyio.create_task_group() as tasks,
    ):
        await client.wait_up(10)
        query = quote(json.dumps({"count": ours + foreign, "rate": rate, "seconds": seconds + 5}))
        agents: list[str] = (await control.get(f"/twin/crowd?q={query}")).json()
        seen = Seen()
        with ExitStack() as stack:
            for agent in agents[:ours]:
                tasks.start_soon(follow, stack.enter_context(client.subscribe(agent)), seen)
            await anyio.sleep(1.0)  # what there is to be allocated is
            before, cpu, began = process.memory_info().rss, time.process_time(), time.monotonic()
            first = seen.frames
            await anyio.sleep(seconds)
            took, used = time.monotonic() - began, time.process_time() - cpu
            grown = process.memory_info().rss - before
            frames = seen.frames - first
            started = time.monotonic()
            await client.ping()
            ping = time.monotonic() - started
            tasks.cancel_scope.cancel()
    told = frames * (ours + foreign) / ours
    print(f"{ours} of ours and {foreign} foreign agents, {rate:g} rows a second each, {took:.1f} s")
    print(f"  rows read of ours        {frames:,} ({frames / took:,.0f} a second), holes {seen.gaps}")
    print(
        f"  CPU of the whole client  {100 * used / took:.0f} % of a core, {1e6 * used / told:.1f} us a frame"
    )
    print(f"  most unread at once      {seen.most_unread} notes of one agent")
    print(f"  answer to a ping         {1000 * ping:.1f} ms, behind everything that was on its way")
    print(f"  memory grew by           {grown / 1024:,.0f} KiB")


def main() -> None:
    """Start a twin, measure, end it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crowd", description=__doc__)
    parser.add_argument("--ours", type=int, default=200, help="agents that are followed [%(default)s]")
    parser.add_argument("--foreign", type=int, default=200, help="agents that are not [%(default)s]")
    parser.add_argument("--rate", type=float, default=5.0, help="rows of each a second [%(default)s]")
    parser.add_argument("--seconds", type=float, default=15.0, help="length of the run [%(default)s]")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="crowd-") as home:
        command = [sys.executable, str(TWIN), "--port", "0", "--home", home]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as twin:
            try:
                assert twin.stdout is not None
                url = twin.stdout.readline().strip().replace("ws://", "http://").removesuffix("/ws")
                anyio.run(measure, url, given.ours, given.foreign, given.rate, given.seconds)
            finally:
                twin.terminate()


if __name__ == "__main__":
    main()
