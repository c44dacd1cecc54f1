"""How far back raw output surely reaches: what a screen shows may be older than as many line ends suggest."""

import re
import time

_BLOCK = 64 * 1024
"""Bytes that are looked at in one go, from the end backwards, but for a line that is longer."""
_LONGEST = 1024 * 1024
"""Bytes of a line; beyond a longer one nothing is sure."""
_MAY_GO_UP = re.compile(
    rb"\x1b(?!"
    rb"\[[0-9;:]*[@BCDEGIKPXZ`abegmn]"  # within the line, downwards, looks
    rb"|\[[01]?J"
    rb"|\[[0-9;]* q"
    rb"|\[[<=>?][0-9;]*[cmnu]"
    rb"|\[\?(?:1|7|12|25|100[0-6]|1015|2004|2026)[hl]"  # keys, wrapping, cursor, mouse, pasting
    rb"|\][^\x00-\x1f\x7f]*(?:\x07|\x1b\\)"
    rb"|[()*+][0-9A-Z]"
    rb"|[7=>DEH\\]"
    rb")"
)
"""Whatever is not known to leave the lines above the cursor where they are, in the order of their output."""


def lines_reached(raw: bytes, wanted: int) -> int:
    """How many of the newest lines stand in `raw` from their beginning, as far as is sure; at most `wanted`.

    Of lines that a program has gone up to, or has painted all over the screen, it is not.
    """
    reached, end = 0, len(raw)
    while end > 0 and reached < wanted:
        time.sleep(0)  # lets another thread have the interpreter
        start = raw.rfind(b"\n", max(0, end - _LONGEST), max(0, end - _BLOCK)) + 1
        if not start and end > _LONGEST:
            break
        block = raw[start:end]
        after = 0
        for found in _MAY_GO_UP.finditer(block):
            after = found.end()
        reached += block.count(b"\n", after)
        if after:
            break
        end = start
    return min(reached, wanted)
