"""The scripted ACP agent: it reads its prompt as a script, one directive a line, and pretends everything."""

import json
import math
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio

from tests.paseo.twin_voice import Cancelled, Crashed, Failed

if TYPE_CHECKING:
    from tests.paseo.twin_turns import Process
    from tests.paseo.twin_voice import Turn

Json = dict[str, Any]

OPTIONS = [
    {"kind": "allow_once", "name": "Allow", "optionId": "allow"},
    {"kind": "reject_once", "name": "Reject", "optionId": "reject"},
]
MORE_OPTIONS = [{"kind": "allow_always", "name": "Always allow", "optionId": "always"}, *OPTIONS]
QUICK = {"read", "edit", "shell"}
"""Tools that finish at once, so that a client never sees them running."""

SLOW_TOOL = 0.09
"""Seconds that the other tools take: longer than a window."""


def call(name: str, kind: str, title: str) -> Json:
    """A tool call as it starts."""
    return {
        "type": "tool_call",
        "callId": f"call-{uuid4().hex[:8]}",
        "name": name,
        "metadata": {"kind": kind, "title": title},
        "status": "running",
        "error": None,
    }


def pretend(kind: str, argument: str) -> tuple[Json, Json, Json]:
    """A tool call of a kind: as it starts, its detail at the start, what the end adds to that detail."""
    result = f"result of {argument}"
    names = {"write": "edit", "delete": "edit", "shell": "execute", "fail": "execute"}
    title = f"{kind} {argument}"
    starts: dict[str, tuple[Json, Json]] = {
        "read": ({"type": "read", "filePath": argument}, {"content": f"ran {argument}"}),
        "edit": ({"type": "edit", "filePath": argument}, {"oldString": "a\n", "newString": "b\n"}),
        "write": ({"type": "edit", "filePath": argument}, {"newString": "hello\n"}),
        "delete": ({"type": "edit", "filePath": argument}, {"oldString": "a\n", "newString": ""}),
        "shell": ({"type": "shell", "command": argument}, {"output": f"ran {argument}"}),
        "search": (
            {"type": "search", "query": argument, "toolName": "search", "filePaths": []},
            {"content": result},
        ),
        "fetch": ({"type": "fetch", "url": argument}, {"result": result}),
        "think": ({"type": "plain_text", "label": title, "icon": "brain"}, {"text": result}),
        "fail": ({"type": "shell", "command": argument}, {"exitCode": 127}),
    }
    other = ({"type": "unknown", "input": {"arg": argument}, "output": None}, {"output": {"ok": True}})
    detail, ending = starts.get(kind, other)
    name = names.get(kind, kind if kind in starts else "other")
    return call(name, name, title), detail, ending


