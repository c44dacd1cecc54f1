"""Two logs, two crashes: what is told of a turn stays whole whatever breaks between the daemon and us.

`ALAMEDA_CUTS` and `ALAMEDA_KILLS` make these tests break more often than they do by default.
"""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from app.domain.events import TERMINAL_TYPES
from app.settings import BackendSettings
from tests.house import PATIENCE, House, assert_unbroken, durable, open_house
from tests.paseo.twin import Twin

CUTS = int(os.environ.get("ALAMEDA_CUTS", "30"))
KILLS = int(os.environ.get("ALAMEDA_KILLS", "2"))
CHUNKS = 200


def chunks(count: int = CHUNKS) -> str:
    """What the scripted agent says for `chunks COUNT`, the padding left out."""
    return " ".join(f"c{number}" for number in range(count))


def plain(text: str) -> str:
    """A text of chunks without its padding."""
    return " ".join(re.findall(r"c\d+", text))


def backend(twin: Twin, provider: str = "scripted") -> dict[str, BackendSettings]:
    """The twin as the configured Paseo backend."""
    return {"paseo": BackendSettings(type="paseo", url=twin.http, provider=provider)}


@asynccontextmanager
async def daemon_house(database_url: str, folder: Path, **options: Any) -> AsyncIterator[tuple[House, Twin]]:
    """The service over a daemon of its own."""
    async with Twin(**options) as twin, open_house(database_url, folder, backends=backend(twin)) as house:
        yield house, twin


def told(log: list[dict[str, Any]], turn_id: str | None, kind: str = "message.delta") -> str:
    """All text that the log has of a turn."""
    return "".join(e["data"]["text"] for e in log if e["type"] == kind and e["turn_id"] == turn_id)


def types(log: list[dict[str, Any]], turn_id: str) -> list[str]:
    """The types of a turn's events, in order."""
    return [event["type"] for event in log if event["turn_id"] == turn_id]


async def eventually(holds: Callable[[], bool]) -> None:
    """Look at something that has no event until it holds."""
    with anyio.fail_after(PATIENCE):
        while not holds():  # noqa: ASYNC110 - the twin has nothing to wait on
            await anyio.sleep(0.02)


def assert_ended_once(log: list[dict[str, Any]], turn_id: str) -> None:
    """One terminal event, and it is the turn's last."""
    found = types(log, turn_id)
    assert sum(one in TERMINAL_TYPES for one in found) == 1
    assert found[-1] in TERMINAL_TYPES


async def test_socket_cut_at_random_moments_loses_doubles_and_reorders_nothing(
    database_url: str, folder: Path
) -> None:
    """The text is equal, the ids have no hole, and the turn ends once, as completed."""
    async with daemon_house(database_url, folder, window=0.005) as (house, twin):
        session = (await house.ensure(agent="scripted"))["session_id"]
        cut = 0
        while cut < CUTS:
            # A look at the backend may fall into a cut: a prompt that may wait is admitted all the same.
            turn = await house.prompt(session, f"chunks {CHUNKS} 10 5", multitask_strategy="enqueue")
            path = f"/v1/turns/{turn['turn_id']}/events/stream"
            async with house.stream(path) as stream:
                while not any(frame.event in TERMINAL_TYPES for frame in stream.frames):
                    if cut < CUTS and random.random() < 0.2:
                        twin.drop()
                        cut += 1
                    assert await stream.more()
                assert_unbroken(stream.frames)
                text = "".join(
                    f.data["data"]["text"] for f in durable(stream.frames) if f.event == "message.delta"
                )
            assert plain(text) == chunks()
            ended = await house.ended(turn["turn_id"])
            assert ended["status"] == "completed"
            assert plain(ended["output_text"]) == chunks()
        log = await house.log(session)
        assert [event["seq"] for event in log] == list(range(1, len(log) + 1))
        prompts = twin.record.of("send_agent_message_request")
        assert len(prompts) == len({one.message["messageId"] for one in prompts})


async def test_replica_that_takes_over_in_mid_turn_tells_the_rest(database_url: str, folder: Path) -> None:
    """The turn goes on in the daemon; the next process tells what was missed, and then its end."""
    async with Twin() as twin:
        async with open_house(database_url, folder, backends=backend(twin)) as first:
            session = (await first.ensure("s", agent="scripted"))["session_id"]
            turn = await first.prompt(session, f"chunks {CHUNKS} 10 5")
            stream = f"/v1/turns/{turn['turn_id']}/events/stream"
            seen = await first.follow(stream, "message.delta")
        async with open_house(database_url, folder, backends=backend(twin)) as second:
            after = {"Last-Event-ID": str(durable(seen)[-1].seq)}
            rest = await second.follow(stream, "turn.completed", headers=after)
            frames = durable(seen) + durable(rest)
            assert_unbroken(frames)
            text = "".join(f.data["data"]["text"] for f in frames if f.event == "message.delta")
            assert plain(text) == chunks()
            assert plain((await second.ended(turn["turn_id"]))["output_text"]) == chunks()
            again = await second.ensure("s", agent="scripted")
            assert again["opened"] == "reused"
            assert len(twin.running.agents) == 1
        assert twin.record.count("send_agent_message_request") == 1


