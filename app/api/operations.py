"""Routes for operators: health, backends, keys, tickets."""

import time
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from app.api.auth import Admin, AnyCaller, Credentials, Reader, any_caller
from app.api.problems import problems
from app.api.rooms import Rooms, RoomsDep
from app.api.schemas.health import (
    BackendHealth,
    BackendList,
    BackendView,
    CapabilitiesView,
    DatabaseHealth,
    HealthView,
    ProbeView,
    ProviderList,
    ProviderView,
    StreamCounts,
    TurnCounts,
)
from app.api.schemas.keys import CreatedKeyView, CreateKeyBody, KeyList, KeyView, TicketBody, TicketView
from app.api.sessions import ListCursor, ListLimit
from app.backends.base import Backend, Health
from app.domain.errors import (
    ApiKeyNotFound,
    BackendIsDown,
    BackendNotFound,
    DatabaseUnavailable,
    Forbidden,
    InvalidCursor,
    RateLimited,
    SessionNotFound,
    TerminalNotFound,
    TurnNotFound,
    Unauthenticated,
)
from app.domain.ids import KeyId, SessionId, TerminalId, TurnId
from app.domain.keys import Scope
from app.engine.keys import TICKET_OPENS_S
from app.engine.metrics import CONTENT_TYPE as METRICS_TYPE

router = APIRouter(tags=["operations"])

NamePath = Annotated[str, Path(pattern="^[a-z0-9][a-z0-9_-]{0,63}$")]
"""A backend by its name, in a path."""
KeyPath = Annotated[str, Path(pattern="^[A-Za-z0-9]{1,64}$")]
"""A key by its id, in a path."""


async def _is_known(request: Request, rooms: Rooms, credentials: Credentials) -> bool:
    if credentials is None and rooms.keys.anyone is None:
        return False
    try:
        caller = await any_caller(request, rooms, credentials)
    except (Unauthenticated, RateLimited, DatabaseUnavailable):
        return False
    return "read" in caller.scopes


def _backend_health(rooms: Rooms, name: str, seen: Health) -> BackendHealth:
    return BackendHealth(
        status="up" if seen.up else "down",
        counted=rooms.healths.is_counted(name),
        latency_ms=seen.latency_ms,
        version=seen.version,
        tested=seen.tested,
        detail=seen.detail,
    )


@router.head("/health", include_in_schema=False)
@router.get(
    "/health",
    response_model=HealthView,
    responses={503: {"model": HealthView, "description": "No database, or no counted backend is up"}},
)
async def get_health(
    request: Request, rooms: RoomsDep, credentials: Credentials, response: Response
) -> HealthView:
    """How things are; without a key only `status`."""
    found = await rooms.healths.status()
    response.status_code = 503 if found.status == "down" else 200
    if not await _is_known(request, rooms, credentials):
        return HealthView(status=found.status)
    return HealthView(
        status=found.status,
        version=rooms.version,
        uptime_s=round(time.monotonic() - rooms.healths.started, 1),
        database=DatabaseHealth(status="up" if found.database else "down", embedded=rooms.embedded),
        backends={name: _backend_health(rooms, name, seen) for name, seen in found.backends.items()},
        streams=StreamCounts(open=rooms.streams.open),
        turns=TurnCounts(**found.turns),
    )


@router.head("/livez", include_in_schema=False)
@router.get("/livez")
async def get_livez() -> ProbeView:
    """Whether the process answers; does no I/O."""
    return ProbeView(status="ok")


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses={503: {"model": ProbeView, "description": "Takes no work now"}})
async def get_readyz(rooms: RoomsDep, response: Response) -> ProbeView:
    """Whether this replica takes work: its database answers, and it is not leaving."""
    if await rooms.healths.is_ready():
        return ProbeView(status="ok")
    response.status_code = 503
    response.headers["Retry-After"] = "2"
    detail = "draining" if rooms.lifecycle.leaving else "the database does not answer"
    return ProbeView(status="unready", detail=detail)


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {
            "description": "Prometheus's text format",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        }
    },
)
async def get_metrics(caller: Reader, rooms: RoomsDep) -> Response:
    """What this process counts and measures, for Prometheus."""
    return Response(await rooms.metrics.render(), media_type=METRICS_TYPE)


async def _backend_view(
    rooms: Rooms, backend: Backend, seen: Health, load: dict[str, dict[str, int]], drained: set[str]
) -> BackendView:
    can = backend.capabilities
    return BackendView(
        **_backend_health(rooms, backend.name, seen).model_dump(),
        name=backend.name,
        type=backend.type,
        default=rooms.healths.is_default(backend.name),
        draining=backend.name in drained,
        filesystem=backend.place.filesystem,
        capabilities=CapabilitiesView(
            permissions=can.permissions,
            settings=can.settings,
            attachments=sorted(can.attachments),
            system_prompt=can.system_prompt,
            mcp_servers=can.mcp_servers,
            worktrees=can.worktrees,
            imports=can.imports,
            terminals=rooms.terminals.servers.of(backend) is not None,
        ),
        turns=TurnCounts(**load.get(backend.name, {"running": 0, "queued": 0})),
    )


