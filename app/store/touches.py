"""Files that sessions have written: kept with the batch that tells of the tool call, and who shares them."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import structlog
from sqlalchemy import and_, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain.collisions import ProjectFile, Side, Touched
from app.domain.ids import Owner, SessionId, SessionKey, TurnId
from app.domain.touches import LAST_LINE, Lines, Tally, lines_now
from app.store.database import is_outage
from app.store.paging import Page, older_than, page
from app.store.tables import FileTouchRow, SessionRow

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_PATH = 1024
"""UTF-8 bytes of a path that is kept: an index holds no more of it."""
MAX_OTHERS = 50
"""Sessions that one touch is compared with, and that are shown of a file: those that touched it last."""
MAX_RECENT = 200
"""Sessions among which those are looked for, live or not: those that touched the file last."""
MAX_PENDING = 200
"""Touches that are looked at together."""
MAX_FORGOTTEN = 5_000
"""Touches that are forgotten at once."""


def live(alias: str) -> str:
    """SQL: whether a session counts. A turn of it runs, or it is active and has not been idle for long."""
    return f"""({alias}.status <> 'closed' AND (
        EXISTS (SELECT FROM turns r
            WHERE r.session = {alias}.id AND r.started_at IS NOT NULL AND r.ended_at IS NULL)
        OR ({alias}.status = 'active' AND {alias}.last_active_at > now() - CAST(:idle AS interval))))"""


_BEFORE = """
SELECT t.path, t.hunks, t.root = n.root AND t.remote IS NOT DISTINCT FROM n.remote AND NOT EXISTS (
    SELECT FROM file_touches o WHERE o.owner = t.owner AND o.project_id = t.project_id AND o.place = t.place
        AND o.session <> t.session AND o.touched_at >= t.touched_at) AS is_alone
FROM unnest($2::text[], $3::text[], $4::text[]) AS n(path, root, remote)
JOIN file_touches t ON t.session = $1 AND t.path = n.path
"""
"""What is known of a session's files, and whether nobody else has written the very same since."""

_WRITE = """
INSERT INTO file_touches AS t
    (session, path, owner, project_id, root, remote, kind, turn_id, lines, lines_now, hunks)
SELECT s.id, n.path, s.owner, s.project_id, n.root, n.remote, n.kind, n.turn_id,
    n.lines::int8multirange, n.lines_now::int8multirange, n.hunks::json
FROM agent_sessions s,
    unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[])
    AS n(path, root, remote, kind, turn_id, lines, lines_now, hunks)
WHERE s.id = $1 AND s.project_id IS NOT NULL
ORDER BY n.path COLLATE "C"
ON CONFLICT (session, path) DO UPDATE SET
    root = excluded.root, remote = excluded.remote, kind = excluded.kind, turn_id = excluded.turn_id,
    lines = coalesce(excluded.lines, t.lines), lines_now = excluded.lines_now, hunks = excluded.hunks,
    touched_at = now(), pending = true
"""

_IS_WHOLE = f"(upper(o.lines) > {LAST_LINE} OR upper(t.lines) > {LAST_LINE})"
_SAME_LINES = f"""coalesce(CASE
    WHEN o.place <> t.place AND coalesce(o.remote, t.remote) IS NOT NULL THEN false
    WHEN o.place <> t.place OR {_IS_WHOLE} THEN o.lines && t.lines
    WHEN t.first_at > o.touched_at AND o.touched_at = before.at THEN t.lines && o.lines_now
    END, false)"""
"""Whether the lines meet. In one file a session counts from what the last one before it has left; of two on
disks that nobody sees it is not known that they are versions of one."""

OTHERS = text(f"""
WITH t AS (
    SELECT * FROM file_touches WHERE session = :session AND path = :path
), o AS (
    SELECT r.* FROM t CROSS JOIN LATERAL (
        SELECT p.* FROM file_touches p
        WHERE p.owner = t.owner AND p.project_id = t.project_id AND p.path = t.path
            AND p.session <> t.session
        ORDER BY p.touched_at DESC LIMIT {MAX_RECENT}
    ) AS r
    UNION ALL
    SELECT r.* FROM t CROSS JOIN LATERAL (
        SELECT p.* FROM file_touches p
        WHERE p.owner = t.owner AND p.project_id = t.project_id AND p.place = t.place
            AND p.session <> t.session
        ORDER BY p.touched_at DESC LIMIT {MAX_RECENT}
    ) AS r WHERE r.path <> t.path
), before AS (
    SELECT max(o.touched_at) AS at FROM o, t WHERE o.place = t.place
)
SELECT o.session, t.root, t.remote, o.root, o.remote, o.place = t.place,
    {_SAME_LINES}, coalesce({_IS_WHOLE}, false), o.path
FROM t CROSS JOIN before CROSS JOIN o
JOIN agent_sessions s ON s.id = o.session
LEFT JOIN collisions c ON c.session_a = least(o.session, t.session)
    AND c.session_b = greatest(o.session, t.session) AND c.resolved_at IS NULL
    AND c.path = CASE WHEN length(o.path) > length(t.path) THEN o.path ELSE t.path END
WHERE {live("s")} AND (c.id IS NULL OR (c.overlap = 'same_file' AND {_SAME_LINES}))
ORDER BY o.touched_at DESC LIMIT {MAX_OTHERS}
""")  # noqa: S608 - only words of ours are put in
"""The one query of a touch: which live sessions share the file and have not been told so.

They share it by its path from the roots of both, or because it is the very same file, seen from two roots.
"""


