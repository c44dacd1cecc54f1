"""Tasks over HTTP: what a task may be, how it is listed, and how each refusal is called."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.settings import Limits
from app.store.database import Address
from tests.api.test_bad_input import INVALID, JSON, assert_problem, unchanged
from tests.engine.task_house import Json, done, make, settled
from tests.house import House, open_house

STEP: list[tuple[str, str]] = [
    *[("prompt", one) for one in ('"\\ud800"', '"\\u0000"', '""', '" \\n"', "1", "[]", "null", "true")],
    *[("name", one) for one in ('""', '"a\\nb"', '"\\u0000"', '"\\ud800"', "1", "[]", f'"{"x" * 129}"')],
    *[("deadline_s", one) for one in ("0", "-1", "NaN", "1e400", '"9"', "true", "604801")],
    *[("max_attempts", one) for one in ("0", "-1", "11", "1.5", "true", '"1"', "9223372036854775808")],
    *[("on_failure", one) for one in ('"retry"', "null1", "true", '""')],
    *[("multitask_strategy", '"reject"'), ("attachments", "[]"), ("status", '"completed"')],
]
TASK: list[str] = [
    '{"session_id": "s-1"}',
    '{"session_id": "s-1", "steps": []}',
    '{"session_id": "s-1", "steps": {}}',
    '{"session_id": "s-1", "steps": null}',
    '{"session_id": "s-1", "steps": ["say x"]}',
    '{"session_id": "s-1", "steps": [{}]}',
    '{"steps": [{"prompt": "say x"}]}',
    '{"session_id": "-", "steps": [{"prompt": "say x"}]}',
    '{"session_id": "s-1\\u0000", "steps": [{"prompt": "say x"}]}',
    '{"session_id": "s-1", "steps": [{"prompt": "say x"}], "metadata": {}}',
    '{"session_id": "s-1", "steps": [{"name": "a", "prompt": "x"}, {"name": "a", "prompt": "y"}]}',
    '{"session_id": "s-1", "steps": [{"name": "step-2", "prompt": "x"}, {"prompt": "y"}]}',
    json.dumps({"session_id": "s-1", "steps": [{"prompt": "say x"}] * 101}),
]


async def test_a_task_that_cannot_be_run_so_is_refused(house: House, database_address: Address) -> None:
    """Its session, its steps, and what each of them says; nothing is kept of it."""
    await house.ensure("s-1")
    async with unchanged(database_address):
        for content in TASK:
            assert_problem(await house.client.post("/v1/tasks", content=content, headers=JSON), INVALID)
        for field, value in STEP:
            rest = "" if field == "prompt" else '"prompt": "say x", '
            steps = f'[{{"prompt": "say first"}}, {{{rest}"{field}": {value}}}]'
            content = f'{{"session_id": "s-1", "steps": {steps}}}'
            answer = await house.client.post("/v1/tasks", content=content.encode(), headers=JSON)
            assert_problem(answer, INVALID, *([(400, "malformed_json")] if value == "null1" else []))


async def test_what_is_said_of_a_step_is_optional_but_for_its_prompt(house: House) -> None:
    """Null is "not said"; a name is made up from the step's number, and a whole number may have a point."""
    await house.ensure("s-1")
    said = {"name": None, "deadline_s": None, "max_attempts": None, "on_failure": None}
    steps: list[Json] = [
        {"prompt": "say a", **said},
        {"prompt": "say b", "name": "Überprüfen", "max_attempts": 2.0},
    ]
    task = await done(house, await make(house, "s-1", *steps))
    assert [step["name"] for step in task["steps"]] == ["step-1", "Überprüfen"]
    assert task["status"] == "completed"


async def test_a_task_may_be_as_large_as_a_prompt(database_url: str, folder: Path) -> None:
    """Every prompt has its limit, the operator's own too; more than a plain body's megabyte is taken."""
    async with open_house(database_url, folder, limits=Limits(prompt_bytes=100_000)) as house:
        await house.ensure("s-1")
        steps = [{"prompt": "say first\nsleep 600"}, *({"prompt": "x" * 100_000} for _ in range(20))]
        task = await make(house, "s-1", *steps)
        assert (await house.post(f"/v1/tasks/{task['task_id']}/cancel")).status_code == 200
        steps[7] = {"prompt": "x" * 100_001}
        answer = await house.post("/v1/tasks", {"session_id": "s-1", "steps": steps})
        assert_problem(answer, INVALID)
        assert [error["loc"] for error in answer.json()["errors"]] == [["body", "steps", 7, "prompt"]]


async def test_a_session_that_takes_no_prompt_takes_no_task(house: House) -> None:
    """With the codes of a prompt; a task waits where a prompt would be told that the session is busy."""
    body = {"session_id": "s-1", "steps": [{"prompt": "say x"}]}
    assert_problem(await house.post("/v1/tasks", body), (404, "session_not_found"))
    await house.ensure("s-1")
    ended = await done(house, await make(house, "s-1", {"prompt": "fail x"}))
    await house.post("/v1/backends/demo/drain")
    assert_problem(await house.post("/v1/tasks", body), (503, "draining"))
    await house.post("/v1/backends/demo/resume")
    await house.post("/v1/sessions/s-1/close")
    assert_problem(await house.post("/v1/tasks", body), (409, "session_closed"))
    assert_problem(await house.post(f"/v1/tasks/{ended['task_id']}/retry"), (409, "session_closed"))


