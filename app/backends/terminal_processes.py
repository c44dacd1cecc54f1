"""What runs in a terminal: every process of its session, whatever group and signals it made its own.

A session is the kernel's here, not an agent's: the processes below a leader, but for those that have left it
by `setsid`.
"""

import os
import signal
from collections.abc import Set as AbstractSet
from contextlib import suppress

import anyio
import anyio.to_thread
import psutil
import structlog

HANG_UP_S, TERMINATE_S, KILL_S = 0.3, 1.0, 0.7
"""Seconds that processes have to end by the hang-up of their terminal, then by SIGTERM, then by SIGKILL."""
_LOOK_S = 0.02
"""Seconds between two looks at what still runs."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def leads(pid: int, server: int) -> bool:
    """Whether a process leads a session and is a child of the server that is said to have made it.

    A number from elsewhere, such as another container's, names another process here, or none.
    """
    try:
        return server > 0 and os.getsid(pid) == pid and psutil.Process(pid).ppid() == server
    except (OSError, psutil.Error):
        return False


async def end_sessions(leaders: AbstractSet[int]) -> None:
    """End what runs in the sessions of these leaders, whose terminals have just been closed.

    Takes up to three seconds, and goes on when it is cancelled: what it leaves nobody would find again.
    """
    if not leaders:
        return
    with anyio.move_on_after(HANG_UP_S + TERMINATE_S + KILL_S + 1.0, shield=True):
        for number, seconds in (
            (None, HANG_UP_S),
            (signal.SIGTERM, TERMINATE_S),
            (signal.SIGKILL, KILL_S),
        ):
            if await _are_gone(leaders, number, seconds):
                return
    log.warning("terminal_processes_left", leaders=sorted(leaders))


async def _are_gone(leaders: AbstractSet[int], number: signal.Signals | None, seconds: float) -> bool:
    """Whether nothing of the sessions runs within so many seconds, each process told once."""
    told: set[int] = set()
    until = anyio.current_time() + seconds
    while found := await anyio.to_thread.run_sync(_running, leaders):
        for process in found:
            if number is not None and process.pid not in told:
                told.add(process.pid)
                _tell(process, number, leaders)
        if anyio.current_time() > until:
            return False
        await anyio.sleep(_LOOK_S)
    return True


def _running(leaders: AbstractSet[int]) -> list[psutil.Process]:
    found = []
    for pid in psutil.pids():
        with suppress(OSError, psutil.Error):
            if os.getsid(pid) in leaders:
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
    return found


def _tell(process: psutil.Process, number: signal.Signals, leaders: AbstractSet[int]) -> None:
    with suppress(OSError, psutil.Error):
        if os.getsid(process.pid) in leaders:  # its number may be another's by now
            process.send_signal(number)
