"""What may not happen: every test is named after the threat that it stands for, on the whole service."""

import json
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import psutil
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from app.settings import Limits, SettingsError, Timing, load_settings
from app.store.database import Address
from tests.engine.replicas import two_houses
from tests.house import PATIENCE, House, Stream, dump, durable, open_house

ROOT = Path(__file__).parent.parent.parent
SCOPES = ("read", "prompt", "approve", "terminal", "admin")
ELSEWHERE = {"agent": "demo", "backend": "elsewhere"}
"""A session that is refused by its backend's name, after the scope was looked at."""

OPEN = {
    ("GET", "/health"),
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/"),
    ("GET", "/console"),
    ("GET", "/console/static/{file}"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/docs.js"),
}
"""Every route that answers without a key; HEAD goes with GET."""

SCOPED: dict[tuple[str, str], tuple[str, Any]] = {
    ("PUT", "/v1/sessions/{session_id}"): ("prompt", ELSEWHERE),
    ("POST", "/v1/sessions"): ("prompt", ELSEWHERE),
    ("GET", "/v1/sessions"): ("read", None),
    ("GET", "/v1/sessions/{session_id}"): ("read", None),
    ("PATCH", "/v1/sessions/{session_id}"): ("prompt", {"title": "taken over"}),
    ("DELETE", "/v1/sessions/{session_id}"): ("prompt", None),
    ("GET", "/v1/sessions/{session_id}/snapshot"): ("read", None),
    ("GET", "/v1/sessions/{session_id}/diff"): ("read", None),
    ("POST", "/v1/sessions/{session_id}/close"): ("prompt", None),
    ("GET", "/v1/sessions/{session_id}/events"): ("read", None),
    ("GET", "/v1/sessions/{session_id}/events/stream"): ("read", None),
    ("GET", "/v1/events/stream"): ("read", None),
    ("POST", "/v1/sessions/{session_id}/turns"): ("prompt", {"prompt": "say taken over"}),
    ("GET", "/v1/sessions/{session_id}/turns"): ("read", None),
    ("POST", "/v1/prompt-stream"): ("prompt", {**ELSEWHERE, "prompt": "say taken over"}),
    ("GET", "/v1/turns/{turn_id}"): ("read", None),
    ("DELETE", "/v1/turns/{turn_id}"): ("prompt", None),
    ("GET", "/v1/turns/{turn_id}/wait"): ("read", None),
    ("GET", "/v1/turns/{turn_id}/events/stream"): ("read", None),
    ("POST", "/v1/turns/{turn_id}/cancel"): ("prompt", None),
    ("POST", "/v1/turns/{turn_id}/retry"): ("prompt", None),
    ("POST", "/v1/tasks"): ("prompt", {"session_id": "s-1", "steps": [{"prompt": "say x"}]}),
    ("GET", "/v1/tasks"): ("read", None),
    ("GET", "/v1/tasks/{task_id}"): ("read", None),
    ("POST", "/v1/tasks/{task_id}/cancel"): ("prompt", None),
    ("POST", "/v1/tasks/{task_id}/retry"): ("prompt", None),
    ("GET", "/v1/permissions"): ("read", None),
    ("GET", "/v1/permissions/{permission_id}"): ("read", None),
    ("POST", "/v1/permissions/{permission_id}/respond"): ("approve", {"outcome": "allow"}),
    ("GET", "/v1/collisions"): ("read", None),
    ("GET", "/v1/collisions/{collision_id}"): ("read", None),
    ("GET", "/v1/projects/{project_id}/files"): ("read", None),
    ("GET", "/v1/sessions/{session_id}/terminals"): ("terminal", None),
    ("POST", "/v1/sessions/{session_id}/terminals"): ("terminal", {"command": "true"}),
    ("GET", "/v1/terminals/search"): ("terminal", None),
    ("GET", "/v1/terminals/{terminal_id}"): ("terminal", None),
    ("DELETE", "/v1/terminals/{terminal_id}"): ("terminal", None),
    ("GET", "/v1/terminals/{terminal_id}/output/stream"): ("terminal", None),
    ("POST", "/v1/terminals/{terminal_id}/input"): ("terminal", {"data": "taken over"}),
    ("POST", "/v1/terminals/{terminal_id}/resize"): ("terminal", {"rows": 5, "cols": 5}),
    ("GET", "/v1/terminals/{terminal_id}/capture"): ("terminal", None),
    ("GET", "/v1/terminals/{terminal_id}/search"): ("terminal", None),
    ("GET", "/v1/backends"): ("read", None),
    ("GET", "/v1/backends/{name}"): ("read", None),
    ("GET", "/v1/backends/{name}/providers"): ("read", None),
    ("POST", "/v1/backends/{name}/drain"): ("admin", None),
    ("POST", "/v1/backends/{name}/resume"): ("admin", None),
    ("GET", "/metrics"): ("read", None),
    ("POST", "/v1/stream-tickets"): ("read", {"all": True}),
    ("POST", "/v1/api-keys"): ("admin", {"name": "more", "scopes": ["read"]}),
    ("GET", "/v1/api-keys"): ("admin", None),
    ("DELETE", "/v1/api-keys/{key_id}"): ("admin", None),
}
"""The scope that each route needs (API.md, 9), and a body that is valid there. A new route belongs here."""


def walk(app: FastAPI) -> set[tuple[str, str]]:
    """Method and path of every route of the application."""
    found = set()
    for route in iter_route_contexts(app.routes):
        assert route.path is not None
        assert route.methods, f"{route.path} is no route of one method: a mount, or a WebSocket"
        path = route.path.replace(":path}", "}")
        found |= {(method, path) for method in route.methods if method != "HEAD"}
    return found


def fill(path: str, names: Mapping[str, str]) -> str:
    filled = re.sub(r"\{(\w+)\}", lambda found: names.get(found[1], "missing"), path)
    return f"{filled}?timeout_s=0" if filled.endswith("/wait") else filled


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@asynccontextmanager
async def stranger(house: House, key: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A client without the first key."""
    async with httpx.AsyncClient(
        base_url=house.url, headers=bearer(key) if key else None, timeout=PATIENCE, trust_env=False
    ) as client:
        yield client


async def status_of(client: httpx.AsyncClient, method: str, path: str, **more: Any) -> tuple[int, str]:
    """Status and code of an answer, without waiting for a stream's end."""
    async with client.stream(method, path, **more) as answer:
        if answer.headers.get("content-type", "").startswith("application/problem+json"):
            await answer.aread()
            return answer.status_code, answer.json()["code"]
        return answer.status_code, ""


async def make_key(house: House, *scopes: str, owner: str = "default") -> dict[str, Any]:
    answer = await house.post("/v1/api-keys", {"name": "x", "owner": owner, "scopes": list(scopes or SCOPES)})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def a_life(house: House) -> dict[str, str]:
    """A session with an ended turn, an open one and a permission that waits; the names of all of them."""
    await house.ensure("s-1")
    await house.run("s-1", "say hello")
    turn = await house.prompt("s-1", "ask Delete?")
    async with house.stream("/v1/sessions/s-1/events/stream") as stream:
        frames = await stream.until("permission.requested")
    asked = next(frame for frame in frames if frame.event == "permission.requested")
    return {
        "session_id": "s-1",
        "turn_id": turn["turn_id"],
        "permission_id": asked.data["data"]["permission_id"],
        "name": "demo",
        "file": "api.js",
    }


@pytest.fixture
async def patient_house(database_url: str, folder: Path) -> AsyncIterator[House]:
    """A house that puts up with any number of failed authentications."""
    async with open_house(database_url, folder, limits=Limits(auth_failures_per_minute=10**6)) as house:
        yield house


# T01, T02: getting in.


async def test_t01_every_route_is_known_to_these_tests(house: House) -> None:
    """A new route has to be put into the lists above, and so gets its key and its scope tested."""
    found = walk(house.app)
    assert found - OPEN == SCOPED.keys()
    document = (await house.client.get("/openapi.json")).json()
    described = {(m.upper(), path) for path, one in document["paths"].items() for m in one}
    assert described - OPEN == SCOPED.keys()


async def test_t01_t07_no_route_answers_without_a_valid_key(
    patient_house: House, database_address: Address
) -> None:
    """Missing, malformed, unknown, wrong and revoked keys get the same 401, and nothing happens."""
    house = patient_house
    names = await a_life(house)
    gone = await make_key(house)
    assert (await house.client.delete(f"/v1/api-keys/{gone['key_id']}")).status_code == 204
    names["key_id"] = gone["key_id"]
    before = await dump(database_address)
    secret = house.key.rsplit("_", 1)[1]
    credentials: list[dict[str, Any]] = [
        {},
        {"headers": {"Authorization": ""}},
        {"headers": {"Authorization": "Bearer"}},
        {"headers": {"Authorization": house.key}},
        {"headers": {"Authorization": f"Basic {house.key}"}},
        {"headers": bearer("alm__")},
        {"headers": bearer("alm_test")},
        {"headers": bearer(f"alm_unknown_{secret}")},
        {"headers": bearer(f"alm_test_{'x' * 43}")},
        {"headers": bearer(house.key[:-1])},
        {"headers": bearer(house.key + "k")},
        {"headers": bearer(house.key.upper())},
        {"headers": bearer(f"alm_{'t' * 5000}_{secret}")},
        {"headers": bearer(f"alm_té_{secret}".encode().decode("latin-1"))},
        {"headers": bearer(gone["key"])},
        {"headers": {"X-API-Key": house.key, "Cookie": f"key={house.key}; Authorization=Bearer {house.key}"}},
        {"params": {"key": house.key, "access_token": house.key, "ticket": house.key}},
    ]
    bodies = set()
    async with stranger(house) as client:
        for method, path in walk(house.app) - OPEN:
            for given in credentials:
                headers = {k: v.encode("latin-1") for k, v in given.get("headers", {}).items()}
                answer = await client.request(
                    method,
                    fill(path, names),
                    json=SCOPED.get((method, path), ("", None))[1],
                    params=given.get("params"),
                    headers=headers,
                )
                assert answer.status_code == 401, (method, path, given, answer.text)
                assert answer.headers["www-authenticate"] == "Bearer"
                bodies.add(json.dumps({**answer.json(), "instance": ""}))
    assert len(bodies) == 1
    assert json.loads(bodies.pop())["code"] == "unauthenticated"
    assert await dump(database_address) == before


async def test_t01_what_is_wrong_with_a_request_is_told_to_key_holders_only(house: House) -> None:
    """Paths, queries and bodies are looked at after the key."""
    async with stranger(house) as client:
        for method, path in (
            ("GET", "/v1/sessions?limit=x"),
            ("GET", "/v1/sessions?cursor=x"),
            ("GET", "/v1/sessions/!/events?types=x"),
            ("GET", "/v1/sessions/!/events/stream?from=x"),
            ("GET", "/v1/sessions/s-1/events/stream?after=x"),
            ("GET", "/v1/turns/!/events/stream"),
            ("GET", "/v1/events/stream?types=x"),
            ("PUT", "/v1/sessions/!"),
            ("POST", "/v1/sessions"),
            ("POST", "/v1/prompt-stream"),
        ):
            answer = await client.request(method, path, json={"x": 1} if method != "GET" else None)
            assert answer.status_code == 401, (path, answer.text)


async def test_t01_open_routes_say_no_more_than_they_may(patient_house: House) -> None:
    """The short health, probes, and files that are the same for everybody."""
    house = patient_house
    await a_life(house)
    async with stranger(house) as client:
        for headers in ({}, bearer("alm_unknown_x"), bearer(f"alm_test_{'x' * 43}")):
            for path, fields in (("/health", {"status"}), ("/livez", {"status"}), ("/readyz", {"status"})):
                answer = await client.get(path, headers=headers)
                assert answer.status_code == 200
                assert set(answer.json()) == fields, path
        for path in ("/", "/console", "/console/static/api.js", "/docs", "/docs.js", "/openapi.json"):
            answer = await client.get(path)
            assert answer.status_code == 200
            own = await house.client.get(path)
            assert answer.content == own.content
            assert "s-1" not in answer.text
            assert str(house.cwd) not in answer.text
        for path in ("/console/static/..%2f..%2fmain.py", "/console/static/%2fetc%2fpasswd", "/console/x"):
            assert (await client.get(path)).status_code == 404
    assert (await house.get("/health")).keys() > {"status", "database", "backends"}


async def test_t01_the_document_is_open_on_loopback_or_by_setting_only(
    database_url: str, folder: Path
) -> None:
    """On an address that others reach, neither the document nor its page exists."""
    async with open_house(database_url, folder, host="0.0.0.0", allow_remote=True) as house:
        for path in ("/docs", "/docs.js", "/openapi.json"):
            assert (await house.client.get(path)).status_code == 404
        assert (await house.client.get("/v1/sessions")).status_code == 200
    async with (
        open_house(database_url, folder, host="0.0.0.0", allow_remote=True, public_docs=True) as house,
        stranger(house) as client,
    ):
        assert (await client.get("/openapi.json")).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "", "192.0.2.1", "127.evil.com", "0x7f.1", "localhost.evil.com", "127.1", "2130706433"],
)
def test_t01_t02_other_addresses_than_loopback_need_leave_and_keys(host: str) -> None:
    """An address is loopback if it parses as one, never by its first letters."""
    with pytest.raises(SettingsError, match="ALAMEDA_ALLOW_REMOTE"):
        load_settings(host=host)
    with pytest.raises(SettingsError, match="ALAMEDA_AUTH=none"):
        load_settings(host=host, allow_remote=True, auth="none")
    assert load_settings(host=host, allow_remote=True).auth == "keys"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_t02_loopback_needs_nothing(host: str) -> None:
    """The default is one of them."""
    assert load_settings(host=host, auth="none").is_loopback
    assert load_settings().host == "127.0.0.1"


