"""From an address to a connection on which the daemon has greeted us."""

import logging
import ssl
from dataclasses import dataclass, field
from typing import Any

import anyio
import msgspec
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from app.paseo.address import Address, Lookup, check_password
from app.paseo.connection import Connection, Ended, Socket, ended_by
from app.paseo.decoding import decode
from app.paseo.errors import AccessRefused, PaseoError, Undecodable, Unreachable
from app.paseo.frames import Label, ServerInfo, open_envelope

REFUSING_CODES = {4401: "password", 4002: "hello", 4003: "protocol version"}
"""Close codes that will come again at every dial, until somebody changes something."""

_WIRE = logging.getLogger(f"{__name__}.wire")
_WIRE.setLevel(logging.WARNING)  # below, the library logs the headers, and with them the password


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the link is made and kept; times in seconds, sizes in bytes."""

    app_version: str = "0.1.65"
    """At least 0.1.45: to an older or nameless client the daemon hides the agents of other providers."""
    max_size: int = 64 * 1024 * 1024
    """A bigger frame closes the link with 1009, for all agents."""
    dial_timeout: float = 10.0
    hello_timeout: float = 15.0
    """From the upgrade to the daemon's greeting."""
    send_timeout: float = 10.0
    """For a message that has no answer to leave us."""
    ping_interval: float = 5.0
    ping_timeout: float = 10.0
    """Without a single byte after a ping for so long, the link is dead."""
    backoff_first: float = 0.5
    backoff_max: float = 30.0
    stable_after: float = 30.0
    """A link that held so long starts the backoff anew."""
    refused_pause: float = 300.0
    """Until the next dial after one that only an operator can cure; each costs the daemon a bcrypt run."""
    lookup: Lookup = field(default=anyio.getaddrinfo)


class _Dial(connect):
    """The library's dial, without redirects: the URL is the operator's, not the server's, to choose."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


async def dial(address: Address, password: str | None, client_id: str, options: Options) -> Connection:
    """A connection on which the daemon has greeted us: an accepted upgrade alone means nothing.

    Raises:
        Unreachable: nobody answers, or not in time.
        AccessRefused: the daemon does not want us as we are.
    """
    hello = {
        "type": "hello",
        "clientId": client_id,
        "clientType": "cli",
        "protocolVersion": 1,
        "appVersion": options.app_version,
        "capabilities": {"reasoning_merge_enum": True},
    }
    socket = await _open(address, password, options)
    greeted = False
    try:
        with anyio.fail_after(options.hello_timeout):
            await socket.send(msgspec.json.encode(hello), text=True)
            early: list[bytes] = []
            while (server := greeting(data := await socket.recv(decode=False))) is None:
                early.append(data)
        greeted = True
    except ConnectionClosed as closed:
        raise refusal(ended_by(closed)) from None
    except TimeoutError:
        raise Unreachable("the daemon took the connection and did not greet us") from None
    finally:
        if not greeted:
            socket.transport.abort()
    return Connection(socket, server, early)


def refusal(ended: Ended) -> PaseoError:
    """What the end of a socket means for the next dial."""
    match ended.code:
        case 4401:
            return AccessRefused(f"the daemon wants another password: {ended}")
        case code if code in REFUSING_CODES:
            return AccessRefused(f"the daemon refuses our {REFUSING_CODES[code]}: {ended}")
        case _:
            return Unreachable(str(ended))


def greeting(data: bytes) -> ServerInfo | None:
    """The daemon's greeting, if this frame is one."""
    try:
        message = open_envelope(data).message
        if message is None or message.type != "status":
            return None
        is_greeting = decode(Label, message.payload).status == "server_info"
        return decode(ServerInfo, message.payload) if is_greeting else None
    except Undecodable:
        return None


async def _open(address: Address, password: str | None, options: Options) -> Socket:
    subprotocols = [Subprotocol(f"paseo.bearer.{check_password(password)}")] if password else None
    failure: PaseoError = Unreachable(f"the name {address.host} has no address")
    try:
        with anyio.fail_after(options.dial_timeout):
            for target in await address.resolve(options.lookup):
                try:
                    return await _upgrade(address, target, subprotocols, options)
                except OSError as error:
                    failure = Unreachable(
                        f"no daemon answers at {address.authority}: {error.strerror or error}"
                    )
    except TimeoutError:
        failure = Unreachable(f"no daemon answers at {address.authority} within {options.dial_timeout:g} s")
    raise failure


async def _upgrade(
    address: Address, target: str, subprotocols: list[Subprotocol] | None, options: Options
) -> Socket:
    scheme = "wss" if address.secure else "ws"
    tls: dict[str, Any] = {"server_hostname": address.host} if address.secure else {}
    try:
        socket = await _Dial(
            f"{scheme}://{address.authority}/ws",
            host=target,  # only the TCP connection goes there: the Host header is the URL's
            port=address.port,
            subprotocols=subprotocols,
            compression=None,
            proxy=None,
            open_timeout=None,
            ping_interval=None,  # the link has its own, to which every byte is an answer
            close_timeout=1.0,
            max_size=options.max_size,
            logger=_WIRE,
            create_connection=Socket,
            **tls,
        )
    except ssl.SSLCertVerificationError as error:
        raise AccessRefused(
            f"the certificate of {address.host} does not hold: {error.verify_message}"
        ) from None
    except InvalidStatus as error:
        raise _unwelcome(address, error.response.status_code, bytes(error.response.body or b"")) from None
    except (WebSocketException, ValueError) as error:
        raise Unreachable(f"what answers at {address.authority} is no daemon: {error}"[:300]) from None
    assert isinstance(socket, Socket)
    return socket


def _unwelcome(address: Address, status: int, body: bytes) -> PaseoError:
    said = body.decode("utf-8", "replace")[:200]
    match status:
        case 403 if "host" in said.lower():
            return AccessRefused(
                f"the daemon does not answer to the name {address.authority}: add it to its "
                "PASEO_HOSTNAMES, or have another Host header sent"
            )
        case code if 300 <= code < 400:
            return AccessRefused(f"{address.authority} redirects, which is not followed: set the final URL")
        case code if 400 <= code < 500 and code not in (408, 425, 429):
            return AccessRefused(f"{address.authority} refused the upgrade with {status}: {said}")
        case _:
            return Unreachable(f"{address.authority} answered the upgrade with {status}")
