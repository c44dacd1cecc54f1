"""How far back raw output surely reaches."""

import pytest

from app.domain.reach import lines_reached

MANY = 1_000_000


@pytest.mark.parametrize(
    ("raw", "lines"),
    [
        (b"", 0),
        (b"the end of a line", 0),
        (b"the end of a line\r\nwhole", 1),
        (b"x\r\na\r\nb\r\n", 3),
        (
            b"x\n\x1b[1;31mred\x1b[0m\n\x1b]0;title\x07$ \x1b[?2004h\x1b[K\n\x1b]8;;u\x1b\\l\x1b]8;;\x1b\\\n",
            4,
        ),
        (b"a\nb\nc\n\x1b[3A" * 50, 0),
        (b"a\nb\nc\n\x1b[3A" * 50 + b"\n\n\n\nz\n", 5),
        (b"a\n\x1b[Hb\nc\n", 2),
        (b"a\nb\n\x1bM", 0),
        (b"a\nb\n\x1b8c\n", 1),
        (b"a\nb\n\x1b[3J", 0),
        (b"\x1b[1;20rfixed\nb\n", 2),
        (b"a\nb\n\x1b[?1049hc\n", 1),
        (b"a\nb\n\x1b[?25;1049hc\n", 1),
        (b"a\nb\n\x1b\nM", 1),
        (b"a\n\x1b[\n\n", 2),
        (b"a\n\x1b]0;no end\nb\n", 2),
        (b"a\n\x1bPdcs\nb\x1b\\\n", 2),
    ],
)
def test_lines_that_stand_where_their_output_left_them(raw: bytes, lines: int) -> None:
    assert lines_reached(raw, MANY) == lines


@pytest.mark.parametrize("line", [b"x" * 100 + b"\n", b"x" * 200_000 + b"\n", b"\n", b"\x1b[1mx\n"])
def test_any_number_of_lines_is_counted_and_no_more_than_wanted(line: bytes) -> None:
    count = 1 + 1_000_000 // len(line)
    assert lines_reached(line * count, MANY * 2) == count
    assert lines_reached(b"\x1b[A" + line * count, MANY * 2) == count
    assert lines_reached(line * count, 3) == 3
    assert lines_reached(line * count + b"\x1b[A", 3) == 0
