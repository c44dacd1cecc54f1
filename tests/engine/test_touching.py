"""Where a written file lies in its worktree: as the disk has it, or by the path's text alone."""

import os
from pathlib import Path
from typing import Any, cast

import pytest

from app.backends.base import Place
from app.domain.collisions import Touched
from app.domain.details import Edit, Unknown, Write
from app.domain.events import Location, ToolCallCompleted
from app.domain.ids import TurnId
from app.domain.sessions import Session
from app.domain.touches import WHOLE
from app.engine.touching import MAX_EDITS, MAX_SNIPPET_FILE, find_touched, spelling
from app.store.touches import MAX_PATH


class Working:
    """What is needed of a session."""

    backend = "far"

    def __init__(self, cwd: Path, project_id: str | None = "p") -> None:
        self.cwd = str(cwd)
        self.project_id = project_id


def place(filesystem: Any = "shared") -> Place:
    return Place(filesystem=filesystem, default_cwd=Path("/"), roots=(Path("/"),))


def call(path: str, kind: Any = "edit", detail: Any = None) -> ToolCallCompleted:
    return ToolCallCompleted(
        tool_call_id="c",
        name=None,
        title=None,
        kind=kind,
        status="completed",
        locations=[Location(path=path)],
        detail=detail or Unknown(),
        error=None,
    )


async def touched(cwd: Path, *calls: ToolCallCompleted, on: Any = "shared") -> list[Touched]:
    events = [(TurnId("t"), call) for call in calls]
    return await find_touched(cast(Session, Working(cwd)), place(on), events)


async def paths(cwd: Path, *names: str, on: Any = "shared", kind: Any = "edit") -> list[str]:
    return [one.path for one in await touched(cwd, *(call(name, kind) for name in names), on=on)]


@pytest.fixture
def worktree(tmp_path: Path) -> Path:
    """The root of a worktree, with a folder that has a file."""
    root = tmp_path / "tree"
    (root / "src").mkdir(parents=True)
    (root / ".git").write_text("gitdir: /elsewhere\n")  # as git makes it in a linked worktree
    (root / "src" / "a.py").write_text("one\ntwo\nthree\n")
    return root


async def test_paths_are_relative_to_the_worktree_s_root_wherever_in_it_the_agent_works(
    worktree: Path,
) -> None:
    for name in ("a.py", "./a.py", "../src/a.py", "x/../a.py", str(worktree / "src" / "a.py")):
        assert await paths(worktree / "src", name) == ["src/a.py"], name
    (one,) = await touched(worktree / "src", call("a.py"))
    assert (one.root, one.remote) == (str(worktree.resolve()), None)


async def test_without_a_repository_the_working_directory_is_the_root(tmp_path: Path) -> None:
    assert await paths(tmp_path, "a", str(tmp_path / "b")) == ["a", "b"]


async def test_links_lead_to_the_file_that_is_written(worktree: Path) -> None:
    """To a file, to a folder, and to the root itself; what is deleted is the link."""
    (worktree / "link.py").symlink_to("src/a.py")
    (worktree / "folder").symlink_to("src")
    root = worktree.parent / "root"
    root.symlink_to(worktree)
    for name in ("link.py", "folder/a.py", str(root / "src" / "a.py"), str(root / "link.py")):
        assert await paths(root, name) == ["src/a.py"], name
    assert await paths(worktree, "folder/new.py") == ["src/new.py"]
    assert await paths(worktree, "link.py", kind="delete") == ["link.py"]
    assert await paths(worktree, "folder/a.py", kind="delete") == ["src/a.py"]


async def test_a_repository_within_the_worktree_has_a_root_of_its_own(worktree: Path) -> None:
    """Whoever works in it has the same root, and what lies beside it has the outer one."""
    inner = worktree / "src" / "inner"
    (inner / "deep").mkdir(parents=True)
    (inner / ".git").mkdir()
    for cwd, name in ((worktree, "src/inner/deep/b.py"), (inner, "deep/b.py"), (inner / "deep", "b.py")):
        (one,) = await touched(cwd, call(name))
        assert (one.root, one.path) == (str(inner.resolve()), "deep/b.py")
    (one,) = await touched(worktree, call("src/a.py"))
    assert one.root == str(worktree.resolve())
    assert await paths(inner, "../a.py") == []


async def test_what_lies_outside_the_worktree_takes_no_part(worktree: Path) -> None:
    """Nor does the root itself, and a link that leads out is no way round."""
    (worktree / "out").symlink_to(worktree.parent)
    for name in ("/etc/hosts", "../x", "out/x", "src/../../x", ".", "src/..", str(worktree), "/"):
        assert await paths(worktree, name) == [], name


@pytest.mark.parametrize("name", ["a\x00b", "x" * 5000, "loop/x", "\ud800", "a.py/x", "d\u00e9/\ufffd"])
async def test_names_that_no_disk_has_harm_nothing(worktree: Path, name: str) -> None:
    (worktree / "loop").symlink_to("loop")
    for found in await paths(worktree, name, "src/a.py"):
        assert len(found.encode()) <= MAX_PATH
        assert "\x00" not in found


async def test_a_path_too_long_to_be_kept_takes_no_part(worktree: Path) -> None:
    """An index of PostgreSQL holds no more than a third of a page: the append would be refused."""
    long = "/".join(["x" * 200] * 6)
    assert await paths(worktree, long) == []
    assert await paths(worktree, long, on="remote") == []


