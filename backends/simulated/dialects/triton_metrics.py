"""Triton's metrics: the server's own, and those of the TensorRT-LLM C++ backend.

On port 8002 of a real server; here on the same port as everything else.
"""

from aiohttp import web

from backends.simulated.dialects.common import Host
from backends.simulated.dialects.prometheus import Family, exposition

__all__ = ["triton_metrics"]

_TOKENS_PER_BLOCK = 64


def triton_metrics(host: Host, model: str, *, with_trtllm: bool) -> web.Response:
    """The counters of `model`; `with_trtllm`: and the load, which is the inner model's."""
    engine = host.live.statistics()
    outer = {"model": model, "version": "1"}
    failed = {"model": model, "version": "1", "reason": "CANCELED"}
    families: list[Family] = [
        ("nv_inference_request_success", "counter", [(outer, engine.finished)]),
        ("nv_inference_request_failure", "counter", [(failed, engine.cancelled)]),
        ("nv_inference_count", "counter", [(outer, engine.finished)]),
        ("nv_inference_pending_request_count", "gauge", [(outer, 0)]),
    ]
    if not with_trtllm:
        return exposition(families)
    inner = {"model": "tensorrt_llm", "version": "1"}
    used = -(-engine.kv_used // _TOKENS_PER_BLOCK)
    blocks = {
        "fraction": used * _TOKENS_PER_BLOCK / engine.kv_capacity,
        "free": engine.kv_capacity // _TOKENS_PER_BLOCK - used,
        "max": engine.kv_capacity // _TOKENS_PER_BLOCK,
        "tokens_per": _TOKENS_PER_BLOCK,
        "used": used,
    }
    requests = {
        "active": engine.running,
        "max": host.profile.max_sequences,
        "scheduled": engine.running,
        "waiting": engine.waiting,
    }
    families += [
        (
            "nv_trt_llm_request_metrics",
            "gauge",
            [({**inner, "request_type": name}, value) for name, value in requests.items()],
        ),
        (
            "nv_trt_llm_kv_cache_block_metrics",
            "gauge",
            [({"kv_cache_block_type": name, **inner}, value) for name, value in blocks.items()],
        ),
    ]
    return exposition(families)
