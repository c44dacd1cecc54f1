"""Prompts and MCP servers as ACP wants them, as far as the agent can take them. Pure."""

from collections.abc import Mapping
from typing import Any

from app.backends.base import Prompt, SendFailed, Unsupported
from app.domain.text import clean


def prompt_blocks(prompt: Prompt, capabilities: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The content blocks of a prompt; a text that cannot be embedded follows as a block of its own.

    Raises:
        SendFailed: the agent takes no images.
    """
    can = _mapping(capabilities.get("promptCapabilities"))
    blocks: list[dict[str, Any]] = [{"type": "text", "text": clean(prompt.text)}]
    for part in prompt.attachments:
        name, text = clean(part.name or "attachment"), clean(part.data)
        if part.kind == "image":
            if not can.get("image"):
                raise SendFailed("this agent takes no images", delivered="no", retriable=False)
            blocks.append({"type": "image", "data": text, "mimeType": part.mime_type or "image/png"})
        elif can.get("embeddedContext"):
            uri, mime_type = f"attachment:{name}", part.mime_type or "text/plain"
            blocks.append({"type": "resource", "resource": {"uri": uri, "text": text, "mimeType": mime_type}})
        else:
            blocks.append({"type": "text", "text": f"{name}:\n{text}"})
    return blocks


def mcp_servers(servers: Mapping[str, Any], capabilities: Mapping[str, Any]) -> list[dict[str, Any]]:
    """MCP servers by name (`command`, `args`, `env`, or `type`, `url`, `headers`) as a list.

    Raises:
        Unsupported: the agent takes no servers of that type, or the entry is none.
    """
    can = _mapping(capabilities.get("mcpCapabilities"))
    return [_mcp_server(name, server, can) for name, server in servers.items()]


def _mcp_server(name: str, server: Any, can: Mapping[str, Any]) -> dict[str, Any]:
    match server:
        case {"url": str(url)}:
            kind = str(server.get("type", "http"))
            if kind not in ("http", "sse") or not can.get(kind):
                raise Unsupported(f"this agent takes no MCP server of type {kind!r}")
            return {"type": kind, "name": name, "url": url, "headers": _pairs(server.get("headers"))}
        case {"command": str(command)}:
            args = [str(arg) for arg in server.get("args") or ()]
            return {"name": name, "command": command, "args": args, "env": _pairs(server.get("env"))}
        case _:
            raise Unsupported(f"the MCP server {name!r} has neither a url nor a command")


def _pairs(values: Any) -> list[dict[str, str]]:
    return [{"name": str(name), "value": str(value)} for name, value in _mapping(values).items()]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
