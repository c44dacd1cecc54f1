"""The backend type `acp`: any agent that speaks the Agent Client Protocol over stdio, started by us."""

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence

import anyio
from anyio.abc import TaskGroup, TaskStatus

from app.backends.acp_agent import AcpAgent
from app.backends.acp_link import Deadlines
from app.backends.acp_process import Child, child_environment
from app.backends.acp_settings import Setting, Settings
from app.backends.base import (
    AgentLost,
    AgentSpec,
    BackendRejected,
    BackendUnavailable,
    Capabilities,
    Choice,
    Health,
    OpenAttempt,
    Place,
    Provider,
    ProviderNotFound,
)
from app.domain.signals import Cursor

PORT_PASSWORDS = ("OPENCODE_SERVER_PASSWORD",)
"""Variables that make an agent which opens a port ask for a password there; each process gets its own."""

SILENCE = 15.0
"""Seconds without a `beat` after which the guards end their agents: the time of a lease."""


class AcpBackend:
    """Implements `Backend`. Each session is one child process; a later process of it loads the session."""

    type = "acp"
    capabilities = Capabilities(attachments=frozenset({"image", "text"}), mcp_servers=True)

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        place: Place,
        tasks: TaskGroup,
        *,
        environ: Mapping[str, str] | None = None,
        pass_env: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        provider: str | None = None,
        silence: float = SILENCE,
        deadlines: Deadlines | None = None,
    ) -> None:
        """`tasks` runs the agents' tasks, none of which ever fails it.

        An agent's environment is the usual names and `pass_env` from `environ` (ours by default), and `env`.

        Raises:
            ValueError: the command is empty, or the environment names a secret of ours.
        """
        if not command:
            raise ValueError(f"the backend {name} has no command")
        self.name = name
        self.place = place
        self.default_provider = provider or name
        self.server_id: str | None = None
        self._command = list(command)
        self._env = child_environment(os.environ if environ is None else environ, pass_env, env or {})
        self._silence = silence
        self._deadlines = deadlines or Deadlines()
        self._tasks = tasks
        self._agents: set[AcpAgent] = set()
        self._last: AcpAgent | None = None
        """The agent that was opened last: what it offers, others will."""

    async def health(self) -> Health:
        """Whether the command is there. No process is started for it."""
        version = self._last.link.version if self._last else None
        if self._found():
            return Health(up=True, version=version)
        program = self._command[0]
        where = "is not executable" if os.sep in program else "not found in PATH"
        cure = f"install it, or set command of the backend {self.name} in alameda.toml"
        return Health(up=False, detail=f"{program} {where}: {cure}", version=version)

    async def providers(self) -> Sequence[Provider]:
        """The one agent kind; its choices are known once a session was opened."""
        health = await self.health()
        settings = self._last.settings if self._last else Settings()
        return [
            Provider(
                id=self.default_provider,
                label=self.default_provider,
                available=health.up,
                detail=health.detail,
                models=_choices(settings.model),
                modes=_choices(settings.mode),
                thinking=_choices(settings.thinking),
            )
        ]

    async def create(self, spec: AgentSpec) -> AcpAgent:
        """Start a process and begin a session in it; nothing is left of it if that fails."""
        if spec.provider != self.default_provider:
            raise ProviderNotFound(
                f"the backend {self.name} has no provider {spec.provider!r}",
                provider=spec.provider,
                available=[self.default_provider],
            )
        return await self._opened(spec, None)

    async def find(self, spec: AgentSpec) -> AcpAgent | None:
        """Never one: an agent whose `create` did not return has been ended."""
        return None

    async def load(
        self, spec: AgentSpec, session: str, cursor: Cursor | None, attempt: OpenAttempt | None = None
    ) -> AcpAgent:
        """Start a process and take up the session in it; its history is not told again."""
        return await self._opened(spec, session)

    async def archive(self, session: str) -> None:
        """Nothing to do: an agent that nobody holds has no process, and ACP knows no archive."""

    def beat(self) -> None:
        """Pass the sign of life on to every guard."""
        for agent in self._agents:
            agent.link.beat()

    async def aclose(self) -> None:
        """End all agents."""
        async with anyio.create_task_group() as releasing:
            for agent in list(self._agents):
                releasing.start_soon(agent.release)

    async def _opened(self, spec: AgentSpec, session: str | None) -> AcpAgent:
        if not self._found():
            raise BackendUnavailable((await self.health()).detail)
        if not await anyio.Path(spec.cwd).is_dir():
            missing = f"{spec.cwd} is not a directory on this machine"
            raise BackendRejected(missing) if session is None else AgentLost(missing)
        try:
            env = {name: secrets.token_urlsafe() for name in PORT_PASSWORDS} | self._env
            child = await Child.start(self._command, cwd=spec.cwd, env=env, silence=self._silence)
        except OSError as error:
            raise BackendUnavailable(f"no process could be started: {error.strerror}") from None
        agent = AcpAgent(child, spec, self._deadlines)
        self._agents.add(agent)
        await self._tasks.start(self._serve, agent)
        opened = False
        try:
            await (agent.create() if session is None else agent.load(session))
            opened = True
        except BackendUnavailable as error:
            if session is not None:
                raise
            raise BackendRejected(str(error)) from None  # it was started, and failed: known, nothing is left
        finally:
            if not opened:
                with anyio.CancelScope(shield=True):
                    await agent.release()
        self._last = agent
        return agent

    async def _serve(self, agent: AcpAgent, *, task_status: TaskStatus[None]) -> None:
        try:
            await agent.link.serve(task_status=task_status)
        finally:
            self._agents.discard(agent)

    def _found(self) -> bool:
        return shutil.which(self._command[0], path=self._env.get("PATH", os.defpath)) is not None


def _choices(setting: Setting | None) -> Sequence[Choice]:
    return setting.choices if setting else ()