@dataclass(frozen=True, slots=True)
class Other:
    """Another session that has written the same file, and where both have it."""

    session: SessionKey
    own_root: str
    own_remote: str | None
    root: str
    remote: str | None
    is_one_file: bool
    """Whether both have the very same file."""

    @property
    def is_on_this_machine(self) -> bool:
        """Whether both worktrees are on a disk that the backends share with us."""
        return self.own_remote is None and self.remote is None


@dataclass(frozen=True, slots=True)
class Shared:
    """What two sessions share of a file."""

    same_lines: bool
    """Whether both have told the lines that they changed, and these meet."""
    is_whole: bool
    """Whether one of them has changed every line."""
    own_path: str
    """From the session's own root."""
    path: str
    """From the other's."""

    @property
    def told(self) -> str:
        """The path by which both are told: the one from the root that is further up."""
        return max(self.own_path, self.path, key=len)


@dataclass(frozen=True, slots=True)
class Pending:
    """A touch of which nobody has told yet with whom it collides."""

    session: SessionKey
    path: str
    touched_at: datetime


def _lines(lines: Iterable[Lines] | None) -> str | None:
    if lines is None:
        return None
    return "{" + ",".join(f"[{first},{last}]" for first, last in lines) + "}"


async def write(
    connection: "asyncpg.Connection[asyncpg.Record]", session: SessionKey, touched: Sequence[Touched]
) -> None:
    """Keep what a session has written, with the batch that tells of it; each path once.

    What the database refuses is lost, and nothing else of the batch.
    """
    try:
        async with connection.transaction():  # a savepoint of the batch's own transaction
            await _write(connection, session, touched)
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        if is_outage(error):
            raise
        log.exception("touches_not_kept", session=session, files=len(touched))


async def _write(
    connection: "asyncpg.Connection[asyncpg.Record]", session: SessionKey, touched: Sequence[Touched]
) -> None:
    paths, roots = [touch.path for touch in touched], [touch.root for touch in touched]
    remotes = [touch.remote for touch in touched]
    assert len(set(paths)) == len(paths)
    before = {
        row["path"]: _tally(row["hunks"] if row["is_alone"] else None)
        for row in await connection.fetch(_BEFORE, session, paths, roots, remotes)
    }
    after = [before.get(touch.path, Tally()).after(touch.edits) for touch in touched]
    await connection.execute(
        _WRITE,
        session,
        paths,
        roots,
        remotes,
        [touch.kind for touch in touched],
        [touch.turn_id for touch in touched],
        [_lines(tally.lines) for tally in after],
        [_lines(None if tally.hunks is None else lines_now(tally.hunks)) for tally in after],
        [None if tally.hunks is None else json.dumps(tally.hunks) for tally in after],
    )


def _tally(hunks: str | None) -> Tally:
    return Tally(hunks=None if hunks is None else tuple(tuple(hunk) for hunk in json.loads(hunks)))


async def pending(
    db: AsyncSession, *, session: SessionKey | None = None, older_than_s: float = 0.0, most: int = MAX_PENDING
) -> list[Pending]:
    """Touches that wait to be looked at, oldest first; of one session, or of all."""
    query = select(FileTouchRow.session, FileTouchRow.path, FileTouchRow.touched_at).where(
        FileTouchRow.pending, FileTouchRow.touched_at <= func.now() - timedelta(seconds=older_than_s)
    )
    if session is not None:
        query = query.where(FileTouchRow.session == session)
    rows = await db.execute(query.order_by(FileTouchRow.touched_at).limit(most))
    return [Pending(SessionKey(key), path, at) for key, path, at in rows]


