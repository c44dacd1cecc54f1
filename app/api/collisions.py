"""Routes of collisions, and of who writes which file of a project."""

from typing import Annotated

from fastapi import APIRouter, Path

from app.api.auth import Reader
from app.api.problems import problems
from app.api.rooms import RoomsDep
from app.api.schemas.collisions import CollisionList, CollisionView, ProjectFileList, ProjectFileView
from app.api.sessions import FilterText, ListCursor, ListLimit
from app.domain.collisions import CollisionStatus
from app.domain.errors import CollisionNotFound, InvalidCursor
from app.domain.ids import CollisionId

router = APIRouter(prefix="/v1", tags=["collisions"])

CollisionPath = Annotated[str, Path(pattern="^[A-Za-z0-9_-]{1,128}$")]
"""A collision by its id, in a path."""
ProjectPath = Annotated[
    str,
    Path(
        min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$", description="As sessions name it."
    ),
]
"""A project by its name, in a path; the name may hold slashes."""


@router.get("/collisions", responses=problems(InvalidCursor))
async def list_collisions(
    caller: Reader,
    rooms: RoomsDep,
    project_id: FilterText = None,
    status: CollisionStatus | None = None,
    limit: ListLimit = 50,
    cursor: ListCursor = None,
) -> CollisionList:
    """The owner's collisions, newest first: two live sessions of one project that write the same file."""
    page = await rooms.collisions.list_collisions(
        caller.owner, project_id=project_id, status=status, limit=limit, cursor=cursor
    )
    items = [CollisionView.from_domain(each) for each in page.items]
    return CollisionList(items=items, next_cursor=page.next_cursor)


@router.get("/collisions/{collision_id}", responses=problems(CollisionNotFound))
async def get_collision(collision_id: CollisionPath, caller: Reader, rooms: RoomsDep) -> CollisionView:
    """The collision as it stands."""
    return CollisionView.from_domain(await rooms.collisions.get(caller.owner, CollisionId(collision_id)))


@router.get("/projects/{project_id:path}/files", responses=problems(InvalidCursor))
async def list_files(
    project_id: ProjectPath,
    caller: Reader,
    rooms: RoomsDep,
    limit: ListLimit = 50,
    cursor: ListCursor = None,
) -> ProjectFileList:
    """Who writes what: the files that live sessions of the project have written, last written first."""
    page = await rooms.collisions.list_files(caller.owner, project_id, limit=limit, cursor=cursor)
    items = [ProjectFileView.from_domain(each) for each in page.items]
    return ProjectFileList(items=items, next_cursor=page.next_cursor)
