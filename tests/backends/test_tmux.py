"""Terminals of tmux by themselves: how they are typed into, and what is left of them."""

import itertools
import os
import subprocess
from pathlib import Path

import anyio
import psutil
import pytest

from app.backends.terminal_processes import leads
from app.backends.terminals import Captured, TerminalGone, sliced
from app.backends.tmux_server import unchanged
from app.domain.terminals import TerminalSpec
from tests.backends.tmux_house import Recorded, run_in, shown, tmux_terminals
from tests.house import PATIENCE

SECRET = "correct horse battery"


def buffers(folder: Path) -> list[str]:
    """The paste buffers that the server has."""
    (socket,) = folder.glob("tmux/socket-*")
    listed = subprocess.run(
        ["tmux", "-S", socket, "list-buffers"], capture_output=True, text=True, check=False
    )
    return listed.stdout.splitlines()


async def test_t20_what_is_typed_stands_in_no_command_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor in an environment: everybody on the machine could read a password there."""
    recorded = Recorded(folder, monkeypatch)
    with tmux_terminals(folder) as terminals:
        handle = await run_in(terminals, "t", "stty -echo; echo los; read x; echo got $x; read x")
        await shown(terminals, handle, "los")
        await terminals.write(handle, f"{SECRET}\r")
        assert f"got {SECRET}" in await shown(terminals, handle, "got")
        lines = recorded.lines()
        assert any("paste-buffer" in line for line in lines)
        assert not [line for line in lines if "horse" in line]
        assert buffers(folder) == []


async def test_a_request_starts_no_more_processes_the_more_it_types(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Recorded(folder, monkeypatch)
    with tmux_terminals(folder) as terminals:
        handle = await run_in(terminals, "t", "stty raw -echo; echo los; head -c 60000 | tr -d '\\0' | wc -c")
        await shown(terminals, handle, "los")
        await terminals.write(handle, "\0")
        before = len(recorded.lines())
        await terminals.write(handle, "\0" * 59_999)
        assert len(recorded.lines()) == before + 1
        await shown(terminals, handle, "0")


async def test_inputs_at_once_come_whole_and_in_their_order(folder: Path) -> None:
    with tmux_terminals(folder) as terminals:
        handle = await run_in(terminals, "t", "stty raw -echo; echo los; head -c 100000 | cksum; read x")
        await shown(terminals, handle, "los")
        pieces = [f"{number:04}" * 1250 for number in range(20)]
        async with anyio.create_task_group() as tasks:
            for piece in pieces:
                tasks.start_soon(terminals.write, handle, piece)
        expected = subprocess.run(["cksum"], input="".join(pieces).encode(), capture_output=True, check=True)
        await shown(terminals, handle, expected.stdout.decode().strip())


async def test_what_could_not_be_typed_is_not_kept(folder: Path) -> None:
    with tmux_terminals(folder) as terminals:
        handle = await run_in(terminals, "t", "read x")
        with pytest.raises(TerminalGone):
            await terminals.write("other", SECRET)
        assert buffers(folder) == []
        await terminals.write(handle, "x")


@pytest.mark.parametrize(
    ("usage", "flags"),
    [
        ("[-dpr] [-s separator] [-b buffer-name] [-t target-pane]", ["-r"]),
        ("[-dprS] [-s separator] [-b buffer-name] [-t target-pane]", ["-r", "-S"]),
        ("", ["-r"]),
    ],
)
def test_controls_are_typed_as_they_are_by_every_version(usage: str, flags: list[str]) -> None:
    """tmux 3.7 shows them (`^[`) instead of typing them, unless it is told not to."""
    assert unchanged(usage) == flags


STUBBORN = "trap '' HUP INT TERM; set -m; sleep 1000 & while true; do sleep 1000; done"
"""A program that wants to stay, with one in a group of its own; what they start ignores signals too."""


def alive(pids: list[int]) -> list[int]:
    """Those of the processes that run."""
    return [
        pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ]


async def inhabitants(folder: Path, handle: str, count: int) -> list[int]:
    """The processes in a terminal, once there are so many."""
    (socket,) = folder.glob("tmux/socket-*")
    listed = await anyio.run_process(
        ["tmux", "-S", str(socket), "list-panes", "-t", f"={handle}:", "-F", "#{pane_pid}"]
    )
    leader = psutil.Process(int(listed.stdout))
    with anyio.fail_after(PATIENCE):
        while len(leader.children(recursive=True)) < count:  # noqa: ASYNC110 - nothing tells of a process
            await anyio.sleep(0.01)
    return [leader.pid, *(child.pid for child in leader.children(recursive=True))]


async def test_killed_terminal_leaves_nothing_that_ignores_its_hang_up(folder: Path) -> None:
    """Whatever group it is in; another terminal is not touched."""
    with tmux_terminals(folder) as terminals:
        handle = await run_in(terminals, "t", STUBBORN)
        other = await run_in(terminals, "other", STUBBORN)
        pids, others = await inhabitants(folder, handle, 3), await inhabitants(folder, other, 3)
        await terminals.kill(handle)
        assert alive(pids) == []
        assert sorted(alive(others)) == sorted(others)
        await terminals.kill(other)
        assert alive(others) == []
        await terminals.kill(other)


async def test_kill_that_is_cancelled_leaves_nothing_either(folder: Path) -> None:
    """A request that nobody waits for any more has begun to end it: its processes cannot be found again."""
    with tmux_terminals(folder) as terminals:
        handle = await run_in(terminals, "t", STUBBORN)
        pids = await inhabitants(folder, handle, 3)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(terminals.kill, handle)
            with anyio.fail_after(PATIENCE):
                while await terminals.running():  # noqa: ASYNC110 - nothing tells of it
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
        assert alive(pids) == []


async def test_program_that_ends_by_itself_may_leave_something_behind(folder: Path) -> None:
    """As in any other terminal: whoever says `nohup` means it."""
    with tmux_terminals(folder) as terminals:
        script = "trap '' HUP; sleep 1000 > /dev/null & echo pid=$!"
        handle = await terminals.create("t", "/", spec := TerminalSpec(command="sh", args=["-c", script]))
        async with terminals.follow(handle) as output:
            await terminals.start(handle, "/", spec)
            told = b"".join([data async for data in output])
        assert await terminals.running() == []
        pid = int(told.split(b"pid=")[1])
        assert alive([pid]) == [pid]
        psutil.Process(pid).kill()


def test_number_of_another_place_s_process_leads_nothing_here() -> None:
    """The tmux of another container with the same folder tells its own numbers."""
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as leader:
        try:
            assert leads(leader.pid, os.getpid())
            assert not leads(leader.pid, os.getppid())
            assert not leads(1, 0)
        finally:
            leader.kill()
    assert not leads(leader.pid, os.getpid())


@pytest.mark.parametrize(
    "output", ["seq 100; echo ende", "seq 100; clear; printf '\\n\\n\\nende\\n\\n'", "echo ende"]
)
@pytest.mark.parametrize("ansi", [False, True])
async def test_part_of_a_capture_is_what_the_whole_has_there(folder: Path, output: str, ansi: bool) -> None:
    with tmux_terminals(folder) as terminals:
        handle = await run_in(terminals, "t", f"{output}; cat")
        await shown(terminals, handle, "ende")
        whole = await terminals.capture(handle, start=None, end=None, ansi=ansi)
        numbers = (None, 0, 1, 2, 70, 80, 99, 1000, -1, -2, -30, -1000)
        for start, end in itertools.product(numbers, repeat=2):
            part = await terminals.capture(handle, start=start, end=end, ansi=ansi)
            expected = Captured(sliced(whole.lines, start, end), whole.total_lines)
            assert part == expected, (start, end)


async def test_tmux_is_asked_for_no_more_lines_than_are_wanted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scrollback may have megabytes of them."""
    recorded = Recorded(folder, monkeypatch)
    with tmux_terminals(folder) as terminals:
        handle = await run_in(terminals, "t", "seq 100; echo ende; cat")
        await shown(terminals, handle, "ende")
        before = len(recorded.lines())
        assert (await terminals.capture(handle, start=-1, end=None, ansi=False)).lines == ["ende"]
        assert (await terminals.capture(handle, start=9, end=10, ansi=False)).lines == ["10", "11"]
        asked = [line for line in recorded.lines()[before:] if "capture-pane" in line]
        assert len(asked) == 3
        assert not any("\0-S\0-\0" in line for line in asked)
