"""A small scripted agent that speaks ACP on its standard streams: for a first run, for tests, for the docs.

It needs no model, no network and no disk, pretends everything, and takes up any session id after a restart.
Standard library only, so that it is there at once. `python -m app.demo --help` lists what a prompt can say.
"""

import itertools
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

COMMAND_LINE = (sys.executable, "-I", "-S", os.path.abspath(__file__))
"""How another program starts it, in any directory: as a module it could be another project's `app.demo`."""

COMMANDS = {
    "say TEXT": "answer with TEXT",
    "think TEXT": "reason TEXT",
    "stream N [DELAY_MS]": "answer with N pieces, DELAY_MS apart (0)",
    "read PATH": "pretend to read a file",
    "edit PATH[:LINE]": "pretend to change a file, at a line if it is given",
    "run COMMAND": "pretend to run a command",
    "ask TITLE": "ask for permission, then run TITLE if it is given",
    "question TEXT [| A | B]": "ask a question, with suggested answers if there are any",
    "plan A; B; C": "make a plan and go through its steps",
    "tokens IN OUT": "use up tokens",
    "mode MODE": "change to the mode MODE by itself (default, plan)",
    "sleep SECONDS": "do nothing for a while",
    "ignore-cancel": "from here on do not stop when asked to",
    "fail MESSAGE": "end the turn with an error",
    "refuse": "end the turn with the stop reason refusal",
    "crash": "let the process die, status 3",
    "garbage [N]": "write N lines (1) to the output that are no messages",
    "stderr N": "write N bytes to stderr",
}
"""What the lines of a prompt can be, one command a line."""

SETTINGS = {
    "model": ("model", "Model", ("demo-1", "demo-2")),
    "mode": ("mode", "Mode", ("default", "plan")),
    "thinking": ("thought_level", "Thinking", ("off", "high")),
}
"""Config options by id: category, name, values; the first value is in force at the start."""

CONTEXT = 200_000
"""Tokens of the pretended context window."""

Json = dict[str, Any]


class Cancelled(Exception):
    """The client asked the turn to stop."""


class Failed(Exception):
    """A JSON-RPC error to answer with."""

    def __init__(self, code: int, message: str, details: str | None = None) -> None:
        super().__init__(message)
        self.answer: Json = {"code": code, "message": message}
        if details is not None:
            self.answer["data"] = {"details": details}


class Wire:
    """JSON-RPC lines on stdin and stdout; may be used by several threads."""

    def __init__(self) -> None:
        self._writing = threading.Lock()
        self._ids = itertools.count()
        self._answers: dict[int, tuple[threading.Event, list[Json]]] = {}

    def send(self, message: Json) -> None:
        """Write one message."""
        self.write(json.dumps({"jsonrpc": "2.0"} | message).encode() + b"\n")

    def write(self, data: bytes) -> None:
        """Write bytes as they are; a client that is gone does not matter any more."""
        with self._writing:
            try:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            except BrokenPipeError:
                os._exit(0)

    def ask(self, method: str, params: Json) -> Json:
        """Send a request and wait for its result; an error is an empty one."""
        number = next(self._ids)
        arrived, answer = self._answers[number] = threading.Event(), []
        self.send({"id": number, "method": method, "params": params})
        arrived.wait()
        result = answer[0].get("result")
        return result if isinstance(result, dict) else {}

    def requests(self) -> Iterator[Json]:
        """The client's requests and notifications, until it closes; answers go to who asked."""
        for line in sys.stdin.buffer:
            message = json.loads(line)
            if "method" in message:
                yield message
            elif message.get("id") in self._answers:
                arrived, answer = self._answers.pop(message["id"])
                answer.append(message)
                arrived.set()


