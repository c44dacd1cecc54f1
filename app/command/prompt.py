"""`alameda prompt`: ensure, prompt, follow, answer, close. The outcome is an exit code."""

import shlex
import signal
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
from anyio.abc import TaskGroup
from httpx_sse import ServerSentEvent
from msgspec import Struct, UnsetType

from app.command.client import KEY_FILE, Alameda, CommandError, NoAnswer, Place, Refused, read_event
from app.command.keyboard import Keyboard
from app.command.own import own_alameda
from app.command.terminal import Screen, is_question, visible
from app.domain.events import (
    TERMINAL_TYPES,
    PermissionExpired,
    PermissionOption,
    PermissionRequested,
    PermissionResolved,
    Question,
    TurnCancelled,
    TurnCompleted,
    TurnFailed,
    TurnIndeterminate,
    TurnTimedOut,
)

EXIT_CODES: Mapping[str, int] = {
    TurnCompleted.type: 0,
    TurnFailed.type: 1,
    TurnTimedOut.type: 3,
    TurnIndeterminate.type: 4,
    TurnCancelled.type: 130,
}
"""The exit code of each end of a turn; 1 also says that it did not come to one, 2 wrong usage."""
FAILED, CANCELLED = 1, 130

DEFAULT_AGENT = "demo"
"""The agent that is always there; it pretends everything and touches no disk."""

RETRIES = 15
"""How often in a row a lost stream is opened again without a new event; with the pauses about a minute."""

ANSWER_PAUSE_S = 1.0
"""Seconds until an answer to a permission that was not taken is tried, or asked for, again."""

OTHERS_S = 0.5
"""Seconds between two looks at whether others still use our own Alameda."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
"""Pauses between them; doubled each time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the caller asks for."""

    prompt: str
    agent: str | None = None
    backend: str | None = None
    cwd: Path | None = None
    session: str | None = None
    """A session to go on in, or to make, and to leave open; None: a new one, closed at the end."""
    model: str | None = None
    mode: str | None = None
    yes: bool = False
    """Allow whatever the agent asks leave for."""
    no_input: bool = False
    """Ask nobody: deny what is not allowed."""


class _Session(Struct, frozen=True):
    session_id: str
    agent: str


class _Turn(Struct, frozen=True):
    turn_id: str
    status: str


class _Counts(Struct, frozen=True):
    running: int = 0
    queued: int = 0


class _Health(Struct, frozen=True):
    turns: _Counts = _Counts()


async def prompt(place: Place, wanted: Wanted, screen: Screen, keyboard: Keyboard | None) -> int:
    """Run one prompt and return the exit code. The first signal cancels the turn, the second leaves."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # else nohup, or somebody's own idea
        numbers.append(signal.SIGHUP)
    with anyio.open_signal_receiver(*numbers) as signals:
        async with anyio.create_task_group() as tasks:
            run = _Run(place, wanted, screen, keyboard)
            tasks.start_soon(run.watch, signals)
            code = await run.run()
            tasks.cancel_scope.cancel()
    return code


