"""Streams: cut anywhere and resumed, filtered, reset, closed, ticketed; live and replayed the same bytes."""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import httpx
import pytest

from app.domain.events import Notice
from app.domain.ids import SessionId
from app.settings import Limits, Timing
from app.store import eventlog
from tests.engine.replicas import two_houses
from tests.house import Frame, House, Stream, assert_unbroken, durable, open_house, parse_frames

NOW: dict[str, Any] = {"from": "now"}
SCRIPT = "think hm\nsay one é \u2028 two\nrun ls\nplan a; b\ntokens 3 4\nedit x.py\nstream 5\nsay done"


def session_stream(session: dict[str, Any]) -> str:
    return f"/v1/sessions/{session['session_id']}/events/stream"


def raw(frames: list[Frame]) -> list[bytes]:
    return [frame.raw for frame in durable(frames)]


def last_id(frames: list[Frame]) -> int | None:
    """What a reader would send as Last-Event-ID."""
    return next((int(frame.id) for frame in reversed(frames) if frame.id is not None), None)


async def hold(house: House, session_id: str) -> tuple[str, str]:
    """A turn that waits for a permission: its id, and the permission's."""
    turn = await house.prompt(session_id, "ask Delete?\nsay after")
    async with house.stream(f"/v1/sessions/{session_id}/events/stream") as stream:
        frames = await stream.until("permission.requested")
    asked = next(frame for frame in frames if frame.event == "permission.requested")
    return turn["turn_id"], asked.data["data"]["permission_id"]


async def let_go(house: House, permission: str) -> None:
    answer = await house.post(f"/v1/permissions/{permission}/respond", {"outcome": "allow"})
    assert answer.status_code == 200, answer.text


# Cut and resumed.


async def test_stream_cut_at_any_byte_goes_on_where_its_reader_was(house: House) -> None:
    """Whatever byte was the last, the reader's last complete id gives it the rest, byte for byte."""
    answer = await house.post(
        "/v1/prompt-stream", {"agent": "demo", "session_id": "s-1", "prompt": SCRIPT, "cwd": str(house.cwd)}
    )
    whole = answer.content
    uncut = raw(parse_frames(whole))
    path = f"{answer.headers['content-location']}"
    seen_at: dict[int | None, list[bytes]] = {}
    for cut in range(len(whole) + 1):
        frames = parse_frames(whole[:cut])
        before = raw(frames)
        cursor = last_id(frames)
        assert seen_at.setdefault(cursor, before) == before  # an id is known exactly when its event is
    assert len(seen_at) == len(uncut) + 1
    for cursor, before in seen_at.items():
        headers = {} if cursor is None else {"Last-Event-ID": str(cursor)}
        resumed = await house.client.get(path, headers=headers)
        if len(before) == len(uncut):
            assert resumed.status_code == 204
        else:
            assert before + raw(parse_frames(resumed.content)) == uncut


async def test_turn_stream_is_what_its_prompt_answered(house: House) -> None:
    """POST and GET tell exactly the same events, and the session's stream tells them too."""
    session = await house.ensure()
    name = session["session_id"]
    posted = await house.client.post(
        f"/v1/sessions/{name}/turns", json={"prompt": SCRIPT}, headers={"Accept": "text/event-stream"}
    )
    turn = posted.headers["location"].rpartition("/")[2]
    assert posted.headers["content-location"] == f"/v1/turns/{turn}/events/stream"
    got = await house.client.get(posted.headers["content-location"])
    assert raw(parse_frames(got.content)) == raw(parse_frames(posted.content))
    whole = await house.follow(session_stream(session), "turn.completed")
    assert [f.raw for f in durable(whole) if f.data["turn_id"] == turn] == raw(parse_frames(posted.content))
    assert {f.data["turn_id"] for f in durable(parse_frames(got.content))} == {turn}


async def test_page_of_the_log_and_the_stream_tell_the_same(house: House) -> None:
    """One log, three views."""
    session = await house.ensure()
    await house.run(session["session_id"], SCRIPT)
    frames = durable(await house.follow(session_stream(session), "turn.completed"))
    assert [frame.data for frame in frames] == await house.log(session["session_id"])


