"""Ensuring a session: found, opened again, re-bound or made, with its agent, once."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

from app.backends.base import Backend, BackendUnavailable, Provider
from app.backends.registry import Registry
from app.domain.errors import (
    BackendIsDown,
    BackendNotFound,
    Draining,
    NoSuchProvider,
    SessionConflict,
    SessionExists,
    SessionIsClosed,
    SessionNotFound,
    TooManySessions,
    UnsupportedByBackend,
)
from app.domain.events import SessionOpened
from app.domain.ids import Owner, SessionId, SessionKey, new_session_id
from app.domain.keys import Principal
from app.domain.sessions import (
    Ensured,
    EnsureRequest,
    PermissionPolicy,
    Session,
    SessionChange,
)
from app.engine.intents import raise_described, wait_for
from app.engine.lifecycle import Lifecycle
from app.engine.paths import check_requested
from app.engine.sessions import Sessions, is_up, log_event, require_admin
from app.store import health, intents, sessions, turns
from app.store.database import Database, Transaction

ENSURE_ROUNDS = 2
"""How often an ensure looks again when its session vanishes under it."""


class Ensuring:
    """The use-case `ensure`, within the caller's owner."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        lifecycle: Lifecycle,
        sessions_: Sessions,
        *,
        ensure_s: float,
        sessions_per_owner: int,
    ) -> None:
        self._database = database
        self._registry = registry
        self._lifecycle = lifecycle
        self._sessions = sessions_
        self._ensure_s = ensure_s
        self._sessions_per_owner = sessions_per_owner

    async def ensure(self, caller: Principal, request: EnsureRequest) -> Ensured:
        """The session that the request describes: found, opened again, re-bound or made, with its agent.

        Raises:
            SessionConflict, SessionExists, SessionIsClosed: it is there, but not so.
            PathNotAllowed, NoSuchProvider, UnsupportedByBackend, BackendNotFound: it cannot be made so.
            BackendIsDown, BackendFailed: the backend did not make the agent.
            Draining: it would have to make one, and is drained; or this process is going.
        """
        if request.permission_policy is not None and request.permission_policy.needs_admin:
            require_admin(caller)
        if request.provider_session_id is not None:
            require_admin(caller)
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
        async with self._database.begin() as db:
            is_drained = backend.name in await health.drains(db)
        if is_drained or self._lifecycle.draining:
            raise Draining
        cwd = check_requested(request.cwd, backend.place)
        provider = await self._provider_for(backend, request)
        session_id = request.session_id or new_session_id()
        policy = request.permission_policy or PermissionPolicy()
        async with self._database.begin() as db:
            await turns.lock_owner(db, caller.owner)  # so that the bound holds for ensures at the same moment
            found = await self._find(db, caller.owner, request)
            if found is not None:  # another ensure made it at the same moment
                return found, False
            adopted = request.provider_session_id
            if adopted is not None:
                await self._claim(db, backend.name, provider, adopted)
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
            up = up and await is_up(self._registry, db, session.backend)
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
            locked = await sessions.lock(db, session.key)
            if locked is None:
                raise SessionNotFound
            adopted = locked.provider_session_id if locked.status == "closed" else None
            if adopted is not None:
                await self._claim(db, locked.backend, locked.provider, adopted, but=locked.key)
            open_now = [intent for intent in await intents.pending(db, session.key) if intent.kind == "open"]
            if open_now:
                number: UUID = open_now[0].id
                await sessions.want(db, session.key)
            else:
                number = await intents.write(db, session.key, "open", {})
        intent = await wait_for(self._database, self._lifecycle, session.key, number, self._ensure_s)
        if intent is None and self._lifecycle.draining:
            raise Draining
        if intent is None or (intent.result is None and intent.error is None):
            raise BackendIsDown(detail="the backend is still making the agent; ensure the session again")
        if intent.error is not None:
            raise_described(intent.error)
        assert intent.result is not None
        how: str = intent.result["how"]
        return "reused" if open_now and how in ("created", "imported") else how

    async def _claim(
        self, db: Transaction, backend: str, provider: str, adopted: str, *, but: SessionKey | None = None
    ) -> None:
        """See that no other session is on that session of the provider, by whichever way to its daemon."""
        elsewhere = self._registry.elsewhere(backend)
        if not await sessions.may_adopt(db, provider, adopted, elsewhere=elsewhere, but=but):
            raise SessionConflict(
                fields=["provider_session_id"], detail="another session has adopted this one"
            )

    async def _update(self, caller: Principal, request: EnsureRequest, session: Session) -> Session:
        change = SessionChange(
            model=request.model,
            mode=request.mode,
            thinking=request.thinking,
            title=request.title,
            labels=request.labels,
            permission_policy=request.permission_policy,
        )
        return await self._sessions.change(caller, session.session_id, change)

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
            await log_event(
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
    # Whoever repeats what it asked for means this session, also since its agent was replaced, as it was told.
    adopted = (None, session.provider_session_id, session.former_provider_session_id)
    if request.provider_session_id not in adopted:
        fields.append("provider_session_id")
    if request.cwd is not None and request.cwd not in (session.requested_cwd, session.cwd):
        fields.append("cwd")
    if fields:
        raise SessionConflict(fields=fields)


def _check_choices(provider: Provider, request: EnsureRequest) -> None:
    """Refuse a model, mode or thinking option that the provider's list, if it has one, does not name."""
    for what, wanted, choices in (
        ("model", request.model, provider.models),
        ("mode", request.mode, provider.modes),
        ("thinking", request.thinking, provider.thinking),
    ):
        if wanted is not None and choices and wanted not in {choice.id for choice in choices}:
            raise UnsupportedByBackend(detail=f"{provider.id} has no {what} {wanted!r}")
