"""What is emitted: events of one size, at a pace, each with its moment of birth in it."""

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

MARK = "@"
"""Stands once in every measured event and nowhere else on the wire, so that a reader counts by one byte."""
STAMP_DIGITS = 20
TEXT_BYTES = 190
"""Bytes of an event's text; with what is around it, a frame has about 460."""
HEARTBEAT_S = 1.0
"""Silence of a stream after which either server writes a comment."""
SYNCED = b"stream.synced"
"""Ends what either server writes when a stream is opened."""

_PADDING = ("the quick brown fox jumps over the lazy dog " * 8)[: TEXT_BYTES - 1 - STAMP_DIGITS]


@dataclass(frozen=True, slots=True)
class Work:
    """How much one source emits; `rate` is events a second, null is flat out."""

    events: int
    rate: float | None = None
    phase_s: float = 0.0
    """Seconds by which this source begins later, so that many do not beat together."""


def text(stamp_ns: int) -> str:
    """An event's text; the stamp is `time.monotonic_ns`, the same clock in every process of a machine."""
    return f"{MARK}{stamp_ns:0{STAMP_DIGITS}d}{_PADDING}"


async def ticks(work: Work, *, a_turn: int) -> AsyncGenerator[int]:
    """Count the events of `work` at its pace; flat out, `a_turn` of them in one turn of the event loop."""
    began = time.monotonic() + work.phase_s
    for number in range(work.events):
        if work.rate is not None:
            await asyncio.sleep(max(0.0, began + number / work.rate - time.monotonic()))
        elif number % a_turn == 0:
            await asyncio.sleep(0)
        yield number
