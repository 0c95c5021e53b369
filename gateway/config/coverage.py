"""Which requests each rule gets, when rules are tried in order and the first match wins.

A request is a point of a finite grid: its model, tenant, class, whether it streams, and which interval its
two token counts fall in (the intervals between all bounds that the rules name). A condition is a box of
that grid. What a rule gets is its box without the boxes of the rules above it.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from gateway.config.snapshot import PriorityClass, Range, When

Box: TypeAlias = tuple[frozenset[Hashable], ...]
"""One set of coordinates for each dimension; the first is the model."""

_MOST_PIECES = 5000
"""More than that is not followed: the rules below then count as reachable."""


@dataclass(frozen=True, slots=True)
class Coverage:
    reaching: tuple[frozenset[str], ...]
    """For each rule, the models of which some request can reach it and match."""
    untaken: frozenset[str]
    """Models of which some request matches no rule."""


def coverage(conditions: Sequence[When | None], models: Iterable[str], tenants: Iterable[str]) -> Coverage:
    """`None` is a condition that could not be read: it gets nothing and takes nothing."""
    grid = _Grid(conditions, frozenset(models), frozenset(tenants))
    left = [grid.box(When())]
    reaching = []
    for condition in conditions:
        if condition is None:
            reaching.append(frozenset[str]())
            continue
        box, widest = grid.box(condition), grid.box(_clamping(condition))
        reaching.append(_models(common for piece in left if (common := _common(piece, widest))))
        if len(left) < _MOST_PIECES:
            left = [rest for piece in left for rest in _without(piece, box)]
    return Coverage(tuple(reaching), _models(left))


def _clamping(condition: When) -> When:
    """What a condition may take at most: with `if_clamped`, of requests above its bound those that are cut
    down to it. What it surely takes is its range alone."""
    span = condition.estimated_total_tokens
    if condition.if_clamped is None or span is None:
        return condition
    return replace(condition, estimated_total_tokens=replace(span, lt=None, lte=None))


def _models(boxes: Iterable[Box]) -> frozenset[str]:
    return frozenset(str(model) for box in boxes for model in box[0])


def _common(box: Box, other: Box) -> Box | None:
    sides = []
    for mine, theirs in zip(box, other, strict=True):
        side = mine & theirs
        if not side:
            return None  # most pairs part at the model already
        sides.append(side)
    return tuple(sides)


def _without(box: Box, other: Box) -> list[Box]:
    """`box` minus `other`, as boxes that do not overlap."""
    common = _common(box, other)
    if common is None:
        return [box]
    pieces = []
    for index, (mine, theirs) in enumerate(zip(box, other, strict=True)):
        if outside := mine - theirs:
            pieces.append((*common[:index], outside, *box[index + 1 :]))
    return pieces


class _Grid:
    def __init__(
        self, conditions: Sequence[When | None], models: frozenset[str], tenants: frozenset[str]
    ) -> None:
        self._models = models
        self._tenants = tenants
        known = [condition for condition in conditions if condition is not None]
        self._estimated = _cuts(condition.estimated_total_tokens for condition in known)
        self._prompt = _cuts(condition.prompt_tokens for condition in known)

    def box(self, condition: When) -> Box:
        return (
            frozenset(condition.model) or self._models,
            frozenset(condition.tenant) or self._tenants,
            frozenset(condition.priority_class) or frozenset(PriorityClass),
            frozenset((True, False) if condition.stream is None else (condition.stream,)),
            _cells(self._estimated, condition.estimated_total_tokens),
            _cells(self._prompt, condition.prompt_tokens),
        )


def _bounds(span: Range) -> tuple[int, int | None]:
    """The integers of a range, from the first to one after the last."""
    lows = [0]
    if span.gt is not None:
        lows.append(span.gt + 1)
    if span.gte is not None:
        lows.append(span.gte)
    highs = []
    if span.lt is not None:
        highs.append(span.lt)
    if span.lte is not None:
        highs.append(span.lte + 1)
    return max(lows), min(highs, default=None)


def _cuts(spans: Iterable[Range | None]) -> tuple[int, ...]:
    """Where intervals begin, in order."""
    cuts = {0}
    for span in spans:
        if span is not None:
            low, high = _bounds(span)
            cuts.update((low,) if high is None else (low, high))
    return tuple(sorted(cuts))


def _cells(cuts: tuple[int, ...], span: Range | None) -> frozenset[Hashable]:
    """The intervals that make up `span`, named by their first number."""
    low, high = (0, None) if span is None else _bounds(span)
    return frozenset(cut for cut in cuts if low <= cut and (high is None or cut < high))
