"""llama.cpp: what is forwarded, refused, and read."""

import json
from typing import Any

import pytest

from backends.contract import Answer, Delta, Done, ErrorKind, Failure, GenerateRequest
from backends.llamacpp.adapter import LlamacppAdapter, LlamacppOptions

ADAPTER = LlamacppAdapter()


def _request(**parameters: object) -> GenerateRequest:
    return GenerateRequest(
        request_id="r-1", model="m", stream=True, messages=[], max_tokens=5, parameters=parameters
    )


def test_the_bound_cannot_be_lifted() -> None:
    """`n_predict` would win over max_tokens, `n_cmpl` over n."""
    for field in ("n_predict", "n_cmpl", "id_slot"):
        refusal = ADAPTER.unsupported(_request(**{field: 7}))
        assert refusal is not None
        assert refusal.param == field
    sent = json.loads(ADAPTER.encode(_request(repetition_penalty=1.1, seed=-1, top_k=-1)).body)
    assert sent["max_tokens"] == 5
    assert sent["repeat_penalty"] == 1.1
    assert (sent["seed"], sent["top_k"]) == (2**32 - 2, 0)
    assert "repetition_penalty" not in sent
    assert "temperature" not in sent


def test_neutral_sampling_fills_in_openais_defaults() -> None:
    adapter = LlamacppAdapter(LlamacppOptions(neutral_sampling=True))
    sent = json.loads(adapter.encode(_request(temperature=0.2, top_p=None)).body)
    assert (sent["temperature"], sent["top_p"], sent["top_k"], sent["min_p"]) == (0.2, 1.0, 0, 0.0)


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}], "logprobs": True}, "logprobs"),
        ({"response_format": {"type": "regex"}}, "response_format"),
        ({"lora": [{"id": 0, "scale": 1}]}, "lora"),
    ],
)
def test_what_is_refused(parameters: dict[str, object], param: str) -> None:
    refusal = ADAPTER.unsupported(_request(**parameters))
    assert refusal is not None
    assert refusal.param == param


def test_load_from_slots() -> None:
    """They tell what runs; what waits is untold."""
    load = ADAPTER.read_load(200, b'[{"id":0,"is_processing":true},{"id":1,"is_processing":false}]')
    assert load is not None
    assert (load.running, load.waiting) == (1, None)
    assert ADAPTER.read_load(200, b'[{"id":0}]') is None
    assert ADAPTER.read_load(501, b'{"error":{"code":501}}') is None


def test_load_from_metrics() -> None:
    adapter = LlamacppAdapter(LlamacppOptions(metrics=True))
    question = adapter.load_request()
    assert question is not None
    assert question.path == "/metrics"
    load = adapter.read_load(200, b"llamacpp:requests_processing 2\nllamacpp:requests_deferred 1\n")
    assert load is not None
    assert (load.running, load.waiting, load.kv_usage) == (2, 1, None)


def test_the_served_context_is_told_by_props() -> None:
    props = {"default_generation_settings": {"n_ctx": 4096}, "total_slots": 4, "build_info": "b1-0c1e570"}
    told = ADAPTER.read_metadata({"/props": Answer(200, json.dumps(props).encode())})
    assert (told.limits.context_tokens, told.limits.in_flight, told.version) == (4096, 4, "b1-0c1e570")


@pytest.mark.parametrize(
    ("props", "told"),
    [
        ({"chat_template_caps": {"supports_tools": False}, "chat_template": "{{ tools }}"}, False),
        ({"chat_template_caps": {"supports_tools": True}}, True),
        ({"chat_template": "{% if tools %}{{ tools | tojson }}{% endif %}"}, True),
        ({"chat_template": "{{ messages }}", "chat_template_tool_use": "{{ tools }}"}, True),
        ({"chat_template": "{{ messages }}"}, None),
        ({}, None),
    ],
)
def test_whether_its_template_takes_tools_is_told_by_props(props: dict[str, Any], told: bool | None) -> None:
    """By what newer builds say of it; a template that does not speak of them proves nothing in older ones."""
    metadata = ADAPTER.read_metadata({"/props": Answer(200, json.dumps(props).encode())})
    assert metadata.template_takes_tools is told


def test_token_counts() -> None:
    chat = ADAPTER.tokenize_request("m", messages=[])
    assert chat is not None
    assert chat.path == "/v1/chat/completions/input_tokens"
    assert ADAPTER.read_token_count(200, b'{"input_tokens":7}') == 7
    assert ADAPTER.read_token_count(200, b'{"tokens":[1,2]}') == 2


# Below: as llama-server sent it (llama.cpp at 0c1e57098, from llama-cpp-python 0.3.36), with a random model.

