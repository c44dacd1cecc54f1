"""An Alameda of one's own, for as long as a command runs."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import anyio

from app.command.client import START_S, CommandError, Place, answers
from app.command.terminal import Screen

PACKAGES = Path(__file__).parents[2]
"""The directory from which this very Alameda was imported, and from which its process has to be."""

STOP_S = 15.0
"""Seconds that it has to end: its agents' drain time, then the database's."""

POLL_S = 0.05


@asynccontextmanager
async def own_alameda(
    place: Place, screen: Screen, *, is_hurried: Callable[[], bool]
) -> AsyncIterator[tuple[str, int | None]]:
    """The address of an Alameda on the data directory, and its process if it is ours to end.

    It is told to stop when the block ends, and waited for unless `is_hurried`.

    Raises:
        CommandError: it did not start; the message has its own words.
    """
    screen.note(f"no Alameda answers here: starting one on {place.data_dir} …")
    with tempfile.TemporaryFile() as said:
        process = _start(place.data_dir, said)
        try:
            url, pid = await _ready(place, process, said)
            if pid == process.pid:
                screen.note(f"Alameda answers at {url} until this command ends")
                yield url, pid
            else:
                yield url, None
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            with anyio.move_on_after(STOP_S, shield=True):
                while True:
                    if process.poll() is not None or is_hurried():
                        break
                    await anyio.sleep(POLL_S)
            if process.poll() is None and not is_hurried():
                screen.error(
                    f"the Alameda that was started for this command is still stopping, process {process.pid}"
                )


def _start(data_dir: Path, said: IO[bytes]) -> "subprocess.Popen[bytes]":
    """Start it in a session of its own, so that no Ctrl-C at our terminal reaches it."""
    options = ["--host", "127.0.0.1", "--port", "0", "--data-dir", str(data_dir)]
    paths = [str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        # -P: the current directory may hold another project's `app`.
        [sys.executable, "-P", "-m", "app", "serve", *options],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=said,
        start_new_session=True,
    )


async def _ready(place: Place, process: "subprocess.Popen[bytes]", said: IO[bytes]) -> tuple[str, int | None]:
    """The address and process of the Alameda that has the data directory: ours, or one that was faster."""
    with anyio.move_on_after(START_S):
        while True:
            ended = process.poll() is not None
            held = place.held()
            if held is not None and held[1] is not None and await answers(held[1], "readyz"):
                return held[1], held[0]
            if ended and held is None:
                raise CommandError(f"Alameda does not start: {_last_words(said)}")
            await anyio.sleep(POLL_S)
    raise CommandError(f"Alameda does not get ready: {_last_words(said)}")


def _last_words(said: IO[bytes]) -> str:
    """What it said to people, else the last line of its log."""
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("alameda: "):
            return "\n".join([line.removeprefix("alameda: "), *lines[number + 1 :]])
    return lines[-1] if lines else "it said nothing"
