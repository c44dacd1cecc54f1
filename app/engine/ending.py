"""How a turn that never started ends: in one transaction, under the session's lock, from any replica."""

from app.domain.errors import TurnNotQueued
from app.domain.events import Terminal
from app.domain.turns import Turn, TurnStatus
from app.engine import stepping
from app.store import eventlog, sessions, tasks, turns
from app.store.database import Transaction


async def end_queued(db: Transaction, turn: Turn, event: Terminal) -> None:
    """End a queued turn. The caller's transaction has locked the session and read `turn` after that.

    Raises:
        TurnNotQueued: it has started, or ended.
    """
    if turn.status is not TurnStatus.QUEUED:
        raise TurnNotQueued
    sequel = await stepping.sequel(db, turn, event, turn.session_id)
    last = await eventlog.record(db, turn.session, eventlog.draft(turn.session_id, turn.id, event))
    await turns.end(db, turn, event, last_seq=last)
    if sequel is not None:  # it was a step's: the next turn, or the task's end, belongs to this transaction
        await eventlog.record(db, turn.session, sequel.draft)
        await sequel.write(await tasks.connection_of(db))
        await sessions.want(db, turn.session)
