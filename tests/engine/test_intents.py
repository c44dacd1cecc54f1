"""Errors on their way from a host to the caller in another process: nothing of them is lost or made up."""

import json

import pytest

from app.backends.base import ProviderNotFound
from app.domain.errors import NoSuchProvider
from app.engine.intents import describe, raise_described


def test_an_unknown_provider_is_named_to_the_caller_with_those_that_there_are() -> None:
    words = "Unknown provider 'nope'. Configured providers: a, b."
    written = json.dumps(describe(ProviderNotFound(words, provider="nope", available=["a", "b"])))
    with pytest.raises(NoSuchProvider) as raised:
        raise_described(json.loads(written))
    assert (raised.value.provider, raised.value.available) == ("nope", ["a", "b"])
