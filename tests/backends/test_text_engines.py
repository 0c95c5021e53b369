"""What text-in, text-out engines refuse, and the text they are given."""

from typing import Any

import pytest

from backends.contract import EngineAdapter, GenerateRequest
from backends.registry import REGISTRY
from backends.text_engines import plain_text

ADAPTERS = [REGISTRY.adapter("triton", {}), REGISTRY.adapter("tgi", {})]
adapters = pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.kind)


def ask(**fields: Any) -> GenerateRequest:
    return GenerateRequest(**{"request_id": "r", "model": "m", "stream": False, "rendered": "hi", **fields})


@adapters
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"prompt": [[1, 2], [3]]}, "prompt"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
        ({"parameters": {"tools": [{}]}}, "tools"),
        ({"parameters": {"logprobs": True}}, "logprobs"),
        ({"parameters": {"logprobs": 0}}, "logprobs"),
        ({"parameters": {"logit_bias": {"1": 1}}}, "logit_bias"),
        ({"parameters": {"best_of": 2}}, "best_of"),
        ({"parameters": {"echo": True}}, "echo"),
        ({"parameters": {"suffix": "x"}}, "suffix"),
        ({"parameters": {"response_format": {"type": "json_object"}}}, "response_format"),
        ({"parameters": {"temperature": "hot"}}, "temperature"),
        ({"parameters": {"top_k": "ten"}}, "top_k"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    adapter: EngineAdapter, fields: dict[str, Any], param: str
) -> None:
    """The gateway then tries a pool that can, or tells the client which field it was."""
    refusal = adapter.unsupported(ask(**fields))
    assert refusal is not None
    assert refusal.param == param
    assert refusal.message


@adapters
def test_fields_that_ask_for_nothing_are_fine(adapter: EngineAdapter) -> None:
    """Clients send the defaults of OpenAI's SDK."""
    parameters = {
        "tools": [],
        "logprobs": False,
        "top_logprobs": 0,
        "logit_bias": {},
        "best_of": 1,
        "echo": False,
        "suffix": None,
        "response_format": {"type": "text"},
        "user": "someone",
        "metadata": {"a": "b"},
        "presence_penalty": 0,
    }
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, {"role": "assistant"}]
    assert adapter.unsupported(ask(messages=messages, parameters=parameters)) is None
    assert adapter.unsupported(ask(prompt=["only"])) is None


def test_the_text_is_the_rendered_chat_or_the_only_prompt() -> None:
    """Anything else is a fault of the caller."""
    assert plain_text(ask()) == "hi"
    assert plain_text(ask(rendered=None, prompt="a")) == "a"
    assert plain_text(ask(rendered=None, prompt=["a"])) == "a"
    assert plain_text(ask(rendered="", prompt="a")) == ""
    for prompt in (None, [1], ["a", "b"], []):
        with pytest.raises(ValueError, match="text prompt"):
            plain_text(ask(rendered=None, prompt=prompt))
