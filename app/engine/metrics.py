"""What this process counts and measures, in Prometheus's text format.

Labels are names of ours and of the configuration: never a session, an owner, or anything that a caller wrote.
"""

from collections import Counter as Counts
from collections.abc import Iterable

import anyio
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.process_collector import ProcessCollector

from app.domain.errors import DatabaseUnavailable
from app.domain.turns import ENDS
from app.engine.health import Healths
from app.engine.hosts import Hosts
from app.engine.streams import Streams

CONTENT_TYPE = CONTENT_TYPE_LATEST
"""The media type of what `render` gives."""
LOAD_S = 3.0
"""Seconds that the database has for a scrape; without it what it would tell is left out."""
APPEND_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60)
"""Seconds. A commit takes a few milliseconds; one lease time and more is an outage."""
_ENDS = {f"turn.{end}": str(end) for end in ENDS}


class Metrics:
    """One registry a process: what was counted as it happened, and what is looked up for a scrape."""

    def __init__(self, healths: Healths, streams: Streams, hosts: Hosts) -> None:
        self._healths = healths
        self._streams = streams
        self._hosts = hosts
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._ended = Counter(
            "alameda_turns_ended", "Turns whose end this process wrote.", ["end"], registry=registry
        )
        for end in _ENDS.values():
            self._ended.labels(end)
        self._appended = Counter(
            "alameda_events_appended", "Events that this process committed.", ["type"], registry=registry
        )
        self._append = Histogram(
            "alameda_append_seconds",
            "From an agent's event to its commit.",
            buckets=APPEND_BUCKETS,
            registry=registry,
        )
        self._open = Gauge("alameda_streams_open", "Open event streams of this process.", registry=registry)
        self._leases = Gauge("alameda_leases_held", "Sessions that this process hosts.", registry=registry)
        self._database = Gauge("alameda_database_up", "Whether the database answers.", registry=registry)
        self._up = Gauge(
            "alameda_backend_up", "Whether this process last saw it up.", ["backend"], registry=registry
        )
        self._turns = Gauge(
            "alameda_turns_open",
            "Open turns of all processes.",
            ["backend", "state"],
            registry=registry,
        )

    def count(self, types: Iterable[str]) -> None:
        """Events of these types were committed."""
        for name, number in Counts(types).items():
            self._appended.labels(name).inc(number)
            if name in _ENDS:
                self._ended.labels(_ENDS[name]).inc(number)

    def measure_append(self, seconds: float) -> None:
        """An agent's events were committed so long after they came."""
        self._append.observe(seconds)

    async def render(self) -> bytes:
        """Everything, as it stands; without the load of the backends while the database is away."""
        self._open.set(self._streams.open)
        self._leases.set(self._hosts.held)
        for backend, seen in self._healths.backends():
            self._up.labels(backend.name).set(seen.up)
        self._turns.clear()
        answers = False
        try:
            with anyio.move_on_after(LOAD_S):
                load = await self._healths.load()
                answers = True
                for backend, _ in self._healths.backends():
                    for state in ("running", "queued"):
                        number = load.get(backend.name, {}).get(state, 0)
                        self._turns.labels(backend.name, state).set(number)
        except DatabaseUnavailable:
            pass
        self._database.set(answers)
        return generate_latest(self._registry)
