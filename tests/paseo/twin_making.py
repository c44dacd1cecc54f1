"""What a twin does to get an agent: create, import, resume, refresh."""

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.paseo.twin_agents import Agent, new_metadata
from tests.paseo.twin_asking import Asking
from tests.paseo.twin_daemon import CannotLoad, Daemon
from tests.paseo.twin_places import Place, Refused, find, for_new_agent, worktree
from tests.paseo.twin_providers import Provider

Json = dict[str, Any]

ATTACHMENTS = ("text", "github_pr", "github_issue", "review")
"""Types that reach an agent."""


def blocks_of(message: Json) -> list[Json]:
    """What goes to the agent beside the text; attachments of unknown types are dropped."""
    images = [{"type": "image", **image} for image in message.get("images", [])]
    attached = [one for one in message.get("attachments", []) if one.get("type") in ATTACHMENTS]
    return images + [{"type": "text", "text": one.get("text") or json.dumps(one)} for one in attached]


def new_agent(provider: Provider, place: Place, config: Json, labels: Json, title: str | None) -> Agent:
    """An agent that is not there yet."""
    wanted = config.get("modeId")
    mode = wanted if wanted in [mode["id"] for mode in provider.modes] else provider.mode
    models = [model["id"] for model in provider.models]
    asked = config.get("model") or models[0]
    opencode = provider.kind == "opencode"
    return Agent(
        id=str(uuid4()),
        provider=provider,
        place=place,
        session_id=f"ses_{uuid4().hex[:26]}" if opencode else f"s-{uuid4().hex}",
        labels=labels,
        title=title,
        model=asked,
        real_model=asked if asked in models else models[0],
        mode=mode,
        real_mode=mode,
        thinking=config.get("thinkingOptionId"),
        metadata=new_metadata(provider, place.cwd, config, title),
        extra_title=title,
    )


def chosen(daemon: Daemon, name: str) -> Provider:
    """The provider of a new agent."""
    provider = daemon.providers.get(name)
    if provider is None:
        raise Refused(f"Unknown provider '{name}'. Configured providers: {', '.join(daemon.providers)}.")
    if not provider.enabled:
        raise Refused(f"Provider '{name}' is disabled")
    if not provider.available:
        there = ", ".join(one.id for one in daemon.providers.values() if one.available)
        what = f"Use one of those providers, or install/configure '{name}'."
        raise Refused(f"Provider '{name}' is not available. Available providers: {there}. {what}")
    return provider


async def create(asking: Asking) -> None:
    """A new agent, perhaps in a worktree, perhaps with its first prompt."""
    daemon, message = asking.daemon, asking.message
    config, prompt = message["config"], message.get("initialPrompt", "").strip()
    try:
        provider = chosen(daemon, config["provider"])
        if message.get("workspaceId"):
            raise Refused(f"Workspace not found: {message['workspaceId']}")
        place = for_new_agent(config["cwd"])
        in_worktree = bool(message.get("git", {}).get("createWorktree"))
        if in_worktree:
            place = worktree(place, daemon.home, message["git"])
    except Refused as refused:
        failed = {"status": "agent_create_failed", "error": str(refused), "errorCode": "unknown"}
        asking.reply("status", **failed)
        asking.log(f"Failed to create agent: {refused}")
        return
    if in_worktree:
        asking.session.send("checkout_status_update", place.checkout_status())
    daemon.store.know(place.cwd)
    title = (config.get("title") or "").strip() or (prompt.split("\n")[0][:200] or None)
    agent = new_agent(provider, place, config, message.get("labels", {}), title)
    process = await daemon.launch(agent, asker=asking.session)

    def created(accepted: bool, error: str | None) -> None:
        if accepted:
            asking.reply("status", status="agent_created", agentId=agent.id, agent=before)
        else:
            asking.reply("status", status="agent_create_failed", error=error, errorCode="unknown")

    before = agent.snapshot()
    if prompt:
        await process.prompt(prompt, blocks_of(message), message.get("clientMessageId"), created)
    else:
        created(True, None)
    if in_worktree:
        detail = {"type": "worktree_setup", "worktreePath": place.cwd, "branchName": place.branch}
        item = {"type": "tool_call", "callId": str(uuid4()), "name": "paseo_worktree_setup"}
        more: Json = {"detail": {**detail, "log": "", "commands": []}, "status": "completed", "error": None}
        daemon.row(agent, item | more)


