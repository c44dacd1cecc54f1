"""ACP's updates in our vocabulary, case by case, and whatever an agent may write."""

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.backends.acp_permissions import form, tool_permission
from app.backends.acp_settings import Settings, read_settings
from app.backends.acp_translate import Translator, block_text, tool_detail, turn_usage
from app.backends.acp_transport import parse
from app.backends.base import Answer, BackendRejected
from app.domain.details import (
    Detail,
    Edit,
    Fetch,
    PlanText,
    Read,
    Search,
    Shell,
    SubAgent,
    Text,
    Unknown,
    Write,
)
from app.domain.events import Location, TokenUsage
from app.domain.signals import ReasoningPiece, Signal, TextDelta, ToolCall, Usage


def tell(*updates: dict[str, Any]) -> list[Signal]:
    """The signals of some updates of one turn."""
    translator = Translator()
    return [signal for update in updates for signal in translator.signals(update)]


def content(text: str) -> list[dict[str, Any]]:
    """A tool call's content with one text."""
    return [{"type": "content", "content": {"type": "text", "text": text}}]


@pytest.mark.parametrize(
    ("update", "signal"),
    [
        (
            {
                "sessionUpdate": "agent_message_chunk",
                "messageId": "m",
                "content": {"type": "text", "text": "hi"},
            },
            TextDelta(text="hi", message="m"),
        ),
        (
            {"sessionUpdate": "agent_thought_chunk", "content": {"type": "text", "text": "hm"}},
            ReasoningPiece(text="hm"),
        ),
        (
            {"sessionUpdate": "user_message_chunk", "content": {"type": "text", "text": "do"}},
            TextDelta(text="do", role="user"),
        ),
        (
            {
                "sessionUpdate": "usage_update",
                "used": 10,
                "size": 100,
                "cost": {"amount": 1.5, "currency": "USD"},
            },
            Usage(usage=TokenUsage(context_window_used=10, context_window_max=100, cost_usd=1.5)),
        ),
        (
            {
                "sessionUpdate": "usage_update",
                "used": 10,
                "size": 100,
                "cost": {"amount": 1, "currency": "EUR"},
            },
            Usage(usage=TokenUsage(context_window_used=10, context_window_max=100)),
        ),
    ],
)
def test_an_update_is_one_signal(update: dict[str, Any], signal: Signal) -> None:
    assert tell(update) == [signal]