class _Run:
    """One run of the command."""

    def __init__(self, place: Place, wanted: Wanted, screen: Screen, keyboard: Keyboard | None) -> None:
        self._place = place
        self._wanted = wanted
        self._screen = screen
        self._keyboard = keyboard
        self._stopping = anyio.Event()
        self._starting = anyio.CancelScope()
        self._all = anyio.CancelScope()
        self._own: int | None = None
        """The process of the Alameda that was started for this run."""
        self._turn: _Turn | None = None
        self._session: _Session | None = None
        self._seq: int | None = None
        """The last event seen."""
        self._asking: dict[str, anyio.CancelScope] = {}
        self._one_question = anyio.Lock()

    async def watch(self, signals: AsyncIterator[signal.Signals]) -> None:
        """Hear the signals."""
        async for _ in signals:
            if self._stopping.is_set():
                self._all.cancel()
            else:
                self._stop("stopping; once more to leave at once")

    def _stop(self, words: str) -> None:
        self._screen.note(words)
        self._stopping.set()
        self._starting.cancel()

    async def run(self) -> int:
        """All of it; returns the exit code."""
        code = CANCELLED
        try:
            with self._all:
                async with AsyncExitStack() as stack:
                    code = await self._talk(stack)
        except CommandError as error:
            self._screen.error(str(error))
            code = FAILED
        if self._all.cancel_called:
            self._say_goodbye()
        self._screen.close()
        return code

    def _say_goodbye(self) -> None:
        if self._turn is None or self._session is None:
            return
        if self._own is not None:
            self._screen.note("left; the turn ends with the Alameda that was started for it")
        else:
            turn = f"the turn {self._turn.turn_id} of session {self._session.session_id}"
            self._screen.note(f"left; {turn} goes on until it does as it was told, and stops")

    async def _talk(self, stack: AsyncExitStack) -> int:
        alameda = await self._alameda(stack)
        if alameda is None:
            return CANCELLED
        self._session = session = await self._ensure(alameda)
        if self._stopping.is_set():
            await self._close(alameda, session)
            return CANCELLED
        try:
            self._turn = await self._admit(alameda, session)
        except Refused:
            await self._close(alameda, session)
            raise
        outcome = await self._follow(alameda, self._turn)
        await self._close(alameda, session)
        return EXIT_CODES[outcome]

    async def _alameda(self, stack: AsyncExitStack) -> Alameda | None:
        """The one that is there, else one of our own; None if we were stopped meanwhile."""
        url = None
        with self._starting:
            url = await self._place.find()
            if url is None and not self._place.embedded:
                raise NoAnswer(
                    f"no Alameda answers at {self._place.default_url}: start one with `alameda serve`, "
                    "or name it with --url"
                )
            if url is None:
                own = own_alameda(self._place, self._screen, is_hurried=lambda: self._all.cancel_called)
                url, self._own = await stack.enter_async_context(own)
        if url is None or self._stopping.is_set():
            return None
        alameda = await stack.enter_async_context(Alameda.open(self._place, url))
        if self._own is not None:
            stack.push_async_callback(self._spare_others, alameda)
        return alameda

    async def _spare_others(self, alameda: Alameda) -> None:
        """Our own Alameda may have found other users: let their turns end, unless a signal comes."""
        was_stopping, is_noted = self._stopping.is_set(), False
        with suppress(CommandError):
            while self._stopping.is_set() == was_stopping:
                turns = (await alameda.health(_Health)).turns
                if not turns.running and not turns.queued:
                    return
                if not is_noted:
                    words = "others use the Alameda of this command: waiting for the end of their turns"
                    self._screen.note(words)
                    is_noted = True
                await anyio.sleep(OTHERS_S)

    # The session

    async def _ensure(self, alameda: Alameda) -> _Session:
        wanted = self._wanted
        body: dict[str, Any] = {
            "agent": wanted.agent or DEFAULT_AGENT,
            "backend": wanted.backend,
            "cwd": str(wanted.cwd or Path.cwd()),
            "model": wanted.model,
            "mode": wanted.mode,
        }
        if wanted.session is not None:
            path = f"/v1/sessions/{wanted.session}"
            try:
                there = await alameda.ask("GET", path, reads=_Session)
            except Refused as error:
                if error.status != 404:
                    raise
            else:  # go on in it as it is, except for what was asked for
                body["agent"] = wanted.agent or there.agent
                body["cwd"] = str(wanted.cwd) if wanted.cwd is not None else None
                if wanted.model or wanted.mode:
                    body["if_exists"] = "update"
            return await alameda.ask("PUT", path, _said(body), reads=_Session)
        try:
            return await alameda.ask("POST", "/v1/sessions", _said(body), reads=_Session)
        except Refused as error:
            if error.code != "path_not_allowed" or wanted.agent is not None or wanted.cwd is not None:
                raise
            self._screen.note(f"{body['cwd']} may not be used there; the demo agent does not need it")
            return await alameda.ask("POST", "/v1/sessions", _said(body | {"cwd": None}), reads=_Session)

    async def _close(self, alameda: Alameda, session: _Session) -> None:
        if self._wanted.session is not None:
            return
        try:
            await alameda.send("POST", f"/v1/sessions/{session.session_id}/close", {"mode": "cancel"})
        except CommandError as error:
            self._screen.error(f"the session {session.session_id} was not closed: {error}")

    # The turn

    async def _admit(self, alameda: Alameda, session: _Session) -> _Turn:
        """Have the prompt admitted, once, even if the answer gets lost on its way."""
        path = f"/v1/sessions/{session.session_id}/turns"
        headers = {"Idempotency-Key": str(uuid4())}
        for pause in _pauses(3):
            try:
                return await alameda.ask(
                    "POST", path, {"prompt": self._wanted.prompt}, reads=_Turn, headers=headers
                )
            except NoAnswer:
                await anyio.sleep(pause)
                await alameda.find_again()
        return await alameda.ask("POST", path, {"prompt": self._wanted.prompt}, reads=_Turn, headers=headers)

    async def _follow(self, alameda: Alameda, turn: _Turn) -> str:
        """Show the turn's events to the last, and return its type."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._cancel_when_stopped, alameda, turn)
            outcome, error = "", None
            try:
                outcome = await self._outcome(alameda, turn, tasks)
            except CommandError as caught:
                error = caught
            tasks.cancel_scope.cancel()
        if error is not None:
            raise error
        return outcome

    async def _cancel_when_stopped(self, alameda: Alameda, turn: _Turn) -> None:
        await self._stopping.wait()
        for pause in _pauses(RETRIES):
            try:
                await alameda.send("POST", f"/v1/turns/{turn.turn_id}/cancel")
            except NoAnswer:
                await anyio.sleep(pause)
            except Refused as error:
                self._screen.error(f"the turn is not cancelled: {error}")
                return
            else:
                return

    async def _outcome(self, alameda: Alameda, turn: _Turn, tasks: TaskGroup) -> str:
        pauses = _pauses(RETRIES)
        is_noted = False
        while True:
            before = self._seq
            try:
                if (outcome := await self._read(alameda, turn, tasks)) is not None:
                    return outcome
                reason = "the stream ended"
            except NoAnswer as error:
                reason = str(error)
            except Refused as error:
                if error.status not in (429, 503):
                    raise
                reason = str(error)
            if self._seq != before:
                pauses, is_noted = _pauses(RETRIES), False
            if not is_noted:
                self._screen.note(f"{reason}; going on from event {self._seq or 0} …")
                is_noted = True
            if (pause := next(pauses, None)) is None:
                raise CommandError(
                    f"{reason}; the turn {turn.turn_id} may go on: ask for it when Alameda is back"
                )
            await anyio.sleep(pause)
            await alameda.find_again()

    async def _read(self, alameda: Alameda, turn: _Turn, tasks: TaskGroup) -> str | None:
        """Read the stream to the turn's end, and return that event's type; None if the stream ends before."""
        async with alameda.events(f"/v1/turns/{turn.turn_id}/events/stream", self._seq) as events:
            if events is None:  # everything was seen, so the turn has ended
                ended = await alameda.ask("GET", f"/v1/turns/{turn.turn_id}", reads=_Turn)
                end = f"turn.{ended.status}"
                return end if end in TERMINAL_TYPES else None
            async for frame in events:
                if frame.data and not frame.event.startswith("stream."):
                    if (outcome := self._on_event(alameda, frame, tasks)) is not None:
                        return outcome
                elif frame.event == "stream.reset":
                    self._screen.error("some events of the turn are no longer there")
                if frame.id.isdecimal():
                    self._seq = int(frame.id)
        return None

    def _on_event(self, alameda: Alameda, frame: ServerSentEvent, tasks: TaskGroup) -> str | None:
        type_, event = read_event(frame.data)
        match event:
            case PermissionResolved(permission_id=permission) | PermissionExpired(permission_id=permission):
                if (scope := self._asking.pop(permission, None)) is not None:
                    scope.cancel()
        self._screen.raw(frame.data)
        if event is not None:
            self._screen.show(event)
        if self._screen.is_cut and not self._stopping.is_set():
            self._stop("nobody reads the output any more: stopping")
        if isinstance(event, PermissionRequested):
            self._asking[event.permission_id] = scope = anyio.CancelScope()
            tasks.start_soon(self._answer, alameda, event, scope)
        return type_ if type_ in TERMINAL_TYPES else None

    # Permissions

    async def _answer(self, alameda: Alameda, asked: PermissionRequested, scope: anyio.CancelScope) -> None:
        with scope:
            async with self._one_question:
                path = f"/v1/permissions/{asked.permission_id}/respond"
                for _ in range(RETRIES):
                    answer = await self._decide(asked)
                    if answer is None:
                        self._screen.note(
                            f"it waits for an answer: {_curl(alameda, self._place, path, asked)}"
                        )
                        return
                    try:
                        await alameda.send("POST", path, answer)
                    except CommandError as error:
                        self._screen.error(str(error))
                        if isinstance(error, Refused) and error.status in (403, 404, 409, 410):
                            return
                        await anyio.sleep(ANSWER_PAUSE_S)
                    else:
                        return

    async def _decide(self, asked: PermissionRequested) -> dict[str, Any] | None:
        """The body of the answer; None to leave it to others."""
        if self._wanted.yes and not is_question(asked):
            return {"outcome": "allow"}
        if self._wanted.no_input:
            return {"outcome": "deny", "message": "nobody is there to be asked"}
        if self._keyboard is None:
            return None
        self._keyboard.forget()
        if is_question(asked):
            return await self._words(asked)
        return await self._leave(asked.options)

    async def _leave(self, options: Sequence[PermissionOption]) -> dict[str, Any] | None:
        if len(options) > 2:
            listed = "  ".join(f"{at} {visible(option.label)}" for at, option in enumerate(options, 1))
            question = f"{listed}  [1-{len(options)}, y, n]"
        else:
            question = "Allow? [y/n]"
        while True:
            match await self._type(question):
                case None:
                    return None
                case "y" | "Y" | "yes":
                    return {"outcome": "allow"}
                case "n" | "N" | "no":
                    return {"outcome": "deny"}
                case text if len(options) > 2 and text.isdecimal() and 0 < int(text) <= len(options):
                    option = options[int(text) - 1]
                    outcome = "allow" if option.kind.startswith("allow") else "deny"
                    return {"outcome": outcome, "option_id": option.option_id}
                case _:
                    pass

    async def _words(self, asked: PermissionRequested) -> dict[str, Any] | None:
        questions = asked.questions
        if isinstance(questions, UnsetType) or not questions:
            text = await self._type("Answer (empty to decline):")
            return (
                text
                if text is None
                else {"outcome": "allow", "message": text}
                if text
                else {"outcome": "deny"}
            )
        answers: dict[str, Any] = {}
        for question in questions:
            text = await self._type(_worded(question))
            if text is None:
                return None
            if not text:
                return {"outcome": "deny"}
            given = [_chosen(question, part.strip()) for part in text.split(",")] if question.multiple else []
            answers[question.header or question.question] = given or _chosen(question, text)
        return {"outcome": "allow", "answers": answers}

    async def _type(self, question: str) -> str | None:
        assert self._keyboard is not None
        self._screen.ask(question)
        typed = False
        try:
            text = await self._keyboard.line()
            typed = text is not None
            return text
        finally:
            self._screen.answered(typed=typed)


def _worded(question: Question) -> str:
    choices = "  ".join(f"{at} {visible(option)}" for at, option in enumerate(question.options, 1))
    several = ", several separated by commas" if question.multiple else ""
    hint = f" [{choices}{several}]" if choices else ""
    return f"{visible(question.question)}{hint} (empty to decline):"


def _chosen(question: Question, text: str) -> str:
    if text.isdecimal() and text not in question.options and 0 < int(text) <= len(question.options):
        return question.options[int(text) - 1]
    return text


def _curl(alameda: Alameda, place: Place, path: str, asked: PermissionRequested) -> str:
    """The command that answers it; it names where the key is, and not the key."""
    file = shlex.quote(str(place.data_dir / KEY_FILE))
    key = "$ALAMEDA_API_KEY" if place.key is not None else f"$(cat {file})"
    body = '{"outcome": "allow", "message": "…"}' if is_question(asked) else '{"outcome": "allow"}'
    return (
        f'curl -H "Authorization: Bearer {key}" -H "Content-Type: application/json"'
        f" -d '{body}' {alameda.url}{path}"
    )


def _said(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}


def _pauses(count: int) -> Iterator[float]:
    pause = FIRST_PAUSE_S
    for _ in range(count):
        yield pause
        pause = min(pause * 2, LONGEST_PAUSE_S)
