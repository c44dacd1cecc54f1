"""The twin is as faithful as its transcripts, and misbehaves as it is told."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidMessage

from tests.paseo import twin as program
from tests.paseo.twin import Twin
from tests.paseo.twin_frames import Frame, Shape, compare, parse
from tests.paseo.twin_replay import TRANSCRIPTS, Replay, read
from tests.paseo.twin_talk import events, stream_type, talk

SPEED = 4.0
FAST = 40.0


def repository(folder: Path, branch: str) -> Path:
    """As much of a git repository as the twin looks at."""
    (folder / ".git" / "refs" / "heads").mkdir(parents=True)
    (folder / ".git" / "refs" / "heads" / branch).write_text("")
    (folder / ".git" / "HEAD").write_text(f"ref: refs/heads/{branch}\n")
    return folder


async def refusal(url: str) -> tuple[int | None, str | None]:
    """The code and reason with which a connection is closed as soon as it is there."""
    async with connect(url, proxy=None) as connection:
        await connection.wait_closed()
        return connection.close_code, connection.close_reason


@pytest.mark.parametrize("name", sorted(path.stem for path in TRANSCRIPTS.glob("*.jsonl")))
async def test_the_same_requests_give_the_same_frames(name: str, tmp_path: Path) -> None:
    """Keys, values and order, as they were recorded, but for what `twin_frames` lists."""
    text, opencode = (TRANSCRIPTS / f"{name}.jsonl").read_text(), name.startswith("opencode")
    here = repository(tmp_path / "demo", "master" if '"currentBranch": "master"' in text else "main")
    paths = {"/workspace/demo": str(here), "/home/user/.paseo": str(tmp_path / "home")}
    shape = Shape(paths, loose=opencode or "chunks " in text)
    async with Twin(
        tmp_path / "home",
        password="correct-horse" if name == "auth" else None,
        speed=SPEED,
        hello_timeout=0.3,
        opencode=opencode,
    ) as twin:
        twin.providers["opencode"].settle = 60 if name == "opencode-failed" else 0
        twin.providers["opencode"].false_start = "refused"
        replay = Replay(name, twin, shape)
        await replay.run()
    for client in replay.clients.values():
        found = compare(shape.frames(client.got), shape.frames(client.expected))
        assert not found, "\n".join(found)


def test_the_comparison_notices_what_differs() -> None:
    """A lost frame, a lost key, another value, another order; not an order that is not fixed."""
    _, lines = read("turn-cancel")
    frames = [parse(line.frame) for line in lines if line.dir == "recv"]
    shape = Shape({}, loose=False)
    kinds = [frame.kind for frame in frames]

    def differs(changed: list[Frame]) -> bool:
        return bool(compare(shape.frames(changed), shape.frames(frames)))

    def changed(kind: str, change: Any) -> list[Frame]:
        place = kinds.index(kind)
        body = json.loads(json.dumps(frames[place].body))
        change(body["payload"])
        return [*frames[:place], Frame(kind, body), *frames[place + 1 :]]

    assert not differs(frames)
    assert differs(frames[:-1])
    assert differs(changed("cancel_agent_response", lambda payload: payload.pop("agent")))
    assert differs(
        changed("event turn_canceled", lambda payload: payload["event"].update(reason="interrupted"))
    )
    assert differs(changed("row user_message", lambda payload: payload.update(seq=2)))
    assert not differs(
        changed("row user_message", lambda payload: payload.update(timestamp="2027-01-01T00:00:00.000Z"))
    )
    ended = kinds.index("event turn_canceled")
    assert differs([*frames[:ended], frames[ended + 1], frames[ended], *frames[ended + 2 :]])
    started = kinds.index("event turn_started")
    assert kinds[started - 1] == "send_agent_message_response"
    assert not differs([*frames[: started - 1], frames[started], frames[started - 1], *frames[started + 1 :]])


async def test_a_connection_drops_at_the_frame_that_was_named() -> None:
    """The other end sees 1006, and has got exactly the frames before."""
    async with Twin(speed=FAST) as twin, talk(twin.url) as client:
        agent = await client.agent()
        before = len(client.got)
        twin.faults.drop_at = before + 2
        await client.tell("send_agent_message_request", requestId="x", agentId=agent, text="say hi")
        assert await client.end() == 1006
        assert len(client.got) == before + 2
        assert events(client.got[before:]) == ["user_message"]
        async with talk(twin.url) as again:
            assert [item["type"] for item in await again.rows(agent)] == ["user_message", "assistant_message"]


async def test_requests_are_lost_late_or_without_an_answer() -> None:
    """Lost before they are handled, or after it; a late answer finds the client's next connection."""
    async with Twin(speed=FAST) as twin:
        async with talk(twin.url, "cid_1") as client:
            agent = await client.agent()
            twin.faults.ignored.add("cancel_agent_request")
            twin.faults.never.add("archive_agent_request")
            twin.faults.late["fetch_agent_request"] = 0.2
            await client.tell("cancel_agent_request", requestId="a", agentId=agent)
            await client.tell("archive_agent_request", requestId="b", agentId=agent)
            await client.wait(
                lambda message: (message.get("payload", {}).get("agent") or {}).get("archivedAt")
            )
            await client.tell("fetch_agent_request", requestId="late", agentId=agent)
            await client.ask("ping")
            twin.drop("cid_1")
            assert await client.end() == 1006
        async with talk(twin.url, "cid_1") as client:
            await client.wait(lambda message: message.get("payload", {}).get("requestId") == "late")
            twin.faults.drop_before = "create_agent_request"
            await client.tell(
                "create_agent_request", requestId="c", config={"provider": "scripted", "cwd": "/tmp"}
            )
            assert await client.end() == 1006
        assert len(twin.running.agents) == 1
        async with talk(twin.url, "cid_1") as client:
            twin.faults.drop_after = "create_agent_request"
            await client.tell(
                "create_agent_request", requestId="d", config={"provider": "scripted", "cwd": "/tmp"}
            )
            assert await client.end() == 1006
        assert len(twin.running.agents) == 2
    assert twin.record.count("create_agent_request") == 3
    assert twin.record.count("cancel_agent_request", agentId=agent) == 1
    assert twin.record.count("refresh_agent_request") == 0


