"""One run of a twin's daemon: its agents, its sessions, who is told what."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
from anyio.abc import TaskGroup

from tests.paseo.twin_agents import Agent
from tests.paseo.twin_opencode import OpencodeScript
from tests.paseo.twin_providers import History, Provider
from tests.paseo.twin_scripts import Script
from tests.paseo.twin_store import Conversation
from tests.paseo.twin_terminals import Terminals
from tests.paseo.twin_timeline import Timeline, now
from tests.paseo.twin_turns import Process
from tests.paseo.twin_voice import Asked, Turn
from tests.paseo.twin_wire import Session, Socket, encode

if TYPE_CHECKING:
    from tests.paseo.twin import Twin

Json = dict[str, Any]

NO_RESUME = "acp does not support ACP session resume"


class CannotLoad(Exception):
    """An agent or a session cannot be loaded, for the reason that the client is told."""


class Daemon:
    """What dies when the daemon is killed."""

    def __init__(self, twin: "Twin", tasks: TaskGroup) -> None:
        self.twin = twin
        self.tasks = tasks
        self.store = twin.store
        self.faults = twin.faults
        self.providers: dict[str, Provider] = twin.providers
        self.agents = {
            id: Agent.from_record(record, self.providers) for id, record in self.store.agents.items()
        }
        self.sessions: dict[str, Session] = {}
        self.sockets: set[Socket] = set()
        self.terminals = Terminals(self)
        self.answering: list[Asked] = []
        self.ready: set[str] = set()
        """Providers that have been probed."""
        self.probing = False
        self.closed = False
        self.changed = anyio.Event()
        """Set, and replaced, whenever any agent changes."""

    # What the twin was set to

    @property
    def speed(self) -> float:
        """How many times faster than life the providers are."""
        return self.twin.speed

    @property
    def window(self) -> float:
        """Seconds over which deltas are joined."""
        return self.twin.window / self.speed

    @property
    def force_after(self) -> float:
        """Seconds after which a cancellation is forced."""
        return self.twin.force_after / self.speed

    @property
    def password(self) -> str | None:
        """The password, if there is one."""
        return self.twin.password

    @property
    def hostnames(self) -> list[str]:
        """Host names that are allowed besides localhost."""
        return self.twin.hostnames

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.twin.port

    @property
    def home(self) -> Path:
        """Where worktrees are put."""
        return self.twin.home

    async def pause(self, seconds: float) -> None:
        """Let time pass, as the twin counts it."""
        await anyio.sleep(seconds / self.speed)

    def work(
        self, doing: Callable[..., Coroutine[Any, Any, object]], *arguments: object, outlives: bool = False
    ) -> None:
        """Do something beside; it ends with the daemon, unless it belongs to a server that outlives it."""
        (self.twin.tasks if outlives else self.tasks).start_soon(doing, *arguments)

    def script(self, process: Process, turn: Turn, first: bool) -> Script:
        """What plays a prompt."""
        kind = OpencodeScript if process.opencode else Script
        return kind(process, turn, first)

    # Who is told what

    def broadcast(self, kind: str, payload: Json, *, about: Agent | None = None) -> None:
        """Tell every session; of an agent, not those that look at another one."""
        if self.closed:
            return
        frame = encode({"type": kind, "payload": payload})
        for session in self.sessions.values():
            if about is None or session.focus in (None, about.id):
                session.put(frame)

    def stream(self, agent: Agent, event: Json, **numbered: Any) -> None:
        """An event of an agent; everybody gets it."""
        if self.closed or agent.id not in self.agents:
            return
        told = {"agentId": agent.id, "event": {"provider": agent.provider.id, **event}, "timestamp": now()}
        self.broadcast("agent_stream", told | numbered, about=agent)

    def row(self, agent: Agent, item: Json) -> None:
        """A row of an agent's timeline, stored and told."""
        if self.closed:
            return
        row = agent.timeline.append(item)
        self.stream(agent, {"type": "timeline", "item": item}, seq=row.seq, epoch=agent.timeline.epoch)

    def attention(self, agent: Agent, reason: str, body: str | None = None) -> None:
        """Ask for a human's attention."""
        titles = {"finished": "Agent finished", "permission": "Agent needs permission"}
        if body is None:
            finished = agent.timeline.last_text() or "Finished working."
            body = "Encountered an error." if reason == "error" else finished
        short = body if len(body) <= 220 else body[:217] + "..."
        data = {"serverId": self.store.server_id, "agentId": agent.id, "reason": reason}
        words = {"title": titles.get(reason, "Agent needs attention"), "body": short, "data": data}
        self.stream(
            agent,
            {
                "type": "attention_required",
                "reason": reason,
                "timestamp": now(),
                "shouldNotify": False,
                "notification": words,
            },
        )

    def update(self, agent: Agent, *, only: Session | None = None) -> None:
        """An agent as it is now, to those who subscribed; also to the store and to those who wait."""
        if self.closed:
            return
        agent.updated = now()
        self.store.save(agent.record())
        self.bell()
        seen = {"kind": "upsert", "agent": agent.snapshot(), "project": agent.place.project()}
        frame = encode({"type": "agent_update", "payload": seen})
        gone = encode({"type": "agent_update", "payload": {"kind": "remove", "agentId": agent.id}})
        for session in [only] if only is not None else self.sessions.values():
            if session.subscription is not None and self.visible(session, agent):
                session.put(frame if agent.matches(session.subscription) else gone)

    def bell(self) -> None:
        """Wake those who wait for an agent."""
        self.changed.set()
        self.changed = anyio.Event()

    def visible(self, session: Session, agent: Agent) -> bool:
        """Whether the agent exists for this client."""
        return session.sees_all or agent.provider.id in ("claude", "codex", "opencode")

    def log(self, session: Session, content: str) -> None:
        """A line for a human."""
        session.send(
            "activity_log", {"id": str(uuid4()), "timestamp": now(), "type": "error", "content": content}
        )

    # Agents

    async def launch(self, agent: Agent, *, asker: Session | None = None, resumed: bool = False) -> Process:
        """Start an agent's program and tell of it; the title of a new agent comes a moment later."""
        await self.pause(agent.provider.start_delay)
        conversation = self.store.conversations.get(agent.session_id)
        if conversation is None:
            conversation = self.store.open(
                Conversation(agent.session_id, agent.provider.id, agent.place.cwd, agent.extra_title)
            )
        title, agent.status = agent.title, "initializing"
        self.agents[agent.id] = agent
        process = agent.process = Process(self, agent, conversation)
        if not resumed:
            agent.title = None
        self.update(agent)
        agent.title = title
        self.update(agent)
        if not process.opencode:
            process.thread_started()
        agent.status = "idle"
        self.update(agent)
        if asker is not None:
            self.update(agent, only=asker)
        return process

    async def load(self, agent: Agent) -> Process:
        """The agent's process; a stored agent is loaded, which starts a new epoch."""
        if (process := agent.running()) is not None:
            return process
        async with self.twin.loading:
            if (process := agent.running()) is not None:
                return process
            items = self.replay(agent.provider, agent.session_id)
            agent.timeline, agent.replayed = Timeline(), True
            for item in items:
                agent.timeline.append(item)
            agent.lower_attention()
            agent.last_error = None
            if agent.provider.kind == "acp":
                agent.metadata.setdefault("modeId", agent.real_mode)
            return await self.launch(agent, resumed=True)

    def replay(self, provider: Provider, session_id: str) -> list[Json]:
        """What a provider gives back of a session."""
        history: History = self.twin.history or provider.history
        if history == "unloadable":
            raise CannotLoad(NO_RESUME)
        kept = self.store.conversations.get(session_id)
        if kept is None and provider.strict:
            raise CannotLoad(f"Session not found: {session_id}")
        if history == "empty" or kept is None:
            return []
        return [
            item | ({"messageId": str(uuid4())} if item["type"] == "user_message" else {})
            for item in kept.items
        ]

    def unload(self, agent: Agent, status: str = "closed") -> None:
        """End an agent's process; it is told as closed, with all that it could do."""
        if agent.process is None:
            return
        agent.process.kill()
        agent.status = status
        self.update(agent)
        agent.process = None
        self.store.save(agent.record())

    def find(self, session: Session, name: str) -> Agent | None:
        """An agent by its id, the beginning of it, or its title."""
        seen = [agent for agent in self.agents.values() if self.visible(session, agent)]
        exact = [agent for agent in seen if name in (agent.id, agent.title)]
        begun = exact or [agent for agent in seen if name and agent.id.startswith(name)]
        return begun[0] if len(begun) == 1 else None

    # Sessions

    def expire(self) -> None:
        """Forget the sessions that have been without a socket for too long."""
        now_s = anyio.current_time()
        for client_id, session in list(self.sessions.items()):
            if not session.sockets and now_s - session.left > self.twin.session_ttl:
                del self.sessions[client_id]
