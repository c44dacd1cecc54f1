"""Who hosts a session: columns of its row, the database's clock, a generation that fences a late host out."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import text

from app.domain.ids import SessionKey
from app.store.database import Database, offer_after_commit
from app.store.health import FRESH_S

LEASE_S = 15.0
"""Seconds that a lease lasts without renewal, unless a setting says otherwise."""
RENEWALS = 3
"""Renewals in the time of one lease: each is one statement for all of a process's sessions."""
GUARD_GRACE_S = 5.0
"""Seconds past the lease after which a child of the old host is surely gone."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to act for a session, as long as `generation` is the row's."""

    session: SessionKey
    generation: int


_CLAIM = text("""
WITH free AS (
    SELECT id FROM agent_sessions
    WHERE (CAST(:only AS bigint) IS NULL OR id = :only)
      AND (backend = ANY(:backends) OR NOT EXISTS (  -- a backend that nobody has configured any more
            SELECT FROM backend_health h
            WHERE h.backend = agent_sessions.backend AND h.seen_at > now() - make_interval(secs => :fresh)))
      AND ((wanted AND host IS NULL)
           OR (:expired AND host IS NOT NULL AND host_until < now() - make_interval(
                secs => CASE WHEN backend = ANY(:mortal) OR NOT backend = ANY(:backends)
                             THEN :grace ELSE 0 END)))
    ORDER BY id LIMIT :most FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE agent_sessions s
SET host = :replica, host_generation = host_generation + 1,
    host_until = now() + make_interval(secs => :lease),
    foreign_busy = false  -- nobody knows until the agent is looked at
FROM free WHERE s.id = free.id
RETURNING s.id, s.host_generation
""")

_RENEW = text("""
WITH mine AS (
    SELECT id FROM agent_sessions WHERE host = :replica ORDER BY id FOR NO KEY UPDATE
)
UPDATE agent_sessions s SET host_until = now() + make_interval(secs => :lease) FROM mine WHERE s.id = mine.id
RETURNING s.id, s.host_generation
""")


class Leases:
    """This process's leases, in the database."""

    def __init__(
        self,
        database: Database,
        replica: str,
        backends: Collection[str],
        mortal: Collection[str],
        *,
        lease_s: float = LEASE_S,
    ) -> None:
        """`mortal`: backends whose agents end with their host; these are taken over a little later."""
        self.lease_s = lease_s
        self.renew_s = lease_s / RENEWALS
        self._database = database
        self._replica = replica
        self._backends = list(backends)
        self._mortal = list(mortal)

    async def claim(
        self, *, only: SessionKey | None = None, expired: bool = True, most: int = 100
    ) -> list[Lease]:
        """Take sessions with something to do that nobody hosts, and if `expired` those of silent hosts."""
        async with self._database.begin() as db:
            rows = await db.execute(
                _CLAIM,
                {
                    "backends": self._backends,
                    "mortal": self._mortal,
                    "only": only,
                    "expired": expired,
                    "most": most,
                    "replica": self._replica,
                    "lease": self.lease_s,
                    "grace": GUARD_GRACE_S,
                    "fresh": FRESH_S,
                },
            )
            return [Lease(SessionKey(key), generation) for key, generation in rows]

    async def renew(self) -> set[Lease]:
        """Renew every lease of this process, and say which it has."""
        async with self._database.begin() as db:
            rows = await db.execute(_RENEW, {"replica": self._replica, "lease": self.lease_s})
            return {Lease(SessionKey(key), generation) for key, generation in rows}

    async def release(self, lease: Lease, *, wanted: bool = False) -> None:
        """Hand a session back; with `wanted`, to whoever takes it first: the others are rung."""
        async with self._database.begin() as db:
            await db.execute(
                text("""
                UPDATE agent_sessions SET host = NULL, host_until = NULL, foreign_busy = false,
                    wanted = wanted OR :wanted
                WHERE id = :key AND host = :replica AND host_generation = :generation
                """),
                {
                    "key": lease.session,
                    "generation": lease.generation,
                    "replica": self._replica,
                    "wanted": wanted,
                },
            )
            if wanted:
                offer_after_commit(db)

    async def take_everything(self) -> None:
        """Free every lease: only for a process that knows it is alone with this database."""
        async with self._database.begin() as db:
            await db.execute(
                text(
                    "UPDATE agent_sessions SET host = NULL, host_until = NULL, wanted = true "
                    "WHERE host IS NOT NULL"
                )
            )

    async def wanted(self) -> list[SessionKey]:
        """The sessions of this process for which an intent waits."""
        async with self._database.begin() as db:
            rows = await db.scalars(
                text("SELECT id FROM agent_sessions WHERE wanted AND host = :replica"),
                {"replica": self._replica},
            )
            return [SessionKey(key) for key in rows]
