"""Repositories laid as a trap (T18, T23): nothing of theirs is run, and nothing outside the roots is read."""

import hashlib
import os
import struct
import subprocess
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio
import pytest

from app.backends.base import Place
from app.domain.errors import PathNotAllowed, UnsupportedByBackend
from app.engine import diffs, git, merging
from app.engine.files import copy_regular, read_below
from app.engine.paths import lies_below, lies_below_any
from app.engine.repositories import MAX_CONFIG
from tests.engine.worktrees import git as run
from tests.engine.worktrees import two_worktrees, write

pytestmark = pytest.mark.anyio


class Ground:
    """Two worktrees of one repository below an allowed root, a secret beside it, and a trap."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "allowed"
        self.root.mkdir()
        self.one, self.two = two_worktrees(self.root)
        self.secret = folder / "secret"
        self.secret.mkdir()
        run(self.secret, "init", "-q")
        (self.secret / "key").write_text("TOP-SECRET\n")
        run(self.secret, "add", ".")
        run(self.secret, "commit", "-q", "-m", "secret")
        self.sprung = folder / "sprung"
        self.trap = folder / "trap"
        self.trap.write_text(f'#!/bin/sh\necho "$0 $*" >> {self.sprung}\n')
        self.trap.chmod(0o755)
        write(self.one, 2, "mine\n")
        write(self.two, 2, "yours\n")
        self.sprung.unlink(missing_ok=True)

    @property
    def place(self) -> Place:
        return Place(filesystem="shared", default_cwd=self.root, roots=(self.root,))

    def springs(self, *words: str) -> None:
        """The traps are set: whoever runs git in there runs them."""
        command = ["git", *words]
        subprocess.run(command, cwd=self.one, capture_output=True, stdin=subprocess.DEVNULL, timeout=20)
        assert self.sprung.exists()

    async def diff(self) -> diffs.WorkingTreeDiff:
        """The first worktree's diff, which shows nothing that it must not."""
        found = await diffs._diff(str(self.one), self.place)
        assert "SECRET" not in found.diff
        assert not self.sprung.exists(), self.sprung.read_text()
        return found

    async def merge(self) -> frozenset[str] | None:
        """Git's word on the two."""
        may_read = partial(lies_below, place=self.place)
        found = await merging.conflicting(str(self.one), str(self.two), ["a.txt"], may_read)
        assert not self.sprung.exists(), self.sprung.read_text()
        return None if found["a.txt"] is None else frozenset(path for path in found if found[path])


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    """An honest repository, to be spoiled."""
    return Ground(tmp_path)


async def test_an_honest_repository_is_read(ground: Ground) -> None:
    """What the tests below spoil works without that."""
    assert [one.path for one in (await ground.diff()).files] == ["a.txt"]
    assert await ground.merge() == frozenset({"a.txt"})


def settings(ground: Ground) -> None:
    """Everything in a configuration that names a program."""
    for name in ("post-index-change", "reference-transaction", "fsmonitor-watchman", "post-checkout"):
        hook = ground.one / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.symlink_to(ground.trap)
    (ground.one / ".gitattributes").write_text("* filter=evil diff=evil merge=evil\n")
    (ground.one / ".git" / "info").mkdir(exist_ok=True)
    (ground.one / ".git" / "info" / "attributes").write_text("* filter=evil diff=evil merge=evil\n")
    for key in (
        *("core.fsmonitor", "core.pager", "core.sshCommand", "core.gitProxy", "core.askPass", "core.editor"),
        *("diff.external", "diff.evil.command", "diff.evil.textconv", "interactive.diffFilter"),
        *("filter.evil.clean", "filter.evil.smudge", "filter.evil.process", "merge.evil.driver"),
        *("pager.diff", "pager.config", "alias.diff", "alias.rev-parse", "credential.helper", "gpg.program"),
    ):
        run(ground.one, "config", key, str(ground.trap))
    run(ground.one, "config", "core.hooksPath", str(ground.one / ".git" / "hooks"))
    ground.sprung.unlink(missing_ok=True)


async def test_t23_nothing_that_a_configuration_names_is_run(ground: Ground) -> None:
    settings(ground)
    assert {one.path for one in (await ground.diff()).files} == {"a.txt", ".gitattributes"}
    assert await ground.merge() is None, "how they would merge it is not known"
    ground.springs("status")