async def test_turn_that_ended_while_nobody_hosted_it_is_told_as_reconciled(
    database_url: str, folder: Path
) -> None:
    """The backend shows an end without error; what it said is in the log."""
    async with Twin() as twin:
        async with open_house(database_url, folder, backends=backend(twin)) as first:
            await first.ensure("s", agent="scripted")
            turn = await first.prompt("s", "chunks 50 10 5\nsay last")
            await first.follow(f"/v1/turns/{turn['turn_id']}/events/stream", "message.delta")
        agent = twin.agent(next(iter(twin.running.agents)))
        await eventually(lambda: agent.snapshot()["status"] != "running")
        async with open_house(database_url, folder, backends=backend(twin)) as second:
            ended = await second.ended(turn["turn_id"])
            assert ended["status"] == "completed"
            assert "last" in ended["output_text"]
            log = await second.log("s")
            assert_ended_once(log, turn["turn_id"])
            completed = [event for event in log if event["type"] == "turn.completed"]
            assert completed[0]["data"]["reconciled"] is True


@pytest.mark.parametrize("history", ["whole", "empty", "unloadable"])
async def test_daemon_killed_in_mid_turn_is_never_a_silent_idle(
    database_url: str, folder: Path, history: Any
) -> None:
    """The turn ends once, as what is known of it; it never runs twice, and history is not imported."""
    async with daemon_house(database_url, folder) as (house, twin):
        session = (await house.ensure(agent="scripted"))["session_id"]
        await house.run(session, "say before")
        turn = await house.prompt(session, f"chunks {CHUNKS} 20 5")
        await house.follow(f"/v1/turns/{turn['turn_id']}/events/stream", "message.delta")
        await twin.restart(history=history)
        ended = await house.ended(turn["turn_id"])
        assert ended["status"] in ("indeterminate", "failed")
        log = await house.log(session)
        assert_ended_once(log, turn["turn_id"])
        assert told(log, turn["turn_id"]).count("c1 ") <= 1
        sent = [one.message["messageId"] for one in twin.record.of("send_agent_message_request")]
        assert len(sent) == len(set(sent)) == 2
        assert sum(event["type"] == "message.delta" for event in log if event["turn_id"] is None) == 0


async def test_prompt_after_a_killed_daemon_runs(database_url: str, folder: Path) -> None:
    """An agent that can be resumed takes the next prompt, once."""
    async with daemon_house(database_url, folder) as (house, twin):
        session = (await house.ensure(agent="scripted"))["session_id"]
        turn = await house.prompt(session, f"chunks {CHUNKS} 20 5")
        await house.follow(f"/v1/turns/{turn['turn_id']}/events/stream", "message.delta")
        await twin.restart()
        await house.ended(turn["turn_id"])
        again = await house.run(session, "say hello", multitask_strategy="enqueue")
        assert (again["status"], again["output_text"]) == ("completed", "hello")


async def test_prompt_that_a_provider_is_slow_to_take_is_no_end_when_the_link_is_cut(
    database_url: str, folder: Path
) -> None:
    """Its row stands there, the agent is idle, and nothing shows that it ended: so nothing is said."""
    async with daemon_house(database_url, folder, window=0.005) as (house, twin):
        session = (await house.ensure(agent="scripted"))["session_id"]
        twin.providers["scripted"].start_delay = 3.0
        turn = await house.prompt(session, "say slowly")
        await twin.record.wait("send_agent_message_request")
        twin.drop()
        ended = await house.ended(turn["turn_id"])
        assert (ended["status"], ended["output_text"]) == ("completed", "slowly")
        assert twin.record.count("send_agent_message_request") == 1
        assert twin.record.count("cancel_agent_request") == 0