async def test_a_task_counts_as_one_open_turn(database_url: str, folder: Path) -> None:
    """However many steps it has: one turn of it is open at a time."""
    async with open_house(database_url, folder, limits=Limits(queue_per_session=2)) as house:
        await house.ensure("s-1")
        many = [{"prompt": "sleep 600"}, *({"prompt": "say x"} for _ in range(9))]
        for _ in range(2):
            await make(house, "s-1", *many)
        answer = await house.post("/v1/tasks", {"session_id": "s-1", "steps": many})
        assert_problem(answer, (429, "queue_full"))


async def test_only_what_did_not_complete_is_retried(house: House) -> None:
    """An open task is still under way, a completed one has nothing left to do."""
    await house.ensure("s-1")
    task = await make(house, "s-1", {"prompt": "sleep 600"})
    answer = await house.post(f"/v1/tasks/{task['task_id']}/retry")
    assert_problem(answer, (409, "turn_not_ended"))
    assert "task" in answer.json()["detail"]
    await house.post(f"/v1/tasks/{task['task_id']}/cancel")
    whole = await done(house, await make(house, "s-1", {"prompt": "say x"}))
    assert_problem(await house.post(f"/v1/tasks/{whole['task_id']}/retry"), INVALID)


async def test_a_task_says_no_more_than_the_contract(house: House) -> None:
    """The steps' prompts are not repeated; the answer names the task's place."""
    await house.ensure("s-1")
    answer = await house.post("/v1/tasks", {"session_id": "s-1", "steps": [{"name": "a", "prompt": "say x"}]})
    task = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/tasks/{task['task_id']}")
    assert task.keys() == {"task_id", "session_id", "status", "steps", "created_at", "ended_at"}
    assert [step.keys() for step in task["steps"]] == [{"name", "status", "turn_ids", "error"}]
    assert (task["status"], task["ended_at"], task["steps"][0]["status"]) == ("pending", None, "pending")
    ended = await done(house, task)
    assert ended["ended_at"] > ended["created_at"]


async def test_tasks_are_listed_newest_first_page_by_page(house: House) -> None:
    """By session and by state; a page never shifts under its reader."""
    made: dict[str, list[str]] = {"s-1": [], "s-2": []}
    for session in made:
        await house.ensure(session)
        for prompt in ("say a", "fail b", "say c"):
            task = await done(house, await make(house, session, {"prompt": prompt}))
            made[session].insert(0, task["task_id"])
    everything = [*made["s-2"], *made["s-1"]]

    async def ids(**params: Any) -> list[str]:
        found: list[str] = []
        cursor: dict[str, str] = {}
        while True:
            page = await house.get("/v1/tasks", **params, **cursor)
            found += [task["task_id"] for task in page["items"]]
            if page["next_cursor"] is None:
                return found
            cursor = {"cursor": page["next_cursor"]}

    assert await ids() == await ids(limit=2) == everything
    assert await ids(session_id="s-1", limit=1) == made["s-1"]
    assert await ids(status="failed", limit=1) == [made["s-2"][1], made["s-1"][1]]
    assert await ids(status="completed", session_id="s-2") == made["s-2"][::2]
    assert await ids(session_id="none") == await ids(status="cancelled") == []


async def test_a_repeated_admission_is_the_same_task(house: House) -> None:
    """By its Idempotency-Key, on both routes; the key stands for one request only."""
    await house.ensure("s-1")
    body = {"session_id": "s-1", "steps": [{"prompt": "fail x"}]}
    first = await house.post("/v1/tasks", body, **{"Idempotency-Key": "k"})
    await done(house, first.json())
    again = await house.post("/v1/tasks", body, **{"Idempotency-Key": "k"})
    assert (again.status_code, again.headers["idempotent-replayed"]) == (202, "true")
    task = first.json()["task_id"]
    assert (again.json()["task_id"], again.json()["status"]) == (task, "failed")
    other = {**body, "steps": [{"prompt": "say x"}]}
    for path, refused in (("/v1/tasks", other), ("/v1/sessions/s-1/turns", {"prompt": "x"})):
        answer = await house.post(path, refused, **{"Idempotency-Key": "k"})
        assert_problem(answer, (422, "idempotency_key_reused"))
    retried = await house.post(f"/v1/tasks/{task}/retry", None, **{"Idempotency-Key": "r"})
    assert "idempotent-replayed" not in retried.headers
    await done(house, retried.json())
    same = await house.post(f"/v1/tasks/{task}/retry", None, **{"Idempotency-Key": "r"})
    assert same.headers["idempotent-replayed"] == "true"
    assert len(same.json()["steps"][0]["turn_ids"]) == 2


@pytest.mark.parametrize("route", ["", "/cancel", "/retry"])
async def test_an_erased_session_takes_its_tasks_along(house: House, route: str) -> None:
    """What was named by a key is not run again either."""
    await house.ensure("s-1")
    body = {"session_id": "s-1", "steps": [{"prompt": "fail x"}, {"prompt": "say y"}]}
    made = await house.post("/v1/tasks", body, **{"Idempotency-Key": "k"})
    task = await settled(house, made.json()["task_id"])
    assert (await house.client.delete("/v1/sessions/s-1")).status_code == 204
    path = f"/v1/tasks/{task['task_id']}{route}"
    answer = await (house.post(path) if route else house.client.get(path))
    assert_problem(answer, (404, "task_not_found"))
    again = await house.post("/v1/tasks", body, **{"Idempotency-Key": "k"})
    assert_problem(again, (404, "task_not_found"))
    assert (await house.get("/v1/tasks"))["items"] == []
