"""Terminals: made within a session, typed into, captured, ended with it."""

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import anyio.to_thread
import structlog

from app.backends.base import (
    Backend,
    BackendError,
    BackendUnavailable,
    OutcomeUnknown,
)
from app.backends.registry import Registry
from app.backends.terminals import OffersTerminals, TerminalGone, TerminalServer
from app.domain.errors import (
    BackendFailed,
    BackendIsDown,
    Draining,
    SessionIsClosed,
    SessionNotFound,
    TerminalNotFound,
    TooManyTerminals,
    UnsupportedByBackend,
)
from app.domain.ids import Owner, SessionId, TerminalId, new_terminal_id
from app.domain.sessions import Session
from app.domain.terminals import Terminal, TerminalSpec, TerminalStatus
from app.engine.lifecycle import Lifecycle
from app.engine.paths import check_requested
from app.engine.watches import Watches
from app.store import sessions, terminals
from app.store.database import Database
from app.store.paging import Page

log = structlog.get_logger(__name__)

DISK_S = 5.0
"""Seconds to look at a session's directory."""
ENDED = "the terminal has ended; what is kept of its output can only be streamed and searched"
"""Why one that is there cannot be used."""
UNDO_S = 5.0
"""Seconds to end a terminal that came too late."""


class Servers:
    """Who runs terminals, as far as this process reaches them."""

    def __init__(self, registry: Registry, local: TerminalServer | None) -> None:
        """`local` serves sessions whose backend has no terminals and works on this machine's disk."""
        self._registry = registry
        self._local = local

    def of(self, backend: Backend) -> TerminalServer | None:
        """Who makes terminals for this backend's sessions; null if nobody does."""
        if isinstance(backend, OffersTerminals):
            return backend.terminals
        return self._local if backend.place.filesystem == "shared" else None

    def all(self) -> list[TerminalServer]:
        """Everybody who runs terminals."""
        own = [backend.terminals for backend in self._registry if isinstance(backend, OffersTerminals)]
        return [*own, *([self._local] if self._local is not None else [])]

    def at(self, terminal: Terminal) -> TerminalServer:
        """Who runs this terminal.

        Raises:
            BackendIsDown: it cannot be reached from here.
        """
        for server in self.all():
            if (server.kind, server.place) == (terminal.kind, terminal.place):
                return server
        if terminal.kind == "tmux":
            raise BackendIsDown(detail="the terminal is on another machine; ask the replica there")
        raise BackendIsDown(detail=f"no backend {terminal.place!r} is configured here")


