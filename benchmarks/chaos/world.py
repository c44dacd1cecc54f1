"""What is killed: replicas, the daemon, the database's back ends. Every process is ended by its pid."""

import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import httpx
from anyio.abc import Process

from app.store.embedded import embedded_postgres
from tests.house import address_of, outside_url

ROOT = Path(__file__).parents[2]
TWIN = ROOT / "tests" / "paseo" / "twin.py"
KEY = f"alm_chaos_{'c' * 43}"
START_S = 60.0
LEASE_S = 4.0
"""Shorter than in life: who takes over has to have been there for one lease, and here nobody lives long."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Program:
    """A process that is killed, paused and started again at the same port."""

    def __init__(self, name: str, command: list[str], port: int, log: Path, **environment: str) -> None:
        self.name = name
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._command = command
        self._log = log
        self._environment = environment
        self._process: Process | None = None

    @property
    def is_up(self) -> bool:
        """Whether it was started and not ended since."""
        return self._process is not None

    async def start(self, ready: str) -> None:
        """Start it, and wait until it answers at `ready` with 200; one that gives up is started anew."""
        async with httpx.AsyncClient(trust_env=False) as client:
            with anyio.move_on_after(START_S):
                while True:
                    if self._process is None or self._process.returncode is not None:
                        await self._launch()
                    with suppress(httpx.TransportError):
                        if (await client.get(f"{self.url}{ready}")).status_code == 200:
                            return
                    await anyio.sleep(0.05)
        raise RuntimeError(f"{self.name} did not start; see {self._log}")

    async def _launch(self) -> None:
        with self._log.open("ab") as log:
            self._process = await anyio.open_process(
                self._command, stdout=log, stderr=log, stdin=None, cwd=ROOT, env=self._environment
            )

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self._process is not None:
            self._process.send_signal(number)

    async def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it, and bury it."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.send_signal(number)
                process.send_signal(signal.SIGCONT)
            with anyio.move_on_after(15, shield=True) as patience:
                await process.wait()
            if patience.cancelled_caught:
                process.kill()
            await process.aclose()


@dataclass(frozen=True)
class RealDaemon:
    """A real daemon in the twin's place, whose provider `scripted` is the demo agent."""

    command: str
    """Shell command that starts it, and is replaced by it (`exec`)."""
    port: int
    asked: Path
    """Folder of files with all that its agents were sent, as JSON-RPC lines."""


class World:
    """Two replicas, one database, one daemon."""

    def __init__(self, folder: Path, database_url: str, daemon: RealDaemon | None) -> None:
        self.folder = folder
        self.database_url = database_url
        self.work = folder / "work"
        self.work.mkdir()
        self.real = daemon
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ}
        if daemon is None:
            port = free_port()
            command = [sys.executable, str(TWIN), "--port", str(port), "--home", str(folder / "daemon")]
        else:
            port, command = daemon.port, ["bash", "-c", daemon.command]
        self.daemon = Program("daemon", command, port, folder / "daemon.log", **kept)
        self.replicas = []
        for name in ("one", "two"):
            port = free_port()
            (folder / name).mkdir()
            self.replicas.append(
                Program(
                    name,
                    [sys.executable, "-m", "app", "serve"],
                    port,
                    folder / f"{name}.log",
                    **kept,
                    PYTHONPATH=str(ROOT),
                    ALAMEDA_PORT=str(port),
                    ALAMEDA_DATA_DIR=str(folder / name),
                    ALAMEDA_ALLOWED_ROOTS=str(self.work),
                    ALAMEDA_API_KEY=KEY,
                    ALAMEDA_TIMING__HEALTH_S="1",
                    ALAMEDA_TIMING__LEASE_S=f"{LEASE_S:g}",
                    DATABASE_URL=database_url,
                    PASEO_URL=self.daemon.url,
                )
            )

    async def start(self) -> None:
        """Start everything, one after the other: the first replica makes the schema."""
        await self.daemon.start("/api/health")
        for replica in self.replicas:
            await replica.start("/readyz")

    async def heal(self) -> None:
        """Everything runs again."""
        if not self.daemon.is_up:
            await self.daemon.start("/api/health")
        for replica in self.replicas:
            replica.send(signal.SIGCONT)
            if not replica.is_up:
                await replica.start("/readyz")

    async def stop(self) -> None:
        """End what still runs."""
        for program in (*self.replicas, self.daemon):
            await program.end()

    async def tell_daemon(self, command: str, **arguments: Any) -> None:
        """Have the daemon misbehave; one that is down does not hear it."""
        async with httpx.AsyncClient(trust_env=False) as client:
            with suppress(httpx.TransportError):
                await client.get(f"{self.daemon.url}/twin/{command}", params={"q": json.dumps(arguments)})

    async def backends(self) -> list[int]:
        """The pids of the database's back ends that serve the replicas."""
        connection = await asyncpg.connect(self.database_url)
        try:
            rows = await connection.fetch(
                "SELECT pid FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
            return [row["pid"] for row in rows]
        finally:
            await connection.close()

    def prompts(self) -> list[str]:
        """What the daemon's agents were asked, a line each."""
        if self.real is None:
            files, mark = (self.folder / "daemon" / "conversations").glob("*.jsonl"), '"user_message"'
        else:
            files, mark = self.real.asked.glob("*"), '"session/prompt"'
        return [line for file in files for line in file.read_text().splitlines() if mark in line]


@asynccontextmanager
async def open_world(folder: Path, daemon: RealDaemon | None = None) -> AsyncIterator[World]:
    """Everything, running; ended with the block."""
    folder.chmod(0o711)  # noqa: ASYNC240 - before anything runs
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(embedded_postgres(folder / "pg"))
        world = World(folder, outside_url(address_of(server), folder / "pg"), daemon)
        try:
            await world.start()
            yield world
        finally:
            with anyio.CancelScope(shield=True):
                await world.stop()
