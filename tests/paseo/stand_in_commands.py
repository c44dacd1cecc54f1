"""What each command of the stand-in does and says."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.paseo.stand_in_daemon import (
    HOME,
    PROVIDERS,
    Failed,
    Json,
    activity,
    advance,
    at_rest,
    daemon,
    known,
    listed,
    new_agent,
    prompt,
    shown,
    stamp,
)

IMPORTED = ("claude", "codex", "opencode", "acp")
FORCE_S = 2.0
"""Seconds after which an agent that does not obey is given up."""


class Plain(Exception):
    """What the command's own parser says."""


def labels(options: Json) -> dict[str, str]:
    """What `--label` says, each time."""
    return dict(label.partition("=")[::2] for label in options.get("--label", []))


def run(options: Json, words: list[str]) -> Any:
    """`run`: an agent and its first turn."""
    provider, cwd = options.get("--provider", "opencode"), options.get("--cwd", os.getcwd())
    with daemon() as state:
        if provider not in PROVIDERS:
            names = ", ".join(PROVIDERS)
            message = f"Failed to create agent: Unknown provider '{provider}'. Configured providers: {names}."
            raise Failed("AGENT_CREATE_FAILED", message)
        title = options.get("--title") or words[0].split("\n")[0][:200]
        agent = new_agent(state, provider, cwd, title, labels(options))
        prompt(agent, words[0])
    made = {"agentId": agent["id"], "status": "created", "provider": provider, "cwd": cwd, "title": title}
    if "-d" in options:
        return made
    _, status = at_rest(agent["id"], 600)
    return made | {"status": "completed" if status == "idle" else status}


def import_(options: Json, words: list[str]) -> Any:
    """`import`: an agent on a session of a provider."""
    provider, cwd = options["--provider"], options.get("--cwd")
    if provider not in IMPORTED:
        message = f"Unsupported provider: {provider}"
        raise Failed("INVALID_PROVIDER", message, f"Supported providers: {', '.join(IMPORTED)}")
    wrong = None
    if provider == "acp":
        wrong = "No client registered for provider 'acp'"
    elif provider == "codex":
        wrong = (
            "Codex binary not found. Install the Codex CLI (https://github.com/openai/codex) and ensure it is"
            " available in your shell PATH."
        )
    elif cwd is not None and not (Path(cwd).is_dir() or cwd.startswith("/workspace")):
        wrong = f"Working directory does not exist: {cwd}"
    elif provider == "opencode" and cwd is None:
        wrong = "OpenCode sessions require --cwd when the session cannot be found in persisted agents"
    if wrong:
        raise Failed("AGENT_IMPORT_FAILED", f"Failed to import agent: {wrong}")
    with daemon() as state:
        agent = new_agent(state, provider, cwd or os.getcwd(), None, labels(options))
        agent["adopted"] = True
        history = HOME / "history.json"
        agent["items"] = json.loads(history.read_text()) if history.exists() else []
    return {
        "agentId": agent["id"],
        "status": "created",
        "provider": provider,
        "cwd": agent["cwd"],
        "title": None,
    }


def send(options: Json, words: list[str]) -> Any:
    """`send`: a turn of an agent."""
    given, *texts = words
    text = texts[0] if texts else None
    if "--prompt-file" in options:
        text = Path(options["--prompt-file"]).read_text()
    if text is None:
        usage = "Usage: paseo agent send [options] <id> [prompt] | --prompt <text> | --prompt-file <path>"
        raise Failed("MISSING_PROMPT", "A prompt is required", usage)
    with daemon() as state:
        agent = known(state, given, "SEND_FAILED", "Failed to send message: ")
        prompt(agent, text)
    if "--quiet" in options or "-q" in options:
        return agent["id"]
    if "--no-wait" in options:
        return {"agentId": given, "status": "sent", "message": "Message sent, not waiting for completion"}
    agent, status = at_rest(agent["id"], 600)
    words_for = {
        "idle": "Agent completed processing the message",
        "permission": "Agent is waiting for permission",
    }
    message = words_for.get(status) or agent["error"]
    return {"agentId": agent["id"], "status": "completed" if status == "idle" else status, "message": message}


def wait(options: Json, words: list[str]) -> Any:
    """`wait`: until an agent is at rest."""
    (given,) = words
    try:
        with daemon() as state:
            agent = known(state, given, "", "")
    except Failed as error:
        return {"agentId": given, "status": "error", "message": str(error)}
    seconds = int(options.get("--timeout", 10**6))
    agent, status = at_rest(agent["id"], seconds)
    last = f"\nLast 5 activity items:\n{activity(agent, 5)}"
    message = {
        "idle": f"Agent is idle.{last}",
        "timeout": f"Agent did not finish within {seconds} second{'s' * (seconds != 1)}. Run `paseo wait "
        f"{agent['id']}` again to keep waiting.{last}",
        "permission": f"Agent is waiting for permission: {(agent['pending'] or {}).get('tool')}",
        "error": agent["error"],
    }[status]
    return {"agentId": agent["id"], "status": status, "message": message}


