"""The two servers as this process leads them: started, told what to do, measured, stopped."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.gateway import KEY
from benchmarks.readers import Readers
from benchmarks.workload import Work

ROOT = Path(__file__).resolve().parent.parent
STOP_S = 15.0
"""Seconds that a server has to stop."""


class Server:
    """A server process."""

    key: str | None = None

    def __init__(self, module: str, folder: Path, *arguments: str) -> None:
        own = ("ALAMEDA_", "DATABASE_URL", "PASEO_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        self._log = folder / f"{module}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"benchmarks.{module}", *arguments],
                cwd=folder,
                env={**env, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.pid = self._process.pid
        self.port: int = self._answer()["port"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a server ended: {self._log.read_text()[-4000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def do(self, what: str, **more: Any) -> dict[str, Any]:
        """Tell the server to do something; its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **more}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def cpu(self) -> float:
        """Seconds of CPU time that the process has used."""
        seconds: float = self.do("cpu")["cpu"]
        return seconds

    def rss(self) -> int:
        """Bytes of memory that the process holds."""
        resident: int = psutil.Process(self.pid).memory_info().rss
        return resident

    def database_cpu(self) -> float:
        """Seconds of CPU time of the processes of its PostgreSQL, to the kernel's tick of about 10 ms."""
        return 0.0

    def readers(self, *, stamps: bool = False) -> Readers:
        """Readers of its streams; none is open yet."""
        return Readers(self.port, self.key, stamps=stamps)

    def arm(self, works: Sequence[Work]) -> list[str]:
        """Make a source for each; the paths of their streams."""
        raise NotImplementedError

    def logged(self) -> None:
        """Wait until all that was emitted has been kept."""

    def end(self) -> None:
        """Have done with the sources."""

    def stop(self) -> None:
        """End the process, by force if need be."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
            return
        self._process.kill()
        self._process.wait()


class Raw(Server):
    """The bare application."""

    def __init__(self, folder: Path) -> None:
        super().__init__("raw", folder)

    def arm(self, works: Sequence[Work]) -> list[str]:
        """Make a source for each; the paths of their streams."""
        self.do("arm", works=[asdict(work) for work in works])
        return [f"/source/{index}" for index in range(len(works))]


class Gateway(Server):
    """The service."""

    key = KEY

    def __init__(self, folder: Path) -> None:
        super().__init__("gateway", folder, str(folder))
        self._names = count(1)
        self._postgres = psutil.Process(self.do("postgres")["pid"])
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=30,
            trust_env=False,
        )

    def database_cpu(self) -> float:
        """Seconds of CPU time of the processes of its PostgreSQL, to the kernel's tick of about 10 ms."""
        seconds = 0.0
        for process in [self._postgres, *self._postgres.children()]:
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                seconds += times.user + times.system
        return seconds

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        answer = self._client.request(method, path, json=body)
        if not answer.is_success:
            raise RuntimeError(f"{method} {path}: {answer.text}")
        return answer.json()

    def arm(self, works: Sequence[Work]) -> list[str]:
        """Open a session for each, with a turn that waits for `go`; the paths of their streams."""
        paths = []
        for work in works:
            path = f"/v1/sessions/bench-{next(self._names)}"
            self._send("PUT", path, {"agent": "bench"})
            self._send("POST", f"{path}/turns", {"prompt": json.dumps(asdict(work))})
            paths.append(f"{path}/events/stream")
        while self.do("armed")["armed"] < len(works):
            time.sleep(0.01)
        return paths

    def warm_up(self) -> None:
        """Have every statement prepared and every page of code read once."""
        with self.readers() as readers:
            readers.open(self.arm([Work(500)] * 4))
            self.do("go")
            readers.read_events(2000)
        self.end()

    def last_seq(self, stream: str) -> int:
        """The number of the newest event in the log behind a stream."""
        last: int = self._send("GET", stream.removesuffix("/events/stream"))["last_seq"]
        return last

    def logged(self) -> None:
        """Wait until all that was emitted is committed."""
        self.do("logged")

    def end(self) -> None:
        """End the turns."""
        self.do("end")

    def stop(self) -> None:
        """Stop the service."""
        self._client.close()
        super().stop()


@contextmanager
def servers() -> Iterator[tuple[Gateway, Raw]]:
    """Both, in a folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="alameda-bench-"))
    folder.chmod(0o711)  # as root, PostgreSQL runs as another user, who has to pass through
    raw = gateway = None
    try:
        raw = Raw(folder)
        gateway = Gateway(folder)
        yield gateway, raw
    finally:
        for server in (gateway, raw):
            if server is not None:
                server.stop()
        shutil.rmtree(folder, ignore_errors=True)
