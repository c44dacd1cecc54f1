"""What the daemon answers: agents, pages of them and of their timelines, providers.

Times are the daemon's ISO 8601 texts, in UTC with milliseconds: they compare as texts.
"""

from typing import Any

import msgspec

from app.paseo.decoding import Frame, Position
from app.paseo.frames import PermissionRequest, Usage
from app.paseo.items import Item


class Mode(Frame, frozen=True):
    """A mode or a thinking option."""

    id: str
    label: str = ""
    description: str | None = None
    is_default: bool = False


class Model(Frame, frozen=True):
    """A model and how hard it can think."""

    id: str
    provider: str = ""
    label: str = ""
    description: str | None = None
    is_default: bool = False
    thinking_options: list[Mode] | None = None
    default_thinking_option_id: str | None = None


class Runtime(Frame, frozen=True):
    """What is really in force, whatever was asked for."""

    provider: str = ""
    session_id: str | None = None
    model: str | None = None
    thinking_option_id: str | None = None
    mode_id: str | None = None


class Persistence(Frame, frozen=True):
    """The provider's own session. (Its `metadata` may hold secrets of others and is left out.)"""

    provider: str = ""
    session_id: str = ""
    native_handle: str | None = None


class Agent(Frame, frozen=True):
    """An agent as the daemon sees it; `status`: initializing, idle, running, error, closed, or a newer one.

    `running` may be the ghost of a daemon that was killed. Snapshots repeat, and `updated_at` may go back.
    """

    id: str
    provider: str = ""
    cwd: str = ""
    status: str = ""
    title: str | None = None
    model: str | None = None
    current_mode_id: str | None = None
    thinking_option_id: str | None = None
    effective_thinking_option_id: str | None = None
    runtime: Runtime | None = msgspec.field(default=None, name="runtimeInfo")
    persistence: Persistence | None = None
    available_modes: list[Mode] = msgspec.field(default_factory=list)
    capabilities: dict[str, Any] = msgspec.field(default_factory=dict)
    pending_permissions: list[PermissionRequest] = msgspec.field(default_factory=list)
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    last_usage: Usage | None = None
    last_error: str | None = None
    created_at: str | None = None
    updated_at: str | None = None
    last_user_message_at: str | None = None
    requires_attention: bool = False
    attention_reason: str | None = None
    attention_timestamp: str | None = None
    archived_at: str | None = None

    @property
    def is_archived(self) -> bool:
        """Whether it was put away; a prompt or a refresh would bring it back."""
        return self.archived_at is not None


class AgentUpdate(Frame, frozen=True):
    """An `upsert` has an agent; a `remove` may also come for agents that were never known."""

    kind: str
    agent: Agent | None = None
    agent_id: str | None = None


class AgentAnswer(Frame, frozen=True):
    """An answer with an agent in it."""

    agent: Agent


class AgentEntry(Frame, frozen=True):
    """An agent in a list."""

    agent: Agent


class PageInfo(Frame, frozen=True):
    """Where a list goes on."""

    next_cursor: str | None = None
    prev_cursor: str | None = None
    has_more: bool = False


class AgentPage(Frame, frozen=True):
    """A page of a list of agents."""

    entries: list[AgentEntry] = msgspec.field(default_factory=list)
    page_info: PageInfo = PageInfo()


class Archived(Frame, frozen=True):
    """When an agent was archived."""

    agent_id: str
    archived_at: str


class Done(Frame, frozen=True):
    """An answer of which only that it came counts."""


class Loaded(Frame, frozen=True):
    """An agent was loaded again; its timeline has so many rows."""

    agent_id: str
    timeline_size: int | None = None


class Cursor(Frame, frozen=True):
    """The position of a row: `seq` counts from 1 in each epoch, over the stored rows without a gap."""

    epoch: str
    seq: Position


class Row(Frame, frozen=True):
    """A row of a page; in canonical pages `seq_start` is `seq_end`."""

    item: Item
    seq_start: Position
    seq_end: Position
    timestamp: str = ""
    provider: str = ""


class TimelinePage(Frame, frozen=True):
    """A page of a timeline, with the agent as it was at that moment.

    `reset`: the cursor was of another epoch, and the rows are the newest of the present one.
    """

    agent_id: str
    epoch: str
    agent: Agent | None = None
    entries: list[Row] = msgspec.field(default_factory=list)
    reset: bool = False
    stale_cursor: bool = False
    gap: bool = False
    start_cursor: Cursor | None = None
    end_cursor: Cursor | None = None
    has_older: bool = False
    has_newer: bool = False


class Provider(Frame, frozen=True):
    """A kind of agent; `status`: loading, ready, error, unavailable."""

    provider: str
    status: str = ""
    enabled: bool = True
    label: str | None = None
    description: str | None = None
    default_mode_id: str | None = None
    models: list[Model] | None = None
    modes: list[Mode] | None = None
    error: str | None = None
    fetched_at: str | None = None


class Providers(Frame, frozen=True):
    """The whole list; also the payload of `providers_snapshot_update`."""

    entries: list[Provider] = msgspec.field(default_factory=list)
