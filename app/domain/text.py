"""Text as the database and JSON can hold it."""

import re
from datetime import UTC, datetime

from msgspec import UNSET, Struct, UnsetType

MAX_STRING = 64 * 1024
"""UTF-8 bytes of one string in a tool call's detail; a longer one keeps its head and its tail."""

_CUT = "\n…\n"
"""Stands where the middle was."""

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def clean(text: str) -> str:
    """`text` with NUL and lone surrogates, which PostgreSQL and UTF-8 refuse, replaced by U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text)


def is_storable(text: str) -> bool:
    """Whether `text` has neither NUL nor a lone surrogate."""
    return _UNSTORABLE.search(text) is None


class Cut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Says of the struct that carries it whether a string in it was shortened, and what it had."""

    truncated: bool | UnsetType = UNSET
    """True if a string of this object was shortened."""
    bytes: int | UnsetType = UNSET
    """UTF-8 bytes of the longest shortened string before that."""


def shorten(text: str, limit: int = MAX_STRING) -> tuple[str, int | None]:
    """`text` cut to its head and tail if it is over `limit` UTF-8 bytes, and its full size if it was cut.

    What comes back is within `limit`: cutting it again changes nothing.
    """
    if len(text) * 4 <= limit:
        return text, None
    encoded = text.encode(errors="replace")
    if len(encoded) <= limit:
        return text, None
    half = (limit - len(_CUT.encode())) // 2
    head, tail = encoded[:half], encoded[-half:]
    return head.decode(errors="ignore") + _CUT + tail.decode(errors="ignore"), len(encoded)


def timestamp(at: datetime) -> str:
    """RFC 3339 in UTC with milliseconds."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"
