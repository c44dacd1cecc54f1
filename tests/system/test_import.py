"""A session of a provider that is adopted: once at a time, and its history told once whatever breaks."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from app.settings import BackendSettings
from tests.house import House, open_house
from tests.paseo.twin import Twin
from tests.system.test_paseo_recovery import Process, free_folder

pytestmark = pytest.mark.anyio

ROWS = 3000
"""Rows of the history in the tests that break off its reading."""
LONG = "\n".join(f"think t{number}\nsay c{number}," for number in range(ROWS // 2))
"""The prompt that makes it."""


def backends(twin: Twin) -> dict[str, BackendSettings]:
    """The twin, whose providers give whole histories back."""
    return {"paseo": BackendSettings(type="paseo", url=twin.http, provider="scripted-history")}


@asynccontextmanager
async def daemon_house(database_url: str, folder: Path) -> AsyncIterator[tuple[House, Twin]]:
    """The service over a daemon of its own."""
    async with Twin(speed=10.0) as twin, open_house(database_url, folder, backends=backends(twin)) as house:
        yield house, twin


async def known_session(house: House, twin: Twin, *script: str) -> str:
    """A session that the provider knows, which no session of ours is on any more."""
    made = await house.ensure("old", agent="scripted-history")
    await house.run("old", "\n".join(script))
    await house.client.delete("/v1/sessions/old")
    return str(twin.agent(made["agent_session_id"]).session_id)


async def adopt(house: House, name: str, session: str, **more: Any) -> httpx.Response:
    """The answer to an ensure that adopts."""
    body = {"agent": "scripted-history", "cwd": str(house.cwd), "provider_session_id": session, **more}
    return await house.client.put(f"/v1/sessions/{name}", json=body)


async def whole_log(client: httpx.AsyncClient, name: str) -> list[dict[str, Any]]:
    """Every event of a session."""
    log: list[dict[str, Any]] = []
    while True:
        after = log[-1]["seq"] if log else 0
        page = (await client.get(f"/v1/sessions/{name}/events?after={after}&limit=1000")).json()
        if not page["items"]:
            return log
        log += page["items"]


def imports(twin: Twin) -> int:
    """How often the daemon was asked to import."""
    return twin.record.count("import_agent_request")


def texts(log: list[dict[str, Any]], role: str = "assistant") -> str:
    """What was said outside any turn."""
    return "".join(
        event["data"]["text"]
        for event in log
        if event["type"] == "message.delta" and event["turn_id"] is None and event["data"]["role"] == role
    )


async def test_an_adopted_session_has_its_history_once_and_goes_on(database_url: str, folder: Path) -> None:
    """`turn_id` is null for all of it; a later ensure, with the same body too, tells nothing again."""
    async with daemon_house(database_url, folder) as (house, twin):
        session = await known_session(house, twin, "say one", "tool read README.md")
        answer = await adopt(house, "new", session)
        assert (answer.status_code, answer.json()["opened"]) == (201, "imported")
        turn = await house.run("new", "say two")
        assert turn["output_text"] == "two"
        again = await adopt(house, "new", session)
        assert (again.status_code, again.json()["opened"]) == (200, "reused")
        assert again.json()["agent_session_id"] == answer.json()["agent_session_id"]
        log = await house.log("new")
        assert log[0]["type"] == "session.opened"
        assert log[0]["data"]["how"] == "imported"
        assert (texts(log), texts(log, "user").splitlines()[0]) == ("one", "say one")
        assert sum(event["type"] == "tool_call.completed" for event in log) == 1
        assert not any(event["type"] == "notice" for event in log)
        assert imports(twin) == 1


async def test_an_adopted_history_leaves_no_message_open(database_url: str, folder: Path) -> None:
    """Its last one is completed when the history ends, not when the next turn starts."""
    async with daemon_house(database_url, folder) as (house, twin):
        session = await known_session(house, twin, "say one")
        await adopt(house, "new", session)
        async with house.stream("/v1/sessions/new/events/stream") as stream:
            frames = await stream.until("message.completed", 2)
        assert [frame.data["data"]["text"] for frame in frames if frame.event == "message.completed"] == [
            "say one",
            "one",
        ]


async def test_closed_and_opened_again_it_tells_its_history_no_second_time(
    database_url: str, folder: Path
) -> None:
    async with daemon_house(database_url, folder) as (house, twin):
        session = await known_session(house, twin, "say one")
        await adopt(house, "new", session)
        await house.run("new", "say two")
        await house.post("/v1/sessions/new/close")
        answer = await adopt(house, "new", session)
        assert (answer.status_code, answer.json()["opened"]) == (200, "resumed")
        await house.run("new", "say three")
        assert texts(await house.log("new")) == "one"
        assert imports(twin) == 1


async def test_a_session_is_adopted_by_one_active_session_at_most(database_url: str, folder: Path) -> None:
    """409, for every owner; once it is closed another may, and then the first may not be opened again."""
    async with daemon_house(database_url, folder) as (house, twin):
        session = await known_session(house, twin, "say one")
        made = await house.post("/v1/api-keys", {"name": "o", "owner": "o", "scopes": ["prompt", "admin"]})
        assert (await adopt(house, "one", session)).status_code == 201
        for name, headers in (("two", {}), ("one", {"Authorization": f"Bearer {made.json()['key']}"})):
            body = {"agent": "scripted-history", "cwd": str(house.cwd), "provider_session_id": session}
            answer = await house.client.put(f"/v1/sessions/{name}", json=body, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (409, "session_conflict")
            assert answer.json()["fields"] == ["provider_session_id"]
        await house.post("/v1/sessions/one/close")
        assert (await adopt(house, "two", session)).status_code == 201
        answer = await adopt(house, "one", session)
        assert (answer.status_code, answer.json()["code"]) == (409, "session_conflict")
        await house.post("/v1/sessions/two/close")
        assert (await adopt(house, "one", session)).json()["opened"] == "resumed"


async def test_a_session_that_is_there_is_not_said_to_be_on_what_it_has_not_adopted(
    database_url: str, folder: Path
) -> None:
    """409 naming the field, open or closed, for an update too; its own id is no difference."""
    async with daemon_house(database_url, folder) as (house, twin):
        session = await known_session(house, twin, "say one")
        await house.ensure("plain", agent="scripted-history")
        await adopt(house, "adopted", session)
        for name, wanted in (("plain", session), ("adopted", "another")):
            for more in ({}, {"if_exists": "update", "title": "x"}):
                answer = await adopt(house, name, wanted, **more)
                assert (answer.status_code, answer.json()["code"]) == (409, "session_conflict")
                assert answer.json()["fields"] == ["provider_session_id"]
        assert (await adopt(house, "adopted", session)).json()["opened"] == "reused"
        await house.post("/v1/sessions/plain/close")
        assert (await adopt(house, "plain", "another")).status_code == 409
        assert imports(twin) == 1


async def test_a_failed_import_leaves_nothing(database_url: str, folder: Path) -> None:
    """502 with the backend's words, and the session may be adopted by the next who asks."""
    async with daemon_house(database_url, folder) as (house, _):
        answer = await adopt(house, "new", "s-nowhere")
        assert (answer.status_code, answer.json()["code"]) == (502, "backend_error")
        assert (await house.client.get("/v1/sessions/new")).status_code == 404
        assert (await adopt(house, "other", "s-nowhere")).status_code == 502


