"""A twin's agent: what it is, how a client sees it, what of it is kept."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.paseo.twin_places import Place
from tests.paseo.twin_providers import Provider
from tests.paseo.twin_timeline import Timeline, now

if TYPE_CHECKING:
    from tests.paseo.twin_turns import Process

Json = dict[str, Any]

ABILITIES = (
    "supportsStreaming",
    "supportsSessionPersistence",
    "supportsDynamicModes",
    "supportsMcpServers",
    "supportsReasoningStream",
    "supportsToolInvocations",
)
STORED_ABILITIES = {"supportsSessionPersistence", "supportsToolInvocations"}
"""What an agent that is not loaded still claims to be able to do."""

KEPT = (
    "id",
    "session_id",
    "labels",
    "title",
    "created",
    "updated",
    "last_user",
    "status",
    "model",
    "real_model",
    "mode",
    "real_mode",
    "thinking",
    "metadata",
    "extra_title",
    "attention",
    "attention_at",
    "archived",
    "usage",
)
"""The fields that are written down as they are."""


@dataclass
class Agent:
    """One agent; loaded while it has a process, stored only otherwise."""

    id: str
    provider: Provider
    place: Place
    session_id: str
    labels: dict[str, str] = field(default_factory=dict)
    title: str | None = None
    created: str = field(default_factory=now)
    updated: str = field(default_factory=now)
    last_user: str | None = None
    status: str = "initializing"
    model: str | None = None
    real_model: str | None = None
    told_model: str | None = None
    """What the provider is said to run, since the last change; a lie where that change did not work."""
    told_provider: str | None = None
    """After a change of the model the agent's provider is told by its inner name."""
    mode: str | None = None
    """What a client is shown; an unknown mode is shown until the next change that works."""
    real_mode: str | None = None
    thinking: str | None = None
    metadata: Json = field(default_factory=dict)
    extra_title: str | None = None
    attention: str | None = None
    attention_at: str | None = None
    archived: str | None = None
    usage: Json | None = None
    last_error: str | None = None
    timeline: Timeline = field(default_factory=Timeline)
    replayed: bool = False
    """The timeline holds what the provider keeps; the first refresh of a new agent doubles it."""
    process: "Process | None" = None

    @classmethod
    def from_record(cls, record: Json, providers: dict[str, Provider]) -> "Agent":
        """An agent as it was when it was last written down."""
        kept = {name: record[name] for name in KEPT}
        return cls(
            provider=providers[record["provider"]], place=Place(**record["place"]), **kept, replayed=True
        )

    def record(self) -> Json:
        """What is written down of it."""
        place = {name: getattr(self.place, name) for name in ("cwd", "root", "branch", "main_root")}
        return {name: getattr(self, name) for name in KEPT} | {"provider": self.provider.id, "place": place}

    @property
    def effort(self) -> str | None:
        """The effort in force: what was chosen, else the provider's own."""
        return self.thinking or ("low" if self.provider.thinking else None)

    def running(self) -> "Process | None":
        """The process at this moment."""
        return self.process

    @property
    def pending(self) -> list[Json]:
        """The permissions that it waits for."""
        return [] if self.process is None else [asked.request for asked in self.process.asked.values()]

    def snapshot(self) -> Json:
        """The agent as a client sees it."""
        loaded, starting = self.process is not None, self.status == "initializing"
        kept: Json = {"provider": self.provider.id, "sessionId": self.session_id}
        found: Json = {
            "id": self.id,
            "provider": self.provider.id,
            "cwd": self.place.cwd,
            "model": self.model,
            "thinkingOptionId": self.thinking,
            "effectiveThinkingOptionId": self.effort,
            "runtimeInfo": self._runtime(),
            "createdAt": self.created,
            "updatedAt": self.updated,
            "lastUserMessageAt": self.last_user,
            "status": self.status,
            "capabilities": {name: loaded or name in STORED_ABILITIES for name in ABILITIES},
            "currentModeId": None if starting and loaded else self.mode,
            "availableModes": self.provider.modes if loaded and not starting else [],
            "pendingPermissions": self.pending,
            "persistence": kept | {"nativeHandle": self.session_id, "metadata": self.metadata},
            "title": self.title,
            "labels": self.labels,
            "requiresAttention": self.attention is not None,
            "attentionReason": self.attention,
            "attentionTimestamp": self.attention_at,
            "archivedAt": self.archived,
        }
        if loaded:
            found["features"] = []
            if self.last_error is not None:
                found["lastError"] = self.last_error
        if self.usage is not None:
            found["lastUsage"] = self.usage
        return found

    def _runtime(self) -> Json:
        shown = self.mode if self.mode is not None else self.real_mode
        model = self.told_model or self.real_model
        common = {
            "provider": self.told_provider or self.provider.id,
            "sessionId": self.session_id,
            "model": model,
            "modeId": shown,
        }
        if self.provider.kind == "opencode":
            return common
        extra = {"title": self.extra_title, "updatedAt": None}
        return common | {"thinkingOptionId": self.effort, "extra": extra}

    def raise_attention(self, reason: str) -> bool:
        """Raise the flag, unless it is up."""
        if self.attention is not None:
            return False
        self.attention, self.attention_at = reason, now()
        return True

    def lower_attention(self) -> bool:
        """Lower the flag, if it is up."""
        was_up = self.attention is not None
        self.attention = self.attention_at = None
        return was_up

    def matches(self, wanted: Json) -> bool:
        """Whether a list or a subscription with this filter has it."""
        return (
            (self.archived is None or bool(wanted.get("includeArchived")))
            and all(self.labels.get(key) == value for key, value in wanted.get("labels", {}).items())
            and ("statuses" not in wanted or self.status in wanted["statuses"])
            and ("projectKeys" not in wanted or self.place.project()["projectKey"] in wanted["projectKeys"])
            and ("requiresAttention" not in wanted or wanted["requiresAttention"] == bool(self.attention))
        )


def new_metadata(provider: Provider, cwd: str, config: Json, title: str | None) -> Json:
    """What the persistence handle of a new agent says; nothing in it is hidden from any client."""
    if provider.kind == "opencode":
        return {"cwd": cwd}
    asked = ("modeId", "thinkingOptionId", "systemPrompt", "mcpServers")
    chosen = {name: config[name] for name in asked if name in config}
    model = config.get("model") or provider.models[0]["id"]
    return {"provider": "acp", "cwd": cwd, "title": title, "model": model, **chosen}