MODEL_LIST = b"""{"models":[{"name":"tiny","model":"tiny","capabilities":["completion"]}],"object":"list",
"data":[{"id":"tiny","aliases":["tiny"],"tags":[],"object":"model","created":1795233330,"owned_by":"llamacpp",
"meta":{"vocab_type":2,"n_vocab":4096,"n_ctx":1024,"n_ctx_train":4096,"n_embd":64,"n_params":598336,
"size":2393344,"ftype":"(guessed) all F32"}}]}"""
COMPLETION_STREAM = (
    b'data: {"choices":[{"text":" mill","index":0,"logprobs":{"content":[{"id":1504,"token":" mill",'
    b'"bytes":[32,109,105,108,108],"logprob":-2.8863818645477295,"top_logprobs":[{"id":1504,"token":" mill",'
    b'"bytes":[32,109,105,108,108],"logprob":-2.8863818645477295}]}]},"finish_reason":null}],'
    b'"created":1795235215,"model":"tiny","system_fingerprint":"b0-unknown","object":"text_completion",'
    b'"id":"chatcmpl-kPHHgV05XGUGee9qTi4sAEYUh3yUuj5n"}\n\n'
    b'data: {"choices":[{"text":".","index":0,"logprobs":{"content":[{"id":13,"token":".","bytes":[46],'
    b'"logprob":-3.25,"top_logprobs":[]}]},"finish_reason":null}],"object":"text_completion"}\n\n'
    b'data: {"choices":[{"text":"","index":0,"logprobs":null,"finish_reason":"length"}],"created":1795235215,'
    b'"model":"tiny","object":"text_completion","usage":{"completion_tokens":2,"prompt_tokens":4,'
    b'"total_tokens":6,"prompt_tokens_details":{"cached_tokens":3}}}\n\n'
    b"data: [DONE]\n\n"
)
TOO_LONG = (
    b'{"error":{"code":400,"message":"request (3014 tokens) exceeds the available context size (1024 '
    b'tokens), try increasing it","type":"exceed_context_size_error","n_prompt_tokens":3014,"n_ctx":1024}}'
)


def test_its_model_list_tells_the_served_context() -> None:
    """That of a slot, where /props cannot be asked."""
    told = ADAPTER.read_metadata({"/v1/models": Answer(200, MODEL_LIST)})
    assert told.models == ("tiny",)
    assert (told.limits.context_tokens, told.limits.train_context_tokens) == (1024, 4096)


def test_log_probabilities_of_completions_take_their_own_form() -> None:
    """It sends the chat's; the clients of this route know lists, and places in the text."""
    decoder = ADAPTER.decoder(GenerateRequest(request_id="r", model="m", stream=True, prompt="Hello"))
    decoder.head(200, {"content-type": "text/event-stream"})
    events = decoder.feed(COMPLETION_STREAM)
    deltas = [event for event in events if isinstance(event, Delta)]
    assert [delta.logprobs for delta in deltas] == [
        {
            "tokens": [" mill"],
            "token_logprobs": [-2.8863818645477295],
            "top_logprobs": [{" mill": -2.8863818645477295}],
            "text_offset": [0],
        },
        {"tokens": ["."], "token_logprobs": [-3.25], "top_logprobs": [{}], "text_offset": [5]},
        None,
    ]
    assert [delta.tokens for delta in deltas] == [1, 1, 0]
    assert isinstance(events[-1], Done)


def test_one_likely_token_is_the_least_it_tells() -> None:
    """None asked for would be 20, and 0 would be no log probabilities at all."""
    assert json.loads(ADAPTER.encode(_request(logprobs=True)).body)["top_logprobs"] == 1
    assert json.loads(ADAPTER.encode(_request(logprobs=True, top_logprobs=3)).body)["top_logprobs"] == 3
    plain = GenerateRequest(
        request_id="r", model="m", stream=False, prompt="Hello", max_tokens=5, parameters={"logprobs": 0}
    )
    assert json.loads(ADAPTER.encode(plain).body)["logprobs"] == 1
    assert "top_logprobs" not in json.loads(ADAPTER.encode(_request()).body)


def test_arguments_that_are_no_json_are_the_clients_to_mend() -> None:
    """It calls them a 500, and every replica would."""
    decoder = ADAPTER.decoder(_request())
    decoder.head(500, {"content-type": "application/json"})
    message = "Failed to parse tool call arguments as JSON: parse error at line 1"
    decoder.feed(json.dumps({"error": {"code": 500, "message": message, "type": "server_error"}}).encode())
    (failure,) = decoder.end()
    assert isinstance(failure, Failure)
    assert (failure.error.kind, failure.error.param) == (ErrorKind.CLIENT, "messages")
    assert not failure.error.retryable


def test_too_long_is_the_clients_to_mend() -> None:
    decoder = ADAPTER.decoder(_request())
    decoder.head(400, {"content-type": "application/json"})
    decoder.feed(TOO_LONG)
    (failure,) = decoder.end()
    assert isinstance(failure, Failure)
    assert failure.error.kind is ErrorKind.CONTEXT_LENGTH
