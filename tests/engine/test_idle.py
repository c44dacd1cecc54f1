"""Sessions that nobody uses give their agent's resources back, and are as before when somebody does."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import asyncpg

from app.settings import BackendSettings, Timing
from app.store.database import Address
from tests.engine.replicas import agents
from tests.house import PATIENCE, House, durable, open_house
from tests.paseo.twin import Twin
from tests.system.test_paseo_recovery import eventually, told

IDLE_S = 0.5
TIMING = Timing(session_idle_s=IDLE_S, health_s=1.0, drain_s=0.0)
BUSY_MS = 1500
"""How long something is silent and busy: longer than a session may be idle."""
FORGETFUL = """
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("id") is None:
        continue
    result = {
        "initialize": {"protocolVersion": 1, "agentCapabilities": {}},
        "session/new": {"sessionId": "forgetful-1"},
        "session/prompt": {"stopReason": "end_turn"},
    }[message["method"]]
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""
"""An agent that can neither load nor resume a session."""


@asynccontextmanager
async def paseo_house(database_url: str, folder: Path) -> AsyncIterator[tuple[House, Twin]]:
    """A service that gives idle sessions up soon, over a daemon."""
    async with Twin() as twin:
        backends = {"paseo": BackendSettings(type="paseo", url=twin.http, provider="scripted")}
        async with open_house(database_url, folder, timing=TIMING, backends=backends) as house:
            yield house, twin


async def until_given_up(address: Address, session: str) -> None:
    """Return once nobody hosts the session, and nothing is left to do for it."""
    connection = await asyncpg.connect(**address.arguments)
    query = "SELECT host IS NULL AND NOT wanted FROM agent_sessions WHERE session_id = $1"
    try:
        with anyio.fail_after(PATIENCE):
            while not await connection.fetchval(query, session):  # noqa: ASYNC110 - it rings no bell
                await anyio.sleep(0.05)
    finally:
        await connection.close()


async def test_idle_agent_of_ours_is_ended_and_comes_back(
    database_address: Address, database_url: str, folder: Path
) -> None:
    """No process is left of it; the next prompt finds the same agent session."""
    async with open_house(database_url, folder, timing=TIMING) as house:
        made = await house.ensure("s")
        await house.run("s", "say one")
        await until_given_up(database_address, "s")
        await eventually(lambda: not agents())
        assert (await house.run("s", "say two"))["output_text"] == "two"
        assert (await house.get("/v1/sessions/s"))["agent_session_id"] == made["agent_session_id"]


async def test_idle_session_of_a_daemon_is_given_up_and_comes_back(
    database_address: Address, database_url: str, folder: Path
) -> None:
    """The agent lives on in the daemon, is not archived, and is prompted again."""
    async with paseo_house(database_url, folder) as (house, twin):
        made = await house.ensure("s", agent="scripted")
        await house.run("s", "say one")
        await until_given_up(database_address, "s")
        assert (await house.run("s", "say two"))["output_text"] == "two"
        assert (await house.get("/v1/sessions/s"))["agent_session_id"] == made["agent_session_id"]
        assert list(twin.running.agents) == [made["agent_session_id"]]
        assert twin.record.count("archive_agent_request") == 0


async def test_idle_session_that_is_ensured_is_the_same(
    database_address: Address, database_url: str, folder: Path
) -> None:
    """`reused`: nothing was lost while nobody hosted it."""
    async with open_house(database_url, folder, timing=TIMING) as house:
        made = await house.ensure("s")
        await until_given_up(database_address, "s")
        again = await house.ensure("s")
        assert (again["opened"], again["agent_session_id"]) == ("reused", made["agent_session_id"])


async def test_silent_turn_keeps_its_agent(database_url: str, folder: Path) -> None:
    """A turn that says nothing for long is no idle session."""
    async with open_house(database_url, folder, timing=TIMING) as house:
        await house.ensure("s")
        turn = await house.run("s", f"sleep {BUSY_MS / 1000}\nsay done")
        assert (turn["status"], turn["output_text"], turn["attempt"]) == ("completed", "done", 1)


async def test_pending_permission_keeps_its_agent(database_url: str, folder: Path) -> None:
    """However long a person takes."""
    async with open_house(database_url, folder, timing=TIMING) as house:
        await house.ensure("s")
        turn = await house.prompt("s", "ask Deploy")
        frames = await house.follow("/v1/sessions/s/events/stream", "turn.requires_action")
        (asked,) = durable(frames)[-1].data["data"]["permission_ids"]
        await anyio.sleep(3 * IDLE_S)  # nothing happens, which is the point
        answer = await house.post(f"/v1/permissions/{asked}/respond", {"outcome": "allow"})
        assert (answer.status_code, answer.json()["status"]) == (200, "allowed")
        assert (await house.ended(turn["turn_id"]))["output_text"] == "allowed"


async def test_somebody_elses_turn_keeps_the_session_hosted(database_url: str, folder: Path) -> None:
    """All of it is logged, however silent it is in between, and the session is `running` meanwhile."""
    async with paseo_house(database_url, folder) as (house, twin):
        made = await house.ensure("s", agent="scripted")
        async with house.stream("/v1/sessions/s/events/stream") as stream:
            await twin.prompt(made["agent_session_id"], f"say theirs\nsleep {BUSY_MS}\nsay late")
            await stream.until("notice")
            assert (await house.get("/v1/sessions/s"))["activity"] == "running"
            await stream.until("message.delta", 3)  # their prompt, and both answers
        log = await house.log("s")
        assert "theirs" in told(log, None)
        assert "late" in told(log, None)


async def test_agent_that_forgets_is_never_given_up(database_url: str, folder: Path) -> None:
    """It can neither load nor resume: ended, it would have lost what it knew."""
    program = folder / "forgetful.py"
    program.write_text(FORGETFUL)
    backends = {"forgetful": BackendSettings(type="acp", command=(sys.executable, str(program)))}
    async with open_house(database_url, folder, timing=TIMING, backends=backends) as house:
        await house.ensure("s", agent="forgetful")
        await house.run("s", "one")
        (before,) = agents("forgetful.py")
        await anyio.sleep(4 * IDLE_S)  # nothing happens, which is the point
        turn: dict[str, Any] = await house.run("s", "two")
        assert turn["status"] == "completed"
        assert [one.pid for one in agents("forgetful.py")] == [before.pid]
