"""Admission once, and what a caller gets for it: replays, waiting, lost connections, another try."""

from pathlib import Path
from typing import Any

import anyio
import asyncpg
import httpx
import pytest

from app.store.database import Address
from tests.engine.test_turns import asked, held, respond, seen, told, types_of
from tests.house import House, Stream, open_house
from tests.system.test_paseo_recovery import daemon_house

KEY = {"Idempotency-Key": "k"}
HOLDS_KEY = """
    SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND pid IN (SELECT pid FROM pg_locks WHERE NOT granted)
"""
"""Whether a transaction holds a key and waits for something else."""


async def change(address: Address, statement: str) -> None:
    """Change the test's database behind the service's back."""
    connection = await asyncpg.connect(**address.arguments)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def prompted(house: House, session: str, prompt: str = "say x", **headers: str) -> httpx.Response:
    """The answer to a prompt."""
    return await house.post(f"/v1/sessions/{session}/turns", {"prompt": prompt}, **headers)


# Idempotency-Key.


async def test_key_is_one_over_all_prompt_routes_and_sessions(house: House) -> None:
    """Its hash covers route, session and body: anything else under it is 422, and admits nothing."""
    for name in ("s-1", "s-2"):
        await house.ensure(name)
    first = await prompted(house, "s-1", **KEY)
    turn = (await house.ended(first.json()["turn_id"]))["turn_id"]
    stream = {"session_id": "s-1", "agent": "demo", "cwd": str(house.cwd), "prompt": "say x"}
    for answer in (
        await prompted(house, "s-2", **KEY),
        await prompted(house, "s-1", "say y", **KEY),
        await house.post("/v1/prompt-stream", stream, **KEY),
        await house.post(f"/v1/turns/{turn}/retry", None, **KEY),
    ):
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    for name, count in (("s-1", 1), ("s-2", 0)):
        assert len((await house.get(f"/v1/sessions/{name}/turns"))["items"]) == count


async def test_same_key_while_the_first_is_in_flight_is_refused(
    house: House, database_address: Address
) -> None:
    """409 `request_in_progress`; the first is admitted as if nothing had been."""
    await house.ensure("s")
    connection = await asyncpg.connect(**database_address.arguments)
    first: list[httpx.Response] = []

    async def prompt() -> None:
        first.append(await prompted(house, "s", **KEY))

    try:
        async with anyio.create_task_group() as tasks:
            locking = connection.transaction()
            await locking.start()
            await connection.execute("SELECT FROM agent_sessions FOR UPDATE")
            tasks.start_soon(prompt)
            with anyio.fail_after(10):
                while not await connection.fetchval(HOLDS_KEY):  # noqa: ASYNC110 - locks have no event
                    await anyio.sleep(0.01)
            second = await prompted(house, "s", **KEY)
            assert (second.status_code, second.json()["code"]) == (409, "request_in_progress")
            assert "idempotent-replayed" not in second.headers
            await locking.commit()
    finally:
        await connection.close()
    assert first[0].status_code == 202
    again = await prompted(house, "s", **KEY)
    assert again.json()["turn_id"] == first[0].json()["turn_id"]
    assert again.headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize(("age", "is_kept"), [("23 hours", True), ("25 hours", False)])
async def test_admission_is_kept_for_a_day(
    age: str, is_kept: bool, house: House, database_address: Address
) -> None:
    """After that the key is free again."""
    await house.ensure("s")
    turn = (await prompted(house, "s", **KEY)).json()["turn_id"]
    await house.ended(turn)
    await change(database_address, f"UPDATE idempotency_keys SET created_at = now() - interval '{age}'")
    await house.service.rooms.healths.look()
    again = await prompted(house, "s", **KEY)
    assert ("idempotent-replayed" in again.headers) is is_kept
    assert (again.json()["turn_id"] == turn) is is_kept
    await house.ended(again.json()["turn_id"])


async def test_refusals_of_every_kind_leave_the_key_free(house: House) -> None:
    """Only admissions are kept: not a bad body, a missing session, a busy one, a turn that is still open."""
    async with held(house) as (session, turn):
        for answer, status in (
            (await house.post(f"/v1/sessions/{session}/turns", {"prompt": 7}, **KEY), 422),
            (await prompted(house, "missing", **KEY), 404),
            (await prompted(house, session, **KEY), 409),
            (await house.post(f"/v1/turns/{turn}/retry", None, **KEY), 409),
        ):
            assert answer.status_code == status
            assert "idempotent-replayed" not in answer.headers
    assert (await prompted(house, session, "say free", **KEY)).status_code == 202


