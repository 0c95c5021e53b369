"""OpenAI's values as Triton's tensors: exact types, or None where a value does not fit.

Triton answers a wrong type with a 500 and wraps an INT32 that is out of range, so nothing is sent uncast.
"""

from typing import Any

__all__ = ["INT32_MAX", "fp32", "int32", "text_list", "uint64"]

INT32_MAX = 2**31 - 1
_FP32_MAX = 3.4028234663852886e38


def int32(value: Any) -> int | None:
    """A whole number that fits the tensor, or None. Triton does not check the range: it wraps."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is int and 0 <= value <= INT32_MAX:  # negative ones end 1.0-era TensorRT-LLM (#6329)
        return value
    return None


def uint64(value: Any) -> int | None:
    """A seed: OpenAI's may be negative, and any one-to-one mapping keeps it a seed."""
    return value & (2**64 - 1) if type(value) is int and -(2**63) <= value < 2**64 else None


def fp32(value: Any) -> float | int | None:
    is_number = type(value) in (int, float)
    return value if is_number and abs(value) <= _FP32_MAX else None  # NaN compares false


def text_list(value: Any) -> list[str] | None:
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, list | tuple) and texts and all(isinstance(text, str) and text for text in texts):
        return list(texts)
    return None
