"""Terminals: binary frames to whom they are for, and their ends."""

import json
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

from app.backends.paseo_terminals import PaseoTerminals
from app.paseo.client import PaseoClient
from app.paseo.errors import LinkLost, Reason, Refused, Undecodable
from app.paseo.subscriptions import Mailbox
from app.paseo.terminals import Exited, Output, Snapshot, TerminalNote
from tests.paseo.scripted import ScriptedDaemon, connected, scripted_daemon

SCREEN = json.dumps(
    {"rows": 1, "cols": 2, "grid": [[{"char": "$"}, {"char": " "}]], "cursor": {"row": 0}}
).encode()


async def follow(
    stack: AsyncExitStack, daemon: ScriptedDaemon, client: PaseoClient, terminal_id: str, slot: int
) -> Mailbox[TerminalNote]:
    """Follow a terminal; the snapshot comes right behind the answer."""
    box: list[Any] = []

    async def enter() -> None:
        box.append(await stack.enter_async_context(client.terminals.follow(terminal_id)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(enter)
        asked = await daemon.next("subscribe_terminal_request")
        await asked.answer(terminalId=terminal_id, slot=slot, error=None)
        await daemon.socket.send(bytes([4, slot]) + SCREEN)
    found: Mailbox[TerminalNote] = box[0]
    return found


async def test_a_terminal_is_followed_from_its_snapshot_to_its_exit() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client, AsyncExitStack() as stack:
        one = await follow(stack, daemon, client, "t1", 0)
        other = await follow(stack, daemon, client, "t2", 1)
        await daemon.socket.send(b"\x01\x00hello\xc3")
        await daemon.socket.send(b"\x01\x07nobody")
        await daemon.socket.send(b"\x05\x00a later opcode")
        await daemon.socket.send(b"\x01")
        await daemon.say("terminal_stream_exit", terminalId="t1")
        with anyio.fail_after(5):
            notes = [note async for note in one]
            (seen,) = [await other.receive()]
        assert notes == [Snapshot(SCREEN), Output(b"hello\xc3"), Exited()]
        assert isinstance(seen, Snapshot)
        assert seen.text() == "$"
        assert other.drain() == []
        await client.terminals.write("t2", "ls\n")
        await client.terminals.resize("t2", 24, 80)
        typed = await daemon.next("terminal_input")
        assert typed.message["message"] == {"type": "input", "data": "ls\n"}
        sized = await daemon.next("terminal_input")
        assert sized.message["message"] == {"type": "resize", "rows": 24, "cols": 80}


def test_text_of_a_screen_ends_at_its_cursor() -> None:
    """With what has left it at the top; a wide character's second cell is empty."""

    def cells(text: str) -> list[dict[str, Any]]:
        return [{"char": char, "bold": False} for char in text.ljust(6)]

    wide = [{"char": "日"}, {"char": ""}, {"char": " "}]
    screen = {
        "rows": 3,
        "cols": 6,
        "grid": [wide, cells("$ x"), cells("below")],
        "scrollback": [cells("old")],
        "cursor": {"row": 1, "col": 4, "hidden": False},
    }
    assert Snapshot(json.dumps(screen).encode()).text() == "old\n日\n$ x "
    anything: list[Any] = [screen | {"grid": [cells("x")]}, screen | {"grid": None}, [], "x"]
    for broken in anything:
        with pytest.raises(Undecodable):
            Snapshot(json.dumps(broken).encode()).text()
    with pytest.raises(Undecodable):
        Snapshot(b'{"rows": 1, "cols": 1, "grid": [[{"char": "\\ud800"}]]}').text()
    odd = screen | {"cursor": {"row": 99, "col": -1}}
    assert Snapshot(json.dumps(odd).encode()).text() == "old\n日\n$ x\nbelow"


async def test_a_screen_is_read_only_if_somebody_asks() -> None:
    """Here it cannot be read, which costs nothing but what was shown before."""
    async with scripted_daemon() as daemon, connected(daemon) as client, anyio.create_task_group() as tasks:

        async def answer() -> None:
            asked = await daemon.next("subscribe_terminal_request")
            await asked.answer(terminalId="t1", slot=0, error=None)
            await daemon.socket.send(b"\x04\x00no screen")
            await daemon.socket.send(b"\x01\x00hello")

        tasks.start_soon(answer)
        with anyio.fail_after(5):
            async with PaseoTerminals(client, "paseo").follow("t1") as following:
                async for data in following:
                    assert data == b"hello"
                    break
                assert await following.shown() is None


async def test_a_terminal_is_let_go_when_its_last_follower_leaves() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client, AsyncExitStack() as outer:
        first = await follow(outer, daemon, client, "t1", 0)
        async with AsyncExitStack() as inner:
            await follow(inner, daemon, client, "t1", 0)
        await daemon.socket.send(b"\x01\x00still here")
        with anyio.fail_after(5):
            told = [await first.receive() for _ in range(3)]
        assert told[-1] == Output(b"still here")
        assert daemon.inbox == []
        await outer.aclose()
        assert (await daemon.next("unsubscribe_terminal_request")).message["terminalId"] == "t1"


async def test_a_lost_link_ends_the_following() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client, AsyncExitStack() as stack:
        box = await follow(stack, daemon, client, "t1", 0)
        daemon.drop()
        with anyio.fail_after(5):
            assert isinstance(await box.receive(), Snapshot)
            with pytest.raises(LinkLost):
                await box.receive()


async def test_a_terminal_that_is_not_there_is_refused() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client, anyio.create_task_group() as tasks:
        reasons: list[Reason] = []

        async def look() -> None:
            try:
                async with client.terminals.follow("t9"):
                    raise AssertionError
            except Refused as refused:
                reasons.append(refused.reason)

        tasks.start_soon(look)
        asked = await daemon.next("subscribe_terminal_request")
        await asked.answer(terminalId="t9", error="Terminal not found")
    assert reasons == [Reason.TERMINAL_NOT_FOUND]


async def test_terminals_are_made_listed_captured_and_killed() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client, anyio.create_task_group() as tasks:

        async def answer() -> None:
            shell = {"id": "t1", "name": "shell", "cwd": "/w", "title": "sh"}
            created = await daemon.next("create_terminal_request")
            assert created.message["command"] == "/bin/sh"
            assert "name" not in created.message
            await created.answer(terminal=shell, error=None)
            await (await daemon.next("list_terminals_request")).answer(cwd="/w", terminals=[shell])
            await (await daemon.next("capture_terminal_request")).answer(lines=["$ ls", "a"], totalLines=2)
            await (await daemon.next("kill_terminal_request")).answer(success=True)

        tasks.start_soon(answer)
        with anyio.fail_after(5):
            terminal = await client.terminals.create("/w", command="/bin/sh", arguments=[])
            assert [each.id for each in await client.terminals.running("/w")] == [terminal.id]
            assert (await client.terminals.capture(terminal.id, end=1)).lines == ["$ ls", "a"]
            await client.terminals.kill(terminal.id)
