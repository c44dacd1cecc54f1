"""`python -m benchmarks`: run the scenarios and print what they cost."""

import argparse
import sys
import time
from collections.abc import Iterable

from benchmarks.scenarios import NOMINAL_WRITE_US, SCENARIOS, Figure, Size, write_us
from benchmarks.servers import servers

_HEAD = ("CPU time for each event", "gateway", "raw", "ratio", "budget", "", "events/s", "raw events/s", "")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the stream path: a synthetic backend in, Server-Sent Events out. Costs are CPU"
        " time of the server's process for each delivered event; a ratio compares it with a bare ASGI"
        " application in the same run. A budget that is passed is printed and fails nothing.",
        epilog="scenarios: "
        + "; ".join(f"{name}: {(run.__doc__ or '').strip()}" for name, run in SCENARIOS.items()),
    )
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(SCENARIOS)}; default: all")
    parser.add_argument("--events", type=int, default=4000, help="events of a flat-out run [%(default)s]")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a paced run [%(default)s]")
    parser.add_argument(
        "--rounds", type=int, default=3, help="the best of so many rounds counts [%(default)s]"
    )
    parser.add_argument("--subscribers", type=int, default=100, help="of the fan-out [%(default)s]")
    parser.add_argument("--sessions", type=int, default=50, help="in parallel [%(default)s]")
    parser.add_argument("--streams", type=int, default=500, help="that are idle [%(default)s]")
    given = parser.parse_args()
    unknown = set(given.names) - SCENARIOS.keys()
    if unknown or min(given.events, given.seconds, given.rounds, given.subscribers, given.sessions) < 1:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}" if unknown else "sizes are at least 1")
    return given


def _cells(figure: Figure, write: float) -> tuple[str, ...]:
    def amount(value: float | None) -> str:
        if value is None:
            return ""
        return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {figure.unit}"

    def rate(value: float | None) -> str:
        return "" if value is None else f"{value:,.0f}"

    budget = figure.budget_here(write)
    return (
        figure.name,
        amount(figure.ours),
        amount(figure.raw),
        f"{figure.ratio:.2f}x" if figure.ratio is not None else "",
        amount(budget),
        "" if budget is None else "over" if figure.ours > budget else "ok",
        rate(figure.rate),
        rate(figure.raw_rate),
        figure.note,
    )


def _print(figures: Iterable[Figure], write: float) -> None:
    rows = [_HEAD, *(_cells(figure, write) for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if index in (0, 5, 8) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def main() -> None:
    """Run what was asked for."""
    given = _arguments()
    size = Size(
        events=given.events,
        seconds=given.seconds,
        rounds=given.rounds,
        subscribers=given.subscribers,
        sessions=given.sessions,
        streams=given.streams,
    )
    names = [name for name in SCENARIOS if name in (given.names or SCENARIOS)]
    figures: list[Figure] = []
    began = time.monotonic()

    def progress(what: str) -> None:
        print(f"[{time.monotonic() - began:5.1f} s] {what}", file=sys.stderr, flush=True)

    progress("starting both servers")
    with servers() as (gateway, raw):
        gateway.warm_up()
        progress("yardstick")
        write = write_us(raw, size)
        for name in names:
            progress(name)
            figures += SCENARIOS[name](gateway, raw, size)
    progress("done")
    _print(figures, write)
    print(
        f"\nThe raw server's paced write costs {write:.1f} µs here; budgets in µs are scaled to it"
        f" ({NOMINAL_WRITE_US:.0f} µs where they were found)."
    )


if __name__ == "__main__":
    main()
