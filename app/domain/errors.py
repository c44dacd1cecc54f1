"""What can go wrong, in the domain's words. One table at the edge gives each its status and code."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


class DomainError(Exception):
    """A refusal that a caller can understand; its fields are shown to them."""

    detail = ""

    def __str__(self) -> str:
        return self.detail or (self.__doc__ or "").strip().splitlines()[0]


@dataclass(eq=False)
class InvalidCursor(DomainError):
    """A cursor is a decimal number of a list or log that we gave out."""


@dataclass(eq=False)
class Unauthenticated(DomainError):
    """A valid API key is needed: `Authorization: Bearer alm_…`."""


@dataclass(eq=False)
class Forbidden(DomainError):
    """The key lacks a scope."""

    scope: str
    """The scope that would be needed."""


@dataclass(eq=False)
class SessionNotFound(DomainError):
    """No such session."""


@dataclass(eq=False)
class TurnNotFound(DomainError):
    """No such turn."""


@dataclass(eq=False)
class PermissionNotFound(DomainError):
    """No such permission."""


@dataclass(eq=False)
class CollisionNotFound(DomainError):
    """No such collision."""


@dataclass(eq=False)
class TerminalNotFound(DomainError):
    """No such terminal, or it has ended."""

    detail: str = ""


@dataclass(eq=False)
class TaskNotFound(DomainError):
    """No such task."""


@dataclass(eq=False)
class BackendNotFound(DomainError):
    """No backend of that name is configured."""

    backend: str


@dataclass(eq=False)
class ApiKeyNotFound(DomainError):
    """No such API key."""


@dataclass(eq=False)
class SessionConflict(DomainError):
    """The session exists with other values."""

    fields: list[str]
    detail: str = ""


@dataclass(eq=False)
class SessionExists(DomainError):
    """The session exists already, and `if_exists` is `reject`."""


@dataclass(eq=False)
class SessionBusy(DomainError):
    """The session is running a turn, or somebody else keeps its agent busy (then `open_turn_id` is null)."""

    open_turn_id: str | None


@dataclass(eq=False)
class SessionIsClosed(DomainError):
    """The session is closed or closing; ensure it again to open it."""


@dataclass(eq=False)
class BackendSessionLost(DomainError):
    """The backend no longer has this session's agent; ensure the session again to get a new one."""


@dataclass(eq=False)
class TurnNotEnded(DomainError):
    """The turn is still open."""

    detail: str = ""


@dataclass(eq=False)
class TurnNotQueued(DomainError):
    """The turn is not in the queue any more."""


@dataclass(eq=False)
class PermissionAlreadyResolved(DomainError):
    """Somebody answered first, or the turn has ended."""

    outcome: str | None
    by: str | None
    at: datetime | None


@dataclass(eq=False)
class PermissionIsExpired(DomainError):
    """The permission expired: nobody answered in time, or the agent that asked is gone."""


@dataclass(eq=False)
class RequestInProgress(DomainError):
    """The first request with this Idempotency-Key is still being admitted."""


@dataclass(eq=False)
class IdempotencyKeyReused(DomainError):
    """This Idempotency-Key was used for another request."""


@dataclass(eq=False)
class ValidationFailed(DomainError):
    """The request is well-formed JSON, but not what this route takes."""

    errors: list[dict[str, Any]] = field(default_factory=list)
    detail: str = ""


@dataclass(eq=False)
class NoSuchProvider(DomainError):
    """The backend has no provider of that name."""

    provider: str
    available: list[str]


@dataclass(eq=False)
class UnsupportedByBackend(DomainError):
    """The backend cannot do this."""

    detail: str = ""


@dataclass(eq=False)
class PathNotAllowed(DomainError):
    """The directory does not exist, or lies outside the allowed roots."""

    detail: str = ""


@dataclass(eq=False)
class RateLimited(DomainError):
    """Too many requests."""

    retry_after_s: int = 1


@dataclass(eq=False)
class TooManyStreams(DomainError):
    """Too many open streams for this key or this replica."""

    retry_after_s: int = 5


@dataclass(eq=False)
class TooManySessions(DomainError):
    """Too many sessions that are not closed."""

    retry_after_s: int = 60


@dataclass(eq=False)
class TooManyTerminals(DomainError):
    """Too many open terminals of this session."""

    retry_after_s: int = 5


@dataclass(eq=False)
class QueueFull(DomainError):
    """Too many open turns, of the session or of the owner."""

    retry_after_s: int = 5


@dataclass(eq=False)
class BackendFailed(DomainError):
    """The backend refused or failed."""

    detail: str = ""


@dataclass(eq=False)
class BackendIsDown(DomainError):
    """The backend cannot be reached now."""

    detail: str = ""
    retry_after_s: int = 5


@dataclass(eq=False)
class Draining(DomainError):
    """This replica, or the backend, takes no new work."""

    retry_after_s: int = 2


@dataclass(eq=False)
class DatabaseUnavailable(DomainError):
    """The database does not answer."""

    retry_after_s: int = 2
