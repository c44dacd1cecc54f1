"""An agent's model, mode and thinking: `configOptions` in new agents, `modes`, `models` in old ones. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from app.backends.base import Choice, Unsupported
from app.domain.signals import Config

SettingName: TypeAlias = Literal["model", "mode", "thinking"]

_OPTIONS: Mapping[str, SettingName] = {"model": "model", "mode": "mode", "thought_level": "thinking"}
"""ACP's categories of config options, which are also the usual ids where an option has no category."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting: what is in force, what may be chosen; `option` is its config id, null in old agents."""

    current: str | None
    choices: tuple[Choice, ...] = ()
    option: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an agent lets one set; null is what it has not."""

    model: Setting | None = None
    mode: Setting | None = None
    thinking: Setting | None = None

    @property
    def config(self) -> Config:
        """What is in force."""
        return Config(
            model=self.model.current if self.model else None,
            mode=self.mode.current if self.mode else None,
            thinking=self.thinking.current if self.thinking else None,
        )

    def with_current(self, name: SettingName, value: str) -> "Settings":
        """The settings after the agent reported `value` for one that it has."""
        setting: Setting | None = getattr(self, name)
        return replace(self, **{name: replace(setting or Setting(current=None), current=value)})

    def merged(self, reported: Mapping[str, Any]) -> "Settings":
        """The settings after the agent reported some of them."""
        new = read_settings(reported)
        return Settings(
            model=new.model or self.model, mode=new.mode or self.mode, thinking=new.thinking or self.thinking
        )


def read_settings(reported: Mapping[str, Any]) -> Settings:
    """The settings in an answer (session/new, load, resume, set_config_option) or a config_option_update."""
    found: dict[SettingName, Setting] = {}
    match reported.get("models"):
        case {"currentModelId": str(current), "availableModels": list(choices)}:
            found["model"] = Setting(current=current, choices=tuple(_choices(choices, "modelId")))
    match reported.get("modes"):
        case {"currentModeId": str(current), "availableModes": list(choices)}:
            found["mode"] = Setting(current=current, choices=tuple(_choices(choices, "id")))
    options = reported.get("configOptions")
    for option in options if isinstance(options, list) else ():
        match option:
            case {"id": str(id), "type": "select", "currentValue": str(current), "options": list(choices)}:
                category = option.get("category") or id
                if name := _OPTIONS.get(category) if isinstance(category, str) else None:
                    found[name] = Setting(
                        current=current, choices=tuple(_choices(choices, "value")), option=id
                    )
    return Settings(**found)


def _choices(choices: list[Any], key: str) -> Iterator[Choice]:
    for choice in choices:
        match choice:
            case {"group": _, "options": list(grouped)}:
                yield from _choices(grouped, key)
            case dict() if isinstance(id := choice.get(key), str):
                label, description = choice.get("name"), choice.get("description")
                yield Choice(
                    id=id,
                    label=label if isinstance(label, str) else id,
                    description=description if isinstance(description, str) else None,
                )


def request_to_set(settings: Settings, name: SettingName, value: str) -> tuple[str, dict[str, str]]:
    """The method and the parameters (but for the session) that set it.

    Raises:
        Unsupported: the agent has no such setting, or not this value.
    """
    setting: Setting | None = getattr(settings, name)
    if setting is None:
        raise Unsupported(f"this agent has no {name} to choose")
    if setting.choices and value not in {choice.id for choice in setting.choices}:
        known = ", ".join(choice.id for choice in setting.choices[:20])
        raise Unsupported(f"this agent has no {name} {value!r}; it has {known}")
    if setting.option is not None:
        return "session/set_config_option", {"configId": setting.option, "value": value}
    if name == "mode":
        return "session/set_mode", {"modeId": value}
    return "session/set_model", {"modelId": value}
