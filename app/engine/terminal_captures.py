"""What stands in a terminal: lines of its scrollback and its screen."""

from collections.abc import Callable
from typing import TypeVar

import anyio.to_thread

from app.backends.terminals import Captured
from app.domain.ids import Owner, TerminalId
from app.engine.terminal_places import Places
from app.engine.terminals import Terminals, told

T = TypeVar("T")


class TerminalCaptures:
    """The use-case, within the caller's owner."""

    def __init__(self, rooms: Terminals, places: Places) -> None:
        self._terminals = rooms
        self._places = places

    async def capture(
        self,
        owner: Owner,
        terminal_id: TerminalId,
        *,
        start: int | None,
        end: int | None,
        ansi: bool,
        write: Callable[[Captured], T],
    ) -> T:
        """What `write` makes of the lines, in a thread: there may be megabytes of them.

        Raises:
            TerminalNotFound: it is missing, somebody else's, or has ended.
            BackendIsDown, BackendFailed: it cannot be reached from here, or not be captured.
            RateLimited: too many are asked for at once.
        """
        with self._places.taken(owner):
            terminal, server = await self._terminals.usable(owner, terminal_id)
            async with self._places.captures:
                with told():
                    captured = await server.capture(terminal.handle, start=start, end=end, ansi=ansi)
                return await anyio.to_thread.run_sync(write, captured, limiter=self._places.threads)
