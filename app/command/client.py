"""A running Alameda, as a client finds and asks it; what it refuses is told to a person, with the cure."""

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import anyio
import httpx
import msgspec
from httpx_sse import EventSource, ServerSentEvent, SSEError
from msgspec import Struct

from app.command.terminal import visible
from app.domain.events import EVENT_CLASSES, Event
from app.store.datadir import DataDirectoryUnusable, holder

KEY_FILE = "api-key"
"""File in the data directory that holds the first key."""

START_S = 120.0
"""Seconds that an Alameda has from its start until it answers; the first one makes a database."""

ANSWER_S = 110.0
"""Seconds that any answer may take; more than an ensure waits for its agent."""

SILENCE_S = 45.0
"""Seconds without a byte after which a stream is given up for dead; heartbeats come each 10 s."""

LOOK_S = 3.0
"""Seconds in which whatever listens at an address has to show that it is an Alameda."""

T = TypeVar("T")


class CommandError(Exception):
    """What a command stops with: a line for a person, with the cure."""


class NoAnswer(CommandError):
    """Nothing answers there, or not any more."""


class _Problem(Struct, frozen=True):
    title: str = ""
    detail: str = ""
    code: str = ""
    scope: str = "…"
    available: list[str] = []
    open_turn_id: str | None = None


class Refused(CommandError):
    """It answered with a problem (RFC 9457)."""

    def __init__(self, answer: httpx.Response) -> None:
        self.status = answer.status_code
        try:
            problem = msgspec.json.decode(answer.content, type=_Problem)
        except msgspec.MsgspecError:
            problem = _Problem(title=f"an unexpected answer, HTTP {self.status}")
        self.code = problem.code
        words = problem.detail or problem.title
        if problem.code == "internal_error":
            words = f"{words} ({answer.headers.get('X-Request-ID', 'no request id')})"
        cure = _cure(problem)
        code = f" [{problem.code}]" if problem.code else ""
        super().__init__(visible(words.rstrip(".") + code + (f": {cure}" if cure else "")))


def _cure(problem: _Problem) -> str:
    match problem.code:
        case "unauthenticated":
            return f"give one with --key or ALAMEDA_API_KEY; the first is in {KEY_FILE} of its data directory"
        case "forbidden":
            return f"use a key that has it, `alameda keys make NAME --scope {problem.scope}`"
        case "invalid_host":
            return "call it by a name that it serves, or add this one to its ALAMEDA_ALLOWED_HOSTS"
        case "path_not_allowed":
            return "name another directory with --cwd, or add this one to the service's ALAMEDA_ALLOWED_ROOTS"
        case "provider_not_found" if problem.available:
            return f"it has {', '.join(problem.available)}"
        case "backend_not_found" | "provider_not_found" | "backend_unavailable" | "backend_error":
            return "`alameda doctor` tells which backends there are, and how they are"
        case "session_busy" if problem.open_turn_id:
            return f"wait for {problem.open_turn_id}, or cancel it"
        case "session_conflict":
            return "name it as it is, or use another --session"
        case "draining" | "database_unavailable" | "rate_limited" | "too_many_streams" | "queue_full":
            return "try again in a moment"
        case _:
            return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an Alameda is looked for, and with which key it is asked."""

    data_dir: Path
    default_url: str
    embedded: bool
    """Whether an Alameda with these settings would have the data directory, and so be its holder."""
    url: str | None = None
    """The one that the caller named; then it is this one or none."""
    key: str | None = None
    """The key that the caller named."""

    async def find(self) -> str | None:
        """The address of the one that is meant; None if nothing answers.

        Raises:
            CommandError: one is starting here and does not get ready, or belongs to another user.
        """
        if self.url is not None:
            return self.url
        with anyio.move_on_after(START_S):
            while (found := self.held()) is not None:
                if found[1] is not None:
                    return found[1]
                await anyio.sleep(0.1)
            return self.default_url if await answers(self.default_url) else None
        raise NoAnswer(
            f"the Alameda that has {self.data_dir} does not get ready: look at what it says, or stop it"
        )

    def held(self) -> tuple[int | None, str | None] | None:
        """Process and address of the Alameda that has the data directory; each None until it is known.

        Raises:
            CommandError: it belongs to another user.
        """
        try:
            found = holder(self.data_dir)
        except DataDirectoryUnusable as error:
            raise CommandError(f"{error}, or name the service with --url and --key") from None
        return None if found is None else (found.pid, found.url)

    def key_for(self, url: str) -> str | None:
        """The key to show there: the caller's; the first key only where our own service must be listening."""
        if self.key is not None:
            return self.key
        if not (self._is_held(url) or (_is_loopback(url) and (self.url is not None or not self.embedded))):
            return None
        try:
            return (self.data_dir / KEY_FILE).read_text().strip() or None
        except (OSError, UnicodeDecodeError):
            return None

    def _is_held(self, url: str) -> bool:
        try:
            found = holder(self.data_dir)
        except DataDirectoryUnusable:
            return False
        return found is not None and found.url == url


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


