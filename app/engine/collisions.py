"""Collisions: found after the batch that tells of a write, told to both logs, resolved by two rules.

A touch is committed first and compared afterwards, each touch in both directions: of two that are written at
the same time at least one finds the other, and the unique index of the open ones lets only one tell.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import timedelta
from functools import partial

import anyio
import structlog

from app.domain.collisions import Collision, CollisionStatus, ProjectFile
from app.domain.errors import DatabaseUnavailable
from app.domain.events import Event, Resolution
from app.domain.ids import CollisionId, Owner, SessionKey
from app.engine.merging import MERGE_S, Unrelated, conflicting
from app.engine.repositories import IsAllowed
from app.store import collisions, eventlog, sessions, touches
from app.store.collisions import Pair, Party
from app.store.database import Database, Transaction
from app.store.paging import Page
from app.store.touches import Other, Shared

log = structlog.get_logger(__name__)

SWEEP_S = 10.0
"""Seconds between two looks for what ended, and for what a process left unsaid; less where idle is less."""
LEFT_UNSAID_S = 5.0
"""Seconds after which a touch that nobody has looked at is taken for left behind."""
MERGES = 2
"""Merges that are tried at once."""

UNRELATED_S = 300.0
"""Seconds for which it is believed that two repositories have nothing in common."""
MAX_UNRELATED = 1_000
"""Pairs of them that are remembered; with more, all are asked about again."""


class Collisions:
    """Finds, tells and resolves collisions; the use-cases on them, within the caller's owner."""

    def __init__(self, database: Database, *, idle_s: float, may_read: IsAllowed) -> None:
        """`idle_s`: seconds without a running turn or an event after which a session counts no more.

        `may_read` says of which paths git may be asked.
        """
        self._database = database
        self._may_read = may_read
        self._idle = timedelta(seconds=idle_s)
        self._unrelated: dict[frozenset[str], float] = {}
        """Roots of repositories that have nothing in common, and until when nobody asks again."""
        self._merges = anyio.Semaphore(MERGES)

    # Read.

    async def get(self, owner: Owner, collision_id: CollisionId) -> Collision:
        """The collision.

        Raises:
            CollisionNotFound: it is missing or somebody else's.
        """
        async with self._database.begin() as db:
            return await collisions.get(db, owner, collision_id)

    async def list_collisions(
        self,
        owner: Owner,
        *,
        project_id: str | None,
        status: CollisionStatus | None,
        limit: int,
        cursor: str | None,
    ) -> Page[Collision]:
        """A page of the owner's collisions, newest first."""
        async with self._database.begin() as db:
            return await collisions.list_collisions(
                db, owner, project_id=project_id, status=status, limit=limit, cursor=cursor
            )

    async def list_files(
        self, owner: Owner, project_id: str, *, limit: int, cursor: str | None
    ) -> Page[ProjectFile]:
        """A page of the files that live sessions of a project have written, last written first."""
        async with self._database.begin() as db:
            return await touches.list_files(
                db, owner, project_id, idle=self._idle, limit=limit, cursor=cursor
            )

    # Find and tell.

    async def look(self, session: SessionKey) -> None:
        """Tell of every collision of what the session has written and nobody has looked at.

        Waits for as long as the database is down. What cannot be looked at is left to the sweep: the agent,
        whose next events wait for this, goes on.
        """
        try:
            while await self._database.retrying(partial(self._look, session)) == touches.MAX_PENDING:
                pass
        except Exception:
            log.exception("collisions_not_found", session=session)

    async def _look(self, session: SessionKey) -> int:
        """Look at some of it; how much that was."""
        met: defaultdict[Other, dict[str, Shared]] = defaultdict(dict)
        async with self._database.begin() as db:
            found = await touches.pending(db, session=session)
            for touch in found:
                for other, shared in await touches.others(db, session, touch.path, self._idle):
                    met[other][shared.told] = shared
            if not met:
                await touches.looked_at(db, found)
        deadline = anyio.current_time() + MERGE_S
        for other, paths in met.items():
            await self._meet(session, other, paths, deadline)
        if met:
            async with self._database.begin() as db:
                await touches.looked_at(db, found)
        return len(found)

    async def _conflicts(
        self, other: Other, paths: Mapping[str, Shared], deadline: float
    ) -> Mapping[str, bool | None]:
        """Git's word, if it can be had until then: all who write the file share the time.

        Raises:
            Unrelated: they are two repositories that have nothing in common.
        """
        if other.is_one_file or not other.is_on_this_machine:
            return {}
        roots = frozenset((other.own_root, other.root))
        if self._unrelated.get(roots, 0.0) > anyio.current_time():
            raise Unrelated
        with anyio.move_on_at(deadline):
            async with self._merges:
                rest = deadline - anyio.current_time()
                try:
                    return await conflicting(
                        other.own_root, other.root, list(paths), self._may_read, within_s=rest
                    )
                except Unrelated:
                    if len(self._unrelated) >= MAX_UNRELATED:
                        self._unrelated.clear()
                    self._unrelated[roots] = anyio.current_time() + UNRELATED_S
                    raise
        return {}

    async def _meet(
        self, session: SessionKey, other: Other, paths: Mapping[str, Shared], deadline: float
    ) -> None:
        """Tell of the files that a session shares with another."""
        try:
            conflicts = await self._conflicts(other, paths, deadline)
        except Unrelated:
            return
        pair = Pair.of(session, other.session)
        async with self._database.begin() as db:
            parties = await collisions.lock(db, pair, self._idle)
            if len(parties) < 2 or not all(party.is_live for party in parties.values()):
                return
            for path, shared in paths.items():
                conflict = conflicts.get(path)
                # Two texts that git merges did not change the same lines, however these were counted.
                same_lines = shared.same_lines and (shared.is_whole or conflict is not False)
                own_paths = (shared.own_path, shared.path)
                if session != pair.a:
                    own_paths = (shared.path, shared.own_path)
                opened = await collisions.open_one(
                    db,
                    pair,
                    path,
                    own_paths=own_paths,
                    severity="overwrite" if other.is_one_file else "merge",
                    overlap="same_lines" if same_lines else "same_file",
                    merge_conflict=conflict,
                )
                if opened is not None:
                    await _tell(db, opened, parties, opened.opened())
                    log.info("files_collide", collision_id=opened.id, severity=opened.severity)

    # Resolve.

    async def leave(self, session: SessionKey) -> None:
        """The session is about to be closed: resolve what is open of it, and forget what it wrote."""
        await self._database.retrying(partial(self._leave, session))

    async def _leave(self, session: SessionKey) -> None:
        async with self._database.begin() as db:
            await sessions.lock(db, session)  # whoever is about to tell of a collision comes before or after
            await touches.forget(db, session)
            pairs = await collisions.pairs_of(db, session)
        for pair in pairs:
            await self._resolve(pair, "session_closed")

    async def _resolve(self, pair: Pair, reason: Resolution | None = None) -> None:
        """Resolve what is open of a pair; without a reason, if one of them counts no more."""
        async with self._database.begin() as db:
            parties = await collisions.lock(db, pair, self._idle)
            reason = reason or _why_ended(parties.values())
            if reason is None:
                return
            for one in await collisions.resolve(db, pair, reason):
                await _tell(db, one, parties, one.resolved(reason))

    # Sweep.

    async def run(self) -> None:
        """Look again and again for what ended, and for what a process that is gone left unsaid."""
        while True:
            await anyio.sleep(min(SWEEP_S, self._idle.total_seconds() / 2))
            try:
                await self.sweep()
            except DatabaseUnavailable:
                log.warning("collisions_not_swept")
            except Exception:
                log.exception("collisions_sweep_crashed")

    async def sweep(self) -> None:
        """Tell what was left unsaid, resolve what ended, forget what is of no use.

        Any number of processes may do so at once.
        """
        async with self._database.begin() as db:
            unsaid = await touches.pending(db, older_than_s=LEFT_UNSAID_S)
        for session in dict.fromkeys(touch.session for touch in unsaid):
            try:
                await self._look(session)
            except DatabaseUnavailable:
                raise
            except Exception:  # what one session wrote keeps nobody from hearing of the others
                log.exception("collisions_not_found", session=session)
        async with self._database.begin() as db:
            ended = await collisions.pairs_that_ended(db, self._idle)
        for pair in ended:
            await self._resolve(pair)
        async with self._database.begin() as db:
            await touches.forget_idle(db, self._idle)


def _why_ended(parties: Iterable[Party]) -> Resolution | None:
    """Why those that count no more do not; null if all do."""
    ended = [party.status for party in parties if not party.is_live]
    if not ended:
        return None
    return "session_idle" if set(ended) == {"active"} else "session_closed"


async def _tell(
    db: Transaction, collision: Collision, parties: dict[SessionKey, Party], event: Event
) -> None:
    """Log it with both, their rows being locked; `session.closed` stays the last event of a closed one."""
    for side in sorted(collision.sides, key=lambda each: each.session):
        party = parties.get(side.session)
        if party is not None and party.status != "closed":
            draft = eventlog.draft(party.session_id, party.turn_of(side), event)
            await eventlog.record(db, side.session, draft)
