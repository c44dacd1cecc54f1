"""The daemon behind the stand-in for the `paseo` command: a file, brought up to now whenever it is read."""

import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Json = dict[str, Any]
HOME = Path(os.environ["STAND_IN"])
PROVIDERS = {
    name: (label, model, mode)
    for name, label, model, mode in (
        ("claude", "Claude", "claude-opus-4-6", "default"),
        ("codex", "Codex", "gpt", "auto"),
        ("copilot", "Copilot", "gpt", "https://agentclientprotocol.com/protocol/session-modes#agent"),
        ("opencode", "OpenCode", "zen", "build"),
        ("pi", "Pi", "pi", "default"),
        ("scripted", "Scripted", "m1", "default"),
        ("scripted-history", "Scripted with history", "m1", "default"),
        ("scripted-list", "Scripted with session list", "m1", "default"),
        ("scripted-noload", "Scripted without resume", "m1", "default"),
        ("scripted-thinking", "Scripted with effort", "m1", "default"),
        ("missing-binary", "Missing", "m1", "default"),
        ("switched-off", "Off", "m1", "default"),
    )
}


class Failed(Exception):
    """An error as the command tells it."""

    def __init__(self, code: str, message: str, details: str | None = None) -> None:
        super().__init__(message)
        self.error: Json = {"code": code, "message": message}
        if details:
            self.error["details"] = details


@contextmanager
def daemon() -> Iterator[Json]:
    """Its state, ours alone and brought up to now; kept afterwards."""
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = HOME / "state.json"
        state = json.loads(path.read_text()) if path.exists() else {}
        state = {"speed": 1.0, "agents": {}} | state
        for agent in state["agents"].values():
            advance(agent, state["speed"])
        try:
            yield state
        finally:
            fresh = path.with_suffix(".new")
            fresh.write_text(json.dumps(state))
            fresh.replace(path)


def known(state: Json, given: str, code: str, prefix: str) -> Json:
    """The agent of that id, or of one that begins so."""
    agent: Json
    for agent in state["agents"].values():
        if given and (agent["id"].startswith(given) or agent["title"] == given):
            return agent
    details = 'Use "paseo ls" to list available agents' if code == "AGENT_NOT_FOUND" else None
    raise Failed(code, f"{prefix}Agent not found: {given}", details)


