"""The stand-in for the `paseo` command, set up in a folder."""

import json
import sys
from pathlib import Path
from typing import Any

STAND_IN = Path(__file__).with_name("stand_in.py")


def stand_in(folder: Path, *, speed: float = 10.0) -> tuple[tuple[str, ...], dict[str, str]]:
    """The command that runs it, and the environment that it needs."""
    state = folder / "state.json"
    if not state.exists():  # else another process goes on with the same daemon
        state.write_text(json.dumps({"speed": speed, "agents": {}}))
    return (sys.executable, "-I", "-S", str(STAND_IN)), {"STAND_IN": str(folder)}


def heard(folder: Path) -> list[dict[str, Any]]:
    """How it was called, each time."""
    path = folder / "argv.log"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def fault(folder: Path, **how: str) -> None:
    """Have the next command of that name misbehave."""
    (folder / "faults.json").write_text(json.dumps(how))
