"""What the `paseo` command answers, as far as we read it: what is not as documented is no answer."""

from typing import Literal

from msgspec import Struct, field


class Made(Struct, frozen=True, rename="camel"):
    """An agent that was made, or adopted."""

    agent_id: str
    status: Literal["created", "running", "completed", "error", "permission", "timeout"]
    provider: str
    cwd: str


class SentMessage(Struct, frozen=True, rename="camel"):
    """A prompt that the daemon has taken."""

    agent_id: str
    status: Literal["sent"]


class Waited(Struct, frozen=True, rename="camel"):
    """How an agent stands; `error` also for one that is unknown."""

    agent_id: str
    status: Literal["idle", "timeout", "permission", "error"]
    message: str | None = None


class Inspected(Struct, frozen=True):
    """An agent as it is stored; looking loads nothing."""

    id: str = field(name="Id")
    provider: str = field(name="Provider")
    status: Literal["initializing", "idle", "running", "error", "closed"] = field(name="Status")
    archived: bool = field(name="Archived")
    cwd: str = field(name="Cwd")
    shown_model: str = field(name="Model", default="-")
    shown_thinking: str = field(name="Thinking", default="auto")
    mode: str | None = field(name="Mode", default=None)

    @property
    def model(self) -> str | None:
        """The model in force, if the daemon knows one."""
        return None if self.shown_model == "-" else self.shown_model

    @property
    def thinking(self) -> str | None:
        """The thinking option in force; null also for one called `auto`, as the command calls none."""
        return None if self.shown_thinking == "auto" else self.shown_thinking


class Listed(Struct, frozen=True):
    """An agent in the list."""

    id: str


class ListedProvider(Struct, frozen=True):
    """A provider in the list."""

    provider: str
    status: str
    label: str = ""
    enabled: str = "Enabled"


class Stopped(Struct, frozen=True, rename="camel"):
    """How many turns were stopped."""

    stopped_count: int


class Archived(Struct, frozen=True, rename="camel"):
    """An agent that was put away."""

    agent_id: str
    status: Literal["archived"]


class Reloaded(Struct, frozen=True, rename="camel"):
    """An agent whose process was started anew."""

    agent_id: str
    status: Literal["reloaded"]
