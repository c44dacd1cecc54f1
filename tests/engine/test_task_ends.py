"""No way in which a step's turn ends leaves its task behind: looked at in every commit, and cut everywhere.

A trigger of the test's notes any commit after which a task is open without exactly one open turn, or has
ended with one; another cuts the database's connection before one statement in so many.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import asyncpg
import pytest

from app.settings import BackendSettings, Limits
from app.store.database import Address
from tests.engine.replicas import two_houses
from tests.engine.task_house import Json, assert_whole, done, make, settled, statuses, turns
from tests.engine.test_tasks import begun
from tests.house import PATIENCE, House, open_house
from tests.paseo.twin import Twin

pytestmark = pytest.mark.anyio

_INVARIANT = """
CREATE TABLE holes (task text, at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION look_at_task() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE row_ jsonb := to_jsonb(NEW);
BEGIN
    INSERT INTO holes (task)
    SELECT t.id FROM tasks t LEFT JOIN turns u ON u.task = t.id AND u.ended_at IS NULL
    WHERE t.id = coalesce(row_->>'task', row_->>'id')
    GROUP BY t.id HAVING count(u.id) <> (t.ended_at IS NULL)::int;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER look_at_task AFTER INSERT OR UPDATE ON tasks DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION look_at_task();
CREATE CONSTRAINT TRIGGER look_at_task AFTER INSERT OR UPDATE ON turns DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.task IS NOT NULL) EXECUTE FUNCTION look_at_task();
"""
_CUTS = """
CREATE SEQUENCE statements;
CREATE SEQUENCE cuts;
CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('statements') % {every} = 0 THEN
        PERFORM nextval('cuts');
        PERFORM pg_terminate_backend(pg_backend_pid());
    END IF;
    RETURN NULL;
END $$;
"""
_CUT = "CREATE TRIGGER cut BEFORE INSERT OR UPDATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION cut()"


@asynccontextmanager
async def watched(address: Address) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A database in which every commit is looked at, and a connection to it."""
    line = await asyncpg.connect(**address.arguments)
    try:
        await line.execute(_INVARIANT)
        yield line
        assert await line.fetch("SELECT * FROM holes") == []
    finally:
        await line.close()


async def failed(house: House, other: House, task: Json) -> None:
    await other.get(f"/v1/tasks/{task['task_id']}")


async def turn_cancelled(house: House, other: House, task: Json) -> None:
    assert (await other.post(f"/v1/turns/{turns(task)[-1]}/cancel")).status_code == 200


async def task_cancelled(house: House, other: House, task: Json) -> None:
    assert (await other.post(f"/v1/tasks/{task['task_id']}/cancel")).status_code == 200


async def interrupted(house: House, other: House, task: Json) -> None:
    await other.prompt("s", "say other", multitask_strategy="interrupt")


async def closed(house: House, other: House, task: Json) -> None:
    assert (await other.post("/v1/sessions/s/close")).status_code == 200


async def drained(house: House, other: House, task: Json) -> None:
    assert (await other.post("/v1/sessions/s/close", {"mode": "drain"})).status_code in (200, 202)
    await turn_cancelled(house, other, task)


async def deleted(house: House, other: House, task: Json) -> None:
    assert (await other.client.delete("/v1/sessions/s")).status_code == 204


Way = Callable[[House, House, Json], Awaitable[None]]


