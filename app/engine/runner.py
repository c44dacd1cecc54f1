"""The turns of a hosted session, one after the other: what is due next, and who does it."""

import time
from collections.abc import Sequence
from contextlib import suppress

import anyio

from app.backends.base import BackendError, NotPending
from app.domain.events import ResolvedBy
from app.domain.permissions import Permission, Response
from app.domain.turns import Turn
from app.engine.answering import Answers
from app.engine.hosted import Hosted, Work
from app.engine.keeper import Keeper
from app.engine.relay import Relay, Rules
from app.engine.run import Run, Rung, Stop, Told
from app.engine.starting import Starter
from app.engine.takeover import Taker

LADDER: tuple[tuple[Rung, float], ...] = (("interrupt", 5.0), ("kill", 10.0), ("archive", 15.0))
"""How an agent is stopped, and how many seconds each step has."""
LEASE_LOOK_S = 1.0
"""Seconds between two looks whether a lease that ran out was renewed after all."""


class Runner:
    """Minds the clocks of a session's turns, and does what is due."""

    def __init__(self, hosted: Hosted, keeper: Keeper, rules: Rules) -> None:
        self._hosted = hosted
        self._keeper = keeper
        self._rules = rules
        self._answers = Answers(hosted, keeper)
        self._relay = Relay(hosted, keeper, self._answers, rules)
        self._starter = Starter(hosted, keeper, self._relay, rules)
        self._taker = Taker(hosted, keeper, self._relay)
        self.leaving: float | None = None
        """Monotonic time at which a turn that ends with us is ended, once the process is going."""
        self.suspended = False
        """Whether the lease ran out unrenewed."""

    @property
    def runs_turn(self) -> bool:
        """Whether a turn has started and not ended."""
        return self._relay.run is not None

    @property
    def has_turns(self) -> bool:
        """Whether turns are open."""
        return bool(self._starter.queue) or self.runs_turn

    @property
    def foreign_busy(self) -> bool:
        """Whether the agent runs somebody else's turn."""
        return self._relay.foreign_busy

    async def see(self, work: Work) -> None:
        """Take in what the database says of the turns."""
        run = self._relay.run
        if run is None:
            await self._taker.take_over(work)
        else:
            run.policy = work.session.policy
        self._starter.see(work.turns, work.now, drained=work.drained)
        self._see_cancels(work.turns)

    def _see_cancels(self, open_turns: Sequence[Turn]) -> None:
        for turn in open_turns:
            run = self._relay.run
            if run is not None and turn.id == run.turn.id and turn.cancel_requested_at is not None:
                self._relay.ask_to_stop(turn.cancel_cause or "caller")

    async def regain_sight(self) -> None:
        """See a turn again that an earlier host had started, before anything else loads its agent.

        Raises:
            BackendUnavailable: not now.
        """
        await self._taker.regain_sight()

    async def suspend(self) -> None:
        """The lease ran out unrenewed: stop acting. An agent that ends with its host is ended."""
        if self.suspended:
            return
        self.suspended = True
        if self._hosted.dies_with_host:
            if self._relay.run is not None:
                self._relay.run.lost_cause = "lease_lost"
            if self._keeper.agent is not None:
                await self._keeper.agent.kill()

    async def relay(self) -> None:
        """Write what the agent has reported by now."""
        await self._relay.relay()

    async def close(self, *, cancels: bool) -> bool:
        """End the queue, and the started turn if it `cancels`, for a session that is being closed.

        Returns:
            Whether no turn is open any more.
        """
        await self._starter.cancel_queue()
        if cancels:
            self._relay.ask_to_stop("session_closed")
        return not self.runs_turn

    async def respond(self, permission: Permission, response: Response) -> None:
        """Send a person's answer, once."""
        await self.relay()  # somebody else may have been first
        run = self._relay.run
        waiting = run.waiting.get(permission.request) if run is not None else None
        if waiting is None or waiting.id != permission.id:
            return
        by: ResolvedBy = "caller" if waiting.for_person else "policy"
        stops = response.interrupt and response.outcome == "deny"
        await self._answers.give(
            waiting, response.outcome == "allow", by, permission.actor, response=response, stops=stops
        )

    async def take_answers(self) -> None:
        """Do what follows from the answers that were sent and are through, or were not taken."""
        while (sent := self._answers.next_through()) is not None:
            if sent.error is not None:
                if not isinstance(sent.error, NotPending):
                    await self.relay()  # another client may have been first
                if await self._answers.not_taken(sent, sent.error, self._relay.run):
                    self._relay.ask_to_stop("permission")
            elif sent.stops:
                self._relay.ask_to_stop("permission")
                run = self._relay.run
                if run is not None and run.stop is not None and run.stop.rung is None:
                    await self._climb(run, run.stop)  # at once: it may be quick to end by itself

    # The clocks.

    def next_clock(self) -> float:
        """When something is due even if nothing happens; monotonic."""
        if not self._may_act:
            return time.monotonic() + LEASE_LOOK_S
        due = [time.monotonic() + 3600.0, *(queued.until for queued in self._starter.queue)]
        if self._relay.run is not None:
            due += self._clocks_of(self._relay.run)
        elif self._starter.queue and self.leaving is None:
            due.append(max(self._relay.settled_at, self._relay.postponed_until))
        return min(due)

    def _clocks_of(self, run: Run) -> list[float]:
        due = [waiting.expires_at for waiting in run.waiting.values() if waiting.expires_at is not None]
        if run.stop is None and run.held is None:  # what is being ended already is not ended again
            due.append(run.started + run.turn.request.deadline_s)
            if run.idle_clock_runs:
                due.append(run.idle_since + run.turn.request.idle_timeout_s)
            if self.leaving is not None:
                due.append(self.leaving)
        if run.held is not None:
            due.append(run.held[1])
        if run.stop is not None:
            due.append(run.stop.until)
        if self._relay.retry_at is not None:
            due.append(self._relay.retry_at)
        if self._taker.is_out_of_sight(run):
            due.append(self._relay.postponed_until)
        return due

    @property
    def _may_act(self) -> bool:
        """Whether the lease holds: without it the agent is another host's."""
        return not self.suspended and self._rules.may_act()

    async def tick(self) -> None:
        """Do what is due by now."""
        if not self._may_act:
            return
        now = time.monotonic()
        await self._starter.expire()
        if self._relay.run is not None:
            await self._tick_run(self._relay.run, now)
        elif (
            self._starter.queue
            and self.leaving is None
            and self._hosted.session.status == "active"
            and now >= max(self._relay.settled_at, self._relay.postponed_until)
        ):
            await self._starter.start_next()

    async def _tick_run(self, run: Run, now: float) -> None:
        if run.held is not None and run.held[1] <= now:
            told = Told()
            run.finish(run.held[0], told)
            await self._relay.commit_told(told)
            return
        if run.lost_cause is not None:
            await self._relay.lose(run, run.lost_cause)
            return
        await self._answer_for_people(run, now)
        if run.started + run.turn.request.deadline_s <= now:
            self._relay.ask_to_stop("caller", "deadline")
        if run.idle_clock_runs and run.idle_since + run.turn.request.idle_timeout_s <= now:
            self._relay.ask_to_stop("caller", "idle")
        if self.leaving is not None and self.leaving <= now and self._hosted.dies_with_host:
            self._relay.ask_to_stop("shutdown")
        if self._taker.is_out_of_sight(run) and self._relay.postponed_until <= now:
            await self._taker.find_again(run)
        elif run.stop is not None and run.stop.until <= now:
            await self._climb(run, run.stop)
        elif self._relay.retry_at is not None and self._relay.retry_at <= now:
            await self._starter.start_again()

    async def _answer_for_people(self, run: Run, now: float) -> None:
        """Give the answers whose time has come: the policy's, and those of people who did not answer."""
        for waiting in list(run.waiting.values()):
            if waiting.expires_at is None or waiting.expires_at > now:
                continue
            if waiting.policy_answer is not None:
                await self._answers.give(waiting, waiting.policy_answer == "allow", "policy")
            else:
                await self._answers.give(waiting, run.allows_on_timeout(waiting), "timeout")

    async def _climb(self, run: Run, stop: Stop) -> None:
        """The next step of the cancel ladder; each has a deadline, and after the last we say what we know."""
        agent = self._keeper.agent
        if self._relay.retry_at is not None or agent is None:
            # Nothing of it runs anywhere, unless its agent lives on where we cannot reach it.
            is_out_of_reach = self._relay.retry_at is None and not self._hosted.dies_with_host
            await self._relay.end(run.stopped("unconfirmed" if is_out_of_reach else "stopped"))
            return
        rungs = [rung for rung, _ in LADDER]
        step = 0 if stop.rung is None else rungs.index(stop.rung) + 1
        if step == len(LADDER):
            await self._relay.end(run.stopped("unconfirmed"))
            return
        stop.rung, seconds = LADDER[step]
        if self.leaving is not None:
            seconds = min(seconds, 1.0)
        stop.until = time.monotonic() + seconds
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
        if stop.rung != "interrupt" and self._relay.run is run and not agent.reports.has_reports:
            stop.until = time.monotonic() + 1.0  # what was told of the end may still be on its way
