"""Routes of tasks: steps on one session, run durably one after the other."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import JSONResponse

from app.api.auth import Prompter, Reader
from app.api.problems import problems
from app.api.rooms import RoomsDep
from app.api.schemas.tasks import TaskBody, TaskList, TaskView
from app.api.sessions import ListCursor, ListLimit
from app.api.turns import IdempotencyKey, idempotency_of
from app.domain.errors import (
    BackendIsDown,
    BackendSessionLost,
    Draining,
    IdempotencyKeyReused,
    InvalidCursor,
    QueueFull,
    RequestInProgress,
    SessionIsClosed,
    SessionNotFound,
    TaskNotFound,
    TurnNotEnded,
    ValidationFailed,
)
from app.domain.ids import SESSION_ID_PATTERN, SessionId, TaskId
from app.domain.tasks import Task, TaskStatus

router = APIRouter(prefix="/v1/tasks", tags=["tasks"])

TaskPath = Annotated[str, Path(pattern="^[A-Za-z0-9_-]{1,128}$")]
"""A task by its id, in a path."""

_ADMISSION = (
    SessionIsClosed,
    BackendSessionLost,
    QueueFull,
    Draining,
    BackendIsDown,
    IdempotencyKeyReused,
    RequestInProgress,
)


def _task_answer(task: Task, *, status: int, replayed: bool = False) -> JSONResponse:
    headers = {"Location": f"/v1/tasks/{task.id}"}
    if replayed:
        headers["Idempotent-Replayed"] = "true"
    view = TaskView.from_domain(task)
    return JSONResponse(view.model_dump(mode="json"), status_code=status, headers=headers)


@router.post(
    "",
    status_code=202,
    response_model=TaskView,
    responses=problems(SessionNotFound, TaskNotFound, *_ADMISSION),
)
async def make_task(
    body: TaskBody, caller: Prompter, rooms: RoomsDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Admit a task: 202 once it is committed with its first step's turn, which waits like any other."""
    key = idempotency_of(idempotency_key, "tasks", body.session_id, body)
    session_id, steps = body.to_domain()
    task, replayed = await rooms.tasks.admit(caller.owner, session_id, steps, key)
    return _task_answer(task, status=202, replayed=replayed)


@router.get("", responses=problems(InvalidCursor))
async def list_tasks(
    caller: Reader,
    rooms: RoomsDep,
    session_id: Annotated[str | None, Query(pattern=SESSION_ID_PATTERN)] = None,
    status: TaskStatus | None = None,
    limit: ListLimit = 50,
    cursor: ListCursor = None,
) -> TaskList:
    """The owner's tasks, newest first."""
    page = await rooms.tasks.list_tasks(
        caller.owner,
        session_id=SessionId(session_id) if session_id else None,
        status=status,
        limit=limit,
        cursor=cursor,
    )
    return TaskList(items=[TaskView.from_domain(task) for task in page.items], next_cursor=page.next_cursor)


@router.get("/{task_id}", responses=problems(TaskNotFound))
async def get_task(task_id: TaskPath, caller: Reader, rooms: RoomsDep) -> TaskView:
    """The task as it stands."""
    return TaskView.from_domain(await rooms.tasks.get(caller.owner, TaskId(task_id)))


@router.post(
    "/{task_id}/cancel",
    response_model=TaskView,
    responses={202: {"model": TaskView, "description": "Still being stopped"}, **problems(TaskNotFound)},
)
async def cancel_task(task_id: TaskPath, caller: Prompter, rooms: RoomsDep) -> Response:
    """Have the task end: its open turn is stopped, no further step begins; an ended task stays as it is."""
    task = await rooms.tasks.cancel(caller.owner, TaskId(task_id))
    return _task_answer(task, status=200 if task.is_ended else 202)


@router.post(
    "/{task_id}/retry",
    status_code=202,
    response_model=TaskView,
    responses=problems(TaskNotFound, SessionNotFound, TurnNotEnded, ValidationFailed, *_ADMISSION),
)
async def retry_task(
    task_id: TaskPath, caller: Prompter, rooms: RoomsDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Have a failed, timed out or cancelled task go on from the step that did not complete."""
    key = idempotency_of(idempotency_key, "task-retry", task_id)
    task, replayed = await rooms.tasks.retry(caller.owner, TaskId(task_id), key)
    return _task_answer(task, status=202, replayed=replayed)
