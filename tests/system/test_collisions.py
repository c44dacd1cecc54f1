"""Two scripted agents in two git worktrees of one project: both are told that they write the same file."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from app.settings import Timing
from tests.api.test_tenancy import tenant
from tests.engine.replicas import two_houses
from tests.engine.worktrees import two_worktrees, write
from tests.house import PATIENCE, House, assert_unbroken, durable, open_house, parse_frames
from tests.system.test_faults import all_gone, serving
from tests.system.test_paseo_recovery import daemon_house

PROJECT = "team/app"


@pytest.fixture
async def house(database_url: str, folder: Path) -> AsyncIterator[House]:
    """The service, with the demo agent and two worktrees of one repository where agents may work."""
    (folder / "work").mkdir()
    two_worktrees(folder / "work")
    async with open_house(database_url, folder) as running:
        yield running


async def join(house: House, name: str, tree: str | None = None, **body: Any) -> str:
    """A session of the project, in the worktree of its own name if no other is given."""
    cwd = str(house.cwd / (tree or name))
    await house.ensure(name, cwd=cwd, **{"project_id": PROJECT, "worktree_id": f"w-{name}", **body})
    return name


async def both(house: House, script: str = "edit a.txt:2") -> None:
    """Two sessions, `one` and `two`, each in its worktree, that have written the same file."""
    for name in ("one", "two"):
        await join(house, name)
        await house.run(name, script)


async def told(house: House, session: str, type_: str = "file.collision") -> list[dict[str, Any]]:
    """The events of a type in a session's log."""
    return [event for event in await house.log(session) if event["type"] == type_]


async def until_told(house: House, session: str, type_: str) -> list[dict[str, Any]]:
    """The same, once there are some."""
    path = f"/v1/sessions/{session}/events/stream"
    return [frame.data for frame in durable(await house.follow(path, type_)) if frame.event == type_]


async def test_both_logs_carry_the_collision_before_the_second_agent_s_turn_ends(house: House) -> None:
    """The same event in both, in its turn where that still runs; git says that it would really conflict."""
    await join(house, "one")
    await join(house, "two")
    write(house.cwd / "one", 2, "mine\n")
    first = await house.run("one", "edit a.txt:2")
    assert await told(house, "one") == []
    write(house.cwd / "two", 2, "yours\n")
    second = await house.prompt("two", "edit a.txt:2")
    async with house.stream(f"/v1/turns/{second['turn_id']}/events/stream") as stream:
        frames = durable(await stream.until("turn.completed"))
    types = [frame.event for frame in frames]
    assert types[-3:] == ["tool_call.completed", "file.collision", "turn.completed"]
    (mine,), (yours,) = await told(house, "one"), await told(house, "two")
    assert mine["data"] == yours["data"]
    assert (mine["turn_id"], yours["turn_id"]) == (None, second["turn_id"])
    assert mine["at"] < (await house.get(f"/v1/turns/{second['turn_id']}"))["ended_at"]
    data = mine["data"]
    sessions = data.pop("sessions")
    assert data.pop("collision_id").startswith("col_")
    assert data == {
        "path": "a.txt",
        "severity": "merge",
        "overlap": "same_lines",
        "merge_conflict": True,
    }
    assert [{**each, "at": ""} for each in sessions] == [
        {"session_id": name, "turn_id": turn["turn_id"], "worktree_id": f"w-{name}", "kind": "edit", "at": ""}
        for name, turn in (("one", first), ("two", second))
    ]
    assert sessions[0]["at"] < sessions[1]["at"]


async def test_lines_that_git_merges_are_not_called_the_same(house: House) -> None:
    """However they were counted; once git cannot merge them any more, both are told so."""
    await both(house)
    (event,) = await told(house, "one")
    assert (event["data"]["overlap"], event["data"]["merge_conflict"]) == ("same_file", False)
    write(house.cwd / "one", 2, "mine\n")
    write(house.cwd / "two", 2, "yours\n")
    await house.run("one", "edit a.txt:2")
    for name in ("one", "two"):
        first, second = await told(house, name)
        assert first["data"]["collision_id"] == second["data"]["collision_id"]
        assert (second["data"]["overlap"], second["data"]["merge_conflict"]) == ("same_lines", True)


