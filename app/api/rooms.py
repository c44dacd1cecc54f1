"""What routes need: the use-cases, joined once by `app.main` and found on the application's state."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.engine.collisions import Collisions
from app.engine.diffs import Diffs
from app.engine.ensuring import Ensuring
from app.engine.feed import Feed
from app.engine.health import Healths
from app.engine.keys import Keys
from app.engine.lifecycle import Lifecycle
from app.engine.metrics import Metrics
from app.engine.permissions import Permissions
from app.engine.sessions import Sessions
from app.engine.streams import Streams
from app.engine.tasks import Tasks
from app.engine.terminal_captures import TerminalCaptures
from app.engine.terminal_search import TerminalSearch
from app.engine.terminal_streams import TerminalStreams
from app.engine.terminals import Terminals
from app.engine.turns import Turns


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """Every use-case of the service."""

    sessions: Sessions
    ensuring: Ensuring
    diffs: Diffs
    turns: Turns
    tasks: Tasks
    permissions: Permissions
    collisions: Collisions
    terminals: Terminals
    terminal_captures: TerminalCaptures
    terminal_search: TerminalSearch
    terminal_streams: TerminalStreams
    feed: Feed
    streams: Streams
    keys: Keys
    healths: Healths
    metrics: Metrics
    lifecycle: Lifecycle
    version: str
    embedded: bool
    send_timeout_s: float


def rooms(request: Request) -> Rooms:
    """The use-cases of the application that answers `request`."""
    found: Rooms = request.app.state.rooms
    return found


RoomsDep = Annotated[Rooms, Depends(rooms)]
"""The use-cases, as a route asks for them."""
