"""Permissions: the inbox, and a person's answer on its way to the agent."""

from functools import partial

from app.domain.errors import (
    BackendIsDown,
    PermissionAlreadyResolved,
    PermissionIsExpired,
    UnsupportedByBackend,
)
from app.domain.ids import Owner, PermissionId, SessionId
from app.domain.keys import Principal
from app.domain.permissions import WAITING, Permission, PermissionStatus, Response
from app.engine.lifecycle import Lifecycle
from app.engine.waiting import look_until
from app.store import permissions, sessions
from app.store.database import Database
from app.store.paging import Page

ANSWER_S = 8.0
"""Seconds that an answer waits for the backend's resolution."""


class Permissions:
    """The use-cases on permissions, within the caller's owner."""

    def __init__(self, database: Database, lifecycle: Lifecycle) -> None:
        self._database = database
        self._lifecycle = lifecycle

    async def get(self, owner: Owner, permission_id: PermissionId) -> Permission:
        """The permission.

        Raises:
            PermissionNotFound: it is missing or somebody else's.
        """
        async with self._database.begin() as db:
            return await permissions.get(db, owner, permission_id)

    async def list_permissions(
        self,
        owner: Owner,
        *,
        status: PermissionStatus | None,
        session_id: SessionId | None,
        limit: int,
        cursor: str | None,
    ) -> Page[Permission]:
        """A page of the owner's permissions, newest first."""
        async with self._database.begin() as db:
            return await permissions.list_permissions(
                db, owner, status=status, session_id=session_id, limit=limit, cursor=cursor
            )

    async def respond(self, caller: Principal, permission_id: PermissionId, response: Response) -> Permission:
        """Answer, and wait for the backend's resolution, which is what is recorded.

        Raises:
            PermissionAlreadyResolved: somebody was first, or the turn has ended.
            PermissionIsExpired: too late, or the agent that asked is gone.
            UnsupportedByBackend: an option that was not offered.
            BackendIsDown: the backend has not taken it; it is still pending.
        """
        permission = await self.get(caller.owner, permission_id)
        if permission.status not in WAITING:
            _refuse_resolved(permission)
        if response.option_id is not None and response.option_id not in {
            option.option_id for option in permission.options
        }:
            raise UnsupportedByBackend(detail="the backend did not offer this option")
        async with self._database.begin() as db:
            await sessions.lock(db, permission.session)
            taken = await permissions.answer(db, permission_id, response, caller.actor)
            if taken:
                await sessions.want(db, permission.session)
        seen = await look_until(
            partial(self.get, caller.owner, permission_id),
            lambda now: now.status not in WAITING or (taken and now.status == "pending"),
            session=permission.session,
            bell=self._database.bell,
            lifecycle=self._lifecycle,
            timeout_s=ANSWER_S,
            poll_s=1.0,
        )
        permission = seen or permission
        if seen is not None and taken and seen.status == "pending":
            if seen.refusal is not None:
                raise UnsupportedByBackend(detail=seen.refusal)
            raise BackendIsDown(detail="the backend did not take the answer; it is still pending")
        if not taken or permission.actor != caller.actor:
            _refuse_resolved(permission)
        if permission.status in WAITING:
            raise BackendIsDown(detail="the backend has not resolved it yet")
        if permission.status in ("expired", "cancelled") or permission.by == "backend":
            _refuse_resolved(permission)
        return permission


def _refuse_resolved(permission: Permission) -> None:
    if permission.status == "expired":
        raise PermissionIsExpired
    if permission.status not in ("pending",):
        raise PermissionAlreadyResolved(
            outcome=permission.outcome, by=permission.by, at=permission.resolved_at
        )
