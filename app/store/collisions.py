"""Collisions' rows: at most one open a pair of sessions and file, whoever finds it and however often."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app.domain.collisions import Collision, CollisionStatus, Side
from app.domain.errors import CollisionNotFound
from app.domain.events import Overlap, Resolution, Severity
from app.domain.ids import CollisionId, Owner, SessionId, SessionKey, TurnId, new_collision_id
from app.store.paging import Page, older_than, page
from app.store.tables import CollisionRow, FileTouchRow, SessionRow
from app.store.touches import live, side

_A, _B = aliased(SessionRow, name="a"), aliased(SessionRow, name="b")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sessions, the smaller internal id first: the order in which their rows are locked."""

    a: SessionKey
    b: SessionKey

    @classmethod
    def of(cls, one: SessionKey, other: SessionKey) -> "Pair":
        """The pair of two sessions."""
        return cls(min(one, other), max(one, other))


@dataclass(frozen=True, slots=True)
class Party:
    """One of a pair, its row locked."""

    key: SessionKey
    session_id: SessionId
    status: str
    open_turn: TurnId | None
    is_live: bool

    def turn_of(self, touch: Side) -> TurnId | None:
        """The turn under which its log is told: the one that wrote the file, if it still runs."""
        return touch.turn_id if touch.turn_id == self.open_turn else None


async def lock(db: AsyncSession, pair: Pair, idle: timedelta) -> dict[SessionKey, Party]:
    """Both sessions, their rows locked in the order of their ids until the transaction ends.

    One that is gone is left out.
    """
    keys = {"a": pair.a, "b": pair.b}
    await db.execute(
        text("SELECT id FROM agent_sessions WHERE id IN (:a, :b) ORDER BY id FOR NO KEY UPDATE"), keys
    )
    rows = await db.execute(
        text(f"""
        SELECT s.id, s.session_id, s.status, {live("s")}, (
            SELECT r.id FROM turns r
            WHERE r.session = s.id AND r.started_at IS NOT NULL AND r.ended_at IS NULL
        ) FROM agent_sessions s WHERE s.id IN (:a, :b)
        """),  # noqa: S608 - only words of ours are put in
        {**keys, "idle": idle},
    )
    return {
        SessionKey(key): Party(
            SessionKey(key), SessionId(session_id), status, TurnId(turn) if turn else None, is_live
        )
        for key, session_id, status, is_live, turn in rows
    }


async def open_one(
    db: AsyncSession,
    pair: Pair,
    path: str,
    *,
    own_paths: tuple[str, str] | None = None,
    severity: Severity,
    overlap: Overlap,
    merge_conflict: bool | None,
) -> Collision | None:
    """Open the collision of a pair whose rows are locked, or say that it has come to the same lines.

    `own_paths` are those by which the two of the pair have the file, if not both by `path`.
    Null if there is nothing new to tell, or one of the two has not touched the file any more.
    """
    path_a, path_b = own_paths or (path, path)
    key = tuple_(FileTouchRow.session, FileTouchRow.path)
    found = await db.execute(
        select(FileTouchRow, SessionRow.session_id, SessionRow.worktree_id, SessionRow.owner)
        .join(SessionRow, SessionRow.id == FileTouchRow.session)
        .where(key.in_([(pair.a, path_a), (pair.b, path_b)]))
        .order_by(FileTouchRow.touched_at, FileTouchRow.session)
    )
    touches = found.all()
    if len(touches) != 2 or touches[0][0].project_id != touches[1][0].project_id:
        return None
    touch, _, _, owner = touches[0]
    sides = [side(*row[:3]) for row in touches]
    statement = insert(CollisionRow).values(
        id=new_collision_id(),
        owner=owner,
        project_id=touch.project_id,
        path=path,
        session_a=pair.a,
        session_b=pair.b,
        severity=severity,
        overlap=overlap,
        merge_conflict=merge_conflict,
        touches=[_kept(each, pair) for each in sides],
    )
    is_open = CollisionRow.resolved_at.is_(None)
    number = await db.scalar(
        statement.on_conflict_do_update(
            index_elements=[CollisionRow.session_a, CollisionRow.session_b, CollisionRow.path],
            index_where=is_open,
            set_={
                "overlap": overlap,
                "severity": severity,
                "merge_conflict": merge_conflict,
                "touches": statement.excluded.touches,
            },
            where=(CollisionRow.overlap == "same_file") & (statement.excluded.overlap == "same_lines"),
        ).returning(CollisionRow.id)
    )
    return None if number is None else await _one(db, CollisionRow.id == number)


