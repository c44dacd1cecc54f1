"""The one module that knows every room: builds them, joins them, owns their lifetimes."""

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeAlias

import anyio
import structlog
from anyio.abc import TaskGroup
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from uuid_utils.compat import uuid7

from app.api import collisions, operations, permissions, sessions, terminals, turns
from app.api import tasks as task_routes
from app.api.edge import EdgeMiddleware, cors_options
from app.api.openapi import docs_router, install
from app.api.problems import install_handlers
from app.api.rooms import Rooms
from app.backends.acp import AcpBackend
from app.backends.acp_process import child_environment
from app.backends.base import Backend, Place
from app.backends.paseo import PaseoBackend
from app.backends.paseo_cli import PaseoCliBackend
from app.backends.registry import Registry
from app.backends.tmux import TmuxTerminals
from app.console import pages
from app.demo import COMMAND_LINE
from app.engine.collisions import Collisions
from app.engine.diffs import Diffs
from app.engine.ensuring import Ensuring
from app.engine.feed import Feed
from app.engine.health import Healths
from app.engine.hosts import Hosts
from app.engine.keys import Keys
from app.engine.lifecycle import Lifecycle
from app.engine.metrics import Metrics
from app.engine.paths import lies_below_any
from app.engine.permissions import Permissions
from app.engine.sessions import Sessions
from app.engine.streams import Streams
from app.engine.tasks import Tasks
from app.engine.terminal_captures import TerminalCaptures
from app.engine.terminal_places import Places
from app.engine.terminal_search import TerminalSearch
from app.engine.terminal_streams import TerminalStreams
from app.engine.terminal_sweep import Sweeper
from app.engine.terminals import Servers, Terminals
from app.engine.turns import Turns
from app.engine.watches import Watches
from app.scratch import sweep
from app.settings import KEY_PATTERN, BackendSettings, Settings, SettingsError, service_version
from app.store.bell import Bell
from app.store.database import Address, Database
from app.store.embedded import EmbeddedPostgres, embedded_postgres
from app.store.eventlog import EventLog
from app.store.leases import Leases
from app.store.migrations import migrate

log = structlog.get_logger(__name__)

KEY_FILE = "api-key"
"""File in the data directory that holds the first key."""

BuildRegistry: TypeAlias = Callable[[Settings, TaskGroup], Registry]
"""Makes the backends; their tasks run in the house's group."""


def create_app(settings: Settings, build: BuildRegistry | None = None) -> FastAPI:
    """The application; its lifespan opens the house, whose use-cases are `app.state.rooms`.

    `build` makes other backends than the settings ask for.
    """

    @asynccontextmanager
    async def lifespan(application: FastAPI) -> AsyncIterator[None]:
        async with open_house(settings, build) as house:
            application.state.rooms = house.rooms
            application.state.house = house
            yield

    has_docs = settings.is_loopback or settings.public_docs
    application = FastAPI(
        title="Alameda",
        version=service_version(),
        description="Coding agents behind plain HTTP: ensure a session, prompt it, follow it, close it.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if has_docs else None,
    )
    install_handlers(application)
    for room in (sessions, turns, task_routes, permissions, terminals, collisions, operations):
        application.include_router(room.router)
    application.include_router(pages.router())
    if has_docs:
        application.include_router(docs_router())
    install(application)
    if settings.cors_origins:
        application.add_middleware(CORSMiddleware, **cors_options(settings.cors_origins))
    application.add_middleware(
        EdgeMiddleware,
        allowed_hosts=settings.hosts,
        allowed_origins=settings.cors_origins,
        header_bytes=settings.limits.header_bytes,
        body_bytes=settings.limits.body_bytes,
        prompt_body_bytes=settings.limits.prompt_body_bytes,
        json_depth=settings.limits.json_depth,
        body_read_s=settings.timing.body_read_s,
    )
    return application


class House:
    """The running service, as the process that owns its signals needs it."""

    def __init__(
        self, rooms: Rooms, hosts: Hosts, tasks: TaskGroup, key_file: Path | None, drain_s: float
    ) -> None:
        self.rooms = rooms
        self.key_file = key_file
        """Where the first key lies; null if there is none to be found on this disk."""
        self.postgres: EmbeddedPostgres | None = None
        self._hosts = hosts
        self._tasks = tasks
        self._drain_s = drain_s
        self._left = anyio.Event()
        rooms.lifecycle.on_leave.append(self._begin_to_leave)

    def _begin_to_leave(self) -> None:
        self._tasks.start_soon(self._leave, name="leave")

    async def _leave(self) -> None:
        try:
            await self._hosts.leave(self._drain_s)
        finally:
            self._left.set()

    def announce(self, url: str) -> None:
        """Tell other commands on this machine where we answer."""
        if self.postgres is not None:
            self.postgres.announce(url)

    async def leave(self) -> None:
        """Take no more work, and wait until every session was handed back."""
        self.rooms.lifecycle.drain()
        await self._left.wait()