class Terminals:
    """The use-cases on terminals, within the caller's owner."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        lifecycle: Lifecycle,
        servers: Servers,
        watches: Watches,
        *,
        per_session: int,
    ) -> None:
        self.servers = servers
        self.watches = watches
        self._database = database
        self._registry = registry
        self._lifecycle = lifecycle
        self._per_session = per_session
        self.looks = anyio.CapacityLimiter(4)
        """Looks at disks, each of which may hang for as long as its disk does."""
        watches.on_end = self.ended
        database.bell.watch_keys(watches.wake_all)

    async def get(self, owner: Owner, terminal_id: TerminalId) -> Terminal:
        """The terminal, open or closed.

        Raises:
            TerminalNotFound: it is missing or somebody else's.
        """
        async with self._database.begin() as db:
            return await terminals.get(db, owner, terminal_id)

    async def list_terminals(
        self,
        owner: Owner,
        session_id: SessionId,
        *,
        status: TerminalStatus | None,
        limit: int,
        cursor: str | None,
    ) -> Page[Terminal]:
        """A page of those that were made through us for the session, newest first."""
        async with self._database.begin() as db:
            session = await sessions.get(db, owner, session_id)
            return await terminals.list_terminals(db, session.key, status=status, limit=limit, cursor=cursor)

    async def create(self, owner: Owner, session_id: SessionId, spec: TerminalSpec) -> Terminal:
        """Make a terminal in the session's directory.

        Raises:
            SessionNotFound, SessionIsClosed, PathNotAllowed: not there.
            TooManyTerminals, Draining: not now.
            UnsupportedByBackend: nobody runs terminals for this session.
            BackendFailed, BackendIsDown: whoever does has not made it.
        """
        if self._lifecycle.draining:
            raise Draining
        terminal_id = new_terminal_id()
        async with self._database.begin() as db:
            found = await sessions.get(db, owner, session_id)
        if found.status != "active":
            raise SessionIsClosed
        server, cwd = await self._where(found)
        async with self._database.begin() as db:
            session = await sessions.lock_owned(db, owner, session_id)
            if (session.key, session.cwd) != (found.key, found.cwd):
                raise SessionNotFound  # the one that was meant is gone, and another has its name
            if session.status != "active":
                raise SessionIsClosed
            if await terminals.count_open(db, session.key) >= self._per_session:
                raise TooManyTerminals
            await terminals.add(
                db,
                id=terminal_id,
                session=session.key,
                kind=server.kind,
                place=server.place,
                name=spec.name,
                command=spec.command,
                args=list(spec.args),
                cwd=cwd,
                rows=spec.rows,
                cols=spec.cols,
            )
        handle: str | None = None
        try:
            with told():
                handle = await server.create(terminal_id, cwd, spec)
                await self._begin(server, terminal_id, handle, cwd, spec)
        except (BackendIsDown, BackendFailed, TerminalNotFound) as error:
            if not isinstance(error.__cause__, OutcomeUnknown):  # else the sweeper looks for it
                await self._undo(server, terminal_id, handle)
            if isinstance(error, TerminalNotFound):
                raise BackendFailed(detail="the terminal ended before its program began") from None
            raise
        await self._opened(session, server, terminal_id, handle)
        return await self.get(owner, terminal_id)

    async def _undo(self, server: TerminalServer, terminal_id: TerminalId, handle: str | None) -> None:
        """Leave nothing of a terminal that could not be made; what cannot be ended now the sweeper ends."""
        if handle is not None:
            try:
                with anyio.fail_after(UNDO_S, shield=True):
                    await server.kill(handle)
            except (BackendError, TimeoutError):
                return
        async with self._database.begin() as db:
            await terminals.drop(db, terminal_id)

    async def _where(self, session: Session) -> tuple[TerminalServer, str]:
        """Who would run a terminal of the session, and where. Looks at the disk, and may wait."""
        backend = self._registry.get(session.backend)
        server = self.servers.of(backend) if backend is not None else None
        if backend is None or server is None:
            raise UnsupportedByBackend(detail=f"there are no terminals for sessions of {session.backend}")
        with anyio.move_on_after(DISK_S):
            cwd = await anyio.to_thread.run_sync(
                check_requested, session.cwd, backend.place, limiter=self.looks, abandon_on_cancel=True
            )
            return server, cwd
        raise BackendIsDown(detail="the disk of the session's directory does not answer")

    async def _begin(
        self, server: TerminalServer, terminal_id: TerminalId, handle: str, cwd: str, spec: TerminalSpec
    ) -> None:
        """Follow the terminal, then start its program, so that nothing of it is missed."""
        watch = self.watches.start_new(terminal_id, handle, server)
        if watch is None:  # followed when somebody asks for it
            await server.start(handle, cwd, spec)
            return
        with watch.held():
            await watch.attached()
            if not watch.is_attached:
                watch.ring.miss_beginning()
            await server.start(handle, cwd, spec)

    async def _opened(
        self, session: Session, server: TerminalServer, terminal_id: TerminalId, handle: str
    ) -> None:
        async with self._database.begin() as db:
            now = await sessions.lock(db, session.key)
            if now is not None and now.status == "active":
                await terminals.opened(db, now, terminal_id, handle)
            else:
                now = None
        if now is None:  # the session was closed meanwhile
            await self._undo(server, terminal_id, handle)
            raise SessionIsClosed
        log.info("terminal_opened", terminal_id=terminal_id, kind=server.kind)
        watch = self.watches.get(terminal_id)
        if watch is not None and watch.ended:  # faster than we were
            await self.ended(terminal_id)

    async def ended(self, terminal_id: TerminalId) -> None:
        """Nothing of the terminal runs any more: say so in the log, once."""

        async def closed() -> None:
            async with self._database.begin() as db:
                key = await terminals.session_of(db, terminal_id)
                session = await sessions.lock(db, key) if key is not None else None
                if session is not None:
                    await terminals.close(db, session, terminal_id)
                await terminals.gone(db, terminal_id)

        await self._database.retrying(closed)

    async def kill(self, owner: Owner, terminal_id: TerminalId) -> None:
        """End the terminal with what runs in it; one that has ended is left as it is."""
        terminal = await self.get(owner, terminal_id)
        if terminal.status == "closed":
            return
        server = self.servers.at(terminal)
        with told():
            await server.kill(terminal.handle)
        await self.ended(terminal_id)

    async def write(self, owner: Owner, terminal_id: TerminalId, data: str) -> None:
        """Type into it."""
        terminal, server = await self.usable(owner, terminal_id)
        with told():
            await server.write(terminal.handle, data)

    async def resize(self, owner: Owner, terminal_id: TerminalId, rows: int, cols: int) -> Terminal:
        """Change its size."""
        terminal, server = await self.usable(owner, terminal_id)
        with told():
            await server.resize(terminal.handle, rows, cols)
        async with self._database.begin() as db:
            await terminals.resize(db, terminal_id, rows, cols)
            return await terminals.get(db, owner, terminal_id)

    async def usable(self, owner: Owner, terminal_id: TerminalId) -> tuple[Terminal, TerminalServer]:
        """An open terminal and who runs it.

        Raises:
            TerminalNotFound: it is missing, somebody else's, or has ended.
            BackendIsDown: it cannot be reached from here.
        """
        terminal = await self.get(owner, terminal_id)
        if terminal.status == "closed":
            raise TerminalNotFound(detail=ENDED)
        return terminal, self.servers.at(terminal)


@contextmanager
def told() -> Iterator[None]:
    """Say what went wrong at whoever runs terminals in the domain's words."""
    try:
        yield
    except TerminalGone as error:
        raise TerminalNotFound(detail=ENDED) from error
    except (BackendUnavailable, TimeoutError) as error:
        raise BackendIsDown(detail=str(error)) from error
    except BackendError as error:
        raise BackendFailed(detail=str(error)) from error
