"""One run of a command, from its start to its end: no shell, both pipes drained, its whole group ended.

The command has ended when the process that was started has: children that it leaves behind are ended too,
also those that hold its pipes. So nothing that is to live on may be started through here.
"""

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.abc import ByteReceiveStream, Process

GRACE_S = 1.0
"""Seconds that a command's processes have between SIGTERM and SIGKILL, and its pipes to be read empty."""
LOOK_S = 0.2
"""Between two looks whether a command has ended whose pipes are still held."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that ended: `code` is negative for a signal, and null if it was cut off at a bound."""

    code: int | None
    stdout: bytes
    stderr: bytes


class TooMuchOutput(Exception):
    """The command wrote more than may be kept; it was ended."""


async def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    deadline: float,
    most: int,
    cwd: str | None = None,
    stdin: Path | None = None,
    cut: bool = False,
) -> Finished:
    """Run a command to its end. However this is left, nothing of its process group runs afterwards.

    Its pipes are read to their end, or for `GRACE_S` more if a process that left the group still holds them.
    `most` bounds the bytes of standard output; of standard error only that many at the end are kept. With
    `cut`, what a command has written until it met a bound is its answer.

    Raises:
        OSError: it could not be started.
        TimeoutError: it did not end within `deadline` seconds.
        TooMuchOutput: it wrote more than `most` bytes.
    """
    with (stdin or Path(os.devnull)).open("rb") as given:
        process = await anyio.open_process(
            list(command), env=env, cwd=cwd, stdin=given, start_new_session=True
        )
    assert process.stdout is not None and process.stderr is not None
    written = _Written(most)
    try:
        with anyio.fail_after(deadline):
            async with anyio.create_task_group() as ending:
                ending.start_soon(_end_what_is_left, process, ending.cancel_scope)
                async with anyio.create_task_group() as draining:  # an unread pipe would block it
                    draining.start_soon(written.read, process.stdout, draining.cancel_scope)
                    draining.start_soon(written.read_tail, process.stderr)
                ending.cancel_scope.cancel()
            if written.is_too_much:
                raise TooMuchOutput
            code = process.returncode if process.returncode is not None else await process.wait()
            return Finished(code, bytes(written.stdout), bytes(written.stderr))
    except (TimeoutError, TooMuchOutput):
        if not cut:
            raise
        return Finished(None, bytes(written.stdout[:most]), bytes(written.stderr))
    finally:
        with anyio.CancelScope(shield=True):
            await _end(process)
            with anyio.move_on_after(GRACE_S):
                await process.aclose()


class _Written:
    """What a command has written so far."""

    def __init__(self, most: int) -> None:
        self.stdout, self.stderr = bytearray(), bytearray()
        self._most = most

    @property
    def is_too_much(self) -> bool:
        """Whether it passed the bound."""
        return len(self.stdout) > self._most

    async def read(self, stream: ByteReceiveStream, draining: anyio.CancelScope) -> None:
        async for chunk in stream:
            self.stdout += chunk
            if self.is_too_much:
                draining.cancel()

    async def read_tail(self, stream: ByteReceiveStream) -> None:
        async for chunk in stream:
            self.stderr += chunk
            del self.stderr[: -self._most]


async def _end_what_is_left(process: Process, ending: anyio.CancelScope) -> None:
    """Once the command has ended: end what holds its pipes, and its reading soon after."""
    while process.returncode is None:  # noqa: ASYNC110 - `wait` would wait for the pipes too
        await anyio.sleep(LOOK_S)
    await _end(process)
    await anyio.sleep(GRACE_S)
    ending.cancel()


async def _end(process: Process) -> None:
    """End a command's group, also where only its leader has ended."""
    _signal(process, signal.SIGTERM)
    with anyio.move_on_after(GRACE_S):
        while process.returncode is None:  # noqa: ASYNC110 - `wait` would wait for the pipes too
            await anyio.sleep(0.01)
    _signal(process, signal.SIGKILL)


def _signal(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
