"""TGI's native routes."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.contract import Delta, Done, ErrorKind, GenerateRequest, Usage
from backends.decoding import EngineWords
from backends.text_engines import EVENTS_AFTER_STOP
from backends.tgi import messages, wire
from backends.tgi.adapter import TgiAdapter, TgiOptions
from tests.backends.asking import served
from tests.backends.folding import decode, decode_body, fold

ADAPTER = TgiAdapter()
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def ask(parameters: dict[str, Any] | None = None, **fields: Any) -> GenerateRequest:
    given = {"request_id": "r-1", "model": "tgi", "stream": False, "prompt": "hi", "max_tokens": 8}
    return GenerateRequest(**{**given, "parameters": parameters or {}, **fields})


def sent(request: GenerateRequest) -> dict[str, Any]:
    body = json.loads(ADAPTER.encode(request).body)
    assert body.keys() == {"inputs", "parameters"}
    parameters = body["parameters"]
    assert isinstance(parameters, dict)
    return parameters


# ---------------------------------------------------------------------------------------------- requests


def test_the_smallest_body() -> None:
    """Details for the reason and the counts; sampling, since OpenAI's default is a temperature of 1."""
    request = ADAPTER.encode(ask(max_tokens=None))
    assert (request.method, request.path) == ("POST", "/generate")
    assert json.loads(request.body) == {
        "inputs": "hi",
        "parameters": {"details": True, "return_full_text": False, "do_sample": True},
    }


def test_a_full_body() -> None:
    """What changes no answer is dropped."""
    parameters = {
        "temperature": 0.5,
        "top_p": 0.9,
        "typical_p": 0.8,
        "top_k": 40,
        "seed": -1,
        "frequency_penalty": 1,
        "presence_penalty": 0,
        "repetition_penalty": 1.1,
        "user": "x",
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    }
    request = ADAPTER.encode(ask(parameters, stream=True, rendered="<user>hi", stop=("END",), model="lora-a"))
    assert request.path == "/generate_stream"
    assert json.loads(request.body) == {
        "inputs": "<user>hi",
        "parameters": {
            "details": True,
            "return_full_text": False,
            "do_sample": True,
            "max_new_tokens": 8,
            "temperature": 0.5,
            "top_p": 0.9,
            "typical_p": 0.8,
            "top_k": 40,
            "frequency_penalty": 1,
            "repetition_penalty": 1.1,
            "seed": 2**64 - 1,
            "stop": ["END"],
            "grammar": {"type": "json", "value": SCHEMA},
            "adapter_id": "lora-a",
        },
    }


@pytest.mark.parametrize("parameters", [{"temperature": 0, "top_p": 0.5, "top_k": 5}, {"top_p": 0}])
def test_greedy_is_no_sampling(parameters: dict[str, Any]) -> None:
    """A temperature of 0 would be refused, and any warper left would sample."""
    assert sent(ask(parameters)) == {
        "details": True,
        "return_full_text": False,
        "do_sample": False,
        "max_new_tokens": 8,
    }


@pytest.mark.parametrize("value", [1, 1.0])
def test_a_top_p_of_one_is_left_out(value: float) -> None:
    """OpenAI's default; TGI refuses it."""
    assert "top_p" not in sent(ask({"top_p": value, "top_k": -1}))
    assert "top_k" not in sent(ask({"top_p": value, "top_k": -1}))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": ("a", "b", "c", "d", "e")}, "stop"),
        ({"parameters": {"top_p": 1.5}}, "top_p"),
        ({"parameters": {"presence_penalty": 1}}, "presence_penalty"),
        ({"parameters": {"frequency_penalty": 3}}, "frequency_penalty"),
        ({"parameters": {"repetition_penalty": 0}}, "repetition_penalty"),
        ({"parameters": {"seed": 1.5}}, "seed"),
        (
            {"parameters": {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}},
            "response_format",
        ),
        ({"parameters": {"response_format": {"type": "regex"}}}, "response_format"),
    ],
)
def test_what_tgi_would_refuse_is_refused(fields: dict[str, Any], param: str) -> None:
    """Before it is sent, and by OpenAI's name."""
    refusal = ADAPTER.unsupported(ask(**fields))
    assert refusal is not None
    assert refusal.param == param


