"""A terminal's raw output as the lines that a person saw."""

import time
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wcwidth import wcwidth

from app.domain.plain import BLOCK, MAX_LINE, Block, captured_blocks, columns, newest_first, plain_blocks
from app.domain.ring import Ring
from app.domain.rows import is_known, is_narrow


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
        ("abcdef\x1b[2Kg", "      g"),
        ("abcdef\x1b[3D\x1b[1Kx", "   xef"),
        ("abcdef\x1b[3D\x1b[K\x1b[m", "abc"),
        ("abcdef\x1b[3D\x1b[J", "abc"),
        ("one\r\n\x1b[2Jtwo", "one\ntwo"),
        ("abcdef\x1b[2DX\x1b[CY", "abcdXfY"),
        ("abc\x1b[0DX\x1b[99DY", "YbX"),
        ("a\x1b[3Cb\x1b[2Gc", "ac  b"),
        ("a\x1b[5Gb\x1b[`c", "c   b"),
        ("git psh\x1b[2D\x1b[1@u", "git push"),
        ("git puush\x1b[3D\x1b[P", "git push"),
        ("abcdef\x1b[4D\x1b[2Xx", "abx ef"),
        ("abcdef\x1b[99D\x1b[3P\x1b[C\x1b[9P", "d"),
        ("\x1b[01;31m\x1b[Khit\x1b[m\x1b[K of grep", "hit of grep"),
        ("日本語\x1b[4D\x1b[Px", "日x語"),
        ("日本語\x1b[3Dx", "日 x語"),
        ("a\tb\x1b[4Dx", "a    x  b"),
        ("abcdefghij\r\tX", "abcdefghXj"),
        ("日\u0301\x1b[Dx", " x"),
        ("a\x1b[999999999999Cb", "ab"),
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
        ("old\x1b[1G\x1b[0K⠋ x…\x1b[1G\x1b[0K⠙ y", "⠙ y"),
        ("old\x1b[2K\r██▏\rab\x1b[Cc", "ab▏c"),
        ("██▏ 9\r█▏\r█", "█▏▏ 9"),
        ("\x1b]0;never ended\x1b[1Gxy\ra", "ay"),
        ("a\x80b\x9fcé\x85\xa0", "abcé\xa0"),
        ("ab\x85c\rx", "xbc"),
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
    assert plain("a\x1b[?25;1049hpaint\x1b[?1049;12lb\x1b[?12;25hc") == "abc"
    assert plain("paint\nmore\n", full_screen=True) == ""


def test_blocks_end_at_lines_and_a_line_that_never_ends_is_broken() -> None:
    lines = b"".join(b"line %d\r\n" % number for number in range(100_000))
    blocks = list(plain_blocks(lines))
    assert len(blocks) > 1
    assert all(block.endswith(b"\n") and len(block) <= BLOCK for block in blocks)
    assert b"".join(blocks) == lines.replace(b"\r\n", b"\n")
    broken = list(plain_blocks(b"x" * (2 * MAX_LINE + 5)))
    assert [len(line) for line in broken] == [MAX_LINE, MAX_LINE, 5]
    screens = b"\x1b[?1049h" + b"painted\r\n" * 60_000 + b"\x1b[?1049lafter"
    assert b"".join(plain_blocks(screens)) == b"after"


