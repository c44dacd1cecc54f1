"""Waiting for what another process, or a task of this one, writes about a session."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from app.domain.ids import SessionKey
from app.engine.lifecycle import Lifecycle
from app.store.bell import Bell

T = TypeVar("T")


async def look_until(
    look: Callable[[], Awaitable[T]],
    is_enough: Callable[[T], bool],
    *,
    session: SessionKey,
    bell: Bell,
    lifecycle: Lifecycle,
    timeout_s: float,
    poll_s: float,
) -> T | None:
    """What `look` found last: enough, unless that took too long or this process cannot wait any longer.

    It looks whenever the session's bell rings, and after `poll_s` seconds for a bell that was lost.

    Returns:
        Null if not even the first look was over in time.
    """
    found: T | None = None
    with anyio.move_on_after(timeout_s) as patience, bell.listen(session) as wakeup:
        while True:
            patience.deadline = min(patience.deadline, lifecycle.answer_by)
            found = await look()
            if is_enough(found):
                return found
            with anyio.move_on_after(poll_s):
                await wakeup.wait()
    return found
