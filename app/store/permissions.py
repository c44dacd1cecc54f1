"""Permissions' rows: written with the event that asks, resolved with the one that tells."""

import hashlib
from datetime import datetime
from typing import Any

import asyncpg
import msgspec
from sqlalchemy import Select, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain.errors import PermissionNotFound
from app.domain.events import (
    PermissionExpired,
    PermissionOption,
    PermissionRequested,
    PermissionResolved,
    Question,
)
from app.domain.ids import Owner, PermissionId, SessionId, SessionKey, TurnId
from app.domain.permissions import WAITING, Permission, PermissionStatus, Response
from app.store.database import ring_after_commit
from app.store.paging import Page, older_than, page
from app.store.tables import PermissionRow, SessionRow


def _query() -> Select[Any, Any]:
    return select(PermissionRow, SessionRow.session_id).join(
        SessionRow, SessionRow.id == PermissionRow.session
    )


def _permission(row: Any) -> Permission:
    p, session_id = row
    return Permission(
        id=PermissionId(p.id),
        session=SessionKey(p.session),
        session_id=SessionId(session_id),
        turn_id=TurnId(p.turn_id) if p.turn_id else None,
        request=p.request,
        tool_call_id=p.tool_call_id,
        kind=p.kind,
        title=p.title,
        description=p.description,
        detail=p.detail,
        input=p.input,
        options=msgspec.convert(p.options, tuple[PermissionOption, ...]),
        questions=msgspec.convert(p.questions, tuple[Question, ...]),
        status=p.status,
        outcome=p.outcome,
        option_id=p.option_id,
        by=p.resolved_by,
        actor=p.actor,
        refusal=p.refusal,
        response=None if p.response is None else Response(**p.response),
        requested_at=p.requested_at,
        expires_at=p.expires_at,
        resolved_at=p.resolved_at,
    )


async def get(db: AsyncSession, owner: Owner, permission_id: PermissionId) -> Permission:
    """The owner's permission of that id.

    Raises:
        PermissionNotFound: it is missing or somebody else's.
    """
    row = (
        await db.execute(_query().where(PermissionRow.id == permission_id, SessionRow.owner == owner))
    ).one_or_none()
    if row is None:
        raise PermissionNotFound
    return _permission(row)


async def list_permissions(
    db: AsyncSession,
    owner: Owner,
    *,
    status: PermissionStatus | None,
    session_id: SessionId | None,
    limit: int,
    cursor: str | None,
) -> Page[Permission]:
    """The owner's permissions, newest first."""
    query = _query().where(SessionRow.owner == owner)
    if status is not None:
        query = query.where(PermissionRow.status == status)
    if session_id is not None:
        query = query.where(SessionRow.session_id == session_id)
    condition = older_than(cursor, PermissionRow.requested_at, PermissionRow.id)
    if condition is not None:
        query = query.where(condition)
    rows = await db.execute(
        query.order_by(PermissionRow.requested_at.desc(), PermissionRow.id.desc()).limit(limit + 1)
    )
    return page([(p.requested_at, p.id, p) for p in map(_permission, rows)], limit)


async def waiting(db: AsyncSession, session: SessionKey) -> list[Permission]:
    """The session's permissions that wait for an answer or for the backend's resolution, oldest first."""
    rows = await db.execute(
        _query()
        .where(PermissionRow.session == session, PermissionRow.status.in_(sorted(WAITING)))
        .order_by(PermissionRow.requested_at, PermissionRow.id)
    )
    return [_permission(row) for row in rows]


async def answer(db: AsyncSession, permission_id: PermissionId, response: Response, actor: str) -> bool:
    """Write a person's answer; false if somebody was first."""
    done = await db.scalar(
        update(PermissionRow)
        .where(PermissionRow.id == permission_id, PermissionRow.status == "pending")
        .values(
            status="answering",
            actor=actor,
            refusal=None,
            response={name: getattr(response, name) for name in Response.__slots__},
        )
        .returning(PermissionRow.id)
    )
    return done is not None


async def reopen(
    db: AsyncSession, session: SessionKey, permission_id: PermissionId, refusal: str | None
) -> None:
    """Take an answer back that the backend did not take: it is pending again, `refusal` says why."""
    await db.execute(
        update(PermissionRow)
        .where(PermissionRow.id == permission_id, PermissionRow.status == "answering")
        .values(status="pending", response=None, actor=None, refusal=refusal)
    )
    ring_after_commit(db, session)


def shown_sha256(event: PermissionRequested) -> bytes:
    """Hash of what a person was shown."""
    return hashlib.sha256(msgspec.json.encode(event)).digest()


async def write_requested(
    connection: "asyncpg.Connection[asyncpg.Record]",
    session: SessionKey,
    turn: TurnId | None,
    request: str,
    event: PermissionRequested,
    expires_at: datetime | None,
    *,
    answering: bool,
) -> None:
    """Insert the row of a request, with the batch that logs it."""
    await connection.execute(
        """
        INSERT INTO permissions (id, session, turn_id, request, tool_call_id, kind, title, description,
            detail, input, options, questions, shown_sha256, expires_at, status)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
        """,
        event.permission_id,
        session,
        turn,
        request,
        event.tool_call_id or None,
        event.kind,
        event.title,
        event.description,
        _json(event.detail),
        _json(event.input),
        _json(event.options),
        _json(event.questions or []),
        shown_sha256(event),
        expires_at,
        "answering" if answering else "pending",
    )


async def write_resolved(
    connection: "asyncpg.Connection[asyncpg.Record]", event: PermissionResolved | PermissionExpired
) -> None:
    """Write how a permission ended, with the batch that logs it."""
    status = "expired" if isinstance(event, PermissionExpired) else event.outcome
    await connection.execute(
        """
        UPDATE permissions SET status = $2, outcome = $3, option_id = $4, resolved_by = $5,
            actor = $6, resolved_at = now()
        WHERE id = $1 AND status IN ('pending', 'answering')
        """,
        event.permission_id,
        status,
        event.outcome,
        event.option_id,
        event.by,
        event.actor,
    )


def _json(value: Any) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()
