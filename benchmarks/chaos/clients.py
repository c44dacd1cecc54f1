"""Clients as they are in life: each prompts and follows a session, through any replica, and never tires."""

import json
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import anyio
import httpx

from app.domain.events import TERMINAL_TYPES
from benchmarks.chaos.checker import Admitted
from benchmarks.chaos.world import KEY, World

PATIENCE = 150.0
"""Seconds after which an answer, or a turn's end, is missing for good."""


@dataclass(frozen=True)
class Script:
    """A prompt for one kind of agent; `text` is what the agent then says, if that is certain."""

    lines: str
    text: str | None = None
    cancel: bool = False
    """Whether the client cancels it after a moment."""
    limits: dict[str, float] = field(default_factory=dict)


def scripts(kind: str, key: str, count: int, *, speaks_demo: bool) -> list[Script]:
    """What a client may ask an agent of that kind; the agent says the key, which tells the prompts apart."""
    if speaks_demo:
        words = "".join(f"chunk-{number}" for number in range(1, count + 1))
        stream, hang, tool = f"stream {count} 15", "sleep 600", "run ls"
    else:
        words = "".join(f"c{number}" for number in range(count))
        stream, hang, tool = f"chunks {count} 15", "hang", "tool shell ls"
    talk = Script(f"say {key}\n{stream}", f"{key}{words}")
    return [
        *[talk] * 4,
        Script(f"say {key}\n{tool}\n{stream}", f"{key}{words}"),
        *[Script(f"say {key}\nask rm -rf build\n{stream}")] * 2,
        Script(f"say {key}\n{stream}\n{hang}", cancel=True),
        Script(f"say {key}\n{stream}\nfail out of credit"),
        Script(f"say {key}\n{stream}\ncrash") if kind != "opencode" else talk,
        Script(f"say {key}\n{hang}", limits={"deadline_s": 2.0}),
    ]


