"""Frames as they were recorded, as a newer daemon may write them, and as nobody should."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.paseo.address import Address
from app.paseo.client import PaseoClient
from app.paseo.decoding import MAX_PRUNED, Opaque, decode
from app.paseo.errors import Undecodable
from app.paseo.frames import (
    PermissionRequested,
    StreamFrame,
    Timeline,
    TurnCompleted,
    open_envelope,
)
from app.paseo.items import AssistantMessage, ToolCall
from app.paseo.snapshots import Agent, AgentPage, AgentUpdate, Providers, TimelinePage
from app.paseo.subscriptions import FrameDropped

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.jsonl"))


def received(transcript: Path) -> Iterator[bytes]:
    """The JSON frames that a client received."""
    for line in transcript.read_text().splitlines():
        entry = json.loads(line)
        if entry.get("dir") == "recv" and "type" in entry["frame"]:
            yield json.dumps(entry["frame"]).encode()


def stream(event: dict[str, Any], **position: Any) -> bytes:
    payload = {"agentId": "a", "event": event, **position}
    message = {"type": "agent_stream", "payload": payload}
    return json.dumps({"type": "session", "message": message}).encode()


def read(data: bytes) -> StreamFrame:
    message = open_envelope(data).message
    assert message is not None
    return decode(StreamFrame, message.payload)


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda path: path.stem)
def test_every_recorded_frame_is_understood(transcript: Path) -> None:
    kinds: dict[str, Any] = {
        "agent_update": AgentUpdate,
        "fetch_agents_response": AgentPage,
        "providers_snapshot_update": Providers,
    }
    for data in received(transcript):
        message = open_envelope(data).message
        if message is None:
            continue
        if message.type == "agent_stream":
            frame = decode(StreamFrame, message.payload)
            assert not isinstance(frame.event, Opaque)
            if isinstance(frame.event, Timeline):
                assert not isinstance(frame.event.item, Opaque)
                assert frame.seq is not None or "worktree" in transcript.stem
        elif message.type == "fetch_agent_timeline_response":
            if json.loads(bytes(message.payload))["error"] is None:
                page = decode(TimelinePage, message.payload)
                assert not any(isinstance(row.item, Opaque) for row in page.entries)
        elif message.type in kinds:
            decode(kinds[message.type], message.payload)


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda path: path.stem)
def test_no_recorded_frame_is_dropped_on_its_way(transcript: Path) -> None:
    client = PaseoClient(Address.parse("http://127.0.0.1:1"))
    frames = list(received(transcript))
    agents = {
        frame["message"]["payload"].get("agentId", "")
        for frame in map(json.loads, frames)
        if "message" in frame
    }
    for agent_id in agents:
        with client.subscribe(agent_id) as notes:
            for data in frames:
                client._router.on_frame(data)
            told = notes.drain()
        assert not any(isinstance(note, FrameDropped) for note in told)
        assert all(note.agent_id == agent_id for note in told if isinstance(note, StreamFrame))


def test_an_agent_has_no_secrets_of_others_in_it() -> None:
    """Trap 28: what somebody put into an agent's servers and system prompt stands in every snapshot."""
    transcript = Path(__file__).parent / "transcripts" / "create-with-prompt.jsonl"
    assert "systemPrompt" in transcript.read_text()
    for data in received(transcript):
        message = open_envelope(data).message
        if message is not None and message.type == "agent_update":
            agent = decode(AgentUpdate, message.payload).agent
            assert agent is None or "systemPrompt" not in repr(agent)


def test_unknown_kinds_are_kept_as_they_came() -> None:
    song = {"type": "song", "bars": 4}
    assert read(stream({"type": "concert", "hall": 7})).event == Opaque(
        "concert", {"type": "concert", "hall": 7}
    )
    assert read(stream({"type": "timeline", "item": song})).event == Timeline(Opaque("song", song))
    call = {"type": "tool_call", "callId": "c", "name": "sing", "status": "humming", "detail": song}
    event = read(stream({"type": "timeline", "item": call}, seq=3, epoch="e")).event
    assert event == Timeline(ToolCall("c", "sing", "humming", Opaque("song", song)))


