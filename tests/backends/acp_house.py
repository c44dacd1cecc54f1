"""Real ACP agents for tests, and a turn with one of them."""

import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import psutil

from app import demo
from app.backends.acp import AcpBackend
from app.backends.base import Agent, AgentSpec, Answer, Place, Prompt
from app.domain.signals import (
    PermissionAsked,
    Signal,
    TextDelta,
    TurnBroke,
    TurnEnded,
    TurnStopped,
    TurnUnknown,
)

DEMO = demo.COMMAND_LINE
WILD = (sys.executable, "-I", "-S", str(Path(__file__).with_name("wild_agent.py")))

PATIENCE = 20.0
"""Seconds within which everything in these tests comes, also on a busy machine."""

ENDS = TurnEnded | TurnStopped | TurnBroke | TurnUnknown


@asynccontextmanager
async def acp_backend(command: Sequence[str], **options: Any) -> AsyncIterator[AcpBackend]:
    """A backend; when it is left, its agents are ended."""
    here = Path.cwd()
    place = Place(filesystem="shared", default_cwd=here, roots=[here])
    async with anyio.create_task_group() as tasks:
        backend = AcpBackend("acp", command, place, tasks, **options)
        try:
            yield backend
        finally:
            with anyio.CancelScope(shield=True):
                await backend.aclose()


def spec(**parts: Any) -> AgentSpec:
    """What to make an agent of."""
    return AgentSpec(**({"creation_key": "key", "provider": "acp", "cwd": str(Path.cwd())} | parts))


async def until(agent: Agent, wanted: Callable[[Signal], bool]) -> list[Signal]:
    """All signals up to the wanted one, and what came with it."""
    signals: list[Signal] = []
    with anyio.fail_after(PATIENCE):
        while not any(wanted(signal) for signal in signals):
            for report in await agent.reports.take():
                signals += report.signals
    return signals


async def eventually(holds: Callable[[], bool]) -> None:
    """Wait for what nothing tells of: the end of a stranger's process, a line in the log."""
    with anyio.fail_after(PATIENCE):
        while not holds():  # noqa: ASYNC110 - there is no event for it
            await anyio.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; where nobody buries orphans it stays a zombie."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def is_end(signal: Signal) -> bool:
    """Whether a signal ends a turn."""
    return isinstance(signal, ENDS)


async def turn(agent: Agent, *lines: str, answer: Answer | None = None) -> list[Signal]:
    """Everything that a prompt brings, up to its end; what the agent asks gets `answer`."""
    await agent.prompt(Prompt(attempt="attempt-1", text="\n".join(lines)))
    signals: list[Signal] = []
    while not any(is_end(signal) for signal in signals):
        new = await until(agent, lambda signal: isinstance(signal, PermissionAsked) or is_end(signal))
        signals += new
        for asked in new:
            if isinstance(asked, PermissionAsked) and answer is not None:
                await agent.answer(asked.request, answer)
    return signals


def text(signals: Sequence[Signal]) -> str:
    """What the agent said."""
    return "".join(signal.text for signal in signals if isinstance(signal, TextDelta))
