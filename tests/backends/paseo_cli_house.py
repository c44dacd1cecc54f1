"""The adapter over the stand-in for the `paseo` command."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from app.backends.base import Place
from app.backends.paseo_cli import PaseoCliBackend
from app.backends.paseo_cli_following import CliPace
from tests.paseo.command import stand_in

QUICK = CliPace(look=0.0, greeting=20, wait=5, again=0.05)
"""Waits that a test can sit out; the stand-in's own are divided by its speed."""


@asynccontextmanager
async def cli_backend(
    folder: Path, *, pace: CliPace = QUICK, env: dict[str, str] | None = None, **options: Any
) -> AsyncIterator[PaseoCliBackend]:
    """A backend whose command keeps its daemon in `folder`; leaving it is like the end of our process."""
    command, needed = stand_in(folder)
    place = Place(filesystem="shared", default_cwd=folder, roots=[folder])
    async with anyio.create_task_group() as tasks:
        backend = PaseoCliBackend(
            "cli", command, place, "scripted", tasks, env={**needed, **(env or {})}, pace=pace, **options
        )
        try:
            yield backend
        finally:
            with anyio.CancelScope(shield=True):
                await backend.aclose()
            tasks.cancel_scope.cancel()