async def test_ten_ensures_on_two_replicas_make_one_agent_on_the_daemon(
    database_url: str, folder: Path
) -> None:
    """The label finds it, the row's lock makes it once."""
    async with (
        Twin() as twin,
        open_house(database_url, folder, backends=backend(twin)) as one,
        open_house(database_url, folder, backends=backend(twin)) as two,
    ):
        found: list[dict[str, Any]] = []

        async def ensure(house: House) -> None:
            found.append(await house.ensure("same", agent="scripted"))

        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(ensure, (one, two)[number % 2])
        assert len({session["agent_session_id"] for session in found}) == 1
        assert len(twin.running.agents) == 1
        labels = next(iter(twin.running.agents.values())).snapshot()["labels"]
        assert labels["origin"] == "alameda"
        assert labels["session"] == "same"


async def test_two_owners_with_the_same_chat_and_agent_have_two_agents(
    database_url: str, folder: Path
) -> None:
    """A session belongs to its owner; so does its agent."""
    async with daemon_house(database_url, folder) as (house, twin):
        body = {"name": "other", "owner": "other", "scopes": ["read", "prompt"]}
        key = (await house.post("/v1/api-keys", body)).json()["key"]
        mine = await house.ensure("same", agent="scripted", chat_id="c-1")
        answer = await house.client.put(
            "/v1/sessions/same",
            json={"agent": "scripted", "chat_id": "c-1", "cwd": str(house.cwd)},
            headers={"Authorization": f"Bearer {key}"},
        )
        assert answer.status_code == 201, answer.text
        assert answer.json()["agent_session_id"] != mine["agent_session_id"]
        assert len(twin.running.agents) == 2


async def test_agents_of_somebody_else_are_never_shown_adopted_or_streamed(
    database_url: str, folder: Path
) -> None:
    """A daemon shows all its agents to everybody."""
    async with daemon_house(database_url, folder) as (house, twin):
        await twin.crowd(20, 20.0, 2.0)
        session = await house.ensure("mine", agent="scripted")
        await house.run("mine", "say mine")
        listed = await house.get("/v1/sessions")
        assert [one["session_id"] for one in listed["items"]] == ["mine"]
        log = await house.log("mine")
        assert {e["data"]["text"] for e in log if e["type"] == "message.delta"} == {"mine"}
        assert session["agent_session_id"] in twin.running.agents


async def test_foreign_prompt_that_replaces_our_turn_is_called_so(database_url: str, folder: Path) -> None:
    """`cancelled {cause: replaced}`; what the other one's turn says belongs to no turn of ours."""
    async with daemon_house(database_url, folder, window=0.005) as (house, twin):
        session = await house.ensure(agent="scripted")
        turn = await house.prompt(session["session_id"], f"chunks {CHUNKS} 20 5")
        await house.follow(f"/v1/turns/{turn['turn_id']}/events/stream", "message.delta")
        await twin.prompt(session["agent_session_id"], "say theirs")
        ended = await house.ended(turn["turn_id"])
        assert (ended["status"], ended["cause"]) == ("cancelled", "replaced")
        await house.follow(f"/v1/sessions/{session['session_id']}/events/stream", "notice")
        again = await house.run(session["session_id"], "say ours", multitask_strategy="enqueue")
        assert again["output_text"] == "ours"
        log = await house.log(session["session_id"])
        assert told(log, None) == "say theirs" + "theirs"
        assert any(e["type"] == "notice" and e["data"]["code"] == "foreign_activity" for e in log)


async def test_permission_survives_a_cut_link_and_a_new_host(database_url: str, folder: Path) -> None:
    """Its id stays; an answer given to the next process reaches the agent."""
    async with Twin() as twin:
        async with open_house(database_url, folder, backends=backend(twin)) as first:
            await first.ensure("s", agent="scripted")
            turn = await first.prompt("s", "ask Deploy\nsay done")
            path = f"/v1/turns/{turn['turn_id']}/events/stream"
            asked = (await first.follow(path, "turn.requires_action"))[-1].data["data"]["permission_ids"]
            twin.drop()
            await first.follow("/v1/sessions/s/events/stream", "turn.resumed")
        async with open_house(database_url, folder, backends=backend(twin)) as second:
            pending = (await second.get("/v1/permissions", status="pending"))["items"]
            assert [one["permission_id"] for one in pending] == asked
            answer = await second.post(f"/v1/permissions/{asked[0]}/respond", {"outcome": "allow"})
            assert answer.status_code == 200, answer.text
            assert answer.json()["status"] == "allowed"
            assert (await second.ended(turn["turn_id"]))["status"] == "completed"


