"""The log under concurrency and faults: no gap, no double, no late writer, nothing lost or said twice."""

import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain.errors import DatabaseUnavailable
from app.domain.events import MessageDelta, Notice, TurnCancelled, TurnCompleted
from app.domain.ids import Owner, Seq, SessionId, SessionKey, TurnId
from app.domain.text import clean
from app.store import eventlog, migrations, sessions
from app.store.bell import Bell, Wakeup
from app.store.database import Address, Database, ring_after_commit
from app.store.embedded import EmbeddedPostgres
from app.store.eventlog import Draft, EventLog, LeaseLost, Logged
from app.store.leases import Lease, Leases

PATIENCE = 20.0
"""Seconds after which a test that waits has failed."""


class Counting(Database):
    """Knows how often somebody asked it."""

    asked = 0

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncSession]:
        """A transaction."""
        self.asked += 1
        async with super().begin() as db:
            yield db

    @asynccontextmanager
    async def raw(self) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        """A connection."""
        self.asked += 1
        async with super().raw() as connection:
            yield connection


class Store:
    """A process's part of the store."""

    def __init__(self, address: Address, name: str = "one") -> None:
        self.bell = Bell()
        self.database = Counting(address, address, self.bell, pool_size=8)
        self.log = EventLog(self.database)
        self.leases = Leases(self.database, name, ["demo"], [])
        self.listening = anyio.Event()
        """Set once the bells of other processes are heard."""

    def rang(self, session: SessionKey | None) -> None:
        if session is None:
            self.listening.set()

    async def session(self, name: str) -> SessionKey:
        """A new session that wants a host."""
        async with self.database.begin() as db:
            key = await sessions.make(
                db,
                {
                    "owner": Owner("default"),
                    "session_id": name,
                    "chat_id": name,
                    "agent": "demo",
                    "backend": "demo",
                    "provider": "demo",
                    "creation_key": name,
                    "cwd": "/",
                    "agent_session_id": name,
                    "wanted": True,
                },
            )
        assert key is not None
        return key

    async def hosted(self, name: str) -> Lease:
        """A new session, hosted here."""
        key = await self.session(name)
        (lease,) = await self.leases.claim(only=key)
        return lease

    async def append(self, lease: Lease, *drafts: Draft) -> Seq:
        with anyio.fail_after(PATIENCE):
            return await self.log.append(lease.session, lease.generation, drafts)

    async def all(self, session: SessionKey, page: int = 500) -> list[Logged]:
        found: list[Logged] = []
        while rows := await self.log.read(session, after=found[-1].seq if found else Seq(0), limit=page):
            found += rows
        return found


@asynccontextmanager
async def opened(address: Address, name: str = "one", *, listens: bool = False) -> AsyncIterator[Store]:
    store = Store(address, name)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.log.run)
        try:
            if listens:
                with store.bell.watch(store.rang), anyio.fail_after(PATIENCE):
                    tasks.start_soon(store.database.listen_for_ever)
                    await store.listening.wait()
            yield store
        finally:
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await store.database.aclose()


@pytest.fixture
async def store(database_address: Address) -> AsyncIterator[Store]:
    """One process's part of the store."""
    async with opened(database_address) as running:
        yield running


@asynccontextmanager
async def admin(address: Address) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection of the test's own."""
    connection = await asyncpg.connect(**address.arguments)
    try:
        yield connection
    finally:
        await connection.close()


def said(text: str, turn: str | None = None) -> Draft:
    event = MessageDelta(message_id="m", role="assistant", text=text)
    return eventlog.draft(SessionId("s"), TurnId(turn) if turn else None, event)


def texts(events: list[Logged]) -> list[str]:
    return [msgspec.json.decode(event.data)["data"]["text"] for event in events]


def assert_unbroken(events: list[Logged]) -> None:
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


