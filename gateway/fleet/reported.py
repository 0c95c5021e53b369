"""What a replica says of its own load, next to what the gateway's ledger says.

The ledger counts only what this gateway has sent, at once; an engine counts everybody's requests, seconds
late. So the ledger decides, and what is reported corrects it in one point: requests that others sent there
take room too (`foreign`). A figure that is left out of an answer keeps its last value and ages.
"""

from dataclasses import dataclass, fields, replace

from backends.contract import Load

__all__ = ["NO_LOAD", "Reported"]

FRESH = 15.0
"""Seconds after which a report says nothing about now any more: three polls."""
NO_LOAD = Load()
FIELDS = tuple(each.name for each in fields(Load) if each.name != "per_model")


@dataclass(slots=True)
class Reported:
    """The latest figures of one replica, and when they were told."""

    load: Load = NO_LOAD
    at: float | None = None
    """Seconds on the ledger's clock; None: it has told nothing yet."""
    _surplus: int = 0
    _before: int = 0

    def note(self, load: Load, now: float, own: int) -> None:
        """Take an answer; `own` requests of this gateway were in flight there when it was asked, and are
        still: the smaller of both moments, so that none of ours is taken for another's."""
        told = {name: value for name in FIELDS if (value := getattr(load, name)) is not None}
        if not told:
            return
        self.load = replace(self.load, **told)
        self.at = now
        held = load.in_flight
        if held is None and load.running is not None:
            held = load.running + (load.waiting or 0)
        self._before, self._surplus = self._surplus, 0 if held is None else max(0, held - own)

    def age(self, now: float) -> float | None:
        """Seconds since it last told anything; None: it never has."""
        return None if self.at is None else max(0.0, now - self.at)

    def foreign(self, now: float) -> int:
        """Requests that others have in flight there, as far as two reports in a row agree; old news is none.

        One report alone may have caught a request of ours between its end here and its end there.
        """
        if self.at is None or now - self.at > FRESH:
            return 0
        return min(self._surplus, self._before)
