"""Texts and free JSON from strangers: what the database and other readers of JSON can hold, within bounds."""

import json
import math
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, StringConstraints

from app.domain.ids import SESSION_ID_PATTERN, SessionId
from app.domain.text import is_storable

MAX_PROMPT_BYTES = 256 * 1024
"""UTF-8 bytes of a prompt's text, and of a system prompt."""
MAX_INTEGER = 2**63 - 1
"""Integers in free JSON fit 64 bits, as the readers of most languages want."""


def _storable(value: Any) -> Any:
    if isinstance(value, str) and not is_storable(value):
        raise ValueError("must hold neither NUL nor half a surrogate pair")
    return value


def _one_line(text: str) -> str:
    if any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in text):
        raise ValueError("must not hold control characters")
    return text


def _at_most_bytes(limit: int) -> AfterValidator:
    def check(text: str) -> str:
        if len(text.encode()) > limit:
            raise ValueError(f"must have at most {limit} bytes of UTF-8")
        return text

    return AfterValidator(check)


def _plain_json(value: Any) -> Any:
    """Refuse what Python's parser lets pass but other readers of JSON, or PostgreSQL, do not."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str() as text:
                _storable(text)
            case float() as number if not math.isfinite(number):
                raise ValueError("must not hold NaN or infinite numbers")
            case bool():
                pass
            case int() as number if abs(number) > MAX_INTEGER:
                raise ValueError("must not hold integers beyond 64 bits")
            case dict() as members:
                waiting += members.keys()
                waiting += members.values()
            case list() as items:
                waiting += items
    return value


def json_at_most(limit: int) -> AfterValidator:
    """A check that a value has at most `limit` bytes of UTF-8 as compact JSON."""

    def check(value: Any) -> Any:
        if len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()) > limit:
            raise ValueError(f"must have at most {limit} bytes as JSON")
        return value

    return AfterValidator(check)


STORABLE = BeforeValidator(_storable)
"""Neither NUL nor half a surrogate pair."""
ONE_LINE = AfterValidator(_one_line)
"""No control characters, so no line breaks."""

Text = Annotated[str, STORABLE]
"""Any text that the database and UTF-8 can hold."""
Name = Annotated[str, StringConstraints(min_length=1, max_length=128), ONE_LINE, STORABLE]
"""A name from elsewhere: of an agent, a chat, a project, a model."""
LongName = Annotated[str, StringConstraints(min_length=1, max_length=255), ONE_LINE, STORABLE]
"""A branch or a file."""
SessionIdText = Annotated[str, StringConstraints(pattern=SESSION_ID_PATTERN), STORABLE]
"""A session id, the caller's own or ours."""
LongText = Annotated[str, _at_most_bytes(MAX_PROMPT_BYTES), STORABLE]
"""A text as long as a prompt may be; it may be empty."""
PromptText = Annotated[
    str, StringConstraints(min_length=1, pattern=r"\S"), _at_most_bytes(MAX_PROMPT_BYTES), STORABLE
]
"""A prompt: not only white space."""
Title = Annotated[str, StringConstraints(min_length=1, max_length=200), ONE_LINE, STORABLE]
"""A session's title."""
Path = Annotated[str, StringConstraints(min_length=1, max_length=4096), STORABLE]
"""A directory, as long as Linux lets one be."""
PlainJson = Annotated[Any, AfterValidator(_plain_json)]
"""Any JSON that every reader and the database can hold."""
JsonObject = Annotated[dict[str, Any], BeforeValidator(_plain_json)]
"""The same, and an object."""


def optional_id(text: str | None) -> SessionId | None:
    """The session id that a body names; null if it names none."""
    return SessionId(text) if text is not None else None
