"""A backend that sessions still name and no configuration does: nothing of it can be reached."""

from collections.abc import Sequence
from pathlib import Path

from app.backends.base import (
    Agent,
    AgentSpec,
    BackendUnavailable,
    Capabilities,
    Health,
    OpenAttempt,
    Place,
    Provider,
)
from app.domain.signals import Cursor


class AbsentBackend:
    """Implements `Backend` for sessions that have to come to an end without theirs."""

    type = "absent"
    capabilities = Capabilities(permissions=False, settings=False, attachments=frozenset())
    place = Place(filesystem="remote", default_cwd=Path("/"), roots=(Path("/"),))

    def __init__(self, name: str) -> None:
        self.name = name
        self.default_provider = name
        self.server_id: str | None = None

    async def health(self) -> Health:
        """Down, and why."""
        return Health(up=False, detail=str(self._absent()))

    async def providers(self) -> Sequence[Provider]:
        """Raises BackendUnavailable."""
        raise self._absent()

    async def create(self, spec: AgentSpec) -> Agent:
        """Raises BackendUnavailable; nothing was made."""
        raise self._absent()

    async def find(self, spec: AgentSpec) -> Agent | None:
        """Raises BackendUnavailable: there may be one."""
        raise self._absent()

    async def load(
        self, spec: AgentSpec, session: str, cursor: Cursor | None, attempt: OpenAttempt | None = None
    ) -> Agent:
        """Raises BackendUnavailable."""
        raise self._absent()

    async def archive(self, session: str) -> None:
        """Raises BackendUnavailable."""
        raise self._absent()

    def beat(self) -> None:
        """Nothing depends on it."""

    async def aclose(self) -> None:
        """Nothing is held."""

    def _absent(self) -> BackendUnavailable:
        return BackendUnavailable(f"no backend {self.name!r} is configured any more")
