"""Reading engines' answers to questions: total, and untold is never zero."""

import json
import math
from typing import Any

import pytest

from backends.answers import as_count, as_share, json_body, least, model_cards, names_of, printable, ratio
from backends.contract import Answer
from backends.registry import REGISTRY


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (3, 3),
        (3.0, 3),
        (0, 0),
        (3.5, None),
        (-1, None),
        (True, None),
        ("3", None),
        (math.inf, None),
        (None, None),
    ],
)
def test_counts(value: Any, count: int | None) -> None:
    assert as_count(value) == count


@pytest.mark.parametrize(
    ("value", "share"),
    [(0, 0.0), (0.5, 0.5), (1.02, 1.0), (50, None), (-0.1, None), (math.nan, None), (True, None)],
)
def test_shares(value: Any, share: float | None) -> None:
    """A gauge in percent is not a share; one that overshoots is full."""
    assert as_share(value) == share


def test_ratios_of_the_untold_and_of_nothing() -> None:
    assert ratio(1, 4) == 0.25
    assert ratio(None, 4) is ratio(1, None) is ratio(0, 0) is None


def test_the_smallest_that_was_told() -> None:
    assert least([None, 8, 0, 4]) == 4
    assert least([None]) is None


def test_refused_and_broken_answers_tell_nothing() -> None:
    assert json_body(200, b"{") is None
    assert json_body(404, b"{}") is None


def test_a_model_list_with_odd_cards() -> None:
    """Cards without a name are none; a name that is listed twice is one."""
    body = json.dumps({"data": [{"id": "a"}, {"id": 1}, "x", {"id": "a"}, {"id": "b"}]}).encode()
    assert names_of(model_cards({"/v1/models": Answer(200, body)})) == ("a", "b")
    assert model_cards({}) is None


def test_words_of_engines_are_safe_to_print() -> None:
    assert printable("a\x1b[2J\u202eb") == "a?[2J?b"
    assert len(printable("x" * 1000)) == 80


def test_tritons_kv_use_by_its_own_fraction() -> None:
    """Where no block counts are exported. What waits: Triton's queue and the backend's together."""
    body = b"""nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="tensorrt_llm"} 0.4
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active"} 2
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting"} 3
nv_inference_pending_request_count{model="ensemble"} 4
"""
    load = REGISTRY.adapter("triton", {}).read_load(200, body)
    assert load is not None
    assert (load.running, load.waiting, load.kv_usage) == (2, 7, 0.4)


def test_triton_is_asked_on_its_metrics_port() -> None:
    assert REGISTRY.adapter("triton", {}).load_port == 8002
    assert REGISTRY.adapter("triton", {"metrics_port": 9002}).load_port == 9002
    assert REGISTRY.adapter("tgi", {}).load_port is None


def test_trtllms_prometheus_names_with_and_without_prefix() -> None:
    adapter = REGISTRY.adapter("trtllm", {"prometheus": True})
    for prefix in (b"trtllm_", b""):
        load = adapter.read_load(
            200, prefix + b"num_requests_running 2\n" + prefix + b"kv_cache_utilization 0.5\n"
        )
        assert load is not None
        assert (load.running, load.waiting, load.kv_usage) == (2, None, 0.5)
