"""The frames of a terminal's stream: output in base64, its position as `id`, control frames without one."""

import json
from base64 import b64encode
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, get_args

from app.api.sse import RETRY, control, encode
from app.engine.steps import Closing, Idle, Reason
from app.engine.terminal_streams import Bytes, Opened, Restarted, TerminalStep

Json = dict[str, Any]
_REF = "#/components/schemas/"
_OFFSET: Json = {"type": "integer", "minimum": 0}


def _object(description: str, properties: Json) -> Json:
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": list(properties),
    }


PAYLOADS: dict[str, Json] = {
    "terminal.output": _object(
        "Raw bytes of the program, up to `offset` of the ring; a character may be split over two.",
        {"terminal_id": {"type": "string"}, "data": {"type": "string", "contentEncoding": "base64"}},
    ),
    "stream.ready": _object(
        "The stream is open: it begins at `offset`; the ring holds what lies from `start` to `end`.",
        {
            "terminal_id": {"type": "string"},
            "ring": {"type": "string"},
            "offset": _OFFSET,
            "start": _OFFSET,
            "end": _OFFSET,
        },
    ),
    "stream.reset": _object(
        "The position is not in this ring: what follows begins at `resume_from`. Capture the screen anew.",
        {
            "reason": {"enum": ["other_ring", "too_old", "too_new"]},
            "resume_from": {"type": "string"},
            "capture_url": {"type": "string"},
        },
    ),
    "stream.closing": _object("The stream is about to end.", {"reason": {"enum": list(get_args(Reason))}}),
}
"""The data of each frame. Only `terminal.output` has an `id`: `<ring>.<offset>`, the position after it."""


def _component(type_: str) -> str:
    return "Terminal" + "".join(word.capitalize() for word in type_.replace("terminal.", "").split("."))


def terminal_schemas() -> dict[str, Json]:
    """The components that describe a terminal's stream."""
    schemas = {_component(type_): {"title": _component(type_), **data} for type_, data in PAYLOADS.items()}
    frames = []
    for type_ in PAYLOADS:
        properties: Json = {
            "event": {"const": type_},
            "data": {
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": {"$ref": f"{_REF}{_component(type_)}"},
            },
        }
        if type_ == "terminal.output":
            properties["id"] = {"type": "string", "pattern": "^[0-9a-f]+[.][0-9]+$"}
        frames.append(_object(f"`{type_}`", properties))
    schemas["TerminalFrame"] = {"description": "A frame of a terminal's stream.", "oneOf": frames}
    schemas["TerminalPayload"] = {
        "description": "What stands in a frame's `data`.",
        "anyOf": [{"$ref": f"{_REF}{_component(type_)}"} for type_ in PAYLOADS],
    }
    return schemas


TERMINAL_STREAM_RESPONSES: dict[int | str, Json] = {
    200: {
        "description": "The output. Comments are heartbeats; a block with only an `id` moves the cursor.",
        "content": {
            "text/event-stream": {
                "schema": {
                    "type": "string",
                    "contentMediaType": "text/event-stream",
                    "contentSchema": {"$ref": f"{_REF}TerminalPayload"},
                },
                "itemSchema": {"$ref": f"{_REF}TerminalFrame"},
            }
        },
    }
}
"""For `responses=` of the route that answers with it."""


def _encode(step: TerminalStep, terminal_id: str) -> bytes:
    match step:
        case Bytes(ring=ring, offset=offset, data=data):
            body = json.dumps(
                {"terminal_id": terminal_id, "data": b64encode(data).decode("ascii")}, separators=(",", ":")
            )
            return f"id: {ring}.{offset}\nevent: terminal.output\ndata: {body}\n\n".encode()
        case Opened(ring=ring, offset=offset, start=start, end=end):
            ready = {
                "terminal_id": terminal_id,
                "ring": ring,
                "offset": offset,
                "start": start,
                "end": end,
            }
            return RETRY + control("ready", ready)
        case Restarted(reason=reason, ring=ring, offset=offset):
            told = {
                "reason": reason,
                "resume_from": f"{ring}.{offset}",
                "capture_url": f"/v1/terminals/{terminal_id}/capture",
            }
            return control("reset", told) + f"id: {ring}.{offset}\n\n".encode()
        case Closing() | Idle():
            return encode(step)


async def encoded_terminal(steps: AsyncGenerator[TerminalStep], terminal_id: str) -> AsyncGenerator[bytes]:
    """The bytes of a whole stream; where it begins stands in a bare block, so that it can be resumed."""
    async with aclosing(steps):
        async for step in steps:
            yield _encode(step, terminal_id)
            if isinstance(step, Opened):
                yield f"id: {step.ring}.{step.offset}\n\n".encode()
