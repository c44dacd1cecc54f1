"""`/metrics`: what is counted is what happened, and no label says whose it was."""

from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.engine.replicas import two_houses
from tests.house import House

pytestmark = pytest.mark.anyio


async def sampled(house: House) -> dict[tuple[str, ...], float]:
    """Every sample, by its name and the values of its labels."""
    answer = await house.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def test_it_tells_turns_by_end_events_latency_leases_backends_and_streams(house: House) -> None:
    await house.ensure("s-1")
    await house.run("s-1", "say one")
    await house.run("s-1", "fail out of credit")
    running = await house.prompt("s-1", "say on\nsleep 600")
    queued = await house.prompt("s-1", "say later", multitask_strategy="enqueue")
    async with house.stream("/v1/sessions/s-1/events/stream") as stream:
        await stream.until("message.delta", 2)
        seen = await sampled(house)
    assert seen["alameda_turns_ended_total", "completed"] == 1
    assert seen["alameda_turns_ended_total", "failed"] == 1
    assert seen["alameda_turns_ended_total", "cancelled"] == 0
    assert seen["alameda_events_appended_total", "turn.queued"] == 4
    assert seen["alameda_events_appended_total", "turn.completed"] == 1
    assert seen["alameda_append_seconds_count",] > 0
    assert seen["alameda_append_seconds_bucket", "+Inf"] == seen["alameda_append_seconds_count",]
    assert seen["alameda_streams_open",] == 1
    assert seen["alameda_leases_held",] == 1
    assert seen["alameda_database_up",] == 1
    assert seen["alameda_backend_up", "demo"] == 1
    assert seen["alameda_backend_up", "paseo"] == 0
    assert seen["alameda_turns_open", "demo", "running"] == 1
    assert seen["alameda_turns_open", "demo", "queued"] == 1
    await house.client.delete(f"/v1/turns/{queued['turn_id']}")
    await house.post(f"/v1/turns/{running['turn_id']}/cancel")
    after = await sampled(house)
    assert after["alameda_turns_ended_total", "cancelled"] == 2, "one of them was never started"
    log = await house.log("s-1")
    appended = sum(value for name, value in after.items() if name[0] == "alameda_events_appended_total")
    assert appended == len(log)


async def test_t32_t30_it_needs_a_key_and_names_nobody(house: House) -> None:
    await house.ensure("canary-session", chat_id="canary-chat", labels={"x": "canary-label"})
    await house.run("canary-session", "say canary-prompt")
    text = (await house.client.get("/metrics")).text
    assert "canary" not in text
    assert "trn_" not in text
    async with httpx.AsyncClient(base_url=house.url, trust_env=False) as stranger:
        assert (await stranger.get("/metrics")).status_code == 401


async def test_each_replica_counts_what_it_wrote_itself(database_url: str, folder: Path) -> None:
    async with two_houses(database_url, folder) as (first, second):
        await first.ensure("s-1")
        await second.run("s-1", "say one")
        one, two = await sampled(first), await sampled(second)
        ended = ("alameda_turns_ended_total", "completed")
        assert one[ended] + two[ended] == 1
        assert one["alameda_leases_held",] + two["alameda_leases_held",] == 1