@pytest.mark.parametrize(
    ("more", "names"),
    [({}, "ALAMEDA_ALLOW_REMOTE"), ({"ALAMEDA_ALLOW_REMOTE": "1", "ALAMEDA_AUTH": "none"}, "ALAMEDA_AUTH")],
)
async def test_t02_the_service_does_not_start_open_to_the_network(
    folder: Path, more: dict[str, str], names: str
) -> None:
    """It ends before it listens, and says which setting would have been needed."""
    with anyio.fail_after(PATIENCE):
        done = await anyio.run_process(
            [sys.executable, "-m", "app", "serve", "--host", "0.0.0.0", "--port", "0"],
            check=False,
            cwd=ROOT,
            env={**clean_environment(), "ALAMEDA_DATA_DIR": str(folder), **more},
        )
    assert done.returncode == 2
    assert names in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


# T03, T04, T06: pages, hosts, paths.

FOREIGN: list[dict[str, str]] = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://localhost"},
    {"Origin": ""},
    {"Sec-Fetch-Site": "cross-site"},
]
TYPES = (
    "application/json",
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
)


@pytest.mark.parametrize("auth", ["keys", "none"])
async def test_t03_a_page_of_another_origin_changes_nothing(
    database_url: str, database_address: Address, folder: Path, auth: str
) -> None:
    """Even with a key, whatever content type makes the request a simple one: 403, and nothing happened."""
    async with open_house(database_url, folder, auth=auth) as house:
        names = await a_life(house)
        names["key_id"] = (await make_key(house))["key_id"]
        before = await dump(database_address)
        bodies = {**{key: body for key, (_, body) in SCOPED.items()}}
        bodies["PUT", "/v1/sessions/{session_id}"] = {"agent": "demo", "cwd": str(house.cwd), "title": "x"}
        bodies["POST", "/v1/sessions"] = {"agent": "demo", "cwd": str(house.cwd), "session_id": "s-2"}
        bodies["POST", "/v1/prompt-stream"] = {**bodies["POST", "/v1/sessions"], "prompt": "say x"}
        unsafe = [(method, path) for method, path in walk(house.app) if method != "GET"]
        assert len(unsafe) >= 15
        for method, path in unsafe:
            body = bodies[method, path]
            content = json.dumps(body).encode() if body is not None else None

            async def ask(method: str, path: str, content: bytes | None, headers: dict[str, str]) -> None:
                answer = await house.client.request(method, path, content=content, headers=headers)
                found = (answer.status_code, answer.json()["code"])
                assert found == (403, "origin_forbidden"), (method, path, headers)
                assert not [name for name in answer.headers if name.startswith("access-control-")]

            async with anyio.create_task_group() as tasks:
                for headers in FOREIGN:
                    for content_type in TYPES:
                        more = {**headers, "Content-Type": content_type}
                        tasks.start_soon(ask, method, fill(path, names), content, more)
        assert await dump(database_address) == before
        own = {"Origin": house.url, "Sec-Fetch-Site": "same-origin"}
        assert (await house.post("/v1/sessions/s-1/close", None, **own)).status_code == 200


