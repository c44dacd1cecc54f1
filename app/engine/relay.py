"""What a session's agent reports, relayed into the log, and the started turn that it is told of."""

import random
import time
from collections.abc import Sequence
from typing import Any, Protocol, TypeGuard

import anyio
import structlog

from app.domain.events import Error, Limit, Terminal, TurnFailed, TurnRetrying
from app.domain.signals import (
    AgentDied,
    Config,
    ForeignActivity,
    HistoryTold,
    LinkRestored,
    Report,
    Signal,
    TurnBroke,
    TurnEnd,
)
from app.domain.transcript import Said, Transcript
from app.domain.turns import ENDS, Step, TurnStatus, advance
from app.engine.answering import Answers
from app.engine.batch import Batch
from app.engine.collisions import Collisions
from app.engine.hosted import Hosted
from app.engine.keeper import Keeper
from app.engine.run import Run, Stop, Told

log = structlog.get_logger(__name__)

SETTLE_S = 0.25
"""Seconds that an agent gets after a failed or cancelled turn before the next prompt."""
RETRY_BASE_S, RETRY_MAX_S = 0.5, 30.0
"""Bounds of the pause before an attempt is repeated; doubled each time, with jitter."""


class Rules(Protocol):
    """What a host needs to know of its process."""

    session_idle_s: float
    collisions: Collisions

    def may_act(self) -> bool:
        """Whether the lease holds, by the monotonic clock."""