# First bytes, live.


async def test_first_bytes_are_retry_ready_replay_and_synced(house: House) -> None:
    """In that order, with the headers that keep proxies from holding them back."""
    session = await house.ensure()
    await house.run(session["session_id"], "say hello")
    last = (await house.get(f"/v1/sessions/{session['session_id']}"))["last_seq"]
    async with house.stream(session_stream(session), headers={"Accept-Encoding": "gzip"}) as stream:
        frames = await stream.until("stream.synced")
        headers = stream.response.headers
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["cache-control"] == "no-store, no-transform"
    assert headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in headers
    assert frames[0].raw == b"retry: 2000\n\n"
    assert frames[1].event == "stream.ready"
    assert frames[1].data == {
        "session_id": session["session_id"],
        "after": 0,
        "oldest_seq": 1,
        "last_seq": last,
    }
    assert [f.seq for f in frames[2:-1]] == list(range(1, last + 1))
    assert frames[-1].data == {"last_seq": last}
    assert all(f.id is None for f in frames if f.event is not None and f.event.startswith("stream."))
    assert b"\r" not in stream.raw


async def test_live_frames_are_the_replayed_frames(house: House) -> None:
    """A stream that was there from the start, and one that came later, have the same bytes."""
    session = await house.ensure()
    async with house.stream(session_stream(session)) as stream:
        await stream.until("stream.synced")
        await house.run(session["session_id"], SCRIPT)
        live = await stream.until("turn.completed")
    replayed = await house.follow(session_stream(session), "turn.completed")
    assert raw(live) == raw(replayed)
    assert_unbroken(live)


async def test_silent_stream_beats_with_comments(database_url: str, folder: Path) -> None:
    """A heartbeat has no id and no event."""
    timing = Timing(health_s=1.0, drain_s=1.0, heartbeat_s=0.05)
    async with open_house(database_url, folder, timing=timing) as house:
        session = await house.ensure()
        async with house.stream(session_stream(session)) as stream:
            while sum(frame.is_comment for frame in stream.frames) < 3:
                assert await stream.more()
        assert {f.raw for f in stream.frames if f.is_comment} == {b": ping\n\n"}


async def test_event_whose_bell_was_lost_arrives_all_the_same(house: House, database_url: str) -> None:
    """A slow look at all followed sessions finds it, although the stream knew that it was at the end."""
    session = await house.ensure()
    name = session["session_id"]
    async with house.stream(session_stream(session)) as stream:
        await stream.until("stream.synced")
        await house.run(name, "say heard")
        await stream.until("turn.completed")
        notice = eventlog.draft(SessionId(name), None, Notice(level="info", code="unheard", message=""))
        db = await asyncpg.connect(database_url)
        try:
            await db.execute(
                "WITH s AS (UPDATE agent_sessions SET last_seq = last_seq + 1 RETURNING id, last_seq)"
                " INSERT INTO events (session, seq, type, body) SELECT id, last_seq, $1, $2 FROM s",
                notice.type,
                notice.body,
            )
        finally:
            await db.close()
        frames = await stream.until("notice")
        assert_unbroken(frames)
        await house.run(name, "say again")
        assert_unbroken(await stream.until("turn.completed", 2))


async def test_two_hundred_followers_see_the_same_bytes(house: House) -> None:
    """Each from the same start; half of them were there before, half came in the middle."""
    session = await house.ensure()
    path = session_stream(session)
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(house.stream(path)) for _ in range(100)]
        for stream in streams:
            await stream.until("stream.synced")
        _, permission = await hold(house, session["session_id"])
        streams += [await stack.enter_async_context(house.stream(path)) for _ in range(100)]
        await let_go(house, permission)
        seen = [b"".join(raw(await stream.until("turn.completed"))) for stream in streams]
    assert len(set(seen)) == 1
    assert b"permission.resolved" in seen[0]


# Filters.


