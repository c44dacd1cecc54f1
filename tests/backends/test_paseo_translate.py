"""From the daemon's words to ours: every kind of row, tool, permission; and everything that was recorded."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.backends.base import AgentSpec, Answer, BackendRejected
from app.backends.paseo_permissions import permission_asked, resolution_outcome, response_to
from app.backends.paseo_telling import Sent, Teller
from app.backends.paseo_translate import (
    error_text,
    failure_words,
    is_cancelled_tool,
    row_signals,
    system_error,
    token_usage,
    tool_call,
)
from app.domain import details, signals
from app.domain.events import (
    CompactionUpdated,
    Location,
    Notice,
    PermissionOption,
    PlanEntry,
    Question,
    TokenUsage,
)
from app.domain.signals import Plan, ReasoningPiece, Report, TextDelta, TurnBroke, TurnEnded, TurnStopped
from app.paseo import frames, items
from app.paseo.agents import Allow, Deny
from app.paseo.decoding import decode
from app.paseo.frames import PermissionRequest, Resolution, StreamFrame, Usage, open_envelope
from app.paseo.items import Item, ToolCall
from app.paseo.snapshots import AgentUpdate, Row
from tests.backends.acp_house import is_end
from tests.paseo.twin_replay import TRANSCRIPTS

Json = dict[str, Any]


def item(**parts: Any) -> Item:
    """A row's item as it comes off the wire."""
    row = {"item": parts, "seqStart": 1, "seqEnd": 1}
    return decode(Row, json.dumps(row).encode()).item


def call(**parts: Any) -> ToolCall:
    made = item(**{"type": "tool_call", "callId": "c-1", "name": "bash", "status": "completed"} | parts)
    assert isinstance(made, ToolCall)
    return made


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (item(type="assistant_message", text="hi"), [TextDelta(text="hi")]),
        (item(type="assistant_message", text="hi", messageId="m"), [TextDelta(text="hi", message="m")]),
        (item(type="assistant_message", text="[System Error] oh"), []),
        (item(type="reasoning", text="hm"), [ReasoningPiece(text="hm")]),
        (item(type="user_message", text="do it"), []),
        (item(type="error", message="oh"), [Notice(level="error", code="backend_error", message="oh")]),
        (
            item(type="compaction", status="loading", trigger="auto", preTokens=9),
            [CompactionUpdated(status="loading", trigger="auto", tokens_before=9)],
        ),
        (item(type="hologram", picture=1), []),
        (
            item(
                type="todo",
                items=[
                    {"text": "a", "completed": True},
                    {"text": "b", "completed": False},
                    {"text": "c", "completed": False},
                ],
            ),
            [
                Plan(
                    entries=(
                        PlanEntry(text="a", status="completed"),
                        PlanEntry(text="b", status="in_progress"),
                        PlanEntry(text="c", status="pending"),
                    )
                )
            ],
        ),
    ],
)
def test_every_kind_of_row(row: Item, told: list[Any]) -> None:
    assert row_signals(row) == told