async def test_replay_is_a_fresh_view_in_the_form_now_asked_for(house: House) -> None:
    """The turn as it stands now, at once, waited for, or streamed from its beginning; also while draining."""
    await house.ensure("s")
    first = await prompted(house, "s", "ask Go?", **KEY)
    permission = await asked(house, "s")
    now = await prompted(house, "s", "ask Go?", **KEY)
    assert (now.status_code, now.json()["status"]) == (202, "requires_action")
    await respond(house, permission, "allow")
    waited = await prompted(house, "s", "ask Go?", Prefer="wait=20", **KEY)
    assert (waited.status_code, waited.json()["status"]) == (200, "completed")
    streamed = await prompted(house, "s", "ask Go?", Accept="text/event-stream", **KEY)
    path = f"/v1/turns/{first.json()['turn_id']}/events/stream"
    assert streamed.content == b"".join(frame.raw for frame in await house.follow(path, "stream.closing"))
    for answer in (now, waited, streamed):
        assert answer.headers["idempotent-replayed"] == "true"
        assert answer.headers["location"] == first.headers["location"]
    await house.post("/v1/backends/demo/drain")
    drained = await prompted(house, "s", "ask Go?", **KEY)
    assert (drained.status_code, drained.json()["turn_id"]) == (200, first.json()["turn_id"])


async def test_erased_turn_is_not_run_again(house: House) -> None:
    """Its session was deleted and made again: the key stands for a turn that is gone."""
    await house.ensure("s")
    await house.ended((await prompted(house, "s", **KEY)).json()["turn_id"])
    assert (await house.client.delete("/v1/sessions/s")).status_code == 204
    await house.ensure("s")
    again = await prompted(house, "s", **KEY)
    assert (again.status_code, again.json()["code"]) == (404, "turn_not_found")
    assert (await house.get("/v1/sessions/s/turns"))["items"] == []


async def test_retry_with_a_key_is_one_new_turn(house: House) -> None:
    """A lost answer to a retry costs nothing."""
    await house.ensure("s")
    turn = (await house.run("s", "say x"))["turn_id"]
    one = await house.post(f"/v1/turns/{turn}/retry", None, **KEY)
    two = await house.post(f"/v1/turns/{turn}/retry", None, **KEY)
    assert one.json()["turn_id"] == two.json()["turn_id"] != turn
    assert two.headers["idempotent-replayed"] == "true"
    await house.ended(one.json()["turn_id"])
    assert len((await house.get("/v1/sessions/s/turns"))["items"]) == 2


async def test_key_outlives_a_restart_of_ours(database_url: str, folder: Path) -> None:
    """It is kept in the transaction that admits."""
    async with open_house(database_url, folder) as first:
        await first.ensure("s")
        turn = (await prompted(first, "s", **KEY)).json()["turn_id"]
    async with open_house(database_url, folder) as second:
        again = await prompted(second, "s", **KEY)
        assert (again.json()["turn_id"], again.headers["idempotent-replayed"]) == (turn, "true")


# Waiting.


async def test_waiting_that_did_not_suffice_is_202(house: House) -> None:
    """`Prefer: wait` and `/wait`: the open turn as it stands, never a 504; the turn goes on."""
    await house.ensure("s")
    answer = await prompted(house, "s", "ask Go?", Prefer="wait=1")
    assert (answer.status_code, answer.json()["ended_at"]) == (202, None)
    path = f"/v1/turns/{answer.json()['turn_id']}/wait"
    answer = await house.client.get(path, params={"timeout_s": 0.1})
    assert (answer.status_code, answer.json()["status"]) == (202, "requires_action")
    for seconds in (-1, 61):
        assert (await house.client.get(path, params={"timeout_s": seconds})).status_code == 422
    await respond(house, await asked(house, "s"), "allow")
    assert (await house.ended(answer.json()["turn_id"]))["status"] == "completed"


# Lost connections.


@pytest.mark.parametrize("route", ["/v1/sessions/s/turns", "/v1/prompt-stream"])
async def test_lost_answer_of_a_prompt_cancels_it_on_both_routes(route: str, house: House) -> None:
    """`on_disconnect: cancel`."""
    await house.ensure("s")
    body: dict[str, Any] = {"prompt": "say begun\nsleep 600", "on_disconnect": "cancel"}
    if route == "/v1/prompt-stream":
        body |= {"session_id": "s", "agent": "demo", "cwd": str(house.cwd)}
    headers = {"Accept": "text/event-stream"}
    async with house.client.stream("POST", route, json=body, headers=headers) as answer:
        await Stream(answer, answer.aiter_raw()).until("message.delta")
        turn = answer.headers["location"].rpartition("/")[2]
    events = await told(house, turn)
    assert events[-1]["data"] == {"cause": "disconnect", "cancel_outcome": "stopped"}


