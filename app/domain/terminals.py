"""Terminals that were made through us: each belongs to a session and ends with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from app.domain.ids import SessionId, SessionKey, TerminalId

TerminalKind: TypeAlias = Literal["paseo", "tmux"]
"""Who runs it: the session's Paseo daemon, or tmux on a machine of ours."""
TerminalStatus: TypeAlias = Literal["open", "closed"]

ROWS, COLS = 24, 80
"""The size of a terminal for which none is asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalSpec:
    """A terminal to be made; without a command it runs the user's shell."""

    name: str | None = None
    command: str | None = None
    args: Sequence[str] = ()
    rows: int = ROWS
    cols: int = COLS


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """A terminal as its row has it."""

    id: TerminalId
    session: SessionKey
    session_id: SessionId
    backend: str
    kind: TerminalKind
    place: str
    """Where it can be reached: a backend's name, or what names a data directory on a running kernel."""
    handle: str
    """What it is called there."""
    name: str | None
    command: str | None
    args: Sequence[str]
    cwd: str
    rows: int
    cols: int
    created_at: datetime
    closed_at: datetime | None

    @property
    def status(self) -> TerminalStatus:
        """Whether it can be used."""
        return "open" if self.closed_at is None else "closed"
