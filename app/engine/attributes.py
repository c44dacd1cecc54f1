"""Which files a repository stores or merges in a way of its own: a plain merge says nothing of them."""

import errno
import posixpath
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from app.engine.disk import read_disk
from app.engine.files import read_below, read_regular
from app.engine.git import run_git
from app.engine.repositories import Repository

MAX_ATTRIBUTES = 256 * 1024
"""Bytes of one file of attributes."""
MAX_ANSWER = 8 * 1024 * 1024
"""Bytes of what git says of the files' attributes."""
_ENDS = ("text", "eol", "crlf")
"""Attributes that change the ends of lines, in a file that has a carriage return."""
_CONTENT = ("filter", "ident", "working-tree-encoding")
"""Attributes that change what is stored of a file."""


class CannotTell(Exception):
    """What would have to be known cannot be read."""


async def set_apart(
    found: Repository,
    paths: Collection[str],
    *,
    with_cr: Collection[str],
    git_dir: Path,
    tree: Path,
    until: float,
) -> frozenset[str]:
    """Which of `paths` have attributes that a merge without them may tell falsely of.

    `with_cr` have carriage returns. `git_dir` is a bare repository of ours, whose own attributes are
    replaced, and `tree` a folder that is made.

    Raises:
        CannotTell: the attributes cannot be read.
    """

    if "core.attributesfile" in found.settings:
        raise CannotTell

    def copy() -> bool:
        own = _read(found.common / "info" / "attributes", MAX_ATTRIBUTES)
        (git_dir / "info").mkdir(exist_ok=True)
        (git_dir / "info" / "attributes").write_bytes(own)
        tree.mkdir()
        is_any = bool(own)
        for name, content in _in_tree(found.root, paths):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(content)
            is_any = True
        asked.write_bytes(b"".join(path.encode() + b"\0" for path in paths))
        return is_any

    asked = tree.with_suffix(".paths")
    is_any = await read_disk(copy)
    apart = set(with_cr) if "core.autocrlf" in found.settings else set()
    if is_any:
        words = ["check-attr", "-z", "--stdin", "merge", *_ENDS, *_CONTENT]
        told = await run_git(
            words,
            git_dir=git_dir,
            until=until,
            most=MAX_ANSWER,
            env={"GIT_WORK_TREE": str(tree)},
            cwd=tree,
            stdin=asked,
        )
        if told.code != 0:
            raise CannotTell
        parts = iter(told.stdout.decode(errors="replace").split("\0")[:-1])
        attributes: dict[str, dict[str, str]] = {path: {} for path in paths}
        for path, name, value in zip(parts, parts, parts, strict=True):
            attributes[path][name] = value
        apart |= {path for path, told_ in attributes.items() if _is_apart(told_, path in with_cr)}
    return frozenset(apart)


def _is_apart(attributes: Mapping[str, str], has_cr: bool) -> bool:
    ends = any(attributes[name] not in ("unspecified", "unset") for name in _ENDS)
    content = any(attributes[name] not in ("unspecified", "unset") for name in _CONTENT)
    return attributes["merge"] not in ("unspecified", "set", "text") or content or (ends and has_cr)


def _in_tree(root: Path, paths: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """The files of attributes on the way to `paths`; git, too, follows no link to one."""
    folders = {""}
    for path in paths:
        while path := posixpath.dirname(path):
            folders.add(path)
    for folder in folders:
        name = posixpath.join(folder, ".gitattributes")
        try:
            found = read_below(root, name, MAX_ATTRIBUTES)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise CannotTell from None
            continue
        if found is None:
            raise CannotTell
        yield name, found[0]


def _read(path: Path, most: int) -> bytes:
    try:
        found = read_regular(path, most)
    except FileNotFoundError:
        return b""
    except OSError:
        found = None
    if found is None:
        raise CannotTell
    return found[0]
