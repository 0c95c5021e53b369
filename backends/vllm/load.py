"""How busy vLLM says that it is: Prometheus on /metrics, or `/load` where that is tracked.

Names: vllm/v1/metrics/loggers.py. With data parallelism there is one series for each engine: counts are
summed, shares averaged. `gpu_cache_usage_perc` was the name of the KV gauge before the V1 rename.
"""

from backends.answers import as_count, as_share, items_of, json_body, ratio
from backends.contract import Load
from backends.prometheus import read_samples

__all__ = ["read_load"]


def read_load(status: int, body: bytes) -> Load | None:
    if status != 200:
        return None
    if (answer := items_of(json_body(status, body))).keys() & {"server_load"}:
        return Load(in_flight=as_count(answer["server_load"]))
    samples = read_samples(body)
    if not samples:
        return None
    ended = samples.values_of("finished_reason", "vllm:request_success_total")
    good = [
        samples.sum("vllm:request_success_total", finished_reason=reason) or 0.0
        for reason in ended
        if reason not in ("abort", "error")
    ]
    return Load(
        running=as_count(samples.sum("vllm:num_requests_running")),
        waiting=as_count(samples.sum("vllm:num_requests_waiting")),
        kv_usage=as_share(samples.mean("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")),
        prefix_hit_ratio=ratio(
            samples.sum("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
            samples.sum("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
        ),
        requests_total=as_count(sum(good)) if good else None,
        failures_total=as_count(samples.sum("vllm:request_success_total", finished_reason="error")),
        preemptions_total=as_count(samples.sum("vllm:num_preemptions_total", "vllm:num_preemptions")),
    )
