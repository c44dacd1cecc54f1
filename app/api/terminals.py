"""Routes of terminals; all of them need the scope `terminal`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response

from app.api.auth import TerminalUser
from app.api.problems import problems
from app.api.rooms import RoomsDep
from app.api.schemas.terminals import (
    CaptureView,
    CreateTerminalBody,
    InputBody,
    ResizeBody,
    SearchAllView,
    SearchView,
    TerminalList,
    TerminalView,
    capture_json,
)
from app.api.sessions import FilterText, ListCursor, ListLimit, SessionPath
from app.api.streams import TerminalStreamDep, stream_terminal
from app.api.terminal_frames import TERMINAL_STREAM_RESPONSES
from app.domain.errors import (
    BackendFailed,
    BackendIsDown,
    Draining,
    InvalidCursor,
    PathNotAllowed,
    RateLimited,
    SessionIsClosed,
    SessionNotFound,
    TerminalNotFound,
    TooManyStreams,
    TooManyTerminals,
    UnsupportedByBackend,
)
from app.domain.ids import SESSION_ID_PATTERN, SessionId, TerminalId
from app.domain.search import MAX_CONTEXT, MAX_MATCHES, MAX_QUERY
from app.domain.search import Query as SearchQuery
from app.domain.terminals import TerminalStatus

router = APIRouter(prefix="/v1", tags=["terminals"])

TerminalPath = Annotated[str, Path(pattern="^[A-Za-z0-9_-]{1,128}$")]
"""A terminal by its id, in a path."""
LineNumber = Annotated[int | None, Query(ge=-1_000_000, le=1_000_000)]
"""A line of a capture from 0 on; negative ones count from the end."""


def _query(
    q: Annotated[str, Query(min_length=1, max_length=MAX_QUERY, pattern="^[^\x00]*$")],
    regex: Annotated[bool, Query(description="Whether `q` is a regular expression of RE2's syntax.")] = False,
    ignore_case: bool = False,
    context: Annotated[int, Query(ge=0, le=MAX_CONTEXT, description="Lines before and after.")] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_MATCHES)] = 50,
) -> SearchQuery:
    return SearchQuery(text=q, regex=regex, ignore_case=ignore_case, context=context, limit=limit)


SearchDep = Annotated[SearchQuery, Depends(_query)]
_USE = problems(TerminalNotFound, BackendIsDown, BackendFailed)
"""What using an open terminal may be refused for."""
_READ = problems(TerminalNotFound, BackendIsDown, BackendFailed, RateLimited)
"""What reading its text may be refused for."""


@router.get("/sessions/{session_id}/terminals", responses=problems(SessionNotFound, InvalidCursor))
async def list_terminals(
    session_id: SessionPath,
    caller: TerminalUser,
    rooms: RoomsDep,
    status: TerminalStatus | None = None,
    limit: ListLimit = 50,
    cursor: ListCursor = None,
) -> TerminalList:
    """The session's terminals that were made through us, newest first."""
    page = await rooms.terminals.list_terminals(
        caller.owner, SessionId(session_id), status=status, limit=limit, cursor=cursor
    )
    return TerminalList(
        items=[TerminalView.from_domain(one) for one in page.items], next_cursor=page.next_cursor
    )


@router.post(
    "/sessions/{session_id}/terminals",
    status_code=201,
    responses=problems(
        SessionNotFound,
        SessionIsClosed,
        UnsupportedByBackend,
        PathNotAllowed,
        TooManyTerminals,
        BackendFailed,
        BackendIsDown,
        Draining,
    ),
)
async def create_terminal(
    session_id: SessionPath,
    caller: TerminalUser,
    rooms: RoomsDep,
    response: Response,
    body: CreateTerminalBody | None = None,
) -> TerminalView:
    """Make a terminal in the session's directory; it ends with the session."""
    spec = (body or CreateTerminalBody()).to_domain()
    made = await rooms.terminals.create(caller.owner, SessionId(session_id), spec)
    response.headers["Location"] = f"/v1/terminals/{made.id}"
    return TerminalView.from_domain(made)


