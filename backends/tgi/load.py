"""How busy TGI says that it is: Prometheus on /metrics of its main port.

Gauges are absent until they are first set; counters have no `_total` (router/src/server.rs and
backends/v3/src/backend.rs). The KV use is the tokens that its batch may reach against those it has room for.
"""

from backends.answers import as_count, ratio
from backends.contract import Load
from backends.prometheus import read_samples

__all__ = ["read_load"]


def read_load(status: int, body: bytes) -> Load | None:
    if status != 200:
        return None
    samples = read_samples(body)
    if not samples:
        return None
    return Load(
        running=as_count(samples.sum("tgi_batch_current_size")),
        waiting=as_count(samples.sum("tgi_queue_size")),
        kv_usage=ratio(
            samples.sum("tgi_batch_current_max_tokens"), samples.sum("tgi_batch_max_total_tokens")
        ),
        requests_total=as_count(samples.sum("tgi_request_success")),
        failures_total=as_count(samples.sum("tgi_request_failure")),
    )
