"""Where a prompt's length changes a decision: boundaries, and whether one lies within an estimate. Pure.

What is decided by length: which rule takes the request (`prompt_tokens`, `estimated_total_tokens`), which
pools of a chain can take it and whether its output is cut there (`limits`, the model's context, also of the
other models in the chain), and whether a token limit still has room. An estimate is as good as a count where
all of these are the same at both ends of its interval, and no rule's threshold lies between them.

`Boundaries.of` collects what matters for one model, once per configuration. A request asks `within`, with the
estimates of its cost at both ends, made as if each were an exact count:

    rules       thresholds are looked up between the ends
    pools       what fits at one end must fit at the other, and be sent the same bound; lengths that fit fall,
                bounds only shrink as prompts grow, so nothing can differ between equal ends
    limits      the cost at the upper end must pass: nobody is refused on an estimate

Rules are taken whole, whoever they are for: that can only make a count more exact than it had to be.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from gateway.call import Call, Estimate
from gateway.config.snapshot import Model, PoolLimits, Range, Rule, Snapshot
from gateway.errors import GatewayError
from gateway.tokens.bounding import PoolFit, bound_output, fit_pool

__all__ = ["Boundaries", "Cut"]


@dataclass(frozen=True, slots=True, order=True)
class Cut:
    """A threshold: values below `at` are on one side, `at` and above on the other."""

    at: int
    name: str
    """For people, e.g. `rule ru-short (4096)`."""


@dataclass(frozen=True, slots=True)
class Place:
    """A pool of a chain, with the model that answers there. Pools with equal limits are one place."""

    name: str
    model: Model
    limits: PoolLimits


@dataclass(frozen=True, slots=True)
class Clamp:
    """A rule that bounds the output of requests that pass it only so: to what the very count leaves."""

    name: str
    most: int
    """Its bound on the estimated total."""
    least: int
    """Output tokens per choice that must be left."""


@dataclass(frozen=True, slots=True)
class Boundaries:
    """All that may depend on the length of a prompt for one model."""

    prompt: tuple[Cut, ...] = ()
    """Thresholds on the prompt's tokens, ascending."""
    total: tuple[Cut, ...] = ()
    """On the estimated total."""
    places: tuple[Place, ...] = ()
    clamps: tuple[Clamp, ...] = ()

    @classmethod
    def of(cls, snapshot: Snapshot, model: Model) -> "Boundaries":
        prompt: set[Cut] = set()
        total: set[Cut] = set()
        places: dict[tuple[str, int | None, int | None], Place] = {}
        clamps: list[Clamp] = []
        for rule in snapshot.rules:
            if rule.when.model and model.name not in rule.when.model:
                continue
            prompt.update(_cuts(rule, rule.when.prompt_tokens))
            total.update(_cuts(rule, rule.when.estimated_total_tokens))
            span, least = rule.when.estimated_total_tokens, rule.when.if_clamped
            if span is not None and span.most is not None and least is not None:
                clamps.append(Clamp(f"rule {rule.name} ({span.most}, by a bound)", span.most, least))
            for hop in rule.chain:
                pool = snapshot.pools[hop.pool]
                answering = model if hop.model is None else snapshot.models[hop.model]
                key = (answering.name, pool.limits.prompt, pool.limits.total)
                places.setdefault(key, Place(f"pool {pool.name}", answering, pool.limits))
            if _takes_all(rule):
                break  # later rules never see this model
        return cls(tuple(sorted(prompt)), tuple(sorted(total)), tuple(places.values()), tuple(clamps))

    def within(self, call: Call, low: Estimate, high: Estimate, room: int | None) -> str | None:
        """The boundary that lies between two estimates of one call's cost, made with the prompt exactly
        `low.prompt` and `high.prompt`; None where every decision is the same. `room` is what the tightest
        token limit still grants."""
        if (cut := _between(self.prompt, low.prompt.tokens, high.prompt.tokens)) is not None:
            return cut.name
        if low.output != high.output and high.choices > 1:
            return "the output that fits"  # the total may fall as the prompt grows
        least, most = totals(low, high)
        if (cut := _between(self.total, least, most)) is not None:
            return cut.name
        if room is not None and most > room:
            return f"what the limits leave ({room})"
        if low.bound.clamped is not high.bound.clamped or (
            low.bound.asked is not None and low.bound.tokens != high.bound.tokens
        ):  # what is asked for and cut by the context is cut by the very count
            return f"context ({call.model.context})"
        for clamp in self.clamps:
            if most > clamp.most and clamp.most - low.prompt.tokens >= low.choices * clamp.least:
                return clamp.name
        for place in self.places:
            if not _same_fit(place, call, low, high):
                return place.name
        return None

    def nearest(self, low: Estimate, high: Estimate, room: int | None) -> Cut | None:
        """The boundary with the least distance from the interval, which holds none; `at` is that distance,
        in tokens."""
        return min(self._distances(low, high, room), default=None)

    def _distances(self, low: Estimate, high: Estimate, room: int | None) -> Iterator[Cut]:
        least, most = totals(low, high)
        for cuts, below, above in (
            (self.prompt, low.prompt.tokens, high.prompt.tokens),
            (self.total, least, most),
        ):
            for cut in cuts:
                yield Cut(cut.at - above if cut.at > above else below - cut.at + 1, cut.name)
        if room is not None:
            yield Cut(room - most + 1, f"limits ({room})")
        for place in self.places:
            ends = [
                (f"{place.name}, prompt ({place.limits.prompt})", place.limits.prompt, 0),
                (f"{place.name}, total ({place.limits.total})", place.limits.total, high.bound.tokens or 0),
                (f"context ({place.model.context})", place.model.context, high.bound.tokens or 0),
            ]
            for name, limit, output in ends:
                if limit is not None:
                    for at in {limit, limit - output}:
                        below, above = low.prompt.tokens, high.prompt.tokens
                        if at >= above or at < below:
                            yield Cut(at - above + 1 if at >= above else below - at, name)