@pytest.mark.parametrize("missing", ["HEAD", "HEAD^{tree}", "HEAD:a.txt"])
async def test_t23_what_a_partial_clone_lacks_is_not_fetched(ground: Ground, missing: str) -> None:
    """Also where git is too old to know GIT_NO_LAZY_FETCH: fetching runs what the remote names."""
    name = run(ground.one, "rev-parse", missing)
    for key, value in {
        "extensions.partialClone": "evil",
        "remote.evil.promisor": "true",
        "remote.evil.url": f"ext::{ground.trap}",
        "remote.evil.uploadpack": str(ground.trap),
        "remote.evil.vcs": "ext",
        "protocol.ext.allow": "always",
        "core.repositoryFormatVersion": "1",
    }.items():
        run(ground.one, "config", key, value)
    (ground.one / ".git" / "objects" / name[:2] / name[2:]).unlink()
    assert await ground.merge() is None
    with pytest.raises(UnsupportedByBackend):
        await ground.diff()
    ground.springs("show", missing)


async def test_t18_what_a_configuration_includes_is_not_read(ground: Ground) -> None:
    """A pipe that nobody writes to would be waited for."""
    os.mkfifo(ground.secret / "pipe")
    with (ground.one / ".git" / "config").open("a") as config:
        config.write(f"[include]\n\tpath = {ground.secret}/pipe\n")
    with anyio.fail_after(8):
        assert [one.path for one in (await ground.diff()).files] == ["a.txt"]
        assert await ground.merge() == frozenset({"a.txt"})


def _other_repository(ground: Ground) -> None:
    (ground.two / ".git").write_text(f"gitdir: {ground.secret}/.git\n")
    (ground.one / ".git").rename(ground.root / "moved")
    (ground.one / ".git").write_text(f"gitdir: {ground.secret}/.git\n")


def _linked_repository(ground: Ground) -> None:
    (ground.one / ".git").rename(ground.root / "moved")
    (ground.one / ".git").symlink_to(ground.secret / ".git")


def _common_elsewhere(ground: Ground) -> None:
    (ground.one / ".git" / "commondir").write_text(f"{ground.secret}/.git\n")


def _other_working_tree(ground: Ground) -> None:
    run(ground.one, "config", "core.worktree", str(ground.secret))


def _own_working_tree_setting(ground: Ground) -> None:
    run(ground.one, "config", "extensions.worktreeConfig", "true")
    own = f"[core]\n\tworktree = {ground.secret}\n"
    (ground.one / ".git" / "config.worktree").write_text(own)


def _borrowed_objects(ground: Ground) -> None:
    alternates = ground.one / ".git" / "objects" / "info" / "alternates"
    alternates.write_text(f"# mine\n\n{ground.secret}/.git/objects\n")


def _borrowed_in_quotes(ground: Ground) -> None:
    alternates = ground.one / ".git" / "objects" / "info" / "alternates"
    alternates.write_text(f'"{ground.secret}/.git/objects"\n')


def _linked_objects(ground: Ground) -> None:
    objects = ground.one / ".git" / "objects"
    objects.rename(ground.root / "objects")
    objects.symlink_to(ground.secret / ".git" / "objects")


def _a_linked_pack(ground: Ground) -> None:
    pack = ground.one / ".git" / "objects" / "pack"
    (pack / "pack-x.pack").symlink_to(ground.secret / "key")


@pytest.mark.parametrize(
    "spoil",
    [
        *(_other_repository, _linked_repository, _common_elsewhere),
        *(_other_working_tree, _own_working_tree_setting),
        *(_borrowed_objects, _borrowed_in_quotes, _linked_objects, _a_linked_pack),
    ],
)
async def test_t18_what_leads_out_of_the_roots_is_refused(
    ground: Ground, spoil: Callable[[Ground], None]
) -> None:
    spoil(ground)
    with pytest.raises(PathNotAllowed):
        await ground.diff()
    assert await ground.merge() is None


def _linked_head(ground: Ground) -> None:
    head = ground.one / ".git" / "HEAD"
    head.unlink()
    head.symlink_to(ground.secret / ".git" / "refs" / "heads" / "main")


def _linked_ref(ground: Ground) -> None:
    ref = ground.one / ".git" / "refs" / "heads" / "main"
    ref.unlink()
    ref.symlink_to(ground.secret / ".git" / "refs" / "heads" / "main")


def _linked_index(ground: Ground) -> None:
    (ground.one / ".git" / "index").unlink()
    (ground.one / ".git" / "index").symlink_to(ground.secret / ".git" / "index")


def _head_that_climbs(ground: Ground) -> None:
    head = "ref: refs/../../../../secret/.git/refs/heads/main\n"
    (ground.one / ".git" / "HEAD").write_text(head)


def _head_in_a_circle(ground: Ground) -> None:
    (ground.one / ".git" / "HEAD").write_text("ref: refs/heads/a\n")
    (ground.one / ".git" / "refs" / "heads" / "a").write_text("ref: refs/heads/a\n")


def _config_of_no_use(ground: Ground) -> None:
    (ground.one / ".git" / "config").write_bytes(b"[core\xff\n\x00= =\n")