@pytest.mark.parametrize(
    ("given", "told", "kind"),
    [
        (
            {"type": "shell", "command": "ls", "cwd": "/w", "output": "x", "exitCode": 1},
            details.Shell(command="ls", cwd="/w", output="x", exit_code=1),
            "execute",
        ),
        (
            {"type": "read", "filePath": "a", "content": "x", "offset": 1, "limit": 2},
            details.Read(path="a", content="x", offset=1, limit=2),
            "read",
        ),
        (
            {"type": "edit", "filePath": "a", "oldString": "o", "newString": "n", "unifiedDiff": "d"},
            details.Edit(path="a", old_text="o", new_text="n", diff="d"),
            "edit",
        ),
        ({"type": "write", "filePath": "a", "content": "x"}, details.Write(path="a", content="x"), "edit"),
        (
            {"type": "search", "query": "q", "filePaths": ["a", "b"], "content": "x", "toolName": "grep"},
            details.Search(query="q", paths=("a", "b"), matches="x"),
            "search",
        ),
        (
            {"type": "fetch", "url": "https://e", "code": 200, "result": "x"},
            details.Fetch(url="https://e", status=200, result="x"),
            "fetch",
        ),
        (
            {"type": "sub_agent", "description": "d", "log": "l"},
            details.SubAgent(description="d", log="l"),
            "other",
        ),
        ({"type": "plan", "text": "p"}, details.PlanText(text="p"), "other"),
        ({"type": "plain_text", "label": "l", "text": "t"}, details.Text(label="l", text="t"), "other"),
        ({"type": "plain_text", "icon": "brain"}, details.Text(label=None, text=""), "other"),
        (
            {"type": "worktree_setup", "worktreePath": "/w", "branchName": "b", "log": "l", "commands": []},
            details.Text(label="worktree b at /w", text="l"),
            "other",
        ),
        (
            {"type": "unknown", "input": {"a": 1}, "output": [2]},
            details.Unknown(input={"a": 1}, output=[2]),
            "other",
        ),
        ({"type": "hologram", "x": 1}, details.Unknown(), "other"),
    ],
)
def test_every_kind_of_tool(given: Json, told: details.Detail, kind: str) -> None:
    found = tool_call(call(name="mystery", detail=given))
    assert found.detail == told
    assert found.kind == kind
    path = getattr(told, "path", None)
    assert found.locations == ((Location(path=path),) if path else ())


@pytest.mark.parametrize(
    ("status", "error", "told", "words"),
    [
        ("running", None, "in_progress", None),
        ("completed", None, "completed", None),
        ("failed", {"message": "oh"}, "failed", "oh"),
        ("failed", "oh", "failed", "oh"),
        ("failed", {"code": 7}, "failed", '{"code":7}'),
        ("failed", ["oh"], "failed", '["oh"]'),
        ("canceled", None, "cancelled", None),
        ("failed", {"message": "Tool execution aborted"}, "cancelled", "Tool execution aborted"),
        ("failed", "Tool execution aborted", "cancelled", "Tool execution aborted"),
        ("dreaming", None, "in_progress", None),
    ],
)
def test_statuses_and_errors(status: str, error: Any, told: str, words: str | None) -> None:
    made = call(status=status, error=error)
    assert (tool_call(made).status, tool_call(made).error) == (told, words)
    assert is_cancelled_tool(made) is (told == "cancelled")


def test_a_tool_is_named_by_its_title_and_its_kind_by_what_the_agent_says() -> None:
    made = tool_call(call(name="execute", metadata={"title": "Run the tests", "kind": "execute"}))
    assert (made.name, made.title, made.kind) == ("execute", "Run the tests", "execute")
    bare = tool_call(call(name="", metadata={"title": 7, "kind": ["x"]}))
    assert (bare.name, bare.title, bare.kind) == (None, None, "other")
    assert tool_call(call(name="WebFetch")).kind == "fetch"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("out of credit", "out of credit"),
        ("[object Object]", "the agent failed, and the daemon lost its words: [object Object]"),
        ("", "the agent failed, and the daemon lost its words"),
        ('{"name":"APIError","data":{"message":"bad key","statusCode":401}}', "APIError: bad key"),
        ('{"message":"no"}', "no"),
        ('{"error":{"message":"no"}}', "no"),
        ("[1]", "[1]"),
        ("{broken", "{broken"),
    ],
)
def test_failures_in_words(error: str, words: str) -> None:
    assert failure_words(error) == words
    assert system_error(item(type="assistant_message", text=f"[System Error] {error}")) == words
    assert system_error(item(type="assistant_message", text=f"said: {error}")) is None


