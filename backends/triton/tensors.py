"""OpenAI's values as Triton's tensors: exact types, or Unfit where a value does not fit.

Triton answers a wrong type with a 500 and wraps an INT32 that is out of range, so nothing is sent uncast.
"""

from typing import Any

from backends.mapping import Unfit, number, texts, whole

__all__ = ["INT32_MAX", "above_zero", "fp32", "int32", "text_list", "uint64"]

INT32_MAX = 2**31 - 1
_FP32_MAX = 3.4028234663852886e38

fp32 = number(-_FP32_MAX, _FP32_MAX)
above_zero = number(high=_FP32_MAX, above=0)
int32 = whole(0, INT32_MAX)
"""Triton does not check the range: it wraps. Negative ones end 1.0-era TensorRT-LLM (#6329)."""


def uint64(value: Any) -> int:
    """A seed: OpenAI's may be negative, and any one-to-one mapping keeps it a seed."""
    if type(value) is not int:
        raise Unfit("This engine takes a whole number here.")
    if not -(2**63) <= value < 2**64:
        raise Unfit("This engine takes a seed of 64 bits.")
    return value & (2**64 - 1)


text_list = texts