def test_the_stop_limit_is_the_launchers() -> None:
    """--max-stop-sequences."""
    request = ask(stop=("a", "b", "c", "d", "e"))
    assert TgiAdapter(TgiOptions(max_stop_sequences=5)).unsupported(request) is None


def test_a_regex_is_a_grammar() -> None:
    """An extension that TGI has."""
    assert sent(ask({"response_format": {"type": "regex", "value": "a+"}}))["grammar"] == {
        "type": "regex",
        "value": "a+",
    }


PARAMETERS = ADAPTER.tables.chat.rules.keys() - {"messages", "prompt", "max_tokens", "n", "stop"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
NAMES = st.sampled_from([*PARAMETERS]) | st.text(max_size=5)


@settings(deadline=None)
@given(parameters=st.dictionaries(NAMES, JSON), stream=st.booleans())
def test_any_parameters_give_a_body_that_tgi_takes(parameters: dict[str, Any], stream: bool) -> None:
    """Within TGI's ranges, never with decoder_input_details."""
    request = served(ADAPTER, ask(parameters, stream=stream))
    assert request is not None
    body = sent(request)
    assert None not in body.values()
    assert "decoder_input_details" not in body
    assert body.get("temperature", 1) > 0
    assert 0 < body.get("top_p", 0.5) < 1
    assert 0 < body.get("typical_p", 0.5) < 1
    assert body.get("top_k", 1) > 0
    assert 0 <= body.get("seed", 0) < 2**64


# ----------------------------------------------------------------------------------------------- answers


def event(text: str, *, special: bool = False, **more: Any) -> bytes:
    token = {"id": 1, "text": text, "logprob": -0.5, "special": special}
    return (
        b"data:" + json.dumps({"index": 1, "token": token, "generated_text": None, **more}).encode() + b"\n\n"
    )


def details(reason: str, tokens: int) -> dict[str, Any]:
    return {"finish_reason": reason, "generated_tokens": tokens, "seed": None, "input_length": 3}


def test_a_stream_of_tokens() -> None:
    """Special tokens are not for clients; the last event ends the answer, and what follows is dropped."""
    body = (
        event("<s>", special=True)
        + event(" a")
        + event("</s>", special=True, generated_text=" a", details=details("eos_token", 3))
    )
    assert decode_body(wire.TgiDecoder(stops=()), body + event("late")) == [
        Delta(text=" a", tokens=1),
        Delta(finish_reason="stop"),
        Usage(prompt_tokens=3, completion_tokens=3),
        Done(),
    ]


@pytest.mark.parametrize(
    ("word", "expected"), [("length", "length"), ("eos_token", "stop"), ("stop_sequence", "stop")]
)
def test_finish_reasons(word: str, expected: str) -> None:
    """TGI's three words."""
    body = event("a", generated_text="a", details=details(word, 1))
    assert fold(decode_body(wire.TgiDecoder(stops=()), body)).choices[0].finish_reason == expected


def test_the_stop_sequence_is_cut() -> None:
    """TGI leaves it in, and may run past it; even so the answer ends."""
    pieces = [event("a E"), event("ND x"), event(" y", generated_text="z", details=details("length", 3))]
    result = fold(decode_body(wire.TgiDecoder(stops=("END",)), b"".join(pieces)))
    assert (result.choices[0].text, result.choices[0].finish_reason) == ("a ", "stop")
    assert result.usage is not None
    assert result.usage["completion_tokens"] == 3
    endless = event("END") + event("more") * EVENTS_AFTER_STOP
    assert fold(decode_body(wire.TgiDecoder(stops=("END",)), endless)).complete
    assert fold(decode_body(wire.TgiDecoder(stops=("END",)), event("END"))).complete


def test_what_was_held_back_comes_with_the_end() -> None:
    """The beginning of a stop string is text after all."""
    body = event("a EN", generated_text="a EN", details=details("length", 2))
    assert fold(decode_body(wire.TgiDecoder(stops=("END",)), body)).choices[0].text == "a EN"


def test_a_stream_without_its_last_event_is_cut() -> None:
    """There is no [DONE] here."""
    result = fold(decode_body(wire.TgiDecoder(stops=()), event("a")))
    assert result.choices[0].text == "a"
    assert result.error is not None
    assert (result.error.kind, result.error.retryable) == (ErrorKind.ENGINE, False)


def test_an_error_event_has_status_200() -> None:
    """Overload is backpressure also there, and retryable while nothing came."""
    overloaded = b'data:{"error":"Model is overloaded","error_type":"overloaded"}\n\n'
    error = fold(decode_body(wire.TgiDecoder(stops=()), overloaded)).error
    assert error is not None
    assert (error.kind, error.retryable) == (ErrorKind.OVERLOADED, True)
    later = fold(decode_body(wire.TgiDecoder(stops=("END",)), event("a E") + overloaded))
    assert later.choices[0].text == "a E"
    assert later.error is not None
    assert not later.error.retryable


def test_a_whole_answer() -> None:
    """The prompt's count is in a header only."""
    body = json.dumps(
        {"generated_text": "a END", "details": {"finish_reason": "eos_token", "generated_tokens": 2}}
    )
    headers = {"x-prompt-tokens": "5"}
    assert decode(wire.TgiDecoder(stops=("END",)), 200, headers, [body.encode()]) == [
        Delta(text="a ", finish_reason="stop", tokens=2),
        Usage(prompt_tokens=5, completion_tokens=2),
        Done(),
    ]
    assert fold(decode_body(wire.TgiDecoder(stops=()), b'[{"generated_text":"a"}]')).complete


@pytest.mark.parametrize(
    ("status", "words", "expected"),
    [
        (None, EngineWords("Model is overloaded", "", 422), ErrorKind.OVERLOADED),
        (None, EngineWords("Request failed during generation: oops", "", 422), ErrorKind.ENGINE),
        (None, EngineWords("Incomplete generation", "incomplete_generation_stream"), ErrorKind.ENGINE),
        (
            None,
            EngineWords("Input validation error: `top_p` must be > 0.0 and < 1.0", "validation"),
            ErrorKind.CLIENT,
        ),
        (
            None,
            EngineWords(
                "Input validation error: `inputs` must have less than 8 tokens. Given: 9", "validation"
            ),
            ErrorKind.CONTEXT_LENGTH,
        ),
        (422, EngineWords("Template error: roles must alternate", "template_error"), ErrorKind.CLIENT),
        (422, EngineWords("Failed to deserialize the JSON body into the target type"), ErrorKind.CLIENT),
        (401, EngineWords("HTTP 401 without a body"), ErrorKind.AUTH),
        (424, EngineWords("x"), ErrorKind.ENGINE),
    ],
)
def test_errors_are_classed(status: int | None, words: EngineWords, expected: ErrorKind) -> None:
    """The chat route's stream errors name 422 for everything, so the text goes first."""
    assert ADAPTER.errors(status, words) is expected


def test_the_openai_routes_have_tgis_errors() -> None:
    """The same table behind OpenAI's shapes."""
    body = b'data: {"error":{"message":"Model is overloaded","http_status_code":422}}\n\ndata: [DONE]\n\n'
    error = fold(decode_body(messages.decoder(ask()), body)).error
    assert error is not None
    assert error.kind is ErrorKind.OVERLOADED


def test_health() -> None:
    """An unhealthy TGI tries again by itself."""
    assert ADAPTER.health_request().path == "/health"
    health = ADAPTER.read_health(503, b'{"error":"unhealthy","error_type":"healthcheck"}')
    assert (health.ready, health.live) == (False, True)
