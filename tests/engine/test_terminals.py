"""Terminals of sessions on this machine: tmux, for real."""

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import psutil
import pytest

from app.settings import Limits
from app.store.database import Address
from tests.engine.replicas import two_houses
from tests.engine.terminal_house import (
    captured,
    closed,
    last_id,
    logged,
    open_terminal,
    output,
    streamed,
    type_into,
)
from tests.house import PATIENCE, House, open_house


def tmux(house: House, *arguments: str) -> list[str]:
    """What the house's own tmux answers."""
    (socket,) = (house.settings.data_dir / "tmux").glob("socket-*")
    done = subprocess.run(
        ["tmux", "-S", str(socket), *arguments], capture_output=True, text=True, check=False
    )
    return done.stdout.splitlines()


async def running(house: House, names: set[str]) -> None:
    """Wait until exactly these terminals run."""
    with anyio.fail_after(PATIENCE):
        while set(tmux(house, "list-sessions", "-F", "#{session_name}")) != names:  # noqa: ASYNC110
            await anyio.sleep(0.02)


async def found(house: House, terminal_id: str, q: str, **params: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await house.get(f"/v1/terminals/{terminal_id}/search", q=q, **params)
    return answer


async def test_terminal_is_made_typed_into_followed_and_ended_with_its_events(house: House) -> None:
    """From the first byte to the last, and in the session's log."""
    await house.ensure("s")
    made = await open_terminal(house, "s", "sh", "-c", 'read x; echo "got $x; ende"; exit 3', name="one")
    terminal = made["terminal_id"]
    assert (made["kind"], made["status"], made["rows"], made["cols"]) == ("tmux", "open", 24, 80)
    assert made["cwd"] == str(house.cwd)
    await type_into(house, terminal, "grün;\r")
    frames = await house.follow(f"/v1/terminals/{terminal}/output/stream", "stream.closing")
    assert output(frames) == "grün;\r\ngot grün;; ende\r\n".encode()
    assert frames[-1].data == {"reason": "terminal_closed"}
    ended = await closed(house, terminal)
    assert ended["closed_at"] is not None
    assert logged(await house.log("s")) == [("terminal.opened", terminal), ("terminal.closed", terminal)]
    page = await house.get("/v1/sessions/s/terminals")
    assert page == {"items": [ended], "next_cursor": None}


async def test_program_that_ends_at_once_is_opened_and_closed_in_that_order(house: House) -> None:
    """It may be over before its row is finished; a program that is not there is one of those."""
    await house.ensure("s")
    expected = []
    for command in (["true"], ["/no/such/program"]):
        made = await open_terminal(house, "s", *command)
        await closed(house, made["terminal_id"])
        expected += [("terminal.opened", made["terminal_id"]), ("terminal.closed", made["terminal_id"])]
    assert logged(await house.log("s")) == expected


async def test_arguments_stay_arguments(house: House) -> None:
    """No shell and no tmux reads them (T20): neither a semicolon at the end nor what looks like options."""
    await house.ensure("s")
    arguments = ["a;", ";", "\\;", "kill-server", "-t", "$(id)", "#{pid}", "", "two words", "'", "é"]
    made = await open_terminal(house, "s", "printf", "<%s>\\n", *arguments)
    frames = await house.follow(f"/v1/terminals/{made['terminal_id']}/output/stream", "stream.closing")
    assert output(frames).decode().split("\r\n")[:-1] == [f"<{argument}>" for argument in arguments]


async def test_t17_a_terminal_gets_none_of_our_secrets(
    database_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by its environment, nor by its server's; and it is not told where that server is."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://canary-one")
    monkeypatch.setenv("SOME_TOKEN", "canary-two")
    async with open_house(database_url, folder) as house:
        await house.ensure("s")
        made = await open_terminal(house, "s", "sh", "-c", "env; echo ende; read x")
        lines = await captured(house, made["terminal_id"], "ende")
        assert any(line.startswith("HOME=") for line in lines)
        assert not [line for line in lines if "canary" in line or line.startswith("TMUX")]
        assert not [line for line in tmux(house, "show-environment", "-g") if "canary" in line]
        tmux(house, "kill-server")
        await closed(house, made["terminal_id"])


async def test_input_is_typed_as_it_is(house: House) -> None:
    """Control characters, NUL, more than one command of tmux takes, and in order."""
    await house.ensure("s")
    data = "\x00\x01\x03\x1b[A\r\n;é" + "abc;" * 5000 + "\x7f"
    count = len(data.encode())
    script = f"stty raw -echo; echo los; head -c {count} | od -An -v -tx1 | tr -d ' \\n' | cksum"
    made = await open_terminal(house, "s", "sh", "-c", script)
    await captured(house, made["terminal_id"], "los")
    await type_into(house, made["terminal_id"], data)
    frames = await house.follow(f"/v1/terminals/{made['terminal_id']}/output/stream", "stream.closing")
    hexadecimal = data.encode().hex()
    expected = subprocess.run(["cksum"], input=hexadecimal.encode(), capture_output=True, check=True)
    assert expected.stdout.strip() in output(frames)


async def test_size_is_what_was_asked_for_and_can_be_changed(house: House) -> None:
    await house.ensure("s")
    script = "trap 'stty size' WINCH; stty size; echo los; while true; do sleep 0.05; done"
    made = await open_terminal(house, "s", "sh", "-c", script, rows=30, cols=100)
    terminal = made["terminal_id"]
    assert "30 100" in await captured(house, terminal, "los")
    answer = await house.post(f"/v1/terminals/{terminal}/resize", {"rows": 10, "cols": 40})
    assert (answer.json()["rows"], answer.json()["cols"]) == (10, 40)
    await captured(house, terminal, "10 40")
    assert (await house.get(f"/v1/terminals/{terminal}"))["cols"] == 40


async def test_capture_shows_scrollback_and_screen_by_line(house: House) -> None:
    await house.ensure("s")
    script = "for i in $(seq 0 99); do echo line $i; done; printf '\\033[31mred\\033[0m'; read x"
    made = await open_terminal(house, "s", "sh", "-c", script)
    path = f"/v1/terminals/{made['terminal_id']}/capture"
    await captured(house, made["terminal_id"], "red")
    assert (await house.get(path))["total_lines"] == 101
    assert await house.get(path, start=3, end=4) == {"lines": ["line 3", "line 4"], "total_lines": 101}
    assert (await house.get(path, start=-2))["lines"] == ["line 99", "red"]
    assert (await house.get(path, start=200))["lines"] == []
    assert (await house.get(path, end=-101))["lines"] == ["line 0"]
    assert (await house.get(path, end=-110))["lines"] == []
    assert (await house.get(path, start=-110, end=-101))["lines"] == ["line 0"]
    assert (await house.get(path, start=5, end=4))["lines"] == []
    coloured = (await house.get(path, start=-1, ansi=True))["lines"][0]
    assert "\x1b[31mred" in coloured


async def test_stream_goes_on_where_it_was_left(house: House) -> None:
    """`Last-Event-ID` is all that a client keeps; nothing is missed or told twice."""
    await house.ensure("s")
    made = await open_terminal(house, "s", "cat")
    terminal = made["terminal_id"]
    await type_into(house, terminal, "one\r")
    first = await streamed(house, terminal, b"one\r\none\r\n")
    await type_into(house, terminal, "two\r")
    headers = {"Last-Event-ID": last_id(first)}
    second = await streamed(house, terminal, b"two\r\ntwo\r\n", headers)
    assert output(first) + output(second) == b"one\r\none\r\ntwo\r\ntwo\r\n"
    assert not [frame for frame in second if frame.event == "stream.reset"]
    ready = next(frame for frame in second if frame.event == "stream.ready")
    assert f"{ready.data['ring']}.{ready.data['offset']}" == last_id(first)
    third = await streamed(house, terminal, b"one\r\none\r\ntwo\r\ntwo\r\n")
    assert last_id(third) == last_id(second)


@pytest.mark.parametrize(
    ("cursor", "reason"), [("{ring}.0", "too_old"), ("{ring}.999999999", "too_new"), ("abc.3", "other_ring")]
)
async def test_position_that_is_not_in_the_ring_is_a_reset(
    database_url: str, folder: Path, cursor: str, reason: str
) -> None:
    async with open_house(database_url, folder, limits=Limits(terminal_ring_bytes=4096)) as house:
        await house.ensure("s")
        made = await open_terminal(house, "s", "sh", "-c", "seq 10000; echo ende; read x")
        frames = await streamed(house, made["terminal_id"], b"ende")
        ready = next(frame for frame in frames if frame.event == "stream.ready")
        path = f"/v1/terminals/{made['terminal_id']}/output/stream"
        headers = {"Last-Event-ID": cursor.format(ring=ready.data["ring"])}
        async with house.stream(path, headers=headers) as stream:
            reset = next(f for f in await stream.until("stream.reset") if f.event == "stream.reset")
            assert reset.data["reason"] == reason
            assert reset.data["resume_from"].startswith(ready.data["ring"])
            while f"id: {reset.data['resume_from']}\n\n".encode() not in stream.raw:
                assert await stream.more()
            if reason != "too_new":
                while b"ende" not in output(stream.frames):
                    assert await stream.more()


async def test_reader_that_is_slower_than_the_ring_is_told_what_it_missed(
    database_url: str, folder: Path
) -> None:
    """Nothing is kept for it: the stream goes on at the oldest byte that is there."""
    async with open_house(database_url, folder, limits=Limits(terminal_ring_bytes=4096)) as house:
        await house.ensure("s")
        made = await open_terminal(house, "s", "sh", "-c", "read x; seq 200000; echo ende; read x")
        path = f"/v1/terminals/{made['terminal_id']}/output/stream"
        async with house.stream(path) as stream:
            await stream.until("stream.ready")
            await type_into(house, made["terminal_id"], "\r")
            while b"ende" not in output(stream.frames):
                assert await stream.more()
            assert "too_old" in {f.data["reason"] for f in stream.frames if f.event == "stream.reset"}


async def test_search_finds_what_a_person_saw(house: House) -> None:
    """Colours, progress bars and wide characters; by column, with context, as often as it is there."""
    await house.ensure("s")
    script = (
        r"printf 'first\n\033[32mer\033[1mror\033[0m here\n';"
        r"printf ' 10%%\r\033[K 99%% done\n'; printf '日本 Error x\n'; echo ende; read x"
    )
    made = await open_terminal(house, "s", "sh", "-c", script)
    terminal = made["terminal_id"]
    await captured(house, terminal, "ende")
    answer = await found(house, terminal, "error", context=1)
    assert answer == {
        "matches": [
            {
                "line": 1,
                "column": 0,
                "length": 5,
                "text": "error here",
                "before": ["first"],
                "after": [" 99% done"],
            }
        ],
        "source": "ring",
        "truncated": False,
    }
    matches = (await found(house, terminal, "error", ignore_case=True))["matches"]
    assert [(one["line"], one["column"]) for one in matches] == [(1, 0), (3, 5)]
    assert (await found(house, terminal, "10%"))["matches"] == []
    answer = await found(house, terminal, r"^.*\d+% d\w+$", regex=True, limit=1)
    assert [one["text"] for one in answer["matches"]] == [" 99% done"]
    assert (await found(house, terminal, "e", limit=2))["truncated"] is True


async def test_search_in_a_full_screen_program_is_by_capture(house: House) -> None:
    """What it paints is no text in the order of output; when it is left, its screen is not searched."""
    await house.ensure("s")
    script = (
        r"echo before; printf '\033[?1049h\033[5;3Hpain\033[5;7Hted'; echo; read x;"
        r"printf '\033[?1049l'; echo after; read x"
    )
    made = await open_terminal(house, "s", "sh", "-c", script)
    terminal = made["terminal_id"]
    await captured(house, terminal, "painted")
    answer = await found(house, terminal, "painted")
    assert answer["source"] == "capture"
    assert [(one["column"], one["text"].strip()) for one in answer["matches"]] == [(2, "painted")]
    await type_into(house, terminal, "\r")
    await captured(house, terminal, "after")
    assert (await found(house, terminal, "after"))["source"] == "ring"
    assert (await found(house, terminal, "pain"))["matches"] == []


async def test_search_beyond_the_ring_falls_back_to_the_scrollback(database_url: str, folder: Path) -> None:
    async with open_house(database_url, folder, limits=Limits(terminal_ring_bytes=4096)) as house:
        await house.ensure("s")
        made = await open_terminal(house, "s", "sh", "-c", "seq 5000; echo ende; read x")
        await captured(house, made["terminal_id"], "ende")
        answer = await found(house, made["terminal_id"], "^42$", regex=True)
        assert answer["source"] == "capture"
        assert [(one["line"], one["text"]) for one in answer["matches"]] == [(41, "42")]


async def test_terminal_survives_a_restart_and_its_ring_does_not(database_url: str, folder: Path) -> None:
    """The next process finds it by its row: search says `capture`, a stream is reset, and all goes on."""
    async with open_house(database_url, folder) as first:
        await first.ensure("s")
        made = await open_terminal(first, "s", "cat", name="keep")
        terminal = made["terminal_id"]
        await type_into(first, terminal, "before\r")
        frames = await streamed(first, terminal, b"before\r\nbefore\r\n")
        gone = (await open_terminal(first, "s", "cat"))["terminal_id"]
    tmux(first, "kill-session", "-t", gone)
    async with open_house(database_url, folder) as second:
        answer = await found(second, terminal, "before")
        assert (answer["source"], len(answer["matches"])) == ("capture", 2)
        path = f"/v1/terminals/{terminal}/output/stream"
        async with second.stream(path, headers={"Last-Event-ID": last_id(frames)}) as stream:
            reset = next(f for f in await stream.until("stream.reset") if f.event == "stream.reset")
            assert reset.data["reason"] == "other_ring"
            await type_into(second, terminal, "after\r")
            while b"after\r\nafter\r\n" not in output(stream.frames):
                assert await stream.more()
        assert (await found(second, terminal, "before"))["source"] == "capture"
        await closed(second, gone)
        assert logged(await second.log("s"))[-1] == ("terminal.closed", gone)
        assert (await second.get(f"/v1/terminals/{terminal}"))["status"] == "open"


async def test_killed_terminal_is_gone_with_what_runs_in_it(house: House) -> None:
    await house.ensure("s")
    made = await open_terminal(house, "s", "sleep", "1000")
    terminal = made["terminal_id"]
    for _ in range(2):  # repeating it is harmless
        assert (await house.client.delete(f"/v1/terminals/{terminal}")).status_code == 204
    await running(house, set())
    assert (await house.get(f"/v1/terminals/{terminal}"))["status"] == "closed"
    assert logged(await house.log("s")) == [("terminal.opened", terminal), ("terminal.closed", terminal)]


@pytest.mark.parametrize("how", ["close", "delete"])
async def test_session_ends_its_terminals(house: House, how: str, database_address: Address) -> None:
    """What does not want to end as well; `session.closed` is still its log's last event."""
    await house.ensure("s")
    await house.ensure("other")
    stay = "trap '' HUP TERM; echo pid=$$; while true; do sleep 1000; done"
    mine = [(await open_terminal(house, "s", "sh", "-c", stay))["terminal_id"] for _ in range(2)]
    programs = [
        psutil.Process(int((await captured(house, one, "pid="))[0].partition("=")[2])) for one in mine
    ]
    others = (await open_terminal(house, "other", "sleep", "1000"))["terminal_id"]
    if how == "close":
        assert (await house.post("/v1/sessions/s/close")).status_code == 200
        log = await house.log("s")
        assert [event["type"] for event in log][-3:] == [*["terminal.closed"] * 2, "session.closed"]
        answer = await house.post("/v1/sessions/s/terminals", {})
        assert (answer.status_code, answer.json()["code"]) == (409, "session_closed")
    else:
        assert (await house.client.delete("/v1/sessions/s")).status_code == 204
        for terminal in mine:
            answer = await house.client.get(f"/v1/terminals/{terminal}")
            assert (answer.status_code, answer.json()["code"]) == (404, "terminal_not_found")
    await running(house, {others})
    with anyio.fail_after(PATIENCE):
        while any(one.is_running() for one in programs):  # noqa: ASYNC110 - the system has nothing to wait on
            await anyio.sleep(0.02)


async def test_search_over_several_terminals(house: House) -> None:
    """Those of a session, of a project, or all; one limit for all of them."""
    for session, project in (("a", "p"), ("b", "p"), ("c", "q")):
        await house.ensure(session, project_id=project)
    made = {}
    for session in ("a", "b", "c"):
        terminal = await open_terminal(house, session, "sh", "-c", f"echo needle {session}; read x")
        await captured(house, terminal["terminal_id"], "needle")
        made[session] = terminal["terminal_id"]

    async def sessions(**params: Any) -> list[str]:
        answer = await house.get("/v1/terminals/search", q="needle", **params)
        assert answer["unreachable"] == []
        return [one["session_id"] for one in answer["items"]]

    assert await sessions() == ["c", "b", "a"]
    assert await sessions(project_id="p") == ["b", "a"]
    assert await sessions(session_id="a") == ["a"]
    assert await sessions(project_id="none") == []
    answer = await house.get("/v1/terminals/search", q="needle", limit=2)
    assert (len(answer["items"]), answer["truncated"]) == (2, True)
    assert answer["items"][0]["terminal_id"] == made["c"]
    assert (await house.client.get("/v1/terminals/search?q=x&session_id=none")).status_code == 404


@asynccontextmanager
async def machines(database_url: str, folder: Path) -> AsyncIterator[tuple[House, House]]:
    """Two replicas that do not reach each other's tmux."""
    (folder / "elsewhere" / "work").mkdir(parents=True)
    async with (
        open_house(database_url, folder) as here,
        open_house(database_url, folder / "elsewhere") as there,
    ):
        yield here, there


async def test_terminal_of_another_machine_is_shown_and_not_reached(database_url: str, folder: Path) -> None:
    """Its row is everywhere; what needs its machine is a 503 that says so, and its session can be closed."""
    async with machines(database_url, folder) as (here, there):
        await here.ensure("s")
        terminal = (await open_terminal(here, "s", "sleep", "1000"))["terminal_id"]
        assert (await there.get(f"/v1/terminals/{terminal}"))["status"] == "open"
        for method, path, body in (
            ("POST", "input", {"data": "x"}),
            ("GET", "capture", None),
            ("GET", "search?q=x", None),
            ("GET", "output/stream", None),
        ):
            answer = await there.client.request(method, f"/v1/terminals/{terminal}/{path}", json=body)
            assert (answer.status_code, answer.json()["code"]) == (503, "backend_unavailable"), path
        answer = await there.get("/v1/terminals/search", q="x")
        assert answer["unreachable"] == [{"terminal_id": terminal, "code": "backend_unavailable"}]
        assert (await there.post("/v1/sessions/s/close")).status_code == 200
        await running(here, set())


async def test_terminals_of_an_earlier_kernel_have_ended(house: House, database_address: Address) -> None:
    """Those of the same data directory; of another one nobody can know that."""
    (local,) = [one for one in house.service.rooms.terminals.servers.all() if one.kind == "tmux"]
    if local.past is None:
        pytest.skip("the tests' folder may be another machine's as well")
    await house.ensure("s")
    places = {"0123456789abcdef:another-kernel": "open", f"{local.past}another-kernel": "closed"}
    terminals = {place: (await open_terminal(house, "s", "cat"))["terminal_id"] for place in places}
    connection = await asyncpg.connect(**database_address.arguments)
    try:
        async with connection.transaction():
            for place, terminal in terminals.items():
                await connection.execute("UPDATE terminals SET place = $1 WHERE id = $2", place, terminal)
    finally:
        await connection.close()
    await closed(house, terminals[f"{local.past}another-kernel"])
    for place, terminal in terminals.items():
        assert (await house.get(f"/v1/terminals/{terminal}"))["status"] == places[place]
    assert [one for one in logged(await house.log("s")) if one[0] == "terminal.closed"] == [
        ("terminal.closed", terminals[f"{local.past}another-kernel"])
    ]


async def test_server_that_was_killed_has_ended_its_terminals(house: House) -> None:
    """As when a container is made again: the socket is left, and nobody answers."""
    await house.ensure("s")
    terminal = (await open_terminal(house, "s", "cat"))["terminal_id"]
    (pid,) = tmux(house, "display-message", "-p", "#{pid}")
    psutil.Process(int(pid)).kill()
    await closed(house, terminal)
    again = (await open_terminal(house, "s", "cat"))["terminal_id"]
    await type_into(house, again, "hello\r")
    await captured(house, again, "hello")


async def test_replicas_on_one_machine_share_its_terminals(database_url: str, folder: Path) -> None:
    """Each hears the output for itself."""
    async with two_houses(database_url, folder) as (first, second):
        await first.ensure("s")
        terminal = (await open_terminal(first, "s", "cat"))["terminal_id"]
        async with second.stream(f"/v1/terminals/{terminal}/output/stream") as stream:
            await stream.until("stream.ready")
            await type_into(second, terminal, "hello\r")
            while b"hello\r\nhello\r\n" not in output(stream.frames):
                assert await stream.more()
        assert b"hello\r\nhello\r\n" in output(await streamed(first, terminal, b"hello\r\nhello\r\n"))
        await second.client.delete(f"/v1/terminals/{terminal}")
        await closed(first, terminal)


async def test_limits_of_terminals_answer_at_once(database_url: str, folder: Path) -> None:
    """One too many is a 429; the ring not used for longest gives way, and search goes on by capture."""
    limits = Limits(terminals_per_session=2, terminal_rings=1)
    async with open_house(database_url, folder, limits=limits) as house:
        await house.ensure("s")
        first = (await open_terminal(house, "s", "sh", "-c", "echo needle; read x"))["terminal_id"]
        await captured(house, first, "needle")
        await open_terminal(house, "s", "sleep", "1000")
        answer = await house.post("/v1/sessions/s/terminals", {})
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_terminals")
        assert "retry-after" in answer.headers
        seen = await found(house, first, "needle")
        assert (seen["source"], len(seen["matches"])) == ("capture", 1)
        await house.client.delete(f"/v1/terminals/{first}")
        assert (await house.post("/v1/sessions/s/terminals", {})).status_code == 201


async def test_disk_that_does_not_answer_holds_up_nobody_else(house: House) -> None:
    """While a session's directory is looked at its row is free, and everything else goes on."""
    await house.ensure("s")
    looks = house.service.rooms.terminals.looks
    borrowers = [object() for _ in range(int(looks.total_tokens))]
    for borrower in borrowers:  # as many looks as there may be, at a disk that hangs
        looks.acquire_on_behalf_of_nowait(borrower)
    answers: list[int] = []

    async def create() -> None:
        answers.append((await house.post("/v1/sessions/s/terminals", {"command": "cat"})).status_code)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(create)
        with anyio.fail_after(PATIENCE):
            while not looks.statistics().tasks_waiting:  # noqa: ASYNC110 - nobody tells
                await anyio.sleep(0.01)
        answer = await house.client.patch("/v1/sessions/s", json={"title": "changed"})
        assert (answer.status_code, answers) == (200, [])
        for borrower in borrowers:
            looks.release_on_behalf_of(borrower)
    assert answers == [201]


async def test_no_terminal_comes_into_the_list_from_elsewhere(house: House) -> None:
    """Only those made through us, newest first, by page."""
    await house.ensure("s")
    names = [
        (await open_terminal(house, "s", "sleep", "1000", name=f"n{i}"))["terminal_id"] for i in range(3)
    ]
    tmux(house, "new-session", "-d", "-s", "foreign", "sleep", "1000")
    page = await house.get("/v1/sessions/s/terminals", limit=2)
    rest = await house.get("/v1/sessions/s/terminals", limit=2, cursor=page["next_cursor"])
    assert [one["terminal_id"] for one in page["items"] + rest["items"]] == names[::-1]
    assert rest["next_cursor"] is None
    await house.client.delete(f"/v1/terminals/{names[0]}")
    assert len((await house.get("/v1/sessions/s/terminals", status="open"))["items"]) == 2
    await running(house, {*names[1:], "foreign"})


async def test_tmux_that_does_not_answer_is_a_503_and_ends_no_terminal(house: House) -> None:
    """Stopped, it answers nobody; going on, it is used as before."""
    await house.ensure("s")
    terminal = (await open_terminal(house, "s", "cat"))["terminal_id"]
    (pid,) = tmux(house, "display-message", "-p", "#{pid}")
    server = psutil.Process(int(pid))
    server.suspend()
    path, answers = f"/v1/terminals/{terminal}", []

    async def ask(method: str, verb: str, body: Any) -> None:
        answers.append(await house.client.request(method, f"{path}/{verb}", json=body))

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, "GET", "capture", None)
            tasks.start_soon(ask, "POST", "input", {"data": "never typed"})
            tasks.start_soon(ask, "POST", "input", {"data": "waits in vain"})
    finally:
        server.resume()
    assert [(one.status_code, one.json()["code"]) for one in answers] == [(503, "backend_unavailable")] * 3
    await type_into(house, terminal, "again\r")
    assert (await captured(house, terminal, "again"))[0] == "again"
    assert tmux(house, "list-buffers") == []
    assert (await house.get(f"/v1/terminals/{terminal}"))["status"] == "open"
