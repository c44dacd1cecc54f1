"""Who breaks things: at random moments, one after the other, until enough was killed."""

import os
import random
import signal
from collections import Counter
from contextlib import suppress

import anyio
import asyncpg
from anyio.abc import TaskGroup

from benchmarks.chaos.world import LEASE_S, Program, World


class Adversary:
    """Kills, pauses and cuts; everything that it ends it starts again."""

    def __init__(self, world: World, chance: random.Random, tasks: TaskGroup) -> None:
        self.done: Counter[str] = Counter()
        self._world = world
        self._chance = chance
        self._tasks = tasks
        self._busy: set[str] = set()
        """Programs that are down or paused."""

    @property
    def kills(self) -> int:
        """How many processes were killed."""
        return sum(count for what, count in self.done.items() if what.startswith("kill"))

    async def break_things(self, kills: int) -> None:
        """Go on until so many processes were killed."""
        acts = {
            self._kill_replica: 6,
            self._kill_daemon: 5,
            self._kill_back_end: 3,
            self._end_back_ends: 1,
            self._cut_sockets: 3,
            self._pause_briefly: 2,
            self._pause_beyond_the_lease: 1,
        }
        first = self._chance.sample(list(acts), len(acts))  # each once, before chance alone rules
        while self.kills < kills:
            await anyio.sleep(self._chance.uniform(0.2, 2.5))
            act = first.pop() if first else self._chance.choices(list(acts), list(acts.values()))[0]
            await act()

    async def _kill_replica(self) -> None:
        free = [replica for replica in self._world.replicas if replica.name not in self._busy]
        if free:
            self._again(self._chance.choice(free), "kill -9 of a replica", "/readyz")

    async def _kill_daemon(self) -> None:
        if "daemon" not in self._busy:
            self._again(self._world.daemon, "kill -9 of the daemon", "/api/health")

    def _again(self, program: Program, what: str, ready: str) -> None:
        self._busy.add(program.name)
        self.done[what] += 1

        async def end_and_start() -> None:
            await program.end(signal.SIGKILL)
            await anyio.sleep(self._chance.choice([0, 0, self._chance.uniform(0, 4)]))
            await program.start(ready)
            self._busy.discard(program.name)

        self._tasks.start_soon(end_and_start)

    async def _kill_back_end(self) -> None:
        """One back end that is killed makes PostgreSQL drop all connections and recover."""
        with suppress(OSError, asyncpg.PostgresError, IndexError):
            os.kill(self._chance.choice(await self._world.backends()), signal.SIGKILL)
            self.done["kill -9 of a database back end"] += 1

    async def _end_back_ends(self) -> None:
        with suppress(OSError, asyncpg.PostgresError):
            for pid in await self._world.backends():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            self.done["all database connections ended"] += 1

    async def _cut_sockets(self) -> None:
        if "daemon" not in self._busy:
            await self._world.tell_daemon("drop")
            self.done["sockets to the daemon cut"] += 1

    async def _pause_briefly(self) -> None:
        self._pause(self._chance.uniform(0.3, 3), "host paused for less than a lease")

    async def _pause_beyond_the_lease(self) -> None:
        self._pause(LEASE_S + self._chance.uniform(1, 4), "host paused for more than a lease")

    def _pause(self, seconds: float, what: str) -> None:
        free = [replica for replica in self._world.replicas if replica.name not in self._busy]
        if not free:
            return
        replica = self._chance.choice(free)
        self._busy.add(replica.name)
        self.done[what] += 1

        async def pause() -> None:
            replica.send(signal.SIGSTOP)
            await anyio.sleep(seconds)
            replica.send(signal.SIGCONT)
            self._busy.discard(replica.name)

        self._tasks.start_soon(pause)
