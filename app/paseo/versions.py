"""Which daemons this client was tried with. Newer ones keep old clients working, within protocol 1."""

import re
from enum import StrEnum

TESTED_FROM = "0.1.65"
TESTED_TO = "0.1.65"
"""The releases tried, both included; a beta counts as its release."""

_VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(?:-[0-9A-Za-z.-]+)?(?:\+.*)?")


class Support(StrEnum):
    """What is known about a version."""

    TESTED = "tested"
    NEWER = "newer"
    """Untested; expected to work: what is new there is ignored here."""
    OLDER = "older"
    """Untested, and it may lack what this client asks for."""
    UNKNOWN = "unknown"
    """No version, or not one of these."""

    @property
    def is_tested(self) -> bool:
        """Whether this very release was tried."""
        return self is Support.TESTED


def release_of(text: str) -> tuple[int, int, int] | None:
    """The release in a version such as `0.1.65-beta.5`, without what comes before it; null if it is none."""
    found = _VERSION.fullmatch(text.strip())
    return None if found is None else (int(found[1]), int(found[2]), int(found[3]))


def support(version: str | None) -> Support:
    """What is known about a daemon that says it is of this version."""
    found, first, last = release_of(version or ""), release_of(TESTED_FROM), release_of(TESTED_TO)
    assert first is not None and last is not None
    if found is None:
        return Support.UNKNOWN
    if found < first:
        return Support.OLDER
    return Support.NEWER if found > last else Support.TESTED
