"""What can go wrong with a daemon, typed, and what its error texts mean.

PaseoError
├── NotSent          never written to the socket: nothing happened
├── Timeout          written, and not answered in time: the outcome is unknown
├── LinkLost         written, and the link broke: the outcome is unknown
├── Refused          the daemon said no, in words (`text`), classified (`reason`)
│   └── RpcError     … as an `rpc_error`, with its `code`
├── Undecodable      an answer or frame that cannot be read
├── Lagged           a subscription was read too slowly and is closed
├── Unreachable      no connection; trying again helps
└── AccessRefused    no connection; only an operator can cure it
"""

import re
from enum import StrEnum

TOO_BIG = 1009
"""The close code of a message that is too big for its receiver."""


class PaseoError(Exception):
    """Whatever this client raises."""


class NotSent(PaseoError):
    """The request was never written to the socket; asking again is safe."""


class Timeout(PaseoError):
    """The request was written, and no answer came in time; several kinds of request never get one."""


class LinkLost(PaseoError):
    """The request was written, and the link was lost before its answer: the outcome is unknown."""

    def __init__(self, message: str, *, code: int = 1006, by_us: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.by_us = by_us

    @property
    def is_oversize(self) -> bool:
        """Whether we closed the link because a frame of the daemon passed our `max_size`."""
        return self.by_us and self.code == TOO_BIG


class Undecodable(PaseoError):
    """What arrived cannot be read, not even leniently."""


class Lagged(PaseoError):
    """A subscription's buffer was full: it is closed, and its reader resumes from the timeline."""


class Unreachable(PaseoError):
    """No connection to the daemon; trying again later helps."""


class AccessRefused(PaseoError):
    """The daemon, or what stands before it, does not let us in; the message says what to change."""


class Reason(StrEnum):
    """What a refusal means; the daemon itself has only its texts."""

    AGENT_NOT_FOUND = "agent_not_found"
    CANNOT_RESUME = "cannot_resume"
    UNKNOWN_PROVIDER = "unknown_provider"
    PROVIDER_UNAVAILABLE = "provider_unavailable"
    BAD_CWD = "bad_cwd"
    BAD_WORKTREE = "bad_worktree"
    PERMISSION_GONE = "permission_gone"
    TERMINAL_NOT_FOUND = "terminal_not_found"
    TURN_ACTIVE = "turn_active"
    START_UNCERTAIN = "start_uncertain"
    """No refusal: the turn may run all the same."""
    PROCESS_DEAD = "process_dead"
    """The agent's process is gone; a refresh starts it again."""
    UNSUPPORTED = "unsupported"
    INVALID_CURSOR = "invalid_cursor"
    INVALID_REQUEST = "invalid_request"
    """An unknown type of request, or one field of it that does not fit; the daemon does not say which."""
    OTHER = "other"


_CODES = {
    "invalid_cursor": Reason.INVALID_CURSOR,
    "invalid_message": Reason.INVALID_REQUEST,
    "unknown_schema": Reason.INVALID_REQUEST,
}

_TEXTS = (
    (r"(timeout|run finished before starting)\.?$", Reason.START_UNCERTAIN),
    (r"agent not found\b|unknown agent\b|agent identifier cannot be empty", Reason.AGENT_NOT_FOUND),
    (r".*does not support .*\bresume\b", Reason.CANNOT_RESUME),
    (r"unknown provider\b|no client registered for provider", Reason.UNKNOWN_PROVIDER),
    (r"provider .+ is (not available|disabled)", Reason.PROVIDER_UNAVAILABLE),
    (r"(error: )?spawn .+ ENOENT|\w+ binary not found", Reason.PROVIDER_UNAVAILABLE),
    (
        r"working directory does not exist|cwd must be absolute|opencode sessions require --cwd",
        Reason.BAD_CWD,
    ),
    (r"create worktree requires|base branch not found", Reason.BAD_WORKTREE),
    (r"no pending permission request", Reason.PERMISSION_GONE),
    (r"terminal not found", Reason.TERMINAL_NOT_FOUND),
    (r"a foreground turn is already active", Reason.TURN_ACTIVE),
    (r".*(\bexited\b|event stream ended before|failed to start)", Reason.PROCESS_DEAD),
    (r".* does not expose\b", Reason.UNSUPPORTED),
)
_PATTERNS = tuple((re.compile(pattern, re.IGNORECASE | re.DOTALL), reason) for pattern, reason in _TEXTS)


def classify(text: str, code: str | None = None) -> Reason:
    """What the daemon means; the first text that matches from its beginning counts."""
    if code in _CODES:
        return _CODES[code]
    said = text.removeprefix("Request failed: ").strip()
    return next((reason for pattern, reason in _PATTERNS if pattern.match(said)), Reason.OTHER)


class Refused(PaseoError):
    """The daemon refused; `text` is its own wording."""

    def __init__(self, text: str, code: str | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.reason = classify(text, code)


class RpcError(Refused):
    """The daemon refused with an `rpc_error`: an invalid request, or a handler that threw."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text, code)
        self.code = code
