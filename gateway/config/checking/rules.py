"""`rules` all together: names, what no rule takes, pools and loans that nothing leads to."""

import itertools
from collections.abc import Container

from gateway.config.checking.chains import ChainChecks, chain_names
from gateway.config.checking.checks import Checks
from gateway.config.checking.overload import OverloadChecks
from gateway.config.coverage import coverage
from gateway.config.positions import KeyPath
from gateway.config.snapshot import ANONYMOUS, When


class RuleChecks(Checks):
    def check(self, conditions: tuple[When | None, ...]) -> None:
        chains, overload = ChainChecks.like(self), OverloadChecks.like(self)
        tenants = {*self._file.tenants, ANONYMOUS.name}
        covered = coverage(conditions, self._file.models, tenants)
        served: set[str] = set()
        used: set[str] = set()
        followed: set[tuple[str, str, str | None]] = set()
        names: dict[str, KeyPath] = {}
        for rule, condition, reaching in zip(self._file.rules, conditions, covered.reaching, strict=True):
            path = (*rule.path, "name")
            if rule.item.name and (first := names.setdefault(rule.item.name, path)) != path:
                line = self._report.line(first)
                self._report.value_error(path, f"is the name of a rule already, in line {line}")
            if (
                rule.item.after_ms
                and self._sound(rule.path, "on", "after_ms")
                and "overloaded" not in rule.item.on
            ):
                self._report.warn((*rule.path, "after_ms"), "has no effect unless `on` has overloaded")
            hops = tuple(chains.hops(rule))
            used.update(pool for _, pool, _ in hops)
            chains.check_splits(rule)
            used.update(overload.check(rule.item.overload, rule.path, [pool for _, pool, _ in hops]))
            if rule.item.mirror is not None:
                used.add(rule.item.mirror.pool)
                chains.check_mirror(rule, rule.item.mirror, reaching)
            followed.update(
                (later, pool, other)
                for (_, pool, other), (_, later, its) in itertools.combinations(hops, 2)
                if other == its
            )
            chains.check_repeats(hops, condition)
            if condition is None:
                continue
            if not reaching and self._file.models:
                message = (
                    "this rule never matches: rules above take all it asks for, or its bounds exclude all"
                )
                self._report.warn(rule.path, message)
            elif not condition.model:
                chains.check_catch_all(rule, hops, reaching)
            else:
                chains.check_named(hops, condition.model)
            served |= {
                model for model in reaching if any(self._can(pool, other or model) for _, pool, other in hops)
            }
        for priority in self._file.classes.values():
            used.update(overload.check(priority.item.overload, priority.path, None))
        if self._all_known(conditions):
            self._unserved(served, covered.untaken)
            for name, pool in self._file.pools.items():
                if name not in used:
                    self._report.warn(pool.path, "no rule sends anything to this pool")
        self._loans({(lender, borrower) for lender, borrower, _ in followed}, self._all_known(conditions))

    def _loans(self, followed: Container[tuple[str, str]], all_known: bool) -> None:
        """`lends_to` names other pools, each once; `followed`: which pool comes after which in some chain."""
        for name, pool in self._file.pools.items():
            if not self._sound(pool.path, "lends_to"):
                continue
            for index, other in enumerate(pool.item.lends_to):
                path = (*pool.path, "lends_to", index)
                if other == name:
                    self._report.value_error(path, "is this pool itself")
                elif other in pool.item.lends_to[:index]:
                    self._report.value_error(path, "is named twice")
                elif self._is_pool(path, other) and all_known and (name, other) not in followed:
                    message = f"no rule's chain goes on from {other} to {name}: nothing is lent"
                    self._report.warn(path, message)

    def _all_known(self, conditions: tuple[When | None, ...]) -> bool:
        """Whether rules and pools were read wholly enough to say what is absent from them."""
        return (
            not self._file.unreadable
            and None not in conditions
            and all(self._sound(rule.path, "pools") for rule in self._file.rules)
            and all(self._sound(pool.path, "serves") for pool in self._file.pools.values())
            and all(name in self._file.pools for rule in self._file.rules for name in chain_names(rule.item))
        )

    def _unserved(self, served: set[str], untaken: frozenset[str]) -> None:
        for name, model in self._file.models.items():
            if name not in served:
                self._report.error(model.path, "no rule sends this model to a pool that serves it", key=True)
            elif name in untaken:
                self._report.warn(model.path, "some requests for this model match no rule, and get an error")
