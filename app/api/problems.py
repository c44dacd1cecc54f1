"""Problem details (RFC 9457): one table gives every domain error its status, code and title."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from http import HTTPStatus
from typing import Any, get_type_hints

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, TypeAdapter
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.domain.errors import (
    ApiKeyNotFound,
    BackendFailed,
    BackendIsDown,
    BackendNotFound,
    BackendSessionLost,
    CollisionNotFound,
    DatabaseUnavailable,
    DomainError,
    Draining,
    Forbidden,
    IdempotencyKeyReused,
    InvalidCursor,
    NoSuchProvider,
    PathNotAllowed,
    PermissionAlreadyResolved,
    PermissionIsExpired,
    PermissionNotFound,
    QueueFull,
    RateLimited,
    RequestInProgress,
    SessionBusy,
    SessionConflict,
    SessionExists,
    SessionIsClosed,
    SessionNotFound,
    TaskNotFound,
    TerminalNotFound,
    TooManySessions,
    TooManyStreams,
    TooManyTerminals,
    TurnNotEnded,
    TurnNotFound,
    TurnNotQueued,
    Unauthenticated,
    UnsupportedByBackend,
    ValidationFailed,
)
from app.domain.text import clean, timestamp

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"
"""Of every problem's body."""
MAX_ERRORS = 50
"""Validation errors that one answer lists; a body can hold far more."""
MAX_NAME = 128
"""Characters shown of a name that a client chose, such as an unknown field's."""


@dataclass(frozen=True, slots=True)
class Problem:
    """How an error looks over HTTP."""

    status: int
    code: str
    title: str


PROBLEMS: dict[type[DomainError], Problem] = {
    InvalidCursor: Problem(400, "invalid_cursor", "The cursor is malformed"),
    Unauthenticated: Problem(401, "unauthenticated", "A valid API key is needed"),
    Forbidden: Problem(403, "forbidden", "The key lacks a scope"),
    SessionNotFound: Problem(404, "session_not_found", "No such session"),
    TurnNotFound: Problem(404, "turn_not_found", "No such turn"),
    PermissionNotFound: Problem(404, "permission_not_found", "No such permission"),
    CollisionNotFound: Problem(404, "collision_not_found", "No such collision"),
    TerminalNotFound: Problem(404, "terminal_not_found", "No such terminal, or it has ended"),
    TaskNotFound: Problem(404, "task_not_found", "No such task"),
    BackendNotFound: Problem(404, "backend_not_found", "No such backend"),
    ApiKeyNotFound: Problem(404, "api_key_not_found", "No such API key"),
    SessionConflict: Problem(409, "session_conflict", "The session exists with other values"),
    SessionExists: Problem(409, "session_exists", "The session exists already"),
    SessionBusy: Problem(409, "session_busy", "The session is busy"),
    SessionIsClosed: Problem(409, "session_closed", "The session is closed or closing"),
    BackendSessionLost: Problem(409, "backend_session_lost", "The backend lost the session's agent"),
    TurnNotEnded: Problem(409, "turn_not_ended", "The turn is still open"),
    TurnNotQueued: Problem(409, "turn_not_queued", "The turn is not queued"),
    PermissionAlreadyResolved: Problem(
        409, "permission_already_resolved", "The permission was answered before"
    ),
    RequestInProgress: Problem(
        409, "request_in_progress", "The first request with this key is still in flight"
    ),
    PermissionIsExpired: Problem(410, "permission_expired", "The permission expired"),
    ValidationFailed: Problem(422, "validation_failed", "The request is not valid"),
    NoSuchProvider: Problem(422, "provider_not_found", "The backend has no such provider"),
    UnsupportedByBackend: Problem(422, "unsupported_by_backend", "The backend cannot do this"),
    PathNotAllowed: Problem(422, "path_not_allowed", "The directory may not be used"),
    IdempotencyKeyReused: Problem(
        422, "idempotency_key_reused", "The Idempotency-Key was used for another request"
    ),
    RateLimited: Problem(429, "rate_limited", "Too many requests"),
    TooManyStreams: Problem(429, "too_many_streams", "Too many open streams"),
    TooManySessions: Problem(429, "too_many_sessions", "Too many sessions"),
    TooManyTerminals: Problem(429, "too_many_terminals", "Too many open terminals"),
    QueueFull: Problem(429, "queue_full", "Too many open turns"),
    BackendFailed: Problem(502, "backend_error", "The backend failed"),
    BackendIsDown: Problem(503, "backend_unavailable", "The backend cannot be reached"),
    Draining: Problem(503, "draining", "No new work is taken here"),
    DatabaseUnavailable: Problem(503, "database_unavailable", "The database does not answer"),
}
"""Every error of the domain; a test walks its subclasses."""

