"""The files around the code are read as data: what they promise about safety and repeatability stays true."""

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

HOUSE = Path(__file__).resolve().parent.parent
LOCKS = ["requirements.txt", "requirements-dev.txt", "requirements-build.txt"]

# Written so that this file does not find itself.
REGISTRY = re.compile(
    r"py[p]i\.org|py[t]honhosted|registry\.n[p]mjs|registry\.y[a]rnpkg|(?:deb|security|ftp)\.d[e]bian\.org|"
    r"proxy\.g[o]lang|(?<!no-emit-)i[n]dex-url"
)
MACHINE_PATH = re.compile(r"(?<![\w.$}/-])/(?:w[o]rk|f[a]rm|r[o]ot)(?![\w-])")


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((HOUSE / "docker-compose.yml").read_text())
    return loaded


def dockerfile() -> list[str]:
    """The instructions, one a line, without comments."""
    joined = (HOUSE / "Dockerfile").read_text().replace("\\\n", " ")
    return [re.sub(r"\s+", " ", line) for line in joined.splitlines() if line and not line.startswith("#")]


def last_stage() -> list[str]:
    lines = dockerfile()
    return lines[max(i for i, line in enumerate(lines) if line.startswith("FROM ")) :]


def argument(lines: list[str], instruction: str) -> str:
    return next(
        line.removeprefix(instruction).strip() for line in lines if line.startswith(instruction + " ")
    )


