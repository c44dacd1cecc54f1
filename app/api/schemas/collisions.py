"""Bodies of collisions, and of the files that sessions of a project write."""

from typing import Self

from app.api.schemas.bodies import ListView, Timestamp, View
from app.domain.collisions import Collision, CollisionStatus, ProjectFile, Side
from app.domain.events import Overlap, Resolution, Severity
from app.domain.touches import TouchKind


class CollisionSessionView(View):
    """A session that has written the file, and its last write of it."""

    session_id: str
    turn_id: str | None
    worktree_id: str | None
    kind: TouchKind
    at: Timestamp

    @classmethod
    def from_domain(cls, side: Side) -> Self:
        """A session's part."""
        return cls(
            session_id=side.session_id,
            turn_id=side.turn_id,
            worktree_id=side.worktree_id,
            kind=side.kind,
            at=side.at,
        )


class CollisionView(View):
    """A collision, as both logs were told of it."""

    collision_id: str
    project_id: str
    path: str
    severity: Severity
    overlap: Overlap
    merge_conflict: bool | None
    status: CollisionStatus
    sessions: list[CollisionSessionView]
    opened_at: Timestamp
    resolved_at: Timestamp | None
    resolution: Resolution | None

    @classmethod
    def from_domain(cls, collision: Collision) -> Self:
        """A collision as its owner sees it."""
        return cls(
            collision_id=collision.id,
            project_id=collision.project_id,
            path=collision.path,
            severity=collision.severity,
            overlap=collision.overlap,
            merge_conflict=collision.merge_conflict,
            status="open" if collision.resolved_at is None else "resolved",
            sessions=[CollisionSessionView.from_domain(side) for side in collision.sides],
            opened_at=collision.opened_at,
            resolved_at=collision.resolved_at,
            resolution=collision.resolution,
        )


class CollisionList(ListView[CollisionView]):
    """Collisions, newest first."""


class ProjectFileView(View):
    """A file, and the live sessions that have written it, who wrote it last first."""

    path: str
    touched_at: Timestamp
    sessions: list[CollisionSessionView]

    @classmethod
    def from_domain(cls, file: ProjectFile) -> Self:
        """A file as the project's owner sees it."""
        sessions = [CollisionSessionView.from_domain(side) for side in file.sides]
        return cls(path=file.path, touched_at=file.touched_at, sessions=sessions)


class ProjectFileList(ListView[ProjectFileView]):
    """Files, last written first."""
