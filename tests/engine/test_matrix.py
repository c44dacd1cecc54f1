"""What a second prompt gets: every strategy at every moment of the open turn, and at its very end."""

import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from app.domain.events import TERMINAL_TYPES
from tests.engine.test_turns import asked, respond, seen, told
from tests.house import PATIENCE, House
from tests.paseo.twin import Twin
from tests.system.test_paseo_recovery import daemon_house

STRATEGIES = ("reject", "enqueue", "interrupt")

MATRIX = """
moment          strategy   answer                  turns in the order of their starts, and their ends
idle            reject     202                     new completed
idle            enqueue    202                     new completed
idle            interrupt  202                     new completed
running         reject     409 session_busy open   open cancelled caller
running         enqueue    202                     open cancelled caller, new completed
running         interrupt  202                     open cancelled interrupt, new completed
queued          reject     409 session_busy open   open cancelled caller, behind completed
queued          enqueue    202                     open cancelled caller, behind completed, new completed
queued          interrupt  202                     open cancelled interrupt, new completed, behind completed
requires_action reject     409 session_busy open   open completed
requires_action enqueue    202                     open completed, new completed
requires_action interrupt  202                     open cancelled interrupt, new completed
down            reject     503 backend_unavailable
down            enqueue    202                     new completed
down            interrupt  202                     new completed
queued_down     reject     409 session_busy open   open completed
queued_down     enqueue    202                     open completed, new completed
queued_down     interrupt  202                     new completed, open completed
reconciling     reject     409 session_busy open   open cancelled caller
reconciling     enqueue    202                     open cancelled caller, new completed
reconciling     interrupt  202                     open cancelled interrupt, new completed
retrying        reject     409 session_busy open   open completed
retrying        enqueue    202                     open completed, new completed
retrying        interrupt  202                     open cancelled interrupt, new completed
stopping        reject     409 session_busy open   open cancelled caller
stopping        enqueue    202                     open cancelled caller, new completed
stopping        interrupt  202                     open cancelled caller, new completed
foreign         reject     409 session_busy null
foreign         enqueue    202                     new completed
foreign         interrupt  202                     new completed
closing         reject     409 session_closed      open completed
closing         enqueue    409 session_closed      open completed
closing         interrupt  409 session_closed      open completed
closed          reject     409 session_closed
closed          enqueue    409 session_closed
closed          interrupt  409 session_closed
"""
"""`behind` was queued behind `open`, `new` is the prompt in question; `open`, `null`: `open_turn_id`."""

COLUMNS = (0, 16, 27, 51)
"""Where each column of the matrix begins."""


def matrix() -> dict[str, dict[str, tuple[str, str]]]:
    """By moment and strategy: the answer and the story."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for line in MATRIX.strip().splitlines()[1:]:
        moment, strategy, answer, story = (
            line[start:end].strip() for start, end in zip(COLUMNS, (*COLUMNS[1:], None), strict=True)
        )
        found.setdefault(moment, {})[strategy] = answer, story
    return found


@dataclass
class Stage:
    """A session for each strategy, all at the same moment."""

    house: House
    twin: Twin
    sessions: dict[str, dict[str, Any]] = field(default_factory=dict)
    turns: dict[str, dict[str, str]] = field(default_factory=lambda: {each: {} for each in STRATEGIES})
    """By strategy and role: the turns' ids."""

    async def each(self, act: Callable[[str, str], Coroutine[Any, Any, object]]) -> None:
        """Do something in every session at the same time, given its strategy and its id."""
        async with anyio.create_task_group() as tasks:
            for strategy in STRATEGIES:
                tasks.start_soon(act, strategy, self.sessions[strategy]["session_id"])

    async def open(self, agent: str) -> None:
        """A session for each strategy."""
        for strategy in STRATEGIES:
            self.sessions[strategy] = await self.house.ensure(strategy, agent=agent)

    async def prompt(self, role: str, prompt: str, strategy: str = "enqueue") -> None:
        """The same prompt in every session."""

        async def one(name: str, session: str) -> None:
            turn = await self.house.prompt(session, prompt, multitask_strategy=strategy)
            self.turns[name][role] = turn["turn_id"]

        await self.each(one)

    async def sees(self, event: str) -> None:
        """Wait until every session has told that."""
        await self.each(lambda _, session: seen(self.house, session, event))

    async def cut(self) -> None:
        """The daemon can be reached no more, and the health ticks know."""
        self.twin.faults.refuse_connections = True
        self.twin.drop()
        await self.is_reachable(False)

    async def mend(self) -> None:
        """The daemon can be reached again, and the link is up."""
        self.twin.faults.refuse_connections = False
        await self.is_reachable(True)

    async def is_reachable(self, up: bool) -> None:
        """Wait until the health ticks say so."""
        with anyio.fail_after(PATIENCE):
            while (await self.house.get("/v1/backends/paseo"))["status"] != ("up" if up else "down"):
                await self.house.service.rooms.healths.look()


