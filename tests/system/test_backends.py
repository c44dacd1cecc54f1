"""Several daemons as named backends: how they are, what they do, and that none is another's trouble."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from app.settings import BackendSettings
from tests.house import PATIENCE, House, open_house
from tests.paseo.command import heard, stand_in
from tests.paseo.twin import Twin
from tests.system.test_paseo_recovery import types

pytestmark = pytest.mark.anyio


def backends(**twins: Twin) -> dict[str, BackendSettings]:
    """Each twin as a backend of that name."""
    return {
        name: BackendSettings(type="paseo", url=twin.http, provider="scripted")
        for name, twin in twins.items()
    }


@asynccontextmanager
async def two_daemons(database_url: str, folder: Path) -> AsyncIterator[tuple[House, Twin, Twin]]:
    """The service over two daemons."""
    async with (
        Twin() as left,
        Twin() as right,
        open_house(database_url, folder, backends=backends(left=left, right=right)) as house,
    ):
        yield house, left, right


async def opened(house: House, backend: str) -> None:
    """A session on that backend, called like it."""
    await house.ensure(backend, agent="scripted", backend=backend)


async def started(house: House, session: str, prompt: str, **body: Any) -> str:
    """A turn that has said something."""
    turn = await house.prompt(session, prompt, **body)
    await house.follow(f"/v1/turns/{turn['turn_id']}/events/stream", "message.delta")
    return str(turn["turn_id"])


async def until(house: House, backend: str, **wanted: Any) -> dict[str, Any]:
    """The backend, once it is so."""
    with anyio.fail_after(PATIENCE):
        while True:
            seen: dict[str, Any] = await house.get(f"/v1/backends/{backend}")
            if all(seen[name] == value for name, value in wanted.items()):
                return seen
            await anyio.sleep(0.05)


async def test_each_is_shown_with_its_own_state_and_load(database_url: str, folder: Path) -> None:
    async with two_daemons(database_url, folder) as (house, _, right):
        await opened(house, "left")
        await started(house, "left", "say a\nsleep 60000")
        await house.prompt("left", "say b", multitask_strategy="enqueue")
        seen = {one["name"]: one for one in (await house.get("/v1/backends"))["items"]}
        assert seen["left"]["turns"] == {"running": 1, "queued": 1}
        assert seen["right"]["turns"] == {"running": 0, "queued": 0}
        assert [seen[name]["status"] for name in ("left", "right")] == ["up", "up"]
        assert all(seen[name]["counted"] for name in ("left", "right"))
        assert not seen["left"]["draining"]
        await right.kill()
        down = await until(house, "right", status="down")
        assert down["detail"]
        assert (await house.get("/v1/backends/left"))["status"] == "up"
        health = (await house.client.get("/health")).json()
        assert health["status"] == "degraded"


async def test_one_that_is_down_leaves_the_others_sessions_untouched(database_url: str, folder: Path) -> None:
    """Killed in mid-turn: its own turn ends truthfully; the other's runs through, and takes a next one."""
    async with two_daemons(database_url, folder) as (house, left, _):
        await opened(house, "left")
        await opened(house, "right")
        hurt = await started(house, "left", "chunks 300 20 5")
        whole = await started(house, "right", "chunks 60 20 5\nsay end")
        await left.kill()
        await until(house, "left", status="down")
        ended = await house.ended(whole)
        assert (ended["status"], ended["output_text"][-3:]) == ("completed", "end")
        assert (await house.run("right", "say next"))["output_text"] == "next"
        untouched = await house.log("right")
        assert not any(event["type"].startswith("backend.") for event in untouched)
        assert "turn.reconciling" not in types(untouched, whole)
        assert (await house.get("/v1/sessions/right"))["backend_status"] == "up"
        assert (await house.get("/v1/sessions/left"))["backend_status"] == "down"
        refused = await house.post("/v1/sessions/left/turns", {"prompt": "say no"})
        assert (refused.status_code, refused.json()["code"]) == (409, "session_busy")
        reused = await house.client.put("/v1/sessions/left", json={"agent": "scripted", "backend": "left"})
        assert (reused.status_code, reused.json()["backend_status"]) == (200, "down")
        fresh = await house.client.put("/v1/sessions/new", json={"agent": "scripted", "backend": "left"})
        assert (fresh.status_code, fresh.json()["code"]) == (503, "backend_unavailable")
        await left.start()
        assert (await house.ended(hurt))["status"] in ("indeterminate", "failed")
        after = await house.run("left", "say back", multitask_strategy="enqueue")
        assert after["output_text"] == "back"


