"""How a turn looks at a terminal: the agent's text on stdout, all that is said about it on stderr."""

import os
import re
import shutil
import unicodedata
from typing import TextIO

from msgspec import UnsetType
from msgspec.structs import asdict, replace

from app.domain.details import (
    Detail,
    Edit,
    Fetch,
    PlanText,
    Read,
    Search,
    Shell,
    SubAgent,
    Text,
    Unknown,
    Write,
)
from app.domain.events import (
    BackendDisconnected,
    BackendGap,
    BackendReconnected,
    Event,
    FileCollision,
    MessageCompleted,
    MessageDelta,
    Notice,
    PermissionExpired,
    PermissionRequested,
    PermissionResolved,
    PlanUpdated,
    ReasoningCompleted,
    ReasoningDelta,
    TokenUsage,
    ToolCallCompleted,
    ToolCallStarted,
    ToolCallUpdated,
    TurnCancelled,
    TurnCompleted,
    TurnFailed,
    TurnIndeterminate,
    TurnQueued,
    TurnReconciling,
    TurnRetrying,
    TurnTimedOut,
    UsageUpdated,
)

BOLD, DIM, RED, GREEN, YELLOW = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m"
RESET = "\x1b[0m"

_ESCAPES = re.compile(
    "\x1b(?:\\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    "|[\\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\\\)"  # OSC and its like: titles, links, the clipboard
    "|[ -/]*[0-OQ-WYZ\\\\`-~])"
)
_OPEN_ESCAPE = re.compile("\x1b(?:\\[[0-?]*[ -/]*|[\\]PX^_][^\x07\x1b]*\x1b?|[ -/]*)\\Z")
MAX_HELD = 4096
"""Characters of an unfinished escape sequence that wait for their end; then they are shown."""

WIDTH = 200
"""Characters of a line where there is no terminal to tell."""


def visible(text: str) -> str:
    """`text` as one line on which nothing is hidden: escape sequences are gone, control and format characters
    (line breaks, bidirectional overrides) show as what they are."""
    return "".join(_shown(character) for character in _ESCAPES.sub("", text))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)  # the control pictures
    if code == 0x7F:
        return "\u2421"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _harmless(text: str) -> str:
    """Running text for a terminal: only what could steer it is changed."""
    plain = _ESCAPES.sub("", text.replace("\r\n", "\n"))
    return "".join(
        _shown(c) if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" else c for c in plain
    )


