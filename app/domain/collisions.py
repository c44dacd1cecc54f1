"""Collisions: two live sessions of one project that write the same file."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from app.domain.events import (
    CollisionSession,
    FileCollision,
    FileCollisionResolved,
    Overlap,
    Resolution,
    Severity,
)
from app.domain.ids import CollisionId, SessionId, SessionKey, TurnId
from app.domain.text import timestamp
from app.domain.touches import Change, TouchKind

CollisionStatus: TypeAlias = Literal["open", "resolved"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Touched:
    """A file that a session wrote, found in its worktree."""

    path: str
    """Relative to `root`, normalised."""
    root: str
    """The worktree's root."""
    remote: str | None
    """The backend on whose disk it is; null for this machine's."""
    kind: TouchKind
    turn_id: TurnId | None
    edits: tuple[tuple[Change, ...] | None, ...]
    """What each write of it changed, in order; null for one of which nobody tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A session's part in a collision: its last touch of the file."""

    session: SessionKey
    session_id: SessionId
    turn_id: TurnId | None
    worktree_id: str | None
    kind: TouchKind
    at: datetime

    def told(self) -> CollisionSession:
        """As an event tells it."""
        return CollisionSession(
            session_id=self.session_id,
            turn_id=self.turn_id,
            worktree_id=self.worktree_id,
            kind=self.kind,
            at=timestamp(self.at),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Collision:
    """A collision as it stands in the database."""

    id: CollisionId
    project_id: str
    path: str
    severity: Severity
    overlap: Overlap
    merge_conflict: bool | None
    """Whether git could not merge the two; null if nobody asked it, or it could not tell."""
    sides: tuple[Side, Side]
    """Who touched the file first stands first."""
    opened_at: datetime
    resolved_at: datetime | None
    resolution: Resolution | None

    def opened(self) -> FileCollision:
        """The event that tells of it."""
        return FileCollision(
            collision_id=self.id,
            path=self.path,
            severity=self.severity,
            overlap=self.overlap,
            merge_conflict=self.merge_conflict,
            sessions=[side.told() for side in self.sides],
        )

    def resolved(self, reason: Resolution) -> FileCollisionResolved:
        """The event that tells that it is over."""
        return FileCollisionResolved(
            collision_id=self.id,
            path=self.path,
            severity=self.severity,
            overlap=self.overlap,
            sessions=[side.told() for side in self.sides],
            reason=reason,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectFile:
    """A file of a project that live sessions have written, who wrote it last first."""

    path: str
    touched_at: datetime
    sides: list[Side]