async def test_p40_concurrent_appends_leave_no_gap_and_no_double(database_address: Address) -> None:
    """Hosts and admissions of two processes write to many sessions; a reader by cursor misses nothing."""
    async with opened(database_address) as one, opened(database_address, "two") as two:
        held = [
            (store, await store.hosted(f"s-{n}"))
            for n in range(10)
            for store in (one, two)
            if n % 2 == (store is two)
        ]
        read: dict[SessionKey, list[Logged]] = {lease.session: [] for _, lease in held}
        done = anyio.Event()

        async def host(store: Store, lease: Lease) -> None:
            for n in range(40):
                await store.append(lease, *(said(f"h{n}.{k}") for k in range(n % 4)))

        async def admit(store: Store, lease: Lease) -> None:
            for n in range(15):
                async with store.database.begin() as db:
                    await eventlog.record(db, lease.session, said(f"a{n}"))

        async def follow(store: Store, lease: Lease) -> None:
            seen = read[lease.session]
            while True:
                last = done.is_set()
                rows = await store.log.read(lease.session, after=seen[-1].seq if seen else Seq(0), limit=7)
                seen += rows
                if not rows and last:
                    return
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as following:
            for store, lease in held:
                following.start_soon(follow, two if store is one else one, lease)
            async with anyio.create_task_group() as writing:
                for store, lease in held:
                    writing.start_soon(host, store, lease)
                    writing.start_soon(admit, two if store is one else one, lease)
            done.set()
        expected = sorted(
            [f"h{n}.{k}" for n in range(40) for k in range(n % 4)] + [f"a{n}" for n in range(15)]
        )
        for _, lease in held:
            assert_unbroken(read[lease.session])
            written = texts(read[lease.session])
            assert sorted(written) == expected
            assert [t for t in written if t[0] == "h"] == [
                f"h{n}.{k}" for n in range(40) for k in range(n % 4)
            ]


async def test_p56_host_that_lost_its_lease_cannot_write_and_others_can(database_address: Address) -> None:
    """The generation fences it out of its own session's log; the rest of its batch is committed."""
    async with opened(database_address) as old, opened(database_address, "two") as new:
        lost, kept = await old.hosted("lost"), await old.hosted("kept")
        await old.append(lost, said("before"))
        async with admin(database_address) as db:
            await db.execute(
                "UPDATE agent_sessions SET host_until = now() - interval '1 s' WHERE id = $1", lost.session
            )
        (taken,) = await new.leases.claim(only=lost.session)
        assert taken.generation == lost.generation + 1
        outcomes: dict[str, Any] = {}

        async def append(name: str, lease: Lease) -> None:
            try:
                outcomes[name] = await old.append(lease, said(name))
            except LeaseLost:
                outcomes[name] = "lost"

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(append, "late", lost)
            tasks.start_soon(append, "fine", kept)
        assert outcomes == {"late": "lost", "fine": 1}
        await new.append(taken, said("after"))
        assert texts(await new.all(lost.session)) == ["before", "after"]
        await old.leases.release(lost)  # a late release frees nobody else's lease
        await new.append(taken, said("still"))
        with pytest.raises(LeaseLost):
            await old.append(Lease(SessionKey(10**9), 1), said("nowhere"))


async def test_whoever_hands_a_session_back_with_something_to_do_rings_for_a_taker(
    database_address: Address,
) -> None:
    """Nobody waits for the poll; one that has nothing to do wakes nobody."""
    async with opened(database_address) as old, opened(database_address, "two", listens=True) as new:
        idle, busy = await old.hosted("idle"), await old.hosted("busy")
        offered = anyio.Event()
        taken: list[SessionKey] = []

        def take() -> None:
            taken.append(busy.session)
            offered.set()

        new.bell.watch_free(take)
        await old.leases.release(idle)
        await old.leases.release(busy, wanted=True)
        with anyio.fail_after(PATIENCE):
            await offered.wait()
        assert taken == [busy.session]
        (lease,) = await new.leases.claim(only=busy.session)
        assert lease.generation == busy.generation + 1


async def test_lease_that_runs_is_taken_by_nobody(database_address: Address) -> None:
    """Only one of many claims gets a session."""
    async with opened(database_address) as one, opened(database_address, "two") as two:
        keys = [await one.session(f"s-{n}") for n in range(20)]
        got: list[Lease] = []

        async def claim(store: Store) -> None:
            got.extend(await store.leases.claim())

        async with anyio.create_task_group() as tasks:
            for n in range(6):
                tasks.start_soon(claim, (one, two)[n % 2])
        assert sorted(lease.session for lease in got) == sorted(keys)
        assert await one.leases.claim() == []
        assert len(await one.leases.renew()) + len(await two.leases.renew()) == 20


