"""A reader that is too slow is told so, and holds up nobody."""

import anyio
import pytest

from app.paseo.errors import Lagged
from app.paseo.frames import StreamFrame
from app.paseo.subscriptions import LinkDown, LinkUp, Mailbox
from tests.paseo.scripted import connected, scripted_daemon


async def test_notes_come_in_order_and_then_the_end() -> None:
    box: Mailbox[int] = Mailbox()
    for number in range(3):
        box.put(number)
    box.close()
    box.put(99)
    assert [note async for note in box] == [0, 1, 2]
    with pytest.raises(anyio.EndOfStream):
        box.drain()


async def test_at_the_bound_of_notes_the_box_is_emptied_and_closed() -> None:
    box: Mailbox[int] = Mailbox(max_notes=2)
    for number in range(3):
        box.put(number)
    with pytest.raises(Lagged):
        await box.receive()
    with pytest.raises(Lagged):
        box.drain()


async def test_at_the_bound_of_bytes_the_box_is_emptied_and_closed() -> None:
    box: Mailbox[str] = Mailbox(max_bytes=10)
    box.put("alone", 1000)
    assert await box.receive() == "alone"
    box.put("a", 6)
    box.put("b", 4)
    assert box.drain() == ["a", "b"]
    box.put("c", 6)
    box.put("d", 5)
    with pytest.raises(Lagged):
        await box.receive()


async def test_a_slow_reader_is_closed_and_its_neighbour_is_told_everything() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client:
        with client.subscribe("a", max_notes=5) as slow, client.subscribe("a") as quick:
            for number in range(50):
                item = {"type": "assistant_message", "text": str(number)}
                await daemon.stream("a", {"type": "timeline", "item": item}, seq=number + 1, epoch="e")
            with anyio.fail_after(5):
                told = [await quick.receive() for _ in range(50)]
            assert [note.seq for note in told if isinstance(note, StreamFrame)] == list(range(1, 51))
            with pytest.raises(Lagged):
                await slow.receive()
        assert client.link.is_up
        with client.subscribe("a") as again:
            await daemon.stream("a", {"type": "turn_started"})
            with anyio.fail_after(5):
                assert isinstance(await again.receive(), StreamFrame)


async def test_the_link_is_told_in_its_place_in_the_order() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client:
        with client.subscribe("a") as notes, client.subscribe("b") as other:
            await daemon.stream("a", {"type": "turn_started"})
            await daemon.socket.close(1012)
            with anyio.fail_after(5):
                told = [await notes.receive() for _ in range(3)]
                await daemon.stream("a", {"type": "turn_completed"})
                told.append(await notes.receive())
            assert [type(note) for note in told] == [StreamFrame, LinkDown, LinkUp, StreamFrame]
            assert [type(note) for note in other.drain()] == [LinkDown, LinkUp]
