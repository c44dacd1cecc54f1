"""The providers that a twin has: which it can start, what they can do, how they are listed."""

from dataclasses import dataclass
from typing import Any, Literal

from tests.paseo.twin_timeline import now

Json = dict[str, Any]

ACP_MODES = [{"id": "default", "label": "Default"}, {"id": "plan", "label": "Plan"}]
"""What the scripted agent offers."""

OPENCODE_MODES = [
    {"id": "build", "label": "Build", "description": "Does everything it may."},
    {"id": "plan", "label": "Plan", "description": "Changes nothing."},
    {"id": "full-access", "label": "Full Access", "description": "Asks nobody."},
]
"""What opencode offers."""

History = Literal["whole", "empty", "unloadable"]
"""What a provider gives back when a session is loaded again."""


@dataclass
class Provider:
    """One provider, and how it misbehaves; every field may be changed while the twin runs."""

    id: str
    label: str
    kind: Literal["acp", "opencode"] = "acp"
    available: bool = True
    enabled: bool = True
    lists: bool = False
    """It knows the titles of its sessions."""
    strict: bool = False
    """It refuses to load a session that it does not know."""
    history: History = "empty"
    thinking: bool = False
    default_mode: str | None = None
    start_delay: float = 0.0
    """Seconds that a process takes to start or to load."""
    prompt_delay: float = 0.0
    """Seconds between a prompt and its turn; with opencode its MCP servers take them."""
    settle: float = 0.0
    """Seconds after a failed or cancelled turn in which the next prompt gets a false answer."""
    false_start: Literal["empty", "refused"] = "empty"
    """The false answer: a turn that completes at once, empty; or `accepted: false` for a turn that runs."""

    @property
    def mode(self) -> str:
        """The mode that an agent starts in."""
        return "build" if self.kind == "opencode" else "default"

    @property
    def modes(self) -> list[Json]:
        """What an agent's mode can be."""
        return OPENCODE_MODES if self.kind == "opencode" else ACP_MODES

    @property
    def models(self) -> list[Json]:
        """What an agent's model can be; the first is the default."""
        names = ["fake/fake-1", "fake/fake-2"] if self.kind == "opencode" else ["m1", "m2"]
        return [
            {"provider": self.id, "id": name, "label": name.upper(), "isDefault": name == names[0]}
            | (self._efforts if self.thinking else {})
            for name in names
        ]

    @property
    def _efforts(self) -> Json:
        low = {"id": "low", "label": "Low", "isDefault": True}
        high = {"id": "high", "label": "High", "isDefault": False}
        return {"thinkingOptions": [low, high], "defaultThinkingOptionId": "low"}

    def entry(self, ready: bool) -> Json:
        """How the snapshot of all providers names it."""
        named = {
            "provider": self.id,
            "label": self.label,
            "description": f"The provider {self.id}",
            "defaultModeId": self.default_mode,
            "enabled": self.enabled,
        }
        if not ready:
            return named | {"status": "loading"}
        if not (self.available and self.enabled):
            return named | {"status": "unavailable"}
        return named | {"status": "ready", "models": self.models, "modes": self.modes, "fetchedAt": now()}


def providers(*, opencode: bool = True) -> dict[str, Provider]:
    """The providers of the transcripts, in their order; `opencode` says whether its program is installed."""
    known = [
        Provider("claude", "Claude", default_mode="default"),
        Provider("codex", "Codex", available=False, default_mode="auto"),
        Provider(
            "copilot",
            "Copilot",
            available=False,
            default_mode="https://agentclientprotocol.com/protocol/session-modes#agent",
        ),
        Provider(
            "opencode",
            "OpenCode",
            kind="opencode",
            available=opencode,
            strict=True,
            history="whole",
            default_mode="build",
            settle=0.25,
        ),
        Provider("pi", "Pi", available=False),
        Provider("scripted", "Scripted"),
        Provider("scripted-history", "Scripted with history", strict=True, history="whole"),
        Provider("scripted-list", "Scripted with session list", strict=True, history="whole", lists=True),
        Provider("scripted-noload", "Scripted without resume", history="unloadable"),
        Provider("scripted-thinking", "Scripted with effort", thinking=True),
        Provider("missing-binary", "Missing", available=False),
        Provider("switched-off", "Off", enabled=False),
    ]
    return {provider.id: provider for provider in known}
