"""The link: who gets in, how it ends, and when it is dialled again."""

import logging
import socket
from http import HTTPStatus
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream
from websockets.http11 import Request

from app.paseo.address import Address, Lookup
from app.paseo.client import PaseoClient, open_client
from app.paseo.dialing import Options
from app.paseo.errors import LinkLost, NotSent, Timeout
from app.paseo.link import LinkState
from app.paseo.snapshots import Done
from app.paseo.subscriptions import LinkDown, LinkUp
from tests.paseo.scripted import QUICK, connected, scripted_daemon


def quick(**options: Any) -> Options:
    return Options(**{**QUICK, **options})


async def settled(client: PaseoClient, status: str) -> LinkState:
    """The link's state, once it is this."""
    with anyio.fail_after(10):
        while client.link.status != status:
            await client._link._changed.wait()
    return client.link


async def test_trap_01_an_accepted_upgrade_is_no_connection() -> None:
    async with (
        scripted_daemon(greets=False) as daemon,
        open_client(Address.parse(daemon.url), options=quick(hello_timeout=0.2)) as client,
    ):
        await daemon.until(lambda: len(daemon.upgrades) >= 2)
        assert not client.link.is_up
        with pytest.raises(NotSent):
            await client.ping()
        daemon.greets = True
        await client.wait_up(5)
        assert client.link.server is not None
        assert client.link.server.version == "0.1.65-beta.5"


async def test_trap_01_a_wrong_password_is_accepted_and_then_closed() -> None:
    """The breaker opens at the first 4401: each dial costs the daemon a third of a second."""
    async with (
        scripted_daemon(close_with=(4401, "Incorrect password")) as daemon,
        open_client(Address.parse(daemon.url), "wrong", options=quick()) as client,
    ):
        state = await settled(client, "refused")
        assert "password" in str(state.error)
        assert state.dials == 1
        daemon.close_with = None
        client.redial()
        await client.wait_up(5)
        assert client.link.dials == 2


async def test_trap_02_the_password_is_a_subprotocol_and_never_in_a_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("websockets.server").setLevel(logging.WARNING)  # the test's own server
    async with scripted_daemon() as daemon, connected(daemon, "s3cret!") as client:
        await client.wait_up(5)
        (request,) = daemon.upgrades
        assert request.headers["Sec-WebSocket-Protocol"] == "paseo.bearer.s3cret!"
        assert "Authorization" not in request.headers
    assert "s3cret" not in caplog.text


async def test_trap_02_a_password_that_cannot_be_said_stops_at_once() -> None:
    with pytest.raises(ValueError, match="password"):
        PaseoClient(Address.parse("http://127.0.0.1:1"), "two words")


async def test_trap_03_another_host_can_be_said() -> None:
    async with scripted_daemon() as daemon:
        address = Address.parse(f"http://127.0.0.1:{daemon.port}", host_header="localhost")
        async with open_client(address, options=quick()) as client:
            await client.wait_up(5)
        assert daemon.upgrades[0].headers.get_all("Host") == ["localhost"]


async def test_trap_03_a_name_that_the_daemon_refuses_needs_an_operator() -> None:
    def refuse(request: Request) -> tuple[HTTPStatus, dict[str, str], str]:
        return HTTPStatus.FORBIDDEN, {}, "Host not allowed"

    async with (
        scripted_daemon(http=refuse) as daemon,
        open_client(Address.parse(f"http://localhost:{daemon.port}"), options=quick()) as client,
    ):
        state = await settled(client, "refused")
        assert f"localhost:{daemon.port}" in str(state.error)
        assert "PASEO_HOSTNAMES" in str(state.error)


async def test_trap_04_no_origin_is_offered() -> None:
    async with scripted_daemon() as daemon, connected(daemon):
        assert "Origin" not in daemon.upgrades[0].headers


async def test_trap_05_the_greeting_names_a_version_for_which_all_agents_exist() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client:
        (hello,) = daemon.hellos
        assert hello["protocolVersion"] == 1
        assert hello["appVersion"] == "0.1.65"
        assert hello["clientId"] == client.client_id


async def test_trap_30_no_heartbeat_narrows_what_is_told() -> None:
    async with scripted_daemon() as daemon, connected(daemon):
        assert daemon.hellos[0]["clientType"] == "cli"
        assert not daemon.inbox
        assert not daemon.strays


