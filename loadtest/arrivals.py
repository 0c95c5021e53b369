"""When requests are sent: seconds from the start, never waiting for an answer."""

import random
from collections.abc import Iterator
from typing import Literal

Arrivals = Literal["poisson", "constant"]


def arrivals(kind: Arrivals, rate: float, seed: int) -> Iterator[float]:
    """Send times without end, `rate` a second on average; the first is 0.

    `poisson`: independent users, exponential gaps. `constant`: equal gaps, the kindest load there is.
    """
    if rate <= 0:
        raise ValueError("the rate must be above zero")
    rng = random.Random(f"{seed}/arrivals")
    at, number = 0.0, 0
    while True:
        yield at
        number += 1
        # Multiplied, not summed up: rounding must not drift over millions of requests.
        at = number / rate if kind == "constant" else at + rng.expovariate(rate)
