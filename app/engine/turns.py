"""Turns: admitted, read, waited for, cancelled, tried again."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec
import structlog
from anyio.abc import TaskGroup

from app.backends.registry import Registry
from app.domain.errors import (
    BackendIsDown,
    BackendSessionLost,
    Draining,
    IdempotencyKeyReused,
    QueueFull,
    RequestInProgress,
    SessionBusy,
    SessionIsClosed,
    TurnNotEnded,
    TurnNotFound,
    UnsupportedByBackend,
    ValidationFailed,
)
from app.domain.events import CancelCause, TurnCancelled, TurnQueued
from app.domain.ids import Owner, SessionId, TurnId, new_turn_id
from app.domain.sessions import Session
from app.domain.turns import PromptRequest, Turn, TurnStatus
from app.engine.ending import end_queued
from app.engine.lifecycle import Lifecycle
from app.engine.waiting import look_until
from app.store import eventlog, health, sessions, turns
from app.store.database import Database, Transaction
from app.store.paging import Page
from app.store.turns import Admitted

log = structlog.get_logger(__name__)

CANCEL_S = 10.0
"""Seconds that a cancel waits for the turn's end before the answer says "not yet"."""


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A caller's Idempotency-Key, and the hash of the request that it stands for."""

    key: str
    request_sha256: bytes

    @classmethod
    def of(cls, key: str, route: str, session_id: str | None, body: Mapping[str, Any]) -> "Idempotency":
        """The key for this route, session and body; the body's key order does not matter."""
        canonical = msgspec.json.encode([route, session_id, body], order="sorted")
        return cls(key, hashlib.sha256(canonical).digest())


