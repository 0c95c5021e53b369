"""How busy SGLang says that it is: `/v1/loads`, which needs no flag, or Prometheus with --enable-metrics.

`/v1/loads` has one entry for each data-parallel rank (srt/entrypoints/v1_loads.py): counts are summed, shares
averaged. Metric names: srt/observability/metrics_collector.py.
"""

from collections.abc import Iterable
from typing import Any

from backends.answers import as_count, as_share, items_of, json_body
from backends.contract import Load
from backends.prometheus import read_samples

__all__ = ["read_load"]


def read_load(status: int, body: bytes) -> Load | None:
    if status != 200:
        return None
    answer = json_body(status, body)
    if isinstance(answer, dict | list):
        ranks = answer if isinstance(answer, list) else answer.get("loads")
        return _of_ranks([items_of(rank) for rank in ranks]) if isinstance(ranks, list) and ranks else None
    samples = read_samples(body)
    if not samples:
        return None
    return Load(
        running=as_count(samples.sum("sglang:num_running_reqs")),
        waiting=as_count(samples.sum("sglang:num_queue_reqs")),
        kv_usage=as_share(samples.mean("sglang:token_usage")),
        prefix_hit_ratio=as_share(samples.mean("sglang:cache_hit_rate")),
        requests_total=as_count(samples.sum("sglang:num_requests_total")),
        preemptions_total=as_count(samples.sum("sglang:num_retracted_requests_total")),
    )


def _of_ranks(ranks: list[dict[str, Any]]) -> Load:
    return Load(
        running=_sum(rank.get("num_running_reqs") for rank in ranks),
        waiting=_sum(rank.get("num_waiting_reqs") for rank in ranks),
        kv_usage=_mean(rank.get("token_usage") for rank in ranks),
        prefix_hit_ratio=_mean(rank.get("cache_hit_rate") for rank in ranks),
    )


def _sum(values: Iterable[Any]) -> int | None:
    """None if any rank leaves it untold: half a sum would look like an idle engine."""
    counts = [as_count(value) for value in values]
    return None if None in counts else sum(count for count in counts if count is not None)


def _mean(values: Iterable[Any]) -> float | None:
    shares = [share for value in values if (share := as_share(value)) is not None]
    return sum(shares) / len(shares) if shares else None