async def test_on_another_machine_paths_are_taken_by_their_text(tmp_path: Path) -> None:
    """Nothing is looked up here: what this disk has under that name is another file."""
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / ".git").mkdir()
    cwd = tmp_path / "sub"
    names = ("a", "./a", "x/../a", str(cwd / "a"))
    for name in names:
        assert await paths(cwd, name, on="remote") == ["a"], name
    assert await paths(tmp_path, "link/hosts", on="remote") == ["link/hosts"]
    assert await paths(cwd, "../a", "/etc/hosts", on="remote") == []
    (one,) = await touched(cwd, call("a"), on="remote")
    assert (one.root, one.remote) == (str(cwd), "far")


@pytest.mark.parametrize(
    "cwd", ["/far/re\u0301po", "//far/r\u00e9po/", "/far/./x/../r\u00e9po", "/far//r\u00e9po/."]
)
async def test_of_many_spellings_of_a_far_path_one_is_kept(cwd: str) -> None:
    """Dots, slashes and composed letters; upper and lower case are two, and a backslash is a letter."""
    for name in (
        *("d/caf\u00e9", "./d//cafe\u0301", "d/x/../caf\u00e9", "d/./caf\u00e9/", f"{cwd}/d/caf\u00e9"),
        *("/far/r\u00e9po/d/caf\u00e9", "//far/re\u0301po/d/caf\u00e9", "../r\u00e9po/d/caf\u00e9"),
    ):
        (one,) = await touched(Path(cwd), call(name), on="remote")
        assert (one.root, one.path) == ("/far/r\u00e9po", "d/caf\u00e9"), name
    assert await paths(Path(cwd), "D/caf\u00e9", "d\\caf\u00e9", on="remote") == [
        "D/caf\u00e9",
        "d\\caf\u00e9",
    ]
    for name in ("..", "../../x", "/far", "/far/r\u00e9po2/a", "/"):
        assert await paths(Path(cwd), name, on="remote") == [], name


async def test_a_call_that_names_a_file_twice_tells_of_it_once(worktree: Path) -> None:
    """Where it is, spelled in another way than in what changed."""
    file = str(worktree / "src" / "a.py")
    edit = Edit(path="src/a.py", diff="@@ -2 +2 @@\n-two\n+2\n")
    for path in (file, "src/../src/a.py"):
        (one,) = await touched(worktree, call(path, detail=edit))
        assert one.edits == (((2, 1, 1),),)


def test_a_name_is_spelled_as_its_directory_lists_it() -> None:
    """Where upper and lower case are the same; asked for exactly, a name is itself."""
    assert spelling("README.md", ["a", "Readme.md"]) == "Readme.md"
    assert spelling("readme", ["README", "readme"]) == "readme"
    assert spelling("caf\u00e9", ["CAFE\u0301"]) == "CAFE\u0301"
    assert spelling("new", ["other"]) == "new"


async def test_where_case_matters_two_spellings_are_two_files(worktree: Path) -> None:
    """Even if one is a hard link to the other."""
    (worktree / "src" / "A.py").hardlink_to(worktree / "src" / "a.py")
    assert await paths(worktree, "src/a.py", "src/A.py") == ["src/a.py", "src/A.py"]


async def test_an_edit_without_lines_is_looked_for_in_the_file(worktree: Path) -> None:
    """What was put in stands there now; twice, or not at all, tells nothing."""
    file = worktree / "src" / "a.py"
    edit = Edit(path=str(file), old_text="2\n", new_text="two\n")
    (one,) = await touched(worktree, call(str(file), detail=edit))
    assert one.edits == (((2, 1, 1),),)
    file.write_text("two\ntwo\n")
    assert (await touched(worktree, call(str(file), detail=edit)))[0].edits == (None,)
    file.write_bytes(b"\xff" * (MAX_SNIPPET_FILE + 1))
    assert (await touched(worktree, call(str(file), detail=edit)))[0].edits == (None,)
    file.unlink()
    os.mkfifo(file)  # opening one waits for a writer
    assert (await touched(worktree, call(str(file), detail=edit)))[0].path == "src/a.py"


async def test_a_file_that_cannot_be_read_is_where_it_is_all_the_same(worktree: Path) -> None:
    """Gone again, or another's: only its lines are unknown, and its place is no less sure."""
    edit = Edit(path="gone.py", old_text="a\n", new_text="b\n")
    (one,) = await touched(worktree / "src", call("gone.py", detail=edit))
    assert (one.root, one.path, one.edits) == (str(worktree.resolve()), "src/gone.py", (None,))
    (worktree / "src" / "loop.py").symlink_to("loop.py")
    edit = Edit(path="loop.py", old_text="a\n", new_text="b\n")
    (one,) = await touched(worktree / "src", call("loop.py", detail=edit))
    assert (one.root, one.path, one.edits) == (str(worktree.resolve()), "src/loop.py", (None,))


async def test_a_file_written_twice_in_a_batch_is_kept_once_with_all_that_changed(worktree: Path) -> None:
    """A row can be written only once by a statement."""
    edits = [
        call("src/a.py", detail=Edit(path=path, diff=f"@@ -{line} +{line} @@\n-a\n+b\n"))
        for path, line in (("src/a.py", 1), ("./src/a.py", 9))
    ]
    (one,) = await touched(worktree, *edits)
    assert (one.path, one.kind, one.edits) == ("src/a.py", "edit", (((1, 1, 1),), ((9, 1, 1),)))
    (one,) = await touched(worktree, *edits, call("src/a.py", detail=Write(path="src/a.py")))
    assert (one.kind, one.edits[-1]) == ("write", WHOLE)
    (one,) = await touched(worktree, *edits * MAX_EDITS)
    assert one.edits == (None,), "and nobody tells of too many"


async def test_a_session_without_a_project_takes_no_part(worktree: Path) -> None:
    session = cast(Session, Working(worktree, None))
    assert await find_touched(session, place(), [(None, call("a"))]) == []
