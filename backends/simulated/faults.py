"""What goes wrong: a plan of faults, how often each may still strike, and the proof that it did.

A fault is written `name`, `name=value` or `name=value*times`, e.g. `die_after=3*1`: once, abort the
connection after three events. Without `*times` it strikes until it is cleared. A fault counts as fired at
the moment when it takes effect, not when a request comes in: `die_after=50` never fires on an answer of
ten events, and says so.

Events are those that carry output: SSE events of a stream, of which the role-only opening of OpenAI's
dialect is none, or the tokens behind an answer that is not streamed. k = 0 means before the first.
`huge_event` and `drip` strike streams only.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

__all__ = ["FAULTS", "Fault", "FaultPlan"]

FAULTS: Mapping[str, str] = MappingProxyType(
    {
        "refuse": "refuse new connections for that many seconds (0: until told otherwise)",
        "close": "read the request, then close the connection before any answer",
        "hang": "read the request and never answer",
        "overload": "the engine's own overload answer; trtllm-serve has none",
        "redirect": "answer 301 to an address that must never be called",
        "garbage": "answer 200 with bytes that are neither JSON nor an event",
        "gzip": "answer 200 with a gzip body that nobody asked for",
        "slow_headers": "hold the status line and headers back for that many seconds",
        "slow_first": "hold the first output back for that many seconds",
        "huge_event": "before the first event send one of that many MiB",
        "drip": "send the event after that many events one byte at a time",
        "silent_after": "say nothing more after that many events, and keep the connection open",
        "die_after": "abort the connection (RST) after that many events",
        "fin_after": "close the connection cleanly (FIN) after that many events, without an end of the body",
        "error_after": "fail as this engine fails after that many events",
    }
)
"""Every fault there is, with its meaning and the unit of its value."""

_NEEDS_NO_VALUE = frozenset({"close", "hang", "overload", "redirect", "garbage", "gzip"})
_NEEDS_VALUE = FAULTS.keys() - _NEEDS_NO_VALUE
_SPECIFICATION = re.compile(r"(?P<name>[a-z_]+)(?:=(?P<value>\d+(?:\.\d+)?))?(?:\*(?P<times>\d+))?")


@dataclass(slots=True)
class Fault:
    """One entry of the plan."""

    name: str
    value: float = 0.0
    times: float = math.inf
    """How often it may still strike."""
    fired: int = 0
    """How often it took effect."""

    @classmethod
    def parse(cls, specification: str) -> "Fault":
        """Raises ValueError with a sentence."""
        match = _SPECIFICATION.fullmatch(specification.strip())
        if match is None:
            raise ValueError(f"a fault is name[=value][*times], not {specification!r}")
        name, value, times = match["name"], match["value"], match["times"]
        if name not in FAULTS:
            raise ValueError(f"unknown fault {name!r}; there are {', '.join(FAULTS)}")
        if (value is not None) != (name in _NEEDS_VALUE):
            raise ValueError(f"fault {name!r} {'needs a' if value is None else 'takes no'} value")
        return cls(name, float(value or 0), math.inf if times is None else int(times))

    def __str__(self) -> str:
        value = f"={self.value:g}" if self.name in _NEEDS_VALUE else ""
        return f"{self.name}{value}" + ("" if math.isinf(self.times) else f"*{self.times:g}")


class FaultPlan:
    """The faults of one server."""

    def __init__(self, specifications: Iterable[str] = ()) -> None:
        self._faults: list[Fault] = []
        for specification in specifications:
            self.arm(specification)

    def arm(self, specification: str) -> Fault:
        """Add a fault; it is looked at after those armed before it. Raises ValueError."""
        fault = Fault.parse(specification)
        self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Nothing strikes any more. What fired stays on record."""
        for fault in self._faults:
            fault.times = 0

    def strike(self, name: str, events: int | None = None) -> Fault | None:
        """The fault `name` if it takes effect now: it is armed, and for faults after so many events, this
        is the number. Counts it as fired."""
        for fault in self._faults:
            if fault.name == name and fault.times >= 1 and (events is None or events == fault.value):
                fault.times -= 1
                fault.fired += 1
                return fault
        return None

    def fired(self, name: str) -> int:
        """How often faults of this name took effect."""
        return sum(fault.fired for fault in self._faults if fault.name == name)

    def statistics(self) -> list[dict[str, Any]]:
        """`fault` as it is now, `left` (None: no bound) and `fired`, for each that was ever armed."""
        return [
            {
                "fault": str(fault),
                "left": None if math.isinf(fault.times) else int(fault.times),
                "fired": fault.fired,
            }
            for fault in self._faults
        ]
