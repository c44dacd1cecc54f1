"""What a twin does with an agent that is there: prompt, cancel, archive, delete, read, wait."""

from typing import Any

import anyio

from tests.paseo.twin_agents import Agent
from tests.paseo.twin_asking import Asking, HandlerError
from tests.paseo.twin_daemon import CannotLoad, Daemon
from tests.paseo.twin_making import blocks_of
from tests.paseo.twin_timeline import now, unreadable

Json = dict[str, Any]


async def send(asking: Asking) -> None:
    """A prompt, to whatever the name fits; it loads, unarchives and replaces."""
    daemon, message, name = asking.daemon, asking.message, asking.agent_id
    agent = daemon.find(asking.session, name) if name else None
    if agent is None:
        error = f"Agent not found: {name}" if name else "Agent identifier cannot be empty"
        asking.reply("send_agent_message_response", agentId=name, accepted=False, error=error)
        return
    found = agent

    def answer(accepted: bool, error: str | None) -> None:
        asking.reply("send_agent_message_response", agentId=found.id, accepted=accepted, error=error)

    was_archived, agent.archived = agent.archived, None
    try:
        process = await daemon.load(agent)
    except CannotLoad as failure:
        agent.archived = was_archived
        asking.log(f"Failed to send agent message: {failure}")
        answer(False, str(failure))
        return
    await process.prompt(message["text"], blocks_of(message), message.get("messageId"), answer)


async def cancel(asking: Asking) -> None:
    """Stop the turn of an agent that is loaded."""
    agent = asking.daemon.agents.get(asking.agent_id)
    if agent is None or agent.process is None:
        asking.log(f"Failed to cancel running agent on request: Agent {asking.agent_id} not found")
        return
    if (turn := agent.process.turn) is not None:
        await agent.process.interrupt(turn)
    asking.reply("cancel_agent_response", agentId=agent.id, agent=agent.snapshot())


async def answer_permission(asking: Asking) -> None:
    """Answer a permission; success is not answered, a failure with the permission's id."""
    agent = asking.daemon.agents.get(asking.agent_id)
    wanted = asking.message["requestId"]
    if agent is None or agent.process is None or not agent.process.answer(wanted, asking.message["response"]):
        error = f"No pending permission request with id '{wanted}'"
        asking.log(f"Failed to respond to permission: {error}")
        raise HandlerError(error)


async def archive(asking: Asking) -> None:
    """Put an agent away, whatever it is doing."""
    daemon = asking.daemon
    agent = daemon.agents.get(asking.agent_id)
    if agent is None:
        raise HandlerError(f"Agent not found: {asking.agent_id}")
    await put_away(daemon, agent)
    daemon.update(agent, only=asking.session)
    asking.reply("agent_archived", agentId=agent.id, archivedAt=agent.archived)


async def put_away(daemon: Daemon, agent: Agent) -> None:
    """Archive an agent; those who did not ask hear of it only if it was loaded."""
    if agent.process is None:
        agent.archived, agent.status = agent.archived or now(), "closed"
        return
    if agent.process.turn is not None:
        await agent.process.interrupt(agent.process.turn)
    if agent.lower_attention():
        daemon.update(agent)
    agent.archived = now()
    daemon.update(agent)
    daemon.unload(agent)


async def delete(asking: Asking) -> None:
    """Forget an agent; an unknown one is forgotten just as well."""
    daemon = asking.daemon
    agent = daemon.agents.get(asking.agent_id)
    if agent is not None:
        daemon.unload(agent)
        del daemon.agents[agent.id]
        daemon.store.forget(agent.id)
    asking.reply("agent_deleted", agentId=asking.agent_id)
    if asking.session.subscription is not None:
        asking.session.send("agent_update", {"kind": "remove", "agentId": asking.agent_id})


async def close_items(asking: Asking) -> None:
    """Archive agents and kill terminals."""
    daemon, closed = asking.daemon, []
    for agent_id in asking.message["agentIds"]:
        if (agent := daemon.agents.get(agent_id)) is not None:
            await put_away(daemon, agent)
            closed.append({"agentId": agent_id, "archivedAt": agent.archived})
    ended = [{"terminalId": name, "success": True} for name in asking.message["terminalIds"]]
    for name in asking.message["terminalIds"]:
        if (terminal := daemon.terminals.all.get(name)) is not None:
            daemon.terminals.end(terminal)
    asking.reply("close_items_response", agents=closed, terminals=ended)


async def timeline(asking: Asking) -> None:
    """A page of an agent's timeline; it loads the agent."""
    daemon, message = asking.daemon, asking.message
    agent = daemon.agents.get(asking.agent_id)
    try:
        if agent is None:
            raise CannotLoad(f"Agent not found: {asking.agent_id}")
        await daemon.load(agent)
    except CannotLoad as failure:
        page = unreadable(message, str(failure))
        asking.reply("fetch_agent_timeline_response", agentId=asking.agent_id, agent=None, **page)
        return
    page = agent.timeline.page(message, agent.provider.id, merge_enum=asking.session.merge_enum)
    asking.reply("fetch_agent_timeline_response", agentId=agent.id, agent=agent.snapshot(), **page)


async def wait_for_finish(asking: Asking) -> None:
    """Whether a turn runs, once it does not any more."""
    daemon, message = asking.daemon, asking.message
    agent = daemon.find(asking.session, asking.agent_id)
    if agent is None:
        nobody = {"final": None, "error": f"Agent not found: {asking.agent_id}", "lastMessage": None}
        asking.reply("wait_for_finish_response", status="error", **nobody)
        return
    timeout = message.get("timeoutMs")
    with anyio.move_on_after(None if timeout is None else timeout / 1000):
        while agent.process is not None and agent.process.turn is not None and not agent.pending:
            await daemon.changed.wait()
    process, error = agent.process, agent.last_error
    if process is None:
        status, said = "idle", None
    elif agent.pending:
        status, said, error = "permission", agent.timeline.last_text(), None
    elif process.turn is not None:
        status, said, error = "timeout", None, None
    else:
        status, said = "error" if agent.status == "error" else "idle", agent.timeline.last_text()
    final = agent.snapshot()
    told = {"final": final, "error": error if status == "error" else None, "lastMessage": said}
    asking.reply("wait_for_finish_response", status=status, **told)