async def test_one_that_is_away_at_the_start_is_waited_for_and_the_others_serve(
    database_url: str, folder: Path
) -> None:
    """Its sessions are there and say so; a prompt that may wait runs once it is back."""
    async with Twin() as left, Twin() as right:
        settings = backends(left=left, right=right)
        async with open_house(database_url, folder, backends=settings) as house:
            await opened(house, "left")
            await opened(house, "right")
        await left.kill()
        async with open_house(database_url, folder, backends=settings) as house:
            await until(house, "left", status="down")
            assert (await house.run("right", "say here"))["output_text"] == "here"
            assert (await house.get("/v1/sessions/left"))["backend_status"] == "down"
            refused = await house.post("/v1/sessions/left/turns", {"prompt": "say no"})
            assert (refused.status_code, refused.json()["code"]) == (503, "backend_unavailable")
            waiting = await house.prompt("left", "say back", multitask_strategy="enqueue")
            assert (await until(house, "left", turns={"running": 0, "queued": 1}))["status"] == "down"
            await left.start()
            assert (await house.ended(waiting["turn_id"]))["output_text"] == "back"
            await until(house, "left", status="up", turns={"running": 0, "queued": 0})


async def test_two_ways_to_daemons_are_no_trouble_to_each_other(database_url: str, folder: Path) -> None:
    """One by its socket, one by the command: whichever is down, the other's sessions go on."""
    command, env = stand_in(folder)
    far = BackendSettings(type="paseo-cli", command=command, env=env, provider="scripted")
    async with (
        Twin() as twin,
        open_house(database_url, folder, backends={**backends(near=twin), "far": far}) as house,
    ):
        await opened(house, "near")
        await opened(house, "far")
        (folder / "down").touch()
        refused = await house.client.put("/v1/sessions/new", json={"agent": "scripted", "backend": "far"})
        assert (refused.status_code, refused.json()["code"]) == (503, "backend_unavailable")
        assert (await house.run("near", "say here"))["output_text"] == "here"
        (folder / "down").unlink()
        await twin.kill()
        await until(house, "near", status="down")
        assert (await house.run("far", "say there"))["output_text"] == "there"
        assert (await house.get("/v1/backends/far"))["status"] == "up"


async def test_a_drained_backend_takes_no_new_turns_on_any_replica(database_url: str, folder: Path) -> None:
    """Running ones finish, queued ones wait, other backends go on; resumed, on any replica, all runs."""
    async with (
        Twin() as left,
        Twin() as right,
        open_house(database_url, folder, backends=backends(left=left, right=right)) as one,
        open_house(database_url, folder, backends=backends(left=left, right=right)) as two,
    ):
        await opened(one, "left")
        await opened(one, "right")
        running = await started(one, "left", "say on\nsleep 1500\nsay and on")
        queued = (await two.prompt("left", "say later", multitask_strategy="enqueue"))["turn_id"]
        drained = await one.post("/v1/backends/left/drain")
        assert (drained.status_code, drained.json()["draining"]) == (200, True)
        assert (await one.post("/v1/backends/left/drain")).status_code == 200, "repeating it is harmless"
        assert (await two.get("/v1/backends/left"))["draining"]
        for house in (one, two):
            for strategy in ("reject", "enqueue", "interrupt"):
                body = {"prompt": "say no", "multitask_strategy": strategy}
                refused = await house.post("/v1/sessions/left/turns", body)
                assert (refused.status_code, refused.json()["code"]) == (503, "draining")
                assert "retry-after" in refused.headers
        assert (await one.ended(running))["output_text"] == "onand on"
        assert (await two.run("right", "say other"))["output_text"] == "other"
        await until(two, "left", turns={"running": 0, "queued": 1})
        assert (await one.get(f"/v1/turns/{queued}"))["status"] == "queued"
        resumed = await two.post("/v1/backends/left/resume")
        assert (resumed.status_code, resumed.json()["draining"]) == (200, False)
        assert (await one.ended(queued))["output_text"] == "later"
        assert (await one.run("left", "say again"))["output_text"] == "again"


