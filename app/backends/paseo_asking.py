"""The permissions that an agent waits for, and those whose resolution nobody tells."""

import time
from collections.abc import Set
from dataclasses import dataclass, field

import anyio

from app.domain.events import PermissionOutcome
from app.paseo.frames import PermissionRequest

UNSAID_S = 0.5
"""Seconds after a permission was no longer pending in which its resolution may still be told."""
SILENT_PROVIDER = "opencode"
"""It tells no resolution of a permission, no start of a turn, and completes turns that never ran."""


@dataclass
class Asked:
    """A permission that the agent waits for."""

    attempt: str | None
    """In which it was asked: its resolution may come after the turn's end."""
    request: PermissionRequest
    answered: tuple[PermissionOutcome, str | None] | None = None
    """Our own answer, once it was sent."""
    was_pending: bool = False
    gone_at: float | None = None
    """Monotonic time since which the agent no longer shows it as pending."""
    settled: anyio.Event = field(default_factory=anyio.Event)


class Asking:
    """One agent's requests, by their ids."""

    def __init__(self) -> None:
        self._asked: dict[str, Asked] = {}

    def get(self, request_id: str) -> Asked | None:
        """A request that waits."""
        return self._asked.get(request_id)

    def add(self, request: PermissionRequest, attempt: str | None) -> None:
        """A request was made, or is told of again."""
        self._asked.setdefault(request.id, Asked(attempt, request))

    def pop(self, request_id: str) -> Asked | None:
        """Take out a request that is resolved; null if it was before."""
        asked = self._asked.pop(request_id, None)
        if asked is not None:
            asked.settled.set()
        return asked

    def keep(self, pending: Set[str]) -> None:
        """All but the `pending` ones were resolved while nobody looked."""
        for request_id in self._asked.keys() - pending:
            self.pop(request_id)
        self.watch(pending)

    def watch(self, pending: Set[str]) -> None:
        """Notice which requests the agent no longer shows as pending."""
        for request_id, asked in self._asked.items():
            if request_id in pending:
                asked.was_pending = True
            elif asked.was_pending and asked.gone_at is None:
                grace = 0.0 if asked.request.provider == SILENT_PROVIDER else UNSAID_S
                asked.gone_at = time.monotonic() + grace

    def unanswered(self, attempt: str) -> list[Asked]:
        """The requests of an attempt that we have not answered."""
        return [one for one in self._asked.values() if one.attempt == attempt and one.answered is None]

    def unsaid(self) -> list[Asked]:
        """The requests that have been gone for so long that nobody will tell their resolution."""
        now = time.monotonic()
        return [one for one in self._asked.values() if one.gone_at is not None and one.gone_at <= now]

    @property
    def unsaid_at(self) -> float | None:
        """When the next of them is due; monotonic."""
        due = [asked.gone_at for asked in self._asked.values() if asked.gone_at is not None]
        return min(due, default=None)
