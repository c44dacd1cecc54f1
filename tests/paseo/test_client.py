"""Requests and their answers. `trap_NN`: a trap of the protocol."""

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from app.paseo.client import PaseoClient
from app.paseo.connection import MAX_OUTGOING
from app.paseo.errors import (
    LinkLost,
    NotSent,
    Reason,
    Refused,
    RpcError,
    Timeout,
    Undecodable,
)
from app.paseo.requests import DEADLINES
from app.paseo.snapshots import Done
from tests.paseo.scripted import AGENT, Outcome, connected, exchange, scripted_daemon


async def test_answers_find_their_requests_in_any_order() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client:
        found: dict[str, str] = {}

        async def fetch(agent_id: str) -> None:
            found[agent_id] = (await client.fetch_agent(agent_id)).id

        async with anyio.create_task_group() as tasks:
            for name in "abc":
                tasks.start_soon(fetch, name)
            asked = [await daemon.next("fetch_agent_request") for _ in range(3)]
            assert len({each.id for each in asked}) == 3
            for each in reversed(asked):
                await each.answer(agent={**AGENT, "id": each.message["agentId"]}, error=None)
        assert found == {"a": "a", "b": "b", "c": "c"}


async def test_an_agent_is_made_imported_loaded_archived_and_deleted() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client:
        made = await exchange(
            daemon,
            lambda: client.create_agent("claude", "/w/deep", labels={"k": "v"}, model="m", modeId=None),
            "create_agent_request",
            "status",
            status="agent_created",
            agentId="a",
            agent=AGENT,
        )
        assert (made.id, made.cwd) == ("a", "/w")
        imported = await exchange(
            daemon,
            lambda: client.import_agent("claude", "s-1", cwd="/w"),
            "import_agent_request",
            "status",
            status="agent_resumed",
            agentId="a",
            timelineSize=4,
            agent=AGENT,
        )
        assert imported.id == "a"
        loaded = {"status": "agent_refreshed", "agentId": "a", "timelineSize": 4}
        assert (
            await exchange(
                daemon, lambda: client.refresh_agent("a"), "refresh_agent_request", "status", **loaded
            )
            == 4
        )
        archived = {"agentId": "a", "archivedAt": "2026-11-22T10:46:17.588Z"}
        assert (
            await exchange(
                daemon, lambda: client.archive("a"), "archive_agent_request", "agent_archived", **archived
            )
            == archived["archivedAt"]
        )
        await exchange(
            daemon, lambda: client.delete("a"), "delete_agent_request", "agent_deleted", agentId="a"
        )


@pytest.mark.parametrize(
    ("payload", "kind", "reason"),
    [
        (
            {"status": "agent_create_failed", "error": "Unknown provider 'x'. Configured: y"},
            "status",
            "unknown_provider",
        ),
        ({"accepted": False, "error": "acp does not support ACP session resume"}, None, "cannot_resume"),
        ({"accepted": False, "error": None}, None, "other"),
        ({"agent": None, "error": "AGENT not found: a"}, None, "agent_not_found"),
    ],
)
async def test_a_refusal_in_an_answer_is_raised(
    payload: dict[str, Any], kind: str | None, reason: str
) -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client:
        with pytest.raises(Refused) as refused:
            await exchange(
                daemon, lambda: client.set_mode("a", "m"), "set_agent_mode_request", kind, **payload
            )
        assert refused.value.reason == reason
        assert not isinstance(refused.value, RpcError)


async def test_trap_09_an_invalid_field_is_told_apart_from_a_refusal() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client:
        with pytest.raises(RpcError) as refused:
            await exchange(
                daemon,
                lambda: client.update_agent("a", name=""),
                "update_agent_request",
                "rpc_error",
                requestType="update_agent_request",
                error="Unknown request schema",
                code="unknown_schema",
            )
        assert (refused.value.code, refused.value.reason) == ("unknown_schema", Reason.INVALID_REQUEST)


async def test_trap_10_a_request_that_is_never_answered_ends() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client:
        with pytest.raises(Timeout), anyio.fail_after(5):
            await client.cancel("nobody", deadline=0.05)
        asked = await daemon.next("cancel_agent_request")
        await asked.answer(agentId="nobody")  # too late: nobody waits, and nothing breaks
        await exchange(daemon, client.ping, "ping", "pong")
    assert 0 < min(DEADLINES.values()) <= max(DEADLINES.values()) <= 60


async def test_without_a_link_nothing_is_sent() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client:
        daemon.close_with = (4401, "Password required")
        daemon.drop()
        await daemon.until(lambda: len(daemon.upgrades) == 2)
        with pytest.raises(NotSent):
            await client.send_message("a", "hello", message_id="m-1")


