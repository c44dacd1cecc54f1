"""What a client is told by itself. `trap_NN`: a trap of the protocol."""

import anyio

from app.paseo.frames import (
    PermissionResolved,
    Resolution,
    StreamFrame,
    Timeline,
    TurnCancelled,
    TurnCompleted,
)
from app.paseo.items import AssistantMessage, UserMessage
from app.paseo.subscriptions import AgentChanged, AgentRemoved, FrameDropped
from tests.paseo.scripted import AGENT, Outcome, connected, scripted_daemon


async def test_what_an_agent_writes_fails_no_request() -> None:
    """An unreadable frame is laid at the door of whom it names; an agent chooses what it has in it."""
    async with scripted_daemon() as daemon, connected(daemon) as client:
        outcome = Outcome()
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(outcome.of, lambda: client.fetch_agent("a"))
                asked = await daemon.next("fetch_agent_request")
                with client.subscribe("a") as notes:
                    await daemon.say("agent_stream", agentId="a", event={"requestId": asked.id}, x="\ud83d")
                    await daemon.say("agent_stream", agentId="a", event=[{"requestId": asked.id}])
                    assert [type(await notes.receive()) for _ in range(2)] == [StreamFrame, FrameDropped]
                await asked.answer(agent=AGENT)
        assert outcome.value.id == "a"


async def test_trap_08_foreign_agents_are_not_told_and_not_even_read() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client:
        with client.subscribe("a") as notes:
            await daemon.say("agent_stream", agentId="b", event="no event at all")
            await daemon.stream("b", {"type": "turn_started"})
            await daemon.stream("a", {"type": "turn_completed"})
            with anyio.fail_after(5):
                note = await notes.receive()
            assert isinstance(note, StreamFrame)
            assert (note.agent_id, note.event) == ("a", TurnCompleted())
            assert notes.drain() == []


async def test_a_frame_that_cannot_be_read_is_told_to_its_agent_and_costs_nothing_else() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client:
        with client.subscribe("a") as mine, client.subscribe("b") as other:
            await daemon.say("agent_stream", agentId="a", event="no event at all")
            await daemon.socket.send('{"type":"session","message":{"type":"agent_stream","payl')
            await daemon.socket.send("hello")
            await daemon.socket.send(b"\x7f\x00")
            await daemon.say("from_the_future", requestId=7)
            await daemon.stream("a", {"type": "turn_completed"})
            with anyio.fail_after(5):
                told = [await mine.receive() for _ in range(3)]
            assert [type(note) for note in told] == [FrameDropped, FrameDropped, StreamFrame]
            assert [type(note) for note in other.drain()] == [FrameDropped]
        assert len(daemon.upgrades) == 1


async def test_trap_16_order_is_kept_whatever_it_is() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client:
        with client.subscribe("a") as notes:
            new = {"type": "user_message", "text": "new", "messageId": "m-2"}
            await daemon.stream("a", {"type": "timeline", "item": new}, seq=7, epoch="e")
            late = {"type": "assistant_message", "text": "old"}
            await daemon.stream("a", {"type": "timeline", "item": late}, seq=8, epoch="e")
            await daemon.stream("a", {"type": "turn_canceled", "reason": "Interrupted"})
            await daemon.say("agent_permission_request", agentId="a", request={"id": "p"})
            resolution = {"behavior": "deny", "message": "Interrupted"}
            await daemon.say("agent_permission_resolved", agentId="a", requestId="p", resolution=resolution)
            await daemon.stream(
                "a", {"type": "permission_resolved", "requestId": "p", "resolution": resolution}
            )
            with anyio.fail_after(5):
                told = [await notes.receive() for _ in range(4)]
            assert notes.drain() == []
        assert [note.event for note in told if isinstance(note, StreamFrame)] == [
            Timeline(UserMessage("new", "m-2")),
            Timeline(AssistantMessage("old")),
            TurnCancelled("Interrupted"),
            PermissionResolved("p", Resolution("deny", message="Interrupted")),
        ]


async def test_trap_32_changes_are_told_as_often_as_they_come() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client:
        with client.subscribe("a") as notes:
            for status in ("running", "running", "weird"):
                await daemon.say("agent_update", kind="upsert", agent={**AGENT, "status": status})
            await daemon.say("agent_update", kind="upsert", agent={**AGENT, "id": "b"})
            await daemon.say("agent_update", kind="remove", agentId="b")
            await daemon.say("agent_update", kind="remove", agentId="a")
            with anyio.fail_after(5):
                told = [await notes.receive() for _ in range(4)]
        assert [note.agent.status for note in told if isinstance(note, AgentChanged)] == [
            "running",
            "running",
            "weird",
        ]
        assert isinstance(told[-1], AgentRemoved)


async def test_a_big_frame_is_no_trouble() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client:
        with client.subscribe("a") as notes:
            item = {"type": "assistant_message", "text": "x" * 20_000_000}
            await daemon.stream("a", {"type": "timeline", "item": item}, seq=1, epoch="e")
            with anyio.fail_after(10):
                note = await notes.receive()
            assert isinstance(note, StreamFrame)
            assert note.seq == 1
