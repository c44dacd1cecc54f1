"""The backend type `paseo`: a daemon that runs Claude Code, Codex, OpenCode and others, by its WebSocket."""

import math
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

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
    Change,
    Choice,
    Health,
    OpenAttempt,
    OutcomeUnknown,
    Place,
    Provider,
    ProviderNotFound,
    Unsupported,
)
from app.backends.paseo_agent import PaseoAgent
from app.backends.paseo_archiving import put_away
from app.backends.paseo_following import Lost
from app.backends.paseo_labels import KEY_LABEL, ORIGIN
from app.backends.paseo_settling import Pace
from app.backends.paseo_terminals import PaseoTerminals
from app.backends.paseo_translate import failure_words, not_imported
from app.domain.signals import Cursor
from app.paseo import errors, snapshots
from app.paseo.address import Address
from app.paseo.client import PaseoClient
from app.paseo.dialing import Options
from app.paseo.errors import PaseoError, Reason
from app.paseo.http import DaemonHttp
from app.paseo.versions import support

CURE = "Start the daemon (`paseo daemon start`), or set PASEO_URL, or the backend's url in alameda.toml"
"""What helps where nothing answers; a refusal says itself what to change."""
CURE_BETWEEN = "It answers over HTTP: have whatever stands between let WebSockets through, or restart it"
"""What helps where only the WebSocket does not answer."""
HTTP_S = 2.0
"""Seconds that a daemon has to answer over HTTP, once its WebSocket does not."""
HEALTH_WAIT_S = 2.0
"""Seconds that a look at the daemon waits for a link that is being dialled."""
RECENTLY_S = 30.0
"""Seconds after which a link that is down is not expected to be back in a moment."""
LINK_WAIT_S = 5.0
"""Seconds that a request waits for a link that is being dialled."""
FIND_LOOKS = 2
"""Looks for an agent whose creation was not answered, before it is said not to be."""
_GONE = (Reason.AGENT_NOT_FOUND, Reason.CANNOT_RESUME)


