"""Errors on their way from a host to the caller who waits in another process, and the wait itself."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from app.backends.base import (
    AgentLost,
    BackendError,
    BackendUnavailable,
    ProviderNotFound,
    Unsupported,
)
from app.domain.errors import (
    BackendFailed,
    BackendIsDown,
    BackendSessionLost,
    DomainError,
    Draining,
    NoSuchProvider,
    PathNotAllowed,
    SessionIsClosed,
    UnsupportedByBackend,
)
from app.domain.ids import SessionKey
from app.engine.lifecycle import Lifecycle
from app.engine.waiting import look_until
from app.store import intents
from app.store.database import Database
from app.store.intents import Intent

_CODES: dict[str, type[DomainError]] = {
    "backend_error": BackendFailed,
    "backend_unavailable": BackendIsDown,
    "unsupported_by_backend": UnsupportedByBackend,
    "path_not_allowed": PathNotAllowed,
}


def describe(error: BackendError | DomainError) -> Mapping[str, Any]:
    """The error as it is written into an intent's row."""
    match error:
        case BackendUnavailable():
            code = "backend_unavailable"
        case AgentLost():
            code = "backend_session_lost"
        case ProviderNotFound():
            return {
                "code": "provider_not_found",
                "detail": str(error),
                "provider": error.provider,
                "available": error.available,
            }
        case Unsupported():
            code = "unsupported_by_backend"
        case PathNotAllowed():
            code = "path_not_allowed"
        case SessionIsClosed():
            code = "session_closed"
        case Draining():
            code = "draining"
        case _:
            code = "backend_error"
    return {"code": code, "detail": str(error)}


def raise_described(error: Mapping[str, Any]) -> None:
    """Raise the domain error that a host wrote."""
    code, detail = error["code"], error["detail"]
    if code == "backend_session_lost":
        raise BackendSessionLost
    if code == "session_closed":
        raise SessionIsClosed
    if code == "draining":
        raise Draining
    if code == "provider_not_found":
        raise NoSuchProvider(provider=error.get("provider", ""), available=error.get("available", []))
    cls = _CODES.get(code, BackendFailed)
    raise cls(detail=detail)  # type: ignore[call-arg]  # every class of the table has a detail


async def wait_for(
    database: Database, lifecycle: Lifecycle, session: SessionKey, number: UUID, timeout_s: float
) -> Intent | None:
    """The intent once it is done; null if that took too long, or this process cannot wait any longer."""

    async def look() -> Intent | None:
        async with database.begin() as db:
            return await intents.get(db, number)

    intent = await look_until(
        look,
        lambda now: now is None or now.done,
        session=session,
        bell=database.bell,
        lifecycle=lifecycle,
        timeout_s=timeout_s,
        poll_s=1.0,
    )
    return intent if intent is not None and intent.done else None
