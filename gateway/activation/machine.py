"""The states of a pool that may sleep, without any I/O.

    asleep ──ask──▶ waking ──woke──▶ awake ──tick, cool──▶ cooling ──cooled──▶ asleep
       ▲               │               ▲ │                    │ │
       └──wake_failed──┘               │ └──lost──▶ asleep    │ └──cooled, and somebody asked──▶ waking
                                       └──────────stayed──────┘

Who calls `ask` and is told "start" starts the wake, and reports how it ended; who is told "wait" waits for
the one that is under way. So there is one wake, whoever and how many ask. After a wake that failed, nothing
is tried for a while: each failure in a row doubles it.

The median of the last wakes tells how long the next one will take.
"""

from collections import deque
from collections.abc import Iterable
from statistics import median
from typing import Literal

__all__ = ["Machine", "State"]

State = Literal["asleep", "waking", "awake", "cooling"]

KEPT = 7
"""Wakes that the learned time is the median of."""
BACKOFF_LEAST, BACKOFF_MOST = 2.0, 120.0
"""Seconds without a try after one wake that failed, and after many."""
GUESS = 10.0
"""Seconds that a wake is taken for as long as none was seen."""
RETRY_LEAST = 1.0


class Machine:
    """One pool. Times are seconds on the clock of whoever calls."""

    def __init__(self, now: float, *, idle_after: float | None = None, past: Iterable[float] = ()) -> None:
        """`past`: seconds that earlier wakes took, oldest first."""
        self.idle_after = idle_after
        """Seconds without a request after which it is put to sleep; None: never. May change."""
        self.state: State = "asleep"
        self.since = now
        """When it came into this state."""
        self.last_used = now
        self.failures = 0
        """Wakes that failed in a row."""
        self.not_before = now
        """Until then a request starts no wake."""
        self.why: str | None = None
        """What was wrong the last time; None: nothing."""
        self._wanted = False
        self._past: deque[float] = deque(past, maxlen=KEPT)

    # -------------------------------------------------------------------------------------- requests

    def ask(self, now: float, *, by_hand: bool = False) -> Literal["awake", "start", "wait", "not_yet"]:
        """Somebody wants the pool. `start`: start a wake, now. `not_yet`: it failed a moment ago, and is not
        tried again so soon, unless `by_hand`."""
        self.last_used = max(self.last_used, now)
        match self.state:
            case "awake":
                return "awake"
            case "waking":
                return "wait"
            case "cooling":
                self._wanted = True
                return "wait"
            case "asleep":
                if now < self.not_before and not by_hand:
                    return "not_yet"
                self._become("waking", now)
                return "start"

    def remember(self, past: Iterable[float]) -> None:
        """Seconds that wakes took before, oldest first."""
        self._past.extendleft(reversed(list(past)[-KEPT:]))

    @property
    def wake_seconds(self) -> float | None:
        """Seconds that a wake takes, as far as that is known."""
        return median(self._past) if self._past else None

    def retry_after(self, now: float) -> float:
        """Seconds after which a request is expected to find it awake."""
        expected = GUESS if self.wake_seconds is None else self.wake_seconds
        left = 0.0
        if self.state == "waking":
            left = expected - (now - self.since)
        elif self.state != "awake":
            left = expected + max(0.0, self.not_before - now)
        return max(left, RETRY_LEAST)

    # --------------------------------------------------------------------------------- how things end

    def woke(self, now: float) -> float:
        """The wake is done. Returns the seconds that it took."""
        self._expect("waking")
        seconds = now - self.since
        self._past.append(seconds)
        self._good("awake", now)
        return seconds

    def wake_failed(self, now: float, why: str) -> None:
        self._expect("waking")
        wait = min(BACKOFF_LEAST * 2**self.failures, BACKOFF_MOST)
        self.failures = min(self.failures + 1, 16)
        self.not_before = now + wait
        self.why = why
        self._become("asleep", now)

    def cooled(self, now: float) -> Literal["start"] | None:
        """It is asleep. `start`: somebody has asked meanwhile, so wake it again, now."""
        self._expect("cooling")
        if self._wanted:
            self._become("waking", now)
            return "start"
        self._become("asleep", now)
        return None

    def stayed(self, now: float, why: str) -> None:
        """It was not put to sleep after all; it is tried again after another time without requests."""
        self._expect("cooling")
        self.why = why
        self.last_used = now
        self._become("awake", now)

    # -------------------------------------------------------------------------------- what is noticed

    def tick(self, now: float, *, in_use: bool) -> Literal["cool"] | None:
        """Look at the time. `cool`: nobody has used it for long enough, put it to sleep, now."""
        if in_use:
            self.last_used = max(self.last_used, now)
            return None
        if self.state != "awake" or self.idle_after is None or now - self.last_used < self.idle_after:
            return None
        return self.cool(now)

    def cool(self, now: float) -> Literal["cool"] | None:
        """Put it to sleep, though its time has not come. Nothing unless it is awake."""
        if self.state != "awake":
            return None
        self._become("cooling", now)
        return "cool"

    def found_awake(self, now: float) -> None:
        """It turns out to be awake already: somebody else woke it, or it never slept."""
        if self.state == "asleep":
            self.last_used = max(self.last_used, now)
            self._good("awake", now)

    def lost(self, now: float, why: str) -> None:
        """It turns out to be asleep or gone, and not by us: the next request wakes it."""
        if self.state == "awake":
            self.why = why
            self._become("asleep", now)

    # ----------------------------------------------------------------------------------------- within

    def _good(self, state: State, now: float) -> None:
        self.failures = 0
        self.not_before = now
        self.why = None
        self._become(state, now)

    def _become(self, state: State, now: float) -> None:
        self.state = state
        self.since = now
        self._wanted = False

    def _expect(self, state: State) -> None:
        if self.state != state:
            raise RuntimeError(f"a pool that is {self.state} was not {state}")