class PaseoBackend:
    """Implements `Backend`. One link for all agents; `start` keeps it."""

    type = "paseo"
    capabilities = Capabilities(
        attachments=frozenset({"image", "text"}),
        system_prompt=True,
        mcp_servers=True,
        worktrees=True,
        imports=True,
        terminals=True,
        survives_host=True,
        replays=True,
    )

    def __init__(
        self,
        name: str,
        url: str,
        password: str | None,
        place: Place,
        provider: str,
        tasks: TaskGroup,
        *,
        options: Options | None = None,
        pace: Pace | None = None,
    ) -> None:
        """`tasks` runs the link and the agents' tasks.

        Raises:
            PaseoError: the password cannot be one, or the address is none.
        """
        self.name = name
        self.place = place
        self.default_provider = provider
        self._tasks = tasks
        self._pace = pace or Pace()
        self._address = Address.parse(url)
        self._client = PaseoClient(self._address, password, options=options)
        self.terminals = PaseoTerminals(self._client, name)
        self._scope = anyio.CancelScope()
        self._up_at = -math.inf
        """Monotonic time at which the link was last seen up."""
        self._server_id: str | None = None
        tasks.start_soon(self._serve, name=f"paseo link {name}")

    @property
    def server_id(self) -> str | None:
        """The daemon's own name, as its greeting had it last."""
        server = self._client.link.server
        if server is not None:
            self._server_id = server.server_id
        return self._server_id

    async def _serve(self) -> None:
        with self._scope:
            await self._client.serve()

    async def health(self) -> Health:
        """How the link is, and whether the daemon answers over it; never raises."""
        link = self._client.link
        if not link.is_up:
            self._client.redial()
            # A first dial, or one after a link that was just lost, is likely to succeed.
            if link.status == "dialing" or time.monotonic() - self._up_at < RECENTLY_S:
                with suppress(errors.NotSent):
                    await self._client.wait_up(HEALTH_WAIT_S)
            link = self._client.link
        if not link.is_up:
            words = link.error or "the daemon is being dialled"
            if link.status != "refused":
                words = f"{words}. {CURE_BETWEEN if await self._answers_http() else CURE}"
            return Health(up=False, detail=words)
        version = link.server.version if link.server is not None else None
        started = self._up_at = time.monotonic()
        try:
            await self._client.ping()
        except PaseoError as error:
            return Health(up=False, detail=f"the daemon does not answer: {error}", version=version)
        found = support(version)
        return Health(
            up=True,
            detail=None if found.is_tested else f"version {version} is {found}",
            version=version,
            tested=found.is_tested,
            latency_ms=round((time.monotonic() - started) * 1000, 1),
        )

    async def _answers_http(self) -> bool:
        """Whether it is only the WebSocket that does not answer."""
        async with DaemonHttp(self._address, timeout=HTTP_S) as http:
            try:
                return (await http.health()).status == "ok"
            except PaseoError:
                return False

    async def providers(self) -> Sequence[Provider]:
        """What the daemon can run; waits for what it is still looking at."""
        await self._up()
        try:
            found = await self._client.providers()
        except PaseoError as error:
            raise BackendUnavailable(str(error)) from None
        return [_provider(one) for one in found if one.enabled]

    async def create(self, spec: AgentSpec) -> Agent:
        """Make an agent without a prompt, under a label that finds it again."""
        await self._up()
        if spec.provider_session_id is not None:
            return await self._adopt(spec, spec.provider_session_id)
        config = {
            "title": spec.title,
            "modeId": spec.mode,
            "model": spec.model,
            "thinkingOptionId": spec.thinking,
            "systemPrompt": spec.system_prompt,
            "mcpServers": dict(spec.mcp_servers) or None,
        }
        git = _worktree(spec.worktree)
        labels = {**spec.labels, **ORIGIN, KEY_LABEL: spec.creation_key}
        try:
            made = await self._client.create_agent(spec.provider, spec.cwd, labels=labels, git=git, **config)
        except errors.Refused as error:
            if error.reason is Reason.UNKNOWN_PROVIDER:
                raise await self._no_provider(error.text, spec.provider) from None
            raise _not_made(error) from None
        except PaseoError as error:
            raise _not_made(error) from None
        return await self._hold_new(made, spec)

    async def _adopt(self, spec: AgentSpec, session: str) -> Agent:
        """A new agent on a session that its provider has; what it holds is told once, as nobody's turn."""
        if spec.system_prompt is not None or spec.mcp_servers or spec.worktree is not None:
            raise Unsupported("a session that is adopted keeps its own system prompt, servers and directory")
        labels = {**spec.labels, **ORIGIN, KEY_LABEL: spec.creation_key}
        try:
            with suppress(errors.Refused):  # a daemon that has no such request knows every directory
                await self._client.open_project(spec.cwd)
        except PaseoError as error:  # nothing was made: without it an import would not be found again
            raise BackendUnavailable(str(error)) from None
        try:
            made = await self._client.import_agent(spec.provider, session, cwd=spec.cwd, labels=labels)
        except errors.Refused as error:
            if error.reason is Reason.UNKNOWN_PROVIDER:
                raise not_imported(spec.provider, error.text) from None
            raise _not_made(error) from None
        except PaseoError as error:
            raise _not_made(error) from None
        agent = await self._hold_new(made, spec)
        change = Change(model=spec.model, mode=spec.mode, thinking=spec.thinking, title=spec.title)
        if change != Change():
            with suppress(BackendError):  # it is there; what is in force is shown
                await agent.configure(change)
        return agent

    async def _no_provider(self, words: str, provider: str) -> ProviderNotFound:
        """That the daemon has no such provider, and which it has now."""
        available: list[str] = []
        with suppress(BackendUnavailable):
            available = [one.id for one in await self.providers()]
        return ProviderNotFound(words, provider=provider, available=available)

    async def _hold_new(self, made: snapshots.Agent, spec: AgentSpec) -> PaseoAgent:
        agent = PaseoAgent(self._client, made, spec, self._tasks, self._pace)
        try:
            await agent.open_new()
        except (PaseoError, Lost) as error:
            await agent.release()
            raise OutcomeUnknown(str(error)) from None
        return agent

    async def find(self, spec: AgentSpec) -> Agent | None:
        """The agent of that label; it may still be in the making. No other client's has one like it."""
        await self._up()
        wanted = {KEY_LABEL: spec.creation_key}
        try:
            for _ in range(FIND_LOOKS):
                page = await self._client.fetch_agents(labels=wanted)
                for entry in page.entries:
                    if entry.agent.labels.get(KEY_LABEL) == spec.creation_key:
                        return await self._hold_found(entry.agent, spec)
                await anyio.sleep(self._pace.look)
        except PaseoError as error:
            raise BackendUnavailable(str(error)) from None
        return None

    async def _hold_found(self, found: snapshots.Agent, spec: AgentSpec) -> PaseoAgent:
        return await self._hold_new(await self._unarchive(found) if found.is_archived else found, spec)

    async def load(
        self, spec: AgentSpec, session: str, cursor: Cursor | None, attempt: OpenAttempt | None = None
    ) -> Agent:
        """Follow an agent again; one that was put away is taken out again, if it can be."""
        await self._up()
        try:
            found = await self._client.fetch_agent(session)
            is_archived = found.is_archived
            if is_archived:
                found = await self._unarchive(found)
                cursor = None
            agent = PaseoAgent(self._client, found, spec, self._tasks, self._pace)
            try:
                if is_archived:
                    await agent.take_out(attempt)
                else:
                    await agent.take_up(found, cursor, attempt)
            except BaseException:
                await agent.release()
                raise
        except Lost as lost:
            raise AgentLost(str(lost)) from None
        except errors.Refused as error:
            if error.reason in _GONE:
                raise AgentLost(error.text) from None
            raise BackendRejected(error.text) from None
        except PaseoError as error:
            raise BackendUnavailable(str(error)) from None
        return agent

    async def _unarchive(self, found: snapshots.Agent) -> snapshots.Agent:
        """Take an agent out of the archive by loading it; one that cannot be loaded is put back."""
        with suppress(errors.Timeout):  # a provider that cannot resume never answers: look
            await self._client.refresh_agent(found.id, deadline=self._pace.refresh)
        agent = await self._client.fetch_agent(found.id)
        if agent.is_archived or agent.status == "closed":
            with suppress(PaseoError):
                await self._client.archive(found.id)
            raise AgentLost("the agent was archived and cannot be resumed")
        return agent

    async def archive(self, session: str) -> None:
        """Archive an agent that nobody holds."""
        await self._up()
        await put_away(self._client, session)

    def beat(self) -> None:
        """The daemon's agents live without us."""

    async def aclose(self) -> None:
        """Close the link; every agent lives on."""
        self._scope.cancel()

    async def _up(self) -> None:
        try:
            await self._client.wait_up(LINK_WAIT_S)
        except errors.NotSent:
            raise BackendUnavailable(self._client.link.error or "no link to the daemon") from None


