"""Run it and say what came of it; exit code 1 if a promise was broken."""

import argparse
import random
import sys
import tempfile
from pathlib import Path

import anyio

from benchmarks.chaos.checker import violations
from benchmarks.chaos.run import run
from benchmarks.chaos.world import RealDaemon


def main() -> None:
    """Kill processes under clients, then check every promise."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=main.__doc__)
    parser.add_argument("--kills", type=int, default=50, help="processes to kill (50)")
    parser.add_argument("--clients", type=int, default=20, help="callers, each with a session (20)")
    parser.add_argument("--seed", type=int, default=None, help="of what is broken, and when; default: any")
    parser.add_argument("--keep", type=Path, help="an empty folder for the database and the programs' logs")
    parser.add_argument(
        "--sabotage",
        metavar="SQL",
        help="what breaks a promise behind our back, to be noticed: DELETE FROM events WHERE seq = 3",
    )
    parser.add_argument(
        "--daemon",
        nargs=3,
        metavar=("COMMAND", "PORT", "ASKED"),
        help="a real daemon instead of the twin: a shell command that starts it (with exec), its port, and a "
        "folder of files with everything that its provider `scripted`, the demo agent, is sent",
    )
    options = parser.parse_args()
    daemon = options.daemon and RealDaemon(options.daemon[0], int(options.daemon[1]), Path(options.daemon[2]))
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="alameda-chaos-") as name:
        folder = options.keep or Path(name)
        folder.mkdir(exist_ok=True)
        evidence, figures = anyio.run(
            lambda: run(
                folder,
                kills=options.kills,
                clients=options.clients,
                seed=seed,
                say=_say,
                sabotage=options.sabotage,
                daemon=daemon,
            )
        )
    print(figures)
    found = violations(evidence)
    print(f"violations: {len(found)}")
    for what in found[:50]:
        print(f"  {what}")
    sys.exit(1 if found else 0)


def _say(words: str) -> None:
    print(f"  … {words}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
