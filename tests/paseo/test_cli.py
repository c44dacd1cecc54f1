"""The `paseo` command: what is passed to it, how its answers are read, and how it is ended."""

import os
import stat
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import psutil
import pytest

from app.paseo.cli import WAITS, PaseoCli
from app.paseo.cli_running import AT_ONCE, CommandRefused, CommandRunner, NoSeat
from app.paseo.errors import NotSent, Reason, Timeout, Undecodable
from tests.backends.acp_house import eventually, is_gone
from tests.paseo.command import fault, heard, stand_in

pytestmark = pytest.mark.anyio


@pytest.fixture
async def cli(tmp_path: Path) -> AsyncIterator[PaseoCli]:
    """The command, with an agent's daemon in the test's folder."""
    command, env = stand_in(tmp_path)
    one = PaseoCli(CommandRunner(command, env=env))
    yield one
    await one.aclose()


async def made(cli: PaseoCli) -> str:
    """An agent at rest."""
    agent = (await cli.start("say hi", provider="scripted", cwd="/workspace", title="A title")).agent_id
    assert (await cli.wait(agent, 10)).status == "idle"
    return agent


@pytest.mark.parametrize("text", ["--settings x", "-q", "$(id)\n`id`;id", "two\nlines é\u2028", "\ud800"])
async def test_p84_t20_a_prompt_goes_by_a_file_of_ours_alone_and_never_shows(
    cli: PaseoCli, tmp_path: Path, text: str
) -> None:
    """Mode 0600 below a folder of mode 0700 (T19), and gone as soon as it was handed over."""
    agent = await made(cli)
    await cli.send(agent, text)
    sent = heard(tmp_path)[-1]
    assert sent["file"] == text.encode(errors="replace").decode()
    assert (sent["mode"], sent["folder"]) == ("0o600", "0o700")
    (option,) = [word for word in sent["argv"] if word.startswith("--prompt-file=")]
    assert sent["argv"] == ["send", "--no-wait", option, "--json", "--", agent]
    assert not Path(option.removeprefix("--prompt-file=")).exists()


async def test_what_a_caller_names_is_never_taken_for_an_option(cli: PaseoCli, tmp_path: Path) -> None:
    with pytest.raises(CommandRefused, match="Unknown provider"):
        await cli.start("x", provider="--help", cwd="-d", title="--mode=bypass")
    with pytest.raises(CommandRefused, match="Agent not found"):
        await cli.inspect("--all")
    with pytest.raises(NotSent):
        await cli.inspect("a\0b")


async def test_exit_0_does_not_mean_success(cli: PaseoCli) -> None:
    """`wait` says of a failed turn, and even of an unknown agent, that it ended well; its status does not."""
    agent = await made(cli)
    await cli.send(agent, "fail boom")
    assert (await cli.wait(agent, 10)).status == "error"
    await cli.send(agent, "ask rm x")
    assert (await cli.wait(agent, 10)).status == "permission"
    await cli.send(agent, "sleep 600000")
    assert (await cli.wait(agent, 1)).status == "timeout"
    unknown = await cli.wait("nope", 1)
    assert (unknown.status, unknown.message) == ("error", "Agent not found: nope")


async def test_an_answer_of_another_form_is_no_answer(cli: PaseoCli, tmp_path: Path) -> None:
    agent = await made(cli)
    fault(tmp_path, inspect="garbage")
    with pytest.raises(Undecodable):
        await cli.inspect(agent)
    script = """import json; print(json.dumps({"agentId": "a", "status": "splendid"}))"""
    other = PaseoCli(CommandRunner([sys.executable, "-c", script, "--"], env={}))
    with pytest.raises(Undecodable):
        await other.wait("a", 1)
    await other.aclose()


async def test_a_failure_is_told_in_the_daemons_words(cli: PaseoCli) -> None:
    with pytest.raises(CommandRefused) as refused:
        await cli.send("nope", "x")
    assert (refused.value.code, refused.value.text) == ("SEND_FAILED", "Agent not found: nope")
    assert refused.value.reason is Reason.AGENT_NOT_FOUND
    with pytest.raises(CommandRefused, match="Agent not found: nope"):
        await cli.logs("nope")


async def test_a_traceback_is_not_passed_on() -> None:
    cli = PaseoCli(
        CommandRunner([sys.executable, "-c", "def f(): raise ValueError('odd')\nf()", "--"], env={})
    )
    with pytest.raises(CommandRefused) as refused:
        await cli.inspect("a")
    assert refused.value.text == "ValueError: odd"
    await cli.aclose()


async def test_where_nothing_answers_nothing_was_sent(cli: PaseoCli, tmp_path: Path) -> None:
    (tmp_path / "down").touch()
    with pytest.raises(NotSent, match="connect ECONNREFUSED"):
        await cli.look(20)
    with pytest.raises(NotSent, match="connect ECONNREFUSED"):
        await cli.logs("x")
    missing = PaseoCli(CommandRunner([str(tmp_path / "no-such-command")], env={}))
    with pytest.raises(NotSent, match="cannot be started: No such file"):
        await missing.look(20)
    await missing.aclose()


