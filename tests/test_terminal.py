"""How a turn looks at a terminal: what goes where, and that no agent's words steer it or hide in it."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.command.terminal import Screen, is_question, visible
from app.domain.details import Edit, Shell, Unknown
from app.domain.events import (
    Error,
    Event,
    MessageCompleted,
    MessageDelta,
    PermissionOption,
    PermissionRequested,
    PermissionResolved,
    PlanEntry,
    PlanUpdated,
    Question,
    ReasoningDelta,
    TokenUsage,
    ToolCallCompleted,
    ToolCallStarted,
    ToolStatus,
    TurnCancelled,
    TurnCompleted,
    TurnFailed,
    TurnIndeterminate,
    UsageUpdated,
)


class Stream(io.StringIO):
    """A stream that may be a terminal."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        """Whether it is one."""
        return self._is_terminal


class Shown:
    """A screen and what it wrote; on a terminal both streams are the same one."""

    def __init__(self, *, is_terminal: bool = False, as_json: bool = False) -> None:
        self.out = Stream(is_terminal=is_terminal)
        self.err = self.out if is_terminal else Stream(is_terminal=False)
        self.screen = Screen(self.out, self.err, as_json=as_json)

    def show(self, *events: Event) -> "Shown":
        """Show these and end."""
        for event in events:
            self.screen.show(event)
        self.screen.close()
        return self


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")


def delta(text: str, message: str = "msg_1") -> MessageDelta:
    return MessageDelta(message_id=message, role="assistant", text=text)


def tool(status: ToolStatus = "completed", title: str = "ls") -> ToolCallCompleted:
    detail = Shell(command=title)
    error = "no such thing" if status == "failed" else None
    return ToolCallCompleted(
        tool_call_id="t",
        name="shell",
        title=title,
        kind="execute",
        status=status,
        locations=[],
        detail=detail,
        error=error,
    )


def asked(title: str = "rm -rf build", **more: object) -> PermissionRequested:
    fields: dict[str, object] = {
        "permission_id": "prm_1",
        "kind": "tool",
        "title": title,
        "description": None,
        "detail": None,
        "input": None,
        "options": [PermissionOption(option_id="yes", label="Allow", kind="allow_once")],
        "expires_at": None,
    }
    return PermissionRequested(**{**fields, **more})  # type: ignore[arg-type]  # a test's shorthand


def test_text_goes_to_stdout_as_it_is_and_nothing_else_does() -> None:
    usage = TokenUsage(input_tokens=10, output_tokens=5)
    shown = Shown().show(
        delta("one "),
        delta("two"),
        tool(),
        PlanUpdated(entries=[PlanEntry(text="a", status="completed"), PlanEntry(text="b", status="pending")]),
        UsageUpdated(cost_usd=0.25),
        TurnCompleted(stop_reason="end_turn", usage=usage),
    )
    assert shown.out.getvalue() == "one two\n"
    assert shown.err.getvalue().splitlines() == [
        "✓ execute: ls",
        "plan  ✓ a  · b",
        "10 tokens in, 5 out, $0.2500",
    ]


def test_messages_stand_on_lines_of_their_own_and_a_message_without_pieces_is_shown_whole() -> None:
    whole = MessageCompleted(message_id="msg_2", role="assistant", text="b")
    first = MessageCompleted(message_id="msg_1", role="assistant", text="a")
    assert Shown().show(delta("a"), first, whole).out.getvalue() == "a\nb\n"


def test_reasoning_is_for_somebody_who_watches() -> None:
    thought = ReasoningDelta(message_id="msg_1", text="hmm")
    assert Shown().show(thought).err.getvalue() == ""
    assert "hmm\nyes\n" in Shown(is_terminal=True).show(thought, delta("yes", "msg_2")).out.getvalue()


def test_a_running_tool_call_is_replaced_by_its_end() -> None:
    ended = tool()
    fields = {name: getattr(ended, name) for name in ended.__struct_fields__} | {"status": "in_progress"}
    text = Shown(is_terminal=True).show(delta("so"), ToolCallStarted(**fields), ended).out.getvalue()
    assert text == "so\n… execute: ls\r\x1b[K✓ execute: ls\n"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("a\x1b]0;title\x07b\x1b]8;;http://x\x1b\\c", "abc"),
        ("one\ntwo\ttab\r", "one␊two␉tab␍"),
        ("rm \u202egnp.exe", "rm \\u202egnp.exe"),
        ("zero\u200bwidth \x9b31m \x7f", "zero\\u200bwidth \\u009b31m ␡"),
        ("half \x1b[", "half ␛["),
        ("käse 日本 🙂", "käse 日本 🙂"),
    ],
)
def test_a_line_hides_nothing(raw: str, shown: str) -> None:
    assert visible(raw) == shown


@given(st.text())
def test_a_line_is_one_printable_line(text: str) -> None:
    assert visible(text).isprintable()


@given(st.lists(st.text(alphabet="\x1b[]0;m\x07\\a\n\x9b\u0085\r31KHJ")))
def test_no_way_of_cutting_it_gets_an_escape_sequence_to_a_terminal(pieces: list[str]) -> None:
    text = Shown(is_terminal=True).show(*map(delta, pieces)).out.getvalue()
    assert "\x1b" not in text
    assert "\x9b" not in text


def test_a_pipe_gets_the_text_as_the_agent_wrote_it() -> None:
    assert Shown().show(delta("\x1b[1mbold\x1b[0m\n")).out.getvalue() == "\x1b[1mbold\x1b[0m\n"


def test_a_permission_shows_all_that_is_to_be_done_however_long() -> None:
    edit = Edit(path="/repo/a.py", old_text="x", new_text="y\u202e\nz")
    shown = Shown().show(asked("Edit a.py", kind="tool", detail=edit)).err.getvalue().splitlines()
    assert shown == ["? tool: Edit a.py", "    /repo/a.py", "    - x", "    + y\\u202e", "    + z"]
    long = "x" * 5000 + "; rm -rf ~"
    assert Shown().show(asked("run", detail=Shell(command=long))).err.getvalue().endswith(f"    {long}\n")
    given_ = Shown().show(asked("odd", detail=Unknown(input={"target": "/etc"}))).err.getvalue()
    assert "/etc" in given_


def test_a_resolution_names_what_it_resolves() -> None:
    resolved = PermissionResolved(
        permission_id="prm_1", outcome="denied", option_id=None, by="turn_end", actor=None
    )
    shown = Shown().show(asked(), resolved).err.getvalue().splitlines()
    assert shown == ["? tool: rm -rf build", "denied (by turn end): rm -rf build"]


def test_a_question_stays_below_what_comes_meanwhile() -> None:
    shown = Shown(is_terminal=True)
    shown.screen.ask("Allow? [y/n]")
    shown.show(tool(), delta("text"))
    shown.screen.answered(typed=False)
    rows = shown.out.getvalue().replace("\r\x1b[K", "\n").split("\n")
    assert [row.strip() for row in rows if row.strip()] == [
        "Allow? [y/n]",
        "✓ execute: ls",
        "Allow? [y/n]",
        "text",
        "Allow? [y/n]",
    ]


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (TurnCompleted(stop_reason="refusal", usage=None), "the agent stopped: refusal"),
        (
            TurnFailed(
                error=Error(code="provider_error", message="over\nloaded", retriable=True), delivered="yes"
            ),
            "failed: over␊loaded [provider_error]; the same prompt may succeed later",
        ),
        (
            TurnCancelled(cause="caller", cancel_outcome="unconfirmed"),
            "cancelled (caller): the agent may still be working",
        ),
        (
            TurnIndeterminate(cause="lease_lost", delivered="unknown", last_backend_event_at=None),
            (
                "indeterminate (lease_lost): the agent may or may not have done the work, "
                "so look before you prompt it again"
            ),
        ),
    ],
)
def test_an_end_that_is_not_the_usual_one_is_told(event: Event, line: str) -> None:
    assert Shown().show(event).err.getvalue() == line + "\n"


def test_as_json_only_what_needs_a_person_is_told_beside_the_raw_events() -> None:
    shown = Shown(as_json=True)
    shown.screen.raw('{"seq":1}')
    shown.show(delta("text"), tool(), asked())
    assert shown.out.getvalue() == '{"seq":1}\n'
    assert shown.err.getvalue() == "? tool: rm -rf build\n"


def test_words_are_asked_for_where_there_are_questions() -> None:
    assert is_question(asked(kind="question"))
    assert is_question(asked(questions=[Question(question="Which?")]))
    assert not is_question(asked())
