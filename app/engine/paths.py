"""Where an agent may work: below the allowed roots, on this machine's disk or by the path's text alone."""

import os
from collections.abc import Iterable
from pathlib import Path, PurePath, PurePosixPath

from app.backends.base import Place
from app.domain.errors import PathNotAllowed

MAX_PATH = 4096


def check_requested(cwd: str | None, place: Place) -> str:
    """The directory to work in, checked; the backend's default if none is named.

    Raises:
        PathNotAllowed: it is not absolute, not a directory, or outside the roots.
    """
    path = Path(cwd) if cwd is not None else Path(place.default_cwd)
    text = str(path)
    if "\x00" in text or len(os.fsencode(text)) > MAX_PATH:
        raise PathNotAllowed(detail="not a path")
    if not path.is_absolute():
        raise PathNotAllowed(detail="cwd must be an absolute path")
    if place.filesystem == "remote":
        _check_lexically(path, place)
        return text
    try:
        path.stat()  # as the system walks it: `file/..` is no directory, though it resolves to one
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError):
        raise PathNotAllowed(detail="cwd does not exist on this machine") from None
    if not resolved.is_dir():
        raise PathNotAllowed(detail="cwd is not a directory")
    if not any(resolved.is_relative_to(_resolved(root)) for root in place.roots):
        raise PathNotAllowed(detail="cwd lies outside the allowed roots")
    return str(resolved)


def check_effective(cwd: str | None, place: Place) -> None:
    """Check the directory that the backend made of the one that was asked for.

    Raises:
        PathNotAllowed: it lies outside the roots.
    """
    if cwd is None:
        return
    if place.filesystem == "remote":
        _check_lexically(PurePosixPath(cwd), place)
        return
    if not lies_below(Path(cwd), place):
        raise PathNotAllowed(detail="the backend chose a directory outside the allowed roots")


def lies_below(path: Path, place: Place) -> bool:
    """Whether a path on this machine, its links followed, lies below one of the roots."""
    resolved = path.resolve()
    return any(resolved.is_relative_to(_resolved(root)) for root in place.roots)


def lies_below_any(places: Iterable[Place], path: Path) -> bool:
    """The same of all the places that are on this machine."""
    return any(place.filesystem == "shared" and lies_below(path, place) for place in places)


def _resolved(root: PurePath) -> Path:
    return Path(root).resolve()


def _check_lexically(path: PurePath, place: Place) -> None:
    if ".." in path.parts or not any(path.is_relative_to(root) for root in place.roots):
        raise PathNotAllowed(detail="cwd lies outside the allowed roots")
