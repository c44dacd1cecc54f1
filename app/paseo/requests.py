"""Requests that wait for their answers, and how long each kind may wait.

A request is on record before it is written, and forgotten when its caller leaves. Whether it was written
decides what its failure means.
"""

from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import Any, TypeVar

import anyio
import msgspec

from app.paseo.decoding import decode
from app.paseo.errors import LinkLost, NotSent, PaseoError, Refused, RpcError, Timeout
from app.paseo.frames import Failure, Message, Resolution

T = TypeVar("T")

DEADLINES: Mapping[str, float] = {
    "agent_permission_response": 5.0,
    "archive_agent_request": 15.0,
    "cancel_agent_request": 5.0,
    "capture_terminal_request": 15.0,
    "clear_agent_attention": 5.0,
    "create_agent_request": 60.0,
    "create_terminal_request": 15.0,
    "delete_agent_request": 15.0,
    "fetch_agent_history_request": 10.0,
    "fetch_agent_request": 10.0,
    "fetch_agent_timeline_request": 30.0,
    "fetch_agents_request": 10.0,
    "get_providers_snapshot_request": 10.0,
    "import_agent_request": 60.0,
    "kill_terminal_request": 15.0,
    "list_commands_request": 15.0,
    "list_provider_models_request": 60.0,
    "list_provider_modes_request": 60.0,
    "list_terminals_request": 15.0,
    "open_project_request": 10.0,
    "ping": 5.0,
    "refresh_agent_request": 30.0,
    "refresh_providers_snapshot_request": 10.0,
    "send_agent_message_request": 20.0,
    "set_agent_feature_request": 15.0,
    "set_agent_mode_request": 15.0,
    "set_agent_model_request": 15.0,
    "set_agent_thinking_request": 15.0,
    "subscribe_terminal_request": 15.0,
    "update_agent_request": 10.0,
}
"""Seconds for each kind of request that this client makes, and the list of them: whoever is connected may do
everything, also stop the daemon, so nothing else is ever sent. The daemon itself sets no limits, and several
kinds are not answered at all when they fail."""

NOTICES = frozenset({"terminal_input", "unsubscribe_terminal_request"})
"""Messages that never have an answer."""

Write = Callable[[bytes, Callable[[], None]], Awaitable[None]]
"""Puts a frame on the socket and calls its second argument right before."""


class Pending:
    """One request on its way."""

    def __init__(self, on_answer: Callable[[Message], None] | None = None) -> None:
        self.done = anyio.Event()
        self.is_written = False
        self.on_answer = on_answer
        """Runs in the reader, before anything later is read."""
        self.message: Message | None = None
        self.failure: PaseoError | None = None

    def answer(self, message: Message) -> None:
        """The answer came; a second one changes nothing."""
        if not self.done.is_set():
            self.message = message
            if self.on_answer is not None:
                self.on_answer(message)
            self.done.set()

    def fail(self, failure: PaseoError) -> None:
        """No answer will come."""
        if not self.done.is_set():
            self.failure = failure
            self.done.set()


class Requests:
    """All requests of one client. Their ids are unique in it, also over its reconnects."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._numbers = count(1)
        self._pending: dict[str, Pending] = {}
        self._permissions: dict[str, tuple[str, Pending]] = {}

    async def ask(
        self,
        kind: str,
        fields: Mapping[str, Any],
        into: type[T],
        *,
        deadline: float | None = None,
        before_write: Callable[[], None] | None = None,
        on_answer: Callable[[Message], None] | None = None,
    ) -> T:
        """Ask, and read the answer's payload as an `into`.

        `before_write` runs when nothing stands between it and the socket; what it raises stops the request.

        Raises:
            NotSent, Timeout, LinkLost, Refused, RpcError, Undecodable: as `errors` has them.
        """
        request_id, pending = f"r{next(self._numbers)}", Pending(on_answer)
        self._pending[request_id] = pending
        try:
            text = session_message(kind, {"requestId": request_id, **fields})
            with anyio.move_on_after(DEADLINES[kind] if deadline is None else deadline):
                return await self._exchange(text, pending, into, before_write)
        finally:
            del self._pending[request_id]
        raise _too_late(kind, pending)

    async def resolve(self, agent_id: str, permission_id: str, response: Any) -> Resolution:
        """Answer a permission request. There is no reply but the resolution itself, which may be another's.

        Permission ids are unique per agent only, and a failure names no agent: the same id waits its turn.
        """
        kind, pending = "agent_permission_response", Pending()
        fields = {"agentId": agent_id, "requestId": permission_id, "response": response}
        text = session_message(kind, fields)
        with anyio.move_on_after(DEADLINES[kind]):
            while permission_id in self._permissions:
                await self._permissions[permission_id][1].done.wait()
            self._permissions[permission_id] = (agent_id, pending)
            try:
                return await self._exchange(text, pending, Resolution, None)
            finally:
                pending.done.set()
                del self._permissions[permission_id]
        raise _too_late(kind, pending)

    def on_answer(self, request_id: str, message: Message) -> bool:
        """Hand an answer to its request; False when nobody waits for it (any more)."""
        pending = self._pending.get(request_id)
        if pending is not None:
            pending.answer(message)
        return pending is not None

    def on_failure(self, request_id: str, failure: PaseoError) -> None:
        """Fail one request."""
        if request_id in self._pending:
            self._pending[request_id].fail(failure)

    def on_permission_refused(self, permission_id: str, message: Message) -> None:
        """An answer to a permission request was refused."""
        if permission_id in self._permissions:
            self._permissions[permission_id][1].answer(message)

    def on_resolved(self, agent_id: str, permission_id: str, resolution: msgspec.Raw) -> None:
        """A permission request was resolved, by us or by somebody else."""
        owner, pending = self._permissions.get(permission_id, ("", None))
        if pending is not None and owner == agent_id:
            pending.answer(Message("agent_permission_resolved", resolution))

    def on_link_lost(self, lost: LinkLost) -> None:
        """Fail all of them: what was not written did not happen, the rest nobody knows."""
        permissions = [pending for _, pending in self._permissions.values()]
        for pending in [*self._pending.values(), *permissions]:
            pending.fail(lost if pending.is_written else NotSent(str(lost)))

    async def _exchange(
        self, text: bytes, pending: Pending, into: type[T], before_write: Callable[[], None] | None
    ) -> T:
        def on_write() -> None:
            if before_write is not None:
                before_write()
            pending.is_written = True

        await self._write(text, on_write)
        await pending.done.wait()
        if pending.failure is not None:
            raise pending.failure
        assert pending.message is not None
        _check(pending.message)
        return decode(into, pending.message.payload)


def session_message(kind: str, fields: Mapping[str, Any]) -> bytes:
    """The text of a message of ours.

    Raises:
        NotSent: it has a lone surrogate or another value that is no JSON.
    """
    assert kind in DEADLINES or kind in NOTICES, kind
    try:
        return msgspec.json.encode({"type": "session", "message": {"type": kind, **fields}})
    except (TypeError, ValueError) as error:
        raise NotSent(f"this cannot be said in JSON: {error}") from None


def _check(message: Message) -> None:
    failure = decode(Failure, message.payload)
    text = failure.error if isinstance(failure.error, str) else ""
    if message.type == "rpc_error":
        raise RpcError(failure.code, text)
    if failure.error or not failure.accepted:
        raise Refused(text or "refused without a reason")


def _too_late(kind: str, pending: Pending) -> PaseoError:
    if pending.is_written:
        return Timeout(f"the daemon did not answer {kind} in time")
    return NotSent(f"{kind} could not be written in time")
