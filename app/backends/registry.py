"""The backends of this process, by name."""

from collections.abc import Iterable, Iterator

from app.backends.base import Backend


class Registry:
    """Every backend by its name, in the order of the configuration."""

    def __init__(self, backends: Iterable[Backend], *, default: str, counted: Iterable[str]) -> None:
        """`default` is for requests that name no backend in any way; `counted` decide `/health`."""
        self._backends = {backend.name: backend for backend in backends}
        self.default = default
        self.counted = frozenset(counted)

    def __iter__(self) -> Iterator[Backend]:
        return iter(self._backends.values())

    def get(self, name: str) -> Backend | None:
        """The backend of that name."""
        return self._backends.get(name)

    def names(self) -> list[str]:
        """All names."""
        return list(self._backends)

    def elsewhere(self, name: str) -> list[str]:
        """The backends on another daemon than that one: not those of which nobody can say."""
        here = self._backends.get(name)
        server = here.server_id if here is not None else None
        return [one.name for one in self if None not in (server, one.server_id) and one.server_id != server]

    def mortal(self) -> list[str]:
        """The backends whose agents end with the process that hosts them."""
        return [backend.name for backend in self if not backend.capabilities.survives_host]
