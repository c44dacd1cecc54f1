"""Search in text that comes in blocks."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import ValidationFailed
from app.domain.search import MAX_TEXT, Found, Query, search


def find(text: str, q: str, *, size: int | None = None, first_line: int = 0, **more: object) -> Found:
    """Search in `text`, cut into blocks of `size` lines."""
    lines = text.encode().splitlines(keepends=True)
    step = size or max(1, len(lines))
    blocks = [b"".join(lines[i : i + step]) for i in range(0, len(lines), step)]
    return search(blocks, Query(text=q, **more), first_line=first_line)  # type: ignore[arg-type]  # of the test's own making


@pytest.mark.parametrize("size", [None, 1, 2, 3])
def test_a_match_has_its_place_and_its_neighbours(size: int | None) -> None:
    """Wherever the text is cut into blocks."""
    text = "zero\none 日本 hit\ntwo\nthree hit hit\nfour"
    found = find(text, "hit", size=size, context=1, first_line=10)
    assert [(m.line, m.column, m.length) for m in found.matches] == [(11, 9, 3), (13, 6, 3), (13, 10, 3)]
    assert [m.text for m in found.matches] == ["one 日本 hit", "three hit hit", "three hit hit"]
    assert [m.before for m in found.matches] == [["zero"], ["two"], ["two"]]
    assert [m.after for m in found.matches] == [["two"], ["four"], ["four"]]
    assert found.truncated is False


def test_context_ends_with_the_text() -> None:
    (match,) = find("a\nhit\nb\n", "hit", context=5).matches
    assert (match.before, match.after) == (["a"], ["b"])


@pytest.mark.parametrize("size", [None, 1])
def test_limit_cuts_from_the_top_down_and_says_so(size: int | None) -> None:
    found = find("hit 1\nhit 2\nx\nhit 3\n", "hit", size=size, limit=2, context=2)
    assert [m.text for m in found.matches] == ["hit 1", "hit 2"]
    assert found.matches[-1].after == ["x", "hit 3"]
    assert found.truncated
    assert not find("hit\nhit\n", "hit", size=size, limit=2).truncated


@pytest.mark.parametrize(
    ("q", "more", "expected"),
    [
        ("a.c", {}, ["a.c"]),
        ("a.c", {"regex": True}, ["abc", "a.c"]),
        ("ABC", {}, []),
        ("ABC", {"ignore_case": True}, ["abc"]),
        ("ÄB", {"ignore_case": True}, ["äb"]),
        ("^a", {"regex": True}, ["a", "a"]),
        ("c$", {"regex": True}, ["c", "c"]),
        ("[^x]b", {"regex": True}, ["ab", " b", "äb"]),
        (r"\s+", {"regex": True}, [" "]),
        ("c\na", {"regex": True}, []),
        ("x*", {"regex": True}, ["xx"]),
        ("$", {"regex": True}, []),
        ("(?i)B", {"regex": True}, ["b", "b", "b"]),
        ("日", {}, ["日"]),
    ],
)
def test_what_matches(q: str, more: dict[str, bool], expected: list[str]) -> None:
    """Line by line: nothing matches over a line's end, and of nothing there is nothing to show."""
    text = "abc b\n日 xx\näb a.c\na.c" if q == "?" else "abc\n日 b\näbxx\na.c"
    hits = [
        m.text.encode().decode()[_index(m.text, m.column) : _index(m.text, m.column + m.length)]
        for m in find(text, q, **more).matches
    ]
    assert hits == expected


def _index(text: str, column: int) -> int:
    """The character at a column, where only one is wide."""
    return column - (1 if text.startswith("日") and column > 1 else 0)


@pytest.mark.parametrize("q", ["(", "a)(b", "[", "(?=x)", r"(a)\1", "a{2000}", "*"])
def test_pattern_that_is_none_is_refused_and_not_repeated(q: str, capfd: pytest.CaptureFixture[str]) -> None:
    """RE2 has no look-around and no references back; what was searched for stands in no message (T31)."""
    with pytest.raises(ValidationFailed) as refused:
        find("x", q, regex=True)
    assert str(refused.value) == "q: must be a regular expression of RE2's syntax, and not too large a one"
    assert capfd.readouterr() == ("", "")


def test_pattern_that_ruins_others_takes_linear_time() -> None:
    """A thousand times the text takes no more than some thousand times as long; `re` would never end."""
    assert find("a" * 100_000 + "\n", "(a+)+(a|aa)+$x", regex=True).matches == []


def test_long_line_is_shown_around_its_match() -> None:
    (match,) = find("x" * 100_000 + "hit" + "y" * 100_000, "hit").matches
    assert match.column == 100_000
    assert len(match.text) == MAX_TEXT
    assert 200 < match.text.index("hit") < 300
    (match,) = find("hit" + "y" * 100_000, "hit", context=1).matches
    assert match.text.startswith("hit")


@given(
    st.lists(st.text(alphabet="ab日 ", max_size=8), min_size=1, max_size=12),
    st.sampled_from(["a", "ab", "b日", "a+", "[ab]日?", "^a", "b$"]),
    st.integers(min_value=1, max_value=5),
)
def test_matches_are_those_of_every_line(lines: list[str], q: str, size: int) -> None:
    """As Python's own expressions find them in each line by itself, however it is cut into blocks."""
    expected = [
        (number, found[0], line)
        for number, line in enumerate(lines)
        for found in re.finditer(q, line)
        if found[0]
    ]
    matches = find("\n".join(lines), q, regex=True, size=size, limit=200).matches
    assert [(m.line, m.text) for m in matches] == [(number, line) for number, _, line in expected]
    wide = [(hit, hit.count("日")) for _, hit, _ in expected]
    assert [m.length for m in matches] == [len(hit) + extra for hit, extra in wide]
    assert all((a.line, a.column) < (b.line, b.column) for a, b in pairwise(matches))