class Turns:
    """The use-cases on turns, within the caller's owner."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        lifecycle: Lifecycle,
        *,
        tasks: TaskGroup,
        turns_per_owner: int,
        queue_per_session: int,
        prompt_bytes: int,
        attachments: int,
    ) -> None:
        self._database = database
        self._registry = registry
        self._lifecycle = lifecycle
        self._tasks = tasks
        self._turns_per_owner = turns_per_owner
        self._queue_per_session = queue_per_session
        self._prompt_bytes = prompt_bytes
        self._attachments = attachments

    async def admit(
        self,
        owner: Owner,
        session_id: SessionId,
        request: PromptRequest,
        idempotency: Idempotency | None = None,
    ) -> tuple[Turn, bool]:
        """Admit a prompt, durably: its `turn.queued` is committed. The flag says "this was a repeat".

        Raises:
            SessionBusy, SessionIsClosed, BackendSessionLost, QueueFull, Draining, BackendIsDown: not now.
            IdempotencyKeyReused, RequestInProgress: the key stands for something else, or for one under way.
        """
        self._check_size(request)
        async with self._database.begin() as db:
            if idempotency is not None:
                earlier = await self.earlier_in(db, owner, idempotency)
                if earlier is not None:
                    return earlier, True
            if self._lifecycle.draining:
                raise Draining
            session = await sessions.lock_owned(db, owner, session_id)
            open_turns = await turns.open_turns(db, session.key)
            await self.check(db, session, request, open_turns)
            turn_id = new_turn_id()
            running = [turn for turn in open_turns if turn.started_at is not None]
            at_head = request.multitask_strategy == "interrupt"
            position = len(running) if at_head else len(open_turns)
            queued = eventlog.draft(session.session_id, turn_id, TurnQueued(position=position))
            first = await eventlog.record(db, session.key, queued)
            await turns.make(db, session.key, turn_id, request, first_seq=first, at_head=at_head)
            if at_head and running:
                await turns.request_cancel(db, running[0].id, "interrupt")
            if idempotency is not None:
                await turns.keep_admitted(
                    db, owner, idempotency.key, Admitted(idempotency.request_sha256, turn_id)
                )
            await sessions.want(db, session.key)
            turn = await turns.get(db, owner, turn_id)
        log.info("turn_admitted", turn_id=turn_id, session_id=session_id)
        return turn, False

    def _check_size(self, request: PromptRequest) -> None:
        for what, size, most in (
            ("prompt", len(request.prompt.encode()), self._prompt_bytes),
            ("attachments", len(request.attachments), self._attachments),
        ):
            if size > most:
                error = {"loc": ["body", what], "msg": f"at most {most}", "type": "too_long"}
                raise ValidationFailed(errors=[error])

    async def earlier(self, owner: Owner, idempotency: Idempotency) -> Turn | None:
        """The turn that this key admitted before.

        Raises:
            IdempotencyKeyReused, RequestInProgress: as `admit`.
        """
        async with self._database.begin() as db:
            return await self.earlier_in(db, owner, idempotency)

    async def earlier_in(self, db: Transaction, owner: Owner, idempotency: Idempotency) -> Turn | None:
        """The same within a transaction, which holds the key until it ends."""
        if not await turns.claim_idempotency_key(db, owner, idempotency.key):
            raise RequestInProgress
        admitted = await turns.find_admitted(db, owner, idempotency.key)
        if admitted is None:
            return None
        if admitted.request_sha256 != idempotency.request_sha256:
            raise IdempotencyKeyReused
        return await turns.get(db, owner, admitted.turn_id)

    async def check(
        self, db: Transaction, session: Session, request: PromptRequest, open_turns: list[Turn]
    ) -> None:
        """Whether the session, whose row is locked, takes the prompt now.

        Raises:
            SessionBusy, SessionIsClosed, BackendSessionLost, UnsupportedByBackend, QueueFull, Draining,
            BackendIsDown: it does not.
        """
        if session.status != "active":
            raise SessionIsClosed
        if session.agent_lost:
            raise BackendSessionLost
        if session.backend in await health.drains(db):
            raise Draining
        backend = self._registry.get(session.backend)
        if backend is None:
            raise BackendIsDown(detail=f"{session.backend} is not configured any more")
        for part in request.attachments:
            if part["type"] not in backend.capabilities.attachments:
                raise UnsupportedByBackend(detail=f"{session.backend} takes no {part['type']} attachments")
        if request.multitask_strategy == "reject":
            if open_turns or session.foreign_busy:
                raise SessionBusy(open_turn_id=open_turns[0].id if open_turns else None)
            if await health.is_up(db, session.backend) is False:
                raise BackendIsDown(detail=f"{session.backend} does not answer")
        await turns.lock_owner(db, session.owner)  # so that the bound holds for admissions at the same moment
        if len(open_turns) >= self._queue_per_session:
            raise QueueFull
        if await turns.count_open(db, session.owner) >= self._turns_per_owner:
            raise QueueFull

    async def get(self, owner: Owner, turn_id: TurnId) -> Turn:
        """The turn.

        Raises:
            TurnNotFound: it is missing or somebody else's.
        """
        async with self._database.begin() as db:
            return await turns.get(db, owner, turn_id)

    async def list_turns(
        self,
        owner: Owner,
        session_id: SessionId,
        *,
        status: TurnStatus | None,
        limit: int,
        cursor: str | None,
    ) -> Page[Turn]:
        """A page of the session's turns, newest first."""
        async with self._database.begin() as db:
            session = await sessions.get(db, owner, session_id)
            return await turns.list_turns(db, session.key, status=status, limit=limit, cursor=cursor)

    async def wait(self, owner: Owner, turn_id: TurnId, timeout_s: float) -> Turn:
        """The turn once it has ended, or as it stands after that time."""
        turn = await self.get(owner, turn_id)
        seen = await look_until(
            partial(self.get, owner, turn_id),
            lambda now: now.is_ended,
            session=turn.session,
            bell=self._database.bell,
            lifecycle=self._lifecycle,
            timeout_s=timeout_s,
            poll_s=2.0,
        )
        return seen or turn

    async def request_cancel(self, owner: Owner, turn_id: TurnId, cause: CancelCause) -> None:
        """Have the turn stopped, without waiting for its end; an ended turn is left as it is."""
        async with self._database.begin() as db:
            turn = await _locked(db, owner, turn_id)
            if turn.status is TurnStatus.QUEUED:
                await end_queued(db, turn, TurnCancelled(cause=cause, cancel_outcome=None))
            elif not turn.is_ended:
                await turns.request_cancel(db, turn_id, cause)
            if not turn.is_ended:
                await sessions.want(db, turn.session)

    def cancel_soon(self, owner: Owner, turn_id: TurnId, cause: CancelCause) -> None:
        """Have the turn stopped by a task of the process, which waits for a database that is away."""
        self._tasks.start_soon(self._cancel_whatever_happens, owner, turn_id, cause)

    async def _cancel_whatever_happens(self, owner: Owner, turn_id: TurnId, cause: CancelCause) -> None:
        with suppress(TurnNotFound):
            await self._database.retrying(partial(self.request_cancel, owner, turn_id, cause))

    async def cancel(self, owner: Owner, turn_id: TurnId, cause: CancelCause = "caller") -> Turn:
        """Have the turn stopped, and wait a while for its end."""
        before = await self.get(owner, turn_id)
        if before.is_ended:
            return replace(before, cancel_outcome=before.cancel_outcome or "already_ended")
        await self.request_cancel(owner, turn_id, cause)
        turn = await self.wait(owner, turn_id, CANCEL_S)
        if turn.status is TurnStatus.INDETERMINATE:
            return replace(turn, cancel_outcome="unconfirmed")
        if turn.is_ended and turn.started_at is not None and turn.cancel_outcome is None:
            return replace(turn, cancel_outcome="already_ended")  # its own end was faster
        return turn

    async def dequeue(self, owner: Owner, turn_id: TurnId) -> None:
        """Take a queued turn out of the queue; it stays readable.

        Raises:
            TurnNotQueued: it has started, or ended.
        """
        async with self._database.begin() as db:
            turn = await _locked(db, owner, turn_id)
            await end_queued(db, turn, TurnCancelled(cause="caller", cancel_outcome=None))
            await sessions.want(db, turn.session)

    async def retry(
        self, owner: Owner, turn_id: TurnId, idempotency: Idempotency | None = None
    ) -> tuple[Turn, bool]:
        """Admit a new turn with the same prompt and limits.

        Raises:
            TurnNotEnded: it is still open.
        """
        turn = await self.get(owner, turn_id)
        if not turn.is_ended:
            raise TurnNotEnded
        async with self._database.begin() as db:
            attachments = await turns.attachments(db, turn_id)
        again = replace(turn.request, attachments=attachments, retry_of=turn.id)
        return await self.admit(owner, turn.session_id, again, idempotency)


async def _locked(db: Transaction, owner: Owner, turn_id: TurnId) -> Turn:
    """The owner's turn as it stands once its session's row is locked."""
    turn = await turns.get(db, owner, turn_id)
    await sessions.lock(db, turn.session)
    return await turns.get(db, owner, turn_id)
