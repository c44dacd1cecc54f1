"""Reading a timeline to its end, whatever stands in it."""

from typing import Any

import anyio
import pytest

from app.paseo.client import PaseoClient
from app.paseo.errors import LinkLost, Refused
from app.paseo.snapshots import Cursor
from app.paseo.timeline import Stretch
from tests.paseo.scripted import Asked, ScriptedDaemon, connected, scripted_daemon

KIND = "fetch_agent_timeline_request"


def rows(sizes: dict[int, int], first: int, last: int) -> list[dict[str, Any]]:
    return [
        {
            "provider": "scripted",
            "item": {"type": "assistant_message", "text": "x" * sizes[seq]},
            "timestamp": "T",
            "seqStart": seq,
            "seqEnd": seq,
        }
        for seq in range(first, last + 1)
    ]


async def answer(asked: Asked, sizes: dict[int, int], epoch: str = "e") -> None:
    """As the daemon does for `after`, canonical."""
    start, limit = asked.message.get("cursor", {}).get("seq", 0), asked.message["limit"]
    end = min(start + limit, len(sizes))
    await asked.answer(
        agentId="a",
        agent={"id": "a", "status": "idle"},
        epoch=epoch,
        entries=rows(sizes, start + 1, end),
        endCursor={"epoch": epoch, "seq": end} if end > start else None,
        hasNewer=end < len(sizes),
        error=None,
    )


async def read(
    daemon: ScriptedDaemon, client: PaseoClient, sizes: dict[int, int], cursor: Cursor | None, limit: int
) -> tuple[list[Stretch], list[int]]:
    """Everything after the cursor, and the limits that were asked for on the way."""
    stretches: list[Stretch] = []
    limits: list[int] = []

    async def serve() -> None:
        while True:
            asked = await daemon.next(KIND)
            assert asked.message["projection"] == "canonical"
            limits.append(asked.message["limit"])
            await answer(asked, sizes)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            stretches.extend([each async for each in client.timeline.after("a", cursor, limit=limit)])
            tasks.cancel_scope.cancel()
    return stretches, limits


def seqs(stretches: list[Stretch]) -> list[int]:
    return [row.seq_start for stretch in stretches for row in stretch.page.entries]


async def test_trap_20_rows_are_read_one_by_one_page_by_page() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client:
        sizes = dict.fromkeys(range(1, 8), 1)
        stretches, limits = await read(daemon, client, sizes, Cursor("e", 2), 2)
        assert seqs(stretches) == [3, 4, 5, 6, 7]
        assert limits == [2, 2, 2]
        assert stretches[-1].cursor == Cursor("e", 7)
        stretches, _ = await read(daemon, client, sizes, Cursor("e", 7), 2)
        assert seqs(stretches) == []
        assert stretches[-1].cursor == Cursor("e", 7)


async def test_a_page_that_is_too_big_is_asked_for_in_halves() -> None:
    async with scripted_daemon() as daemon, connected(daemon, max_size=10_000) as client:
        sizes = dict.fromkeys(range(1, 17), 2_000)
        stretches, limits = await read(daemon, client, sizes, Cursor("e", 0), 16)
        assert seqs(stretches) == list(range(1, 17))
        assert limits[:3] == [16, 8, 4]
        assert not any(stretch.gaps for stretch in stretches)


async def test_a_row_that_does_not_fit_is_skipped_and_said_to_be() -> None:
    async with scripted_daemon() as daemon, connected(daemon, max_size=10_000) as client:
        sizes = {1: 10, 2: 10, 3: 50_000, 4: 10, 5: 50_000}
        stretches, _ = await read(daemon, client, sizes, Cursor("e", 0), 4)
        assert seqs(stretches) == [1, 2, 4]
        assert [gap.seq for stretch in stretches for gap in stretch.gaps] == [3, 5]
        assert stretches[-1].cursor == Cursor("e", 5)
        assert client.link.is_up


async def test_a_row_that_does_not_fit_and_has_no_known_place_is_an_error() -> None:
    async with scripted_daemon() as daemon, connected(daemon, max_size=10_000) as client:
        outcome: list[bool] = []

        async def follow() -> None:
            try:
                async for _ in client.timeline.after("a", None, limit=1):
                    pass
            except LinkLost as lost:
                outcome.append(lost.is_oversize)

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow)
                await answer(await daemon.next(KIND), {1: 50_000})
        assert outcome == [True]


async def test_trap_21_another_epoch_ends_the_reading() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client:
        pages: list[Stretch] = []

        async def follow() -> None:
            pages.extend([stretch async for stretch in client.timeline.after("a", Cursor("old", 9))])

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow)
                asked = await daemon.next(KIND)
                end = {"epoch": "new", "seq": 4}
                await asked.answer(
                    agentId="a", epoch="new", reset=True, staleCursor=True, hasNewer=True, endCursor=end
                )
        (only,) = pages
        assert only.page.reset
        assert only.cursor == Cursor("new", 4)


async def test_a_timeline_that_cannot_be_loaded_is_refused() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client, anyio.create_task_group() as tasks:
        refused: list[str] = []

        async def look() -> None:
            try:
                await client.timeline.end("a")
            except Refused as error:
                refused.append(error.reason)

        tasks.start_soon(look)
        asked = await daemon.next(KIND)
        assert (asked.message["direction"], asked.message["limit"]) == ("tail", 1)
        text = "acp does not support ACP session resume"
        await asked.answer(agentId="a", agent=None, epoch="", error=text)
    assert refused == ["cannot_resume"]


async def test_everything_at_once_is_never_asked_for() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client:
        with pytest.raises(AssertionError):
            await client.timeline.page("a", direction="tail", limit=0)
        assert daemon.inbox == []


async def test_a_row_of_no_known_shape_is_a_gap() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client:
        pages: list[Stretch] = []

        async def follow() -> None:
            pages.extend([stretch async for stretch in client.timeline.after("a", Cursor("e", 0))])

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow)
                entries = rows(dict.fromkeys(range(1, 4), 1), 1, 3)
                entries[1] = {"item": {}, "seqStart": "two"}
                end = {"epoch": "e", "seq": 3}
                await (await daemon.next(KIND)).answer(agentId="a", epoch="e", entries=entries, endCursor=end)
        (only,) = pages
        assert [row.seq_start for row in only.page.entries] == [1, 3]
        assert [gap.seq for gap in only.gaps] == [2]
