"""A client of one Paseo daemon: one link, everything over it.

A process has one client with one id, whatever it does: every socket with the same id gets every answer, and
the daemon keeps an id's session for a while after its socket is gone.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from uuid import uuid4

import anyio
from anyio.abc import TaskStatus

from app.paseo.address import Address
from app.paseo.agents import Agents
from app.paseo.dialing import Options
from app.paseo.errors import LinkLost
from app.paseo.frames import ServerInfo
from app.paseo.link import Ends, Link, LinkState
from app.paseo.requests import Requests
from app.paseo.router import Router
from app.paseo.snapshots import Done, Provider, Providers
from app.paseo.subscriptions import (
    MAX_BYTES,
    MAX_NOTES,
    LinkDown,
    LinkUp,
    Mailbox,
    Subscription,
    Subscriptions,
)
from app.paseo.terminals import Terminals
from app.paseo.timeline import Timeline

SETTLE = 30.0
"""Seconds that `providers` waits for those that the daemon is still looking at."""


class PaseoClient(Agents):
    """A client; `serve` keeps its link, and its methods raise what `errors` has.

    No method waits for the link: without one they raise `NotSent` at once.
    """

    def __init__(
        self,
        address: Address,
        password: str | None = None,
        *,
        client_id: str | None = None,
        options: Options | None = None,
    ) -> None:
        self.client_id = client_id or f"cid_{uuid4().hex}"
        ends = Ends(
            on_frame=lambda data: self._router.on_frame(data),
            on_greeted=self._watch,
            on_up=self._on_up,
            on_down=self._on_down,
        )
        self._link = Link(address, password, self.client_id, options or Options(), ends)
        super().__init__(Requests(self._link.write))
        self._subscriptions = Subscriptions()
        self.terminals = Terminals(self._requests, self._link)
        self.timeline = Timeline(self._requests, self._link)
        self._router = Router(self._requests, self._subscriptions, self.terminals, self._link.on_greeting)

    async def serve(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep the link until cancelled; then every subscription comes to its end."""
        try:
            await self._link.serve(task_status=task_status)
        finally:
            self._subscriptions.close()
            self.terminals.on_down(None)

    @property
    def link(self) -> LinkState:
        """How the link is now."""
        return self._link.state

    async def wait_up(self, timeout: float) -> None:
        """Wait for the link; raises NotSent after `timeout` seconds without."""
        await self._link.wait_up(timeout)

    def redial(self) -> None:
        """Dial now instead of later: somebody has cured what kept us out."""
        self._link.redial()

    def subscribe(
        self, agent_id: str, *, max_notes: int = MAX_NOTES, max_bytes: int = MAX_BYTES
    ) -> AbstractContextManager[Subscription]:
        """Everything that is told about one agent, and the link's ups and downs, in order, from now on.

        Whether the link is up to begin with, `link` tells.
        """
        return self._subscriptions.open(agent_id, max_notes, max_bytes)

    async def ping(self) -> None:
        """Ask for a sign of life of our session on the daemon."""
        await self.request("ping", {}, Done)

    async def providers(self, *, settle: float = SETTLE, only: str | None = None) -> list[Provider]:
        """What the daemon can run. Waits `settle` seconds for those (or the `only` one) still `loading`."""
        box: Mailbox[Providers] = Mailbox()
        self._router.providers.append(box)  # listen, then ask: nothing falls between
        try:
            answer = await self.request("get_providers_snapshot_request", {}, Providers)
            with anyio.move_on_after(settle):
                while any(e.status == "loading" and only in (None, e.provider) for e in answer.entries):
                    answer = await box.receive()
        finally:
            self._router.providers.remove(box)
        return answer.entries

    async def _watch(self) -> None:
        """Have the daemon tell changes of agents, archived ones too. Its session has one place for that."""
        fields = {"filter": {"includeArchived": True}, "page": {"limit": 1}, "subscribe": {}}
        await self.request("fetch_agents_request", fields, Done)

    def _on_up(self, server: ServerInfo) -> None:
        self._subscriptions.tell_all(LinkUp(server=server))

    def _on_down(self, lost: LinkLost) -> None:
        self._requests.on_link_lost(lost)
        self.terminals.on_down(lost)
        self._subscriptions.tell_all(LinkDown(lost=lost))


@asynccontextmanager
async def open_client(
    address: Address,
    password: str | None = None,
    *,
    client_id: str | None = None,
    options: Options | None = None,
) -> AsyncIterator[PaseoClient]:
    """A client that is served until the block ends; it may not be up yet."""
    client = PaseoClient(address, password, client_id=client_id, options=options)
    async with anyio.create_task_group() as tasks:
        await tasks.start(client.serve)
        try:
            yield client
        finally:
            tasks.cancel_scope.cancel()
