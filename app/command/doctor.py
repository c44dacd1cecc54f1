"""`alameda doctor`: what is missing here, and how to cure it."""

import os
import platform
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

import anyio
from msgspec import Struct

from app.command.client import KEY_FILE, Alameda, CommandError, Place, answers
from app.command.terminal import GREEN, RED, RESET, YELLOW, has_colours, visible
from app.main import build_registry
from app.settings import Settings, SettingsError, service_version
from app.store.database import Address
from app.store.datadir import EmbeddedPostgresError, server_user
from app.store.pgbinaries import BUNDLE, PACKAGE

LOOK_S = 6.0
"""Seconds that a backend, or a database elsewhere, has to answer."""

ROOM = 500 * 1024 * 1024
"""Bytes that an embedded database should find free; a new one takes about a tenth."""


class Report:
    """Findings, a line each: a word, what it is about, how that is."""

    def __init__(self, out: TextIO) -> None:
        self.is_well = True
        self._out = out
        self._colours = has_colours(out)

    def ok(self, about: str, text: str) -> None:
        """As it should be."""
        self._write("ok", GREEN, about, text)

    def warn(self, about: str, text: str) -> None:
        """Worth to know; it runs all the same."""
        self._write("warn", YELLOW, about, text)

    def fail(self, about: str, text: str) -> None:
        """It does not run so."""
        self.is_well = False
        self._write("FAIL", RED, about, text)

    def _write(self, word: str, colour: str, about: str, text: str) -> None:
        word = f"{word:<4}"
        if self._colours:
            word = f"{colour}{word}{RESET}"
        first, *more = (visible(line) for line in text.splitlines() or [""])
        lines = [f"{word}  {about:<16}  {first}"]
        lines += [f"{'':<24}{line}" for line in more]
        self._out.write("\n".join(lines) + "\n")
        self._out.flush()


class _Database(Struct, frozen=True):
    status: str
    embedded: bool | None = None


class _Backend(Struct, frozen=True):
    status: str
    counted: bool
    version: str | None = None
    tested: bool | None = None
    detail: str | None = None


class _Health(Struct, frozen=True):
    status: str
    version: str | None = None
    database: _Database | None = None
    backends: dict[str, _Backend] | None = None


def wrong_settings(error: SettingsError, out: TextIO) -> None:
    """The report where nothing else can be told."""
    report = Report(out)
    _version(report)
    report.fail("settings", f"{error}\n(`alameda serve --help` lists them all)")


async def examine(place: Place, settings: Settings, out: TextIO) -> bool:
    """Look at everything, and tell; returns whether all is well."""
    report = Report(out)
    _version(report)
    _settings(report, settings)
    if settings.database_url is None and place.url is None:
        _data_directory(report, place, settings)
    try:
        url = await place.find()
    except CommandError as error:
        report.fail("service", str(error))
        return False
    if url is not None and (place.url is None or await answers(url)):
        await _running(report, place, url)
    elif place.url is not None:
        report.fail("service", f"no Alameda answers at {url}: is it running? (`alameda serve`)")
    else:
        report.warn("service", "no Alameda runs here: start one with `alameda serve`")
        await _could_run(report, settings)
    return report.is_well


def _version(report: Report) -> None:
    python = platform.python_version()
    report.ok("version", f"Alameda {service_version()}, Python {python}, {platform.platform(terse=True)}")


def _settings(report: Report, settings: Settings) -> None:
    file = settings.config or Path("alameda.toml")
    where = f" and {file}" if file.is_file() else ""
    report.ok("settings", f"valid, from the environment{where}")


