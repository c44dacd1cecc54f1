"""The OpenAPI document: whole, consistent, and enough to read a stream by."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import httpx
import jsonschema_rs
import pytest
import schemathesis
from fastapi import FastAPI, Response, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.api.openapi import CONTROLS, EVENT_STREAM_RESPONSES, docs_router, install
from app.api.problems import install_handlers, problems
from app.api.schemas.events import EventPage, SnapshotView
from app.api.schemas.health import HealthView
from app.api.schemas.sessions import SessionView
from app.api.schemas.turns import PromptBody, TurnView
from app.domain.errors import BackendIsDown, SessionBusy, SessionNotFound
from app.domain.events import EVENT_CLASSES

Key = Annotated[
    HTTPAuthorizationCredentials | None, Security(HTTPBearer(scheme_name="ApiKey", auto_error=False))
]


@pytest.fixture
def app() -> FastAPI:
    """A few routes of every sort."""
    app = FastAPI(docs_url=None, redoc_url=None)
    install_handlers(app)
    install(app)
    app.include_router(docs_router())

    @app.get("/health", responses={503: {"model": HealthView}})
    async def health(key: Key) -> HealthView:
        raise NotImplementedError

    @app.post(
        "/v1/sessions/{session_id}/turns",
        status_code=202,
        responses={
            200: {"model": TurnView, "description": "Ended", **EVENT_STREAM_RESPONSES[200]},
            **problems(SessionNotFound, SessionBusy, BackendIsDown),
        },
    )
    async def prompt(session_id: str, body: PromptBody, key: Key) -> TurnView:
        raise NotImplementedError

    @app.get(
        "/v1/sessions/{session_id}/events/stream",
        response_class=Response,
        responses={**EVENT_STREAM_RESPONSES, **problems(SessionNotFound)},
    )
    async def follow(session_id: str, key: Key) -> Response:
        raise NotImplementedError

    @app.get("/v1/sessions/{session_id}/events")
    async def page(session_id: str, key: Key) -> EventPage:
        raise NotImplementedError

    @app.get("/v1/sessions/{session_id}/snapshot")
    async def snapshot(session_id: str, key: Key) -> SnapshotView:
        raise NotImplementedError

    @app.get("/v1/sessions/{session_id}")
    async def session(session_id: str, key: Key) -> SessionView:
        raise NotImplementedError

    return app


@pytest.fixture
def document(app: FastAPI) -> dict[str, Any]:
    """What `/openapi.json` answers."""
    document: dict[str, Any] = json.loads(json.dumps(app.openapi()))
    return document


def refs(value: Any) -> Iterator[str]:
    match value:
        case dict():
            for key, inner in value.items():
                if key == "$ref":
                    yield inner
                elif key == "mapping":
                    yield from inner.values()
                else:
                    yield from refs(inner)
        case list():
            for inner in value:
                yield from refs(inner)


def schema_of(document: dict[str, Any], name: str) -> jsonschema_rs.Draft202012Validator:
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    return jsonschema_rs.Draft202012Validator(schema)


def test_it_is_openapi_3_1_and_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    assert "servers" not in document
    assert document["components"]["securitySchemes"]["ApiKey"]["scheme"] == "bearer"
    schemas = document["components"]["schemas"]
    assert {ref.removeprefix("#/components/schemas/") for ref in refs(document)} <= schemas.keys()
    assert not {"HTTPValidationError", "ValidationError"} & schemas.keys()
    for name in schemas:
        schema_of(document, name)


def test_schemathesis_reads_it(document: dict[str, Any]) -> None:
    operations = list(schemathesis.openapi.from_dict(document).get_all_operations())
    assert len(operations) == 6


@pytest.mark.parametrize("type_", EVENT_CLASSES)
def test_every_event_is_one_case_of_a_union_by_type(document: dict[str, Any], type_: str) -> None:
    schemas = document["components"]["schemas"]
    ref = schemas["Event"]["discriminator"]["mapping"][type_]
    assert {"$ref": ref} in schemas["Event"]["oneOf"]
    envelope = schemas[ref.rsplit("/", 1)[1]]
    assert list(envelope["properties"]) == ["seq", "type", "session_id", "turn_id", "at", "data"]
    assert envelope["required"] == list(envelope["properties"])
    assert envelope["properties"]["type"]["const"] == type_


def test_events_as_they_are_logged_are_valid(document: dict[str, Any]) -> None:
    event = {
        "seq": 4,
        "type": "tool_call.completed",
        "session_id": "s",
        "turn_id": "trn_1",
        "at": "2026-11-01T12:00:00.123Z",
        "data": {
            "tool_call_id": "t",
            "name": "bash",
            "title": None,
            "kind": "execute",
            "status": "completed",
            "locations": [{"path": "a.py", "line": 3}],
            "detail": {"type": "shell", "command": "ls", "cwd": None, "output": "", "exit_code": 0},
            "error": None,
        },
    }
    validator = schema_of(document, "Event")
    assert validator.is_valid(event)
    assert not validator.is_valid(event | {"type": "tool_call.exploded"})
    assert not validator.is_valid(event | {"type": "notice"})


def test_every_control_frame_is_described(document: dict[str, Any]) -> None:
    frame = document["components"]["schemas"]["ControlFrame"]
    assert [case["properties"]["event"]["const"] for case in frame["oneOf"]] == list(CONTROLS)
    closing = {"event": "stream.closing", "data": '{"reason": "turn_ended"}'}
    assert schema_of(document, "ControlFrame").is_valid(closing)


def test_streams_say_what_is_in_them(document: dict[str, Any]) -> None:
    follow = document["paths"]["/v1/sessions/{session_id}/events/stream"]["get"]["responses"]
    content = follow["200"]["content"]["text/event-stream"]
    assert content["schema"]["contentSchema"] == {"$ref": "#/components/schemas/StreamPayload"}
    assert {"$ref": "#/components/schemas/EventFrame"} in content["itemSchema"]["oneOf"]
    assert "204" in follow
    page = document["components"]["schemas"]["EventPage"]["properties"]["items"]
    assert page["items"] == {"$ref": "#/components/schemas/Event"}
    prompt = document["paths"]["/v1/sessions/{session_id}/turns"]["post"]["responses"]["200"]["content"]
    assert prompt.keys() == {"application/json", "text/event-stream"}


def codes(document: dict[str, Any], path: str, method: str) -> dict[str, list[str]]:
    responses = document["paths"][path][method]["responses"]
    return {
        status: list(response["content"]["application/problem+json"]["examples"])
        for status, response in responses.items()
        if "application/problem+json" in response.get("content", {})
    }


def test_every_error_of_a_route_is_listed_the_edge_s_too(document: dict[str, Any]) -> None:
    assert codes(document, "/v1/sessions/{session_id}/turns", "post") == {
        "400": ["invalid_host", "malformed_json"],
        "401": ["unauthenticated"],
        "403": ["origin_forbidden", "forbidden"],
        "404": ["session_not_found"],
        "409": ["session_busy"],
        "413": ["payload_too_large"],
        "422": ["validation_failed"],
        "429": ["rate_limited"],
        "500": ["internal_error"],
        "503": ["backend_unavailable", "database_unavailable"],
    }
    assert codes(document, "/health", "get") == {
        "400": ["invalid_host"],
        "413": ["payload_too_large"],
        "500": ["internal_error"],
    }
    assert "application/json" in document["paths"]["/health"]["get"]["responses"]["503"]["content"]


async def test_problems_are_valid_by_their_own_schema(app: FastAPI, document: dict[str, Any]) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        answer = await http.post("/v1/sessions/s/turns", json={"prompt": 1})
    responses = document["paths"]["/v1/sessions/{session_id}/turns"]["post"]["responses"]
    schema = responses["422"]["content"]["application/problem+json"]["schema"]
    schema = {**schema, "components": document["components"]}
    assert jsonschema_rs.Draft202012Validator(schema).is_valid(answer.json())


async def test_t28_the_docs_need_nothing_from_elsewhere_and_run_only_our_own_script(app: FastAPI) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        page, script = await http.get("/docs"), await http.get("/docs.js")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'sha256-" in policy
    assert "unsafe" not in policy
    assert page.headers["content-type"].startswith("text/html")
    assert script.headers["content-type"].startswith("text/javascript")
    for text in (page.text, script.text):
        assert "://" not in text
    assert "innerHTML" not in script.text
    assert page.text.count("<script") == page.text.count('src="/docs.js"') == 1