@pytest.mark.parametrize("from_host", [True, False], ids=["at its host", "elsewhere"])
@pytest.mark.parametrize(
    ("way", "prompt", "step", "expected"),
    [
        (failed, "fail x", {}, "failed"),
        (failed, "fail x", {"on_failure": "continue"}, "completed"),
        (failed, "say x\nsleep 600", {"deadline_s": 0.3}, "timed_out"),
        (failed, "say x\nsleep 600", {"deadline_s": 0.3, "on_failure": "continue"}, "completed"),
        (turn_cancelled, "say x\nsleep 600", {"on_failure": "continue"}, "cancelled"),
        (task_cancelled, "say x\nsleep 600", {}, "cancelled"),
        (interrupted, "say x\nsleep 600", {"on_failure": "continue"}, "cancelled"),
        (closed, "say x\nsleep 600", {}, "cancelled"),
        (drained, "say x\nsleep 600", {}, "cancelled"),
        (deleted, "say x\nsleep 600", {}, None),
    ],
)
async def test_however_a_step_s_turn_ends_its_task_goes_with_it(
    database_url: str,
    database_address: Address,
    folder: Path,
    way: Way,
    prompt: str,
    step: Json,
    expected: str | None,
    from_host: bool,
) -> None:
    """Whoever ends it, in the commit of its end: the next turn is there, or the task has ended."""
    async with two_houses(database_url, folder) as (first, second), watched(database_address):
        await first.ensure("s")
        task = await make(first, "s", {"prompt": prompt, "max_attempts": 2, **step}, {"prompt": "say y"})
        if prompt != "fail x":
            await begun(first, "s")
        await way(first, first if from_host else second, task)
        if expected is None:
            answer = await second.client.get(f"/v1/tasks/{task['task_id']}")
            assert answer.json()["code"] == "task_not_found"
            return
        task = await settled(second, task["task_id"])
        assert task["status"] == expected
        assert len(task["steps"][0]["turn_ids"]) == (2 if way is failed else 1)
        assert_whole(await first.log("s"), task)


@pytest.mark.parametrize("by", ["dequeue", "cancel", "task", "close", "delete", "interrupt", "drain"])
async def test_however_a_step_s_queued_turn_ends_its_task_goes_with_it(
    database_url: str, database_address: Address, folder: Path, by: str
) -> None:
    """It never started: any replica ends it, and an interrupting prompt only passes it."""
    async with two_houses(database_url, folder) as (first, second), watched(database_address):
        await first.ensure("s")
        busy = await first.prompt("s", "say busy\nsleep 600")
        await begun(first, "s")
        task = await make(second, "s", {"prompt": "say a", "max_attempts": 3}, {"prompt": "say b"})
        [turn] = turns(task)
        match by:
            case "dequeue":
                assert (await second.client.delete(f"/v1/turns/{turn}")).status_code == 204
            case "cancel":
                assert (await second.post(f"/v1/turns/{turn}/cancel")).status_code == 200
            case "task":
                assert (await second.post(f"/v1/tasks/{task['task_id']}/cancel")).status_code == 200
            case "close" | "delete":
                path = "/v1/sessions/s"
                await (second.post(f"{path}/close") if by == "close" else second.client.delete(path))
            case "drain":
                await second.post("/v1/sessions/s/close", {"mode": "drain"})
            case _:
                await second.prompt("s", "say other", multitask_strategy="interrupt")
        if by == "delete":
            assert (await second.client.get(f"/v1/tasks/{task['task_id']}")).status_code == 404
            return
        task = await settled(second, task["task_id"])
        assert task["status"] == ("completed" if by == "interrupt" else "cancelled")
        await second.post(f"/v1/turns/{busy['turn_id']}/cancel")
        assert_whole(await first.log("s"), task)


async def test_a_step_that_is_never_begun_times_out_in_the_queue(
    database_url: str, database_address: Address, folder: Path
) -> None:
    """After an hour, as any turn; attempts apply to that, too, and a task cannot stay open for ever."""
    async with watched(database_address) as line:
        async with open_house(database_url, folder) as house:
            await house.ensure("s")
            task = await make(house, "s", {"prompt": "say a\nsleep 0.3"}, {"prompt": "b", "max_attempts": 2})
            await begun(house, "s")
            await house.post("/v1/backends/demo/drain")
            await house.ended(turns(task)[0])
        assert await line.fetchval("SELECT queue_timeout_s FROM turns WHERE ended_at IS NULL") == 3600
        await line.execute(
            "UPDATE turns SET created_at = created_at - interval '3600s' WHERE ended_at IS NULL"
        )
        async with open_house(database_url, folder) as house:
            first = turns(await house.get(f"/v1/tasks/{task['task_id']}"))[1]
            assert (await house.ended(first))["limit"] == "queue"
            task = await house.get(f"/v1/tasks/{task['task_id']}")
            assert statuses(task) == ("running", ["completed", "pending"])
            assert len(task["steps"][1]["turn_ids"]) == 2
            answer = await house.post(f"/v1/tasks/{task['task_id']}/cancel")
            assert answer.json()["status"] == "cancelled"