@asynccontextmanager
async def idle(stage: Stage) -> AsyncIterator[None]:
    """Nothing is open."""
    await stage.open("demo")
    yield


@asynccontextmanager
async def running(stage: Stage) -> AsyncIterator[None]:
    """The agent works until it is cancelled."""
    await stage.open("demo")
    await stage.prompt("open", "say begun\nsleep 600")
    await stage.sees("message.delta")
    yield
    await stage.each(lambda name, _: stage.house.post(f"/v1/turns/{stage.turns[name]['open']}/cancel"))


@asynccontextmanager
async def queued(stage: Stage) -> AsyncIterator[None]:
    """Another turn waits behind the one that runs."""
    async with running(stage):
        await stage.prompt("behind", "say behind")
        yield


@asynccontextmanager
async def requires_action(stage: Stage) -> AsyncIterator[None]:
    """A person is asked, and allows in the end."""
    await stage.open("demo")
    await stage.prompt("open", "ask Delete?")
    permissions: dict[str, str] = {}

    async def wait(name: str, session: str) -> None:
        permissions[name] = await asked(stage.house, session)

    await stage.each(wait)
    yield
    await stage.each(lambda name, _: respond(stage.house, permissions[name], "allow"))


@asynccontextmanager
async def down(stage: Stage) -> AsyncIterator[None]:
    """Nothing is open, and the daemon is away."""
    await stage.open("scripted")
    await stage.cut()
    yield
    await stage.mend()


@asynccontextmanager
async def queued_down(stage: Stage) -> AsyncIterator[None]:
    """A turn waits for the daemon."""
    async with down(stage):
        await stage.prompt("open", "say open")
        yield


@asynccontextmanager
async def reconciling(stage: Stage) -> AsyncIterator[None]:
    """The link was cut while a turn ran; the turn goes on behind it until somebody cancels it."""
    await stage.open("scripted")
    await stage.prompt("open", "say begun\nhang")
    await stage.sees("message.delta")
    await stage.cut()
    await stage.sees("turn.reconciling")
    yield
    await stage.mend()
    for name in ("reject", "enqueue"):
        await stage.house.post(f"/v1/turns/{stage.turns[name]['open']}/cancel")


@asynccontextmanager
async def retrying(stage: Stage) -> AsyncIterator[None]:
    """The link was cut before the attempt was sent, and does not come back."""
    await stage.open("scripted")
    stage.twin.faults.ignored = {"clear_agent_attention"}
    await stage.prompt("open", "say open")
    await stage.twin.record.wait("clear_agent_attention", 3)
    await stage.cut()
    stage.twin.faults.ignored = set()
    await stage.sees("turn.retrying")
    yield
    await stage.mend()


