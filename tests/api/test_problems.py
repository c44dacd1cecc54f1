"""Errors over HTTP: every one a problem, and none tells what it should not."""

import json
import types
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, get_type_hints

import httpx
import pytest
from fastapi import FastAPI, HTTPException
from structlog.testing import capture_logs

from app.api.problems import PROBLEMS, error_response, install_handlers, problems
from app.api.schemas.turns import PromptBody
from app.domain.errors import (
    BackendIsDown,
    DomainError,
    PermissionAlreadyResolved,
    SessionBusy,
    SessionConflict,
    SessionIsClosed,
    Unauthenticated,
    ValidationFailed,
)

CONTRACT = {
    400: {"malformed_json", "invalid_cursor", "invalid_host"},
    401: {"unauthenticated"},
    403: {"forbidden", "origin_forbidden"},
    409: {
        "session_conflict",
        "session_exists",
        "session_busy",
        "session_closed",
        "backend_session_lost",
        "turn_not_ended",
        "turn_not_queued",
        "permission_already_resolved",
        "request_in_progress",
    },
    410: {"permission_expired"},
    422: {
        "validation_failed",
        "provider_not_found",
        "unsupported_by_backend",
        "path_not_allowed",
        "idempotency_key_reused",
    },
    429: {"rate_limited", "too_many_streams", "too_many_sessions", "too_many_terminals", "queue_full"},
    502: {"backend_error"},
    503: {"backend_unavailable", "draining", "database_unavailable"},
}


def every_error() -> Iterator[type[DomainError]]:
    waiting = DomainError.__subclasses__()
    while waiting:
        error = waiting.pop()
        if error.__module__ == DomainError.__module__:
            yield error
        waiting += error.__subclasses__()


def made(error: type[DomainError]) -> DomainError:
    """An instance with some value in every field."""
    values: dict[Any, Any] = {str: "x", int: 3, datetime: datetime(2026, 11, 1, tzinfo=UTC)}
    arguments = {}
    for name, hint in get_type_hints(error).items():
        if isinstance(hint, types.UnionType):
            hint = hint.__args__[0]
        arguments[name] = values.get(hint, ["x"])
    arguments.pop("detail", None)
    return error(**arguments)


def body_of(error: DomainError) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(bytes(error_response(error, instance="/v1/x").body))
    return body


@pytest.mark.parametrize("error", list(every_error()), ids=lambda error: error.__name__)
def test_every_domain_error_has_its_problem(error: type[DomainError]) -> None:
    response = error_response(made(error), instance="/v1/x", request_id="r-1")
    body = json.loads(bytes(response.body))
    assert response.media_type == "application/problem+json"
    assert body["status"] == response.status_code == PROBLEMS[error].status
    assert {"type", "title", "detail", "code", "instance"} <= body.keys()
    assert all(body[name] for name in ("type", "title", "detail", "code", "instance"))
    assert body["code"] in CONTRACT.get(response.status_code, {body["code"]})
    assert response.headers["x-request-id"] == "r-1"
    assert "retry_after_s" not in body
    if "retry_after_s" in get_type_hints(error):
        assert response.headers["retry-after"] == "3"


def test_codes_are_unique() -> None:
    assert len({problem.code for problem in PROBLEMS.values()}) == len(PROBLEMS)


def test_fields_become_extension_members() -> None:
    assert body_of(SessionBusy(open_turn_id=None))["open_turn_id"] is None
    conflict = body_of(SessionConflict(fields=["cwd"], detail="cwd differs"))
    assert (conflict["fields"], conflict["detail"]) == (["cwd"], "cwd differs")
    at = datetime(2026, 11, 1, 12, 0, 0, 5000, tzinfo=UTC)
    resolved = body_of(PermissionAlreadyResolved(outcome="allowed", by="caller", at=at))
    assert (resolved["outcome"], resolved["by"], resolved["at"]) == (
        "allowed",
        "caller",
        "2026-11-01T12:00:00.005Z",
    )


def test_only_a_401_asks_for_a_key() -> None:
    assert error_response(Unauthenticated(), instance="/").headers["www-authenticate"] == "Bearer"
    assert "www-authenticate" not in error_response(SessionIsClosed(), instance="/").headers


