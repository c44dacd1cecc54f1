"""The backend type `paseo`, as far as it goes: whether a daemon answers, and why it is of no use yet."""

import time
from collections.abc import Sequence

import httpx

from app.backends.base import Agent, AgentSpec, BackendUnavailable, Capabilities, Health, Place, Provider
from app.domain.signals import Cursor

LOOK_S = 4.0
"""Seconds that a daemon has to answer."""


class PaseoBackend:
    """A Paseo daemon. This version looks at it and says so; it cannot hold its agents yet."""

    type = "paseo"
    capabilities = Capabilities(permissions=False, settings=False, attachments=frozenset())

    def __init__(self, name: str, url: str, password: str | None, place: Place, provider: str) -> None:
        self.name = name
        self.place = place
        self.default_provider = provider
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {password}"} if password else {}

    async def health(self) -> Health:
        """Ask the daemon for its status; never raises."""
        started = time.monotonic()
        try:
            async with httpx.AsyncClient(timeout=LOOK_S, trust_env=False, headers=self._headers) as client:
                answer = await client.get(f"{self._url}/api/status")
        except httpx.HTTPError as error:
            cure = f"start the daemon (`paseo daemon start`) or set PASEO_URL; {type(error).__name__}"
            return Health(up=False, detail=f"no daemon answers at {self._url}: {cure}")
        latency = round((time.monotonic() - started) * 1000, 1)
        return Health(up=False, detail=_reason(answer), version=_version(answer), latency_ms=latency)

    async def providers(self) -> Sequence[Provider]:
        """Raises BackendUnavailable: agents of the daemon cannot be held yet."""
        raise await self._unavailable()

    async def create(self, spec: AgentSpec) -> Agent:
        """Raises BackendUnavailable; nothing was made."""
        raise await self._unavailable()

    async def find(self, spec: AgentSpec) -> Agent | None:
        """None: nothing was ever made."""
        return None

    async def load(
        self, spec: AgentSpec, session: str, cursor: Cursor | None, attempt: str | None = None
    ) -> Agent:
        """Raises BackendUnavailable."""
        raise await self._unavailable()

    async def archive(self, session: str) -> None:
        """Raises BackendUnavailable."""
        raise await self._unavailable()

    def beat(self) -> None:
        """Nothing of ours depends on it."""

    async def aclose(self) -> None:
        """Nothing is held."""

    async def _unavailable(self) -> BackendUnavailable:
        return BackendUnavailable((await self.health()).detail or "the daemon cannot be used")


def _reason(answer: httpx.Response) -> str:
    match answer.status_code:
        case 200:
            return (
                "a daemon answers, but this version of Alameda cannot run its agents yet; use an acp backend"
            )
        case 401:
            return "the daemon wants another password: set PASEO_PASSWORD"
        case 403:
            return "the daemon refuses this host name: add it to PASEO_HOSTNAMES at the daemon"
        case status:
            return f"what answers there is no Paseo daemon (HTTP {status})"


def _version(answer: httpx.Response) -> str | None:
    try:
        version = answer.json().get("version")
    except (ValueError, AttributeError):
        return None
    return version if isinstance(version, str) else None
