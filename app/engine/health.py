"""How things are: the database, the backends, this process."""

import time
from dataclasses import dataclass
from typing import Literal

import anyio
import structlog

from app.backends.base import Backend, BackendUnavailable, Health, Provider
from app.backends.registry import Registry
from app.domain.errors import BackendIsDown, BackendNotFound, DatabaseUnavailable
from app.engine.lifecycle import Lifecycle
from app.store import health, intents, sessions, turns
from app.store.database import Database

log = structlog.get_logger(__name__)

AGAIN_S = 2.0
"""Seconds to the next look while a backend is down: prompts are refused until it was seen up."""
LOOK_S = 6.0
"""Seconds that one look at a backend may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A whole look."""

    status: Literal["ok", "degraded", "down"]
    database: bool
    backends: dict[str, Health]
    turns: dict[str, int]


class Healths:
    """Looks at every backend, again and again, and says how things are."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        lifecycle: Lifecycle,
        *,
        replica: str,
        every_s: float,
        alone: bool,
    ) -> None:
        """`alone`: what other processes saw of this database's backends is of the past."""
        self._database = database
        self._registry = registry
        self._lifecycle = lifecycle
        self._replica = replica
        self._every_s = every_s
        self._alone = alone
        self._seen: dict[str, Health] = {}
        self.started = time.monotonic()
        self.looked = anyio.Event()
        """Set once every backend has been looked at."""

    async def run(self) -> None:
        """Look until cancelled; what is seen is written down for every replica."""
        if self._alone:
            await self._forget(None)
        while True:
            await self.look()
            self.looked.set()
            is_all_up = all(seen.up for seen in self._seen.values())
            await anyio.sleep(self._every_s if is_all_up else min(self._every_s, AGAIN_S))

    async def look(self) -> None:
        """Look at every backend now, at all of them at once."""
        async with anyio.create_task_group() as tasks:
            for backend in self._registry:
                tasks.start_soon(self._look_at, backend)
        try:
            async with self._database.begin() as db:
                await health.write(db, self._replica, {name: seen.up for name, seen in self._seen.items()})
                await sessions.want_archiving(db)
                await intents.sweep(db)
                await turns.sweep_admitted(db)
        except DatabaseUnavailable:
            log.warning("health_not_written")

    async def _look_at(self, backend: Backend) -> None:
        seen = Health(up=False, detail="no answer in time")
        with anyio.move_on_after(LOOK_S):
            seen = await backend.health()
        before = self._seen.get(backend.name)
        if before is None or before.up != seen.up:
            log.info("backend_up" if seen.up else "backend_down", backend=backend.name, detail=seen.detail)
        self._seen[backend.name] = seen

    async def forget(self) -> None:
        """This process is leaving: what it saw counts no more."""
        await self._forget(self._replica)

    async def _forget(self, replica: str | None) -> None:
        try:
            async with self._database.begin() as db:
                await health.forget(db, replica)
        except DatabaseUnavailable:
            log.warning("health_not_forgotten")

    async def status(self) -> Status:
        """The database and the backends as last seen, and how much is going on."""
        counts = {"running": 0, "queued": 0}
        database = True
        try:
            with anyio.fail_after(3.0):
                async with self._database.begin() as db:
                    counts = await turns.count_by_state(db)
        except (DatabaseUnavailable, TimeoutError):
            database = False
        counted = [seen.up for name, seen in self._seen.items() if name in self._registry.counted]
        if not database or (counted and not any(counted)):
            status: Literal["ok", "degraded", "down"] = "down"
        elif all(counted):
            status = "ok"
        else:
            status = "degraded"
        return Status(
            status=status,
            database=database,
            backends=dict(self._seen),
            turns=counts,
        )

    async def is_ready(self) -> bool:
        """Whether this process takes work: the database answers, and it is not leaving."""
        if self._lifecycle.leaving:
            return False
        with anyio.move_on_after(3.0):
            return await self._database.is_up()
        return False

    def backend(self, name: str) -> tuple[Backend, Health]:
        """The backend and how it was last seen.

        Raises:
            BackendNotFound: none of that name is configured.
        """
        backend = self._registry.get(name)
        if backend is None:
            raise BackendNotFound(backend=name)
        return backend, self._seen.get(name) or Health(up=False, detail="not looked at yet")

    def backends(self) -> list[tuple[Backend, Health]]:
        """Every backend and how it was last seen."""
        return [self.backend(name) for name in self._registry.names()]

    def is_counted(self, name: str) -> bool:
        """Whether the backend decides `/health`."""
        return name in self._registry.counted

    def is_default(self, name: str) -> bool:
        """Whether the backend is used where nothing else tells."""
        return name == self._registry.default

    async def load(self) -> dict[str, dict[str, int]]:
        """Open turns of each backend, as `running` and `queued`."""
        async with self._database.begin() as db:
            return await sessions.load(db)

    async def providers(self, name: str) -> list[Provider]:
        """What agents the backend can run.

        Raises:
            BackendNotFound, BackendIsDown: it cannot be asked.
        """
        backend, _ = self.backend(name)
        try:
            return list(await backend.providers())
        except BackendUnavailable as error:
            raise BackendIsDown(detail=str(error)) from None

    async def drain(self, name: str) -> None:
        """Take no new turns for a backend, on any replica; running ones finish."""
        self.backend(name)
        async with self._database.begin() as db:
            await health.drain(db, name)

    async def resume(self, name: str) -> None:
        """Take new turns for a backend again."""
        self.backend(name)
        async with self._database.begin() as db:
            await health.resume(db, name)

    async def drained(self) -> set[str]:
        """The backends that take no new turns."""
        async with self._database.begin() as db:
            return await health.drains(db)