async def test_what_replaces_a_lost_adopted_agent_adopts_nothing(database_url: str, folder: Path) -> None:
    """It starts without the history, so the provider's session is free again."""
    async with daemon_house(database_url, folder) as (house, twin):
        session = await known_session(house, twin, "say one")
        made = (await adopt(house, "one", session)).json()
        await house.run("one", "say two")
        await house.post("/v1/sessions/one/close")
        del twin.running.agents[made["agent_session_id"]]
        again = await adopt(house, "one", session)
        assert (again.status_code, again.json()["opened"]) == (200, "replaced")
        assert (await adopt(house, "two", session)).json()["opened"] == "imported"
        assert texts(await house.log("one")) == "one"
        for again in (await adopt(house, "one", session), await adopt(house, "one", session)):
            assert (again.status_code, again.json()["opened"]) == (200, "reused"), "the same body as ever"
        assert (await adopt(house, "one", "another")).json()["fields"] == ["provider_session_id"]
        await house.post("/v1/sessions/one/close")
        assert (await adopt(house, "one", session)).json()["opened"] == "resumed"
        assert imports(twin) == 2


async def test_ensures_of_two_replicas_at_once_adopt_once(database_url: str, folder: Path) -> None:
    """The same name ten times: one agent. Ten names: one gets it, the others a 409."""
    async with (
        Twin(speed=10.0) as twin,
        open_house(database_url, folder, backends=backends(twin)) as one,
        open_house(database_url, folder, backends=backends(twin)) as two,
    ):
        session = await known_session(one, twin, "say one")
        for names in (["same"] * 10, [f"s-{number}" for number in range(10)]):
            answers: list[httpx.Response] = []
            before = imports(twin)

            async def ensure(house: House, name: str, answers: list[httpx.Response] = answers) -> None:
                answers.append(await adopt(house, name, session))

            async with anyio.create_task_group() as tasks:
                for number, name in enumerate(names):
                    tasks.start_soon(ensure, (one, two)[number % 2], name)
            good = [answer for answer in answers if answer.is_success]
            assert len({answer.json()["agent_session_id"] for answer in good}) == 1
            assert imports(twin) == before + 1
            assert {answer.status_code for answer in answers} - {200} == (
                {201} if names[0] == "same" else {201, 409}
            )
            assert [answer.status_code for answer in answers].count(201) == 1
            await one.post(f"/v1/sessions/{good[0].json()['session_id']}/close")


