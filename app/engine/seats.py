"""Places for what costs much: so many at once in this process, and fewer for any one owner."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio

from app.domain.errors import RateLimited
from app.domain.ids import Owner


class Seats:
    """Seats of which one owner never has them all."""

    def __init__(self, most: int, per_owner: int) -> None:
        """`most` at once, and `per_owner` of them for one owner."""
        self._all = anyio.CapacityLimiter(most)
        self._per_owner = per_owner
        self._owners: dict[Owner, anyio.CapacityLimiter] = {}

    @asynccontextmanager
    async def take(self, owner: Owner, within_s: float) -> AsyncIterator[None]:
        """A seat until the end of the block. Whoever waits for one of an owner's takes none of the others'.

        Raises:
            RateLimited: there was none within that time.
        """
        own = self._owners.setdefault(owner, anyio.CapacityLimiter(self._per_owner))
        try:
            async with AsyncExitStack() as seat:
                with anyio.move_on_after(within_s) as waiting:
                    await seat.enter_async_context(own)
                    await seat.enter_async_context(self._all)
                if waiting.cancelled_caught:
                    raise RateLimited(retry_after_s=max(1, int(within_s)))
                yield
        finally:
            if not own.borrowed_tokens and not own.statistics().tasks_waiting:
                self._owners.pop(owner, None)
