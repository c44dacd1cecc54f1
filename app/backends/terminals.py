"""The seam between the engine and whoever runs terminals: a Paseo daemon, or tmux on this machine."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from app.backends.base import BackendError
from app.domain.terminals import TerminalKind, TerminalSpec


class TerminalGone(BackendError):
    """There is no such terminal, or none any more."""


class FollowLost(BackendError):
    """Output was missed, or may have been: follow again. The terminal may be there."""


@dataclass(frozen=True, slots=True)
class Captured:
    """Lines of a terminal's scrollback and screen, and how many there are altogether."""

    lines: list[str]
    total_lines: int


@dataclass(frozen=True, slots=True)
class Running:
    """A terminal that is there; `name` is what it was called when it was made."""

    handle: str
    name: str


class Following(Protocol):
    """The output of one terminal from a moment on."""

    async def shown(self) -> bytes | None:
        """What stood in it at that moment, as a program would have put it out; null if that is not known."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Raw output as it comes, until the terminal has ended. Raises FollowLost."""


class TerminalServer(Protocol):
    """Runs terminals. Every method raises BackendUnavailable where it cannot be reached now."""

    kind: TerminalKind
    place: str
    """What names it in the database: replicas that reach the same terminals have the same."""
    past: str | None
    """How the names of its earlier places begin, where nothing runs any more; null if that is not known."""

    async def create(self, name: str, cwd: str, spec: TerminalSpec) -> str:
        """Make a terminal that `running` shows under `name`; what it is called from now on.

        Raises:
            BackendRejected: refused; nothing was made.
            OutcomeUnknown: it may have been made.
        """

    async def start(self, handle: str, cwd: str, spec: TerminalSpec) -> None:
        """Start the program where that could wait for a follower; nothing elsewhere."""

    def follow(self, handle: str) -> AbstractAsyncContextManager[Following]:
        """Its output from now on.

        Raises:
            TerminalGone: it is not there.
            FollowLost: it could not be followed.
        """

    async def write(self, handle: str, data: str) -> None:
        """Type; raises TerminalGone where that is known."""

    async def resize(self, handle: str, rows: int, cols: int) -> None:
        """Change its size; raises TerminalGone where that is known."""

    async def capture(self, handle: str, *, start: int | None, end: int | None, ansi: bool) -> Captured:
        """Lines as they stand there, the oldest of the scrollback first; `end` included, from the end if < 0.

        `ansi` keeps colours as escape sequences. Raises TerminalGone where there is no such terminal.
        """

    async def text(self, handle: str) -> Captured:
        """All lines that `capture` has, without colours, for a search in them.

        Rows that the terminal has wrapped are one line, where whoever runs it tells them apart.
        Raises TerminalGone.
        """

    async def running(self) -> Sequence[Running]:
        """Every terminal that is there, ours or not."""

    async def kill(self, handle: str) -> None:
        """End it; nothing if it is not there."""


@runtime_checkable
class OffersTerminals(Protocol):
    """A backend that runs terminals itself."""

    terminals: TerminalServer


def span(total: int, start: int | None, end: int | None) -> tuple[int, int]:
    """The first of `total` lines from `start` to `end`, and the one after the last, as `sliced` has them."""
    first = 0 if start is None else start if start >= 0 else max(0, total + start)
    last = total - 1 if end is None else end if end >= 0 else total + end
    return first, max(first, min(last + 1, total))


def sliced(lines: Sequence[str], start: int | None, end: int | None) -> list[str]:
    """The lines from `start` to `end`, which is included; both from the end if they are negative."""
    first, after = span(len(lines), start, end)
    return list(lines[first:after])