@asynccontextmanager
async def open_house(settings: Settings, build: BuildRegistry | None = None) -> AsyncIterator[House]:
    """Every room, joined; what is entered last leaves first."""
    if left := await anyio.to_thread.run_sync(sweep):
        log.info("temporary_folders_removed", count=left)
    async with AsyncExitStack() as stack:
        postgres: EmbeddedPostgres | None = None
        if settings.database_url is None:
            postgres = await stack.enter_async_context(
                embedded_postgres(settings.data_dir, run_as=settings.database_user)
            )
            address = direct = Address(
                arguments={
                    "host": postgres.host,
                    "port": postgres.port,
                    "user": postgres.user,
                    "password": postgres.password,
                    "database": postgres.database,
                }
            )
        else:
            url = settings.database_url.get_secret_value()
            own = settings.direct_database_url
            direct = Address(arguments={"dsn": own.get_secret_value() if own else url})
            address = Address(arguments={"dsn": url}, pooled=own is not None)
        revision = await migrate(direct)
        log.info("database_ready", embedded=postgres is not None, revision=revision)
        bell = Bell()
        database = Database(address, direct, bell, pool_size=settings.database_pool)
        stack.push_async_callback(database.aclose)
        house = await stack.enter_async_context(
            _furnished(settings, database, build or build_registry, alone=postgres is not None)
        )
        house.postgres = postgres
        yield house


@asynccontextmanager
async def _furnished(
    settings: Settings, database: Database, build: BuildRegistry, *, alone: bool
) -> AsyncIterator[House]:
    replica = f"{socket.gethostname()}-{os.getpid()}-{uuid7().hex[-8:]}"
    async with anyio.create_task_group() as tasks:
        events = EventLog(database)
        registry = build(settings, tasks)
        lifecycle = Lifecycle()
        leases = Leases(
            database, replica, registry.names(), registry.mortal(), lease_s=settings.timing.lease_s
        )
        collisions_ = Collisions(
            database,
            idle_s=settings.timing.collision_idle_s,
            may_read=partial(lies_below_any, [backend.place for backend in registry]),
        )
        hosts = Hosts(
            database,
            events,
            leases,
            registry,
            collisions_,
            alone=alone,
            session_idle_s=settings.timing.session_idle_s,
        )
        healths = Healths(
            database, registry, lifecycle, replica=replica, every_s=settings.timing.health_s, alone=alone
        )
        keys = Keys(
            database,
            auth=settings.auth == "keys",
            failures_per_minute=settings.limits.auth_failures_per_minute,
        )
        feed = Feed(
            database,
            events,
            lifecycle,
            heartbeat_s=settings.timing.heartbeat_s,
            rotate_s=settings.timing.rotate_s,
        )
        streams = Streams(per_key=settings.limits.streams_per_key, total=settings.limits.streams)
        metrics = Metrics(healths, streams, hosts)
        database.logged, events.measure = metrics.count, metrics.measure_append
        sessions_ = Sessions(database, registry, lifecycle)
        tmux = TmuxTerminals(settings.data_dir)
        terminals_ = Terminals(
            database,
            registry,
            lifecycle,
            Servers(registry, tmux if tmux.is_there else None),
            Watches(
                tasks, ring_bytes=settings.limits.terminal_ring_bytes, most=settings.limits.terminal_rings
            ),
            per_session=settings.limits.terminals_per_session,
        )
        places = Places()
        sweeper = Sweeper(database, terminals_)
        sessions_.on_closed.append(sweeper.session_closed)
        turns_ = Turns(
            database,
            registry,
            lifecycle,
            tasks=tasks,
            turns_per_owner=settings.limits.turns_per_owner,
            queue_per_session=settings.limits.queue_per_session,
            prompt_bytes=settings.limits.prompt_bytes,
            attachments=settings.limits.attachments,
        )
        rooms = Rooms(
            sessions=sessions_,
            ensuring=Ensuring(
                database,
                registry,
                lifecycle,
                sessions_,
                ensure_s=settings.timing.ensure_s,
                sessions_per_owner=settings.limits.sessions_per_owner,
            ),
            diffs=Diffs(database, registry),
            turns=turns_,
            tasks=Tasks(database, lifecycle, turns_, prompt_bytes=settings.limits.prompt_bytes),
            permissions=Permissions(database, lifecycle),
            collisions=collisions_,
            terminals=terminals_,
            terminal_captures=TerminalCaptures(terminals_, places),
            terminal_search=TerminalSearch(database, lifecycle, terminals_, places),
            terminal_streams=TerminalStreams(
                terminals_,
                feed,
                lifecycle,
                heartbeat_s=settings.timing.heartbeat_s,
                rotate_s=settings.timing.rotate_s,
            ),
            feed=feed,
            streams=streams,
            keys=keys,
            healths=healths,
            metrics=metrics,
            lifecycle=lifecycle,
            version=service_version(),
            embedded=alone,
            send_timeout_s=settings.timing.send_s,
        )
        key_file = await first_key(settings, keys)
        if alone:
            await keys.nobody_streams()
        for name, run in (
            ("appender", events.run),
            ("bell", database.listen_for_ever),
            ("feed", feed.run),
            ("health", healths.run),
            ("collisions", collisions_.run),
            ("terminals", sweeper.run),
        ):
            tasks.start_soon(run, name=name)
        tasks.start_soon(hosts.run, tasks, name="hosts")
        house = House(rooms, hosts, tasks, key_file, settings.timing.drain_s)
        try:
            yield house
        finally:
            with anyio.move_on_after(settings.timing.drain_s + 4.0, shield=True):
                await house.leave()
                await healths.forget()
            for backend in registry:
                with anyio.move_on_after(3.0, shield=True):
                    await backend.aclose()
            tasks.cancel_scope.cancel()


