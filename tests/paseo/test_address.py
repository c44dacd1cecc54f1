"""What may be dialled (T21), and which passwords can be said."""

import socket
from typing import Any

import pytest

from app.paseo.address import Address, check_password
from app.paseo.errors import AccessRefused, Unreachable


def lookup(*addresses: str) -> Any:
    """A resolver that knows one answer."""

    async def resolve(host: str, port: int) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    return resolve


@pytest.mark.parametrize(
    ("url", "host", "port", "secure"),
    [
        ("http://127.0.0.1:6767", "127.0.0.1", 6767, False),
        ("ws://paseo:6767/", "paseo", 6767, False),
        ("https://daemon.example", "daemon.example", 443, True),
        ("http://[::1]:6767", "::1", 6767, False),
    ],
)
def test_an_address_is_read(url: str, host: str, port: int, secure: bool) -> None:
    address = Address.parse(url)
    assert (address.host, address.port, address.secure) == (host, port, secure)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "tcp://127.0.0.1:6767",
        "127.0.0.1:6767",
        "http://:6767",
        "http://me:s3cret@127.0.0.1:6767",
        "http://me:s3cret/x@127.0.0.1:6767",
        "http://127.0.0.1:6767/ws",
        "http://127.0.0.1:6767?password=s3cret",
        "http://127.0.0.1:s3cret",
        "http://0x7f.1:6767",
        "http://2130706433:6767",
        "http://127.1:6767",
        "http://0177.0.0.1:6767",
        "http://169.254.169.254",
        "http://[::ffff:169.254.169.254]",
        "http://[fe80::1]",
    ],
)
def test_t21_an_address_in_disguise_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(ValueError, match=r"daemon|host|link-local") as refused:
        Address.parse(url)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("[::1]", True),
        ("[::ffff:127.0.0.1]", True),
        ("localhost", True),
        ("127.evil.com", False),
        ("localhost.evil.com", False),
        ("10.0.0.1", False),
    ],
)
def test_t21_loopback_is_no_prefix(host: str, is_loopback: bool) -> None:
    assert Address.parse(f"http://{host}:6767").is_loopback is is_loopback


async def test_t21_a_name_that_leads_to_the_cloud_metadata_is_refused() -> None:
    address = Address.parse("http://rebinding.example:6767")
    for found in ("169.254.169.254", "::ffff:169.254.169.254"):
        with pytest.raises(AccessRefused):
            await address.resolve(lookup("10.0.0.1", found))
    assert await address.resolve(lookup("10.0.0.1", "10.0.0.1")) == ["10.0.0.1"]


async def test_a_name_that_nobody_knows_is_unreachable() -> None:
    async def resolve(host: str, port: int) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(Unreachable, match="nowhere"):
        await Address.parse("http://nowhere:6767").resolve(resolve)


@pytest.mark.parametrize("password", ["two words", "a/b", "a=b", 'a"b', "pässword", "a,b", "a\nb", ""])
def test_trap_02_a_password_that_no_header_can_carry_is_refused_without_being_repeated(password: str) -> None:
    with pytest.raises(ValueError, match="letters, digits") as refused:
        check_password(password)
    assert not password or password not in str(refused.value)


def test_a_host_header_with_more_than_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="host name"):
        Address.parse("http://paseo:6767", host_header="localhost\r\nX: y")
