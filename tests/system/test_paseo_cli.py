"""The whole service over the `paseo` command."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.settings import BackendSettings, load_settings
from tests.engine.replicas import two_houses
from tests.house import House, open_house
from tests.paseo.command import heard, stand_in

pytestmark = pytest.mark.anyio


def backends(folder: Path) -> dict[str, BackendSettings]:
    """The stand-in as a configured backend."""
    command, env = stand_in(folder)
    return {"cli": BackendSettings(type="paseo-cli", command=command, env=env, provider="scripted")}


@asynccontextmanager
async def cli_house(database_url: str, folder: Path) -> AsyncIterator[House]:
    """The service over the stand-in."""
    async with open_house(database_url, folder, backends=backends(folder)) as house:
        yield house


async def opened(house: House, name: str = "s-1", **body: Any) -> dict[str, Any]:
    """A session on the command."""
    return await house.ensure(name, agent="scripted", backend="cli", **body)


def types(log: list[dict[str, Any]], turn_id: str) -> list[str]:
    """The types of a turn's events, in order."""
    return [event["type"] for event in log if event["turn_id"] == turn_id]


async def test_a_session_from_ensure_to_close(database_url: str, folder: Path) -> None:
    """Turn events and one message, at the turn's end; then the agent is archived."""
    async with cli_house(database_url, folder) as house:
        session = await opened(house)
        assert (session["opened"], session["provider"], session["model"]) == ("created", "scripted", "m1")
        turn = await house.run("s-1", "say one\ntool shell ls\nsay two")
        assert (turn["status"], turn["output_text"]) == ("completed", "one\ntwo")
        log = await house.log("s-1")
        assert types(log, turn["turn_id"]) == [
            "turn.queued",
            "turn.started",
            "message.delta",
            "message.completed",
            "turn.completed",
        ]
        assert log[-1]["data"]["reconciled"] is True
        assert (await opened(house))["opened"] == "reused"
        closed = await house.post("/v1/sessions/s-1/close")
        assert closed.status_code == 200
        assert closed.json()["archived"] is True
        assert (await opened(house))["opened"] == "resumed"
    verbs = [call["argv"][0] for call in heard(folder)]
    assert verbs.count("run") == 1
    assert not any("say one" in word for call in heard(folder) for word in call["argv"])
    assert all({"DATABASE_URL", "ALAMEDA_API_KEY"}.isdisjoint(call["env"]) for call in heard(folder))


async def test_a_turn_can_be_cancelled(database_url: str, folder: Path) -> None:
    async with cli_house(database_url, folder) as house:
        await opened(house)
        turn = await house.prompt("s-1", "say working\nsleep 600000")
        await house.follow(f"/v1/turns/{turn['turn_id']}/events/stream", "turn.started")
        answer = await house.post(f"/v1/turns/{turn['turn_id']}/cancel")
        assert (answer.json()["status"], answer.json()["cancel_outcome"]) == ("cancelled", "stopped")


async def test_what_it_cannot_do_is_declared_and_refused(database_url: str, folder: Path) -> None:
    async with cli_house(database_url, folder) as house:
        declared = (await house.get("/v1/backends/cli"))["capabilities"]
        assert {name for name, able in declared.items() if able} == {"imports", "terminals"}
        await opened(house)
        cwd = str(house.cwd)
        for body in (
            {"model": "m2"},
            {"mode": "plan"},
            {"thinking": "high"},
            {"system_prompt": "x"},
            {"worktree": {"branch": "b"}},
            {"mcp_servers": {"x": {"type": "http", "url": "http://x"}}},
        ):
            refused = await house.client.put(
                "/v1/sessions/s-2", json={"agent": "scripted", "backend": "cli", "cwd": cwd, **body}
            )
            assert (refused.status_code, refused.json()["code"]) == (422, "unsupported_by_backend"), body
        changed = await house.client.patch("/v1/sessions/s-1", json={"mode": "plan"})
        assert (changed.status_code, changed.json()["code"]) == (422, "unsupported_by_backend")
        prompted = await house.post(
            "/v1/sessions/s-1/turns",
            {"prompt": "x", "attachments": [{"type": "text", "name": "a", "text": "b"}]},
        )
        assert (prompted.status_code, prompted.json()["code"]) == (422, "unsupported_by_backend")


