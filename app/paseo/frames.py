"""What the daemon sends by itself: envelopes, and the stream of one agent.

A text frame is read in layers, each at most once: the envelope, whose agent or request it is, and only then,
if somebody wants it, what is in it.
"""

from typing import Any, TypeAlias

import msgspec

from app.paseo.decoding import Frame, Opaque, Position, Tagged, decode, readable
from app.paseo.items import Detail, Item, UnknownTool

_EMPTY = msgspec.Raw(b"{}")


class Message(Frame, frozen=True):
    """An answer or an event; everything of it is in `payload`, still as text."""

    type: str = ""
    payload: msgspec.Raw = _EMPTY


class Envelope(Frame, frozen=True):
    """The outermost frame: `session` has a message, `pong` has none."""

    type: str
    message: Message | None = None


def open_envelope(data: bytes) -> Envelope:
    """The envelope of a text frame; raises Undecodable."""
    try:
        return _ENVELOPES.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return decode(Envelope, readable(data))


class Label(Frame, frozen=True):
    """What tells whose answer or event a payload is."""

    request_id: str | None = None
    request_type: str | None = None
    status: str | None = None
    agent_id: str | None = None


class Failure(Frame, frozen=True):
    """The fields by which an answer says no."""

    error: Any = None
    code: str = "unknown"
    accepted: bool = True


class ServerInfo(Frame, frozen=True):
    """The daemon's greeting. `server_id` is stable over restarts: nothing here tells of a new process."""

    server_id: str
    hostname: str | None = None
    version: str | None = None
    features: dict[str, Any] = msgspec.field(default_factory=dict)


class PermissionRequest(Frame, frozen=True):
    """A question to a human. `id` is unique per agent only; `kind`: tool, plan, question, mode, other."""

    id: str
    provider: str = ""
    name: str = ""
    kind: str = "other"
    title: str | None = None
    description: str | None = None
    detail: Detail = UnknownTool()
    input: Any = None
    suggestions: list[Any] | None = None
    actions: list[dict[str, Any]] | None = None
    metadata: dict[str, Any] | None = None


class Resolution(Frame, frozen=True):
    """How a permission request ended: `allow` or `deny`, by anyone."""

    behavior: str = ""
    selected_action_id: str | None = None
    message: str | None = None
    interrupt: bool | None = None
    updated_input: Any = None


class Usage(Frame, frozen=True):
    """Tokens and cost, as far as the provider tells."""

    input_tokens: int | None = None
    cached_input_tokens: int | None = None
    output_tokens: int | None = None
    total_cost_usd: float | None = None
    context_window_max_tokens: int | None = None
    context_window_used_tokens: int | None = None


class ThreadStarted(Tagged, frozen=True, tag="thread_started"):
    """The provider has a session: after a load, and again with the first turn."""

    session_id: str | None = None


class TurnStarted(Tagged, frozen=True, tag="turn_started"):
    """A turn runs; some providers never say so. Newer daemons name the turn."""

    turn_id: str | None = None


class Timeline(Tagged, frozen=True, tag="timeline"):
    """A row; the only event with a `seq`, and the only one that can be read again."""

    item: Item


class TurnCompleted(Tagged, frozen=True, tag="turn_completed"):
    """The turn ended, also by a refusal or at the token limit."""

    usage: Usage | None = None
    turn_id: str | None = None


class TurnFailed(Tagged, frozen=True, tag="turn_failed"):
    """The turn failed."""

    error: str = ""
    code: str | None = None
    diagnostic: Any = None
    turn_id: str | None = None


class TurnCancelled(Tagged, frozen=True, tag="turn_canceled"):
    """The turn was broken off, by whomever."""

    reason: str = ""
    turn_id: str | None = None


class PermissionRequested(Tagged, frozen=True, tag="permission_requested"):
    """A permission request is pending."""

    request: PermissionRequest


class PermissionResolved(Tagged, frozen=True, tag="permission_resolved"):
    """One of them is resolved; this may come after the turn's end."""

    request_id: str
    resolution: Resolution = Resolution()


class AttentionRequired(Tagged, frozen=True, tag="attention_required"):
    """Somebody should look. Sticky: no signal of a turn's end."""

    reason: str = ""
    timestamp: str = ""


Event: TypeAlias = (
    ThreadStarted
    | TurnStarted
    | Timeline
    | TurnCompleted
    | TurnFailed
    | TurnCancelled
    | PermissionRequested
    | PermissionResolved
    | AttentionRequired
    | Opaque
)


class StreamFrame(Frame, frozen=True):
    """One event of one agent; a `Timeline` one stands at (`epoch`, `seq`)."""

    agent_id: str
    event: Event
    timestamp: str = ""
    seq: Position | None = None
    epoch: str | None = None


_ENVELOPES = msgspec.json.Decoder(Envelope)