async def test_owners_at_once_adopt_once(database_url: str, folder: Path) -> None:
    async with daemon_house(database_url, folder) as (house, twin):
        session = await known_session(house, twin, "say one")
        scopes = ["prompt", "admin"]
        keys = [
            (await house.post("/v1/api-keys", {"name": "o", "owner": f"o{n}", "scopes": scopes})).json()[
                "key"
            ]
            for n in range(6)
        ]
        answers: list[int] = []

        async def ensure(key: str) -> None:
            body = {"agent": "scripted-history", "cwd": str(house.cwd), "provider_session_id": session}
            answer = await house.client.put(
                "/v1/sessions/s", json=body, headers={"Authorization": f"Bearer {key}"}
            )
            answers.append(answer.status_code)

        async with anyio.create_task_group() as tasks:
            for key in keys:
                tasks.start_soon(ensure, key)
        assert sorted(answers) == [201, *[409] * 5]


async def until_in_the_middle(client: httpx.AsyncClient) -> None:
    """Wait until a part of a long history has been told to `new`, and see that it was not all."""
    told = 0
    while told < ROWS // 20:
        told = (await client.get("/v1/sessions/new")).json()["last_seq"]
    assert told < ROWS, "it is in the middle"


async def told_to_the_end(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    """The log of `new`, once its long history has been told to its end."""
    log: list[dict[str, Any]] = []
    with anyio.fail_after(60):
        while not texts(log).endswith(f"c{ROWS // 2 - 1},"):
            await anyio.sleep(0.05)
            log = await whole_log(client, "new")
    return log


async def test_killed_in_mid_import_the_history_is_told_once(folder: Path) -> None:
    """kill -9 while it is read: the next process tells the rest, all of it as history, none of it twice."""
    with free_folder() as own:
        async with Twin(speed=1000.0) as twin:
            process = Process(own, twin)
            try:
                await process.start()
                body = {"agent": "scripted-history", "provider": "scripted-history", "cwd": str(own)}
                async with process.client() as client:
                    made = (await client.put("/v1/sessions/old", json=body)).json()
                    turn = (await client.post("/v1/sessions/old/turns", json={"prompt": LONG})).json()
                    await client.get(f"/v1/turns/{turn['turn_id']}/wait?timeout_s=60")
                    await client.delete("/v1/sessions/old")
                    session = twin.agent(made["agent_session_id"]).session_id
                    adopting = {**body, "provider_session_id": session}
                    twin.faults.late["fetch_agent_timeline_request"] = 0.3
                    assert (await client.put("/v1/sessions/new", json=adopting)).status_code == 201
                    await until_in_the_middle(client)
                process.end(signal.SIGKILL)
                twin.faults.late.clear()
                await process.start()
                async with process.client() as client:
                    log = await told_to_the_end(client)
                assert texts(log) == "".join(f"c{number}," for number in range(ROWS // 2))
                assert not any(event["type"] == "notice" for event in log)
                assert imports(twin) == 1
            finally:
                process.end(signal.SIGTERM)


async def test_a_daemon_started_anew_in_mid_import_has_its_history_told_on(
    database_url: str, folder: Path
) -> None:
    """From the row where it broke off, in the daemon's new epoch: nothing lost, nothing twice."""
    async with daemon_house(database_url, folder) as (house, twin):
        twin.speed = 1000.0
        session = await known_session(house, twin, LONG)
        twin.faults.late["fetch_agent_timeline_request"] = 0.3
        assert (await adopt(house, "new", session)).status_code == 201
        await until_in_the_middle(house.client)
        await twin.restart()
        twin.faults.late.clear()
        log = await told_to_the_end(house.client)
        assert texts(log) == "".join(f"c{number}," for number in range(ROWS // 2))
        assert not any(event["type"] == "notice" for event in log)
        assert (await house.run("new", "say on"))["output_text"] == "on"
        assert imports(twin) == 1


async def test_killed_before_the_import_was_answered_it_is_found_and_not_made_again(folder: Path) -> None:
    """kill -9 while the daemon adopts: the next ensure finds the agent that came of it, with its history."""
    with free_folder() as own:
        async with Twin(speed=1000.0) as twin:
            process = Process(own, twin)
            try:
                await process.start()
                body = {"agent": "scripted-history", "provider": "scripted-history", "cwd": str(own)}
                async with process.client() as client:
                    made = (await client.put("/v1/sessions/old", json=body)).json()
                    turn = (await client.post("/v1/sessions/old/turns", json={"prompt": "say one"})).json()
                    await client.get(f"/v1/turns/{turn['turn_id']}/wait?timeout_s=60")
                    await client.delete("/v1/sessions/old")
                    adopting = {
                        **body,
                        "provider_session_id": twin.agent(made["agent_session_id"]).session_id,
                    }
                    twin.faults.late["import_agent_request"] = 0.5

                    async def adopted() -> None:
                        with suppress(httpx.HTTPError):
                            await client.put("/v1/sessions/new", json=adopting)

                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(adopted)
                        await twin.record.wait("import_agent_request")
                        process.end(signal.SIGKILL)
                await process.start()
                async with process.client() as client:
                    answer = await client.put("/v1/sessions/new", json=adopting)
                    assert answer.status_code in (200, 201)
                    log: list[dict[str, Any]] = []
                    with anyio.fail_after(30):
                        while "one" not in texts(log):
                            await anyio.sleep(0.05)
                            log = await whole_log(client, "new")
                assert texts(log) == "one"
                assert imports(twin) == 1
            finally:
                process.end(signal.SIGTERM)
