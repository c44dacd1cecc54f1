"""OpenAPI 3.1: what FastAPI cannot know, namely the events in our streams and what the edge may answer."""

import re
from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import msgspec
from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from app.api.edge import SAFE_METHODS
from app.api.problems import MEDIA_TYPE, ProblemBody, ValidationItem, codes_of, problem_responses
from app.api.terminal_frames import terminal_schemas
from app.domain.events import EVENT_CLASSES
from app.engine.steps import Reason

Json = dict[str, Any]
"""A JSON object: a schema, or a part of the document."""

_REF = "#/components/schemas/"
"""What a reference to a component begins with."""


def _object(description: str, properties: Json, required: Iterable[str] | None = None) -> Json:
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": list(properties if required is None else required),
    }


_SEQ: Json = {"type": ["integer", "null"], "minimum": 0}
"""A position in a log; null on the stream over all sessions."""

CONTROLS: dict[str, Json] = {
    "stream.ready": _object(
        "The stream is open; only `session_id`, which is null, on the stream over all sessions.",
        {"session_id": {"type": ["string", "null"]}, "after": _SEQ, "oldest_seq": _SEQ, "last_seq": _SEQ},
        ["session_id"],
    ),
    "stream.synced": _object("The replay is over; what follows is live.", {"last_seq": _SEQ}),
    "stream.reset": _object(
        "The cursor points to nothing; the stream goes on from `resume_from`.",
        {
            "reason": {"type": "string"},
            "resume_from": {"type": "integer", "minimum": 0},
            "snapshot_url": {"type": "string"},
        },
    ),
    "stream.stalled": _object("Events wait until the database is back.", {"reason": {"type": "string"}}),
    "stream.resumed": _object("The database is back; everything follows, in order.", {"last_seq": _SEQ}),
    "stream.closing": _object("The stream is about to end.", {"reason": {"enum": list(get_args(Reason))}}),
}
"""The data of every control frame. They have no id and are not in the log."""

EVENT_STREAM_RESPONSES: dict[int | str, Json] = {
    200: {
        "description": "The events. Comments are heartbeats; a block with only an `id` moves the cursor.",
        "content": {
            "text/event-stream": {
                "schema": {
                    "type": "string",
                    "contentMediaType": "text/event-stream",
                    "contentSchema": {"$ref": f"{_REF}StreamPayload"},
                },
                "itemSchema": {
                    "oneOf": [{"$ref": f"{_REF}EventFrame"}, {"$ref": f"{_REF}ControlFrame"}],
                },
            }
        },
    }
}
"""For `responses=` of a route that answers with a stream."""

_ENDED: Json = {"description": "Nothing more will come: it has ended, and the cursor is at its end."}
"""A stream that need not be opened: 204, after which an EventSource stays away."""


def install(app: FastAPI) -> None:
    """Make `/openapi.json` describe the streams and every problem too."""

    def openapi() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = _schema(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _schema(app: FastAPI) -> Json:
    schema = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        routes=app.routes,
        tags=app.openapi_tags,
    )
    schema.pop("servers", None)
    components = schema.setdefault("components", {})
    schemas: Json = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    own = {**event_schemas(), **terminal_schemas(), **_model_schemas(ProblemBody, ValidationItem)}
    assert not own.keys() & schemas.keys(), "two components of one name"
    schemas |= own
    if "EventPage" in schemas:
        schemas["EventPage"]["properties"]["items"]["items"] = {"$ref": f"{_REF}Event"}
    components["schemas"] = dict(sorted(schemas.items()))
    for path, operations in schema.get("paths", {}).items():
        for method, operation in operations.items():
            _complete(path, method.upper(), operation)
    return schema


def _complete(path: str, method: str, operation: Json) -> None:
    """Add what the edge, the key and the validation may answer; FastAPI's own 422 goes."""
    responses: Json = operation["responses"]
    if MEDIA_TYPE not in responses.get("422", {}).get("content", {}):
        responses.pop("422", None)
    codes = ["invalid_host", "payload_too_large", "internal_error"]
    if method not in SAFE_METHODS:
        codes.append("origin_forbidden")
    if "requestBody" in operation:
        codes.append("malformed_json")
    if "requestBody" in operation or "parameters" in operation:
        codes.append("validation_failed")
    if "security" in operation and path != "/health":
        codes += ["unauthenticated", "forbidden", "rate_limited", "database_unavailable"]
    for status, response in problem_responses(codes).items():
        known = responses.get(str(status), {})
        listed = codes_of(known)
        if listed:
            more = [code for code in codes_of(response) if code not in listed]
            response = problem_responses([*listed, *more])[status]
        # What else the route answers with this status stays: `down` is a 503 with a body of its own.
        content = {**known.get("content", {}), **response["content"]}
        description = response["description"]
        if known and not listed:
            description = f"{known['description']}; {description}"
        responses[str(status)] = {**known, **response, "description": description, "content": content}
    is_stream = "text/event-stream" in responses.get("200", {}).get("content", {})
    if is_stream and method == "GET" and "{" in path:
        responses.setdefault("204", _ENDED)
    operation["responses"] = dict(sorted(responses.items()))


