"""TensorRT-LLM: the closed list of keys, and errors that prove little."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.contract import ErrorKind, GenerateRequest
from backends.decoding import EngineWords
from backends.trtllm.adapter import TrtllmAdapter
from tests.backends.asking import served

ADAPTER = TrtllmAdapter()
TOOL = {"type": "function", "function": {"name": "f"}}
MESSAGES = [{"role": "user", "content": "hi"}]
JSON_VALUES = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(0, 2) | st.text(max_size=3)
PARAMETERS = ADAPTER.tables.chat.rules.keys() - {"messages", "prompt", "max_tokens", "n", "stop"}
NAMES = st.sampled_from([*PARAMETERS]) | st.text(max_size=5)


def chat(**parameters: Any) -> GenerateRequest:
    return GenerateRequest(
        request_id="r", model="m", stream=True, messages=MESSAGES, max_tokens=8, parameters=parameters
    )


def completion(**parameters: Any) -> GenerateRequest:
    return GenerateRequest(
        request_id="r", model="m", stream=False, prompt="hi", max_tokens=8, parameters=parameters
    )


def test_a_chat_body() -> None:
    """What the engine knows passes, what it would refuse does not."""
    request = chat(temperature=0, top_k=5, seed=None, metadata={"a": "b"}, parallel_tool_calls=True)
    assert json.loads(ADAPTER.encode(request).body) == {
        "model": "m",
        "messages": MESSAGES,
        "temperature": 0,
        "top_k": 5,
        "max_tokens": 8,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_completions_body_has_no_chat_keys() -> None:
    """tools would be a 400 there."""
    refusal = ADAPTER.unsupported(completion(tools=[TOOL]))
    assert refusal is not None
    assert refusal.param == "tools"
    sent = ADAPTER.encode(completion(tools=[], logprobs=2, min_p=0.1))
    assert sent.path == "/v1/completions"
    assert json.loads(sent.body) == {
        "model": "m",
        "prompt": "hi",
        "logprobs": 2,
        "min_p": 0.1,
        "max_tokens": 8,
    }


@settings(deadline=None)
@given(parameters=st.dictionaries(NAMES, JSON_VALUES), is_chat=st.booleans())
def test_any_parameters_give_a_body_of_known_keys(parameters: dict[str, Any], is_chat: bool) -> None:
    """An unknown key, a null or a second name for max_tokens would refuse the whole request."""
    request = served(ADAPTER, (chat if is_chat else completion)(**parameters))
    assert request is not None
    body = json.loads(ADAPTER.encode(request).body)
    assert body.keys() <= {*ADAPTER.tables.of(request).rules, "model", "stream", "stream_options"}
    assert "max_completion_tokens" not in body
    assert None not in body.values()


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"top_k": -2}, "top_k"),
        ({"temprature": 1}, "temprature"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"prompt_token_ids": [1]}, "prompt_token_ids"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"suffix": "x"}, "suffix"),
        ({"lora_request": {"lora_path": "/etc"}}, "lora_request"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"disaggregated_params": {"a": 1}}, "disaggregated_params"),
    ],
)
def test_what_the_engine_must_not_get_is_refused(parameters: dict[str, Any], param: str) -> None:
    """A negative top_k has crashed servers; the others are an operator's."""
    refusal = ADAPTER.unsupported(chat(**parameters))
    assert refusal is not None
    assert refusal.param == param


def test_good_openai_is_supported() -> None:
    """n, tools, token ids: the engine knows them all."""
    assert (
        ADAPTER.unsupported(chat(top_k=-1, tools=[TOOL], logprobs=True, logit_bias={"1": 2}, suffix=None))
        is None
    )


@pytest.mark.parametrize(
    ("status", "words", "expected"),
    [
        (400, EngineWords("[{'type': 'extra_forbidden', 'input': 'CUDA worker'}]"), ErrorKind.CLIENT),
        (
            400,
            EngineWords("Token ID 9 out of vocabulary range [0, 8)", "BadRequestError", 400),
            ErrorKind.CLIENT,
        ),
        (400, EngineWords("Unsupported tool 'cuda error'", "BadRequestError", 400), ErrorKind.CLIENT),
        (400, EngineWords("top_p must be in (0, 1]", "BadRequestError", 400), ErrorKind.CLIENT),
        (400, EngineWords("CUDA out of memory", "BadRequestError", 400), ErrorKind.ENGINE),
        (400, EngineWords("Executor worker died; must restart", "BadRequestError", 400), ErrorKind.ENGINE),
        (400, EngineWords("'NoneType' object is not iterable", "BadRequestError", 400), ErrorKind.ENGINE),
        (400, EngineWords("something odd", "BadRequestError", 400), ErrorKind.ENGINE),
        (400, EngineWords("invalid channel", "internal_error", 400), ErrorKind.ENGINE),
        (
            400,
            EngineWords(
                "The sum of prompt length (9.0), query length (0) should not exceed max_num_tokens (8)", "B"
            ),
            ErrorKind.CONTEXT_LENGTH,
        ),
        (501, EngineWords("not implemented", "NotImplementedError", 501), ErrorKind.UNSUPPORTED),
        (500, EngineWords("x"), ErrorKind.ENGINE),
        (None, EngineWords("x"), ErrorKind.ENGINE),
    ],
)
def test_a_400_is_the_clients_only_where_it_says_so(
    status: int | None, words: EngineWords, expected: ErrorKind
) -> None:
    """And a client's own words, quoted in it, do not make the engine look broken."""
    assert ADAPTER.errors(status, words) is expected


def test_health() -> None:
    """A 503 here means a dead executor."""
    assert ADAPTER.health_request().path == "/health"
    assert ADAPTER.read_health(200, b"").ready
    assert not ADAPTER.read_health(503, b"").live
    assert ADAPTER.read_health(404, b"").live
