"""Answers to what a session's agent asks, on their way to the backend and back from there."""

import time
from collections import deque
from dataclasses import dataclass

import structlog

from app.backends.base import Agent, Answer, BackendError, BackendRejected, BackendUnavailable, NotPending
from app.domain.events import ResolvedBy
from app.domain.permissions import Response
from app.engine.hosted import Hosted
from app.engine.keeper import Keeper
from app.engine.run import Run, Waiting
from app.store import permissions

log = structlog.get_logger(__name__)

REPEAT_S = 5.0
"""Seconds after which an answer of ours (a time-out's, the policy's) that was not taken is sent again."""


@dataclass
class SentAnswer:
    """An answer to a permission, on its way to the backend or back from there."""

    waiting: Waiting
    by: ResolvedBy
    expires_at: float | None
    """When the permission times out if the answer is not taken."""
    stops: bool
    error: BackendError | None = None


class Answers:
    """Sends the answers of a session, each once, and keeps those that are through until they are taken."""

    def __init__(self, hosted: Hosted, keeper: Keeper) -> None:
        self._hosted = hosted
        self._keeper = keeper
        self._through: deque[SentAnswer] = deque()

    async def give(
        self,
        waiting: Waiting,
        allow: bool,
        by: ResolvedBy,
        actor: str | None = None,
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
        self._hosted.tasks.start_soon(self._send, self._keeper.agent, answer, sent)

    async def _send(self, agent: Agent, answer: Answer, sent: SentAnswer) -> None:
        """A task of its own: the backend may take seconds, for which no end of a turn has to wait."""
        try:
            await agent.answer(sent.waiting.request, answer)
        except BackendError as error:
            sent.error = error
        except Exception:
            log.exception("answer_crashed")
            sent.error = BackendUnavailable("the adapter failed")
        if sent.error is not None:  # here: whatever follows on it may fail as well
            log.warning("answer_not_taken", error=type(sent.error).__name__)
        self._through.append(sent)
        self._hosted.wake()

    def next_through(self) -> SentAnswer | None:
        """The next answer of which the backend has said what it makes of it; null if there is none."""
        return self._through.popleft() if self._through else None

    async def not_taken(self, sent: SentAnswer, error: BackendError, run: Run | None) -> bool:
        """Have the permission wait again, unless it was resolved otherwise.

        Returns:
            Whether it was refused for good, and no person is there to answer otherwise.
        """
        waiting, is_refused = sent.waiting, isinstance(error, BackendRejected)
        if run is None or run.waiting.get(waiting.request) is not waiting:
            return False
        waiting.sent = None
        waiting.expires_at = sent.expires_at if sent.by == "caller" else time.monotonic() + REPEAT_S
        if isinstance(error, NotPending):  # what counted comes with the reports
            return False
        await self._reopen(waiting, str(error) if is_refused else None)
        return is_refused and sent.by == "policy"

    async def _reopen(self, waiting: Waiting, refusal: str | None) -> None:
        """The answer did not reach the agent: the permission is pending again."""

        async def reopen() -> None:
            async with self._hosted.database.begin() as db:
                await permissions.reopen(db, self._hosted.lease.session, waiting.id, refusal)

        await self._hosted.database.retrying(reopen)
