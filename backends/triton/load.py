"""How busy Triton says that it is: Prometheus on its metrics port, or a model's statistics.

`nv_inference_pending_request_count` is Triton's own queue. TensorRT-LLM's C++ backend adds what it runs and
holds itself, under the name of the inner model; the llmapi backend adds nothing (TensorRT-LLM's
custom_metrics_reporter.cc). A model that sends more than one response is counted when it has begun.
"""

from typing import Any

from backends.answers import as_count, as_share, items_of, json_body, ratio
from backends.contract import Load
from backends.prometheus import Samples, read_samples

__all__ = ["read_load"]

_PENDING = "nv_inference_pending_request_count"
_REQUESTS = "nv_trt_llm_request_metrics"
_BLOCKS = "nv_trt_llm_kv_cache_block_metrics"
_SUCCESS = "nv_inference_request_success"
_FAILURE = "nv_inference_request_failure"


def read_load(status: int, body: bytes) -> Load | None:
    if status != 200:
        return None
    statistics = items_of(json_body(status, body)).get("model_stats")
    if isinstance(statistics, list):
        return _of_statistics([items_of(model) for model in statistics])
    samples = read_samples(body)
    if not samples:
        return None
    models = samples.values_of("model", _PENDING, _REQUESTS, _BLOCKS, _SUCCESS)
    whole = _of_samples(samples)
    return Load(
        running=whole.running,
        waiting=whole.waiting,
        kv_usage=whole.kv_usage,
        per_model={model: _of_samples(samples, model=model) for model in models},
    )


def _of_samples(samples: Samples, **model: str) -> Load:
    """The load of one model, or of all."""
    used = samples.sum(_BLOCKS, kv_cache_block_type="used", **model)
    most = samples.sum(_BLOCKS, kv_cache_block_type="max", **model)
    kv_usage = ratio(used, most)
    if kv_usage is None:
        kv_usage = as_share(samples.mean(_BLOCKS, kv_cache_block_type="fraction", **model))
    queues = [samples.sum(_PENDING, **model), samples.sum(_REQUESTS, request_type="waiting", **model)]
    waiting = [count for count in queues if count is not None]
    return Load(
        running=as_count(samples.sum(_REQUESTS, request_type="active", **model)),
        waiting=as_count(sum(waiting)) if waiting else None,
        kv_usage=kv_usage,
        # Over all models an ensemble's requests would count again for each of its steps.
        requests_total=as_count(samples.sum(_SUCCESS, **model)) if model else None,
        failures_total=as_count(samples.sum(_FAILURE, **model)) if model else None,
    )


def _of_statistics(models: list[dict[str, Any]]) -> Load | None:
    """What ended; there is no gauge in it."""
    per_model: dict[str, Load] = {}
    for model in models:
        if isinstance(name := model.get("name"), str):
            counts = items_of(model.get("inference_stats"))
            per_model[name] = Load(
                requests_total=as_count(items_of(counts.get("success")).get("count")),
                failures_total=as_count(items_of(counts.get("fail")).get("count")),
            )
    only = next(iter(per_model.values())) if len(per_model) == 1 else Load()
    return Load(requests_total=only.requests_total, failures_total=only.failures_total, per_model=per_model)
