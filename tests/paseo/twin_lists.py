"""What a twin does with requests for agents as they are: lists in pages, one agent."""

import base64
import json
from typing import Any
from uuid import uuid4

from tests.paseo.twin_agents import Agent
from tests.paseo.twin_asking import Asking
from tests.paseo.twin_daemon import Daemon
from tests.paseo.twin_wire import Session

Json = dict[str, Any]

NEWEST = [{"key": "updated_at", "direction": "desc"}]
PRIORITY = ("running", "initializing", "error", "idle", "closed")
FIELDS = {"created_at": "created", "updated_at": "updated", "title": "title"}


class BadCursor(Exception):
    """The cursor of a page is none of ours."""


def listed(session: Session, daemon: Daemon, wanted: Json, sort: list[Json]) -> list[Agent]:
    """The agents of a list, in order."""
    found = [
        one
        for one in daemon.agents.values()
        if daemon.visible(session, one)
        and one.matches(wanted)
        and one.place.cwd in daemon.store.directories  # an import does not make its own known
    ]
    for rule in reversed(sort):
        found.sort(key=lambda agent: _value(agent, rule["key"]), reverse=rule["direction"] == "desc")
    return found


def _value(agent: Agent, key: str) -> str:
    if key == "status_priority":
        return str(PRIORITY.index(agent.status))
    return getattr(agent, FIELDS[key]) or ""


def entry(agent: Agent) -> Json:
    """An agent and its project."""
    return {"agent": agent.snapshot(), "project": agent.place.project()}


def _cursor(sort: list[Json], agent: Agent) -> str:
    where = {"sort": sort, "id": agent.id}
    return base64.urlsafe_b64encode(json.dumps(where).encode()).decode().rstrip("=")


def _page(asking: Asking, wanted: Json) -> Json:
    message = asking.message
    sort, page = message.get("sort") or NEWEST, message.get("page") or {"limit": 200}
    found, cursor = listed(asking.session, asking.daemon, wanted, sort), page.get("cursor")
    start = 0
    if cursor is not None:
        try:
            last = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))["id"]
        except (ValueError, TypeError, KeyError):
            raise BadCursor from None
        start = next((place + 1 for place, agent in enumerate(found) if agent.id == last), 0)
    shown = found[start : start + page["limit"]]
    more = len(found) > start + len(shown)
    info = {"nextCursor": _cursor(sort, shown[-1]) if more else None, "prevCursor": cursor, "hasMore": more}
    return {"entries": [entry(agent) for agent in shown], "pageInfo": info}


async def fetch_agents(asking: Asking) -> None:
    """A list; with `subscribe` also every change from now on, in place of the subscription of before."""
    wanted, subscribe = asking.message.get("filter", {}), asking.message.get("subscribe")
    named: Json = {}
    if subscribe is not None:
        asking.session.subscription = wanted
        named = {"subscriptionId": subscribe.get("subscriptionId", str(uuid4()))}
    try:
        asking.reply("fetch_agents_response", **named, **_page(asking, wanted))
    except BadCursor:
        error = {"error": "Invalid fetch_agents cursor", "code": "invalid_cursor"}
        asking.reply("rpc_error", requestType=asking.message["type"], **error)


async def fetch_history(asking: Asking) -> None:
    """A list that has the archived ones too."""
    wanted = {"includeArchived": True, **asking.message.get("filter", {})}
    asking.reply("fetch_agent_history_response", **_page(asking, wanted))


async def fetch_agent(asking: Asking) -> None:
    """One agent as it is, without loading it."""
    agent = asking.daemon.find(asking.session, asking.agent_id)
    if agent is None:
        error = f"Agent not found: {asking.agent_id}"
        asking.reply("fetch_agent_response", agent=None, project=None, error=error)
    else:
        asking.reply("fetch_agent_response", **entry(agent), error=None)
