"""Which tier answers: may a prompt be estimated, or does it have to be counted?

    cached      an exact count that is remembered                     (the caller asks first)
    estimate    bytes x learned ratio, where its error is known and no boundary lies within it
    exact       the tokenizer, off the loop                           (the caller's way out)

`judge` asks in this order: is this one plain text, is its tenant trusted, is its kind learned, is the
interval narrow, may the request be refused (then it is counted), does a boundary lie within. Most of its time
goes into working out the request's cost at both ends of the interval.

What comes back is learned: exact counts (`learn`) and engines' usage (`told`).
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from gateway.call import Call, Estimate, PromptCount, Weighed
from gateway.config.snapshot import Model, Snapshot
from gateway.errors import GatewayError
from gateway.tokens.deciding import Boundaries
from gateway.tokens.drift import Drift, difference
from gateway.tokens.learning import Interval, LearningStatistics, Overhead, Ratios, Trust, size_class
from gateway.tokens.scripts import measure

__all__ = ["Expected", "Learned", "Room", "Tiers", "Told", "Verification"]

Expected = Callable[[PromptCount], Estimate]
"""What a call is expected to cost if this is its prompt. Raises GatewayError where it would be refused."""

Room = Callable[[], int | None]
"""Tokens that the tightest limit still grants to a call, as far as this process knows; None: no limit."""

Form = Literal["text", "chat", "tools"]

Verification = Literal["within", "outside", "crossed"]
"""How an estimate stood the engine's count: in its interval, beside it, or so far off that something was
decided otherwise than with the true length."""


@dataclass(slots=True)
class Learned:
    """What outlives a reload."""

    ratios: Ratios
    trust: Trust
    drift: Drift

    @classmethod
    def nothing(cls) -> "Learned":
        return cls(Ratios(), Trust(), Drift())


class Judgement(msgspec.Struct, frozen=True, gc=False):
    count: PromptCount | None
    """The estimate that will do; None: count."""
    why: str = ""
    """Why it has to be counted."""


class Told(msgspec.Struct, frozen=True, gc=False):
    """An engine's count of a prompt beside ours."""

    ratio: float
    """Its tokens by ours."""
    verification: Verification | None
    """Of an estimate."""


