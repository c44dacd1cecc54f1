"""The guard: whatever becomes of the host, nothing of its agents is left."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import psutil
import pytest

from app.backends.acp_process import GUARD
from tests.backends.acp_house import PATIENCE, eventually, is_gone

pytestmark = pytest.mark.anyio

FAMILY = """
import json, os, signal, subprocess, sys, time
stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(600)"
pids = [os.getpid()]
for leaves in (False, True):
    code = [sys.executable, "-c", stubborn]
    child = subprocess.Popen(code, stdout=subprocess.PIPE, start_new_session=leaves)
    child.stdout.readline()
    pids.append(child.pid)
print(json.dumps(pids), flush=True)
"""
"""A child with a grandchild in its group and one that left it, which both ignore SIGTERM."""

HOST = """
import json, socket, subprocess, sys, time
guard, silence, child = sys.argv[1:]
ours, theirs = socket.socketpair()
fd = theirs.fileno()
command = [sys.executable, "-I", "-S", guard, str(fd), silence, "0.2", sys.executable, "-c", child]
process = subprocess.Popen(command, pass_fds=[fd], start_new_session=True, stdout=subprocess.PIPE)
theirs.close()
print(json.dumps([process.pid, *json.loads(process.stdout.readline())]), flush=True)
while True:
    ours.send(b".")
    time.sleep(0.05)
