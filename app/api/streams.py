"""The stream routes' common part: who opens it, from which cursor, and what a refusal looks like."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Query, Request, Response

from app.api.auth import Credentials, address, any_caller
from app.api.rooms import Rooms, RoomsDep
from app.api.sse import EventStream, encoded, refusal
from app.api.terminal_frames import encoded_terminal
from app.domain.errors import (
    DatabaseUnavailable,
    DomainError,
    Draining,
    Forbidden,
    TooManyStreams,
)
from app.domain.ids import Owner, SessionId, TerminalId, TurnId
from app.domain.keys import Principal, Scope
from app.engine.cursors import OWNER_DEFAULT, Cursor, Filter, Following, parse_cursor
from app.engine.keys import Pass
from app.engine.streams import Patience, StreamPlace
from app.engine.terminal_streams import Beginning, parse_position

LastEventId = Annotated[str | None, Header(description="The last `id` seen: the stream goes on after it.")]
TerminalLastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="The last `id` seen, `<ring>.<offset>`.")
]
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
class Asked:
    """A request for any stream, before anything was looked up."""

    rooms: Rooms
    request: Request
    holder: "KeyHolder"
    ticket: str | None


@dataclass(frozen=True, slots=True)
class StreamRequest(Asked):
    """A request for a stream of events."""

    cursor: Cursor
    types: str | None
    deltas: bool


@dataclass(frozen=True, slots=True)
class KeyHolder:
    """Whoever holds the key; `principal` is null where a ticket is used."""

    principal: Principal | None
    patience: Patience
    keys_version: int
    """What the feed knew of the keys before anybody was recognised: a later change is looked at."""


def _key_holder(scope: Scope) -> Callable[..., Awaitable[KeyHolder]]:
    """A dependency: whoever holds a key with `scope`, or a ticket."""

    async def holder(
        request: Request, rooms: RoomsDep, credentials: Credentials, ticket: TicketQuery = None
    ) -> KeyHolder:
        patience, version = Patience(), rooms.feed.keys_version
        if ticket is not None:
            return KeyHolder(None, patience, version)
        principal = await patience.wait_for(lambda: any_caller(request, rooms, credentials))
        if scope not in principal.scopes:
            raise Forbidden(scope=scope)
        return KeyHolder(principal, patience, version)

    return holder


async def _stream_request(
    request: Request,
    rooms: RoomsDep,
    holder: Annotated[KeyHolder, Depends(_key_holder("read"))],
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
        holder=holder,
        ticket=ticket,
        cursor=parse_cursor(last_event_id, after if after is not None else starting_after, from_),
        types=types,
        deltas=deltas,
    )


StreamDep = Annotated[StreamRequest, Depends(_stream_request)]


@dataclass(frozen=True, slots=True)
class TerminalStreamRequest(Asked):
    """A request for a terminal's output."""

    begin: Beginning


async def _terminal_stream_request(
    request: Request,
    rooms: RoomsDep,
    holder: Annotated[KeyHolder, Depends(_key_holder("terminal"))],
    last_event_id: TerminalLastEventId = None,
    after: After = None,
    from_: From = None,
    ticket: TicketQuery = None,
) -> TerminalStreamRequest:
    return TerminalStreamRequest(
        rooms=rooms,
        request=request,
        holder=holder,
        ticket=ticket,
        begin=parse_position(last_event_id, after, from_),
    )


TerminalStreamDep = Annotated[TerminalStreamRequest, Depends(_terminal_stream_request)]


@dataclass(frozen=True, slots=True)
class Opener:
    """Whoever opens a stream, by key or by ticket."""

    principal: Principal
    place: StreamPlace
    used: Pass | None = None


async def _admit(asked: Asked, target: str) -> Opener:
    """Find out who asks; refuse what may not be opened now. A ticket is not used up by a refusal."""
    keys, holder = asked.rooms.keys, asked.holder
    principal, used = holder.principal, None
    if principal is None:
        ticket = asked.ticket or ""
        used = await holder.patience.wait_for(lambda: keys.redeem(ticket, target, address(asked.request)))
        principal = used.principal
    if asked.rooms.lifecycle.draining:
        raise Draining
    return Opener(principal, asked.rooms.streams.take(principal), used)


def _refused(asked: Asked, error: DomainError) -> Response:
    """With a ticket, a passing refusal is a stream that says so and ends; else the problem."""
    reason = _PASSING.get(type(error))
    if asked.ticket is None or reason is None:
        raise error
    return EventStream(refusal(reason))