@pytest.mark.parametrize(
    "update",
    [
        {"sessionUpdate": "available_commands_update", "availableCommands": []},
        {"sessionUpdate": "session_info_update", "title": "x"},
        {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": ""}},
        {"sessionUpdate": "of tomorrow"},
        {},
    ],
)
def test_what_tells_nothing_is_no_signal(update: dict[str, Any]) -> None:
    assert tell(update) == []


@pytest.mark.parametrize(
    ("block", "text"),
    [
        ({"type": "resource_link", "uri": "file:///a", "name": "a"}, "[a](file:///a)"),
        ({"type": "resource", "resource": {"uri": "file:///a", "text": "body"}}, "body"),
        ({"type": "image", "data": "aGk=", "mimeType": "image/png"}, "[image]"),
        ({"type": "hologram"}, ""),
        (None, ""),
    ],
)
def test_every_block_can_be_shown_as_text(block: Any, text: str) -> None:
    assert block_text(block) == text


def test_patches_of_a_tool_call_become_whole_calls_and_repetitions_are_left_out() -> None:
    call = {"toolCallId": "c"}
    running = {
        "sessionUpdate": "tool_call_update",
        "status": "in_progress",
        "title": "ls",
        "rawInput": {"command": "ls"},
    }
    done = {
        "sessionUpdate": "tool_call_update",
        "status": "completed",
        "rawOutput": {"output": "a", "exitCode": 0},
    }
    begun = {
        "sessionUpdate": "tool_call",
        "title": "bash",
        "kind": "execute",
        "status": "pending",
        "rawInput": {},
    }
    calls = tell(call | begun, call | running, call | running, call | done, call | done)
    assert calls == [
        ToolCall(
            call="c",
            name="bash",
            title="bash",
            kind="execute",
            status="in_progress",
            detail=Shell(command="bash"),
        ),
        ToolCall(
            call="c",
            name="bash",
            title="ls",
            kind="execute",
            status="in_progress",
            detail=Shell(command="ls"),
        ),
        ToolCall(
            call="c",
            name="bash",
            title="ls",
            kind="execute",
            status="completed",
            detail=Shell(command="ls", output="a", exit_code=0),
        ),
    ]


def test_a_failed_call_has_an_error_and_an_unknown_kind_or_status_is_taken_as_well_as_can_be() -> None:
    update = {"sessionUpdate": "tool_call", "toolCallId": "c", "kind": "levitate", "status": "hovering"}
    failed = {
        "sessionUpdate": "tool_call_update",
        "toolCallId": "c",
        "status": "failed",
        "content": content("no"),
    }
    begun, ended = (signal for signal in tell(update, failed) if isinstance(signal, ToolCall))
    assert (begun.kind, begun.status, begun.error) == ("other", "in_progress", None)
    assert (ended.status, ended.error) == ("failed", "no")


def test_calls_of_an_earlier_turn_are_forgotten() -> None:
    translator = Translator()
    update = {"sessionUpdate": "tool_call", "toolCallId": "c", "title": "one"}
    assert list(translator.signals(update))
    assert not list(translator.signals(update))
    translator.forget()
    assert list(translator.signals(update))


@pytest.mark.parametrize(
    ("call", "detail"),
    [
        (
            {"kind": "execute", "rawInput": {"command": ["ls", "a b"], "cwd": "/w"}},
            Shell(command="ls 'a b'", cwd="/w"),
        ),
        ({"kind": "execute", "title": "make"}, Shell(command="make")),
        (
            {"kind": "execute", "rawInput": {"command": "x"}, "rawOutput": {"metadata": {"exit": 2}}},
            Shell(command="x", exit_code=2),
        ),
        (
            {
                "kind": "read",
                "rawInput": {"filePath": "/a", "offset": 3, "limit": 9},
                "content": content("body"),
            },
            Read(path="/a", content="body", offset=3, limit=9),
        ),
        ({"kind": "read", "locations": [{"path": "/a", "line": 2}]}, Read(path="/a")),
        (
            {"kind": "edit", "content": [{"type": "diff", "path": "/a", "oldText": "x", "newText": "y"}]},
            Edit(path="/a", old_text="x", new_text="y"),
        ),
        (
            {"kind": "edit", "rawInput": {"file_path": "/a", "content": "new"}},
            Write(path="/a", content="new"),
        ),
        (
            {"kind": "edit", "rawInput": {"filePath": "/a", "oldString": "x", "newString": "y"}},
            Edit(path="/a", old_text="x", new_text="y"),
        ),
        (
            {"kind": "search", "rawInput": {"pattern": "todo", "path": "/w"}, "content": content("a:1")},
            Search(query="todo", paths=("/w",), matches="a:1"),
        ),
        (
            {"kind": "fetch", "rawInput": {"url": "http://x/"}, "content": content("ok")},
            Fetch(url="http://x/", result="ok"),
        ),
        (
            {
                "kind": "think",
                "rawInput": {"description": "look", "prompt": "look well"},
                "content": content("log"),
            },
            SubAgent(description="look", log="log"),
        ),
        ({"kind": "switch_mode", "rawInput": {"plan": "1. dig"}}, PlanText(text="1. dig")),
        ({"kind": "other", "title": "t", "content": content("x")}, Text(label="t", text="x")),
        ({"kind": "other", "rawInput": {"a": 1}, "rawOutput": [2]}, Unknown(input={"a": 1}, output=[2])),
        ({"kind": "read", "rawInput": {"what": "?"}}, Unknown(input={"what": "?"})),
        ({"rawInput": "words", "content": content("x")}, Unknown(input="words", output="x")),
    ],
)
def test_a_detail_has_the_shape_of_its_kind(call: dict[str, Any], detail: Detail) -> None:
    assert tool_detail(call) == detail


def test_a_detail_is_bounded() -> None:
    update = {
        "sessionUpdate": "tool_call",
        "toolCallId": "c",
        "kind": "execute",
        "content": content("x" * 200_000),
    }
    (call,) = tell(update)
    assert isinstance(call, ToolCall)
    assert (call.detail.truncated, call.detail.bytes) == (True, 200_000)


def test_locations_without_a_line_that_counts_have_none() -> None:
    locations = [{"path": "/a", "line": 3}, {"path": "/b", "line": 0}, {"path": 7}, "x"]
    (call,) = tell({"sessionUpdate": "tool_call", "toolCallId": "c", "locations": locations})
    assert isinstance(call, ToolCall)
    assert call.locations == (Location(path="/a", line=3), Location(path="/b"))


@pytest.mark.parametrize("line", [True, False, 1.0, "1", None, -1, 2**31, 2**63 - 1, 2**64, 10**30])
def test_a_line_that_no_file_has_is_none(line: Any) -> None:
    """It would reach the database, which holds no such number, and end the session's host."""
    locations = [{"path": "/a", "line": line}]
    (call,) = tell({"sessionUpdate": "tool_call", "toolCallId": "c", "locations": locations})
    assert isinstance(call, ToolCall)
    assert call.locations == (Location(path="/a"),)


@pytest.mark.parametrize("number", [True, -1, 2**53, 10**400, math.nan, math.inf, "1"])
def test_a_number_that_cannot_be_kept_is_none(number: Any) -> None:
    """Tokens, sizes, offsets, an exit code; Python's JSON reads numbers that are none."""
    assert turn_usage({"inputTokens": number, "outputTokens": number}) == TokenUsage()
    update = {"sessionUpdate": "usage_update", "used": number, "size": number}
    assert tell(update) == [Usage(usage=TokenUsage())]
    read = {"kind": "read", "rawInput": {"path": "a", "offset": number, "limit": number}}
    assert tool_detail(read) == Read(path="a")
    if number != -1:
        ran = {"kind": "execute", "rawInput": {"command": "c"}, "rawOutput": {"exitCode": number}}
        assert tool_detail(ran) == Shell(command="c")


@pytest.mark.parametrize("cost", [True, math.nan, math.inf, -math.inf, 10**400, "1"])
def test_a_cost_is_a_finite_number(cost: Any) -> None:
    update = {"sessionUpdate": "usage_update", "cost": {"amount": cost, "currency": "USD"}}
    assert tell(update) == [Usage(usage=TokenUsage())]


def test_tokens_of_a_turn() -> None:
    usage = {"inputTokens": 5, "outputTokens": 2, "cachedReadTokens": 1, "totalTokens": 8}
    assert turn_usage(usage) == TokenUsage(input_tokens=5, output_tokens=2, cached_input_tokens=1)
    assert turn_usage(None) is None
    assert turn_usage({"inputTokens": -1, "outputTokens": "2"}) == TokenUsage()


def test_grouped_options_are_choices_and_categories_decide_over_ids() -> None:
    group = {"group": "g", "name": "G", "options": [{"value": "a", "name": "A", "description": "best"}]}
    option = {
        "id": "m",
        "type": "select",
        "category": "model",
        "name": "M",
        "currentValue": "a",
        "options": [group],
    }
    toggle = {"id": "fast", "type": "boolean", "name": "Fast", "currentValue": True}
    strange = {"id": "model", "type": "select", "category": "other", "currentValue": "x", "options": []}
    settings = read_settings({"configOptions": [option, toggle, strange]})
    assert settings.model is not None
    assert (settings.model.current, settings.model.option) == ("a", "m")
    assert [(choice.id, choice.label, choice.description) for choice in settings.model.choices] == [
        ("a", "A", "best")
    ]
    assert Settings().merged({"configOptions": [option]}) == settings


FORM = {
    "mode": "form",
    "message": "Tell",
    "requestedSchema": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "title": "Your name"},
            "size": {
                "type": "string",
                "oneOf": [{"const": "s", "title": "Small"}, {"const": "l", "title": "Large"}],
            },
            "count": {"type": "integer"},
            "sure": {"type": "boolean"},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
        },
        "required": ["name"],
    },
}


