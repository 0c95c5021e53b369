"""The generic OpenAI engine: everything is forwarded but what reaches past the gateway in any engine."""

import json
from typing import Any

import pytest

from backends.contract import GenerateRequest
from backends.openai.adapter import OpenAiAdapter

ADAPTER = OpenAiAdapter()


def test_everything_is_forwarded() -> None:
    """Unknown fields, too: the engine behind knows best. A null is an absent field. Our id goes along."""
    request = GenerateRequest(
        request_id="r-1",
        model="m",
        stream=False,
        messages=[{"role": "user", "content": "hi"}],
        parameters={"top_k": -1, "user": None, "unheard_of": {"a": [1]}},
    )
    sent = ADAPTER.encode(request)
    assert sent.headers == {"content-type": "application/json", "x-request-id": "r-1"}
    assert json.loads(sent.body) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "top_k": -1,
        "unheard_of": {"a": [1]},
    }
    assert ADAPTER.unsupported(request) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("lora_path", "x"), ("kv_transfer_params", {"remote_host": "h"}), ("bootstrap_host", "h"),
     ("input_ids", [1]), ("n_predict", 100_000), ("max_new_tokens", 100_000), ("rid", "r")],
)  # fmt: skip
def test_what_reaches_past_the_gateway_is_refused(field: str, value: Any) -> None:
    """It may be any engine that is behind it."""
    request = GenerateRequest(
        request_id="r-1", model="m", stream=False, messages=[], parameters={field: value}, max_tokens=4
    )
    refused = ADAPTER.unsupported(request)
    assert refused is not None
    assert refused.param == field


def test_health_asks_for_the_models() -> None:
    """/health is not OpenAI's, and one engine's generates a token. Loading is alive."""
    assert ADAPTER.health_request().path == "/v1/models"
    assert ADAPTER.read_health(503, b"").live
