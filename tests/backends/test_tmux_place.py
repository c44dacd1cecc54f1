"""What names the tmux of a data directory: neither a host's name nor a path."""

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from app.backends.terminals import TerminalGone
from app.backends.tmux import TmuxTerminals
from app.backends.tmux_place import file_system, find_place, is_of_one_kernel
from tests.backends.tmux_house import run_in, shown, tmux_terminals


def test_place_is_the_same_for_whoever_has_the_folder_and_for_nobody_else(folder: Path) -> None:
    first = find_place(folder / "a")
    assert find_place(folder / "a") == first
    (folder / "elsewhere").symlink_to(folder / "a")
    (folder / "a").rename(folder / "moved")
    assert find_place(folder / "moved") == first
    other = find_place(folder / "b")
    assert (other.name == first.name, other.socket == first.socket) == (False, True)
    assert stat.S_IMODE((folder / "b").stat().st_mode) == 0o700


def test_the_same_folder_on_another_kernel_is_another_place(folder: Path) -> None:
    one, other = find_place(folder / "a", "kernel-one-of-two"), find_place(folder / "a", "the-other-kernel")
    assert one.name != other.name
    assert one.socket != other.socket
    assert one.past == other.past
    if one.past is not None:
        assert one.name.startswith(one.past)
        assert other.name.startswith(one.past)


def test_what_lies_on_a_network_may_be_another_machine_s() -> None:
    """Of such a place nobody can know that it has ended."""
    assert all(map(is_of_one_kernel, ("ext4", "xfs", "overlay", "tmpfs", "zfs")))
    assert not any(map(is_of_one_kernel, ("nfs", "nfs4", "cifs", "9p", "virtiofs", "fuse.sshfs", "ceph", "")))
    assert file_system(Path("/proc/self")) == "proc"


def test_folder_whose_number_is_spoilt_is_not_used(folder: Path) -> None:
    find_place(folder / "tmux")
    (folder / "tmux" / "id").write_text("")
    with pytest.raises(OSError, match="number"):
        find_place(folder / "tmux")
    assert not TmuxTerminals(folder).is_there


async def test_machines_that_share_a_folder_leave_each_other_s_terminals_alone(folder: Path) -> None:
    """Each has a server of its own, though the folder is the same."""
    with tmux_terminals(folder) as here:
        elsewhere = find_place(folder / "tmux", "another-kernel")
        there = TmuxTerminals(folder, place=replace(elsewhere, past=None))  # as on a network
        mine, theirs = await run_in(here, "mine", "read x"), await run_in(there, "theirs", "read x")
        assert [one.handle for one in await here.running()] == [mine]
        assert [one.handle for one in await there.running()] == [theirs]
        with pytest.raises(TerminalGone):
            await here.write(theirs, "x")
        await here.kill(theirs)
        assert [one.handle for one in await there.running()] == [theirs]


async def test_data_directory_may_have_a_long_path(folder: Path) -> None:
    """A socket's path may not: it is named from within its directory."""
    deep = folder / ("x" * 100) / ("it's " * 20)
    deep.mkdir(parents=True)
    with tmux_terminals(deep) as terminals:
        handle = await run_in(terminals, "t", "echo hello; read x")
        await shown(terminals, handle, "hello")
        async with terminals.follow(handle) as following:
            await terminals.write(handle, "more")
            async for told in following:
                assert told == b"more"
                break
        await terminals.kill(handle)
        assert await terminals.running() == []