@pytest.mark.parametrize("history", ["whole", "empty", "unloadable"])
async def test_a_killed_daemon_comes_back_with_what_its_providers_know(history: Any) -> None:
    """A ghost that runs, another epoch, and the history that was asked for."""
    async with Twin(speed=FAST) as twin:
        async with talk(twin.url) as client:
            agent = await client.agent()
            await client.run(agent, "say one")
            before = await client.ask("fetch_agent_timeline_request", agentId=agent)
            await client.ask("send_agent_message_request", agentId=agent, text="say two\nhang")
            await client.wait(lambda message: "two" in json.dumps(message.get("payload", {}).get("event")))
            await twin.restart(history=history)
            assert await client.end() == 1006
        async with talk(twin.url) as client:
            assert (await client.ask("fetch_agent_request", agentId=agent))["agent"]["status"] == "running"
            page = await client.ask("fetch_agent_timeline_request", agentId=agent)
            assert page["epoch"] != before["epoch"]
            texts = [entry["item"]["text"] for entry in page["entries"]]
            assert texts == (["say one", "one", "say two\nhang", "two"] if history == "whole" else [])
            assert (page["error"] is not None) == (history == "unloadable")


async def test_an_orderly_stop_closes_agents_and_then_connections() -> None:
    """1005, whoever asked for it; nobody can connect until it starts again."""
    async with Twin(speed=FAST) as twin:
        async with talk(twin.url) as client:
            agent = await client.agent()
            await client.ask("shutdown_server_request")
            assert await client.end() == 1005
            assert client.got[-1]["payload"]["agent"]["status"] == "closed"
        with pytest.raises(OSError, match="Connect call failed"):
            await refusal(twin.url)
        await twin.restart()
        async with talk(twin.url) as client:
            assert (await client.ask("fetch_agent_request", agentId=agent))["agent"]["status"] == "closed"


async def test_a_session_outlives_its_connection_for_a_while() -> None:
    """Its subscription is kept, what was sent meanwhile is not; after that it is another session."""
    async with Twin(speed=FAST) as twin:
        async with talk(twin.url, "cid_1") as client:
            agent = await client.agent()
        await twin.prompt(agent, "say unheard")
        async with talk(twin.url, "cid_1", subscribe=False) as client:
            await client.ask("ping")
            await twin.prompt(agent, "say heard")
            await client.idle(0)
            assert "unheard" not in json.dumps(client.got)
        twin.session_ttl = 0.0
        async with talk(twin.url, "cid_1", subscribe=False) as client:
            await twin.prompt(agent, "say more")
            await client.event("turn_completed")
            await client.ask("ping")
            assert "agent_update" not in [message["type"] for message in client.got]


async def test_the_password_and_every_connection_can_be_refused() -> None:
    """4401 after the upgrade, or no upgrade at all."""
    async with Twin() as twin:
        twin.faults.refuse_password = True
        assert await refusal(twin.url) == (4401, "Incorrect password")
        twin.faults.refuse_password, twin.faults.refuse_connections = False, True
        with pytest.raises(InvalidMessage):
            await refusal(twin.url)


