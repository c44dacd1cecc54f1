"""Routes of turns, and prompt-stream: ensure, prompt and follow in one call."""

import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from app.api.auth import Prompter, Reader
from app.api.openapi import EVENT_STREAM_RESPONSES
from app.api.problems import problems
from app.api.rooms import Rooms, RoomsDep
from app.api.schemas.turns import PromptBody, PromptStreamBody, TurnList, TurnView
from app.api.sessions import ListCursor, ListLimit, SessionPath
from app.api.sse import EventStream, encoded
from app.api.streams import StreamDep, stream_turn
from app.domain.errors import (
    BackendFailed,
    BackendIsDown,
    BackendNotFound,
    BackendSessionLost,
    DatabaseUnavailable,
    Draining,
    IdempotencyKeyReused,
    InvalidCursor,
    NoSuchProvider,
    PathNotAllowed,
    QueueFull,
    RequestInProgress,
    SessionBusy,
    SessionConflict,
    SessionExists,
    SessionIsClosed,
    SessionNotFound,
    TooManySessions,
    TooManyStreams,
    TurnNotEnded,
    TurnNotFound,
    TurnNotQueued,
    UnsupportedByBackend,
    ValidationFailed,
)
from app.domain.ids import SessionId, TurnId
from app.domain.keys import Principal
from app.domain.turns import Turn, TurnStatus
from app.engine.cursors import Filter
from app.engine.streams import StreamPlace
from app.engine.turns import Idempotency

router = APIRouter(prefix="/v1", tags=["turns"])

TurnPath = Annotated[str, Path(pattern="^[A-Za-z0-9_-]{1,128}$")]
IdempotencyKey = Annotated[
    str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255, pattern=r"^[\x20-\x7e]+$")
]
Prefer = Annotated[str | None, Header(description="`wait=N`: up to N ≤ 60 seconds for the ended turn.")]

MAX_WAIT_S = 60
_ADMISSION = (
    SessionBusy,
    SessionIsClosed,
    BackendSessionLost,
    UnsupportedByBackend,
    QueueFull,
    Draining,
    BackendIsDown,
    IdempotencyKeyReused,
    RequestInProgress,
    TooManyStreams,
)
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"model": TurnView, "description": "Ended", **EVENT_STREAM_RESPONSES[200]},
    202: {"model": TurnView, "description": "Not ended yet"},
}


def _turn_answer(turn: Turn, *, replayed: bool = False, waited_s: int = 0) -> JSONResponse:
    view = TurnView.from_domain(turn)
    headers = {"Location": f"/v1/turns/{turn.id}"}
    if replayed:
        headers["Idempotent-Replayed"] = "true"
    if waited_s:
        headers["Preference-Applied"] = f"wait={waited_s}"  # RFC 7240, 3
    return JSONResponse(
        view.model_dump(mode="json"), status_code=200 if turn.is_ended else 202, headers=headers
    )


def _wants_stream(request: Request) -> bool:
    return "text/event-stream" in request.headers.get("accept", "")


def _wait(prefer: str | None) -> int:
    found = re.search(r"(?:^|[,;\s])wait\s*=\s*(\d{1,6})", prefer or "", re.IGNORECASE)
    return min(int(found[1]), MAX_WAIT_S) if found else 0


Admit = Callable[[], Awaitable[tuple[Turn, bool]]]
"""Admits a prompt, or finds it admitted before."""


async def _answer(rooms: Rooms, caller: Principal, admit: Admit, *, stream: bool, wait_s: int) -> Response:
    """Admit a prompt, and answer in the form that was asked for."""
    if stream:
        place = rooms.streams.take(caller)  # before anything is admitted
        try:
            turn, replayed = await admit()
            return await _stream_answer(rooms, caller, turn, place, replayed=replayed)
        except BaseException:
            place.give_back()
            raise
    turn, replayed = await admit()
    if wait_s:
        with suppress(DatabaseUnavailable):  # it is admitted, whatever becomes of the wait
            turn = await rooms.turns.wait(caller.owner, turn.id, wait_s)
    return _turn_answer(turn, replayed=replayed, waited_s=wait_s)


async def _stream_answer(
    rooms: Rooms, caller: Principal, turn: Turn, place: StreamPlace, *, replayed: bool
) -> EventStream:
    """The turn's own stream as the answer of the prompt: the same events as on its GET."""
    following = await rooms.feed.open_turn(caller.owner, turn.id, "start", Filter(turn=turn.id))
    check, version = rooms.keys.check(caller), rooms.feed.keys_version
    steps = rooms.feed.follow(following, check, keys_version=version, rotates=False)
    headers = {"Location": f"/v1/turns/{turn.id}", "Content-Location": f"/v1/turns/{turn.id}/events/stream"}
    if replayed:
        headers["Idempotent-Replayed"] = "true"

    async def lost() -> None:
        if not rooms.lifecycle.leaving:
            rooms.turns.cancel_soon(caller.owner, turn.id, "disconnect")

    return EventStream(
        encoded(steps, following.session_id),
        headers=headers,
        send_timeout_s=rooms.send_timeout_s,
        counted=place,
        on_lost=lost if turn.request.on_disconnect == "cancel" else None,
    )


def idempotency_of(
    key: str | None, route: str, subject: str | None, body: BaseModel | None = None
) -> Idempotency | None:
    """The key of a request to this route, about that session or turn; null if the caller gave none."""
    if key is None:
        return None
    content = body.model_dump(mode="json", exclude_unset=True) if body is not None else {}
    return Idempotency.of(key, route, subject, content)


