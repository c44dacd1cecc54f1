"""The open parts of a turn: whatever the agent tells, what is opened is closed once, and nothing is lost."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from app.domain.details import Unknown
from app.domain.events import (
    Event,
    MessageCompleted,
    MessageDelta,
    Notice,
    ReasoningCompleted,
    ReasoningDelta,
    ToolCallCompleted,
    ToolCallStarted,
    ToolCallUpdated,
)
from app.domain.items import MessageItem, ToolItem, fold
from app.domain.signals import ReasoningPiece, TextDelta, ToolCall
from app.domain.transcript import MAX_MESSAGE, Said, Transcript

MESSAGES = st.sampled_from([None, "m1", "m2"])
TEXT = st.text(st.characters(exclude_categories=[]), max_size=8)


def call(number: int, status: Any, title: str | None = None) -> ToolCall:
    return ToolCall(
        call=f"c{number}",
        name="shell",
        title=title,
        kind="execute",
        status=status,
        detail=Unknown(input=None, output=None),
        error="broken" if status == "failed" else None,
    )


signals: st.SearchStrategy[Said] = st.one_of(
    st.builds(TextDelta, text=TEXT, message=MESSAGES, role=st.sampled_from(["assistant", "user"])),
    st.builds(ReasoningPiece, text=TEXT, message=MESSAGES),
    st.builds(
        call,
        st.integers(1, 3),
        st.sampled_from(["in_progress", "completed", "failed", "cancelled"]),
        st.sampled_from([None, "A", "B"]),
    ),
    st.just(Notice(level="info", code="x", message="y")),
)
TOLD = st.lists(signals, max_size=30)


def logged(events: list[Event]) -> list[tuple[str, None, str]]:
    return [(event.type, None, msgspec.json.encode({"data": event}).decode()) for event in events]


def play(told: list[Said], transcript: Transcript | None = None) -> list[Event]:
    transcript = transcript or Transcript()
    return [event for signal in told for event in transcript.tell(signal)]


def assert_in_order(events: list[Event]) -> None:
    """Started, then updated, then completed once; deltas only of the one message that is open."""
    open_calls: set[str] = set()
    ended: set[str] = set()
    message: str | None = None
    texts: dict[str, str] = {}
    for event in events:
        match event:
            case MessageDelta(message_id=id, text=text) | ReasoningDelta(message_id=id, text=text):
                assert id not in ended
                assert message in (None, id)
                assert text
                message = id
                texts[id] = texts.get(id, "") + text
            case MessageCompleted(message_id=id, text=text) | ReasoningCompleted(message_id=id, text=text):
                assert message == id
                assert id not in ended
                assert text == texts[id]
                ended.add(id)
                message = None
            case ToolCallStarted(tool_call_id=id, status=status):
                assert id not in open_calls | ended
                assert message is None
                assert (status, event.error) == ("in_progress", None)
                open_calls.add(id)
            case ToolCallUpdated(tool_call_id=id, status=status):
                assert id in open_calls
                assert status == "in_progress"
            case ToolCallCompleted(tool_call_id=id, status=status):
                assert id in open_calls
                assert status in ("completed", "failed", "cancelled")
                open_calls.remove(id)
                ended.add(id)
    assert not open_calls
    assert message is None


@given(TOLD)
def test_whatever_is_told_everything_is_opened_before_it_is_closed_once(told: list[Said]) -> None:
    """Also what the backend skipped, repeated, or told after the end."""
    transcript = Transcript()
    events = play(told, transcript)
    events += transcript.close()
    assert_in_order(events)
    assert transcript.close() == []
    assert not transcript.has_open_call


@given(TOLD)
def test_no_word_is_lost(told: list[Said]) -> None:
    """The deltas are what was said, in order."""
    said = [s for s in told if isinstance(s, TextDelta | ReasoningPiece) and s.text]
    events = [e for e in play(told) if isinstance(e, MessageDelta | ReasoningDelta)]
    assert len(said) == len(events)
    for signal, event in zip(said, events, strict=True):
        assert len(signal.text) == len(event.text)
        assert isinstance(event, ReasoningDelta) == isinstance(signal, ReasoningPiece)


@given(TOLD)
def test_output_is_the_assistants_text_after_the_last_tool_call(told: list[Said]) -> None:
    """A call that ended already is no new call."""
    transcript = Transcript()
    events = play(told, transcript)
    begun = [at for at, event in enumerate(events) if isinstance(event, ToolCallStarted)]
    after = events[begun[-1] if begun else 0 :]
    expected = [e.text for e in after if isinstance(e, MessageDelta) and e.role == "assistant"]
    assert transcript.output_text == "".join(expected)


@given(before=TOLD, after=TOLD)
def test_restored_transcript_closes_what_the_live_one_would(before: list[Said], after: list[Said]) -> None:
    """From the log alone another process knows what is open, and what was said since the last call."""
    live = Transcript()
    events = play(before, live)
    restored = Transcript.restored(fold(logged(events)))
    assert restored.output_text == live.output_text
    assert restored.has_open_call == live.has_open_call
    assert_in_order(events + play(after, restored) + restored.close())
    again = Transcript.restored(fold(logged(events)))
    assert [msgspec.to_builtins(e) for e in again.close()] == [msgspec.to_builtins(e) for e in live.close()]


@given(TOLD)
def test_folded_log_is_what_happened(told: list[Said]) -> None:
    """Items in the order in which they began; after the close none is open."""
    transcript = Transcript()
    events = play(told, transcript)
    events += transcript.close()
    items = fold(logged(events))
    assert not any(item.is_open for item in items)
    begun = list(
        dict.fromkeys(
            ("tool", event.tool_call_id)
            if isinstance(event, ToolCallStarted)
            else ("message", event.message_id)
            for event in events
            if isinstance(event, ToolCallStarted | MessageDelta | ReasoningDelta)
        )
    )
    got = [
        ("message", i.message_id) if isinstance(i, MessageItem) else ("tool", i.call.tool_call_id)
        for i in items
    ]
    assert got == begun
    ended = {e.tool_call_id: e for e in events if isinstance(e, ToolCallCompleted)}
    assert {i.call.tool_call_id: i.call for i in items if isinstance(i, ToolItem)} == ended


def test_message_that_grows_past_its_bound_keeps_head_and_tail() -> None:
    """The deltas have it all, the completed message says that it is not whole, memory is bounded."""
    transcript = Transcript()
    piece = "é" * 50_000
    events = play([TextDelta(text=f"<{n}>{piece}") for n in range(40)], transcript)
    (completed,) = transcript.close()
    assert isinstance(completed, MessageCompleted)
    assert completed.truncated is True
    assert completed.bytes == sum(len(e.text.encode()) for e in events if isinstance(e, MessageDelta))
    assert completed.text.startswith("<0>é")
    assert completed.text.endswith("é")
    assert len(completed.text.encode()) <= MAX_MESSAGE + 10
    assert len(transcript.output_text.encode()) <= MAX_MESSAGE + 10
