"""Which daemons this client was tried with. Newer ones keep old clients working, within protocol 1."""

import re
from enum import StrEnum
from typing import NamedTuple

TESTED_FROM = "0.1.65"
TESTED_TO = "0.1.65"
"""The releases tried, both included; a beta counts as its release."""

_VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(?:-([0-9A-Za-z.-]+))?(?:\+.*)?")


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


class Version(NamedTuple):
    """A version that compares; a pre-release comes before its release."""

    major: int
    minor: int
    patch: int
    is_release: bool = True
    pre_release: tuple[tuple[int, int, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Version | None":
        """The version in a text such as `0.1.65-beta.5`."""
        found = _VERSION.fullmatch(text.strip())
        if found is None:
            return None
        parts = found[4].split(".") if found[4] else []
        pre_release = tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)
        return cls(int(found[1]), int(found[2]), int(found[3]), not parts, pre_release)

    @property
    def release(self) -> tuple[int, int, int]:
        """Without what comes before the release."""
        return self.major, self.minor, self.patch


def support(version: str | None) -> Support:
    """What is known about a daemon that says it is of this version."""
    found = Version.parse(version or "")
    first, last = Version.parse(TESTED_FROM), Version.parse(TESTED_TO)
    assert first is not None and last is not None
    if found is None:
        return Support.UNKNOWN
    if found.release < first.release:
        return Support.OLDER
    return Support.NEWER if found.release > last.release else Support.TESTED
