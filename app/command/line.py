"""The command line of `prompt`, `keys` and `doctor`: options in, exit codes out; it imports late."""

import re
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import anyio
import typer

from app.domain.ids import SESSION_ID_PATTERN
from app.domain.keys import ALL_SCOPES, Scope
from app.settings import Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from app.command.client import Alameda, Place

DEFAULT_SCOPES: list[Scope] = ["read", "prompt", "approve"]
"""What a caller of the API needs."""


def _is_http(url: str | None) -> str | None:
    if url is not None and not re.match(r"https?://[^/\s]", url):
        raise typer.BadParameter("must look like http://127.0.0.1:8765")
    return url


def _is_session_id(text: str | None) -> str | None:
    if text is not None and re.fullmatch(SESSION_ID_PATTERN, text) is None:
        raise typer.BadParameter(f"must match {SESSION_ID_PATTERN}")
    return text


Url = Annotated[
    str | None,
    typer.Option(
        envvar="ALAMEDA_URL",
        callback=_is_http,
        help="The service's address; by default the one on the data directory, else ALAMEDA_HOST and _PORT.",
    ),
]
Key = Annotated[
    str | None,
    typer.Option(help="API key (ALAMEDA_API_KEY); by default the first key, from the data directory."),
]
DataDir = Annotated[Path | None, typer.Option(help="Data directory (ALAMEDA_DATA_DIR).")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON, one object a line.")]

EXIT_CODES = """Exit codes: 0 completed, 1 failed, refused or not reached, 2 wrong usage, 3 timed out, \
4 indeterminate (the agent may or may not have done it), 130 cancelled."""
"""What `prompt` tells by its exit code."""


def prompt(
    text: Annotated[
        str, typer.Argument(metavar="[PROMPT]", help="What to say; `-` or nothing: read it from stdin.")
    ] = "-",
    agent: Annotated[str | None, typer.Option(help="The agent. [default: demo]")] = None,
    backend: Annotated[
        str | None, typer.Option(help="The backend; by default the one called like the agent.")
    ] = None,
    cwd: Annotated[
        Path | None, typer.Option(help="Where the agent works. [default: the current directory]")
    ] = None,
    session: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            callback=_is_session_id,
            help="Go on in this session (or make it), leave it open; by default a new one that is closed.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The agent's model.")] = None,
    mode: Annotated[str | None, typer.Option(help="The agent's mode.")] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Allow whatever the agent asks leave for.")
    ] = False,
    no_input: Annotated[
        bool, typer.Option("--no-input", help="Ask nobody: deny what --yes does not allow.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The raw events, one a line.")] = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Prompt an agent and follow it: its text on stdout, everything else on stderr. Ctrl-C cancels the turn,
    twice leaves without its end. If no Alameda answers, one is started for as long as it takes."""
    place, _ = _place(url, key, data_dir)
    if text == "-":
        if sys.stdin.isatty():
            typer.echo("The prompt, then Ctrl-D:", err=True)
        text = sys.stdin.buffer.read().decode(errors="replace")
    if not text.strip():
        raise typer.BadParameter("is empty", param_hint="PROMPT")

    from app.command.keyboard import keyboard
    from app.command.prompt import Wanted
    from app.command.prompt import prompt as run
    from app.command.terminal import Screen

    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # both are TextIOWrapper
    wanted = Wanted(
        prompt=text,
        agent=agent,
        backend=backend,
        cwd=cwd.absolute() if cwd is not None else None,
        session=session,
        model=model,
        mode=mode,
        yes=yes,
        no_input=no_input,
    )
    screen = Screen(sys.stdout, sys.stderr, as_json=as_json)
    _run(partial(run, place, wanted, screen, keyboard(sys.stdin, sys.stderr)))


keys = typer.Typer(help="The API keys of a running Alameda; needs a key with `admin`.", no_args_is_help=True)


@keys.command("list")
def list_keys(as_json: AsJson = False, url: Url = None, key: Key = None, data_dir: DataDir = None) -> None:
    """Every key, newest first; never its text."""
    from app.command import keys as work

    async def show(alameda: "Alameda") -> None:
        found = await work.list_keys(alameda)
        typer.echo("\n".join(one.as_json() for one in found) if as_json else work.table(found))

    _ask(_place(url, key, data_dir)[0], show)


@keys.command("make")
def make_key(
    name: Annotated[str, typer.Argument(help="What it is for.")],
    owner: Annotated[str, typer.Option(help="To whom everything made with it belongs.")] = "default",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help=f"May be repeated: {', '.join(ALL_SCOPES)}; none implies another."
            f" [default: {', '.join(DEFAULT_SCOPES)}]"
        ),
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it, this once."""
    from app.command import keys as work

    scopes = [one for one in ALL_SCOPES if one in scope] if scope else DEFAULT_SCOPES
    if unknown := set(scope or ()).difference(ALL_SCOPES):
        raise typer.BadParameter(
            f"{', '.join(sorted(unknown))}: there are {', '.join(ALL_SCOPES)}", param_hint="--scope"
        )

    async def show(alameda: "Alameda") -> None:
        made = await work.make_key(alameda, name, owner, scopes)
        typer.echo(made.as_json() if as_json else str(made.key))
        words = f"key {made.key_id} of {made.owner} with {', '.join(made.scopes)}: it is shown this once"
        typer.echo(words, err=True)

    _ask(_place(url, key, data_dir)[0], show)


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="Its ID, as `keys list` shows it.")],
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Have a key refused from now on; its streams end."""
    from app.command import keys as work

    if re.fullmatch("[A-Za-z0-9]{1,64}", key_id) is None:
        raise typer.BadParameter(
            "is the ID of a key, not its text: see `alameda keys list`", param_hint="KEY_ID"
        )

    async def show(alameda: "Alameda") -> None:
        await work.revoke_key(alameda, key_id)
        typer.echo(f"key {key_id} is revoked", err=True)

    _ask(_place(url, key, data_dir)[0], show)


def doctor(url: Url = None, key: Key = None, data_dir: DataDir = None) -> None:
    """Say what is missing and how to cure it. Exit code 0 if all is well, else 1."""
    from app.command.doctor import examine, wrong_settings

    try:
        place, settings = _found(url, key, data_dir)
    except SettingsError as error:
        wrong_settings(error, sys.stdout)
        raise typer.Exit(1) from None

    async def look() -> int:
        return 0 if await examine(place, settings, sys.stdout) else 1

    _run(look)


def _place(url: str | None, key: str | None, data_dir: Path | None) -> tuple["Place", Settings]:
    try:
        return _found(url, key, data_dir)
    except SettingsError as error:
        typer.echo(f"alameda: a setting is wrong\n{error}", err=True)
        raise typer.Exit(2) from None


def _found(url: str | None, key: str | None, data_dir: Path | None) -> tuple["Place", Settings]:
    from app.command.client import Place

    settings = load_settings(data_dir=data_dir.absolute() if data_dir else None)
    own = settings.api_key.get_secret_value() if settings.api_key else None
    place = Place(
        data_dir=settings.data_dir,
        default_url=settings.url(settings.port),
        embedded=settings.database_url is None,
        url=url.rstrip("/") if url else None,
        key=key or own,
    )
    return place, settings


def _ask(place: "Place", work: Callable[["Alameda"], Awaitable[None]]) -> NoReturn:
    """Run `work` with the Alameda that is there."""
    from app.command.client import Alameda

    async def run() -> int:
        async with Alameda.find(place) as alameda:
            await work(alameda)
        return 0

    _run(run)


def _run(work: Callable[[], Awaitable[int]]) -> NoReturn:
    from app.command.client import CommandError

    try:
        code = anyio.run(work)
    except CommandError as error:
        typer.echo(f"alameda: {error}", err=True)
        code = 1
    except KeyboardInterrupt:
        code = 130
    raise typer.Exit(code)