def _config_without_end(ground: Ground) -> None:
    with (ground.one / ".git" / "config").open("ab") as config:
        config.truncate(MAX_CONFIG + 1)


def _config_that_is_a_pipe(ground: Ground) -> None:
    (ground.one / ".git" / "config").unlink()
    os.mkfifo(ground.one / ".git" / "config")


def _pointer_of_no_use(ground: Ground) -> None:
    (ground.one / ".git" / "commondir").write_text("\x00\n")


def _pointer_in_a_circle(ground: Ground) -> None:
    (ground.one / ".git" / "commondir").symlink_to("commondir")


def _references_elsewhere(ground: Ground) -> None:
    run(ground.one, "config", "extensions.refStorage", "reftable")


def _names_of_another_form(ground: Ground) -> None:
    run(ground.one, "config", "extensions.objectFormat", "sha256")


@pytest.mark.parametrize(
    "spoil",
    [
        *(_linked_head, _linked_ref, _head_that_climbs, _head_in_a_circle),
        *(_config_of_no_use, _config_without_end, _config_that_is_a_pipe),
        *(_pointer_of_no_use, _pointer_in_a_circle, _references_elsewhere, _names_of_another_form),
    ],
)
async def test_what_cannot_be_read_is_said_so(ground: Ground, spoil: Callable[[Ground], None]) -> None:
    spoil(ground)
    with anyio.fail_after(5), pytest.raises(UnsupportedByBackend):
        await ground.diff()
    assert await ground.merge() is None


async def test_an_index_that_is_a_link_is_not_read(ground: Ground) -> None:
    _linked_index(ground)
    with pytest.raises(UnsupportedByBackend):
        await ground.diff()
    assert await ground.merge() == frozenset({"a.txt"}), "a merge needs none"


def index(*names: str, mode: int = 0o100644) -> bytes:
    """An index with these names, as no git would write them."""
    content = b"DIRC" + struct.pack(">II", 2, len(names))
    for name in sorted(names):
        raw = name.encode()
        entry = struct.pack(">10I", 0, 0, 0, 0, 0, 0, mode, 0, 0, 0) + b"\x11" * 20
        entry += struct.pack(">H", len(raw)) + raw
        content += entry + b"\0" * (8 - len(entry) % 8)
    return content + hashlib.sha1(content, usedforsecurity=False).digest()


@pytest.mark.parametrize(
    "name", ["../../secret/key", "/{}/key", "x/../../../secret/key", "./a.txt", ".git/config"]
)
async def test_t18_an_index_that_leads_out_is_not_believed(ground: Ground, name: str) -> None:
    """Git reads the files that an index names, wherever that is."""
    (ground.one / ".git" / "index").write_bytes(index(name.format(str(ground.secret)[1:])))
    assert [one.path for one in (await ground.diff()).files] == ["a.txt"]


async def test_t18_a_folder_that_became_a_link_leads_nowhere(ground: Ground) -> None:
    """Neither for what is indexed below it, nor for a file that was written there."""
    (ground.one / "d").mkdir()
    (ground.one / "d" / "key").write_text("mine\n")
    run(ground.one, "add", ".")
    (ground.one / "d" / "key").unlink()
    (ground.one / "d").rmdir()
    (ground.one / "d").symlink_to(ground.secret)
    await ground.diff()
    with pytest.raises(OSError, match="Not a directory"):
        read_below(ground.one, "d/key", 100)
    for name in ("../key", "/etc/passwd", "a//b", "", "d/."):
        with pytest.raises(ValueError, match="below"):
            read_below(ground.one, name, 100)


async def test_t18_a_submodule_elsewhere_is_not_asked(ground: Ground) -> None:
    """Its commit would be told; one that lies where it should is told."""
    commit = run(ground.secret, "rev-parse", "HEAD")
    for name in ("inside", "outside"):
        (ground.one / name).mkdir()
    run(ground.one / "inside", "init", "-q")
    run(ground.one / "inside", "commit", "-q", "--allow-empty", "-m", "first")
    (ground.one / ".git" / "index").write_bytes(index("inside", mode=0o160000))
    assert "Subproject commit" in (await ground.diff()).diff
    (ground.one / "outside" / ".git").write_text(f"gitdir: {ground.secret}/.git\n")
    (ground.one / ".git" / "index").write_bytes(index("inside", "outside", mode=0o160000))
    assert commit not in (await ground.diff()).diff


async def test_a_pipe_where_a_file_was_is_not_waited_for(ground: Ground) -> None:
    """To git it is none: the file is gone."""
    (ground.one / "a.txt").unlink()
    os.mkfifo(ground.one / "a.txt")
    with anyio.fail_after(5):
        found = await ground.diff()
    assert [(one.path, one.additions, one.deletions) for one in found.files] == [("a.txt", 0, 20)]
    assert not found.truncated