@pytest.mark.parametrize(
    ("params", "shown"),
    [
        ({"types": "turn.*"}, {"turn.queued", "turn.started", "turn.completed"}),
        ({"types": "tool_call.started, turn.completed"}, {"tool_call.started", "turn.completed"}),
        ({"types": "message.*,turn.completed", "deltas": "false"}, {"message.completed", "turn.completed"}),
        ({"types": "turn.completed"}, {"turn.completed"}),
    ],
)
async def test_filtered_stream_moves_its_cursor_past_what_it_leaves_out(
    house: House, params: dict[str, Any], shown: set[str]
) -> None:
    """Bare `id:` blocks: a reader that comes back at any point misses nothing and sees nothing twice."""
    session = await house.ensure()
    await house.run(session["session_id"], SCRIPT + "\nstream 3 1")
    path = session_stream(session)
    async with house.stream(path, **params) as stream:
        frames = await stream.until("stream.synced")
    assert {f.event for f in durable(frames)} == shown
    assert last_id(frames) == frames[-1].data["last_seq"]
    ids = [int(f.id) for f in frames if f.id is not None]
    assert ids == sorted(ids)
    bare = [f for f in frames if f.id is not None and f.event is None]
    assert all(f.raw == f"id: {f.id}\n\n".encode() for f in bare)
    for cut in range(len(frames)):
        cursor = last_id(frames[:cut])
        headers = {} if cursor is None else {"Last-Event-ID": str(cursor)}
        async with house.stream(path, headers=headers, **params) as stream:
            rest = await stream.until("stream.synced")
        assert raw(frames[:cut]) + raw(rest) == raw(frames)


async def test_filtered_live_stream_moves_its_cursor(house: House) -> None:
    """What is not shown live moves the cursor too."""
    session = await house.ensure()
    async with house.stream(session_stream(session), deltas="false") as stream:
        await stream.until("stream.synced")
        await house.run(session["session_id"], "stream 20 2")
        frames = await stream.until("turn.completed")
    assert "message.delta" not in {f.event for f in frames}
    assert any(f.id is not None and f.event is None for f in frames)
    whole = durable(await house.follow(session_stream(session), "turn.completed"))
    assert raw(frames) == [f.raw for f in whole if f.event != "message.delta"]


async def test_unknown_type_is_refused_before_the_stream(house: House) -> None:
    """422, and nothing was opened."""
    session = await house.ensure()
    for types in ("turn.exploded", "nothing.*", "*", "turn.completed,x"):
        answer = await house.client.get(session_stream(session), params={"types": types})
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed"), types


# Cursors.


async def test_stream_from_now_begins_with_the_cursor_it_regards_as_seen(house: House) -> None:
    """`from=now`: no replay, and a bare block so that a reconnect does not go back."""
    session = await house.ensure()
    await house.run(session["session_id"], "say old")
    last = (await house.get(f"/v1/sessions/{session['session_id']}"))["last_seq"]
    async with house.stream(session_stream(session), **NOW) as stream:
        frames = await stream.until("stream.synced")
        assert durable(frames) == []
        assert frames[1].data["after"] == last
        assert frames[2].raw == f"id: {last}\n\n".encode()
        await house.run(session["session_id"], "say new")
        frames = await stream.until("turn.completed")
    assert durable(frames)[0].seq == last + 1
    assert_unbroken(frames)


async def test_cursor_of_the_future_is_reset_to_the_end(house: House) -> None:
    """`stream.reset` names where the stream goes on, and the bare block carries it."""
    session = await house.ensure()
    name = session["session_id"]
    await house.run(name, "say old")
    last = (await house.get(f"/v1/sessions/{name}"))["last_seq"]
    async with house.stream(session_stream(session), headers={"Last-Event-ID": str(last + 1)}) as stream:
        frames = await stream.until("stream.synced")
        assert [f.event for f in frames] == [None, "stream.ready", "stream.reset", None, "stream.synced"]
        data = frames[2].data
        assert data["resume_from"] == last
        assert data["snapshot_url"] == f"/v1/sessions/{name}/snapshot"
        assert data["reason"]
        assert frames[3].raw == f"id: {last}\n\n".encode()
        await house.run(name, "say new")
        frames = await stream.until("turn.completed")
    assert durable(frames)[0].seq == last + 1


