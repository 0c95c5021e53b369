"""What a simulated server tells of its life: requests, closed connections, the whole picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from backends.simulated.engine import EngineStatistics

__all__ = ["Close", "ClosePhase", "Received", "Statistics"]

ClosePhase = Literal["unanswered", "queued", "before_first_token", "during_stream"]
"""Where a request was when its client closed the connection; `unanswered` where it never reached the
engine (a `hang`, say)."""


@dataclass(frozen=True, slots=True)
class Close:
    """A client that went away before its answer was complete."""

    path: str
    phase: ClosePhase
    streamed: bool
    events: int
    """Events with content sent before."""
    closed_at: float
    """When the connection closed, monotonic seconds."""
    noticed_at: float | None
    """When the engine was told to stop; None: not yet, or never (the answer was made to its end)."""


@dataclass(frozen=True, slots=True)
class Received:
    """A request to an inference route."""

    at: float
    """Monotonic seconds."""
    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: Any
    """Decoded JSON, or text where it is none."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a server saw and did. Times are monotonic seconds."""

    now: float
    kind: str
    listening: bool
    connections: int
    requests: int
    """Inference requests seen."""
    in_flight: int
    running: int
    waiting: int
    engine: EngineStatistics
    closes: tuple[Close, ...]
    faults: tuple[Mapping[str, Any], ...]
    recent: tuple[Received, ...]
    """The last requests, oldest first, at most 64."""