async def test_while_the_second_agent_still_works_the_first_is_told(house: House) -> None:
    """Not at the end of the turn but as soon as the file is written."""
    await join(house, "one")
    await join(house, "two")
    await house.run("one", "edit a.txt:2")
    turn = await house.prompt("two", "edit a.txt:18\nask Go on?")
    (event,) = await until_told(house, "one", "file.collision")
    assert event["data"]["overlap"] == "same_file"
    assert event["data"]["merge_conflict"] is False
    assert (await house.get(f"/v1/turns/{turn['turn_id']}"))["ended_at"] is None


@pytest.mark.parametrize(
    ("one", "two", "severity", "conflict"),
    [("one", "one", "overwrite", None), ("one", "two", "merge", False)],
)
async def test_one_worktree_is_overwritten_two_are_merged(
    house: House, one: str, two: str, severity: str, conflict: bool | None
) -> None:
    for name, tree in (("s-1", one), ("s-2", two)):
        await join(house, name, tree)
        await house.run(name, "edit a.txt")
    for name in ("s-1", "s-2"):
        (event,) = await told(house, name)
        found = event["data"]
        assert (found["severity"], found["overlap"], found["merge_conflict"]) == (
            severity,
            "same_file",
            conflict,
        )


async def test_paths_meet_however_the_agents_say_them(house: House) -> None:
    """Absolute, through a link, from a folder below: one file."""
    (house.cwd / "one" / "sub").mkdir()
    (house.cwd / "two" / "link.txt").symlink_to("a.txt")
    await join(house, "s-1", "one/sub")
    await join(house, "s-2", "two")
    await house.run("s-1", f"edit {house.cwd}/one/sub/../a.txt")
    await house.run("s-2", "edit link.txt")
    assert [event["data"]["path"] for event in await told(house, "s-1")] == ["a.txt"]


@pytest.mark.parametrize(
    ("body", "script"),
    [
        ({"project_id": "elsewhere"}, "edit a.txt"),
        ({}, "read a.txt"),
        ({}, "edit b.txt"),
        ({}, "run sed -i s/x/y/ a.txt"),
        ({}, "edit ../one/a.txt"),
        ({}, "edit /etc/hosts"),
    ],
)
async def test_who_does_not_write_the_same_file_of_the_same_project_is_told_nothing(
    house: House, body: dict[str, Any], script: str
) -> None:
    await join(house, "one")
    await house.run("one", "edit a.txt\nedit ../two/a.txt\nedit /etc/hosts")
    await join(house, "two", **body)
    await house.run("two", script)
    assert [await told(house, name) for name in ("one", "two")] == [[], []]


async def test_without_a_project_nothing_is_kept(house: House) -> None:
    for name in ("one", "two"):
        await house.ensure(name, cwd=str(house.cwd / "one"))
        assert (await house.run(name, "edit a.txt"))["status"] == "completed"
    assert (await house.get("/v1/collisions"))["items"] == []
    assert [await told(house, name) for name in ("one", "two")] == [[], []]


async def test_a_file_written_again_and_again_is_told_once(house: House) -> None:
    await both(house)
    for name in ("one", "two", "one"):
        await house.run(name, "edit a.txt:2\nedit a.txt:2\nedit a.txt")
    assert [len(await told(house, name)) for name in ("one", "two")] == [1, 1]
    assert len((await house.get("/v1/collisions"))["items"]) == 1


async def test_the_stream_over_all_sessions_tells_of_collisions(house: House) -> None:
    """By default, twice: each log has it; of the project that is asked for only."""
    async with house.stream("/v1/events/stream", project_id=PROJECT) as stream:
        await stream.until("stream.synced")
        await both(house)
        frames = await stream.until("file.collision", 2)
    found = [frame.data for frame in frames if frame.event == "file.collision"]
    assert {event["session_id"] for event in found} == {"one", "two"}
    assert found[0]["data"] == found[1]["data"]