async def test_cursor_of_pruned_history_is_reset_to_the_oldest(house: House) -> None:
    """A session whose id was used before begins above 1: a cursor below that is too old; `start` is not."""
    await house.ensure("s-1")
    await house.run("s-1", "say old")
    before = (await house.get("/v1/sessions/s-1"))["last_seq"]
    assert (await house.client.delete("/v1/sessions/s-1")).status_code == 204
    session = await house.ensure("s-1")
    oldest = session["oldest_seq"]
    assert oldest > before
    path = session_stream(session)
    async with house.stream(path, headers={"Last-Event-ID": "1"}) as stream:
        frames = await stream.until("stream.synced")
    assert [f.event for f in frames[:4]] == [None, "stream.ready", "stream.reset", None]
    assert frames[2].data["resume_from"] == oldest - 1
    assert frames[3].raw == f"id: {oldest - 1}\n\n".encode()
    assert durable(frames)[0].seq == oldest
    starts: list[dict[str, Any]] = [{"from": "start"}, {}, {"after": str(oldest - 1)}]
    for start in starts:
        async with house.stream(path, **start) as stream:
            frames = await stream.until("stream.synced")
        assert "stream.reset" not in {f.event for f in frames}
        assert durable(frames)[0].seq == oldest


@pytest.mark.parametrize("cursor", ["x", "-1", "1.5", "1e3", "0x1", "1 2", "９", "9" * 30])
async def test_malformed_cursor_is_refused_before_the_stream(house: House, cursor: str) -> None:
    """400 `invalid_cursor`, wherever it stands."""
    session = await house.ensure()
    for params in ({"after": cursor}, {"starting_after": cursor}):
        answer = await house.client.get(session_stream(session), params=params)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_cursor"), params
    if cursor.isascii():
        answer = await house.client.get(session_stream(session), headers={"Last-Event-ID": cursor})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_cursor")


async def test_last_event_id_comes_before_the_query(house: House) -> None:
    """An EventSource that reconnects keeps its first URL, and adds the header."""
    session = await house.ensure()
    await house.run(session["session_id"], "say hello")
    async with house.stream(
        session_stream(session), headers={"Last-Event-ID": "3"}, after="1", **NOW
    ) as stream:
        frames = await stream.until("stream.synced")
    assert durable(frames)[0].seq == 4
    async with house.stream(session_stream(session), after="2", **NOW) as stream:
        assert durable(await stream.until("stream.synced"))[0].seq == 3


# Ends.


async def test_reader_at_the_end_of_an_ended_turn_is_stopped(house: House) -> None:
    """204 is the only thing that keeps an EventSource from coming back."""
    session = await house.ensure()
    turn = await house.run(session["session_id"], "say hello")
    path = f"/v1/turns/{turn['turn_id']}/events/stream"
    frames = await house.follow(path, "stream.closing")
    assert frames[-1].data == {"reason": "turn_ended"}
    assert durable(frames)[-1].event == "turn.completed"
    assert last_id(frames) == turn["last_seq"]
    answer = await house.client.get(path, headers={"Last-Event-ID": str(turn["last_seq"])})
    assert (answer.status_code, answer.content) == (204, b"")
    answer = await house.client.get(path, headers={"Last-Event-ID": str(turn["last_seq"] - 1)})
    assert answer.status_code == 200
    assert [f.event for f in durable(parse_frames(answer.content))] == ["turn.completed"]


async def test_turn_stream_ends_even_if_its_end_is_not_shown(house: House) -> None:
    """A filter hides events, not the end."""
    session = await house.ensure()
    turn = await house.run(session["session_id"], "say hello")
    frames = await house.follow(
        f"/v1/turns/{turn['turn_id']}/events/stream", "stream.closing", types="plan.*"
    )
    assert durable(frames) == []
    assert last_id(frames) == turn["last_seq"]


