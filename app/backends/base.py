"""The seam between the engine and a coding-agent backend.

A `Backend` is a named instance of a type (`paseo`, `acp`); an `Agent` is one of its agents, held by the one
process that hosts its session. Only the host calls an agent, one call at a time except `interrupt`, `answer`
and `kill`, which may come while a prompt runs. A turn's end is a signal in `reports`, never a call's answer.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal, Protocol

import anyio

from app.domain.events import Delivered
from app.domain.signals import Cursor, Report


class BackendError(Exception):
    """What went wrong at a backend, in its own words, fit to be shown to a caller."""


class BackendUnavailable(BackendError):
    """The backend cannot be reached now; trying again later helps."""


class BackendRejected(BackendError):
    """The backend refused; trying the same again does not help."""


class ProviderNotFound(BackendRejected):
    """The backend has no provider of that name; `available` are those that it has, as far as is known."""

    def __init__(self, message: str, *, provider: str, available: Sequence[str]) -> None:
        super().__init__(message)
        self.provider = provider
        self.available = list(available)


class NotPending(BackendRejected):
    """The permission request waits no more; its resolution was told, or will be."""


class AgentLost(BackendError):
    """The backend no longer has the agent, or cannot resume it."""


class Unsupported(BackendRejected):
    """The backend has no such feature, or not this value for it."""


class OutcomeUnknown(BackendError):
    """The call was sent, and nothing tells whether it took effect."""


class SendFailed(BackendError):
    """A prompt was not taken; `retriable`: another attempt may help."""

    def __init__(self, message: str, *, delivered: Delivered, retriable: bool) -> None:
        super().__init__(message)
        self.delivered: Delivered = delivered
        self.retriable = retriable


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a backend type can do; what it cannot is `unsupported_by_backend`."""

    permissions: bool = True
    settings: bool = True
    attachments: frozenset[Literal["image", "text"]] = frozenset({"text"})
    system_prompt: bool = False
    mcp_servers: bool = False
    worktrees: bool = False
    imports: bool = False
    terminals: bool = False
    survives_host: bool = False
    """Whether an agent and its turn go on when the process that hosts it is gone."""
    replays: bool = False
    """Whether the backend can tell again what happened after a cursor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """A backend's state at one look; `detail` says what is wrong and how to cure it."""

    up: bool
    detail: str | None = None
    version: str | None = None
    tested: bool | None = None
    latency_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A model, a mode or a thinking option that may be set."""

    id: str
    label: str
    description: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """An agent kind that a backend can run. An empty list of choices: not known, anything may be tried."""

    id: str
    label: str
    available: bool = True
    detail: str | None = None
    models: Sequence[Choice] = ()
    modes: Sequence[Choice] = ()
    thinking: Sequence[Choice] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an agent's files are, and where they may be."""

    filesystem: Literal["shared", "remote"]
    default_cwd: PurePath
    roots: Sequence[PurePath]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec:
    """The agent to be made, or to be loaded again; `creation_key` finds it after a lost answer."""

    creation_key: str
    provider: str
    cwd: str
    model: str | None = None
    mode: str | None = None
    thinking: str | None = None
    title: str | None = None
    system_prompt: str | None = None
    mcp_servers: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    worktree: Mapping[str, Any] | None = None
    """`branch` and `base` of a git worktree to be made for the agent."""
    provider_session_id: str | None = None
    """A session of the provider to be adopted instead of making one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentState:
    """What is in force at the backend. `session` is the backend's own id of its agent."""

    session: str
    cwd: str | None
    model: str | None = None
    mode: str | None = None
    thinking: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A part of a prompt beside its text: an image (base64 in `data`) or a named text."""

    kind: Literal["image", "text"]
    name: str | None = None
    mime_type: str | None = None
    data: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt to send; `attempt` names it for ever, and reports about it carry that name."""

    attempt: str
    text: str
    attachments: Sequence[Attachment] = ()
    may_leave: Callable[[], bool] = lambda: True
    """Asked right before the write, if something was waited for before it; false: it is not delivered."""


