"""From a message of a session to the function that handles it."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from tests.paseo import twin_lists as lists
from tests.paseo import twin_making as making
from tests.paseo import twin_offers as offers
from tests.paseo import twin_requests as requests
from tests.paseo import twin_settings as settings
from tests.paseo import twin_shells as shells
from tests.paseo.twin_asking import Asking, HandlerError
from tests.paseo.twin_daemon import Daemon
from tests.paseo.twin_schema import REQUESTS, SILENT
from tests.paseo.twin_wire import Session

Json = dict[str, Any]
Handler = Callable[[Asking], Awaitable[None]]


async def ping(asking: Asking) -> None:
    """A sign of life, with the time."""
    milliseconds = round(anyio.current_time() * 1000)
    times = {"serverReceivedAt": milliseconds, "serverSentAt": milliseconds}
    asking.reply("pong", clientSentAt=asking.message.get("clientSentAt"), **times)


async def shut_down(asking: Asking) -> None:
    """Any client may stop the daemon."""
    status = str(asking.message["type"]).removesuffix("_server_request")
    named = {"shutdown": "shutdown_requested", "restart": "restart_requested"}[status]
    asking.reply("status", status=named, clientId=asking.session.client_id)
    asking.daemon.work(asking.daemon.twin.stop, outlives=True)


HANDLERS: dict[str, Handler] = {
    "ping": ping,
    "fetch_agents_request": lists.fetch_agents,
    "fetch_agent_history_request": lists.fetch_history,
    "fetch_agent_request": lists.fetch_agent,
    "create_agent_request": making.create,
    "import_agent_request": making.import_,
    "open_project_request": making.open_project,
    "resume_agent_request": making.resume,
    "refresh_agent_request": making.refresh,
    "send_agent_message_request": requests.send,
    "wait_for_finish_request": requests.wait_for_finish,
    "cancel_agent_request": requests.cancel,
    "fetch_agent_timeline_request": requests.timeline,
    "agent_permission_response": requests.answer_permission,
    "set_agent_mode_request": settings.set_mode,
    "set_agent_model_request": settings.set_model,
    "set_agent_thinking_request": settings.set_thinking,
    "set_agent_feature_request": settings.set_feature,
    "update_agent_request": settings.update_agent,
    "clear_agent_attention": settings.clear_attention,
    "archive_agent_request": requests.archive,
    "delete_agent_request": requests.delete,
    "close_items_request": requests.close_items,
    "get_providers_snapshot_request": offers.providers_snapshot,
    "refresh_providers_snapshot_request": offers.refresh_providers,
    "list_available_providers_request": offers.available_providers,
    "list_provider_models_request": offers.provider_models,
    "list_provider_modes_request": offers.provider_modes,
    "list_commands_request": offers.commands,
    "create_terminal_request": shells.create_terminal,
    "list_terminals_request": shells.list_terminals,
    "subscribe_terminal_request": shells.subscribe_terminal,
    "capture_terminal_request": shells.capture_terminal,
    "kill_terminal_request": shells.kill_terminal,
    "shutdown_server_request": shut_down,
    "restart_server_request": shut_down,
}


def take(daemon: Daemon, session: Session, message: Json) -> None:
    """Remember a message, and start to handle it; requests run beside each other."""
    daemon.twin.record.add(session.client_id, message)
    kind = str(message.get("type"))
    if daemon.faults.take("drop_before", kind):
        for socket in session.sockets:
            socket.abort()
        return
    if kind in SILENT and SILENT[kind](message):
        shells.silently(daemon, session, message)
        return
    if not isinstance(message.get("requestId"), str):
        session.send("status", {"status": "error", "message": "Invalid message: requestId: Required"})
        return
    asking = Asking(daemon, session, message)
    if kind not in REQUESTS or not REQUESTS[kind](message):
        asking.reply("rpc_error", requestType=kind, error="Unknown request schema", code="unknown_schema")
    elif kind not in daemon.faults.ignored:
        daemon.work(_handle, asking)


async def _handle(asking: Asking) -> None:
    kind = str(asking.message["type"])
    if (late := asking.daemon.faults.late.get(kind)) is not None:
        await anyio.sleep(late)
    try:
        await HANDLERS[kind](asking)
    except HandlerError as failure:
        error = f"Request failed: {failure}"
        asking.reply("rpc_error", requestType=kind, error=error, code="handler_error")
        asking.log(f"Error: {failure}")
