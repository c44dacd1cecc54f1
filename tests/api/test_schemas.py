"""Request bodies at their bounds, and views with exactly the contract's fields."""

import base64
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from app.api.schemas.ensure import EnsureBody, EnsureByChatBody
from app.api.schemas.keys import TicketBody
from app.api.schemas.permissions import PermissionView, RespondBody
from app.api.schemas.sessions import CloseBody, PatchSession, SessionView
from app.api.schemas.turns import PromptBody, PromptStreamBody, TurnView
from app.domain.events import Error, PermissionOption, Question, TokenUsage
from app.domain.ids import Owner, PermissionId, Seq, SessionId, SessionKey, TurnId
from app.domain.permissions import Permission, Response
from app.domain.sessions import EnsureRequest, PermissionPolicy, Session, SessionChange
from app.domain.turns import PromptRequest, Turn, TurnStatus

AT = datetime(2026, 11, 1, 13, 0, 0, 123_456, tzinfo=timezone(timedelta(hours=1)))
AT_TEXT = "2026-11-01T12:00:00.123Z"
IMAGE = {"type": "image", "mime_type": "image/png", "data": base64.b64encode(b"\x89PNG").decode()}


def is_valid(model: type[BaseModel], **body: Any) -> bool:
    try:
        model.model_validate(body)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize(
    "name", ["prompt", "title", "agent", "cwd", "system_prompt", "session_id", "chat_id"]
)
@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"], ids=["NUL", "surrogate"])
def test_p41_what_the_database_cannot_hold_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PromptStreamBody.model_validate({"agent": "demo", "prompt": "x"} | {name: text})
    [error] = caught.value.errors()
    assert error["loc"] == (name,)
    assert "neither NUL nor half a surrogate pair" in error["msg"]


@pytest.mark.parametrize(
    "value", ["\0", "\ud800", float("nan"), float("inf"), 2**63, ["\0"], {"\ud800": 1}, {"a": [{"b": "\0"}]}]
)
def test_p41_free_json_is_searched_to_its_bottom(value: Any) -> None:
    assert not is_valid(PromptBody, prompt="x", metadata={"key": value})
    assert not is_valid(RespondBody, outcome="allow", updated_input={"key": value})
    assert not is_valid(EnsureBody, agent="demo", mcp_servers={"key": value})


def test_t25_prompt_text_is_counted_in_bytes_of_utf_8() -> None:
    limit = 256 * 1024
    assert is_valid(PromptBody, prompt="x" * limit)
    assert not is_valid(PromptBody, prompt="x" * (limit + 1))
    assert is_valid(PromptBody, prompt="é" * (limit // 2))
    assert not is_valid(PromptBody, prompt="é" * (limit // 2) + "x")


@pytest.mark.parametrize("prompt", ["", " ", "\n\t", None])
def test_an_empty_prompt_is_refused(prompt: str | None) -> None:
    assert not is_valid(PromptBody, prompt=prompt)


def test_t25_twenty_attachments() -> None:
    assert is_valid(PromptBody, prompt="x", attachments=[IMAGE] * 20)
    assert not is_valid(PromptBody, prompt="x", attachments=[IMAGE] * 21)


@pytest.mark.parametrize(
    "part",
    [
        IMAGE | {"mime_type": "text/html"},
        IMAGE | {"mime_type": "image/png\r\nX: y"},
        IMAGE | {"data": ""},
        IMAGE | {"data": "AAA"},
        IMAGE | {"data": "AA==\n"},
        IMAGE | {"data": "é==="},
        IMAGE | {"url": "http://169.254.169.254/"},
        {"type": "file", "path": "/etc/passwd"},
        {"type": "text"},
        {"text": "no type"},
    ],
)
def test_attachments_that_are_none_are_refused(part: dict[str, Any]) -> None:
    assert not is_valid(PromptBody, prompt="x", attachments=[part])


@pytest.mark.parametrize(
    ("session_id", "expected"),
    [
        ("a", True),
        ("a" * 128, True),
        ("A1._:-z", True),
        ("a" * 129, False),
        ("", False),
        ("-a", False),
        ("a/b", False),
        ("a\n", False),
        ("é", False),
    ],
)
def test_t25_session_ids(session_id: str, expected: bool) -> None:
    assert is_valid(EnsureByChatBody, agent="demo", session_id=session_id) is expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"title": "x" * 200}, True),
        ({"title": "x" * 201}, False),
        ({"title": ""}, False),
        ({"title": "\x1b]0;pwned\x07"}, False),
        ({"labels": {f"k{n}": "v" for n in range(64)}}, True),
        ({"labels": {f"k{n}": "v" for n in range(65)}}, False),
        ({"labels": {"team": 1}}, False),
        ({"labels": {"team": None}}, False),
        ({"labels": {"a:b": "v"}}, False),
        *(
            ({"labels": {name: "v"}}, False)
            for name in ("origin", "session", "chat", "project", "worktree", "agent", "alameda_key")
        ),
        ({"permission_policy": {"timeout_s": 1}}, True),
        ({"permission_policy": {"timeout_s": 0.5}}, False),
        ({"permission_policy": {"mode": "yolo"}}, False),
        ({"agent": "other"}, False),
        ({}, True),
    ],
)
def test_session_settings_at_their_bounds(changes: dict[str, Any], expected: bool) -> None:
    assert is_valid(PatchSession, **changes) is expected


