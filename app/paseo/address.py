"""Where a daemon is, and what may be dialled for it.

A name is resolved once for a dial, what it resolves to is judged, and exactly that is dialled: nothing can
change in between. Numbers are read by `ipaddress` alone, never by a prefix.
"""

import ipaddress
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import anyio

from app.paseo.errors import AccessRefused, Unreachable

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Lookup: TypeAlias = Callable[[str, int], Awaitable[list[Any]]]
"""`getaddrinfo`: a name and a port to entries whose last part begins with an address."""

_SCHEMES = {"http": False, "ws": False, "https": True, "wss": True}
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)", re.IGNORECASE)
_HOST_HEADER = re.compile(r"[A-Za-z0-9._:\[\]-]+")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A daemon's address. `host_header` is said instead of `host` to a daemon that refuses its own name."""

    secure: bool
    host: str
    port: int
    host_header: str | None = None

    @classmethod
    def parse(cls, url: str, *, host_header: str | None = None) -> "Address":
        """The address in a URL such as `http://127.0.0.1:6767`.

        Raises:
            ValueError: another scheme, anything beyond host and port, a number in disguise, a link-local
                address. The message never repeats the URL: it may hold a password.
        """
        try:
            parts = urlsplit(url.strip())
            port = parts.port
        except ValueError:
            raise ValueError("the daemon's URL is not like http://host:port") from None
        if parts.scheme.lower() not in _SCHEMES:
            raise ValueError("the daemon's URL must begin with http://, https://, ws:// or wss://")
        if parts.username is not None or parts.password is not None:
            raise ValueError("the daemon's URL must not hold a user or password: set the password by itself")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError("the daemon's URL ends after the port: its paths are known")
        if not parts.hostname:
            raise ValueError("the daemon's URL has no host")
        if host_header is not None and not _HOST_HEADER.fullmatch(host_header):
            raise ValueError("the Host to be said must be a host name, with or without a port")
        secure = _SCHEMES[parts.scheme.lower()]
        literal = literal_address(parts.hostname)
        if literal is not None and _is_link_local(literal):
            raise ValueError("a link-local address is no place for a daemon")
        port = port or (443 if secure else 80)
        return cls(secure=secure, host=parts.hostname, port=port, host_header=host_header)

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.host_header or f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine by what it says: a loopback address, or the name localhost."""
        literal = literal_address(self.host)
        return self.host.lower() == "localhost" if literal is None else _unmapped(literal).is_loopback

    async def resolve(self, lookup: Lookup = anyio.getaddrinfo) -> list[str]:
        """The addresses to dial, in order.

        Raises:
            Unreachable: the name is not known.
            AccessRefused: the name leads to a link-local address.
        """
        if literal_address(self.host) is not None:
            return [self.host]
        try:
            entries = await lookup(self.host, self.port)
        except (OSError, UnicodeError) as error:
            raise Unreachable(f"the name {self.host} cannot be resolved: {error}") from None
        found = list(dict.fromkeys(str(entry[-1][0]) for entry in entries))
        if any(_is_link_local(ipaddress.ip_address(address)) for address in found):
            raise AccessRefused(f"the name {self.host} leads to a link-local address")
        return found


def literal_address(host: str) -> IPAddress | None:
    """The address that `host` is, or None for a name.

    Raises:
        ValueError: a number that resolvers read in ways of their own, such as `0x7f.1`.
    """
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    if _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]) or ":" in host:
        raise ValueError("the host is neither a name nor an address written in full")
    return None


def check_password(password: str) -> str:
    """The password, if it can be said over a WebSocket.

    Raises:
        ValueError: it has characters that a header token cannot carry; the message does not repeat it.
    """
    if not _TOKEN.fullmatch(password):
        raise ValueError(
            "the daemon's password travels in a header and must consist of letters, digits and "
            "!#$%&'*+-.^_`|~ (no spaces, slashes, quotes, =, @, :, commas, or beyond ASCII): choose another"
        )
    return password


def _unmapped(address: IPAddress) -> IPAddress:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _is_link_local(address: IPAddress) -> bool:
    return _unmapped(address).is_link_local