async def test_only_the_answer_of_the_prompt_is_the_connection_that_counts(house: House) -> None:
    """A stream that was opened beside it may be lost; and an answer that was no stream is no connection."""
    await house.ensure("s")
    body = {"prompt": "ask Go?", "on_disconnect": "cancel"}
    turn = (await house.post("/v1/sessions/s/turns", body)).json()["turn_id"]
    async with house.stream(f"/v1/turns/{turn}/events/stream") as beside:
        await beside.until("permission.requested")
    with anyio.move_on_after(0.3):
        await house.client.get(f"/v1/turns/{turn}/wait", params={"timeout_s": 60})
    assert (await house.get(f"/v1/turns/{turn}"))["status"] == "requires_action"
    await respond(house, await asked(house, "s"), "allow")
    assert (await house.ended(turn))["status"] == "completed"


async def test_prompt_that_is_waited_for_is_not_cancelled_with_its_connection(house: House) -> None:
    """`on_disconnect` is of the SSE answer only."""
    await house.ensure("s")
    body = {"prompt": "ask Go?", "on_disconnect": "cancel"}

    async def prompt() -> None:
        await house.post("/v1/sessions/s/turns", body, Prefer="wait=60")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(prompt)
        permission = await asked(house, "s")
        tasks.cancel_scope.cancel()
    await respond(house, permission, "allow")
    [turn] = (await house.get("/v1/sessions/s/turns"))["items"]
    assert (await house.ended(turn["turn_id"]))["status"] == "completed"


# Out of the queue, and again.


async def test_taking_out_of_the_queue_races_with_the_start(house: House) -> None:
    """204 and it never started, or 409 and it ran: nothing in between."""

    async def race(number: int) -> None:
        name = f"s-{number}"
        await house.ensure(name)
        first = await house.prompt(name, "say first")
        second = (await house.prompt(name, "say second", multitask_strategy="enqueue"))["turn_id"]
        await anyio.sleep(number * 0.004)
        answer = await house.client.delete(f"/v1/turns/{second}")
        await house.ended(first["turn_id"])
        types = types_of(await told(house, second))
        if answer.status_code == 204:
            assert types == ["turn.queued", "turn.cancelled"]
        else:
            assert (answer.status_code, answer.json()["code"]) == (409, "turn_not_queued")
            assert types[-1] == "turn.completed"

    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(race, number)


async def test_retry_takes_the_prompt_with_all_that_went_with_it(database_url: str, folder: Path) -> None:
    """Attachments and limits; it is admitted like any other, by the strategy of the first."""
    async with daemon_house(database_url, folder, window=0.005) as (house, _):
        await house.ensure("s", agent="scripted")
        attachment = {"type": "text", "name": "log.txt", "text": "the log"}
        limits = {"queue_timeout_s": 5, "deadline_s": 6, "idle_timeout_s": 7, "max_attempts": 1}
        turn = await house.run("s", "blocks", attachments=[attachment], metadata={"a": 1}, **limits)
        assert turn["output_text"].endswith("the log")
        retry = f"/v1/turns/{turn['turn_id']}/retry"
        running = await house.prompt("s", "hang")
        busy = await house.post(retry)
        assert (busy.status_code, busy.json()["code"]) == (409, "session_busy")
        await house.post(f"/v1/turns/{running['turn_id']}/cancel")
        again = await house.post(retry, None, Prefer="wait=20")
        found = again.json()
        assert (again.status_code, found["status"], found["retry_of"]) == (200, "completed", turn["turn_id"])
        same = ("prompt", "max_attempts", "metadata", "output_text")
        assert {name: found[name] for name in same} == {name: turn[name] for name in same}
        await house.post("/v1/sessions/s/close", {})
        closed = await house.post(retry)
        assert (closed.status_code, closed.json()["code"]) == (409, "session_closed")


async def test_turn_that_was_taken_out_of_the_queue_may_be_retried(house: House) -> None:
    """It has ended; whether it ever ran does not matter."""
    async with held(house) as (session, _):
        queued = (await house.prompt(session, "say x", multitask_strategy="enqueue"))["turn_id"]
        await house.client.delete(f"/v1/turns/{queued}")
        again = await house.post(f"/v1/turns/{queued}/retry")
        assert (again.status_code, again.json()["status"]) == (202, "queued")
        await seen(house, session, "turn.queued", 3)
    assert (await house.ended(again.json()["turn_id"]))["output_text"] == "x"