def _not_made(error: PaseoError) -> BackendError:
    """What a failed creation says: nothing was made, or nobody knows."""
    if isinstance(error, errors.NotSent):
        return BackendUnavailable(str(error))
    if isinstance(error, errors.Refused):
        return BackendRejected(failure_words(error.text))
    return OutcomeUnknown(str(error))


def _worktree(wanted: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A new worktree in the daemon's words, named like its branch."""
    if wanted is None:
        return None
    branch = str(wanted["branch"])
    git = {
        "createWorktree": True,
        "worktreeSlug": re.sub(r"[^a-z0-9]+", "-", branch.lower()).strip("-") or "worktree",
        "createNewBranch": True,
        "newBranchName": branch,
    }
    return git | ({"baseBranch": str(wanted["base"])} if wanted.get("base") else {})


def _provider(found: snapshots.Provider) -> Provider:
    models = found.models or []
    thinking = {option.id: option for model in models for option in model.thinking_options or []}
    return Provider(
        id=found.provider,
        label=found.label or found.provider,
        available=found.status in ("ready", "loading"),
        detail=found.error,
        models=[Choice(id=m.id, label=m.label or m.id, description=m.description) for m in models],
        modes=[Choice(id=m.id, label=m.label or m.id, description=m.description) for m in found.modes or []],
        thinking=[Choice(id=o.id, label=o.label or o.id) for o in thinking.values()],
    )