def has_colours(stream: TextIO) -> bool:
    """Whether to colour what is written there."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def subject(detail: Detail | None) -> str:
    """What a tool call is about, in the words of its detail; empty if it does not tell."""
    match detail:
        case Shell(command=text) | PlanText(text=text) | Text(text=text):
            return text
        case Read(path=text) | Edit(path=text) | Write(path=text):
            return text
        case Search(query=maybe) | Fetch(url=maybe) | SubAgent(description=maybe):
            return maybe or ""
        case Unknown() | None:
            return ""


def usage_line(usage: TokenUsage) -> str:
    """Tokens and money; empty if nothing is known."""
    parts = []
    if usage.input_tokens is not None:
        parts.append(f"{usage.input_tokens} tokens in")
    if usage.output_tokens is not None:
        parts.append(f"{usage.output_tokens} out")
    if usage.cost_usd is not None:
        parts.append(f"${usage.cost_usd:.4f}")
    if usage.context_window_used is not None and usage.context_window_max:
        parts.append(f"{usage.context_window_used} of {usage.context_window_max} in context")
    return ", ".join(parts)


class Screen:
    """Shows a turn's events. Text goes to `out`, everything else to `err`, a line each."""

    def __init__(self, out: TextIO, err: TextIO, *, as_json: bool = False) -> None:
        """`as_json`: `out` gets the raw events instead, one a line, and `err` only what needs a person."""
        self._out = out
        self._err = err
        self._as_json = as_json
        self._colours = has_colours(err)
        self._talks = err.isatty() and not as_json
        """Whether somebody watches: reasoning and tool calls that still run are shown."""
        self._cleans = out.isatty()
        self._erase = "\n" if os.environ.get("TERM") == "dumb" else "\r\x1b[K"
        """Takes back what stands on the line, as far as the terminal can."""
        self._shared = out.isatty() and err.isatty()
        """Whether both are the same terminal, so that each has to leave the line to the other."""
        self._out_is_open = self._err_is_open = False
        """Whether a line was begun and not ended there."""
        self._passing = self._question = ""
        """What stands on `err`'s last line until something else is written."""
        self._message = self._held = ""
        self._told: set[str] = set()
        """Messages of which pieces were shown."""
        self._usage = TokenUsage()
        self._permissions: dict[str, str] = {}
        self.is_cut = False
        """Whether nobody reads any more what is written to one of them."""

    def raw(self, text: str) -> None:
        """An event as it came, if that is wanted."""
        if self._as_json:
            self._put(self._out, text + "\n")

    def show(self, event: Event) -> None:
        """An event, as far as a person wants to see it."""
        if isinstance(event, PermissionRequested):
            self._permission(event)
        elif not self._as_json:
            self._show(event)

    def _show(self, event: Event) -> None:
        match event:
            case MessageDelta(message_id=message, role="assistant", text=text):
                self._text(message, text)
            case MessageCompleted(message_id=message, role="assistant", text=text):
                if message not in self._told:
                    self._text(message, text)
            case ReasoningDelta(message_id=message, text=text):
                self._reasoning(message, text)
            case ReasoningCompleted(message_id=message, text=text):
                if message not in self._told:
                    self._reasoning(message, text)
            case ToolCallStarted() | ToolCallUpdated():
                self._pass(f"… {_tool(event)}")
            case ToolCallCompleted(status="completed"):
                self._line(f"✓ {_tool(event)}", GREEN, whole=False)
            case ToolCallCompleted(status=status, error=error):
                self._line(f"✗ {_tool(event)}: {visible(error or status)}", RED, whole=False)
            case PlanUpdated(entries=entries):
                marks = {"completed": "✓", "in_progress": "▸", "pending": "·"}
                steps = "  ".join(f"{marks[entry.status]} {visible(entry.text)}" for entry in entries)
                self._line(f"plan  {steps}", DIM, whole=False)
            case UsageUpdated():
                self._count(event)
            case PermissionResolved() | PermissionExpired():
                title = self._permissions.pop(event.permission_id, event.permission_id)
                word = "expired" if isinstance(event, PermissionExpired) else event.outcome
                self._line(f"{word} (by {event.by.replace('_', ' ')}): {title}", DIM, whole=False)
            case Notice(level="info", message=words):
                self.note(words)
            case Notice(message=words):
                self._line(visible(words), YELLOW)
            case TurnQueued(position=position) if position:
                self.note(f"{position} before this one in the queue")
            case TurnRetrying(delay_s=delay, error=error):
                self.note(f"not delivered, trying again in {delay:.0f} s: {error.message}")
            case TurnReconciling(cause=cause) | BackendDisconnected(cause=cause):
                self.note(f"out of sight of the agent: {cause}")
            case BackendReconnected():
                self.note("the backend is back")
            case BackendGap(cause=cause):
                self._line(f"the backend lost a part of what happened: {visible(cause)}", YELLOW)
            case FileCollision(path=path):
                self._line(f"another session writes the same file: {visible(path)}", YELLOW)
            case TurnCompleted() | TurnFailed() | TurnTimedOut() | TurnCancelled() | TurnIndeterminate():
                self._end(event)
            case _:
                pass

    def note(self, text: str) -> None:
        """Something by the way."""
        self._line(visible(text), DIM)

    def error(self, text: str) -> None:
        """What went wrong; may have several lines."""
        self._line("alameda: " + "\n".join(visible(line) for line in text.splitlines()), RED)

    def ask(self, question: str) -> None:
        """Put a question below whatever comes, until `answered`."""
        self._leave_line()
        self._question = self._styled(question, BOLD) + " "
        self._put(self._err, self._question)

    def answered(self, *, typed: bool) -> None:
        """The question is no more; `typed` says that the person's own line break has ended its line."""
        if self._question and not typed:
            self._put(self._err, self._erase)
        self._question = ""

    def close(self) -> None:
        """End the line, so that the shell's prompt begins one."""
        if self._held:
            held, self._held = self._held, ""
            self._write_text(_harmless(held))
        self._leave_line()
        if self._out_is_open:
            self._put(self._out, "\n")
            self._out_is_open = False

    def _end(
        self, event: TurnCompleted | TurnFailed | TurnTimedOut | TurnCancelled | TurnIndeterminate
    ) -> None:
        if isinstance(event, TurnCompleted) and event.usage is not None:
            self._count(event.usage)
        if line := usage_line(self._usage):
            self._line(line, DIM)
        match event:
            case TurnCompleted(stop_reason=reason, reconciled=reconciled):
                if reason not in (None, "end_turn"):
                    self._line(f"the agent stopped: {visible(reason or '')}", YELLOW)
                if reconciled:
                    self._line("we were away at its end: a refusal may look the same", YELLOW)
            case TurnFailed(error=error):
                hint = "; the same prompt may succeed later" if error.retriable else ""
                self._line(f"failed: {visible(error.message)} [{error.code}]{hint}", RED)
            case TurnTimedOut(limit=limit, cancel_outcome=outcome):
                self._line(f"timed out ({limit} limit){_unconfirmed(outcome)}", RED)
            case TurnCancelled(cause=cause, cancel_outcome=outcome):
                self._line(f"cancelled ({cause.replace('_', ' ')}){_unconfirmed(outcome)}", YELLOW)
            case TurnIndeterminate(cause=cause):
                words = f"indeterminate ({visible(cause)}): the agent may or may not have done the work"
                self._line(f"{words}, so look before you prompt it again", RED)

    def _count(self, usage: TokenUsage) -> None:
        """Note what is known of the turn's tokens and money; one report may tell what another does not."""
        told = {name: value for name, value in asdict(usage).items() if value is not None}
        self._usage = replace(self._usage, **told)

    def _permission(self, asked: PermissionRequested) -> None:
        title = visible(asked.title)
        self._permissions[asked.permission_id] = title
        self._line(f"? {asked.kind}: {title}", YELLOW)
        for more in (asked.description, _content(asked)):
            if more and more != asked.title:
                for line in more.split("\n"):
                    self._line(f"    {visible(line)}")

    def _text(self, message: str, text: str) -> None:
        self._told.add(message)
        if message != self._message:
            if self._out_is_open:
                self._put(self._out, "\n")
                self._out_is_open = False
            self._message = message
        if self._cleans:
            text = self._held + text
            self._held = ""
            if (open_ := _OPEN_ESCAPE.search(text)) and len(open_[0]) <= MAX_HELD:
                text, self._held = text[: open_.start()], open_[0]
            text = _harmless(text)
        self._write_text(text)

    def _write_text(self, text: str) -> None:
        if not text:
            return
        if self._shared:
            self._clear()
            if self._err_is_open:
                self._put(self._err, "\n")
                self._err_is_open = False
        if self._question and self._shared and not text.endswith("\n"):
            text += "\n"  # the question needs a line of its own
        self._put(self._out, text)
        self._out_is_open = not text.endswith("\n")
        self._ask_again()

    def _reasoning(self, message: str, text: str) -> None:
        self._told.add(message)
        if not self._talks or not text:
            return
        if not self._err_is_open:
            self._leave_line()
        self._clear()
        self._put(self._err, self._styled(_harmless(text), DIM))
        self._err_is_open = not text.endswith("\n")
        if self._question and self._err_is_open:
            self._put(self._err, "\n")
            self._err_is_open = False
        self._ask_again()

    def _line(self, text: str, style: str = "", *, whole: bool = True) -> None:
        self._leave_line()
        self._put(self._err, self._styled(text if whole else self._cut(text), style) + "\n")
        self._ask_again()

    def _pass(self, text: str) -> None:
        """A line that stands until something else is written."""
        if self._talks and self._shared and self._erase != "\n" and not self._question:
            self._leave_line()
            self._passing = self._styled(self._cut(text), DIM)
            self._put(self._err, self._passing)

    def _leave_line(self) -> None:
        """Let `err` begin a line."""
        self._clear()
        if self._err_is_open:
            self._put(self._err, "\n")
            self._err_is_open = False
        if self._shared and self._out_is_open:
            self._put(self._out, "\n")
            self._out_is_open = False

    def _clear(self) -> None:
        if self._passing or self._question:
            self._put(self._err, self._erase)
            self._passing = ""

    def _put(self, stream: TextIO, text: str) -> None:
        try:
            stream.write(text)
            stream.flush()
        except OSError:  # a pipe that was closed, a terminal that was hung up
            self.is_cut = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)

    def _ask_again(self) -> None:
        if self._question:
            self._put(self._err, self._question)

    def _cut(self, text: str) -> str:
        width = shutil.get_terminal_size((WIDTH, 24)).columns if self._err.isatty() else WIDTH
        return text if len(text) < width else text[: width - 2] + "…"

    def _styled(self, text: str, style: str) -> str:
        return f"{style}{text}{RESET}" if style and self._colours else text


def _tool(call: ToolCallStarted | ToolCallUpdated | ToolCallCompleted) -> str:
    about = subject(call.detail)
    title = call.title or call.name or about or call.kind
    more = f"  {visible(about)}" if about and about not in title else ""
    return f"{call.kind}: {visible(title)}{more}"


def _content(asked: PermissionRequested) -> str:
    """All that a person needs to see of what is to be done."""
    match asked.detail:
        case Edit(path=path, old_text=old, new_text=new, diff=diff):
            lines = [path, *([diff] if diff else [])]
            lines += [f"- {line}" for line in old.removesuffix("\n").split("\n")] if old else []
            lines += [f"+ {line}" for line in new.removesuffix("\n").split("\n")] if new else []
            return "\n".join(lines)
        case Write(path=path, content=content):
            return f"{path}\n{content or ''}"
        case Unknown(input=given) if given:
            return str(given)
        case detail:
            return subject(detail)


def _unconfirmed(outcome: str | None) -> str:
    return ": the agent may still be working" if outcome == "unconfirmed" else ""


def is_question(asked: PermissionRequested) -> bool:
    """Whether words are asked for, not leave."""
    return asked.kind == "question" or not isinstance(asked.questions, UnsetType)
