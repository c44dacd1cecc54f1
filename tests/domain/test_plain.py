"""A terminal's raw output as the lines that a person saw."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.plain import BLOCK, MAX_LINE, columns, plain_blocks


def plain(raw: str | bytes, *, full_screen: bool = False) -> str:
    data = raw.encode() if isinstance(raw, str) else raw
    return b"".join(plain_blocks(data, full_screen=full_screen)).decode()


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("a\r\nb\r\r\nc", "a\nb\nc"),
        ("\x1b[1;31mred\x1b[0m \x1b[38:5:12mx\x1b[m", "red x"),
        ("\x1b]0;title\x07a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "alink"),
        ("\x1bPq#0;2;0\x1b\\a\x1b_app\x1b\\b\x1b(Bc\x1b=d\x1b7e", "abcde"),
        ("\x1b]0;never ended\na", "\na"),
        ("a\x1b[", "a"),
        ("a\x1b", "a"),
        ("bell\x07nul\x00del\x7f", "bellnuldel"),
        ("abcdef\rxy", "xycdef"),
        ("abcdef\rxy\x1b[K", "xy"),
        ("abc\x1b[K\r\nd", "abc\nd"),
        ("abcdef\x1b[2K\rxy", "xy"),
        ("abcdef\x1b[2Kg", "abcdefg"),
        ("abc\b\bX", "aXc"),
        ("abc\b\b\b\b\bX", "Xbc"),
        ("ls -a\b \bl", "ls -l"),
        ("日本\rab", "ab本"),
        ("日本\ra", "a 本"),
        ("ab\r日", "日"),
        ("e\u0301x\b\bo", "ox"),
        ("xe\u0301\r", "xe\u0301"),
        ("a\tb\rX", "X\tb"),
        ("\xa0\u200b", "\xa0\u200b"),
        ("\x01a\rb\x02", "b"),
    ],
)
def test_what_stands_there_in_the_end(raw: str, text: str) -> None:
    assert plain(raw) == text


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    assert plain(b"a\xffb\xe6\x97") == "a\ufffdb\ufffd"


def test_what_is_painted_over_the_whole_screen_is_left_out() -> None:
    raw = "before\r\n\x1b[?1049hpaint\x1b[5;5Hed\r\n\x1b[?1049lafter\x1b[?47hx\x1b[?47l!"
    assert plain(raw) == "before\nafter!"
    assert plain("ing\x1b[?1049lafter", full_screen=True) == "after"
    assert plain("paint\nmore\n", full_screen=True) == ""


def test_blocks_end_at_lines_and_a_line_that_never_ends_is_broken() -> None:
    lines = b"".join(b"line %d\r\n" % number for number in range(100_000))
    blocks = list(plain_blocks(lines))
    assert len(blocks) > 1
    assert all(block.endswith(b"\n") and len(block) <= BLOCK for block in blocks)
    assert b"".join(blocks) == lines.replace(b"\r\n", b"\n")
    broken = b"".join(plain_blocks(b"x" * (2 * MAX_LINE + 5)))
    assert [len(line) for line in broken.split(b"\n")] == [MAX_LINE, MAX_LINE, 5]
    screens = b"\x1b[?1049h" + b"painted\r\n" * 60_000 + b"\x1b[?1049lafter"
    assert b"".join(plain_blocks(screens)) == b"after"


@given(st.text(alphabet=st.characters(exclude_categories=("Cc", "Cs", "Cf")), max_size=200))
def test_text_stays_text(text: str) -> None:
    assert plain(text) == text


@given(st.text(alphabet="ab日é\r\b\t\n\x1b[]K0;?2hl\x07\x01\x02", max_size=100))
def test_whatever_comes_ends_in_lines_without_controls(raw: str) -> None:
    assert not set(plain(raw)) & set(map(chr, {*range(0x20), 0x7F} - {0x09, 0x0A}))


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("", 0),
        ("abc", 3),
        ("日本", 4),
        ("e\u0301", 1),
        ("\t", 8),
        ("abc\tx", 9),
        ("12345678\t", 16),
        ("日\té", 9),
    ],
)
def test_columns_are_cells_of_the_terminal(text: str, width: int) -> None:
    assert columns(text) == width


def test_a_cell_keeps_no_more_marks_than_anybody_writes() -> None:
    """Joined one by one without bound, they took time that grew with their square."""
    (block,) = plain_blocks(b"\rae" + "\u0301".encode() * 50_000 + b"\n")
    assert block.decode().startswith("ae\u0301")
    assert block.decode().count("\u0301") < 50