@pytest.mark.parametrize("moment", ["before the commit", "after the commit"])
async def test_append_whose_connection_is_killed_is_written_once(
    store: Store, database_address: Address, moment: str
) -> None:
    """A batch whose commit was answered by silence is found out, not repeated."""
    lease, other = await store.hosted("s-1"), await store.hosted("s-2")
    await store.append(lease, said("first"))
    killed = 0

    async def alongside(connection: Any) -> None:
        nonlocal killed
        if killed:
            return
        killed = connection.get_server_pid()
        async with admin(database_address) as db:
            if moment == "after the commit":
                await connection.execute("COMMIT")  # the server commits, and the answer is lost
            await db.execute("SELECT pg_terminate_backend($1)", killed)
            while await db.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", killed):
                pass

    stalls: list[bool] = []
    store.log.on_stall.append(stalls.append)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.append, other, said("beside"))
            await store.log.append(
                lease.session, lease.generation, [said("second"), said("third")], alongside
            )
    await store.append(lease, said("fourth"))
    assert killed
    assert stalls == [True, False]
    assert texts(await store.all(lease.session)) == ["first", "second", "third", "fourth"]
    assert_unbroken(await store.all(lease.session))
    assert texts(await store.all(other.session)) == ["beside"]


async def test_appends_go_on_while_connections_are_killed_at_random(
    store: Store, database_address: Address
) -> None:
    """Nothing is lost, doubled or reordered, wherever the blow falls."""
    held = [await store.hosted(f"s-{n}") for n in range(5)]
    done = anyio.Event()

    async def write(lease: Lease) -> None:
        for n in range(60):
            await store.append(lease, said(f"{n}.0"), said(f"{n}.1"))

    async def kill() -> None:
        async with admin(database_address) as db:
            while not done.is_set():
                await db.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE pid <> pg_backend_pid() AND datname = current_database()"
                )
                await anyio.sleep(0.03)

    async with anyio.create_task_group() as killing:
        killing.start_soon(kill)
        async with anyio.create_task_group() as writing:
            for lease in held:
                writing.start_soon(write, lease)
        done.set()
    for lease in held:
        events = []
        with anyio.fail_after(PATIENCE):
            events = await store.database.retrying(lambda key=lease.session: store.all(key))  # type: ignore[misc]
        assert texts(events) == [f"{n}.{k}" for n in range(60) for k in range(2)]
        assert_unbroken(events)


async def test_what_the_database_refuses_harms_only_its_own_writer(store: Store) -> None:
    """One write of a batch is wrong; the others are committed."""
    good, bad = await store.hosted("good"), await store.hosted("bad")
    outcomes: list[str] = []

    async def append(lease: Lease, draft: Draft) -> None:
        try:
            await store.append(lease, draft)
            outcomes.append("fine")
        except Exception as error:
            outcomes.append(type(error).__name__)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(append, bad, Draft("notice", None, "nul \x00"))
        tasks.start_soon(append, good, said("fine"))
    assert outcomes.count("fine") == 1
    assert len(outcomes) == 2
    assert texts(await store.all(good.session)) == ["fine"]
    assert await store.all(bad.session) == []
    assert await store.append(bad, said("next")) == 1


@given(text=st.text(st.characters(exclude_categories=[]), max_size=40))
@settings(max_examples=200)
def test_p41_any_text_can_be_logged(text: str) -> None:
    """NUL and lone surrogates are replaced; the rest is as it was; no line can be split."""
    body = said(clean(text)).body
    body.encode()
    assert "\x00" not in body
    assert "\\u0000" not in body
    assert len(body.splitlines()) == 1
    found = msgspec.json.decode("{" + body)["data"]["text"]
    assert found == "".join("\ufffd" if c == "\x00" or "\ud800" <= c <= "\udfff" else c for c in text)


