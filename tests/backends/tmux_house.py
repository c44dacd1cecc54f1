"""What tests of tmux have: a server of their own, whose every process leaves its command line behind."""

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from app.backends.tmux import TmuxTerminals
from app.domain.terminals import TerminalSpec
from tests.house import PATIENCE


class Recorded:
    """Command lines of tmux's processes, as the system has them for everybody to read."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """From now on `tmux` is a script that notes its command line and environment, then is tmux."""
        self._log = folder / "tmux.log"
        self._log.touch()
        program = shutil.which("tmux")
        assert program is not None
        script = folder / "bin" / "tmux"
        script.parent.mkdir()
        log = shlex.quote(str(self._log))
        script.write_text(
            f'#!/bin/sh\ncat /proc/$$/cmdline /proc/$$/environ >> {log}\necho >> {log}\nexec {program} "$@"\n'
        )
        script.chmod(0o700)
        monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")

    def lines(self) -> list[str]:
        """One for each process."""
        return self._log.read_bytes().decode(errors="replace").split("\n")[:-1]


@contextmanager
def tmux_terminals(folder: Path) -> Iterator[TmuxTerminals]:
    """Terminals of a server that is ended with them."""
    try:
        yield TmuxTerminals(folder)
    finally:
        for socket in folder.glob("tmux/socket-*"):
            subprocess.run(["tmux", "-S", socket.name, "kill-server"], cwd=socket.parent, check=False)


async def run_in(terminals: TmuxTerminals, name: str, script: str) -> str:
    """A terminal that runs a script of the shell."""
    spec = TerminalSpec(command="sh", args=["-c", script])
    handle = await terminals.create(name, "/", spec)
    await terminals.start(handle, "/", spec)
    return handle


async def shown(terminals: TmuxTerminals, handle: str, wanted: str) -> list[str]:
    """The lines of the terminal, once one of them has `wanted` in it."""
    with anyio.fail_after(PATIENCE):
        while True:
            lines = (await terminals.capture(handle, start=None, end=None, ansi=False)).lines
            if any(wanted in line for line in lines):
                return lines
            await anyio.sleep(0.02)