async def test_trap_06_an_id_is_kept_over_reconnects_and_shared_with_nobody() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as one, connected(daemon) as other:
        assert one.client_id != other.client_id
        daemon.drop()
        await daemon.until(lambda: len(daemon.watches) == 4)
        assert sorted(hello["clientId"] for hello in daemon.hellos) == sorted(
            [one.client_id, other.client_id] * 2
        )


async def test_t21_a_redirect_is_not_followed() -> None:
    async with scripted_daemon() as elsewhere:

        def redirect(request: Request) -> tuple[HTTPStatus, dict[str, str], str]:
            return HTTPStatus.FOUND, {"Location": f"ws://127.0.0.1:{elsewhere.port}/ws"}, ""

        async with (
            scripted_daemon(http=redirect) as daemon,
            open_client(Address.parse(daemon.url), "s3cret", options=quick()) as client,
        ):
            state = await settled(client, "refused")
            assert "redirects" in str(state.error)
        assert elsewhere.upgrades == []


async def test_t21_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with scripted_daemon() as daemon, connected(daemon) as client:
        assert client.link.is_up


def lookup(address: str) -> Lookup:
    """A resolver that knows one address."""

    async def resolve(host: str, port: int) -> list[Any]:
        assert host == "paseo.example"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    return resolve


async def test_t21_what_a_name_was_resolved_to_is_dialled_under_its_name() -> None:
    async with scripted_daemon() as daemon:
        address = Address.parse(f"http://paseo.example:{daemon.port}")
        async with open_client(address, options=quick(lookup=lookup("127.0.0.1"))) as client:
            await client.wait_up(5)
        assert daemon.upgrades[0].headers["Host"] == f"paseo.example:{daemon.port}"


async def test_t21_a_name_that_leads_to_the_cloud_metadata_is_not_dialled() -> None:
    address = Address.parse("http://paseo.example:6767")
    async with open_client(address, options=quick(lookup=lookup("169.254.169.254"))) as client:
        assert "link-local" in str((await settled(client, "refused")).error)


@pytest.mark.parametrize("code", [4002, 4003])
async def test_a_daemon_that_refuses_our_hello_is_not_asked_again(code: int) -> None:
    async with (
        scripted_daemon(close_with=(code, "no")) as daemon,
        open_client(Address.parse(daemon.url), options=quick()) as client,
    ):
        state = await settled(client, "refused")
        assert str(code) in str(state.error)
        assert len(daemon.upgrades) == 1


@pytest.mark.parametrize(("code", "reason"), [(4001, "Hello timeout"), (1012, "restarting"), (1000, "")])
async def test_any_other_end_is_dialled_again(code: int, reason: str) -> None:
    async with (
        scripted_daemon(close_with=(code, reason)) as daemon,
        open_client(Address.parse(daemon.url), options=quick()) as client,
    ):
        await daemon.until(lambda: len(daemon.upgrades) >= 3)
        daemon.close_with = None
        await client.wait_up(5)


async def test_a_refused_link_is_tried_again_after_a_long_pause() -> None:
    async with (
        scripted_daemon(close_with=(4401, "Password required")) as daemon,
        open_client(Address.parse(daemon.url), options=quick(refused_pause=0.05)),
    ):
        await daemon.until(lambda: len(daemon.upgrades) >= 2)


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [("stop", 1005, "stopped"), ("kill", 1006, "broke"), ("size", 1009, "exceeds"), ("close", 4321, "odd")],
)
async def test_ends_are_told_apart(end: str, code: int, words: str) -> None:
    async with scripted_daemon() as daemon, connected(daemon, max_size=1000) as client:
        with client.subscribe("a") as notes:
            match end:
                case "stop":
                    daemon.socket.protocol.send_close()
                    daemon.socket.send_data()
                case "kill":
                    daemon.drop()
                case "size":
                    await daemon.say("agent_stream", agentId="b", text="x" * 2000)
                case _:
                    await daemon.socket.close(code, "odd")
            with anyio.fail_after(5):
                down = await notes.receive()
                up = await notes.receive()
        assert isinstance(down, LinkDown)
        assert down.lost.code == code
        assert words in str(down.lost)
        assert down.lost.is_oversize is (code == 1009)
        assert isinstance(up, LinkUp)


