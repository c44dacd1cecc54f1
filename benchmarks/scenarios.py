"""What is measured: each scenario runs on both servers and says what one unit of it costs on each.

Budgets come from prototypes of the same shapes, so what is over its budget has something to give.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from statistics import quantiles
from typing import Literal, TypeAlias

from benchmarks.servers import Gateway, Raw, Server
from benchmarks.workload import Work

SETTLE_S = 0.3
"""Seconds that a server gets to notice that its readers have left."""
NOMINAL_WRITE_US = 20.0
"""What the raw server's paced write cost where the budgets in microseconds were found."""

Unit: TypeAlias = Literal["µs", "ms", "KB"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured."""

    events: int
    seconds: float
    rounds: int
    subscribers: int
    sessions: int
    streams: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What one unit costs on each server; null where the raw one has no such thing."""

    name: str
    unit: Unit
    ours: float
    raw: float | None = None
    ratio_budget: float | None = None
    """Budget of ours by raw."""
    budget: float | None = None
    """Budget of `ours`, in its unit; microseconds are those of the nominal machine."""
    rate: float | None = None
    raw_rate: float | None = None
    """Events a second."""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours by raw."""
        return self.ours / self.raw if self.raw else None

    def budget_here(self, write_us: float) -> float | None:
        """The budget in this figure's unit, on a machine whose raw paced write costs `write_us`."""
        if self.budget is not None:
            return self.budget * (write_us / NOMINAL_WRITE_US if self.unit == "µs" else 1.0)
        if self.ratio_budget is not None and self.raw is not None:
            return self.ratio_budget * self.raw
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Sources that emit, and how many follow each."""

    works: tuple[Work, ...]
    subscribers: int = 1
    stamps: bool = False

    @property
    def events(self) -> int:
        """Events that are emitted."""
        return sum(work.events for work in self.works)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a load cost, in all; seconds."""

    cpu: float
    wall: float
    events: int
    database_cpu: float = 0.0
    reads: int = 0
    ages_ms: list[float] = field(default_factory=list)

    @property
    def each_us(self) -> float:
        """Microseconds of CPU time for each delivered event."""
        return self.cpu / self.events * 1e6

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.events / self.wall

    @property
    def database(self) -> str:
        """What PostgreSQL's processes spent beside."""
        return f"PostgreSQL {self.database_cpu / self.events * 1e6:.1f} µs"


def run_load(server: Server, load: Load) -> Measured:
    """Emit once: from the word go until the last reader has it all; without readers, until it is logged."""
    paths = server.arm(load.works)
    with server.readers(stamps=load.stamps) as readers:
        readers.open(path for path in paths for _ in range(load.subscribers))
        readers.read_for(SETTLE_S)
        readers.reads = 0
        database, cpu, began = server.database_cpu(), server.cpu(), time.monotonic()
        server.do("go")
        if load.subscribers:
            readers.read_events(load.events * load.subscribers)
        else:
            server.logged()
        measured = Measured(
            wall=time.monotonic() - began,
            cpu=server.cpu() - cpu,
            database_cpu=server.database_cpu() - database,
            events=load.events * (load.subscribers or 1),
            reads=readers.reads,
            ages_ms=readers.ages_ms,
        )
    server.end()
    time.sleep(SETTLE_S)
    return measured


def _best(measured: Iterable[Measured]) -> Measured:
    """The round that was disturbed least: neighbours only ever add CPU time."""
    return min(measured, key=lambda each: each.cpu)


def _runs(rounds: int, *loads: tuple[Server, Load]) -> list[Measured]:
    """Each load's best round; the loads take turns, so that a noisy minute meets all of them."""
    found = [[run_load(server, load) for server, load in loads] for _ in range(rounds)]
    return [_best(column) for column in zip(*found, strict=True)]


def write_us(raw: Raw, size: Size) -> float:
    """The yardstick: one paced write of one event by the raw server, in microseconds."""
    load = Load(works=(Work(int(20 * size.seconds), rate=20),), subscribers=100)
    (measured,) = _runs(size.rounds, (raw, load))
    return measured.each_us


def _path(
    name: str,
    gateway: Gateway,
    raw: Raw,
    load: Load,
    raw_load: Load,
    rounds: int,
    *,
    log_budget: float | None = None,
    budget: float | None = None,
    ratio_budget: float | None = None,
) -> list[Figure]:
    """The whole path, and its halves: the log by itself, and what each delivery adds to that."""
    log, base, ours = _runs(rounds, (gateway, replace(load, subscribers=0)), (raw, raw_load), (gateway, load))
    return [
        Figure(
            name=f"{name}: log only",
            unit="µs",
            ours=log.each_us,
            budget=log_budget,
            rate=log.rate,
            note=log.database,
        ),
        Figure(
            name=f"{name}: read and write",
            unit="µs",
            ours=(ours.cpu - log.cpu) / ours.events * 1e6,
            raw=base.each_us,
            budget=budget,
            ratio_budget=ratio_budget,
            note=f"{ours.events / max(ours.reads, 1):.1f} events a read",
        ),
        Figure(
            name=f"{name}: whole path",
            unit="µs",
            ours=ours.each_us,
            raw=base.each_us,
            rate=ours.rate,
            raw_rate=base.rate,
            note=ours.database,
        ),
    ]


def one(gateway: Gateway, raw: Raw, size: Size) -> list[Figure]:
    """One session, one subscriber."""
    slow = Load(works=(Work(int(200 * size.seconds), rate=200),))
    fast = Load(works=(Work(size.events),))
    return [
        *_path("one, paced", gateway, raw, slow, slow, size.rounds, ratio_budget=1.0),
        *_path("one, flat out", gateway, raw, fast, fast, size.rounds, log_budget=9.0, budget=2.6),
    ]


def fanout(gateway: Gateway, raw: Raw, size: Size) -> list[Figure]:
    """Many subscribers of one session."""
    slow = Load(works=(Work(int(20 * size.seconds), rate=20),), subscribers=size.subscribers)
    fast = Load(works=(Work(max(size.events // 2, 1)),), subscribers=size.subscribers)
    fewer = replace(fast, works=(Work(max(size.events // 10, 1)),))
    return [
        *_path("fan-out, paced", gateway, raw, slow, slow, size.rounds, ratio_budget=1.0)[1:],
        *_path("fan-out, flat out", gateway, raw, fast, fewer, size.rounds, budget=0.5)[1:],
    ]


def sessions(gateway: Gateway, raw: Raw, size: Size) -> list[Figure]:
    """Many sessions at the pace of an agent that speaks, each with its subscriber: how old events arrive."""
    rate = 15.0
    works = tuple(
        Work(int(rate * size.seconds), rate=rate, phase_s=number / rate / size.sessions)
        for number in range(size.sessions)
    )
    load = Load(works=works, stamps=True)
    base, ours = _runs(size.rounds, (raw, load), (gateway, load))
    age, raw_age = quantiles(ours.ages_ms, n=100), quantiles(base.ages_ms, n=100)
    return [
        Figure(
            name="sessions, paced: whole path",
            unit="µs",
            ours=ours.each_us,
            raw=base.each_us,
            rate=ours.rate,
            raw_rate=base.rate,
            note=ours.database,
        ),
        Figure(name="sessions, paced: age at p50", unit="ms", ours=age[49], raw=raw_age[49], budget=0.7),
        Figure(name="sessions, paced: age at p99", unit="ms", ours=age[98], raw=raw_age[98], budget=7.0),
    ]


def _visits(server: Server, path: str, events: int, times: int) -> Measured:
    """A stream opened, so many events read, and left; so many times."""
    database, cpu, began = server.database_cpu(), server.cpu(), time.monotonic()
    for _ in range(times):
        with server.readers() as readers:
            readers.open([path])
            readers.read_events(events)
    wall = time.monotonic() - began
    time.sleep(SETTLE_S)
    return Measured(
        wall=wall,
        cpu=server.cpu() - cpu,
        database_cpu=server.database_cpu() - database,
        events=max(events, 1) * times,
    )


def _replayed(
    name: str, gateway: Gateway, raw: Raw, stream: str, events: int, times: int, budget: float, rounds: int
) -> Figure:
    """Replay of the last `events` events, without what opening a stream costs anyway."""
    last = gateway.last_seq(stream)
    visits = (
        (gateway, f"{stream}?after={last}", 0),
        (gateway, f"{stream}?after={last - events}", events),
        (raw, "/replay/0", 0),
        (raw, f"/replay/{events}", events),
    )
    found = [[_visits(server, path, count, times) for server, path, count in visits] for _ in range(rounds)]
    empty, full, raw_empty, raw_full = map(_best, zip(*found, strict=True))
    return Figure(
        name=name,
        unit="µs",
        ours=(full.cpu - empty.cpu) / full.events * 1e6,
        raw=(raw_full.cpu - raw_empty.cpu) / full.events * 1e6,
        budget=budget,
        rate=full.rate,
        raw_rate=raw_full.rate,
        note=full.database,
    )


def replay(gateway: Gateway, raw: Raw, size: Size) -> list[Figure]:
    """What was logged before: from PostgreSQL where nobody followed, from memory where somebody does."""
    long, short = size.events, min(size.events, 800)
    (stream,) = gateway.arm([Work(long)])
    gateway.do("go")
    gateway.logged()
    figures = [_replayed("replay from PostgreSQL", gateway, raw, stream, long, 8, 2.0, size.rounds)]
    gateway.end()
    (stream,) = gateway.arm([Work(short)])
    with gateway.readers() as follower:
        follower.open([stream])
        gateway.do("go")
        follower.read_events(short)
        figures.append(_replayed("replay from memory", gateway, raw, stream, short, 40, 1.0, size.rounds))
    gateway.end()
    return figures


def connect(gateway: Gateway, raw: Raw, size: Size) -> list[Figure]:
    """A stream opened, caught up and left."""
    (path,), (raw_path,) = gateway.arm([Work(0)]), raw.arm([Work(0)])
    found = [(_visits(gateway, path, 0, 60), _visits(raw, raw_path, 0, 60)) for _ in range(size.rounds)]
    ours, base = map(_best, zip(*found, strict=True))
    gateway.end()
    return [
        Figure(
            name="connect and disconnect",
            unit="µs",
            ours=ours.each_us,
            raw=base.each_us,
            ratio_budget=2.0,
            rate=ours.rate,
            raw_rate=base.rate,
            note=ours.database,
        )
    ]


def idle(gateway: Gateway, raw: Raw, size: Size) -> list[Figure]:
    """Streams on which nothing happens: what each keeps in memory, and what its comments cost."""
    found: list[tuple[float, float]] = []
    for server in (gateway, raw):
        (path,) = server.arm([Work(0)])
        with server.readers() as few:
            few.open([path] * 20)
        time.sleep(SETTLE_S)
        before = server.rss()
        pings: list[float] = []
        with server.readers() as readers:
            readers.open([path] * size.streams)
            kilobytes = (server.rss() - before) / size.streams / 1024
            readers.read_for(1.5)
            for _ in range(size.rounds):
                cpu, readers.pings = server.cpu(), 0
                readers.read_for(2.0)
                pings.append((server.cpu() - cpu) / max(readers.pings, 1) * 1e6)
        found.append((kilobytes, min(pings)))
        server.end()
        time.sleep(SETTLE_S)
    (memory, ping), (raw_memory, raw_ping) = found
    return [
        Figure(name="idle stream: memory", unit="KB", ours=memory, raw=raw_memory, budget=22.0),
        Figure(name="idle stream: heartbeat", unit="µs", ours=ping, raw=raw_ping, ratio_budget=1.0),
    ]


Scenario: TypeAlias = Callable[[Gateway, Raw, Size], list[Figure]]

SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario for scenario in (idle, connect, one, fanout, sessions, replay)
}
"""In their order: memory is measured before anything else has grown the processes."""