async def test_trap_13_a_prompt_whose_answer_is_lost_is_unknown_and_never_sent_again() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client:
        outcome = Outcome()
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(outcome.of, lambda: client.send_message("a", "hello", message_id="m-1"))
                asked = await daemon.next("send_agent_message_request")
                daemon.drop()
        assert isinstance(outcome.error, LinkLost)
        await client.wait_up(5)
        await daemon.say("send_agent_message_response", requestId=asked.id, agentId="a", accepted=True)
        await exchange(daemon, client.ping, "ping", "pong")
        assert daemon.inbox == []


async def test_what_stops_a_request_right_before_it_leaves_keeps_it_from_leaving() -> None:
    class LeaseLost(Exception):
        pass

    def check() -> None:
        raise LeaseLost

    async with scripted_daemon() as daemon, connected(daemon) as client:
        with pytest.raises(LeaseLost):
            await client.send_message("a", "hello", message_id="m-1", before_write=check)
        await exchange(daemon, client.ping, "ping", "pong")
        assert daemon.inbox == []


async def test_what_cannot_be_sent_is_not_sent() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client:
        with pytest.raises(NotSent, match="JSON"):
            await client.send_message("a", "\ud83d", message_id="m-1")
        with pytest.raises(NotSent, match="100 MiB"):
            await client.send_message("a", "x" * MAX_OUTGOING, message_id="m-1")
        await exchange(daemon, client.ping, "ping", "pong")


async def test_a_daemon_that_does_not_read_costs_the_request_only() -> None:
    """The first message may be half out, and its fate is unknown; what waits behind it was not sent."""
    async with scripted_daemon() as daemon, connected(daemon, ping_interval=60) as client:
        daemon.socket.transport.pause_reading()
        first, second = Outcome(), Outcome()
        text = "x" * 20_000_000
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                fields = {"agentId": "a", "text": text}
                kind = "send_agent_message_request"
                tasks.start_soon(first.of, lambda: client.request(kind, fields, Done, deadline=0.5))
                await anyio.lowlevel.checkpoint()
                tasks.start_soon(second.of, lambda: client.request("ping", {}, Done, deadline=0.2))
        assert isinstance(first.error, Timeout)
        assert isinstance(second.error, NotSent)


async def test_an_answer_of_another_shape_is_undecodable() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client:
        with pytest.raises(Undecodable):
            await exchange(
                daemon, lambda: client.fetch_agent("a"), "fetch_agent_request", agent={"name": "x"}
            )


async def test_an_answer_that_cannot_be_read_fails_its_request_at_once() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client:
        outcome = Outcome()
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(outcome.of, lambda: client.fetch_agent("a"))
                asked = await daemon.next("fetch_agent_request")
                await daemon.socket.send(
                    f'{{"type":"session","message":{{"payload":{{"requestId":"{asked.id}",oops'
                )
        assert isinstance(outcome.error, Undecodable)
        assert client.link.is_up


async def test_trap_29_no_other_kind_of_request_is_ever_sent() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client:
        for kind in ("shutdown_server_request", "restart_server_request", "client_heartbeat"):
            with pytest.raises(AssertionError):
                await client.request(kind, {}, Done)
        assert daemon.inbox == []


async def test_providers_are_waited_for_while_they_load() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client:
        outcome = Outcome()
        loading = [{"provider": "x", "status": "loading"}, {"provider": "y", "status": "loading"}]
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(outcome.of, client.providers)
                asked = await daemon.next("get_providers_snapshot_request")
                half = [{"provider": "x", "status": "ready"}, loading[1]]
                await asked.answer(entries=loading)
                await daemon.say("providers_snapshot_update", cwd="/home/u", entries=half)
                done = [half[0], {"provider": "y", "status": "unavailable", "models": [{"id": "m"}]}]
                await daemon.say("providers_snapshot_update", cwd="/home/u", entries=done)
        assert [(entry.provider, entry.status) for entry in outcome.value] == [
            ("x", "ready"),
            ("y", "unavailable"),
        ]
        only: Callable[[PaseoClient], Any] = lambda client: client.providers(only="x")  # noqa: E731
        found = await exchange(daemon, lambda: only(client), "get_providers_snapshot_request", entries=half)
        assert len(found) == 2
        never = await exchange(
            daemon, lambda: client.providers(settle=0.01), "get_providers_snapshot_request", entries=loading
        )
        assert [entry.status for entry in never] == ["loading", "loading"]
