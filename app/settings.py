"""Every knob, with its unit, its default and its reason. A wrong value stops the start and names itself.

Environment variables have the prefix `ALAMEDA_`, except the well-known `DATABASE_URL`, `PASEO_URL` and
`PASEO_PASSWORD`. Backends may also stand in a TOML file (`ALAMEDA_CONFIG`), limits too.
"""

import ipaddress
import os
import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    HttpUrl,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")
"""Host names under which a client on this machine may call us."""

KEY_PATTERN = re.compile(r"alm_[A-Za-z0-9]{1,64}_[A-Za-z0-9_-]{43,256}\Z")
"""An API key: `alm_<id>_<secret>`, the secret at least 256 random bits in URL-safe base64."""


def _split(separator: str) -> BeforeValidator:
    return BeforeValidator(
        lambda value: (
            [part.strip() for part in value.split(separator) if part.strip()]
            if isinstance(value, str)
            else value
        )
    )


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(f"must be an absolute path, not {str(path)!r}")
    return path


Absolute = Annotated[Path, AfterValidator(lambda path: _absolute(path.expanduser()))]
Roots = Annotated[tuple[Absolute, ...], NoDecode, _split(os.pathsep), Field(min_length=1)]
Names = Annotated[tuple[str, ...], NoDecode, _split(",")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class BackendSettings(_Strict):
    """One backend: a named instance of a type."""

    type: Literal["paseo", "paseo-cli", "acp"]
    url: HttpUrl | None = None
    """Paseo: the daemon's address; the command (`paseo-cli`) may know it by itself."""
    password: SecretStr | None = None
    """Paseo: the daemon's password."""
    command: tuple[str, ...] = ()
    """The agent's program (`acp`), or the client's (`paseo-cli`, default `paseo`), and its arguments; never
    taken from a request."""
    env: dict[str, str] = Field(default={}, repr=False)
    """Variables for that program, beside the few that every one gets."""
    filesystem: Literal["shared", "remote"] = "shared"
    """Whether the backend's disk is this machine's."""
    roots: Annotated[tuple[Absolute, ...], Field(min_length=1)] | None = None
    """Where a session's `cwd` may lie; default: `ALAMEDA_ALLOWED_ROOTS`."""
    default_cwd: Absolute | None = None
    """`cwd` of a session that names none; default: the first root."""
    provider: str | None = None
    """Provider of a session that names none; default: `opencode` for Paseo, its own name for ACP."""

    @model_validator(mode="after")
    def _needs(self) -> Self:
        if self.type == "acp" and not self.command:
            raise ValueError('an acp backend needs a command, for example command = ["opencode", "acp"]')
        if self.type == "paseo" and self.url is None:
            raise ValueError('a paseo backend needs a url, for example url = "http://127.0.0.1:6767"')
        if self.type == "paseo-cli" and self.password is not None and self.url is None:
            raise ValueError("the password of a paseo-cli backend needs the daemon's url")
        if self.type == "paseo-cli" and self.url is not None and self.url.scheme != "http":
            raise ValueError("a paseo-cli backend reaches its daemon by http only")
        return self


class Limits(_Strict):
    """What a caller or a replica may have at once; past it the answer is 413, 429 or 503."""

    streams_per_key: int = Field(500, ge=1)
    """Open streams of one key."""
    streams: int = Field(4000, ge=1)
    """Open streams of this replica."""
    turns_per_owner: int = Field(100, ge=1)
    """Open turns of one owner, queued ones included."""
    queue_per_session: int = Field(100, ge=1)
    """Queued turns of one session."""
    sessions_per_owner: int = Field(10_000, ge=1)
    """Sessions of one owner that are not closed."""
    terminals_per_session: int = Field(20, ge=0)
    """Open terminals of one session."""
    terminal_rings: int = Field(100, ge=1)
    """Terminals whose output this replica keeps; the one not used for longest gives way to a new one."""
    terminal_ring_bytes: int = Field(4 * 1024 * 1024, ge=4096, le=256 * 1024 * 1024)
    """Bytes of a terminal's newest output that are kept for streams and for search."""
    body_bytes: int = Field(1024 * 1024, ge=1024)
    """Bytes of a request's body, except prompts."""
    prompt_body_bytes: int = Field(8 * 1024 * 1024, ge=1024)
    """Bytes of a prompt request's body."""
    prompt_bytes: int = Field(256 * 1024, ge=1)
    """UTF-8 bytes of a prompt's text."""
    attachments: int = Field(20, ge=0)
    """Attachments of a prompt."""
    json_depth: int = Field(64, ge=4)
    """Nesting of a request's JSON."""
    header_bytes: int = Field(16 * 1024, ge=1024)
    """Bytes of all of a request's headers together."""
    auth_failures_per_minute: int = Field(60, ge=1)
    """Failed authentications from one address before it has to wait."""


class Timing(_Strict):
    """Clocks, in seconds."""

    heartbeat_s: float = Field(10, gt=0)
    """Silence of a stream after which it carries a comment; below the smallest proxy's idle time-out."""
    send_s: float = Field(25, gt=0)
    """How long one write to a reader may take before the reader is cut."""
    health_s: float = Field(10, gt=0)
    """Between two looks at each backend."""
    drain_s: float = Field(4, ge=0)
    """What running ACP turns get at SIGTERM; well below the orchestrator's kill delay."""
    unready_s: float = Field(2, ge=0)
    """How long after SIGTERM requests are still taken while `/readyz` says 503; above the interval of a load
    balancer's health checks. Only with DATABASE_URL: else there is nobody to hand over to."""
    lease_s: float = Field(15, ge=1)
    """How long a session stays a silent replica's before another takes it over; the same on all of them."""
    session_idle_s: float = Field(1800, gt=0)
    """Idle time after which a session gives up its agent's process, where it can be loaded again."""
    collision_idle_s: float = Field(1800, gt=0)
    """Idle time after which what a session has written collides with nobody's work any more."""
    ensure_s: float = Field(90, gt=0)
    """How long an ensure waits for an agent that is being made."""
    rotate_s: float | None = Field(None, gt=0)
    """Age at which a GET stream is closed so that clients spread again; off by default."""
    body_read_s: float = Field(30, gt=0)
    """How long a client may take to send its request's body."""


def default_data_dir() -> Path:
    """`$XDG_DATA_HOME/alameda`; as root `/var/lib/alameda`."""
    if os.geteuid() == 0:
        return Path("/var/lib/alameda")
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "alameda"


class Settings(BaseSettings):
    """The whole configuration of one process."""

    model_config = SettingsConfigDict(
        env_prefix="ALAMEDA_",
        env_nested_delimiter="__",
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )

    host: str = "127.0.0.1"
    """Listen address; anything but loopback needs keys and `ALAMEDA_ALLOW_REMOTE=true`."""
    port: int = Field(8765, ge=0, le=65535)
    """Listen port; 0 takes any free one."""
    allow_remote: bool = False
    """Whether to listen on an address that other machines reach."""
    data_dir: Absolute = Field(default_factory=default_data_dir)
    """The embedded PostgreSQL and the first key."""
    database_url: SecretStr | None = Field(None, validation_alias="DATABASE_URL")
    """`postgresql://…`: that server instead of the embedded one. Several replicas need it."""
    direct_database_url: SecretStr | None = None
    """Beside a transaction pooler in `DATABASE_URL`: the server itself, for LISTEN, locks and migrations."""
    database_pool: int = Field(15, ge=2, le=500)
    """Connections of this process; with two more, times the replicas, below `max_connections`."""
    config: Path | None = None
    """TOML file with backends and limits; default: `alameda.toml`, if there is one."""
    paseo_url: HttpUrl = Field(HttpUrl("http://127.0.0.1:6767"), validation_alias="PASEO_URL")
    """The default Paseo backend, when no file names one."""
    paseo_password: SecretStr | None = Field(None, validation_alias="PASEO_PASSWORD")
    """The daemon's password."""
    default_backend: str = "paseo"
    """Used by ensure when neither the request nor the agent's name tells."""
    api_key: SecretStr | None = None
    """A first key of the operator's choosing: `alm_<id>_<at least 43 random characters>`."""
    auth: Literal["keys", "none"] = "keys"
    """`none` only on loopback: then every local user and process can act."""
    allowed_roots: Roots = Field(default_factory=lambda: (Path.home(),))
    """Where a session's `cwd` may lie, several separated as in PATH."""
    allowed_hosts: Names = ()
    """Host names under which clients may call us, beside the loopback ones; exact, without port."""
    cors_origins: Names = ()
    """Origins whose pages may call us, exact: `https://app.example`."""
    trusted_proxies: Names = ()
    """Addresses of proxies whose `X-Forwarded-For` and `-Proto` are believed; without one, nobody's are."""
    public_docs: bool = False
    """Whether `/docs` and `/openapi.json` are open on other addresses than loopback."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Level of our own log; libraries stay at warning."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """`auto`: text on a terminal, else JSON."""
    database_user: str = "nobody"
    """As root: the system user that the embedded PostgreSQL runs as."""
    backends: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")], BackendSettings] = {}
    """Named backends; `[backends.NAME]` in the file."""
    limits: Limits = Limits()
    """Bounds; `[limits]` in the file or `ALAMEDA_LIMITS__NAME`."""
    timing: Timing = Timing()
    """Clocks; `[timing]` in the file or `ALAMEDA_TIMING__NAME`."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then the file."""
        return (init_settings, env_settings, _File(settings_cls))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the listen address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    def url(self, port: int) -> str:
        """Where a client on this machine finds a service that listens on `port`."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{port}"

    @property
    def hosts(self) -> tuple[str, ...]:
        """Every Host that is answered."""
        own = () if self.host in ("0.0.0.0", "::") else (f"[{self.host}]" if ":" in self.host else self.host,)
        return tuple(dict.fromkeys((*LOOPBACK_HOSTS, *own, *self.allowed_hosts)))

    @field_validator("api_key")
    @classmethod
    def _is_a_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and KEY_PATTERN.match(key.get_secret_value()) is None:
            raise ValueError("must be alm_<id>_<at least 43 random characters of A-Z a-z 0-9 _ ->")
        return key

    @field_validator("database_url", "direct_database_url")
    @classmethod
    def _is_postgresql(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("must begin with postgresql://")
        return url

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if re.fullmatch(r"https?://[^/*\s]+", origin) is None:
                raise ValueError(f"{origin!r} is no origin: scheme and host only, no wildcard, no path")
        return origins

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        if not self.is_loopback and not self.allow_remote:
            raise ValueError(
                f"ALAMEDA_HOST={self.host} can be reached from other machines: set ALAMEDA_ALLOW_REMOTE=true"
                " if that is wanted"
            )
        if not self.is_loopback and self.auth == "none":
            raise ValueError("ALAMEDA_AUTH=none is for loopback only")
        return self


class _File(PydanticBaseSettingsSource):
    """Backends, limits and clocks from the TOML file."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Not used: the whole file is given at once."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        named = os.environ.get("ALAMEDA_CONFIG") or self.current_state.get("config")
        path = Path(named) if named else Path("alameda.toml")
        if not named and not path.is_file():
            return {}
        try:
            content = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingsError(f"ALAMEDA_CONFIG: {path}: {error}") from None
        unknown = content.keys() - {"backends", "limits", "timing"}
        if unknown:
            raise SettingsError(f"ALAMEDA_CONFIG: {path}: unknown table {', '.join(sorted(unknown))}")
        return content


def _variable(loc: tuple[int | str, ...]) -> str:
    """The name by which a person sets what stands at `loc`: a variable, or a table of the file."""
    if not loc:
        return ""
    first, *rest = loc
    name = str(first)
    if name == "backends" and rest:
        return ".".join(map(str, loc))
    variable = name if name.isupper() else f"ALAMEDA_{name.upper()}"
    inner = [part.upper() for part in rest if isinstance(part, str)] if name in ("limits", "timing") else []
    return "__".join([variable, *inner])


class SettingsError(Exception):
    """A setting is wrong; the message names it and says what would be right."""


def describe_settings() -> str:
    """Every setting, a paragraph each: its variable, its default, what it is."""
    lines = []
    for name, field in Settings.model_fields.items():
        variable = (
            field.validation_alias if isinstance(field.validation_alias, str) else f"ALAMEDA_{name.upper()}"
        )
        if isinstance(field.default, Limits | Timing):
            for inner, knob in type(field.default).model_fields.items():
                lines.append(_described(f"{variable}__{inner.upper()}", knob.default, knob.description))
        elif name != "backends":
            default = "" if field.is_required() or field.default_factory else field.default
            lines.append(_described(variable, default, field.description))
    return "\n".join(lines)


def _described(variable: str, default: Any, text: str | None) -> str:
    shown = {None: "none", "": "see text", (): "none"}.get(default, default)
    return f"{variable} [{shown}]: {' '.join((text or '').split())}"


def load_settings(**arguments: Any) -> Settings:
    """The settings of this process; arguments come before the environment, the environment before the file.

    Raises:
        SettingsError: something is wrong.
    """
    try:
        return Settings(**{name: value for name, value in arguments.items() if value is not None})
    except SourceError as error:
        named = re.search(r'field "(\w+)"', str(error))
        variable = _variable((named[1],)) if named else "a variable"
        raise SettingsError(f"{variable}: must be JSON; the file of ALAMEDA_CONFIG is easier") from None
    except ValidationError as error:
        lines = []
        for item in error.errors(include_input=False, include_url=False):
            name = _variable(item["loc"])
            lines.append(f"{name}: {item['msg'].removeprefix('Value error, ')}" if name else item["msg"])
        raise SettingsError("\n".join(lines)) from None


def service_version() -> str:
    """The version of this Alameda."""
    try:
        return version("alameda")
    except PackageNotFoundError:
        return "0.0.0"