class Relay:
    """Writes what the agent reports, and knows the turn that runs and when its next step is due."""

    def __init__(self, hosted: Hosted, keeper: Keeper, answers: Answers, rules: Rules) -> None:
        self._hosted = hosted
        self._keeper = keeper
        self._answers = answers
        self._rules = rules
        self.run: Run | None = None
        """The started turn, from its `turn.started` to its terminal event."""
        self.foreign_busy = hosted.session.foreign_busy
        """Whether the agent runs somebody else's turn."""
        self.retry_at: float | None = None
        """Monotonic time of the turn's next attempt, while it waits for one."""
        self.postponed_until = 0.0
        """Monotonic time at which a backend that is down or busy is looked for again."""
        self.settled_at = 0.0
        """Monotonic time at which the agent has rested from its last turn."""
        self._outside = Transcript()

    async def relay(self) -> None:
        """Write what the agent has reported by now."""
        agent = self._keeper.agent
        if agent is None:
            return
        overflowed = agent.reports.overflowed
        reports = agent.reports.drain()
        if reports:
            self._hosted.touch()
            await self._tell(reports)
        if overflowed and self.run is not None:
            error = Error(code="buffer_overflow", message="more happened than could be kept", retriable=False)
            await self.end(TurnFailed(error=error, delivered="yes"))
        if (overflowed or agent.reports.is_closed) and self._keeper.agent is agent:
            self._keeper.agent = None
            await agent.release()

    async def _tell(self, reports: Sequence[Report]) -> None:
        batch, died, regained = Batch(), False, False
        for report in reports:
            ends = any(isinstance(signal, TurnEnd) for signal in report.signals)
            if ends and batch.has_touches(self._hosted):  # who else writes the file is told before the end
                await self.commit(batch)
                batch = Batch()
            for signal in report.signals:
                run = self.run
                died = died or isinstance(signal, AgentDied)
                regained = regained or isinstance(signal, LinkRestored)
                if isinstance(signal, Config):
                    batch.config = signal
                if isinstance(signal, ForeignActivity):
                    self.foreign_busy = batch.foreign_busy = signal.busy
                    self.postponed_until = 0.0
                if isinstance(signal, HistoryTold) or signal == ForeignActivity(busy=False):
                    batch.add(None, Told(events=self._outside.close()))
                if run is not None and report.attempt == run.attempt and self.may_repeat(signal, run):
                    await self.commit(batch)
                    batch = Batch()
                    await self.retry(run, signal)
                    continue
                if run is not None and report.attempt == run.attempt and run.status not in ENDS:
                    batch.add(run.turn.id, run.tell(signal))
                    if run.status in ENDS:
                        batch.cursor = report.cursor or batch.cursor
                        await self.commit(batch)
                        batch = Batch()
                elif report.attempt is None and isinstance(signal, Said):
                    batch.add(None, Told(events=self._outside.tell(signal)))
            batch.cursor = report.cursor or batch.cursor
        await self.commit(batch)
        if died and self.run is None:
            await self._keeper.let_go()
        if regained and self.run is not None:
            self._hosted.look()  # answers may wait that nobody could send
            await self._interrupt_again(self.run)

    async def _interrupt_again(self, run: Run) -> None:
        """Whoever was told to stop while the link was down has not heard it; its deadline stays."""
        agent, stop = self._keeper.agent, run.stop
        if agent is not None and stop is not None and stop.rung == "interrupt":
            with anyio.move_on_after(max(0.0, stop.until - time.monotonic())):
                await agent.interrupt()

    def may_repeat(self, signal: Signal, run: Run) -> TypeGuard[TurnBroke]:
        """Whether the attempt may be made again: only one that is known not to have been delivered."""
        return (
            isinstance(signal, TurnBroke)
            and signal.retriable
            and signal.delivered == "no"
            and run.status in (TurnStatus.RUNNING, TurnStatus.RECONCILING)
            and run.stop is None
            and run.turn.attempt < run.turn.request.max_attempts
        )

    async def retry(self, run: Run, broke: TurnBroke) -> None:
        """Say that the attempt comes again after a pause; it was never delivered."""
        turn = run.turn
        delay = min(RETRY_MAX_S, RETRY_BASE_S * 2 ** (turn.attempt - 1)) * random.uniform(0.5, 1.5)
        told = Told()
        if run.status is TurnStatus.RECONCILING:
            run.regain(frozenset(), told)
        run.status = advance(run.status, Step.RETRY)
        run.delivered = "no"
        self.retry_at = time.monotonic() + delay
        error = Error(code=broke.code, message=broke.message, retriable=True)
        told.events.append(TurnRetrying(attempt=turn.attempt + 1, delay_s=round(delay, 3), error=error))
        await self.commit_told(told)

    async def close_outside(self) -> None:
        """End what is open of what happened outside our turns, before one of ours starts."""
        await self.commit(Batch(events=[(None, event) for event in self._outside.close()]))

    def ask_to_stop(self, cause: Any, limit: Limit | None = None) -> None:
        """Have the turn stopped, for the first reason that is given."""
        if self.run is not None and self.run.stop is None and not self.run.is_over:
            self.run.stop = Stop(cause=cause, limit=limit)
            self._hosted.wake()

    async def end(self, event: Terminal) -> None:
        """End the turn, as soon as no answer is on its way any more."""
        assert self.run is not None
        told = Told()
        self.run.end(event, told)
        await self.commit_told(told)

    async def lose(self, run: Run, cause: str) -> None:
        """End a turn of which nobody can tell any more how it went."""
        told = Told()
        run.expire_all(told)
        run.finish(run.lost(cause), told)
        await self.commit_told(told)

    async def commit_told(self, told: Told) -> None:
        """Write what was told of the turn."""
        assert self.run is not None
        batch = Batch()
        batch.add(self.run.turn.id, told)
        await self.commit(batch)

    async def commit(self, batch: Batch) -> None:
        """Write a batch, then do what follows from it: the end of the run, the answers of the policy."""
        run = self.run
        if await batch.write(self._hosted, run):
            await self._rules.collisions.look(self._hosted.lease.session)
        if run is not None and run.status in ENDS:
            self._run_is_over(run)
        for asked in batch.asked:
            if asked.answer_now is not None:
                await self._answers.give(asked.waiting, asked.answer_now == "allow", "policy")

    def _run_is_over(self, run: Run) -> None:
        self.run = None
        self.retry_at = None
        self._hosted.touch()
        self.settled_at = self._hosted.used_at + (0 if run.status is TurnStatus.COMPLETED else SETTLE_S)
        log.info(
            "turn_ended",
            turn_id=run.turn.id,
            status=str(run.status),
            seconds=round(self._hosted.used_at - run.started, 3),
        )
        self._hosted.look()
