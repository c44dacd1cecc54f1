"""A backend inside the process, whose agents emit ready reports when told to: no frames, no child."""

import json
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from app.backends.base import (
    Agent,
    AgentLost,
    AgentSpec,
    AgentState,
    Answer,
    Capabilities,
    Change,
    Health,
    OpenAttempt,
    Place,
    Prompt,
    Provider,
    Reports,
)
from app.domain.signals import Cursor, Report, TextDelta, TurnEnded
from benchmarks.workload import TEXT_BYTES, Work, text, ticks

NAME = "synthetic"
READY = 16
"""Reports that arrive in one turn of the event loop when an agent emits flat out."""


class SyntheticAgent:
    """Takes a prompt that says how much to emit, and emits it when its backend says go."""

    resumable = False

    def __init__(self, name: str, cwd: str, armed: list["SyntheticAgent"]) -> None:
        self.state = AgentState(session=name, cwd=cwd)
        self.reports = Reports()
        self.is_logged = anyio.Event()
        """Set once everything that was emitted is committed."""
        self._armed = armed
        self._attempt = ""
        self._work = Work(0)

    async def prompt(self, prompt: Prompt) -> None:
        """Be ready."""
        self._attempt, self._work = prompt.attempt, Work(**json.loads(prompt.text))
        self.is_logged = anyio.Event()
        self._armed.append(self)

    def _report(self, stamp_ns: int) -> Report:
        return Report(attempt=self._attempt, signals=(TextDelta(text=text(stamp_ns)),))

    async def emit(self) -> None:
        """Emit it all, then find out when it has been committed."""
        ready = self._report(0)
        async for _ in ticks(self._work, a_turn=READY):
            if not self.reports.has_room:
                await self.reports.room()
            report = ready if self._work.rate is None else self._report(time.monotonic_ns())
            self.reports.put_nowait(report, TEXT_BYTES)
        await self._taken()
        self.reports.put_nowait(
            Report(attempt=self._attempt)
        )  # the next is taken after the last was committed
        await self._taken()
        self.is_logged.set()

    async def _taken(self) -> None:
        while self.reports.has_reports:  # noqa: ASYNC110 - the pipe tells nobody that it was emptied
            await anyio.sleep(0.002)

    def end(self) -> None:
        """End the turn."""
        self.reports.put_nowait(Report(attempt=self._attempt, signals=(TurnEnded(stop_reason="end_turn"),)))

    async def reach(self) -> None:
        """Always there."""

    async def interrupt(self) -> None:
        """End the turn."""
        self.end()

    async def kill(self) -> None:
        """End the turn: there is no process."""
        self.end()

    async def answer(self, request: str, answer: Answer) -> None:
        """Nothing is ever asked."""

    async def configure(self, change: Change) -> AgentState:
        """Nothing can be set."""
        return self.state

    async def is_busy(self) -> bool:
        """Not known here; nobody asks."""
        return False

    async def archive(self) -> None:
        """Close the pipe."""
        self.reports.close()

    async def release(self) -> None:
        """Close the pipe."""
        self.reports.close()


class SyntheticBackend:
    """Makes such agents, and leads those that wait with a prompt."""

    type = "synthetic"
    name = NAME
    default_provider = NAME
    server_id: str | None = None
    capabilities = Capabilities(permissions=False, settings=False)

    def __init__(self, cwd: Path, tasks: TaskGroup) -> None:
        self.place = Place(filesystem="shared", default_cwd=cwd, roots=(cwd,))
        self.armed: list[SyntheticAgent] = []
        self._cwd = str(cwd)
        self._tasks = tasks
        self._names = count(1)

    def go(self) -> None:
        """Let every armed agent emit."""
        for agent in self.armed:
            self._tasks.start_soon(agent.emit)

    async def logged(self) -> None:
        """Wait until all that was emitted is committed."""
        for agent in self.armed:
            await agent.is_logged.wait()

    def end(self) -> None:
        """End every armed agent's turn."""
        for agent in self.armed:
            agent.end()
        self.armed.clear()

    async def health(self) -> Health:
        """Always up."""
        return Health(up=True)

    async def providers(self) -> Sequence[Provider]:
        """The one."""
        return [Provider(id=NAME, label="Synthetic")]

    async def create(self, spec: AgentSpec) -> Agent:
        """A new agent."""
        return SyntheticAgent(f"{NAME}-{next(self._names)}", self._cwd, self.armed)

    async def find(self, spec: AgentSpec) -> Agent | None:
        """None: an agent's creation is never lost."""
        return None

    async def load(
        self, spec: AgentSpec, session: str, cursor: Cursor | None, attempt: OpenAttempt | None = None
    ) -> Agent:
        """Raises AgentLost: a released agent is gone."""
        raise AgentLost("a synthetic agent ends with its host")

    async def archive(self, session: str) -> None:
        """Nothing is kept."""

    def beat(self) -> None:
        """Nothing depends on it."""

    async def aclose(self) -> None:
        """Nothing is held."""
