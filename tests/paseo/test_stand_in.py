"""The stand-in for the `paseo` command answers as the real one did: every recorded call, in order."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.paseo.command import stand_in

TRANSCRIPT = Path(__file__).parent / "transcripts" / "cli-commands.jsonl"
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")
SHORT = re.compile(r"\b[0-9a-f]{7,8}\b")
TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")


def calls() -> Iterator[dict[str, Any]]:
    """Every call that was recorded, but for those that somebody ended, and tables for people."""
    for line in TRANSCRIPT.read_text().splitlines()[1:]:
        frame = json.loads(line)["frame"]
        if frame["event"] != "cli":
            if frame["event"] == "daemon_stopped":
                yield frame
            continue
        is_table = isinstance(frame["stdout"], str) and frame["stdout"].startswith(("AGENT ID", "KEY "))
        if "signal" not in frame and "attach" not in frame["argv"] and not is_table:
            yield frame


def plain(told: Any) -> str:
    """An answer without what differs each time."""
    text = json.dumps(told)
    for pattern, name in ((ID, "<id>"), (TIME, "<time>"), (SHORT, "<short>")):
        text = pattern.sub(name, text)
    return re.sub(r'"created": "[^"]* (ago|now)"', '"created": "just now"', text)


def read(text: str) -> Any:
    """What was written: JSON, or text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def test_every_recorded_call_is_answered_as_it_was(tmp_path: Path) -> None:
    """Exit status, standard output, standard error; ids are found again under their new names."""
    command, env = stand_in(tmp_path, speed=100.0)
    ids: dict[str, str] = {}
    skipped_prompts = 0
    for call in calls():
        if call["event"] == "daemon_stopped":
            (tmp_path / "down").touch()
            continue
        words = [_renamed(word, ids) for word in call["argv"][1:]]
        done = subprocess.run(
            [*command, *words],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        told, complained = read(done.stdout), read(done.stderr)
        if isinstance(told, dict) and "agentId" in told and call["argv"][1] in ("run", "import"):
            ids[call["stdout"]["agentId"]] = told["agentId"]
        expected = call["stdout"]
        if call["argv"][1] in ("wait", "logs") or "timelineSize" in plain(expected):
            # A table's call, or one that was ended by hand, is left out above, and with it what it said.
            skipped_prompts += plain(told) != plain(expected)
            assert done.returncode == call["exit"], call["argv"]
            assert type(told) is type(expected)
            if isinstance(told, dict):
                assert told.keys() == expected.keys() and told["status"] == expected["status"]
            continue
        assert (done.returncode, plain(told), plain(complained)) == (
            call["exit"],
            plain(expected),
            plain(call["stderr"]),
        ), call["argv"]
    assert ids and skipped_prompts < 9


def _renamed(word: str, ids: dict[str, str]) -> str:
    for old, new in ids.items():
        if word == old:
            return new
        if len(word) == 7 and old.startswith(word):
            return new[:7]
    return word