"""
"""A process that hosts one agent, and says the pids of all."""


@contextmanager
def guarded(
    child: str, *, silence: float = 600.0, grace: float = 0.2
) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A guard with a Python child, and our end of the lifeline."""
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    command = [sys.executable, "-I", "-S", str(GUARD), str(theirs.fileno()), str(silence), str(grace)]
    with (
        ours,
        subprocess.Popen(
            [*command, sys.executable, "-c", child],
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as guard,
    ):
        theirs.close()
        try:
            yield guard, ours
        finally:
            ours.close()


def word(lifeline: socket.socket) -> list[str]:
    """The next words of the guard."""
    said = b""
    while not said.endswith(b"\n"):
        said += lifeline.recv(1)
    return said.decode().split()


def pids(guard: subprocess.Popen[bytes]) -> list[int]:
    """What a family says of itself."""
    assert guard.stdout is not None
    found: list[int] = json.loads(guard.stdout.readline())
    return found


@pytest.mark.parametrize(
    ("child", "status"),
    [
        ("", 0),
        ("import sys; sys.exit(3)", 3),
        ("import os; os.kill(os.getpid(), 9)", 137),
        (FAMILY, 0),
    ],
)
async def test_a_guard_exits_with_its_childs_status_and_says_it(child: str, status: int) -> None:
    with guarded(child) as (guard, lifeline):
        assert word(lifeline)[0] == "started"
        assert word(lifeline) == ["ended", str(status)]
        assert guard.wait(PATIENCE) == status


async def test_a_command_that_is_not_there_is_said_on_stderr() -> None:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-I", "-S", str(GUARD), str(theirs.fileno()), "600", "1", "no-such-agent"]
    with ours, theirs:
        ended = subprocess.run(
            command, pass_fds=[theirs.fileno()], capture_output=True, timeout=PATIENCE, check=False
        )
    assert ended.returncode == 127
    assert ended.stderr == b"no-such-agent: No such file or directory\n"


async def test_the_child_has_our_pipes_to_itself_and_no_lifeline() -> None:
    """Else their ends would not tell the child's end, and the child could keep itself alive."""
    child = (
        "import os, sys; print(sorted(map(int, os.listdir('/proc/self/fd'))), os.getpid() == os.getsid(0))"
    )
    with guarded(child) as (guard, _):
        assert guard.stdout is not None
        words = guard.stdout.readline().decode()
    assert words == "[0, 1, 2, 3] True\n"  # 3 is the listing itself


async def test_the_childs_pipe_ends_though_the_guard_lives() -> None:
    with guarded("import os, time; os.close(1); time.sleep(600)") as (guard, _):
        assert guard.stdout is not None
        assert guard.stdout.read() == b""
        assert guard.poll() is None


async def test_p83_the_whole_tree_ends_with_the_leader() -> None:
    with guarded(FAMILY) as (guard, lifeline):
        family = pids(guard)
        assert word(lifeline)[0] == "started"
        assert word(lifeline) == ["ended", "0"]
        assert all(map(is_gone, family))


@pytest.mark.parametrize("how", ["lifeline", "silence", "sigterm"])
async def test_p83_the_whole_tree_ends_with_the_lifeline(how: str) -> None:
    child = FAMILY + "time.sleep(600)"
    with guarded(child, silence=0.5 if how == "silence" else 600) as (guard, lifeline):
        family = pids(guard)
        if how == "lifeline":
            lifeline.shutdown(socket.SHUT_WR)
        elif how == "sigterm":
            guard.send_signal(signal.SIGTERM)
        assert word(lifeline)[0] == "started"
        assert word(lifeline) == ["ended", "143"]
        assert all(map(is_gone, family))
        assert guard.wait(PATIENCE) == 143


async def test_a_child_that_minds_sigterm_has_the_grace_to_end_well() -> None:
    child = (
        "import signal, sys, time\n"
        "signal.signal(15, lambda *_: (time.sleep(0.3), sys.exit(7)))\n"
        "print(flush=True)\n"
        "time.sleep(600)"
    )
    with guarded(child, grace=PATIENCE) as (guard, lifeline):
        assert guard.stdout is not None
        guard.stdout.readline()
        lifeline.shutdown(socket.SHUT_WR)
        assert guard.wait(PATIENCE) == 7


async def test_a_stopped_child_ends_too() -> None:
    with guarded(FAMILY + "time.sleep(600)") as (guard, lifeline):
        family = pids(guard)
        os.kill(family[0], signal.SIGSTOP)
        await eventually(lambda: psutil.Process(family[0]).status() == psutil.STATUS_STOPPED)
        lifeline.shutdown(socket.SHUT_WR)
        assert guard.wait(PATIENCE) == 137
        assert all(map(is_gone, family))


async def test_bytes_keep_the_child_alive_past_the_silence() -> None:
    with guarded("print(flush=True); input()", silence=0.6) as (guard, lifeline):
        assert guard.stdin is not None
        assert guard.stdout is not None
        guard.stdout.readline()
        for _ in range(12):
            lifeline.send(b".")
            await anyio.sleep(0.1)  # the passing of time itself is what is tested
        assert guard.poll() is None
        guard.stdin.write(b"\n")
        guard.stdin.flush()
        assert guard.wait(PATIENCE) == 0


async def test_a_terminals_interrupt_does_not_end_the_child() -> None:
    with guarded("print(flush=True); input()") as (guard, _):
        assert guard.stdin is not None
        assert guard.stdout is not None
        guard.stdout.readline()
        for number in (signal.SIGINT, signal.SIGHUP):
            guard.send_signal(number)
        guard.stdin.write(b"\n")
        guard.stdin.flush()
        assert guard.wait(PATIENCE) == 0


async def test_the_child_ends_with_a_guard_that_is_killed() -> None:
    with guarded("import os, time; print([os.getpid()], flush=True); time.sleep(600)") as (guard, _):
        family = pids(guard)
        guard.kill()
        await eventually(lambda: all(map(is_gone, family)))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_nothing_outlives_a_host_that_was_killed_or_stopped(number: signal.Signals) -> None:
    arguments = [str(GUARD), "1", FAMILY + "time.sleep(600)"]
    with subprocess.Popen([sys.executable, "-c", HOST, *arguments], stdout=subprocess.PIPE) as host:
        try:
            assert host.stdout is not None
            family = json.loads(host.stdout.readline())
            assert len(family) == 4
            host.send_signal(number)
            await eventually(lambda: all(map(is_gone, family)))
        finally:
            host.kill()


async def test_nothing_outlives_a_killed_host_of_the_adapter(tmp_path: Path) -> None:
    """The same through the adapter: a process that runs a backend is killed with a turn under way."""
    program = tmp_path / "host.py"
    program.write_text(
        "import sys, anyio\n"
        f"sys.path.insert(0, {str(Path.cwd())!r})\n"
        "from app.backends.base import Prompt\n"
        "from app.domain.signals import TextDelta\n"
        "from tests.backends.acp_house import WILD, acp_backend, spec, text, until\n"
        "async def main():\n"
        "    async with acp_backend(WILD) as backend:\n"
        "        agent = await backend.create(spec())\n"
        "        await agent.prompt(Prompt(attempt='a', text='children\\nawait-cancel'))\n"
        "        print(text((await until(agent, lambda s: isinstance(s, TextDelta)))[:1]), flush=True)\n"
        "        await anyio.sleep(600)\n"
        "anyio.run(main)\n"
    )
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE) as host:
        try:
            assert host.stdout is not None
            family = json.loads(host.stdout.readline())
            assert len(family) == 3
            host.kill()
            await eventually(lambda: all(map(is_gone, family)))
        finally:
            host.kill()
