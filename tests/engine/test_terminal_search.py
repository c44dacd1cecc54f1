"""Where a search looks: in the ring if that surely reaches far enough, else in a capture."""

from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from app.domain.ids import TerminalId
from app.engine import terminal_search
from app.settings import Limits
from tests.engine.terminal_house import captured, open_terminal, output, streamed, type_into
from tests.engine.test_terminals_paseo import replica, session
from tests.house import House, open_house
from tests.paseo.twin import Twin

SEARCH = "/v1/terminals/search"


async def found(house: House, terminal: str, q: str, **params: Any) -> tuple[str, bool, list[str]]:
    """Where a search has looked, whether there may be more, and the lines that it has found."""
    answer = await house.get(f"/v1/terminals/{terminal}/search", q=q, **params)
    return answer["source"], answer["truncated"], [match["text"] for match in answer["matches"]]


async def following(house: House, terminal: str) -> None:
    """Wait until the terminal is followed."""
    async with house.stream(f"/v1/terminals/{terminal}/output/stream") as stream:
        await stream.until("stream.ready")


async def test_after_a_restart_the_only_line_is_found(database_url: str, folder: Path) -> None:
    """The ring is empty then, and stays so while nothing is put out."""
    async with open_house(database_url, folder) as house:
        await house.ensure("s")
        terminal = (await open_terminal(house, "s", "sh", "-c", "printf 'only needle here'; cat"))[
            "terminal_id"
        ]
        await captured(house, terminal, "needle")
    async with open_house(database_url, folder) as house:
        expected = ("capture", False, ["only needle here"])
        assert await found(house, terminal, "needle") == expected
        await following(house, terminal)
        assert await found(house, terminal, "needle") == expected


async def test_lines_that_are_painted_again_and_again_reach_no_further(
    database_url: str, folder: Path
) -> None:
    """A build tool's progress: line ends without number, of which the screen shows three."""
    paint = r"echo needle; read x; for i in $(seq 50); do printf 'a\nb\nc\n\033[3A'; done; echo ende; read x"
    async with open_house(database_url, folder) as house:
        await house.ensure("s")
        terminal = (await open_terminal(house, "s", "bash", "-c", paint))["terminal_id"]
        await captured(house, terminal, "needle")
    async with open_house(database_url, folder) as house:
        await following(house, terminal)
        await type_into(house, terminal, "\r")
        await streamed(house, terminal, b"ende")
        assert await found(house, terminal, "needle") == ("capture", False, ["needle"])


async def test_lost_client_of_tmux_leaves_nothing_out_of_a_search(house: House) -> None:
    """Neither before the terminal is followed again nor after that."""
    await house.ensure("s")
    terminal = (await open_terminal(house, "s", "cat"))["terminal_id"]
    await type_into(house, terminal, "first\r")
    async with house.stream(f"/v1/terminals/{terminal}/output/stream") as stream:
        while b"first\r\nfirst" not in output(stream.frames):
            assert await stream.more()
        watch = house.service.rooms.terminals.watches.get(TerminalId(terminal))
        assert watch is not None
        (client,) = [one for one in psutil.Process().children() if "attach-session" in one.cmdline()]
        client.kill()
        with anyio.fail_after(5):
            while watch.in_sight:  # noqa: ASYNC110 - nobody tells
                await anyio.sleep(0.001)
        await type_into(house, terminal, "unseen\r")
        await captured(house, terminal, "unseen")
        assert await found(house, terminal, "unseen") == ("capture", False, ["unseen"] * 2)
        await stream.until("stream.reset")
    assert await found(house, terminal, "first") == ("capture", False, ["first"] * 2)


