"""Defaults of models, held against the tables of the engines that serve them."""

from pathlib import Path

import pytest

from backends.registry import REGISTRY
from gateway.config.loading import load_with_warnings

FILE = """\
version: 1
models:
  m: {{tokenizer: {{kind: estimate}}, defaults: {defaults}}}
pools:
  p:
    engine: {engine}
    options: {options}
    serves: m
    replicas: [{{id: r1, url: "http://127.0.0.1:9000"}}]
rules:
  - {{name: else, pools: [p]}}
tenants:
  t: {{keys: [{{id: k, hash: "sha256:0000000000000000000000000000000000000000000000000000000000000000"}}]}}
"""


def warnings(tmp_path: Path, engine: str, defaults: str, options: str = "{}") -> list[str]:
    path = tmp_path / "routes.yaml"
    path.write_text(FILE.format(engine=engine, defaults=defaults, options=options))
    return [str(each) for each in load_with_warnings(path, REGISTRY, environ={})[1]]


@pytest.mark.parametrize(
    ("engine", "defaults"),
    [
        ("vllm", "{temperature: 0.7, min_p: 0.05, n: 2, stop: [END]}"),
        ("trtllm", "{top_k: 40, repetition_penalty: 1.1}"),
        ("triton", "{temperature: 0, frequency_penalty: 0}"),
        ("tgi", "{top_p: 1, typical_p: 0.9, stop: END}"),
        ("vllm", "{logprobs: true, top_logprobs: 3}"),  # the one needs the other
        ("openai", "{whatever: 1}"),
    ],
)
def test_what_an_engine_takes_is_not_spoken_of(engine: str, defaults: str, tmp_path: Path) -> None:
    found = [each for each in warnings(tmp_path, engine, defaults) if "(on completions)" not in each]
    assert found == []


@pytest.mark.parametrize(
    ("engine", "defaults", "field"),
    [
        ("tgi", "{temperature: 0.7, presence_penalty: 0.5}", "presence_penalty"),
        ("triton", "{min_p: 0.1, response_format: {type: json_object}}", "response_format"),
        ("llamacpp", "{use_beam_search: true}", "use_beam_search"),
        ("trtllm", "{no_such_key: 1}", "no_such_key"),
        ("vllm", "{temperature: hot}", "temperature"),
        ("tgi", "{stop: [a, b, c, d, e]}", "stop"),
    ],
)
def test_what_an_engine_refuses_is_warned_of(engine: str, defaults: str, field: str, tmp_path: Path) -> None:
    """With its line, its field, the pool and the engine's reason; each field once."""
    found = [each for each in warnings(tmp_path, engine, defaults) if f"models.m.defaults.{field}:" in each]
    assert len(found) == 1, found
    assert "routes.yaml:3:" in found[0]
    assert f"pool p ({engine}) serves no request that has it: " in found[0]


def test_the_options_of_the_pool_count(tmp_path: Path) -> None:
    """A Triton with guided decoding takes a response_format."""
    given = "{response_format: {type: json_object}}"
    assert warnings(tmp_path, "triton", given) != []
    assert warnings(tmp_path, "triton", given, "{guided_decoding: true}") == []


def test_all_that_is_refused_is_told(tmp_path: Path) -> None:
    """Not only the first."""
    found = warnings(tmp_path, "tgi", "{presence_penalty: 0.5, logit_bias: {'1': 2}, temperature: 1}")
    assert [
        field for field in ("presence_penalty", "logit_bias") if any(field in each for each in found)
    ] == [
        "presence_penalty",
        "logit_bias",
    ]
