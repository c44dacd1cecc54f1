"""The queue of a hosted session, and the start of its turns: agent, commit, prompt; once, or once more."""

import time
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

import structlog

from app.backends.base import (
    Agent,
    AgentLost,
    Attachment,
    BackendError,
    BackendUnavailable,
    Prompt,
    SendFailed,
)
from app.domain.events import Error, Terminal, TurnCancelled, TurnFailed, TurnStarted, TurnTimedOut
from app.domain.signals import TurnBroke
from app.domain.turns import Turn, TurnStatus
from app.engine import ending, stepping
from app.engine.hosted import Hosted
from app.engine.keeper import Keeper
from app.engine.relay import Relay, Rules
from app.engine.run import Run, attempt_name
from app.store import eventlog, health, turns
from app.store.eventlog import LeaseLost

log = structlog.get_logger(__name__)

POSTPONE_S = 2.0
"""Seconds before a turn looks again for a backend that is down, drained or busy."""


@dataclass
class Queued:
    """A turn that waits for its start."""

    turn: Turn
    until: float
    """Monotonic time of its queue time-out."""


class Starter:
    """Holds the queue, and starts its head."""

    def __init__(self, hosted: Hosted, keeper: Keeper, relay: Relay, rules: Rules) -> None:
        self._hosted = hosted
        self._keeper = keeper
        self._relay = relay
        self._rules = rules
        self.queue: list[Queued] = []
        self._is_drained = False

    def see(self, open_turns: list[Turn], now: datetime, *, drained: bool) -> None:
        """Take in what the database says of the queue; `drained`: the backend takes no new turns."""
        self._is_drained = drained
        known = {queued.turn.id: queued for queued in self.queue}
        self.queue = [
            known.get(turn.id) or Queued(turn, time.monotonic() + _rest_of(turn, now))
            for turn in open_turns
            if turn.status is TurnStatus.QUEUED
        ]

    async def expire(self) -> None:
        """End the turns that have waited too long."""
        for queued in [queued for queued in self.queue if queued.until <= time.monotonic()]:
            self._remove(queued.turn)
            await self._end_queued(
                queued.turn, TurnTimedOut(limit="queue", delivered="no", cancel_outcome=None)
            )

    async def cancel_queue(self) -> None:
        """End every queued turn: the session is being closed."""
        for queued in self.queue:
            await self._end_queued(queued.turn, TurnCancelled(cause="session_closed", cancel_outcome=None))
        self.queue.clear()

    async def start_next(self) -> None:
        """Start the queue's head, if that can be now."""
        turn = self.queue[0].turn
        if self._is_drained:
            self._relay.postponed_until = time.monotonic() + POSTPONE_S
            self._hosted.look()  # whether it still is
            return
        agent = await self._agent_for(turn)
        if agent is None:
            return
        await self._relay.relay()
        if self._keeper.agent is not agent or self.queue[0].until <= time.monotonic():
            return  # it has ended again meanwhile, or this took too long
        if self._relay.foreign_busy:
            if turn.request.multitask_strategy == "interrupt":
                await agent.interrupt()
            self._relay.postponed_until = time.monotonic() + POSTPONE_S
            return
        await self._relay.close_outside()
        started = await self._hosted.database.retrying(partial(self._commit_start, turn))
        if started is None:
            self._hosted.look()
            return
        self._remove(turn)
        self._relay.run = Run(started, self._hosted.session.policy)
        await self._send()

    async def start_again(self) -> None:
        """Make the turn's next attempt."""
        assert self._relay.run is not None
        self._relay.retry_at = None
        agent = await self._agent_for(self._relay.run.turn)
        if agent is None or self._relay.run is None:
            return
        await self._relay.relay()
        if self._relay.foreign_busy or self._keeper.agent is not agent:
            self._relay.retry_at = time.monotonic() + POSTPONE_S
            return
        self._relay.run.delivered = "unknown"
        started = await self._hosted.database.retrying(partial(self._commit_start, self._relay.run.turn))
        if started is None:  # somebody has cancelled it meanwhile
            self._relay.retry_at = time.monotonic() + POSTPONE_S
            self._hosted.look()
            return
        self._relay.run.turn = started
        self._relay.run.status = self._relay.run.written = started.status
        self._relay.run.delivered = "unknown"
        self._relay.run.idle_since = time.monotonic()
        await self._send()

    async def _agent_for(self, turn: Turn) -> Agent | None:
        """The agent to prompt; null if that has to wait, or ended the turn."""
        try:
            agent = await self._keeper.load()
            await agent.reach()
            return agent
        except AgentLost as error:
            await self._hosted.change(agent_lost=True)
            await self._end_unsent(
                turn, Error(code="backend_session_lost", message=str(error), retriable=False)
            )
        except BackendUnavailable as error:
            if self._relay.run is not None:  # never delivered: again, until the turn's deadline
                self._relay.retry_at = time.monotonic() + POSTPONE_S
            elif turn.request.multitask_strategy == "reject":
                await self._end_unsent(
                    turn, Error(code="backend_unavailable", message=str(error), retriable=True)
                )
            else:
                self._relay.postponed_until = time.monotonic() + POSTPONE_S
        except BackendError as error:
            await self._end_unsent(turn, Error(code="backend_rejected", message=str(error), retriable=False))
        return None

    async def _end_unsent(self, turn: Turn, error: Error) -> None:
        event = TurnFailed(error=error, delivered="no")
        if self._relay.run is None:
            await self._end_queued(turn, event)
            self._remove(turn)
        else:
            await self._relay.end(event)

    def _remove(self, turn: Turn) -> None:
        self.queue = [queued for queued in self.queue if queued.turn.id != turn.id]

    async def _end_queued(self, turn: Turn, event: Terminal) -> None:
        async def end() -> None:
            async with self._hosted.database.begin() as db:
                await self._hosted.locked(db)
                now = await turns.by_id(db, turn.id)
                if now is not None and now.status is TurnStatus.QUEUED:
                    await ending.end_queued(db, now, event)

        await self._hosted.database.retrying(end)

    async def _commit_start(self, turn: Turn) -> Turn | None:
        """Commit `turn.started` before the prompt is sent; null if the turn is not the next to start."""
        attempt = turn.attempt + 1
        async with self._hosted.database.begin() as db:
            session = await self._hosted.locked(db)
            if turn.status is TurnStatus.QUEUED and session.status != "active":
                return None  # it was closed meanwhile, and its queue is cancelled
            if turn.status is TurnStatus.QUEUED and session.backend in await health.drains(db):
                return None  # nothing had rung for that
            if await turns.start(db, turn, attempt=attempt, generation=self._hosted.lease.generation):
                await stepping.begin(db, turn, session.session_id)
                event = TurnStarted(attempt=attempt, prompt=turn.request.prompt)
                await eventlog.record(db, session.key, eventlog.draft(session.session_id, turn.id, event))
            now = await turns.by_id(db, turn.id)
            if now is None or now.attempt != attempt or now.status is not TurnStatus.RUNNING:
                return None
            parts = await turns.attachments(db, turn.id)
            return replace(now, request=replace(now.request, attachments=parts))

    async def _send(self) -> None:
        assert self._relay.run is not None and self._keeper.agent is not None
        turn = self._relay.run.turn
        if not self._rules.may_act():
            raise LeaseLost
        log.info("turn_started", turn_id=turn.id, attempt=turn.attempt)
        try:
            await self._keeper.agent.prompt(
                Prompt(
                    attempt=attempt_name(turn),
                    text=turn.request.prompt,
                    attachments=[_attachment(part) for part in turn.request.attachments],
                    may_leave=self._rules.may_act,
                )
            )
        except SendFailed as error:
            code: Any = "backend_unavailable" if error.retriable else "backend_rejected"
            broke = TurnBroke(
                code=code, message=str(error), retriable=error.retriable, delivered=error.delivered
            )
            if self._relay.may_repeat(broke, self._relay.run):
                await self._relay.retry(self._relay.run, broke)
            else:
                described = Error(code=code, message=str(error), retriable=error.retriable)
                await self._relay.end(TurnFailed(error=described, delivered=error.delivered))


def _rest_of(turn: Turn, now: datetime) -> float:
    """Seconds that a queued turn may still wait, by the database's clock."""
    return max(0.0, turn.request.queue_timeout_s - (now - turn.created_at).total_seconds())


def _attachment(part: Any) -> Attachment:
    if part["type"] == "image":
        return Attachment(kind="image", mime_type=part["mime_type"], data=part["data"])
    return Attachment(kind="text", name=part.get("name"), data=part["text"])