async def test_t20_the_password_shows_neither_in_a_list_of_processes_nor_in_an_error(tmp_path: Path) -> None:
    """The command repeats the address with the password when it is refused."""
    command, env = stand_in(tmp_path)
    (tmp_path / "password").write_text("horse%2F")
    right = PaseoCli(CommandRunner(command, env=env, url="http://127.0.0.1:6767", password="horse/"))
    await right.look(20)
    wrong = PaseoCli(CommandRunner(command, env=env, url="http://127.0.0.1:6767", password="se/cret"))
    with pytest.raises(NotSent) as refused:
        await wrong.look(20)
    assert str(refused.value) == (
        "Cannot connect to daemon at tcp://127.0.0.1:6767?password=…: Incorrect password"
    )
    calls = heard(tmp_path)
    assert not any("horse" in word or "cret" in word for call in calls for word in call["argv"])
    await right.aclose()
    await wrong.aclose()


async def test_p77_commands_at_the_same_time_are_different_clients(cli: PaseoCli, tmp_path: Path) -> None:
    """The command's client id lies in its home, and two clients with one id hear each other's answers."""
    agent = await made(cli)
    await cli.send(agent, "sleep 600000")
    async with anyio.create_task_group() as tasks:
        for _ in range(WAITS + 2):
            tasks.start_soon(cli.wait, agent, 3)
    waits = [call for call in heard(tmp_path) if call["argv"][0] == "wait" and "--timeout=3" in call["argv"]]
    homes = [call["home"] for call in waits[:WAITS]]
    assert len(set(homes)) == WAITS
    assert {stat.S_IMODE(os.stat(home).st_mode) for home in homes} == {0o700}
    assert len(waits) == WAITS + 2


SLEEPER = (sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)", "--")


async def test_a_call_that_finds_no_seat_in_time_was_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of its deadline it waits; then nothing was started, and it says so."""
    monkeypatch.setattr("app.paseo.cli.CALL_S", 0.4)
    full = PaseoCli(CommandRunner(SLEEPER, env={}))
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for _ in range(AT_ONCE):
                tasks.start_soon(full.look, 60)
            await eventually(lambda: len(psutil.Process().children()) >= AT_ONCE)
            before = time.monotonic()
            with pytest.raises(NoSeat, match="too many paseo commands"):
                await full.send("a", "text")
            assert time.monotonic() - before < 0.4
            tasks.cancel_scope.cancel()
    await full.aclose()


async def test_waits_leave_seats_for_what_must_not_wait(cli: PaseoCli, tmp_path: Path) -> None:
    """A wait that has no seat of its kind says so; a prompt has one."""
    agent = await made(cli)
    await cli.send(agent, "sleep 600000")
    async with anyio.create_task_group() as tasks:
        for _ in range(WAITS):
            tasks.start_soon(cli.wait, agent, 600)
        await eventually(lambda: sum(call["argv"][0] == "wait" for call in heard(tmp_path)) > WAITS)
        with pytest.raises(NoSeat):
            await cli.wait(agent, -14)  # a deadline of one second
        assert (await cli.inspect(agent)).status == "running"
        tasks.cancel_scope.cancel()


async def test_once_closed_nothing_runs_and_nothing_lies_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ran is ended, with an outcome that nobody knows; what comes later is not started."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    one = PaseoCli(CommandRunner(SLEEPER, env={}))
    async with anyio.create_task_group() as tasks:

        async def prompted() -> None:
            with pytest.raises(Timeout):
                await one.send("a", "text")

        tasks.start_soon(prompted)
        await eventually(lambda: list(tmp_path.glob("alameda-paseo-*/prompts/prompt-*")) != [])
        await one.aclose()
    with pytest.raises(NotSent):
        await one.send("a", "text")
    assert list(tmp_path.iterdir()) == []


async def test_its_own_home_shows_each_command_the_way_to_the_daemon(tmp_path: Path) -> None:
    """But no command the client's id of another one (P77)."""
    command, env = stand_in(tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.json").write_text("{}")
    (home / "cli-client-id").write_text("cid_operator")
    for given in ({"PASEO_HOME": str(home)}, {"HOME": str(tmp_path)}):
        if "HOME" in given:
            home.rename(tmp_path / ".paseo")
        one = PaseoCli(CommandRunner(command, env={**env, **given}))
        await one.look(20)
        assert heard(tmp_path)[-1]["finds"] == ["config.json"]
        await one.aclose()
    addressed = PaseoCli(
        CommandRunner(command, env={**env, "HOME": str(tmp_path)}, url="http://127.0.0.1:6767")
    )
    await addressed.look(20)
    assert heard(tmp_path)[-1]["finds"] == []
    await addressed.aclose()


async def hanging(tmp_path: Path) -> list[int]:
    """The processes of a command that hangs, once it does."""
    path = tmp_path / "hanging"
    await eventually(lambda: path.exists() and len(path.read_text().split()) == 2)
    return [int(pid) for pid in path.read_text().split()]


async def test_p81_cancelling_ends_the_commands_whole_group(cli: PaseoCli, tmp_path: Path) -> None:
    """Also a child of it that holds our pipes and wants no SIGTERM; in about a second."""
    fault(tmp_path, ls="hang")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cli.look, 20)
        pids = await hanging(tmp_path)
        tasks.cancel_scope.cancel()
    await eventually(lambda: all(is_gone(pid) for pid in pids))


async def test_a_command_that_does_not_end_is_ended(cli: PaseoCli, tmp_path: Path) -> None:
    fault(tmp_path, ls="hang")
    with pytest.raises(Timeout):
        await cli.look(0.5)
    pids = await hanging(tmp_path)
    await eventually(lambda: all(is_gone(pid) for pid in pids))
