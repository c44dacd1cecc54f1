"""Numbers as the database and every JSON reader can hold them: an agent may tell any."""

import math
from typing import Any

MAX_WHOLE = 2**53 - 1
"""The largest whole number that every JSON reader takes exactly (RFC 8259, section 6)."""


def whole(value: Any) -> int | None:
    """`value` if it is a whole number that can be kept; null for any other, and for true and false."""
    return value if type(value) is int and -MAX_WHOLE <= value <= MAX_WHOLE else None


def count(value: Any) -> int | None:
    """The same of numbers from 0 on."""
    found = whole(value)
    return found if found is not None and found >= 0 else None


def amount(value: Any) -> float | None:
    """`value` as a finite number; null for whatever is none."""
    if type(value) not in (int, float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None
