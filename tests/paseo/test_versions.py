"""Which daemons were tried."""

import pytest

from app.paseo.versions import Support, Version, support


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.1.65", Support.TESTED),
        ("0.1.65-beta.5", Support.TESTED),
        ("0.1.64", Support.OLDER),
        ("0.1.106", Support.NEWER),
        ("0.11.0", Support.NEWER),
        ("1.0.0-rc.1+build", Support.NEWER),
        ("nightly", Support.UNKNOWN),
        (None, Support.UNKNOWN),
    ],
)
def test_what_is_known_of_a_version(version: str | None, expected: Support) -> None:
    assert support(version) is expected
    assert support(version).is_tested is (expected is Support.TESTED)


def test_versions_compare_as_they_were_released() -> None:
    texts = ["0.1.9", "0.1.65-alpha", "0.1.65-beta.5", "0.1.65-beta.10", "0.1.65", "0.1.106", "0.2.0"]
    versions = [Version.parse(text) for text in texts]
    assert None not in versions
    assert sorted(versions, reverse=True)[::-1] == versions  # type: ignore[type-var]  # None was ruled out