def test_usage() -> None:
    given = {
        "inputTokens": 1,
        "cachedInputTokens": 2,
        "outputTokens": 3,
        "totalCostUsd": 0.5,
        "contextWindowMaxTokens": 4,
        "contextWindowUsedTokens": 5,
    }
    assert token_usage(decode(Usage, json.dumps(given).encode())) == TokenUsage(
        input_tokens=1,
        cached_input_tokens=2,
        output_tokens=3,
        cost_usd=0.5,
        context_window_max=4,
        context_window_used=5,
    )
    assert token_usage(None) is None
    assert error_text(None) is None


@pytest.mark.parametrize("number", [-1, 2**53, 2**64, 10**30])
def test_a_number_that_cannot_be_kept_is_none(number: int) -> None:
    """The daemon hands on what an agent told."""
    keys = ("inputTokens", "cachedInputTokens", "outputTokens", "contextWindowMaxTokens")
    usage = decode(Usage, json.dumps(dict.fromkeys(keys, number)).encode())
    assert token_usage(usage) == TokenUsage()
    for given, told in (
        ({"type": "read", "filePath": "a", "offset": number, "limit": number}, details.Read(path="a")),
        ({"type": "fetch", "url": "u", "code": number}, details.Fetch(url="u")),
    ):
        assert tool_call(call(name="mystery", detail=given)).detail == told
    assert row_signals(item(type="compaction", status="loading", preTokens=number)) == [
        CompactionUpdated(status="loading", trigger=None, tokens_before=None)
    ]


# Permissions


def request(**parts: Any) -> PermissionRequest:
    base = {"id": "p-1", "provider": "acp", "name": "execute", "kind": "tool"}
    return decode(PermissionRequest, json.dumps(base | parts).encode())


ALLOW = {"kind": "allow_once", "name": "Allow", "optionId": "yes"}
ALWAYS = {"kind": "allow_always", "name": "Always", "optionId": "always"}
REJECT = {"kind": "reject_once", "name": "Reject", "optionId": "no"}
NEVER = {"kind": "reject_always", "name": "Never", "optionId": "never"}


@pytest.mark.parametrize(
    ("offered", "honoured"),
    [
        ([ALWAYS, ALLOW, REJECT], ["yes", "no"]),
        ([ALWAYS, NEVER], ["always", "never"]),
        ([REJECT], ["no"]),
        (["junk", {"kind": "wild"}], []),
        ([], []),
    ],
)
def test_of_an_acp_agents_options_only_those_that_count_are_offered(
    offered: list[Any], honoured: list[str]
) -> None:
    asked = permission_asked(request(metadata={"options": offered, "toolCallId": "c-1"}))
    assert [option.option_id for option in asked.options] == honoured
    assert asked.call == "c-1"


@pytest.mark.parametrize("kind", ["tool", "plan", "question", "mode", "other"])
def test_every_kind_of_permission_keeps_its_name_and_a_new_one_is_another(kind: str) -> None:
    assert permission_asked(request(kind=kind)).kind == kind
    assert permission_asked(request(kind="dream")).kind == "other"
    assert permission_asked(request(title="Run it")).title == "Run it"
    assert permission_asked(request(name="")).title == "tool"


def test_actions_are_options() -> None:
    actions = [
        {"id": "go", "label": "Implement", "behavior": "allow", "intent": "implement"},
        {"id": "stay", "label": "Keep planning", "behavior": "deny"},
    ]
    asked = permission_asked(request(kind="plan", actions=actions, detail={"type": "plan", "text": "p"}))
    assert asked.options == (
        PermissionOption(option_id="go", label="Implement", kind="allow_once"),
        PermissionOption(option_id="stay", label="Keep planning", kind="reject_once"),
    )
    assert asked.detail == details.PlanText(text="p")


def test_questions() -> None:
    given = {
        "questions": [
            {"question": "Which?", "header": "Pick", "options": [{"label": "A"}, "B", 7], "multiple": True},
            {"question": "Why?", "multiSelect": False},
            {"header": "no question"},
            "junk",
        ]
    }
    assert permission_asked(request(kind="question", input=given)).questions == (
        Question(question="Which?", header="Pick", options=("A", "B"), multiple=True),
        Question(question="Why?", header=None, options=(), multiple=False),
    )
    assert permission_asked(request(kind="question", input="junk")).questions == ()