@asynccontextmanager
async def stopping(stage: Stage) -> AsyncIterator[None]:
    """A caller has cancelled, and the agent takes its time."""
    await stage.open("scripted")
    await stage.prompt("open", "say begun\nstubborn 1800\nsay never")
    await stage.sees("message.delta")
    async with anyio.create_task_group() as cancelling:
        for name in STRATEGIES:
            cancelling.start_soon(stage.house.post, f"/v1/turns/{stage.turns[name]['open']}/cancel")
        await stage.twin.record.wait("cancel_agent_request", 3)
        yield


@asynccontextmanager
async def foreign(stage: Stage) -> AsyncIterator[None]:
    """Somebody else has prompted the agent."""
    await stage.open("scripted")
    agents = {name: session["agent_session_id"] for name, session in stage.sessions.items()}
    await stage.each(lambda name, _: stage.twin.prompt(agents[name], "say theirs\nhang"))
    await stage.sees("notice")
    assert {s["activity"] for s in (await stage.house.get("/v1/sessions"))["items"]} == {"running"}
    yield
    await stage.twin.cancel(agents["enqueue"])
    await stage.twin.record.wait("cancel_agent_request", agentId=agents["interrupt"])
    assert not stage.twin.record.of("cancel_agent_request", agentId=agents["enqueue"])


@asynccontextmanager
async def closing(stage: Stage) -> AsyncIterator[None]:
    """A close waits for the end of the turn."""
    async with requires_action(stage):

        async def drain(_: str, session: str) -> None:
            answer = await stage.house.post(f"/v1/sessions/{session}/close", {"mode": "drain"})
            assert (answer.status_code, answer.json()["status"]) == (202, "closing")

        await stage.each(drain)
        yield
    await stage.sees("session.closed")


@asynccontextmanager
async def closed(stage: Stage) -> AsyncIterator[None]:
    """The session is closed."""
    await stage.open("demo")
    await stage.each(lambda _, session: stage.house.post(f"/v1/sessions/{session}/close", {}))
    yield


MOMENTS: list[Callable[[Stage], AbstractAsyncContextManager[None]]] = [
    idle,
    running,
    queued,
    requires_action,
    down,
    queued_down,
    reconciling,
    retrying,
    stopping,
    foreign,
    closing,
    closed,
]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
async def test_every_strategy_at_every_moment_is_answered_as_the_matrix_says(
    moment: Callable[[Stage], AbstractAsyncContextManager[None]], database_url: str, folder: Path
) -> None:
    """The answer, which turn it names, the order of the starts, and who is cancelled by what."""
    expected = matrix()[moment.__name__]
    async with daemon_house(database_url, folder, window=0.005) as (house, twin):
        stage = Stage(house, twin)
        answers: dict[str, Any] = {}

        async def prompt(strategy: str, session: str) -> None:
            body = {"prompt": "say new", "multitask_strategy": strategy}
            answer = answers[strategy] = await house.post(f"/v1/sessions/{session}/turns", body)
            if answer.is_success:
                stage.turns[strategy]["new"] = answer.json()["turn_id"]

        async with moment(stage):
            await stage.each(prompt)
        for strategy, (answer, story) in expected.items():
            turns = stage.turns[strategy]
            assert worded(answers[strategy], turns) == answer, strategy
            for turn in turns.values():
                await told(house, turn)
            assert await story_of(house, strategy, turns) == story, strategy
        sent = [one.message["messageId"] for one in twin.record.of("send_agent_message_request")]
        assert len(sent) == len(set(sent))


def worded(answer: Any, turns: dict[str, str]) -> str:
    """An answer in the matrix's words."""
    found = answer.json()
    if answer.is_success:
        return str(answer.status_code)
    words = [str(answer.status_code), found["code"]]
    if found["code"] == "session_busy":
        names = {turn: role for role, turn in turns.items()}
        words.append("null" if found["open_turn_id"] is None else names[found["open_turn_id"]])
    return " ".join(words)


