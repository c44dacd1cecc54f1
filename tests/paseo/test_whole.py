"""The client and a whole daemon: turns, losses, restarts."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from app.paseo.address import Address
from app.paseo.agents import Allow
from app.paseo.client import PaseoClient, open_client
from app.paseo.dialing import Options
from app.paseo.errors import LinkLost, Reason, Refused, RpcError, Timeout
from app.paseo.frames import (
    PermissionRequested,
    StreamFrame,
    Timeline,
    TurnCancelled,
    TurnCompleted,
    TurnFailed,
    TurnStarted,
)
from app.paseo.items import AssistantMessage, Item
from app.paseo.snapshots import Cursor, Done
from app.paseo.subscriptions import LinkDown, LinkUp, Subscription
from app.paseo.terminals import Snapshot
from tests.paseo.scripted import QUICK
from tests.paseo.twin import Twin

SPEED = 10.0


@asynccontextmanager
async def up(twin: Twin, password: str | None = None, **options: Any) -> AsyncIterator[PaseoClient]:
    settings = Options(**{**QUICK, **options})
    async with open_client(Address.parse(twin.http), password, options=settings) as client:
        await client.wait_up(5)
        yield client


async def follow(notes: Subscription, *, to: type[Any] = TurnCompleted) -> list[StreamFrame]:
    """What the stream says up to an event of this kind."""
    told: list[StreamFrame] = []
    with anyio.fail_after(10):
        async for note in notes:
            if isinstance(note, StreamFrame):
                told.append(note)
                if isinstance(note.event, to):
                    return told
    raise AssertionError("the stream ended")


def rows(told: list[StreamFrame]) -> list[tuple[int | None, Item]]:
    return [(frame.seq, frame.event.item) for frame in told if isinstance(frame.event, Timeline)]


async def test_what_is_streamed_is_what_the_timeline_has(tmp_path: Any) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, up(twin) as client:
        made = await client.create_agent("scripted", str(tmp_path), labels={"key": "k"}, title="One")
        assert made.runtime is not None
        with client.subscribe(made.id) as notes:
            script = "think hm\nsay one\ntool shell ls\nplan a;+b\nsay two"
            await client.send_message(made.id, script, message_id="m-1")
            told = await follow(notes)
        assert any(isinstance(frame.event, TurnStarted) for frame in told)
        epoch = next(frame.epoch for frame in told if frame.epoch)
        stretches = [each async for each in client.timeline.after(made.id, Cursor(epoch, 0), limit=2)]
        found = [(row.seq_start, row.item) for each in stretches for row in each.page.entries]
        assert found == rows(told)
        assert await client.timeline.end(made.id) == Cursor(epoch, len(found))
        page = await client.fetch_agents(labels={"key": "k"})
        assert [entry.agent.id for entry in page.entries] == [made.id]


async def test_permissions_cancels_and_settings(tmp_path: Any) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, up(twin) as client:
        agent = await client.create_agent("scripted", str(tmp_path))
        with client.subscribe(agent.id) as notes:
            await client.send_message(agent.id, "ask Remove it\nsay done", message_id="m-1")
            asked = (await follow(notes, to=PermissionRequested))[-1].event
            assert isinstance(asked, PermissionRequested)
            resolution = await client.answer_permission(agent.id, asked.request.id, Allow())
            assert resolution.behavior == "allow"
            await follow(notes)
            with pytest.raises(RpcError) as refused:
                await client.answer_permission(agent.id, asked.request.id, Allow())
            assert refused.value.reason is Reason.PERMISSION_GONE
            await client.send_message(agent.id, "say busy\nhang", message_id="m-2")
            await follow(notes, to=Timeline)
            await client.cancel(agent.id)
            await follow(notes, to=TurnCancelled)
            await client.send_message(agent.id, "fail oh", message_id="m-3")
            await follow(notes, to=TurnFailed)
        await client.set_mode(agent.id, "plan")
        await client.set_model(agent.id, "m2")
        with pytest.raises(Refused) as unsupported:
            await client.set_thinking(agent.id, "high")
        assert unsupported.value.reason is Reason.UNSUPPORTED
        await client.update_agent(agent.id, name="Two", labels={"a": "b"})
        await client.clear_attention(agent.id)
        found = await client.fetch_agent(agent.id)
        assert (found.title, found.labels, found.current_mode_id) == ("Two", {"a": "b"}, "plan")


async def test_rows_of_a_lost_link_are_read_and_none_is_told_twice(tmp_path: Any) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, up(twin) as client:
        agent = await client.create_agent("scripted", str(tmp_path))
        with client.subscribe(agent.id) as notes:
            await client.send_message(agent.id, "chunks 30 200 10", message_id="m-1")
            told = rows(await follow(notes, to=Timeline))
            cursor = Cursor(str(twin.agent(agent.id).timeline.epoch), len(told))
            twin.drop()
            with anyio.fail_after(10):
                while not isinstance(await notes.receive(), LinkUp):
                    pass
            async for stretch in client.timeline.after(agent.id, cursor):
                told += [(row.seq_start, row.item) for row in stretch.page.entries]
            live = rows(await follow(notes))
        told += [(seq, item) for seq, item in live if seq is not None and seq > len(told)]
        text = "".join(item.text for _, item in told if isinstance(item, AssistantMessage))
        assert [seq for seq, _ in told] == list(range(1, len(told) + 1))
        assert re.findall(r"c\d+", text) == [f"c{number}" for number in range(30)]


async def test_a_killed_daemon_and_an_orderly_stop_are_told_apart_and_have_new_epochs(tmp_path: Any) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, up(twin) as client:
        agent = await client.create_agent("scripted-history", str(tmp_path))
        with client.subscribe(agent.id) as notes:
            await client.send_message(agent.id, "say one", message_id="m-1")
            await follow(notes)
            cursor = await client.timeline.end(agent.id)
            assert cursor is not None
            for orderly, code in ((False, 1006), (True, 1005)):
                await twin.restart(orderly=orderly)
                downs: list[int] = []
                with anyio.fail_after(10):
                    while not isinstance(note := await notes.receive(), LinkUp):
                        downs += [note.lost.code] if isinstance(note, LinkDown) else []
                assert downs == [code]
            (stretch,) = [each async for each in client.timeline.after(agent.id, cursor)]
        assert stretch.page.reset
        assert stretch.page.epoch != cursor.epoch


async def test_what_a_newer_daemon_says_costs_nothing(tmp_path: Any) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, up(twin) as client:
        agent = await client.create_agent("scripted", str(tmp_path))
        with client.subscribe(agent.id) as notes:
            twin.strange(agent.id)
            await client.send_message(agent.id, "say one", message_id="m-1")
            await follow(notes)
        assert client.link.dials == 1


async def test_a_frame_that_is_too_big_costs_the_link_and_no_more(tmp_path: Any) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, up(twin, max_size=200_000) as client:
        agent = await client.create_agent("scripted", str(tmp_path))
        with client.subscribe(agent.id) as notes:
            twin.flood(300_000)
            with anyio.fail_after(5):
                while not isinstance(note := await notes.receive(), LinkDown):
                    pass
                assert note.lost.is_oversize
                while not isinstance(await notes.receive(), LinkUp):
                    pass
            await client.send_message(agent.id, "say one", message_id="m-1")
            await follow(notes)


async def test_trap_10_kinds_that_are_never_answered_end_by_their_deadline(tmp_path: Any) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, up(twin) as client:
        nobody = "00000000-0000-0000-0000-000000000001"
        with pytest.raises(Timeout):
            await client.cancel(nobody, deadline=0.1)
        with pytest.raises(Timeout):
            await client.refresh_agent(nobody, deadline=0.1)
        for call in (client.fetch_agent, client.archive, client.timeline.end):
            with pytest.raises(Refused) as refused:
                await call(nobody)
            assert refused.value.reason is Reason.AGENT_NOT_FOUND
        await client.delete(nobody)


async def test_trap_06_an_answer_that_missed_its_socket_is_unknown(tmp_path: Any) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, up(twin) as client:
        twin.faults.drop_after = "create_agent_request"
        with pytest.raises(LinkLost):
            await client.create_agent("scripted", str(tmp_path), labels={"key": "k"})
        await client.wait_up(5)
        with anyio.fail_after(5):
            while not (found := (await client.fetch_agents(labels={"key": "k"})).entries):
                await anyio.lowlevel.checkpoint()
        assert len(found) == 1


async def test_providers_settle(tmp_path: Any) -> None:
    async with Twin(tmp_path, speed=SPEED, probe_delay=0.5) as twin, up(twin) as client:
        found = {entry.provider: entry for entry in await client.providers()}
        assert found["scripted"].status == "ready"
        assert found["missing-binary"].status != "ready"
        with pytest.raises(Refused) as refused:
            await client.request("list_provider_models_request", {"provider": "nope"}, Done)
        assert refused.value.reason is Reason.UNKNOWN_PROVIDER


async def test_a_password_lets_in(tmp_path: Any) -> None:
    async with Twin(tmp_path, speed=SPEED, password="s3cret") as twin, up(twin, "s3cret") as client:
        await client.ping()


async def test_a_terminal(tmp_path: Any) -> None:
    async with Twin(tmp_path, speed=SPEED) as twin, up(twin) as client:
        terminal = await client.terminals.create(str(tmp_path), name="shell", command="/bin/sh", arguments=[])
        await client.terminals.resize(terminal.id, 4, 20)
        async with client.terminals.follow(terminal.id) as notes:
            with anyio.fail_after(5):
                first = await notes.receive()
                assert isinstance(first, Snapshot)
                assert first.screen().cols == 20
                await client.terminals.kill(terminal.id)
                async for _ in notes:
                    pass
