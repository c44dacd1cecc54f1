"""The ring: the newest bytes, each at its offset, under a bound."""

from hypothesis import given
from hypothesis import strategies as st

from app.domain.ring import Ring, lines_ended


@given(st.lists(st.binary(max_size=40), max_size=30), st.integers(min_value=128, max_value=300))
def test_it_is_the_end_of_everything_that_was_put_in(pieces: list[bytes], limit: int) -> None:
    ring = Ring(limit, complete=True)
    for piece in pieces:
        ring.append(piece)
    everything = b"".join(pieces)
    assert ring.end == len(everything)
    assert ring.content() == everything[-limit:]
    assert ring.base == max(0, len(everything) - limit)
    assert (ring.first_line, ring.full_screen_at_base) == lines_ended(everything, 0, ring.base, False)
    assert ring.is_whole is (ring.base == 0)
    for offset in range(ring.base, ring.end + 1):
        assert ring.read(offset, 7) == everything[offset : offset + 7]


SWITCHES = [
    b"\x1b[?1049h",
    b"\x1b[?1049l",
    b"\x1b[?47h",
    b"\x1b[?1047l",
    b"\x1b[?25h",
    b"\x1b[?1049;25h",
    b"\x1b[?25;47;12l",
    b"\x1b[?2;4;7h",
    b"a\n",
    b"\x1b",
    b"[?",
]


def switches(text: bytes) -> list[tuple[int, bool]]:
    """Where each complete switch begins, looked for in a plain way, and whether it takes the screen."""
    found = []
    for start in range(len(text)):
        if text[start:].startswith(b"\x1b[?"):
            modes = text[start + 3 :].lstrip(b"0123456789;")
            named = text[start + 3 : len(text) - len(modes)].split(b";")
            if {b"1049", b"1047", b"47"} & set(named) and modes[:1] in (b"h", b"l"):
                found.append((start, modes[:1] == b"h"))
    return found


@given(st.lists(st.sampled_from(SWITCHES), max_size=80), st.integers(min_value=128, max_value=200))
def test_it_knows_who_has_the_screen_wherever_it_is_cut(pieces: list[bytes], limit: int) -> None:
    """A switch may be split over two appends, and over the place where the oldest bytes are dropped."""
    ring = Ring(limit, complete=True)
    for byte in b"".join(pieces):
        ring.append(bytes([byte]))
    everything = b"".join(pieces)
    found = switches(everything)
    assert ring.is_full_screen is (bool(found) and found[-1][1])
    before = [takes for start, takes in found if start < ring.base]
    assert ring.full_screen_at_base is (bool(before) and before[-1])
    whole = Ring(limit, complete=True)
    whole.append(everything)
    assert (whole.is_full_screen, whole.full_screen_at_base) == (
        ring.is_full_screen,
        ring.full_screen_at_base,
    )


def test_rings_are_told_apart() -> None:
    assert Ring(128, complete=True).id != Ring(128, complete=True).id
