"""The contract: what the document says is what the service does, and nothing less than was promised."""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.core.transport import DEFAULT_RESPONSE_TIMEOUT
from schemathesis.specs.openapi.checks import (
    ignored_auth,
    negative_data_rejection,
    positive_data_acceptance,
    unsupported_method,
)

from app.domain.events import EVENT_CLASSES
from app.settings import Limits
from tests.house import House, durable, open_house

PROMISED = {
    ("PUT", "/v1/sessions/{}"),
    ("POST", "/v1/sessions"),
    ("GET", "/v1/sessions"),
    ("GET", "/v1/sessions/{}"),
    ("PATCH", "/v1/sessions/{}"),
    ("DELETE", "/v1/sessions/{}"),
    ("GET", "/v1/sessions/{}/snapshot"),
    ("GET", "/v1/sessions/{}/diff"),
    ("POST", "/v1/sessions/{}/close"),
    ("POST", "/v1/sessions/{}/turns"),
    ("GET", "/v1/sessions/{}/turns"),
    ("POST", "/v1/prompt-stream"),
    ("GET", "/v1/turns/{}"),
    ("DELETE", "/v1/turns/{}"),
    ("GET", "/v1/turns/{}/wait"),
    ("GET", "/v1/turns/{}/events/stream"),
    ("POST", "/v1/turns/{}/cancel"),
    ("POST", "/v1/turns/{}/retry"),
    ("GET", "/v1/sessions/{}/events"),
    ("GET", "/v1/sessions/{}/events/stream"),
    ("GET", "/v1/events/stream"),
    ("POST", "/v1/tasks"),
    ("GET", "/v1/tasks"),
    ("GET", "/v1/tasks/{}"),
    ("POST", "/v1/tasks/{}/cancel"),
    ("POST", "/v1/tasks/{}/retry"),
    ("GET", "/v1/permissions"),
    ("GET", "/v1/permissions/{}"),
    ("POST", "/v1/permissions/{}/respond"),
    ("GET", "/v1/collisions"),
    ("GET", "/v1/collisions/{}"),
    ("GET", "/v1/projects/{}/files"),
    ("GET", "/v1/sessions/{}/terminals"),
    ("POST", "/v1/sessions/{}/terminals"),
    ("GET", "/v1/terminals/{}"),
    ("DELETE", "/v1/terminals/{}"),
    ("GET", "/v1/terminals/{}/output/stream"),
    ("POST", "/v1/terminals/{}/input"),
    ("POST", "/v1/terminals/{}/resize"),
    ("GET", "/v1/terminals/{}/capture"),
    ("GET", "/v1/terminals/{}/search"),
    ("GET", "/v1/terminals/search"),
    ("GET", "/health"),
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/v1/backends"),
    ("GET", "/v1/backends/{}"),
    ("GET", "/v1/backends/{}/providers"),
    ("POST", "/v1/backends/{}/drain"),
    ("POST", "/v1/backends/{}/resume"),
    ("POST", "/v1/stream-tickets"),
    ("GET", "/v1/api-keys"),
    ("POST", "/v1/api-keys"),
    ("DELETE", "/v1/api-keys/{}"),
}
"""What clients may build on: a route is never taken away."""
PARAMETERS = {
    ("GET", "/v1/sessions"): {
        *("chat_id", "project_id", "backend", "agent", "status", "activity", "label", "limit", "cursor")
    },
    ("GET", "/v1/sessions/{}/turns"): {"status", "limit", "cursor"},
    ("GET", "/v1/sessions/{}/events"): {"after", "limit", "types"},
    ("GET", "/v1/sessions/{}/events/stream"): {
        *("Last-Event-ID", "after", "starting_after", "from", "types", "deltas", "ticket")
    },
    ("GET", "/v1/events/stream"): {"project_id", "types", "ticket"},
    ("GET", "/v1/permissions"): {"status", "session_id", "limit", "cursor"},
    ("GET", "/v1/collisions"): {"project_id", "status", "limit", "cursor"},
    ("GET", "/v1/projects/{}/files"): {"limit", "cursor"},
    ("GET", "/v1/tasks"): {"session_id", "status", "limit", "cursor"},
    ("POST", "/v1/tasks"): {"Idempotency-Key"},
    ("POST", "/v1/tasks/{}/retry"): {"Idempotency-Key"},
    ("GET", "/v1/turns/{}/wait"): {"timeout_s"},
    ("GET", "/v1/terminals/{}/output/stream"): {"Last-Event-ID", "ticket"},
    ("GET", "/v1/terminals/{}/capture"): {"start", "end", "ansi"},
    ("GET", "/v1/terminals/{}/search"): {"q", "regex", "ignore_case", "context", "limit"},
    ("GET", "/v1/terminals/search"): {"q", "session_id", "project_id"},
    ("POST", "/v1/sessions/{}/turns"): {"Idempotency-Key", "Prefer"},
    ("POST", "/v1/prompt-stream"): {"Idempotency-Key"},
    ("POST", "/v1/turns/{}/retry"): {"Idempotency-Key", "Prefer"},
}
STREAMS = re.compile(r"/(events|output)/stream$|/prompt-stream$")


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, one in document["paths"].items():
        for method, operation in one.items():
            yield method.upper(), re.sub(r"\{\w+\}", "{}", path), operation