async def test_a_full_queue_does_not_keep_the_next_step_out(
    database_url: str, database_address: Address, folder: Path
) -> None:
    """It takes the place of the turn that ends: no bound is passed, and nobody is refused in mid-task."""
    limits = Limits(queue_per_session=2, turns_per_owner=2)
    async with open_house(database_url, folder, limits=limits) as house, watched(database_address):
        await house.ensure("s")
        task = await make(house, "s", *({"prompt": f"say {n}\nsleep 0.2"} for n in range(3)))
        await begun(house, "s")
        other = await house.prompt("s", "sleep 0.2", multitask_strategy="enqueue")
        answer = await house.post("/v1/sessions/s/turns", {"prompt": "x", "multitask_strategy": "enqueue"})
        assert answer.json()["code"] == "queue_full"
        assert statuses(await done(house, task)) == ("completed", ["completed"] * 3)
        assert (await house.ended(other["turn_id"]))["status"] == "completed"


async def test_a_drained_backend_holds_the_next_step_until_it_is_resumed(
    house: House, database_address: Address
) -> None:
    """The running step ends, the next waits in the queue; a cancel finds it there."""
    async with watched(database_address):
        await house.ensure("s")
        tasks: list[Json] = []
        for _ in range(2):
            task = await make(house, "s", {"prompt": "say a\nsleep 0.3"}, {"prompt": "say b"})
            await begun(house, "s", len(tasks) * 2 + 1)
            await house.post("/v1/backends/demo/drain")
            await house.ended(turns(task)[0])
            held = await house.get(f"/v1/tasks/{task['task_id']}")
            assert statuses(held) == ("running", ["completed", "pending"])
            tasks.append(held)
            if len(tasks) == 1:
                await house.post("/v1/backends/demo/resume")
                assert (await done(house, held))["status"] == "completed"
        answer = await house.post(f"/v1/tasks/{tasks[1]['task_id']}/cancel")
        assert statuses(answer.json()) == ("cancelled", ["completed", "cancelled"])


async def test_a_lost_agent_fails_every_step_that_may_fail_and_the_task_ends(
    database_url: str, database_address: Address, folder: Path
) -> None:
    """Steps are admitted whatever became of the agent; each says why it did not run."""
    async with (
        Twin(window=0.005) as twin,
        open_house(
            database_url,
            folder,
            backends={"paseo": BackendSettings(type="paseo", url=twin.http, provider="scripted")},
        ) as house,
        watched(database_address) as line,
    ):
        await house.ensure("s", agent="scripted")
        steps = [{"prompt": f"say {n}\nsleep 300", "on_failure": "continue"} for n in range(3)]
        task = await make(house, "s", *steps)
        await begun(house, "s")
        await line.execute("UPDATE agent_sessions SET agent_lost = true")
        task = await done(house, task)
        assert task["status"] == "completed"
        assert {step["status"] for step in task["steps"]} <= {"completed", "failed"}


async def test_a_stop_of_the_service_ends_the_task_of_an_agent_of_its_own(
    database_url: str, database_address: Address, folder: Path
) -> None:
    """At the end of the drain, truthfully: it is cancelled, and goes on when the caller says so."""
    async with watched(database_address) as line:
        async with open_house(database_url, folder) as house:
            await house.ensure("s")
            task = await make(
                house, "s", {"prompt": "say a\nsleep 600", "max_attempts": 3}, {"prompt": "say b"}
            )
            await begun(house, "s")
        assert await line.fetchval("SELECT cause FROM turns") == "shutdown"
        assert await line.fetchval("SELECT status FROM tasks") == "cancelled"
        async with open_house(database_url, folder) as house:
            answer = await house.post(f"/v1/tasks/{task['task_id']}/retry")
            assert answer.status_code == 202, answer.text
            assert len(answer.json()["steps"][0]["turn_ids"]) == 2
            await house.post(f"/v1/tasks/{task['task_id']}/cancel")