async def answers(url: str, probe: str = "livez") -> bool:
    """Whether an Alameda says `ok` there; it is shown no key."""
    try:
        async with httpx.AsyncClient(timeout=LOOK_S, trust_env=False) as http:
            answer = await http.get(f"{url}/{probe}")
            return answer.status_code == 200 and answer.json() == {"status": "ok"}
    except (httpx.HTTPError, ValueError):
        return False


class Alameda:
    """One running Alameda. Made by `open_alameda`."""

    def __init__(self, place: Place, url: str, http: httpx.AsyncClient) -> None:
        self.url = url
        self._place = place
        self._http = http

    @classmethod
    @asynccontextmanager
    async def open(cls, place: Place, url: str) -> AsyncIterator[Self]:
        """A client of the one at `url`."""
        timeout = httpx.Timeout(ANSWER_S, connect=5.0)
        async with httpx.AsyncClient(timeout=timeout, trust_env=False) as http:
            yield cls(place, url, http)

    @classmethod
    @asynccontextmanager
    async def find(cls, place: Place) -> AsyncIterator[Self]:
        """A client of the one that is there.

        Raises:
            NoAnswer: there is none.
        """
        url = await place.find()
        if url is None:
            raise NoAnswer("no Alameda answers here: start one with `alameda serve`, or name it with --url")
        async with cls.open(place, url) as alameda:
            yield alameda

    async def find_again(self) -> None:
        """After a lost connection: it may have been started anew, at another address."""
        self.url = await self._place.find() or self.url

    async def send(
        self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Ask, and return the answer's body.

        Raises:
            NoAnswer: nothing answers.
            Refused: it said no.
        """
        try:
            answer = await self._http.request(
                method, self.url + path, json=body, headers={**self._headers(), **(headers or {})}
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._no_answer(error) from None
        if not answer.is_success:
            raise Refused(answer)
        return answer.content

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        reads: type[T],
        headers: Mapping[str, str] | None = None,
    ) -> T:
        """As `send`; the answer as what it `reads`."""
        content = await self.send(method, path, body, headers=headers)
        try:
            return msgspec.json.decode(content, type=reads)
        except msgspec.MsgspecError:
            raise CommandError(f"what answers at {self.url} is no Alameda of this version") from None

    async def health(self, reads: type[T]) -> T:
        """How it is: also its 503 is an answer."""
        try:
            answer = await self._http.get(f"{self.url}/health", headers=self._headers())
            return msgspec.json.decode(answer.content, type=reads)
        except httpx.HTTPError as error:
            raise self._no_answer(error) from None
        except msgspec.MsgspecError:
            raise CommandError(f"what answers at {self.url} is no Alameda of this version") from None

    @asynccontextmanager
    async def events(
        self, path: str, after: int | None
    ) -> AsyncIterator[AsyncIterator[ServerSentEvent] | None]:
        """The events of a stream past `after`; None if it has none beyond (204).

        Raises:
            NoAnswer: the connection is lost, also in the middle.
            Refused: it said no.
        """
        headers = {**self._headers(), "Accept": "text/event-stream"}
        if after is not None:
            headers["Last-Event-ID"] = str(after)
        timeout = httpx.Timeout(SILENCE_S, connect=5.0)
        try:
            async with self._http.stream("GET", self.url + path, headers=headers, timeout=timeout) as answer:
                if answer.status_code == 204:
                    yield None
                    return
                if answer.status_code != 200:
                    await answer.aread()
                    raise Refused(answer)
                async with aclosing(EventSource(answer).aiter_sse()) as events:
                    yield events
        except (httpx.HTTPError, httpx.InvalidURL, SSEError) as error:
            raise self._no_answer(error) from None

    def _headers(self) -> dict[str, str]:
        key = self._place.key_for(self.url)
        return {} if key is None else {"Authorization": f"Bearer {key}"}

    def _no_answer(self, error: Exception) -> NoAnswer:
        match error:
            case httpx.ConnectError() | httpx.ConnectTimeout():
                return NoAnswer(f"no Alameda answers at {self.url}: is it running? (`alameda serve`)")
            case httpx.TimeoutException():
                return NoAnswer(f"{self.url} did not answer in time")
            case httpx.InvalidURL() | httpx.UnsupportedProtocol():
                return NoAnswer(f"{self.url} is no address: it looks like http://127.0.0.1:8765")
            case _:
                return NoAnswer(
                    f"the connection to {self.url} broke: {visible(str(error)) or type(error).__name__}"
                )


class _Logged(Struct, frozen=True):
    type: str
    data: msgspec.Raw


def read_event(text: str) -> tuple[str, Event | None]:
    """The type of an event, and the event itself; None if this version does not know it."""
    logged = msgspec.json.decode(text, type=_Logged)
    known = EVENT_CLASSES.get(logged.type)
    if known is None:
        return logged.type, None
    try:
        return logged.type, msgspec.json.decode(logged.data, type=known)
    except msgspec.ValidationError:
        return logged.type, None
