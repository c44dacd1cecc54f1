"""The daemon over HTTP."""

from http import HTTPStatus

import pytest
from websockets.http11 import Request

from app.paseo.address import Address
from app.paseo.errors import AccessRefused, PaseoError, Unreachable
from app.paseo.http import DaemonHttp
from tests.paseo.scripted import ScriptedDaemon, scripted_daemon


def daemon_http(request: Request) -> tuple[HTTPStatus, dict[str, str], str]:
    """What a daemon with a password answers."""
    if not request.headers["Host"].startswith(("127.0.0.1", "localhost")):
        return HTTPStatus.FORBIDDEN, {}, '{"error":"Invalid Host header"}'
    if request.path == "/api/health":
        return HTTPStatus.OK, {}, '{"status":"ok","timestamp":"2026-11-22T10:40:03.574Z"}'
    return HTTPStatus.UNAUTHORIZED, {}, '{"error":"Unauthorized"}'


def at(daemon: ScriptedDaemon, host: str = "127.0.0.1", host_header: str | None = None) -> Address:
    return Address.parse(f"http://{host}:{daemon.port}", host_header=host_header)


async def test_health_needs_no_password() -> None:
    async with scripted_daemon(http=daemon_http) as daemon:
        for host in ("127.0.0.1", "localhost"):
            async with DaemonHttp(at(daemon, host)) as http:
                assert (await http.health()).status == "ok"


async def test_another_host_can_be_said() -> None:
    async with scripted_daemon(http=daemon_http) as daemon:
        async with DaemonHttp(at(daemon, host_header="paseo:6767")) as http:
            with pytest.raises(AccessRefused, match="PASEO_HOSTNAMES"):
                await http.health()
        async with DaemonHttp(at(daemon, host_header="localhost")) as http:
            assert (await http.health()).status == "ok"


async def test_t21_neither_redirects_nor_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    def redirect(request: Request) -> tuple[HTTPStatus, dict[str, str], str]:
        return HTTPStatus.FOUND, {"Location": "http://169.254.169.254/latest"}, ""

    async with scripted_daemon(http=redirect) as daemon, DaemonHttp(at(daemon)) as http:
        with pytest.raises(AccessRefused, match="redirects"):
            await http.health()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (HTTPStatus.OK, "<html>"),
        (HTTPStatus.OK, "x" * 100_000),
        (HTTPStatus.BAD_GATEWAY, ""),
        (HTTPStatus.OK, "[]"),
    ],
    ids=["html", "huge", "502", "list"],
)
async def test_what_is_no_daemon_is_unreachable(status: HTTPStatus, body: str) -> None:
    async with (
        scripted_daemon(http=lambda request: (status, {}, body)) as daemon,
        DaemonHttp(at(daemon)) as http,
    ):
        with pytest.raises(Unreachable):
            await http.health()


async def test_nobody_there_is_unreachable() -> None:
    async with scripted_daemon() as daemon:
        address = at(daemon)
    async with DaemonHttp(address) as http:
        with pytest.raises(PaseoError, match="no daemon answers"):
            await http.health()