def stamp() -> str:
    """A time as the daemon writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())


LISTED = 200
"""Agents among which some commands look for one: those that changed last."""


def shown(state: Json) -> list[Json]:
    """The agents that stand in lists: where an agent was made before, and not only adopted."""
    known_places = {one["cwd"] for one in state["agents"].values() if not one.get("adopted")}
    return [one for one in state["agents"].values() if one["cwd"] in known_places]


def listed(state: Json, given: str, code: str) -> Json:
    """The agent of that id, of one that begins so, or of a name that has it in it; among the listed ones."""
    last = sorted(shown(state), key=lambda one: str(one["updated"]), reverse=True)[:LISTED]
    try:
        return known({"agents": {one["id"]: one for one in last}}, given, code, "")
    except Failed:
        named: list[Json] = [one for one in last if given and given.lower() in (one["title"] or "").lower()]
        if len(named) != 1:
            raise
        return named[0]


def new_agent(
    state: Json, provider: str, cwd: str, title: str | None, labels: dict[str, str] | None = None
) -> Json:
    """Another agent."""
    _, model, mode = PROVIDERS.get(provider, ("", None, None))
    agent: Json = {
        "id": str(uuid.uuid4()),
        "provider": provider,
        "cwd": cwd,
        "title": title,
        "model": model,
        "mode": mode,
    }
    agent |= {"archived": None, "created": stamp(), "updated": stamp(), "items": [], "lines": [], "due": 0.0}
    agent |= {
        "status": "idle",
        "error": None,
        "dead": False,
        "pending": None,
        "stubborn": False,
        "labels": labels or {},
    }
    state["agents"][agent["id"]] = agent
    return agent


def prompt(agent: Json, text: str) -> None:
    """Begin a turn; it replaces one that runs."""
    if agent["archived"]:
        agent |= {"archived": None, "status": "idle"}
    agent["items"].append(["user", text])
    agent |= {
        "status": "running",
        "lines": text.split("\n"),
        "due": time.time(),
        "pending": None,
        "updated": stamp(),
    }
    agent |= {"stubborn": False, "error": None}


def advance(agent: Json, speed: float) -> None:
    """Play the turn as far as it has come by now."""
    while (
        agent["status"] == "running"
        and not agent["pending"]
        and not agent["dead"]
        and agent["due"] <= time.time()
    ):
        if not agent["lines"]:
            agent["status"] = "idle"
            return
        verb, _, rest = agent["lines"].pop(0).partition(" ")
        play(agent, verb, rest, speed)


def play(agent: Json, verb: str, rest: str, speed: float) -> None:
    """One line of a script."""
    items = agent["items"]
    if verb == "say":
        if items[-1][0] == "assistant":
            items[-1][1] += rest
        else:
            items.append(["assistant", rest])
    elif verb in ("sleep", "stubborn"):
        agent["due"] += float(rest) / 1000 / speed
        agent["stubborn"] = verb == "stubborn"
    elif verb == "long":
        items.append(["assistant", "x" * int(rest)])
    elif verb == "think":
        items.append(["thought", rest])
    elif verb == "tool":
        name, _, what = rest.partition(" ")
        items.append(["done", f"[{name.title()}] {what}"])
    elif verb == "plan":
        steps = [f"- [{'x' if step.startswith('+') else ' '}] {step.lstrip('+')}" for step in rest.split(";")]
        items.append(["done", "\n".join(["[Tasks]", *steps])])
    elif verb == "ask":
        agent["pending"] = {"id": uuid.uuid4().hex[:8], "tool": "tool"}
    elif verb == "fail":
        items.append(["assistant", "[System Error] [object Object]"])
        agent |= {"status": "error", "error": "[object Object]"}
    elif verb == "crash":
        items.append(
            ["assistant", "[System Error] ACP agent exited unexpectedly (3)\n\nscripted: told to crash"]
        )
        agent |= {"status": "error", "error": "ACP agent exited unexpectedly (3)", "dead": True}


TYPES = {"user": "user_message", "assistant": "assistant_message", "thought": "reasoning"}


def activity(agent: Json, tail: int | None = None, *, only: str = "") -> str:
    """The items as text: a thought after the words around it, what was said in a row as one."""
    items: list[list[str]] = []
    for kind, text in agent["items"]:
        if only not in TYPES.get(kind, "tool_call" if not only else ""):
            continue
        if items and items[-1][0] == kind in ("assistant", "thought"):
            items[-1][1] += text
        else:
            items.append([kind, text])
    lines: list[str] = []
    said: dict[str, list[str]] = {"assistant": [], "thought": []}

    def flush() -> None:
        words, thoughts = (part for part in said.values())
        lines.extend(["\n".join(words)] if words else [])
        lines.extend([f"[Thought] {chr(10).join(thoughts)}"] if thoughts else [])
        words.clear()
        thoughts.clear()

    for kind, text in items if tail is None else items[-tail:]:
        if kind in said:
            said[kind].append(text.strip())
            continue
        flush()
        lines.append(f"[User] {text.strip()}" if kind == "user" else text)
    flush()
    return "\n".join(lines) or "No activity to display."


def at_rest(agent_id: str, seconds: float) -> tuple[Json, str]:
    """The agent once it is at rest or asks, or after that time; the state of the moment."""
    until = None
    while True:
        with daemon() as state:
            agent = state["agents"][agent_id]
            until = until or time.time() + seconds / state["speed"]
            if agent["status"] != "running" or agent["pending"]:
                return agent, "permission" if agent["pending"] else "error" if agent[
                    "status"
                ] == "error" else "idle"
        if time.time() > until:
            return agent, "timeout"
        time.sleep(0.01)
