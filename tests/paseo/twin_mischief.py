"""What others do to a twin's agents, and what the twin sends that nobody expects."""

import json
from pathlib import Path
from typing import Any, Literal

import anyio

from tests.paseo.twin_agents import Agent
from tests.paseo.twin_daemon import Daemon
from tests.paseo.twin_making import new_agent
from tests.paseo.twin_places import find
from tests.paseo.twin_providers import Provider
from tests.paseo.twin_timeline import Timeline

Json = dict[str, Any]

LARGEST = 100 * 1024 * 1024
"""Bytes of the largest message that a daemon takes; above it the connection is closed with 1009."""


class Mischief:
    """What may happen to a daemon that runs."""

    daemon: Daemon | None
    home: Path
    providers: dict[str, Provider]

    @property
    def running(self) -> Daemon:
        """The daemon, which must run."""
        assert self.daemon is not None, "the twin's daemon is down"
        return self.daemon

    def agent(self, agent_id: str) -> Agent:
        """One of its agents."""
        return self.running.agents[agent_id]

    def drop(self, client_id: str | None = None) -> None:
        """Drop the connections of one client, or all."""
        for session in self.running.sessions.values():
            if client_id in (None, session.client_id):
                for socket in session.sockets:
                    socket.abort()

    async def prompt(self, agent_id: str, text: str, message_id: str | None = None) -> None:
        """Another client prompts an agent, and replaces the turn that runs."""
        process = await self.running.load(self.agent(agent_id))
        await process.prompt(text, [], message_id, lambda _accepted, _error: None)

    async def cancel(self, agent_id: str) -> None:
        """Another client cancels an agent's turn."""
        process = self.agent(agent_id).process
        if process is not None and process.turn is not None:
            await process.interrupt(process.turn)

    def answer(self, agent_id: str, behavior: Literal["allow", "deny"] = "deny") -> None:
        """Another client answers the first permission that an agent waits for."""
        process = self.agent(agent_id).process
        assert process is not None and process.asked
        process.answer(next(iter(process.asked)), {"behavior": behavior})

    def new_epoch(self, agent_id: str) -> None:
        """A loaded agent's timeline starts again, without a word."""
        self.agent(agent_id).timeline = Timeline()

    async def crowd(self, count: int, rate: float, seconds: float = 3600.0) -> list[str]:
        """Foreign agents that stream, `rate` rows a second each; their ids."""
        daemon = self.running
        agents = []
        for number in range(count):
            title = f"foreign {number}"
            agents.append(new_agent(self.providers["scripted"], find(str(self.home)), {}, {}, title))
            await daemon.launch(agents[-1])
            agents[-1].status = "running"

        async def talk() -> None:
            for number in range(round(rate * seconds)):
                for agent in agents:
                    daemon.row(agent, {"type": "assistant_message", "text": f"f{number} "})
                await anyio.sleep(1 / rate)

        daemon.work(talk)
        return [agent.id for agent in agents]

    def send(self, message: Json | str | bytes) -> None:
        """Send every session a message in its envelope, or a frame as it is."""
        for session in self.running.sessions.values():
            if isinstance(message, dict):
                session.put(json.dumps({"type": "session", "message": message}))
            else:
                session.put(message)

    def flood(self, size: int = LARGEST) -> None:
        """Send everybody one frame of `size` bytes, of a type that nobody knows."""
        head, tail = '{"type":"session","message":{"type":"huge","payload":{"text":"', '"}}}'
        self.send(head + "x" * (size - len(head) - len(tail)) + tail)

    def strange(self, agent_id: str) -> None:
        """Send what a newer daemon might: unknown types, fields, statuses, events, items and opcodes."""
        agent = self.agent(agent_id)
        snapshot = agent.snapshot() | {
            "status": "dreaming",
            "activeTurn": {"turnId": "t-1"},
            "mood": [1, None],
        }
        update = {"kind": "upsert", "agent": snapshot, "project": agent.place.project(), "why": "new"}
        self.send({"type": "agent.timeline.replacement", "payload": {"agentId": agent_id, "epoch": "e"}})
        self.send({"type": "agent_update", "payload": update})
        self.send({"type": "agent_update", "payload": {"kind": "twist", "agentId": agent_id}})
        self.send({"type": "status", "payload": {"status": "weather", "value": 3}})
        self.send({"type": "no_payload_at_all"})
        self.send('{"type":"weather","value":3}')
        self.send(bytes([0x7F, 0, 1, 2, 3]))
        self.send(b"\x05\x00{}")
        self.running.stream(agent, {"type": "turn_paused", "reason": "tea"})
        self.running.row(agent, {"type": "hologram", "picture": {"x": 1}})