class Client:
    """One caller with one session."""

    def __init__(self, world: World, name: str, kind: str, chance: random.Random) -> None:
        self.name = name
        self.seen: list[tuple[str, int, bytes]] = []
        self.admitted: list[Admitted] = []
        self.told: list[str] = []
        """What no client may see."""
        self.answers: Counter[int] = Counter()
        self.reopened = 0
        self.stopping = False
        """Whether no more prompts are to be sent."""
        self._world = world
        self._kind = kind
        self._chance = chance
        self._ended: set[str] = set()
        self._news = anyio.Event()
        self._path = f"/v1/sessions/{name}"
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=httpx.Timeout(20, connect=2),
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )

    async def run(self) -> None:
        """Prompt until told to stop; then wait for the ends of what was admitted, and for the whole log."""
        async with self._http, anyio.create_task_group() as tasks:
            policy = {"timeout_s": 3, "on_timeout": "deny"}
            body = {"agent": self.name, "cwd": str(self._world.work), "permission_policy": policy}
            body |= self._backend
            if await self._ask("PUT", self._path, body) is None:
                return
            tasks.start_soon(self._follow)
            while not self.stopping:
                await self._turn(tasks)
            await self._until(
                lambda: {one.turn for one in self.admitted} <= self._ended, "the ends of its turns"
            )
            view = await self._ask("GET", self._path)
            if view is not None:
                await self._until(lambda: self._last >= view["last_seq"], f"its log up to {view['last_seq']}")
            tasks.cancel_scope.cancel()

    @property
    def _backend(self) -> dict[str, str]:
        return {"backend": "demo"} if self._kind == "demo" else {"backend": "paseo", "provider": self._kind}

    @property
    def _last(self) -> int:
        return self.seen[-1][1] if self.seen else 0

    async def _turn(self, tasks: Any) -> None:
        key = f"k{uuid4().hex}"
        speaks_demo = self._kind == "demo" or self._world.real is not None
        count = self._chance.randint(5, 80)
        script = self._chance.choice(scripts(self._kind, key, count, speaks_demo=speaks_demo))
        strategy = self._chance.choice(["enqueue"] * 6 + ["interrupt"])
        body = {"prompt": script.lines, "multitask_strategy": strategy, "deadline_s": 60, **script.limits}
        turn = await self._ask("POST", f"{self._path}/turns", body, **{"Idempotency-Key": key})
        if turn is None:
            return
        recorded = self._kind != "demo"
        self.admitted.append(Admitted(key, turn["turn_id"], self.name, script.text, recorded))
        if script.cancel or self._chance.random() < 0.05:
            await anyio.sleep(self._chance.uniform(0, 1.5))
            await self._ask("POST", f"/v1/turns/{turn['turn_id']}/cancel", {})
        if self._chance.random() < 0.85:  # else the next one is sent while this one runs
            await self._until(lambda: turn["turn_id"] in self._ended, f"the end of {turn['turn_id']}")

    async def _until(self, holds: Any, what: str) -> None:
        with anyio.move_on_after(PATIENCE) as patience:
            while not holds():
                await self._news.wait()
        if patience.cancelled_caught:
            self.told.append(f"{self.name}: waited {PATIENCE:.0f} s for {what}")
            self.stopping = True

    async def _ask(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """An answer of whichever replica gives one; what may be repeated is repeated."""
        with anyio.move_on_after(PATIENCE):
            while True:
                replica = self._chance.choice(self._world.replicas)
                try:
                    answer = await self._http.request(method, replica.url + path, json=body, headers=headers)
                except httpx.TransportError:
                    await anyio.sleep(self._chance.uniform(0.05, 0.5))
                    continue
                self.answers[answer.status_code] += 1
                if answer.is_success:
                    return answer.json()
                code = answer.json().get("code")
                if answer.status_code not in (409, 410, 502, 503):
                    self.told.append(f"{self.name}: {method} {path} was answered: {answer.text[:300]}")
                    return None
                if answer.status_code in (409, 410) and code != "request_in_progress":
                    return None  # it was too late, or somebody else was first
                await anyio.sleep(self._chance.uniform(0.1, 0.5))
        self.told.append(f"{self.name}: {method} {path} got no answer in {PATIENCE:.0f} s")
        self.stopping = True
        return None

    async def _follow(self) -> None:
        """Follow the session from the last event that came, over every end of a stream."""
        async with anyio.create_task_group() as tasks:
            while True:
                replica = self._chance.choice(self._world.replicas)
                headers = {"Last-Event-ID": str(self._last)} if self.seen else {}
                with suppress(httpx.TransportError), anyio.move_on_after(self._chance.uniform(1, 20)):
                    url = f"{replica.url}{self._path}/events/stream"
                    async with self._http.stream("GET", url, headers=headers) as response:
                        if response.status_code == 200:
                            self.reopened += 1
                            await self._read(response, tasks)
                await anyio.sleep(self._chance.uniform(0.02, 0.3))

    async def _read(self, response: httpx.Response, tasks: Any) -> None:
        rest = b""
        async for chunk in response.aiter_raw():
            *blocks, rest = (rest + chunk).split(b"\n\n")
            for block in blocks:
                head = block.split(b"\n", 2)
                if len(head) == 3 and head[0].startswith(b"id: "):
                    self._event(int(head[0][4:]), head[1][7:].decode(), block + b"\n\n", tasks)

    def _event(self, seq: int, type_: str, raw: bytes, tasks: Any) -> None:
        self.seen.append((self.name, seq, raw))
        if type_ in TERMINAL_TYPES or type_ == "permission.requested":
            event = json.loads(raw.split(b"\ndata: ", 1)[1])
            if type_ in TERMINAL_TYPES:
                self._ended.add(event["turn_id"])
            else:
                tasks.start_soon(self._answer, event["data"]["permission_id"])
        self._news.set()
        self._news = anyio.Event()

    async def _answer(self, permission: str) -> None:
        """Allow or deny; now and then nobody answers, or two do at once."""
        path = f"/v1/permissions/{permission}/respond"
        async with anyio.create_task_group() as answering:
            for _ in range(self._chance.choice([0, 1, 1, 1, 2])):
                answering.start_soon(
                    self._ask, "POST", path, {"outcome": self._chance.choice(["allow", "deny"])}
                )
