"""One run: start everything, let clients work while things break, heal, gather the evidence."""

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import asyncpg

from benchmarks.chaos.checker import Evidence, Row, TurnRow
from benchmarks.chaos.clients import Client
from benchmarks.chaos.faults import Adversary
from benchmarks.chaos.world import RealDaemon, World, open_world

KINDS = ("scripted", "scripted", "opencode", "demo")
"""What the clients' agents are, in turn: two providers of the daemon, and an ACP agent of our own."""
REAL_KINDS = ("scripted", "scripted", "demo")
CALM_S = 2.0


@dataclass
class Figures:
    """What happened, in numbers."""

    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    turns: Counter[str] = field(default_factory=Counter)
    events: int = 0
    seen: int = 0
    streams: int = 0
    answers: Counter[int] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [
            f"{self.seconds:.0f} s, {self.kills} kills",
            *(f"  {count:5} {what}" for what, count in sorted(self.faults.items())),
            "turns: " + ", ".join(f"{count} {status}" for status, count in self.turns.most_common()),
            f"events: {self.events} in the table, {self.seen} seen over {self.streams} streams",
            "answers: " + ", ".join(f"{count} x {status}" for status, count in sorted(self.answers.items())),
        ]
        return "\n".join(lines)


async def run(
    folder: Path,
    *,
    kills: int,
    clients: int,
    seed: int,
    say: Callable[[str], None],
    sabotage: str | None = None,
    daemon: RealDaemon | None = None,
) -> tuple[Evidence, Figures]:
    """Let `clients` work until `kills` processes were killed; `folder` holds everything that is written.

    `sabotage` is SQL that breaks a promise behind the service's back, to see that it is noticed.
    """
    chance = random.Random(seed)
    begun, figures = time.monotonic(), Figures()
    kinds = KINDS if daemon is None else REAL_KINDS
    async with open_world(folder, daemon) as world:
        callers = [
            Client(world, f"c{number}", kinds[number % len(kinds)], random.Random(chance.random()))
            for number in range(clients)
        ]
        async with anyio.create_task_group() as working:
            for caller in callers:
                working.start_soon(caller.run)
            await anyio.sleep(CALM_S)
            async with anyio.create_task_group() as breaking:
                adversary = Adversary(world, chance, breaking)
                breaking.start_soon(_tell_progress, adversary, kills, callers, say)
                await adversary.break_things(kills)
            say("healing")
            await world.heal()
            await anyio.sleep(CALM_S)
            for caller in callers:
                caller.stopping = True
        say("gathering")
        evidence = await _gather(world, callers, sabotage)
    figures.seconds = time.monotonic() - begun
    figures.faults, figures.kills = adversary.done, adversary.kills
    figures.turns = Counter(turn.status for turn in evidence.turns)
    figures.events, figures.seen = len(evidence.rows), len(evidence.seen)
    figures.streams = sum(caller.reopened for caller in callers)
    for caller in callers:
        figures.answers += caller.answers
    return evidence, figures


async def _tell_progress(
    adversary: Adversary, kills: int, callers: list[Client], say: Callable[[str], None]
) -> None:
    while adversary.kills < kills:
        turns, events = sum(len(c.admitted) for c in callers), sum(len(c.seen) for c in callers)
        say(f"{adversary.kills} of {kills} kills, {turns} turns, {events} events seen")
        await anyio.sleep(5)


async def _gather(world: World, callers: list[Client], sabotage: str | None) -> Evidence:
    """Everything that the tables, the clients and the agents know."""
    connection = await asyncpg.connect(world.database_url)
    try:
        if sabotage is not None:
            await connection.execute(sabotage)
        rows = await connection.fetch(
            "SELECT s.session_id, e.seq, e.type, e.turn_id, e.body"
            " FROM events e JOIN agent_sessions s ON s.id = e.session"
        )
        turns = await connection.fetch(
            "SELECT t.id, s.session_id, t.status, t.delivered, t.first_seq, t.last_seq"
            " FROM turns t JOIN agent_sessions s ON s.id = t.session"
        )
        still_open = await connection.fetch(
            "SELECT 'turn ' || id || ' ' || status AS what FROM turns WHERE ended_at IS NULL"
            " UNION ALL SELECT 'permission ' || id || ' ' || status FROM permissions"
            " WHERE status IN ('pending', 'answering')"
            " UNION ALL SELECT kind || ' intent' FROM intents WHERE done_at IS NULL"
        )
    finally:
        await connection.close()
    evidence = Evidence(
        rows=[Row(*row) for row in rows],
        turns=[TurnRow(*row) for row in turns],
        left_open=[row["what"] for row in still_open],
    )
    asked = "\n".join(world.prompts())
    for caller in callers:
        evidence.seen += caller.seen
        evidence.admitted += caller.admitted
        evidence.told += caller.told
        for one in caller.admitted:
            evidence.asked[one.key] = asked.count(one.key)
    return evidence
