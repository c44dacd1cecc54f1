"""One run of a command: its bounds, and what is left of it afterwards."""

import os
import signal
from pathlib import Path

import anyio
import pytest

from app.process import Finished, TooMuchOutput, run
from tests.backends.acp_house import eventually, is_gone

pytestmark = pytest.mark.anyio


async def left_by(tmp_path: Path, script: str, *, deadline: float = 20.0) -> tuple[Finished, int]:
    """A command that leaves a child behind, and the child."""
    done = await run(["sh", "-c", script], env=dict(os.environ), deadline=deadline, most=1000)
    return done, int((tmp_path / "child").read_text())


@pytest.mark.parametrize("pipes", ["", ">/dev/null 2>&1"], ids=["holds-the-pipes", "holds-nothing"])
async def test_p81_a_child_that_outlives_its_command_is_ended_with_it(tmp_path: Path, pipes: str) -> None:
    """The answer is whole: all that the command wrote before it ended."""
    script = f"(trap '' TERM; exec sleep 600) {pipes} & echo $! >{tmp_path}/child; echo done; exit 3"
    with anyio.fail_after(5):
        done, child = await left_by(tmp_path, script)
    assert (done.code, done.stdout) == (3, b"done\n")
    await eventually(lambda: is_gone(child))


async def test_p83_a_child_that_left_the_group_is_not_waited_for(tmp_path: Path) -> None:
    """It cannot be ended through the group; its hold on the pipes costs a moment, not the deadline."""
    script = f"setsid sh -c 'echo $$ >{tmp_path}/child; exec sleep 600' & sleep 0.3; echo done"
    with anyio.fail_after(5):
        done, child = await left_by(tmp_path, script)
    os.kill(child, signal.SIGKILL)
    assert (done.code, done.stdout) == (0, b"done\n")


async def test_a_command_that_closes_its_pipes_is_waited_for(tmp_path: Path) -> None:
    done = await run(
        ["sh", "-c", "exec >&- 2>&-; sleep 0.5; exit 3"], env=dict(os.environ), deadline=20, most=1
    )
    assert done.code == 3


async def test_a_command_that_does_not_end_is_ended_at_its_deadline(tmp_path: Path) -> None:
    script = f"trap '' TERM; echo $$ >{tmp_path}/child; sleep 600 & wait; wait; wait"
    with anyio.fail_after(5), pytest.raises(TimeoutError):
        await left_by(tmp_path, script, deadline=0.5)
    pid = int((tmp_path / "child").read_text())
    await eventually(lambda: is_gone(pid))


async def test_a_flood_is_cut() -> None:
    with pytest.raises(TooMuchOutput):
        await run(["yes"], env=dict(os.environ), deadline=20, most=100_000)
    loud = ["sh", "-c", "yes error | head -c 1000000 >&2; exit 3"]
    done = await run(loud, env=dict(os.environ), deadline=20, most=1000)
    assert (done.code, len(done.stderr)) == (3, 1000)
