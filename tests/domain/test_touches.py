"""Which files a tool call wrote, and which lines: told by every backend in its own way."""

import difflib
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.details import Detail, Edit, Read, Shell, Unknown, Write
from app.domain.events import Location, Notice, ToolCallCompleted
from app.domain.touches import (
    LAST_LINE,
    MAX_FILES,
    MAX_LINE,
    MAX_RANGES,
    WHOLE,
    Tally,
    carried,
    changes_of,
    lines_at_first,
    lines_now,
    touches_of,
)


def call(kind: Any, detail: Detail, *locations: str | tuple[str, int], status: Any = "completed") -> Any:
    at = [
        Location(path=one) if isinstance(one, str) else Location(path=one[0], line=one[1])
        for one in locations
    ]
    return ToolCallCompleted(
        tool_call_id="c",
        name=None,
        title=None,
        kind=kind,
        status=status,
        locations=at,
        detail=detail,
        error=None,
    )


DIFF = """--- a/f
+++ b/f
@@ -10,5 +10,6 @@ def f():
 same
-old
+new
 same
+put in
 same
 same
@@ -40 +41,0 @@
-gone
"""


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (call("edit", Edit(path="f", diff=DIFF)), [("f", "edit", ((11, 1, 1), (13, 0, 1), (40, 1, 0)))]),
        (call("edit", Write(path="f", content="x")), [("f", "write", WHOLE)]),
        (call("edit", Edit(path="f", new_text="x")), [("f", "write", WHOLE)]),
        (
            call("edit", Edit(path="f", old_text="a\nb", new_text="a\nc"), ("f", 5)),
            [("f", "edit", ((6, 1, 1),))],
        ),
        (call("edit", Edit(path="f", old_text="a\nb", new_text="a\nc"), "f"), [("f", "edit", None)]),
        (call("edit", Edit(path="f"), "g"), [("f", "edit", None), ("g", "edit", None)]),
        (call("other", Edit(path="f", diff="no diff")), [("f", "edit", None)]),
        (call("delete", Unknown(input={"path": "f", "x": 1}), "f"), [("f", "delete", WHOLE)]),
        (
            call("move", Unknown(input={"source": "f", "destination": "g"})),
            [("f", "move", WHOLE), ("g", "move", WHOLE)],
        ),
        (call("execute", Shell(command="sed -i s/a/b/ f"), "f"), [("f", "shell", None)]),
        (call("execute", Shell(command="sed -i s/a/b/ f")), []),
        (call("read", Read(path="f"), "f"), []),
        (call("edit", Write(path="f"), status="failed"), []),
        (call("edit", Write(path="f"), status="cancelled"), []),
        (call("edit", Write(path="")), []),
        (Notice(level="info", code="x", message="y"), []),
    ],
)
def test_a_call_that_completed_tells_the_files_it_wrote(event: Any, expected: Any) -> None:
    assert [(touch.path, touch.kind, touch.changes) for touch in touches_of(event)] == expected


@pytest.mark.parametrize("line", [True, 0, -5, MAX_LINE, LAST_LINE, 2**63 - 1, 2**64, 10**30])
def test_a_line_that_no_file_has_tells_no_lines(line: Any) -> None:
    """Whatever backend told it: the database holds no such number."""
    (touch,) = touches_of(call("edit", Edit(path="f", old_text="a", new_text="b"), ("f", line)))
    assert touch.changes is None
    diff = f"@@ -{line:d} +{line:d} @@\n-a\n+b\n"
    assert line in (True, 0) or touches_of(call("edit", Edit(path="f", diff=diff)))[0].changes is None


def test_a_shortened_edit_tells_no_lines() -> None:
    """Its middle is missing: a diff would be read as if it ended there."""
    (touch,) = touches_of(call("edit", Edit(path="f", diff=DIFF, truncated=True, bytes=99)))
    assert (touch.changes, touch.snippet) == (None, None)


def test_a_snippet_without_a_line_says_which_of_its_lines_changed() -> None:
    (touch,) = touches_of(call("edit", Edit(path="f", old_text="a\nb\nd\n", new_text="a\nb\nc\nd\n")))
    assert (touch.snippet, touch.within) == ("a\nb\nc\nd\n", ((3, 0, 1),))


def test_a_call_that_names_too_many_files_is_bounded() -> None:
    assert len(touches_of(call("edit", Unknown(), *map(str, range(10 * MAX_FILES))))) == MAX_FILES