MALFORMED_JSON = Problem(400, "malformed_json", "The body is not JSON")
INVALID_HOST = Problem(400, "invalid_host", "The service does not answer to this host name")
ORIGIN_FORBIDDEN = Problem(403, "origin_forbidden", "Pages of this origin may not act here")
NOT_FOUND = Problem(404, "not_found", "Nothing is here")
METHOD_NOT_ALLOWED = Problem(405, "method_not_allowed", "The route does not take this method")
PAYLOAD_TOO_LARGE = Problem(413, "payload_too_large", "The request is too large")
VALIDATION_FAILED = PROBLEMS[ValidationFailed]
INTERNAL_ERROR = Problem(500, "internal_error", "A bug on our side")

EDGE_PROBLEMS = (
    MALFORMED_JSON,
    INVALID_HOST,
    ORIGIN_FORBIDDEN,
    NOT_FOUND,
    METHOD_NOT_ALLOWED,
    PAYLOAD_TOO_LARGE,
    INTERNAL_ERROR,
)
"""What HTTP itself can get wrong, beside the domain's errors."""

_BY_STATUS = {
    400: MALFORMED_JSON,  # the framework's only own 400: a body that it cannot parse
    401: PROBLEMS[Unauthenticated],
    404: NOT_FOUND,
    405: METHOD_NOT_ALLOWED,
    413: PAYLOAD_TOO_LARGE,
    422: VALIDATION_FAILED,
}
"""What the framework's own errors are called."""


class ValidationItem(BaseModel):
    """One thing that is wrong with a request; never the value itself."""

    loc: list[str | int] = Field(description="Where: `body`, `query`, `path` or `header`, then the names.")
    msg: str = Field(description="What would be right.")
    type: str = Field(description="A stable name of the rule.")


class ProblemBody(BaseModel):
    """An error, as RFC 9457 words it. Some codes have members of their own beside these."""

    type: str = Field(description="A URI that names the kind of problem: `urn:alameda:problem:<code>`.")
    title: str = Field(description="What the code means, the same for each occurrence.")
    status: int = Field(description="The HTTP status, once more.")
    detail: str = Field(description="What happened here, for people.")
    code: str = Field(description="Stable, for programs.")
    instance: str = Field(description="The path of the request.")


def problem_response(
    problem: Problem,
    *,
    instance: str,
    detail: str | None = None,
    members: Mapping[str, Any] | None = None,
    retry_after_s: int | None = None,
    headers: Mapping[str, str] | None = None,
    request_id: str | None = None,
) -> Response:
    """The answer that tells of `problem`; `members` are extension members, `detail` defaults to the title."""
    body = {
        "type": f"urn:alameda:problem:{problem.code}",
        "title": problem.title,
        "status": problem.status,
        "detail": detail or problem.title,
        "code": problem.code,
        "instance": instance,
    }
    all_headers = dict(headers or {})
    if retry_after_s is not None:
        all_headers["Retry-After"] = str(retry_after_s)
    if request_id is not None:
        all_headers["X-Request-ID"] = request_id
    # ASCII: a name in it may hold a lone surrogate, which is no UTF-8.
    content = json.dumps({**(members or {}), **body}, default=_plain).encode("ascii")
    return Response(content, problem.status, all_headers, MEDIA_TYPE)


def error_response(error: DomainError, *, instance: str, request_id: str | None = None) -> Response:
    """The answer that tells of a domain error."""
    problem = PROBLEMS[type(error)]
    return problem_response(
        problem,
        instance=instance,
        detail=str(error),
        members={name: getattr(error, name) for name in _members(type(error))},
        retry_after_s=getattr(error, "retry_after_s", None),
        headers={"WWW-Authenticate": "Bearer"} if problem.status == 401 else None,
        request_id=request_id,
    )


def internal_error(*, instance: str, request_id: str | None = None) -> Response:
    """The answer to a request that met a bug of ours: no word on what it was."""
    return problem_response(
        INTERNAL_ERROR,
        instance=instance,
        detail="Something went wrong on our side; the request id finds it in the log.",
        request_id=request_id,
    )


def install_handlers(app: FastAPI) -> None:
    """Make every error of the application a problem."""
    app.router.redirect_slashes = False  # a trailing slash makes another path, which is a problem too
    app.exception_handler(DomainError)(_on_domain_error)
    app.exception_handler(RequestValidationError)(_on_invalid_request)
    app.exception_handler(HTTPException)(_on_http_error)
    app.exception_handler(Exception)(_on_bug)


async def _on_domain_error(request: Request, error: DomainError) -> Response:
    return error_response(error, instance=_instance(request), request_id=_request_id(request))


