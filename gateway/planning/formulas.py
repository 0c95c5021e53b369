"""The formulas of capacity, as operators write them, each with its numbers.

    KV bytes  = 2 x layers x (in + out) x kv_heads x head_dim x bytes
    T         = L_in / P + L_out / (D / B) + overhead
    QPS       = B / T
    cost      = price x GPUs / (tokens per hour / 1e6)

P is prompt tokens a second, D output tokens a second of all B answers together. T leaves out that the prompts
of the other answers are read in between; what an engine can do in a second is bounded by its work,

    QPS <= 1 / (L_in / P + L_out / D)

which is the smaller of the two wherever B exceeds 1, and what plans use.
"""

import math
from dataclasses import dataclass

from gateway.planning.shapes import ModelShape

__all__ = [
    "Line", "cache_room", "cost_per_million", "kv_bytes", "kv_bytes_per_token", "latency", "rate_of_batch",
    "rate_of_work", "replicas_for", "weight_bytes",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One step of a calculation. `formula` is arithmetic, with `x` for times and words that only say what a
    number is: whoever types it in gets `value`, but for the rounding of what is written."""

    what: str
    formula: str
    value: float
    unit: str

    def __str__(self) -> str:
        return f"{self.what} = {self.formula} = {number(self.value)} {self.unit}".rstrip()


def number(value: float) -> str:
    """As few digits as show it to six figures; whole numbers whole."""
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.0f}"


def kv_bytes_per_token(shape: ModelShape, cache_bytes: float) -> Line:
    """`cache_bytes`: of one cached number; 2 in bf16, 1 in FP8."""
    value = shape.kv_numbers * cache_bytes
    if shape.latent is not None:
        formula = f"{shape.layers} layers x {shape.latent} latent x {number(cache_bytes)} bytes"
    else:
        formula = (
            f"2 x {shape.layers} layers x {shape.kv_heads} kv_heads x {shape.head_dim} head_dim "
            f"x {number(cache_bytes)} bytes"
        )
    return Line("KV bytes per token", formula, value, "bytes")


def kv_bytes(per_token: float, tokens_in: float, tokens_out: float) -> Line:
    """Of one request at its end."""
    formula = f"{number(per_token)} x ({number(tokens_in)} in + {number(tokens_out)} out)"
    return Line("KV bytes per request", formula, per_token * (tokens_in + tokens_out), "bytes")


def weight_bytes(shape: ModelShape) -> Line:
    """Raises ValueError where the sizes of the matrices are not known."""
    if shape.parameters is None:
        raise ValueError("the config does not tell how many parameters there are: give the weights' size")
    formula = f"{shape.parameters} parameters x {number(shape.dtype_bytes)} bytes"
    return Line("weights", formula, shape.parameters * shape.dtype_bytes, "bytes")


def cache_room(
    per_token: float, memory: float, gpus: int, share: float, weights: float, reserve: float
) -> Line:
    """Tokens that the cache of one replica holds. `memory` of one GPU, `weights` and `reserve` (activations,
    graphs) of the replica, all in bytes. Raises ValueError where there is no room."""
    value = math.floor((share * memory * gpus - weights - reserve) / per_token)
    if value < 2:
        raise ValueError(
            f"no room for a cache: {share:g} of {gpus} x {memory / 1e9:g} GB, less {weights / 1e9:g} GB of "
            f"weights and {reserve / 1e9:g} GB, is {(share * memory * gpus - weights - reserve) / 1e9:g} GB"
        )
    formula = (
        f"({number(share)} x {gpus} GPUs x {number(memory / 1e9)} GB - {weights / 1e9:.6g} GB - "
        f"{number(reserve / 1e9)} GB) x 1e9 / {number(per_token)}"
    )
    return Line("KV room of a replica", formula, value, "tokens")


def latency(tokens_in: float, tokens_out: float, p: float, d: float, batch: int, overhead: float) -> Line:
    """T: seconds of one request among `batch`."""
    value = tokens_in / p + tokens_out / (d / batch) + overhead
    each = f"({number(d)} / {batch})"
    formula = f"{number(tokens_in)} / {number(p)} + {number(tokens_out)} / {each} + {number(overhead)}"
    return Line("T", formula, value, "s")


def rate_of_batch(batch: int, t: float) -> Line:
    return Line("QPS by batch", f"{batch} / {number(t)}", batch / t, "requests/s")


def rate_of_work(tokens_in: float, tokens_out: float, p: float, d: float) -> Line:
    """What one replica can do at most, reading prompts and decoding by turns."""
    value = 1 / (tokens_in / p + tokens_out / d)
    formula = f"1 / ({number(tokens_in)} / {number(p)} + {number(tokens_out)} / {number(d)})"
    return Line("QPS by work", formula, value, "requests/s")


def replicas_for(rate: float, each: float, utilization: float) -> Line:
    formula = f"ceil({number(rate)} / ({number(each)} x {number(utilization)}))"
    return Line("replicas", formula, max(1, math.ceil(rate / (each * utilization) - 1e-9)), "")


def cost_per_million(price: float, gpus: int, tokens_per_hour: float) -> Line:
    """`price` of one GPU for an hour; tokens of prompts and answers together."""
    formula = f"{number(price)} x {gpus} GPUs / ({number(tokens_per_hour)} / 1e6)"
    return Line("cost per 1M tokens", formula, price * gpus / (tokens_per_hour / 1e6), "")