def logs(options: Json, words: list[str]) -> Any:
    """`logs`: text, whatever is asked for."""
    try:
        with daemon() as state:
            agent = known(state, words[0], "", "Failed to get logs: ")
    except Failed as error:
        raise Plain(f"Error: {error}") from None
    tail = int(options["--tail"]) if "--tail" in options else None
    return activity(agent, tail, only=options.get("--filter", ""))


def inspect(options: Json, words: list[str]) -> Any:
    """`inspect`: an agent as it is stored."""
    with daemon() as state:
        agent = known(state, words[0], "INSPECT_FAILED", "Failed to inspect agent: ")
    is_loaded = agent["archived"] is None
    modes = [{"id": "default", "label": "Default"}, {"id": "plan", "label": "Plan"}] if is_loaded else []
    able = {"Streaming": is_loaded, "Persistence": True, "DynamicModes": is_loaded, "McpServers": is_loaded}
    return {
        "Id": agent["id"],
        "Name": agent["title"],
        "Provider": agent["provider"],
        "Model": agent["model"],
        "Thinking": "auto",
        "Status": agent["status"],
        "Archived": not is_loaded,
        "ArchivedAt": agent["archived"],
        "Mode": agent["mode"],
        "Cwd": agent["cwd"],
        "CreatedAt": agent["created"],
        "UpdatedAt": agent["updated"],
        "LastUsage": None,
        "Capabilities": able,
        "AvailableModes": modes,
        "PendingPermissions": [agent["pending"]] if agent["pending"] else [],
        "Worktree": None,
        "ParentAgentId": None,
    }


def ls(options: Json, words: list[str]) -> Any:
    """`ls`: the agents, the newest first."""
    with daemon() as state:
        found = [
            one
            for one in shown(state)
            if ("-a" in options or one["archived"] is None)
            and labels(options).items() <= one["labels"].items()
        ]
    return [
        {
            "id": one["id"],
            "shortId": one["id"][:7],
            "name": one["title"] or "-",
            "provider": f"{one['provider']}/{one['model']}",
            "thinking": "auto",
            "status": one["status"],
            "cwd": one["cwd"],
            "created": "just now",
        }
        for one in sorted(found, key=lambda one: (one["archived"] is not None, one["provider"] == "claude"))
    ]


def stop(options: Json, words: list[str]) -> Any:
    """`stop`: end a turn; an agent that does not obey is left to itself after a while."""
    if not words:
        usage = "Usage: paseo agent stop <id> | --all | --cwd <path>"
        raise Failed("MISSING_ARGUMENT", "Agent ID required unless --all or --cwd is specified", usage)
    with daemon() as state:
        agent = known(state, words[0], "STOP_AGENT_FAILED", "Failed to stop agent(s): ")
        if agent["status"] != "running":
            return {"stoppedCount": 0, "agentIds": []}
        stubborn, speed = agent["stubborn"], state["speed"]
    if stubborn:
        time.sleep(FORCE_S / speed)
    with daemon() as state:
        state["agents"][agent["id"]] |= {"status": "idle", "lines": [], "pending": None}
    return {"stoppedCount": 1, "agentIds": [agent["id"]]}


def archive(options: Json, words: list[str]) -> Any:
    """`archive`: put away."""
    with daemon() as state:
        agent = listed(state, words[0], "AGENT_NOT_FOUND")
        short = agent["id"][:7]
        if agent["archived"]:
            details = f"Archived at: {agent['archived']}"
            raise Failed("AGENT_ALREADY_ARCHIVED", f"Agent {short} is already archived", details)
        if agent["status"] == "running" and "--force" not in options:
            details = (
                "Use --force to archive a running agent (it will interrupt the active run), or stop it first"
                " with: paseo agent stop. Use paseo agent delete to hard-delete it."
            )
            raise Failed("AGENT_RUNNING", f"Agent {short} is currently running", details)
        agent |= {
            "archived": stamp(),
            "status": "closed",
            "lines": [],
            "pending": None,
            "items": [],
            "updated": stamp(),
        }
    return {"agentId": agent["id"], "status": "archived", "archivedAt": agent["archived"]}


def delete(options: Json, words: list[str]) -> Any:
    """`delete`: for good."""
    with daemon() as state:
        agent = known(state, words[0], "DELETE_AGENT_FAILED", "Failed to delete agent(s): ")
        del state["agents"][agent["id"]]
    return {"deletedCount": 1, "agentIds": [agent["id"]]}


