"""API keys: who a caller is and what they may do. Nothing that a client sends widens it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from app.domain.ids import KeyId, Owner

Scope: TypeAlias = Literal["read", "prompt", "approve", "terminal", "admin"]
ALL_SCOPES: tuple[Scope, ...] = ("read", "prompt", "approve", "terminal", "admin")
"""No scope implies another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as it is listed: never its secret."""

    id: KeyId
    owner: Owner
    name: str
    scopes: tuple[Scope, ...]
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Whoever makes a request. `key_id` is null where authentication is off."""

    owner: Owner
    scopes: frozenset[Scope]
    key_id: KeyId | None

    @property
    def actor(self) -> str:
        """What is recorded as the one who did it."""
        return self.key_id or "anonymous"