@router.get("/v1/backends")
async def list_backends(caller: Reader, rooms: RoomsDep) -> BackendList:
    """Every backend: health, capabilities, load."""
    load, drained = await rooms.healths.load(), await rooms.healths.drained()
    return BackendList(
        items=[
            await _backend_view(rooms, backend, seen, load, drained)
            for backend, seen in rooms.healths.backends()
        ],
        next_cursor=None,
    )


@router.get("/v1/backends/{name}", responses=problems(BackendNotFound))
async def get_backend(name: NamePath, caller: Reader, rooms: RoomsDep) -> BackendView:
    """A backend: health, capabilities, load."""
    backend, seen = rooms.healths.backend(name)
    return await _backend_view(
        rooms, backend, seen, await rooms.healths.load(), await rooms.healths.drained()
    )


@router.get("/v1/backends/{name}/providers", responses=problems(BackendNotFound, BackendIsDown))
async def list_providers(name: NamePath, caller: Reader, rooms: RoomsDep) -> ProviderList:
    """A backend's providers with their models, modes and thinking options."""
    found = await rooms.healths.providers(name)
    return ProviderList(items=[ProviderView.from_domain(provider) for provider in found], next_cursor=None)


@router.post("/v1/backends/{name}/drain", responses=problems(BackendNotFound, Forbidden))
async def drain_backend(name: NamePath, caller: Admin, rooms: RoomsDep) -> BackendView:
    """Take no new turns for a backend, on any replica; running ones finish."""
    await rooms.healths.drain(name)
    return await get_backend(name, caller, rooms)


@router.post("/v1/backends/{name}/resume", responses=problems(BackendNotFound, Forbidden))
async def resume_backend(name: NamePath, caller: Admin, rooms: RoomsDep) -> BackendView:
    """Take new turns for a backend again."""
    await rooms.healths.resume(name)
    return await get_backend(name, caller, rooms)


@router.post(
    "/v1/stream-tickets",
    status_code=201,
    responses=problems(SessionNotFound, TurnNotFound, TerminalNotFound, Forbidden),
)
async def make_ticket(body: TicketBody, caller: AnyCaller, rooms: RoomsDep) -> TicketView:
    """A ticket for one stream, for an EventSource, which cannot send headers."""
    needed: Scope = "terminal" if body.terminal_id is not None else "read"
    if needed not in caller.scopes:
        raise Forbidden(scope=needed)
    if body.session_id is not None:
        await rooms.sessions.get(caller.owner, SessionId(body.session_id))
        target = f"session:{body.session_id}"
    elif body.turn_id is not None:
        await rooms.turns.get(caller.owner, TurnId(body.turn_id))
        target = f"turn:{body.turn_id}"
    elif body.terminal_id is not None:
        await rooms.terminals.get(caller.owner, TerminalId(body.terminal_id))
        target = f"terminal:{body.terminal_id}"
    else:
        target = "all"
    ticket = await rooms.keys.make_ticket(caller, target)
    return TicketView(ticket=ticket, expires_at=datetime.now(UTC) + timedelta(seconds=TICKET_OPENS_S))


@router.post("/v1/api-keys", status_code=201, responses=problems(Forbidden))
async def make_key(body: CreateKeyBody, caller: Admin, rooms: RoomsDep) -> CreatedKeyView:
    """Make an API key; its secret is shown this once."""
    key, secret = await rooms.keys.make(body.owned_by(), body.name, list(dict.fromkeys(body.scopes)))
    return CreatedKeyView.made(key, secret)


@router.get("/v1/api-keys", responses=problems(InvalidCursor, Forbidden))
async def list_keys(
    caller: Admin, rooms: RoomsDep, limit: ListLimit = 50, cursor: ListCursor = None
) -> KeyList:
    """Every API key, newest first, without secrets."""
    page = await rooms.keys.list_keys(limit=limit, cursor=cursor)
    return KeyList(items=[KeyView.from_domain(key) for key in page.items], next_cursor=page.next_cursor)


@router.delete("/v1/api-keys/{key_id}", status_code=204, responses=problems(ApiKeyNotFound, Forbidden))
async def revoke_key(key_id: KeyPath, caller: Admin, rooms: RoomsDep) -> None:
    """Revoke a key: it is refused and its streams end, on every replica. Repeating it is harmless."""
    await rooms.keys.revoke(KeyId(key_id))
