"""How recipes are read: commands out of pages and scripts, names out of `upstream/`, pools out of pages.

A recipe is a page `backends/<engine>/README.md` with its scripts. A *command* is a known program with the
words after it, wherever it stands in a line (after `docker run`, `srun`, a variable), up to what ends a
command in a shell. Its *names* are flags, and for `fill_template.py` the variables that it fills.
"""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import REPO

__all__ = [
    "ENGINES",
    "Command",
    "commands",
    "fences",
    "keys",
    "launched",
    "page",
    "pools",
    "profiles",
    "unknown",
    "upstream",
    "written",
]

ENGINES = ("trtllm", "triton", "tgi", "vllm", "sglang", "llamacpp")

_PROGRAMS: dict[str, tuple[str, ...]] = {
    "trtllm-serve": ("trtllm-serve",),
    "trtllm-build": ("trtllm-build",),
    "quantize.py": ("quantize.py",),
    "launch_triton_server.py": ("launch_triton_server.py",),
    "fill_template.py": ("fill_template.py",),
    "tritonserver": ("tritonserver",),
    "openai_frontend/main.py": ("main.py",),
    "text-generation-launcher": ("text-generation-launcher",),
    "vllm serve": ("vllm", "serve"),
    "python3 -m sglang.launch_server": ("python3", "-m", "sglang.launch_server"),
    "llama-server": ("llama-server",),
}
_BY_SCRIPT = {
    "trtllm": "trtllm-serve",
    "triton": "launch_triton_server.py",
    "tgi": "text-generation-launcher",
    "vllm": "vllm serve",
    "sglang": "python3 -m sglang.launch_server",
    "llamacpp": "llama-server",
}
"""Whose flags are given after `launch.sh PROFILE`."""

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_ENDS = frozenset({"&&", "||", ";", "|", "&", ">", "<"})


@dataclass(frozen=True, slots=True)
class Command:
    program: str
    words: tuple[str, ...]

    @property
    def flags(self) -> list[str]:
        """The names of its flags, without values: `--a=b` is `--a`."""
        return [word.split("=", 1)[0] for word in self.words if re.match(r"--?[A-Za-z]", word)]

    def value(self, flag: str) -> str:
        """The word after the flag; KeyError where it is not given."""
        for name, following in zip(self.words, self.words[1:], strict=False):
            if name == flag:
                return following
        raise KeyError(flag)


@cache
def upstream(engine: str) -> Mapping[str, list[dict[str, Any]]]:
    """Of each program or file of that engine: versions, with their sources and the names they know."""
    known: dict[str, list[dict[str, Any]]] = yaml.safe_load(
        (Path(__file__).parent / "upstream" / f"{engine}.yaml").read_text()
    )
    return known


@cache
def _versions(program: str) -> list[dict[str, Any]]:
    (versions,) = (upstream(engine)[program] for engine in ENGINES if program in upstream(engine))
    return versions


def unknown(program: str, names: Sequence[str]) -> list[str]:
    """Those names that some version of the program does not know."""
    return [name for name in names if any(name not in version["names"] for version in _versions(program))]


def page(engine: str) -> str:
    return (REPO / "backends" / engine / "README.md").read_text()


def fences(text: str, language: str) -> list[str]:
    return [body for kind, body in _FENCE.findall(text) if kind == language]


def commands(text: str, engine: str | None = None) -> Iterator[Command]:
    """Those in a piece of shell; `engine` tells whose `launch.sh` is meant."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if line.lstrip().startswith("#"):
            continue
        words = shlex.split(line, comments=True)
        if any(" " in word and "launch.sh" in word for word in words):  # bash -c '...'
            words = [part for word in words for part in word.split()]
        yield from _commands(words, engine)


def _commands(words: list[str], engine: str | None) -> Iterator[Command]:
    at = 0
    while at < len(words):
        for program, head in _PROGRAMS.items():
            if tuple(words[at : at + len(head) - 1]) == head[:-1] and (
                words[at + len(head) - 1 : at + len(head)]
                and Path(words[at + len(head) - 1]).name == head[-1]
            ):
                end = _end(words, at + len(head))
                yield Command(program, tuple(words[at + len(head) : end]))
                at = end
                break
        else:
            if engine is not None and words[at].endswith("/launch.sh"):
                end = _end(words, at + 1)
                ours = at + 1 + (words[at + 1] in ("--print", "--prepare"))
                yield Command(_BY_SCRIPT[engine], tuple(words[ours:end]))
                at = end
            at += 1


def _end(words: list[str], start: int) -> int:
    return next((at for at in range(start, len(words)) if words[at] in _ENDS), len(words))


def profiles(engine: str) -> list[str]:
    """What its `launch.sh` says it knows."""
    script = (REPO / "backends" / engine / "launch.sh").read_text()
    found = re.search(r"\$\{1:\?a profile: ([^}]*)\}", script)
    assert found
    return found[1].split(", ")


@cache
def _shown(engine: str, profile: str) -> str:
    more = ["/models/repository"] if engine == "triton" else []
    return subprocess.run(
        [REPO / "backends" / engine / "launch.sh", "--print", profile, *more],
        env={"PATH": os.environ["PATH"], "ENGINE_DIR": "/models/engine", "TOKENIZER_DIR": "/models/words"},
        check=True, capture_output=True, text=True, timeout=30,
    ).stdout  # fmt: skip


def launched(engine: str, profile: str) -> list[Command]:
    """What `launch.sh` would run for that profile, expanded by the shell itself."""
    shown = re.sub(r"^--- .*?^---$", "", _shown(engine, profile), flags=re.MULTILINE | re.DOTALL)
    return list(commands(shown))


def written(engine: str, profile: str) -> dict[str, Any]:
    """The options file that goes with that profile: trtllm-serve's extra options, Triton's model.yaml."""
    if engine == "trtllm":
        (command,) = launched(engine, profile)
        text = Path(command.value("--extra_llm_api_options")).read_text()
    else:
        (text,) = re.findall(r"^--- \S+\n(.*?)^---$", _shown(engine, profile), re.MULTILINE | re.DOTALL)
    options: dict[str, Any] = yaml.safe_load(text)
    return options


def keys(options: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Its keys with dots: `kv_cache_config.dtype`."""
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from keys(value, f"{above}{key}.")
        else:
            yield above + key


def pools(engine: str) -> dict[str, dict[str, Any]]:
    """Those of its page that are of that engine kind, by profile."""
    found: dict[str, dict[str, Any]] = {}
    for block in fences(page(engine), "yaml"):
        found |= yaml.safe_load(block).get("pools", {})
    return {name.removeprefix(f"{engine}-"): pool for name, pool in found.items() if pool["engine"] == engine}


def speculative(command: Command) -> list[str]:
    """The keys of vLLM's `--speculative-config`."""
    return list(json.loads(command.value("--speculative-config")))
