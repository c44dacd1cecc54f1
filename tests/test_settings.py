"""Settings: a wrong value names itself, the environment comes before the file, and nothing shows a secret."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from app.settings import Limits, Settings, SettingsError, Timing, describe_settings, load_settings

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "alameda.example.toml"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of the machine's own, and no file."""
    for name in os.environ:
        if name.startswith(("ALAMEDA_", "PASEO_")) or name == "DATABASE_URL":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def refused(**arguments: Any) -> str:
    """What is said about a wrong setting."""
    with pytest.raises(SettingsError) as caught:
        load_settings(**arguments)
    return str(caught.value)


def test_without_anything_set_it_is_safe() -> None:
    """Loopback, with keys, no CORS, no proxy that is believed."""
    settings = load_settings()
    assert (settings.host, settings.auth, settings.allow_remote) == ("127.0.0.1", "keys", False)
    assert settings.cors_origins == settings.trusted_proxies == settings.allowed_hosts == ()
    assert settings.hosts == ("127.0.0.1", "localhost", "[::1]")
    assert (settings.limits, settings.timing) == (Limits(), Timing())


WRONG = [
    ("ALAMEDA_HOST", "0.0.0.0"),
    ("ALAMEDA_HOST", ""),
    ("ALAMEDA_PORT", "eighty"),
    ("ALAMEDA_PORT", "-1"),
    ("ALAMEDA_PORT", "65536"),
    ("ALAMEDA_PORT", ""),
    ("ALAMEDA_ALLOW_REMOTE", "perhaps"),
    ("ALAMEDA_DATA_DIR", "relative/path"),
    ("DATABASE_URL", "mysql://root@localhost/x"),
    ("DATABASE_URL", "sqlite:///x"),
    ("ALAMEDA_DIRECT_DATABASE_URL", "http://x"),
    ("ALAMEDA_DATABASE_POOL", "1"),
    ("ALAMEDA_DATABASE_POOL", "many"),
    ("ALAMEDA_CONFIG", "/nowhere/alameda.toml"),
    ("ALAMEDA_CONFIG", "/"),
    ("PASEO_URL", "not a url"),
    ("PASEO_URL", "ftp://x"),
    ("PASEO_URL", "file:///etc/passwd"),
    ("ALAMEDA_API_KEY", "secret"),
    ("ALAMEDA_API_KEY", "alm_id_tooshort"),
    ("ALAMEDA_API_KEY", f"alm_i-d_{'k' * 43}"),
    ("ALAMEDA_API_KEY", f"alm_id_{'k' * 43}\n"),
    ("ALAMEDA_AUTH", "off"),
    ("ALAMEDA_AUTH", ""),
    ("ALAMEDA_ALLOWED_ROOTS", "relative"),
    ("ALAMEDA_ALLOWED_ROOTS", "/tmp:relative"),
    ("ALAMEDA_ALLOWED_ROOTS", ""),
    ("ALAMEDA_CORS_ORIGINS", "*"),
    ("ALAMEDA_CORS_ORIGINS", "null"),
    ("ALAMEDA_CORS_ORIGINS", "https://*.example.com"),
    ("ALAMEDA_CORS_ORIGINS", "https://a.example/path"),
    ("ALAMEDA_CORS_ORIGINS", "https://a.example,app.example"),
    ("ALAMEDA_PUBLIC_DOCS", "2"),
    ("ALAMEDA_LOG_LEVEL", "loud"),
    ("ALAMEDA_LOG_FORMAT", "xml"),
    ("ALAMEDA_BACKENDS", "not json"),
    ("ALAMEDA_BACKENDS", '{"UPPER": {"type": "acp", "command": ["x"]}}'),
    ("ALAMEDA_BACKENDS__ONE__TYPE", "magic"),
    ("ALAMEDA_LIMITS", "not json"),
    ("ALAMEDA_LIMITS__STREAMS", "none"),
    ("ALAMEDA_LIMITS__STREAMS", "0"),
    ("ALAMEDA_LIMITS__NO_SUCH", "1"),
    ("ALAMEDA_TIMING__HEARTBEAT_S", "0"),
    ("ALAMEDA_TIMING__HEARTBEAT_S", "nan"),
    ("ALAMEDA_TIMING__DRAIN_S", "-1"),
    ("ALAMEDA_TIMING__NO_SUCH", "1"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_names_itself(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """The variable, as it was written, and what would be right; one line for each."""
    monkeypatch.setenv(name, value)
    said = refused()
    in_a_file = name.removeprefix("ALAMEDA_").replace("__", ".").lower()
    assert name in said or (in_a_file.startswith("backends") and in_a_file in said)
    assert "pydantic" not in said.lower()


def test_every_variable_has_a_wrong_value_here() -> None:
    """So that no new one is forgotten. What takes any text cannot be wrong."""
    anything = {
        *("PASEO_PASSWORD", "ALAMEDA_DEFAULT_BACKEND", "ALAMEDA_ALLOWED_HOSTS", "ALAMEDA_TRUSTED_PROXIES"),
        "ALAMEDA_DATABASE_USER",
    }
    described = {line.split(" ")[0].split("__")[0] for line in describe_settings().splitlines()}
    assert described == {name.split("__")[0] for name, _ in WRONG} - {"ALAMEDA_BACKENDS"} | anything


def test_several_wrong_values_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one go."""
    monkeypatch.setenv("ALAMEDA_PORT", "x")
    monkeypatch.setenv("ALAMEDA_LOG_LEVEL", "y")
    said = refused()
    assert "ALAMEDA_PORT" in said
    assert "ALAMEDA_LOG_LEVEL" in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALAMEDA_API_KEY", "canary-secret"),
        ("DATABASE_URL", "mysql://user:canary-secret@host/x"),
        ("ALAMEDA_DIRECT_DATABASE_URL", "x://user:canary-secret@host/x"),
        ("ALAMEDA_BACKENDS", '{"one": {"type": "acp", "env": {"KEY": "canary-secret"}}}'),
    ],
)
def test_a_message_shows_no_secret(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """However wrong it is."""
    monkeypatch.setenv(name, value)
    assert "canary-secret" not in refused()


def test_settings_print_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither as text nor as a repr nor as JSON."""
    monkeypatch.setenv("ALAMEDA_API_KEY", f"alm_id_{'canarysecret' * 4}")
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:canarysecret@h/d")
    monkeypatch.setenv("PASEO_PASSWORD", "canarysecret")
    backend = '{"one": {"type": "acp", "command": ["x"], "env": {"KEY": "canarysecret"}}}'
    monkeypatch.setenv("ALAMEDA_BACKENDS", backend)
    settings = load_settings()
    assert settings.backends["one"].env == {"KEY": "canarysecret"}
    assert "canarysecret" not in f"{settings}{settings!r}{settings.backends!r}"


def test_arguments_come_before_the_environment_and_that_before_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And the file before the default; each knob by itself."""
    file = tmp_path / "own.toml"
    file.write_text("[limits]\nstreams = 7\nstreams_per_key = 8\n[timing]\nhealth_s = 3\n")
    assert load_settings(config=file).limits.streams == 7
    monkeypatch.setenv("ALAMEDA_CONFIG", str(file))
    monkeypatch.setenv("ALAMEDA_LIMITS__STREAMS", "9")
    monkeypatch.setenv("ALAMEDA_PORT", "1111")
    settings = load_settings(port=2222)
    assert (settings.limits.streams, settings.limits.streams_per_key) == (9, 8)
    assert settings.limits.attachments == Limits().attachments
    assert (settings.timing.health_s, settings.port) == (3, 2222)
    assert load_settings().port == 1111


def test_the_file_of_the_working_directory_is_found(tmp_path: Path) -> None:
    """`alameda.toml`, unless another one is named."""
    (tmp_path / "alameda.toml").write_text("[limits]\nstreams = 7\n")
    assert load_settings().limits.streams == 7
    other = tmp_path / "other.toml"
    other.write_text("[limits]\nstreams = 8\n")
    assert load_settings(config=other).limits.streams == 8


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("limits", "alameda.toml"),
        ("[limits]\nstreams = \n", "alameda.toml"),
        ("[limits]\nno_such = 1\n", "no_such"),
        ("[limits]\nstreams = 'x'\n", "streams"),
        ("[server]\nport = 1\n", "server"),
        ("host = '0.0.0.0'\n", "host"),
        ("[backends.one]\ntype = 'magic'\n", "backends.one"),
        ("[backends.one]\ntype = 'acp'\n", "command"),
        ("[backends.one]\ntype = 'paseo'\n", "url"),
        ("[backends.one]\ntype = 'paseo'\nurl = 'file:///x'\n", "url"),
        ("[backends.one]\ntype = 'acp'\ncommand = 'opencode acp'\n", "command"),
        ("[backends.one]\ntype = 'acp'\ncommand = ['x']\nroots = ['relative']\n", "roots"),
        ("[backends.one]\ntype = 'acp'\ncommand = ['x']\ncolour = 'red'\n", "colour"),
        ("[backends.'A B']\ntype = 'acp'\ncommand = ['x']\n", "A B"),
        ("backends = 3\n", "backends"),
        ("limits = [1]\n", "limits"),
    ],
)
def test_a_wrong_file_names_itself_and_the_place(tmp_path: Path, content: str, names: str) -> None:
    """Not TOML, unknown tables and keys, wrong values."""
    (tmp_path / "alameda.toml").write_text(content)
    said = refused().lower()
    assert names.lower().replace(".", "__") in said or names.lower() in said


def test_a_file_that_is_not_text_names_itself(tmp_path: Path) -> None:
    """Nor does it end in a traceback."""
    (tmp_path / "alameda.toml").write_bytes(b"\xff\xfe\x00")
    assert "alameda.toml" in refused()


def test_the_example_loads_as_it_is() -> None:
    """Copied and not touched, it is a configuration."""
    settings = load_settings(config=EXAMPLE)
    assert settings.backends


def test_every_line_of_the_example_that_is_commented_out_is_right_too(tmp_path: Path) -> None:
    """Whoever takes a `#` away gets what is written there."""
    lines = [
        re.sub(r"^# (?=[a-z_]+ = |\[)", "", line) if "…" not in line else line
        for line in EXAMPLE.read_text().splitlines()
    ]
    file = tmp_path / "all.toml"
    file.write_text("\n".join(lines))
    load_settings(config=file)


def test_every_setting_is_described_with_its_default() -> None:
    """A paragraph each: the variable, the default, a sentence; and no value of this machine."""
    text = describe_settings()
    lines = text.splitlines()
    assert len(lines) == len(set(lines))
    for line in lines:
        assert re.fullmatch(r"[A-Z][A-Z0-9_]+ \[[^\]]*\]: \S.*", line), line
    for name in Limits.model_fields:
        assert f"ALAMEDA_LIMITS__{name.upper()} [" in text
    for name in Timing.model_fields:
        assert f"ALAMEDA_TIMING__{name.upper()} [" in text
    known = set(Settings.model_fields) - {"backends", "limits", "timing"}
    assert len([line for line in lines if "__" not in line.split(" ")[0]]) == len(known)
    assert str(Path.home()) not in text or str(Path.home()) == "/"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", ()),
        ("0.0.0.0", ()),
        ("::", ()),
        ("192.0.2.7", ("192.0.2.7",)),
        ("2001:db8::1", ("[2001:db8::1]",)),
    ],
)
def test_t04_the_listen_address_is_a_host_name_of_ours(host: str, expected: tuple[str, ...]) -> None:
    """Beside the loopback names and those that are listed; never everything."""
    settings = load_settings(host=host, allow_remote=True, allowed_hosts="a.example, b.example")
    own = ("127.0.0.1", "localhost", "[::1]")
    assert settings.hosts == (*own, *expected, "a.example", "b.example")
    assert "*" not in settings.hosts
