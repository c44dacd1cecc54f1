"""Bodies of terminals: what to run, what to type, what is found."""

from typing import Annotated, Literal, Self

import msgspec
from pydantic import AfterValidator, Field, StringConstraints, model_validator

from app.api.schemas.bodies import ListView, RequestBody, Timestamp, View
from app.api.schemas.text import STORABLE, Name
from app.backends.terminals import Captured
from app.domain.search import Match
from app.domain.terminals import COLS, ROWS, Terminal, TerminalKind, TerminalSpec, TerminalStatus
from app.engine.terminal_search import Answer, Answers, Source

MAX_COMMAND_BYTES = 8 * 1024
"""UTF-8 bytes of a command with its arguments; tmux takes twice as much with everything around."""
MAX_INPUT_BYTES = 64 * 1024
"""UTF-8 bytes that one request types."""

Rows = Annotated[int, Field(ge=1, le=500)]
Cols = Annotated[int, Field(ge=2, le=1000)]
Argument = Annotated[str, StringConstraints(max_length=MAX_COMMAND_BYTES), STORABLE]


def _typable(text: str) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError("must not hold half a surrogate pair") from None
    if size > MAX_INPUT_BYTES:
        raise ValueError(f"must have at most {MAX_INPUT_BYTES} bytes of UTF-8")
    return text


def _short(arguments: list[str]) -> list[str]:
    if sum(len(argument.encode()) + 1 for argument in arguments) > MAX_COMMAND_BYTES:
        raise ValueError(f"must have at most {MAX_COMMAND_BYTES} bytes of UTF-8 together")
    return arguments


class CreateTerminalBody(RequestBody):
    """A terminal to be made; without a command it runs the user's shell."""

    name: Name | None = None
    command: Annotated[str, StringConstraints(min_length=1, max_length=2048), STORABLE] | None = Field(
        None, description="The program; never read by a shell."
    )
    args: Annotated[list[Argument], Field(max_length=256), AfterValidator(_short)] | None = Field(
        None, description="Its arguments; only with a command."
    )
    rows: Rows | None = Field(None, json_schema_extra={"default": ROWS})
    cols: Cols | None = Field(None, json_schema_extra={"default": COLS})

    @model_validator(mode="after")
    def _runs_what_it_has_arguments_for(self) -> Self:
        if self.args and self.command is None:
            raise ValueError("args must come with a command")
        return self

    def to_domain(self) -> TerminalSpec:
        """What to make."""
        return TerminalSpec(
            name=self.name,
            command=self.command,
            args=self.args or [],
            rows=self.rows or ROWS,
            cols=self.cols or COLS,
        )


class InputBody(RequestBody):
    """What to type, control characters included."""

    data: Annotated[str, Field(min_length=1), AfterValidator(_typable)] = Field(repr=False)


class ResizeBody(RequestBody):
    """A terminal's size."""

    rows: Rows
    cols: Cols


class TerminalView(View):
    """A terminal that was made through us."""

    terminal_id: str
    session_id: str
    kind: TerminalKind
    name: str | None
    command: str | None
    args: list[str]
    cwd: str
    rows: int
    cols: int
    status: TerminalStatus
    created_at: Timestamp
    closed_at: Timestamp | None
    stream_url: str

    @classmethod
    def from_domain(cls, terminal: Terminal) -> Self:
        """A terminal as it stands."""
        return cls(
            terminal_id=terminal.id,
            session_id=terminal.session_id,
            kind=terminal.kind,
            name=terminal.name,
            command=terminal.command,
            args=list(terminal.args),
            cwd=terminal.cwd,
            rows=terminal.rows,
            cols=terminal.cols,
            status=terminal.status,
            created_at=terminal.created_at,
            closed_at=terminal.closed_at,
            stream_url=f"/v1/terminals/{terminal.id}/output/stream",
        )


class TerminalList(ListView[TerminalView]):
    """Terminals, newest first."""


class CaptureView(View):
    """Lines of the scrollback and the screen, the oldest first."""

    lines: list[str]
    total_lines: int


def capture_json(captured: Captured) -> bytes:
    """A `CaptureView`; may be called in any thread."""
    try:
        return msgspec.json.encode({"lines": captured.lines, "total_lines": captured.total_lines})
    except UnicodeEncodeError:  # half a surrogate pair
        lines = [line.encode(errors="replace").decode() for line in captured.lines]
        return msgspec.json.encode({"lines": lines, "total_lines": captured.total_lines})


class MatchView(View):
    """One place that was found."""

    line: int = Field(description="From 0, in the text of the source.")
    column: int = Field(description="From 0, in cells of the terminal.")
    length: int = Field(description="In cells of the terminal.")
    text: str = Field(description="The line; of a long one what stands around the match.")
    before: list[str]
    after: list[str]

    @classmethod
    def from_domain(cls, match: Match) -> Self:
        """A match."""
        return cls(
            line=match.line,
            column=match.column,
            length=match.length,
            text=match.text,
            before=match.before,
            after=match.after,
        )


class SearchView(View):
    """What one terminal has, from the top down."""

    matches: list[MatchView]
    source: Source = Field(description="`ring`: the newest output as it came; `capture`: what stands there.")
    truncated: bool = Field(description="Whether there may be more.")

    @classmethod
    def from_domain(cls, answer: Answer) -> Self:
        """An answer."""
        return cls(
            matches=[MatchView.from_domain(match) for match in answer.matches],
            source=answer.source,
            truncated=answer.truncated,
        )


class TerminalMatchesView(SearchView):
    """What one of several terminals has."""

    terminal_id: str
    session_id: str
    name: str | None


class UnreachableView(View):
    """A terminal that could not be looked through here and now."""

    terminal_id: str
    code: Literal["backend_unavailable"] = "backend_unavailable"


class SearchAllView(View):
    """What several open terminals have; those without a match are left out."""

    items: list[TerminalMatchesView]
    unreachable: list[UnreachableView]
    truncated: bool

    @classmethod
    def from_answers(cls, answers: Answers) -> Self:
        """Answers, the newest terminal's first."""
        return cls(
            items=[
                TerminalMatchesView(
                    **SearchView.from_domain(one).model_dump(),
                    terminal_id=one.terminal.id,
                    session_id=one.terminal.session_id,
                    name=one.terminal.name,
                )
                for one in answers.found
            ],
            unreachable=[UnreachableView(terminal_id=one.id) for one in answers.unreachable],
            truncated=answers.truncated,
        )
