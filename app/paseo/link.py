"""The one link of a client: dialled, watched, and dialled again."""

import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeAlias

import anyio
import structlog
from anyio.abc import TaskStatus

from app.paseo.address import Address, check_password
from app.paseo.connection import PING, Connection, Ended
from app.paseo.dialing import Options, dial, refusal
from app.paseo.errors import TOO_BIG, AccessRefused, LinkLost, NotSent, PaseoError, Timeout
from app.paseo.frames import ServerInfo

QUICK_REDIALS = 16
"""Links in a row that may end by a frame of the daemon that is too big before the pauses grow: a reader of a
timeline halves its pages that way, and has halved them by then."""

LinkStatus: TypeAlias = Literal["dialing", "up", "waiting", "refused", "closed"]
"""`waiting` for the next dial after a failure; `refused`: an operator has to change something."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkState:
    """How the link is; `error` is why it is not up, or why it last was not. `since` is monotonic time."""

    status: LinkStatus
    since: float
    error: str | None = None
    server: ServerInfo | None = None
    dials: int = 0

    @property
    def is_up(self) -> bool:
        """Whether requests can be written."""
        return self.status == "up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Who is told. Only `on_up` may wait; if it fails, the connection is given up."""

    on_frame: Callable[[bytes], None]
    on_greeted: Callable[[], Awaitable[None]]
    """The daemon greeted us, and requests can be written; nobody was told yet."""
    on_up: Callable[[ServerInfo], None]
    on_down: Callable[[LinkLost], None]


class Link:
    """The link to one daemon, under one client id, which the daemon keeps for 90 s without a socket."""

    def __init__(
        self, address: Address, password: str | None, client_id: str, options: Options, ends: Ends
    ) -> None:
        if password:
            check_password(password)
        self.state = LinkState(status="dialing", since=time.monotonic())
        self._address = address
        self._password = password
        self._client_id = client_id
        self._options = options
        self._ends = ends
        self._connection: Connection | None = None
        self._changed = anyio.Event()
        self._told_to_dial = anyio.Event()
        self._pause = options.backoff_first
        self._oversized = 0

    async def serve(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep the link until cancelled. The old socket is always gone before the next dial."""
        task_status.started()
        try:
            while True:
                self._told_to_dial = anyio.Event()
                pause = await self._live()
                with anyio.move_on_after(pause):
                    await self._told_to_dial.wait()
        finally:
            self._tell("closed", "the client was closed")

    def redial(self) -> None:
        """Dial at once, should the link be waiting; for an operator who has changed something."""
        self._told_to_dial.set()

    async def wait_up(self, timeout: float) -> None:
        """Wait until requests can be written.

        Raises:
            NotSent: not within `timeout` seconds, or never again.
        """
        with anyio.move_on_after(timeout):
            while not self.state.is_up and self.state.status != "closed":
                await self._changed.wait()
        if not self.state.is_up:
            raise NotSent(f"no link to the daemon: {self.state.error or 'dialing'}")

    async def write(
        self, data: bytes, on_write: Callable[[], None] = lambda: None, *, text: bool = True
    ) -> None:
        """Write a frame.

        Raises:
            NotSent, LinkLost: as `errors` has them.
        """
        if self._connection is None:
            raise NotSent(f"no link to the daemon: {self.state.error or 'dialing'}")
        await self._connection.send(data, text=text, before_write=on_write)

    async def notify(self, data: bytes) -> None:
        """Write a frame that has no answer; as `write`, and Timeout if the daemon does not read."""
        with anyio.move_on_after(self._options.send_timeout):
            return await self.write(data)
        raise Timeout("the daemon does not read")

    def on_greeting(self, server: ServerInfo) -> None:
        """The daemon greeted again; it does so when its features change."""
        if self.state.is_up:
            self._tell("up", server=server)

    async def _live(self) -> float:
        """One connection, from its dial to its end; returns the seconds to wait then."""
        self._tell("dialing", self.state.error)
        try:
            connection = await dial(self._address, self._password, self._client_id, self._options)
        except PaseoError as error:
            return self._fail(error)
        up_at = time.monotonic()
        self._connection = connection
        ended = Ended(code=1006, reason="the link was given up", by_us=True)
        try:
            ended = await self._use(connection)
        except Exception:  # a fault of ours costs one connection, not the link
            log.exception("paseo_link_crashed")
        finally:
            self._connection = None
            connection.abort()
            lost = LinkLost(str(ended), code=ended.code, by_us=ended.by_us)
            was_up = self.state.is_up
            self._tell("waiting", str(ended))
            self._ends.on_down(lost)
        if was_up:
            log.warning("paseo_link_lost", code=ended.code, by_us=ended.by_us, reason=ended.reason)
        if time.monotonic() - up_at >= self._options.stable_after:
            self._pause, self._oversized = self._options.backoff_first, 0
        if ended.by_us and ended.code == TOO_BIG and self._oversized < QUICK_REDIALS:
            self._oversized += 1
            return 0.0
        return self._fail(refusal(ended))

    async def _use(self, connection: Connection) -> Ended:
        async with anyio.create_task_group() as tasks:
            try:
                tasks.start_soon(self._greet, connection)
                tasks.start_soon(self._beat, connection)
                ended = await connection.read(self._ends.on_frame)
            except anyio.get_cancelled_exc_class():
                await connection.close()
                raise
            tasks.cancel_scope.cancel()
        return ended

    async def _greet(self, connection: Connection) -> None:
        try:
            await self._ends.on_greeted()
        except PaseoError as error:
            log.warning("paseo_greeting_failed", error=str(error))
            connection.abort()
            return
        self._tell("up", server=connection.server)
        log.info("paseo_link_up", server_id=connection.server.server_id, version=connection.server.version)
        self._ends.on_up(connection.server)

    async def _beat(self, connection: Connection) -> None:
        """Ask for a sign of life now and then; any byte is one. The daemon itself never asks."""
        while True:
            await anyio.sleep(self._options.ping_interval)
            asked, deadline = time.monotonic(), anyio.current_time() + self._options.ping_timeout
            with anyio.CancelScope(deadline=deadline), suppress(NotSent, LinkLost):
                await connection.send(PING, before_write=lambda: None)
            await anyio.sleep_until(deadline)
            if connection.heard_at < asked:
                log.warning("paseo_link_silent", seconds=round(time.monotonic() - connection.heard_at, 1))
                connection.abort()
                return

    def _fail(self, error: PaseoError) -> float:
        if isinstance(error, AccessRefused):
            self._tell("refused", str(error))
            log.error("paseo_access_refused", error=str(error))
            return self._options.refused_pause
        self._tell("waiting", str(error))
        pause = random.uniform(self._pause / 2, self._pause)
        log.info("paseo_redial", seconds=round(pause, 2), error=str(error))
        self._pause = min(self._pause * 2, self._options.backoff_max)
        return pause

    def _tell(self, status: LinkStatus, error: str | None = None, server: ServerInfo | None = None) -> None:
        dials = self.state.dials + (status == "dialing")
        since = self.state.since if status == self.state.status else time.monotonic()
        self.state = LinkState(status=status, since=since, error=error, server=server, dials=dials)
        self._changed.set()
        self._changed = anyio.Event()