def test_the_input_is_the_agents_own() -> None:
    raw = {"rawRequest": {"toolCall": {"rawInput": {"command": "ls"}}}}
    assert permission_asked(request(metadata=raw)).input == {"command": "ls"}
    assert permission_asked(request(metadata=raw, input={"x": 1})).input == {"x": 1}


@pytest.mark.parametrize(
    ("resolution", "outcome"),
    [
        (Resolution(behavior="allow"), "allowed"),
        (Resolution(behavior="deny"), "denied"),
        (Resolution(behavior="deny", message="no"), "denied"),
        (Resolution(behavior="deny", message="Interrupted"), "cancelled"),
        (Resolution(behavior="ponder"), "unknown"),
    ],
)
def test_resolutions(resolution: Resolution, outcome: str) -> None:
    assert resolution_outcome(resolution) == outcome


def test_answers() -> None:
    asked = request(metadata={"options": [ALLOW, ALWAYS, REJECT]})
    assert response_to(asked, Answer(allow=True)) == Allow()
    assert response_to(asked, Answer(allow=True, option_id="yes")) == Allow(selected_action_id="yes")
    denial = Answer(allow=False, option_id="no", message="not that")
    assert response_to(asked, denial) == Deny(selected_action_id="no", message="not that")
    for refused in (
        Answer(allow=True, option_id="always"),
        Answer(allow=True, option_id="no"),
        Answer(allow=False, option_id="yes"),
        Answer(allow=True, updated_input={}),
    ):
        with pytest.raises(BackendRejected):
            response_to(asked, refused)
    question = request(kind="question", provider="opencode", input={"questions": []})
    answered = response_to(question, Answer(allow=True, answers={"Pick": "A"}))
    assert answered == Allow(updated_input={"questions": [], "answers": {"Pick": "A"}})
    edited = request(provider="claude", input={"command": "rm"})
    assert response_to(edited, Answer(allow=True, updated_input={"command": "ls"})) == Allow(
        updated_input={"command": "ls"}
    )


# Everything that was recorded


class Listener:
    """One agent of a recording, as its first client hears it, whose prompts are ours, one at a time."""

    def __init__(self, snapshot: Any) -> None:
        self.teller = Teller(snapshot, AgentSpec(creation_key="k", provider=snapshot.provider, cwd="/w"))
        self.prompts: list[str] = []
        self.rows: list[Item] = []

    def hear(self, frame: StreamFrame) -> None:
        match frame:
            case StreamFrame(event=frames.Timeline(item=row), seq=int(seq), epoch=str(epoch)):
                self.rows.append(row)
                self.teller.row(row, seq, epoch, frame.timestamp)
            case _:
                self.teller.event(frame)

    def prompt(self, message_id: str | None) -> None:
        if self.teller.sent is None and message_id is not None:
            self.prompts.append(message_id)
            self.teller.expect(Sent(message_id))


def recorded(path: Path) -> Iterator[tuple[str, Any]]:
    """What the first client of a recording sent, and the session messages that it got."""
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    first = next((line.get("client", "") for line in lines if line["dir"] == "send"), "")
    for line in lines:
        frame = line["frame"]
        is_message = isinstance(frame, dict) and frame.get("type") == "session" and "message" in frame
        if line.get("client", "") == first and is_message:
            yield line["dir"], frame["message"] if line["dir"] == "send" else json.dumps(frame).encode()