@pytest.mark.parametrize("name", [".gitignore", ".gitattributes", ".gitmodules", "d/e/.gitignore"])
async def test_t23_a_pipe_that_git_would_wait_for_is_refused_at_once(ground: Ground, name: str) -> None:
    """In any folder, and by a link; the answer names it."""
    (ground.one / "d" / "e").mkdir(parents=True)
    os.mkfifo(ground.one / name)
    with anyio.fail_after(3), pytest.raises(UnsupportedByBackend, match=name):
        await ground.diff()
    if name == ".gitmodules":
        (ground.one / name).rename(ground.one / "pipe")
        (ground.one / name).symlink_to("pipe")
        with anyio.fail_after(3), pytest.raises(UnsupportedByBackend, match=name):
            await ground.diff()


async def test_a_pipe_that_comes_when_nobody_looks_ends_with_the_time(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffs, "GIT_S", 2.0)
    monkeypatch.setattr(diffs, "LOOK_SHARE", 0.0)
    os.mkfifo(ground.one / ".gitattributes")
    with anyio.fail_after(8):
        with suppress(UnsupportedByBackend):
            assert (await ground.diff()).truncated


async def test_a_huge_file_is_told_without_reading_it(ground: Ground) -> None:
    """In the working tree or in a commit, however small it is packed."""
    for name in ("new", "old"):
        with (ground.one / name).open("wb") as file:
            file.truncate(2 * git.MEMORY_KIB * 1024 if name == "new" else 40 * 1024 * 1024)
    run(ground.one, "add", "old")
    run(ground.one, "commit", "-q", "-m", "huge")
    (ground.one / "old").write_text("small\n")
    found = await ground.diff()
    told = {one.path: (one.additions, one.deletions) for one in found.files}
    assert told == {"a.txt": (1, 1), "new": (None, None), "old": (None, None)}
    assert "Binary files" in found.diff


async def test_git_runs_within_bounds_and_with_nobody_s_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of memory, of what it writes, of time; whatever the service's own environment says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = "#!/bin/sh\nulimit -v; ulimit -f; ulimit -c; env; [ -z $SLEEPS ] || exec sleep 60\n"
    (folder / "git").write_text(script)
    (folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "evil")
    monkeypatch.setenv("LD_PRELOAD", "")
    until = anyio.current_time() + 20
    done = await git.run_git(["x"], git_dir=tmp_path, until=until, most=65536)
    lines = done.stdout.decode().splitlines()
    assert lines[:3] == [str(git.MEMORY_KIB), str(git.FILE_BLOCKS), "0"]
    names = dict(line.split("=", 1) for line in lines[3:] if "=" in line)
    assert names["GIT_DIR"] == str(tmp_path)
    assert (names["GIT_ALLOW_PROTOCOL"], names["GIT_CONFIG_GLOBAL"]) == ("none", os.devnull)
    assert not {"GIT_EXTERNAL_DIFF", "LD_PRELOAD", "ALAMEDA_API_KEY", "DATABASE_URL"} & names.keys()
    cut = await git.run_git(["x"], git_dir=tmp_path, until=until, most=10)
    assert (cut.code, len(cut.stdout)) == (None, 10)
    late = await git.run_git(
        ["x"], git_dir=tmp_path, until=anyio.current_time() + 0.2, most=10**6, env={"SLEEPS": "1"}
    )
    assert late.code is None


async def test_where_git_is_not_installed_that_is_said(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(ground.root))
    with pytest.raises(UnsupportedByBackend, match="not installed"):
        await ground.diff()
    assert await ground.merge() is None


async def test_a_copy_has_a_bound_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100)
    assert copy_regular(tmp_path / "a", tmp_path / "b", 100)
    assert (tmp_path / "b").read_bytes() == b"x" * 100
    assert not copy_regular(tmp_path / "a", tmp_path / "c", 99)
    (tmp_path / "link").symlink_to("a")
    with pytest.raises(OSError, match="symbolic link"):
        copy_regular(tmp_path / "link", tmp_path / "d", 100)


async def test_what_may_be_read_lies_below_a_root_on_this_machine(tmp_path: Path) -> None:
    """A remote backend's roots are on another disk."""
    places = [
        Place(filesystem="shared", default_cwd=tmp_path, roots=(tmp_path / "a",)),
        Place(filesystem="remote", default_cwd=tmp_path, roots=(tmp_path / "b",)),
    ]
    assert [lies_below_any(places, tmp_path / name) for name in ("a", "a/x", "b", "ab", "a/../b")] == [
        *(True, True, False, False, False)
    ]
