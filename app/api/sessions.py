"""Routes of sessions."""

from typing import Annotated

import msgspec
from fastapi import APIRouter, Path, Query, Response, status
from pydantic import WithJsonSchema

from app.api.auth import Prompter, Reader
from app.api.openapi import EVENT_STREAM_RESPONSES
from app.api.problems import problems
from app.api.rooms import RoomsDep
from app.api.schemas.ensure import EnsureBody, EnsureByChatBody
from app.api.schemas.events import EventPage, SnapshotView
from app.api.schemas.sessions import (
    CloseBody,
    ClosedSessionView,
    DiffView,
    PatchSession,
    SessionList,
    SessionView,
)
from app.api.streams import Deltas, StreamDep, Types, stream_owner, stream_session
from app.domain.errors import (
    BackendFailed,
    BackendIsDown,
    BackendNotFound,
    Draining,
    Forbidden,
    InvalidCursor,
    NoSuchProvider,
    PathNotAllowed,
    RateLimited,
    SessionConflict,
    SessionExists,
    SessionIsClosed,
    SessionNotFound,
    TooManySessions,
    TooManyStreams,
    UnsupportedByBackend,
    ValidationFailed,
)
from app.domain.ids import SESSION_ID_PATTERN, SessionId
from app.domain.sessions import Activity, Ensured, SessionStatus
from app.engine.cursors import Filter, parse_cursor

router = APIRouter(prefix="/v1", tags=["sessions"])

SessionPath = Annotated[
    str, Path(pattern=SESSION_ID_PATTERN, description="The caller's name for the session.")
]
"""A session by its name, in a path."""
ListLimit = Annotated[int, Query(ge=1, le=200)]
"""Items of one page."""
ListCursor = Annotated[str | None, Query(description="`next_cursor` of the page before.")]
"""Where a page begins; what is none of ours is the store's to refuse."""
FilterText = Annotated[str | None, Query(max_length=200, pattern="^[^\x00]*$")]
"""A value that a filter compares with."""
PageAfter = Annotated[
    str | None,
    Query(description="The last seq examined: the page begins after it."),
    WithJsonSchema({"type": "integer", "minimum": 0, "exclusiveMaximum": 10**18}),
]
"""A cursor of a log. Text, so that a malformed one is refused as a cursor, here as on a stream."""

_ENSURE_PROBLEMS = problems(
    SessionConflict,
    SessionExists,
    SessionIsClosed,
    BackendNotFound,
    NoSuchProvider,
    UnsupportedByBackend,
    PathNotAllowed,
    TooManySessions,
    BackendFailed,
    BackendIsDown,
    Draining,
)
"""What an ensure may be refused for."""


def _ensured(ensured: Ensured, response: Response) -> SessionView:
    response.status_code = (
        status.HTTP_201_CREATED if ensured.opened in ("created", "imported") else status.HTTP_200_OK
    )
    response.headers["Location"] = f"/v1/sessions/{ensured.session.session_id}"
    return SessionView.from_domain(ensured.session, opened=ensured.opened, backend_up=ensured.backend_up)


@router.put(
    "/sessions/{session_id}",
    response_model=SessionView,
    responses={201: {"model": SessionView, "description": "Made"}, **_ENSURE_PROBLEMS},
)
async def ensure_session(
    session_id: SessionPath, body: EnsureBody, caller: Prompter, rooms: RoomsDep, response: Response
) -> SessionView:
    """Ensure a session: 201 if it was made, 200 if it was there, with the same backend agent."""
    return _ensured(await rooms.ensuring.ensure(caller, body.to_domain(SessionId(session_id))), response)


@router.post(
    "/sessions",
    response_model=SessionView,
    responses={201: {"model": SessionView, "description": "Made"}, **_ENSURE_PROBLEMS},
)
async def ensure_session_by_chat(
    body: EnsureByChatBody, caller: Prompter, rooms: RoomsDep, response: Response
) -> SessionView:
    """Ensure a session by its natural key `(chat_id, agent)`; an id is made if none is given."""
    return _ensured(await rooms.ensuring.ensure(caller, body.to_domain()), response)


@router.get("/sessions", responses=problems(InvalidCursor, ValidationFailed))
async def list_sessions(
    caller: Reader,
    rooms: RoomsDep,
    chat_id: FilterText = None,
    project_id: FilterText = None,
    backend: FilterText = None,
    agent: FilterText = None,
    status: SessionStatus | None = None,
    activity: Activity | None = None,
    label: Annotated[str | None, Query(max_length=400, pattern="^[^:\x00]+:[^\x00]*$")] = None,
    limit: ListLimit = 50,
    cursor: ListCursor = None,
) -> SessionList:
    """The owner's sessions, newest first. `label` is `key:value`."""
    key, _, value = (label or "").partition(":")
    page, down = await rooms.sessions.list_sessions(
        caller.owner,
        equal={
            "chat_id": chat_id,
            "project_id": project_id,
            "backend": backend,
            "agent": agent,
            "status": status,
        },
        activity=activity,
        label=(key, value) if label else None,
        limit=limit,
        cursor=cursor,
    )
    items = [SessionView.from_domain(s, backend_up=s.backend not in down) for s in page.items]
    return SessionList(items=items, next_cursor=page.next_cursor)


