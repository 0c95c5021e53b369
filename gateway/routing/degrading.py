"""Brown-out: what requests lose while their pool's line is long, instead of being refused.

Between the rule and the limits, so that what is reserved, queued and sent is the lesser request. The steps
of the rule and of the request's class that are on (queueing/brownout.py) hold together: of bounds the
strictest, of models that of the last step, a rule's before a class's. A request that loses nothing by them,
since it asks for less anyway, is not degraded.

    max_tokens   bounds the output, as the client's own would
    n            bounds the choices, and `best_of`
    class        lowers the class: it waits behind others, and longer, where only the higher one is shed
    model        puts pools with another model before the chain, if one of them can take the request

The rule stays: nothing is routed anew because it has become smaller. The line that counts is that of the
first pool of the chain that can take the request; where the rule goes on from one that is `overloaded`, the
shortest of those lines that it may go on to with the same model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from backends.contract import GenerateRequest
from gateway.call import Call, choices_computed
from gateway.config.snapshot import Hop, OverloadStep, PriorityClass, Snapshot
from gateway.queueing.brownout import Ladder, Line, Rung, Signals, signals_of
from gateway.routing.router import Route, Target, target_of
from gateway.tokens.bounding import lessened

__all__ = ["BY", "Brownout", "Cuts", "Degraded", "LadderRow", "StepRow", "cuts_of"]

BY = "overload"
"""What bounded the output, where it was a step."""


@dataclass(frozen=True, slots=True)
class Cuts:
    """What several steps take together."""

    max_tokens: int | None = None
    n: int | None = None
    priority_class: PriorityClass | None = None
    model: str | None = None
    pools: tuple[str, ...] = ()


def cuts_of(steps: Sequence[OverloadStep]) -> Cuts:
    """The strictest of each bound; the model of the last step that names one."""
    last = next((step for step in reversed(steps) if step.model is not None), OverloadStep())
    return Cuts(
        max_tokens=min((step.max_tokens for step in steps if step.max_tokens is not None), default=None),
        n=min((step.n for step in steps if step.n is not None), default=None),
        priority_class=min(
            (step.priority_class for step in steps if step.priority_class is not None), default=None
        ),
        model=last.model,
        pools=last.pools,
    )


@dataclass(frozen=True, slots=True)
class Degraded:
    """A request that has lost something."""

    call: Call
    route: Route
    changes: Mapping[str, str | int]
    """What it has lost, by the key of the step: what is left."""
    causes: tuple[tuple[str, int], ...]
    """Whose steps, `rule NAME` or `class NAME`, and the number of the last one that is on."""
    signals: Signals

    def __str__(self) -> str:
        """For the header and the log: a dictionary in the form of RFC 8941."""
        facts = [
            f'{key}="{left}"' if key == "model" else f"{key}={left}" for key, left in self.changes.items()
        ]
        by = ", ".join(f"{of} step {number}" for of, number in self.causes)
        facts += [
            f'by="{by}"',
            f"queue_wait_ms={self.signals.queue_wait * 1e3:.0f}",
            f"waiting={self.signals.waiting}",
        ]
        return ", ".join(facts)


@dataclass(frozen=True, slots=True)
class StepRow:
    """One step for people."""

    step: int
    on: bool
    for_s: float | None
    """Seconds since it went on, or off; None: it was never on."""
    when: Mapping[str, float]
    takes: Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class LadderRow:
    """The steps of one `overload:` at one pool, as they stand for one class."""

    of: str
    pool: str
    priority_class: str
    active: int
    """The number of the last step that is on; 0: none."""
    queue_wait_ms: float
    waiting: int
    steps: tuple[StepRow, ...]


_Place = tuple[str, str, PriorityClass]
"""Whose steps, at the line of which pool, as which class sees it."""


class Brownout:
    """The steps of one configuration and how they stand."""

    def __init__(self, lines: Mapping[str, Line], clock: Callable[[], float]) -> None:
        """`lines` by pool; one that is not there is taken for empty."""
        self._lines = lines
        self._clock = clock
        self._ladders: dict[_Place, Ladder] = {}
        self._reach: dict[_Place, list[str]] = {}
        """The pools of which the shortest line counted when it was last looked at."""

    def degrade(self, snapshot: Snapshot, call: Call, route: Route) -> Degraded | None:
        """What is left of the request; None where it loses nothing."""
        if not (route.rule.overload or snapshot.overload):
            return None
        looked = self._look(snapshot, call, route)
        if looked is None or not call.degradable:
            return None
        ladders, signals = looked
        active = [(of, rungs) for of, ladder in ladders if (rungs := ladder.active)]
        if not active:
            return None
        # Classes first: a rule's model is the last one then.
        cuts = cuts_of([rung.step for _, rungs in reversed(active) for rung in rungs])
        lesser, way, changes = _cut(snapshot, call, route, cuts)
        if not changes:
            return None
        causes = tuple(
            (of, rungs[-1].number)
            for of, rungs in active
            if len(active) == 1 or _cut(snapshot, call, route, cuts_of([rung.step for rung in rungs]))[2]
        )
        return Degraded(lesser, way, changes, causes, signals)

    def rows(self) -> Iterator[LadderRow]:
        """All steps that were looked at so far, as the next request would find them. Switches none."""
        now = self._clock()
        for place, ladder in list(self._ladders.items()):
            signals = self._shortest(self._reach[place], place[2])
            yield _row(place, ladder.seen(now, signals), signals, now)

    def rows_for(self, snapshot: Snapshot, call: Call, route: Route) -> list[LadderRow]:
        """The steps that hold for a request, as it would find them. Switches none."""
        pools = _pools(route)
        if not pools:
            return []
        now, signals, rows = self._clock(), self._shortest(pools, call.priority_class), []
        for of, steps in _written(snapshot, call, route):
            place = (of, pools[0], call.priority_class)
            ladder = self._ladders.get(place) or Ladder(steps)
            rows.append(_row(place, ladder.seen(now, signals), signals, now))
        return rows

    def _look(
        self, snapshot: Snapshot, call: Call, route: Route
    ) -> tuple[list[tuple[str, Ladder]], Signals] | None:
        """The rule's steps and the class's, where there are any, and what they were just shown."""
        pools = _pools(route)
        if not pools:
            return None
        signals = self._shortest(pools, call.priority_class)
        now = self._clock()
        ladders = []
        for of, steps in _written(snapshot, call, route):
            place = (of, pools[0], call.priority_class)
            ladder = self._ladders.get(place)
            if ladder is None:
                ladder = self._ladders[place] = Ladder(steps)
            self._reach[place] = pools
            ladder.look(now, signals)
            ladders.append((of, ladder))
        return ladders, signals

    def _shortest(self, pools: Sequence[str], priority: PriorityClass) -> Signals:
        return min((self._signals(pool, priority) for pool in pools), key=lambda each: each.queue_wait)

    def _signals(self, pool: str, priority: PriorityClass) -> Signals:
        line = self._lines.get(pool)
        return Signals() if line is None else signals_of(line, priority)


def _written(snapshot: Snapshot, call: Call, route: Route) -> Iterator[tuple[str, tuple[OverloadStep, ...]]]:
    """The steps that may hold for the request, by whose they are."""
    priority = call.priority_class
    for of, steps in (
        (f"rule {route.rule.name}", route.rule.overload),
        (f"class {priority.name}", snapshot.overload.get(priority, ())),
    ):
        if steps:
            yield of, steps


def _pools(route: Route) -> list[str]:
    """The pools whose lines count: the first that can take the request, and those it may go on to at once.

    A rule with `after_ms` keeps it in the first one's line for so long: then that line counts alone.
    """
    usable = [target for target in route.chain if target.usable]
    if "overloaded" not in route.rule.on or route.rule.after:
        del usable[1:]
    return [target.pool.name for target in usable if target.model is usable[0].model]


def _cut(
    snapshot: Snapshot, call: Call, route: Route, cuts: Cuts
) -> tuple[Call, Route, dict[str, str | int]]:
    """The lesser call, its route, and what became less."""
    changes: dict[str, str | int] = {}
    estimate = route.estimate
    most = None
    if cuts.max_tokens is not None and _asks_for_more(call, route, cuts.max_tokens):
        most = changes["max_tokens"] = cuts.max_tokens
    if cuts.n is not None and choices_computed(call) > cuts.n:
        changes["n"] = cuts.n
        call = replace(call, request=_with_choices(call, cuts.n))
    if cuts.priority_class is not None and call.priority_class > cuts.priority_class:
        changes["class"] = cuts.priority_class.name
        call = replace(call, priority_class=cuts.priority_class)
    if changes:
        estimate = lessened(estimate, most, BY, choices_computed(call) * estimate.prompt.prompts)
    others = _others(snapshot, route, call, cuts)
    hops = [Hop(target.pool.name, _other(target, call)) for target in route.chain]
    hops = [hop for hop in hops if hop not in others]
    chain = tuple(target_of(snapshot, route.rule, hop, call, estimate) for hop in [*others, *hops])
    if cuts.model is not None and any(target.usable for target in chain[: len(others)]):
        changes["model"] = cuts.model
    else:
        chain = chain[len(others) :]
    return call, replace(route, chain=chain, estimate=estimate), changes


def _asks_for_more(call: Call, route: Route, most: int) -> bool:
    """Whether an answer may become longer than `most` tokens."""
    bound = route.estimate.bound
    if bound.asked is not None:
        return bound.tokens is None or bound.tokens > most
    default = call.model.max_tokens.default
    return all(tokens is None or tokens > most for tokens in (bound.tokens, default))


def _with_choices(call: Call, most: int) -> GenerateRequest:
    request, parameters = call.request, dict(call.request.parameters)
    if "best_of" in parameters:
        parameters["best_of"] = min(parameters["best_of"], most)
    return replace(request, n=min(request.n, most), parameters=parameters)


def _others(snapshot: Snapshot, route: Route, call: Call, cuts: Cuts) -> list[Hop]:
    """Entries with the model of the steps that the chain does not begin with anyway."""
    if cuts.model is None or cuts.model == call.model.name:
        return []
    first = next((target for target in route.chain if target.usable), None)
    if first is not None and first.model.name == cuts.model:
        return []
    return [Hop(pool, cuts.model) for pool in cuts.pools]


def _other(target: Target, call: Call) -> str | None:
    return None if target.model is call.model else target.model.name


def _row(place: _Place, ladder: Ladder, signals: Signals, now: float) -> LadderRow:
    of, pool, priority = place
    return LadderRow(
        of=of,
        pool=pool,
        priority_class=priority.name,
        active=ladder.highest,
        queue_wait_ms=round(signals.queue_wait * 1e3, 1),
        waiting=signals.waiting,
        steps=tuple(_step_row(rung, now) for rung in ladder.rungs()),
    )


def _step_row(rung: Rung, now: float) -> StepRow:
    step = rung.step
    when: dict[str, float] = {}
    if step.queue_wait is not None:
        when["queue_wait_ms"] = step.queue_wait * 1e3
    if step.waiting is not None:
        when["waiting"] = step.waiting
    takes: dict[str, str | int] = {}
    if step.max_tokens is not None:
        takes["max_tokens"] = step.max_tokens
    if step.n is not None:
        takes["n"] = step.n
    if step.priority_class is not None:
        takes["class"] = step.priority_class.name
    if step.model is not None:
        takes["model"] = step.model
    since = None if rung.since is None else round(now - rung.since, 3)
    return StepRow(step=rung.number, on=rung.on, for_s=since, when=when, takes=takes)
