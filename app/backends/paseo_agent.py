"""One agent of a Paseo daemon, as its host holds it."""

import math
import time
from contextlib import suppress

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus

from app.backends.base import (
    AgentSpec,
    AgentState,
    Answer,
    BackendRejected,
    BackendUnavailable,
    Change,
    NotPending,
    OpenAttempt,
    Prompt,
    SendFailed,
    Unsupported,
)
from app.backends.paseo_archiving import put_away
from app.backends.paseo_asking import Asked
from app.backends.paseo_following import Follower, Lost
from app.backends.paseo_permissions import response_to
from app.backends.paseo_sending import Delivery, refuse_unsendable
from app.backends.paseo_settings import check_change
from app.backends.paseo_settling import Pace
from app.backends.paseo_telling import Sent, Teller
from app.domain.signals import Cursor, TurnBroke, TurnStopped, TurnUnknown
from app.paseo import errors, snapshots
from app.paseo.agents import Allow, Deny
from app.paseo.client import PaseoClient
from app.paseo.errors import PaseoError, Reason
from app.paseo.items import UserMessage

log = structlog.get_logger(__name__)

OUR_MESSAGES = "trn_"
"""What the names of our attempts begin with: they are the ids of our messages at the daemon."""
BUSY_LOOKS = 10
"""Looks at an agent that does not leave `running`, before a prompt is refused."""


