"""`alameda keys`: the API keys of a running Alameda."""

from collections.abc import Sequence
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Struct, UnsetType

from app.command.client import Alameda
from app.command.terminal import visible
from app.domain.keys import Scope

PAGE = 200


class Key(Struct, frozen=True, kw_only=True):
    """A key as it is listed; one just made has its text, this once."""

    key_id: str
    owner: str
    name: str
    scopes: list[Scope]
    created_at: str
    revoked_at: str | None
    key: str | UnsetType = UNSET

    def as_json(self) -> str:
        """One line, as the API has it."""
        return msgspec.json.encode(self).decode()


class _Page(Struct, frozen=True):
    items: list[Key]
    next_cursor: str | None


async def list_keys(alameda: Alameda) -> list[Key]:
    """All of them, newest first."""
    keys: list[Key] = []
    cursor: str | None = ""
    while cursor is not None:
        more = f"&cursor={quote(cursor, safe='')}" if cursor else ""
        page = await alameda.ask("GET", f"/v1/api-keys?limit={PAGE}{more}", reads=_Page)
        keys += page.items
        cursor = page.next_cursor
    return keys


async def make_key(alameda: Alameda, name: str, owner: str, scopes: Sequence[Scope]) -> Key:
    """A new key, with its text."""
    body = {"name": name, "owner": owner, "scopes": list(dict.fromkeys(scopes))}
    return await alameda.ask("POST", "/v1/api-keys", body, reads=Key)


async def revoke_key(alameda: Alameda, key_id: str) -> None:
    """Have a key refused from now on."""
    await alameda.send("DELETE", f"/v1/api-keys/{quote(key_id, safe='')}")


def table(keys: Sequence[Key]) -> str:
    """The keys as aligned lines with a heading."""
    rows = [("ID", "OWNER", "NAME", "SCOPES", "CREATED", "REVOKED")]
    for key in keys:
        scopes = ",".join(key.scopes)
        created, revoked = key.created_at[:16], (key.revoked_at or "")[:16]
        rows.append((key.key_id, visible(key.owner), visible(key.name), scopes, created, revoked))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
