"""The image and the compose file, as far as they can be judged without Docker.

NOT SHOWN here: that the image builds and runs. No test of this repository has a Docker daemon. What is shown:
every instruction keeps the rules below, every file that is copied exists and is not ignored, a wheel builds
from exactly those files, the health check's own code works against a real listener, and every command line
is one that the real command accepts.
"""

import fnmatch
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from gateway.cli import app
from tests.conftest import REPO


@dataclass(frozen=True)
class Instruction:
    word: str
    flags: tuple[str, ...]
    rest: str

    def form(self) -> list[str]:
        """The exec form's words; AssertionError for the shell form."""
        words = json.loads(self.rest)
        assert isinstance(words, list)
        return words


def parse(text: str) -> list[list[Instruction]]:
    """The stages of a Dockerfile, each from its FROM on; what stands before the first is stage 0."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\\\n\s*", " ", text)
    stages: list[list[Instruction]] = [[]]
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        flags = []
        while rest.lstrip().startswith("--"):
            flag, _, rest = rest.lstrip().partition(" ")
            flags.append(flag)
        instruction = Instruction(word.upper(), tuple(flags), rest.strip())
        if instruction.word == "FROM":
            stages.append([])
        stages[-1].append(instruction)
    return stages


STAGES = parse((REPO / "Dockerfile").read_text())
EVERY = [instruction for stage in STAGES for instruction in stage]
RUNTIME = STAGES[-1]
DEFAULTS = dict(i.rest.split("=", 1) for i in EVERY if i.word == "ARG")
COMPOSE: dict[str, Any] = yaml.safe_load((REPO / "deploy" / "compose.yaml").read_text())


def with_defaults(text: str) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda found: DEFAULTS[found[1]], text)


def copied(instructions: list[Instruction]) -> list[str]:
    """Sources of the COPY instructions that take from the build context."""
    sources = []
    for i in instructions:
        if i.word == "COPY" and not any(flag.startswith("--from=") for flag in i.flags):
            sources += with_defaults(i.rest).split()[:-1]
    return sources


def ignored(path: str) -> bool:
    """Docker's rule: the last pattern that matches the path or a directory above it decides."""
    parts = Path(path).parts
    above = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    verdict = False
    for line in (REPO / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        wanted = pattern.removeprefix("!").rstrip("/")
        depth = wanted.count("/")
        if wanted.startswith("**/"):
            hit = any(fnmatch.fnmatchcase(part, wanted[3:]) for part in parts)
        else:  # `*` stops at a slash
            hit = any(each.count("/") == depth and fnmatch.fnmatchcase(each, wanted) for each in above)
        if hit:
            verdict = not pattern.startswith("!")
    return verdict


def accepts(arguments: list[str]) -> Any:
    """Parse as the real command would; raises click's UsageError. Nothing is run."""
    verb = typer.main.get_command(app).commands[arguments[0]]  # type: ignore[attr-defined]
    return verb.make_context(arguments[0], list(arguments[1:])).params


# ------------------------------------------------------------------------------------------ Dockerfile


def test_the_base_is_pinned_and_the_same_in_both_stages():
    bases_named = [with_defaults(i.rest) for i in EVERY if i.word == "FROM"]
    assert len(bases_named) == 2
    bases = {re.sub(r" AS \w+$", "", each) for each in bases_named}
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.\d+(\.\d+)?-slim-\w+(@sha256:[0-9a-f]{64})?", bases.pop())


def test_what_is_copied_exists_and_is_not_ignored():
    sources = copied(EVERY)
    assert {"backends/", "gateway/", "pyproject.toml", "deploy/lock/runtime.lock"} <= set(sources)
    for source in sources:
        assert (REPO / source).exists(), source
        assert not ignored(source.rstrip("/")), source


@pytest.mark.parametrize(
    "path",
    [".git/config", ".env", "routes.yaml", ".venv/bin/python", ".headgate/admin-key", "tests/conftest.py",
     "deploy/compose.yaml", "gateway/__pycache__/app.pyc", "deploy/tokenizers/corpus/code.txt"],
)  # fmt: skip
def test_what_must_not_be_in_an_image_is_ignored(path: str):
    assert ignored(path)


def test_nothing_is_added_unpacked_or_fetched():
    assert not [i for i in EVERY if i.word == "ADD"]
    for i in EVERY:
        if i.word == "RUN":
            assert i.form()[0].startswith(("/opt/", "python", "mkdir")), i.rest


def test_every_install_is_locked():
    """From the network: by hash, wheels only. From here: without the network."""
    installs = [i.form() for i in EVERY if i.word == "RUN" and "install" in i.form()]
    assert len(installs) == 3
    for words in installs:
        if "--no-index" in words:
            assert "--no-deps" in words
        else:
            assert "--require-hashes" in words
            assert words[words.index("--only-binary") + 1] == ":all:"
            assert (REPO / words[-1].removeprefix("/src/")).is_file()


def test_the_build_tools_are_those_of_the_dev_lock():
    """Same versions, same hashes, and all that hatchling needs."""
    build, dev = ((REPO / "deploy" / "lock" / f"{name}.lock").read_text() for name in ("build", "dev"))
    blocks = re.split(r"\n(?=[a-z])", build.strip())
    assert [block.split("==")[0] for block in blocks] == [
        "hatchling", "packaging", "pathspec", "pluggy", "tomlkit", "trove-classifiers",
    ]  # fmt: skip
    assert all(block in dev for block in blocks)


def test_it_runs_as_a_numeric_user_that_is_not_root():
    users = [i.rest for i in RUNTIME if i.word == "USER"]
    assert len(users) == 1
    uid, gid = map(int, users[0].split(":"))
    assert uid >= 10_000
    assert gid >= 10_000
    after = RUNTIME[next(n for n, i in enumerate(RUNTIME) if i.word == "USER") :]
    assert not {i.word for i in after} & {"RUN", "COPY", "ADD"}


def test_only_the_state_volume_belongs_to_that_user():
    """So the root file system may be read-only: what is written goes to HEADGATE_STATE, a volume."""
    (volume,) = (i.form() for i in RUNTIME if i.word == "VOLUME")
    (user,) = (i.rest for i in RUNTIME if i.word == "USER")
    owned = {i.rest.split()[-1] for i in RUNTIME for flag in i.flags if flag == f"--chown={user}"}
    assert owned == set(volume) == {"/var/lib/headgate"}
    environment = " ".join(i.rest for i in RUNTIME if i.word == "ENV").split()
    assert f"HEADGATE_STATE={volume[0]}" in environment
    assert "PYTHONDONTWRITEBYTECODE=1" in environment


def test_no_secrets_are_baked_in():
    for i in EVERY:
        if i.word in ("ENV", "ARG", "LABEL"):
            assert not re.search(r"(?i)key|token(?!izer)|secret|password|hg-", i.rest), i.rest


def test_the_command_is_in_exec_form_and_one_the_gateway_takes():
    """SIGTERM reaches the gateway itself, and its options are real ones."""
    (entry,) = (i.form() for i in RUNTIME if i.word == "ENTRYPOINT")
    (command,) = (i.form() for i in RUNTIME if i.word == "CMD")
    assert entry == ["headgate"]
    given = accepts(command)
    (exposed,) = (i.rest for i in RUNTIME if i.word == "EXPOSE")
    assert str(given["port"]) == exposed
    assert given["host"] == "0.0.0.0"
    assert given["admin_host"] is None  # stays on the container's loopback


class _Live(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/livez" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_the_health_check_tells_alive_from_gone():
    """Its own code, in this Python, even where the environment names a proxy."""
    (health,) = (i for i in RUNTIME if i.word == "HEALTHCHECK")
    python, *words = json.loads(health.rest.removeprefix("CMD "))
    assert python == "python"

    def healthy(port: int) -> bool:
        environment = {**os.environ, "HEADGATE_HEALTH_PORT": str(port), "http_proxy": "http://127.0.0.1:1"}
        done = subprocess.run(
            [sys.executable, *words], env=environment, capture_output=True, timeout=20, check=False
        )
        return done.returncode == 0

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Live) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.server_address[1]
        alive = healthy(port)
        server.shutdown()
        thread.join()
    assert alive
    assert not healthy(port)


def test_a_wheel_builds_from_what_is_copied(tmp_path: Path):
    """The context holds all that the package needs, its schema included, and no tests."""
    for source in copied(STAGES[1]):
        target = tmp_path / source
        target.parent.mkdir(parents=True, exist_ok=True)
        if (REPO / source).is_dir():
            shutil.copytree(
                REPO / source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(REPO / source, target)
    (build,) = (i.form() for i in EVERY if i.word == "RUN" and "build" in i.form()[1:])
    words = [word.replace("/src", str(tmp_path)) for word in build[1:]]
    subprocess.run(
        [sys.executable, "-m", "hatchling", *words], cwd=tmp_path, check=True, capture_output=True, timeout=50
    )
    (wheel,) = (tmp_path / "dist").glob("headgate-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"gateway/__main__.py", "gateway/config/routes.schema.json", "backends/contract.py"} <= names
    assert "backends/simulated/headgate-mini/tokenizer.json" in names
    assert not [name for name in names if name.startswith(("tests/", "loadtest/", "deploy/"))]


# -------------------------------------------------------------------------------------------- compose


def command_of(service: dict[str, Any]) -> Any:
    return accepts(service["command"])


def test_every_service_runs_a_command_that_the_gateway_has():
    kinds = set()
    for name, service in COMPOSE["services"].items():
        given = command_of(service)
        if name == "gateway":
            assert str(given["config"]) == "/etc/headgate/routes.yaml"
        else:
            kinds.add(given["kind"])
            assert given["tokenizer"] is None  # the wheel has their own
    assert kinds == {"trtllm", "triton", "tgi", "vllm"}


def test_ports_are_published_on_loopback_only():
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", ())]
    assert published == ["127.0.0.1:8080:8080"]
    assert COMPOSE["networks"]["engines"]["internal"] is True


def test_containers_may_do_little():
    for service in COMPOSE["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert "user" not in service  # the image's own
        assert not service.get("privileged")


def test_what_is_mounted_exists_and_only_the_state_can_be_written():
    (state,) = (v for v in COMPOSE["services"]["gateway"]["volumes"] if not v.endswith(":ro"))
    assert state == "state:/var/lib/headgate"
    for volume in COMPOSE["services"]["gateway"]["volumes"]:
        source = volume.split(":")[0]
        assert source in COMPOSE["volumes"] or (REPO / "deploy" / source).exists(), volume


def test_every_replica_of_the_routes_has_its_engine():
    """Each URL variable of routes.yaml names a service whose kind and model are those of its pool."""
    routes = yaml.safe_load((REPO / "routes.yaml").read_text())
    gateway = COMPOSE["services"]["gateway"]
    named = {}
    for pool in routes["pools"].values():
        serves = pool["serves"]
        model = serves[0] if isinstance(serves, list) else next(iter(serves.values()))
        for replica in pool["replicas"]:
            variable = re.match(r"\$\{(\w+)", replica["url"])[1]
            named[variable] = (pool["engine"], model, replica["id"])
    assert set(named) <= set(gateway["environment"])
    for variable, (kind, model, replica) in named.items():
        host, port = gateway["environment"][variable].removeprefix("http://").split(":")
        given = command_of(COMPOSE["services"][host])
        assert (given["kind"], given["model"], host, str(given["port"])) == (kind, model, replica, port)
        assert given["host"] == "0.0.0.0"
    tokenizers = {Path(model["tokenizer"]["path"]) for model in routes["models"].values()}
    mounts = dict(v.split(":")[:2] for v in gateway["volumes"])
    for path in tokenizers:
        assert f"/etc/headgate/{path.parent}" == mounts["./tokenizers"]
        assert (REPO / path / "tokenizer.json").is_file()
