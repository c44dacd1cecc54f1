"""What a twin does with requests about terminals, and with messages that are never answered."""

from typing import Any

from tests.paseo.twin_asking import Asking
from tests.paseo.twin_daemon import Daemon
from tests.paseo.twin_wire import Session

Json = dict[str, Any]


async def create_terminal(asking: Asking) -> None:
    """Start a terminal."""
    message, terminals = asking.message, asking.daemon.terminals
    if not message["cwd"].startswith("/"):
        asking.reply("create_terminal_response", terminal=None, error="cwd must be absolute path")
        return
    made = terminals.create(
        message["cwd"], message.get("name"), message.get("command"), message.get("args", [])
    )
    told = {"id": made.id, "name": made.name, "cwd": made.cwd, "title": made.title}
    asking.reply("create_terminal_response", terminal=told, error=None)


async def list_terminals(asking: Asking) -> None:
    """The terminals of a folder."""
    cwd = asking.message.get("cwd")
    where = {} if cwd is None else {"cwd": cwd}
    asking.reply("list_terminals_response", **where, terminals=asking.daemon.terminals.list(cwd))


async def subscribe_terminal(asking: Asking) -> None:
    """The screen, then what is put on it."""
    wanted = asking.message["terminalId"]
    slot = asking.daemon.terminals.subscribe(asking.session, wanted)
    found = {"error": "Terminal not found"} if slot is None else {"slot": slot, "error": None}
    asking.reply("subscribe_terminal_response", terminalId=wanted, **found)
    if slot is not None:
        asking.daemon.terminals.show(asking.session, slot)


async def capture_terminal(asking: Asking) -> None:
    """What is on the screen, as text."""
    message, wanted = asking.message, asking.message["terminalId"]
    terminal = asking.daemon.terminals.all.get(wanted)
    lines = [] if terminal is None else [line.rstrip() for line in terminal.lines]
    last = message.get("end", -1)
    shown = lines[message.get("start", 0) : None if last == -1 else last + 1]
    told = {"lines": shown, "totalLines": len(lines)}
    asking.reply("capture_terminal_response", terminalId=wanted, **told)


async def kill_terminal(asking: Asking) -> None:
    """End a terminal; one that is not there has ended just as well."""
    terminals, wanted = asking.daemon.terminals, asking.message["terminalId"]
    if (terminal := terminals.all.pop(wanted, None)) is not None:
        terminals.tell_exit(terminal)
    asking.reply("kill_terminal_response", terminalId=wanted, success=True)
    if terminal is not None:
        terminals.changed(terminal.cwd)


def silently(daemon: Daemon, session: Session, message: Json) -> None:
    """The messages that are never answered."""
    match message["type"]:
        case "terminal_input":
            daemon.terminals.input(message["terminalId"], message["message"])
        case "subscribe_terminals_request":
            session.terminals_of.add(message["cwd"])
            told = {"cwd": message["cwd"], "terminals": daemon.terminals.list(message["cwd"])}
            session.send("terminals_changed", told)
        case "unsubscribe_terminals_request":
            session.terminals_of.discard(message["cwd"])
        case "unsubscribe_terminal_request":
            for slot in [slot for slot, name in session.slots.items() if name == message["terminalId"]]:
                del session.slots[slot]
        case "client_heartbeat":
            phone = message["deviceType"] == "mobile"
            session.focus = (message.get("focusedAgentId") or "") if phone else None