async def test_t03_only_json_is_read_as_json(house: House, database_address: Address) -> None:
    """A form or a text that looks like JSON is no JSON, on any route with a body."""
    names = await a_life(house)
    before = await dump(database_address)
    for (method, path), (_, body) in SCOPED.items():
        if body is None:
            continue
        for content_type in (*TYPES[1:], "", "application/xml"):
            answer = await house.client.request(
                method,
                fill(path, names),
                content=json.dumps(body).encode(),
                headers={"Content-Type": content_type},
            )
            found = (answer.status_code, answer.json()["code"])
            assert found == (422, "validation_failed"), (path, content_type)
    assert await dump(database_address) == before


async def test_t05_no_answer_lets_another_origin_read(house: House) -> None:
    """CORS is closed unless somebody opened it, on streams and errors too."""
    names = await a_life(house)
    for method, path in walk(house.app):
        if method != "GET":
            continue
        for origin in ("https://evil.example", "null", house.url):
            async with house.client.stream("GET", fill(path, names), headers={"Origin": origin}) as answer:
                assert not [n for n in answer.headers if n.startswith("access-control-")], path
    for path in ("/v1/sessions", "/v1/sessions/s-1/close"):
        answer = await house.client.options(
            path, headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        )
        assert answer.status_code == 405


@pytest.mark.parametrize(
    "host",
    [
        "evil.com",
        "localhost.evil.com",
        "127.0.0.1.nip.io",
        "localhost.",
        "0.0.0.0",
        "[::]",
        "x/health?",
        "a@localhost",
    ],
)
async def test_t04_foreign_hosts_reach_no_route(house: House, database_address: Address, host: str) -> None:
    """Streams and open routes too; nothing happened."""
    names = await a_life(house)
    before = await dump(database_address)
    for method, path in walk(house.app):
        body = SCOPED.get((method, path), ("", None))[1]
        found = await status_of(house.client, method, fill(path, names), json=body, headers={"Host": host})
        assert found == (400, "invalid_host"), (method, path)
    assert await dump(database_address) == before


async def test_t06_no_spelling_of_a_path_gets_past_the_key(house: House) -> None:
    """What a proxy or a router may take for an open route is either this route, with its 401, or none."""
    async with stranger(house) as client:
        for method, path in SCOPED:
            real = fill(path, {"session_id": "s-1", "name": "demo"}).partition("?")[0]
            for spelled in (
                f"/{real}",
                f"{real}/",
                f"{real}//",
                f"{real}?x=/health",
                f"{real}%3f/health",
                f"{real};/health",
                f"/health/..{real}",
                f"/health/..;{real}",
                f"/health/%2e%2e{real}",
                f"/livez/%2f..{real}",
                f"/console/static/..{real}",
                real.replace("/v1/", "/v1%2f"),
                real.replace("/v1/", "/v1//"),
                real.replace("/v1/", "/v1/./"),
                real.replace("/v1/", "/V1/"),
                real.replace("/v1/", "/%5cv1%5c"),
            ):
                url = httpx.URL(house.url).copy_with(raw_path=spelled.encode())
                answer = await client.request(method, url, json={})
                assert answer.status_code in (401, 404, 405), (method, spelled, answer.text)
                assert answer.headers["content-type"] == "application/problem+json"