async def test_p42_what_is_read_back_is_byte_for_byte_what_was_written(store: Store) -> None:
    """From memory, from the database and from another process: one text."""
    hard = [
        "é\u2028\u2029\x85",
        '"\\/\b\f\n\r\t',
        "😀\ufffd\ufeff",
        '{"b":1,"a":2,"b":3}',
        " " * 5,
        "x" * 70_000,
    ]
    lease = await store.hosted("s-1")
    with store.bell.listen(lease.session):
        drafts = [said(text) for text in hard]
        await store.append(lease, *drafts)
        in_memory = await store.all(lease.session)
    store.log.forget_unfollowed()
    assert await store.all(lease.session) == in_memory
    assert await store.all(lease.session, page=1) == in_memory
    assert [event.body for event in in_memory] == [draft.body for draft in drafts]
    assert texts(in_memory) == hard
    assert [msgspec.json.decode(event.data)["seq"] for event in in_memory] == [1, 2, 3, 4, 5, 6]


async def test_memory_and_database_read_the_same(store: Store) -> None:
    """Whatever the cursor and the page, also when admissions write in between and old events leave memory."""
    lease = await store.hosted("s-1")
    with store.bell.listen(lease.session):
        for n in range(30):
            await store.append(lease, *(said(f"{n}.{k}" + "x" * 12_000) for k in range(5)))
            if n % 10 == 5:
                async with store.database.begin() as db:
                    await eventlog.record(db, lease.session, said(f"admitted {n}"))
        for after in range(0, 154, 7):
            for limit in (1, 3, 500):
                async with store.database.begin() as db:
                    rows = await eventlog.read_page(db, lease.session, after=Seq(after), limit=limit)
                assert await store.log.read(lease.session, after=Seq(after), limit=limit) == rows