class PaseoAgent:
    """Implements `Agent` over the daemon's WebSocket. `open_new` or `take_up` comes first."""

    resumable = True

    def __init__(
        self,
        client: PaseoClient,
        agent: snapshots.Agent,
        spec: AgentSpec,
        tasks: TaskGroup,
        pace: Pace,
    ) -> None:
        self._client = client
        self._spec = spec
        self._id = agent.id
        self._pace = pace
        self._teller = Teller(agent, spec)
        self.reports = self._teller.reports
        self._follower = Follower(client, self._teller, spec, pace)
        self._tasks = tasks
        self._scope = anyio.CancelScope()
        self._is_released = False

    @property
    def state(self) -> AgentState:
        """What is in force."""
        return self._teller.state

    @state.setter
    def state(self, state: AgentState) -> None:
        self._teller.state = state

    # Opening and leaving.

    async def open_new(self) -> None:
        """Follow an agent that was just made; one that was adopted tells its history first."""
        self._teller.begin_new()
        self._teller.tells_history = self._spec.provider_session_id is not None
        if not self._teller.tells_history:
            await self._follower.catch_up(patient=False)
        else:
            self._follower.is_behind = True
        await self._tasks.start(self._live, name=f"paseo {self._id}")

    async def take_up(
        self, stored: snapshots.Agent, cursor: Cursor | None, attempt: OpenAttempt | None
    ) -> None:
        """Follow an agent that was made before, from `cursor` on; find out what became of `attempt`.

        Raises:
            Lost, PaseoError: it cannot be loaded.
        """
        self._teller.begin_at(cursor)
        self._teller.tells_history |= cursor is None and self._spec.provider_session_id is not None
        sent = Sent(attempt.name, holds_link=False) if attempt is not None else None
        if sent is not None and attempt is not None:
            sent.accepted = attempt.was_told
        await self._follower.take_up(stored, sent)
        if attempt is None and self._teller.snapshot.status == "running" and await self._is_ours():
            await self._follower.refresh()  # a turn whose end was told without having been seen
        await self._tasks.start(self._live, name=f"paseo {self._id}")

    async def take_out(self, attempt: OpenAttempt | None) -> None:
        """Follow an agent that was archived behind our back, from here on; its turn ended, somehow."""
        if attempt is not None:
            self._teller.expect(Sent(attempt.name))
            self._teller.conclude(TurnUnknown(cause="the agent was archived", delivered="unknown"))
        await self._follower.catch_up(patient=False)
        await self._tasks.start(self._live, name=f"paseo {self._id}")

    async def _live(self, *, task_status: TaskStatus[None]) -> None:
        """Everything that goes on for this agent, until it is released or lost."""
        try:
            with self._scope:
                async with anyio.create_task_group() as own:
                    self._own = own
                    task_status.started()
                    await self._follower.run()
                    own.cancel_scope.cancel()
        except Exception:  # its neighbours live on
            log.exception("paseo_agent_crashed")
            self._teller.conclude(TurnBroke(code="internal_error", message="the adapter failed"))
        self._is_released = True
        self._follower.close()

    async def archive(self) -> None:
        """Archive the agent, with its process, and let it go."""
        try:
            await put_away(self._client, self._id)
        finally:
            await self.release()

    async def release(self) -> None:
        """Stop following; the agent and its turn go on in the daemon."""
        if not self._is_released:
            self._is_released = True
            self._scope.cancel()
            self._follower.close()

    # Prompting.

    async def prompt(self, prompt: Prompt) -> None:
        """Send a prompt; returns when it is written."""
        if self._is_released or self._follower.is_lost:
            raise SendFailed("the agent was put away", delivered="no", retriable=False)
        if self._teller.sent is not None:
            raise SendFailed("the agent is running a turn", delivered="no", retriable=True)
        refuse_unsendable(prompt)
        with anyio.move_on_after(self._pace.turnstile) as waiting:
            async with self._follower.turnstile:
                waiting.deadline = math.inf
                sent = await self._prepare(prompt)
            await self._send(prompt, sent)
            return
        raise SendFailed("what was missed is still being read", delivered="no", retriable=True)

    async def _prepare(self, prompt: Prompt) -> Sent:
        """Before every prompt, while the agent is at rest: a live process, a lowered flag, nothing unread."""
        follower, teller = self._follower, self._teller
        try:
            await self._client.wait_up(self._pace.busy)
            follower.take()
            if teller.is_stale:
                await follower.refresh()
            with suppress(errors.Timeout, errors.Refused):  # an answer may never come
                await self._client.clear_attention(self._id)
            await follower.read_up()
            if teller.snapshot.is_archived or teller.snapshot.status == "closed":
                await follower.refresh()
            await self._leave_running()
        except Lost as lost:
            follower.is_lost = True
            raise SendFailed(str(lost), delivered="no", retriable=False) from None
        except (PaseoError, anyio.EndOfStream) as error:
            passing = not isinstance(error, errors.Refused)
            raise SendFailed(str(error) or "closed", delivered="no", retriable=passing) from None
        sent = Sent(prompt.attempt)
        teller.expect(sent)
        return sent

    async def _leave_running(self) -> None:
        """Prompting an agent that runs would end its turn: it is given a moment to leave that state."""
        for _ in range(BUSY_LOOKS):
            if self._teller.snapshot.status not in ("running", "initializing"):
                return
            await anyio.sleep(self._pace.busy / BUSY_LOOKS)
            await self._follower.read_up()
        if await self._is_ours():  # a turn that we could not stop in time, and told the end of
            await self._follower.refresh()
        elif self._teller.snapshot.status in ("running", "initializing"):
            raise SendFailed("somebody else keeps the agent busy", delivered="no", retriable=True)

    async def _is_ours(self) -> bool:
        """Whether the turn that runs, which is not ours any more, is one that we had prompted."""
        page = await self._client.timeline.page(self._id, direction="tail")
        prompts = [row.item for row in page.entries if isinstance(row.item, UserMessage)]
        return bool(prompts) and (prompts[-1].message_id or "").startswith(OUR_MESSAGES)

    async def _send(self, prompt: Prompt, sent: Sent) -> None:
        delivery = Delivery(self._client, self._follower, sent)
        self._own.start_soon(delivery.run, self._id, prompt, name=f"paseo prompt {prompt.attempt}")
        self._own.start_soon(self._watch_start, sent, name=f"paseo start {prompt.attempt}")
        await delivery.written.wait()
        if delivery.failure is not None:
            if self._teller.sent is sent:
                self._teller.sent = None
            sent.alive.set()
            sent.started.set()
            raise delivery.failure

    async def _watch_start(self, sent: Sent) -> None:
        """See that a turn shows life: a process that died while idle takes prompts and never answers."""
        await sent.started.wait()
        with anyio.move_on_after(self._pace.silence):
            await sent.alive.wait()
            return
        mode = self.state.mode
        if mode is None or not self._client.link.is_up:
            return
        try:
            await self._client.set_mode(self._id, mode, deadline=self._pace.probe)
        except errors.Timeout:
            pass
        except PaseoError:
            return
        else:
            return
        if self._teller.sent is sent and not sent.alive.is_set():
            words = "the agent's process shows no life"
            sent.ending = TurnBroke(code="agent_process_dead", message=words)
            self._teller.is_stale = True
            await self.interrupt()
            async with self._follower.turnstile:
                self._follower.take()
                if self._teller.sent is sent:
                    self._teller.conclude(sent.ending)

    async def reach(self) -> None:
        """Wait a moment for a link that is down."""
        if not self._client.link.is_up:
            self._client.redial()
        try:
            await self._client.wait_up(self._pace.reach)
        except errors.NotSent as error:
            raise BackendUnavailable(str(error)) from None

    # Stopping.

    async def interrupt(self) -> None:
        """Cancel the turn; its end comes as a signal."""
        sent = self._teller.sent
        if sent is not None:
            # The daemon answers the cancel of a turn that has not started yet, and starts it all the same.
            with anyio.move_on_after(self._pace.cancel):
                await sent.started.wait()
            sent.stop_sent_at = time.monotonic()
        try:
            await self._client.cancel(self._id, deadline=5.0)
        except errors.Timeout:
            self._teller.is_stale = True
        except PaseoError as error:
            self._teller.is_stale = True
            log.info("paseo_cancel_failed", error=type(error).__name__)

    async def kill(self) -> None:
        """Start the agent's process anew; an open turn ends as stopped."""
        sent = self._teller.sent
        if sent is not None and sent.stop_sent_at is None:
            sent.stop_sent_at = time.monotonic()
        try:
            async with self._follower.turnstile:
                await self._follower.refresh()
                if sent is not None and self._teller.sent is sent:
                    self._teller.conclude(TurnStopped())
        except (PaseoError, anyio.EndOfStream) as error:
            log.warning("paseo_refresh_failed", error=type(error).__name__)
            self._teller.is_stale = True

    # Permissions.

    async def answer(self, request: str, answer: Answer) -> None:
        """Answer a permission request; what counted comes as `PermissionSettled`."""
        asked = self._teller.asked.get(request)
        if asked is None:
            raise NotPending("this permission request is not pending")
        response = response_to(asked.request, answer)
        asked.answered = ("allowed" if answer.allow else "denied", answer.option_id)
        try:
            await self._until_settled(asked, response)
        except errors.Refused as error:
            asked.answered = None
            gone = error.reason is Reason.PERMISSION_GONE
            raise (NotPending if gone else BackendRejected)(error.text) from None
        except errors.NotSent as error:
            asked.answered = None
            raise BackendUnavailable(str(error)) from None
        except (errors.Timeout, errors.LinkLost):
            await self._look_for(asked)

    async def _until_settled(self, asked: Asked, response: Allow | Deny) -> None:
        """Send an answer, and wait for its resolution; some providers' is seen in the agent only."""
        failures: list[PaseoError] = []
        async with anyio.create_task_group() as racing:

            async def send() -> None:
                try:
                    await self._client.answer_permission(self._id, asked.request.id, response)
                except PaseoError as error:
                    failures.append(error)
                racing.cancel_scope.cancel()

            racing.start_soon(send)
            await asked.settled.wait()
            racing.cancel_scope.cancel()
        if failures:
            raise failures[0]

    async def _look_for(self, asked: Asked) -> None:
        """No resolution came: see whether the request is still pending."""
        try:
            agent = await self._client.fetch_agent(self._id)
        except PaseoError as error:
            raise BackendUnavailable(str(error)) from None
        if any(pending.id == asked.request.id for pending in agent.pending_permissions):
            asked.answered = None
            raise BackendUnavailable("the daemon has not taken the answer; it is still pending")
        self._teller.settle(asked)

    # Settings.

    async def configure(self, change: Change) -> AgentState:
        """Change settings; what is in force is read back, for the daemon takes unknown values too."""
        with anyio.move_on_after(self._pace.turnstile) as waiting:
            async with self._follower.turnstile:
                waiting.deadline = math.inf
                self._teller.tells_config = False
                try:
                    await self._configure(change)
                except errors.Refused as error:
                    raise Unsupported(error.text) from None
                except (PaseoError, anyio.EndOfStream) as error:
                    raise BackendUnavailable(str(error)) from None
                finally:
                    self._teller.tells_config = True
            return self.state
        raise BackendUnavailable("what was missed is still being read")

    async def _configure(self, change: Change) -> None:
        if change.model is not None or change.mode is not None or change.thinking is not None:
            providers = await self._client.providers(only=self._spec.provider)
            known = next((one for one in providers if one.provider == self._spec.provider), None)
            check_change(change, known, self._teller.snapshot, self.state.model)
        if change.model is not None:
            await self._client.set_model(self._id, change.model)
        if change.mode is not None:
            await self._client.set_mode(self._id, change.mode)
        if change.thinking is not None:
            await self._client.set_thinking(self._id, change.thinking)
        if change.title is not None:
            await self._client.update_agent(self._id, name=change.title)
        agent = await self._client.fetch_agent(self._id)
        self._follower.take()
        self._teller.watch_state(agent)

    async def is_busy(self) -> bool:
        """Whether a turn runs, ours or anybody's."""
        if self._teller.sent is not None:
            return True
        try:
            return (await self._client.fetch_agent(self._id)).status == "running"
        except PaseoError:
            return self._teller.snapshot.status == "running"
