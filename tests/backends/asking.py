"""Requests of any parameters, and those of them that an adapter lets pass."""

from collections.abc import Mapping
from typing import Any

import msgspec

from backends.contract import EngineAdapter, GenerateRequest

__all__ = ["served"]


def served(adapter: EngineAdapter, request: GenerateRequest) -> GenerateRequest | None:
    """`request` less the parameters that `adapter` refuses, one after the other; None: the rest is refused.

    So that a long list of random values is not refused for one of them, and nothing else is ever tried.
    """
    for _ in range(len(request.parameters) + 1):
        refusal = adapter.unsupported(request)
        if refusal is None:
            return request
        left: Mapping[str, Any] = {
            name: value for name, value in request.parameters.items() if name != refusal.param
        }
        if len(left) == len(request.parameters):
            return None
        request = msgspec.structs.replace(request, parameters=left)
    raise AssertionError("refused for a parameter that is not there")
