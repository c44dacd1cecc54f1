"""Whether this process still takes work, and who has to be told when it no longer does."""

import math
from collections.abc import Callable

import anyio

ANSWER_S = 2.0
"""Seconds that requests which wait for something may go on waiting once draining begins."""


class Lifecycle:
    """One process's way from serving over leaving to draining; there is no way back."""

    def __init__(self) -> None:
        self.leaving = False
        """Whether others should take over: not ready any more, open streams end, sessions are handed back."""
        self.draining = False
        """Whether new work is refused."""
        self.answer_by = math.inf
        """Time by which every request has to be answered, by the event loop's clock."""
        self.on_leave: list[Callable[[], None]] = []
        """Called once when leaving begins; must not wait or raise."""

    def leave(self) -> None:
        """Let others take over; requests that still come are taken until balancers have seen that we go."""
        if not self.leaving:
            self.leaving = True
            for call in self.on_leave:
                call()

    def drain(self) -> None:
        """Take no new work from now on."""
        self.leave()
        if not self.draining:
            self.draining = True
            self.answer_by = anyio.current_time() + ANSWER_S