async def test_a_session_that_is_closed_is_in_no_collision_any_more(house: House) -> None:
    """Both logs say so, its own before `session.closed`; who writes the file now meets nobody."""
    await both(house)
    (opened,) = await told(house, "one")
    assert (await house.post("/v1/sessions/one/close")).status_code == 200
    for name in ("one", "two"):
        (event,) = await told(house, name, "file.collision_resolved")
        assert event["data"] == {
            **{key: value for key, value in opened["data"].items() if key != "merge_conflict"},
            "reason": "session_closed",
        }
        assert event["turn_id"] is None
    types = [event["type"] for event in await house.log("one")]
    assert types[-2:] == ["file.collision_resolved", "session.closed"]
    (item,) = (await house.get("/v1/collisions"))["items"]
    assert (item["status"], item["resolution"]) == ("resolved", "session_closed")
    assert item["resolved_at"] >= item["opened_at"]
    await house.run("two", "edit a.txt:2")
    assert len(await told(house, "two")) == 1
    await join(house, "one")  # opened again, it has written nothing yet
    await house.run("two", "edit a.txt:2")
    assert len(await told(house, "two")) == 1
    await house.run("one", "edit a.txt:2")
    assert len({event["data"]["collision_id"] for event in await told(house, "two")}) == 2


async def test_a_session_that_is_idle_for_long_is_in_no_collision_any_more(
    database_url: str, folder: Path
) -> None:
    """By the service's own clock, on two replicas: told once in each log."""
    (folder / "work").mkdir()
    two_worktrees(folder / "work")
    timing = Timing(health_s=1.0, drain_s=1.0, collision_idle_s=1.0)
    async with two_houses(database_url, folder, timing=timing) as (house, _):
        await both(house)
        assert len(await told(house, "one")) == 1
        for name in ("one", "two"):
            (event,) = await until_told(house, name, "file.collision_resolved")
            assert event["data"]["reason"] == "session_idle"
        with anyio.fail_after(PATIENCE):
            while (await house.get(f"/v1/projects/{PROJECT}/files"))["items"]:
                pass  # the other is idle soon
        await house.run("one", "edit a.txt:2")
        assert [len(await told(house, name, "file.collision_resolved")) for name in ("one", "two")] == [1, 1]
        assert (await house.get("/v1/collisions", status="open"))["items"] == []


async def test_a_turn_that_runs_is_not_idle(database_url: str, folder: Path) -> None:
    (folder / "work").mkdir()
    two_worktrees(folder / "work")
    timing = Timing(health_s=1.0, drain_s=1.0, collision_idle_s=0.5)
    async with open_house(database_url, folder, timing=timing) as house:
        turns = []
        for name in ("one", "two"):
            await join(house, name)
            turns.append(await house.prompt(name, "edit a.txt:2\nsleep 2\nsay done"))
        for turn in turns:
            await house.ended(turn["turn_id"])
        types = [event["type"] for event in await house.log("one")]
        assert types.count("file.collision") == 1
        if "file.collision_resolved" in types:
            assert types.index("file.collision_resolved") > types.index("turn.completed")


async def test_an_erased_session_takes_its_collisions_along(house: House) -> None:
    """The other log keeps both events."""
    await both(house)
    (opened,) = await told(house, "two")
    assert (await house.client.delete("/v1/sessions/one")).status_code == 204
    assert [len(await told(house, "two", t)) for t in ("file.collision", "file.collision_resolved")] == [1, 1]
    answer = await house.client.get(f"/v1/collisions/{opened['data']['collision_id']}")
    assert (answer.status_code, answer.json()["code"]) == (404, "collision_not_found")
    assert (await house.get("/v1/collisions"))["items"] == []