def test_line_that_is_too_long_is_broken_where_it_does_no_harm() -> None:
    """Before it is rewritten; else before a sequence or a character."""
    for piece in ("\r日本 100%", "\x1b[1;31m日本", "日本"):
        raw = piece.encode() * (2 * MAX_LINE // len(piece))
        blocks = list(plain_blocks(raw))
        assert len(blocks) > 2
        assert all("\ufffd" not in block.decode() and b"[" not in block for block in blocks)
        assert all(block.startswith("日".encode()) or piece == "日本" for block in blocks)


def numbered(blocks: Iterable[Block]) -> dict[int, str]:
    """The lines by their numbers."""
    lines: dict[int, str] = {}
    for block in reversed(list(blocks)):
        *ended, last = block.text.decode().split("\n")
        for number, line in enumerate([*ended, *([last] if last else [])], block.line):
            lines[number] = lines.get(number, "") + line
    return lines


def test_lines_have_one_number_whatever_the_ring_has_dropped() -> None:
    """Those of full screens count as little as they are searched, and pieces of a line have its number."""
    ring = Ring(600_000, complete=True)
    everything = bytearray()
    seen: dict[int, str] = {}
    for step in range(40):
        piece = b"line %d\r\n" % step * 900 + b"x" * (step * 9000) + b"\r\n"
        piece += b"\x1b[?1049hpaint\r\npaint\r\n\x1b[?1049;25lafter\r\n"
        everything += piece
        ring.append(piece)
        now = numbered(
            newest_first(
                ring.content(),
                full_screen=ring.full_screen_at_base,
                first_line=ring.first_line,
                is_cut=ring.base > 0,
            )
        )
        assert all(seen.get(number, line) == line for number, line in now.items())
        seen |= now
    assert ring.base > 0
    whole = numbered(newest_first(bytes(everything), is_cut=False, full_screen=False, first_line=0))
    assert seen == whole
    assert list(whole.values()) == b"".join(plain_blocks(bytes(everything))).decode().splitlines()


def test_full_screen_that_begins_or_ends_in_the_line_that_is_cut() -> None:
    def lines(raw: bytes, *, full_screen: bool) -> list[str]:
        blocks = newest_first(raw, full_screen=full_screen, first_line=7, is_cut=True)
        return list(numbered(blocks).values())

    assert lines(b"inted\x1b[?1049l\r\nafter\r\nx", full_screen=True) == ["after", "x"]
    assert lines(b"e cut\x1b[?1049h\r\npainted\r\n\x1b[?1049lafter", full_screen=False) == ["after"]


@given(
    st.lists(st.text(alphabet="ab日é", max_size=5), max_size=20),
    st.integers(min_value=0, max_value=19),
    st.integers(min_value=0, max_value=3 * MAX_LINE),
)
def test_captured_lines_keep_their_numbers(lines: list[str], where: int, length: int) -> None:
    if where < len(lines):
        lines[where] = "é" * (length // 2)
    blocks = list(captured_blocks(lines))
    assert all(len(block.text) <= BLOCK + MAX_LINE for block in blocks)
    assert numbered(blocks) == dict(enumerate(lines))


@given(st.text(alphabet=st.characters(exclude_categories=("Cc", "Cs", "Cf")), max_size=200))
def test_text_stays_text(text: str) -> None:
    assert plain(text) == text


@given(st.text(alphabet="ab日é\u0301\x85\x9b\r\b\t\n\x1b[]CDGJKPX@`0;?29hl\x07\x01\x02", max_size=100))
def test_whatever_comes_ends_in_lines_without_controls(raw: str) -> None:
    assert not set(plain(raw)) & set(map(chr, {*range(0x20), *range(0x7F, 0xA0)} - {0x09, 0x0A}))


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
        ("日\x85é", 3),
    ],
)
def test_columns_are_cells_of_the_terminal(text: str, width: int) -> None:
    assert columns(text) == width


def test_a_cell_keeps_no_more_marks_than_anybody_writes() -> None:
    """Joined one by one without bound, they took time that grew with their square."""
    (block,) = plain_blocks(b"\rae" + "\u0301".encode() * 50_000 + b"\n")
    assert block.decode().startswith("ae\u0301")
    assert block.decode().count("\u0301") < 50


PIECES = st.one_of(
    st.text(alphabet="abc ", min_size=1, max_size=5),
    st.sampled_from(["\r", "\b"]),
    st.builds("\x1b[{}{}".format, st.sampled_from(["", 0, 1, 2, 3, 7, 2000]), st.sampled_from("@CDGJKPX`")),
)


@given(st.lists(st.sampled_from(["a", "日", "é", "abc", "🚀本", "\r"]), max_size=30))
def test_rewriting_with_wide_characters_is_done_cell_by_cell(pieces: list[str]) -> None:
    """There are two ways to do it, and a step back at the beginning takes the slow one."""
    line = "".join(pieces)
    assert plain(line) == plain("\b" + line)