@router.post(
    "/sessions/{session_id}/turns",
    response_model=TurnView,
    responses={**_ANSWERS, **problems(SessionNotFound, *_ADMISSION)},
)
async def prompt_session(
    session_id: SessionPath,
    body: PromptBody,
    caller: Prompter,
    rooms: RoomsDep,
    request: Request,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Admit a prompt: 202 once its `turn.queued` is committed, or as `Prefer` or `Accept` ask."""
    key = idempotency_of(idempotency_key, "turns", session_id, body)

    async def admit() -> tuple[Turn, bool]:
        return await rooms.turns.admit(caller.owner, SessionId(session_id), body.to_domain(), key)

    return await _answer(rooms, caller, admit, stream=_wants_stream(request), wait_s=_wait(prefer))


@router.post(
    "/prompt-stream",
    response_class=Response,
    responses={
        **EVENT_STREAM_RESPONSES,
        **problems(
            SessionConflict,
            SessionExists,
            BackendNotFound,
            NoSuchProvider,
            PathNotAllowed,
            TooManySessions,
            BackendFailed,
            *_ADMISSION,
        ),
    },
)
async def prompt_stream(
    body: PromptStreamBody, caller: Prompter, rooms: RoomsDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Ensure a session, prompt it and stream the turn; the stream ends after the terminal event."""
    key = idempotency_of(idempotency_key, "prompt-stream", body.session_id, body)

    async def admit() -> tuple[Turn, bool]:
        earlier = await rooms.turns.earlier(caller.owner, key) if key is not None else None
        if earlier is not None:
            return earlier, True
        ensured = await rooms.ensuring.ensure(caller, body.ensure())
        return await rooms.turns.admit(caller.owner, ensured.session.session_id, body.prompt(), key)

    return await _answer(rooms, caller, admit, stream=True, wait_s=0)


@router.get("/sessions/{session_id}/turns", responses=problems(SessionNotFound, InvalidCursor))
async def list_turns(
    session_id: SessionPath,
    caller: Reader,
    rooms: RoomsDep,
    status: TurnStatus | None = None,
    limit: ListLimit = 50,
    cursor: ListCursor = None,
) -> TurnList:
    """The session's turns, newest first: history and queue."""
    page = await rooms.turns.list_turns(
        caller.owner, SessionId(session_id), status=status, limit=limit, cursor=cursor
    )
    return TurnList(items=[TurnView.from_domain(turn) for turn in page.items], next_cursor=page.next_cursor)


@router.get("/turns/{turn_id}", responses=problems(TurnNotFound))
async def get_turn(turn_id: TurnPath, caller: Reader, rooms: RoomsDep) -> TurnView:
    """The turn as it stands."""
    return TurnView.from_domain(await rooms.turns.get(caller.owner, TurnId(turn_id)))


@router.get(
    "/turns/{turn_id}/wait",
    response_model=TurnView,
    responses={202: {"model": TurnView, "description": "Not ended yet"}, **problems(TurnNotFound)},
)
async def wait_for_turn(
    turn_id: TurnPath,
    caller: Reader,
    rooms: RoomsDep,
    timeout_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 30,
) -> Response:
    """Wait for the turn's end: 200 once it has ended, 202 if it has not."""
    return _turn_answer(await rooms.turns.wait(caller.owner, TurnId(turn_id), timeout_s))


@router.get(
    "/turns/{turn_id}/events/stream",
    response_class=Response,
    responses={
        **EVENT_STREAM_RESPONSES,
        **problems(TurnNotFound, InvalidCursor, ValidationFailed, TooManyStreams),
    },
)
async def follow_turn(turn_id: TurnPath, asked: StreamDep) -> Response:
    """Follow one turn from the cursor on; ends after its terminal event."""
    return await stream_turn(asked, turn_id)


@router.post(
    "/turns/{turn_id}/cancel",
    response_model=TurnView,
    responses={202: {"model": TurnView, "description": "Still being stopped"}, **problems(TurnNotFound)},
)
async def cancel_turn(turn_id: TurnPath, caller: Prompter, rooms: RoomsDep) -> Response:
    """Have the turn stopped, the agent's process ended if need be; an ended turn stays as it is."""
    return _turn_answer(await rooms.turns.cancel(caller.owner, TurnId(turn_id)))


@router.delete("/turns/{turn_id}", status_code=204, responses=problems(TurnNotFound, TurnNotQueued))
async def dequeue_turn(turn_id: TurnPath, caller: Prompter, rooms: RoomsDep) -> None:
    """Take a queued turn out of the queue; it stays readable."""
    await rooms.turns.dequeue(caller.owner, TurnId(turn_id))


@router.post(
    "/turns/{turn_id}/retry",
    response_model=TurnView,
    responses={**_ANSWERS, **problems(TurnNotFound, TurnNotEnded, *_ADMISSION)},
)
async def retry_turn(
    turn_id: TurnPath,
    caller: Prompter,
    rooms: RoomsDep,
    request: Request,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Admit a new turn with the same prompt and limits: the caller's own decision to run it again."""
    key = idempotency_of(idempotency_key, "retry", turn_id)

    async def admit() -> tuple[Turn, bool]:
        return await rooms.turns.retry(caller.owner, TurnId(turn_id), key)

    return await _answer(rooms, caller, admit, stream=_wants_stream(request), wait_s=_wait(prefer))
