"""Terminals of a Paseo daemon."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
import anyio.to_thread

from app.backends.base import BackendRejected, BackendUnavailable, OutcomeUnknown
from app.backends.terminals import Captured, FollowLost, Running, TerminalGone, sliced
from app.domain.terminals import COLS, ROWS, TerminalKind, TerminalSpec
from app.paseo import errors
from app.paseo.client import PaseoClient
from app.paseo.errors import PaseoError, Reason, Undecodable
from app.paseo.subscriptions import Mailbox
from app.paseo.terminals import Exited, Output, Snapshot, TerminalNote

T = TypeVar("T")

LINK_WAIT_S = 2.0
"""Seconds that a request waits for a link that is being dialled."""
SMALL_SNAPSHOT = 64 * 1024
"""Bytes of a screen that is read at once; it takes a fraction of a millisecond."""
SNAPSHOT_S = 5.0
"""Seconds to wait for the screen that a daemon shows first to whoever follows."""


class _Following:
    """Output from a mailbox."""

    def __init__(self, box: Mailbox[TerminalNote], first: TerminalNote) -> None:
        self._box = box
        self._first = first

    async def shown(self) -> bytes | None:
        """The text of the screen that the daemon showed first."""
        first = self._first
        if not isinstance(first, Snapshot):
            return None
        try:
            if len(first.data) <= SMALL_SNAPSHOT:
                text = first.text()
            else:
                text = await anyio.to_thread.run_sync(first.text)
        except Undecodable:
            return None
        return text.replace("\n", "\r\n").encode(errors="replace")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            note = self._first
            while not isinstance(note, Exited):
                if isinstance(note, Output):
                    yield note.data
                note = await self._box.receive()
        except anyio.EndOfStream:
            raise FollowLost("the link was closed") from None
        except PaseoError as error:
            raise FollowLost(str(error)) from None


class PaseoTerminals:
    """Implements `TerminalServer` for one daemon; any process that reaches it may follow its terminals."""

    kind: TerminalKind = "paseo"
    past: str | None = None

    def __init__(self, client: PaseoClient, place: str) -> None:
        self.place = place
        self._client = client
        self._terminals = client.terminals

    async def create(self, name: str, cwd: str, spec: TerminalSpec) -> str:
        """Make it under the caller's name and ours, which finds it again."""
        called = f"{spec.name} ({name})" if spec.name else name
        try:
            await self._client.wait_up(LINK_WAIT_S)
            made = await self._terminals.create(
                cwd, name=called, command=spec.command, arguments=list(spec.args) or None
            )
            if (spec.rows, spec.cols) != (ROWS, COLS):
                try:
                    await self._terminals.resize(made.id, spec.rows, spec.cols)
                except errors.PaseoError as error:  # it is made, whatever its size
                    raise OutcomeUnknown(str(error)) from None
        except errors.NotSent as error:
            raise BackendUnavailable(str(error)) from None
        except errors.Refused as error:
            raise BackendRejected(error.text) from None
        except PaseoError as error:
            raise OutcomeUnknown(str(error)) from None
        return made.id

    async def start(self, handle: str, cwd: str, spec: TerminalSpec) -> None:
        """The daemon has started it already."""

    @asynccontextmanager
    async def follow(self, handle: str) -> AsyncIterator[_Following]:
        """Its output from now on; what stood on the screen before is `shown`."""
        try:
            async with self._terminals.follow(handle) as box:
                with anyio.fail_after(SNAPSHOT_S):
                    first = await box.receive()
                yield _Following(box, first)
        except (TimeoutError, anyio.EndOfStream):
            raise FollowLost("the daemon shows no screen") from None
        except errors.Refused as error:
            if error.reason is Reason.TERMINAL_NOT_FOUND:
                raise TerminalGone("the daemon has no such terminal") from None
            raise FollowLost(error.text) from None
        except PaseoError as error:
            raise FollowLost(str(error)) from None

    async def write(self, handle: str, data: str) -> None:
        """Type. The daemon never says whether it arrived."""
        await self._ask(lambda: self._terminals.write(handle, data))

    async def resize(self, handle: str, rows: int, cols: int) -> None:
        """Change its size."""
        await self._ask(lambda: self._terminals.resize(handle, rows, cols))

    async def capture(self, handle: str, *, start: int | None, end: int | None, ansi: bool) -> Captured:
        """Lines as the daemon has them. An unknown terminal has none, and no error tells.

        Of numbers that count from the end the daemon does not say what it makes, so all lines are asked for.
        """
        strip = False if ansi else None
        from_end = any(number is not None and number < 0 for number in (start, end))
        wanted = {} if from_end else {"start": start, "end": end}
        found = await self._ask(lambda: self._terminals.capture(handle, strip_ansi=strip, **wanted))
        if not found.total_lines and handle not in {one.handle for one in await self.running()}:
            raise TerminalGone("the daemon has no such terminal")
        lines = sliced(found.lines, start, end) if from_end else found.lines
        return Captured(lines, found.total_lines)

    async def text(self, handle: str) -> Captured:
        """The rows as they are: the daemon does not say which of them it has wrapped."""
        return await self.capture(handle, start=None, end=None, ansi=False)

    async def running(self) -> Sequence[Running]:
        """All of the daemon's terminals."""
        found = await self._ask(self._terminals.running)
        return [Running(one.id, one.name) for one in found]

    async def kill(self, handle: str) -> None:
        """End it."""
        await self._ask(lambda: self._terminals.kill(handle))

    async def _ask(self, ask: Callable[[], Awaitable[T]]) -> T:
        try:
            await self._client.wait_up(LINK_WAIT_S)
            return await ask()
        except errors.Refused as error:
            if error.reason is Reason.TERMINAL_NOT_FOUND:
                raise TerminalGone(error.text) from None
            raise BackendRejected(error.text) from None
        except errors.NotSent:
            raise BackendUnavailable(self._client.link.error or "no link to the daemon") from None
        except PaseoError as error:
            raise BackendUnavailable(str(error)) from None
