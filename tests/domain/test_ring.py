"""The ring: the newest bytes, each at its offset, under a bound."""

from hypothesis import given
from hypothesis import strategies as st

from app.domain.ring import Ring


@given(st.lists(st.binary(max_size=40), max_size=30), st.integers(min_value=16, max_value=100))
def test_it_is_the_end_of_everything_that_was_put_in(pieces: list[bytes], limit: int) -> None:
    ring = Ring(limit, complete=True)
    for piece in pieces:
        ring.append(piece)
    everything = b"".join(pieces)
    assert ring.end == len(everything)
    assert ring.content() == everything[-limit:]
    assert ring.base == max(0, len(everything) - limit)
    assert ring.first_line == everything[: ring.base].count(b"\n")
    assert ring.is_whole is (ring.base == 0)
    for offset in range(ring.base, ring.end + 1):
        assert ring.read(offset, 7) == everything[offset : offset + 7]


SWITCHES = [
    b"\x1b[?1049h",
    b"\x1b[?1049l",
    b"\x1b[?47h",
    b"\x1b[?1047l",
    b"\x1b[?25h",
    b"a\n",
    b"\x1b",
    b"[?",
]


def full_screen(text: bytes) -> bool:
    """By the last complete switch, looked for in a plain way."""
    on = [text.rfind(b"\x1b[?%ih" % mode) for mode in (1049, 1047, 47)]
    off = [text.rfind(b"\x1b[?%il" % mode) for mode in (1049, 1047, 47)]
    return max(on) > max(off)


@given(st.lists(st.sampled_from(SWITCHES), max_size=40), st.integers(min_value=16, max_value=60))
def test_it_knows_who_has_the_screen_wherever_it_is_cut(pieces: list[bytes], limit: int) -> None:
    """A switch may be split over two appends, and over the place where the oldest bytes are dropped."""
    ring = Ring(limit, complete=True)
    for byte in b"".join(pieces):
        ring.append(bytes([byte]))
    everything = b"".join(pieces)
    assert ring.is_full_screen is full_screen(everything)
    begun = [i for i in range(ring.base) if everything[i : i + 1] == b"\x1b"]
    before = everything[: max(ring.base, begun[-1] + 8 if begun and begun[-1] + 8 > ring.base else 0)]
    assert ring.full_screen_at_base is full_screen(before)
    whole = Ring(limit, complete=True)
    whole.append(everything)
    assert (whole.is_full_screen, whole.full_screen_at_base) == (
        ring.is_full_screen,
        ring.full_screen_at_base,
    )


def test_rings_are_told_apart() -> None:
    assert Ring(16, complete=True).id != Ring(16, complete=True).id
