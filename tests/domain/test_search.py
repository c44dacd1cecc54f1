"""Search in text that comes in blocks."""

import random
import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import ValidationFailed
from app.domain.plain import MAX_LINE, Block
from app.domain.search import MAX_TEXT, WINDOW, Found, Query, search


def find(text: str, q: str, *, size: int | None = None, first_line: int = 0, **more: object) -> Found:
    """Search in `text`, cut into blocks of `size` lines."""
    lines = text.encode().splitlines(keepends=True)
    step = size or max(1, len(lines))
    blocks = [Block(first_line + i, b"".join(lines[i : i + step])) for i in range(0, len(lines), step)]
    return search(reversed(blocks), Query(text=q, **more))  # type: ignore[arg-type]  # of the test's own making


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
def test_limit_leaves_the_newest_from_the_top_down_and_says_so(size: int | None) -> None:
    found = find("a\nhit 1\nx\nhit 2\nhit 3\ny\n", "hit", size=size, limit=2, context=2)
    assert [m.text for m in found.matches] == ["hit 2", "hit 3"]
    assert found.matches[0].before == ["hit 1", "x"]
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
        (r"(?s)c.*", {"regex": True}, ["c", "c"]),
        (r"(?s)[^x]$", {"regex": True}, ["c", "b", "c"]),
        (r"\\C", {"regex": True}, []),
        (r"\Qa.\Ec", {"regex": True}, ["a.c"]),
        (r"\C", {}, []),
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


@pytest.mark.parametrize(
    "q",
    [
        "(",
        "a)(b",
        "[",
        "(?=x)",
        r"(a)\1",
        "a{2000}",
        "*",
        r"a\C",
        r"\\\C",
        r"\Q\C\E\C",
        r"(?:\pL?){20}Z",
        r"\PL|" * 60 + "a",
    ],
)
def test_pattern_that_is_none_is_refused_and_not_repeated(q: str, capfd: pytest.CaptureFixture[str]) -> None:
    """RE2 has no look-around and no references back; what was searched for stands in no message (T31)."""
    with pytest.raises(ValidationFailed) as refused:
        find("x", q, regex=True)
    assert (
        str(refused.value)
        == "q: must be a regular expression of RE2's syntax without \\C, and not too large a one"
    )
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


@pytest.mark.parametrize("before", range(WINDOW - 12, WINDOW + 4))
@pytest.mark.parametrize("text", ["a hit-or-é 5", "日hit hit日"])
def test_no_match_is_lost_between_what_is_matched_in_one_go(before: int, text: str) -> None:
    """Nor made: what a line's end or a word's is depends on the line, not on where it is cut."""
    line = "y" * before + text + "y" * 2000
    for q in ("hit[^y]*", r"\bhit\b", "[^y]+", "hit", "^hit", "hit$", "5y+$"):
        expected = [found.span() for found in re.finditer(q, line, re.ASCII)]
        found = find("y\n" + line + "\ny", q, regex=True)
        starts = [m.column for m in found.matches]
        wide = [line[:start].count("日") for start, _ in expected]
        assert starts == [start + more for (start, _), more in zip(expected, wide, strict=True)]
        assert all(len(m.text) == MAX_TEXT for m in found.matches)


COSTLY = ["(?:[a-h]?){1000}Z", "(?:[a-h]?[a-g]?){400}Z", "(?:.?){330}Z", "(?i)(?:[a-hä]?){500}Z"]


@pytest.mark.parametrize("q", COSTLY)
def test_costly_pattern_is_matched_in_small_steps(q: str) -> None:
    """Between them it is asked whether anybody waits: a thread never outlives its request for long."""
    text = "".join(random.Random(1).choices("abcdefgh", k=MAX_LINE))
    asked = 0

    def given_up() -> bool:
        nonlocal asked
        asked += 1
        return asked >= 3

    found = search([Block(0, text.encode())], Query(text=q, regex=True), given_up=given_up)
    assert found.truncated
    assert asked >= 3


def test_search_ends_soon_when_nobody_waits() -> None:
    """Nothing more is read then, and what was found is told."""
    read = 0

    def blocks() -> Iterator[Block]:
        nonlocal read
        for number in range(9, -1, -1):
            read += 1
            yield Block(number, b"hit\n")

    found = search(blocks(), Query(text="hit"), given_up=lambda: read >= 3)
    assert read == 3
    assert found.truncated
    assert [m.line for m in found.matches] == [8, 9]


def test_time_that_ends_leaves_the_newest() -> None:
    """The steps for the newest matches are those that were taken."""
    asked = 0

    def given_up() -> bool:
        nonlocal asked
        asked += 1
        return asked > 100

    blocks = (Block(number, b"hit\n") for number in range(1000, -1, -1))
    found = search(blocks, Query(text="hit", limit=200), given_up=given_up)
    assert found.truncated
    assert found.matches[-1].line == 1000
    assert len(found.matches) < 100


def test_many_matches_in_a_long_line_are_measured_once() -> None:
    """Each from the one before it on, not from the line's beginning, which would cost their product."""
    line = "日" * 30_000 + "hit " * 5000
    found = find(line, "hit", limit=200)
    assert [m.column for m in found.matches] == [60_000 + 4 * (4800 + i) for i in range(200)]