async def test_memory_of_all_sessions_together_is_bounded(store: Store) -> None:
    """What was not written to for longest leaves it, and is read from the database."""
    events = EventLog(store.database, tails_bytes=50_000)
    held = [await store.hosted(f"s-{n}") for n in range(5)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(events.run)
        with ExitStack() as stack:
            for lease in held:
                stack.enter_context(store.bell.listen(lease.session))
            with anyio.fail_after(PATIENCE):
                for lease in held:
                    for n in range(3):
                        await events.append(lease.session, lease.generation, [said(f"{n}" + "x" * 5000)])
            in_memory = []
            for lease in held:
                asked = store.database.asked
                assert_unbroken(found := await events.read(lease.session, after=Seq(0)))
                assert len(found) == 3
                in_memory.append(store.database.asked == asked)
        tasks.cancel_scope.cancel()
    assert in_memory == [False, False, False, False, True]


async def test_p49_killed_listener_misses_nothing(database_address: Address) -> None:
    """The connection that listens is killed; it listens again, and everybody looks for what was missed."""
    async with opened(database_address) as writer, opened(database_address, "two", listens=True) as reader:
        lease = await writer.hosted("s-1")
        with reader.bell.listen(lease.session) as wakeup, anyio.fail_after(PATIENCE):
            await writer.append(lease, said("one"))
            while texts(await reader.all(lease.session)) != ["one"]:
                await wakeup.wait()
            async with admin(database_address) as db:
                killed = await db.fetchval(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND query LIKE 'LISTEN%'"
                )
                assert killed == 1
                await writer.append(lease, said("two"))
            while texts(await reader.all(lease.session)) != ["one", "two"]:
                await wakeup.wait()
            await writer.append(lease, said("three"))
            while texts(await reader.all(lease.session)) != ["one", "two", "three"]:
                await wakeup.wait()


async def head_known(store: Store, session: SessionKey, last: int) -> None:
    """Return once the process knows that the log reaches to there."""
    with anyio.fail_after(PATIENCE):
        while store.bell.head(session) != last:
            await anyio.lowlevel.checkpoint()


async def rings(wakeup: Wakeup) -> bool:
    """Whether it has rung since the last wait."""
    with anyio.move_on_after(0.05):
        await wakeup.wait()
        return True
    return False


async def test_follower_at_the_end_asks_nobody_and_is_woken_once(database_address: Address) -> None:
    """By commits of this process and of another one, of the host and of an admission."""
    async with (
        opened(database_address, listens=True) as here,
        opened(database_address, "two", listens=True) as there,
    ):
        lease, mark = await here.hosted("s-1"), await here.hosted("mark")
        with (
            here.bell.listen(lease.session) as wakeup,
            there.bell.listen(lease.session) as other,
            here.bell.listen(mark.session),
            there.bell.listen(mark.session),
        ):
            await here.append(lease, said("1"))
            await here.append(mark, said("x"))
            for store, bell in ((here, wakeup), (there, other)):
                await head_known(store, lease.session, 1)
                await head_known(store, mark.session, 1)
                await rings(bell)
                await store.all(lease.session)
            for n in (2, 3):
                if n == 2:
                    await here.append(lease, said("2"))
                else:
                    async with there.database.begin() as db:
                        assert await eventlog.record(db, lease.session, said("3")) == n
                await here.append(mark, said("x"))
                for store, bell in ((here, wakeup), (there, other)):
                    await head_known(store, lease.session, n)
                    await head_known(store, mark.session, n)
                    await rings(bell)
                    assert not await rings(bell)
                    found = await store.log.read(lease.session, after=Seq(n - 1))
                    assert texts(found) == [str(n)]
                    asked = store.database.asked
                    assert await store.log.read(lease.session, after=Seq(n)) == []
                    assert store.database.asked == asked
        assert here.bell.head(lease.session) is None  # nobody follows any more


def test_head_is_what_came_in_the_order_of_commits(store: Store) -> None:
    """A commit of our own whose answer came late never makes the log look shorter than it is."""
    bell, key = store.bell, SessionKey(1)

    def forget() -> None:
        bell.ring([key])

    with bell.listen(key):
        bell.grew({key: Seq(4)}, tells_heads=False)
        assert bell.head(key) is None
        bell.heard("1:5,2:9")
        assert (bell.head(key), bell.head(SessionKey(2))) == (5, None)
        bell.heard("1:4")
        assert bell.head(key) == 5
        bell.grew({key: Seq(6)}, tells_heads=False)
        assert bell.head(key) == 6
        asked_at = bell.forgotten
        losses: list[Callable[[], None]] = [
            lambda: bell.heard("1"),
            lambda: bell.heard("1:x"),
            lambda: bell.heard("all"),
            lambda: bell.grew({key: Seq(0)}, tells_heads=False),
            lambda: bell.appended({key: Seq(0)}),
            bell.ring_all,
            forget,
        ]
        for lose in losses:
            lose()
            assert bell.head(key) is None
            assert bell.forgotten > asked_at  # so a poll that asked before that tells no head
            asked_at = bell.forgotten
            bell.grew({key: Seq(6)}, tells_heads=False)
            bell.appended({key: Seq(6)})
            assert bell.head(key) is None
            bell.grew({key: Seq(7)}, tells_heads=True)
            assert bell.head(key) == 7
        bell.heard("keys")
        bell.heard("!1")
        bell.heard("all", is_echo=True)
        assert bell.head(key) == 7
        bell.heard("1:8,2:9", is_echo=True)
        bell.heard("1:7", is_echo=True)
        assert (bell.head(key), bell.head(SessionKey(2))) == (8, None)
        bell.appended({key: Seq(9)})
        assert bell.head(key) == 9
        asked_at = bell.forgotten
    assert bell.head(key) is None
    assert bell.forgotten > asked_at


async def test_own_echo_wakes_nobody_and_own_answer_always_does(store: Store) -> None:
    """Whichever of the two comes first."""
    bell, key = store.bell, SessionKey(1)
    with bell.listen(key) as wakeup:
        bell.heard("1:5")
        assert await rings(wakeup)
        bell.heard("1:6", is_echo=True)
        assert not await rings(wakeup)
        bell.appended({key: Seq(6)})
        assert await rings(wakeup)
        bell.appended({key: Seq(7)})
        assert await rings(wakeup)
        bell.heard("1:7", is_echo=True)
        bell.heard("1:7")
        bell.grew({key: Seq(7)}, tells_heads=False)
        assert not await rings(wakeup)


async def test_follower_that_reads_only_when_it_is_rung_for_misses_nothing(database_address: Address) -> None:
    """No poll: two processes write, answers get lost, listeners are killed, followers come and go."""
    async with (
        opened(database_address, listens=True) as one,
        opened(database_address, "two", listens=True) as two,
    ):
        lease = await one.hosted("s-1")
        whole = 150
        done = anyio.Event()

        async def host() -> None:
            for n in range(50):
                await one.append(lease, said(f"h{n}"))

        async def admit(store: Store) -> None:
            for n in count():
                if done.is_set():
                    return
                with suppress(DatabaseUnavailable):
                    async with store.database.begin() as db:
                        last = await eventlog.record(db, lease.session, said(f"a{n}"))
                    if last >= whole:
                        done.set()

        async def blind() -> None:
            while not done.is_set():  # as when a NOTIFY was too long to tell numbers
                with suppress(DatabaseUnavailable):
                    async with two.database.begin() as db:
                        ring_after_commit(db, lease.session)
                await anyio.sleep(0.02)

        async def kill() -> None:
            async with admin(database_address) as db:
                while not done.is_set():
                    await db.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE pid <> pg_backend_pid() AND datname = current_database()"
                    )
                    await anyio.sleep(0.1)

        async def follow(store: Store, stays: int) -> None:
            seen: list[Logged] = []
            while not seen or seen[-1].seq < whole:
                with store.bell.listen(lease.session) as wakeup:
                    for _ in range(stays):
                        while rows := await store.database.retrying(
                            partial(
                                store.log.read,
                                lease.session,
                                after=seen[-1].seq if seen else Seq(0),
                                limit=9,
                            )
                        ):
                            seen += rows
                        if seen and seen[-1].seq >= whole:
                            break
                        await wakeup.wait()
            assert_unbroken(seen)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for store in (one, two):
                    for stays in (1, 5, 10**6):
                        tasks.start_soon(follow, store, stays)
                    tasks.start_soon(admit, store)
                for task in (host, blind, kill):
                    tasks.start_soon(task)