@dataclass(frozen=True, slots=True)
class OpenAttempt:
    """A prompt that an earlier host sent and did not see the end of."""

    name: str
    was_told: bool
    """Whether anything was ever told of it: then it had arrived."""
    text: str = ""
    """Its prompt, by which a backend whose messages have no names finds it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer to a permission request; `option_id` is one of those that were offered."""

    allow: bool
    option_id: str | None = None
    message: str | None = None
    updated_input: Any = None
    answers: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Settings to change; null leaves one alone."""

    model: str | None = None
    mode: str | None = None
    thinking: str | None = None
    title: str | None = None


class ReportsClosed(Exception):
    """No further report will come: the agent was released."""


class Reports:
    """The bounded pipe from an adapter to the one reader that logs.

    A producer that finds it full waits (and with it the agent, whose pipe is not read on). While the reader
    is known to be stalled (`stall`), a full pipe does not wait: the report is lost, and `overflowed` says so.
    """

    MAX_REPORTS = 10_000
    MAX_BYTES = 16 * 1024 * 1024
    """Bounds, whichever is met first; bytes as the adapter counts them, roughly the size on its wire."""

    def __init__(self) -> None:
        self._reports: deque[tuple[Report, int]] = deque()
        self._bytes = 0
        self._arrived = anyio.Event()
        self._room = anyio.Event()
        self._stalled = False
        self._closed = False
        self.overflowed = False
        self.on_arrival: Callable[[], None] = lambda: None
        """Called whenever something arrived or the pipe closed; must not wait or raise."""

    @property
    def has_room(self) -> bool:
        """Whether a report can be put without passing a bound."""
        return len(self._reports) < self.MAX_REPORTS and self._bytes < self.MAX_BYTES

    @property
    def has_reports(self) -> bool:
        """Whether something has arrived."""
        return bool(self._reports)

    @property
    def is_closed(self) -> bool:
        """Whether no further report will come, and none is left."""
        return self._closed and not self._reports

    def put_nowait(self, report: Report, size: int = 0) -> None:
        """Add a report. Past the bound too, unless the reader is stalled: producers wait before."""
        if self._closed:
            return
        if not self.has_room and self._stalled:
            self.overflowed = True
            self._announce()
            return
        self._reports.append((report, size))
        self._bytes += size
        self._announce()

    def _announce(self) -> None:
        self._arrived.set()
        self.on_arrival()

    async def room(self) -> None:
        """Wait until there is room, or until waiting is pointless (stalled, closed)."""
        while not (self.has_room or self._stalled or self._closed):
            self._room = anyio.Event()
            await self._room.wait()

    def stall(self, stalled: bool) -> None:
        """Say whether the reader stands still for a reason that waiting cannot mend soon."""
        self._stalled = stalled
        self._room.set()

    def close(self) -> None:
        """End the pipe: what is in it can still be taken."""
        self._closed = True
        self._announce()
        self._room.set()

    def drain(self) -> list[Report]:
        """Everything that has arrived; empty if nothing has."""
        reports = [report for report, _ in self._reports]
        self._reports.clear()
        self._bytes = 0
        self._room.set()
        return reports

    async def take(self) -> list[Report]:
        """Everything that has arrived, at least one report.

        Raises:
            ReportsClosed: the pipe was closed and is empty.
        """
        while not self._reports:
            if self._closed:
                raise ReportsClosed
            self._arrived = anyio.Event()
            await self._arrived.wait()
        return self.drain()


class Agent(Protocol):
    """One agent at a backend, as its host holds it."""

    state: AgentState
    reports: Reports
    resumable: bool
    """Whether a released agent can be loaded again with what it knew."""

    async def prompt(self, prompt: Prompt) -> None:
        """Send a prompt; returns when it is written, not when the turn ends.

        Raises:
            SendFailed: it was not taken, or nobody knows.
        """

    async def reach(self) -> None:
        """See that the agent can be prompted now; a link that was just lost is waited for, a few seconds.

        Raises:
            BackendUnavailable: it cannot be reached.
            AgentLost: it is gone, as far as that shows without a prompt.
        """

    async def interrupt(self) -> None:
        """Ask the agent to stop its turn; the turn's end comes as a signal. Never raises for a dead agent."""

    async def kill(self) -> None:
        """End or restart the agent's process with everything below it; returns when nothing of it runs."""

    async def answer(self, request: str, answer: Answer) -> None:
        """Answer a permission request; the backend's resolution comes as `PermissionSettled`.

        Raises:
            NotPending: somebody else was first, or the agent waits no more.
            BackendRejected: this answer is not honoured.
            BackendUnavailable: the link is down; it is still pending.
        """

    async def configure(self, change: Change) -> AgentState:
        """Change settings and return what is in force after that.

        Raises:
            Unsupported: the backend has no such setting or value.
        """

    async def is_busy(self) -> bool:
        """Whether the agent runs a turn, ours or anybody's."""

    async def archive(self) -> None:
        """Put the agent away at the backend and release it.

        Raises:
            BackendError: it could not be archived; local resources are released all the same.
        """

    async def release(self) -> None:
        """Give up what this process holds of the agent (link, child); never archives, never raises."""


class Backend(Protocol):
    """A named instance of a backend type."""

    name: str
    type: str
    capabilities: Capabilities
    place: Place
    default_provider: str

    @property
    def server_id(self) -> str | None:
        """The name that the daemon behind it gives itself, by which two are told apart; null: not known."""

    async def health(self) -> Health:
        """Look now, within 5 s; never raises."""

    async def providers(self) -> Sequence[Provider]:
        """The agent kinds that it can run; waits for a list that is still loading.

        Raises:
            BackendUnavailable: it cannot be asked now.
        """

    async def create(self, spec: AgentSpec) -> Agent:
        """Make an agent.

        Raises:
            BackendUnavailable: never reached; nothing was made.
            BackendRejected: refused; nothing was made.
            OutcomeUnknown: sent, and no answer: it may have been made (see `find`).
        """

    async def find(self, spec: AgentSpec) -> Agent | None:
        """The agent that an earlier `create` with this `creation_key` made after all; null if none."""

    async def load(
        self, spec: AgentSpec, session: str, cursor: Cursor | None, attempt: OpenAttempt | None = None
    ) -> Agent:
        """Hold an agent that was made before (by this or another process); reports go on after `cursor`.

        `attempt` is the prompt that its last host had sent and not seen the end of: a backend whose agents
        outlive their host finds out what became of it, and reports that.

        Raises:
            AgentLost: it is gone, or cannot be resumed.
            BackendUnavailable: the backend cannot be reached now.
        """

    async def archive(self, session: str) -> None:
        """Put away an agent that nobody holds.

        Raises:
            BackendError: it could not be archived.
        """

    def beat(self) -> None:
        """The host's leases hold: children that end with a silent host may live on for another lease time."""

    async def aclose(self) -> None:
        """Release everything; agents that live on their own live on."""
