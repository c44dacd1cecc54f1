"""Who may call a route: `Authorization: Bearer alm_…` on every one, or a ticket on the stream it is for."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.api.rooms import RoomsDep
from app.domain.errors import Forbidden
from app.domain.keys import Principal, Scope

_bearer = HTTPBearer(
    scheme_name="ApiKey", bearerFormat="alm_<id>_<secret>", description="An API key.", auto_error=False
)
"""How a key is sent. Whether one has to be is for the route to say."""
Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
"""The key as it was sent; null if none was."""


def address(request: Request) -> str:
    """The caller's network address, by which failed authentications are counted."""
    return request.client.host if request.client else "unknown"


async def any_caller(request: Request, rooms: RoomsDep, credentials: Credentials) -> Principal:
    """Whoever holds the key, whatever its scopes."""
    return await rooms.keys.authenticate(credentials.credentials if credentials else None, address(request))


def needs(scope: Scope) -> Callable[..., Awaitable[Principal]]:
    """A dependency: the caller, who has `scope`."""

    async def caller(request: Request, rooms: RoomsDep, credentials: Credentials) -> Principal:
        principal = await any_caller(request, rooms, credentials)
        if scope not in principal.scopes:
            raise Forbidden(scope=scope)
        return principal

    return caller


Reader = Annotated[Principal, Depends(needs("read"))]
"""The caller, who may look."""
Prompter = Annotated[Principal, Depends(needs("prompt"))]
"""The caller, who may have agents work, and change and close sessions."""
Approver = Annotated[Principal, Depends(needs("approve"))]
"""The caller, who may answer permission requests."""
TerminalUser = Annotated[Principal, Depends(needs("terminal"))]
"""The caller, who may use terminals."""
Admin = Annotated[Principal, Depends(needs("admin"))]
"""The caller, who may make keys and drain backends."""


AnyCaller = Annotated[Principal, Depends(any_caller)]
"""The caller, whatever the key's scopes: the route looks at them itself."""