# T07: keys and scopes.


async def test_t07_every_route_needs_its_scope_and_no_other(house: House) -> None:
    """A key with all scopes but the one is refused, a key with this one alone is not."""
    only = {scope: (await make_key(house, scope))["key"] for scope in SCOPES}
    but = {s: (await make_key(house, *(o for o in SCOPES if o != s)))["key"] for s in SCOPES}
    for (method, path), (needed, body) in SCOPED.items():
        for scope in SCOPES:
            found = await status_of(
                house.client, method, fill(path, {}), json=body, headers=bearer(only[scope])
            )
            if scope == needed:
                assert found[0] not in (401, 403), (method, path, scope)
            else:
                assert found == (403, "forbidden"), (method, path, scope)
        found = await status_of(house.client, method, fill(path, {}), json=body, headers=bearer(but[needed]))
        assert found == (403, "forbidden"), (method, path)


async def test_t07_a_terminal_ticket_needs_the_terminal_scope(house: House) -> None:
    """No other scope finds out whether there is such a terminal."""
    for scopes, expected in ((("terminal",), 404), (("read", "prompt", "approve", "admin"), 403)):
        key = await make_key(house, *scopes)
        answer = await house.post("/v1/stream-tickets", {"terminal_id": "t"}, **bearer(key["key"]))
        assert answer.status_code == expected


async def test_t07_nothing_that_a_client_sends_widens_its_scopes(
    house: House, database_address: Address
) -> None:
    """Policies that allow, and adopting a session, need `admin`: in every request that can carry them."""
    await house.ensure("s-1")
    key = bearer((await make_key(house, "prompt", "read", "approve"))["key"])
    before = await dump(database_address)
    base = {"agent": "demo", "cwd": str(house.cwd)}
    for more in (
        {"permission_policy": {"mode": "allow"}},
        {"permission_policy": {"on_timeout": "allow"}},
        {"permission_policy": {"mode": "deny", "on_timeout": "allow"}},
        {"provider_session_id": "theirs"},
        {"permission_policy": {"mode": "allow"}, "if_exists": "update"},
    ):
        for method, path, body in (
            ("PUT", "/v1/sessions/s-1", {**base, **more}),
            ("PUT", "/v1/sessions/s-new", {**base, **more}),
            ("POST", "/v1/sessions", {**base, **more, "chat_id": "new"}),
            ("POST", "/v1/prompt-stream", {**base, **more, "prompt": "say x"}),
        ):
            answer = await house.client.request(method, path, json=body, headers=key)
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), (path, more)
            assert answer.json()["scope"] == "admin"
        if "permission_policy" in more:
            body = {"permission_policy": more["permission_policy"]}
            answer = await house.client.patch("/v1/sessions/s-1", json=body, headers=key)
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    for claim in ({"X-Scopes": "admin"}, {"X-Owner": "other"}, {"X-Forwarded-User": "admin"}):
        answer = await house.client.get("/v1/api-keys?scopes=admin&owner=x", headers={**key, **claim})
        assert answer.status_code == 403
    answer = await house.client.put("/v1/sessions/s-1", json={**base, "owner": "other"}, headers=key)
    assert answer.status_code == 422
    assert await dump(database_address) == before


async def test_t07_the_database_holds_no_plain_key_and_no_plain_ticket(
    house: House, database_address: Address
) -> None:
    """Only hashes of what opens a door."""
    made = await make_key(house)
    await house.ensure("s-1")
    answer = await house.client.post(
        "/v1/stream-tickets", json={"session_id": "s-1"}, headers=bearer(made["key"])
    )
    ticket = answer.json()["ticket"]
    await house.follow("/v1/sessions/s-1/events/stream", "stream.synced", ticket=ticket)
    text = json.dumps(await dump(database_address))
    assert made["key_id"] in text
    for secret in (made["key"], made["key"].split("_", 2)[2], house.key, ticket):
        assert secret not in text


async def test_t07_secrets_of_a_session_are_never_shown(house: House) -> None:
    """Headers of MCP servers are in no answer and no event."""
    canary = "canary-mcp-header"
    server = {"type": "http", "url": "http://127.0.0.1:9/mcp", "headers": {"Authorization": canary}}
    made = await house.ensure("s-1", mcp_servers={"one": server})
    await house.run("s-1", "say x")
    shown = [
        made,
        await house.get("/v1/sessions/s-1"),
        await house.get("/v1/sessions"),
        await house.get("/v1/sessions/s-1/snapshot"),
        await house.log("s-1"),
        (await house.client.patch("/v1/sessions/s-1", json={"title": "x"})).json(),
        (await house.post("/v1/sessions/s-1/close")).json(),
    ]
    assert canary not in json.dumps(shown)


# T07, T30: what a process says and hands on.


def elsewhere(database_url: str) -> str:
    """The address of the tests' database for another process: its socket is reached by our descriptor."""
    return database_url.replace("%2Fproc%2Fself%2F", f"%2Fproc%2F{os.getpid()}%2F")


def clean_environment() -> dict[str, str]:
    """The environment without settings of ours."""
    secret = ("ALAMEDA_", "DATABASE_URL", "PASEO_")
    return {name: value for name, value in os.environ.items() if not name.startswith(secret)}


@asynccontextmanager
async def serving(environment: Mapping[str, str], folder: Path) -> AsyncIterator[tuple[str, int]]:
    """The URL and pid of the whole process; what it said is in `stdout` and `stderr`. It has to end well."""
    stdout, stderr = folder / "stdout", folder / "stderr"
    with stdout.open("wb") as out, stderr.open("wb") as err:
        process = await anyio.open_process(
            [sys.executable, "-m", "app", "serve"], cwd=ROOT, env=environment, stdout=out, stderr=err
        )
    try:
        with anyio.fail_after(PATIENCE):
            while (found := re.search(r"answers at (\S+)", stdout.read_text())) is None:
                assert process.returncode is None, stderr.read_text()
                await anyio.sleep(0.05)
        yield found[1], process.pid
        process.terminate()
        with anyio.fail_after(PATIENCE):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.aclose()


