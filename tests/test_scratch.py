"""Folders in the temporary directory: whose they are, and that none is left."""

import os
import stat
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.scratch import ABANDONED_S, Scratch, sweep

HOLDER = """
import sys
from app.scratch import Scratch
print(Scratch("paseo").path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary directory of the test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def held_by_another(folder: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that uses a folder, and the folder."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    return holder, Path(holder.stdout.readline().strip())


def test_t19_it_is_ours_alone_and_gone_when_it_is_removed(temporary: Path) -> None:
    folder = Scratch("paseo")
    (folder.path / "prompt").write_text("secret")
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    folder.remove()
    folder.remove()
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_nothing_else(temporary: Path) -> None:
    mine = Scratch("merge")
    other, in_use = held_by_another(temporary)
    killed, left = held_by_another(temporary)
    killed.kill()
    killed.communicate()
    strange = [temporary / name for name in ("alameda-paseo-readme12", "alameda-notes-12345678")]
    for path in strange:
        path.mkdir()  # without a lock nobody can say that it is not in use
    (temporary / "alameda-merge-link1234").symlink_to(left)
    assert sweep() == 1
    assert not left.exists()
    assert in_use.exists() and mine.path.exists() and all(path.exists() for path in strange)
    other.communicate()
    mine.remove()
    assert sweep() == 1, "the other one ended without removing it"


def test_what_a_command_made_again_after_the_end_of_its_process_is_not_left_for_ever(temporary: Path) -> None:
    """The folder of a killed process is swept while its command runs, which makes its home once more."""
    killed, left = held_by_another(temporary)
    killed.kill()
    killed.communicate()
    assert sweep() == 1
    (left / "home-12").mkdir(parents=True)
    assert sweep() == 0, "so young it may be in the making"
    old = time.time() - ABANDONED_S - 60
    os.utime(left, (old, old))
    assert sweep() == 1
    assert list(temporary.iterdir()) == []


def test_a_lock_is_not_inherited_by_a_command_that_lives_on(temporary: Path) -> None:
    folder = Scratch("paseo")
    child = subprocess.Popen(["sleep", "600"], close_fds=False)
    os.close(folder._lock)  # as the end of our process does
    assert sweep() == 1
    child.kill()
    child.wait()


def test_a_folder_in_the_making_is_not_swept_away(temporary: Path) -> None:
    with ThreadPoolExecutor() as threads:
        made = [threads.submit(Scratch, "diff") for _ in range(50)]
        for _ in range(50):
            sweep()
        assert all(one.result().path.is_dir() for one in made)
