"""A request that is being handled, and how it is answered."""

from dataclasses import dataclass
from typing import Any

from tests.paseo.twin_agents import Agent
from tests.paseo.twin_daemon import Daemon
from tests.paseo.twin_wire import Session

Json = dict[str, Any]


class HandlerError(Exception):
    """The daemon's own code failed: an `rpc_error`, and a line in the log."""


@dataclass
class Asking:
    """A request that is being handled."""

    daemon: Daemon
    session: Session
    message: Json

    @property
    def agent_id(self) -> str:
        """The agent that it is about."""
        return str(self.message["agentId"])

    def reply(self, kind: str, **payload: Any) -> None:
        """Answer, unless the answer is to be lost."""
        faults, asked = self.daemon.faults, str(self.message["type"])
        if faults.take("drop_after", asked):
            for socket in self.session.sockets:
                socket.abort()
        elif asked not in faults.never:
            self.session.send(kind, {**payload, "requestId": self.message["requestId"]})

    def log(self, content: str) -> None:
        """Say it to a human only."""
        self.daemon.log(self.session, content)

    def known(self, text: str = "Agent not found: {}") -> Agent | None:
        """The agent with exactly this id; without one a human is told."""
        agent = self.daemon.agents.get(self.agent_id)
        if agent is None:
            self.log(text.format(self.agent_id))
        return agent
