"""The text that is read out of raw output, beside what a real terminal shows of the same bytes."""

import random
import shlex
from pathlib import Path

from app.backends.tmux import TmuxTerminals
from app.domain.plain import plain_blocks
from app.domain.terminals import TerminalSpec
from tests.backends.tmux_house import shown, tmux_terminals

FINALS = "@CDGKPX`"
SHELLS = [
    "$ git psuh\x1b[3D\x1b[P\x1b[C\x1b[1@s\x1b[C origin",  # mended with the keys for left, delete and right
    "$ echo b\x08a\x1b[K\x08\x08\x1b[1@x\x1b[2C y",
    "$ ls -a\x08 \x08l\x1b[J",
    "\x1b[1m%\x1b[0m"
    + " " * 79
    + "\r \r\r\x1b[0m\x1b[27m\x1b[24m\x1b[J% make\x1b[K\x1b[?2004h",  # zsh's prompt
    "  0%|          | 0/9\r 50%|#####     | 4/9\r100%|##########| 9/9",
    "fetching 99%\x1b[2K\rdone",
    "left\x1b[40Gright\x1b[20Dmiddle",
    "\x1b[01;31m\x1b[Kmatch\x1b[m\x1b[K of grep",
    "name\tsize\r\x1b[2Cx",
    "日本語 und größer\x1b[8D\x1b[1Kx",
]
"""What shells and programs really write."""


async def shown_by_tmux(terminals: TmuxTerminals, folder: Path, raw: bytes) -> list[str]:
    """The lines that tmux shows of some output."""
    (folder / "raw").write_bytes(raw + b"\r\nende")
    command = f"stty raw; cat {shlex.quote(str(folder / 'raw'))}; read x"
    spec = TerminalSpec(command="sh", args=["-c", command], rows=24, cols=1000)
    handle = await terminals.create("t", "/", spec)
    await terminals.start(handle, "/", spec)
    return [line.rstrip() for line in await shown(terminals, handle, "ende")][:-1]


def read(raw: bytes) -> list[str]:
    """The lines that are read out of it, tabs as blanks."""
    return [line.expandtabs(8).rstrip() for line in b"".join(plain_blocks(raw)).decode().split("\n")]


MOVES = ["\r", "\b", "\b\b\b", "\x1b[1m", "\x1b[?25l"]


def edited(dice: random.Random, alphabet: str, finals: str, moves: list[str]) -> str:
    """A line in which the cursor goes to and fro."""
    pieces = []
    for _ in range(dice.randrange(1, 25)):
        match dice.randrange(4):
            case 0 | 1:
                pieces.append("".join(dice.choices(alphabet, k=dice.randrange(1, 12))))
            case 2:
                pieces.append(dice.choice(moves))
            case _:
                number = dice.choice(["", *map(str, range(14)), "40"])
                final = dice.choice(finals)
                pieces.append(f"\x1b[{number if final != 'K' else dice.choice(['', '0', '1', '2'])}{final}")
    return "".join(pieces)


async def test_lines_are_read_as_a_real_terminal_shows_them(folder: Path) -> None:
    """Each of them by itself, so that a failure names one."""
    dice = random.Random(22)
    lines = [*SHELLS, *(edited(dice, "abcdefgh ", FINALS, [*MOVES, "\x1b[J"]) for _ in range(600))]
    # What becomes of half a wide character when the rest is erased or moved, terminals do not agree about.
    lines += [edited(dice, "ab日é", "CDG`", MOVES) for _ in range(200)]
    raw = "\r\n".join(f"{number}:{line}" for number, line in enumerate(lines)).encode()
    with tmux_terminals(folder) as terminals:
        told = await shown_by_tmux(terminals, folder, raw)
    found = read(raw)
    assert len(found) == len(told) == len(lines)
    differing = [
        (line, tell, find) for line, tell, find in zip(lines, told, found, strict=True) if tell != find
    ]
    assert differing == []