async def test_a_turn_outlives_a_restart_and_is_told_once(database_url: str, folder: Path) -> None:
    async with cli_house(database_url, folder) as house:
        await opened(house)
        turn = await house.prompt("s-1", "say on\nsleep 60000\nsay and on")
        await house.follow(f"/v1/turns/{turn['turn_id']}/events/stream", "turn.started")
    async with cli_house(database_url, folder) as house:
        ended = await house.ended(turn["turn_id"])
        assert (ended["status"], ended["output_text"]) == ("completed", "onand on")
        found = types(await house.log("s-1"), turn["turn_id"])
        assert found.count("turn.completed") == found.count("message.completed") == 1
        assert found.count("turn.started") == 1
    assert [call["argv"][0] for call in heard(folder)].count("send") == 1


async def test_an_adopted_session_has_its_history_in_the_log_once(database_url: str, folder: Path) -> None:
    """As the text that the command shows, outside any turn; also after a restart."""
    (folder / "history.json").write_text(json.dumps([["user", "first"], ["assistant", "answer"]]))
    for opened_as in ("imported", "reused"):
        async with cli_house(database_url, folder) as house:
            body = {"agent": "claude", "provider": "claude", "provider_session_id": "11111111"}
            session = await house.ensure("s-1", backend="cli", **body)
            assert session["opened"] == opened_as
            turn = await house.run("s-1", "say on")
            assert turn["output_text"] == "on"
            told = [event for event in await house.log("s-1") if event["type"] == "notice"]
            assert [(event["turn_id"], event["data"]["code"]) for event in told] == [(None, "import_history")]
            assert told[0]["data"]["message"] == "[User] first\nanswer\n"
    assert [call["argv"][0] for call in heard(folder)].count("import") == 1


async def test_two_replicas_make_one_agent(database_url: str, folder: Path) -> None:
    async with two_houses(database_url, folder, backends=backends(folder)) as (first, second):
        one = await opened(first)
        other = await opened(second)
        assert one["agent_session_id"] == other["agent_session_id"]
        turn = await second.run("s-1", "say over there")
        assert turn["output_text"] == "over there"


async def test_a_daemon_that_is_down_is_told_with_its_cure(database_url: str, folder: Path) -> None:
    (folder / "down").touch()
    async with cli_house(database_url, folder) as house:
        seen = (await house.client.get("/health")).json()["backends"]["cli"]
        assert (seen["status"], seen["counted"]) == ("down", True)
        assert "paseo daemon start" in seen["detail"]
        answer = await house.client.put("/v1/sessions/s-1", json={"agent": "scripted", "backend": "cli"})
        assert (answer.status_code, answer.json()["code"]) == (503, "backend_unavailable")


async def test_an_agent_that_was_deleted_is_lost_and_replaced_only_by_an_ensure(
    database_url: str, folder: Path
) -> None:
    """Never silent amnesia; also a prompt that may wait does not wait for it."""
    async with cli_house(database_url, folder) as house:
        made = await opened(house)
        state = json.loads((folder / "state.json").read_text())
        (folder / "state.json").write_text(json.dumps({**state, "agents": {}}))
        turn = await house.run("s-1", "say x", multitask_strategy="enqueue")
        assert (turn["status"], turn["error"]["code"]) == ("failed", "backend_session_lost")
        refused = await house.post("/v1/sessions/s-1/turns", {"prompt": "say y"})
        assert (refused.status_code, refused.json()["code"]) == (409, "backend_session_lost")
        again = await opened(house)
        assert again["opened"] == "replaced"
        assert again["agent_session_id"] != made["agent_session_id"]
        assert (await house.run("s-1", "say back"))["output_text"] == "back"


def test_its_settings_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command has a default; a password needs an address, and that is http."""
    monkeypatch.chdir(tmp_path)
    good = BackendSettings.model_validate({"type": "paseo-cli"})
    assert (good.command, good.url) == ((), None)
    for wrong, named in (
        ({"password": "x"}, "url"),
        ({"url": "https://example.com"}, "http only"),
    ):
        with pytest.raises(Exception, match=named):
            load_settings(backends={"cli": {"type": "paseo-cli", **wrong}})


async def test_an_answer_too_long_to_be_read_is_told_as_far_as_it_goes_and_the_next_turn_runs(
    database_url: str, folder: Path
) -> None:
    """A notice says what is missing, and the turn does not wait for a daemon that is not away."""
    async with cli_house(database_url, folder) as house:
        await opened(house)
        turn = await house.run("s-1", f"long {17 * 1024 * 1024}")
        assert turn["status"] == "completed"
        log = await house.log("s-1")
        assert "turn.reconciling" not in types(log, turn["turn_id"])
        assert [e["data"]["code"] for e in log if e["type"] == "notice"] == ["output_truncated"]
        after = await house.run("s-1", "say [User] hello")
        assert (after["status"], after["output_text"]) == ("completed", "[User] hello")
