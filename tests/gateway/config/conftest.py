"""A small engine registry, and a way to load a file from text."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from backends.contract import HttpRequest, OptionError
from backends.doors import NO_DOORS, NativeDoors
from backends.openai_errors import OPENAI
from gateway.config.loading import ConfigInvalid, load_with_warnings
from gateway.config.problems import Problem
from gateway.config.snapshot import Snapshot

REPO = Path(__file__).resolve().parents[3]


class TinyAdapter:
    """What configuration looks at, and no dialect."""

    applies_template = True
    adds_bos = False
    reuses_prefixes = False
    takes_priority = False

    def __init__(self, kind: str, relay: str, canonical: bool, options: Mapping[str, Any]) -> None:
        self.kind = kind
        self.doors = NO_DOORS if relay == "translated" else NativeDoors(("embeddings",), OPENAI)
        self.relay = relay
        self.canonical = canonical
        self.options = dict(options)
        self.sleep = object() if kind in ("triton", "vllm") else None  # whether there is one is looked at

    def unsupported(self, request: Any) -> None:
        """It takes everything."""

    def tokenize_request(self, model: str, *, text: str | None = None, messages: Any = None) -> Any:
        """tgi counts texts and chats, trtllm texts, the others nothing."""
        if self.kind == "tgi" or (self.kind == "trtllm" and text is not None):
            return HttpRequest("POST", "/tokenize")
        return None


class TinyRegistry:
    """trtllm is patched, triton translated with one option, openai canonical."""

    def kinds(self) -> Sequence[str]:
        return ("trtllm", "triton", "tgi", "vllm", "openai")

    def adapter(self, kind: str, options: Mapping[str, Any]) -> Any:
        relay = "translated" if kind in ("triton", "tgi") else "patched"
        for name, value in options.items():
            if kind != "triton" or name not in ("text_mode", "add_special_tokens"):
                raise OptionError(name, f"unknown option of {kind}", ("text_mode", "add_special_tokens"))
            if name == "text_mode" and value not in ("delta", "cumulative", "auto"):
                raise OptionError(name, f"bad value {value!r}", ("delta", "cumulative", "auto"))
            if name == "add_special_tokens" and not isinstance(value, bool):
                raise OptionError(name, "neither true nor false")
        return TinyAdapter(kind, relay, kind == "openai", options)


MINIMAL = """\
version: 1
models:
  m: {tokenizer: {kind: estimate}}
pools:
  p:
    engine: openai
    serves: m
    replicas: [{id: r1, url: "http://127.0.0.1:9000"}]
rules:
  - {name: else, pools: [p]}
tenants:
  t: {keys: [{id: k, hash: "sha256:0000000000000000000000000000000000000000000000000000000000000000"}]}
"""

Loaded = tuple[Snapshot | None, tuple[Problem, ...], tuple[Problem, ...]]


@pytest.fixture
def try_load(tmp_path: Path) -> Callable[..., Loaded]:
    """Text -> (snapshot or None, problems, warnings). Files named by the text go to `tmp_path`."""

    def loaded(text: str | bytes, environ: Mapping[str, str] | None = None, **options: Any) -> Loaded:
        path = tmp_path / "routes.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        try:
            snapshot, warnings = load_with_warnings(path, TinyRegistry(), environ=environ or {}, **options)
        except ConfigInvalid as error:
            return None, error.problems, error.warnings
        return snapshot, (), warnings

    return loaded


@pytest.fixture
def problems(try_load: Callable[..., Loaded]) -> Callable[..., list[str]]:
    """Text -> its problems as printed, without the file's name."""

    def found(text: str | bytes, environ: Mapping[str, str] | None = None, **options: Any) -> list[str]:
        return [
            str(problem).removeprefix("routes.yaml:") for problem in try_load(text, environ, **options)[1]
        ]

    return found


@pytest.fixture
def warnings_of(try_load: Callable[..., Loaded]) -> Callable[..., list[str]]:
    """Text -> its warnings as printed, without the file's name; the text must load."""

    def found(text: str, environ: Mapping[str, str] | None = None) -> list[str]:
        snapshot, faults, warned = try_load(text, environ)
        assert snapshot is not None, faults
        return [str(problem).removeprefix("routes.yaml:") for problem in warned]

    return found
