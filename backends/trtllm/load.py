"""How busy trtllm-serve says that it is: iteration statistics as JSON, or Prometheus in newer builds.

`/metrics` is JSON, one object for each iteration since it was last read: **reading drains it**, so two
readers steal from each other; and an idle server answers only after two seconds. It is empty where nothing
ran, or where statistics are off (`enable_iter_perf_stats`): an empty list tells nothing, which is not "idle".
`/prometheus/metrics` exists with `return_perf_metrics` (tensorrt_llm/serve/openai_server.py,
metrics/collector.py).
"""

from typing import Any

from backends.answers import as_count, as_share, items_of, json_body, ratio
from backends.contract import Load
from backends.prometheus import Samples, read_samples

__all__ = ["read_load"]


def read_load(status: int, body: bytes) -> Load | None:
    if status != 200:
        return None
    answer = json_body(status, body)
    if isinstance(answer, list):
        return _of_iteration(items_of(answer[-1])) if answer else Load()
    samples = read_samples(body)
    return _of_samples(samples) if samples else None


def _of_iteration(iteration: dict[str, Any]) -> Load:
    cache = items_of(iteration.get("kvCacheStats"))
    return Load(
        running=as_count(iteration.get("numActiveRequests")),
        waiting=as_count(iteration.get("numQueuedRequests")),
        kv_usage=ratio(as_count(cache.get("usedNumBlocks")), as_count(cache.get("maxNumBlocks"))),
        prefix_hit_ratio=as_share(cache.get("cacheHitRate")),
    )


def _of_samples(samples: Samples) -> Load:
    """Older builds have the names without their prefix."""
    return Load(
        running=as_count(samples.sum("trtllm_num_requests_running", "num_requests_running")),
        waiting=as_count(samples.sum("trtllm_num_requests_waiting", "num_requests_waiting")),
        kv_usage=as_share(samples.mean("trtllm_kv_cache_utilization", "kv_cache_utilization")),
        prefix_hit_ratio=as_share(samples.mean("trtllm_kv_cache_hit_rate", "kv_cache_hit_rate")),
        requests_total=as_count(samples.sum("trtllm_request_success_total", "request_success_total")),
        failures_total=as_count(samples.sum("trtllm_request_error_total")),
    )
