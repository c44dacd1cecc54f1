"""Which requests a twin understands, and what their fields must be."""

from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
Check = Callable[[Any], bool]


def text(value: Any) -> bool:
    """Any string."""
    return isinstance(value, str)


def number(value: Any) -> bool:
    """A number that is not a boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def within(least: int, most: int | None = None) -> Check:
    """A whole number in a range."""
    return lambda value: (
        isinstance(value, int)
        and not isinstance(value, bool)
        and value >= least
        and (most is None or value <= most)
    )


def one_of(*values: str) -> Check:
    """One of some words."""
    return lambda value: value in values


def or_null(check: Check) -> Check:
    """That, or null."""
    return lambda value: value is None or check(value)


def many(check: Check) -> Check:
    """A list of that."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def labels(value: Any) -> bool:
    """Strings by name."""
    return isinstance(value, dict) and all(map(text, value.values()))


def title(value: Any) -> bool:
    """1 to 200 characters, or null."""
    return value is None or (isinstance(value, str) and 1 <= len(value.strip()) <= 200)


def fields(**checks: Check) -> Check:
    """An object; a name that ends in `_` may be absent."""

    def check(value: Any) -> bool:
        if not isinstance(value, dict):
            return False
        for name, expected in checks.items():
            key = name.removesuffix("_")
            if key in value:
                if not expected(value[key]):
                    return False
            elif not name.endswith("_"):
                return False
        return True

    return check


ANY = fields()
CONFIG = fields(
    provider=text,
    cwd=text,
    title_=title,
    modeId_=text,
    model_=text,
    thinkingOptionId_=text,
    systemPrompt_=text,
    mcpServers_=ANY,
)
FILTER = fields(
    labels_=labels,
    projectKeys_=many(text),
    statuses_=many(one_of("initializing", "idle", "running", "error", "closed")),
    includeArchived_=lambda value: isinstance(value, bool),
    requiresAttention_=lambda value: isinstance(value, bool),
)
SORT = many(
    fields(
        key=one_of("status_priority", "created_at", "updated_at", "title"),
        direction=one_of("asc", "desc"),
    )
)
PAGE = fields(limit=within(1, 200), cursor_=text)
LIST = fields(filter_=FILTER, sort_=SORT, page_=PAGE, subscribe_=fields(subscriptionId_=text))
PROMPT = {"images_": many(fields(data=text, mimeType=text)), "attachments_": many(ANY)}
AGENT = fields(agentId=text)
RESPONSE = fields(behavior=one_of("allow", "deny"))
OWNER = fields(provider=text)

REQUESTS: dict[str, Check] = {
    "ping": fields(clientSentAt_=number),
    "fetch_agents_request": LIST,
    "fetch_agent_history_request": LIST,
    "fetch_agent_request": AGENT,
    "create_agent_request": fields(
        config=CONFIG, labels_=labels, initialPrompt_=text, clientMessageId_=text, git_=ANY, **PROMPT
    ),
    "open_project_request": fields(cwd=text),
    "import_agent_request": fields(provider=text, sessionId=text, cwd_=text, labels_=labels),
    "resume_agent_request": fields(handle=fields(provider=text, sessionId=text, metadata_=ANY)),
    "refresh_agent_request": AGENT,
    "send_agent_message_request": fields(agentId=text, text=text, messageId_=text, **PROMPT),
    "wait_for_finish_request": fields(agentId=text, timeoutMs_=within(1)),
    "cancel_agent_request": AGENT,
    "fetch_agent_timeline_request": fields(
        agentId=text,
        direction_=one_of("tail", "after", "before"),
        cursor_=fields(epoch=text, seq=within(0)),
        limit_=within(0),
        projection_=one_of("projected", "canonical"),
    ),
    "agent_permission_response": fields(agentId=text, response=RESPONSE),
    "set_agent_mode_request": fields(agentId=text, modeId=text),
    "set_agent_model_request": fields(agentId=text, modelId=or_null(text)),
    "set_agent_thinking_request": fields(agentId=text, thinkingOptionId=or_null(text)),
    "set_agent_feature_request": fields(agentId=text, featureId=text),
    "update_agent_request": fields(agentId=text, name_=title, labels_=labels),
    "clear_agent_attention": fields(agentId=lambda value: text(value) or many(text)(value)),
    "archive_agent_request": AGENT,
    "delete_agent_request": AGENT,
    "close_items_request": fields(agentIds=many(text), terminalIds=many(text)),
    "get_providers_snapshot_request": fields(cwd_=text),
    "refresh_providers_snapshot_request": fields(providers_=many(text)),
    "list_available_providers_request": ANY,
    "list_provider_models_request": OWNER,
    "list_provider_modes_request": OWNER,
    "list_commands_request": AGENT,
    "create_terminal_request": fields(cwd=text, name_=text, command_=text, args_=many(text)),
    "list_terminals_request": fields(cwd_=text),
    "subscribe_terminal_request": fields(terminalId=text),
    "capture_terminal_request": fields(
        terminalId=text,
        start_=within(-(10**6)),
        end_=within(-(10**6)),
        stripAnsi_=lambda value: isinstance(value, bool),
    ),
    "kill_terminal_request": fields(terminalId=text),
    "shutdown_server_request": ANY,
    "restart_server_request": fields(reason_=text),
}
"""Requests that carry a `requestId`."""

SILENT: dict[str, Check] = {
    "terminal_input": fields(terminalId=text, message=fields(type=one_of("input", "resize", "mouse"))),
    "subscribe_terminals_request": fields(cwd=text),
    "unsubscribe_terminals_request": fields(cwd=text),
    "unsubscribe_terminal_request": fields(terminalId=text),
    "client_heartbeat": fields(deviceType=one_of("web", "mobile")),
    "register_push_token": ANY,
}
"""Messages that are never answered."""
