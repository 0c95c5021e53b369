"""`rules`, their `pools`: chains of pools that serve what reaches them."""

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from gateway.config import schema
from gateway.config.checking.checks import Checks
from gateway.config.positions import KeyPath
from gateway.config.problems import nearest
from gateway.config.reading import Read
from gateway.config.snapshot import When

Hop: TypeAlias = tuple[KeyPath, str, str | None]
"""A pool of a chain: where it is written, its name, and the model it answers with, where that is another."""


class ChainChecks(Checks):
    def hops(self, rule: Read[schema.Rule]) -> Iterator[Hop]:
        """Each pool of the chain that exists: where it is written, its name, the model it answers with."""
        for index, entry in enumerate(rule.item.pools):
            path = (*rule.path, "pools", index)
            if isinstance(entry, str):
                if self._is_pool(path, entry):
                    yield path, entry, None
                continue
            if isinstance(entry, dict):
                for name in entry:
                    at = (*path, name)
                    if name in self._file.pools:
                        yield at, name, None
                    elif "pools" not in self._file.unreadable:
                        hint = nearest(name, self._file.pools)
                        self._report.error(at, f"{name!r} is not a pool", hint, key=True)
                continue
            declared = entry.model in self._file.models
            if not declared and "models" not in self._file.unreadable:
                self._report.unknown((*path, "model"), "a declared model", self._file.models)
            for place, name in enumerate(entry.pools):
                at = (*path, "pools", place)
                if not self._is_pool(at, name):
                    continue
                if declared and not self._can(name, entry.model):
                    self._does_not_serve(at, name, [entry.model])
                yield at, name, entry.model

    def check_splits(self, rule: Read[schema.Rule]) -> None:
        """Neighbours with weights: some of them must get something."""
        if not self._sound(rule.path, "pools"):
            return
        entries = list(enumerate(rule.item.pools))
        split = False
        for weighted, run in itertools.groupby(entries, key=lambda each: isinstance(each[1], dict)):
            if not weighted:
                continue
            split = True
            places = list(run)
            weights = [part for _, entry in places if isinstance(entry, dict) for part in entry.values()]
            path = (*rule.path, "pools", places[0][0])
            if not any(weights):
                self._report.error(path, "no pool of this split gets anything: all weights are 0")
            elif len(weights) == 1:
                self._report.warn(path, "a weight has no effect unless a neighbour has one too")
        if not split and rule.item.sticky != "key" and self._sound(rule.path, "sticky"):
            self._report.warn((*rule.path, "sticky"), "has no effect unless `pools` has weights")

    def check_mirror(self, rule: Read[schema.Rule], mirror: schema.Mirror, reaching: frozenset[str]) -> None:
        path = (*rule.path, "mirror", "pool")
        if not self._sound(rule.path, "mirror") or not self._is_pool(path, mirror.pool):
            return
        if reaching and not any(self._can(mirror.pool, model) for model in reaching):
            self._does_not_serve(path, mirror.pool, sorted(reaching))
        elif mirror.pool in chain_names(rule.item):
            self._report.warn(path, f"pool {mirror.pool} is in this chain too: it computes answers twice")

    def check_repeats(self, hops: Iterable[Hop], condition: When | None) -> None:
        own = condition.model[0] if condition is not None and len(condition.model) == 1 else None
        seen: set[tuple[str, str | None]] = set()
        for path, pool, other in hops:
            hop = (pool, other or own)
            if hop in seen:
                self._report.error(path, f"pool {pool} is in this chain already, for the same model")
            seen.add(hop)

    def check_named(self, hops: Iterable[Hop], models: tuple[str, ...]) -> None:
        for path, pool, other in hops:
            if other is None and (lacking := [model for model in models if not self._can(pool, model)]):
                self._does_not_serve(path, pool, lacking)

    def check_catch_all(
        self,
        rule: Read[schema.Rule],
        hops: tuple[Hop, ...],
        reaching: frozenset[str],
    ) -> None:
        for path, pool, other in hops:
            if other is None and not any(self._can(pool, model) for model in reaching):
                message = f"pool {pool} serves none of the models that reach this rule"
                self._report.error(path, message, f"they are {', '.join(sorted(reaching))}")
        lost = [
            m for m in sorted(reaching) if not any(self._can(pool, other or m) for _, pool, other in hops)
        ]
        if lost and hops and self._sound(rule.path, "pools"):
            message = f"requests for {', '.join(lost)} reach this rule, but no pool of its chain serves them"
            self._report.warn((*rule.path, "pools"), message)


def chain_names(rule: schema.Rule) -> Iterator[str]:
    for entry in rule.pools:
        if isinstance(entry, schema.OtherModel):
            yield from entry.pools
        elif isinstance(entry, dict):
            yield from entry
        else:
            yield entry
