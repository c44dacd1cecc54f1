"""What outlives a twin's daemon: its own records, and the sessions that the providers keep."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import quote

Json = dict[str, Any]


@dataclass
class Conversation:
    """A session as its provider keeps it: what was said, cut as it was said."""

    id: str
    provider: str
    cwd: str
    title: str | None = None
    items: list[Json] = field(default_factory=list)


class Store:
    """The folder of a daemon, or nothing but memory."""

    def __init__(self, home: Path | None) -> None:
        self._home = home
        self.agents: dict[str, Json] = {}
        self.conversations: dict[str, Conversation] = {}
        self.directories: set[str] = set()
        """Where agents are listed."""
        self.server_id = f"srv_{token_hex(6)}"
        if home is None:
            return
        for name in ("agents", "conversations"):
            (home / name).mkdir(parents=True, exist_ok=True)
        known = home / "directories.json"
        self.directories = set(json.loads(known.read_text())) if known.exists() else set()
        identity = home / "server-id"
        if identity.exists():
            self.server_id = identity.read_text()
        identity.write_text(self.server_id)
        for path in sorted((home / "agents").glob("*.json")):
            record = json.loads(path.read_text())
            self.agents[record["id"]] = record
        for path in (home / "conversations").glob("*.jsonl"):
            # The last line may be torn where the process was killed.
            lines = path.read_text().split("\n")[:-1]
            if lines:
                items = [json.loads(line) for line in lines[1:]]
                found = Conversation(**json.loads(lines[0]) | {"items": items})
                self.conversations[found.id] = found

    def know(self, directory: str) -> None:
        """Keep a directory in which agents are listed."""
        self.directories.add(directory)
        if self._home is not None:
            (self._home / "directories.json").write_text(json.dumps(sorted(self.directories)))

    def save(self, record: Json) -> None:
        """Keep an agent's record, whole or as it was before."""
        self.agents[record["id"]] = record
        if self._home is not None:
            path = self._home / "agents" / f"{record['id']}.json"
            path.with_suffix(".new").write_text(json.dumps(record))
            path.with_suffix(".new").replace(path)

    def forget(self, agent_id: str) -> None:
        """Drop an agent's record; its conversation stays with the provider."""
        self.agents.pop(agent_id, None)
        if self._home is not None:
            (self._home / "agents" / f"{agent_id}.json").unlink(missing_ok=True)

    def open(self, conversation: Conversation) -> Conversation:
        """Keep a new conversation."""
        self.conversations[conversation.id] = conversation
        if self._home is not None:
            head = asdict(conversation)
            del head["items"]
            self._path(conversation).write_text(json.dumps(head) + "\n")
        return conversation

    def add(self, conversation: Conversation, item: Json) -> None:
        """Keep one more thing that was said."""
        conversation.items.append(item)
        if self._home is not None:
            with self._path(conversation).open("a") as file:
                file.write(json.dumps(item) + "\n")

    def _path(self, conversation: Conversation) -> Path:
        assert self._home is not None
        return self._home / "conversations" / f"{quote(conversation.id, safe='')}.jsonl"