async def test_a_drain_outlives_a_restart(database_url: str, folder: Path) -> None:
    async with Twin() as left:
        async with open_house(database_url, folder, backends=backends(left=left)) as house:
            await opened(house, "left")
            await house.post("/v1/backends/left/drain")
        async with open_house(database_url, folder, backends=backends(left=left)) as house:
            assert (await house.get("/v1/backends/left"))["draining"]
            refused = await house.post("/v1/sessions/left/turns", {"prompt": "say no"})
            assert refused.json()["code"] == "draining"


@pytest.mark.parametrize("kind", ["paseo", "paseo-cli"])
async def test_a_drained_backend_makes_no_new_agents(database_url: str, folder: Path, kind: str) -> None:
    """Also not for a prompt; behind the command a new agent would even begin with a turn."""
    command, env = stand_in(folder)
    far = BackendSettings(type="paseo-cli", command=command, env=env, provider="scripted")
    async with Twin() as twin:
        settings = {"left": far if kind == "paseo-cli" else backends(left=twin)["left"]}
        async with open_house(database_url, folder, backends=settings) as house:
            await opened(house, "left")
            await house.post("/v1/backends/left/drain")
            made = twin.record.count("create_agent_request"), len(heard(folder))
            body = {"agent": "scripted", "backend": "left", "cwd": str(house.cwd)}
            for answer in (
                await house.client.put("/v1/sessions/new", json=body),
                await house.post("/v1/prompt-stream", {**body, "session_id": "new", "prompt": "say no"}),
            ):
                assert (answer.status_code, answer.json()["code"]) == (503, "draining")
                assert "retry-after" in answer.headers
            assert (await house.client.get("/v1/sessions/new")).status_code == 404
            assert (await house.client.put("/v1/sessions/left", json=body)).json()["opened"] == "reused"
            await house.post("/v1/sessions/left/close")
            again = await house.client.put("/v1/sessions/left", json=body)
            assert (again.status_code, again.json()["opened"]) == (200, "resumed")
            assert twin.record.count("create_agent_request") == made[0]
            assert not any(call["argv"][0] == "run" for call in heard(folder)[made[1] :])
            await house.post("/v1/backends/left/resume")
            assert (await house.client.put("/v1/sessions/new", json=body)).status_code == 201


async def test_a_drained_backend_replaces_no_agent_that_was_lost(database_url: str, folder: Path) -> None:
    """503, as often as it is asked; resumed, it does."""
    async with (
        Twin() as twin,
        open_house(database_url, folder, backends=backends(left=twin)) as house,
    ):
        session = await house.ensure("left", agent="scripted", backend="left")
        await house.post("/v1/sessions/left/close")
        del twin.running.agents[session["agent_session_id"]]
        await house.post("/v1/backends/left/drain")
        body = {"agent": "scripted", "backend": "left"}
        for _ in range(2):
            refused = await house.client.put("/v1/sessions/left", json=body)
            assert (refused.status_code, refused.json()["code"]) == (503, "draining")
        await house.post("/v1/backends/left/resume")
        assert (await house.client.put("/v1/sessions/left", json=body)).json()["opened"] == "replaced"
