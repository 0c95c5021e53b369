"""How busy llama.cpp says that it is: `/slots`, on by default, or Prometheus where it runs with --metrics.

The slots tell what runs, not what waits. The KV gauges of older builds are gone, so its use is untold
(tools/server/server-context.cpp).
"""

from backends.answers import as_count, as_share, items_of, json_body
from backends.contract import Load
from backends.prometheus import read_samples

__all__ = ["read_load"]


def read_load(status: int, body: bytes) -> Load | None:
    """A 501 says that it was started without --metrics (or with --no-slots)."""
    if status != 200:
        return None
    slots = json_body(status, body)
    if isinstance(slots, list):
        busy = [items_of(slot).get("is_processing") for slot in slots]
        known = busy and all(isinstance(is_busy, bool) for is_busy in busy)
        return Load(running=busy.count(True)) if known else None
    samples = read_samples(body)
    if not samples:
        return None
    return Load(
        running=as_count(samples.sum("llamacpp:requests_processing")),
        waiting=as_count(samples.sum("llamacpp:requests_deferred")),
        kv_usage=as_share(samples.mean("llamacpp:kv_cache_usage_ratio")),
    )
