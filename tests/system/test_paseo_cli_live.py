"""The whole service over the real `paseo` command, at a daemon as in tests/backends/test_paseo_live.py.

`PASEO_URL=http://127.0.0.1:6767 ALAMEDA_TEST_PASEO_COMMAND=paseo pytest -m live
tests/system/test_paseo_cli_live.py`.
The agents that are made are archived again.
"""

import os
import shlex
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import HttpUrl, SecretStr

from app.settings import BackendSettings
from tests.house import House, open_house

URL = os.environ.get("PASEO_URL", "")
PASSWORD = os.environ.get("PASEO_PASSWORD") or None
PROVIDER = os.environ.get("ALAMEDA_TEST_PASEO_PROVIDER", "scripted")
COMMAND = shlex.split(os.environ.get("ALAMEDA_TEST_PASEO_COMMAND", ""))

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.live,
    pytest.mark.skipif(
        not (URL and COMMAND),
        reason="THE REAL PASEO COMMAND WAS NOT TESTED: as tests/backends/test_paseo_live.py asks, with "
        "ALAMEDA_TEST_PASEO_COMMAND=paseo",
    ),
]


@pytest.fixture
async def house(database_url: str, folder: Path) -> AsyncIterator[House]:
    """The service; its session `s-1` is closed again."""
    password = SecretStr(PASSWORD) if PASSWORD else None
    settings = BackendSettings(
        type="paseo-cli",
        command=tuple(COMMAND),
        url=HttpUrl(URL),
        password=password,
        provider=PROVIDER,
    )
    async with open_house(database_url, folder, backends={"cli": settings}) as one:
        yield one
        await one.client.post("/v1/sessions/s-1/close", json={})


async def test_a_session_from_ensure_to_close(house: House) -> None:
    assert (await house.client.get("/health")).json()["backends"]["cli"]["status"] == "up"
    providers = await house.get("/v1/backends/cli/providers")
    assert PROVIDER in [one["id"] for one in providers["items"]]
    assert (await house.ensure("s-1", agent=PROVIDER, backend="cli"))["opened"] == "created"
    turn = await house.run(
        "s-1", "think hm\nsay one\nrun ls\nplan a; b\nsay [INFO] two\nthink well\nsay  three"
    )
    assert (turn["status"], turn["output_text"]) == ("completed", "one\n[INFO] two\nthree")
    for words in ("[User] hello", "[Thought] x"):
        turn = await house.run("s-1", f"think hm\nsay {words}")
        assert (turn["status"], turn["output_text"]) == ("completed", words)
    long = "say " + "".join(f"{number} é ☃ $(id) " for number in range(9_000))
    turn = await house.run("s-1", long)
    assert (turn["status"], turn["output_text"]) == ("completed", long.removeprefix("say ").strip())
    failed = await house.run("s-1", "say oh\nfail out of credit")
    assert (failed["status"], failed["error"]["code"]) == ("failed", "provider_error")
    assert failed["output_text"] == "oh"
    closed = await house.post("/v1/sessions/s-1/close")
    assert (closed.status_code, closed.json()["archived"]) == (200, True)
    assert (await house.ensure("s-1", agent=PROVIDER, backend="cli"))["opened"] == "resumed"
    assert (await house.run("s-1", "say back"))["output_text"] == "back"


async def test_a_turn_is_cancelled_and_a_permission_ends_one(house: House) -> None:
    await house.ensure("s-1", agent=PROVIDER, backend="cli")
    turn = await house.prompt("s-1", "say working\nsleep 600")
    await house.follow(f"/v1/turns/{turn['turn_id']}/events/stream", "turn.started")
    await house.post(f"/v1/turns/{turn['turn_id']}/cancel")
    ended = await house.ended(turn["turn_id"])
    assert (ended["status"], ended["cancel_outcome"]) == ("cancelled", "stopped")
    refused = await house.run("s-1", "say may I\nask rm -rf build\nsay done")
    assert (refused["status"], refused["error"]["code"]) == ("failed", "backend_rejected")
    assert (await house.run("s-1", "say still here"))["output_text"] == "still here"


async def test_what_the_command_cannot_do_is_refused(house: House) -> None:
    await house.ensure("s-1", agent=PROVIDER, backend="cli")
    image = {"type": "image", "mime_type": "image/png", "data": "iVBORw0KGgo="}
    answer = await house.post("/v1/sessions/s-1/turns", {"prompt": "x", "attachments": [image]})
    assert (answer.status_code, answer.json()["code"]) == (422, "unsupported_by_backend")
    body = {"agent": PROVIDER, "backend": "cli", "cwd": str(house.cwd)}
    for more, code in (
        ({"provider": "nobody"}, "provider_not_found"),
        ({"provider_session_id": "x"}, "unsupported_by_backend"),
    ):
        answer = await house.client.put("/v1/sessions/s-2", json={**body, **more})
        assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