WEEK = 7 * 24 * 3600


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("queue_timeout_s", 0, True),
        ("queue_timeout_s", -1, False),
        ("deadline_s", 0, False),
        ("deadline_s", 0.5, True),
        ("deadline_s", WEEK, True),
        ("deadline_s", WEEK + 1, False),
        ("deadline_s", float("inf"), False),
        ("deadline_s", float("nan"), False),
        ("deadline_s", "60", False),
        ("deadline_s", True, False),
        ("idle_timeout_s", 0, False),
        ("max_attempts", 1, True),
        ("max_attempts", 10, True),
        ("max_attempts", 2.0, True),
        ("max_attempts", 0, False),
        ("max_attempts", 11, False),
        ("max_attempts", 1.5, False),
        ("max_attempts", True, False),
        ("metadata", {"a": "x" * 16_376}, True),
        ("metadata", {"a": "x" * 16_377}, False),
        ("metadata", [], False),
        ("multitask_strategy", "queue", False),
        ("unknown", 1, False),
    ],
)
def test_clocks_and_counts_at_their_bounds(field: str, value: Any, expected: bool) -> None:
    assert is_valid(PromptBody, prompt="x", **{field: value}) is expected


def test_what_is_absent_or_null_is_not_said() -> None:
    nothing = EnsureRequest(agent="demo", session_id=SessionId("s"))
    assert EnsureBody.model_validate({"agent": "demo"}).to_domain(SessionId("s")) == nothing
    every = dict.fromkeys(EnsureBody.model_fields) | {"agent": "demo"}
    assert EnsureBody.model_validate(every).to_domain(SessionId("s")) == nothing
    assert PatchSession.model_validate({}).to_domain() == SessionChange()
    names = [field.alias or name for name, field in PromptBody.model_fields.items()]
    asked = PromptBody.model_validate(dict.fromkeys(names) | {"prompt": "x"})
    assert asked.to_domain() == PromptRequest(prompt="x", attachments=[])
    assert CloseBody().to_domain() == "cancel"
    answer = RespondBody.model_validate(dict.fromkeys(RespondBody.model_fields) | {"outcome": "deny"})
    assert answer.to_domain() == Response(outcome="deny")