texts = st.lists(st.sampled_from("abc"), max_size=12)


@given(texts, texts, st.sampled_from([0, 1, 3]))
def test_a_diff_tells_what_it_changes(old: list[str], new: list[str], context: int) -> None:
    """Its changes make as many lines as the new text has, and hold every line that went."""
    before, after = [f"{line}\n" for line in old], [f"{line}\n" for line in new]
    changes = changes_of("".join(difflib.unified_diff(before, after, "a", "b", n=context)))
    assert bool(changes) is (old != new)
    assert len(old) + sum(put_in - out for _, out, put_in in changes) == len(new)
    gone = {number for first, out, _ in changes for number in range(first, first + out)}
    for tag, first, last, _, _ in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag in ("replace", "delete"):
            assert gone >= set(range(first + 1, last + 1))
    assert all(1 <= number <= len(old) for number in gone)


@given(st.text(max_size=200))
def test_what_is_no_diff_tells_nothing_and_raises_nothing(text: str) -> None:
    changes_of(text)
    changes_of(f"@@ -1,3 +1,3 @@\n{text}")


def test_lines_end_where_git_ends_them() -> None:
    """A form feed or a line separator is a character in a line: it moves no number."""
    diff = "@@ -1,3 +1,3 @@\n a\x0cb\u2028c\r\n-old\x0b\n+new\n end\n"
    assert changes_of(diff) == ((2, 1, 1),)
    old, new = "a\x0c\nb\n", "a\x0c\nc\n"
    (touch,) = touches_of(call("edit", Edit(path="f", old_text=old, new_text=new)))
    assert touch.within == ((2, 1, 1),)


def test_hunks_out_of_order_are_no_diff() -> None:
    assert changes_of("@@ -9 +9 @@\n-a\n+b\n@@ -2 +2 @@\n-a\n+b\n") == ()


edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4), st.integers(0, 4)), max_size=12)


@given(st.integers(0, 12), edits)
def test_what_changed_is_carried_along(size: int, made: list[tuple[float, int, int]]) -> None:
    """Against a text in which every line knows its number at first: exactly the lines that are gone are told
    as they were, exactly those that are new as they are now, and a line that stayed is in neither."""
    text: list[int] = list(range(1, size + 1))
    hunks: Any = ()
    for where, out, put_in in made:
        first = 1 + round(where * len(text))
        out = min(out, len(text) + 1 - first)
        text[first - 1 : first - 1 + out] = [0] * put_in
        hunks = carried(hunks, (first, out, put_in))
    gone = set(range(1, size + 1)) - set(text)
    was = {number for base, had, _ in hunks for number in range(base, base + had)}
    assert was >= gone
    assert was.isdisjoint(text)
    shift, new = 0, set()
    for base, had, has in hunks:
        new |= set(range(base + shift, base + shift + has))
        shift += has - had
    assert new == {place for place, number in enumerate(text, start=1) if number == 0}
    assert all(one[0] + one[1] < other[0] for one, other in pairwise(hunks)), "in order and apart"
    assert size + shift == len(text)


def test_what_goes_in_or_out_has_the_lines_on_either_side() -> None:
    assert lines_at_first([(5, 0, 2), (9, 1, 0)]) == ((4, 5), (9, 9))
    assert lines_now([(5, 0, 2), (9, 1, 0)]) == ((5, 6), (10, 11))
    assert lines_now([(1, 1, 0)]) == ((1, 1),)


def test_a_tally_ends_with_a_write_of_which_nobody_tells() -> None:
    """And with more stretches than are kept; a file that is written whole begins it anew."""
    known = Tally().after([((3, 1, 1),)])
    assert (known.hunks, known.lines) == (((3, 1, 1),), ((3, 3),))
    lost = known.after([None, ((9, 1, 1),)])
    assert (lost.hunks, lost.lines) == (None, ((3, 3),))
    whole = lost.after([WHOLE, ((4, 1, 3),)])
    assert whole.lines == ((1, WHOLE[0][1]),)
    assert whole.hunks is not None
    many = Tally().after([((3 * n, 1, 1),) for n in range(1, MAX_RANGES + 2)])
    assert (many.hunks, many.lines) == (None, None)


def test_one_edit_counts_all_its_changes_in_the_file_before_it() -> None:
    assert Tally().after([((1, 0, 10), (20, 1, 1))]).hunks == ((1, 0, 10), (20, 1, 1))