@router.get("/terminals/search", responses=problems(SessionNotFound, RateLimited, Draining))
async def search_terminals(
    caller: TerminalUser,
    rooms: RoomsDep,
    query: SearchDep,
    session_id: Annotated[str | None, Query(pattern=SESSION_ID_PATTERN)] = None,
    project_id: FilterText = None,
) -> SearchAllView:
    """Search in the owner's open terminals, the newest first; `limit` counts the matches of all."""
    return SearchAllView.from_answers(
        await rooms.terminal_search.search_all(
            caller.owner,
            query,
            session_id=SessionId(session_id) if session_id is not None else None,
            project_id=project_id,
        )
    )


@router.get("/terminals/{terminal_id}", responses=problems(TerminalNotFound))
async def get_terminal(terminal_id: TerminalPath, caller: TerminalUser, rooms: RoomsDep) -> TerminalView:
    """The terminal as it stands."""
    return TerminalView.from_domain(await rooms.terminals.get(caller.owner, TerminalId(terminal_id)))


@router.delete("/terminals/{terminal_id}", status_code=204, responses=_USE)
async def kill_terminal(terminal_id: TerminalPath, caller: TerminalUser, rooms: RoomsDep) -> None:
    """End the terminal with what runs in it. Repeating it is harmless."""
    await rooms.terminals.kill(caller.owner, TerminalId(terminal_id))


@router.get(
    "/terminals/{terminal_id}/output/stream",
    response_class=Response,
    responses={
        **TERMINAL_STREAM_RESPONSES,
        **problems(TerminalNotFound, InvalidCursor, TooManyStreams, BackendIsDown),
    },
)
async def follow_terminal(terminal_id: TerminalPath, asked: TerminalStreamDep) -> Response:
    """Follow the terminal's raw output from a position of its ring on."""
    return await stream_terminal(asked, terminal_id)


@router.post("/terminals/{terminal_id}/input", status_code=204, responses=_USE)
async def type_into_terminal(
    terminal_id: TerminalPath, body: InputBody, caller: TerminalUser, rooms: RoomsDep
) -> None:
    """Type into the terminal, as a keyboard would: Enter is a carriage return."""
    await rooms.terminals.write(caller.owner, TerminalId(terminal_id), body.data)


@router.post("/terminals/{terminal_id}/resize", responses=_USE)
async def resize_terminal(
    terminal_id: TerminalPath, body: ResizeBody, caller: TerminalUser, rooms: RoomsDep
) -> TerminalView:
    """Change the terminal's size."""
    found = await rooms.terminals.resize(caller.owner, TerminalId(terminal_id), body.rows, body.cols)
    return TerminalView.from_domain(found)


@router.get(
    "/terminals/{terminal_id}/capture",
    response_model=CaptureView,
    responses=_READ,
)
async def capture_terminal(
    terminal_id: TerminalPath,
    caller: TerminalUser,
    rooms: RoomsDep,
    start: LineNumber = None,
    end: LineNumber = None,
    ansi: bool = False,
) -> Response:
    """Lines of the scrollback and the screen, `end` included; with `ansi` in colour."""
    body = await rooms.terminal_captures.capture(
        caller.owner, TerminalId(terminal_id), start=start, end=end, ansi=ansi, write=capture_json
    )
    return Response(body, media_type="application/json")


@router.get(
    "/terminals/{terminal_id}/search",
    responses=problems(TerminalNotFound, BackendIsDown, BackendFailed, RateLimited, Draining),
)
async def search_terminal(
    terminal_id: TerminalPath, caller: TerminalUser, rooms: RoomsDep, query: SearchDep
) -> SearchView:
    """Search in the newest output, or in a capture where that reaches further back."""
    return SearchView.from_domain(
        await rooms.terminal_search.search(caller.owner, TerminalId(terminal_id), query)
    )
