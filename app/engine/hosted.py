"""What the parts of a session's host share: the session as last read, its backend, its lease."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from anyio.abc import TaskGroup

from app.backends.base import Backend
from app.domain.permissions import Permission
from app.domain.sessions import Session
from app.domain.turns import Turn
from app.store import intents, sessions
from app.store.database import Database, Transaction
from app.store.eventlog import EventLog, LeaseLost
from app.store.intents import Intent
from app.store.leases import Lease


@dataclass(frozen=True)
class Work:
    """What was found when the host looked."""

    session: Session
    intents: list[Intent]
    turns: list[Turn]
    waiting: list[Permission]
    now: datetime
    drained: bool
    """Whether the backend takes no new turns."""


class Hosted:
    """One session under one lease."""

    def __init__(
        self,
        lease: Lease,
        session: Session,
        backend: Backend,
        database: Database,
        events: EventLog,
        *,
        wake: Callable[[], None],
        look: Callable[[], None],
        tasks: TaskGroup,
    ) -> None:
        """`wake` makes the host's loop go round, `look` makes it read what is wanted as well.

        `tasks` are the process's; one that raises ends it.
        """
        self.lease = lease
        self.session = session
        self.backend = backend
        self.database = database
        self.events = events
        self.wake = wake
        self.look = look
        self.tasks = tasks
        self.used_at = time.monotonic()
        """Monotonic time of the last thing that was to do."""

    @property
    def dies_with_host(self) -> bool:
        """Whether the agent and its turn end with the process that hosts them."""
        return not self.backend.capabilities.survives_host

    def touch(self) -> None:
        """Something was to do just now."""
        self.used_at = time.monotonic()

    async def locked(self, db: Transaction) -> Session:
        """The session, its row locked until the transaction ends.

        Raises:
            LeaseLost: another process hosts it by now, or it is gone.
        """
        session = await sessions.lock(db, self.lease.session, generation=self.lease.generation)
        if session is None:
            raise LeaseLost
        return session

    async def finish(
        self,
        intent: Intent,
        *,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> None:
        """Write what came of an intent."""

        async def finish() -> None:
            async with self.database.begin() as db:
                await intents.finish(db, intent, result=result, error=error)

        await self.database.retrying(finish)

    async def change(self, **values: Any) -> None:
        """Set columns of the session."""
        await self.database.retrying(partial(self._change, values))

    async def _change(self, values: Mapping[str, Any]) -> None:
        async with self.database.begin() as db:
            await self.locked(db)
            await sessions.change(db, self.lease.session, **values)