@pytest.mark.parametrize("name", PatchSession.model_fields)
def test_null_in_a_change_is_refused_because_nothing_can_be_cleared(name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PatchSession.model_validate({name: None})
    [error] = caught.value.errors()
    assert error["loc"] == (name,)
    assert "a setting cannot be cleared" in error["msg"]
    shown = PatchSession.model_json_schema()["properties"][name]
    assert "null" not in str(shown)


def test_the_path_names_the_session_so_the_body_must_not() -> None:
    assert not is_valid(EnsureBody, agent="demo", session_id="s")


def test_prompt_stream_is_an_ensure_and_a_prompt() -> None:
    body = PromptStreamBody.model_validate(
        {
            "agent": "opencode",
            "session_id": "s-1",
            "mode": "default",
            "worktree": {"branch": "fix-1"},
            "labels": {"team": "blue"},
            "if_exists": "update",
            "permission_policy": {"on_timeout": "allow"},
            "prompt": "fix it",
            "attachments": [IMAGE, {"type": "text", "name": "log.txt", "text": "…"}],
            "multitask_strategy": "enqueue",
            "deadline_s": 60,
            "metadata": {"a": [1, None]},
        }
    )
    assert body.ensure() == EnsureRequest(
        agent="opencode",
        session_id=SessionId("s-1"),
        mode="default",
        worktree={"branch": "fix-1", "base": None},
        labels={"team": "blue"},
        if_exists="update",
        permission_policy=PermissionPolicy(on_timeout="allow"),
    )
    assert body.prompt() == PromptRequest(
        prompt="fix it",
        attachments=[IMAGE, {"type": "text", "name": "log.txt", "text": "…"}],
        multitask_strategy="enqueue",
        deadline_s=60,
        metadata={"a": [1, None]},
    )


def test_t30_a_body_in_a_log_shows_no_prompt_and_no_secret() -> None:
    body = PromptStreamBody.model_validate(
        {
            "agent": "demo",
            "prompt": "canary",
            "system_prompt": "canary",
            "mcp_servers": {"x": {"env": {"TOKEN": "canary"}}},
            "attachments": [IMAGE | {"data": "canarycanary"}, {"type": "text", "text": "canary"}],
        }
    )
    assert "canary" not in repr(body)
    with pytest.raises(ValidationError) as caught:
        PromptBody.model_validate({"prompt": ["canary"]})
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"session_id": "s"}, True),
        ({"turn_id": "trn_1"}, True),
        ({"all": True}, True),
        ({"all": False}, False),
        ({}, False),
        ({"session_id": "s", "all": True}, False),
        ({"session_id": "s", "turn_id": None}, True),
    ],
)
def test_t09_a_ticket_is_for_exactly_one_stream(body: dict[str, Any], expected: bool) -> None:
    assert is_valid(TicketBody, **body) is expected


SESSION = Session(
    key=SessionKey(7),
    owner=Owner("default"),
    session_id=SessionId("s-1"),
    chat_id="c-42",
    agent="opencode",
    backend="paseo",
    provider="opencode",
    agent_session_id="349c",
    creation_key="canary-key",
    creating=False,
    server_port=None,
    requested_cwd="/repo",
    cwd="/repo",
    project_id="p-1",
    worktree_id="w-1",
    model="m1",
    mode="default",
    thinking=None,
    title=None,
    system_prompt="canary",
    worktree=None,
    provider_session_id=None,
    former_provider_session_id=None,
    mcp_servers={"x": {"env": {"TOKEN": "canary"}}},
    labels={"team": "blue"},
    status="active",
    close_mode=None,
    activity="idle",
    current_turn_id=None,
    pending_permissions=0,
    agent_lost=False,
    foreign_busy=False,
    archived=None,
    oldest_seq=Seq(1),
    last_seq=Seq(1),
    policy=PermissionPolicy(),
    cursor=None,
    host="canary-host",
    host_generation=3,
    host_is_alive=True,
    created_at=AT,
    last_active_at=AT,
    closed_at=None,
)


