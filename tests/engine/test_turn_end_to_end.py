"""The main job, from the prompt to the end of the stream."""

from tests.house import House, assert_unbroken, durable, parse_frames


async def test_prompt_stream_tells_a_turn_from_its_queueing_to_its_end(house: House) -> None:
    """One call: ensure, prompt, follow; rising ids without a hole; ends after the terminal event."""
    body = {"agent": "demo", "prompt": "hello", "cwd": str(house.cwd)}
    answer = await house.post("/v1/prompt-stream", body)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    frames = parse_frames(answer.content)
    assert_unbroken(frames)
    types = [frame.event for frame in durable(frames)]
    assert types[0] == "turn.queued"
    assert types[1] == "turn.started"
    assert types[-1] == "turn.completed"
    assert frames[-1].event == "stream.closing"
    assert frames[-1].data == {"reason": "turn_ended"}


async def test_follower_that_comes_back_misses_nothing_and_sees_nothing_twice(house: House) -> None:
    """`Last-Event-ID` is all that a client has to keep (WHATWG HTML, 9.2)."""
    session = await house.ensure()
    await house.run(session["session_id"], "say one\nsay two\nsay three")
    path = f"/v1/sessions/{session['session_id']}/events/stream"
    whole = durable(await house.follow(path, "turn.completed"))
    for cut in whole[:-1]:
        rest = durable(await house.follow(path, "turn.completed", headers={"Last-Event-ID": str(cut.seq)}))
        assert [f.raw for f in rest] == [f.raw for f in whole if f.seq > cut.seq]


async def test_tool_calls_of_two_turns_have_ids_of_their_own(house: House) -> None:
    """A page shows a call by its id: with one for two, the second call would change the first one's card."""
    session = (await house.ensure())["session_id"]
    for _ in range(2):
        await house.run(session, "run ls\nedit x")
    calls = [event["data"]["tool_call_id"] for event in await house.log(session, types="tool_call.started")]
    assert len(calls) == len(set(calls)) == 4