def test_members_never_replace_what_the_standard_defines() -> None:
    body = body_of(ValidationFailed(errors=[{"loc": ["\ud800"]}]))
    assert (body["status"], body["code"]) == (422, "validation_failed")


def test_openapi_groups_errors_by_status_with_their_codes_and_members() -> None:
    responses = problems(SessionBusy, SessionConflict, BackendIsDown)
    assert list(responses) == [409, 503]
    content = responses[409]["content"]["application/problem+json"]
    assert list(content["examples"]) == ["session_busy", "session_conflict"]
    own = content["schema"]["allOf"][1]["properties"]
    assert own["code"] == {"enum": ["session_busy", "session_conflict"]}
    assert own.keys() == {"code", "open_turn_id", "fields"}
    assert "Retry-After" in responses[503]["headers"]


@pytest.fixture
def app() -> FastAPI:
    """An application with a route for each way to go wrong."""
    app = FastAPI()
    install_handlers(app)

    @app.post("/prompt")
    async def prompt(body: PromptBody) -> None: ...

    @app.get("/closed")
    async def closed() -> None:
        raise SessionIsClosed

    @app.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418)

    @app.get("/bug")
    async def bug() -> None:
        raise RuntimeError("SELECT secret FROM /srv/keys")

    return app


def client(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


async def test_framework_errors_are_problems_too(app: FastAPI) -> None:
    async with client(app) as http:
        missing = await http.get("/nowhere")
        wrong_method = await http.delete("/prompt")
        teapot = await http.get("/teapot")
        closed = await http.get("/closed")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    assert missing.json()["instance"] == "/nowhere"
    assert (wrong_method.status_code, wrong_method.json()["code"]) == (405, "method_not_allowed")
    assert wrong_method.headers["allow"] == "POST"
    assert (teapot.status_code, teapot.headers["content-type"]) == (418, "application/problem+json")
    assert (closed.status_code, closed.json()["code"]) == (409, "session_closed")


@pytest.mark.parametrize(
    "body",
    [b"{", b"", b"[" * 100_000, b'{"prompt": 1' + b"0" * 5000 + b"}", b"\xff", b'{"prompt": "\xff"}'],
    ids=["cut", "empty", "deep", "long number", "not UTF-8", "not UTF-8 inside"],
)
async def test_p36_what_is_not_json_is_a_400_and_never_a_500(app: FastAPI, body: bytes) -> None:
    async with client(app) as http:
        answer = await http.post("/prompt", content=body, headers={"Content-Type": "application/json"})
    expected = (400, "malformed_json") if body else (422, "validation_failed")
    assert (answer.status_code, answer.json()["code"]) == expected


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": ["canary"]},
        {"prompt": "x", "multitask_strategy": "canary"},
        {"prompt": "x", "attachments": [{"type": "canary"}]},
        {"prompt": "x", "attachments": [{"type": "image", "mime_type": "canary", "data": "canary!"}]},
        {"prompt": "canary\0"},
        {"prompt": "x", "metadata": {"a": "canary\0"}},
    ],
)
async def test_p38_t31_validation_errors_never_repeat_the_input(app: FastAPI, body: dict[str, Any]) -> None:
    async with client(app) as http:
        answer = await http.post("/prompt", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert "canary" not in answer.text
    assert all(item.keys() == {"loc", "msg", "type"} for item in answer.json()["errors"])


async def test_p38_names_that_a_client_made_up_are_shown_but_bounded(app: FastAPI) -> None:
    body = b'{"prompt": "x", "\\ud800": 1, "%s": 1%s}' % (
        b"n" * 5000,
        b"".join(b', "k%d": 1' % n for n in range(999)),
    )
    async with client(app) as http:
        answer = await http.post("/prompt", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert len(answer.content) < 20_000


async def test_t31_a_bug_is_a_500_without_detail_and_one_log_record_with_a_traceback(app: FastAPI) -> None:
    with capture_logs() as records:
        async with client(app) as http:
            answer = await http.get("/bug")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "SELECT" not in answer.text
    assert "/srv" not in answer.text
    [record] = records
    assert (record["event"], record["log_level"]) == ("request_failed", "error")
    assert isinstance(record["exc_info"], RuntimeError)
