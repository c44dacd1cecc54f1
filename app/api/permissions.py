"""Routes of permissions: the inbox, and the answer."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from app.api.auth import Approver, Reader
from app.api.problems import problems
from app.api.rooms import RoomsDep
from app.api.schemas.permissions import PermissionList, PermissionView, RespondBody
from app.api.sessions import ListCursor, ListLimit
from app.domain.errors import (
    BackendIsDown,
    InvalidCursor,
    PermissionAlreadyResolved,
    PermissionIsExpired,
    PermissionNotFound,
    UnsupportedByBackend,
)
from app.domain.ids import SESSION_ID_PATTERN, PermissionId, SessionId
from app.domain.permissions import PermissionStatus

router = APIRouter(prefix="/v1/permissions", tags=["permissions"])

PermissionPath = Annotated[str, Path(pattern="^[A-Za-z0-9_-]{1,128}$")]
"""A permission by its id, in a path."""


@router.get("", responses=problems(InvalidCursor))
async def list_permissions(
    caller: Reader,
    rooms: RoomsDep,
    status: PermissionStatus | None = None,
    session_id: Annotated[str | None, Query(pattern=SESSION_ID_PATTERN)] = None,
    limit: ListLimit = 50,
    cursor: ListCursor = None,
) -> PermissionList:
    """The owner's permissions, newest first; `status=pending` is the inbox."""
    page = await rooms.permissions.list_permissions(
        caller.owner,
        status=status,
        session_id=SessionId(session_id) if session_id else None,
        limit=limit,
        cursor=cursor,
    )
    return PermissionList(
        items=[PermissionView.from_domain(p) for p in page.items], next_cursor=page.next_cursor
    )


@router.get("/{permission_id}", responses=problems(PermissionNotFound))
async def get_permission(permission_id: PermissionPath, caller: Reader, rooms: RoomsDep) -> PermissionView:
    """The permission as it stands."""
    return PermissionView.from_domain(await rooms.permissions.get(caller.owner, PermissionId(permission_id)))


@router.post(
    "/{permission_id}/respond",
    responses=problems(
        PermissionNotFound,
        PermissionAlreadyResolved,
        PermissionIsExpired,
        UnsupportedByBackend,
        BackendIsDown,
    ),
)
async def respond(
    permission_id: PermissionPath, body: RespondBody, caller: Approver, rooms: RoomsDep
) -> PermissionView:
    """Answer: 200 once the backend has resolved it, which is what is recorded. The first answer wins."""
    return PermissionView.from_domain(
        await rooms.permissions.respond(caller, PermissionId(permission_id), body.to_domain())
    )