def event_schemas() -> dict[str, Json]:
    """The components that describe every event and control frame.

    `Event` and `ControlPayload` are unions by `type` and of the frames' data, `EventFrame` and `ControlFrame`
    what a reader of the stream gets, `…Data` the data of an event and its parts.
    """
    _, parts = msgspec.json.schema_components(EVENT_CLASSES.values(), ref_template=f"{_REF}{{name}}Data")
    schemas: dict[str, Json] = {
        f"{name}Data": {**part, "title": f"{name}Data"} for name, part in parts.items()
    }
    for type_, cls in EVENT_CLASSES.items():
        schemas[cls.__name__] = _envelope(type_, cls.__name__, (cls.__doc__ or "").strip())
    refs = {type_: f"{_REF}{cls.__name__}" for type_, cls in EVENT_CLASSES.items()}
    schemas["Event"] = {
        "description": "A durable event. Ignore types that you do not know.",
        "oneOf": [{"$ref": ref} for ref in refs.values()],
        "discriminator": {"propertyName": "type", "mapping": refs},
    }
    controls = {type_: _class_name(type_) for type_ in CONTROLS}
    schemas |= {name: {"title": name, **CONTROLS[type_]} for type_, name in controls.items()}
    schemas["ControlPayload"] = {
        "description": "The data of a control frame.",
        "anyOf": [{"$ref": f"{_REF}{name}"} for name in controls.values()],
    }
    schemas["StreamPayload"] = {
        "description": "What stands in a frame's `data`.",
        "anyOf": [{"$ref": f"{_REF}Event"}, {"$ref": f"{_REF}ControlPayload"}],
    }
    schemas["EventFrame"] = _object(
        "A durable event in a stream; the stream over all sessions gives no `id`.",
        {
            "id": {"type": "string", "pattern": "^[0-9]+$"},
            "event": {"enum": list(EVENT_CLASSES)},
            "data": _json_text("Event"),
        },
        ["event", "data"],
    )
    schemas["ControlFrame"] = {
        "description": "A control frame in a stream: never an `id`.",
        "oneOf": [
            _object(
                f"`{type_}`",
                {"event": {"const": type_}, "data": _json_text(name), "retry": {"type": "integer"}},
                ["event", "data"],
            )
            for type_, name in controls.items()
        ],
    }
    return schemas


def _envelope(type_: str, name: str, description: str) -> Json:
    schema = _object(
        description,
        {
            "seq": {"type": "integer", "minimum": 1},
            "type": {"type": "string", "const": type_},
            "session_id": {"type": "string"},
            "turn_id": {
                "type": ["string", "null"],
                "description": "Null for what happened outside our turns.",
            },
            "at": {"type": "string", "format": "date-time"},
            "data": {"$ref": f"{_REF}{name}Data"},
        },
    )
    return {"title": name, **schema}


def _json_text(name: str) -> Json:
    return {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": f"{_REF}{name}"},
    }


def _class_name(type_: str) -> str:
    return "".join(word.capitalize() for word in re.split(r"[._]", type_))


def _model_schemas(*models: type[BaseModel]) -> dict[str, Json]:
    _, definitions = models_json_schema(
        [(model, "serialization") for model in models], ref_template=f"{_REF}{{model}}"
    )
    schemas: dict[str, Json] = definitions["$defs"]
    return schemas


def docs_router() -> APIRouter:
    """`/docs`: the operations of `/openapi.json` on a page of our own, which needs nothing from elsewhere."""
    router = APIRouter(include_in_schema=False)
    here = Path(__file__).parent
    page, script = (here / "docs.html").read_bytes(), (here / "docs.js").read_bytes()
    style = re.search(rb"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    style_hash = b64encode(sha256(style[1]).digest()).decode("ascii")
    headers = {
        "Content-Security-Policy": (
            f"default-src 'none'; script-src 'self'; style-src 'sha256-{style_hash}'; connect-src 'self'; "
            "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
        ),
        "Cache-Control": "no-cache",
    }

    @router.get("/docs")
    async def docs() -> Response:
        return Response(page, headers=headers, media_type="text/html")

    @router.get("/docs.js")
    async def docs_script() -> Response:
        return Response(script, headers=headers, media_type="text/javascript")

    return router
