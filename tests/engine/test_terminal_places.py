"""How many texts of terminals are read at once, and for whom."""

from contextlib import ExitStack

import pytest

from app.domain.errors import RateLimited
from app.domain.ids import Owner
from app.engine.terminal_places import MOST_OF_ONE, MOST_PLACES, Places


def test_one_owner_never_takes_all_places() -> None:
    """One too many is told when to come again, and others go on; a place that was left is free."""
    places = Places()
    with ExitStack() as stack:
        for _ in range(MOST_OF_ONE):
            stack.enter_context(places.taken(Owner("greedy")))
        with pytest.raises(RateLimited), places.taken(Owner("greedy")):
            pass
        with places.taken(Owner("other")):
            pass
    with places.taken(Owner("greedy")):
        pass


def test_places_are_bounded_over_all_owners() -> None:
    places = Places()
    with ExitStack() as stack:
        for number in range(MOST_PLACES):
            stack.enter_context(places.taken(Owner(f"o{number}")))
        with pytest.raises(RateLimited), places.taken(Owner("one more")):
            pass
