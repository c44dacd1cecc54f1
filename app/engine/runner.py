"""The turns of a hosted session, one after the other: started, sent, relayed into the log, stopped, ended."""

import random
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, Protocol, TypeGuard

import anyio
import structlog

from app.backends.base import (
    Agent,
    AgentLost,
    Answer,
    Attachment,
    BackendError,
    BackendRejected,
    BackendUnavailable,
    NotPending,
    OpenAttempt,
    Prompt,
    SendFailed,
)
from app.domain.events import (
    Error,
    Limit,
    ResolvedBy,
    Terminal,
    TurnFailed,
    TurnRetrying,
    TurnStarted,
    TurnTimedOut,
)
from app.domain.items import fold
from app.domain.permissions import Permission, Response
from app.domain.sessions import Session
from app.domain.signals import (
    AgentDied,
    Config,
    ForeignActivity,
    LinkRestored,
    Report,
    Signal,
    TurnBroke,
    TurnEnd,
)
from app.domain.transcript import Said, Transcript
from app.domain.turns import ENDS, Step, Turn, TurnStatus, advance
from app.engine import ending, stepping
from app.engine.batch import Batch
from app.engine.collisions import Collisions
from app.engine.hosted import Hosted
from app.engine.keeper import Keeper
from app.engine.run import Run, Rung, Stop, Told, Waiting, attempt_name
from app.store import eventlog, health, permissions, turns
from app.store.eventlog import LeaseLost
from app.store.intents import Intent

log = structlog.get_logger(__name__)

SETTLE_S = 0.25
"""Seconds that an agent gets after a failed or cancelled turn before the next prompt."""
LADDER: tuple[tuple[Rung, float], ...] = (("interrupt", 5.0), ("kill", 10.0), ("archive", 15.0))
"""How an agent is stopped, and how many seconds each step has."""
RETRY_BASE_S, RETRY_MAX_S = 0.5, 30.0
"""Bounds of the pause before an attempt is repeated; doubled each time, with jitter."""
REPEAT_S = 5.0
"""Seconds after which an answer of ours (a time-out's, the policy's) that was not taken is sent again."""
LEASE_LOOK_S = 1.0
"""Seconds between two looks whether a lease that ran out was renewed after all."""
POSTPONE_S = 2.0
"""Seconds before a queued turn looks again for a backend that is down."""


class Rules(Protocol):
    """What a host needs to know of its process."""

    session_idle_s: float
    collisions: Collisions

    def may_act(self) -> bool:
        """Whether the lease holds, by the monotonic clock."""


@dataclass(frozen=True)
class Work:
    """What was found when the host looked."""

    session: Session
    intents: list[Intent]
    turns: list[Turn]
    waiting: list[Permission]
    now: datetime
    drained: bool
    """Whether the backend takes no new turns."""


@dataclass
class Queued:
    """A turn that waits for its start."""

    turn: Turn
    until: float
    """Monotonic time of its queue time-out."""


@dataclass
class SentAnswer:
    """An answer to a permission, on its way to the backend or back from there."""

    waiting: Waiting
    by: ResolvedBy
    expires_at: float | None
    """When the permission times out if the answer is not taken."""
    stops: bool
    error: BackendError | None = None