async def test_trap_07_changes_are_subscribed_to_on_every_connection_before_it_counts_as_up() -> None:
    """And only so: a second subscription would replace the first."""
    async with scripted_daemon() as daemon, connected(daemon) as client:
        with client.subscribe("a") as notes:
            daemon.answers_watch = False
            daemon.drop()
            await daemon.until(lambda: len(daemon.watches) == 2)
            assert not client.link.is_up
            assert [type(note) for note in notes.drain()] == [LinkDown]
            await daemon.say("fetch_agents_response", requestId=daemon.watches[1]["requestId"], entries=[])
            with anyio.fail_after(5):
                assert isinstance(await notes.receive(), LinkUp)
        assert client.link.status == "up"
        assert all(watch["filter"] == {"includeArchived": True} for watch in daemon.watches)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.fetch_agents)
            asked = await daemon.next("fetch_agents_request")
            assert "subscribe" not in asked.message
            await asked.answer(entries=[])


async def test_trap_31_a_silent_link_is_given_up() -> None:
    async with (
        scripted_daemon() as daemon,
        connected(daemon, ping_interval=0.02, ping_timeout=0.2) as client,
    ):
        first = daemon.socket
        daemon.mute = True
        await daemon.until(lambda: len(daemon.upgrades) == 2)
        daemon.mute = False
        assert first is not daemon.socket
        await client.wait_up(5)


async def test_a_link_on_which_anything_arrives_is_alive() -> None:
    """A big frame may keep the pong waiting; each of its bytes is a sign of life."""
    async with (
        scripted_daemon(mute=True) as daemon,
        connected(daemon, ping_interval=0.01, ping_timeout=0.4) as client,
    ):
        for _ in range(20):
            await daemon.say("agent_stream", agentId="b")
            await anyio.sleep(0.05)  # the passing of time is the matter here
        assert len(daemon.upgrades) == 1
        assert client.link.is_up


async def test_a_daemon_that_comes_back_is_found() -> None:
    async with scripted_daemon() as daemon:
        port = daemon.port
        async with connected(daemon) as client:
            with client.subscribe("a") as notes:
                daemon.drop()
                with anyio.fail_after(5):
                    assert isinstance(await notes.receive(), LinkDown)
    async with open_client(Address.parse(f"http://127.0.0.1:{port}"), options=quick()) as client:
        assert "no daemon answers" in str((await settled(client, "waiting")).error)
        async with scripted_daemon(port=port):
            await client.wait_up(5)
            assert client.link.error is None


async def test_a_listener_that_is_no_daemon_is_unreachable() -> None:
    async def chat(stream: SocketStream) -> None:
        await stream.send(b"220 mail.example ESMTP\r\n")
        await stream.aclose()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, chat)
        async with open_client(Address.parse(f"http://127.0.0.1:{port}"), options=quick()) as client:
            assert "no daemon" in str((await settled(client, "waiting")).error)
        tasks.cancel_scope.cancel()
    await listener.aclose()


async def test_a_closed_client_says_so() -> None:
    async with scripted_daemon() as daemon:
        async with connected(daemon) as client:
            pass
        assert client.link.status == "closed"
        with pytest.raises(NotSent):
            await client.ping()
        with pytest.raises(NotSent):
            await client.wait_up(5)
        with client.subscribe("a") as notes:
            assert [note async for note in notes] == []
        await daemon.until(lambda: daemon.socket.close_code == 1000)


async def test_requests_in_flight_fail_when_the_client_is_closed() -> None:
    failures: list[type[Exception]] = []

    async def ask(client: PaseoClient) -> None:
        try:
            await client.request("ping", {}, Done, deadline=30)
        except (LinkLost, Timeout) as error:
            failures.append(type(error))

    async with scripted_daemon() as daemon, anyio.create_task_group() as tasks, connected(daemon) as client:
        tasks.start_soon(ask, client)
        await daemon.next("ping")
    assert failures == [LinkLost]


async def test_pauses_grow_while_nobody_answers_and_begin_anew_after_a_link_that_held() -> None:
    async with scripted_daemon() as daemon:
        address = Address.parse(daemon.url)
    options = quick(backoff_first=0.001, backoff_max=0.01, stable_after=0.0)
    async with open_client(address, options=options) as client:
        with anyio.fail_after(10):
            while client._link._pause < 0.01:
                await client._link._changed.wait()
        async with scripted_daemon(port=address.port) as daemon:
            await client.wait_up(5)
            with client.subscribe("a") as notes:
                await daemon.socket.close(1012)
                assert isinstance(await notes.receive(), LinkDown)
                await daemon.until(lambda: len(daemon.upgrades) == 2)
            assert client._link._pause == 0.002
