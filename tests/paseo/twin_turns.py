"""A provider's process and its turns: what a prompt sets off, in which order it is told, how it ends."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio

from tests.paseo.twin_agents import Agent
from tests.paseo.twin_store import Conversation
from tests.paseo.twin_timeline import now
from tests.paseo.twin_voice import Cancelled, Crashed, Failed, Turn, Voice

if TYPE_CHECKING:
    from tests.paseo.twin_daemon import Daemon

Json = dict[str, Any]
Reply = Callable[[bool, str | None], None]

START_LIMIT = 15.0
"""Seconds after which a prompt that has not started is answered `timeout`; it may start all the same."""

STUCK = "A foreground turn is already active"


class Process(Voice):
    """The running program behind a loaded agent."""

    def __init__(self, daemon: "Daemon", agent: Agent, conversation: Conversation) -> None:
        super().__init__(daemon, agent, conversation)
        self.fresh = True
        """No turn has run since it was loaded."""
        self.busy: Turn | None = None
        """What the program works on, which may outlast its turn."""
        self.dead = False
        self.broken = False
        """opencode's server is gone: prompts are refused until a refresh."""
        self.settling_until = 0.0
        self._lives: list[anyio.CancelScope] = []

    async def prompt(self, text: str, blocks: list[Json], message_id: str | None, reply: Reply) -> None:
        """A prompt: its row first, then the end of the turn that it replaces, then its own turn."""
        agent, daemon = self.agent, self.daemon
        named = {} if message_id is None else {"messageId": message_id}
        self.flush()
        daemon.row(agent, {"type": "user_message", "text": text, **named})
        agent.last_user = now()
        while (old := self.turn) is not None:
            if not self.opencode:
                daemon.update(agent)
            old.replaced = True
            await self.interrupt(old)
            if self.opencode:
                daemon.update(agent)
        if self._gone():
            return
        if self.busy is not None:
            self.refuse(STUCK, reply)
        elif self.broken:
            self.refuse(f"Agent {agent.id} failed to start", reply)
        else:
            await self._start(Turn(text, blocks), reply)

    async def _start(self, turn: Turn, reply: Reply) -> None:
        agent, daemon = self.agent, self.daemon
        loop = asyncio.get_running_loop()
        hasty, agent.last_error = loop.time() < self.settling_until, None
        if delay := agent.provider.prompt_delay:
            self.busy = turn
            await daemon.pause(min(delay, START_LIMIT))
            if delay > START_LIMIT:
                reply(False, "timeout")
                await daemon.pause(delay - START_LIMIT)
                reply = _nobody
            self.busy = None
        if self._gone():
            return
        self.turn = self.busy = turn
        agent.status = "running"
        if self.opencode:
            refused = hasty and agent.provider.false_start == "refused"
            reply(not refused, f"Agent {agent.id} failed to start" if refused else None)
        elif self.fresh:
            self.thread_started()
            reply(True, None)
            self.event({"type": "turn_started"})
        else:
            self.event({"type": "turn_started"})
            reply(True, None)
        daemon.update(agent)
        if hasty and self.opencode and agent.provider.false_start == "empty":
            self.busy = None
            self._end(turn, {"type": "turn_completed"}, "idle")
            return
        if not self.dead:
            # opencode's server outlives a daemon that is killed.
            daemon.work(self._live, turn, outlives=self.opencode)

    async def _live(self, turn: Turn) -> None:
        with anyio.CancelScope() as scope:
            self._lives.append(scope)
            await self._run(turn)
        self._lives.remove(scope)

    async def _run(self, turn: Turn) -> None:
        store, first, self.fresh = self.daemon.store, self.fresh, False
        user = {"type": "user_message", "text": turn.text}
        store.add(self.conversation, user)
        try:
            await self.daemon.script(self, turn, first).run()
        except Cancelled:
            cancelled = True
        except Failed as failure:
            self.busy = None
            self.fail(turn, str(failure), diagnostic=not self.opencode)
            return
        except Crashed as crash:
            self._crash(turn, str(crash))
            return
        else:
            cancelled = False
        self.busy = None
        if cancelled:
            self.cancelled(turn, "interrupted" if self.opencode else "Interrupted")
        elif not turn.ended.is_set():
            usage = {} if turn.usage is None else {"usage": turn.usage}
            self._end(turn, {"type": "turn_completed", **usage}, "idle")
        else:
            self.flush()

    async def interrupt(self, turn: Turn) -> None:
        """Ask the agent to stop; end the turn by force if it does not hear."""
        turn.cancel.set()
        with anyio.move_on_after(self.daemon.force_after):
            await turn.ended.wait()
        if not turn.ended.is_set():
            self.cancelled(turn, "interrupted")

    def cancelled(self, turn: Turn, reason: str) -> None:
        """The end of a cancelled turn: open tool calls and permissions first."""
        if turn.ended.is_set():
            return
        self.flush()
        for item in (turn.calls if self.opencode else self.calls).values():
            aborted = {"status": "failed", "error": {"message": "Tool execution aborted"}}
            self.daemon.row(self.agent, item | (aborted if self.opencode else {"status": "canceled"}))
        for asked in list(self.asked.values()):
            del self.asked[asked.request["id"]]
            if not self.opencode:
                self.resolved(asked, {"behavior": "deny", "message": "Interrupted"})
        self._end(turn, {"type": "turn_canceled", "reason": reason}, "idle")

    def fail(self, turn: Turn, error: str, *, diagnostic: bool = False) -> None:
        """The end of a failed turn; its open tool calls stay as they are."""
        if turn.ended.is_set():
            return
        self.flush()
        self.daemon.row(self.agent, {"type": "assistant_message", "text": f"[System Error] {error}"})
        more = {"diagnostic": error} if diagnostic else {}
        self.agent.last_error = error
        self.asked.clear()
        self._end(turn, {"type": "turn_failed", "error": error, **more}, "error")

    def refuse(self, error: str, reply: Reply) -> None:
        """The end of a prompt that could not even be started."""
        self.daemon.row(self.agent, {"type": "assistant_message", "text": f"[System Error] {error}"})
        self.event({"type": "turn_failed", "error": error})
        self.agent.last_error, self.agent.status = error, "error"
        if self.agent.raise_attention("error"):
            self.daemon.attention(self.agent, "error")
        reply(False, error)
        self.daemon.update(self.agent)
        self.daemon.update(self.agent)

    def kill(self) -> None:
        """End the program with all that it is doing, without a word."""
        self._pending.clear()
        self.flush()
        self.asked.clear()
        for scope in self._lives:
            scope.cancel()
        if self.turn is not None:
            self.turn.ended.set()
            self.turn = None

    def _crash(self, turn: Turn, error: str) -> None:
        if self.opencode:
            self.busy, self.broken = None, True
        else:
            self.dead = True
            self.flush()
            for item in self.calls.values():
                self.daemon.row(self.agent, item | {"status": "canceled"})
            self.calls.clear()
            self.busy = None
        self.fail(turn, error)

    def _end(self, turn: Turn, event: Json, status: str) -> None:
        self.event(event)
        self.turn = None
        turn.ended.set()
        loop = asyncio.get_running_loop()
        if event["type"] != "turn_completed" and not turn.replaced:
            self.settling_until = loop.time() + self.agent.provider.settle
        if turn.usage is not None and event["type"] == "turn_completed":
            self.agent.usage = turn.usage
        if turn.replaced:
            return
        self.agent.status = status
        reason = "error" if status == "error" else "finished"
        if self.agent.raise_attention(reason):
            self.daemon.attention(self.agent, reason)
        self.daemon.update(self.agent)


def _nobody(_accepted: bool, _error: str | None) -> None:
    """The answer was given before."""
