"""Bodies of health: the service's own, and of every backend with what it can do and offers."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field

from app.api.schemas.bodies import ListView, View, is_null
from app.backends.base import Choice, Provider


class DatabaseHealth(View):
    """The database."""

    status: Literal["up", "down"]
    latency_ms: float | None = None
    version: str | None = None
    embedded: bool | None = None
    detail: str | None = None


class BackendHealth(View):
    """A backend at the last look."""

    status: Literal["up", "down"]
    counted: bool = Field(description="Whether it counts for the service's own status.")
    latency_ms: float | None = None
    version: str | None = None
    tested: bool | None = Field(None, description="Whether Alameda was tested with that version.")
    detail: str | None = Field(None, description="What is wrong, and how to cure it.")


class StreamCounts(View):
    """Streams of this replica."""

    open: int


class TurnCounts(View):
    """Open turns."""

    running: int
    queued: int


class HealthView(View):
    """The service's health; without a key only `status`."""

    status: Literal["ok", "degraded", "down"]
    version: str | None = Field(None, exclude_if=is_null)
    uptime_s: float | None = Field(None, exclude_if=is_null)
    database: DatabaseHealth | None = Field(None, exclude_if=is_null)
    backends: dict[str, BackendHealth] | None = Field(None, exclude_if=is_null)
    streams: StreamCounts | None = Field(None, exclude_if=is_null)
    turns: TurnCounts | None = Field(None, exclude_if=is_null)


class ProbeView(View):
    """Whether the process answers, or is ready."""

    status: Literal["ok", "unready"]
    detail: str | None = Field(None, exclude_if=is_null)


class CapabilitiesView(View):
    """What a backend can do; the rest is `unsupported_by_backend`."""

    permissions: bool
    settings: bool
    attachments: list[str]
    system_prompt: bool
    mcp_servers: bool
    worktrees: bool
    imports: bool
    terminals: bool


class BackendView(BackendHealth):
    """A backend: its health, what it can do, and what it has to do."""

    name: str
    type: str
    default: bool
    draining: bool
    filesystem: Literal["shared", "remote"]
    capabilities: CapabilitiesView
    turns: TurnCounts


class ChoiceView(View):
    """A model, a mode or a thinking option that may be set."""

    id: str
    label: str
    description: str | None


class ProviderView(View):
    """A kind of agent that a backend can run. Empty lists: not known, anything may be tried."""

    id: str
    label: str
    available: bool
    detail: str | None
    models: list[ChoiceView]
    modes: list[ChoiceView]
    thinking: list[ChoiceView]

    @classmethod
    def from_domain(cls, provider: Provider) -> Self:
        """A provider and what may be chosen there."""
        return cls(
            id=provider.id,
            label=provider.label,
            available=provider.available,
            detail=provider.detail,
            models=_choices(provider.models),
            modes=_choices(provider.modes),
            thinking=_choices(provider.thinking),
        )


def _choices(choices: Sequence[Choice]) -> list[ChoiceView]:
    return [ChoiceView(id=c.id, label=c.label, description=c.description) for c in choices]


class BackendList(ListView[BackendView]):
    """Every backend."""


class ProviderList(ListView[ProviderView]):
    """A backend's providers."""
