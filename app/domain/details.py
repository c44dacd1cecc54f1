"""What a tool call did, in a shape of its own for each kind of tool (`detail`, discriminated by `type`)."""

from typing import Any, TypeAlias

import msgspec

from app.domain.text import Cut, clean, shorten


class Shell(Cut, frozen=True, tag_field="type", tag="shell"):
    """A command line."""

    command: str
    cwd: str | None = None
    output: str | None = None
    exit_code: int | None = None


class Read(Cut, frozen=True, tag_field="type", tag="read"):
    """A file that was read; `offset` and `limit` are lines."""

    path: str
    content: str | None = None
    offset: int | None = None
    limit: int | None = None


class Edit(Cut, frozen=True, tag_field="type", tag="edit"):
    """A file that was changed, by texts or as a unified diff, whichever the backend gives."""

    path: str
    old_text: str | None = None
    new_text: str | None = None
    diff: str | None = None


class Write(Cut, frozen=True, tag_field="type", tag="write"):
    """A file that was written whole."""

    path: str
    content: str | None = None


class Search(Cut, frozen=True, tag_field="type", tag="search"):
    """A search in files."""

    query: str | None = None
    paths: tuple[str, ...] = ()
    matches: str | None = None


class Fetch(Cut, frozen=True, tag_field="type", tag="fetch"):
    """A request to the network."""

    url: str | None = None
    status: int | None = None
    result: str | None = None


class SubAgent(Cut, frozen=True, tag_field="type", tag="sub_agent"):
    """Work given to another agent."""

    description: str | None = None
    log: str | None = None


class PlanText(Cut, frozen=True, tag_field="type", tag="plan"):
    """A plan in words, as agents present it for approval."""

    text: str


class Text(Cut, frozen=True, tag_field="type", tag="text"):
    """Plain text with a label."""

    label: str | None = None
    text: str = ""


class Unknown(Cut, frozen=True, tag_field="type", tag="unknown"):
    """A tool that we do not know: its input and output as the backend gave them."""

    input: Any = None
    output: Any = None


Detail: TypeAlias = Shell | Read | Edit | Write | Search | Fetch | SubAgent | PlanText | Text | Unknown


def bounded(detail: Detail) -> Detail:
    """`detail` with unstorable characters replaced and every string over 64 KiB shortened, saying so."""
    longest = 0

    def cut(value: Any) -> Any:
        nonlocal longest
        match value:
            case str():
                text, size = shorten(clean(value))
                longest = max(longest, size or 0)
                return text
            case dict():
                return {clean(str(key)): cut(item) for key, item in value.items()}
            case list() | tuple():
                return [cut(item) for item in value]
            case _:
                return value

    changes: dict[str, Any] = {name: cut(getattr(detail, name)) for name in detail.__struct_fields__}
    if longest:
        changes |= {"truncated": True, "bytes": longest}
    return msgspec.structs.replace(detail, **changes)
