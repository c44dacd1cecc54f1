"""Which session of a provider an adoption means, by whichever way to its daemon: adopted once at a time."""

from pathlib import Path

import httpx
import pytest

from app.settings import BackendSettings
from tests.engine.replicas import two_houses
from tests.house import House, open_house
from tests.paseo.command import stand_in
from tests.paseo.twin import Twin

pytestmark = pytest.mark.anyio


def socket(twin: Twin) -> BackendSettings:
    """A twin, by its socket."""
    return BackendSettings(type="paseo", url=twin.http, provider="scripted")


def command(folder: Path) -> BackendSettings:
    """The stand-in for the command."""
    argv, env = stand_in(folder)
    return BackendSettings(type="paseo-cli", command=argv, env=env, provider="scripted")


async def adopt(house: House, name: str, backend: str, provider: str, session: str = "one") -> httpx.Response:
    """The answer to an ensure that adopts."""
    body = {"agent": "x", "backend": backend, "provider": provider, "cwd": str(house.cwd)}
    return await house.client.put(f"/v1/sessions/{name}", json={**body, "provider_session_id": session})


def refused(answer: httpx.Response) -> bool:
    """Whether it says that another session is on it."""
    if answer.status_code != 409:
        return False
    return bool(
        (answer.json()["code"], answer.json()["fields"]) == ("session_conflict", ["provider_session_id"])
    )


async def test_two_backends_on_one_daemon_adopt_a_session_once(database_url: str, folder: Path) -> None:
    """Also on two replicas, and also when the first is opened again that was closed meanwhile."""
    async with Twin(speed=10.0) as twin:
        settings = {"near": socket(twin), "same": socket(twin)}
        async with two_houses(database_url, folder, backends=settings) as (one, two):
            assert (await adopt(one, "a", "near", "claude")).status_code == 201
            assert refused(await adopt(one, "b", "same", "claude"))
            assert refused(await adopt(two, "b", "same", "claude"))
            await one.post("/v1/sessions/a/close")
            assert (await adopt(two, "b", "same", "claude")).status_code == 201
            assert refused(await adopt(one, "a", "near", "claude"))


async def test_two_daemons_may_know_sessions_of_one_name(database_url: str, folder: Path) -> None:
    """Their greetings tell that they are two."""
    async with Twin(speed=10.0) as left, Twin(speed=10.0) as right:
        settings = {"left": socket(left), "right": socket(right)}
        async with open_house(database_url, folder, backends=settings) as house:
            for name in ("left", "right"):
                assert (await adopt(house, name, name, "claude")).status_code == 201


async def test_the_command_may_reach_the_daemon_of_any_other_backend(database_url: str, folder: Path) -> None:
    """It does not tell which one answers, so that one session is never adopted by two ways to it."""
    async with Twin(speed=10.0) as twin:
        settings = {"near": socket(twin), "far": command(folder), "too": command(folder)}
        async with open_house(database_url, folder, backends=settings) as house:
            assert (await adopt(house, "a", "far", "claude")).status_code == 201
            assert refused(await adopt(house, "b", "too", "claude"))
            assert refused(await adopt(house, "b", "near", "claude"))


async def test_sessions_of_two_providers_are_two_whatever_they_are_called(
    database_url: str, folder: Path
) -> None:
    async with open_house(database_url, folder, backends={"far": command(folder)}) as house:
        for provider in ("claude", "opencode"):
            assert (await adopt(house, provider, "far", provider)).status_code == 201


async def test_a_provider_that_cannot_be_imported_is_not_said_to_be_missing(
    database_url: str, folder: Path
) -> None:
    """It stands in the list; the command imports sessions of some providers only."""
    async with open_house(database_url, folder, backends={"far": command(folder)}) as house:
        answer = await adopt(house, "a", "far", "scripted")
        assert (answer.status_code, answer.json()["code"]) == (422, "unsupported_by_backend")
        assert "scripted" in answer.json()["detail"]
        assert (await house.client.get("/v1/sessions/a")).status_code == 404
        unknown = await adopt(house, "a", "far", "nobody")
        assert (unknown.status_code, unknown.json()["code"]) == (422, "provider_not_found")
        assert unknown.json()["provider"] == "nobody"
        assert "scripted" in unknown.json()["available"]