async def test_long_list_of_sessions_rings_for_all(database_address: Address) -> None:
    """PostgreSQL refuses a NOTIFY of 8,000 bytes (P50)."""
    async with opened(database_address) as writer, opened(database_address, "two", listens=True) as reader:
        lease = await writer.hosted("s-1")
        async with admin(database_address) as db:
            await db.execute("SELECT setval(pg_get_serial_sequence('agent_sessions', 'id'), 1000000000000)")
            await db.execute(
                "INSERT INTO agent_sessions"
                " (owner, session_id, chat_id, agent, backend, provider, creation_key, cwd, wanted)"
                " SELECT 'default', 'x-' || n, 'x-' || n, 'demo', 'demo', 'demo', 'k', '/', true"
                " FROM generate_series(1, 1000) n"
            )
        held: list[Lease] = []
        while got := await writer.leases.claim():
            held += got
        assert len(held) == 1000
        with reader.bell.listen(lease.session) as wakeup, anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                for one in (*held, lease):
                    tasks.start_soon(writer.append, one, said("x"))
            while not await reader.all(lease.session):
                await wakeup.wait()


async def test_p53_four_migrations_at_once_make_one_schema(
    postgres: EmbeddedPostgres, database_address: Address
) -> None:
    """Replicas that start together on an empty database wait for each other."""
    name = f"{database_address.arguments['database']}_empty"
    async with admin(database_address) as db:
        await db.execute(f"CREATE DATABASE {name}")
    try:
        empty = Address(arguments={**database_address.arguments, "database": name})
        revisions: list[str] = []

        async def migrate() -> None:
            revisions.append(await migrations.migrate(empty))

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(migrate)
        assert len(set(revisions)) == 1
        assert len(revisions) == 4
        assert await migrations.is_current(empty)
        assert await migrations.differences(empty) == []
    finally:
        async with admin(database_address) as db:
            await db.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def test_a_start_waits_for_a_database_that_is_still_starting(
    database_address: Address, folder: Path
) -> None:
    """Behind a symbolic link that comes a moment later, as a server's socket does."""
    link = folder / "later"
    late = Address(arguments={**database_address.arguments, "host": str(link)})
    with pytest.raises(migrations.DatabaseDoesNotAnswer):
        await migrations.migrate(late, answer_s=0.3)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(migrations.migrate, late)
        await anyio.sleep(0.3)
        link.symlink_to(database_address.arguments["host"])
    assert await migrations.is_current(late)


