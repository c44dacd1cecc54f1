"""Bodies of keys and tickets: who may call, and who may open one stream."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from app.api.schemas.bodies import ListView, RequestBody, Timestamp, View
from app.api.schemas.text import ONE_LINE, STORABLE, Name, SessionIdText
from app.domain.ids import Owner
from app.domain.keys import ApiKey, Scope


class CreateKeyBody(RequestBody):
    """An API key to be made."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=100), ONE_LINE, STORABLE]
    owner: Name | None = Field(None, json_schema_extra={"default": "default"})
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=16)] = Field(
        description="No scope implies another."
    )

    def owned_by(self) -> Owner:
        """The owner; `default` if none is said."""
        return Owner(self.owner or "default")


class KeyView(View):
    """An API key, without its secret."""

    key_id: str
    owner: str
    name: str
    scopes: list[Scope]
    created_at: Timestamp
    revoked_at: Timestamp | None

    @classmethod
    def from_domain(cls, key: ApiKey) -> Self:
        """A key as it is listed."""
        return cls(**_key_fields(key))


class CreatedKeyView(KeyView):
    """A key just made, with its secret: shown this once."""

    key: str = Field(repr=False)

    @classmethod
    def made(cls, key: ApiKey, secret: str) -> Self:
        """A key and its whole text, `alm_<id>_<secret>`."""
        return cls(**_key_fields(key), key=secret)


def _key_fields(key: ApiKey) -> dict[str, Any]:
    return {
        "key_id": key.id,
        "owner": key.owner,
        "name": key.name,
        "scopes": list(key.scopes),
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
    }


class TicketBody(RequestBody):
    """The one stream that a ticket is to open."""

    session_id: SessionIdText | None = None
    turn_id: Name | None = None
    terminal_id: Name | None = None
    all: Literal[True] | None = Field(None, description="The stream over all sessions.")

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if sum(target is not None for target in self.__dict__.values()) != 1:
            raise ValueError("exactly one of session_id, turn_id, terminal_id, all must be given")
        return self


class TicketView(View):
    """A ticket: `?ticket=` on its stream opens it before `expires_at`."""

    ticket: str = Field(repr=False)
    expires_at: Timestamp


class KeyList(ListView[KeyView]):
    """API keys, newest first."""
