"""The process between us and an agent's child, which so never outlives us and leaves nothing behind.

Run as `python -I -S guard.py LIFELINE SILENCE GRACE COMMAND...`; imports only the standard library, and not
much of it, because every session waits for it. LIFELINE is one end of a socket pair. The host writes a byte
now and then. When it closes its end or says nothing for SILENCE seconds, when SIGTERM comes, or when the
child has ended, the child's group gets SIGTERM, and after GRACE seconds SIGKILL, and so does every descendant
that left the group. The guard says `started PID` and, when nothing is left, `ended STATUS` on the lifeline,
and exits with that status.
"""

import os
import select
import signal
import sys
import time

LAST_LOOK = 5.0
"""Seconds that killed processes have to disappear before the guard gives up on them."""

PAUSE = 0.1
"""Seconds between two looks at what is left; the end of a child cuts it short."""

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


class Leader:
    """The child: it leads its own session and group, so its pid is also the group's number."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.code: int | None = None
        """Its exit status once it has ended, a signal as 128 more than its number."""

    def has_ended(self) -> bool:
        """Whether it has; the first look after its end buries it."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self.code = 128 - code if code < 0 else code
        return self.code is not None


def prctl(option: int, value: int) -> None:
    """Linux's prctl(2); elsewhere nothing, and then only the group is guarded."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def start(command: list[str]) -> Leader:
    """Start the child on our own standard streams."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    guard = os.getpid()
    pid = os.fork()
    if pid:
        return Leader(pid)
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # should the guard itself be killed
        if os.getppid() != guard:
            os._exit(127)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGPIPE, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], command)  # noqa: S606 - no shell, on purpose
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def leave_streams() -> None:
    """Close our copies of the child's pipes: their ends must mean the child's end."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)


def descendants() -> list[int]:
    """Everything below us, zombies too; nothing where there is no Linux /proc."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if sys.platform == "linux" else ():
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as stat:
                    parent = int(stat.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(name))
    found = list(children.get(os.getpid(), ()))
    for pid in found:  # grows while it is walked
        found.extend(children.get(pid, ()))
    return found


def bury_orphans(leader: Leader) -> None:
    """Reap what fell to us when its own parent died."""
    for pid in descendants():
        if pid != leader.pid:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # a grandchild, its parent's business
                continue


def signal_all(leader: Leader, number: int) -> bool:
    """Signal the group and all descendants (0 only looks); whether anything is left."""
    others = [pid for pid in descendants() if pid != leader.pid]
    left = bool(others) or not leader.has_ended()
    if left or sys.platform != "linux":
        try:
            os.killpg(leader.pid, number)
            left = True
        except (ProcessLookupError, PermissionError):
            pass
    for pid in others:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue
    return left


def end(leader: Leader, wake: int, grace: float) -> None:
    """SIGTERM to all, SIGKILL to what is left after `grace` seconds; returns when nothing is left."""
    left = signal_all(leader, signal.SIGTERM)
    for number, seconds in ((0, grace), (signal.SIGKILL, LAST_LOOK)):
        deadline = time.monotonic() + seconds
        while left and time.monotonic() < deadline:
            left = signal_all(leader, number)
            if select.select([wake], [], [], PAUSE if left else 0)[0]:
                os.read(wake, 4096)
            bury_orphans(leader)


def watch(leader: Leader, lifeline: int, wake: int, silence: float) -> None:
    """Return when the leader has ended, or has to."""
    heard = time.monotonic()
    while not leader.has_ended():
        left = heard + silence - time.monotonic()
        ready, _, _ = select.select([lifeline, wake], [], [], max(left, 0))
        if not ready:
            return
        if lifeline in ready:
            try:
                if not os.read(lifeline, 4096):
                    return
            except OSError:
                return
            heard = time.monotonic()
        if wake in ready:
            if signal.SIGTERM in os.read(wake, 4096):
                return
            bury_orphans(leader)


def say(lifeline: int, word: str, number: int) -> None:
    """Tell the host, if there still is one."""
    try:
        os.write(lifeline, f"{word} {number}\n".encode())
    except OSError:
        return


def main() -> int:
    """Guard one child and return its status."""
    lifeline, silence, grace = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    os.set_inheritable(lifeline, False)
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)  # what is left to do, the wake-up pipe says
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    leader = start(sys.argv[4:])
    leave_streams()
    say(lifeline, "started", leader.pid)
    watch(leader, lifeline, wake, silence)
    end(leader, wake, grace)
    code = 255 if leader.code is None else leader.code  # 255: it cannot even be killed
    say(lifeline, "ended", code)
    return code


if __name__ == "__main__":
    sys.exit(main())
