"""The opencode provider: it names its session often, never says that a turn has started, asks by itself."""

import json
from pathlib import Path
from secrets import token_hex, token_urlsafe
from typing import Any

from tests.paseo.twin_scripts import Script
from tests.paseo.twin_voice import Crashed, Failed

Json = dict[str, Any]

DETAILS: dict[str, tuple[str, str, str]] = {
    "bash": ("shell", "command", "command"),
    "read": ("read", "filePath", "filePath"),
    "edit": ("edit", "filePath", "filePath"),
}
"""How a tool's input becomes a detail: its type, the field, the input's field."""

ASKS = {"bash": "Run shell command", "edit": "Edit files"}
"""Tools that need a permission, and how it is titled."""

CONVENIENT = {"shell": "bash", "write": "edit", "delete": "edit"}
REJECTED = "The user rejected permission to use this specific tool call"
LATENCY = 0.05
"""Seconds that the model takes to answer."""


class Dismissed(Exception):
    """Somebody said no without a word: the model is not called again."""


class OpencodeScript(Script):
    """The same scripts; a tool's argument may be JSON, as its own model would give it."""

    async def run(self) -> None:
        """Play it, one call of the model after the other; the calls are announced."""
        for _ in range(2 if self.first else 0):
            self.process.thread_started()
        await self._call_model(announcements=2)
        try:
            await super().run()
        except Dismissed:
            pass
        else:
            self._account()
        await self.rest(LATENCY)

    async def rest(self, seconds: float, *, deaf: bool = False) -> None:
        """Let time pass; opencode obeys a cancellation at any time."""
        await super().rest(seconds)

    async def _call_model(self, announcements: int = 1) -> None:
        for _ in range(announcements):
            self.process.thread_started()
            await self.rest(LATENCY)

    def _account(self) -> None:
        """Usage, as it grows; it comes with an update of the agent."""
        self.process.flush()
        size, limit = 2400 + len(self.turn.text), 128000
        usage = {"inputTokens": size, "outputTokens": 7}
        self.turn.usage = usage | {"contextWindowMaxTokens": limit, "contextWindowUsedTokens": size + 7}
        self.process.agent.usage = self.turn.usage
        self.process.daemon.update(self.process.agent)

    async def do_tool(self, rest: str) -> None:
        """NAME JSON: a tool call, with the permission that it needs; then the model is called again."""
        name, _, argument = rest.partition(" ")
        if argument.startswith("{"):
            going_on = await self._tool(name, json.loads(argument), asks=name in ASKS)
        elif name == "fail":
            going_on = await self._tool("bash", {"command": argument}, fails=f"{argument}: not found")
        else:
            named = CONVENIENT.get(name, name)
            field = DETAILS.get(named, ("", "", "arg"))[2]
            going_on = await self._tool(named, {field: argument})
        self._account()
        if not going_on:
            raise Dismissed
        await self._call_model()

    async def do_ask(self, title: str) -> None:
        """Ask for the permission to run a command."""
        await self.do_tool(f"bash {json.dumps({'command': title})}")

    def do_toolstart(self, rest: str) -> None:
        """KIND ARGUMENT: a tool call that runs until the turn is cancelled."""
        kind, _, argument = rest.partition(" ")
        name = CONVENIENT.get(kind, kind)
        self.tell(self._item(name, {DETAILS.get(name, ("", "", "arg"))[2]: argument}))

    async def _tool(self, name: str, given: Json, *, asks: bool = False, fails: str | None = None) -> bool:
        item = self._item(name, given)
        unknown: Json = {"type": "unknown", "input": {}, "output": None}
        self.tell({**item, "detail": unknown})
        if name == "question":
            return await self._question(item, given)
        if name == "todowrite":
            todo = [
                {"text": step["content"], "completed": step["status"] == "completed"}
                for step in given["todos"]
            ]
            self.tell({"type": "todo", "items": todo})
        if asks:
            response = await self.process.ask(self.turn, self._request(name, item["callId"], given))
            await self.rest(0)
            self.tell(item)
            if response is None or response["behavior"] == "deny":
                message = (response or {}).get("message")
                told = f"{REJECTED} with the following feedback: {message}" if message else f"{REJECTED}."
                self.tell({**item, "status": "failed", "error": told})
                return message is not None
        if name == "bash" and given["command"].startswith("sleep "):
            await self.rest(float(given["command"].split()[1]))
        await self.rest(0)
        ended = {"status": "completed", "detail": self._ended(name, item["detail"], given)}
        self.tell(item | ({"status": "failed", "error": fails} if fails else ended))
        return True

    async def _question(self, item: Json, given: Json) -> bool:
        detail = {"type": "unknown", "input": given, "output": None}
        request = {
            "id": f"que_{token_hex(12)}",
            "provider": "opencode",
            "name": "question",
            "kind": "question",
            "title": "Question",
            "input": given,
            "metadata": {
                "source": "opencode_question",
                "messageID": f"msg_{token_hex(12)}",
                "callID": item["callId"],
            },
        }
        response = await self.process.ask(self.turn, request)
        await self.rest(0)
        if response is None or response["behavior"] == "deny":
            dismissed = "The user dismissed this question"
            self.tell({**item, "detail": detail, "status": "failed", "error": dismissed})
            return False
        output = json.dumps(response.get("updatedInput", {}).get("answers"))
        self.tell({**item, "detail": {**detail, "output": output}, "status": "completed"})
        return True

    def _item(self, name: str, given: Json) -> Json:
        detail: Json = {"type": "unknown", "input": given, "output": None}
        if name in DETAILS:
            kind, field, source = DETAILS[name]
            detail = {"type": kind, field: given.get(source, "")}
        return {
            "type": "tool_call",
            "callId": f"call_{token_hex(5)}",
            "name": name,
            "detail": detail,
            "status": "running",
            "error": None,
        }

    def _ended(self, name: str, detail: Json, given: Json) -> Json:
        if name == "read":
            return {**detail, "content": f"<path>{given.get('filePath')}</path>"}
        if name == "bash":
            return {**detail, "output": given["command"].removeprefix("echo ") + "\n"}
        output = "Edit applied successfully." if name == "edit" else json.dumps(given)
        return {"type": "unknown", "input": given, "output": output}

    def _request(self, name: str, call_id: str, given: Json) -> Json:
        tool = {"messageID": f"msg_{token_hex(12)}", "callID": call_id}
        request: Json = {
            "id": f"per_{token_urlsafe(18)}",
            "provider": "opencode",
            "name": name,
            "kind": "tool",
            "title": ASKS[name],
        }
        if name == "bash":
            command = given["command"]
            inner = {
                "patterns": [command],
                "metadata": {"command": command},
                "tool": tool,
                "command": command,
            }
            detail: Json = {"type": "shell", "command": command}
            return request | {"description": f"Scope: {command}", "input": inner, "detail": detail}
        path = given["filePath"]
        changes = {"filepath": path, "diff": f"-{given.get('oldString')}\n+{given.get('newString')}\n"}
        inner = {"patterns": [Path(path).name], "metadata": changes, "tool": tool}
        detail = {"type": "unknown", "input": {"permission": "edit", **inner}, "output": None}
        return request | {"description": f"Scope: {Path(path).name}", "input": inner, "detail": detail}

    def do_http(self, rest: str) -> None:
        """CODE MESSAGE: the model's API answers with an error."""
        code, _, message = rest.partition(" ")
        data = {"message": message, "statusCode": int(code), "isRetryable": False}
        raise Failed(json.dumps({"name": "APIError", "data": data}))

    def do_fail(self, rest: str) -> None:
        """The same, with any message."""
        self.do_http(f"400 {rest}")

    def do_crash(self, _rest: str) -> None:
        """Let opencode's server die; the daemon lives on."""
        raise Crashed("OpenCode event stream ended before the turn reached a terminal state")
