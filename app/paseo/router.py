"""Every frame that arrives, to whom it concerns; nothing here ever waits.

An event of an agent that nobody follows is recognised by its agent's id and not read any further.
"""

import re
from collections.abc import Callable

import msgspec
import structlog

from app.paseo.decoding import Frame, decode
from app.paseo.errors import Undecodable
from app.paseo.frames import Label, Message, ServerInfo, StreamFrame, open_envelope
from app.paseo.requests import Requests
from app.paseo.snapshots import AgentUpdate, Providers
from app.paseo.subscriptions import AgentChanged, AgentRemoved, FrameDropped, Mailbox, Subscriptions
from app.paseo.terminals import Terminals

BLAME = 2048
"""Bytes at the beginning of an unreadable frame that are searched for whom it was meant."""

_AGENT_ID = re.compile(rb'"agentId"\s*:\s*"([^"\\]{1,200})"')
_EVENT = re.compile(rb'"agent_(stream|update|permission)')
_REQUEST_ID = re.compile(rb'"requestId"\s*:\s*"([^"\\]{1,200})"')

_IGNORED = frozenset(
    {
        "agent_permission_request",  # its twin in the stream is told
        "checkout_status_update",  # has a made-up request id
        "terminals_changed",
    }
)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class _Key(Frame, frozen=True):
    id: str = ""


class _Updated(Frame, frozen=True):
    agent: _Key | None = None
    agent_id: str | None = None


class _Resolved(Frame, frozen=True):
    agent_id: str
    request_id: str
    resolution: msgspec.Raw = msgspec.Raw(b"{}")


class _Exit(Frame, frozen=True):
    terminal_id: str


class _Log(Frame, frozen=True):
    type: str = ""
    content: str = ""


class Router:
    """The way from the socket to requests, subscriptions, terminals and the waiters for providers."""

    def __init__(
        self,
        requests: Requests,
        subscriptions: Subscriptions,
        terminals: Terminals,
        on_greeting: Callable[[ServerInfo], None],
    ) -> None:
        self.providers: list[Mailbox[Providers]] = []
        """Who waits for a change of the list of providers; otherwise it is not read."""
        self._requests = requests
        self._subscriptions = subscriptions
        self._terminals = terminals
        self._on_greeting = on_greeting

    def on_frame(self, data: bytes) -> None:
        """Take one frame. One that cannot be read costs itself, never the link."""
        try:
            if data[:1] != b"{":
                self._terminals.on_binary(data)
            elif (message := open_envelope(data).message) is not None:
                self._on_message(message, len(data))
        except Undecodable as error:
            self._drop(data, str(error))
        except Exception:
            log.exception("paseo_frame_failed", bytes=len(data))
            self._drop(data, "a fault of this client")

    def _on_message(self, message: Message, size: int) -> None:
        match message.type:
            case "agent_stream":
                self._on_stream(message.payload, size)
            case "agent_update":
                self._on_update(message.payload, size)
            case "agent_permission_resolved":
                found = decode(_Resolved, message.payload)
                self._requests.on_resolved(found.agent_id, found.request_id, found.resolution)
            case "terminal_stream_exit":
                self._terminals.on_exit(decode(_Exit, message.payload).terminal_id)
            case "providers_snapshot_update":
                for box in self.providers:
                    box.put(decode(Providers, message.payload))
            case "activity_log":
                said = decode(_Log, message.payload)
                if said.type == "error":
                    log.info("paseo_activity", content=said.content[:300])
            case kind if kind not in _IGNORED:
                self._on_answer(message)

    def _on_stream(self, payload: msgspec.Raw, size: int) -> None:
        agent_id = decode(Label, payload).agent_id
        if agent_id is not None and self._subscriptions.has(agent_id):
            self._subscriptions.tell(agent_id, decode(StreamFrame, payload), size)

    def _on_update(self, payload: msgspec.Raw, size: int) -> None:
        key = decode(_Updated, payload)
        agent_id = key.agent.id if key.agent is not None else key.agent_id
        if agent_id is None or not self._subscriptions.has(agent_id):
            return
        update = decode(AgentUpdate, payload)
        if update.agent is not None:
            self._subscriptions.tell(agent_id, AgentChanged(agent=update.agent), size)
        elif update.kind == "remove":
            self._subscriptions.tell(agent_id, AgentRemoved())

    def _on_answer(self, message: Message) -> None:
        label = decode(Label, message.payload)
        if message.type == "status" and label.status == "server_info":
            self._on_greeting(decode(ServerInfo, message.payload))
        elif message.type == "status" and label.status == "error":
            log.warning("paseo_message_refused")
        elif label.request_id is None:
            log.debug("paseo_event_ignored", kind=message.type)
        elif message.type == "rpc_error" and label.request_type == "agent_permission_response":
            self._requests.on_permission_refused(label.request_id, message)
        elif not self._requests.on_answer(label.request_id, message):
            log.debug("paseo_answer_ignored", kind=message.type)

    def _drop(self, data: bytes, reason: str) -> None:
        """Say what is lost to whom it was meant for, as far as its beginning tells; else to everybody."""
        log.warning("paseo_frame_dropped", bytes=len(data), reason=reason)
        beginning = bytes(data[:BLAME])
        is_event = _EVENT.search(beginning) is not None  # what an agent put there must fail no request
        if not is_event and (asked := _REQUEST_ID.search(beginning)):
            self._requests.on_failure(asked[1].decode("utf-8", "replace"), Undecodable(reason))
        if (meant := _AGENT_ID.search(beginning)) is not None:
            self._subscriptions.tell(meant[1].decode("utf-8", "replace"), FrameDropped(reason=reason))
        else:
            self._subscriptions.tell_all(FrameDropped(reason=reason))