@router.get("/sessions/{session_id}", responses=problems(SessionNotFound))
async def get_session(session_id: SessionPath, caller: Reader, rooms: RoomsDep) -> SessionView:
    """The session as it stands."""
    found = await rooms.sessions.get(caller.owner, SessionId(session_id))
    return SessionView.from_domain(found.session, backend_up=found.backend_up)


@router.patch(
    "/sessions/{session_id}",
    responses=problems(
        SessionNotFound,
        SessionIsClosed,
        UnsupportedByBackend,
        BackendIsDown,
        BackendFailed,
        Forbidden,
        Draining,
    ),
)
async def change_session(
    session_id: SessionPath, body: PatchSession, caller: Prompter, rooms: RoomsDep
) -> SessionView:
    """Change settings; the answer shows what is in force at the backend."""
    await rooms.sessions.change(caller, SessionId(session_id), body.to_domain())
    return await get_session(session_id, caller, rooms)


@router.get("/sessions/{session_id}/snapshot", responses=problems(SessionNotFound))
async def snapshot_session(session_id: SessionPath, caller: Reader, rooms: RoomsDep) -> SnapshotView:
    """One consistent read: the session, its turns, and what the open turn (else the last) has said."""
    found = await rooms.sessions.snapshot(caller.owner, SessionId(session_id))
    return SnapshotView.from_domain(
        found.session,
        backend_up=found.backend_up,
        current_turn=found.current_turn,
        queue=found.queue,
        pending_permissions=found.pending_permissions,
        items=found.items,
    )


@router.get(
    "/sessions/{session_id}/diff",
    responses=problems(SessionNotFound, UnsupportedByBackend, PathNotAllowed, RateLimited, BackendIsDown),
)
async def diff_session(session_id: SessionPath, caller: Reader, rooms: RoomsDep) -> DiffView:
    """The working tree's diff, where its files are on this machine and in a git repository."""
    return DiffView.from_domain(await rooms.diffs.of(caller.owner, SessionId(session_id)))


@router.post(
    "/sessions/{session_id}/close",
    response_model=ClosedSessionView,
    responses={
        202: {"model": ClosedSessionView, "description": "Closing, once the open turn has ended"},
        **problems(SessionNotFound),
    },
)
async def close_session(
    session_id: SessionPath,
    caller: Prompter,
    rooms: RoomsDep,
    response: Response,
    body: CloseBody | None = None,
) -> ClosedSessionView:
    """Close the session and archive its agent. Repeating it is harmless."""
    mode = (body or CloseBody()).to_domain()
    session, closed = await rooms.sessions.close(caller.owner, SessionId(session_id), mode)
    response.status_code = status.HTTP_200_OK if closed else status.HTTP_202_ACCEPTED
    found = await rooms.sessions.get(caller.owner, SessionId(session_id))
    return ClosedSessionView.from_domain(session, backend_up=found.backend_up)


@router.delete("/sessions/{session_id}", status_code=204, responses=problems(SessionNotFound, BackendIsDown))
async def erase_session(session_id: SessionPath, caller: Prompter, rooms: RoomsDep) -> None:
    """Close the session, then erase its log; the same id made again goes on counting where it stopped."""
    await rooms.sessions.erase(caller.owner, SessionId(session_id))


@router.get(
    "/sessions/{session_id}/events",
    responses=problems(SessionNotFound, InvalidCursor, ValidationFailed),
    response_model=EventPage,
)
async def read_events(
    session_id: SessionPath,
    caller: Reader,
    rooms: RoomsDep,
    after: PageAfter = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    types: Types = None,
    deltas: Deltas = True,
) -> Response:
    """A page of the log, ascending, each event as it stands on the stream's `data:` line."""
    cursor = parse_cursor(None, after, None)
    since = cursor if isinstance(cursor, int) else None
    shown = Filter.parse(types, deltas=deltas)
    session, found = await rooms.sessions.events(
        caller.owner, SessionId(session_id), after=since, limit=limit
    )
    start = session.oldest_seq - 1 if since is None else since
    page = {
        "items": [msgspec.Raw(event.data.encode()) for event in found if shown.shows(event)],
        "next_after": found[-1].seq if found else start,
        "oldest_seq": session.oldest_seq,
        "last_seq": session.last_seq,
    }
    return Response(msgspec.json.encode(page), media_type="application/json")


@router.get(
    "/sessions/{session_id}/events/stream",
    response_class=Response,
    responses={
        **EVENT_STREAM_RESPONSES,
        **problems(SessionNotFound, InvalidCursor, ValidationFailed, TooManyStreams),
    },
)
async def follow_session(session_id: SessionPath, asked: StreamDep) -> Response:
    """Follow a session from the cursor on; the stream never misses and never repeats an event."""
    return await stream_session(asked, session_id)


@router.get(
    "/events/stream",
    response_class=Response,
    responses={**EVENT_STREAM_RESPONSES, **problems(InvalidCursor, ValidationFailed, TooManyStreams)},
)
async def follow_all(asked: StreamDep, project_id: FilterText = None) -> Response:
    """Follow what happens from now on in all of the owner's sessions; without ids, live only."""
    return await stream_owner(asked, project_id)