@pytest.mark.parametrize("level", ["info", "debug"])
async def test_t07_t30_no_secret_is_in_a_log_an_argument_or_a_child_s_environment(
    database_url: str, folder: Path, level: str
) -> None:
    """Canaries everywhere, and the whole process as it is run; a record is a line, whatever is in it."""
    work = folder / "work"
    work.mkdir()
    key = f"alm_canary_{'CanaryKey' * 6}"
    environment = {
        **clean_environment(),
        "DATABASE_URL": elsewhere(database_url),
        "PASEO_PASSWORD": "canary-paseo-password",
        "SOME_TOKEN": "canary-other-token",
        "ALAMEDA_DATA_DIR": str(folder),
        "ALAMEDA_ALLOWED_ROOTS": str(work),
        "ALAMEDA_API_KEY": key,
        "ALAMEDA_PORT": "0",
        "ALAMEDA_LOG_LEVEL": level,
        "ALAMEDA_LOG_FORMAT": "json",
    }
    async with (
        serving(environment, folder) as (url, pid),
        httpx.AsyncClient(base_url=url, headers=bearer(key), timeout=PATIENCE, trust_env=False) as client,
    ):
        made, ticket = await _leave_canaries(client, work)
        below = psutil.Process(pid).children(recursive=True)
        assert len(below) >= 1
        for child in below:
            known = " ".join([*child.environ().values(), *child.environ(), *child.cmdline()])
            for secret in ("CanaryKey", "canary-", database_url, "ALAMEDA_API_KEY", "DATABASE_URL"):
                assert secret not in known, child.cmdline()
    stdout, said = (folder / "stdout").read_text(), (folder / "stderr").read_text()
    password = re.search(r"://[^:]+:([^@]+)@", database_url)
    secrets = [key, "CanaryKey", made, made.split("_", 2)[2], ticket, "canary-paseo", "canary-other"]
    secrets += [password[1]] if password else []
    secrets += ["canary-mcp", "canary-query", "canary-wrong-secret"]
    if level == "info":
        secrets += ["canary-prompt", "canary-output", "canary-title", "canary-bad", "canary-system"]
    for secret in secrets:
        assert secret not in said, next(line for line in said.splitlines() if secret in line)[:500]
        assert secret not in stdout
    for line in said.splitlines():
        assert {"event", "level", "timestamp"} <= json.loads(line).keys()


async def _leave_canaries(client: httpx.AsyncClient, work: Path) -> tuple[str, str]:
    """Use the service with secrets in all places; a key that was made, and a ticket."""
    server = {"type": "http", "url": "http://127.0.0.1:9/", "headers": {"Authorization": "canary-mcp"}}
    body = {"agent": "demo", "cwd": str(work), "mcp_servers": {"one": server}, "title": "canary-title"}
    assert (await client.put("/v1/sessions/s-1", json=body)).status_code == 201
    made = (await client.post("/v1/api-keys", json={"name": "x", "scopes": ["read"]})).json()["key"]
    ticket = (await client.post("/v1/stream-tickets", json={"session_id": "s-1"})).json()["ticket"]
    stream = "/v1/sessions/s-1/events/stream"
    async with client.stream("GET", stream, params={"ticket": ticket, "canary-query": "1"}) as answer:
        await Stream(answer, answer.aiter_raw()).until("stream.synced")
    for prompt in (
        "say canary-prompt\nthink canary-prompt\nrun canary-prompt",
        "fail canary-output\x1b[31m\nlevel: error",
        "garbage 2",
        "stderr 2000",
        "crash",
    ):
        answer = await client.post(
            "/v1/sessions/s-1/turns",
            json={"prompt": prompt, "metadata": {"x": "canary-prompt"}},
            headers={"Prefer": "wait=20", "Idempotency-Key": "canary-query"},
        )
        assert answer.status_code in (200, 422), answer.text  # the key is used again: 422
        answer = await client.post(
            "/v1/sessions/s-1/turns", json={"prompt": prompt}, headers={"Prefer": "wait=20"}
        )
        assert answer.status_code == 200, answer.text
    for request in (
        client.post("/v1/sessions/s-1/turns", json={"prompt": ["canary-bad"]}),
        client.post("/v1/sessions/s-1/turns", json={"prompt": "x", "canary-bad": "canary-bad"}),
        client.put("/v1/sessions/s-2", json={"agent": "demo", "system_prompt": "canary-system"}),
        client.get("/v1/sessions", params={"cursor": "canary-query", "label": "canary-query:x"}),
        client.get("/canary-query", params={"canary-query": "1"}),
        client.get("/v1/sessions", headers=bearer(f"alm_canary_{'canary-wrong-secret' * 3}")),
        client.get("/v1/sessions", headers={"Host": "canary-query.example"}),
        client.post("/v1/sessions", content=b'{"canary-bad', headers={"Content-Type": "application/json"}),
    ):
        assert (await request).status_code >= 400
    # A session has to be alive, so that its agent can be looked at.
    body = {"agent": "demo", "cwd": str(work), "session_id": "s-3", "prompt": "say canary-prompt"}
    assert (await client.post("/v1/prompt-stream", json=body)).is_success
    return made, ticket


async def test_t01_without_keys_the_start_says_what_that_means(database_url: str, folder: Path) -> None:
    """Any local user and process can act then."""
    environment = {
        **clean_environment(),
        "DATABASE_URL": elsewhere(database_url),
        "ALAMEDA_DATA_DIR": str(folder),
        "ALAMEDA_ALLOWED_ROOTS": str(folder),
        "ALAMEDA_AUTH": "none",
        "ALAMEDA_PORT": "0",
    }
    async with (
        serving(environment, folder) as (url, _),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE, trust_env=False) as client,
    ):
        assert (await client.get("/v1/sessions")).status_code == 200
        answer = await client.get("/v1/sessions", headers={"Host": "evil.example"})
        assert answer.status_code == 400
        assert not (folder / "api-key").exists()
    said = (folder / "stdout").read_text() + (folder / "stderr").read_text()
    assert re.search(r"(?i)auth[^\n]*none|without (a |any )?keys?\b", said)


# T10: guessing.


async def test_t10_guessing_is_slowed_down_and_costs_nothing(database_url: str, folder: Path) -> None:
    """Some wrong keys or tickets, then 429 with `Retry-After`, for that address; nothing grows."""
    async with (
        open_house(database_url, folder, limits=Limits(auth_failures_per_minute=5)) as house,
        stranger(house) as client,
    ):
        for attempt in range(5):
            if attempt % 2:
                answer = await client.get(f"/v1/events/stream?ticket=guess-{attempt}")
            else:
                answer = await client.get("/v1/sessions", headers=bearer(f"alm_test_{attempt:043}"))
            assert answer.status_code == 401
            assert "detail" in answer.json()
        rss = psutil.Process().memory_info().rss

        async def guess(start: int) -> None:
            for attempt in range(start, start + 50):
                answer = await client.get("/v1/sessions", headers=bearer(f"alm_test_{attempt:043}"))
                assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
                assert 1 <= int(answer.headers["retry-after"]) <= 60

        async with anyio.create_task_group() as tasks:
            for start in range(0, 1000, 50):
                tasks.start_soon(guess, start)
        assert psutil.Process().memory_info().rss - rss < 20 * 2**20
        assert (await client.get("/v1/events/stream?ticket=guess")).status_code == 429
        assert (await client.get("/health")).json() == {"status": "ok"}
        answer = await client.get("/health", headers=bearer(house.key))
        assert answer.status_code == 200


