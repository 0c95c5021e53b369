# ruff: noqa: E501  # a row of a table here is a whole message
"""What a pool serves and tells its engines: LoRA adapters, priorities, and whether it reuses prefixes."""

from pathlib import Path

import pytest

from backends.contract import Lora
from backends.registry import REGISTRY
from gateway.config.loading import load_with_warnings
from gateway.config.problems import ConfigInvalid
from gateway.config.snapshot import Pool


def load(text: str, tmp_path: Path) -> Pool:
    """The pool `p` of the file, with the real engines."""
    path = tmp_path / "routes.yaml"
    path.write_text(text)
    return load_with_warnings(path, REGISTRY, environ={})[0].pools["p"]


def problems_of(text: str, tmp_path: Path) -> list[str]:
    try:
        load(text, tmp_path)
    except ConfigInvalid as error:
        return [str(problem).removeprefix("routes.yaml:") for problem in error.problems]
    return []


def file(engine: str, pool: str) -> str:
    return f"""\
version: 1
models:
  base: {{tokenizer: {{kind: estimate}}}}
  fr: {{tokenizer: {{kind: estimate}}}}
pools:
  p:
    engine: {engine}
    replicas: [{{id: r1, url: "http://127.0.0.1:9001"}}]
{pool}
rules:
  - {{name: all, pools: [p]}}
tenants:
  t: {{keys: [{{id: k, hash: "sha256:{"0" * 64}"}}]}}
"""


def serving(adapter: str, more: str = "") -> str:
    return f"    serves: {{base: m, fr: {{model: m, adapter: {adapter}}}}}\n{more}"


@pytest.mark.parametrize(
    ("engine", "adapter", "expected"),
    [
        ("vllm", "french", Lora(name="french")),
        ("sglang", "{name: french}", Lora(name="french")),
        (
            "trtllm",
            "{name: french, id: 7, path: /loras/french}",
            Lora(name="french", id=7, path="/loras/french"),
        ),
        ("triton", "{name: french, id: 7}", Lora(name="french", id=7)),
        ("llamacpp", "{name: french, id: 0, scale: 0.5}", Lora(name="french", id=0, scale=0.5)),
    ],
)
def test_a_model_may_be_an_adapter_over_another(
    engine: str, adapter: str, expected: Lora, tmp_path: Path
) -> None:
    pool = load(file(engine, serving(adapter)), tmp_path)
    assert dict(pool.serves) == {"base": "m", "fr": "m"}
    assert dict(pool.loras) == {"fr": expected}


@pytest.mark.parametrize(
    ("engine", "adapter", "expected"),
    [
        ("vllm", "{name: french, id: 7}", "adapter french is known to this engine by its name alone: no id, no path"),
        ("sglang", "{name: french, scale: 2}", "adapter french has no scale of its own in this engine"),
        ("tgi", "{name: french, path: /x}", "adapter french is known to this engine by its name alone: no id, no path"),
        ("trtllm", "french", "adapter french needs an id and a path for this engine"),
        ("trtllm", "{name: f, id: 1, path: /x, scale: 2}", "adapter f has no scale of its own in this engine"),
        ("triton", "french", "adapter french needs an id for this engine"),
        ("triton", "{name: french, id: 1, path: /x}", "adapter french is loaded from the engine's lora_prefetch_dir: no path"),
        ("triton", "{name: f, id: 1, scale: 2}", "adapter f has no scale of its own in this engine"),
        ("llamacpp", "french", "adapter french needs an id for this engine"),
        ("llamacpp", "{name: f, id: 1, path: /x}", "adapter f is loaded at this engine's start: no path"),
    ],
)  # fmt: skip
def test_an_adapter_that_the_engine_cannot_be_asked_for(
    engine: str, adapter: str, expected: str, tmp_path: Path
) -> None:
    """At load, at its line, not with the first request."""
    (problem,) = problems_of(file(engine, serving(adapter)), tmp_path)
    assert expected in problem
    assert problem.startswith("9:")


def test_llmapi_wants_all_three(tmp_path: Path) -> None:
    options = "    options: {vocabulary: llmapi}\n"
    assert (
        "needs an id and a path"
        in problems_of(file("triton", serving("{name: f, id: 1}", options)), tmp_path)[0]
    )
    assert problems_of(file("triton", serving("{name: f, id: 1, path: /x}", options)), tmp_path) == []


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        ("[1]", "is neither the engine's name nor {model: ..., adapter: ...}"),
        ("{model: m}", "adapter"),
        ("{model: m, adapter: {id: 1}}", "name"),
        ("{model: m, adapter: f, scale: 2}", "scale"),
    ],
)
def test_what_is_no_adapter(served: str, expected: str, tmp_path: Path) -> None:
    found = problems_of(file("vllm", f"    serves: {{base: m, fr: {served}}}"), tmp_path)
    assert len(found) == 1
    assert expected in found[0]


@pytest.mark.parametrize("engine", ["triton", "tgi", "llamacpp", "openai", "triton-openai"])
def test_engines_that_take_no_priorities(engine: str, tmp_path: Path) -> None:
    found = problems_of(file(engine, "    serves: {base: m, fr: m}\n    engine_priority: true"), tmp_path)
    assert len(found) == 1
    assert f"engine_priority: 'true' is not possible: {engine} takes no priorities" in found[0]


@pytest.mark.parametrize(
    ("engine", "more", "tokens"),
    [
        ("trtllm", "", 128),
        ("vllm", "", 128),
        ("sglang", "", 128),
        ("llamacpp", "", 128),
        ("tgi", "", 128),
        ("triton", "", 0),
        ("triton", "    options: {vocabulary: llmapi}", 128),
        ("openai", "", 0),
        ("openai", "    placement: {prefix_tokens: 64}", 64),
        ("vllm", "    placement: {prefix_tokens: 0}", 0),
    ],
)
def test_prefixes_are_followed_where_engines_reuse_them(
    engine: str, more: str, tokens: int, tmp_path: Path
) -> None:
    pool = load(file(engine, f"    serves: {{base: m, fr: m}}\n{more}"), tmp_path)
    assert pool.policy.prefix_tokens == tokens
    assert pool.share_prefixes
