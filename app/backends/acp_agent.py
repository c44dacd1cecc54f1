"""One ACP agent as its host holds it: a link to a process of its own, and the one session in it."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
from acp.exceptions import RequestError

from app.backends.acp_content import mcp_servers, prompt_blocks
from app.backends.acp_link import AUTH_REQUIRED, INVALID, Deadlines, Link
from app.backends.acp_permissions import Ask, Resolution, form, tool_permission
from app.backends.acp_process import Child
from app.backends.acp_settings import SettingName, Settings, read_settings, request_to_set
from app.backends.acp_translate import Translator, turn_usage
from app.backends.base import (
    AgentLost,
    AgentSpec,
    AgentState,
    Answer,
    BackendError,
    BackendRejected,
    BackendUnavailable,
    Change,
    NotPending,
    Prompt,
    Reports,
    SendFailed,
    Unsupported,
)
from app.domain.events import Delivered, Notice
from app.domain.signals import (
    AgentDied,
    PermissionAsked,
    PermissionSettled,
    Report,
    Signal,
    TextDelta,
    TurnBroke,
    TurnEnd,
    TurnEnded,
    TurnStopped,
)


@dataclass(slots=True)
class _Turn:
    attempt: str
    settled: anyio.Event = field(default_factory=anyio.Event)
    """Whether its prompt could be written is known."""
    unsent: SendFailed | None = None
    stop_asked: bool = False


@dataclass(slots=True)
class _Pending:
    ask: Ask
    resolved: anyio.Event = field(default_factory=anyio.Event)
    result: Mapping[str, Any] = field(default_factory=dict)


class AcpAgent:
    """Implements `Agent`, and listens to its link. Run `link.serve`, then `create` or `load`."""

    def __init__(self, child: Child, spec: AgentSpec, deadlines: Deadlines) -> None:
        self.state = AgentState(session="", cwd=spec.cwd)
        self.reports = Reports()
        self.resumable = False
        self.settings = Settings()
        self.link = Link(child, self, deadlines)
        self._spec = spec
        self._deadlines = deadlines
        self._translator = Translator()
        self._turn: _Turn | None = None
        self._pending: dict[str, _Pending] = {}
        self._open = False
        """Not while the session is being opened, when session/load tells its whole history again."""
        self._released = False

    async def create(self) -> None:
        """Begin a session with the settings of the spec.

        Raises:
            BackendUnavailable, BackendRejected: as `Backend.create`; the caller releases the agent.
        """
        await self.link.initialize(self._deadlines.initialize)
        servers = mcp_servers(self._spec.mcp_servers, self.link.capabilities)
        params = {"cwd": self._spec.cwd, "mcpServers": servers}
        try:
            result = await self.link.request("session/new", params, self._deadlines.create)
        except RequestError as error:
            raise BackendRejected(self.link.words(error)) from None
        match result:
            case {"sessionId": str(session)} if session:
                await self._opened(session, result)
            case _:
                raise BackendRejected("the agent's answer to session/new has no session id")

    async def load(self, session: str) -> None:
        """Take up a session of an earlier process, with the settings of the spec.

        Raises:
            BackendUnavailable, AgentLost: as `Backend.load`; the caller releases the agent.
        """
        await self.link.initialize(self._deadlines.initialize)
        method = self._way_back()
        if method is None:
            raise AgentLost("this agent can neither resume nor load a session")
        servers = mcp_servers(self._spec.mcp_servers, self.link.capabilities)
        params = {"sessionId": session, "cwd": self._spec.cwd, "mcpServers": servers}
        try:
            result = await self.link.request(method, params, self._deadlines.load)
        except RequestError as error:
            lost = BackendUnavailable if error.code == AUTH_REQUIRED else AgentLost
            raise lost(self.link.words(error)) from None
        await self._opened(session, result if isinstance(result, dict) else {})

    def _way_back(self) -> str | None:
        """The method that takes up an earlier session, if there is one; better without its history."""
        match self.link.capabilities:
            case {"sessionCapabilities": {"resume": dict()}}:
                return "session/resume"
            case {"loadSession": True}:
                return "session/load"
            case _:
                return None

    async def _opened(self, session: str, result: Mapping[str, Any]) -> None:
        self.resumable = self._way_back() is not None
        self.state = AgentState(session=session, cwd=self._spec.cwd)
        self._apply(read_settings(result))
        spec = self._spec
        await self.configure(Change(model=spec.model, mode=spec.mode, thinking=spec.thinking))
        self._open = True
        self.link.tasks.start_soon(self.link.look_for_ports)

    # The port

    async def prompt(self, prompt: Prompt) -> None:
        """Send a prompt; returns when it is written. Then exactly one turn end comes in `reports`."""
        if not self.link.is_up:
            raise SendFailed("the agent's process is gone", delivered="no", retriable=True)
        if self._turn:
            raise SendFailed("the agent is running a turn", delivered="no", retriable=True)
        blocks = prompt_blocks(prompt, self.link.capabilities)
        turn = self._turn = _Turn(prompt.attempt)
        self._translator.forget()
        self.link.tasks.start_soon(self._run, turn, blocks)
        await turn.settled.wait()
        if turn.unsent:
            raise turn.unsent

    async def reach(self) -> None:
        """Nothing stands between us and a child of ours; one that died says so when it is prompted."""

    async def interrupt(self) -> None:
        """Ask the agent to stop: first its open requests are answered as cancelled, then it is told."""
        if self._turn and self.link.is_up:
            self._turn.stop_asked = True
            self._put(*self._cancel_pending())
            await anyio.lowlevel.checkpoint()  # those answers are written first
            await self.link.notify("session/cancel", {"sessionId": self.state.session})

    async def kill(self) -> None:
        """End the process with all below it; an open turn ends as stopped. Then it has to be loaded again."""
        if self._turn:
            self._turn.stop_asked = True
        await self.link.end()

    async def answer(self, request: str, answer: Answer) -> None:
        """Answer a permission request or a question."""
        pending = self._pending.get(request)
        if pending is None:
            raise NotPending("this request is not pending")
        self._put(self._resolve(request, pending, pending.ask.resolved(answer)))

    async def configure(self, change: Change) -> AgentState:
        """Change settings, in this order; those before a refused one stay changed. Agents have no titles."""
        wanted: Mapping[SettingName, str | None] = {
            "model": change.model,
            "mode": change.mode,
            "thinking": change.thinking,
        }
        for name, value in wanted.items():
            if value is not None and value != getattr(self.state, name):
                await self._set(name, value)
        return self.state

    async def is_busy(self) -> bool:
        """Whether a turn runs; nobody else can prompt a child of ours."""
        return self._turn is not None

    async def archive(self) -> None:
        """Close the session if the agent knows how to, then release it."""
        failure = None
        match self.link.capabilities:
            case {"sessionCapabilities": {"close": dict()}} if self.link.is_up:
                params = {"sessionId": self.state.session}
                try:
                    await self.link.request("session/close", params, self._deadlines.close)
                except RequestError as error:
                    failure = self.link.words(error)
                except BackendError as error:
                    failure = str(error)
        await self.release()
        if failure is not None:
            raise BackendUnavailable(failure)

    async def release(self) -> None:
        """End the process; reports that were made before can still be taken."""
        self._released = True
        await self.kill()
        self.reports.close()
        await self.link.gone.wait()

    # Requests of ours

    async def _set(self, name: SettingName, value: str) -> None:
        method, params = request_to_set(self.settings, name, value)
        params |= {"sessionId": self.state.session}
        try:
            result = await self.link.request(method, params, self._deadlines.configure)
        except RequestError as error:
            raise Unsupported(self.link.words(error)) from None
        settings = self.settings.with_current(name, value)
        self._apply(settings.merged(result) if isinstance(result, dict) else settings)

    async def _run(self, turn: _Turn, blocks: Sequence[Mapping[str, Any]]) -> None:
        """One prompt's request, to its answer. Updates before the answer have been told when it comes."""
        params = {"sessionId": self.state.session, "prompt": blocks}
        end: TurnEnd
        try:
            end = _end(await self.link.call("session/prompt", params))
        except ConnectionError:
            if not turn.settled.is_set():
                self._unsent(turn, "no")
            return  # a turn that was sent ends with the agent
        except RequestError as error:
            retriable = error.code not in (AUTH_REQUIRED, *INVALID)
            end = TurnBroke(code="provider_error", message=self.link.words(error), retriable=retriable)
        match end:
            case TurnBroke() | TurnEnded(stop_reason="end_turn") if turn.stop_asked:
                end = TurnStopped()
        if self._turn is turn:
            self._put(*self._cancel_pending(), end)
            self._turn = None

    def _unsent(self, turn: _Turn, delivered: Delivered) -> None:
        words = {"no": "the agent's process is gone"}.get(delivered, "the prompt broke off while it was sent")
        turn.unsent = SendFailed(words, delivered=delivered, retriable=delivered == "no")
        turn.settled.set()
        self._turn = None

    # What the link tells

    async def room(self) -> None:
        """Wait for the reader of our reports."""
        await self.reports.room()

    def on_update(self, params: Mapping[str, Any], size: int) -> None:
        """Translate an update of our session and report it."""
        if params.get("sessionId") != self.state.session:
            return
        match params:
            case {"update": {"sessionUpdate": "config_option_update"} as update}:
                self._apply(self.settings.merged(update))
            case {"update": {"sessionUpdate": "current_mode_update", "currentModeId": str(mode)}}:
                self._apply(self.settings.with_current("mode", mode))
            case {"update": dict(update)} if self._open:
                signals = self._translator.signals(update)
                if self._turn:  # our own prompt, said back to us
                    signals = (s for s in signals if not (isinstance(s, TextDelta) and s.role == "user"))
                self._put(*signals, size=size)

    async def on_request(self, method: str, params: Any, is_notification: bool) -> Any:
        """Ask a person; everything else is not ours to do."""
        request = secrets.token_hex(8)
        match method, params:
            case "session/request_permission", {"toolCall": {"toolCallId": str(call)} as patch}:
                permission = tool_permission(params)
                now = self._translator.patch(call, patch)
                return await self._ask(permission, permission.asked(request, now, patch.get("rawInput")))
            case "elicitation/create", dict() if (questions := form(params)) is not None:
                return await self._ask(questions, questions.asked(request))
            case (("session/request_permission" | "elicitation/create"), _):
                raise RequestError.invalid_params()
            case _:
                raise RequestError.method_not_found(method)

    def on_sent(self, method: str, whole: bool) -> None:
        """Let `prompt` return."""
        if method == "session/prompt" and self._turn:
            if whole:
                self._turn.settled.set()
            else:
                self._unsent(self._turn, "unknown")

    def on_garbage(self) -> None:
        """Say so once."""
        words = "the agent wrote lines that are no ACP messages to its output; they were dropped"
        self._put(Notice(level="warning", code="agent_garbage", message=words))

    def on_end(self, message: str) -> None:
        """Close what is open, and the reports."""
        if self._turn and not self._turn.settled.is_set():
            self._unsent(self._turn, "unknown")
        turn = self._turn
        self._pending.clear()  # what was asked died with the agent
        signals: list[Signal] = []
        if turn or not self._released:
            signals.append(AgentDied(message=message))
        if turn and turn.stop_asked:
            signals.append(TurnStopped())
        elif turn:
            signals.append(TurnBroke(code="agent_process_dead", message=message, retriable=True))
        self._put(*signals)
        self._turn = None
        self.reports.close()

    # What is told

    async def _ask(self, ask: Ask, signal: PermissionAsked) -> Mapping[str, Any]:
        if self._turn is None or self._turn.stop_asked:
            return dict(ask.cancelled().result)
        pending = self._pending[signal.request] = _Pending(ask)
        self._put(signal)
        await pending.resolved.wait()
        return dict(pending.result)

    def _resolve(self, request: str, pending: _Pending, resolution: Resolution) -> PermissionSettled:
        del self._pending[request]
        pending.result = resolution.result
        pending.resolved.set()
        return PermissionSettled(request=request, outcome=resolution.outcome, option_id=resolution.option_id)

    def _cancel_pending(self) -> list[PermissionSettled]:
        return [self._resolve(request, p, p.ask.cancelled()) for request, p in list(self._pending.items())]

    def _apply(self, settings: Settings) -> None:
        """Note what is in force; report it if it changed after the session was opened."""
        before, config = self.settings.config, settings.config
        self.settings = settings
        self.state = AgentState(
            session=self.state.session,
            cwd=self.state.cwd,
            model=config.model,
            mode=config.mode,
            thinking=config.thinking,
        )
        if self._open and config != before:
            self._put(config)

    def _put(self, *signals: Signal, size: int = 0) -> None:
        if signals:
            attempt = self._turn.attempt if self._turn else None
            self.reports.put_nowait(Report(attempt=attempt, signals=signals), size)
            if self.reports.overflowed:
                self.link.hang_up()


def _end(result: Any) -> TurnEnd:
    match result:
        case {"stopReason": "cancelled"}:
            return TurnStopped()
        case {"stopReason": str(reason)}:
            return TurnEnded(stop_reason=reason, usage=turn_usage(result.get("usage")))
        case _:
            return TurnEnded(stop_reason=None)