def replay(path: Path) -> dict[str, Listener]:
    heard: dict[str, Listener] = {}
    for direction, message in recorded(path):
        if direction == "send":
            if message["type"] == "send_agent_message_request" and message["agentId"] in heard:
                heard[message["agentId"]].prompt(message.get("messageId"))
            continue
        found = open_envelope(message).message
        assert found is not None
        if found.type == "agent_stream":
            frame = decode(StreamFrame, found.payload)
            if frame.agent_id in heard:
                heard[frame.agent_id].hear(frame)
        elif found.type == "agent_update":
            update = decode(AgentUpdate, found.payload)
            if update.agent is not None:
                known = heard.setdefault(update.agent.id, Listener(update.agent))
                known.teller.changed(update.agent)
    return heard


def outcome(reports: list[Report], attempt: str) -> str:
    """How a prompt ended, in a word or two; `open` if it did not."""
    ends = [s for report in reports if report.attempt == attempt for s in report.signals if is_end(s)]
    match ends:
        case []:
            return "open"
        case [TurnEnded()]:
            return "completed"
        case [TurnStopped(cause=cause)]:
            return cause
        case [TurnBroke(code=code)]:
            return code
        case _:
            return "told twice"


ENDS: dict[str, list[list[str]]] = {
    "archive-running": [["other_client"]],
    "archive-twice": [["completed", "completed"]],
    "attention": [["completed", "completed", "completed"]],
    "create-worktree": [["completed"]],
    "daemon-graceful-stop": [["open"]],
    "daemon-restart-mid-turn": [["completed", "open"]],
    "daemon-restart-no-history": [["completed", "open"]],
    "daemon-restart-no-resume": [["completed", "open"]],
    "delete-running": [["open"]],
    "import-success": [["completed"], ["completed"]],
    "opencode-cancel": [["other_client", "completed"]],
    "opencode-failed": [["provider_error", "completed"]],
    "opencode-happy": [["completed", "completed"]],
    "opencode-permission-allow": [["completed", "completed"]],
    "opencode-permission-deny": [["completed"]],
    "opencode-question": [["completed"]],
    "opencode-send-while-running": [["replaced"]],
    "permission-allow": [["completed"]],
    "permission-several": [["completed", "replaced"]],
    "reconnect-mid-turn": [["open"]],
    "refresh-duplicates": [["completed", "completed"]],
    "send-while-running-stubborn": [["replaced", "completed"]],
    "send-while-running": [["replaced", "completed"]],
    "shared-client-id": [["completed"]],
    "timeline-paging": [["completed", "completed", "completed"]],
    "turn-200-chunks": [["completed", "completed"]],
    "turn-cancel-stubborn": [["other_client"]],
    "turn-cancel": [["other_client", "completed"]],
    "turn-crash": [["agent_process_dead", "other_client", "completed"], ["agent_process_dead", "completed"]],
    "turn-happy": [["completed"]],
    "turn-provider-error": [["provider_error", "completed", "completed"]],
    "two-clients": [["completed", "other_client"]],
    "visibility": [["completed"]],
}
"""How the prompts of each agent in a recording ended; `open` where the recording has no end of it."""


@pytest.mark.parametrize("path", sorted(TRANSCRIPTS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_what_was_recorded_is_told_whole_and_each_turn_once(path: Path) -> None:
    ends = []
    for listener in replay(path).values():
        reports = listener.teller.reports.drain()
        if listener.prompts:
            ends.append([outcome(reports, attempt) for attempt in listener.prompts])
        attempts = {report.attempt for report in reports for s in report.signals if is_end(s)}
        assert attempts <= set(listener.prompts)
        told = [s for r in reports for s in r.signals if isinstance(s, TextDelta) and s.role == "assistant"]
        said = [
            row.text
            for row in listener.rows
            if isinstance(row, items.AssistantMessage) and system_error(row) is None
        ]
        assert [signal.text for signal in told] == said
        calls = {row.call_id for row in listener.rows if isinstance(row, ToolCall)}
        assert {s.call for r in reports for s in r.signals if isinstance(s, signals.ToolCall)} == calls
    assert ends == ENDS.get(path.stem, [])
