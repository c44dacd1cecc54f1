"""The backend type `paseo-cli`: a Paseo daemon that only the `paseo` command reaches.

A poorer way than the WebSocket: an agent is made, adopted, prompted, stopped and put away, and what it said
is told once a turn has ended. Everything else is unsupported.
"""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import anyio
from anyio.abc import TaskGroup

from app.backends.base import (
    Agent,
    AgentLost,
    AgentSpec,
    BackendError,
    BackendRejected,
    BackendUnavailable,
    Capabilities,
    Health,
    OpenAttempt,
    OutcomeUnknown,
    Place,
    Provider,
    ProviderNotFound,
)
from app.backends.paseo_archiving import put_away
from app.backends.paseo_cli_agent import PaseoCliAgent
from app.backends.paseo_cli_following import LOOKS, CliPace
from app.backends.paseo_labels import KEY_LABEL, ORIGIN
from app.backends.paseo_translate import failure_words, not_imported
from app.domain.signals import Cursor
from app.paseo.cli import PaseoCli
from app.paseo.cli_answers import Inspected, Made
from app.paseo.cli_running import CommandRunner, NoSeat
from app.paseo.errors import NotSent, PaseoError, Reason, Refused

GREETING = "This only opens the session. Do nothing yet, and answer with one word: ready"
"""The command makes no agent without a prompt. It shows in the list of processes, so it is no caller's."""
CURE = "Start the daemon (`paseo daemon start`), or set command, url or env of the backend in alameda.toml"
"""What helps where the command finds no daemon."""
LOOK_S = 5.0
"""Seconds that a look at the daemon may take."""
NAME_MAX = 100
"""Characters of a caller's title that become an agent's."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """Something that was read, and when by the monotonic clock."""

    at: float
    health: Health


class PaseoCliBackend:
    """Implements `Backend`. Nothing is kept open; every call is a process."""

    type = "paseo-cli"
    capabilities = Capabilities(
        permissions=False, settings=False, attachments=frozenset(), imports=True, survives_host=True
    )

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        place: Place,
        provider: str,
        tasks: TaskGroup,
        *,
        env: Mapping[str, str],
        url: str | None = None,
        password: str | None = None,
        pace: CliPace | None = None,
    ) -> None:
        """`env` is the whole environment of the command; `tasks` runs the agents' tasks.

        Raises:
            ValueError: there is no command, or no such address.
        """
        self.name = name
        self.place = place
        self.default_provider = provider
        self.server_id: str | None = None  # no command tells which daemon answered
        self._tasks = tasks
        self._pace = pace or CliPace()
        self._cli = PaseoCli(CommandRunner(command, env=env, url=url, password=password))
        self._seen: _Seen | None = None
        self._providers: tuple[float, list[Provider]] | None = None

    async def health(self) -> Health:
        """Whether the command finds a daemon; looked at seldom, for every look starts a process."""
        seen = self._seen
        lasts = self._pace.look if seen is not None and seen.health.up else self._pace.look / 3
        if seen is None or time.monotonic() - seen.at >= lasts:
            self._seen = seen = await self._look()
        return seen.health

    async def _look(self) -> _Seen:
        started = time.monotonic()
        try:
            await self._cli.look(LOOK_S)
        except NoSeat as error:  # which says nothing about the daemon
            return self._seen or _Seen(-math.inf, Health(up=False, detail=str(error)))
        except NotSent as error:
            return _Seen(started, Health(up=False, detail=f"{error}. {CURE}"))
        except PaseoError as error:
            return _Seen(started, Health(up=False, detail=str(error)))
        latency_ms = round((time.monotonic() - started) * 1000, 1)
        return _Seen(started, Health(up=True, latency_ms=latency_ms))

    async def providers(self) -> Sequence[Provider]:
        """What the daemon can run; their models and modes are not known here."""
        if self._providers is None or time.monotonic() - self._providers[0] >= self._pace.look:
            try:
                found = await self._cli.providers()
            except PaseoError as error:
                raise BackendUnavailable(str(error)) from None
            listed = [
                Provider(
                    id=one.provider,
                    label=one.label or one.provider,
                    available=one.status in ("ready", "available", "loading"),
                )
                for one in found
                if one.enabled == "Enabled"
            ]
            self._providers = (time.monotonic(), listed)
        return self._providers[1]

    async def create(self, spec: AgentSpec) -> Agent:
        """Make an agent by greeting it; what it answers to that is not told."""
        labels = [f"{key}={value}" for key, value in ORIGIN.items()] + [_label(spec)]
        try:
            if spec.provider_session_id is not None:
                made = await self._adopted(spec, spec.provider_session_id, labels)
            else:
                title = spec.title[:NAME_MAX] if spec.title else None
                made = await self._cli.start(
                    GREETING, provider=spec.provider, cwd=spec.cwd, title=title, labels=labels
                )
        except Refused as error:
            if error.reason is Reason.UNKNOWN_PROVIDER:
                raise await self._no_provider(error.text, spec.provider) from None
            raise _not_made(error) from None
        except PaseoError as error:
            raise _not_made(error) from None
        if spec.provider_session_id is None:
            await self._greeted(made.agent_id)
        try:
            return await self._held(await self._cli.inspect(made.agent_id), spec, None, None)
        except PaseoError as error:
            raise OutcomeUnknown(str(error)) from None

    async def _adopted(self, spec: AgentSpec, session: str, labels: Sequence[str]) -> Made:
        try:
            return await self._cli.adopt(session, provider=spec.provider, cwd=spec.cwd, labels=labels)
        except Refused as error:
            if error.reason is Reason.UNKNOWN_PROVIDER or error.text.startswith("Unsupported provider"):
                raise not_imported(spec.provider, error.text) from None
            raise

    async def _no_provider(self, words: str, provider: str) -> ProviderNotFound:
        """That the daemon has no such provider, and which it has now."""
        self._providers = None
        available: list[str] = []
        with suppress(BackendUnavailable):
            available = [one.id for one in await self.providers()]
        return ProviderNotFound(words, provider=provider, available=available)

    async def _greeted(self, agent: str) -> None:
        """Wait until the agent is at rest; one that cannot even be greeted is put away."""
        try:
            answer = await self._cli.wait(agent, self._pace.greeting)
            if answer.status in ("timeout", "permission"):
                await self._cli.stop(agent)
        except PaseoError as error:
            raise OutcomeUnknown(str(error)) from None
        if answer.status == "error":
            try:
                await self._cli.archive(agent)
            except PaseoError as error:
                raise OutcomeUnknown(str(error)) from None
            raise BackendRejected(failure_words(answer.message or ""))

    async def find(self, spec: AgentSpec) -> Agent | None:
        """The agent of that label; it may still be in the making. No other client's has one like it.

        One that was adopted may be there and in no list, if the daemon did not know its directory before.
        """
        try:
            for look in range(LOOKS):
                if look:
                    await anyio.sleep(self._pace.again)
                for one in await self._cli.labelled(_label(spec)):
                    if spec.provider_session_id is None:
                        await self._greeted(one.id)
                    return await self._held(await self._loaded(one.id), spec, None, None)
        except PaseoError as error:
            raise BackendUnavailable(str(error)) from None
        if spec.provider_session_id is not None:
            raise BackendRejected(
                "the import was not answered, and what it may have made is in no list: the next ensure adopts"
                " the session once more, so see first that no other agent is on it"
            )
        return None

    async def load(
        self, spec: AgentSpec, session: str, cursor: Cursor | None, attempt: OpenAttempt | None = None
    ) -> Agent:
        """Hold an agent again; one that was put away is taken out again, if it can be."""
        try:
            return await self._held(await self._loaded(session), spec, cursor, attempt)
        except Refused as error:
            if error.reason in (Reason.AGENT_NOT_FOUND, Reason.CANNOT_RESUME):
                raise AgentLost(error.text) from None
            raise BackendRejected(error.text) from None
        except PaseoError as error:
            raise BackendUnavailable(str(error)) from None

    async def _loaded(self, agent: str) -> Inspected:
        found = await self._cli.inspect(agent)
        if not found.archived:
            return found
        await self._cli.reload(agent)
        found = await self._cli.inspect(agent)
        if found.archived:
            raise AgentLost("the agent was archived and cannot be resumed")
        return found

    async def _held(
        self, found: Inspected, spec: AgentSpec, cursor: Cursor | None, attempt: OpenAttempt | None
    ) -> PaseoCliAgent:
        agent = PaseoCliAgent(self._cli, found, self._tasks, self._pace)
        await agent.take_up(
            found, cursor, attempt, tells_history=cursor is None and spec.provider_session_id is not None
        )
        return agent

    async def archive(self, session: str) -> None:
        """Archive an agent that nobody holds."""
        await put_away(self._cli, session)

    def beat(self) -> None:
        """The daemon's agents live without us."""

    async def aclose(self) -> None:
        """Remove what lies on disk; every agent lives on."""
        await self._cli.aclose()


def _label(spec: AgentSpec) -> str:
    return f"{KEY_LABEL}={spec.creation_key}"


def _not_made(error: PaseoError) -> BackendError:
    """What a failed creation says: nothing was made, or nobody knows."""
    if isinstance(error, NotSent):
        return BackendUnavailable(str(error))
    if isinstance(error, Refused):
        return BackendRejected(failure_words(error.text))
    return OutcomeUnknown(str(error))
