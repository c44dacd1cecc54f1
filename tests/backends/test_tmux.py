"""Terminals of tmux by themselves: how they are typed into."""

import subprocess
from pathlib import Path

import anyio
import pytest

from app.backends.terminals import TerminalGone
from app.backends.tmux_server import unchanged
from tests.backends.tmux_house import Recorded, run_in, shown, tmux_terminals

SECRET = "correct horse battery"


def buffers(folder: Path) -> list[str]:
    """The paste buffers that the server has."""
    (socket,) = folder.glob("tmux/socket*")
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
