"""Brown-out: what is taken from requests while the line is long, by rule or by class."""

from dataclasses import dataclass

from gateway.config.snapshot.values import PriorityClass


@dataclass(frozen=True, slots=True)
class OverloadStep:
    """One step of a brown-out: on while a line is long, it takes something from each request.

    When it is on: queueing/brownout.py. What it takes: routing/degrading.py. All given signals must have
    reached their thresholds.
    """

    queue_wait: float | None = None
    """Seconds in which the work drains that may go before a newcomer of the class."""
    waiting: int | None = None
    """Requests in line."""
    off_below: float = 0.5
    """It goes off when a signal has stayed below this part of its threshold ..."""
    dwell: float = 10.0
    """... for so many seconds."""
    max_tokens: int | None = None
    """Most output tokens per choice."""
    n: int | None = None
    """Most choices per prompt."""
    priority_class: PriorityClass | None = None
    """The most urgent class."""
    model: str | None = None
    """The model that answers instead, ..."""
    pools: tuple[str, ...] = ()
    """... and the pools that are asked for it, before those of the chain."""