@given(st.lists(PIECES, max_size=30))
def test_cells_of_one_column_are_written_as_any_cells_are(pieces: list[str]) -> None:
    """There are two ways to do it, and characters of a known width take the quick one."""
    line = "".join(pieces)
    for narrow in ("é", "\xad"):  # of a known width, and of one to be looked up
        assert plain(line.replace("a", narrow)).replace(narrow, "a") == plain(line)


def test_some_bytes_do_not_become_a_memory_full_of_blanks() -> None:
    """A movement can ask for a row of a thousand columns; all blanks of a block together are bounded."""
    for piece in (b"\x1b[999Cx\n", b"x\r\x1b[999@\n", b"x\x1b[999G", b"\x1b[999Cx\r\x1b[999@"):
        raw = piece * (10**6 // len(piece))
        assert sum(map(len, plain_blocks(raw))) < 6 * len(raw)


def test_widths_that_are_taken_for_granted() -> None:
    narrow = [chr(code) for code in range(0x20, 0x11_0000) if is_narrow(chr(code))]
    assert {wcwidth(character) for character in narrow} == {1}
    known = [chr(code) for code in range(0x20, 0x11_0000) if is_known(chr(code))]
    assert {wcwidth(character) for character in set(known) - set(narrow)} == {2}
    assert {"█", "▏", "⠋", "…", "ß", "→"} < set(narrow)


@pytest.mark.parametrize(
    "step", [b"\x1b[P", b"\x1b[@", b"\x1b[9@\x1b[9P", b"\x1b[1K", b"\x1b[99X", b"\x1b[K"]
)
@pytest.mark.parametrize("text", [b"x", "日".encode(), b"\t"], ids=["plain", "wide", "tabs"])
def test_editing_a_long_line_takes_time_in_proportion(step: bytes, text: bytes) -> None:
    """What is moved is a row, not the line, whose fiftyfold would take 2500 times as long."""

    def seconds(size: int) -> float:
        line = text * (size // 2 // len(text)) + b"\r" + step * (size // 2 // len(step))
        began = time.thread_time()
        list(plain_blocks(line))
        return time.thread_time() - began

    small, large = min(seconds(10_000) for _ in range(3)), seconds(500_000)
    assert large < 500 * small + 0.5


ENDLESS = {
    "carriage returns": b"\r",
    "returns and a step back": b"\r\b",
    "backspaces": b"\b",
    "tabs": b"\t",
    "tabs written over": b"\t\t\r",
    "escapes": b"\x1b",
    "escapes with blanks": b"\x1b  ",
    "OSC without an end": b"\x1b]",
    "OSC's text": b"\x1b]0;",
    "DCS without an end": b"\x1bP",
    "CSI without a final": b"\x1b[",
    "CSI's parameters": b"0;",
    "CSI's intermediates": b"\x1b[  ",
    "private modes": b"\x1b[?25",
    "modes without a final": b"\x1b[?1049;",
    "toggles": b"\x1b[?1049h\x1b[?1049l",
    "half characters": b"\xe6\x97",
    "first bytes": b"\xf0",
    "marks": "\u0301".encode(),
    "joiners": "\u200d👧".encode(),
    "controls of the second kind": b"\xc2\x85",
    "bars": "\r█▏ 1%".encode(),
    "wide bars": "\r日本 1%".encode(),
    "wide and back": "日\b".encode(),
    "deletions": b"\x1b[P",
    "insertions": b"x\x1b[@\r",
    "erasures": b"\x1b[K\r",
    "marks of our own": b"\x01",
    "line ends": b"\n",
    "returned lines": b"\r\r\n",
}


@pytest.mark.parametrize(
    "before", [b"", b"\x1b[", b"\x1b]", b"x" * 1000 + b"\r", "日".encode() * 500 + b"\r"]
)
@pytest.mark.parametrize("piece", ENDLESS.values(), ids=ENDLESS.keys())
def test_twice_the_bytes_take_some_twice_the_time(piece: bytes, before: bytes) -> None:
    """Whatever comes: a search holds a thread, and one regular expression the whole interpreter."""

    def seconds(size: int) -> float:
        line = before + piece * (size // len(piece)) + b"x\r\n"
        best = 9.0
        for _ in range(3):
            began = time.thread_time()
            list(plain_blocks(line))
            best = min(best, time.thread_time() - began)
        return best

    assert seconds(64_000) < 12 * seconds(16_000) + 0.02
