"""One connection of a twin, from the upgrade to its end."""

import json
from contextlib import suppress
from typing import Any

import anyio
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from tests.paseo.twin_daemon import Daemon
from tests.paseo.twin_dispatch import take
from tests.paseo.twin_wire import Session, Socket, hello_fault, open_session, password_fault

Json = dict[str, Any]


async def attend(daemon: Daemon, connection: ServerConnection) -> None:
    """One connection, from the upgrade to its end."""
    socket = Socket(connection, daemon)
    if (reason := password_fault(daemon, socket)) is not None:
        await socket.close(4401, reason)
        return
    session: Session | None = None
    daemon.sockets.add(socket)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(socket.write)
            with suppress(ConnectionClosed):
                if (hello := await _hello(daemon, connection, socket)) is not None:
                    session = open_session(daemon, hello, socket)
                    daemon.twin.record.add(session.client_id, hello)
                    await _read(daemon, connection, session, socket)
            tasks.cancel_scope.cancel()
    finally:
        daemon.sockets.discard(socket)
        if session is not None:
            session.sockets.remove(socket)
            session.left = anyio.current_time()


async def _hello(daemon: Daemon, connection: ServerConnection, socket: Socket) -> Json | None:
    with anyio.move_on_after(daemon.twin.hello_timeout):
        async for frame in connection:
            if isinstance(frame, bytes):
                await socket.close(4002, "Session message before hello")
                return None
            message = _parse(frame)
            if isinstance(message, dict) and message.get("type") == "ping":
                socket.put('{"type":"pong"}')
            elif not (isinstance(message, dict) and message.get("type") == "recording_state"):
                if (fault := hello_fault(message)) is None:
                    return dict(message)
                await socket.close(*fault)
                return None
        return None
    await socket.close(4001, "Hello timeout")
    return None


async def _read(daemon: Daemon, connection: ServerConnection, session: Session, socket: Socket) -> None:
    async for frame in connection:
        if isinstance(frame, bytes):
            daemon.terminals.frame(session, frame)
            continue
        message = _parse(frame)
        outer = message.get("type") if isinstance(message, dict) else None
        if outer == "hello":
            await socket.close(4002, "Unexpected hello")
            return
        if outer == "ping":
            socket.put('{"type":"pong"}')
        elif outer == "session" and isinstance(message.get("message"), dict):
            take(daemon, session, message["message"])
        elif outer != "recording_state":
            _not_understood(session, message, frame)


def _not_understood(session: Session, message: Any, frame: str) -> None:
    request = message.get("requestId") if isinstance(message, dict) else None
    if isinstance(request, str):
        named = {"requestId": request, "requestType": str(message.get("type"))}
        session.send("rpc_error", named | {"error": "Invalid message", "code": "invalid_message"})
    else:
        words = f'Invalid message: "{frame[:40]}" is not valid JSON'
        session.send("status", {"status": "error", "message": words})


def _parse(frame: str) -> Any:
    try:
        return json.loads(frame)
    except ValueError:
        return None