def test_what_does_not_fit_takes_its_default_and_the_rest_stays() -> None:
    event = {"type": "turn_completed", "usage": {"inputTokens": "many", "outputTokens": 3}, "turnId": 9}
    completed = read(stream(event, seq="x")).event
    assert isinstance(completed, TurnCompleted)
    assert completed.usage is not None
    assert (completed.usage.input_tokens, completed.usage.output_tokens) == (None, 3)

    agent = decode(Agent, b'{"id":"a","status":"dreaming","title":7,"labels":{"x":"1","y":2},"future":{}}')
    assert (agent.status, agent.title, agent.labels) == ("dreaming", None, {"x": "1"})

    asked = {
        "type": "permission_requested",
        "request": {"id": "p", "kind": "vote", "detail": {"type": "ballot"}},
    }
    event_ = read(stream(asked)).event
    assert isinstance(event_, PermissionRequested)
    assert (event_.request.kind, event_.request.detail) == ("vote", Opaque("ballot", {"type": "ballot"}))


@pytest.mark.parametrize("seq", [-1, 2**53, 2**63, 10**30])
def test_a_position_that_cannot_be_kept_is_none(seq: int) -> None:
    """It would be written as where a session stands, and the database would refuse the whole batch."""
    said = {"type": "timeline", "item": {"type": "assistant_message", "text": "x"}}
    assert read(stream(said, seq=seq, epoch="e")).seq is None
    row = {"item": said["item"], "seqStart": seq, "seqEnd": seq}
    good = {"item": said["item"], "seqStart": 1, "seqEnd": 1}
    page = {"agentId": "a", "epoch": "e", "entries": [row, good], "endCursor": {"epoch": "e", "seq": seq}}
    found = decode(TimelinePage, json.dumps(page).encode())
    assert [one.seq_end for one in found.entries] == [1]
    assert found.end_cursor is None


def test_lone_surrogates_are_replaced() -> None:
    data = stream(
        {"type": "timeline", "item": {"type": "assistant_message", "text": "a \ud83d b \ud83d\ude00"}}
    )
    assert b"\\ud83d b" in data
    assert read(data).event == Timeline(AssistantMessage("a \ufffd b \U0001f600"))


def test_bytes_that_are_not_utf8_are_replaced() -> None:
    data = stream({"type": "timeline", "item": {"type": "assistant_message", "text": "a?b"}}).replace(
        b"a?b", b"a\xffb"
    )
    assert read(data).event == Timeline(AssistantMessage("a\ufffdb"))


def test_numbers_beyond_all_bounds_cost_their_field_only() -> None:
    data = stream({"type": "turn_completed", "usage": {"totalCostUsd": 1, "outputTokens": 3}})
    completed = read(data.replace(b'"totalCostUsd": 1', b'"totalCostUsd": 1e999')).event
    assert isinstance(completed, TurnCompleted)
    assert completed.usage is not None
    assert (completed.usage.total_cost_usd, completed.usage.output_tokens) == (None, 3)


def nested(levels: int, padding: int = 0) -> bytes:
    detail = (
        b'{"type":"unknown","input":'
        + b"[" * levels
        + b"]" * levels
        + b',"output":"'
        + b"x" * padding
        + b'"}'
    )
    item = {"type": "tool_call", "callId": "c", "name": "dig", "detail": "?"}
    return stream({"type": "timeline", "item": item}).replace(b'"?"', detail)


def test_deep_nesting_is_cut_off() -> None:
    frame = read(nested(20_000))
    assert isinstance(frame.event, Timeline)
    assert isinstance(frame.event.item, ToolCall)
    assert frame.event.item.name == "dig"


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"{}",
        b'{"type":7}',
        b'{"type":"session","message":{"type":"agent_stream","payload":',
        nested(20_000, padding=MAX_PRUNED),
    ],
    ids=["cut", "empty", "odd", "open", "deep and big"],
)
def test_what_cannot_be_read_says_so(data: bytes) -> None:
    with pytest.raises(Undecodable):
        open_envelope(data)
