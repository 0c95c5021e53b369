"""The registry: kinds, strict options, adapters as the contract wants them."""

import pytest

from backends.contract import EngineAdapter, EngineRegistry, GenerateRequest, OptionError
from backends.registry import REGISTRY

TYPED: EngineRegistry = REGISTRY


def test_the_kinds() -> None:
    """The words of `engine:` in routes.yaml, each with its own adapter."""
    assert set(REGISTRY.kinds()) == {
        "trtllm", "triton", "triton-openai", "tgi", "vllm", "sglang", "llamacpp", "openai",
    }  # fmt: skip
    for kind in REGISTRY.kinds():
        adapter: EngineAdapter = REGISTRY.adapter(kind, {})
        assert adapter.kind == kind
        assert (adapter.relay == "translated") is not adapter.applies_template
        health = adapter.health_request()
        assert health.method == "GET"
        assert adapter.read_health(200, b"").ready
        assert not adapter.read_health(503, b"").ready


def test_an_unknown_kind_is_a_key_error() -> None:
    """The gateway says it with the line of the file."""
    with pytest.raises(KeyError):
        REGISTRY.adapter("nope", {})


@pytest.mark.parametrize(
    ("kind", "options", "option", "choices"),
    [
        ("trtllm", {"x": 1}, "x", ("prometheus",)),
        ("vllm", {"x": 1}, "x", ()),
        ("sglang", {"x": 1}, "x", ("low_priority_values_first",)),
        ("triton-openai", {"x": 1}, "x", ("tool_calling",)),
        ("llamacpp", {"metrics": "yes"}, "metrics", ()),
        ("openai", {"x": 1}, "x", ()),
        ("tgi", {"max_stop": 1}, "max_stop", ("api", "max_stop_sequences", "max_client_batch_size")),
        ("tgi", {"api": "openai"}, "api", ("native", "messages")),
        ("tgi", {"max_stop_sequences": -1}, "max_stop_sequences", ()),
        ("tgi", {"max_stop_sequences": "4"}, "max_stop_sequences", ()),
        (
            "triton",
            {"textmode": "auto"},
            "textmode",
            ("vocabulary", "text_mode", "add_special_tokens", "guided_decoding", "attentive", "metrics_port"),
        ),
        ("triton", {"vocabulary": "vllm"}, "vocabulary", ("classic", "llmapi")),
        ("triton", {"metrics_port": 0}, "metrics_port", ()),
        ("triton", {"text_mode": "both"}, "text_mode", ("delta", "cumulative", "auto")),
        ("triton", {"add_special_tokens": "yes"}, "add_special_tokens", ()),
    ],
)
def test_a_bad_option_is_named(
    kind: str, options: dict[str, object], option: str, choices: tuple[str, ...]
) -> None:
    """With what would have been right, where there is a list."""
    with pytest.raises(OptionError) as caught:
        REGISTRY.adapter(kind, options)
    assert (caught.value.option, caught.value.choices) == (option, choices)


def test_options_take_effect() -> None:
    """A BOS is the preprocessing model's to add, or not."""
    assert REGISTRY.adapter("triton", {}).adds_bos
    assert not REGISTRY.adapter("triton", {"add_special_tokens": False}).adds_bos


@pytest.mark.parametrize("kind", REGISTRY.kinds())
def test_the_trace_goes_on_to_every_engine(kind: str) -> None:
    """As a header, and only where there is one."""
    for trace in (None, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"):
        request = GenerateRequest(request_id="r", model="m", stream=False, prompt="hi", traceparent=trace)
        headers = REGISTRY.adapter(kind, {}).encode(request).headers
        assert headers["content-type"] == "application/json"
        assert headers.get("traceparent") == trace
