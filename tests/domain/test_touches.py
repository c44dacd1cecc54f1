"""Which files a tool call wrote, and which lines: told by every backend in its own way."""

import difflib
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.details import Detail, Edit, Read, Shell, Unknown, Write
from app.domain.events import Location, Notice, ToolCallCompleted
from app.domain.touches import MAX_FILES, MAX_RANGES, WHOLE, changed_lines, merged, touches_of


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
        (call("edit", Edit(path="f", diff=DIFF)), [("f", "edit", ((11, 13), (40, 40)))]),
        (call("edit", Write(path="f", content="x")), [("f", "write", WHOLE)]),
        (call("edit", Edit(path="f", new_text="x")), [("f", "write", WHOLE)]),
        (
            call("edit", Edit(path="f", old_text="a\nb", new_text="a\nc"), ("f", 5)),
            [("f", "edit", ((6, 6),))],
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
    assert [(touch.path, touch.kind, touch.lines) for touch in touches_of(event)] == expected


def test_a_shortened_edit_tells_no_lines() -> None:
    """Its middle is missing: a diff would be read as if it ended there."""
    (touch,) = touches_of(call("edit", Edit(path="f", diff=DIFF, truncated=True, bytes=99)))
    assert (touch.lines, touch.snippet) == (None, None)


def test_a_snippet_without_a_line_says_which_of_its_lines_changed() -> None:
    (touch,) = touches_of(call("edit", Edit(path="f", old_text="a\nb\nd\n", new_text="a\nb\nc\nd\n")))
    assert (touch.snippet, touch.within) == ("a\nb\nc\nd\n", ((2, 3),))


def test_a_call_that_names_too_many_files_is_bounded() -> None:
    assert len(touches_of(call("edit", Unknown(), *map(str, range(10 * MAX_FILES))))) == MAX_FILES


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_lines_of_a_diff_hold_every_line_that_went(old: list[str], new: list[str]) -> None:
    """Whatever was deleted is among them, and nothing past the end of the file but one line."""
    before, after = [f"{line}\n" for line in old], [f"{line}\n" for line in new]
    lines = changed_lines("".join(difflib.unified_diff(before, after, "a", "b")))
    if not old and new:
        assert lines == WHOLE
        return
    covered = {number for first, last in lines for number in range(first, last + 1)}
    for tag, first, last, _, _ in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag in ("replace", "delete"):
            assert covered >= set(range(first + 1, last + 1))
    assert bool(lines) is (old != new)
    assert all(1 <= number <= max(len(old), 1) + 1 for number in covered)


@given(st.text(max_size=200))
def test_what_is_no_diff_tells_nothing_and_raises_nothing(text: str) -> None:
    changed_lines(text)
    changed_lines(f"@@ -1,3 +1,3 @@\n{text}")


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 5)).map(lambda each: (each[0], sum(each)))))
def test_merged_lines_are_the_same_lines_in_order(lines: list[tuple[int, int]]) -> None:
    def covered(ranges: Any) -> set[int]:
        return {number for first, last in ranges for number in range(first, last + 1)}

    found = merged(lines)
    assert covered(found) == covered(lines)
    assert all(one[1] + 1 < other[0] for one, other in pairwise(found))


def test_lines_are_bounded() -> None:
    assert merged((3 * n, 3 * n) for n in range(1, 2 * MAX_RANGES)) == ((3, 3 * (2 * MAX_RANGES - 1)),)