async def test_prompt_of_which_nothing_was_told_is_not_called_delivered_by_the_next_process(
    database_url: str, folder: Path
) -> None:
    """That the link broke was told, by us; whether the prompt had arrived is not known."""
    async with Twin() as twin:
        async with open_house(database_url, folder, backends=backend(twin)) as first:
            await first.ensure("s", agent="scripted")
            twin.faults.drop_before = "send_agent_message_request"
            twin.faults.refuse_connections = True
            turn = (await first.prompt("s", "say never"))["turn_id"]
            await first.follow(f"/v1/turns/{turn}/events/stream", "turn.reconciling")
        twin.faults.refuse_connections = False
        async with open_house(database_url, folder, backends=backend(twin)) as second:
            ended = await second.ended(turn)
            assert (ended["status"], ended["delivered"]) == ("indeterminate", "unknown")


async def test_stubborn_agent_is_forced_and_takes_the_next_prompt(database_url: str, folder: Path) -> None:
    """A cancel that was forced leaves a working agent behind: it is started anew before the next prompt."""
    async with daemon_house(database_url, folder) as (house, twin):
        session = (await house.ensure(agent="scripted"))["session_id"]
        turn = await house.prompt(session, "stubborn 20000\nsay never")
        await house.follow(f"/v1/turns/{turn['turn_id']}/events/stream", "turn.started")
        await twin.record.wait("send_agent_message_request")
        answer = await house.post(f"/v1/turns/{turn['turn_id']}/cancel")
        assert answer.json()["status"] == "cancelled"
        again = await house.run(session, "say now")
        assert again["output_text"] == "now"


# The whole process.


@contextmanager
def free_folder() -> Iterator[Path]:
    """A folder that PostgreSQL's unprivileged user can pass through."""
    with tempfile.TemporaryDirectory(prefix="alameda-kill-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


class Process:
    """Alameda as a process of its own, to be killed and started again."""

    def __init__(self, folder: Path, twin: Twin) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.environment = {
            **os.environ,
            "ALAMEDA_DATA_DIR": str(folder / "data"),
            "ALAMEDA_PORT": str(self.port),
            "ALAMEDA_ALLOWED_ROOTS": str(folder),
            "PASEO_URL": twin.http,
        }
        self.running: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it and wait until it takes work."""
        command = [sys.executable, "-m", "app", "serve"]
        self.running = subprocess.Popen(command, env=self.environment, stderr=subprocess.DEVNULL)
        async with httpx.AsyncClient(trust_env=False) as client:
            with anyio.fail_after(60):
                while True:
                    try:
                        if (await client.get(f"{self.url}/readyz")).status_code == 200:
                            return
                    except httpx.TransportError:
                        pass
                    await anyio.sleep(0.05)

    def end(self, number: signal.Signals) -> None:
        """End it by its pid."""
        if self.running is not None:
            self.running.send_signal(number)
            self.running.wait(30)
            self.running = None

    def client(self) -> httpx.AsyncClient:
        """A client with the first key."""
        key = (self.folder / "data" / "api-key").read_text().strip()
        return httpx.AsyncClient(
            base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=60, trust_env=False
        )


async def test_killed_again_and_again_in_mid_turn_the_turn_completes_with_all_its_text() -> None:
    """kill -9 of Alameda: the turn goes on in the daemon, the log has no hole, and nothing is sent twice."""
    with free_folder() as folder:
        async with Twin(window=0.005) as twin:
            process = Process(folder, twin)
            try:
                await process.start()
                async with process.client() as client:
                    body = {"agent": "scripted", "provider": "scripted", "cwd": str(folder)}
                    made = await client.put("/v1/sessions/s", json=body)
                    assert made.status_code == 201, made.text
                    prompt = {"prompt": f"chunks {400 * KILLS} 10 5\nsay end"}
                    turn = (await client.post("/v1/sessions/s/turns", json=prompt)).json()["turn_id"]
                for _ in range(KILLS):
                    await anyio.sleep(random.uniform(0.1, 0.6))
                    process.end(signal.SIGKILL)
                    await process.start()
                async with process.client() as client:
                    with anyio.fail_after(60 + 3 * KILLS):
                        ended: dict[str, Any] = {}
                        while not ended.get("ended_at"):
                            ended = (await client.get(f"/v1/turns/{turn}/wait?timeout_s=20")).json()
                    assert ended["status"] == "completed", ended
                    log: list[dict[str, Any]] = []
                    while True:
                        after = log[-1]["seq"] if log else 0
                        page = (await client.get(f"/v1/sessions/s/events?after={after}&limit=1000")).json()
                        if not page["items"]:
                            break
                        log += page["items"]
                assert [event["seq"] for event in log] == list(range(1, len(log) + 1))
                assert plain(told(log, turn)) == chunks(400 * KILLS)
                assert_ended_once(log, turn)
                assert twin.record.count("send_agent_message_request") == 1
                assert len(twin.running.agents) == 1
            finally:
                process.end(signal.SIGTERM)