async def test_closed_session_ends_its_streams(house: House) -> None:
    """`session.closed` is delivered, then `stream.closing`; whoever comes back gets 204."""
    session = await house.ensure()
    name = session["session_id"]
    async with house.stream(session_stream(session)) as stream:
        await stream.until("stream.synced")
        assert (await house.post(f"/v1/sessions/{name}/close")).status_code == 200
        frames = await stream.to_end()
    assert durable(frames)[-1].event == "session.closed"
    assert (frames[-1].event, frames[-1].data) == ("stream.closing", {"reason": "session_closed"})
    last = durable(frames)[-1].seq
    answer = await house.client.get(session_stream(session), headers={"Last-Event-ID": str(last)})
    assert answer.status_code == 204
    frames = parse_frames((await house.client.get(session_stream(session))).content)
    assert durable(frames)[-1].event == "session.closed"
    assert frames[-1].data == {"reason": "session_closed"}


async def test_erased_session_ends_its_streams(house: House) -> None:
    """A stream of a log that is no more says `session_closed`."""
    session = await house.ensure()
    async with house.stream(session_stream(session)) as stream:
        await stream.until("stream.synced")
        assert (await house.client.delete(f"/v1/sessions/{session['session_id']}")).status_code == 204
        frames = await stream.to_end()
    assert frames[-1].data == {"reason": "session_closed"}
    assert (await house.client.get(session_stream(session))).status_code == 404


async def test_rotating_stream_says_so_but_a_prompts_answer_does_not(database_url: str, folder: Path) -> None:
    """Off by default; never on a POST answer."""
    timing = Timing(health_s=1.0, drain_s=1.0, heartbeat_s=0.05, rotate_s=0.2)
    async with open_house(database_url, folder, timing=timing) as house:
        session = await house.ensure()
        async with house.stream(session_stream(session)) as stream:
            frames = await stream.to_end()
        assert frames[-1].data == {"reason": "rotate"}
        posted = await house.client.post(
            f"/v1/sessions/{session['session_id']}/turns",
            json={"prompt": "sleep 0.5\nsay done"},
            headers={"Accept": "text/event-stream"},
        )
        assert parse_frames(posted.content)[-1].data == {"reason": "turn_ended"}


async def test_draining_service_ends_its_streams(database_url: str, folder: Path) -> None:
    """`draining`: the reader goes to another replica."""
    async with two_houses(database_url, folder) as (first, second):
        session = await first.ensure()
        path = session_stream(session)
        async with first.stream(path) as stream:
            await stream.until("stream.synced")
            first.service.rooms.lifecycle.drain()
            frames = await stream.to_end()
        assert frames[-1].data == {"reason": "draining"}
        assert (await first.client.get(path)).status_code == 503
        async with second.stream(path, headers={"Last-Event-ID": str(last_id(frames))}) as stream:
            await stream.until("stream.synced")
            await second.run(session["session_id"], "say elsewhere")
            assert_unbroken(frames + await stream.until("turn.completed"))


# Two replicas.


async def test_follower_on_another_replica_sees_the_same(database_url: str, folder: Path) -> None:
    """The session is hosted by one replica, followed on both, prompted on both."""
    async with two_houses(database_url, folder) as (first, second):
        session = await first.ensure()
        path, name = session_stream(session), session["session_id"]
        async with first.stream(path) as here, second.stream(path) as there:
            await here.until("stream.synced")
            await there.until("stream.synced")
            await first.run(name, SCRIPT)
            await second.run(name, SCRIPT)
            seen_here = await here.until("turn.completed", 2)
            seen_there = await there.until("turn.completed", 2)
        assert raw(seen_here) == raw(seen_there)
        assert_unbroken(seen_there)


