"""What a provider's process says: rows that are joined for a moment, events, permissions."""

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio

from tests.paseo.twin_agents import Agent
from tests.paseo.twin_store import Conversation

if TYPE_CHECKING:
    from tests.paseo.twin_daemon import Daemon

Json = dict[str, Any]


class Cancelled(Exception):
    """The agent heard that it shall stop."""


class Failed(Exception):
    """The provider answers the prompt with an error."""


class Crashed(Exception):
    """The process is gone."""


@dataclass
class Asked:
    """A permission that a turn waits for."""

    request: Json
    answer: Json | None = None
    answered: anyio.Event = field(default_factory=anyio.Event)
    contested: bool = False
    """A second answer came while the first was on its way."""


@dataclass
class Turn:
    """One prompt on its way."""

    text: str
    blocks: list[Json]
    cancel: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)
    replaced: bool = False
    usage: Json | None = None
    calls: dict[str, Json] = field(default_factory=dict)


class Voice:
    """A process as far as it can be heard."""

    def __init__(self, daemon: "Daemon", agent: Agent, conversation: Conversation) -> None:
        self.daemon = daemon
        self.agent = agent
        self.conversation = conversation
        self.turn: Turn | None = None
        self.asked: dict[str, Asked] = {}
        self.calls: dict[str, Json] = {}
        """Tool calls that never finished; they are re-sent in every later turn that is cancelled."""
        self._pending: list[Json] = []
        self._timer: asyncio.TimerHandle | None = None

    def _gone(self) -> bool:
        """Whether another process, or none, has taken its place."""
        return self.agent.process is not self

    @property
    def opencode(self) -> bool:
        """Which of the two kinds of provider it plays."""
        return self.agent.provider.kind == "opencode"

    # What the agent says

    def say(self, item: Json) -> None:
        """Tell a row soon: text joins its neighbour, an update of a tool call replaces the one before."""
        for place, other in enumerate(self._pending):
            if item["type"] == "tool_call" and other.get("callId") == item["callId"]:
                self._pending[place] = item
                break
        else:
            last = self._pending[-1] if self._pending else {"type": None}
            if item["type"] == last["type"] and item["type"] in ("assistant_message", "reasoning"):
                self._pending[-1] = {**last, "text": last["text"] + item["text"]}
            else:
                self._pending.append(item)
        waits = item["type"] in ("assistant_message", "reasoning") or item.get("status") == "running"
        if not waits or not self.daemon.window:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.daemon.window, self.flush)

    def flush(self) -> None:
        """Tell at once what waits for its window to end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pending, self._pending = self._pending, []
        for item in pending:
            self.daemon.row(self.agent, item)

    def tool(self, turn: Turn, item: Json) -> None:
        """An update of a tool call."""
        known = self.calls if not self.opencode else turn.calls
        if item["status"] == "running":
            known[item["callId"]] = item
        else:
            known.pop(item["callId"], None)
        self.say(item)

    def event(self, event: Json) -> None:
        """Tell something that is no row, after the rows that came before it."""
        self.flush()
        self.daemon.stream(self.agent, event)

    def thread_started(self) -> None:
        """The provider names its session; it does so again and again."""
        self.event({"type": "thread_started", "sessionId": self.agent.session_id})

    # Permissions

    async def ask(self, turn: Turn, request: Json) -> Json | None:
        """Ask and wait; None if the turn was cancelled meanwhile."""
        asked = self.asked[request["id"]] = Asked(request)
        self.event({"type": "permission_requested", "request": request})
        self.daemon.broadcast(
            "agent_permission_request", {"agentId": self.agent.id, "request": request}, about=self.agent
        )
        if len(self.asked) == 1:
            words = [request["title"], request.get("description")]
            self.daemon.attention(self.agent, "permission", " - ".join(word for word in words if word))
        self.daemon.update(self.agent)
        if (foreign := self.daemon.faults.foreign_answer) is not None:
            self.answer(request["id"], {"behavior": foreign})
        async with anyio.create_task_group() as waiting:

            async def heed(happened: anyio.Event) -> None:
                await happened.wait()
                waiting.cancel_scope.cancel()

            waiting.start_soon(heed, asked.answered)
            waiting.start_soon(heed, turn.cancel)
        return asked.answer

    def answer(self, permission_id: str, response: Json) -> bool:
        """A client's answer; False if nothing waits for it."""
        asked = self.asked.get(permission_id)
        if asked is None:
            for other in self._answering:
                other.contested |= other.request["id"] == permission_id
            return False
        del self.asked[permission_id]
        asked.answer = response
        asked.answered.set()
        if response.get("interrupt") and self.turn is not None:
            asked.answer = None
            self.turn.cancel.set()
        if self.opencode:
            # Its answers are told by nothing but the agent that waits for one less.
            self.daemon.update(self.agent)
            return True
        self._answering.append(asked)
        # The agent goes on at once, so this may come after the end of its turn.
        asyncio.get_running_loop().call_later(0.008, self._resolve, asked, response)
        return True

    @property
    def _answering(self) -> list[Asked]:
        return self.daemon.answering

    def _resolve(self, asked: Asked, response: Json) -> None:
        self._answering.remove(asked)
        if self._gone():
            return
        if not asked.contested:
            self.resolved(asked, response)
        self.daemon.update(self.agent)

    def resolved(self, asked: Asked, resolution: Json) -> None:
        """Tell twice over that a permission was answered."""
        told = {"requestId": asked.request["id"], "resolution": resolution}
        self.event({"type": "permission_resolved", **told})
        self.daemon.broadcast(
            "agent_permission_resolved", {"agentId": self.agent.id, **told}, about=self.agent
        )
