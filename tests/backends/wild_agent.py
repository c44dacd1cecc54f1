"""An ACP agent that does on its wire whatever a test tells it, well-behaved or not.

Its arguments say how it opens (`old`, `closed-door`, `mute`, …); a prompt is a script, one command a line.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

HOW = set(sys.argv[1:])


def write(line: bytes) -> None:
    """Put a line on the wire as it is."""
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def send(**message: Any) -> None:
    """Put a message on the wire."""
    write(json.dumps({"jsonrpc": "2.0"} | message).encode())


def update(session: str, **parts: Any) -> None:
    """Tell what happens in a session."""
    send(method="session/update", params={"sessionId": session, "update": parts})


def say(session: str, text: str) -> None:
    """Answer with a text."""
    update(session, sessionUpdate="agent_message_chunk", content={"type": "text", "text": text})


def messages() -> Iterator[dict[str, Any]]:
    """What the client sends."""
    for line in sys.stdin.buffer:
        yield json.loads(line)


def opened(session: str | None) -> dict[str, Any]:
    """The answer to session/new, load and resume."""
    answer: dict[str, Any] = {"sessionId": session} if session else {}
    if "old" in HOW:
        modes = [{"id": "ask", "name": "Ask"}, {"id": "code", "name": "Code"}]
        models = [{"modelId": "m1", "name": "One"}, {"modelId": "m2", "name": "Two"}]
        answer["modes"] = {"currentModeId": "ask", "availableModes": modes}
        answer["models"] = {"currentModelId": "m1", "availableModels": models}
    return answer


def play(number: Any, session: str, script: str, incoming: Iterator[dict[str, Any]]) -> None:
    """Do what the prompt says; without `result` or `error` the turn ends by itself."""
    for line in script.splitlines():
        command, _, rest = line.partition(" ")
        match command:
            case "raw":
                write(rest.encode())
            case "junk":
                write(b"junk\n" * (int(rest) - 1) + b"junk")
            case "long":
                write(b"x" * int(rest))
            case "say":
                say(session, rest)
            case "update":
                update(session, **json.loads(rest))
            case "request":
                method, _, params = rest.partition(" ")
                send(id=0, method=method, params=json.loads(params) | {"sessionId": session})
                answer = next(message for message in incoming if "method" not in message)
                say(session, json.dumps(answer.get("result", answer.get("error"))))
            case "result":
                send(id=number, result=json.loads(rest))
                return
            case "error":
                send(id=number, error=json.loads(rest))
                return
            case "await-cancel":
                say(session, "waiting")
                next(message for message in incoming if message.get("method") == "session/cancel")
            case "environment":
                say(session, json.dumps(dict(os.environ)))
            case "arguments":
                say(session, json.dumps([sys.argv, os.getcwd()]))
            case "stderr":
                sys.stderr.write("e" * int(rest) + "\n")
            case "children":
                family = [os.getpid(), *grandchildren()]
                say(session, json.dumps(family))
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
    send(id=number, result={"stopReason": "end_turn"})


def grandchildren() -> list[int]:
    """A child that holds our pipes and does not mind SIGTERM, and one that left the group as well."""
    stubborn = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    pids = []
    for leaves in (False, True):
        code = [sys.executable, "-I", "-S", "-c", stubborn]
        ready, child_end = os.pipe()
        child = subprocess.Popen(code, stdout=child_end, start_new_session=leaves)
        os.close(child_end)
        os.read(ready, 8)
        pids.append(child.pid)
    return pids


def main() -> None:
    """Answer the client."""
    if "silent" in HOW:
        time.sleep(600)
    if "stillborn" in HOW:
        sys.exit("no licence found")
    incoming = messages()
    for message in incoming:
        number, params = message.get("id"), message.get("params") or {}
        match message.get("method"):
            case "initialize" if "future" in HOW:
                send(id=number, result={"protocolVersion": 2})
            case "initialize":
                capabilities = {"loadSession": "forgetful" not in HOW, "sessionCapabilities": {}}
                methods = [{"id": "login", "name": "Log in", "description": "run `wild login`"}]
                result = {"protocolVersion": 1, "agentCapabilities": capabilities, "authMethods": methods}
                send(id=number, result=result)
            case "session/new" if "closed-door" in HOW:
                send(id=number, error={"code": -32000, "message": "Authentication required"})
            case "session/new":
                if "doorbell" in HOW:
                    globals()["DOOR"] = socket.create_server(("127.0.0.1", 0))
                send(id=number, result=opened("wild-1"))
            case "session/load" if params["sessionId"] == "unknown":
                send(id=number, error={"code": -32002, "message": "Resource not found"})
            case "session/load":
                say(params["sessionId"], "history")
                update(params["sessionId"], sessionUpdate="tool_call", toolCallId="old", title="old")
                send(id=number, result=opened(None))
            case "session/set_mode" | "session/set_model":
                update(params["sessionId"], sessionUpdate="current_mode_update", currentModeId="code")
                send(id=number, result=None)
            case "session/prompt":
                play(number, params["sessionId"], params["prompt"][0]["text"], incoming)


if __name__ == "__main__":
    main()