async def test_rebinding_closes_the_streams_of_the_old_name(database_url: str, folder: Path) -> None:
    """`rebound` on both replicas; the old name is unknown, the new one has the same log."""
    async with two_houses(database_url, folder) as (first, second):
        session = await first.ensure("old", chat_id="c-1")
        await first.run("old", "say before")
        async with (
            first.stream("/v1/sessions/old/events/stream") as here,
            second.stream("/v1/sessions/old/events/stream") as there,
        ):
            await here.until("stream.synced")
            await there.until("stream.synced")
            again = await second.ensure("new", chat_id="c-1")
            frames = await here.to_end()
            assert raw(frames) == raw(await there.to_end())
        assert frames[-1].data == there.frames[-1].data == {"reason": "rebound"}
        assert again["opened"] == "rebound"
        assert again["agent_session_id"] == session["agent_session_id"]
        for house in (first, second):
            assert (await house.client.get("/v1/sessions/old/events/stream")).status_code == 404
        async with second.stream("/v1/sessions/new/events/stream") as stream:
            whole = durable(await stream.until("stream.synced"))
        assert [f.raw for f in whole[: len(durable(frames))]] == raw(frames)
        assert {f.data["session_id"] for f in durable(frames)} == {"old"}
        rest = whole[len(durable(frames)) :]
        assert [(f.event, f.data["session_id"]) for f in rest] == [("session.opened", "new")]
        await first.run("new", "say after")
        assert (await first.log("new"))[-1]["session_id"] == "new"


# Over all sessions.


async def test_stream_over_all_sessions_is_live_and_has_no_ids(database_url: str, folder: Path) -> None:
    """What happens on either replica, in sessions made before and after; lifecycle by default, no deltas."""
    async with two_houses(database_url, folder) as (first, second):
        old = await first.ensure("old")
        await first.run("old", "say before")
        async with second.stream("/v1/events/stream") as stream:
            await stream.until("stream.synced")
            await first.ensure("new", project_id="p-1")
            await first.run("new", "say one")
            await second.run("old", "say two")
            frames = await stream.until("turn.completed", 2)
        assert all(f.id is None for f in frames)
        assert {f.event for f in durable(frames)} == {
            "session.opened",
            "turn.queued",
            "turn.started",
            "turn.completed",
        }
        told = [(f.data["session_id"], f.event) for f in durable(frames)]
        assert told.count(("new", "turn.completed")) == told.count(("old", "turn.completed")) == 1
        assert ("old", "session.opened") not in told
        log = {(e["session_id"], e["seq"]): e for name in ("old", "new") for e in await first.log(name)}
        assert all(log[f.data["session_id"], f.data["seq"]] == f.data for f in durable(frames))
        async with second.stream("/v1/events/stream", project_id="p-1", types="message.delta") as stream:
            await stream.until("stream.synced")
            await first.run("old", "say unseen")
            await first.run("new", "say seen")
            frames = await stream.until("message.delta")
        assert [f.data["data"]["text"] for f in durable(frames)] == ["seen"]
        assert old["session_id"] == "old"


# Tickets, keys, bounds.


def browser(house: House) -> httpx.AsyncClient:
    """A client without a key."""
    return httpx.AsyncClient(base_url=house.url, timeout=30, trust_env=False)


async def ticket(house: House, **target: Any) -> str:
    answer = await house.post("/v1/stream-tickets", target)
    assert answer.is_success, answer.text
    found: str = answer.json()["ticket"]
    return found


async def test_ticket_opens_its_stream_only_and_again_and_supersedes(database_url: str, folder: Path) -> None:
    """An EventSource has no headers: the ticket stands for the key, for this one stream, on every replica."""
    async with two_houses(database_url, folder) as (first, second), browser(first) as client:
        await first.ensure("s-1")
        await first.ensure("s-2")
        one = await ticket(first, session_id="s-1")
        for other in ("/v1/sessions/s-2/events/stream", "/v1/events/stream", "/v1/sessions/s-1/events"):
            answer = await client.get(other, params={"ticket": one})
            assert answer.status_code == 401, other
        path = "/v1/sessions/s-1/events/stream"
        async with (
            client.stream("GET", path, params={"ticket": one}) as response,
            browser(second) as elsewhere,
        ):
            stream = Stream(response, response.aiter_raw())
            frames = await stream.until("stream.synced")
            headers = {"Last-Event-ID": str(last_id(frames))}
            async with elsewhere.stream("GET", path, params={"ticket": one}, headers=headers) as response:
                assert response.status_code == 200
                newer = Stream(response, response.aiter_raw())
                assert (await stream.to_end())[-1].data == {"reason": "superseded"}
                await newer.until("stream.synced")
                await first.run("s-1", "say hello")
                assert_unbroken(frames + await newer.until("turn.completed"))


