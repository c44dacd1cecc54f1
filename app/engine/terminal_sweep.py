"""What nobody waits for: terminals that ended unseen are told of, those of closed sessions are ended."""

import time

import anyio
import structlog

from app.backends.base import BackendError
from app.backends.terminals import TerminalServer
from app.domain.errors import DatabaseUnavailable
from app.engine.terminals import Terminals
from app.store import terminals
from app.store.database import Database
from app.store.terminals import Unsettled

log = structlog.get_logger(__name__)

SWEEP_S = 5.0
"""Seconds between two looks at all terminals that this process reaches."""
LOOK_S = 10.0
"""Seconds for a look at one that runs them."""


class Sweeper:
    """Keeps the rows and what runs in step; several replicas may do it at once."""

    def __init__(self, database: Database, rooms: Terminals) -> None:
        self._database = database
        self._terminals = rooms

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.sweep()
            await anyio.sleep(SWEEP_S)

    async def sweep(self) -> None:
        """Look once. Never raises."""
        began = time.monotonic()
        servers = {server.place: server for server in self._terminals.servers.all()}
        try:
            async with self._database.begin() as db:
                rows = await terminals.unsettled(db, list(servers))
            for place in {row.place for row in rows}:
                with anyio.move_on_after(LOOK_S):
                    await self._settle(servers[place], [row for row in rows if row.place == place])
        except (DatabaseUnavailable, BackendError):
            pass  # nobody waits for it: the next look finds the same
        except Exception:
            log.exception("terminal_sweep_crashed", seconds=time.monotonic() - began)

    async def _settle(self, server: TerminalServer, rows: list[Unsettled]) -> None:
        """The rows were read before what runs is looked at: one whose terminal is not there has ended."""
        there = list(await server.running())
        for row in rows:
            found = {one.handle for one in there if one.handle == row.handle or row.id in one.name}
            if row.closed:
                for handle in found:
                    await server.kill(handle)
                await self._terminals.ended(row.id)
                async with self._database.begin() as db:
                    await terminals.drop(db, row.id)
            elif row.handle is not None and not found:
                await server.kill(row.handle)  # what may be left of it
                await self._terminals.ended(row.id)
