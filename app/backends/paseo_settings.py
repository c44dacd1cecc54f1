"""An agent's settings: what is in force, and what may be set. Pure."""

from app.backends.base import AgentSpec, AgentState, Change, Unsupported
from app.paseo.snapshots import Agent, Provider


def in_force(agent: Agent, spec: AgentSpec) -> AgentState:
    """What is in force at the daemon, which shows what was asked for beside it."""
    runtime = agent.runtime
    return AgentState(
        session=agent.id,
        cwd=agent.cwd or spec.cwd,
        model=(runtime.model if runtime and runtime.model else agent.model),
        mode=(runtime.mode_id if runtime and runtime.mode_id else agent.current_mode_id),
        thinking=agent.effective_thinking_option_id or agent.thinking_option_id,
    )


def check_change(change: Change, provider: Provider | None, agent: Agent, model: str | None) -> None:
    """Refuse what the provider's lists do not name: the daemon would take it and not use it.

    Where there is no list, anything may be tried. `model` is the one in force.

    Raises:
        Unsupported: no such model, mode or thinking option.
    """
    models = (provider.models or []) if provider is not None else []
    modes = agent.available_modes or ((provider.modes or []) if provider is not None else [])
    if change.model is not None and models and change.model not in {one.id for one in models}:
        raise Unsupported(f"{agent.provider} has no model {change.model!r}")
    if change.mode is not None and modes and change.mode not in {mode.id for mode in modes}:
        raise Unsupported(f"{agent.provider} has no mode {change.mode!r}")
    wanted = change.model or model
    options = [option.id for one in models if one.id == wanted for option in one.thinking_options or []]
    if change.thinking is not None and models and change.thinking not in options:
        raise Unsupported(f"{wanted} has no thinking option {change.thinking!r}")
