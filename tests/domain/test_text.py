"""Text as the database and JSON can hold it."""

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from app.domain.text import clean, is_storable, shorten, timestamp

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ANY = st.text(st.characters(exclude_categories=[]))
"""Any text, lone surrogates and NUL among it."""


@given(ANY)
def test_clean_text_can_be_stored(text: str) -> None:
    """It encodes, has no NUL, is as long as before, and what was fine is as it was."""
    cleaned = clean(text)
    cleaned.encode()
    assert "\x00" not in cleaned
    assert len(cleaned) == len(text)
    assert is_storable(cleaned)
    assert is_storable(text) == (cleaned == text)
    assert clean(cleaned) == cleaned


@given(text=ANY, limit=st.integers(9, 64))
def test_short_text_stays_and_long_text_keeps_head_and_tail(text: str, limit: int) -> None:
    """By UTF-8 bytes, cut between characters."""
    text = clean(text)
    short, size = shorten(text, limit)
    whole = len(text.encode())
    if whole <= limit:
        assert (short, size) == (text, None)
        return
    assert size == whole
    head, _, tail = short.partition("\n…\n") if "\n…\n" not in text else ("", "", "")
    assert len(short.encode()) <= limit
    assert shorten(short, limit) == (short, None)
    assert text.startswith(head)
    assert text.endswith(tail)


@given(st.text(st.sampled_from("aé€😀"), min_size=200, max_size=400))
def test_cut_text_loses_no_more_than_a_character_at_each_side(text: str) -> None:
    """Nothing near the bound is given away."""
    short, _ = shorten(text, 100)
    head, _, tail = short.partition("\n…\n")
    assert 44 <= len(head.encode()) <= 47
    assert 44 <= len(tail.encode()) <= 47


@given(st.timedeltas(timedelta(0), timedelta(days=2_000_000)).map(lambda age: EPOCH + age))
def test_timestamp_reads_back_to_the_millisecond(at: datetime) -> None:
    """RFC 3339 in UTC with milliseconds; sorts as text."""
    text = timestamp(at)
    assert len(text) == len("2026-11-24T06:13:32.000Z")
    assert at - datetime.fromisoformat(text) < timedelta(milliseconds=1)
    assert timestamp(at.astimezone(timezone(timedelta(hours=5, minutes=30)))) == text
    assert timestamp(at + timedelta(milliseconds=1)) > text