async def adopt(asking: Asking, name: str, session_id: str, cwd: str | None, labels: Json) -> None:
    """A new agent on an existing session of a provider; a second writer, if there is one already."""
    daemon = asking.daemon
    provider = daemon.providers.get(name)
    if provider is None:
        raise CannotLoad(f"No client registered for provider '{name}'")
    if not provider.available:
        raise CannotLoad("Error: spawn no-such-agent-binary ENOENT")
    if provider.kind == "opencode" and cwd is None:
        raise CannotLoad("OpenCode sessions require --cwd when they are imported")
    kept = daemon.store.conversations.get(session_id)
    place = find(cwd or (kept.cwd if kept else str(Path.cwd())))
    if place.cwd not in [other.place.cwd for other in daemon.agents.values()]:
        # A folder that this daemon has not seen counts as no repository at first.
        place = Place(place.cwd, None)
    items = daemon.replay(provider, session_id)
    if not Path(place.cwd).is_dir():
        raise CannotLoad(f"Working directory does not exist: {place.cwd}")
    for other in daemon.agents.values():
        if other.session_id == session_id and other.archived is not None:
            other.archived = None
            daemon.store.save(other.record())
    title = "Scripted session" if provider.lists else None
    agent = new_agent(provider, place, {}, labels, title)
    agent.session_id, agent.replayed = session_id, True
    for item in items:
        agent.timeline.append(item)
    await daemon.launch(agent)
    first = next((item["text"] for item in items if item["type"] == "user_message"), None)
    if title is None and first is not None:
        agent.title = first.split("\n")[0][:200]
        daemon.update(agent)
    daemon.update(agent, only=asking.session)
    told = {"agentId": agent.id, "timelineSize": len(agent.timeline.rows), "agent": agent.snapshot()}
    asking.reply("status", status="agent_resumed", **told)


async def import_(asking: Asking) -> None:
    """Import a session by its id."""
    message = asking.message
    try:
        await adopt(
            asking,
            message["provider"],
            message["sessionId"],
            message.get("cwd"),
            message.get("labels", {}),
        )
    except CannotLoad as failure:
        # This version of the daemon loses the text of an ACP error.
        error = str(failure)
        if error.startswith("Session not found"):
            error = "[object Object]"
        asking.reply("status", status="agent_create_failed", error=error)
        asking.log(f"Failed to import agent: {error}")


async def open_project(asking: Asking) -> None:
    """Know a directory from now on."""
    place = find(asking.message["cwd"])
    asking.daemon.store.know(place.cwd)
    workspace = {"id": place.cwd, "workspaceDirectory": place.cwd}
    asking.reply("open_project_response", workspace=workspace, error=None)


async def resume(asking: Asking) -> None:
    """Import a session by its whole handle; a failure is not answered."""
    handle = asking.message["handle"]
    cwd = handle.get("metadata", {}).get("cwd")
    try:
        await adopt(asking, handle["provider"], handle["sessionId"], cwd, {})
    except CannotLoad as failure:
        asking.log(f"Failed to resume agent: {failure}")


async def refresh(asking: Asking) -> None:
    """Start an agent's program anew; of two at once, one is never answered, nor is a failure."""
    daemon = asking.daemon
    agent = asking.known("Failed to refresh agent: Agent not found: {}")
    if agent is None or agent.id in daemon.twin.refreshing:
        return
    daemon.twin.refreshing.add(agent.id)
    try:
        agent.archived = None
        if agent.process is None:
            await daemon.load(agent)
            daemon.update(agent, only=asking.session)
        else:
            if agent.process.turn is not None:
                await agent.process.interrupt(agent.process.turn)
            items = daemon.replay(agent.provider, agent.session_id)
            agent.process.kill()
            if not agent.replayed:
                agent.replayed = True
                for item in items:
                    agent.timeline.append(item)
            await daemon.launch(agent, asker=asking.session, resumed=True)
        size = len(agent.timeline.rows)
        asking.reply("status", status="agent_refreshed", agentId=agent.id, timelineSize=size)
    except CannotLoad as failure:
        asking.log(f"Failed to refresh agent: {failure}")
    finally:
        daemon.twin.refreshing.discard(agent.id)
