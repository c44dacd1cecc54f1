"""Who may have a terminal's text read now: that takes memory, and no owner may take all there is for it."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from app.domain.errors import RateLimited
from app.domain.ids import Owner

READINGS = 2
"""Texts that are searched or written out at once in this process; the others wait for their turn."""
CAPTURES = 4
"""Captures that are asked for and held at once; one may have as much text as a ring."""
MOST_PLACES = 20
"""Searches and captures that are asked for at once in this process; more are refused."""
MOST_OF_ONE = 10
"""As many of one owner."""
AGAIN_S = 1
"""Seconds after which one that was refused may be asked for again."""


class Places:
    """The places of this process for searches and captures together."""

    def __init__(self) -> None:
        self.turns = anyio.CapacityLimiter(READINGS)
        """Whose turn it is: only then a ring is copied."""
        self.threads = anyio.CapacityLimiter(READINGS)
        """Where the work is done by whoever's turn it is."""
        self.captures = anyio.CapacityLimiter(CAPTURES)
        """Held from asking for a capture until it was read."""
        self._taken: Counter[Owner] = Counter()

    @contextmanager
    def taken(self, owner: Owner) -> Iterator[None]:
        """A place of the owner's, until the answer is there.

        Raises:
            RateLimited: there is none, or the owner has as many as one may.
        """
        if self._taken.total() >= MOST_PLACES or self._taken[owner] >= MOST_OF_ONE:
            raise RateLimited(retry_after_s=AGAIN_S)
        self._taken[owner] += 1
        try:
            yield
        finally:
            self._taken[owner] -= 1
            if not self._taken[owner]:
                del self._taken[owner]