async def test_p89_second_terminal_event_of_a_turn_is_refused(store: Store) -> None:
    """Whoever writes it: the host's batch, or a caller's transaction."""
    lease = await store.hosted("s-1")
    completed = eventlog.draft(
        SessionId("s"), TurnId("t-1"), TurnCompleted(stop_reason=None, usage=None, reconciled=False)
    )
    cancelled = eventlog.draft(
        SessionId("s"), TurnId("t-1"), TurnCancelled(cause="caller", cancel_outcome=None)
    )
    await store.append(lease, said("x", "t-1"), completed)
    with pytest.raises(asyncpg.UniqueViolationError):
        await store.append(lease, cancelled)
    with pytest.raises(Exception, match="events_one_terminal_a_turn"):
        async with store.database.begin() as db:
            await eventlog.record(db, lease.session, cancelled)
    notice = eventlog.draft(SessionId("s"), None, Notice(level="info", code="x", message="y"))
    assert await store.append(lease, notice) == 3
    assert [event.type for event in await store.all(lease.session)] == [
        "message.delta",
        "turn.completed",
        "notice",
    ]


async def test_transaction_that_fails_takes_no_number_and_rings_nobody(store: Store) -> None:
    """All of it or nothing."""
    lease = await store.hosted("s-1")
    with store.bell.listen(lease.session) as wakeup:
        with suppress(ZeroDivisionError):
            async with store.database.begin() as db:
                await eventlog.record(db, lease.session, said("never"))
                raise ZeroDivisionError
        with anyio.move_on_after(0.05) as silence:
            await wakeup.wait()
        assert silence.cancelled_caught
    assert await store.append(lease, said("first")) == 1


FROZEN = """
import asyncio, json, os, signal, sys
from app.store import database
from app.store.bell import Bell

async def main():
    database.TRANSACTION_MS = 1000
    address = database.Address(arguments=json.loads(sys.argv[1]))
    connection = await database.Database(address, address, Bell())._open()
    await connection.execute("BEGIN")
    await connection.execute("UPDATE agent_sessions SET title = 'held'")
    write = connection._transport.write

    def freeze(data):
        write(data)
        os.kill(os.getpid(), signal.SIGSTOP)

    connection._transport.write = freeze
    await connection.prepare("SELECT 1")  # its first half: no end of message follows

asyncio.run(main())
"""


async def test_a_process_that_is_frozen_in_the_middle_of_a_message_keeps_no_lock_for_long(
    store: Store, database_address: Address
) -> None:
    """To the server it is not idle, so only the limit on the whole transaction ends it."""
    await store.session("s")
    # Our own short name of the server's directory leads nowhere in another process.
    elsewhere = {**database_address.arguments, "host": os.path.realpath(database_address.arguments["host"])}
    frozen = await anyio.open_process([sys.executable, "-c", FROZEN, json.dumps(elsewhere)])
    try:
        async with admin(database_address) as db:
            with anyio.fail_after(20):
                while not await db.fetchval(  # noqa: ASYNC110 - nothing tells of it
                    "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT 1%' AND state <> 'idle'"
                    " AND pid <> pg_backend_pid()"
                ):
                    await anyio.sleep(0.05)
            with anyio.fail_after(10):
                await db.execute("UPDATE agent_sessions SET title = 'free'")
    finally:
        frozen.kill()
        await frozen.wait()


async def test_database_that_is_away_says_so(database_address: Address) -> None:
    """`DatabaseUnavailable`, whatever the driver calls it."""
    nowhere = Address(arguments={**database_address.arguments, "host": "/nowhere"})
    async with opened(nowhere) as store:
        with pytest.raises(DatabaseUnavailable):
            await store.session("s-1")
        assert not await store.database.is_up()