async def _on_invalid_request(request: Request, error: RequestValidationError) -> Response:
    items = error.errors()
    broken = next((item for item in items if item["type"] == "json_invalid"), None)
    if broken is not None:
        position = broken["loc"][-1]
        return problem_response(
            MALFORMED_JSON,
            instance=_instance(request),
            detail=f"The body is not JSON, from character {position} on.",
            request_id=_request_id(request),
        )
    listed = [_shown(item) for item in items[:MAX_ERRORS]]
    return problem_response(
        VALIDATION_FAILED,
        instance=_instance(request),
        detail="; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in listed[:3]),
        members={"errors": listed},
        request_id=_request_id(request),
    )


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    problem = _BY_STATUS.get(error.status_code) or _unforeseen(error.status_code)
    return problem_response(
        problem,
        instance=_instance(request),
        headers=error.headers,
        request_id=_request_id(request),
    )


async def _on_bug(request: Request, error: Exception) -> Response:
    log.error("request_failed", exc_info=error)
    return internal_error(instance=_instance(request), request_id=_request_id(request))


def _unforeseen(status: int) -> Problem:
    phrase = HTTPStatus(status).phrase
    return Problem(status, phrase.lower().replace(" ", "_").replace("-", "_"), phrase)


def _instance(request: Request) -> str:
    path: str = request.scope["path"]
    return path


def _request_id(request: Request) -> str | None:
    state: dict[str, Any] = request.scope.get("state") or {}
    return state.get("request_id")


def _shown(item: Mapping[str, Any]) -> dict[str, Any]:
    """A validation error without the input: pydantic repeats it in `input`, `ctx` and one message."""
    msg = str(item["msg"])
    if item["type"] == "union_tag_invalid":
        msg = f"Must be one of {item['ctx']['expected_tags']}"
    return {
        "loc": [clean(part)[:MAX_NAME] if isinstance(part, str) else part for part in item["loc"]],
        "msg": msg.removeprefix("Value error, "),
        "type": item["type"],
    }


def _plain(value: object) -> str:
    return timestamp(value) if isinstance(value, datetime) else str(value)


def _members(error: type[DomainError]) -> list[str]:
    names = [field.name for field in fields(error)]  # type: ignore[arg-type]  # each is a dataclass
    return [name for name in names if name not in ("detail", "retry_after_s")]


_CASES: dict[str, tuple[Problem, type[DomainError] | None]] = {
    **{problem.code: (problem, None) for problem in EDGE_PROBLEMS},
    **{problem.code: (problem, error) for error, problem in PROBLEMS.items()},
}
"""Every problem by its code; the domain's with their error, whose fields are members."""


def problems(*errors: type[DomainError]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI responses for errors that a route can answer with, grouped by status: for `responses=`."""
    return problem_responses(PROBLEMS[error].code for error in errors)


def problem_responses(codes: Iterable[str]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI responses for problems by their codes; the component `ProblemBody` must be there."""
    by_status: dict[int | str, list[str]] = {}
    for code in dict.fromkeys(codes):
        by_status.setdefault(_CASES[code][0].status, []).append(code)
    return {status: _described(codes) for status, codes in sorted(by_status.items(), key=lambda i: int(i[0]))}


def codes_of(response: Mapping[str, Any]) -> list[str]:
    """The codes that such a response lists."""
    return list(response.get("content", {}).get(MEDIA_TYPE, {}).get("examples", {}))


def _described(codes: list[str]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    examples: dict[str, Any] = {}
    retry = False
    for code in codes:
        problem, error = _CASES[code]
        examples[code] = {"summary": problem.title, "value": _example(problem, error)}
        retry = retry or hasattr(error, "retry_after_s")
        if error is not None:
            members |= _member_schemas(error)
    own: dict[str, Any] = {"type": "object", "properties": {"code": {"enum": codes}, **members}}
    response: dict[str, Any] = {
        "description": "; ".join(f"`{code}`: {_CASES[code][0].title}" for code in codes),
        "content": {
            MEDIA_TYPE: {
                "schema": {"allOf": [{"$ref": "#/components/schemas/ProblemBody"}, own]},
                "examples": examples,
            }
        },
    }
    if retry:
        response["headers"] = {
            "Retry-After": {
                "description": "Seconds after which to try again.",
                "schema": {"type": "string", "pattern": "^[0-9]+$"},
            }
        }
    return response


def _example(problem: Problem, error: type[DomainError] | None) -> dict[str, Any]:
    return {
        "type": f"urn:alameda:problem:{problem.code}",
        "title": problem.title,
        "status": problem.status,
        "detail": _first_line(error) if error is not None else problem.title,
        "code": problem.code,
        "instance": "/v1/…",
    }


def _first_line(error: type[DomainError]) -> str:
    return (error.__doc__ or "").strip().splitlines()[0]


def _member_schemas(error: type[DomainError]) -> dict[str, Any]:
    if error is ValidationFailed:
        return {"errors": {"type": "array", "items": {"$ref": "#/components/schemas/ValidationItem"}}}
    hints = get_type_hints(error)
    return {name: TypeAdapter(hints[name]).json_schema() for name in _members(error)}
