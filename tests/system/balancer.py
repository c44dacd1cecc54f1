"""A load balancer as any: takes turns, looks at `/readyz`, and takes out whoever is not ready or refuses."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count

import anyio
import httpx
from anyio.abc import ByteReceiveStream, ByteSendStream, SocketAttribute, SocketStream

CHECK_S = 0.25
"""Seconds between two looks at each replica."""


@dataclass(eq=False)
class Upstream:
    """One replica, as the balancer sees it."""

    port: int
    is_in: bool = False
    looks: list[int | None] = field(default_factory=list)
    """The status of each look that differed from the last; null: it refused."""
    changed: anyio.Event = field(default_factory=anyio.Event)

    def seen(self, status: int | None) -> None:
        self.is_in = status == 200
        if not self.looks or self.looks[-1] != status:
            self.looks.append(status)
            self.changed.set()
            self.changed = anyio.Event()

    async def until(self, status: int | None) -> None:
        """Return once the last look found this."""
        while not self.looks or self.looks[-1] != status:
            await self.changed.wait()


class Balancer:
    """Passes connections on, one to a replica each; only one that was refused is tried elsewhere."""

    def __init__(self, ports: list[int]) -> None:
        self.upstreams = [Upstream(port) for port in ports]
        self.unserved = 0
        """Connections for which no replica was in."""
        self.url = ""
        self._turns = count()

    async def look(self, upstream: Upstream) -> None:
        """Look at one replica, again and again."""
        async with httpx.AsyncClient(trust_env=False, timeout=2) as client:
            while True:
                try:
                    upstream.seen((await client.get(f"http://127.0.0.1:{upstream.port}/readyz")).status_code)
                except httpx.TransportError:
                    upstream.seen(None)
                await anyio.sleep(CHECK_S)

    async def pass_on(self, client: SocketStream) -> None:
        """Serve one client."""
        async with client:
            upstream = await self._connect()
            if upstream is None:
                self.unserved += 1
                return
            async with upstream, anyio.create_task_group() as both:

                async def up() -> None:
                    await _pump(client, upstream)
                    with suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
                        await upstream.send_eof()

                both.start_soon(up)
                await _pump(upstream, client)
                both.cancel_scope.cancel()

    async def _connect(self) -> SocketStream | None:
        start = next(self._turns)
        for n in range(len(self.upstreams)):
            upstream = self.upstreams[(start + n) % len(self.upstreams)]
            if upstream.is_in:
                try:
                    return await anyio.connect_tcp("127.0.0.1", upstream.port)
                except OSError:
                    upstream.seen(None)
        return None


async def _pump(source: ByteReceiveStream, sink: ByteSendStream) -> None:
    with suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
        async for data in source:
            await sink.send(data)


@asynccontextmanager
async def balancing(ports: list[int]) -> AsyncIterator[Balancer]:
    """A balancer in front of the replicas on these ports."""
    balancer = Balancer(ports)
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        port = listener.extra(SocketAttribute.local_port)
        balancer.url = f"http://127.0.0.1:{port}"
        for upstream in balancer.upstreams:
            tasks.start_soon(balancer.look, upstream)
        tasks.start_soon(listener.serve, balancer.pass_on)
        yield balancer
        tasks.cancel_scope.cancel()