async def first_key(settings: Settings, keys: Keys) -> Path | None:
    """See that there is a key: the operator's, the data directory's, or a new one that is put there."""
    if settings.auth == "none":
        return None
    if settings.api_key is not None:
        if not await keys.put(settings.api_key.get_secret_value(), "ALAMEDA_API_KEY"):
            raise SettingsError("ALAMEDA_API_KEY: its id belongs to another or a revoked key; choose another")
        return None
    path = settings.data_dir / KEY_FILE
    kept = path.read_text().strip() if path.is_file() else None
    if kept is not None and await keys.knows(kept):
        return path
    if await keys.exist():
        return None
    if kept is not None and KEY_PATTERN.match(kept) and await keys.put(kept, "first key"):
        return path  # the start that wrote the file did not come as far as the database
    text = keys.draw()
    _write_key(path, text)  # first the file: a key that nobody has would lock everybody out
    await keys.put(text, "first key")
    return path


def _write_key(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


def build_registry(settings: Settings, tasks: TaskGroup) -> Registry:
    """Every configured backend, and the two that need no configuration: `paseo` and `demo`."""
    names = {*settings.backends, "paseo", "demo"}
    if settings.default_backend not in names:
        known = ", ".join(sorted(names))
        raise SettingsError(
            f"ALAMEDA_DEFAULT_BACKEND: there is no backend {settings.default_backend!r}: {known}"
        )
    configured = dict(settings.backends)
    counted = set(configured)
    if "paseo" not in configured:
        configured["paseo"] = BackendSettings(
            type="paseo", url=settings.paseo_url, password=settings.paseo_password
        )
        if "paseo_url" in settings.model_fields_set:
            counted.add("paseo")
    if "demo" not in configured:
        configured["demo"] = BackendSettings(type="acp", command=tuple(COMMAND_LINE))
    backends = [_backend(name, one, settings, tasks) for name, one in configured.items()]
    return Registry(backends, default=settings.default_backend, counted=counted)


def _backend(name: str, one: BackendSettings, settings: Settings, tasks: TaskGroup) -> Backend:
    roots = one.roots or settings.allowed_roots
    place = Place(filesystem=one.filesystem, default_cwd=one.default_cwd or roots[0], roots=roots)
    match one.type:
        case "acp":
            return AcpBackend(
                name,
                one.command,
                place,
                tasks,
                env=one.env,
                provider=one.provider,
                silence=settings.timing.lease_s,
            )
        case "paseo":
            assert one.url is not None
            password = one.password.get_secret_value() if one.password else None
            return PaseoBackend(name, str(one.url), password, place, one.provider or "opencode", tasks)
        case "paseo-cli":
            return PaseoCliBackend(
                name,
                one.command or ("paseo",),
                place,
                one.provider or "opencode",
                tasks,
                env=child_environment(os.environ, (), one.env),
                url=None if one.url is None else str(one.url),
                password=one.password.get_secret_value() if one.password else None,
            )
