"""The host of one session: the one task that touches its agent.

It reads what any replica wants (intents), runs the session's turns one after the other, writes what the agent
does into the log, and minds the clocks. Everything happens in one loop, one thing after the other, so nothing
that befalls one session reaches another, and nothing in here needs a lock.
"""

import math
import time

import anyio
import structlog
from anyio.abc import TaskGroup

from app.backends.base import Backend, BackendError
from app.domain.errors import PathNotAllowed, SessionIsClosed
from app.domain.events import SessionClosed
from app.domain.sessions import Session
from app.engine import stepping
from app.engine.hosted import Hosted, Work
from app.engine.intents import describe
from app.engine.keeper import Keeper
from app.engine.relay import Rules
from app.engine.runner import Runner
from app.store import eventlog, health, intents, permissions, sessions, terminals, turns
from app.store.database import Database
from app.store.eventlog import EventLog, LeaseLost
from app.store.intents import Intent
from app.store.leases import Lease

log = structlog.get_logger(__name__)

LINGER_S = 30.0
"""Seconds for which a session without an agent stays hosted after the last thing that was to do."""
MAX_REST_S = 3600.0
"""Seconds after which the loop goes round even if nothing is due."""


class Host:
    """One session, as long as this process hosts it."""

    def __init__(
        self,
        lease: Lease,
        session: Session,
        backend: Backend,
        database: Database,
        events: EventLog,
        rules: Rules,
        *,
        tasks: TaskGroup,
    ) -> None:
        self.lease = lease
        self._rules = rules
        self._wakeup = anyio.Event()
        self._look_due = True
        self._fenced = False
        self._hosted = Hosted(
            lease, session, backend, database, events, wake=self.wake, look=self.look, tasks=tasks
        )
        self._is_new = True
        self._keeper = Keeper(self._hosted)
        self._runner = Runner(self._hosted, self._keeper, rules)

    # What the process tells its hosts; none of these waits, but `suspend`, which ends an agent.

    def wake(self) -> None:
        """Something arrived, or is due."""
        self._wakeup.set()

    def look(self) -> None:
        """Something was written that the host should read."""
        self._look_due = True
        self._wakeup.set()

    def leave(self, drain_s: float) -> None:
        """The process is going: start nothing more; a turn that ends with us has `drain_s` seconds."""
        self._runner.leaving = time.monotonic() + drain_s
        self._wakeup.set()

    def fence(self) -> None:
        """Another process hosts the session: stop, and write nothing."""
        self._fenced = True
        self._wakeup.set()

    def stall(self, stalled: bool) -> None:
        """The database does not answer, or does again."""
        self._keeper.stall(stalled)

    async def suspend(self) -> None:
        """The lease ran out unrenewed: stop acting."""
        await self._runner.suspend()

    def resume_if_suspended(self) -> None:
        """The lease is ours after all."""
        if self._runner.suspended:
            self._runner.suspended = False
            self.look()

    @property
    def has_turns(self) -> bool:
        """Whether turns are open that another host should take."""
        return self._runner.has_turns

    # The loop.

    async def run(self) -> None:
        """Serve the session until nothing is to do for long, the lease is lost, or the process goes.

        Raises:
            LeaseLost: somebody else hosts it now.
        """
        structlog.contextvars.bind_contextvars(
            session_id=self._hosted.session.session_id, backend=self._hosted.backend.name
        )
        try:
            if self._hosted.session.project_id is not None:  # what an earlier host left unsaid
                await self._rules.collisions.look(self.lease.session)
            while True:
                if self._fenced:
                    raise LeaseLost
                if self._look_due:
                    self._look_due = False
                    if not await self._look():
                        return
                await self._runner.take_answers()
                await self._runner.relay()
                await self._runner.tick()
                if self._is_done():
                    return
                await self._rest()
        finally:
            with anyio.CancelScope(shield=True):
                await self._keeper.let_go()

    async def _rest(self) -> None:
        if not (self._look_due or self._fenced or self._keeper.has_reports):
            due = self._runner.next_clock() if self.has_turns else self._idle_at
            with anyio.move_on_after(max(0.0, min(due - time.monotonic(), MAX_REST_S))):
                await self._wakeup.wait()
        self._wakeup = anyio.Event()

    @property
    def _idle_at(self) -> float:
        """Monotonic time at which a session is given up; never while it is busy or would lose its agent."""
        agent = self._keeper.agent
        if agent is None:
            return self._hosted.used_at + LINGER_S
        if self._runner.foreign_busy or not agent.resumable:
            return math.inf
        return self._hosted.used_at + self._rules.session_idle_s

    def _is_done(self) -> bool:
        if self._runner.leaving is not None:
            return not (self._runner.runs_turn and self._hosted.dies_with_host)
        return not (self.has_turns or self._look_due) and time.monotonic() > self._idle_at

    # What is to do.

    async def _look(self) -> bool:
        """Read what is wanted and act on it; false if the session is gone."""
        work = await self._hosted.database.retrying(self._read_work)
        if work is None:
            return False
        self._hosted.session = work.session
        await self._runner.see(work)
        for intent in work.intents:
            self._hosted.touch()
            await self._act(intent)
        for permission in work.waiting:
            if permission.status == "answering" and permission.response is not None:
                await self._runner.respond(permission, permission.response)
        if work.session.status == "closed" and work.session.archived is False:
            await self._keeper.archive_again()
        if self._is_new:
            self._is_new = False
            await self._keeper.read_history()
        return True

    async def _read_work(self) -> Work | None:
        async with self._hosted.database.begin() as db:
            if await sessions.by_key(db, self.lease.session) is None:
                return None
            session = await self._hosted.locked(db)
            await sessions.change(db, session.key, wanted=False)
            return Work(
                session=session,
                intents=await intents.pending(db, session.key),
                turns=await turns.open_turns(db, session.key),
                waiting=await permissions.waiting(db, session.key),
                now=await sessions.now(db),
                drained=session.backend in await health.drains(db),
            )

    async def _act(self, intent: Intent) -> None:
        try:
            if intent.kind != "close":
                await self._runner.regain_sight()
            match intent.kind:
                case "open":
                    await self._keeper.open(intent)
                case "configure":
                    await self._keeper.configure(intent)
                case "close":
                    await self._close(intent)
        except (BackendError, PathNotAllowed, SessionIsClosed) as error:
            await self._hosted.finish(intent, error=describe(error))

    async def _close(self, intent: Intent) -> None:
        """Close once the open turn has ended; until then the intent stays where it is."""
        if not await self._runner.close(cancels=intent.body["mode"] == "cancel"):
            return
        archived = await self._keeper.archive()
        await self._rules.collisions.leave(self.lease.session)

        async def closed() -> None:
            async with self._hosted.database.begin() as db:
                session = await self._hosted.locked(db)
                if session.status != "closed":
                    await terminals.close(db, session)
                    await stepping.end_orphans(db, session.key)
                    event = SessionClosed(reason=intent.body["reason"], archived=archived)
                    draft = eventlog.draft(session.session_id, None, event)
                    await eventlog.record(db, session.key, draft)
                    await sessions.close(db, session.key, archived=archived)
                await intents.finish(db, intent, result={"archived": archived})

        await self._hosted.database.retrying(closed)
        log.info("session_closed", archived=archived)
        self._hosted.used_at = 0.0
        self.look()