async def test_collisions_are_listed_filtered_paged_and_shown(house: House) -> None:
    names = [f"f-{n}.txt" for n in range(5)]
    await both(house, "\n".join(f"edit {name}" for name in names))
    events = [event["data"] for event in await told(house, "one")]
    assert sorted(event["path"] for event in events) == names
    asked: dict[str, Any] = {"project_id": PROJECT, "status": "open", "limit": 2}
    page = await house.get("/v1/collisions", **asked)
    found: list[dict[str, Any]] = page["items"]
    while page["next_cursor"] is not None:
        page = await house.get("/v1/collisions", **asked, cursor=page["next_cursor"])
        found += page["items"]
    assert {item["collision_id"] for item in found} == {event["collision_id"] for event in events}
    assert [item["opened_at"] for item in found] == sorted((i["opened_at"] for i in found), reverse=True)
    assert len(found) == 5
    one = found[0]
    assert await house.get(f"/v1/collisions/{one['collision_id']}") == one
    event = next(event for event in events if event["collision_id"] == one["collision_id"])
    assert {key: one[key] for key in event} == event
    assert (one["status"], one["project_id"]) == ("open", PROJECT)
    assert (await house.get("/v1/collisions", status="resolved"))["items"] == []
    assert (await house.get("/v1/collisions", project_id="other"))["items"] == []


async def test_who_touches_what_is_shown_file_by_file(house: House) -> None:
    """Last written first, paged; of live sessions only; a project's name may hold a slash."""
    await both(house, "edit x~1.txt\nedit a.txt")
    await house.run("one", "edit only.txt")
    path = f"/v1/projects/{PROJECT}/files"
    first = await house.get(path, limit=1)
    rest = await house.get(path, limit=2, cursor=first["next_cursor"])
    assert rest["next_cursor"] is None
    files = {item["path"]: item for item in first["items"] + rest["items"]}
    assert first["items"][0]["path"] == "only.txt"
    assert files.keys() == {"only.txt", "a.txt", "x~1.txt"}
    assert [each["session_id"] for each in files["a.txt"]["sessions"]] == ["two", "one"]
    assert [each["kind"] for each in files["a.txt"]["sessions"]] == ["edit", "edit"]
    assert files["a.txt"]["touched_at"] == files["a.txt"]["sessions"][0]["at"]
    assert await house.get("/v1/projects/team%2Fapp/files") == await house.get(path)
    assert (await house.get("/v1/projects/none/files"))["items"] == []
    await house.post("/v1/sessions/two/close")
    left = await house.get(path)
    assert {each["session_id"] for item in left["items"] for each in item["sessions"]} == {"one"}


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/collisions/none", 404, "collision_not_found"),
        ("/v1/collisions/col_%00", 422, "validation_failed"),
        ("/v1/collisions/" + "x" * 200, 422, "validation_failed"),
        ("/v1/collisions?status=half", 422, "validation_failed"),
        ("/v1/collisions?limit=0", 422, "validation_failed"),
        ("/v1/collisions?limit=201", 422, "validation_failed"),
        ("/v1/collisions?project_id=%00", 422, "validation_failed"),
        ("/v1/collisions?cursor=x", 400, "invalid_cursor"),
        ("/v1/collisions?cursor=1~%00", 400, "invalid_cursor"),
        ("/v1/collisions?cursor=99999999999999999999999~x", 400, "invalid_cursor"),
        ("/v1/projects/p/files?cursor=x", 400, "invalid_cursor"),
        ("/v1/projects/p/files?cursor=1~%00", 400, "invalid_cursor"),
        ("/v1/projects/p/files?limit=x", 422, "validation_failed"),
        ("/v1/projects/%00/files", 422, "validation_failed"),
        ("/v1/projects/" + "x" * 129 + "/files", 422, "validation_failed"),
        ("/v1/projects/p", 404, "not_found"),
    ],
)
async def test_bad_input_is_refused_by_its_code(house: House, path: str, status: int, code: str) -> None:
    answer = await house.client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_t11_another_owner_s_files_and_collisions_are_as_if_they_were_not_there(house: House) -> None:
    """Not even if both have a project of that name in the same worktree."""
    await join(house, "one")
    await house.run("one", "edit a.txt")
    async with tenant(house) as client:
        for name in ("one", "two"):
            body = {"agent": "demo", "cwd": str(house.cwd / "one"), "project_id": PROJECT}
            assert (await client.put(f"/v1/sessions/{name}", json=body)).status_code == 201
            answer = await client.post(
                f"/v1/sessions/{name}/turns", json={"prompt": "edit a.txt"}, headers={"Prefer": "wait=20"}
            )
            assert answer.json()["status"] == "completed"
        theirs = (await client.get("/v1/collisions")).json()["items"]
        assert [{each["session_id"] for each in item["sessions"]} for item in theirs] == [{"one", "two"}]
        files = (await client.get(f"/v1/projects/{PROJECT}/files")).json()["items"]
        assert [len(item["sessions"]) for item in files] == [2]
    assert await told(house, "one") == []
    assert (await house.get("/v1/collisions"))["items"] == []
    assert [len(i["sessions"]) for i in (await house.get(f"/v1/projects/{PROJECT}/files"))["items"]] == [1]
    answer = await house.client.get(f"/v1/collisions/{theirs[0]['collision_id']}")
    assert (answer.status_code, answer.json()["code"]) == (404, "collision_not_found")