async def test_every_promised_route_is_described(house: House) -> None:
    """OpenAPI 3.1, with the parameters that the contract names; every event has its place in it."""
    document = await house.get("/openapi.json")
    assert document["openapi"].startswith("3.1.")
    found = {(method, path): operation for method, path, operation in operations(document)}
    assert found.keys() >= PROMISED
    for key, names in PARAMETERS.items():
        listed = {parameter["name"].lower() for parameter in found[key].get("parameters", ())}
        assert {name.lower() for name in names} <= listed, key
    assert set(document["components"]["schemas"]["Event"]["discriminator"]["mapping"]) == set(EVENT_CLASSES)
    for (_, path), operation in found.items():
        is_stream = "text/event-stream" in operation["responses"].get("200", {}).get("content", {})
        assert is_stream is bool(STREAMS.search(path)) or path == "/v1/sessions/{}/turns" or "retry" in path
        assert is_open(path) or operation["security"]


async def test_head_is_answered_where_a_probe_may_send_it(house: House) -> None:
    """As GET, without the content (RFC 9110, 9.3.2); a stream has no such answer."""
    for path in ("/health", "/livez", "/readyz", "/"):
        got, head = await house.client.get(path), await house.client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b"") == (200, b"")
        assert head.headers["content-type"] == got.headers["content-type"]
        assert int(head.headers["content-length"]) > 0
    await house.ensure("s-1")
    for path in ("/v1/sessions/s-1/events/stream", "/v1/events/stream"):
        assert (await house.client.head(path)).status_code == 405


async def test_a_preference_that_was_honoured_is_named(house: House) -> None:
    """`Preference-Applied` (RFC 7240, 3) says how long we were ready to wait, whether or not it sufficed."""
    await house.ensure("s-1")
    path = "/v1/sessions/s-1/turns"
    answer = await house.post(path, {"prompt": "say x"}, Prefer="wait=20")
    assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=20")
    retry = f"/v1/turns/{answer.json()['turn_id']}/retry"
    answer = await house.post(retry, Prefer="respond-async, wait=600")
    assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=60")
    answer = await house.post(path, {"prompt": "ask Delete?"}, Prefer="wait=1")
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "wait=1")
    for headers in ({"Prefer": "wait=0"}, {"Prefer": "handling=strict"}, {}):
        answer = await house.post(path, {"prompt": "say x", "multitask_strategy": "enqueue"}, **headers)
        assert "preference-applied" not in answer.headers


def is_open(path: str) -> bool:
    return path in ("/health", "/livez", "/readyz")


def validator(document: dict[str, Any], schema: dict[str, Any]) -> jsonschema_rs.Validator:
    """For a schema within the document."""
    whole = {**schema, "components": document["components"]}
    return jsonschema_rs.validator_for(whole)