async def test_strange_and_huge_frames_are_sent_when_asked_for() -> None:
    """A client that survives them gets all that follows."""
    async with Twin(speed=FAST) as twin, talk(twin.url) as client:
        agent = await client.agent()
        twin.strange(agent)
        twin.flood(9_000_000)
        await client.ask("ping")
        types = [message["type"] for message in client.got]
        assert {"weather", "binary", "no_payload_at_all", "agent.timeline.replacement", "huge"} <= set(types)
        assert "hologram" in events(client.got) and "turn_paused" in events(client.got)
        assert len(client.got[types.index("huge")]["payload"]["text"]) > 8_999_000


async def test_another_client_replaces_cancels_and_answers() -> None:
    """The foreign row comes before the end of the turn that it replaces."""
    async with Twin(speed=FAST) as twin, talk(twin.url) as client:
        agent = await client.agent()
        before = len(client.got)
        await client.ask("send_agent_message_request", agentId=agent, text="say mine\nhang", messageId="m-1")
        await client.wait(lambda message: "mine" in json.dumps(message["payload"].get("event")), before + 1)
        await twin.prompt(agent, "hang", "m-foreign")
        await client.ask("ping")
        told = events(client.got[before:])
        assert told == [
            "user_message",
            "turn_started",
            "assistant_message",
            "user_message",
            "turn_canceled",
            "turn_started",
        ]
        await twin.cancel(agent)
        before = len(client.got)
        await client.ask("send_agent_message_request", agentId=agent, text="ask Push\nsay on")
        await client.event("permission_requested", before)
        twin.answer(agent, "deny")
        await client.event("permission_resolved", before)
        twin.faults.foreign_answer = "allow"
        before = len(client.got)
        await client.run(agent, "ask Push")
        asked = (await client.event("permission_requested", before))["event"]["request"]["id"]
        await client.tell(
            "agent_permission_response", agentId=agent, requestId=asked, response={"behavior": "deny"}
        )
        refused = await client.wait(lambda message: message["type"] == "rpc_error")
        assert refused["payload"]["requestId"] == asked


async def test_foreign_agents_stream_to_everybody() -> None:
    """Whoever has not subscribed gets their rows too, but none of their updates."""
    async with Twin() as twin, talk(twin.url, subscribe=False) as client:
        crowd = await twin.crowd(3, rate=200)
        await client.wait(lambda message: message.get("payload", {}).get("seq") == 5)
        heard = {
            message["payload"]["agentId"] for message in client.got if stream_type(message) == "timeline"
        }
        assert heard == set(crowd)
        await client.tell("client_heartbeat", deviceType="mobile", focusedAgentId=crowd[0])
        await client.ask("ping")
        before = len(client.got)
        await client.wait(lambda message: message.get("payload", {}).get("seq") == 20)
        assert {message["payload"]["agentId"] for message in client.got[before:]} == {crowd[0]}


async def test_providers_load_slowly_when_they_are_told_to() -> None:
    """The first list says `loading`; a prompt that starts too late is answered before, and starts."""
    async with Twin(speed=FAST, probe_delay=0.01) as twin, talk(twin.url) as client:
        first = await client.ask("get_providers_snapshot_request")
        assert {entry["status"] for entry in first["entries"]} == {"loading"}
        models = await client.ask("list_provider_models_request", provider="scripted")
        assert [model["id"] for model in models["models"]] == ["m1", "m2"]
        twin.providers["scripted"].start_delay = 4.0
        with anyio.move_on_after(0.05):
            await client.agent()
        assert not twin.running.agents
        agent = await client.agent("opencode")
        twin.providers["opencode"].prompt_delay = 20.0
        late = await client.ask("send_agent_message_request", agentId=agent, text="say late")
        assert (late["accepted"], late["error"]) == (False, "timeout")
        assert (await client.ask("fetch_agent_request", agentId=agent))["agent"]["status"] == "idle"
        await client.event("turn_completed")