def totals(low: Estimate, high: Estimate) -> tuple[int, int]:
    """The least and the most that the estimated total may be between two estimates.

    Between them, the expected output changes twice at most: at the power of two where another length was
    learned, and where the context begins to bound it. Neither leads out of the range of its ends.
    """
    outputs = low.output, high.output
    return (
        low.prompt.tokens + low.choices * min(outputs),
        high.prompt.tokens + high.choices * max(outputs),
    )


def _cuts(rule: Rule, given: Range | None) -> Iterator[Cut]:
    if given is not None:
        for limit, after in ((given.lt, 0), (given.gte, 0), (given.lte, 1), (given.gt, 1)):
            if limit is not None:
                yield Cut(limit + after, f"rule {rule.name} ({limit})")


def _takes_all(rule: Rule) -> bool:
    when = rule.when
    return not (
        when.tenant
        or when.priority_class
        or when.stream is not None
        or when.prompt_tokens is not None
        or when.estimated_total_tokens is not None
    )


def _between(cuts: tuple[Cut, ...], low: int, high: int) -> Cut | None:
    """The first cut with `low` on one side and `high` on the other."""
    if not cuts:
        return None
    index = bisect_right(cuts, low, key=lambda cut: cut.at)
    return cuts[index] if index < len(cuts) and cuts[index].at <= high else None


def _same_fit(place: Place, call: Call, low: Estimate, high: Estimate) -> bool:
    """Whether the place takes the request at both ends or at neither, in the same way."""
    fits: list[PoolFit | None] = []
    for end in (low, high):
        bound = end.bound
        if place.model is not call.model:
            try:
                bound = bound_output(call.asked_max_tokens, place.model, call.tenant, end.prompt)
            except GatewayError:
                fits.append(None)
                continue
        fits.append(fit_pool(bound, place.model, place.limits, end.prompt))
    one, other = fits
    if one is None or other is None:
        # Refused at both ends, an estimate still passes where its prompt may yet fit the context
        # (bounding.bound_output): only beyond that is it sure.
        context, margin = place.model.context, place.model.max_tokens.margin
        return one is other and (context is None or low.prompt.longest >= context - margin)
    if (one.fits, one.clamped) != (other.fits, other.clamped):
        return False
    if one.sent == other.sent:
        return True
    # What is sent without having been asked for is less by the error of the estimate. All of that is kept
    # free where it is no more than what is left at the upper end (bounding._left keeps up to half).
    unasked = call.asked_max_tokens is None and one.sent is not None and other.sent is not None
    return unasked and (other.sent or 0) >= high.prompt.longest - low.prompt.longest
