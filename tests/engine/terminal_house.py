"""What tests of terminals have: a terminal of a session, and looking at it until it shows something."""

import base64
from collections.abc import Mapping
from typing import Any

import anyio

from tests.house import PATIENCE, Frame, House


async def open_terminal(house: House, session_id: str, *command: str, **more: Any) -> dict[str, Any]:
    """A terminal of the session that runs a program, by default the shell."""
    body = dict(more)
    if command:
        body |= {"command": command[0], "args": list(command[1:])}
    answer = await house.post(f"/v1/sessions/{session_id}/terminals", body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def type_into(house: House, terminal_id: str, data: str) -> None:
    """Type."""
    answer = await house.post(f"/v1/terminals/{terminal_id}/input", {"data": data})
    assert answer.status_code == 204, answer.text


async def captured(house: House, terminal_id: str, wanted: str) -> list[str]:
    """The lines of the terminal, once one of them has `wanted` in it."""
    with anyio.fail_after(PATIENCE):
        while True:
            lines: list[str] = (await house.get(f"/v1/terminals/{terminal_id}/capture"))["lines"]
            if any(wanted in line for line in lines):
                return lines
            await anyio.sleep(0.02)


async def closed(house: House, terminal_id: str) -> dict[str, Any]:
    """The terminal, once it has ended."""
    with anyio.fail_after(PATIENCE):
        while True:
            found: dict[str, Any] = await house.get(f"/v1/terminals/{terminal_id}")
            if found["status"] == "closed":
                return found
            await anyio.sleep(0.02)


def output(frames: list[Frame]) -> bytes:
    """The bytes that a stream has told."""
    return b"".join(
        base64.b64decode(frame.data["data"]) for frame in frames if frame.event == "terminal.output"
    )


async def streamed(
    house: House,
    terminal_id: str,
    wanted: bytes,
    headers: Mapping[str, str] | None = None,
    **params: Any,
) -> list[Frame]:
    """The frames of its stream, until the output has `wanted` in it."""
    path = f"/v1/terminals/{terminal_id}/output/stream"
    async with house.stream(path, headers=headers, **params) as stream:
        assert stream.response.status_code == 200
        while wanted not in output(stream.frames):
            assert await stream.more(), stream.raw[-2000:]
        return stream.frames


def last_id(frames: list[Frame]) -> str:
    """The cursor that a client keeps."""
    return [frame.id for frame in frames if frame.id is not None][-1]


def logged(log: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What the log says of terminals."""
    return [
        (event["type"], event["data"]["terminal_id"])
        for event in log
        if event["type"].startswith("terminal.")
    ]
