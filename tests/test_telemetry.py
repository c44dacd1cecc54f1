"""The log: one line a record, whatever is in it; what libraries say of payloads never reaches it."""

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from app.telemetry import PINNED, set_up_logging

HOSTILE = "x\n2026 [error] forged\r\x1b[2J\x1b]0;title\x07\x00\x85\u2028\u202e\ud800end"


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    """The run's own logging, afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in PINNED}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, one in levels.items():
        logging.getLogger(name).setLevel(one)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def records(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What was logged, each line by itself."""
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_t30_a_record_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    """With its event, level and time in UTC; control characters are escaped, nothing is forged."""
    set_up_logging("info", "json")
    structlog.get_logger().info("something", text=HOSTILE, number=1, nested={"x": [HOSTILE]})
    logging.getLogger("some.library").warning("hostile %s", HOSTILE)
    captured = capsys.readouterr().err
    lines = captured.split("\n")
    assert len(lines) == 3
    assert not lines[-1]
    assert not any(character in captured.replace("\n", "") for character in "\r\x1b\x07\x00\x85\u2028\u202e")
    first, second = (json.loads(line) for line in lines[:2])
    assert (first["event"], first["level"], first["number"]) == ("something", "info", 1)
    assert first["timestamp"].endswith("Z")
    assert first["text"] == HOSTILE
    assert (second["event"], second["level"]) == (f"hostile {HOSTILE}", "warning")


def test_t30_a_traceback_stays_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    """As a field of the record."""
    set_up_logging("info", "json")
    try:
        raise ValueError(HOSTILE.replace("\ud800", ""))
    except ValueError:
        structlog.get_logger().exception("failed")
    (record,) = records(capsys)
    assert record["event"] == "failed"
    assert "Traceback" in record["exception"]


def test_t30_text_for_people_forges_nothing_either(capsys: pytest.CaptureFixture[str]) -> None:
    """What an agent or a client said does not move the cursor of a terminal, nor begin a line."""
    set_up_logging("info", "text")
    structlog.get_logger().info("something", text="x\n2026 [error] forged\r\x1b[2J")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "\r" not in said
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_our_own_level_is_the_one_that_is_set(
    capsys: pytest.CaptureFixture[str], level: str, expected: list[str]
) -> None:
    """Nothing below it."""
    set_up_logging(level, "json")
    log = structlog.get_logger()
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)("something")
    assert [record["level"] for record in records(capsys)] == expected


def test_t30_libraries_stay_at_warning(capsys: pytest.CaptureFixture[str]) -> None:
    """At debug they would print payloads, headers and passwords; also by loggers below theirs."""
    set_up_logging("debug", "json")
    for name in PINNED:
        for logger in (logging.getLogger(name), logging.getLogger(f"{name}.part")):
            logger.debug("canary")
            logger.info("canary")
            logger.warning("heard")
    assert [record["event"] for record in records(capsys)] == ["heard"] * len(PINNED) * 2


def test_setting_it_up_twice_says_everything_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The last call counts."""
    set_up_logging("debug", "text")
    set_up_logging("info", "json")
    structlog.get_logger().info("something")
    assert [record["event"] for record in records(capsys)] == ["something"]


def test_auto_is_json_where_nobody_looks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """stderr is no terminal here."""
    assert not sys.stderr.isatty()
    set_up_logging("info", "auto")
    structlog.contextvars.bind_contextvars(request_id="r-1")
    structlog.get_logger().info("something")
    (record,) = records(capsys)
    assert record["request_id"] == "r-1"