class Runner:
    """Runs a session's turns."""

    def __init__(self, hosted: Hosted, keeper: Keeper, rules: Rules) -> None:
        self._hosted = hosted
        self._keeper = keeper
        self._rules = rules
        self.run: Run | None = None
        """The started turn, from its `turn.started` to its terminal event."""
        self.queue: list[Queued] = []
        self.leaving: float | None = None
        """Monotonic time at which a turn that ends with us is ended, once the process is going."""
        self.suspended = False
        """Whether the lease ran out unrenewed."""
        self._answered: deque[SentAnswer] = deque()
        self._outside = Transcript()
        self._settled_at = 0.0
        self._retry_at: float | None = None
        self._postponed_until = 0.0
        self.foreign_busy = hosted.session.foreign_busy
        """Whether the agent runs somebody else's turn."""
        self._drained = False

    def see(self, work: Work) -> None:
        """Take in what the database says of the turns."""
        self._drained = work.drained
        if self.run is not None:
            self.run.policy = work.session.policy
        known = {queued.turn.id: queued for queued in self.queue}
        self.queue = [
            known.get(turn.id) or Queued(turn, time.monotonic() + _rest_of(turn, work.now))
            for turn in work.turns
            if turn.status is TurnStatus.QUEUED
        ]
        for turn in work.turns:
            if self.run is not None and turn.id == self.run.turn.id and turn.cancel_requested_at is not None:
                self.ask_to_stop(turn.cancel_cause or "caller")

    async def suspend(self) -> None:
        """The lease ran out unrenewed: stop acting. An agent that ends with its host is ended."""
        if self.suspended:
            return
        self.suspended = True
        if self._hosted.dies_with_host:
            if self.run is not None:
                self.run.lost_cause = "lease_lost"
            if self._keeper.agent is not None:
                await self._keeper.agent.kill()

    async def take_over(self, work: Work) -> None:
        """A turn that an earlier host had started and not ended."""
        turn = next((turn for turn in work.turns if turn.started_at is not None), None)
        if turn is None:
            return
        rows = await self._hosted.database.retrying(partial(self._turn_events, turn))
        transcript = Transcript.restored(fold((event.type, event.turn_id, event.data) for event in rows))
        ours = ("turn.", "backend.")  # what we told ourselves: no word of the agent's
        last_at = next((event.at for event in reversed(rows) if not event.type.startswith(ours)), None)
        run = Run(
            turn,
            work.session.policy,
            transcript,
            last_event_at=last_at,
            age_s=_age(turn, work.now),
        )
        self.run = run
        if turn.status is TurnStatus.RETRYING:
            run.delivered = "no"
            self._retry_at = 0.0
            return
        for permission in work.waiting:
            run.waiting[permission.request] = Waiting(
                id=permission.id,
                request=permission.request,
                for_person=permission.expires_at is not None,
                is_question=permission.kind == "question",
                expires_at=_monotonic(permission.expires_at, work.now),
            )
        log.info("turn_taken_over", turn_id=turn.id)
        told = Told()
        if self._hosted.dies_with_host:
            run.expire_all(told)
            run.finish(run.lost("host_lost"), told)
        else:
            run.lose_sight("host_lost", told)
            self._postponed_until = 0.0
        await self._commit_told(told)

    async def regain_sight(self) -> None:
        """See a turn again that an earlier host had started, before anything else loads its agent.

        Raises:
            BackendUnavailable: not now.
        """
        run = self.run
        if run is not None and run.status is TurnStatus.RECONCILING and self._keeper.agent is None:
            await self._find_again(run)
            if self.run is run and self._keeper.agent is None:
                raise BackendUnavailable("the backend cannot be reached, and a turn waits for it")

    async def _find_again(self, run: Run) -> None:
        """Have the backend find out what became of a turn whose last host is gone; reports tell the rest."""
        try:
            was_told = run.last_event_at is not None
            await self._keeper.load(OpenAttempt(run.attempt, was_told, run.turn.request.prompt))
            self._hosted.look()  # answers may wait that nobody could send
        except BackendUnavailable:
            self._postponed_until = time.monotonic() + POSTPONE_S
        except BackendError as error:  # nothing tells any more how far it came
            if isinstance(error, AgentLost):
                await self._hosted.change(agent_lost=True)
            told = Told()
            run.expire_all(told)
            run.finish(run.lost("backend_session_lost"), told)
            await self._commit_told(told)

    async def _turn_events(self, turn: Turn) -> list[eventlog.Logged]:
        async with self._hosted.database.begin() as db:
            return [event async for event in eventlog.read_turn(db, turn.session, turn)]

    async def _start_next(self) -> None:
        turn = self.queue[0].turn
        if self._drained:
            self._postponed_until = time.monotonic() + POSTPONE_S
            self._hosted.look()  # whether it still is
            return
        agent = await self._agent_for(turn)
        if agent is None:
            return
        await self.relay()
        if self._keeper.agent is not agent or self.queue[0].until <= time.monotonic():
            return  # it has ended again meanwhile, or this took too long
        if self.foreign_busy:
            if turn.request.multitask_strategy == "interrupt":
                await agent.interrupt()
            self._postponed_until = time.monotonic() + POSTPONE_S
            return
        await self._commit(Batch(events=[(None, event) for event in self._outside.close()]))
        started = await self._hosted.database.retrying(partial(self._commit_start, turn))
        if started is None:
            self._hosted.look()
            return
        self.queue = [queued for queued in self.queue if queued.turn.id != turn.id]
        self.run = Run(started, self._hosted.session.policy)
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
            if self.run is not None:  # never delivered: again, until the turn's deadline
                self._retry_at = time.monotonic() + POSTPONE_S
            elif turn.request.multitask_strategy == "reject":
                await self._end_unsent(
                    turn, Error(code="backend_unavailable", message=str(error), retriable=True)
                )
            else:
                self._postponed_until = time.monotonic() + POSTPONE_S
        except BackendError as error:
            await self._end_unsent(turn, Error(code="backend_rejected", message=str(error), retriable=False))
        return None

    async def _end_unsent(self, turn: Turn, error: Error) -> None:
        event = TurnFailed(error=error, delivered="no")
        if self.run is None:
            await self.end_queued(turn, event)
            self.queue = [queued for queued in self.queue if queued.turn.id != turn.id]
        else:
            await self._end(event)

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
        assert self.run is not None and self._keeper.agent is not None
        turn = self.run.turn
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
            if self._may_repeat(broke, self.run):
                await self._retry(self.run, broke)
            else:
                described = Error(code=code, message=str(error), retriable=error.retriable)
                await self._end(TurnFailed(error=described, delivered=error.delivered))

    async def _retry(self, run: Run, broke: TurnBroke) -> None:
        """Say that the attempt comes again after a pause; it was never delivered."""
        turn = run.turn
        delay = min(RETRY_MAX_S, RETRY_BASE_S * 2 ** (turn.attempt - 1)) * random.uniform(0.5, 1.5)
        told = Told()
        if run.status is TurnStatus.RECONCILING:
            run.regain(frozenset(), told)
        run.status = advance(run.status, Step.RETRY)
        run.delivered = "no"
        self._retry_at = time.monotonic() + delay
        error = Error(code=broke.code, message=broke.message, retriable=True)
        told.events.append(TurnRetrying(attempt=turn.attempt + 1, delay_s=round(delay, 3), error=error))
        await self._commit_told(told)

    async def _start_again(self) -> None:
        assert self.run is not None
        self._retry_at = None
        agent = await self._agent_for(self.run.turn)
        if agent is None or self.run is None:
            return
        await self.relay()
        if self.foreign_busy or self._keeper.agent is not agent:
            self._retry_at = time.monotonic() + POSTPONE_S
            return
        self.run.delivered = "unknown"
        started = await self._hosted.database.retrying(partial(self._commit_start, self.run.turn))
        if started is None:  # somebody has cancelled it meanwhile
            self._retry_at = time.monotonic() + POSTPONE_S
            self._hosted.look()
            return
        self.run.turn = started
        self.run.status = self.run.written = started.status
        self.run.delivered = "unknown"
        self.run.idle_since = time.monotonic()
        await self._send()

    async def end_queued(self, turn: Turn, event: Terminal) -> None:
        async def end() -> None:
            async with self._hosted.database.begin() as db:
                await self._hosted.locked(db)
                now = await turns.by_id(db, turn.id)
                if now is not None and now.status is TurnStatus.QUEUED:
                    await ending.end_queued(db, now, event)

        await self._hosted.database.retrying(end)

    async def _end(self, event: Terminal) -> None:
        assert self.run is not None
        told = Told()
        self.run.end(event, told)
        await self._commit_told(told)

    async def relay(self) -> None:
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
            await self._end(TurnFailed(error=error, delivered="yes"))
        if (overflowed or agent.reports.is_closed) and self._keeper.agent is agent:
            self._keeper.agent = None
            await agent.release()

    async def _tell(self, reports: Sequence[Report]) -> None:
        batch, died, regained = Batch(), False, False
        for report in reports:
            ends = any(isinstance(signal, TurnEnd) for signal in report.signals)
            if ends and batch.has_touches(self._hosted):  # who else writes the file is told before the end
                await self._commit(batch)
                batch = Batch()
            for signal in report.signals:
                run = self.run
                died = died or isinstance(signal, AgentDied)
                regained = regained or isinstance(signal, LinkRestored)
                if isinstance(signal, Config):
                    batch.config = signal
                if isinstance(signal, ForeignActivity):
                    self.foreign_busy = batch.foreign_busy = signal.busy
                    self._postponed_until = 0.0
                if run is not None and report.attempt == run.attempt and self._may_repeat(signal, run):
                    await self._commit(batch)
                    batch = Batch()
                    await self._retry(run, signal)
                    continue
                if run is not None and report.attempt == run.attempt and run.status not in ENDS:
                    batch.add(run.turn.id, run.tell(signal))
                    if run.status in ENDS:
                        batch.cursor = report.cursor or batch.cursor
                        await self._commit(batch)
                        batch = Batch()
                elif report.attempt is None and isinstance(signal, Said):
                    batch.add(None, Told(events=self._outside.tell(signal)))
            batch.cursor = report.cursor or batch.cursor
        await self._commit(batch)
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

    def _may_repeat(self, signal: Signal, run: Run) -> TypeGuard[TurnBroke]:
        """Whether the attempt may be made again: only one that is known not to have been delivered."""
        return (
            isinstance(signal, TurnBroke)
            and signal.retriable
            and signal.delivered == "no"
            and run.status in (TurnStatus.RUNNING, TurnStatus.RECONCILING)
            and run.stop is None
            and run.turn.attempt < run.turn.request.max_attempts
        )

    async def _commit_told(self, told: Told) -> None:
        assert self.run is not None
        batch = Batch()
        batch.add(self.run.turn.id, told)
        await self._commit(batch)

    async def _commit(self, batch: Batch) -> None:
        """Write a batch, then do what follows from it: the end of the run, the answers of the policy."""
        run = self.run
        if await batch.write(self._hosted, run):
            await self._rules.collisions.look(self._hosted.lease.session)
        if run is not None and run.status in ENDS:
            self._run_is_over(run)
        for asked in batch.asked:
            if asked.answer_now is not None:
                await self._answer(asked.waiting, asked.answer_now == "allow", "policy", None)

    def _run_is_over(self, run: Run) -> None:
        self.run = None
        self._retry_at = None
        self._hosted.touch()
        self._settled_at = self._hosted.used_at + (0 if run.status is TurnStatus.COMPLETED else SETTLE_S)
        log.info(
            "turn_ended",
            turn_id=run.turn.id,
            status=str(run.status),
            seconds=round(self._hosted.used_at - run.started, 3),
        )
        self._hosted.look()

    async def respond(self, permission: Permission, response: Response) -> None:
        """Send a person's answer, once."""
        await self.relay()  # somebody else may have been first
        run = self.run
        waiting = run.waiting.get(permission.request) if run is not None else None
        if waiting is None or waiting.id != permission.id or waiting.sent is not None:
            return
        by: ResolvedBy = "caller" if waiting.for_person else "policy"
        stops = response.interrupt and response.outcome == "deny"
        await self._answer(
            waiting, response.outcome == "allow", by, permission.actor, response=response, stops=stops
        )

    async def _answer(
        self,
        waiting: Waiting,
        allow: bool,
        by: ResolvedBy,
        actor: str | None,
        *,
        response: Response | None = None,
        stops: bool = False,
    ) -> None:
        """Send an answer, once. `stops`: the turn is to end once the backend has taken it."""
        if waiting.sent is not None:
            return
        if self._keeper.agent is None:
            if by != "caller":
                waiting.expires_at = time.monotonic() + REPEAT_S
            await self._reopen(waiting, None)
            return
        option_id = response.option_id if response is not None else None
        waiting.sent = ("allowed" if allow else "denied", option_id, by, actor)
        expires_at, waiting.expires_at = waiting.expires_at, None
        answer = Answer(
            allow=allow,
            option_id=option_id,
            message=response.message if response is not None else None,
            updated_input=response.updated_input if response is not None else None,
            answers=response.answers if response is not None else None,
        )
        sent = SentAnswer(waiting, by, expires_at, stops=stops)
        self._hosted.tasks.start_soon(self._send_answer, self._keeper.agent, answer, sent)

    async def _send_answer(self, agent: Agent, answer: Answer, sent: SentAnswer) -> None:
        """A task of its own: the backend may take seconds, for which no end of a turn has to wait."""
        try:
            await agent.answer(sent.waiting.request, answer)
        except BackendError as error:
            sent.error = error
        except Exception:
            log.exception("answer_crashed")
            sent.error = BackendUnavailable("the adapter failed")
        self._answered.append(sent)
        self._hosted.wake()

    async def take_answers(self) -> None:
        """Do what follows from the answers that were sent and are through, or were not taken."""
        while self._answered:
            sent = self._answered.popleft()
            if sent.error is not None:
                await self._not_taken(sent, sent.error)
            elif sent.stops:
                self.ask_to_stop("permission")
                if self.run is not None and self.run.stop is not None and self.run.stop.rung is None:
                    await self._climb(self.run, self.run.stop)  # at once: it may be quick to end by itself

    async def _not_taken(self, sent: SentAnswer, error: BackendError) -> None:
        log.warning("answer_not_taken", error=type(error).__name__)
        waiting, is_refused = sent.waiting, isinstance(error, BackendRejected)
        if not isinstance(error, NotPending):
            await self.relay()  # another client may have been first
        if self.run is None or self.run.waiting.get(waiting.request) is not waiting:
            return
        waiting.sent = None
        waiting.expires_at = sent.expires_at if sent.by == "caller" else time.monotonic() + REPEAT_S
        if isinstance(error, NotPending):  # what counted comes with the reports
            return
        await self._reopen(waiting, str(error) if is_refused else None)
        if is_refused and sent.by == "policy":
            self.ask_to_stop("permission")

    async def _reopen(self, waiting: Waiting, refusal: str | None) -> None:
        """The answer did not reach the agent: the permission is pending again."""

        async def reopen() -> None:
            async with self._hosted.database.begin() as db:
                await permissions.reopen(db, self._hosted.lease.session, waiting.id, refusal)

        await self._hosted.database.retrying(reopen)

    def ask_to_stop(self, cause: Any, limit: Limit | None = None) -> None:
        if self.run is not None and self.run.stop is None and not self.run.is_over:
            self.run.stop = Stop(cause=cause, limit=limit)
            self._hosted.wake()

    def next_clock(self) -> float:
        """When something is due even if nothing happens; monotonic."""
        if not self._may_act:
            return time.monotonic() + LEASE_LOOK_S
        due = [time.monotonic() + 3600.0, *(queued.until for queued in self.queue)]
        run = self.run
        if run is not None:
            if run.stop is None and run.held is None:  # what is being ended already is not ended again
                due.append(run.started + run.turn.request.deadline_s)
                if run.idle_clock_runs:
                    due.append(run.idle_since + run.turn.request.idle_timeout_s)
                if self.leaving is not None:
                    due.append(self.leaving)
            due += [waiting.expires_at for waiting in run.waiting.values() if waiting.expires_at is not None]
            if run.held is not None:
                due.append(run.held[1])
            if run.stop is not None:
                due.append(run.stop.until)
            if self._retry_at is not None:
                due.append(self._retry_at)
            if self._is_out_of_sight(run):
                due.append(self._postponed_until)
        elif self.queue and self.leaving is None:
            due.append(max(self._settled_at, self._postponed_until))
        return min(due)

    @property
    def _may_act(self) -> bool:
        """Whether the lease holds: without it the agent is another host's."""
        return not self.suspended and self._rules.may_act()

    async def tick(self) -> None:
        if not self._may_act:
            return
        now = time.monotonic()
        for queued in list(self.queue):
            if queued.until <= now:
                self.queue.remove(queued)
                await self.end_queued(
                    queued.turn, TurnTimedOut(limit="queue", delivered="no", cancel_outcome=None)
                )
        if self.run is not None:
            await self._tick_run(self.run, now)
        elif (
            self.queue
            and self.leaving is None
            and self._hosted.session.status == "active"
            and now >= max(self._settled_at, self._postponed_until)
        ):
            await self._start_next()

    async def _tick_run(self, run: Run, now: float) -> None:
        if run.held is not None and run.held[1] <= now:
            told = Told()
            run.finish(run.held[0], told)
            await self._commit_told(told)
            return
        if run.lost_cause is not None:
            told = Told()
            run.expire_all(told)
            run.finish(run.lost(run.lost_cause), told)
            await self._commit_told(told)
            return
        for waiting in list(run.waiting.values()):
            if waiting.expires_at is None or waiting.expires_at > now:
                continue
            if waiting.policy_answer is not None:
                await self._answer(waiting, waiting.policy_answer == "allow", "policy", None)
            else:
                await self._answer(waiting, run.allows_on_timeout(waiting), "timeout", None)
        if run.started + run.turn.request.deadline_s <= now:
            self.ask_to_stop("caller", "deadline")
        if run.idle_clock_runs and run.idle_since + run.turn.request.idle_timeout_s <= now:
            self.ask_to_stop("caller", "idle")
        if self.leaving is not None and self.leaving <= now and self._hosted.dies_with_host:
            self.ask_to_stop("shutdown")
        if self._is_out_of_sight(run) and self._postponed_until <= now:
            await self._find_again(run)
        elif run.stop is not None and run.stop.until <= now:
            await self._climb(run, run.stop)
        elif self._retry_at is not None and self._retry_at <= now:
            await self._start_again()

    def _is_out_of_sight(self, run: Run) -> bool:
        """Whether its agent is to be found again; not one that the cancel ladder has just put away."""
        put_away = run.stop is not None and run.stop.rung == "archive"
        return run.status is TurnStatus.RECONCILING and self._keeper.agent is None and not put_away

    async def _climb(self, run: Run, stop: Stop) -> None:
        """The next step of the cancel ladder; each has a deadline, and after the last we say what we know."""
        if self._retry_at is not None or self._keeper.agent is None:
            # Nothing of it runs anywhere, unless its agent lives on where we cannot reach it.
            is_out_of_reach = self._retry_at is None and not self._hosted.dies_with_host
            await self._end(run.stopped("unconfirmed" if is_out_of_reach else "stopped"))
            return
        rungs = [rung for rung, _ in LADDER]
        step = 0 if stop.rung is None else rungs.index(stop.rung) + 1
        if step == len(LADDER):
            await self._end(run.stopped("unconfirmed"))
            return
        stop.rung, seconds = LADDER[step]
        if self.leaving is not None:
            seconds = min(seconds, 1.0)
        stop.until = time.monotonic() + seconds
        agent = self._keeper.agent
        with anyio.move_on_after(seconds):
            match stop.rung:
                case "interrupt":
                    await agent.interrupt()
                case "kill":
                    await agent.kill()
                case "archive":
                    with suppress(BackendError):
                        await agent.archive()
        await self.relay()
        if stop.rung != "interrupt" and self.run is run and not agent.reports.has_reports:
            stop.until = time.monotonic() + 1.0  # what was told of the end may still be on its way


def _age(turn: Turn, now: datetime) -> float:
    """Seconds since the turn first started, by the database's clock."""
    return 0.0 if turn.started_at is None else max(0.0, (now - turn.started_at).total_seconds())


def _monotonic(at: datetime | None, now: datetime) -> float | None:
    """A time of the database's clock as monotonic time."""
    return None if at is None else time.monotonic() + (at - now).total_seconds()


def _rest_of(turn: Turn, now: datetime) -> float:
    """Seconds that a queued turn may still wait, by the database's clock."""
    return max(0.0, turn.request.queue_timeout_s - (now - turn.created_at).total_seconds())


def _attachment(part: Any) -> Attachment:
    if part["type"] == "image":
        return Attachment(kind="image", mime_type=part["mime_type"], data=part["data"])
    return Attachment(kind="text", name=part.get("name"), data=part["text"])
