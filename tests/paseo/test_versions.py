"""Which daemons were tried."""

import pytest

from app.paseo.versions import Support, support


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