class Turn:
    """One prompt, played in a thread of its own."""

    def __init__(self, demo: "Demo", session: str) -> None:
        self.cancelled = threading.Event()
        self._demo = demo
        self._session = session
        self._ignores_cancel = False
        self._usage: Json | None = None
        self._stop_reason = "end_turn"
        self._calls = itertools.count(1)
        self._mark = os.urandom(4).hex()
        """Sets the ids of this turn's messages and tool calls apart from those of other turns."""
        self._message = f"msg-{self._mark}"

    def play(self, text: str) -> Json:
        """Do what the prompt says and return the answer to it."""
        try:
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            if not lines or self._command(lines[0]) is None:
                self._chat(text.strip())
                lines = []
            for line in lines:
                command = self._command(line)
                rest = line.partition(" ")[2].strip()
                self._pause(0)
                if command is None:
                    self.say(line)
                else:
                    command(rest)
        except Cancelled:
            return {"stopReason": "cancelled"}
        return {"stopReason": self._stop_reason} | ({"usage": self._usage} if self._usage else {})

    def _command(self, line: str) -> Callable[[str], None] | None:
        word = line.partition(" ")[0]
        known = word in {command.partition(" ")[0] for command in COMMANDS}
        return getattr(self, word.replace("-", "_")) if known else None

    def _pause(self, seconds: float) -> None:
        if self._ignores_cancel:
            threading.Event().wait(seconds)
        elif self.cancelled.wait(seconds):
            raise Cancelled

    def _update(self, update: str, /, **parts: Any) -> None:
        self._demo.update(self._session, update, **parts)

    def _chat(self, text: str) -> None:
        heard = " ".join(text.split()[:12]) or "nothing"
        words = (
            f"Hello! I am the demo agent, and I heard: {heard}. I have no model, but I can play a script: "
            "write one command a line, for example `say hello`, `run ls`, `ask Delete everything?` or "
            "`stream 20 50`. `python -m app.demo --help` lists them all."
        )
        for word in words.split():
            self._pause(0.015)
            self._chunk(word + " ")

    def _chunk(self, text: str, kind: str = "agent_message_chunk") -> None:
        self._update(kind, messageId=self._message, content={"type": "text", "text": text})

    def _new_call(self, title: str, kind: str) -> str:
        call = f"call-{next(self._calls)}-{self._mark}"
        self._update("tool_call", toolCallId=call, title=title, kind=kind, status="pending", rawInput={})
        return call

    def _end_call(self, call: str, content: Json | None, status: str = "completed", **parts: Any) -> None:
        if content is not None:
            parts["content"] = [content]
        self._update("tool_call_update", toolCallId=call, status=status, **parts)

    def _start_call(self, call: str, title: str, raw_input: Json, **parts: Any) -> None:
        parts |= {"title": title, "rawInput": raw_input, "status": "in_progress"}
        self._update("tool_call_update", toolCallId=call, **parts)

    # The commands

    def say(self, text: str) -> None:
        self._message = f"msg-{next(self._calls)}-{self._mark}"
        self._chunk(text)

    def think(self, text: str) -> None:
        self._chunk(text, "agent_thought_chunk")

    def stream(self, numbers: str) -> None:
        count, _, delay = numbers.partition(" ")
        for number in range(1, int(count) + 1):
            self._pause(float(delay or 0) / 1000)
            self._chunk(f"chunk-{number} ")

    def read(self, path: str) -> None:
        call = self._new_call("read", "read")
        self._start_call(call, f"Read {path}", {"path": path}, locations=[{"path": path, "line": 1}])
        self._end_call(call, _text(f"The pretended content of {path}."))

    def edit(self, place: str) -> None:
        path, _, line = place.rpartition(":")
        location: Json = {"path": path, "line": int(line)} if path and line.isdecimal() else {"path": place}
        path = location["path"]
        call = self._new_call("edit", "edit")
        self._start_call(call, f"Edit {path}", {"path": path}, locations=[location])
        self._end_call(call, {"type": "diff", "path": path, "oldText": "old\n", "newText": "new\n"})

    def run(self, command: str) -> None:
        call = self._new_call("shell", "execute")
        self._start_call(call, command, {"command": command})
        output = {"output": f"pretended: {command}\n", "exitCode": 0}
        self._end_call(call, _text(f"pretended: {command}\n"), rawOutput=output)

    def ask(self, title: str) -> None:
        call = self._new_call("shell", "execute")
        raw_input = {"command": title}
        options = [
            {"optionId": "yes", "name": "Allow", "kind": "allow_once"},
            {"optionId": "always", "name": "Always allow", "kind": "allow_always"},
            {"optionId": "no", "name": "Deny", "kind": "reject_once"},
        ]
        tool_call = {"toolCallId": call, "title": title, "kind": "execute", "rawInput": raw_input}
        params = {"sessionId": self._session, "toolCall": tool_call, "options": options}
        match self._demo.wire.ask("session/request_permission", params).get("outcome"):
            case {"outcome": "selected", "optionId": "yes" | "always"}:
                self._start_call(call, title, raw_input)
                self._end_call(call, _text("done\n"), rawOutput={"output": "done\n", "exitCode": 0})
                self.say("allowed")
            case {"outcome": "selected"}:
                self._end_call(call, None, "failed", rawOutput={"error": "denied"})
                self.say("denied")
            case _:
                self._end_call(call, None, "failed", rawOutput={"error": "cancelled"})
                self._pause(0)
                self.say("denied")

    def question(self, text: str) -> None:
        question, *answers = (part.strip() for part in text.split("|"))
        schema: Json = {"type": "string", "title": question} | ({"enum": answers} if answers else {})
        form = {"type": "object", "properties": {"answer": schema}, "required": ["answer"]}
        params = {"sessionId": self._session, "mode": "form", "message": question, "requestedSchema": form}
        match self._demo.wire.ask("elicitation/create", params):
            case {"action": "accept", "content": {"answer": answer}}:
                self.say(f"you said: {answer}")
            case _:
                self._pause(0)
                self.say("you did not say")

    def plan(self, text: str) -> None:
        steps = [step.strip() for step in text.split(";") if step.strip()]
        for done in range(len(steps) + 1):
            entries = [
                {
                    "content": step,
                    "priority": "medium",
                    "status": "completed" if at < done else "in_progress" if at == done else "pending",
                }
                for at, step in enumerate(steps)
            ]
            self._update("plan", entries=entries)
            self._pause(0)

    def tokens(self, numbers: str) -> None:
        used, made = (int(number) for number in numbers.split())
        self._usage = {"inputTokens": used, "outputTokens": made, "totalTokens": used + made}
        cost = {"amount": (used + 5 * made) / 1_000_000, "currency": "USD"}
        self._update("usage_update", used=used + made, size=CONTEXT, cost=cost)

    def mode(self, mode: str) -> None:
        self._demo.choose(self._session, "mode", mode)
        self._update("config_option_update", configOptions=self._demo.options(self._session))

    def sleep(self, seconds: str) -> None:
        self._pause(float(seconds))

    def ignore_cancel(self, _: str) -> None:
        self._ignores_cancel = True

    def fail(self, message: str) -> None:
        raise Failed(-32603, "Internal error", message or "told to fail")

    def refuse(self, _: str) -> None:
        self._stop_reason = "refusal"

    def crash(self, _: str) -> None:
        sys.stderr.write("demo: told to crash\n")
        sys.stderr.flush()
        os._exit(3)

    def garbage(self, count: str) -> None:
        self._demo.wire.write(b"this is no message\n" * int(count or 1))

    def stderr(self, count: str) -> None:
        sys.stderr.write("x" * (int(count) - 1) + "\n")
        sys.stderr.flush()


