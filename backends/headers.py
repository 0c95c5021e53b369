"""The headers that every request with a body carries, whatever the engine."""

from backends.contract import GenerateRequest

__all__ = ["json_headers"]


def json_headers(request: GenerateRequest) -> dict[str, str]:
    """A JSON body, and the trace that it belongs to, for engines that trace (TGI, Triton, vLLM)."""
    headers = {"content-type": "application/json"}
    if request.traceparent is not None:
        headers["traceparent"] = request.traceparent
    return headers
