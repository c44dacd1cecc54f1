"""`python -m app` and the `alameda` command. Owns the process: settings, signals, exit codes."""

import asyncio
import signal
import socket
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import structlog
import typer
import uvicorn

from app.command.line import EXIT_CODES, doctor, keys, prompt
from app.settings import Settings, SettingsError, describe_settings, load_settings, service_version
from app.telemetry import set_up_logging

# The house itself is imported where it is opened: the client commands answer in a third of the time.
if TYPE_CHECKING:
    from app.main import House

log = structlog.get_logger(__name__)

FAREWELL_S = 1.0
"""Seconds that open streams have to say goodbye before the server stops listening to them."""
GRACE_S = 3
"""Seconds that uvicorn then waits for requests in flight."""
LOOK_S = 6.0
"""Seconds that the start waits for the first look at the backends before it says what it knows."""

STALLED_PEER_MS = 30_000
SEND_BUFFER = 256 * 1024

commands = typer.Typer(
    name="alameda",
    help="Coding agents behind plain HTTP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class _Server(uvicorn.Server):
    """A server that leaves the signals to us: uvicorn raises them again after a clean stop (exit 143)."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Capture nothing."""
        yield


def _settings(**arguments: Any) -> Settings:
    try:
        return load_settings(**arguments)
    except SettingsError as error:
        typer.echo(f"alameda: a setting is wrong\n{error}", err=True)
        raise typer.Exit(2) from None


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"alameda {service_version()}")
        raise typer.Exit


@commands.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Coding agents behind plain HTTP."""


_SETTINGS_HELP = "Every setting is an environment variable [default]:\n\n" + describe_settings().replace(
    "\n", "\n\n"
)


@commands.command(epilog=_SETTINGS_HELP)
def serve(
    host: Annotated[str | None, typer.Option(help="Listen address (ALAMEDA_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Listen port, 0 for any (ALAMEDA_PORT).")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Data directory (ALAMEDA_DATA_DIR).")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with backends (ALAMEDA_CONFIG).")] = None,
) -> None:
    """Run the service until SIGTERM or Ctrl-C."""
    settings = _settings(
        host=host, port=port, data_dir=data_dir.absolute() if data_dir else None, config=config
    )
    set_up_logging(settings.log_level, settings.log_format)
    from app.domain.errors import DatabaseUnavailable
    from app.store.datadir import EmbeddedPostgresError
    from app.store.migrations import MigrationLockTimeout

    try:
        code = _run(settings)
    except* (EmbeddedPostgresError, MigrationLockTimeout, DatabaseUnavailable, OSError) as group:
        typer.echo(f"alameda: {_first(group)}", err=True)
        code = 1
    raise typer.Exit(code)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _run(settings: Settings) -> int:
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with suppress(ImportError):  # there is none for Windows and some Pythons
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_serve(settings))


async def _serve(settings: Settings) -> int:
    from app.api.protocol import EdgeProtocol
    from app.main import create_app

    listener = _listen(settings)
    application = create_app(settings)
    server = _Server(
        uvicorn.Config(
            application,
            http=EdgeProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=list(settings.trusted_proxies),
            timeout_graceful_shutdown=GRACE_S,
            backlog=4096,
        )
    )
    stop = anyio.Event()
    forced = False

    def on_signal(number: int) -> None:
        nonlocal forced
        if stop.is_set():
            forced = server.force_exit = server.should_exit = True
        log.info("stopping", signal=signal.Signals(number).name)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    opening, waiting = anyio.CancelScope(), anyio.CancelScope()

    async def cancel_opening() -> None:
        with waiting:
            await stop.wait()
            opening.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancel_opening)
        with opening:
            async with application.router.lifespan_context(application):
                waiting.cancel()  # from here on we stop in good order
                await _serve_house(settings, application.state.house, server, listener, stop)
        waiting.cancel()
    listener.close()
    return 1 if forced else 0


async def _serve_house(
    settings: Settings, house: "House", server: _Server, listener: socket.socket, stop: anyio.Event
) -> None:
    url = settings.url(listener.getsockname()[1])
    house.announce(url)

    async def say_goodbye() -> None:
        await stop.wait()
        house.rooms.lifecycle.leave()
        if settings.database_url is not None:  # with the embedded one there is nobody to hand over to
            server.config.encoded_headers.append((b"connection", b"close"))
            await anyio.sleep(settings.timing.unready_s)
        house.rooms.lifecycle.drain()
        with anyio.move_on_after(FAREWELL_S):
            await house.rooms.streams.all_closed()
        server.should_exit = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(say_goodbye)
        tasks.start_soon(_greet, house, url)
        await server.serve(sockets=[listener])
        tasks.cancel_scope.cancel()


async def _greet(house: "House", url: str) -> None:
    """Say where we are and how things stand."""
    with anyio.move_on_after(LOOK_S):
        await house.rooms.healths.looked.wait()
    lines = [f"Alameda {service_version()} answers at {url}", f"  console   {_console(house, url)}"]
    if house.rooms.keys.anyone is not None:
        lines.append("  WARNING   ALAMEDA_AUTH=none: every user and program on this machine can act")
    if house.key_file is not None:
        lines.append(f"  API key   in {house.key_file}")
    for backend, seen in house.rooms.healths.backends():
        lines.append(
            f"  {backend.name:<9} {'up' if seen.up else 'down'}{f': {seen.detail}' if seen.detail else ''}"
        )
    print("\n".join(lines), flush=True)


def _console(house: "House", url: str) -> str:
    """The console's address; on a terminal with the key, which the page takes out of the address bar."""
    if house.key_file is None or not sys.stdout.isatty():
        return f"{url}/console"
    return f"{url}/console#key={house.key_file.read_text().strip()}"


def _listen(settings: Settings) -> socket.socket:
    """The listening socket; what it accepts inherits its options, so that a dead or stalled peer is cut."""
    host = settings.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_PEER_MS)
    try:
        listener.bind((host, settings.port))
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
    listener.listen(4096)
    listener.setblocking(False)
    return listener


@commands.command("migrate")
def run_migrations() -> None:
    """Bring the database of DATABASE_URL to this version's schema; the embedded one is, at each start."""
    settings = _settings()
    set_up_logging(settings.log_level, settings.log_format)
    own = settings.direct_database_url or settings.database_url
    if own is None:
        typer.echo(
            "alameda: there is no DATABASE_URL; the embedded database is migrated by `alameda serve`",
            err=True,
        )
        raise typer.Exit(2)
    from app.store.database import Address
    from app.store.migrations import MigrationLockTimeout, migrate

    try:
        revision = asyncio.run(migrate(Address(arguments={"dsn": own.get_secret_value()})))
    except (MigrationLockTimeout, OSError) as error:
        typer.echo(f"alameda: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"the schema is at revision {revision}")


commands.command(epilog=EXIT_CODES)(prompt)
commands.add_typer(keys, name="keys")
commands.command()(doctor)


def main() -> None:
    """The command's entry point."""
    commands()


if __name__ == "__main__":
    main()