async def test_reading_needs_the_scope_read(house: House) -> None:
    answer = await house.post("/v1/api-keys", {"name": "x", "owner": "default", "scopes": ["prompt"]})
    headers = {"Authorization": f"Bearer {answer.json()['key']}"}
    for path in ("/v1/collisions", "/v1/collisions/x", "/v1/projects/p/files"):
        refused = await house.client.get(path, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")


async def test_a_restart_between_the_two_writes_and_after_them_changes_nothing(
    database_url: str, folder: Path
) -> None:
    """The first write is remembered, and nothing is told again."""
    (folder / "work").mkdir()
    two_worktrees(folder / "work")
    async with open_house(database_url, folder) as house:
        await join(house, "one")
        await house.run("one", "edit a.txt:2")
    async with open_house(database_url, folder) as house:
        await join(house, "two")
        turn = await house.run("two", "edit a.txt:2")
        assert turn["status"] == "completed"
        logs = [await house.log(name) for name in ("one", "two")]
        assert [[e["type"] for e in log].count("file.collision") for log in logs] == [1, 1]
        before = await house.get("/v1/collisions")
    async with open_house(database_url, folder) as house:
        await house.service.rooms.collisions.sweep()
        assert await house.get("/v1/collisions") == before
        assert [await house.log(name) for name in ("one", "two")] == logs
        await house.run("one", "edit a.txt:2")
        assert [len(await told(house, name)) for name in ("one", "two")] == [1, 1]


async def test_killed_right_after_the_second_write_it_tells_when_it_comes_back(folder: Path) -> None:
    """Whatever the kill met: both logs carry it once, unbroken, before the cut turn's end."""
    (folder / "work").mkdir()
    two_worktrees(folder / "work")
    folder.chmod(0o711)

    async def ensure(service: Any, name: str) -> None:
        body = {"agent": "demo", "cwd": str(service.cwd / name), "project_id": PROJECT}
        assert (await service.client.put(f"/v1/sessions/{name}", json=body)).is_success

    async with serving(folder) as service:
        for name in ("one", "two"):
            await ensure(service, name)
        await service.ended(await service.prompt("one", "edit a.txt:2"))
        await service.prompt("two", "edit a.txt:2\nsleep 60")
        async with service.stream("/v1/sessions/two/events/stream") as stream:
            await stream.until("tool_call.completed")
        agents = [process for process in service.below() if "postgres" not in process.name()]
        await service.kill()
    await all_gone(agents)
    async with serving(folder) as service:
        for name in ("one", "two"):
            async with service.stream(f"/v1/sessions/{name}/events/stream") as stream:
                await stream.until("file.collision")
        async with service.stream("/v1/sessions/two/events/stream") as stream:
            frames = durable(await stream.until("turn.indeterminate"))
        assert_unbroken(frames)
        types = [frame.event for frame in frames]
        assert types.index("file.collision") < types.index("turn.indeterminate")
        for name in ("one", "two"):
            log = await service.log(name)
            assert [frame.event for frame in log].count("file.collision") == 1
            assert_unbroken(log)


async def test_on_two_replicas_both_logs_are_told_once(database_url: str, folder: Path) -> None:
    """Agents of different processes that write at the same moment, many times over."""
    (folder / "work").mkdir()
    two_worktrees(folder / "work")
    async with two_houses(database_url, folder) as houses:
        for house, name in zip(houses, ("one", "two"), strict=True):
            await join(house, name)
        files = [f"f-{n}.txt" for n in range(10)]
        async with anyio.create_task_group() as tasks:
            for house, name in zip(houses, ("one", "two"), strict=True):
                tasks.start_soon(house.run, name, "\n".join(f"edit {file}:1" for file in files))
        for house in houses:
            for name in ("one", "two"):
                log = await house.log(name)
                assert [event["seq"] for event in log] == list(range(1, len(log) + 1))
                paths = [event["data"]["path"] for event in log if event["type"] == "file.collision"]
                assert sorted(paths) == files
            assert len((await house.get("/v1/collisions"))["items"]) == len(files)


@pytest.mark.parametrize("kind", ["edit", "write"])
async def test_agents_of_different_backends_meet(database_url: str, folder: Path, kind: str) -> None:
    """One behind a Paseo daemon and one of ours, in two worktrees: before the daemon's turn ends."""
    (folder / "work").mkdir()
    two_worktrees(folder / "work")
    async with daemon_house(database_url, folder) as (house, _):
        await join(house, "one")
        await house.run("one", "edit a.txt:2")
        await join(house, "two", agent="scripted")
        turn = await house.run("two", f"tool {kind} {house.cwd}/two/a.txt")
        types = [event["type"] for event in await house.log("two") if event["turn_id"] == turn["turn_id"]]
        assert types.index("file.collision") < types.index("turn.completed")
        (event,) = await told(house, "one")
        assert [each["session_id"] for each in event["data"]["sessions"]] == ["one", "two"]
        whole = kind == "write"
        assert event["data"]["overlap"] == ("same_lines" if whole else "same_file")
        assert event["data"]["sessions"][1]["kind"] == ("write" if whole else "edit")


async def test_a_write_outside_our_turns_is_no_prompt_that_arrived(house: House) -> None:
    """What another session did is told outside the turn that runs: it is no sign of this agent."""
    await both(house)
    await house.post("/v1/sessions/two/close")
    turn = await house.prompt("one", "ask Go on?")
    async with house.stream(f"/v1/turns/{turn['turn_id']}/events/stream") as stream:
        await stream.until("permission.requested")
    await join(house, "three", "two")
    await house.run("three", "edit a.txt:2")
    events = await until_told(house, "one", "file.collision")
    assert len(events) == 2
    assert events[-1]["turn_id"] is None


async def test_a_file_that_is_gone_collides_all_the_same(house: House) -> None:
    """Both have deleted it, which merges; a prompt that streams its turn sees it, too."""
    for name in ("one", "two"):
        (house.cwd / name / "a.txt").unlink()
        await join(house, name)
    await house.run("one", "edit a.txt")
    with anyio.fail_after(PATIENCE):
        answer = await house.post(
            "/v1/prompt-stream", {"agent": "demo", "session_id": "two", "prompt": "edit a.txt"}
        )
    types = [frame.event for frame in durable(parse_frames(answer.content))]
    assert types[-2:] == ["file.collision", "turn.completed"]
    (event,) = await told(house, "one")
    assert event["data"]["merge_conflict"] is False
