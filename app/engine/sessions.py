"""Sessions: ensured, listed, changed, closed, erased."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog

from app.backends.registry import Registry
from app.domain.errors import (
    BackendIsDown,
    Draining,
    Forbidden,
    SessionIsClosed,
    UnsupportedByBackend,
)
from app.domain.events import Event, SessionUpdated
from app.domain.ids import Owner, Seq, SessionId, SessionKey
from app.domain.items import Item, fold
from app.domain.keys import Principal
from app.domain.permissions import Permission
from app.domain.sessions import (
    CloseMode,
    Ensured,
    Session,
    SessionChange,
)
from app.domain.turns import Turn
from app.engine.intents import raise_described, wait_for
from app.engine.lifecycle import Lifecycle
from app.store import eventlog, health, intents, permissions, sessions, tasks, turns
from app.store.database import Database, Transaction
from app.store.paging import Page

log = structlog.get_logger(__name__)

WAIT_S = 30.0
"""Seconds that a change or a close waits for the session's host before the answer says "not yet"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One consistent read of a session."""

    session: Session
    backend_up: bool
    current_turn: Turn | None
    queue: list[Turn]
    pending_permissions: list[Permission]
    items: list[Item]


class Sessions:
    """The use-cases on sessions, within the caller's owner."""

    def __init__(self, database: Database, registry: Registry, lifecycle: Lifecycle) -> None:
        self._database = database
        self._registry = registry
        self._lifecycle = lifecycle
        self.on_closed: list[Callable[[SessionKey], Awaitable[None]]] = []
        """Awaited after a session was closed through this process; never raises, and never for long."""

    # Read.

    async def get(self, owner: Owner, session_id: SessionId) -> Ensured:
        """The session, and whether its backend is up.

        Raises:
            SessionNotFound: it is missing, somebody else's, or still being made.
        """
        async with self._database.begin() as db:
            session = await sessions.get(db, owner, session_id)
            up = await is_up(self._registry, db, session.backend)
        return Ensured(session=session, opened="reused", backend_up=up)

    async def list_sessions(
        self,
        owner: Owner,
        *,
        equal: Mapping[str, str | None],
        activity: str | None,
        label: tuple[str, str] | None,
        limit: int,
        cursor: str | None,
    ) -> tuple[Page[Session], set[str]]:
        """A page of the owner's sessions, newest first, and the names of the backends that are down."""
        async with self._database.begin() as db:
            page = await sessions.list_sessions(
                db, owner, equal=equal, activity=activity, label=label, limit=limit, cursor=cursor
            )
            down = {
                name
                for name in {session.backend for session in page.items}
                if not await is_up(self._registry, db, name)
            }
        return page, down

    async def events(
        self, owner: Owner, session_id: SessionId, *, after: Seq | None, limit: int
    ) -> tuple[Session, list[eventlog.Logged]]:
        """A page of the session's log, from the oldest event on if `after` is null, and where it stands."""
        async with self._database.snapshot() as db:
            session = await sessions.get(db, owner, session_id)
            start = eventlog.before(session.oldest_seq) if after is None else after
            return session, await eventlog.read_page(db, session.key, after=start, limit=limit)

    async def snapshot(self, owner: Owner, session_id: SessionId) -> Snapshot:
        """One consistent read of the session, its turns and what they said."""
        async with self._database.snapshot() as db:
            session = await sessions.get(db, owner, session_id)
            open_turns = await turns.open_turns(db, session.key)
            current = next((turn for turn in open_turns if turn.started_at is not None), None)
            shown = current or await turns.last_turn(db, session.key)
            items: list[Item] = []
            if shown is not None:
                rows = [row async for row in eventlog.read_turn(db, session.key, shown)]
                items = fold((row.type, row.turn_id, row.data) for row in rows)
            return Snapshot(
                session=session,
                backend_up=await is_up(self._registry, db, session.backend),
                current_turn=current,
                queue=[turn for turn in open_turns if turn.started_at is None],
                pending_permissions=await permissions.waiting(db, session.key),
                items=items,
            )

    # Change, close, erase.

    async def change(self, caller: Principal, session_id: SessionId, change: SessionChange) -> Session:
        """Change settings; what is in force at the backend afterwards is what the session shows.

        Raises:
            UnsupportedByBackend: the backend has no such setting or value.
            SessionIsClosed: it is not active.
        """
        if change.permission_policy is not None and change.permission_policy.needs_admin:
            require_admin(caller)
        at_backend = {
            name: value
            for name in ("model", "mode", "thinking", "title")
            if (value := getattr(change, name)) is not None
        }
        number: UUID | None = None
        async with self._database.begin() as db:
            session = await sessions.lock_owned(db, caller.owner, session_id)
            if session.status != "active":
                raise SessionIsClosed
            backend = self._registry.get(session.backend)
            if at_backend.keys() - {"title"}:
                if backend is None or not backend.capabilities.settings:
                    raise UnsupportedByBackend(detail=f"{session.backend} has no settings to change")
                number = await intents.write(db, session.key, "configure", at_backend)
        if number is not None:  # first the part that may be refused: a refusal changes nothing
            intent = await wait_for(self._database, self._lifecycle, session.key, number, WAIT_S)
            if intent is None and self._lifecycle.draining:
                raise Draining
            if intent is None:
                raise BackendIsDown(detail="the session's host has not answered yet")
            if intent.error is not None:
                raise_described(intent.error)
        async with self._database.begin() as db:
            session = await sessions.lock_owned(db, caller.owner, session_id)
            await self._change_here(db, session, change)
            return await sessions.get(db, caller.owner, session_id)

    async def _change_here(self, db: Transaction, session: Session, change: SessionChange) -> None:
        """What is ours to change: title, labels, policy."""
        changed: dict[str, Any] = {}
        columns: dict[str, Any] = {}
        if change.title is not None and change.title != session.title:
            changed["title"] = columns["title"] = change.title
        if change.labels is not None and dict(change.labels) != dict(session.labels):
            changed["labels"] = columns["labels"] = dict(change.labels)
        policy = change.permission_policy
        if policy is not None and policy != session.policy:
            changed["permission_policy"] = {
                "mode": policy.mode,
                "timeout_s": policy.timeout_s,
                "on_timeout": policy.on_timeout,
            }
            columns |= {
                "policy_mode": policy.mode,
                "policy_timeout_s": policy.timeout_s,
                "policy_on_timeout": policy.on_timeout,
            }
        if changed:
            await sessions.change(db, session.key, **columns)
            await log_event(db, session.key, session.session_id, SessionUpdated(changed=changed))
            if policy is not None:
                await sessions.want(db, session.key)

    async def close(
        self, owner: Owner, session_id: SessionId, mode: CloseMode, *, reason: str = "caller"
    ) -> tuple[Session, bool]:
        """Close the session; false if it still waits for its open turn. Repeating it is harmless."""
        async with self._database.begin() as db:
            session = await sessions.lock_owned(db, owner, session_id)
            if session.status == "closed":
                return session, True
            if session.status == "active" or mode == "cancel":
                await sessions.change(db, session.key, status="closing", close_mode=mode)
                await tasks.request_cancel(db, session.key)
            body = {"mode": mode, "reason": reason}
            same = [one for one in await intents.pending(db, session.key) if one.body == body]
            number = same[0].id if same else await intents.write(db, session.key, "close", body)
            running = session.current_turn_id is not None
        if not (mode == "drain" and running):
            await wait_for(self._database, self._lifecycle, session.key, number, WAIT_S)
        async with self._database.begin() as db:
            session = await sessions.get(db, owner, session_id)
        if session.status == "closed":
            for call in self.on_closed:
                await call(session.key)
        return session, session.status == "closed"

    async def erase(self, owner: Owner, session_id: SessionId) -> None:
        """Close the session, then erase its log; a session of that id made again counts on.

        Raises:
            BackendIsDown: it could not be closed in time; nothing was erased.
        """
        _, closed = await self.close(owner, session_id, "cancel", reason="deleted")
        if not closed:
            raise BackendIsDown(detail="the session is still closing; delete it again")
        async with self._database.begin() as db:
            session = await sessions.lock_owned(db, owner, session_id)
            if session.status != "closed":
                raise BackendIsDown(detail="the session was opened again meanwhile; delete it again")
            await sessions.bury(db, owner, session_id, session.last_seq)
            await sessions.erase(db, session.key)
            await sessions.want(db, session.key)
        log.info("session_erased", session_id=session_id)


async def is_up(registry: Registry, db: Transaction, backend: str) -> bool:
    """Whether any replica saw the backend up lately; one that is no longer configured is down."""
    seen = await health.is_up(db, backend)
    return seen is not False and (seen is True or registry.get(backend) is not None)


async def log_event(db: Transaction, key: SessionKey, session_id: SessionId, event: Event) -> None:
    """Log what happened to a session outside any turn."""
    await eventlog.record(db, key, eventlog.draft(session_id, None, event))


def require_admin(caller: Principal) -> None:
    """Refuse a caller without the scope `admin`."""
    if "admin" not in caller.scopes:
        raise Forbidden(scope="admin")
