"""Git repositories on the disk, and what agents are supposed to have done to them."""

import subprocess
from pathlib import Path

TEXT = "".join(f"line {n}\n" for n in range(1, 21))


def git(where: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "init.defaultBranch=main")
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=where, capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()


def two_worktrees(folder: Path, *files: str) -> tuple[Path, Path]:
    """A repository with a commit, and a second worktree of it."""
    one, two = folder / "one", folder / "two"
    one.mkdir()
    git(one, "init", "-q")
    for name in files or ("a.txt",):
        (one / name).parent.mkdir(exist_ok=True)
        (one / name).write_text(TEXT)
    git(one, "add", ".")
    git(one, "commit", "-q", "-m", "first")
    git(one, "worktree", "add", "-q", "-b", "side", str(two))
    return one, two


def write(where: Path, line: int, text: str, name: str = "a.txt") -> None:
    lines = (where / name).read_text().splitlines(keepends=True)
    lines[line - 1] = text
    (where / name).write_text("".join(lines))
