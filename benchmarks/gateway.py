"""`python -m benchmarks.gateway FOLDER`: the whole service on an embedded PostgreSQL in FOLDER.

Its one backend is the synthetic one; everything else is what `alameda serve` runs.
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from anyio.abc import TaskGroup
from fastapi import FastAPI
from pydantic import SecretStr

from app import main
from app.backends.registry import Registry
from app.settings import Limits, Settings, Timing
from app.telemetry import set_up_logging
from benchmarks import server
from benchmarks.server import Answer, Command
from benchmarks.synthetic import NAME, SyntheticBackend
from benchmarks.workload import HEARTBEAT_S

KEY = f"alm_bench_{'k' * 43}"
"""The API key that the readers use."""


def _settings(folder: Path) -> Settings:
    cwd = folder / "work"
    cwd.mkdir(exist_ok=True)
    return Settings(
        database_url=None,
        data_dir=folder / "data",
        api_key=SecretStr(KEY),
        allowed_roots=(cwd,),
        default_backend=NAME,
        limits=Limits(streams_per_key=4000, turns_per_owner=1000),
        timing=Timing(heartbeat_s=HEARTBEAT_S, drain_s=0),
    )


@asynccontextmanager
async def _opened(folder: Path) -> AsyncIterator[tuple[FastAPI, Command]]:
    settings = _settings(folder)
    set_up_logging(settings.log_level, "json")
    backends: list[SyntheticBackend] = []

    def build(settings: Settings, tasks: TaskGroup) -> Registry:
        backends.append(SyntheticBackend(settings.allowed_roots[0], tasks))
        return Registry(backends, default=NAME, counted=[NAME])

    application = main.create_app(settings, build)
    async with application.router.lifespan_context(application):
        house: main.House = application.state.house
        await house.rooms.healths.looked.wait()
        (backend,) = backends

        async def command(line: dict[str, Any]) -> Answer:
            match line["do"]:
                case "armed":
                    return {"armed": len(backend.armed)}
                case "go":
                    backend.go()
                case "logged":
                    await backend.logged()
                case "end":
                    backend.end()
                case "postgres":
                    return {"pid": house.postgres.pid if house.postgres is not None else None}
            return {}

        yield application, command


if __name__ == "__main__":
    server.run(_opened(Path(sys.argv[1])))