async def test_events_on_a_stream_are_as_described(house: House) -> None:
    """Every event of a session that did a bit of everything is valid, and its page is too."""
    document = await house.get("/openapi.json")
    event = validator(document, {"$ref": "#/components/schemas/Event"})
    await house.ensure("s-1", labels={"a": "b"}, permission_policy={"mode": "allow"})
    script = "think a\nsay b\nstream 3\nread /x\nedit /y\nrun ls\nask z\nplan a; b\ntokens 1 2\nmode plan"
    await house.run("s-1", script)
    for script in ("refuse", "fail x", "crash"):
        await house.run("s-1", script)
    await house.client.patch("/v1/sessions/s-1", json={"title": "x"})
    await house.post("/v1/sessions/s-1/close")
    frames = durable(await house.follow("/v1/sessions/s-1/events/stream", "stream.closing"))
    assert len({frame.event for frame in frames}) >= 15
    for frame in frames:
        event.validate(frame.data)
        assert (frame.event, frame.id) == (frame.data["type"], str(frame.data["seq"]))
    page = await house.get("/v1/sessions/s-1/events", limit=1000)
    validator(document, {"$ref": "#/components/schemas/EventPage"}).validate(page)
    assert page["items"] == [frame.data for frame in frames]


UNSUITABLE = (positive_data_acceptance, negative_data_rejection, unsupported_method)
"""A session that is described well may still not exist; JSON that says more than a schema is refused too."""


async def test_answers_conform_to_the_document_whatever_is_asked(database_url: str, folder: Path) -> None:
    """Generated requests to every route: no 5xx but those that are described, and answers as described."""
    async with open_house(database_url, folder, limits=Limits(auth_failures_per_minute=10**6)) as house:
        await house.ensure("s-1")
        turn = await house.run("s-1", "say x")
        answer = await house.post("/v1/sessions/s-1/terminals", {"command": "cat"})
        ids = {"turn_id": turn["turn_id"], "terminal_id": answer.json()["terminal_id"]}
        failures, asked = await anyio.to_thread.run_sync(_ask_around, house, ids)
        assert not failures, "\n\n".join(failures[:5])
        assert len(asked) >= len(PROMISED) - 6
        seqs = [event["seq"] for event in await house.log("s-1")]
        assert seqs == list(range(1, len(seqs) + 1))


def _ask_around(house: House, ids: dict[str, str]) -> tuple[list[str], set[str]]:
    """What did not conform, and the operations that were asked."""
    failures: list[str] = []
    asked: set[str] = set()
    with httpx.Client(base_url=house.url, trust_env=False) as client:
        document = client.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.base_url = house.url
    warnings.filterwarnings("ignore", "Do not use the `random` module")
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        operation = result.ok()
        label = f"{operation.method.upper()} {operation.path}"
        if STREAMS.search(operation.path) or operation.path.endswith("/api-keys/{key_id}"):
            continue
        asked.add(label)

        @given(case=operation.as_strategy())
        @settings(
            max_examples=5,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def ask(case: schemathesis.Case[Any]) -> None:
            _aim(case, ids)
            headers = {"Authorization": f"Bearer {house.key}"}
            response = case.call(headers=headers, timeout=DEFAULT_RESPONSE_TIMEOUT)
            assert response.status_code < 500 or response.status_code in (502, 503), response.text
            unsuitable = [*UNSUITABLE, *([ignored_auth] if is_open(case.path) else [])]
            case.validate_response(response, excluded_checks=unsuitable, headers=headers)

        try:
            ask()
        except (AssertionError, FailureGroup) as error:
            failures.append(f"{label}: {error}"[:1500])
    return failures, asked


def _aim(case: schemathesis.Case[Any], ids: dict[str, str]) -> None:
    """Half of the generated names do not exist: let some of them be known, and nothing wait for long."""
    names = case.path_parameters or {}
    if "session_id" in names and case.method not in ("DELETE", "PUT"):
        names["session_id"] = "s-1"
    names.update({name: ids[name] for name in names.keys() & ids.keys()})
    if "name" in names:
        names["name"] = "demo"
    if case.query and "timeout_s" in case.query:
        case.query["timeout_s"] = 0
    if isinstance(case.body, dict) and "agent" in case.body:
        case.body["backend"] = "elsewhere"


@pytest.mark.parametrize("accept", ["application/json", "*/*", "text/html", ""])
async def test_problems_are_problems_whatever_the_client_accepts(house: House, accept: str) -> None:
    """There is one form of an error."""
    answer = await house.client.get("/v1/sessions/none", headers={"Accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    answer = await house.client.post(
        "/v1/sessions/none/turns", json={"prompt": "x"}, headers={"Accept": "text/event-stream"}
    )
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
