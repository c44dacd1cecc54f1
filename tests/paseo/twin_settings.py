"""What a twin does with an agent's settings, its name, its labels and its flag."""

from typing import Any

from tests.paseo.twin_agents import Agent
from tests.paseo.twin_asking import Asking

Json = dict[str, Any]


def _set(asking: Asking, what: str, error: str | None) -> None:
    kind = str(asking.message["type"]).replace("_request", "_response")
    if error is not None:
        asking.log(f"Failed to set agent {what}: {error}")
    asking.reply(kind, agentId=asking.agent_id, accepted=error is None, error=error)


def _settable(asking: Asking, what: str) -> Agent | None:
    """A loaded agent whose process lives; a dead one is never answered."""
    agent = asking.daemon.agents.get(asking.agent_id)
    if agent is None or agent.process is None:
        _set(asking, what, f"Unknown agent '{asking.agent_id}'")
        return None
    return None if agent.process.dead else agent


def _show(asking: Asking, agent: Agent, *, works: bool) -> None:
    """A change that works is told twice, and sets right what an unknown value had shown."""
    if works:
        agent.mode, agent.model = agent.real_mode, agent.real_model
        asking.daemon.update(agent)
    asking.daemon.update(agent)


async def set_mode(asking: Asking) -> None:
    """Change the mode; an unknown one is accepted and shown."""
    if (agent := _settable(asking, "mode")) is None:
        return
    mode = agent.mode = asking.message["modeId"]
    works = mode in [known["id"] for known in agent.provider.modes]
    agent.real_mode = mode if works else agent.real_mode
    _set(asking, "mode", None)
    _show(asking, agent, works=works)


async def set_model(asking: Asking) -> None:
    """Change the model, in the same way."""
    if (agent := _settable(asking, "model")) is None:
        return
    models = [known["id"] for known in agent.provider.models]
    model = agent.model = asking.message["modelId"] or models[0]
    works = model in models
    agent.real_model = model if works else agent.real_model
    agent.told_model, agent.told_provider = model, "acp" if agent.provider.kind == "acp" else None
    _set(asking, "model", None)
    _show(asking, agent, works=works)


async def set_thinking(asking: Asking) -> None:
    """Change the effort, where the provider knows any."""
    if (agent := _settable(asking, "thinking option")) is None:
        return
    if not agent.provider.thinking:
        _set(asking, "thinking option", "acp does not expose ACP thought-level selection")
        return
    agent.thinking = asking.message["thinkingOptionId"]
    _set(asking, "thinking option", None)
    _show(asking, agent, works=True)


async def set_feature(asking: Asking) -> None:
    """No provider here has any."""
    if _settable(asking, "feature") is not None:
        _set(asking, "feature", f"Unknown feature: {asking.message['featureId']}")


async def update_agent(asking: Asking) -> None:
    """Change the name and some labels."""
    agent, name = asking.daemon.agents.get(asking.agent_id), asking.message.get("name")
    told = {"agentId": asking.agent_id}
    if agent is None:
        error = f"Agent not found: {asking.agent_id}"
        asking.log(f"Failed to update agent: {error}")
        asking.reply("update_agent_response", **told, accepted=False, error=error)
        return
    if name is not None:
        agent.title = name.strip()
        asking.daemon.update(agent)
    asking.reply("update_agent_response", **told, accepted=True, error=None)
    if asking.message.get("labels"):
        agent.labels = {**agent.labels, **asking.message["labels"]}
        asking.daemon.update(agent)


async def clear_attention(asking: Asking) -> None:
    """Lower the flag; an unknown agent is not even an error."""
    wanted = asking.message["agentId"]
    agents = [asking.daemon.agents.get(name) for name in ([wanted] if isinstance(wanted, str) else wanted)]
    found = [agent for agent in agents if agent is not None]
    if len(found) < len(agents):
        return
    lowered = [agent for agent in found if agent.lower_attention()]
    snapshots = [agent.snapshot() for agent in found]
    asking.reply("clear_agent_attention_response", agentId=wanted, agents=snapshots)
    for agent in lowered:
        asking.daemon.update(agent)
