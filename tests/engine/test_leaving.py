"""A replica that goes: unready first, so that balancers see it; then it takes no new work."""

from pathlib import Path

from app.settings import Timing
from tests.engine.replicas import two_houses


async def test_replica_that_leaves_is_unready_and_still_takes_what_comes(
    database_url: str, folder: Path
) -> None:
    """An ensure and a prompt are accepted, and another replica does the work."""
    async with two_houses(database_url, folder) as (leaving, other):
        leaving.service.rooms.lifecycle.leave()
        ready = await leaving.client.get("/readyz")
        assert (ready.status_code, ready.json()["detail"]) == (503, "draining")
        assert (await other.client.get("/readyz")).status_code == 200
        await leaving.ensure("s-1")
        turn = await leaving.prompt("s-1", "say hello")
        ended = await leaving.ended(turn["turn_id"])
        assert (ended["status"], ended["output_text"]) == ("completed", "hello")


async def test_replica_that_drains_refuses_new_work_and_answers_the_rest(
    database_url: str, folder: Path
) -> None:
    """503 `draining` with Retry-After for what would begin something; a prompt it had taken is told again."""
    async with two_houses(database_url, folder) as (draining, other):
        await other.ensure("s-1")
        body, key = {"prompt": "say hello"}, {"Idempotency-Key": "k-1"}
        taken = await draining.post("/v1/sessions/s-1/turns", body, **key)
        turn = taken.json()["turn_id"]
        await other.ended(turn)
        draining.service.rooms.lifecycle.drain()
        for refused in (
            await draining.post("/v1/sessions/s-1/turns", body),
            await draining.client.put("/v1/sessions/s-2", json={"agent": "demo", "cwd": str(draining.cwd)}),
        ):
            assert (refused.status_code, refused.json()["code"]) == (503, "draining")
            assert int(refused.headers["Retry-After"]) > 0
        again = await draining.post("/v1/sessions/s-1/turns", body, **key)
        assert (again.status_code, again.json()["turn_id"]) == (200, turn)
        assert again.headers["Idempotent-Replayed"] == "true"
        assert (await draining.get(f"/v1/turns/{turn}"))["status"] == "completed"
        assert (await draining.post(f"/v1/turns/{turn}/cancel")).json()["cancel_outcome"] == "already_ended"
        assert (await draining.get("/v1/sessions/s-1/events"))["last_seq"] > 0


async def test_request_that_waits_is_answered_before_its_replica_is_gone(
    database_url: str, folder: Path
) -> None:
    """A wait for the end of a turn says how the turn stands."""
    async with two_houses(database_url, folder, timing=Timing(drain_s=0.0, health_s=1.0)) as (first, other):
        await other.ensure("s-1")
        turn = (await other.prompt("s-1", "sleep 600"))["turn_id"]
        first.service.rooms.lifecycle.drain()
        waited = await first.client.get(f"/v1/turns/{turn}/wait", params={"timeout_s": 60})
        assert (waited.status_code, waited.json()["status"]) == (202, "running")
