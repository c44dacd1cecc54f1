"""How a twin misbehaves, and what it remembers of its clients."""

from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

import anyio

if TYPE_CHECKING:
    from tests.paseo.twin_wire import Socket

Json = dict[str, Any]


@dataclass
class Faults:
    """What goes wrong from now on; every field may be changed at any time, over all restarts."""

    drop_at: int | None = None
    """Drop a connection instead of sending it frame number `drop_at` (`server_info` is 0); once."""
    drop_before: str | None = None
    """Drop the asking session's connections when a request of this type comes, before it is handled; once."""
    drop_after: str | None = None
    """Handle a request of this type, and drop the connections before its answer leaves; once."""
    never: set[str] = field(default_factory=set)
    """Types of requests that are handled, and whose answers are lost."""
    ignored: set[str] = field(default_factory=set)
    """Types of requests that are not even handled."""
    late: dict[str, float] = field(default_factory=dict)
    """Seconds by which the handling of a type of request is delayed."""
    foreign_answer: Literal["allow", "deny"] | None = None
    """Another client answers every permission at once."""
    refuse_password: bool = False
    """Close every new connection with 4401, whatever it offers."""
    refuse_connections: bool = False
    """Drop every new connection during its handshake."""

    def drops(self, socket: "Socket") -> bool:
        """Whether a connection is to be dropped now."""
        if self.drop_at is None or socket.sent < self.drop_at:
            return False
        self.drop_at = None
        return True

    def take(self, name: str, kind: str) -> bool:
        """Whether a fault that happens once is meant for this type of request."""
        if getattr(self, name) != kind:
            return False
        setattr(self, name, None)
        return True


@dataclass(frozen=True)
class Received:
    """One message of a client."""

    client_id: str
    message: Json
    at: float = field(default_factory=monotonic)

    @property
    def type(self) -> str:
        """The message's type."""
        return str(self.message.get("type"))


class Record:
    """All that clients have sent, over all restarts."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self._more = anyio.Event()

    def add(self, client_id: str, message: Json) -> None:
        """Remember a message."""
        self.received.append(Received(client_id, message))
        self._more.set()
        self._more = anyio.Event()

    def of(self, kind: str, **fields: Any) -> list[Received]:
        """The messages of a type whose fields are these."""
        return [
            found
            for found in self.received
            if found.type == kind and all(found.message.get(key) == value for key, value in fields.items())
        ]

    def count(self, kind: str, **fields: Any) -> int:
        """How many of them there were."""
        return len(self.of(kind, **fields))

    async def wait(self, kind: str, count: int = 1, **fields: Any) -> list[Received]:
        """The messages of a type, once there are `count` of them."""
        while len(found := self.of(kind, **fields)) < count:
            await self._more.wait()
        return found
