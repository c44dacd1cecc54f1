"""How many streams may be open, and how long opening one may take."""

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import TypeVar

import anyio

from app.domain.errors import DatabaseUnavailable, TooManyStreams
from app.domain.ids import KeyId, Owner
from app.domain.keys import Principal

T = TypeVar("T")


OPEN_S = 10.0
"""Seconds for which opening a stream waits for the database."""


class Patience:
    """How long opening one stream waits for the database, all its steps together."""

    def __init__(self) -> None:
        self._until = anyio.current_time() + OPEN_S

    async def wait_for(self, look: Callable[[], Awaitable[T]]) -> T:
        """What `look` finds, tried again while the database is away.

        Raises:
            DatabaseUnavailable: it stayed away.
        """
        while True:
            with anyio.CancelScope(deadline=self._until):
                try:
                    return await look()
                except DatabaseUnavailable:
                    await anyio.sleep(0.25)
                    continue
            raise DatabaseUnavailable


class StreamPlace:
    """The place of one stream: given back at its end, or at once if it is never opened."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._stack = ExitStack()
        self._stack.callback(give_back)

    def keep(self, release: Callable[[], None]) -> None:
        """Call `release` when the place is given back."""
        self._stack.callback(release)

    def give_back(self) -> None:
        """Give the place back, once, however often this is called."""
        self._stack.close()

    def __enter__(self) -> None:
        """The stream is open."""

    def __exit__(self, *_: object) -> None:
        self.give_back()


class Streams:
    """How many streams are open, for each key and for this process; each bound answers with 429."""

    def __init__(self, *, per_key: int, total: int) -> None:
        self._per_key = per_key
        self._total = total
        self._open: Counter[KeyId | Owner] = Counter()
        self._none = anyio.Event()

    @property
    def open(self) -> int:
        """Streams that are open now."""
        return self._open.total()

    def take(self, caller: Principal) -> "StreamPlace":
        """A place for one more stream, taken from now on until it is given back.

        Raises:
            TooManyStreams: close one first.
        """
        name = caller.key_id or caller.owner
        if self.open >= self._total or self._open[name] >= self._per_key:
            raise TooManyStreams
        self._open[name] += 1
        return StreamPlace(lambda: self._give_back(name))

    def _give_back(self, name: KeyId | Owner) -> None:
        self._open[name] -= 1
        if self._open[name] <= 0:
            del self._open[name]
        if not self._open:
            self._none.set()

    async def all_closed(self) -> None:
        """Wait until no stream is open."""
        while self._open:
            self._none = anyio.Event()
            await self._none.wait()
