"""How a turn that never started ends: in one transaction, under the session's lock, from any replica."""

from app.domain.errors import TurnNotQueued
from app.domain.events import Terminal
from app.domain.turns import Turn, TurnStatus
from app.store import eventlog, turns
from app.store.database import Transaction


async def end_queued(db: Transaction, turn: Turn, event: Terminal) -> None:
    """End a queued turn. The caller's transaction has locked the session and read `turn` after that.

    Raises:
        TurnNotQueued: it has started, or ended.
    """
    if turn.status is not TurnStatus.QUEUED:
        raise TurnNotQueued
    last = await eventlog.record(db, turn.session, eventlog.draft(turn.session_id, turn.id, event))
    await turns.end(db, turn, event, last_seq=last)