def _data_directory(report: Report, place: Place, settings: Settings) -> None:
    data_dir = place.data_dir
    try:
        user = server_user(settings.database_user)
    except EmbeddedPostgresError as error:
        report.fail("database user", str(error))
    else:
        if user.pw_uid != os.geteuid():
            report.ok("database user", f"{user.pw_name}, since PostgreSQL does not run as root")
    there = next(path for path in (data_dir, *data_dir.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        report.fail(
            "data directory",
            f"{data_dir}: {there} cannot be written to: make it ours (chown), or set ALAMEDA_DATA_DIR",
        )
        return
    try:
        held = place.held()
    except CommandError as error:
        report.fail("data directory", str(error))
        return
    if held is not None:
        report.ok("data directory", f"{data_dir}, in use by process {held[0] or 'unknown'}")
    else:
        report.ok(
            "data directory", f"{data_dir}, {'free' if there == data_dir else 'made at the first start'}"
        )
    free = shutil.disk_usage(there).free
    if free < ROOM:
        report.warn("disk", f"{free // 2**20} MiB are free at {there}: the database may soon have no room")


async def _running(report: Report, place: Place, url: str) -> None:
    """What the service says of itself."""
    async with Alameda.open(place, url) as alameda:
        try:
            health = await alameda.health(_Health)
            if await answers(url, "readyz"):
                report.ok("service", f"answers at {url}, version {health.version or 'untold'}, and is ready")
            else:
                report.fail(
                    "service", f"answers at {url}, but takes no work now: it is stopping, or see below"
                )
        except CommandError as error:
            report.fail("service", str(error))
            return
    if health.database is None or health.backends is None:
        text = "it takes none that was found: give one with `read` by --key or ALAMEDA_API_KEY"
        report.fail("API key", f"{text}; the first one is in {KEY_FILE} of its data directory")
        if health.status == "ok":
            report.ok("health", "ok")
        else:
            report.fail("health", f"{health.status}; a key is needed to see more")
        return
    if health.version is not None and health.version != service_version():
        report.warn("version", f"the service is {health.version}: start it anew after an update")
    kind = "embedded" if health.database.embedded else "DATABASE_URL"
    if health.database.status == "up":
        report.ok("database", f"up ({kind})")
    else:
        report.fail("database", f"down ({kind}): see the service's log")
    for name, backend in sorted(health.backends.items()):
        _backend(report, name, backend)


async def _could_run(report: Report, settings: Settings) -> None:
    """Whether a service that starts here would find what it needs."""
    if settings.database_url is not None:
        own = settings.direct_database_url or settings.database_url
        await _database(report, Address(arguments={"dsn": own.get_secret_value()}))
    else:
        spec = find_spec(PACKAGE)
        places = spec.submodule_search_locations if spec else None
        if places and (Path(places[0]) / BUNDLE / "bin" / "postgres").is_file():
            report.ok("database", "embedded; its programs are installed")
        else:
            report.fail("database", f"the package {PACKAGE} is missing: install it, or set DATABASE_URL")
    async with anyio.create_task_group() as tasks:
        registry = build_registry(settings, tasks)
        for backend in registry:
            up, version, tested, detail = False, None, None, "no answer in time"
            with anyio.move_on_after(LOOK_S):
                seen = await backend.health()
                up, version, tested, detail = seen.up, seen.version, seen.tested, seen.detail or ""
            found = _Backend(
                "up" if up else "down", backend.name in registry.counted, version, tested, detail
            )
            _backend(report, backend.name, found)
            await backend.aclose()
        tasks.cancel_scope.cancel()


async def _database(report: Report, address: Address) -> None:
    try:
        with anyio.fail_after(LOOK_S):
            connection = await address.connect()
        connection.terminate()
    except Exception as error:  # whatever the driver or the server finds wrong is the finding
        words = str(error) or type(error).__name__
        report.fail(
            "database", f"DATABASE_URL does not answer: {words}\nlook at host, port, user and password"
        )
    else:
        report.ok("database", "DATABASE_URL answers")


def _backend(report: Report, name: str, backend: _Backend) -> None:
    about = f"backend {name}"
    detail = f": {backend.detail}" if backend.detail else ""
    version = f", version {backend.version}" if backend.version else ""
    if backend.status == "up" and backend.tested is False:
        report.warn(about, f"up{version}, which Alameda was not tested with{detail}")
    elif backend.status == "up":
        report.ok(about, f"up{version}{detail}")
    elif backend.counted:
        report.fail(about, f"down{version}{detail}")
    else:
        report.warn(about, f"down, but nobody asked for it{version}{detail}")
