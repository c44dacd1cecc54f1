"""The adapter over a twin of the daemon, and turns with its agents."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from app.backends.base import Agent, AgentSpec, Place, Prompt
from app.backends.paseo import PaseoBackend
from app.backends.paseo_settling import Pace
from app.domain.signals import Report, Signal
from app.paseo.dialing import Options
from tests.backends.acp_house import PATIENCE, is_end
from tests.paseo.scripted import QUICK
from tests.paseo.twin import Twin

SPEED = 10.0
BRISK = Pace(
    look=0.1,
    start=0.6,
    start_with_mcp=1.2,
    silence=0.3,
    probe=0.3,
    refresh=1.0,
    busy=0.1,
    turnstile=5.0,
    again=0.1,
)
"""Waits that a test can sit out; each is longer than what the twin needs at `SPEED`."""


@asynccontextmanager
async def paseo_backend(twin: Twin, *, pace: Pace = BRISK, **options: Any) -> AsyncIterator[PaseoBackend]:
    """A backend at the twin; leaving it is like the end of our process."""
    place = Place(filesystem="shared", default_cwd=twin.home, roots=[twin.home])
    async with anyio.create_task_group() as tasks:
        backend = PaseoBackend(
            "paseo",
            twin.http,
            twin.password,
            place,
            "scripted",
            tasks,
            options=Options(**{**QUICK, **options}),
            pace=pace,
        )
        try:
            await backend.providers()  # waits for the link
            yield backend
        finally:
            await backend.aclose()
            tasks.cancel_scope.cancel()


def spec(home: Path, provider: str = "scripted", **parts: Any) -> AgentSpec:
    """What to make an agent of."""
    return AgentSpec(**({"creation_key": "key", "provider": provider, "cwd": str(home)} | parts))


def prompt(attempt: str, *lines: str, **parts: Any) -> Prompt:
    """A prompt that makes the twin's agent play a script."""
    return Prompt(attempt=attempt, text="\n".join(lines), **parts)


async def reports_until(agent: Agent, wanted: Callable[[Signal], bool]) -> list[Report]:
    """All reports with something in them, up to the one with the wanted signal."""
    reports: list[Report] = []
    with anyio.fail_after(PATIENCE):
        while not any(wanted(signal) for report in reports for signal in report.signals):
            reports += [report for report in await agent.reports.take() if report.signals]
    return reports


async def play(agent: Agent, attempt: str, *lines: str) -> list[Report]:
    """A turn: all reports up to its end."""
    await agent.prompt(prompt(attempt, *lines))
    return await reports_until(agent, is_end)


def of(reports: list[Report], attempt: str | None) -> list[Signal]:
    """The signals of one attempt, or of what happened outside our turns."""
    return [signal for report in reports if report.attempt == attempt for signal in report.signals]
