"""What nobody waits for: terminals that ended unseen are told of, those of closed sessions are ended."""

from contextlib import suppress

import anyio
import structlog

from app.backends.base import BackendError
from app.backends.terminals import TerminalServer
from app.domain.errors import DatabaseUnavailable
from app.domain.ids import SessionKey, TerminalId
from app.engine.terminals import Terminals
from app.store import terminals
from app.store.database import Database
from app.store.terminals import Unsettled

log = structlog.get_logger(__name__)

SWEEP_S = 5.0
"""Seconds between two looks at all terminals that this process reaches."""
SOON_S = 3.0
"""Seconds that closing a session waits for its terminals' end."""
LOOK_S = 10.0
"""Seconds for a look at one that runs them."""

AT_ONCE = 8
"""Terminals that are being ended at once: what does not want to end takes seconds."""


class Sweeper:
    """Keeps the rows and what runs in step; several replicas may do it at once."""

    def __init__(self, database: Database, rooms: Terminals) -> None:
        self._database = database
        self._terminals = rooms
        self._ending = anyio.CapacityLimiter(AT_ONCE)

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.sweep()
            self._terminals.watches.forget_ended()
            await anyio.sleep(SWEEP_S)

    async def session_closed(self, session: SessionKey) -> None:
        """End a closed session's terminals now, as far as that takes no time. Never raises."""
        with anyio.move_on_after(SOON_S):
            await self.sweep(session)

    async def sweep(self, session: SessionKey | None = None) -> None:
        """Look once, at one session's terminals only if it is named. Never raises."""
        servers = {server.place: server for server in self._terminals.servers.all()}
        try:
            async with self._database.begin() as db:
                past = [server.past for server in servers.values() if server.past is not None]
                rows = await terminals.unsettled(db, list(servers), past, session)
            for row in rows:
                if row.place not in servers:  # it ended with its place
                    await self._ended(row)
            for place in {row.place for row in rows} & set(servers):
                with anyio.move_on_after(LOOK_S), suppress(BackendError):  # the other places are looked at
                    await self._settle(servers[place], [row for row in rows if row.place == place])
        except DatabaseUnavailable:
            pass  # nobody waits for it: the next look finds the same
        except Exception:
            log.exception("terminal_sweep_crashed")

    async def _settle(self, server: TerminalServer, rows: list[Unsettled]) -> None:
        """The rows were read before what runs is looked at: one whose terminal is not there has ended."""
        there = list(await server.running())
        found = {
            row.id: {one.handle for one in there if one.handle == row.handle or row.id in one.name}
            for row in rows
        }
        ended: set[TerminalId] = set()
        async with anyio.create_task_group() as tasks:
            for row in rows:
                if row.closed:
                    tasks.start_soon(self._end, server, row, found[row.id], ended)
        for row in rows:
            if row.id in ended:
                await self._ended(row)
            elif not row.closed and row.handle is not None and not found[row.id]:
                await server.kill(row.handle)  # what may be left of it
                await self._terminals.ended(row.id)

    async def _ended(self, row: Unsettled) -> None:
        """Nothing of it runs any more; one that was never finished is forgotten."""
        await self._terminals.ended(row.id)
        async with self._database.begin() as db:
            await terminals.drop(db, row.id)

    async def _end(
        self, server: TerminalServer, row: Unsettled, handles: set[str], ended: set[TerminalId]
    ) -> None:
        """End a terminal; one that cannot be ended now is so at another look."""
        with suppress(BackendError, TimeoutError):
            async with self._ending:
                for handle in handles:
                    await server.kill(handle)
            ended.add(row.id)