@pytest.mark.parametrize("every", [11, 17])
async def test_cut_before_any_statement_no_step_is_lost_or_doubled(
    database_url: str, database_address: Address, folder: Path, every: int
) -> None:
    """The connection goes in the middle of a transaction again and again: all of it, or nothing."""
    async with open_house(database_url, folder) as house, watched(database_address) as line:
        await house.ensure("s")
        steps: list[Json] = [{"prompt": "say start\nsleep 0.5"}]
        for number in range(6):
            steps += [
                {"prompt": f"say {number}"},
                {"prompt": f"fail {number}", "max_attempts": 2, "on_failure": "continue"},
            ]
        task = await make(house, "s", *steps)
        await line.execute(_CUTS.format(every=every))
        for table in ("tasks", "task_steps", "turns", "events", "agent_sessions"):
            await line.execute(_CUT.format(table=table))
        with anyio.fail_after(PATIENCE * 2):  # the service's own answers may be cut as well
            while await line.fetchval("SELECT pg_sleep(0.05) IS NOT NULL AND ended_at IS NULL FROM tasks"):
                pass
        cuts = await line.fetchval("SELECT last_value FROM cuts")
        for table in ("tasks", "task_steps", "turns", "events", "agent_sessions"):
            await line.execute(f"DROP TRIGGER cut ON {table}")
        assert cuts >= 5
        task = await house.get(f"/v1/tasks/{task['task_id']}")
        assert task["status"] == "completed"
        assert [len(step["turn_ids"]) for step in task["steps"]] == [1, *[1, 2] * 6]
        log = await house.log("s")
        assert_whole(log, task)
        said = [event["data"]["text"].strip() for event in log if event["type"] == "message.completed"]
        assert said == ["start", *(str(number) for number in range(6))]


@pytest.mark.parametrize("by", ["cancel", "close", "drain"])
async def test_a_task_whose_turn_ended_without_it_can_be_ended(
    house: House, database_address: Address, by: str
) -> None:
    """A replica of a version without tasks has ended the turn: nothing follows on it any more."""
    await house.ensure("s")
    busy = await house.prompt("s", "say b\nsleep 600")
    await begun(house, "s")
    task = await make(house, "s", {"prompt": "say a"}, {"prompt": "say b"})
    other = await make(house, "s", {"prompt": "say c"})
    line = await asyncpg.connect(**database_address.arguments)
    await line.execute(
        "UPDATE turns SET status = 'cancelled', ended_at = now(), cause = 'caller', last_seq = first_seq"
        " WHERE id = $1",
        turns(task)[0],
    )
    await line.close()
    path = f"/v1/tasks/{task['task_id']}"
    if by == "cancel":
        answer = await house.post(f"{path}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        assert (await house.get(f"/v1/tasks/{other['task_id']}"))["status"] == "pending"
        assert (await house.post(f"{path}/retry")).status_code == 202
    elif by == "close":
        assert (await house.post("/v1/sessions/s/close")).status_code == 200
    else:
        await house.post("/v1/sessions/s/close", {"mode": "drain"})
        await house.post(f"/v1/turns/{busy['turn_id']}/cancel")
        assert (await settled(house, other["task_id"]))["status"] == "cancelled"
        async with house.stream("/v1/sessions/s/events/stream") as stream:
            await stream.until("session.closed", 1)
    task = await house.get(path)
    if by != "cancel":
        assert statuses(task) == ("cancelled", ["cancelled", "pending"])
    told = [one["type"] for one in await house.log("s") if one["data"].get("task_id") == task["task_id"]]
    assert told == ["task.cancelled"]
