"""Where a twin's agents work: the root of a repository, a worktree, the project that they belong to.

Nothing of git is run: a folder `.git` with `HEAD` and `refs/heads` makes a repository.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]


class Refused(Exception):
    """What was asked for cannot be done, for the reason that the client is told."""


@dataclass(frozen=True)
class Place:
    """A folder and the repository around it."""

    cwd: str
    root: str | None
    branch: str | None = None
    main_root: str | None = None
    """The repository that a worktree belongs to."""

    def project(self) -> Json:
        """The project that stands beside an agent's snapshot."""
        key = self.main_root or self.root or self.cwd
        return {
            "projectKey": key,
            "projectName": Path(key).name,
            "checkout": {
                "cwd": self.root or self.cwd,
                "isGit": self.root is not None,
                "currentBranch": self.branch,
                "remoteUrl": None,
                "worktreeRoot": self.root,
                "isPaseoOwnedWorktree": self.main_root is not None,
                "mainRepoRoot": self.main_root,
            },
        }

    def checkout_status(self) -> Json:
        """What `checkout_status_update` says of a new worktree."""
        made_up = f"subscription:{self.cwd}"
        nothing = {"status": None, "githubFeaturesEnabled": False, "error": None, "requestId": made_up}
        return {
            "cwd": self.cwd,
            "isGit": True,
            "repoRoot": self.root,
            "mainRepoRoot": self.main_root,
            "currentBranch": self.branch,
            "isDirty": False,
            "baseRef": "main",
            "aheadBehind": {"ahead": 0, "behind": 0},
            "aheadOfOrigin": None,
            "behindOfOrigin": None,
            "hasRemote": False,
            "remoteUrl": None,
            "isPaseoOwnedWorktree": True,
            "error": None,
            "requestId": made_up,
            "prStatus": {"cwd": self.cwd, **nothing},
        }


def find(cwd: str) -> Place:
    """The place at a path, which need not exist."""
    path = Path(cwd).expanduser().absolute()
    for folder in (path, *path.parents):
        head = folder / ".git" / "HEAD"
        if head.is_file():
            return Place(str(path), str(folder), head.read_text().strip().rpartition("/")[2])
        link = folder / ".git"
        if link.is_file():
            branch, _, main_root = link.read_text().strip().partition(" of ")
            return Place(str(path), str(folder), branch, main_root)
    return Place(str(path), None)


def for_new_agent(cwd: str) -> Place:
    """The place of a new agent: the root of the repository around it, even where the folder is missing."""
    place = find(cwd)
    if place.root is not None:
        return Place(place.root, place.root, place.branch, place.main_root)
    if not Path(place.cwd).is_dir():
        raise Refused(f"Working directory does not exist: {cwd}")
    return place


def worktree(place: Place, home: Path, wish: Json) -> Place:
    """A new worktree of a repository."""
    if place.root is None:
        raise Refused("Create worktree requires a git repository")
    heads = Path(place.root) / ".git" / "refs" / "heads"
    base = wish.get("baseBranch") or place.branch or "main"
    if not (heads / base).is_file():
        raise Refused(f"Base branch not found: {base}")
    slug = wish.get("worktreeSlug") or wish.get("newBranchName") or "worktree"
    branch = wish.get("newBranchName") or slug
    folder = home / "worktrees" / f"{abs(hash(place.root)):x}"[:18] / slug
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".git").write_text(f"{branch} of {place.root}")
    return Place(str(folder), str(folder), branch, place.root)