async def story_of(house: House, session: str, turns: dict[str, str]) -> str:
    """A session's turns in the matrix's words; each ended before the next one started."""
    roles = {turn: role for role, turn in turns.items()}
    log = [event for event in await house.log(session) if event["turn_id"] in roles]
    first: dict[str, str] = {}
    running = None
    for event in log:
        turn = event["turn_id"]
        if event["type"] == "turn.started":
            assert running in (None, turn)
            running = turn
            first.setdefault(turn, roles[turn])
        elif event["type"] in TERMINAL_TYPES:
            assert running == turn
            running = None
            words = [first[turn], event["type"].removeprefix("turn."), event["data"].get("cause")]
            first[turn] = " ".join(word for word in words if word)
    return ", ".join(first.values())


# The instant of the end.

SESSIONS, ROUNDS = 5, 3
"""Races of each strategy with each agent: so many sessions at a time, so many one after the other."""


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("agent", ["demo", "scripted"])
async def test_prompt_at_the_instant_of_completion_is_neither_lost_nor_doubled(
    agent: str, strategy: str, database_url: str, folder: Path
) -> None:
    """Just before the end and just after it: what is admitted runs once, what is refused was in the way."""
    async with daemon_house(database_url, folder, window=0.005) as (house, twin):
        sent: list[str] = []

        async def race(number: int) -> None:
            session = (await house.ensure(f"s-{number}", agent=agent))["session_id"]
            takes = await _seconds_of(house, session)
            admitted: dict[str, str] = {}
            for round_ in range(ROUNDS):
                first = await house.prompt(session, f"say first-{round_}", multitask_strategy="enqueue")
                admitted[first["turn_id"]] = f"first-{round_}"
                await anyio.sleep(takes * random.uniform(0.0, 1.5))
                body = {"prompt": f"say second-{round_}", "multitask_strategy": strategy}
                answer = await house.post(f"/v1/sessions/{session}/turns", body)
                if answer.is_success:
                    admitted[answer.json()["turn_id"]] = f"second-{round_}"
                else:
                    assert (strategy, answer.json()["code"]) == ("reject", "session_busy")
                    assert answer.json()["open_turn_id"] == first["turn_id"]
                for turn in list(admitted)[-2:]:
                    await house.ended(turn)
            await _assert_each_ran_once(house, session, admitted, strategy)
            sent.extend(admitted)

        async with anyio.create_task_group() as tasks:
            for number in range(SESSIONS):
                tasks.start_soon(race, number)
        if agent == "scripted":
            names = [one.message["messageId"] for one in twin.record.of("send_agent_message_request")]
            assert len(names) == len(set(names))
            assert set(sent) <= {name.rpartition(".")[0] for name in names}


async def _seconds_of(house: House, session: str) -> float:
    """How long a short turn takes from its admission to its end."""
    begun = anyio.current_time()
    await house.run(session, "say warm")
    return anyio.current_time() - begun


async def _assert_each_ran_once(house: House, session: str, admitted: dict[str, str], strategy: str) -> None:
    """Every admitted turn is queued, started and ended once, and says its own words at most once."""
    open_: list[str] = []
    types: dict[str, list[str]] = {}
    said: dict[str, str] = {}
    for event in await house.log(session):
        turn, type_ = event["turn_id"], event["type"]
        if turn not in admitted:
            continue
        types.setdefault(turn, []).append(type_)
        if type_ == "turn.queued":
            if strategy == "reject":
                assert not open_
            open_.append(turn)
        elif type_ in TERMINAL_TYPES:
            open_.remove(turn)
        elif type_ == "message.delta":
            said[turn] = said.get(turn, "") + event["data"]["text"]
    assert types.keys() == admitted.keys()
    for turn, words in admitted.items():
        ends = [type_ for type_ in types[turn] if type_ in TERMINAL_TYPES]
        assert ends == types[turn][-1:]
        assert [types[turn].count(type_) for type_ in ("turn.queued", "turn.started")] == [1, 1]
        allowed = {"turn.completed"} if strategy != "interrupt" else {"turn.completed", "turn.cancelled"}
        assert set(ends) <= allowed
        if ends == ["turn.completed"]:
            assert said[turn] == words
