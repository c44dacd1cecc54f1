"""The daemon over plain HTTP: whether it answers at all."""

import ssl
from types import TracebackType

import anyio
import httpx

from app.paseo.address import Address, Lookup
from app.paseo.decoding import Frame, decode
from app.paseo.errors import AccessRefused, PaseoError, Undecodable, Unreachable

TIMEOUT = 5.0
"""Seconds for an answer."""

MAX_ANSWER = 64 * 1024
"""Bytes of an answer, which is a line long."""


class Health(Frame, frozen=True):
    """The daemon's event loop turns; it says nothing about providers or agents."""

    status: str
    timestamp: str | None = None


class DaemonHttp:
    """A daemon's `/api/health`; no proxies of the environment, no redirects, one look at a name."""

    def __init__(
        self,
        address: Address,
        *,
        timeout: float = TIMEOUT,
        lookup: Lookup | None = None,
    ) -> None:
        self._address = address
        self._lookup = lookup or anyio.getaddrinfo
        self._timeout = timeout
        self._client = httpx.AsyncClient(
            headers={"Host": address.authority},
            timeout=timeout,
            trust_env=False,
            follow_redirects=False,
            verify=ssl.create_default_context() if address.secure else False,
        )

    async def __aenter__(self) -> "DaemonHttp":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()

    async def health(self) -> Health:
        """`GET /api/health`, which needs no password.

        Raises:
            Unreachable, AccessRefused: as `errors` has them.
        """
        failure: PaseoError = Unreachable(f"the name {self._address.host} has no address")
        try:
            with anyio.fail_after(self._timeout):
                for target in await self._address.resolve(self._lookup):
                    try:
                        return await self._ask(target)
                    except httpx.TransportError as error:
                        what = type(error).__name__
                        failure = Unreachable(f"no daemon answers at {self._address.authority}: {what}")
        except TimeoutError:
            failure = Unreachable(
                f"no daemon answers at {self._address.authority} within {self._timeout:g} s"
            )
        raise failure

    async def _ask(self, target: str) -> Health:
        scheme, host = "https" if self._address.secure else "http", f"[{target}]" if ":" in target else target
        url = f"{scheme}://{host}:{self._address.port}/api/health"
        tls = {"sni_hostname": self._address.host} if self._address.secure else {}
        async with self._client.stream("GET", url, extensions=tls) as answer:
            self._check(answer.status_code)
            body = bytearray()
            async for chunk in answer.aiter_bytes():
                body += chunk
                if len(body) > MAX_ANSWER:
                    raise Unreachable(f"what answers at {self._address.authority} is no daemon")
        try:
            return decode(Health, bytes(body))
        except Undecodable:
            raise Unreachable(f"what answers at {self._address.authority} is no daemon") from None

    def _check(self, status: int) -> None:
        where = self._address.authority
        match status:
            case 200:
                return
            case 403:
                raise AccessRefused(
                    f"the daemon does not answer to the name {where}: add it to its PASEO_HOSTNAMES"
                )
            case code if 300 <= code < 400:
                raise AccessRefused(f"{where} redirects, which is not followed: set the final URL")
            case _:
                raise Unreachable(f"{where} answered with {status}")