def test_a_form_asks_one_question_a_field_and_takes_answers_by_name_or_by_question() -> None:
    asked = form(FORM)
    assert asked is not None
    questions = asked.asked("r").questions
    assert [(question.header, question.options, question.multiple) for question in questions] == [
        ("name", (), False),
        ("size", ("Small", "Large"), False),
        ("count", (), False),
        ("sure", ("yes", "no"), False),
        ("tags", ("a", "b"), True),
    ]
    answers = {"Your name": "Ada", "size": "Large", "count": "3", "sure": "yes", "tags": ["a", "b"]}
    assert asked.resolved(Answer(allow=True, answers=answers)).result == {
        "action": "accept",
        "content": {"name": "Ada", "size": "l", "count": 3, "sure": True, "tags": ["a", "b"]},
    }
    assert asked.resolved(Answer(allow=False)).result == {"action": "decline"}
    assert asked.cancelled().result == {"action": "cancel"}


@pytest.mark.parametrize(
    "answers",
    [None, {"size": "s"}, {"name": "x", "size": "huge"}, {"name": "x", "count": "many"}, {"name": {}}],
)
def test_answers_that_do_not_fit_the_form_are_refused(answers: dict[str, Any] | None) -> None:
    asked = form(FORM)
    assert asked is not None
    with pytest.raises(BackendRejected):
        asked.resolved(Answer(allow=True, answers=answers))