class Demo:
    """The agent: its sessions' settings and the turns that run."""

    def __init__(self) -> None:
        self.wire = Wire()
        self._settings: dict[str, dict[str, str]] = {}
        self._turns: dict[str, Turn] = {}

    def serve(self) -> None:
        """Answer requests until the client closes."""
        for message in self.wire.requests():
            number, method, params = message.get("id"), message["method"], message.get("params") or {}
            if method == "session/cancel":
                if turn := self._turns.get(str(params.get("sessionId"))):
                    turn.cancelled.set()
            elif method == "session/prompt":
                turn = self._turns[params["sessionId"]] = Turn(self, params["sessionId"])
                text = "\n".join(block.get("text", "") for block in params["prompt"])
                answer = threading.Thread(
                    target=self._answer, args=(number, lambda t=turn, x=text: t.play(x))
                )
                answer.daemon = True
                answer.start()
            elif number is not None:
                self._answer(number, lambda: self._result(method, params))  # noqa: B023 - called at once

    def update(self, session: str, update: str, /, **parts: Any) -> None:
        """Tell what happens in a session."""
        params = {"sessionId": session, "update": {"sessionUpdate": update} | parts}
        self.wire.send({"method": "session/update", "params": params})

    def options(self, session: str) -> list[Json]:
        """The config options of a session, with what is in force."""
        chosen = self._settings.get(session, {})
        return [
            {
                "id": id,
                "type": "select",
                "category": category,
                "name": name,
                "currentValue": chosen.get(id, values[0]),
                "options": [{"value": value, "name": value} for value in values],
            }
            for id, (category, name, values) in SETTINGS.items()
        ]

    def choose(self, session: str, option: str, value: str) -> None:
        """Set a config option."""
        if option not in SETTINGS or value not in SETTINGS[option][2]:
            raise Failed(-32602, "Invalid params", f"no {option} {value!r}")
        self._settings.setdefault(session, {})[option] = value

    def _answer(self, number: Any, work: Callable[[], Json]) -> None:
        try:
            self.wire.send({"id": number, "result": work()})
        except Failed as failed:
            self.wire.send({"id": number, "error": failed.answer})
        except (ValueError, KeyError, TypeError) as error:
            self.wire.send({"id": number, "error": Failed(-32602, "Invalid params", repr(error)).answer})

    def _result(self, method: str, params: Json) -> Json:
        match method:
            case "initialize":
                return {
                    "protocolVersion": 1,
                    "agentCapabilities": {
                        "loadSession": True,
                        "promptCapabilities": {"image": True, "embeddedContext": True},
                        "mcpCapabilities": {"http": True, "sse": True},
                        "sessionCapabilities": {"resume": {}, "close": {}},
                    },
                    "agentInfo": {"name": "demo", "title": "Demo", "version": "1"},
                    "authMethods": [],
                }
            case "session/new":
                session = f"demo-{os.urandom(8).hex()}"
                return {"sessionId": session, "configOptions": self.options(session)}
            case "session/load" | "session/resume":
                return {"configOptions": self.options(params["sessionId"])}
            case "session/set_config_option":
                self.choose(params["sessionId"], params["configId"], params["value"])
                return {"configOptions": self.options(params["sessionId"])}
            case "session/set_mode":  # the older way, which some clients still go
                self.choose(params["sessionId"], "mode", params["modeId"])
                return {}
            case "session/close":
                self._settings.pop(params["sessionId"], None)
                return {}
            case _:
                raise Failed(-32601, "Method not found", method)


def _text(text: str) -> Json:
    return {"type": "content", "content": {"type": "text", "text": text}}


def main() -> None:
    """Serve, or explain the commands."""
    if len(sys.argv) > 1:
        print(__doc__)
        print("A prompt is a script, one command a line:\n")
        for command, meaning in COMMANDS.items():
            print(f"  {command:<24} {meaning}")
        print("\nAny other prompt gets a friendly answer.")
        return
    Demo().serve()


if __name__ == "__main__":
    main()
