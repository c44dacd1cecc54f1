"""Answers to permission requests, which have no answer of their own."""

import anyio

from app.paseo.agents import Allow, Deny
from app.paseo.errors import (
    Reason,
    RpcError,
)
from app.paseo.frames import (
    Resolution,
)
from tests.paseo.scripted import AGENT, Outcome, connected, scripted_daemon

PERMISSION = "agent_permission_response"


async def test_a_permission_is_answered_by_its_resolution() -> None:
    async with scripted_daemon() as daemon, connected(daemon) as client:
        outcome = Outcome()
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                answer = Deny(message="no", interrupt=True)
                tasks.start_soon(outcome.of, lambda: client.answer_permission("a", "p", answer))
                asked = await daemon.next(PERMISSION)
                assert asked.message == {
                    "type": PERMISSION,
                    "agentId": "a",
                    "requestId": "p",
                    "response": {"behavior": "deny", "message": "no", "interrupt": True},
                }
                allowed = {"behavior": "allow", "selectedActionId": "x"}  # somebody else was faster
                await daemon.say("agent_permission_resolved", agentId="a", requestId="p", resolution=allowed)
        assert outcome.value == Resolution(behavior="allow", selected_action_id="x")


async def test_trap_11_a_permission_id_is_no_request_id() -> None:
    """It may even look like one of ours, and two agents may have the same."""
    async with scripted_daemon() as daemon, connected(daemon) as client:
        fetched, one, other = Outcome(), Outcome(), Outcome()
        gone = {
            "requestType": PERMISSION,
            "code": "handler_error",
            "error": "Request failed: No pending permission request",
        }
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fetched.of, lambda: client.fetch_agent("a"))
                asked = await daemon.next("fetch_agent_request")
                tasks.start_soon(one.of, lambda: client.answer_permission("a", asked.id, Allow()))
                await daemon.next(PERMISSION)
                tasks.start_soon(other.of, lambda: client.answer_permission("b", asked.id, Allow()))
                resolved = {"requestId": asked.id, "resolution": {"behavior": "deny"}}
                await daemon.say(
                    "agent_permission_resolved", agentId="b", **resolved
                )  # not of the one asked about
                await daemon.say("rpc_error", requestId=asked.id, **gone)
                assert (await daemon.next(PERMISSION)).message["agentId"] == "b"
                await daemon.say("agent_permission_resolved", agentId="b", **resolved)
                await asked.answer(agent=AGENT)
        assert fetched.value.id == "a"
        assert isinstance(one.error, RpcError)
        assert one.error.reason is Reason.PERMISSION_GONE
        assert other.value == Resolution(behavior="deny")