def files_of_the_project() -> Iterator[tuple[str, str]]:
    if (HOUSE / ".git").exists() and shutil.which("git"):
        listing = ["git", "-c", f"safe.directory={HOUSE}", "ls-files", "-z", "-co", "--exclude-standard"]
        names = subprocess.run(listing, cwd=HOUSE, check=True, capture_output=True, text=True).stdout.split(
            "\0"
        )
    else:
        names = [str(path.relative_to(HOUSE)) for path in HOUSE.rglob("*")]
        names = [
            name
            for name in names
            if not re.search(r"(^|/)(\.\w*cache|\.venv|\.hypothesis|__pycache__)/", name)
        ]
    for name in names:
        path = HOUSE / name
        if name and path.is_file() and not path.is_symlink():
            try:
                yield name, path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def locked(file: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", (HOUSE / file).read_text(), flags=re.MULTILINE))


def wanted_names(requirements: list[Any]) -> set[str]:
    return {
        re.split(r"[^A-Za-z0-9._-]", wanted)[0].lower() for wanted in requirements if isinstance(wanted, str)
    }


def test_no_file_names_a_registry_or_a_path_of_some_machine() -> None:
    found = [
        f"{name}:{number}: {match.group()}"
        for name, text in files_of_the_project()
        for number, line in enumerate(text.splitlines(), start=1)
        for pattern in (MACHINE_PATH, REGISTRY)
        if (match := pattern.search(line))
    ]
    assert found == []


@pytest.mark.parametrize("file", LOCKS)
def test_every_locked_package_has_a_hash(file: str) -> None:
    """pip's hash mode takes nothing that is not listed here, byte for byte."""
    entries = re.split(r"\n(?=\S)", (HOUSE / file).read_text().strip())
    assert entries
    assert [
        entry for entry in entries if not re.match(r"[a-z0-9-]+(\[[a-z,]+\])?==.*--hash=sha256:", entry, re.S)
    ] == []


def test_locks_are_in_step_with_the_project_and_with_each_other() -> None:
    """After a change of pyproject.toml somebody has to run `make lock`."""
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    runtime, dev, build = (locked(file) for file in LOCKS)
    assert wanted_names(project["project"]["dependencies"]) <= runtime.keys()
    assert wanted_names(groups["dev"]) | wanted_names(groups["build"]) | runtime.keys() <= dev.keys()
    assert wanted_names(groups["build"]) | wanted_names(project["build-system"]["requires"]) <= build.keys()
    assert runtime.items() <= dev.items()
    assert build.items() <= dev.items()


def test_image_installs_only_what_is_locked() -> None:
    installs = re.findall(r"pip install ([^&]+)", " ".join(dockerfile()))
    assert installs
    assert [
        line for line in installs if "--require-hashes" not in line and "--no-deps --no-index" not in line
    ] == []
    bases = [line.split()[1] for line in dockerfile() if line.startswith("FROM ")]
    assert all(re.fullmatch(r"python:3\.\d+-slim-\w+", base) for base in bases)


def test_image_runs_as_a_named_user_under_an_init() -> None:
    """initdb refuses a uid without a name; a first process that is no init leaves zombies (P58)."""
    stage = last_stage()
    uid, _, gid = argument(stage, "USER").partition(":")
    assert uid == gid == "10001"
    assert f"useradd --uid {uid} " in " ".join(stage)
    assert argument(stage, "ENTRYPOINT") == '["/usr/bin/tini", "--"]'
    assert argument(stage, "CMD") == '["alameda", "serve"]'
    assert "/livez" in argument(stage, "HEALTHCHECK")
    assert "ALLOW_REMOTE=" not in argument(stage, "ENV")


@pytest.mark.parametrize("name", ["alameda", "paseo", "postgres"])
def test_service_can_do_no_more_than_it_needs(name: str) -> None:
    service = compose()["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"}
    assert "docker.sock" not in str(service)
    inline = service["build"].get("dockerfile_inline", "") if isinstance(service.get("build"), dict) else ""
    assert service.get("user") == "postgres" or service["build"] == "." or "USER 10001:10001" in inline


def test_only_alameda_is_published_and_only_on_loopback() -> None:
    services = compose()["services"]
    assert {name: service["ports"] for name, service in services.items() if "ports" in service} == {
        "alameda": ["127.0.0.1:8765:8765"]
    }
    assert compose()["networks"]["data"] == {"internal": True}
    assert services["postgres"]["networks"] == ["data"]
    assert services["paseo"]["networks"] == ["agents"]


def test_secrets_come_from_the_operator_and_have_no_default() -> None:
    services = compose()["services"]
    environment = {
        key: str(value) for service in services.values() for key, value in service["environment"].items()
    }
    for secret in ("POSTGRES_PASSWORD", "PASEO_PASSWORD", "ALAMEDA_API_KEY"):
        assert environment[secret].startswith(f"${{{secret}:?"), secret
    assert ":${POSTGRES_PASSWORD:?}@" in environment["DATABASE_URL"]


def test_alameda_and_the_daemon_agree_on_name_password_and_workspace() -> None:
    """The daemon answers 403 to a Host name that it was not told."""
    alameda, paseo = compose()["services"]["alameda"], compose()["services"]["paseo"]
    assert alameda["environment"]["PASEO_URL"] == "http://paseo:6767"
    assert paseo["environment"]["PASEO_HOSTNAMES"] == "paseo"
    assert paseo["environment"]["PASEO_LISTEN"] == "0.0.0.0:6767"
    assert "PASEO_PASSWORD" in alameda["environment"]
    assert "PASEO_PASSWORD" in paseo["environment"]
    assert paseo["init"] is True
    root = alameda["environment"]["ALAMEDA_ALLOWED_ROOTS"]
    assert f"workspace:{root}" in alameda["volumes"]
    assert f"workspace:{root}" in paseo["volumes"]


def test_services_wait_for_each_other_and_are_given_time_to_stop() -> None:
    services = compose()["services"]
    assert services["alameda"]["depends_on"]["postgres"] == {"condition": "service_healthy"}
    assert "healthcheck" in services["postgres"]
    assert "healthcheck" in services["paseo"]
    assert all(int(service["stop_grace_period"].removesuffix("s")) > 10 for service in services.values())


def test_versions_are_pinned_and_the_same_everywhere() -> None:
    inline = compose()["services"]["paseo"]["build"]["dockerfile_inline"]
    packages = re.search(r"npm install .*", inline)
    assert packages
    assert [word for word in packages.group().split() if "/cli" in word or "-ai" in word] != []
    assert all(
        re.search(r"@\d+\.\d+\.\d+", word)
        for word in packages.group().split()
        if "/cli" in word or "-ai" in word
    )
    tested = re.search(r"OPENCODE_VERSION=(\S+)", (HOUSE / ".ci/run").read_text())
    assert tested
    assert f"opencode-ai@{tested.group(1)}" in inline
    images = [service["image"] for service in compose()["services"].values() if "image" in service]
    images += re.findall(r"^FROM (\S+)", inline, flags=re.MULTILINE)
    assert all(re.fullmatch(r"[a-z]+:\d[\w.]*-[\w-]+", image) for image in images)


def test_example_configuration_parses_with_every_comment_taken_in() -> None:
    text = (HOUSE / "alameda.example.toml").read_text()
    plain = tomllib.loads(text)
    assert plain["backends"]["paseo"]["type"] == "paseo"
    assert plain["backends"]["opencode"] == {"type": "acp", "command": ["opencode", "acp"]}
    whole = tomllib.loads(re.sub(r"^# (?=\w+ = |\[)", "", text, flags=re.MULTILINE))
    assert {backend["type"] for backend in whole["backends"].values()} == {"paseo", "paseo-cli", "acp"}
    assert whole["limits"]
