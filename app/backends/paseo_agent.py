"""One agent of a Paseo daemon, as its host holds it: followed live, caught up with after every gap."""

import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TypeVar

import anyio
import structlog
from anyio.abc import TaskGroup

from app.backends.base import (
    AgentSpec,
    AgentState,
    Answer,
    BackendRejected,
    BackendUnavailable,
    Change,
    Prompt,
    Reports,
    SendFailed,
    Unsupported,
)
from app.backends.paseo_translate import (
    is_cancelled_tool,
    permission_asked,
    resolution_outcome,
    row_signals,
    token_usage,
)
from app.backends.paseo_turns import (
    FOREIGN,
    GoesOn,
    NotStarted,
    Owner,
    Since,
    Turns,
    judge,
    judge_stored,
    since_prompt,
)
from app.domain.events import Notice
from app.domain.signals import (
    Config,
    Cursor,
    ForeignActivity,
    Gap,
    LinkLost,
    LinkRestored,
    PermissionSettled,
    Report,
    Signal,
    TextDelta,
    TurnBroke,
    TurnEnd,
    TurnEnded,
    TurnStopped,
    TurnUnknown,
)
from app.paseo import errors, frames, items, snapshots
from app.paseo.agents import Allow, Deny
from app.paseo.client import PaseoClient
from app.paseo.errors import PaseoError, Reason
from app.paseo.subscriptions import AgentChanged, FrameDropped, LinkDown, LinkUp, Note, Subscription

log = structlog.get_logger(__name__)

T = TypeVar("T")

FORCED_AFTER_S = 1.5
"""A cancel that took longer than this was forced: the agent works on, and has to be started anew."""
REFRESH_S = 10.0
NOT_STARTED_LOOKS = 20
"""Seconds, a look each, for which a provider may be slow to take a prompt."""
NOT_STARTED_LOOKS_MCP = 90
"""The same for an agent that starts MCP servers first."""
ABSENT_LOOKS = 2
"""Looks, a second apart, that must lack our prompt before it is said to be absent."""
SILENT_START_S = 30.0
"""Seconds without any row after which a started turn's process is probed."""
SURVEY_PAGE = 200
SURVEY_PAGES = 50
"""Pages that are read back at most to find our prompt."""


class Resync(Exception):
    """The buffered notes are not enough: what is missing has to be read from the timeline."""


@dataclass
class _Sent:
    """The prompt that runs, as far as we know."""

    attempt: str
    seen: bool = False
    """Whether its row, or the daemon's word for it, arrived: it was delivered."""
    refused: TurnBroke | None = None
    stirred: anyio.Event = field(default_factory=anyio.Event)
    """Set with the first sign of life after the prompt."""
    stop_sent_at: float | None = None


