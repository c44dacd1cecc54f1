"""The way to a database, which a test can cut and mend."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.abc import SocketAttribute, SocketStream

from app.store.database import Address
from tests.house import url_of


class Cable:
    """Passes connections on to PostgreSQL's socket. Cut, it drops all and takes no new one."""

    def __init__(self, address: Address) -> None:
        arguments = address.arguments
        self._socket = f"{arguments['host']}/.s.PGSQL.{arguments['port']}"
        self._address = address
        self._scopes: set[anyio.CancelScope] = set()
        self.port = 0
        """Where it listens."""
        self.is_cut = False

    @property
    def url(self) -> str:
        """The database behind the cable. Without TLS, as PostgreSQL's own socket has none either."""
        where = Address(arguments={**self._address.arguments, "host": "127.0.0.1", "port": self.port})
        return f"{url_of(where)}&sslmode=disable"

    def cut(self) -> None:
        """The database is out of reach from now on."""
        self.is_cut = True
        for scope in self._scopes:
            scope.cancel()

    def mend(self) -> None:
        """It can be reached again."""
        self.is_cut = False

    async def pass_on(self, client: SocketStream) -> None:
        """Serve one connection."""
        async with client:
            if self.is_cut:
                return
            with anyio.CancelScope() as scope:
                self._scopes.add(scope)
                # Not anyio's stream: cancelled between two readinesses, it sets a future's result twice.
                reader, writer = await asyncio.open_unix_connection(self._socket)
                try:
                    await _pass_both_ways(client, reader, writer)
                finally:
                    writer.transport.abort()
            self._scopes.discard(scope)


async def _pass_both_ways(
    client: SocketStream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Pass bytes on until either side ends."""
    async with anyio.create_task_group() as both:

        async def up() -> None:
            with suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
                async for data in client:
                    writer.write(data)
                    await writer.drain()
            both.cancel_scope.cancel()

        both.start_soon(up)
        with suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            while data := await reader.read(65536):
                await client.send(data)
        both.cancel_scope.cancel()


@asynccontextmanager
async def cable_to(address: Address) -> AsyncIterator[Cable]:
    """A cable to a database."""
    cable = Cable(address)
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        cable.port = listener.extra(SocketAttribute.local_port)
        tasks.start_soon(listener.serve, cable.pass_on)
        yield cable
        tasks.cancel_scope.cancel()
