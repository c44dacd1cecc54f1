"""API keys and stream tickets: made, recognised, revoked."""

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import structlog

from app.domain.errors import DatabaseUnavailable, RateLimited, Unauthenticated
from app.domain.ids import KeyId, Owner
from app.domain.keys import ALL_SCOPES, ApiKey, Principal, Scope
from app.engine.feed import Check
from app.engine.steps import Reason
from app.store import keys
from app.store.database import Database
from app.store.paging import Page

log = structlog.get_logger(__name__)

CACHE_S = 4.0
"""Seconds for which a recognised key is not looked up again; a revocation takes effect within that anyway."""
CACHED_KEYS = 10_000
"""Keys that are remembered at most."""
FAILURE_WINDOW_S = 60.0
COUNTED_ADDRESSES = 10_000
"""Addresses whose failures are counted at most; the oldest are forgotten first."""
TICKET_OPENS_S = keys.TICKET_OPENS_S
"""Seconds in which a new ticket opens its stream."""
GLOBAL_FAILURES = 20
"""How many times one address's failures all addresses together may have."""

_NOBODY = hashlib.sha256(b"").digest()


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


@dataclass
class _Failures:
    since: float
    count: int = 0


@dataclass
class Guesses:
    """Failed authentications, by address and altogether; bounded, by a monotonic clock."""

    per_minute: int
    _by_address: OrderedDict[str, _Failures] = field(default_factory=OrderedDict)
    _all: _Failures = field(default_factory=lambda: _Failures(0.0))

    def check(self, address: str) -> None:
        """Refuse an address that failed too often.

        Raises:
            RateLimited: wait.
        """
        now = time.monotonic()
        for failures, most in (
            (self._by_address.get(address), self.per_minute),
            (self._all, self.per_minute * GLOBAL_FAILURES),
        ):
            if failures is not None and failures.count >= most:
                rest = failures.since + FAILURE_WINDOW_S - now
                if rest > 0:
                    raise RateLimited(retry_after_s=max(1, int(rest)))

    def note(self, address: str) -> None:
        """Count a failure."""
        now = time.monotonic()
        own = self._by_address.setdefault(address, _Failures(now))
        self._by_address.move_to_end(address)
        while len(self._by_address) > COUNTED_ADDRESSES:
            self._by_address.popitem(last=False)
        for failures in (own, self._all):
            if now - failures.since > FAILURE_WINDOW_S:
                failures.since, failures.count = now, 0
            failures.count += 1


@dataclass(frozen=True, slots=True)
class Pass:
    """A ticket that was used to open a stream, and the number of that opening."""

    principal: Principal
    ticket_sha256: bytes
    opening: UUID


