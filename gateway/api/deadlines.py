"""How long a client waits: what its headers say of that.

    x-headgate-timeout-ms      milliseconds until the first token, asked for on purpose
    x-stainless-read-timeout   seconds; OpenAI's SDKs send along when they will give up (600 by default)
    x-headgate-stop-after-ms   milliseconds until the whole answer, which ends there with what there is

The smaller one of the first two counts. A request that cannot be begun in time is better refused at once,
when another gateway or another model may still answer it.
"""

import math

from gateway.api.asgi import Scope, header
from gateway.errors import BadRequest

TIMEOUT_HEADER = b"x-headgate-timeout-ms"
STOP_HEADER = b"x-headgate-stop-after-ms"
SDK_HEADER = b"x-stainless-read-timeout"
MOST_MS = 86_400_000


def patience_of(scope: Scope) -> float | None:
    """Seconds from the receipt of a request in which its first token must come; None where nothing is said.

    Raises BadRequest for a `x-headgate-timeout-ms` that is no whole number from 1 to 86,400,000. What an SDK
    says of itself is taken where it makes sense.
    """
    asked = _milliseconds(scope, TIMEOUT_HEADER)
    said = [] if asked is None else [asked]
    if (value := header(scope, SDK_HEADER)) is not None and (seconds := _seconds(value)) is not None:
        said.append(seconds)
    return min(said, default=None)


def time_budget_of(scope: Scope) -> float | None:
    """Seconds from the receipt of a request after which its answer ends with what there is; None where
    nothing is said. Raises BadRequest as `patience_of`."""
    return _milliseconds(scope, STOP_HEADER)


def _milliseconds(scope: Scope, name: bytes) -> float | None:
    value = header(scope, name)
    if value is None:
        return None
    if not (value.isdigit() and len(value) <= 8 and 1 <= int(value) <= MOST_MS):
        raise BadRequest(
            f"{name.decode()} must be a whole number of milliseconds, 1 to {MOST_MS}.", param=name.decode()
        )
    return int(value) / 1000


def _seconds(value: bytes) -> float | None:
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and 0 < seconds <= MOST_MS / 1000 else None
