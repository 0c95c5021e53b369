"""`overload` of rules and classes: steps that take something, and pools that can answer."""

from collections.abc import Iterator, Sequence

from gateway.config import schema
from gateway.config.checking.checks import Checks
from gateway.config.positions import KeyPath


class OverloadChecks(Checks):
    def check(
        self, steps: Sequence[schema.OverloadStep], owner: KeyPath, chain: Sequence[str] | None
    ) -> Iterator[str]:
        """Checks each step's own sense, and who can answer with its model; gives the pools that it names.

        `chain`: the rule's pools; None for a class, which has none.
        """
        for index, step in enumerate(steps):
            path = (*owner, "overload", index)
            if not self._report.sound(path):
                continue
            if step.when.queue_wait_ms is None and step.when.waiting is None:
                self._report.error((*path, "when"), "names no signal: queue_wait_ms, waiting, or both")
            if all(taken is None for taken in (step.max_tokens, step.n, step.priority_class, step.model)):
                self._report.error(path, "takes nothing: one or more of max_tokens, n, class, model")
            if step.model is None:
                if step.pools is not None:
                    message = "there is no `model` that they would serve"
                    self._report.error((*path, "pools"), message, key=True)
                continue
            if step.model not in self._file.models:
                if "models" not in self._file.unreadable:
                    self._report.unknown((*path, "model"), "a declared model", self._file.models)
                continue
            if step.pools is None:
                known = [name for name in chain or () if name in self._file.pools]
                if chain is None or not any(self._can(name, step.model) for name in known):
                    where = "a class has no chain" if chain is None else "no pool of the chain serves it"
                    self._report.value_error((*path, "model"), f"has no pools: {where}", "add `pools`")
                continue
            for place, name in enumerate(step.pools):
                at = (*path, "pools", place)
                if self._is_pool(at, name):
                    yield name
                    if not self._can(name, step.model):
                        self._does_not_serve(at, name, [step.model])
