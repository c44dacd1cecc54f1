"""What a twin says of its providers, as far as it has looked at them."""

from typing import Any

import anyio

from tests.paseo.twin_asking import Asking
from tests.paseo.twin_daemon import Daemon
from tests.paseo.twin_providers import Provider
from tests.paseo.twin_timeline import now

Json = dict[str, Any]


def entries(daemon: Daemon) -> list[Json]:
    """Every provider, as far as it is known."""
    return [provider.entry(provider.id in daemon.ready) for provider in daemon.providers.values()]


async def probe(daemon: Daemon) -> None:
    """Look at one provider after the other, and tell everybody of each."""
    disabled = [one for one in daemon.providers.values() if not one.enabled]
    for provider in disabled + [one for one in daemon.providers.values() if one.enabled]:
        await anyio.sleep(daemon.twin.probe_delay)
        daemon.ready.add(provider.id)
        told = {"cwd": str(daemon.home), "entries": entries(daemon), "generatedAt": now()}
        daemon.broadcast("providers_snapshot_update", told)
        daemon.bell()


def start_probe(daemon: Daemon) -> None:
    """Start to look, once."""
    if not daemon.probing:
        daemon.probing = True
        daemon.work(probe, daemon)


async def providers_snapshot(asking: Asking) -> None:
    """What is known at once; the rest follows in updates."""
    found = {"entries": entries(asking.daemon), "generatedAt": now()}
    asking.reply("get_providers_snapshot_response", **found)
    start_probe(asking.daemon)


async def refresh_providers(asking: Asking) -> None:
    """Look again."""
    asking.reply("refresh_providers_snapshot_response", acknowledged=True)
    asking.daemon.probing = False
    start_probe(asking.daemon)


async def available_providers(asking: Asking) -> None:
    """Which providers are installed; a disabled one is."""
    seen = [
        one
        for one in asking.daemon.providers.values()
        if asking.session.sees_all or one.id in ("claude", "codex", "opencode")
    ]
    found = [{"provider": one.id, "available": one.available, "error": None} for one in seen]
    asking.reply("list_available_providers_response", providers=found, error=None, fetchedAt=now())


async def _known(asking: Asking) -> Provider | str:
    daemon, name = asking.daemon, asking.message["provider"]
    provider = daemon.providers.get(name)
    if provider is None:
        return f"Unknown provider: {name}"
    if not provider.enabled:
        return f"Provider {name} is disabled"
    start_probe(daemon)
    while name not in daemon.ready:
        await daemon.changed.wait()
    return provider if provider.available else f"Provider {name} is not available"


async def provider_models(asking: Asking) -> None:
    """A provider's models, once it has been looked at."""
    found = await _known(asking)
    told = {"error": found} if isinstance(found, str) else {"models": found.models, "error": None}
    asking.reply(
        "list_provider_models_response", provider=asking.message["provider"], **told, fetchedAt=now()
    )


async def provider_modes(asking: Asking) -> None:
    """A provider's modes, likewise."""
    found = await _known(asking)
    told = {"error": found} if isinstance(found, str) else {"modes": found.modes, "error": None}
    asking.reply("list_provider_modes_response", provider=asking.message["provider"], **told, fetchedAt=now())


async def commands(asking: Asking) -> None:
    """No agent here has any."""
    found = asking.daemon.agents.get(asking.agent_id)
    error = None if found is not None else f"Agent not found: {asking.agent_id}"
    asking.reply("list_commands_response", commands=[], error=error)