async def test_revoked_key_ends_its_streams_on_every_replica(database_url: str, folder: Path) -> None:
    """By key and by ticket: `auth_expired`; the ticket opens nothing any more."""
    async with two_houses(database_url, folder) as (first, second), browser(second) as client:
        await first.ensure("s-1")
        made = (await first.post("/v1/api-keys", {"name": "x", "scopes": ["read"]})).json()
        own = {"Authorization": f"Bearer {made['key']}"}
        issued = await client.post("/v1/stream-tickets", json={"session_id": "s-1"}, headers=own)
        assert issued.is_success, issued.text
        params = {"ticket": issued.json()["ticket"]}
        path = "/v1/sessions/s-1/events/stream"
        async with (
            client.stream("GET", path, params=params) as by_ticket,
            client.stream("GET", path, headers=own) as by_key,
            second.stream(path) as other,
        ):
            streams = [Stream(by_ticket, by_ticket.aiter_raw()), Stream(by_key, by_key.aiter_raw())]
            for stream in (*streams, other):
                await stream.until("stream.synced")
            revoked = await first.client.delete(f"/v1/api-keys/{made['key_id']}")
            assert revoked.is_success, revoked.text
            for stream in streams:
                assert (await stream.to_end())[-1].data == {"reason": "auth_expired"}
            await first.run("s-1", "say hello")
            await other.until("turn.completed")
        assert (await client.get(path, params=params)).status_code == 401
        assert (await client.get(path, headers=own)).status_code == 401


async def test_too_many_streams_are_refused_in_the_readers_own_way(database_url: str, folder: Path) -> None:
    """429 for a key; with a ticket 200 and `stream.closing`, for an EventSource dies of a 429."""
    limits = Limits(streams_per_key=2)
    async with open_house(database_url, folder, limits=limits) as house, browser(house) as client:
        await house.ensure("s-1")
        path = "/v1/sessions/s-1/events/stream"
        params = {"ticket": await ticket(house, session_id="s-1")}
        async with house.stream(path) as first:
            await first.until("stream.synced")
            async with house.stream(path) as second:
                await second.until("stream.synced")
                answer = await house.client.get(path)
                assert (answer.status_code, answer.json()["code"]) == (429, "too_many_streams")
                assert "retry-after" in answer.headers
                posted = await house.client.post(
                    "/v1/sessions/s-1/turns",
                    json={"prompt": "say x"},
                    headers={"Accept": "text/event-stream"},
                )
                assert posted.status_code == 429
                for _ in range(2):
                    refused = await client.get(path, params=params)
                    assert refused.status_code == 200
                    frames = parse_frames(refused.content)
                    assert frames[0].raw == b"retry: 2000\n\n"
                    assert [(f.event, f.data) for f in frames[1:]] == [
                        ("stream.closing", {"reason": "too_many_streams"})
                    ]
        assert len((await house.get("/v1/sessions/s-1/turns"))["items"]) == 0
        with anyio.fail_after(10):
            while True:  # the server notices that the two have left
                async with client.stream("GET", path, params=params) as response:
                    opened = Stream(response, response.aiter_raw())
                    assert await opened.more()
                    if "stream.ready" in {f.event for f in opened.frames}:
                        break


async def test_refused_ticket_leaves_its_open_stream_alone(database_url: str, folder: Path) -> None:
    """A refusal opens nothing, so it supersedes nothing."""
    limits = Limits(streams_per_key=1)
    async with open_house(database_url, folder, limits=limits) as house, browser(house) as client:
        await house.ensure("s-1")
        path = "/v1/sessions/s-1/events/stream"
        params = {"ticket": await ticket(house, session_id="s-1")}
        async with client.stream("GET", path, params=params) as response:
            stream = Stream(response, response.aiter_raw())
            await stream.until("stream.synced")
            refused = parse_frames((await client.get(path, params=params)).content)
            reason = refused[-1].data["reason"]
            if reason == "too_many_streams":
                await house.run("s-1", "say hello")
                frames = await stream.until("turn.completed")
                assert "stream.closing" not in {f.event for f in frames}