class Script:
    """One prompt, being played."""

    def __init__(self, process: "Process", turn: "Turn", first: bool) -> None:
        self.process = process
        self.turn = turn
        self.first = first

    async def run(self) -> None:
        """Play it to its end; raises how it ends, if it does not just complete."""
        lines = self.turn.text.split("\n")
        for block in self.turn.blocks:
            lines += block["text"].split("\n") if block["type"] == "text" else []
        for line in lines:
            verb, _, rest = line.strip().partition(" ")
            if not verb:
                continue
            directive = getattr(self, f"do_{verb.replace('-', '_')}", None)
            if directive is None:
                self.do_say(line.strip())
            elif (waiting := directive(rest)) is not None:
                await waiting

    def tell(self, item: Json) -> None:
        """Say something, and remember it as the provider does."""
        self.process.daemon.store.add(self.process.conversation, item)
        if item["type"] == "tool_call":
            self.process.tool(self.turn, item)
        else:
            self.process.say(item)

    async def rest(self, seconds: float, *, deaf: bool = False) -> None:
        """Let time pass; a cancellation cuts it short, or at least ends it."""
        if deaf:
            await self.process.daemon.pause(seconds)
        else:
            with anyio.move_on_after(seconds / self.process.daemon.speed):
                await self.turn.cancel.wait()
        if self.turn.cancel.is_set():
            raise Cancelled

    # Directives

    def do_say(self, text: str) -> None:
        """Answer with a text."""
        self.tell({"type": "assistant_message", "text": text})

    def do_think(self, text: str) -> None:
        """Reason."""
        self.tell({"type": "reasoning", "text": text})

    def do_user(self, text: str) -> None:
        """Echo a user message that starts nothing."""
        self.tell({"type": "user_message", "text": text})

    async def do_chunks(self, rest: str) -> None:
        """N DELAY_MS SIZE: text in pieces."""
        count, delay, size = (*map(int, rest.split()), 0, 0)[:3]
        for number in range(count):
            self.do_say(f"c{number} " + "x" * size)
            if delay:
                await self.rest(delay / 1000, deaf=True)

    async def do_tool(self, rest: str) -> None:
        """KIND ARGUMENT: a tool call that finishes."""
        kind, _, argument = rest.partition(" ")
        item, detail, ending = pretend(kind, argument)
        self.tell({**item, "detail": detail})
        if kind not in QUICK:
            await self.rest(SLOW_TOOL)
        failed = {"status": "failed", "error": {"message": f"{argument}: not found"}}
        ends = failed if kind == "fail" else {"status": "completed"}
        self.tell({**item, "detail": {**detail, **ending}, **ends})

    def do_toolstart(self, rest: str) -> None:
        """KIND ARGUMENT: a tool call that never finishes."""
        kind, _, argument = rest.partition(" ")
        item, detail, _ = pretend(kind, argument)
        self.tell({**item, "detail": detail})

    def do_plan(self, rest: str) -> None:
        """a;+b: a list of things to do, those with a plus done."""
        steps = [step.strip() for step in rest.split(";")]
        done = [{"text": step.lstrip("+"), "completed": step.startswith("+")} for step in steps]
        self.tell({"type": "todo", "items": done})

    async def do_ask(self, title: str) -> None:
        """Ask for a permission."""
        outcome = await self.permission(title, f"call-{uuid4().hex[:8]}", "execute", OPTIONS)
        self.do_say(f"permission: {json.dumps(outcome)}")
        await self.rest(0)

    async def do_asks(self, rest: str, kind: str = "execute") -> None:
        """A;B: ask for several permissions at once."""
        base, titles = f"call-{uuid4().hex[:8]}", rest.split(";")
        outcomes: list[Json] = [{}] * len(titles)

        async def one(number: int) -> None:
            outcomes[number] = await self.permission(titles[number], f"{base}-{number}", kind, MORE_OPTIONS)

        async with anyio.create_task_group() as asking:
            for number in range(len(titles)):
                asking.start_soon(one, number)
        self.do_say(f"permissions: {json.dumps(outcomes)}")
        await self.rest(0)

    async def do_askplan(self, title: str) -> None:
        """Ask to leave the plan mode."""
        await self.do_asks(title, "switch_mode")

    async def permission(self, title: str, call_id: str, kind: str, options: list[Json]) -> Json:
        """Ask once; the outcome as ACP puts it."""
        raw = {
            "options": options,
            "sessionId": self.process.agent.session_id,
            "toolCall": {
                "kind": kind,
                "rawInput": {"command": title},
                "status": "pending",
                "title": title,
                "toolCallId": call_id,
            },
        }
        plan = {
            "type": "plain_text",
            "label": title,
            "icon": "sparkles",
            "text": json.dumps({"command": title}, separators=(",", ":")),
        }
        response = await self.process.ask(
            self.turn,
            {
                "id": str(uuid4()),
                "provider": "acp",
                "name": kind,
                "kind": "tool" if kind == "execute" else "mode",
                "title": title,
                "detail": {"type": "shell", "command": title} if kind == "execute" else plan,
                "metadata": {"toolCallId": call_id, "rawRequest": raw, "options": options},
            },
        )
        if response is None:
            return {"outcome": {"outcome": "cancelled"}}
        chosen = "allow" if response["behavior"] == "allow" else "reject"
        return {"outcome": {"outcome": "selected", "optionId": chosen}}

    async def do_sleep(self, rest: str) -> None:
        """MS: do nothing for a while."""
        await self.rest(float(rest) / 1000)

    async def do_hang(self, _rest: str = "") -> None:
        """Do nothing until the turn is cancelled."""
        await self.rest(math.inf)

    async def do_stubborn(self, rest: str) -> None:
        """MS: work on for a while and hear no cancellation."""
        await self.process.daemon.pause(float(rest) / 1000)
        self.do_say("stubborn done")
        await self.rest(0)

    def do_usage(self, rest: str) -> None:
        """IN OUT CACHED: use up tokens."""
        spent, written, cached = (*map(int, rest.split()), 0)[:3]
        self.turn.usage = {"inputTokens": spent, "cachedInputTokens": cached, "outputTokens": written}

    def do_mode(self, mode: str) -> None:
        """The agent changes its own mode."""
        self.process.agent.mode = self.process.agent.real_mode = mode
        self.process.daemon.update(self.process.agent)

    def do_blocks(self, _rest: str) -> None:
        """Say what the prompt consisted of, with the lengths of its parts."""
        parts = [{"type": "text", "text": len(self.turn.text)}]
        for block in self.turn.blocks:
            long = "text" if block["type"] == "text" else "data"
            parts.append({**block, long: len(block[long])})
        self.do_say(f"blocks: {json.dumps(parts)}")

    def do_mcp(self, _rest: str) -> None:
        """Say which MCP servers were given."""
        servers = []
        for name, server in self.process.agent.metadata.get("mcpServers", {}).items():
            headers = [{"name": key, "value": value} for key, value in server.get("headers", {}).items()]
            servers.append({"type": server.get("type"), "name": name, **server, "headers": headers})
        self.do_say(f"mcp: {json.dumps(servers)}")

    def do_refuse(self, _rest: str) -> None:
        """End with the stop reason `refusal`, which the wire does not tell."""

    def do_fail(self, _rest: str) -> None:
        """End with an error, whose text this version of the daemon loses."""
        raise Failed("[object Object]")

    def do_crash(self, _rest: str) -> None:
        """Let the process die."""
        raise Crashed("ACP agent exited unexpectedly (3)")

    def do_exitlater(self, rest: str) -> None:
        """MS: let the process die later, while it is idle: nobody sees it."""

        async def die() -> None:
            await self.process.daemon.pause(float(rest) / 1000)
            self.process.dead = True

        self.process.daemon.work(die)
