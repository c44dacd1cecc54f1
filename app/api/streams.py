"""The stream routes' common part: who opens it, from which cursor, and what a refusal looks like."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Query, Request, Response

from app.api.auth import Credentials, address
from app.api.rooms import Rooms, RoomsDep
from app.api.sse import EventStream, encoded, refusal
from app.domain.errors import (
    DatabaseUnavailable,
    DomainError,
    Draining,
    Forbidden,
    TooManyStreams,
)
from app.domain.ids import SessionId, TurnId
from app.domain.keys import Principal
from app.engine.feed import OWNER_DEFAULT, Cursor, FeedStep, Filter, Following, parse_cursor
from app.engine.keys import Pass

LastEventId = Annotated[str | None, Header(description="The last `id` seen: the stream goes on after it.")]
After = Annotated[str | None, Query(description="The same as Last-Event-ID, which comes first.")]
StartingAfter = Annotated[str | None, Query(description="The same as `after`.")]
From = Annotated[str | None, Query(alias="from", pattern="^(start|now)$", description="Where to begin.")]
Types = Annotated[str | None, Query(description="Comma list of event types; `turn.*` is all of a noun.")]
Deltas = Annotated[bool, Query(description="False leaves out `*.delta`.")]
TicketQuery = Annotated[str | None, Query(description="A stream ticket, in place of the API key.")]

_PASSING: dict[type[DomainError], str] = {
    Draining: "draining",
    DatabaseUnavailable: "database_unavailable",
    TooManyStreams: "too_many_streams",
}


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """A request for a stream, before anything was looked up."""

    rooms: Rooms
    request: Request
    principal: Principal | None
    """Whoever holds the key; null where a ticket is used."""
    ticket: str | None
    cursor: Cursor
    types: str | None
    deltas: bool


async def _key_holder(
    request: Request, rooms: RoomsDep, credentials: Credentials, ticket: TicketQuery = None
) -> Principal | None:
    if ticket is not None:
        return None
    token = credentials.credentials if credentials else None
    principal = await rooms.keys.authenticate(token, address(request))
    if "read" not in principal.scopes:
        raise Forbidden(scope="read")
    return principal


async def _stream_request(
    request: Request,
    rooms: RoomsDep,
    principal: Annotated[Principal | None, Depends(_key_holder)],
    last_event_id: LastEventId = None,
    after: After = None,
    starting_after: StartingAfter = None,
    from_: From = None,
    types: Types = None,
    deltas: Deltas = True,
    ticket: TicketQuery = None,
) -> StreamRequest:
    return StreamRequest(
        rooms=rooms,
        request=request,
        principal=principal,
        ticket=ticket,
        cursor=parse_cursor(last_event_id, after if after is not None else starting_after, from_),
        types=types,
        deltas=deltas,
    )


StreamDep = Annotated[StreamRequest, Depends(_stream_request)]


@dataclass(frozen=True, slots=True)
class Opener:
    """Whoever opens a stream, by key or by ticket."""

    principal: Principal
    used: Pass | None = None


async def _admit(asked: StreamRequest, target: str) -> Opener:
    """Find out who asks; refuse what may not be opened now."""
    if asked.principal is not None:
        opener = Opener(asked.principal)
    else:
        used = await asked.rooms.keys.redeem(asked.ticket or "", target, address(asked.request))
        opener = Opener(used.principal, used)
    if asked.rooms.lifecycle.draining:
        raise Draining
    asked.rooms.streams.check(opener.principal)
    return opener


def _refused(asked: StreamRequest, error: DomainError) -> Response:
    """With a ticket, a passing refusal is a stream that says so and ends; else the problem."""
    reason = _PASSING.get(type(error))
    if asked.ticket is None or reason is None:
        raise error
    return EventStream(refusal(reason))


async def stream_session(asked: StreamRequest, session_id: str) -> Response:
    """The stream of one session."""
    try:
        opener = await _admit(asked, f"session:{session_id}")
        following = await asked.rooms.feed.open_session(
            opener.principal.owner,
            SessionId(session_id),
            asked.cursor,
            Filter.parse(asked.types, deltas=asked.deltas),
        )
    except (Draining, DatabaseUnavailable, TooManyStreams) as error:
        return _refused(asked, error)
    return _answer(asked.rooms, opener, following)


async def stream_turn(asked: StreamRequest, turn_id: str) -> Response:
    """The stream of one turn."""
    try:
        opener = await _admit(asked, f"turn:{turn_id}")
        following = await asked.rooms.feed.open_turn(
            opener.principal.owner,
            TurnId(turn_id),
            asked.cursor,
            Filter.parse(asked.types, deltas=asked.deltas, turn=TurnId(turn_id)),
        )
    except (Draining, DatabaseUnavailable, TooManyStreams) as error:
        return _refused(asked, error)
    return _answer(asked.rooms, opener, following)


async def stream_owner(asked: StreamRequest, project_id: str | None) -> Response:
    """The live stream over all of the owner's sessions."""
    try:
        opener = await _admit(asked, "all")
    except (Draining, DatabaseUnavailable, TooManyStreams) as error:
        return _refused(asked, error)
    shown = (
        Filter.parse(asked.types, deltas=asked.deltas)
        if asked.types is not None
        else Filter(types=OWNER_DEFAULT, deltas=asked.deltas)
    )
    rooms = asked.rooms
    steps = rooms.feed.follow_owner(
        opener.principal.owner, project_id, shown, rooms.keys.check(opener.principal, opener.used)
    )
    return _respond(rooms, opener, steps, None)


def _answer(rooms: Rooms, opener: Opener, following: Following) -> Response:
    if following.is_at_end:
        return Response(status_code=204, headers={"Cache-Control": "no-store"})
    steps = rooms.feed.follow(following, rooms.keys.check(opener.principal, opener.used))
    return _respond(rooms, opener, steps, following.session_id)


def _respond(
    rooms: Rooms, opener: Opener, steps: AsyncGenerator[FeedStep], session_id: str | None
) -> EventStream:
    used = opener.used

    async def ended() -> None:
        if used is not None:
            await rooms.keys.ended(used)

    return EventStream(
        encoded(steps, session_id),
        send_timeout_s=rooms.send_timeout_s,
        counted=rooms.streams.counted(opener.principal),
        on_end=ended,
    )