async def test_ring_that_has_more_lines_than_the_scrollback_is_searched(
    database_url: str, folder: Path
) -> None:
    """Though it has dropped its beginning; but not once a program has painted all over the screen."""
    script = "seq 10000 30000; echo ende; read x; printf '\\033[Hpainted\\n'; read x"
    async with open_house(database_url, folder, limits=Limits(terminal_ring_bytes=128 * 1024)) as house:
        await house.ensure("s")
        terminal = (await open_terminal(house, "s", "sh", "-c", script))["terminal_id"]
        await streamed(house, terminal, b"ende")
        assert len(await captured(house, terminal, "ende")) < 11_000
        assert await found(house, terminal, "^15000$", regex=True) == ("ring", False, ["15000"])
        await type_into(house, terminal, "\r")
        await streamed(house, terminal, b"painted")
        assert await found(house, terminal, "^25000$", regex=True) == ("capture", False, ["25000"])
        assert await found(house, terminal, "^15000$", regex=True) == ("capture", False, [])


async def test_capture_has_the_lines_that_the_terminal_has_wrapped(database_url: str, folder: Path) -> None:
    """For a search; what is shown of it stays as it stands there, row by row."""
    script = "printf '%075d' 0; echo 'needle  '; printf '%080d' 1; echo; echo ende; cat"
    async with open_house(database_url, folder) as house:
        await house.ensure("s")
        terminal = (await open_terminal(house, "s", "sh", "-c", script))["terminal_id"]
        await captured(house, terminal, "ende")
    async with open_house(database_url, folder) as house:
        path = f"/v1/terminals/{terminal}"
        answer = await house.get(f"{path}/search", q="needle$", regex="true", context=1)
        (match,) = answer["matches"]
        assert (answer["source"], match["text"]) == ("capture", "0" * 75 + "needle")
        assert (match["line"], match["column"], match["length"]) == (0, 75, 6)
        assert match["after"] == ["0" * 79 + "1"]
        rows = (await house.get(f"{path}/capture"))["lines"]
        assert rows == ["0" * 75 + "needl", "e", "0" * 79 + "1", "ende"]


async def test_ring_that_is_searched_for_want_of_a_capture_says_so(database_url: str, folder: Path) -> None:
    """Over several the terminal stands among the unreachable ones, with what was found all the same."""
    async with Twin() as twin, replica(twin, database_url, folder) as house:
        await session(house)
        terminal = (await open_terminal(house, "s"))["terminal_id"]
        await type_into(house, terminal, "echo before\r")
        await streamed(house, terminal, b"before\r\n# ")
        watch = house.service.rooms.terminals.watches.get(TerminalId(terminal))
        assert watch is not None
        await twin.kill()
        with anyio.fail_after(5):
            while watch.in_sight:  # noqa: ASYNC110 - nobody tells
                await anyio.sleep(0.01)

        async def one() -> None:
            assert await found(house, terminal, "^before", regex=True) == ("ring", True, ["before"])

        async def several() -> None:
            answer = await house.get(SEARCH, q="before")
            assert [one["terminal_id"] for one in answer["unreachable"]] == [terminal]
            assert [(one["terminal_id"], one["truncated"]) for one in answer["items"]] == [(terminal, True)]
            assert answer["truncated"] is True

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one)
            tasks.start_soon(several)


async def test_terminal_for_which_there_is_no_time_is_not_unreachable(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.ensure("s")
    await open_terminal(house, "s", "cat")
    monkeypatch.setattr(terminal_search, "ALL_S", -1.0)
    assert await house.get(SEARCH, q="x") == {"items": [], "unreachable": [], "truncated": True}


async def test_what_has_left_the_ring_of_an_ended_terminal_is_said_to_be_missing(
    database_url: str, folder: Path
) -> None:
    async with open_house(database_url, folder, limits=Limits(terminal_ring_bytes=4096)) as house:
        await house.ensure("s")
        terminal = (await open_terminal(house, "s", "sh", "-c", "seq 5000; echo ende"))["terminal_id"]
        await streamed(house, terminal, b"ende")
        await house.client.delete(f"/v1/terminals/{terminal}")
        assert await found(house, terminal, "ende") == ("ring", True, ["ende"])