async def others(
    db: AsyncSession, session: SessionKey, path: str, idle: timedelta
) -> list[tuple[Other, Shared]]:
    """The live sessions that share a file and have not been told so, and what of it they share.

    Who touched it last comes first.
    """
    rows = await db.execute(OTHERS, {"session": session, "path": path, "idle": idle})
    return [(Other(SessionKey(row[0]), *row[1:6]), Shared(row[6], row[7], path, row[8])) for row in rows]


async def looked_at(db: AsyncSession, touches: Sequence[Pending]) -> None:
    """Say that these were looked at; one that was touched again meanwhile waits on."""
    for touch in sorted(touches, key=lambda each: (each.session, each.path)):
        await db.execute(
            text("""
            UPDATE file_touches SET pending = false
            WHERE session = :session AND path = :path AND touched_at = :at AND pending
            """),
            {"session": touch.session, "path": touch.path, "at": touch.touched_at},
        )


async def forget(db: AsyncSession, session: SessionKey) -> None:
    """A session is over: what it wrote collides with nobody any more."""
    await db.execute(
        text("""
        DELETE FROM file_touches d USING (
            SELECT t.session, t.path FROM file_touches t
            WHERE t.session = :session ORDER BY t.path COLLATE "C" FOR UPDATE
        ) AS old
        WHERE d.session = old.session AND d.path = old.path
        """),  # in the order in which they are written and looked at
        {"session": session},
    )


async def forget_idle(db: AsyncSession, idle: timedelta) -> None:
    """Forget what sessions wrote that have been idle for long, what is oldest first."""
    await db.execute(
        text(f"""
        DELETE FROM file_touches d USING (
            SELECT t.session, t.path FROM file_touches t JOIN agent_sessions s ON s.id = t.session
            WHERE t.touched_at < now() - CAST(:idle AS interval) AND NOT {live("s")}
            ORDER BY t.touched_at LIMIT {MAX_FORGOTTEN} FOR UPDATE OF t SKIP LOCKED
        ) AS old
        WHERE d.session = old.session AND d.path = old.path
        """),  # noqa: S608 - only words of ours are put in
        {"idle": idle},
    )


async def list_files(
    db: AsyncSession, owner: Owner, project_id: str, *, idle: timedelta, limit: int, cursor: str | None
) -> Page[ProjectFile]:
    """The files that live sessions of a project have written, last written first."""
    is_live = text(live("agent_sessions")).bindparams(idle=idle)
    mine = (FileTouchRow.owner == owner, FileTouchRow.project_id == project_id, is_live)
    files = (
        select(FileTouchRow.path, func.max(FileTouchRow.touched_at).label("at"))
        .join(SessionRow, SessionRow.id == FileTouchRow.session)
        .where(*mine)
        .group_by(FileTouchRow.path)
        .subquery()
    )
    shown = select(files.c.path, files.c.at).order_by(files.c.at.desc(), files.c.path.desc()).limit(limit + 1)
    condition = older_than(cursor, files.c.at, files.c.path)
    shown_files = (shown if condition is None else shown.where(condition)).subquery()
    last_first = (FileTouchRow.touched_at.desc(), FileTouchRow.session)
    place = func.row_number().over(partition_by=FileTouchRow.path, order_by=last_first)
    ranked = (
        select(FileTouchRow.session, FileTouchRow.path, shown_files.c.at, place.label("place"))
        .join(SessionRow, SessionRow.id == FileTouchRow.session)
        .join(shown_files, shown_files.c.path == FileTouchRow.path)
        .where(*mine)
        .subquery()
    )
    is_ranked = and_(ranked.c.session == FileTouchRow.session, ranked.c.path == FileTouchRow.path)
    rows = await db.execute(  # one statement: of a file that is shown, who wrote it is shown, too
        select(ranked.c.at, FileTouchRow, SessionRow.session_id, SessionRow.worktree_id)
        .join(SessionRow, SessionRow.id == FileTouchRow.session)
        .join(ranked, is_ranked)
        .where(ranked.c.place <= MAX_OTHERS)
        .order_by(ranked.c.at.desc(), FileTouchRow.path.desc(), *last_first)
    )
    found: dict[str, ProjectFile] = {}
    for at, touch, session_id, worktree_id in rows:
        file = found.setdefault(touch.path, ProjectFile(path=touch.path, touched_at=at, sides=[]))
        file.sides.append(side(touch, session_id, worktree_id))
    return page([(file.touched_at, file.path, file) for file in found.values()], limit)


def side(touch: Any, session_id: str, worktree_id: str | None) -> Side:
    """A session's part in a file."""
    return Side(
        session=SessionKey(touch.session),
        session_id=SessionId(session_id),
        turn_id=TurnId(touch.turn_id) if touch.turn_id else None,
        worktree_id=worktree_id,
        kind=touch.kind,
        at=touch.touched_at,
    )
