"""The demo agent, saying also what no prompt can hold: `{nul}` is a NUL, `{long}` a line of a megabyte."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from app import demo

LONG = 1_000_000
"""Characters of the long line."""


class HostileTurn(demo.Turn):
    """A turn whose script may name the characters that it cannot hold."""

    def play(self, text: str) -> dict[str, Any]:
        """Do what the prompt says, with the names replaced."""
        return super().play(text.replace("{nul}", "\0").replace("{long}", "x" * LONG))


if __name__ == "__main__":
    demo.Turn = HostileTurn  # type: ignore[misc]
    demo.main()
