"""What replicas see of the backends, and which backends take no new turns."""

from sqlalchemy import delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.store.tables import BackendDrainRow, BackendHealthRow

FRESH_S = 60
"""Seconds for which a replica's look at a backend counts."""


async def write(db: AsyncSession, replica: str, up: dict[str, bool]) -> None:
    """Note what this replica saw of each backend."""
    for backend, is_up in sorted(up.items()):
        statement = insert(BackendHealthRow).values(backend=backend, replica=replica, up=is_up)
        await db.execute(
            statement.on_conflict_do_update(
                index_elements=[BackendHealthRow.backend, BackendHealthRow.replica],
                set_={"up": is_up, "seen_at": func.now()},
            )
        )
    await db.execute(
        delete(BackendHealthRow).where(
            BackendHealthRow.seen_at < func.now() - text(f"interval '{10 * FRESH_S} seconds'")
        )
    )


async def is_up(db: AsyncSession, backend: str) -> bool | None:
    """Whether any replica saw the backend up lately; null if none has looked."""
    return await db.scalar(
        select(func.bool_or(BackendHealthRow.up)).where(
            BackendHealthRow.backend == backend,
            BackendHealthRow.seen_at > func.now() - text(f"interval '{FRESH_S} seconds'"),
        )
    )


async def forget(db: AsyncSession, replica: str | None) -> None:
    """Delete what this replica saw: it is leaving. Null: whatever any replica saw."""
    query = delete(BackendHealthRow)
    await db.execute(query if replica is None else query.where(BackendHealthRow.replica == replica))


async def drains(db: AsyncSession) -> set[str]:
    """The backends that take no new turns."""
    return set(await db.scalars(select(BackendDrainRow.backend)))


async def drain(db: AsyncSession, backend: str) -> None:
    """Take no new turns for a backend, on any replica."""
    await db.execute(insert(BackendDrainRow).values(backend=backend).on_conflict_do_nothing())


async def resume(db: AsyncSession, backend: str) -> None:
    """Take new turns for a backend again."""
    await db.execute(delete(BackendDrainRow).where(BackendDrainRow.backend == backend))
