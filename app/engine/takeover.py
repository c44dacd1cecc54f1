"""Started turns of an earlier host: taken over, and found again at the backend."""

import time
from datetime import datetime
from functools import partial

import structlog

from app.backends.base import AgentLost, BackendError, BackendUnavailable, OpenAttempt
from app.domain.items import fold
from app.domain.transcript import Transcript
from app.domain.turns import Turn, TurnStatus
from app.engine.hosted import Hosted, Work
from app.engine.keeper import Keeper
from app.engine.relay import Relay
from app.engine.run import Run, Told, Waiting
from app.engine.starting import POSTPONE_S
from app.store import eventlog

log = structlog.get_logger(__name__)


class Taker:
    """Takes a turn over that was started elsewhere, and finds it again."""

    def __init__(self, hosted: Hosted, keeper: Keeper, relay: Relay) -> None:
        self._hosted = hosted
        self._keeper = keeper
        self._relay = relay

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
        self._relay.run = run
        if turn.status is TurnStatus.RETRYING:
            run.delivered = "no"
            self._relay.retry_at = 0.0
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
        if self._hosted.dies_with_host:
            await self._relay.lose(run, "host_lost")
            return
        told = Told()
        run.lose_sight("host_lost", told)
        self._relay.postponed_until = 0.0
        await self._relay.commit_told(told)

    async def regain_sight(self) -> None:
        """See a turn again that an earlier host had started, before anything else loads its agent.

        Raises:
            BackendUnavailable: not now.
        """
        run = self._relay.run
        if run is not None and run.status is TurnStatus.RECONCILING and self._keeper.agent is None:
            await self.find_again(run)
            if self._relay.run is run and self._keeper.agent is None:
                raise BackendUnavailable("the backend cannot be reached, and a turn waits for it")

    async def find_again(self, run: Run) -> None:
        """Have the backend find out what became of a turn whose last host is gone; reports tell the rest."""
        try:
            was_told = run.last_event_at is not None
            await self._keeper.load(OpenAttempt(run.attempt, was_told, run.turn.request.prompt))
            self._hosted.look()  # answers may wait that nobody could send
        except BackendUnavailable:
            self._relay.postponed_until = time.monotonic() + POSTPONE_S
        except BackendError as error:  # nothing tells any more how far it came
            if isinstance(error, AgentLost):
                await self._hosted.change(agent_lost=True)
            await self._relay.lose(run, "backend_session_lost")

    def is_out_of_sight(self, run: Run) -> bool:
        """Whether its agent is to be found again; not one that the cancel ladder has just put away."""
        put_away = run.stop is not None and run.stop.rung == "archive"
        return run.status is TurnStatus.RECONCILING and self._keeper.agent is None and not put_away

    async def _turn_events(self, turn: Turn) -> list[eventlog.Logged]:
        async with self._hosted.database.begin() as db:
            return [event async for event in eventlog.read_turn(db, turn.session, turn)]


def _age(turn: Turn, now: datetime) -> float:
    """Seconds since the turn first started, by the database's clock."""
    return 0.0 if turn.started_at is None else max(0.0, (now - turn.started_at).total_seconds())


def _monotonic(at: datetime | None, now: datetime) -> float | None:
    """A time of the database's clock as monotonic time."""
    return None if at is None else time.monotonic() + (at - now).total_seconds()