async def stream_session(asked: StreamRequest, session_id: str) -> Response:
    """The stream of one session."""
    shown = Filter.parse(asked.types, deltas=asked.deltas)

    async def follow(owner: Owner) -> Following:
        return await asked.rooms.feed.open_session(owner, SessionId(session_id), asked.cursor, shown)

    return await _open(asked, f"session:{session_id}", follow)


async def stream_turn(asked: StreamRequest, turn_id: str) -> Response:
    """The stream of one turn."""
    shown = Filter.parse(asked.types, deltas=asked.deltas, turn=TurnId(turn_id))

    async def follow(owner: Owner) -> Following:
        return await asked.rooms.feed.open_turn(owner, TurnId(turn_id), asked.cursor, shown)

    return await _open(asked, f"turn:{turn_id}", follow)


async def stream_owner(asked: StreamRequest, project_id: str | None) -> Response:
    """The live stream over all of the owner's sessions."""
    shown = (
        Filter.parse(asked.types, deltas=asked.deltas)
        if asked.types is not None
        else Filter(types=OWNER_DEFAULT, deltas=asked.deltas)
    )
    rooms = asked.rooms

    async def open_all(opener: Opener) -> Response:
        check = rooms.keys.check(opener.principal, opener.used)
        owner, version = opener.principal.owner, asked.holder.keys_version
        steps = rooms.feed.follow_owner(owner, project_id, shown, check, version)
        await _use(asked, opener)
        return _respond(rooms, opener, encoded(steps, None))

    return await _opened(asked, "all", open_all)


async def stream_terminal(asked: TerminalStreamRequest, terminal_id: str) -> Response:
    """The output of one terminal."""
    rooms = asked.rooms

    async def open_found(opener: Opener) -> Response:
        tail = await asked.holder.patience.wait_for(
            lambda: rooms.terminal_streams.open(opener.principal.owner, TerminalId(terminal_id), asked.begin)
        )
        if tail is None:
            opener.place.give_back()
            return Response(status_code=204, headers={"Cache-Control": "no-store"})
        opener.place.keep(tail.release)
        await _use(asked, opener)
        check = rooms.keys.check(opener.principal, opener.used)
        steps = rooms.terminal_streams.follow(tail, check, keys_version=asked.holder.keys_version)
        return _respond(rooms, opener, encoded_terminal(steps, terminal_id))

    return await _opened(asked, f"terminal:{terminal_id}", open_found)


async def _open(
    asked: StreamRequest, target: str, follow: Callable[[Owner], Awaitable[Following]]
) -> Response:
    """Open the stream that `follow` finds; identifying, finding and opening share one patience."""
    rooms = asked.rooms

    async def open_found(opener: Opener) -> Response:
        following = await asked.holder.patience.wait_for(lambda: follow(opener.principal.owner))
        if following.is_at_end:
            opener.place.give_back()
            return Response(status_code=204, headers={"Cache-Control": "no-store"})
        await _use(asked, opener)
        check = rooms.keys.check(opener.principal, opener.used)
        steps = rooms.feed.follow(following, check, keys_version=asked.holder.keys_version)
        return _respond(rooms, opener, encoded(steps, following.session_id))

    return await _opened(asked, target, open_found)


async def _opened(asked: Asked, target: str, open_it: Callable[[Opener], Awaitable[Response]]) -> Response:
    """The answer to a request for a stream; its place is given back if it is not opened after all."""
    try:
        opener = await _admit(asked, target)
        try:
            return await open_it(opener)
        except BaseException:
            opener.place.give_back()
            raise
    except (Draining, DatabaseUnavailable, TooManyStreams) as error:
        return _refused(asked, error)


async def _use(asked: Asked, opener: Opener) -> None:
    """From here on nothing refuses the stream: an older one of the same ticket is superseded."""
    used = opener.used
    if used is not None:
        await asked.holder.patience.wait_for(lambda: asked.rooms.keys.use(used))


def _respond(rooms: Rooms, opener: Opener, content: AsyncGenerator[bytes]) -> EventStream:
    used = opener.used

    async def ended() -> None:
        if used is not None:
            await rooms.keys.ended(used)

    return EventStream(
        content,
        send_timeout_s=rooms.send_timeout_s,
        counted=opener.place,
        on_end=ended,
    )
