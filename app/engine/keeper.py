"""The agent of a hosted session: made once, found again, loaded, changed, put away."""

from contextlib import suppress
from functools import partial
from typing import Any

import structlog

from app.backends.base import (
    Agent,
    AgentLost,
    AgentSpec,
    AgentState,
    BackendError,
    Change,
    OpenAttempt,
    OutcomeUnknown,
)
from app.domain.errors import DomainError, Draining, PathNotAllowed, SessionIsClosed
from app.domain.events import Opened, SessionOpened, SessionUpdated
from app.domain.sessions import Session
from app.engine.hosted import Hosted
from app.engine.intents import describe
from app.engine.paths import check_effective, check_requested
from app.store import eventlog, health, intents, sessions
from app.store.intents import Intent

log = structlog.get_logger(__name__)


class Keeper:
    """Holds the agent, while one is held."""

    def __init__(self, hosted: Hosted) -> None:
        self._hosted = hosted
        self.agent: Agent | None = None

    def stall(self, stalled: bool) -> None:
        """The database does not answer, or does again; what can be told again is not read on meanwhile."""
        if self.agent is not None and not self._hosted.backend.capabilities.replays:
            self.agent.reports.stall(stalled)

    @property
    def has_reports(self) -> bool:
        """Whether the agent has told something that was not read yet."""
        return self.agent is not None and (self.agent.reports.has_reports or self.agent.reports.is_closed)

    def _spec(self, *, starts: bool = True) -> AgentSpec:
        """What the agent is made of; where it `starts` is checked again: a link may point elsewhere now.

        Raises:
            PathNotAllowed: its directory is gone, or lies outside the roots.
        """
        session = self._hosted.session
        return AgentSpec(
            creation_key=session.creation_key,
            provider=session.provider,
            cwd=check_requested(session.requested_cwd or session.cwd, self._hosted.backend.place)
            if starts
            else session.cwd,
            model=session.model,
            mode=session.mode,
            thinking=session.thinking,
            title=session.title,
            system_prompt=session.system_prompt,
            mcp_servers=session.mcp_servers,
            worktree=session.worktree,
            provider_session_id=session.provider_session_id,
            labels={
                name: value
                for name, value in {
                    **session.labels,
                    "session": session.session_id,
                    "chat": session.chat_id,
                    "project": session.project_id,
                    "worktree": session.worktree_id,
                    "agent": session.agent,
                }.items()
                if value is not None
            },
        )

    def _hold(self, agent: Agent) -> Agent:
        self.agent = agent
        agent.reports.on_arrival = self._hosted.wake
        self.stall(self._hosted.events.stalled)
        return agent

    async def load(self, attempt: OpenAttempt | None = None) -> Agent:
        """The session's agent, loaded again if need be.

        Raises:
            AgentLost: it is gone or cannot be resumed.
            BackendUnavailable: not now.
        """
        if self.agent is not None:
            return self.agent
        session = self._hosted.session
        assert session.agent_session_id is not None
        try:
            spec = self._spec(starts=self._hosted.dies_with_host)
        except PathNotAllowed as error:  # an agent cannot work where its directory was
            raise AgentLost(str(error)) from None
        return self._hold(
            await self._hosted.backend.load(spec, session.agent_session_id, session.cursor, attempt)
        )

    async def read_history(self) -> None:
        """Have an adopted session's history told to its end, if its last host did not come so far."""
        session = self._hosted.session
        if session.provider_session_id is None or session.agent_session_id is None or self.agent is not None:
            return
        if session.status == "active" and not self._hosted.dies_with_host:
            with suppress(BackendError):  # the next prompt reads it first, or says what is wrong
                await self.load()

    async def open(self, intent: Intent) -> None:
        """Have the agent there: made, loaded again, or found to be held already."""
        session = self._hosted.session
        if session.agent_session_id is None:
            await self._create(intent, "imported" if session.provider_session_id else "created")
            return
        if session.status == "closing":
            raise SessionIsClosed
        if self.agent is not None and session.status == "active":
            await self._hosted.finish(intent, result={"how": "reused"})
            return
        try:
            await self.load()
        except AgentLost:
            if await self._is_drained():
                await self._hosted.finish(intent, error=describe(Draining()))
                return
            self._hosted.session = await self._hosted.database.retrying(self._forget_agent)
            await self._create(intent, "replaced")
            return
        if session.status == "active":
            if session.agent_lost:
                await self._hosted.change(agent_lost=False)
            await self._hosted.finish(intent, result={"how": "reused"})
        else:
            await self._opened(intent, "resumed")

    async def _forget_agent(self) -> Session:
        async with self._hosted.database.begin() as db:
            session = await self._hosted.locked(db)
            await sessions.change(
                db,
                self._hosted.lease.session,
                creation_key=sessions.new_creation_key(),
                creating=False,
                provider_session_id=None,  # the new agent is on no session that could be adopted
                former_provider_session_id=session.provider_session_id or session.former_provider_session_id,
                epoch=None,
                seq=None,
            )
            return await self._hosted.locked(db)

    async def _is_drained(self) -> bool:
        """Whether the backend is to get no new agents: making one may be a turn of it, and leads to more."""

        async def look() -> bool:
            async with self._hosted.database.begin() as db:
                return self._hosted.session.backend in await health.drains(db)

        return await self._hosted.database.retrying(look)

    async def _create(self, intent: Intent, how: Opened) -> None:
        """Make the agent, once: after an unknown outcome it is looked for first."""
        agent: Agent | None = None
        try:
            spec = self._spec()
            if self._hosted.session.creating:
                agent = await self._hosted.backend.find(spec)
            if agent is None and how != "replaced" and await self._is_drained():
                raise Draining
            if agent is None:
                await self._hosted.change(creating=True)
                agent = await self._hosted.backend.create(spec)
            try:
                check_effective(agent.state.cwd, self._hosted.backend.place)
            except PathNotAllowed:
                with suppress(BackendError):
                    await agent.archive()
                raise
        except OutcomeUnknown as error:
            await self._hosted.finish(intent, error=describe(error))
            return
        except (BackendError, PathNotAllowed, Draining) as error:
            if how != "replaced":
                await self._hosted.database.retrying(partial(self._undo_creation, intent, error))
                return
            raise
        self._hold(agent)
        await self._opened(intent, how)

    async def _undo_creation(self, intent: Intent, error: BackendError | DomainError) -> None:
        """A creation that is known to have failed leaves nothing."""
        async with self._hosted.database.begin() as db:
            await self._hosted.locked(db)
            for other in await intents.pending(db, self._hosted.lease.session):
                if other.kind == "open":
                    await intents.finish(db, other, error=describe(error))
            await sessions.erase(db, self._hosted.lease.session)
        self._hosted.look()

    async def _opened(self, intent: Intent, how: Opened) -> None:
        assert self.agent is not None
        state = self.agent.state

        async def opened() -> Session:
            async with self._hosted.database.begin() as db:
                session = await self._hosted.locked(db)
                if session.agent_session_id == state.session and session.status == "active":
                    return session  # an earlier try had committed
                await sessions.change(
                    db,
                    session.key,
                    agent_session_id=state.session,
                    agent_lost=False,
                    status="active",
                    close_mode=None,
                    closed_at=None,
                    archived=None,
                    **_in_force(state, session),
                )
                event = SessionOpened(
                    how=how,
                    agent_session_id=state.session,
                    cwd=state.cwd or session.cwd,
                    model=state.model,
                    mode=state.mode,
                )
                await eventlog.record(db, session.key, eventlog.draft(session.session_id, None, event))
                await intents.finish(db, intent, result={"how": how})
                return await self._hosted.locked(db)

        self._hosted.session = await self._hosted.database.retrying(opened)
        log.info("session_opened", how=how)

    async def configure(self, intent: Intent) -> None:
        """Change settings at the backend; what is in force afterwards is what the session shows."""
        if self._hosted.session.status != "active":
            raise SessionIsClosed
        agent = await self.load()
        wanted = Change(**intent.body)
        state = await agent.configure(wanted)

        async def configured() -> Session:
            async with self._hosted.database.begin() as db:
                session = await self._hosted.locked(db)
                changed = _in_force(state, session)
                changed.pop("cwd")
                changed = {name: value for name, value in changed.items() if getattr(session, name) != value}
                if changed:
                    await sessions.change(db, session.key, **changed)
                    event = SessionUpdated(changed=changed)
                    await eventlog.record(db, session.key, eventlog.draft(session.session_id, None, event))
                await intents.finish(db, intent, result={"changed": changed})
                return await self._hosted.locked(db)

        self._hosted.session = await self._hosted.database.retrying(configured)

    async def archive(self) -> bool:
        """Put the agent away; false if the backend did not."""
        agent, self.agent = self.agent, None
        session = self._hosted.session.agent_session_id
        try:
            if agent is not None:
                await agent.archive()
            elif session is not None:
                await self._hosted.backend.archive(session)
        except BackendError as error:
            log.warning("archive_failed", error=type(error).__name__)
            return False
        return True

    async def archive_again(self) -> None:
        """Try once more to archive the agent of a closed session."""
        if await self.archive():
            await self._hosted.change(archived=True)

    async def let_go(self) -> None:
        """Give up what this process holds of the agent."""
        agent, self.agent = self.agent, None
        if agent is not None:
            agent.reports.on_arrival = lambda: None
            await agent.release()


def _in_force(state: AgentState, session: Session) -> dict[str, Any]:
    """What the backend says is in force, for the row."""
    return {
        "cwd": state.cwd or session.cwd,
        "model": state.model,
        "mode": state.mode,
        "thinking": state.thinking,
    }