def test_a_session_has_the_contract_s_fields_and_no_secret() -> None:
    view = SessionView.from_domain(SESSION, opened="created", backend_up=True)
    assert view.model_dump(mode="json") == {
        "session_id": "s-1",
        "opened": "created",
        "chat_id": "c-42",
        "agent": "opencode",
        "backend": "paseo",
        "backend_status": "up",
        "provider": "opencode",
        "agent_session_id": "349c",
        "server_port": None,
        "requested_cwd": "/repo",
        "cwd": "/repo",
        "project_id": "p-1",
        "worktree_id": "w-1",
        "model": "m1",
        "mode": "default",
        "thinking": None,
        "title": None,
        "labels": {"team": "blue"},
        "status": "active",
        "activity": "idle",
        "current_turn_id": None,
        "pending_permissions": 0,
        "oldest_seq": 1,
        "last_seq": 1,
        "permission_policy": {"mode": "ask", "timeout_s": 900, "on_timeout": "deny"},
        "created_at": AT_TEXT,
        "last_active_at": AT_TEXT,
        "closed_at": None,
    }
    got = SessionView.from_domain(SESSION, backend_up=False).model_dump(mode="json")
    assert "opened" not in got
    assert got["backend_status"] == "down"
    assert "canary" not in str(got)


def test_a_turn_has_the_contract_s_fields() -> None:
    turn = Turn(
        id=TurnId("trn_1"),
        session=SessionKey(7),
        session_id=SessionId("s-1"),
        owner=Owner("default"),
        status=TurnStatus.FAILED,
        attempt=2,
        request=PromptRequest(prompt="hi", metadata={"a": 1}, retry_of=TurnId("trn_0")),
        output_text="out",
        stop_reason=None,
        usage=TokenUsage(input_tokens=3),
        error=Error(code="provider_error", message="no", retriable=True),
        cause=None,
        limit=None,
        delivered="yes",
        cancel_outcome=None,
        cancel_cause=None,
        cancel_requested_at=None,
        first_seq=Seq(2),
        last_seq=Seq(9),
        created_at=AT,
        started_at=AT,
        ended_at=None,
        last_backend_event_at=None,
    )
    assert TurnView.from_domain(turn).model_dump(mode="json") == {
        "turn_id": "trn_1",
        "session_id": "s-1",
        "status": "failed",
        "attempt": 2,
        "max_attempts": 3,
        "retry_of": "trn_0",
        "prompt": "hi",
        "metadata": {"a": 1},
        "output_text": "out",
        "stop_reason": None,
        "usage": {
            "input_tokens": 3,
            "cached_input_tokens": None,
            "output_tokens": None,
            "cost_usd": None,
            "context_window_max": None,
            "context_window_used": None,
        },
        "error": {"code": "provider_error", "message": "no", "retriable": True},
        "cause": None,
        "limit": None,
        "delivered": "yes",
        "cancel_outcome": None,
        "first_seq": 2,
        "last_seq": 9,
        "created_at": AT_TEXT,
        "started_at": AT_TEXT,
        "ended_at": None,
        "stream_url": "/v1/turns/trn_1/events/stream",
    }


def test_t16_a_permission_shows_all_that_will_run() -> None:
    command = "echo " + "x" * 100_000 + "; rm -rf /"
    permission = Permission(
        id=PermissionId("prm_1"),
        session=SessionKey(7),
        session_id=SessionId("s-1"),
        turn_id=TurnId("trn_1"),
        request="backend-canary",
        tool_call_id="t-1",
        kind="tool",
        title="Run",
        description=None,
        detail={"type": "shell", "command": command},
        input={"command": command},
        options=(PermissionOption(option_id="o", label="Yes", kind="allow_once"),),
        questions=(Question(question="Which?", options=("A", "B")),),
        status="pending",
        outcome=None,
        option_id=None,
        by=None,
        actor=None,
        response=None,
        requested_at=AT.astimezone(UTC),
        expires_at=AT,
        resolved_at=None,
        refusal=None,
    )
    view = PermissionView.from_domain(permission).model_dump(mode="json")
    assert view["detail"]["command"] == view["input"]["command"] == command
    assert view["options"] == [{"option_id": "o", "label": "Yes", "kind": "allow_once"}]
    assert view["questions"] == [
        {"question": "Which?", "header": None, "options": ["A", "B"], "multiple": False}
    ]
    assert (view["expires_at"], view["resolved_at"]) == (AT_TEXT, None)
    assert "backend-canary" not in str(view)
