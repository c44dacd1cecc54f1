"""Reading disks that may not answer: a network's, or one that is broken."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

MAX_READERS = 16
"""Threads that read at the same time; whoever wants one more waits."""

_T = TypeVar("_T")
_readers: RunVar[anyio.CapacityLimiter] = RunVar("disk readers")


async def read_disk(read: Callable[[], _T]) -> _T:
    """What `read` finds, in a thread that is left behind if the caller waits no longer.

    A thread that nobody waits for any more keeps its place until it ends, so that a disk which hangs does not
    have threads without number; and it takes no place of the threads that everything else is done in.
    """
    readers = _of_this_loop()
    place = object()
    await readers.acquire_on_behalf_of(place)
    loop = asyncio.get_running_loop()
    begun = threading.Lock()
    """Taken by the thread as it begins or by the caller who goes first: who has it gives the place back."""

    def in_thread() -> _T:
        if not begun.acquire(blocking=False):
            raise TimeoutError
        try:
            return read()
        finally:
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(readers.release_on_behalf_of, place)

    try:
        return await anyio.to_thread.run_sync(
            in_thread, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
        )
    finally:
        if begun.acquire(blocking=False):
            readers.release_on_behalf_of(place)


def _of_this_loop() -> anyio.CapacityLimiter:
    try:
        return _readers.get()
    except LookupError:
        readers = anyio.CapacityLimiter(MAX_READERS)
        _readers.set(readers)
        return readers
