"""Sessions: ensured, listed, changed, closed, erased."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog

from app.backends.base import Backend, BackendUnavailable, Provider
from app.backends.registry import Registry
from app.domain.errors import (
    BackendIsDown,
    BackendNotFound,
    Draining,
    Forbidden,
    NoSuchProvider,
    SessionConflict,
    SessionExists,
    SessionIsClosed,
    SessionNotFound,
    TooManySessions,
    UnsupportedByBackend,
)
from app.domain.events import Event, SessionOpened, SessionUpdated
from app.domain.ids import Owner, Seq, SessionId, SessionKey, new_session_id
from app.domain.items import Item, fold
from app.domain.keys import Principal
from app.domain.permissions import Permission
from app.domain.sessions import (
    CloseMode,
    Ensured,
    EnsureRequest,
    PermissionPolicy,
    Session,
    SessionChange,
)
from app.domain.turns import Turn
from app.engine.intents import raise_described, wait_for
from app.engine.lifecycle import Lifecycle
from app.engine.paths import check_requested
from app.store import eventlog, health, intents, permissions, sessions, turns
from app.store.database import Database, Transaction
from app.store.paging import Page

log = structlog.get_logger(__name__)

WAIT_S = 30.0
"""Seconds that a change or a close waits for the session's host before the answer says "not yet"."""
ENSURE_ROUNDS = 2
"""How often an ensure looks again when its session vanishes under it."""


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

    def __init__(
        self,
        database: Database,
        registry: Registry,
        lifecycle: Lifecycle,
        *,
        ensure_s: float,
        sessions_per_owner: int,
    ) -> None:
        self._database = database
        self._registry = registry
        self._lifecycle = lifecycle
        self._ensure_s = ensure_s
        self._sessions_per_owner = sessions_per_owner

    # Ensure.

    async def ensure(self, caller: Principal, request: EnsureRequest) -> Ensured:
        """The session that the request describes: found, opened again, re-bound or made, with its agent.

        Raises:
            SessionConflict, SessionExists, SessionIsClosed: it is there, but not so.
            PathNotAllowed, NoSuchProvider, UnsupportedByBackend, BackendNotFound: it cannot be made so.
            BackendIsDown, BackendFailed: the backend did not make the agent.
        """
        if request.permission_policy is not None and request.permission_policy.needs_admin:
            _require_admin(caller)
        if request.provider_session_id is not None:
            _require_admin(caller)
        for _ in range(ENSURE_ROUNDS):
            async with self._database.begin() as db:
                found = await self._find(db, caller.owner, request)
            made = found is None
            if found is None:
                found, made = await self._make(caller, request)
            with suppress(SessionNotFound):  # it was erased, or its creation failed, while we waited
                return await self._open(caller, request, found, made=made)
        raise BackendIsDown(detail="the session was made and removed again meanwhile; try again")

    async def _find(self, db: Transaction, owner: Owner, request: EnsureRequest) -> Session | None:
        """The row that the request is about, checked against it."""
        by_id = await sessions.find(db, owner, request.session_id) if request.session_id else None
        chat_id = request.chat_id or (None if by_id else request.session_id)
        by_chat = await sessions.find_by_chat(db, owner, chat_id, request.agent) if chat_id else None
        if by_id is not None:
            if by_chat is not None and by_chat.key != by_id.key:
                raise SessionConflict(fields=["chat_id"], detail="session_id and chat_id name two sessions")
            fields = [
                name
                for name in ("agent", "chat_id")
                if getattr(request, name) not in (None, getattr(by_id, name))
            ]
            if fields:
                raise SessionConflict(fields=fields)
        return by_id or by_chat

    async def _make(self, caller: Principal, request: EnsureRequest) -> tuple[Session, bool]:
        """Insert the row, or find the one that somebody else inserted at the same moment."""
        backend = self._backend_for(request)
        self._refuse_unsupported(backend, request)
        if self._lifecycle.draining:
            raise Draining
        cwd = check_requested(request.cwd, backend.place)
        provider = await self._provider_for(backend, request)
        session_id = request.session_id or new_session_id()
        policy = request.permission_policy or PermissionPolicy()
        async with self._database.begin() as db:
            await turns.lock_owner(db, caller.owner)  # so that the bound holds for ensures at the same moment
            if await sessions.count_open(db, caller.owner) >= self._sessions_per_owner:
                raise TooManySessions
            key = await sessions.make(
                db,
                {
                    "owner": caller.owner,
                    "session_id": session_id,
                    "chat_id": request.chat_id or session_id,
                    "agent": request.agent,
                    "backend": backend.name,
                    "provider": provider,
                    "creation_key": sessions.new_creation_key(),
                    "requested_cwd": request.cwd,
                    "cwd": cwd,
                    "project_id": request.project_id,
                    "worktree_id": request.worktree_id,
                    "model": request.model,
                    "mode": request.mode,
                    "thinking": request.thinking,
                    "title": request.title,
                    "system_prompt": request.system_prompt,
                    "mcp_servers": dict(request.mcp_servers or {}),
                    "worktree": dict(request.worktree) if request.worktree else None,
                    "provider_session_id": request.provider_session_id,
                    "labels": dict(request.labels or {}),
                    "policy_mode": policy.mode,
                    "policy_timeout_s": policy.timeout_s,
                    "policy_on_timeout": policy.on_timeout,
                },
            )
            session = await sessions.by_key(db, key) if key is not None else None
            found = session or await self._find(db, caller.owner, request)
        if found is None:  # the other's row was gone again before we could read it
            raise BackendIsDown(detail="the session was being made and removed at the same moment; try again")
        return found, session is not None

    def _backend_for(self, request: EnsureRequest) -> Backend:
        name = request.backend
        if name is None:
            name = request.agent if self._registry.get(request.agent) else self._registry.default
        backend = self._registry.get(name)
        if backend is None:
            raise BackendNotFound(backend=name)
        return backend

    def _refuse_unsupported(self, backend: Backend, request: EnsureRequest) -> None:
        can = backend.capabilities
        for asked, offered, what in (
            (request.worktree, can.worktrees, "worktree"),
            (request.provider_session_id, can.imports, "provider_session_id"),
            (request.system_prompt, can.system_prompt, "system_prompt"),
            (request.mcp_servers, can.mcp_servers, "mcp_servers"),
            (request.model or request.mode or request.thinking, can.settings, "model, mode and thinking"),
        ):
            if asked and not offered:
                raise UnsupportedByBackend(detail=f"{backend.name} does not support {what}")
        for name, server in (request.mcp_servers or {}).items():
            if not isinstance(server, Mapping) or server.get("type") not in ("http", "sse"):
                # A caller never chooses a program that runs here; the operator's own configuration may.
                raise UnsupportedByBackend(
                    detail=f"mcp_servers.{name}: only the types http and sse are taken"
                )

    async def _provider_for(self, backend: Backend, request: EnsureRequest) -> str:
        try:
            providers = await backend.providers()
        except BackendUnavailable as error:
            raise BackendIsDown(detail=str(error)) from None
        names = [provider.id for provider in providers]
        name = request.provider or (request.agent if request.agent in names else backend.default_provider)
        provider = next((provider for provider in providers if provider.id == name), None)
        if provider is None:
            raise NoSuchProvider(provider=name, available=names)
        _check_choices(provider, request)
        return name

    async def _open(
        self, caller: Principal, request: EnsureRequest, session: Session, *, made: bool
    ) -> Ensured:
        """Wait until the session's agent is there; re-bind, compare and change what the request says."""
        if not made and session.agent_session_id is not None:
            _refuse_differences(request, session)
        live = (
            session.status == "active"
            and session.host_is_alive
            and session.agent_session_id is not None
            and not session.agent_lost
        )
        how: Any = "reused"
        up = True
        if not live:
            if self._lifecycle.draining:
                raise Draining
            try:
                how = await self._open_agent(session)
            except BackendIsDown:
                if session.agent_session_id is None or session.status != "active":
                    raise
                up = False
        async with self._database.begin() as db:
            found = await sessions.by_key(db, session.key)
            up = up and await self._is_up(db, session.backend)
        if found is None or found.agent_session_id is None:
            raise SessionNotFound
        if not made and session.agent_session_id is None:  # it was being made when we came
            _refuse_differences(request, found)
        if not made and request.if_exists == "update":
            found = await self._update(caller, request, found)
        if request.session_id is not None and found.session_id != request.session_id:
            found = await self._rebind(caller.owner, found, request.session_id)
            how = "rebound" if how == "reused" else how
        return Ensured(session=found, opened=how, backend_up=up)

    async def _open_agent(self, session: Session) -> str:
        """Have the host make or load the agent, and wait for what came of it."""
        async with self._database.begin() as db:
            if await sessions.lock(db, session.key) is None:
                raise SessionNotFound
            open_now = [intent for intent in await intents.pending(db, session.key) if intent.kind == "open"]
            number: UUID = open_now[0].id if open_now else await intents.write(db, session.key, "open", {})
            await sessions.want(db, session.key)
        intent = await wait_for(self._database, session.key, number, self._ensure_s)
        if intent is None or (intent.result is None and intent.error is None):
            raise BackendIsDown(detail="the backend is still making the agent; ensure the session again")
        if intent.error is not None:
            raise_described(intent.error)
        assert intent.result is not None
        how: str = intent.result["how"]
        return "reused" if open_now and how == "created" else how

    async def _is_up(self, db: Transaction, backend: str) -> bool:
        """Whether any replica saw the backend up lately; one that is no longer configured is down."""
        seen = await health.is_up(db, backend)
        return seen is not False and (seen is True or self._registry.get(backend) is not None)

    async def _update(self, caller: Principal, request: EnsureRequest, session: Session) -> Session:
        change = SessionChange(
            model=request.model,
            mode=request.mode,
            thinking=request.thinking,
            title=request.title,
            labels=request.labels,
            permission_policy=request.permission_policy,
        )
        return await self.change(caller, session.session_id, change)

    async def _rebind(self, owner: Owner, session: Session, session_id: SessionId) -> Session:
        """Give the session its new name; from now on the old one is unknown, and its numbers are kept."""
        async with self._database.begin() as db:
            locked = await sessions.lock(db, session.key)
            await turns.lock_owner(db, owner)  # two may want the same name at the same moment
            if locked is None or (other := await sessions.find(db, owner, session_id)) is not None:
                if locked is not None and other is not None and other.key == session.key:
                    return other
                raise SessionConflict(fields=["session_id"])
            await sessions.bury(db, owner, locked.session_id, locked.last_seq)
            await sessions.change(db, session.key, session_id=session_id)
            await self._record(
                db,
                locked.key,
                session_id,
                SessionOpened(
                    how="rebound",
                    agent_session_id=locked.agent_session_id or "",
                    cwd=locked.cwd,
                    model=locked.model,
                    mode=locked.mode,
                ),
            )
            await sessions.want(db, session.key)
            renamed = await sessions.by_key(db, session.key)
        assert renamed is not None
        return renamed

    async def _record(self, db: Transaction, key: SessionKey, session_id: SessionId, event: Event) -> None:
        await eventlog.record(db, key, [eventlog.draft(session_id, None, event)])

    # Read.

    async def get(self, owner: Owner, session_id: SessionId) -> Ensured:
        """The session, and whether its backend is up.

        Raises:
            SessionNotFound: it is missing, somebody else's, or still being made.
        """
        async with self._database.begin() as db:
            session = await sessions.get(db, owner, session_id)
            up = await self._is_up(db, session.backend)
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
                if not await self._is_up(db, name)
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
                backend_up=await self._is_up(db, session.backend),
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
            _require_admin(caller)
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
            intent = await wait_for(self._database, session.key, number, WAIT_S)
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
            await self._record(db, session.key, session.session_id, SessionUpdated(changed=changed))
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
            body = {"mode": mode, "reason": reason}
            same = [one for one in await intents.pending(db, session.key) if one.body == body]
            number = same[0].id if same else await intents.write(db, session.key, "close", body)
            running = session.current_turn_id is not None
        if not (mode == "drain" and running):
            await wait_for(self._database, session.key, number, WAIT_S)
        async with self._database.begin() as db:
            session = await sessions.get(db, owner, session_id)
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


def _refuse_differences(request: EnsureRequest, session: Session) -> None:
    """Refuse what a session that is there cannot be, or must not be."""
    if session.status == "closing":
        raise SessionIsClosed
    if request.if_exists == "reject" and session.status != "closed":
        raise SessionExists
    fields = [
        name
        for name in ("backend", "provider")
        if getattr(request, name) not in (None, getattr(session, name))
    ]
    if request.cwd is not None and request.cwd not in (session.requested_cwd, session.cwd):
        fields.append("cwd")
    if fields:
        raise SessionConflict(fields=fields)


def _require_admin(caller: Principal) -> None:
    if "admin" not in caller.scopes:
        raise Forbidden(scope="admin")


def _check_choices(provider: Provider, request: EnsureRequest) -> None:
    """Refuse a model, mode or thinking option that the provider's list, if it has one, does not name."""
    for what, wanted, choices in (
        ("model", request.model, provider.models),
        ("mode", request.mode, provider.modes),
        ("thinking", request.thinking, provider.thinking),
    ):
        if wanted is not None and choices and wanted not in {choice.id for choice in choices}:
            raise UnsupportedByBackend(detail=f"{provider.id} has no {what} {wanted!r}")
