"""The real service, as a process of its own, and a real Chromium."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

HOUSE = Path(__file__).parents[2]
HOSTILE_AGENT = Path(__file__).with_name("hostile_agent.py")
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
START_S = 60
"""Seconds in which a service has to be ready; the first start makes a database."""
STOP_S = 20

expect.set_options(timeout=20_000)


class Service:
    """A service on a directory and a port that outlive its processes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        (directory / "work").mkdir()
        config = directory / "alameda.toml"
        config.write_text(
            f"[backends.hostile]\ntype = 'acp'\ncommand = ['{sys.executable}', '{HOSTILE_AGENT}']\n"
        )
        outside = {"DATABASE_URL", "PASEO_URL", "PASEO_PASSWORD"}
        mine = {name: value for name, value in os.environ.items() if not name.startswith("ALAMEDA_")}
        self._environment = {name: value for name, value in mine.items() if name not in outside} | {
            "ALAMEDA_ALLOWED_ROOTS": str(directory / "work"),
            "ALAMEDA_CONFIG": str(config),
            "ALAMEDA_DATA_DIR": str(directory / "data"),
            "ALAMEDA_PORT": str(self.port),
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def key(self) -> str:
        """The first key, as its file has it."""
        return (self.directory / "data" / "api-key").read_text().strip()

    @property
    def output(self) -> str:
        """What the processes have written so far."""
        return (self.directory / "output").read_text()

    def start(self, **settings: str) -> None:
        """Start a process, with `settings` for this once, and wait until it is ready."""
        with (self.directory / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "app", "serve"],
                cwd=HOUSE,
                env=self._environment | settings,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the service did not get ready (exit {self._process.poll()})\n{self.output}")
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """End the process as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(STOP_S)
        self._process = None

    def terminate(self) -> None:
        """Ask the process to stop, and see that it does so in good order."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(STOP_S) == 0, self.output
        self._process = None

    def close(self) -> None:
        """Leave nothing running: a killed process has left its database to the next one."""
        if self._process is None or self._process.poll() is not None:
            self.start()
        self.terminate()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON that the API answers to a request which it has to like."""
        headers = {"Authorization": f"Bearer {self.key}"}
        answer = httpx.request(
            method, self.url + path, json=body, headers=headers, timeout=100, trust_env=False
        )
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def events(self, session_id: str) -> list[dict[str, Any]]:
        """The whole log of a session."""
        found: list[dict[str, Any]] = []
        after = 0
        while True:
            page = self.call("GET", f"/v1/sessions/{session_id}/events?after={after}&limit=1000")
            found += page["items"]
            if page["next_after"] >= page["last_seq"]:
                return found
            after = page["next_after"]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """A running service with a database of its own, and beside `demo` the backend `hostile`."""
    # Not below pytest's own directory, which the database's user may not enter.
    directory = Path(tempfile.mkdtemp(prefix="alameda-console-")).resolve()
    directory.chmod(0o711)
    running = Service(directory)
    try:
        running.start()
        yield running
        running.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _chromium() -> str:
    named = os.environ.get("ALAMEDA_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if found is None:
        missing = (
            "NO CHROMIUM: install one of " + ", ".join(CHROMIUM_NAMES) + ", or name it in ALAMEDA_CHROMIUM"
        )
        if os.environ.get("ALAMEDA_REQUIRE_BROWSER") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, started once a file."""
    program = _chromium()
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=CHROMIUM_FLAGS)
        yield running
        running.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A profile without a past."""
    fresh = browser.new_context(viewport={"width": 1200, "height": 850})
    yield fresh
    fresh.close()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    """A tab."""
    return context.new_page()