class Tiers:
    """The second tier of one configuration."""

    def __init__(
        self,
        boundaries: Mapping[str, Boundaries],
        identities: Mapping[str, str],
        overheads: Mapping[str, Mapping[Form, Overhead]],
        learned: Learned | None = None,
        randomly: Callable[[], float] | None = None,
    ) -> None:
        """All by model name. `identities`: under which name to learn; another tokenizer is another name."""
        self._boundaries = boundaries
        self._identities = identities
        self._overheads = overheads
        self.learned = Learned.nothing() if learned is None else learned
        self._random = random.random if randomly is None else randomly

    @classmethod
    def of(
        cls,
        snapshot: Snapshot,
        overheads: Mapping[str, Mapping[Form, Overhead]],
        learned: Learned | None = None,
    ) -> "Tiers":
        models = snapshot.models.values()
        return cls(
            {model.name: Boundaries.of(snapshot, model) for model in models},
            {model.name: f"{model.name}, {model.tokenizer}" for model in models},
            overheads,
            learned,
        )

    def on(self, snapshot: Snapshot) -> "Tiers":
        """With the boundaries of `snapshot`, another of the same file; everything else is shared."""
        boundaries = {model.name: Boundaries.of(snapshot, model) for model in snapshot.models.values()}
        return Tiers(boundaries, self._identities, self._overheads, self.learned, self._random)

    def weigh(
        self, model: Model, tenant: str, form: Form, texts: Sequence[str], messages: int
    ) -> Weighed | None:
        """What the number of tokens of a prompt hangs on; None where there is no text."""
        measured = measure(texts[0] if len(texts) == 1 else "".join(texts), self._random)
        if not measured.size:
            return None
        overhead = self._overheads.get(model.name, {}).get(form, Overhead())
        key = (
            tenant,
            self._identities.get(model.name, model.name),
            form,
            measured.kind,
            size_class(measured.size),
        )
        return Weighed(key, measured.size, overhead.of(messages))

    def judge(self, call: Call, weighed: Weighed | None, expected: Expected, room: Room | None) -> Judgement:
        """Whether the prompt may be estimated."""
        if weighed is None:
            return Judgement(None, "it is not one text")
        model, tenant = call.model.name, call.tenant.name
        if (doubt := self.learned.trust.doubt(tenant, model)) is not None:
            return Judgement(None, doubt)
        interval = self.learned.ratios.interval(weighed)
        if interval is None:
            have, need = self.learned.ratios.seen(weighed)
            return Judgement(None, f"too few texts like this were seen ({have} of {need})")
        span = f"{interval.low}..{interval.high}"
        if interval.high > 2 * interval.low:
            return Judgement(None, f"the estimate is too wide, {span}")
        free = None if room is None else room()
        boundary = self._within(call, interval.low, interval.high, expected, free)
        if boundary is not None:
            return Judgement(None, f"{boundary} lies within the estimate, {span}")
        self.learned.trust.given(tenant, model)
        return Judgement(_count(interval, weighed))

    def estimate(self, weighed: Weighed | None) -> PromptCount | None:
        """An estimate whatever hangs on it; None where its kind is not learned."""
        interval = None if weighed is None else self.learned.ratios.interval(weighed)
        return None if interval is None or weighed is None else _count(interval, weighed)

    def learn(self, call: Call, weighed: Weighed, tokens: int) -> None:
        """An exact count of our own."""
        interval = self.learned.ratios.interval(weighed)
        far = interval is not None and interval.far_from(tokens)
        self.learned.trust.verified(call.tenant.name, call.model.name, far=far)
        self.learned.ratios.observe(weighed, tokens)

    def told(
        self,
        call: Call,
        prompt: PromptCount,
        expected: Expected,
        *,
        tokens: int,
        cached: int | None,
        pool: str,
        now: float,
    ) -> Told:
        """An engine's usage for `prompt`; `now` in seconds, monotonic. Warns of drift, see `drift`."""
        more = difference(prompt.tokens, tokens, cached)
        true = prompt.tokens + more
        ratio = true / max(prompt.tokens, 1)
        if prompt.exact:
            self.learned.drift.compare(call.model.name, pool, prompt.tokens, more, call.model.drift_warn, now)
            return Told(ratio, None)
        verification: Verification = "within"
        if prompt.low is None or not prompt.low <= true <= prompt.tokens + prompt.error:
            low, high = sorted((prompt.tokens, true))
            verification = "crossed" if self._within(call, low, high, expected, None) else "outside"
        if prompt.weighed is not None:
            if prompt.low is not None:
                interval = Interval(prompt.low, prompt.tokens, prompt.tokens + prompt.error)
                self.learned.trust.verified(call.tenant.name, call.model.name, far=interval.far_from(true))
            self.learned.ratios.observe(prompt.weighed, true)
        return Told(ratio, verification)

    def reason(self, call: Call, prompt: PromptCount, expected: Expected, room: Room | None) -> str:
        """Why the tier of `prompt` answered, for people."""
        if prompt.why or prompt.low is None:
            return prompt.why
        span = f"estimate {prompt.low}..{prompt.tokens + prompt.error} tokens"
        boundaries = self._boundaries.get(call.model.name)
        if boundaries is None:
            return span
        try:
            low, high = _ends(prompt.low, prompt.tokens + prompt.error, expected)
        except GatewayError:
            return span
        free = None if room is None else room()
        if (within := boundaries.within(call, low, high, free)) is not None:
            return f"{span}, within which lies {within}"
        nearest = boundaries.nearest(low, high, free)
        if nearest is None:
            return f"{span}; nothing depends on it"
        return f"{span}, {nearest.at} from the nearest boundary, {nearest.name}"

    def statistics(self) -> LearningStatistics:
        return self.learned.ratios.statistics()

    def _within(self, call: Call, low: int, high: int, expected: Expected, room: int | None) -> str | None:
        boundaries = self._boundaries.get(call.model.name)
        if boundaries is None:
            return "something unknown"
        try:
            ends = _ends(low, high, expected)
        except GatewayError:
            return "a refusal"
        return boundaries.within(call, *ends, room)


def _ends(low: int, high: int, expected: Expected) -> tuple[Estimate, Estimate]:
    return expected(_exactly(low)), expected(_exactly(high))


def _exactly(tokens: int) -> PromptCount:
    return PromptCount(tokens, exact=True, source="", longest=tokens)


def _count(interval: Interval, weighed: Weighed) -> PromptCount:
    return PromptCount(
        interval.tokens,
        exact=False,
        source="learned bytes/token",
        longest=interval.tokens,
        error=interval.high - interval.tokens,
        low=interval.low,
        weighed=weighed,
    )