class Keys:
    """Who a caller is."""

    def __init__(self, database: Database, *, auth: bool, failures_per_minute: int) -> None:
        """Without `auth` everybody is the owner `default` and may do everything."""
        self._database = database
        self._auth = auth
        self._guesses = Guesses(failures_per_minute)
        self._cache: OrderedDict[bytes, tuple[float, Principal]] = OrderedDict()
        database.bell.watch_keys(self._cache.clear)

    @property
    def anyone(self) -> Principal | None:
        """Whoever calls, where authentication is off."""
        if self._auth:
            return None
        return Principal(owner=Owner("default"), scopes=frozenset(ALL_SCOPES), key_id=None)

    async def authenticate(self, token: str | None, address: str) -> Principal:
        """Whoever holds the key.

        Raises:
            Unauthenticated: no key, an unknown, a wrong or a revoked one; all answered alike.
            RateLimited: too many failures from this address.
        """
        if (anyone := self.anyone) is not None:
            return anyone
        digest = _hash(token or "")
        cached = self._cache.get(digest)
        if cached is not None and cached[0] > time.monotonic():
            return cached[1]
        principal = await self._recognise(token or "")
        if principal is None:  # a valid key passes, however many wrong ones came from the same address
            self._guesses.check(address)
            if token:
                self._guesses.note(address)
            raise Unauthenticated
        self._cache[digest] = (time.monotonic() + CACHE_S, principal)
        while len(self._cache) > CACHED_KEYS:
            self._cache.popitem(last=False)
        return principal

    async def _recognise(self, token: str) -> Principal | None:
        prefix, _, rest = token.partition("_")
        key_id, _, secret = rest.partition("_")
        is_formed = prefix == "alm" and key_id.isascii() and key_id.isalnum() and len(key_id) <= 64
        found = None
        if is_formed:
            async with self._database.begin() as db:
                found = await keys.find(db, KeyId(key_id))
        expected = found[1] if found else _NOBODY
        matches = hmac.compare_digest(_hash(secret), expected)  # the same work for unknown ids
        if found is None or not matches or found[0].revoked_at is not None:
            return None
        return Principal(owner=found[0].owner, scopes=frozenset(found[0].scopes), key_id=found[0].id)

    async def is_valid(self, caller: Principal) -> bool:
        """Whether the caller's key has not been revoked."""
        if caller.key_id is None:
            return True
        async with self._database.begin() as db:
            found = await keys.find(db, caller.key_id)
        return found is not None and found[0].revoked_at is None

    # Keys.

    def draw(self) -> str:
        """The text of a new key, which is not yet one: 256 random bits under a random id."""
        return f"alm_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"

    async def make(self, owner: Owner, name: str, scopes: Sequence[Scope]) -> tuple[ApiKey, str]:
        """A new key and its text, which is never shown again."""
        while True:
            text = self.draw()
            _, key_id, secret = text.split("_", 2)
            async with self._database.begin() as db:
                key = await keys.add(db, KeyId(key_id), owner, name, scopes, _hash(secret))
            if key is not None:
                log.info("api_key_made", key_id=key_id, owner=owner)
                return key, text

    async def put(self, text: str, name: str) -> bool:
        """See that a key with this text is there, with every scope, for the owner `default`.

        False if its id belongs to another key, or to one that was revoked.
        """
        _, key_id, secret = text.split("_", 2)
        async with self._database.begin() as db:
            await keys.add(db, KeyId(key_id), Owner("default"), name, ALL_SCOPES, _hash(secret))
        return await self.knows(text)

    async def knows(self, text: str) -> bool:
        """Whether this is the text of a key that may be used."""
        return await self._recognise(text) is not None

    async def exist(self) -> bool:
        """Whether there is any key that may be used."""
        async with self._database.begin() as db:
            return await keys.exist(db)

    async def list_keys(self, *, limit: int, cursor: str | None) -> Page[ApiKey]:
        """A page of all keys, newest first."""
        async with self._database.begin() as db:
            return await keys.list_keys(db, limit=limit, cursor=cursor)

    async def revoke(self, key_id: KeyId) -> None:
        """Revoke a key: it is refused, and its streams end, on every replica.

        Raises:
            ApiKeyNotFound: there is none of that id.
        """
        async with self._database.begin() as db:
            await keys.revoke(db, key_id)
        self._cache.clear()
        log.info("api_key_revoked", key_id=key_id)

    # Tickets.

    async def make_ticket(self, caller: Principal, target: str) -> str:
        """A ticket that opens the stream `target` within a minute, and again after it ends."""
        ticket = secrets.token_urlsafe(32)
        async with self._database.begin() as db:
            await keys.sweep_tickets(db)
            await keys.add_ticket(db, _hash(ticket), key_id=caller.key_id, owner=caller.owner, target=target)
        return ticket

    async def redeem(self, ticket: str, target: str, address: str) -> Pass:
        """Recognise the ticket of a stream. Nothing changes until it is used.

        Raises:
            Unauthenticated: unknown, too late, for another stream, or its key was revoked.
        """
        async with self._database.begin() as db:
            found = await keys.find_ticket(db, _hash(ticket))
            key = await keys.find(db, found.key_id) if found and found.key_id is not None else None
        if found is None:
            self._guesses.check(address)
            self._guesses.note(address)
        if found is None or found.target != target:
            raise Unauthenticated
        if found.key_id is not None and (key is None or key[0].revoked_at is not None):
            raise Unauthenticated
        principal = Principal(owner=found.owner, scopes=frozenset({"read"}), key_id=found.key_id)
        return Pass(principal, _hash(ticket), uuid4())

    async def use(self, used: Pass) -> None:
        """The ticket's stream opens now; an older one of the same ticket is superseded."""
        async with self._database.begin() as db:
            await keys.open_ticket(db, used.ticket_sha256, used.opening)

    async def nobody_streams(self) -> None:
        """This process is alone and just starts: whatever stream a ticket had opened has ended."""
        async with self._database.begin() as db:
            await keys.end_every_stream(db)

    async def ended(self, used: Pass) -> None:
        """The stream of a ticket ended; it may be opened again for a while."""
        try:
            async with self._database.begin() as db:
                await keys.end_ticket(db, used.ticket_sha256, used.opening)
        except DatabaseUnavailable:
            log.warning("ticket_end_not_noted")

    def check(self, caller: Principal, used: Pass | None = None) -> Check:
        """Asks why a stream of this caller may not go on."""

        async def reason() -> Reason | None:
            if not await self.is_valid(caller):
                return "auth_expired"
            if used is not None:
                async with self._database.begin() as db:
                    if await keys.ticket_opening(db, used.ticket_sha256) != used.opening:
                        return "superseded"
            return None

        return reason
