"""A stand-in for the `paseo` command, with its daemon in a folder: as the real one was seen to answer.

`python -I -S stand_in.py COMMAND…` with STAND_IN naming the folder. Agents play the scripts of the daemon's
twin; time is divided by `speed` in the folder's `state.json`. `argv.log` tells what was called and how. A
file `down` stops the daemon; `faults.json` makes a command misbehave once: `{"send": "hang"}`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.paseo.stand_in_commands import ACTIONS, Plain
from tests.paseo.stand_in_daemon import HOME, Failed, Json

WITH_VALUE = {
    "--host",
    "--provider",
    "--cwd",
    "--title",
    "--tail",
    "--timeout",
    "--name",
    "--label",
    "--filter",
    "--prompt-file",
}


def main() -> int:
    """Run one command."""
    options, words = parse(sys.argv[1:])
    note(options)
    verb = words.pop(0) if words else ""
    if verb in ("agent", "permit", "provider", "terminal"):
        verb = f"{verb} {words.pop(0)}"
    action = ACTIONS.get(verb)
    try:
        if action is None:
            raise Plain(f"error: unknown command '{verb}'")
        if verb == "import" and "--provider" not in options:
            raise Plain("error: required option '--provider <provider>' not specified")
        try:
            reach(options)
        except Failed:
            if verb != "provider ls":
                raise
            options["down"] = True
        fault = fault_of("talk" if "--filter" in options else verb)
        if fault == "hang-before":
            hang()
        if fault == "refuse-without-a-word":
            os.kill(os.getpid(), signal.SIGKILL)
        found = {} if fault == "unheard" else action(options, words)
        if fault == "error":
            found |= {"status": "error", "message": "out of credit"}
        if fault == "hang":
            hang()
        if fault == "late":
            time.sleep(0.5)
        if fault == "unheard":
            found = {"stoppedCount": 0, "agentIds": []}
            sys.stderr.write("Warning: Failed to stop agent: timeout\n")
        if fault == "garbage":
            found = "Debugger attached.\n{not json"
    except Plain as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except Failed as error:
        if "--json" in options:
            sys.stderr.write(json.dumps({"error": error.error}, indent=2) + "\n")
        else:
            details = f"\n{error.error['details']}" if "details" in error.error else ""
            sys.stderr.write(f"Error: {error.error['message']}{details}\n")
        return 1
    sys.stdout.write((found if isinstance(found, str) else json.dumps(found, indent=2)) + "\n")
    return 0


def parse(argv: list[str]) -> tuple[Json, list[str]]:
    """Options and words, as the command's parser takes them."""
    options: Json = {}
    words: list[str] = []
    rest = iter(argv)
    for part in rest:
        if part == "--":
            words += rest
        elif part.startswith("--") and "=" in part:
            name, _, value = part.partition("=")
            take(options, name, value)
        elif part in WITH_VALUE:
            take(options, part, next(rest))
        elif part.startswith("-"):
            options[part] = True
        else:
            words.append(part)
    return options, words


def take(options: Json, name: str, value: str) -> None:
    """Take an option's value; labels may be several."""
    if name == "--label":
        options.setdefault(name, []).append(value)
    else:
        options[name] = value


def note(options: Json) -> None:
    """Tell the test how we were called."""
    line = {
        "argv": sys.argv[1:],
        "home": os.environ.get("PASEO_HOME"),
        "pid": os.getpid(),
        "env": sorted(os.environ),
    }
    home = os.environ.get("PASEO_HOME")
    line["finds"] = sorted(path.name for path in Path(home).iterdir() if path.exists()) if home else []
    if "--prompt-file" in options:
        path = Path(options["--prompt-file"])
        line |= {"file": path.read_text(), "mode": oct(path.stat().st_mode & 0o777)}
        line["folder"] = oct(path.parent.stat().st_mode & 0o777)
    with (HOME / "argv.log").open("a") as log:
        log.write(json.dumps(line) + "\n")


def fault_of(verb: str) -> str | None:
    """How the command is to misbehave, this once."""
    path = HOME / "faults.json"
    found: Json = json.loads(path.read_text()) if path.exists() else {}
    if verb in found:
        path.unlink(missing_ok=True)
    return found.get(verb)


def hang() -> NoReturn:
    """Stay for ever, with a child that holds our pipes and wants no SIGTERM."""
    child = subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 600"])
    (HOME / "hanging").write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)
    raise SystemExit


def reach(options: Json) -> None:
    """Find the daemon, or say why not."""
    host = options.get("--host") or os.environ.get("PASEO_HOST", "127.0.0.1:6767")
    wrong = None
    if (HOME / "down").exists():
        wrong = f"connect ECONNREFUSED {host}"
    password = HOME / "password"
    if password.exists() and "?password=" not in host:
        wrong = "Password required"
    elif password.exists() and host.partition("?password=")[2] != password.read_text():
        wrong = "Incorrect password"
    if wrong:
        message = f"Cannot connect to daemon at {host}: {wrong}"
        raise Failed("DAEMON_NOT_RUNNING", message, "Start the daemon with: paseo daemon start")


if __name__ == "__main__":
    sys.exit(main())