async def resolve(db: AsyncSession, pair: Pair, reason: Resolution) -> list[Collision]:
    """Resolve what is open of a pair whose rows are locked."""
    ids = await db.scalars(
        update(CollisionRow)
        .where(
            CollisionRow.session_a == pair.a,
            CollisionRow.session_b == pair.b,
            CollisionRow.resolved_at.is_(None),
        )
        .values(resolved_at=func.now(), resolution=reason)
        .returning(CollisionRow.id)
    )
    return [await _one(db, CollisionRow.id == number) for number in sorted(ids)]


async def pairs_of(db: AsyncSession, session: SessionKey) -> list[Pair]:
    """Every pair of a session that has an open collision."""
    rows = await db.execute(
        select(CollisionRow.session_a, CollisionRow.session_b)
        .where(
            or_(CollisionRow.session_a == session, CollisionRow.session_b == session),
            CollisionRow.resolved_at.is_(None),
        )
        .distinct()
    )
    return [Pair(SessionKey(a), SessionKey(b)) for a, b in rows]


async def pairs_that_ended(db: AsyncSession, idle: timedelta, most: int = 200) -> list[Pair]:
    """Pairs with an open collision of which one is closed or has been idle for long."""
    rows = await db.execute(
        text(f"""
        SELECT DISTINCT c.session_a, c.session_b FROM collisions c
        JOIN agent_sessions a ON a.id = c.session_a JOIN agent_sessions b ON b.id = c.session_b
        WHERE c.resolved_at IS NULL AND NOT ({live("a")} AND {live("b")}) LIMIT :most
        """),  # noqa: S608 - only words of ours are put in
        {"idle": idle, "most": most},
    )
    return [Pair(SessionKey(a), SessionKey(b)) for a, b in rows]


async def get(db: AsyncSession, owner: Owner, collision_id: CollisionId) -> Collision:
    """The owner's collision of that id.

    Raises:
        CollisionNotFound: it is missing or somebody else's.
    """
    found = await _find(db, [CollisionRow.id == collision_id, CollisionRow.owner == owner], 1)
    if not found:
        raise CollisionNotFound
    return found[0]


async def list_collisions(
    db: AsyncSession,
    owner: Owner,
    *,
    project_id: str | None,
    status: CollisionStatus | None,
    limit: int,
    cursor: str | None,
) -> Page[Collision]:
    """The owner's collisions, newest first."""
    conditions: list[ColumnElement[bool]] = [CollisionRow.owner == owner]
    if project_id is not None:
        conditions.append(CollisionRow.project_id == project_id)
    if status is not None:
        is_open = CollisionRow.resolved_at.is_(None)
        conditions.append(is_open if status == "open" else ~is_open)
    condition = older_than(cursor, CollisionRow.opened_at, CollisionRow.id)
    if condition is not None:
        conditions.append(condition)
    found = await _find(db, conditions, limit + 1)
    return page([(each.opened_at, each.id, each) for each in found], limit)


async def _one(db: AsyncSession, condition: ColumnElement[bool]) -> Collision:
    (found,) = await _find(db, [condition], 1)
    return found


async def _find(db: AsyncSession, conditions: Sequence[ColumnElement[bool]], limit: int) -> list[Collision]:
    rows = await db.execute(
        select(CollisionRow, _A.session_id, _A.worktree_id, _B.session_id, _B.worktree_id)
        .join(_A, _A.id == CollisionRow.session_a)
        .join(_B, _B.id == CollisionRow.session_b)
        .where(*conditions)
        .order_by(CollisionRow.opened_at.desc(), CollisionRow.id.desc())
        .limit(limit)
        .execution_options(populate_existing=True)
    )
    return [_collision(*row) for row in rows]


def _kept(touch: Side, pair: Pair) -> dict[str, Any]:
    return {
        "side": "a" if touch.session == pair.a else "b",
        "turn_id": touch.turn_id,
        "kind": touch.kind,
        "at": touch.at.isoformat(),
    }


def _collision(row: Any, a: str, a_worktree: str | None, b: str, b_worktree: str | None) -> Collision:
    known = {"a": (row.session_a, a, a_worktree), "b": (row.session_b, b, b_worktree)}
    sides = []
    for touch in row.touches:
        key, session_id, worktree_id = known[touch["side"]]
        sides.append(
            Side(
                session=SessionKey(key),
                session_id=SessionId(session_id),
                turn_id=TurnId(touch["turn_id"]) if touch["turn_id"] else None,
                worktree_id=worktree_id,
                kind=touch["kind"],
                at=datetime.fromisoformat(touch["at"]),
            )
        )
    return Collision(
        id=CollisionId(row.id),
        project_id=row.project_id,
        path=row.path,
        severity=row.severity,
        overlap=row.overlap,
        merge_conflict=row.merge_conflict,
        sides=(sides[0], sides[1]),
        opened_at=row.opened_at,
        resolved_at=row.resolved_at,
        resolution=row.resolution,
    )
