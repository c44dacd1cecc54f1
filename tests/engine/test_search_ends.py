"""A search whose answer nobody waits for any more, or whose process goes."""

import sys
from pathlib import Path

import anyio
import pytest

from app.domain.ids import Owner, TerminalId
from app.domain.search import Query
from app.engine.terminal_search import TerminalSearch
from app.settings import Limits
from tests.engine.terminal_house import open_terminal, streamed
from tests.house import PATIENCE, House, open_house

COSTLY = "(?:[a-h]?){1000}Z"
"""Takes much longer than any search may."""
SCRIPT = "stty -onlcr; yes abcdefghabcdefghabcdefghabcdefgh | head -c 2000000; echo ende; read x"


async def filled(house: House) -> tuple[str, TerminalSearch]:
    """A terminal that has put out two megabytes."""
    await house.ensure("s")
    terminal = (await open_terminal(house, "s", "sh", "-c", SCRIPT))["terminal_id"]
    await streamed(house, terminal, b"ende")
    return terminal, house.service.rooms.terminal_search


async def begun(search: TerminalSearch) -> None:
    """Wait until a thread is searching."""
    with anyio.fail_after(PATIENCE):
        while not is_searching():  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(0.01)
    assert search.places.turns.borrowed_tokens == 1


def is_searching() -> bool:
    for frame in sys._current_frames().values():
        at = frame
        while at is not None:
            if at.f_code.co_filename.endswith("app/domain/search.py"):
                return True
            at = at.f_back  # type: ignore[assignment]  # null at the outermost
    return False


@pytest.mark.parametrize("path", ["/v1/terminals/{}/search", "/v1/terminals/search"])
async def test_search_in_a_process_that_drains_is_to_be_asked_for_elsewhere(
    database_url: str, folder: Path, path: str
) -> None:
    """It neither holds the process up nor passes what it had for the answer."""
    async with open_house(database_url, folder, limits=Limits(terminal_ring_bytes=4_000_000)) as house:
        terminal, search = await filled(house)
        async with anyio.create_task_group() as tasks:

            async def ask() -> None:
                params = {"q": COSTLY, "regex": "true"}
                answer = await house.client.get(path.format(terminal), params=params)
                assert (answer.status_code, answer.json()["code"]) == (503, "draining")
                assert int(answer.headers["Retry-After"]) > 0

            tasks.start_soon(ask)
            await begun(search)
            house.service.rooms.lifecycle.drain()
        assert not is_searching()


async def test_search_that_is_cancelled_ends_its_thread(database_url: str, folder: Path) -> None:
    async with open_house(database_url, folder, limits=Limits(terminal_ring_bytes=4_000_000)) as house:
        terminal, search = await filled(house)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                search.search, Owner("default"), TerminalId(terminal), Query(text=COSTLY, regex=True)
            )
            await begun(search)
            tasks.cancel_scope.cancel()
        with anyio.fail_after(1):  # less than a search may take
            while is_searching():  # noqa: ASYNC110 - nobody tells
                await anyio.sleep(0.01)
