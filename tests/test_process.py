"""One run of a command: its bounds, and what is left of it afterwards."""

import os
from pathlib import Path

import psutil
import pytest

from app.process import TooMuchOutput, run
from tests.backends.acp_house import eventually, is_gone

pytestmark = pytest.mark.anyio


async def test_a_child_that_outlives_its_command_is_ended_at_the_deadline(tmp_path: Path) -> None:
    """It holds the pipe, so the answer is not whole; the command itself has long gone."""
    script = ["sh", "-c", "sleep 600 & echo $!"]
    with pytest.raises(TimeoutError):
        await run(script, env=dict(os.environ), deadline=0.3, most=1000)
    mine = psutil.Process().children(recursive=True)
    await eventually(lambda: not any("600" in one.cmdline() for one in mine if not is_gone(one.pid)))


async def test_a_flood_is_cut() -> None:
    with pytest.raises(TooMuchOutput):
        await run(["yes"], env=dict(os.environ), deadline=20, most=100_000)
    loud = ["sh", "-c", "yes error | head -c 1000000 >&2; exit 3"]
    done = await run(loud, env=dict(os.environ), deadline=20, most=1000)
    assert (done.code, len(done.stderr)) == (3, 1000)