def test_a_single_question_takes_a_message_for_an_answer() -> None:
    schema = {"type": "object", "properties": {"why": {"type": "string"}}, "required": ["why"]}
    asked = form({"mode": "form", "message": "Why?", "requestedSchema": schema})
    assert asked is not None
    assert asked.resolved(Answer(allow=True, message="so")).result == {
        "action": "accept",
        "content": {"why": "so"},
    }


def test_a_form_that_cannot_be_shown_whole_is_none() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "hologram"}}}
    assert form({"mode": "form", "message": "?", "requestedSchema": schema}) is None
    assert form({"mode": "url", "message": "?", "url": "http://x/"}) is None


def test_a_plan_for_approval_is_a_permission_of_its_own_kind() -> None:
    patch = {"kind": "switch_mode", "title": "Ready to code?", "content": content("1. dig")}
    call = Translator().patch("c", patch)
    asked = tool_permission({"options": []}).asked("r", call, None)
    assert (asked.kind, asked.detail) == ("plan", PlanText(text="1. dig"))
    empty = Translator().patch("c", {"kind": "switch_mode", "title": "Plan mode"})
    assert tool_permission({"options": []}).asked("r", empty, None).kind == "mode"


def test_only_options_of_known_kinds_are_offered_and_the_first_of_a_kind_is_taken() -> None:
    options = [
        {"optionId": "z", "name": "?", "kind": "allow_maybe"},
        {"optionId": "f", "name": "Always", "kind": "allow_always"},
        {"optionId": "o", "name": "Once", "kind": "allow_once"},
        {"optionId": "n", "kind": "reject_always"},
        "x",
    ]
    permission = tool_permission({"options": options})
    assert [option.option_id for option in permission.options] == ["f", "o", "n"]
    assert permission.resolved(Answer(allow=True)).option_id == "o"
    assert permission.resolved(Answer(allow=False)).option_id == "n"
    for wrong in (
        Answer(allow=True, option_id="n"),
        Answer(allow=False, option_id="o"),
        Answer(allow=True, option_id="z"),
    ):
        with pytest.raises(BackendRejected):
            permission.resolved(wrong)


VOCABULARY = """
sessionUpdate tool_call tool_call_update plan toolCallId content type text entries diff path newText kind
execute read status rawInput rawOutput locations line usage_update used cost amount currency USD title
agent_message_chunk command requestedSchema properties mode form message options optionId configOptions modes
"""
WORDS = st.sampled_from(VOCABULARY.split())
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | WORDS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=6)
    ),
    max_leaves=20,
)
KINDS = st.sampled_from(
    ["tool_call", "tool_call_update", "plan", "usage_update", "agent_message_chunk", "plan_update"]
)


@given(kind=KINDS, update=st.dictionaries(WORDS, VALUES, max_size=8))
def test_nothing_that_an_agent_writes_raises(kind: str, update: dict[str, Any]) -> None:
    update = {"toolCallId": "c"} | update | {"sessionUpdate": kind}
    for signal in tell(update):
        if isinstance(signal, ToolCall):
            msgspec.json.encode(signal.detail)
    read_settings(update)
    tool_permission(update)
    form(update)


@given(st.binary(max_size=200) | VALUES.map(msgspec.json.encode))
def test_any_line_is_a_message_or_nothing(line: bytes) -> None:
    message = parse(line)
    assert message is None or isinstance(message, dict)
    if message is not None:
        msgspec.json.encode(message)