class PaseoAgent:
    """Implements `Agent` over the daemon's WebSocket. `serve` follows it; `open` or `take_up` comes first."""

    resumable = True

    def __init__(
        self, client: PaseoClient, agent: snapshots.Agent, spec: AgentSpec, tasks: TaskGroup
    ) -> None:
        self.reports = Reports()
        self.state = _state(agent, spec)
        self._client = client
        self._spec = spec
        self._id = agent.id
        self._tasks = tasks
        self._scope = anyio.CancelScope()
        self._gone = anyio.Event()
        self._opening: AbstractContextManager[Subscription] = client.subscribe(agent.id)
        self._notes = self._opening.__enter__()
        self._snapshot = agent
        self._cursor: Cursor | None = None
        self._turns = Turns()
        self._sent: _Sent | None = None
        self._asked_by: dict[str, str | None] = {}
        """The attempt in which each request was made: its resolution may come after the turn's end."""
        self._closed_calls: set[str] = set()
        self._open_calls: set[str] = set()
        self._stale = False
        """Whether the agent's process has to be started anew before the next prompt."""
        self._foreign = False
        self._reading = False
        """Whether rows are read from the timeline, where no terminal event stands between them."""
        self._beyond = False
        """Whether what is read stands behind somebody else's prompt: it is not our turn's."""
        self._held_link = True
        """Whether this process wrote the prompt over the lost link: only then absence proves anything."""

    # Opening.

    async def open_new(self) -> None:
        """Follow an agent that was just made."""
        await self._move_to_end()
        self._tasks.start_soon(self._follow, name=f"paseo {self._id}")

    async def take_up(self, cursor: Cursor | None, attempt: str | None) -> None:
        """Follow an agent that was made before, from `cursor` on; find out what became of `attempt`.

        Raises:
            PaseoError: it cannot be loaded.
        """
        self._cursor = cursor
        if attempt is not None:
            self._sent = _Sent(attempt, seen=False)
            self._held_link = False
            self._turns.take_up(attempt)
        await self._catch_up(opening=True)
        self._tasks.start_soon(self._follow, name=f"paseo {self._id}")

    async def _move_to_end(self) -> None:
        """Take the timeline's end as the position: nothing before it is told."""
        page = await self._client.timeline.page(self._id, direction="tail", limit=1)
        self._cursor = Cursor(epoch=page.epoch, seq=page.end_cursor.seq if page.end_cursor else 0)
        self._put(None, ())

    # The port.

    async def prompt(self, prompt: Prompt) -> None:
        """Send a prompt; returns when it is written."""
        if self._sent is not None:
            raise SendFailed("the agent is running a turn", delivered="no", retriable=True)
        try:
            await self._prepare()
        except errors.NotSent as error:
            raise SendFailed(str(error), delivered="no", retriable=True) from None
        except PaseoError as error:
            raise SendFailed(str(error), delivered="no", retriable=_is_passing(error)) from None
        sent = self._sent = _Sent(prompt.attempt)
        self._held_link = True
        self._turns.expect(prompt.attempt, idle=self._snapshot.status in ("idle", "error"))
        self._open_calls.clear()
        written = anyio.Event()
        failure: list[SendFailed] = []

        async def send() -> None:
            try:
                await self._deliver(prompt, written.set)
            except SendFailed as error:
                failure.append(error)
            written.set()

        self._tasks.start_soon(send, name=f"paseo prompt {prompt.attempt}")
        await written.wait()
        if failure:
            if self._sent is sent:
                self._sent = None
            raise failure[0]
        self._tasks.start_soon(self._watch_start, sent, name=f"paseo start {prompt.attempt}")

    async def _prepare(self) -> None:
        """Before every prompt, while the agent is at rest: a live process, a lowered flag, nothing unread."""
        if self._stale:
            await self._refresh()
        await _patiently(self._client.clear_attention(self._id))
        await self._read_on()

    async def _deliver(self, prompt: Prompt, on_write: Callable[[], None]) -> None:
        images = [
            {"data": part.data, "mimeType": part.mime_type or "image/png"}
            for part in prompt.attachments
            if part.kind == "image"
        ]
        texts = [
            {"type": "text", "mimeType": "text/plain", "title": part.name or "attachment", "text": part.data}
            for part in prompt.attachments
            if part.kind == "text"
        ]
        try:
            await self._client.send_message(
                self._id,
                prompt.text,
                message_id=prompt.attempt,
                images=images or None,
                attachments=texts or None,
                before_write=on_write,
            )
        except errors.NotSent as error:
            raise SendFailed(str(error), delivered="no", retriable=True) from None
        except errors.Refused as error:
            self._refused(prompt.attempt, error)
        except (errors.Timeout, errors.LinkLost, errors.Undecodable):
            pass  # the timeline will tell
        else:
            if self._sent is not None and self._sent.attempt == prompt.attempt:
                self._sent.seen = True

    def _refused(self, attempt: str, error: errors.Refused) -> None:
        """The daemon said no; two of its texts are no refusal, and the turn may run all the same."""
        sent = self._sent
        if sent is None or sent.attempt != attempt or error.reason is Reason.START_UNCERTAIN:
            return
        if error.reason is Reason.PROCESS_DEAD:
            self._stale = True
        lost = error.reason in (Reason.AGENT_NOT_FOUND, Reason.CANNOT_RESUME)
        self._end(
            TurnBroke(
                code="backend_session_lost" if lost else "backend_rejected",
                message=error.text,
                delivered="no" if lost else "unknown",
                retriable=False,
            )
        )

    async def interrupt(self) -> None:
        """Cancel the turn; its end comes as a signal."""
        if self._sent is not None:
            self._sent.stop_sent_at = time.monotonic()
        try:
            await self._client.cancel(self._id, deadline=5.0)
        except errors.Timeout:
            self._stale = True
        except PaseoError as error:
            log.info("paseo_cancel_failed", error=type(error).__name__)

    async def kill(self) -> None:
        """Start the agent's process anew; an open turn ends as stopped."""
        try:
            await self._refresh()
        except PaseoError as error:
            log.warning("paseo_refresh_failed", error=type(error).__name__)
            self._stale = True
            return
        if self._sent is not None:
            self._end(TurnStopped())

    async def answer(self, request: str, answer: Answer) -> None:
        """Answer a permission request; what counted comes as `PermissionSettled`."""
        response: Allow | Deny
        if answer.allow:
            updated = answer.updated_input
            if answer.answers is not None:
                updated = {**(updated if isinstance(updated, dict) else {}), "answers": dict(answer.answers)}
            response = Allow(selected_action_id=answer.option_id, updated_input=updated)
        else:
            response = Deny(selected_action_id=answer.option_id, message=answer.message)
        try:
            await self._client.answer_permission(self._id, request, response)
        except errors.Refused as error:
            raise BackendRejected(error.text) from None
        except errors.NotSent as error:
            raise BackendUnavailable(str(error)) from None
        except (errors.Timeout, errors.LinkLost):
            await self._look_for(request)

    async def _look_for(self, request: str) -> None:
        """No resolution came: see whether the request is still pending."""
        try:
            agent = await self._client.fetch_agent(self._id)
        except PaseoError as error:
            raise BackendUnavailable(str(error)) from None
        if any(pending.id == request for pending in agent.pending_permissions):
            raise BackendUnavailable("the daemon has not taken the answer; it is still pending")
        attempt = self._asked_by.pop(request, self._attempt)
        self._put(attempt, (PermissionSettled(request=request, outcome="unknown"),))

    async def configure(self, change: Change) -> AgentState:
        """Change settings; what is in force is read back, for the daemon takes unknown values too."""
        try:
            await self._check(change)
            if change.model is not None:
                await self._client.set_model(self._id, change.model)
            if change.mode is not None:
                await self._client.set_mode(self._id, change.mode)
            if change.thinking is not None:
                await self._client.set_thinking(self._id, change.thinking)
            if change.title is not None:
                await self._client.update_agent(self._id, name=change.title)
            self._snapshot = await self._client.fetch_agent(self._id)
        except errors.Refused as error:
            raise Unsupported(error.text) from None
        except PaseoError as error:
            raise BackendUnavailable(str(error)) from None
        self.state = _state(self._snapshot, self._spec)
        return self.state

    async def _check(self, change: Change) -> None:
        """Refuse what the provider's list does not name: the daemon would take it and not use it."""
        found = [
            p
            for p in await self._client.providers(only=self._spec.provider)
            if p.provider == self._spec.provider
        ]
        models = (found[0].models or []) if found else []
        modes = self._snapshot.available_modes or ((found[0].modes or []) if found else [])
        if change.model is not None and models and change.model not in {model.id for model in models}:
            raise Unsupported(f"{self._spec.provider} has no model {change.model!r}")
        if change.mode is not None and modes and change.mode not in {mode.id for mode in modes}:
            raise Unsupported(f"{self._spec.provider} has no mode {change.mode!r}")
        model = change.model or self.state.model
        options = [o.id for m in models if m.id == model for o in m.thinking_options or []]
        if change.thinking is not None and models and change.thinking not in options:
            raise Unsupported(f"{model} has no thinking option {change.thinking!r}")

    async def is_busy(self) -> bool:
        """Whether a turn runs, ours or anybody's."""
        if self._sent is not None:
            return True
        try:
            return (await self._client.fetch_agent(self._id)).status == "running"
        except PaseoError:
            return self._snapshot.status == "running"

    async def archive(self) -> None:
        """Archive the agent, with its process, and let it go."""
        try:
            await self._client.archive(self._id)
        except errors.Refused as error:
            if error.reason is not Reason.AGENT_NOT_FOUND:
                raise BackendRejected(error.text) from None
        except PaseoError as error:
            raise BackendUnavailable(str(error)) from None
        finally:
            await self.release()

    async def release(self) -> None:
        """Stop following; the agent and its turn go on in the daemon."""
        self._scope.cancel()
        self._opening.__exit__(None, None, None)
        self.reports.close()

    # Following.

    async def _follow(self) -> None:
        """Read what is told of the agent, in order, until released."""
        with self._scope:
            while True:
                try:
                    while True:
                        await self.reports.room()
                        await self._note(await self._notes.receive())
                except anyio.EndOfStream:
                    break
                except (Resync, errors.Lagged):
                    await self._recover("lagged")
                except Exception:
                    log.exception("paseo_agent_crashed")
                    self._end(TurnBroke(code="internal_error", message="the adapter failed"))
                    break
        self.reports.close()

    async def _note(self, note: Note) -> None:
        match note:
            case frames.StreamFrame():
                self._event(note)
            case AgentChanged(agent=agent):
                self._changed(agent)
            case LinkDown(lost=lost):
                self._put(self._attempt, (LinkLost(cause=str(lost)),) if self._sent else ())
                await self._until_up()
            case LinkUp():
                await self._recover("link")
            case FrameDropped():
                raise Resync
            case _:
                pass

    async def _until_up(self) -> None:
        """The link is down: what comes before its return is nothing to act on."""
        while not isinstance(await self._notes.receive(), LinkUp):
            pass
        await self._recover("link")

    async def _recover(self, cause: str) -> None:
        """Look, read what was missed, and go on live; again and again while the link breaks."""
        if cause == "lagged":
            self._opening.__exit__(None, None, None)
            self._opening = self._client.subscribe(self._id)
            self._notes = self._opening.__enter__()
        try:
            await self._catch_up(opening=False)
        except errors.Refused as error:
            log.warning("paseo_agent_lost", reason=str(error.reason))
            self._end(TurnBroke(code="backend_session_lost", message=error.text, delivered="unknown"))
            self.reports.close()
        except PaseoError as error:
            log.info("paseo_catch_up_failed", error=type(error).__name__)
            await anyio.sleep(0.2)

    async def _catch_up(self, *, opening: bool) -> None:
        """Look first, for loading wipes the evidence; then read on; then live; then judge, if need be."""
        stored = await self._client.fetch_agent(self._id)
        known = self._cursor
        if known is None:
            await self._move_to_end()
            fresh = False
        else:
            if self._sent is not None and self._turns.open is None:
                await self._place(self._sent.attempt, known)
            fresh = await self._read_on()
        self._beyond = False
        if fresh:
            await self._new_epoch(stored)
        ended = self._drain()
        if self._sent is not None and not ended and not fresh:
            await self._judge()
        elif self._sent is not None:
            self._restored(self._snapshot)

    async def _place(self, attempt: str, known: Cursor) -> None:
        """Our prompt may stand before our position: then the rows from there on are its turn's."""
        since = await self._survey(attempt, known.epoch)
        if since is not None and since.prompt.seq_end <= known.seq:
            follower = since.follower
            if follower is None or follower.seq_end > known.seq:
                self._turns.resume(attempt)

    def _restored(self, agent: snapshots.Agent) -> None:
        for request in agent.pending_permissions:
            self._asked_by[request.id] = self._attempt
            self._put(self._attempt, (permission_asked(request),))
        pending = frozenset(request.id for request in agent.pending_permissions)
        self._put(self._attempt, (LinkRestored(pending=pending),))

    async def _read_on(self) -> bool:
        """Tell the rows after our position; true if there is another epoch, whose rows are not told."""
        cursor = self._cursor
        if cursor is None:
            return False
        position = snapshots.Cursor(epoch=cursor.epoch, seq=cursor.seq)
        self._reading = True
        try:
            return await self._read_after(position)
        finally:
            self._reading = False

    async def _read_after(self, cursor: snapshots.Cursor) -> bool:
        async for stretch in self._client.timeline.after(self._id, cursor):
            if stretch.page.agent is not None:
                self._snapshot = stretch.page.agent
            if stretch.page.reset or stretch.page.epoch != cursor.epoch:
                return True
            for gap in stretch.gaps:
                self._put(self._attempt, (Gap(start=gap.seq, end=gap.seq, cause=gap.reason),))
            for row in stretch.page.entries:
                self._row(row.item, row.seq_end, stretch.page.epoch)
            if stretch.cursor is not None:
                self._cursor = Cursor(epoch=stretch.cursor.epoch, seq=stretch.cursor.seq)
        return False

    def _drain(self) -> bool:
        """Go live: tell what was buffered meanwhile. True if a turn's end was among it."""
        had = self._sent
        for note in self._notes.drain():
            if isinstance(note, frames.StreamFrame):
                self._event(note)
            elif isinstance(note, AgentChanged):
                self._changed(note.agent)
            elif isinstance(note, LinkDown):
                raise errors.NotSent("the link was lost again")
        return had is not None and self._sent is None

    async def _new_epoch(self, stored: snapshots.Agent) -> None:
        """The daemon is another process: its rows are everything again, cut differently; import nothing."""
        sent = self._sent
        if sent is not None:
            verdict = judge_stored(stored, delivered=sent.seen)
            if isinstance(verdict, TurnUnknown):
                verdict = TurnUnknown(cause=verdict.cause, delivered="yes" if sent.seen else "unknown")
            gap = (Gap(start=None, end=None, cause="the daemon was restarted"),)
            self._put(sent.attempt, gap if isinstance(verdict, TurnEnded) else ())
            self._end(verdict)
        self._turns = Turns()
        await self._refresh()

    async def _refresh(self) -> None:
        """Start the process anew and take the timeline's end as our position: what it replays is not told."""
        try:
            await self._client.refresh_agent(self._id, deadline=REFRESH_S)
        except errors.Timeout:
            await self._client.fetch_agent(self._id)  # two refreshes at once: one is never answered
        self._stale = False
        await self._move_to_end()
        self._snapshot = await self._client.fetch_agent(self._id)
        self._turns = Turns()

    # Judging.

    async def _judge(self) -> None:
        """Find out what became of our turn, looking again while nothing shows that it started."""
        sent = self._sent
        looks = NOT_STARTED_LOOKS_MCP if self._spec.mcp_servers else NOT_STARTED_LOOKS
        missing = 0
        for _ in range(looks + 1):
            if sent is None or self._sent is not sent:
                return
            since = await self._survey(sent.attempt, self._cursor.epoch if self._cursor else None)
            if self._sent is not sent:
                return
            if since is None:
                missing += 1
                if missing >= ABSENT_LOOKS and self._snapshot.status != "initializing":
                    self._absent(sent)
                    return
            else:
                sent.seen = True
                verdict = judge(self._snapshot, since)
                if isinstance(verdict, GoesOn):
                    self._turns.resume(sent.attempt)
                    self._restored(self._snapshot)
                    return
                if not isinstance(verdict, NotStarted):
                    self._turns.ended_unseen()
                    self._end(verdict)
                    self._changed(self._snapshot)
                    return
            await anyio.sleep(1.0)
            self._drain()
        if sent is not None:
            await self._give_up(sent)

    async def _survey(self, attempt: str, epoch: str | None) -> Since | None:
        """The rows since our prompt, read back from the newest; the snapshot is the last answer's."""
        rows: list[snapshots.Row] = []
        cursor: snapshots.Cursor | None = None
        for _ in range(SURVEY_PAGES):
            page = await self._client.timeline.page(
                self._id, direction="before" if cursor else "tail", cursor=cursor, limit=SURVEY_PAGE
            )
            if page.epoch != epoch:
                return None
            if page.agent is not None and cursor is None:
                self._snapshot = page.agent
            rows = [*page.entries, *rows]
            since = since_prompt(rows, attempt)
            if since is not None or not page.has_older or page.start_cursor is None:
                return since
            cursor = page.start_cursor
        return None

    def _absent(self, sent: _Sent) -> None:
        """Our prompt is not in the timeline. That proves something only to whoever held the link."""
        if self._held_link and not sent.seen:
            message = "the link was lost before the prompt arrived"
            self._end(TurnBroke(code="backend_unavailable", message=message, delivered="no", retriable=True))
        else:
            self._end(TurnUnknown(cause="prompt_not_found", delivered="yes" if sent.seen else "unknown"))

    async def _give_up(self, sent: _Sent) -> None:
        """No provider has taken the prompt, and it may still run: nothing else may be sent to this agent."""
        if self._sent is sent:
            self._end(TurnUnknown(cause="never_started", delivered="yes"))
            try:
                await self._client.archive(self._id)
            except PaseoError as error:
                log.warning("paseo_archive_failed", error=type(error).__name__)
            self.reports.close()

    async def _watch_start(self, sent: _Sent) -> None:
        """See that a prompt shows life; a process that died while idle takes prompts and never answers."""
        with anyio.move_on_after(SILENT_START_S):
            await sent.stirred.wait()
            return
        mode = self.state.mode
        if self._sent is not sent or mode is None or not self._client.link.is_up:
            return
        try:
            await self._client.set_mode(self._id, mode)
            return
        except errors.Timeout:
            pass
        except PaseoError:
            return
        if self._sent is sent and not sent.stirred.is_set():
            await self.interrupt()
            self._end(TurnBroke(code="agent_process_dead", message="the agent's process shows no life"))
            self._stale = True

    # Telling.

    @property
    def _attempt(self) -> str | None:
        return self._sent.attempt if self._sent is not None else None

    def _event(self, frame: frames.StreamFrame) -> None:
        event = frame.event
        match event:
            case frames.Timeline(item=item):
                if frame.seq is None or frame.epoch is None:
                    return
                self._live_row(item, frame.seq, frame.epoch)
            case frames.TurnStarted():
                self._turns.started()
                self._stir()
                self._watch_foreign()
            case frames.TurnCompleted(usage=usage):
                self._ended(TurnEnded(stop_reason=None, usage=token_usage(usage)))
            case frames.TurnFailed(error=message):
                if errors.classify(message) is Reason.PROCESS_DEAD:
                    self._stale = True
                self._ended(_broke(message))
            case frames.TurnCancelled():
                self._ended(TurnStopped())
            case frames.PermissionRequested(request=request):
                self._stir()
                self._asked_by[request.id] = attempt = self._owner_attempt()
                self._put(attempt, (permission_asked(request),))
            case frames.PermissionResolved(request_id=request_id, resolution=resolution):
                settled = PermissionSettled(
                    request=request_id,
                    outcome=resolution_outcome(resolution),
                    option_id=resolution.selected_action_id,
                )
                self._put(self._asked_by.pop(request_id, self._attempt), (settled,))
            case _:
                pass

    def _live_row(self, item: items.Item, seq: int, epoch: str) -> None:
        cursor = self._cursor
        if cursor is not None and epoch == cursor.epoch and seq <= cursor.seq:
            return
        if cursor is None or epoch != cursor.epoch or seq != cursor.seq + 1:
            raise Resync
        self._row(item, seq, epoch)

    def _row(self, item: items.Item, seq: int, epoch: str) -> None:
        """Tell one row, and with it our new position."""
        cursor = self._cursor
        if cursor is not None and epoch == cursor.epoch and seq <= cursor.seq:
            return
        self._cursor = Cursor(epoch=epoch, seq=seq)
        if isinstance(item, items.UserMessage):
            owner = self._turns.prompted(item.message_id)
            self._beyond = self._reading and owner == FOREIGN
            if owner.attempt is not None and self._sent is not None:
                self._sent.seen = True
            told = (TextDelta(text=item.text, role="user"),) if owner == FOREIGN else ()
            self._watch_foreign()
            self._put(None, told)
            return
        row_owner = None if self._beyond else self._turns.row()
        if row_owner is not None and row_owner.attempt is not None:
            self._stir()
        if self._is_stale_call(item):
            self._put(None, ())
            return
        self._put(self._of(row_owner), tuple(row_signals(item)))

    def _is_stale_call(self, item: items.Item) -> bool:
        """Whether the row tells again of an earlier turn's call, as in every cancelled turn."""
        if not isinstance(item, items.ToolCall):
            return False
        if (
            is_cancelled_tool(item)
            and item.call_id in self._closed_calls
            and item.call_id not in self._open_calls
        ):
            return True
        if item.status == "running":
            self._open_calls.add(item.call_id)
        else:
            self._open_calls.discard(item.call_id)
            self._closed_calls.add(item.call_id)
        return False

    def _ended(self, end: TurnEnd) -> None:
        """A terminal event came: whose turn it ends is known by order alone."""
        owner = self._turns.ended()
        sent = self._sent
        self._closed_calls |= self._open_calls
        self._open_calls.clear()
        if sent is not None and owner == Owner(sent.attempt):
            if isinstance(end, TurnStopped):
                end = self._cancelled(sent)
            elif isinstance(end, TurnEnded) and self._is_empty(sent, end):
                message = "the agent ended its turn without doing anything"
                end = TurnBroke(code="empty_turn", message=message, retriable=True)
            self._end(end)
        self._watch_foreign()

    def _cancelled(self, sent: _Sent) -> TurnEnd:
        if sent.stop_sent_at is not None:
            if time.monotonic() - sent.stop_sent_at > FORCED_AFTER_S:
                self._stale = True
            return TurnStopped()
        return TurnStopped(cause="replaced" if self._turns.is_foreign else "other_client")

    def _is_empty(self, sent: _Sent, end: TurnEnded) -> bool:
        """opencode's false completion: no row of ours, and no token read."""
        tokens = end.usage.input_tokens if end.usage is not None else None
        return self._spec.provider == "opencode" and not sent.stirred.is_set() and not tokens

    def _end(self, end: TurnEnd) -> None:
        """Tell the end of our turn, once."""
        sent, self._sent = self._sent, None
        if sent is not None:
            sent.stirred.set()
            self._put(sent.attempt, (end,))

    def _changed(self, agent: snapshots.Agent) -> None:
        """The agent's snapshot came, maybe again."""
        self._snapshot = agent
        if agent.status == "running":
            self._turns.running()
        self._watch_foreign()
        before, self.state = self.state, _state(agent, self._spec)
        if (before.model, before.mode, before.thinking) != (
            self.state.model,
            self.state.mode,
            self.state.thinking,
        ):
            config = Config(model=self.state.model, mode=self.state.mode, thinking=self.state.thinking)
            self._put(None, (config,))

    def _watch_foreign(self) -> None:
        """Say when somebody else begins or ends to keep the agent busy."""
        foreign = self._turns.is_foreign and self._snapshot.archived_at is None
        if foreign != self._foreign:
            self._foreign = foreign
            signals: list[Signal] = [ForeignActivity(busy=foreign)]
            if foreign:
                words = "another client of the daemon prompted this agent"
                signals.append(Notice(level="info", code="foreign_activity", message=words))
            self._put(None, tuple(signals))

    def _stir(self) -> None:
        if self._sent is not None:
            self._sent.stirred.set()

    def _of(self, owner: Owner | None) -> str | None:
        return owner.attempt if owner is not None else None

    def _owner_attempt(self) -> str | None:
        return self._of(self._turns.open) if self._turns.open is not None else self._attempt

    def _put(self, attempt: str | None, signals: tuple[Signal, ...]) -> None:
        self.reports.put_nowait(Report(attempt=attempt, signals=signals, cursor=self._cursor))


def _state(agent: snapshots.Agent, spec: AgentSpec) -> AgentState:
    """What is in force at the daemon, which shows what was asked for beside it."""
    runtime = agent.runtime
    return AgentState(
        session=agent.id,
        cwd=agent.cwd or spec.cwd,
        model=(runtime.model if runtime and runtime.model else agent.model),
        mode=(runtime.mode_id if runtime and runtime.mode_id else agent.current_mode_id),
        thinking=agent.effective_thinking_option_id or agent.thinking_option_id,
    )


def _broke(message: str) -> TurnBroke:
    dead = errors.classify(message) is Reason.PROCESS_DEAD
    return TurnBroke(code="agent_process_dead" if dead else "provider_error", message=message, retriable=dead)


def _is_passing(error: PaseoError) -> bool:
    return isinstance(error, errors.Timeout | errors.LinkLost | errors.Unreachable | errors.NotSent)


async def _patiently(call: Awaitable[T]) -> None:
    """Make a call whose answer may never come, and go on all the same."""
    try:
        await call
    except (errors.Timeout, errors.Refused):
        return