async def test_opencode_differs() -> None:
    """No start, aborted tools that failed, empty turns after haste, a server that dies or lives on."""
    async with Twin(speed=FAST) as twin:
        async with talk(twin.url) as client:
            agent = await client.agent("opencode")
            before = len(client.got)
            await client.ask(
                "send_agent_message_request", agentId=agent, text='tool bash {"command":"sleep 9"}'
            )
            asked = (await client.event("permission_requested", before))["event"]["request"]["id"]
            allowed = {"agentId": agent, "requestId": asked, "response": {"behavior": "allow"}}
            await client.tell("agent_permission_response", **allowed)
            await client.ask("cancel_agent_request", agentId=agent)
            told = client.got[before:]
            assert "turn_started" not in events(told) and "permission_resolved" not in events(told)
            ended = await client.event("turn_canceled", before)
            assert ended["event"]["reason"] == "interrupted"
            aborted = (await client.rows(agent))[-1]
            assert (aborted["status"], aborted["error"]) == ("failed", {"message": "Tool execution aborted"})

            hasty = await client.run(agent, "say too early")
            assert events(hasty) == ["user_message", "turn_completed"]
            assert "usage" not in json.dumps([message for message in hasty if stream_type(message)])
            twin.providers["opencode"].settle = 0.0
            process = twin.agent(agent).process
            assert process is not None
            process.settling_until = 0.0
            assert events(await client.run(agent, "say so")) == [
                "user_message",
                "assistant_message",
                "turn_completed",
            ]

            await client.run(agent, "crash")
            refused = await client.ask("send_agent_message_request", agentId=agent, text="say again")
            assert (refused["accepted"], refused["error"]) == (False, f"Agent {agent} failed to start")
            await client.ask("refresh_agent_request", agentId=agent)
            assert "assistant_message" in events(await client.run(agent, "say again"))

            await client.ask("send_agent_message_request", agentId=agent, text="sleep 4000\nsay from beyond")
            process = twin.agent(agent).process
            assert process is not None and process.turn is not None
            orphan = process.turn
            await twin.restart()
        with anyio.fail_after(8):
            await orphan.ended.wait()
        async with talk(twin.url) as client:
            assert (await client.rows(agent))[-1] == {"type": "assistant_message", "text": "from beyond"}


async def test_of_two_refreshes_one_is_never_answered() -> None:
    """A caller must not wait for ever, nor believe that its agent is lost."""
    async with Twin(speed=FAST) as twin, talk(twin.url) as client:
        agent = await client.agent("scripted-history")
        twin.providers["scripted-history"].start_delay = 4.0
        for name in ("one", "two"):
            await client.tell("refresh_agent_request", requestId=name, agentId=agent)
        await client.wait(lambda message: message.get("payload", {}).get("status") == "agent_refreshed")
        await client.ask("ping")
        answers = [message for message in client.got if "agent_refreshed" in json.dumps(message)]
        assert len(answers) == 1


async def test_a_new_epoch_begins_without_a_word() -> None:
    """The next row is number one of another epoch."""
    async with Twin(speed=FAST) as twin, talk(twin.url) as client:
        agent = await client.agent()
        await client.run(agent, "say one")
        twin.new_epoch(agent)
        rows = [
            message["payload"]
            for message in await client.run(agent, "say two")
            if "seq" in message["payload"]
        ]
        assert [row["seq"] for row in rows] == [1, 2]


async def test_as_a_process_it_can_be_killed_and_started_again_on_what_it_stored(tmp_path: Path) -> None:
    """`kill -9` leaves a ghost and the provider's history; commands come over HTTP."""

    def start(port: int) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, program.__file__, "--home", str(tmp_path / "home"), "--port", str(port)]
        process = subprocess.Popen([*command, "--speed", "4"], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    first, url = await anyio.to_thread.run_sync(start, 0)
    port = int(url.rpartition(":")[2].partition("/")[0])
    with first:
        async with talk(url) as client, httpx.AsyncClient(trust_env=False) as http:

            async def command(name: str, **arguments: Any) -> Any:
                query = {"q": json.dumps(arguments)}
                return (await http.get(f"http://127.0.0.1:{port}/twin/{name}", params=query)).json()

            agent = await client.agent("scripted-history")
            await client.run(agent, "say one")
            await command("prompt", agent_id=agent, text="say foreign\nhang")
            await client.wait(lambda message: '"text": "foreign"' in json.dumps(message))
            heard = await command("received", kind="send_agent_message_request")
            assert [one["message"]["text"] for one in heard] == ["say one"]
            first.kill()
            assert await client.end() == 1006
    second, url = await anyio.to_thread.run_sync(start, port)
    with second:
        async with talk(url) as client:
            assert (await client.ask("fetch_agent_request", agentId=agent))["agent"]["status"] == "running"
            texts = [item["text"] for item in await client.rows(agent)]
            assert texts == ["say one", "one", "say foreign\nhang", "foreign"]
            second.terminate()
            assert await client.end() == 1005
    assert (first.returncode, second.returncode) == (-signal.SIGKILL, 0)
