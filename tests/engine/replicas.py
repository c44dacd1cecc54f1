"""Two services on one database: replicas; and the agents' processes that they have."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.house import House, open_house


@asynccontextmanager
async def two_houses(database_url: str, folder: Path, **more: Any) -> AsyncIterator[tuple[House, House]]:
    """Two replicas with the same key and the same working directories."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(open_house(database_url, folder, **more))
        second = await stack.enter_async_context(open_house(database_url, folder, **more))
        yield first, second


def agents(program: str = "demo.py") -> list[psutil.Process]:
    """The agents' processes below this one, without their guards."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            command = process.cmdline()
            if any(part.endswith(program) for part in command) and "guard" not in " ".join(command):
                found.append(process)
    return found