# T15, T16: approvals.


async def asked(house: House, session_id: str, prompt: str) -> dict[str, Any]:
    """The permission that a prompt asks for."""
    turn = await house.prompt(session_id, prompt)
    async with house.stream(f"/v1/turns/{turn['turn_id']}/events/stream") as stream:
        frames = await stream.until("permission.requested")
    name = next(f.data["data"]["permission_id"] for f in frames if f.event == "permission.requested")
    found: dict[str, Any] = await house.get(f"/v1/permissions/{name}")
    return found


async def test_t15_of_many_answers_on_two_replicas_one_wins(database_url: str, folder: Path) -> None:
    """The first is taken, all others are told who it was; the log has one resolution."""
    async with two_houses(database_url, folder) as (first, second):
        await first.ensure("s-1")
        permission = await asked(first, "s-1", "ask Delete?")
        path = f"/v1/permissions/{permission['permission_id']}/respond"
        answers: list[httpx.Response] = []

        async def answer(house: House, outcome: str) -> None:
            answers.append(await house.post(path, {"outcome": outcome}))

        async with anyio.create_task_group() as tasks:
            for number in range(10):
                house, outcome = (first, second)[number % 2], ("allow", "deny")[number // 2 % 2]
                tasks.start_soon(answer, house, outcome)
        won = [one for one in answers if one.status_code == 200]
        lost = [one.json()["code"] for one in answers if one.status_code != 200]
        assert len(won) == 1
        assert lost == ["permission_already_resolved"] * 9
        turn = await first.ended(permission["turn_id"])
        assert turn["status"] == "completed"
        resolved = [e["data"] for e in await first.log("s-1", types="permission.*")][1:]
        assert [one["outcome"] for one in resolved] == [won[0].json()["outcome"]]
        again = await second.post(path, {"outcome": "allow"})
        assert (again.status_code, again.json()["by"]) == (409, "caller")


async def test_t15_an_answer_after_the_turn_or_the_time_is_too_late(house: House) -> None:
    """409 when the turn ended, 410 when the time was over; nothing is run."""
    await house.ensure("s-1")
    permission = await asked(house, "s-1", "ask Delete?")
    path = f"/v1/permissions/{permission['permission_id']}/respond"
    await house.post(f"/v1/turns/{permission['turn_id']}/cancel")
    answer = await house.post(path, {"outcome": "allow"})
    assert (answer.status_code, answer.json()["code"]) == (409, "permission_already_resolved")
    await house.ensure("s-2", permission_policy={"timeout_s": 1})
    permission = await asked(house, "s-2", "ask Delete?")
    turn = await house.ended(permission["turn_id"])
    assert turn["output_text"] == "denied"
    answer = await house.post(f"/v1/permissions/{permission['permission_id']}/respond", {"outcome": "allow"})
    assert (answer.status_code, answer.json()["code"]) == (410, "permission_expired")


async def test_t15_an_answer_that_does_not_fit_is_not_taken_and_stops_no_clock(house: House) -> None:
    """An edited input or another kind of option is a 422; the permission waits on, and is denied in time."""
    await house.ensure("s-1", permission_policy={"timeout_s": 2})
    permission = await asked(house, "s-1", "ask Delete?")
    path = f"/v1/permissions/{permission['permission_id']}/respond"
    options = {option["kind"]: option["option_id"] for option in permission["options"]}
    for body in (
        {"outcome": "allow", "option_id": "no such option"},
        {"outcome": "allow", "updated_input": {"command": "ls"}},
        {"outcome": "allow", "option_id": options["reject_once"]},
        {"outcome": "deny", "option_id": options["allow_always"]},
    ):
        answer = await house.post(path, body)
        found = (answer.status_code, answer.json()["code"])
        assert found in ((422, "unsupported_by_backend"), (422, "validation_failed")), (body, answer.text)
    assert (await house.ended(permission["turn_id"]))["output_text"] == "denied"
    assert [e["type"] for e in await house.log("s-1", types="permission.*")] == [
        "permission.requested",
        "permission.expired",
    ]


@pytest.mark.parametrize(
    "command",
    [
        "rm \u202e\u2066gpj.exe\u2069",
        "\x1b[2K\x1b[1Grm\x08\x08ls\x07",
        "ls \u200b\u00ad\ufeff;rm",
        "x" * 40_000,
    ],
    ids=["bidi", "ansi", "invisible", "long"],
)
async def test_t16_what_will_run_is_shown_whole_and_as_it_is(house: House, command: str) -> None:
    """Neither cut nor cleaned: the consoles make visible what is invisible."""
    await house.ensure("s-1")
    permission = await asked(house, "s-1", f"ask {command}")
    assert permission["title"] == command
    assert permission["input"] == {"command": command}
    assert permission["detail"]["command"] == command
    (event,) = await house.log("s-1", types="permission.requested")
    assert event["data"]["input"] == {"command": command}
    await house.post(f"/v1/permissions/{permission['permission_id']}/respond", {"outcome": "deny"})


async def test_t16_what_is_too_large_to_be_shown_whole_is_denied(house: House) -> None:
    """Nobody can be asked about 100 kB, so the answer is no, at once."""
    await house.ensure("s-1")
    turn = await house.run("s-1", f"ask {'A' * 100_000};rm")
    assert turn["output_text"] == "denied"
    resolved = (await house.log("s-1", types="permission.*"))[-1]["data"]
    assert (resolved["outcome"], resolved["by"]) == ("denied", "policy")


# T18, T20: files and processes.


def demos() -> list[psutil.Process]:
    """The demo agents below this process."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if any(part.endswith(("app.demo", "demo.py")) for part in child.cmdline())
        and not any("guard" in part for part in child.cmdline())
    ]


async def test_t18_a_session_works_below_the_roots_only(house: House, database_address: Address) -> None:
    """By what a path is on the disk, not by its letters; a refusal leaves nothing."""
    outside = house.cwd.parent
    evil = outside / f"{house.cwd.name}-evil"
    evil.mkdir()
    (house.cwd / "file").write_text("x")
    (house.cwd / "below").mkdir()
    (house.cwd / "out").symlink_to(outside)
    (house.cwd / "etc").symlink_to("/etc")
    (house.cwd / "loop").symlink_to(house.cwd / "loop")
    os.mkfifo(house.cwd / "fifo")
    before = await dump(database_address)
    root = str(house.cwd)
    for cwd in (
        f"{root}/..",
        f"{root}/below/../..",
        f"{root}/out",
        f"{root}/etc",
        f"{root}/out/{evil.name}",
        f"{root}/loop",
        f"{root}/file",
        f"{root}/file/..",
        f"{root}/fifo",
        f"{root}/missing",
        f"{root}/missing/..",
        str(evil),
        str(outside),
        "/",
        "/etc",
        "/proc/self/cwd/../etc",
        "/proc/self/cwd",
        "//etc",
        "~",
        ".",
        "",
        "work",
        f"file://{root}",
        f"{root}\x00",
        f"{root}/\x00/../..",
        f"{root}\n",
        f"{root}/\udc80",
        f"{root}/" + "x" * 5000,
        f"{root}/" + "x" * 300,
        f"{root}/" + "./" * 2000 + "missing",
    ):
        for path in ("/v1/sessions/s-1", "/v1/prompt-stream"):
            body = {"agent": "demo", "cwd": cwd, **({"prompt": "x"} if path.endswith("stream") else {})}
            answer = await house.client.request(
                "POST" if "prompt" in body else "PUT",
                path,
                content=json.dumps(body).encode(),
                headers={"Content-Type": "application/json"},
            )
            assert answer.status_code == 422, (cwd, answer.text)
            assert answer.json()["code"] in ("path_not_allowed", "validation_failed"), cwd
            assert str(outside) not in json.dumps({**answer.json(), "instance": ""})
    assert await dump(database_address) == before
    assert not [child for child in demos() if child.cwd() != root]
    (house.cwd / "in").symlink_to(house.cwd / "below")
    found = await house.ensure("s-1", cwd=f"{root}/in")
    assert found["requested_cwd"] == f"{root}/in"
    assert [child.cwd() for child in demos()] == [f"{root}/below"]


async def test_t18_a_link_that_is_turned_after_the_check_leads_nowhere(house: House) -> None:
    """What was checked is what is used, also when the agent is started again."""
    outside = house.cwd.parent / "outside"
    outside.mkdir()
    (house.cwd / "below").mkdir()
    link = house.cwd / "link"
    link.symlink_to(house.cwd / "below")
    await house.ensure("s-1", cwd=str(link))
    assert (await house.post("/v1/sessions/s-1/close")).status_code == 200
    link.unlink()
    link.symlink_to(outside)
    answer = await house.client.put("/v1/sessions/s-1", json={"agent": "demo"})
    assert str(outside) not in [child.cwd() for child in demos()], answer.text
    if answer.is_success:
        await house.run("s-1", "say x")
        assert str(outside) not in [child.cwd() for child in demos()]
    else:
        assert (answer.status_code, answer.json()["code"]) == (422, "path_not_allowed")


@pytest.mark.parametrize(
    "text",
    ["--settings x", "$(id)", "`id`", ";id", "'; id; '", "-p", "\\", "{{7*7}}", "%s%n", "<b>", "a\u00a0b"],
)
async def test_t20_a_prompt_is_text_and_nothing_else(house: House, text: str) -> None:
    """It comes back as it was sent, from the agent, the log and the turn."""
    await house.ensure("s-1")
    turn = await house.run("s-1", f"say {text}")
    assert turn["output_text"].rstrip("\n") == text
    assert turn["prompt"] == f"say {text}"
    (started,) = await house.log("s-1", types="turn.started")
    assert started["data"]["prompt"] == f"say {text}"


async def test_t20_no_caller_chooses_a_program(house: House, database_address: Address) -> None:
    """Neither by MCP servers nor by fields of another name."""
    before = await dump(database_address)
    for more in (
        {"mcp_servers": {"x": {"command": "id"}}},
        {"mcp_servers": {"x": {"type": "stdio", "command": "id", "args": []}}},
        {"mcp_servers": {"x": {"type": "HTTP", "url": "http://x"}}},
        {"mcp_servers": {"x": ["id"]}},
        {"mcp_servers": {"y": {"type": "http", "url": "http://x"}, "x": {"command": "id"}}},
        {"mcp_servers": ["id"]},
        {"command": ["id"]},
        {"env": {"PATH": "/tmp"}},
        {"backend": "../demo"},
        {"backend": "demo", "url": "http://169.254.169.254/"},
    ):
        body = {"agent": "demo", "cwd": str(house.cwd), **more}
        answer = await house.client.put("/v1/sessions/s-1", json=body)
        assert answer.status_code == 422, (more, answer.text)
    assert await dump(database_address) == before


async def test_t20_the_configuration_is_read_only_over_http(house: House) -> None:
    """No route writes a backend, a limit or a setting; drain and resume are all that there is."""
    for method, path in walk(house.app):
        if method != "GET":
            assert not re.search(r"config|setting|limit", path)
            assert "/backends" not in path or path.endswith(("/drain", "/resume"))
    for method in ("PUT", "POST", "PATCH", "DELETE"):
        for path in ("/v1/backends", "/v1/backends/demo"):
            body = {"command": ["id"], "url": "http://evil.example"}
            answer = await house.client.request(method, path, json=body)
            assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")


# T25: limits.


def padded(body: dict[str, Any], size: int) -> bytes:
    """The body as JSON of exactly that many bytes."""
    return json.dumps(body).encode().ljust(size)


async def test_t25_bodies_at_and_above_the_limits(house: House, database_address: Address) -> None:
    """1 MiB, and 8 MiB on the two routes that take prompts; what is refused leaves nothing."""
    await house.ensure("s-1")
    before = await dump(database_address)
    ensure = {"agent": "demo", "cwd": str(house.cwd)}
    small, large = 2**20, 8 * 2**20
    for method, path, body, limit in (
        ("PUT", "/v1/sessions/s-1", {**ensure, "backend": "paseo"}, small),
        ("POST", "/v1/sessions", {**ensure, "backend": "elsewhere"}, small),
        ("PATCH", "/v1/sessions/s-1", {"title": ""}, small),
        ("POST", "/v1/stream-tickets", {}, small),
        ("POST", "/v1/api-keys", {}, small),
        ("POST", "/v1/permissions/prm_x/respond", {"outcome": "deny"}, small),
        ("POST", "/v1/sessions/s-2/turns", {"prompt": "x"}, large),
        ("POST", "/v1/prompt-stream", {**ensure, "backend": "elsewhere", "prompt": "x"}, large),
    ):
        for size, expected in ((limit, False), (limit + 1, True), (10 * 2**20, True)):
            answer = await house.client.request(
                method, path, content=padded(body, size), headers={"Content-Type": "application/json"}
            )
            assert (answer.status_code == 413) is expected, (path, size, answer.text)
            assert answer.json()["code"] == "payload_too_large" or not expected
    assert await dump(database_address) == before


async def test_t25_prompts_at_and_above_the_limits(house: House, database_address: Address) -> None:
    """256 KiB of UTF-8, 20 attachments, 64 levels; what fits is run, what does not leaves nothing."""
    await house.ensure("s-1")
    note = {"type": "text", "text": "x"}

    def nested(levels: int) -> dict[str, Any]:
        value: Any = 1
        for _ in range(levels):
            value = {"x": value}
        return {"prompt": "say x", "metadata": value}

    size = 256 * 1024
    for body in (
        {"prompt": "say x\n" + "#" * (size - 6)},
        {"prompt": "é" * (size // 2)},
        {"prompt": "say x", "attachments": [note] * 20},
        {"prompt": "say x", "max_attempts": 10, "queue_timeout_s": 604_800, "deadline_s": 604_800},
        nested(63),
    ):
        answer = await house.post("/v1/sessions/s-1/turns", body, Prefer="wait=30")
        assert answer.status_code == 200, answer.text[:300]
        assert answer.json()["prompt"] == body["prompt"]
    before = await dump(database_address)
    for body in (
        {"prompt": "#" * (size + 1)},
        {"prompt": "é" * (size // 2) + "x"},
        {"prompt": "say x", "attachments": [note] * 21},
        {"prompt": "say x", "max_attempts": 11},
        {"prompt": "say x", "deadline_s": 604_801},
        {"prompt": "say x", "metadata": {"x": "y" * 16_384}},
        nested(64),
        nested(500),
    ):
        answer = await house.post("/v1/sessions/s-1/turns", body)
        assert answer.status_code in (400, 413, 422), answer.text[:300]
    assert await dump(database_address) == before


async def test_t25_names_lists_and_heads_at_and_above_the_limits(house: House) -> None:
    """Ids of 128 characters, titles of 200, pages of 200 and 1000, heads of 16 KiB."""
    longest = "s" * 128
    await house.ensure(longest, title="t" * 200, chat_id="c" * 128, labels={"l" * 64: "v" * 256})
    base = {"agent": "demo", "cwd": str(house.cwd)}
    for path, body in (
        (f"/v1/sessions/{longest}s", base),
        ("/v1/sessions/s-1", {**base, "title": "t" * 201}),
        ("/v1/sessions/s-1", {**base, "chat_id": "c" * 129}),
        ("/v1/sessions/s-1", {**base, "labels": {str(n): "x" for n in range(65)}}),
        ("/v1/sessions/s-1", {**base, "labels": {"l" * 65: "x"}}),
        ("/v1/sessions/s-1", {**base, "labels": {"l": "x" * 257}}),
    ):
        assert (await house.client.put(path, json=body)).status_code == 422, path
    for path, fits, not_fits in (
        ("/v1/sessions?limit={}", (1, 200), (0, 201, -1)),
        ("/v1/permissions?limit={}", (1, 200), (0, 201)),
        ("/v1/api-keys?limit={}", (1, 200), (0, 201)),
        (f"/v1/sessions/{longest}/turns?limit={{}}", (1, 200), (0, 201)),
        (f"/v1/sessions/{longest}/events?limit={{}}", (1, 1000), (0, 1001)),
    ):
        for number in fits:
            assert (await house.client.get(path.format(number))).status_code == 200, (path, number)
        for number in not_fits:
            assert (await house.client.get(path.format(number))).status_code == 422, (path, number)
    turn = await house.run(longest, "say x")
    for seconds, expected in ((60, 200), (60.1, 422)):
        answer = await house.client.get(f"/v1/turns/{turn['turn_id']}/wait?timeout_s={seconds}")
        assert answer.status_code == expected
    for size, expected in ((15_000, 200), (16_500, 413)):
        answer = await house.client.get("/v1/sessions", headers={"X-Fill": "x" * size})
        assert answer.status_code == expected
        answer = await house.client.get("/v1/sessions", params={"unknown": "x" * size})
        assert answer.status_code == expected


async def test_t25_t26_counts_at_and_above_the_limits(database_url: str, folder: Path) -> None:
    """Sessions, queued turns, open turns: 429, each with its code; what closes makes room."""
    limits = Limits(sessions_per_owner=3, queue_per_session=3, turns_per_owner=4)
    async with open_house(database_url, folder, limits=limits, timing=Timing(drain_s=0.5)) as house:
        for name in ("s-1", "s-2", "s-3"):
            await house.ensure(name)
        answer = await house.client.put("/v1/sessions/s-4", json={"agent": "demo", "cwd": str(house.cwd)})
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_sessions")
        await house.ensure("s-1")
        await house.post("/v1/sessions/s-3/close")
        await house.ensure("s-4")
        queue = {"multitask_strategy": "enqueue"}
        await house.prompt("s-1", "ask wait", **queue)
        for _ in range(2):
            await house.prompt("s-1", "say x", **queue)
        answer = await house.post("/v1/sessions/s-1/turns", {"prompt": "say x", **queue})
        assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
        await house.prompt("s-2", "ask wait")
        answer = await house.post("/v1/sessions/s-4/turns", {"prompt": "say x", **queue})
        assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")


async def test_t25_an_operator_s_lower_limits_count(database_url: str, folder: Path) -> None:
    """Every limit of the settings is one."""
    limits = Limits(prompt_bytes=10, attachments=1, json_depth=4, body_bytes=2048, prompt_body_bytes=4096)
    async with open_house(database_url, folder, limits=limits) as house:
        await house.ensure("s-1")
        note = {"type": "text", "text": "x"}
        for body in (
            {"prompt": "say 12345678"},
            {"prompt": "say x", "attachments": [note, note]},
            {"prompt": "say x", "metadata": {"a": {"b": {"c": {}}}}},
            {"prompt": "say x", "attachments": [{**note, "text": "x" * 4096}]},
        ):
            answer = await house.post("/v1/sessions/s-1/turns", body)
            assert answer.status_code in (400, 413, 422), (str(body)[:80], answer.text[:200])
        assert (await house.run("s-1", "say 123"))["status"] == "completed"


async def test_t12_the_log_of_a_session_is_read_by_its_owner_s_frames_only(house: House) -> None:
    """Every frame of a stream names its own session."""
    await house.ensure("s-1")
    await house.ensure("s-2")
    await house.run("s-1", "say one")
    await house.run("s-2", "say two")
    frames = await house.follow("/v1/sessions/s-1/events/stream", "stream.synced")
    assert {frame.data["session_id"] for frame in durable(frames)} == {"s-1"}
