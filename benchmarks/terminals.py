"""`python -m benchmarks.terminals`: search in a full ring of a terminal's output.

A ratio compares the whole search (copying the ring, reading lines out of raw bytes, matching, columns) with
one pass of Python's `re` that takes the colours out of the same bytes. `held` is the longest that another
thread had to wait meanwhile, as the event loop would.
"""

import argparse
import re
import threading
import time
from collections.abc import Callable
from functools import partial

from app.domain.plain import newest_first
from app.domain.ring import Ring
from app.domain.search import Query, search

_CSI = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]")
_COLOURS = b"\x1b[32mok\x1b[0m %06d some words of a build's output, here and there\r\n"
_PROGRESS = b"\r\x1b[K%3d%% %06d of the things that are fetched"


def _filled(size: int, piece: Callable[[int], bytes]) -> Ring:
    ring = Ring(size, complete=True)
    number = 0
    while ring.end < size + size // 10:  # past its bound: the oldest is gone
        ring.append(b"".join([piece(number + i) for i in range(1000)]))
        number += 1000
    return ring


WORKLOADS: dict[str, Callable[[int], bytes]] = {
    "a build in colour": lambda n: _COLOURS % n,
    "progress bars": lambda n: _PROGRESS % (n % 100, n) + (b"\r\n" if n % 50 == 49 else b""),
    "progress bars of blocks": lambda n: (
        f"\r{n % 100:3}%|{'█' * (n % 10)}▏{' ' * (9 - n % 10)}| {n:06}/999999 [00:01<00:09]".encode()
        + (b"\r\n" if n % 50 == 49 else b"")
    ),
    "a spinner": lambda n: (
        f"\x1b[1G\x1b[0K{'⠋⠙⠹⠸'[n % 4]} installing {n:06}…".encode() + (b"\r\n" if n % 2 else b"")
    ),
    "progress bars, wide": lambda n: (
        f"\r{n % 100:3}% 日本語 {n:06}".encode() + (b"\r\n" if n % 50 == 49 else b"")
    ),
    "wide characters": lambda n: f"日本語 {n:06} \x1b[1mfett\x1b[0m und größer\r\n".encode(),
    "one line without end": lambda n: b"%06d without an end " % n,
    "a program on the whole screen": lambda n: (
        b"\x1b[?1049h" if not n else b"\x1b[%d;1H\x1b[7m%06d\x1b[m" % (n % 24, n)
    ),
}
QUERIES: dict[str, Query] = {
    "text": Query(text="999999 is nowhere"),
    "text, any case": Query(text="NOWHERE at all", ignore_case=True),
    "expression": Query(text=r"^\w+ \d+ nowhere$", regex=True),
    "nested repeats": Query(text=r"((a+)+b|(\d+)+x)+$", regex=True),
}


def _best(rounds: int, run: Callable[[], object]) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def _longest_wait(run: Callable[[], object]) -> float:
    """The longest that another thread waited for the interpreter while `run` ran."""
    ended = threading.Event()

    def work() -> None:
        run()
        ended.set()

    worker = threading.Thread(target=work)
    longest, last = 0.0, time.perf_counter()
    worker.start()
    while not ended.is_set():
        time.sleep(0.0005)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    worker.join()
    return longest


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.terminals", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=10, help="of output in the ring [%(default)s]")
    parser.add_argument(
        "--rounds", type=int, default=3, help="the best of so many rounds counts [%(default)s]"
    )
    given = parser.parse_args()
    print(f"{'output':32}{'query':18}{'search':>10}{'re':>10}{'ratio':>8}{'held':>10}")
    for name, piece in WORKLOADS.items():
        ring = _filled(given.megabytes * 1_000_000, piece)
        raw = ring.content()
        yardstick = _best(given.rounds, partial(_CSI.sub, b"", raw))
        for asked, query in QUERIES.items():

            def run(ring: Ring = ring, query: Query = query) -> None:
                blocks = newest_first(
                    ring.content(),
                    full_screen=ring.full_screen_at_base,
                    first_line=ring.first_line,
                    is_cut=ring.base > 0,
                )
                found = search(blocks, query)
                assert not found.matches and not found.truncated

            took = _best(given.rounds, run)
            held = _longest_wait(run)
            times = "".join(f"{seconds * 1000:>7.0f} ms" for seconds in (took, yardstick))
            print(f"{name:32}{asked:18}{times}{took / yardstick:>7.1f}x{held * 1000:>7.0f} ms")


if __name__ == "__main__":
    main()
