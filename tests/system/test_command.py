"""The client commands as people run them: processes at pipes and terminals, against a real service."""

import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from app.store.datadir import holder

HOUSE = Path(__file__).parents[2]
PATIENCE = 60.0
"""Seconds after which a test that waits has failed."""

OUTSIDE = {"DATABASE_URL", "PASEO_URL", "PASEO_PASSWORD", "NO_COLOR", "XDG_DATA_HOME"}


class Desk:
    """A data directory and a working directory, and whoever runs `alameda` there."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.work = folder / "work"
        self.work.mkdir()
        mine = {name: value for name, value in os.environ.items() if not name.startswith("ALAMEDA_")}
        self.environment = {name: value for name, value in mine.items() if name not in OUTSIDE} | {
            "ALAMEDA_ALLOWED_ROOTS": str(self.work),
            "ALAMEDA_DATA_DIR": str(self.data),
            "ALAMEDA_PORT": "1",  # where nobody answers: what is found is found by the data directory
            "PYTHONPATH": str(HOUSE),
            "COLUMNS": "200",
            "TERM": "dumb",
        }

    def command(self, *arguments: str) -> list[str]:
        """A command line of it."""
        return [sys.executable, "-m", "app", *arguments]

    def run(self, *arguments: str, stdin: str = "", **more: str) -> "subprocess.CompletedProcess[str]":
        """What a command said, at pipes."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.work,
            env=self.environment | more,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    @contextmanager
    def start(self, *arguments: str) -> Iterator["Pipes"]:
        """A command that goes on meanwhile, at pipes."""
        process = subprocess.Popen(
            self.command(*arguments),
            cwd=self.work,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with process:
            try:
                yield Pipes(process)
            finally:
                process.kill()

    @contextmanager
    def sit(self, *arguments: str) -> Iterator["Terminal"]:
        """A command at a terminal of its own."""
        ours, theirs = pty.openpty()
        # The first terminal that a session's leader opens becomes its own, so that Ctrl-C means the leader.
        opening = ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(theirs)]
        process = subprocess.Popen(
            [*opening, *self.command(*arguments)],
            cwd=self.work,
            env=self.environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        with process:
            try:
                yield Terminal(process, ours)
            finally:
                process.kill()
                os.close(ours)


class Talk:
    """A running command and what it has said so far."""

    def __init__(self, process: "subprocess.Popen[bytes]", *descriptors: int) -> None:
        self.process = process
        self.said = dict.fromkeys(descriptors, b"")
        self._open = set(descriptors)

    @property
    def text(self) -> str:
        """All of it."""
        return b"".join(self.said.values()).decode()

    def until(self, *words: str) -> None:
        """Wait until it has said each of these."""
        while not all(word in self.text for word in words):
            assert self._more(), f"it ended without {words}: {self.text}"

    def ended(self) -> int:
        """Its exit code."""
        while self._more():
            pass
        return self.process.wait(PATIENCE)

    def _more(self) -> bool:
        if not self._open:
            return False
        ready, _, _ = select.select(list(self._open), [], [], PATIENCE)
        assert ready, f"it says nothing more: {self.text}"
        for descriptor in ready:
            try:
                piece = os.read(descriptor, 65536)
            except OSError:  # a terminal that its last user has left
                piece = b""
            self.said[descriptor] += piece
            if not piece:
                self._open.discard(descriptor)
        return True


class Pipes(Talk):
    """At two pipes."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        super().__init__(process, process.stdout.fileno(), process.stderr.fileno())


class Terminal(Talk):
    """At a terminal."""

    def __init__(self, process: "subprocess.Popen[bytes]", descriptor: int) -> None:
        super().__init__(process, descriptor)
        self._descriptor = descriptor

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._descriptor, keys.encode())


class Service(Desk):
    """A desk at which `alameda serve` runs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._log = (folder / "log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    @property
    def client(self) -> httpx.Client:
        """A client that holds the first key."""
        key = (self.data / "api-key").read_text().strip()
        return httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=PATIENCE, trust_env=False
        )

    def serve(self) -> None:
        """Start it, and wait for its greeting."""
        self._process = subprocess.Popen(
            self.command("serve", "--port", "0"),
            cwd=self.work,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        assert self._process.stdout is not None
        talk = Talk(self._process, self._process.stdout.fileno())
        talk.until("answers at", "demo")
        found = re.search(r"answers at (\S+)", talk.text)
        assert found is not None
        self.url = found[1]

    def kill(self) -> None:
        """End it as a crash would."""
        assert self._process is not None
        with self._process:
            self._process.kill()

    def stop(self) -> None:
        """End it in good order."""
        assert self._process is not None
        with self._process:
            self._process.terminate()
            assert self._process.wait(PATIENCE) == 0
        self._log.close()

    def sessions(self) -> list[dict[str, Any]]:
        """Every session, newest first."""
        with self.client as client:
            items: list[dict[str, Any]] = client.get("/v1/sessions").json()["items"]
        return items


@contextmanager
def passable_folder() -> Iterator[Path]:
    """A folder that PostgreSQL's unprivileged user can pass through."""
    folder = Path(tempfile.mkdtemp(prefix="alameda-command-")).resolve()
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """One service for the whole file."""
    with passable_folder() as folder:
        running = Service(folder)
        try:
            running.serve()
            yield running
        finally:
            running.stop()


@pytest.fixture(scope="module")
def lonely() -> Iterator[Desk]:
    """A desk at which no service runs."""
    with passable_folder() as folder:
        yield Desk(folder)


def processes_of(desk: Desk) -> list[str]:
    """Command lines that name the desk's data directory."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if str(desk.data) in " ".join(line := process.cmdline()):
                found.append(" ".join(line))
    return found


# An Alameda of its own


def test_prompt_starts_an_alameda_of_its_own_and_leaves_nothing_running(lonely: Desk) -> None:
    done = lonely.run("prompt", "say hello")
    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
    assert "starting one on" in done.stderr
    assert holder(lonely.data) is None
    assert processes_of(lonely) == []


def test_ctrl_c_cancels_the_turn_in_an_alameda_of_its_own_which_does_not_hear_it(lonely: Desk) -> None:
    with lonely.sit("prompt", "say begun\nsleep 60") as terminal:
        terminal.until("begun")
        terminal.type("\x03")
        assert terminal.ended() == 130
    assert "cancelled (caller)" in terminal.text
    assert processes_of(lonely) == []


def test_why_its_own_alameda_does_not_start_is_told(lonely: Desk) -> None:
    lonely.data.mkdir(mode=0o711, exist_ok=True)
    lonely.data.chmod(0o777)
    done = lonely.run("prompt", "say hello")
    lonely.data.chmod(0o711)
    assert done.returncode == 1
    assert "does not start" in done.stderr
    assert "chmod o-w" in done.stderr


# Text and exit codes


@pytest.mark.parametrize(
    ("prompt", "code", "text", "told"),
    [
        ("say one\nrun ls\nsay two", 0, "one\ntwo\n", "✓ execute: ls"),
        ("refuse", 0, "", "the agent stopped: refusal"),
        ("fail no luck", 1, "", "failed: Internal error: no luck [provider_error]"),
        ("say so\ncrash", 1, "so\n", "[agent_process_dead]"),
    ],
)
def test_text_goes_to_stdout_and_the_outcome_is_the_exit_code(
    service: Service, prompt: str, code: int, text: str, told: str
) -> None:
    done = service.run("prompt", stdin=prompt)
    assert (done.returncode, done.stdout) == (code, text), done.stderr
    assert told in done.stderr
    session = service.sessions()[0]
    assert (session["status"], session["cwd"]) == ("closed", str(service.work))


def test_a_refusal_is_one_clear_line_with_its_cure(service: Service) -> None:
    done = service.run("prompt", "say hello", "--agent", "demo", "--cwd", "/")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"alameda: .*\[path_not_allowed\]: name another directory with --cwd.*\n", done.stderr
    )
    done = service.run("prompt", "say hello", "--key", f"alm_none_{'x' * 43}")
    assert done.returncode == 1
    assert "[unauthenticated]: give one with --key or ALAMEDA_API_KEY" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["prompt", " "], ["prompt", "x", "--url", "nowhere"], ["prompt", "x", "--session", "a/b"]]
)
def test_wrong_usage_is_exit_code_2(service: Service, arguments: list[str]) -> None:
    assert service.run(*arguments).returncode == 2


def test_a_named_service_that_does_not_answer_is_told_and_none_is_started(lonely: Desk) -> None:
    done = lonely.run("prompt", "say hello", ALAMEDA_URL="http://127.0.0.1:1")
    assert done.returncode == 1
    assert (
        done.stderr == "alameda: no Alameda answers at http://127.0.0.1:1: is it running? (`alameda serve`)\n"
    )


def test_a_named_session_stays_open_and_is_gone_on_in_from_any_directory(service: Service) -> None:
    first = service.run("prompt", "say one", "--session", "talk", "--mode", "plan")
    (service.work / "deeper").mkdir()
    second = subprocess.run(
        service.command("prompt", "say two", "--session", "talk", "--json"),
        cwd=service.work / "deeper",
        env=service.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    events = [json.loads(line) for line in second.stdout.splitlines()]
    assert [event["data"]["text"] for event in events if event["type"] == "message.completed"] == ["two"]
    assert events[-1]["type"] == "turn.completed"
    with service.client as client:
        session = client.get("/v1/sessions/talk").json()
    assert (session["status"], session["mode"], session["cwd"]) == ("active", "plan", str(service.work))


# Permissions


@pytest.mark.parametrize(
    ("prompt", "keys", "answer"),
    [
        ("ask rm -rf build", "y\n", "allowed"),
        ("ask rm -rf build", "n\n", "denied"),
        ("ask rm -rf build", "what?\n2\n", "allowed"),
        ("question Which colour? | red | blue", "2\n", "you said: blue"),
        ("question Your name?", "Ada\n", "you said: Ada"),
    ],
)
def test_somebody_at_a_terminal_is_asked(service: Service, prompt: str, keys: str, answer: str) -> None:
    with service.sit("prompt", prompt) as terminal:
        terminal.until(
            "? ", "(empty to decline):" if prompt.startswith("question") else "3 Deny  [1-3, y, n]"
        )
        terminal.type(keys)
        assert terminal.ended() == 0
    assert terminal.text.splitlines()[-1] == answer


@pytest.mark.parametrize(("option", "answer"), [("--yes", "allowed\n"), ("--no-input", "denied\n")])
def test_nobody_is_asked_where_the_answer_is_given_beforehand(
    service: Service, option: str, answer: str
) -> None:
    done = service.run("prompt", "ask rm -rf build", option)
    assert (done.returncode, done.stdout) == (0, answer), done.stderr


def test_without_a_terminal_a_permission_waits_and_how_to_answer_is_told(service: Service) -> None:
    with service.start("prompt", "ask rm -rf build") as running:
        running.until("/respond")
        line = next(line for line in running.text.splitlines() if "curl" in line)
        curl = shlex.split(line[line.index("curl") :])
        assert f"Authorization: Bearer $(cat {service.data / 'api-key'})" in curl
        with service.client as client:
            headers = {"Content-Type": "application/json"}
            answer = client.post(curl[-1], content=curl[curl.index("-d") + 1], headers=headers)
        assert answer.json()["status"] == "allowed"
        assert running.ended() == 0
    assert "allowed (by caller): rm -rf build" in running.text


def test_a_question_that_somebody_else_answers_is_taken_back(service: Service) -> None:
    with service.sit("prompt", "ask rm -rf build") as terminal:
        terminal.until("[1-3, y, n]")
        with service.client as client:
            pending = client.get("/v1/permissions", params={"status": "pending"}).json()["items"]
            path = f"/v1/permissions/{pending[0]['permission_id']}/respond"
            assert client.post(path, json={"outcome": "deny"}).status_code == 200
        assert terminal.ended() == 0
    assert "denied (by caller): rm -rf build" in terminal.text


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_turn_and_waits_for_its_end(service: Service, number: signal.Signals) -> None:
    with service.start("prompt", "say begun\nsleep 60") as running:
        running.until("begun")
        running.process.send_signal(number)
        assert running.ended() == 130
    assert "cancelled (caller)" in running.text
    assert service.sessions()[0]["status"] == "closed"


def test_a_second_signal_leaves_at_once_and_says_what_goes_on(service: Service) -> None:
    with service.start("prompt", "ignore-cancel\nsay begun\nsleep 60", "--session", "left") as running:
        running.until("begun")
        running.process.send_signal(signal.SIGINT)
        running.until("stopping")
        running.process.send_signal(signal.SIGINT)
        assert running.ended() == 130
    assert re.search(r"left; the turn trn_\S+ of session left goes on", running.text)


def test_a_reader_that_goes_away_stops_the_turn(service: Service) -> None:
    with service.start("prompt", "stream 100000 5") as running:
        running.until("chunk-1 ")
        assert running.process.stdout is not None
        assert running.process.stderr is not None
        running.process.stdout.close()
        told = running.process.stderr.read().decode()
        assert running.process.wait(PATIENCE) == 130
    assert "nobody reads the output any more" in told


# Lost connections


class Cutter:
    """Passes connections on, and cuts the first streams after so many bytes; then it lets them be."""

    def __init__(self, url: str, limits: list[int]) -> None:
        self._to = ("127.0.0.1", int(url.rpartition(":")[2]))
        self._limits = limits
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cuts = 0
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """Take no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(PATIENCE)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection(self._to) as server:
            passed, limit = 0, None
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    piece = ready.recv(65536)
                    if not piece:
                        return
                    (server if ready is client else client).sendall(piece)
                    if ready is client and b"/events/stream" in piece and self._limits:
                        passed, limit = 0, self._limits.pop(0)
                    passed += len(piece) if ready is server else 0
                    if limit is not None and passed > limit:
                        self.cuts += 1
                        return


def test_a_broken_stream_is_gone_on_with_and_nothing_is_lost_or_doubled(service: Service) -> None:
    cutter = Cutter(service.url, [1500, 3000, 1500])
    done = service.run("prompt", "stream 60 10", "--url", cutter.url)
    cutter.close()
    assert done.returncode == 0, done.stderr
    assert cutter.cuts == 3
    assert done.stdout.split() == [f"chunk-{number}" for number in range(1, 61)]
    assert "going on from event" in done.stderr


def test_a_service_that_was_killed_and_started_again_tells_how_it_ended(service: Service) -> None:
    before = service.url
    with service.start("prompt", "say begun\nsleep 60", "--session", "survivor") as running:
        running.until("begun")
        service.kill()
        running.until("going on from event")
        service.serve()
        assert running.ended() == 4
    assert "indeterminate" in running.text
    assert service.url != before


# Keys


def test_keys_are_made_used_listed_and_revoked(service: Service) -> None:
    made = service.run("keys", "make", "laptop", "--scope", "read", "--scope", "prompt")
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    assert re.fullmatch(r"alm_[A-Za-z0-9]+_[A-Za-z0-9_-]{43,}", key)
    assert key not in made.stderr
    key_id = key.split("_")[1]

    used = service.run("prompt", "say mine", ALAMEDA_API_KEY=key)
    assert (used.returncode, used.stdout) == (0, "mine\n"), used.stderr
    refused = service.run("keys", "list", "--key", key)
    assert refused.returncode == 1
    assert "[forbidden]" in refused.stderr

    listed = service.run("keys", "list")
    row = next(line for line in listed.stdout.splitlines() if key_id in line)
    assert re.match(rf"{key_id} +default +laptop +read,prompt +\d{{4}}-", row)
    assert key.split("_", 2)[2] not in listed.stdout
    as_json = [json.loads(line) for line in service.run("keys", "list", "--json").stdout.splitlines()]
    assert "key" not in as_json[0]

    assert service.run("keys", "revoke", key_id).returncode == 0
    late = service.run("prompt", "say mine", ALAMEDA_API_KEY=key)
    assert late.returncode == 1
    assert "[unauthenticated]" in late.stderr
    missing = service.run("keys", "revoke", "nosuchkey")
    assert missing.returncode == 1
    assert "[api_key_not_found]" in missing.stderr


def test_keys_without_a_service_say_how_to_get_one(lonely: Desk) -> None:
    done = lonely.run("keys", "list")
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == "alameda: no Alameda answers here: start one with `alameda serve`, or name it with --url\n"
    )


# The doctor


def findings(done: "subprocess.CompletedProcess[str]") -> dict[str, tuple[str, str]]:
    """Word and text of each finding, by what it is about."""
    lines = [re.split(r" {2,}", line, maxsplit=2) for line in done.stdout.splitlines() if line[:1].strip()]
    return {about: (word, text) for word, about, text in lines}


def test_the_doctor_finds_a_service_well(service: Service) -> None:
    done = service.run("doctor")
    found = findings(done)
    assert done.returncode == 0, done.stdout
    assert found["service"][0] == "ok"
    assert service.url in found["service"][1]
    assert found["database"] == ("ok", "up (embedded)")
    assert found["backend demo"][0] == "ok"
    word, text = found["backend paseo"]
    assert word == "warn"
    assert "PASEO_URL" in text


def test_the_doctor_names_what_is_missing_without_a_service(lonely: Desk) -> None:
    config = lonely.work / "alameda.toml"
    config.write_text("[backends.mine]\ntype = 'acp'\ncommand = ['no-such-agent']\n")
    done = lonely.run("doctor")
    config.unlink()
    found = findings(done)
    assert done.returncode == 1
    assert found["service"] == ("warn", "no Alameda runs here: start one with `alameda serve`")
    assert found["database"][0] == "ok"
    assert found["backend demo"] == ("ok", "up")
    assert found["backend mine"][0] == "FAIL"
    assert "no-such-agent not found in PATH: install it" in found["backend mine"][1]
    assert not processes_of(lonely)


def test_the_doctor_finds_a_wrong_setting_and_a_database_that_does_not_answer(lonely: Desk) -> None:
    wrong = lonely.run("doctor", ALAMEDA_PORT="many")
    assert wrong.returncode == 1
    word, text = findings(wrong)["settings"]
    assert word == "FAIL"
    assert text.startswith("ALAMEDA_PORT: ")
    away = lonely.run("doctor", DATABASE_URL="postgresql://nobody:secret@127.0.0.1:1/none")
    assert away.returncode == 1
    assert findings(away)["database"][0] == "FAIL"
    assert "secret" not in away.stdout


def test_the_doctor_says_when_it_has_no_key(service: Service) -> None:
    done = service.run("doctor", "--key", f"alm_none_{'x' * 43}")
    assert done.returncode == 1
    assert findings(done)["API key"][0] == "FAIL"
