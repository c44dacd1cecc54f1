"""The sessions that this process hosts: takes them, renews the leases of all, hands them back."""

import math
import random
import time
from collections.abc import Callable
from contextlib import suppress

import anyio
import structlog
from anyio.abc import TaskGroup

from app.backends.absent import AbsentBackend
from app.backends.registry import Registry
from app.domain.errors import DatabaseUnavailable
from app.domain.ids import SessionKey
from app.engine.collisions import Collisions
from app.engine.host import Host
from app.store import sessions
from app.store.database import Database
from app.store.eventlog import EventLog, LeaseLost
from app.store.leases import Lease, Leases

log = structlog.get_logger(__name__)

POLL_S = 2.0
"""Seconds between two looks for sessions that nobody hosts: covers a lost bell and a dead replica."""
CRASH_PAUSE_S = 2.0
"""Seconds before a session whose host crashed may be taken again."""


class Hosts:
    """Every host of this process."""

    def __init__(
        self,
        database: Database,
        events: EventLog,
        leases: Leases,
        registry: Registry,
        collisions: Collisions,
        *,
        alone: bool,
        session_idle_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`alone`: nobody else can use this database, so a lease that cannot be renewed still holds."""
        self.session_idle_s = session_idle_s
        self.collisions = collisions
        self._database = database
        self._events = events
        self._leases = leases
        self._registry = registry
        self._alone = alone
        self._clock = clock
        self._hosts: dict[SessionKey, Host] = {}
        self._wanted: set[SessionKey] = set()
        self._starting: set[SessionKey] = set()
        self._unserved: set[Lease] = set()
        """Leases that the last renewal found without a host."""
        self._claim = anyio.Event()
        self._renewed_at = self._steady_since = clock()
        """Monotonic times: of the last renewal, and since when none has failed or come too late."""
        self._leaving = False
        self._empty = anyio.Event()
        events.on_stall.append(self._stall)
        database.wanted_here = self._want_here
        database.bell.watch_wanted(self._heard)
        database.bell.watch_free(self._offered)

    @property
    def held(self) -> int:
        """How many sessions this process hosts."""
        return len(self._hosts)

    def may_act(self) -> bool:
        """Whether the leases hold: renewed within one lease time, or nobody else is there."""
        return self._alone or self._clock() - self._renewed_at < self._leases.lease_s

    @property
    def _may_take_over(self) -> bool:
        """Whether a host that seems silent is: after an outage those that live renew first."""
        return self._alone or self._clock() - self._steady_since >= self._leases.lease_s

    async def run(self, tasks: TaskGroup) -> None:
        """Host sessions until cancelled; a session's host is a task of `tasks`."""
        if self._alone:
            await self._database.retrying(self._leases.take_everything)
        tasks.start_soon(self._renew_for_ever, name="leases")
        while True:
            await self._take(tasks)
            with anyio.move_on_after(POLL_S * random.uniform(0.75, 1.25)):
                await self._claim.wait()
            self._claim = anyio.Event()

    async def leave(self, drain_s: float) -> None:
        """Start nothing more, end what ends with us within `drain_s` and a little, hand everything back."""
        self._leaving = True
        for host in self._hosts.values():
            host.leave(drain_s)
        with anyio.move_on_after(drain_s + 3.0):
            while self._hosts:
                self._empty = anyio.Event()
                await self._empty.wait()

    # Wake-ups; none of these waits.

    def _want_here(self, session: SessionKey) -> None:
        if not self._want(session):
            self._wanted.add(session)
            self._claim.set()

    def _heard(self, session: SessionKey | None) -> None:
        self._want(session)

    def _offered(self) -> None:
        self._claim.set()

    def _want(self, session: SessionKey | None) -> bool:
        if session is None:
            for host in self._hosts.values():
                host.look()
            self._claim.set()
            return True
        hosted = self._hosts.get(session)
        if hosted is not None:
            hosted.look()
        return hosted is not None

    def _stall(self, stalled: bool) -> None:
        for host in self._hosts.values():
            host.stall(stalled)

    # Taking.

    async def _take(self, tasks: TaskGroup) -> None:
        if self._leaving or not self.may_act():
            return
        wanted, self._wanted = self._wanted, set()
        expired = self._may_take_over
        try:
            for session in wanted:
                if session not in self._hosts:
                    await self._start(await self._leases.claim(only=session, expired=expired), tasks)
            await self._start(await self._leases.claim(expired=expired), tasks)
            for session in await self._leases.wanted():  # whose bell was lost
                self._want(session)
        except DatabaseUnavailable:
            self._wanted |= wanted

    async def _start(self, leases: list[Lease], tasks: TaskGroup) -> None:
        self._starting.update(lease.session for lease in leases)
        try:
            await self._start_each(leases, tasks)
        finally:
            self._starting.clear()

    async def _start_each(self, leases: list[Lease], tasks: TaskGroup) -> None:
        for lease in leases:
            if self._leaving:  # they were claimed while that was decided
                await self._leases.release(lease, wanted=True)
                continue
            async with self._database.begin() as db:
                session = await sessions.by_key(db, lease.session)
            if session is None:
                continue
            backend = self._registry.get(session.backend) or AbsentBackend(session.backend)
            host = Host(lease, session, backend, self._database, self._events, self, tasks=tasks)
            self._hosts[lease.session] = host
            tasks.start_soon(self._serve, host, name=f"host {lease.session}")

    async def _serve(self, host: Host) -> None:
        """One host's task: whatever befalls it reaches no other."""
        lease, again, lost = host.lease, False, False
        try:
            await host.run()
            again = host.has_turns
        except LeaseLost:
            lost = True
            log.warning("lease_lost")
        except Exception:
            log.exception("host_crashed")
            again = True
            await anyio.sleep(CRASH_PAUSE_S)
        finally:
            with anyio.move_on_after(5.0, shield=True):
                if not lost:
                    try:
                        await self._leases.release(lease, wanted=again or host.has_turns)
                    except DatabaseUnavailable:
                        log.warning("lease_not_released")
            if self._hosts.get(lease.session) is host:
                del self._hosts[lease.session]
            if not self._hosts:
                self._empty.set()
            self._claim.set()

    # Renewing.

    async def _renew_for_ever(self) -> None:
        while True:
            due = anyio.current_time() + self._leases.renew_s
            await self._renew()
            await anyio.sleep_until(due)

    async def _renew(self) -> None:
        asked_at = self._clock()
        held = list(self._hosts.values())
        mine: set[Lease] | None = None
        try:
            with anyio.fail_after(self._leases.renew_s):
                mine = await self._leases.renew()
        except (DatabaseUnavailable, TimeoutError):
            log.warning("leases_not_renewed")
            self._steady_since = math.inf
            self._stall(True)  # also of those whose host waits to read and so writes nothing
        if mine is not None:
            if self._steady_since > asked_at or asked_at - self._renewed_at >= self._leases.lease_s:
                self._steady_since = asked_at
            self._renewed_at = asked_at
            self._stall(self._events.stalled)
            for host in held:
                if host.lease not in mine:
                    host.fence()
                else:
                    host.resume_if_suspended()
            unserved = {lease for lease in mine if lease.session not in self._hosts}
            await self._hand_back(unserved & self._unserved)  # not those that are just being taken
            self._unserved = unserved
        if self.may_act():
            for backend in self._registry:
                backend.beat()
        else:
            async with anyio.create_task_group() as ending:
                for host in held:
                    ending.start_soon(host.suspend)

    async def _hand_back(self, orphans: set[Lease]) -> None:
        """Leases that were taken while the database went away, so that nothing serves them."""
        for lease in orphans:
            if lease.session not in self._starting:
                with suppress(DatabaseUnavailable):
                    await self._leases.release(lease, wanted=True)