def reload(options: Json, words: list[str]) -> Any:
    """`agent reload`: the process anew."""
    with daemon() as state:
        agent = listed(state, words[0], "AGENT_NOT_FOUND")
        agent |= {
            "dead": False,
            "archived": None,
            "status": "idle",
            "lines": [],
            "pending": None,
            "stubborn": False,
        }
    return {"agentId": agent["id"], "status": "reloaded", "timelineSize": len(agent["items"])}


def mode(options: Json, words: list[str]) -> Any:
    """`agent mode`."""
    with daemon() as state:
        agent = known(state, words[0], "MODE_OPERATION_FAILED", "Failed to set mode: ")
        agent["mode"] = words[1]
    return {"agentId": agent["id"][:7], "mode": agent["mode"]}


def update(options: Json, words: list[str]) -> Any:
    """`agent update`."""
    with daemon() as state:
        agent = known(state, words[0], "UPDATE_FAILED", "Failed to update agent: ")
        agent["title"] = options.get("--name", agent["title"])
    return {"agentId": agent["id"], "name": agent["title"], "labels": ", ".join(options.get("--label", []))}


def pending(options: Json, words: list[str]) -> Any:
    """`permit ls`."""
    with daemon() as state:
        asking = [one for one in state["agents"].values() if one["pending"]]
    return [
        {
            "id": one["pending"]["id"],
            "agentId": one["id"],
            "agentShortId": one["id"][:7],
            "name": "execute",
            "description": "-",
        }
        for one in asking
    ]


def allow(options: Json, words: list[str]) -> Any:
    """`permit allow`."""
    return answer(words[0], "allowed", "allow", "ALLOW_PERMISSION_FAILED", "Failed to allow permission: ")


def deny(options: Json, words: list[str]) -> Any:
    """`permit deny`."""
    if len(words) < 2 and "--all" not in options:
        usage = "Usage: paseo permit deny <agent> <req_id> or paseo permit deny <agent> --all"
        raise Failed("MISSING_ARGUMENT", "Request ID is required unless --all is specified", usage)
    if len(words) > 1:
        with daemon() as state:
            agent = known(state, words[0], "DENY_PERMISSION_FAILED", "Failed to deny permission: ")
        if agent["pending"] is None or words[1] != agent["pending"]["id"]:
            details = f"Available requests: {agent['pending']['id']}" if agent["pending"] else None
            raise Failed("PERMISSION_NOT_FOUND", f"Permission request not found: {words[1]}", details)
    return answer(words[0], "denied", "reject", "DENY_PERMISSION_FAILED", "Failed to deny permission: ")


def answer(given: str, result: str, option: str, code: str, prefix: str) -> list[Json]:
    """Answer what is pending; the turn goes on."""
    with daemon() as state:
        agent = known(state, given, code, prefix)
        short, asked = agent["id"][:7], agent["pending"]
        if asked is None:
            raise Failed("NO_PENDING_PERMISSIONS", f"No pending permissions for agent {short}")
        outcome = json.dumps({"outcome": {"outcome": "selected", "optionId": option}})
        agent["items"].append(["assistant", f"permission: {outcome}"])
        agent |= {"pending": None, "due": time.time()}
        advance(agent, state["speed"])
    told = {"requestId": asked["id"], "agentId": agent["id"], "agentShortId": short, "name": "execute"}
    return [told | {"result": result}]


def providers(options: Json, words: list[str]) -> Any:
    """`provider ls`; what is still looked at is `loading`. Without a daemon: what it always knew."""
    if options.get("down"):
        return [
            {
                "provider": name,
                "label": PROVIDERS[name][0],
                "status": "available",
                "enabled": "Enabled",
                "defaultMode": PROVIDERS[name][2],
                "modes": "",
            }
            for name in ("claude", "codex", "copilot", "opencode", "pi")
        ]
    return [
        {
            "provider": name,
            "label": label,
            "status": "loading",
            "enabled": "Disabled" if name == "switched-off" else "Enabled",
            "defaultMode": mode_,
            "modes": "",
        }
        for name, (label, _, mode_) in PROVIDERS.items()
    ]


def models(options: Json, words: list[str]) -> Any:
    """`provider models`."""
    return [
        {
            "model": name.upper(),
            "id": name,
            "description": "",
            "thinkingOptionIds": [],
            "defaultThinkingOptionId": None,
            "thinkingOptions": "none",
        }
        for name in ("m1", "m2")
    ]


ACTIONS: dict[str, Callable[[Json, list[str]], Any]] = {
    "run": run,
    "import": import_,
    "send": send,
    "wait": wait,
    "logs": logs,
    "inspect": inspect,
    "ls": ls,
    "stop": stop,
    "archive": archive,
    "delete": delete,
    "agent reload": reload,
    "agent mode": mode,
    "agent update": update,
    "permit ls": pending,
    "permit allow": allow,
    "permit deny": deny,
    "provider ls": providers,
    "provider models": models,
    "terminal ls": lambda options, words: [],
}
