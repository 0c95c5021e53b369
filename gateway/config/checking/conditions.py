"""`rules`, their `when`: conditions with names resolved."""

from collections.abc import Mapping

from gateway.config import schema
from gateway.config.checking.checks import Checks
from gateway.config.positions import KeyPath
from gateway.config.reading import Read
from gateway.config.snapshot import ANONYMOUS, PriorityClass, Range, When


def span(written: schema.Range | None) -> Range | None:
    if written is None:
        return None
    return Range(lt=written.lt, lte=written.lte, gt=written.gt, gte=written.gte)


class ConditionChecks(Checks):
    def check(self, read: Read[schema.Rule], aliases: Mapping[str, str]) -> When | None:
        """The rule's condition with names resolved, or None where it cannot be known."""
        when, path, sound = read.item.when, (*read.path, "when"), self._sound(read.path, "when")
        models = []
        for index, name in enumerate(when.model or ()):
            resolved = aliases.get(name, name)
            if resolved in self._file.models:
                models.append(resolved)
                continue
            sound = False
            if "models" not in self._file.unreadable:
                known = {*self._file.models, *aliases}
                self._report.unknown(self._report.item((*path, "model"), index), "a declared model", known)
        tenants = {*self._file.tenants, ANONYMOUS.name}
        for index, name in enumerate(when.tenant or ()):
            if name not in tenants:
                sound = False
                if "tenants" not in self._file.unreadable:
                    self._report.unknown(self._report.item((*path, "tenant"), index), "a tenant", tenants)
        for key, bounds in (
            ("estimated_total_tokens", when.estimated_total_tokens),
            ("prompt_tokens", when.prompt_tokens),
        ):
            if span(bounds) == Range() and self._sound(path, key):
                self._report.error((*path, key), "names no bound: one or more of lt, lte, gt, gte")
                sound = False
        if not self._clamping(when.estimated_total_tokens, (*path, "estimated_total_tokens")):
            sound = False
        if not sound:
            return None
        return When(
            model=tuple(dict.fromkeys(models)),
            tenant=tuple(when.tenant or ()),
            priority_class=tuple(PriorityClass[name] for name in when.priority_class or ()),
            estimated_total_tokens=span(when.estimated_total_tokens),
            if_clamped=when.estimated_total_tokens.if_clamped if when.estimated_total_tokens else None,
            prompt_tokens=span(when.prompt_tokens),
            stream=when.stream,
        )

    def _clamping(self, written: schema.EstimateRange | None, path: KeyPath) -> bool:
        """Whether `if_clamped`, where it is given, has a bound to clamp to."""
        least, bounds = (None, None) if written is None else (written.if_clamped, span(written))
        if least is None or bounds is None or bounds == Range() or not self._sound(path, "lt", "lte"):
            return True
        if bounds.most is None:
            self._report.error((*path, "if_clamped"), "there is no bound to clamp to: lt or lte", key=True)
            return False
        if least >= bounds.most:
            self._report.value_error((*path, "if_clamped"), f"leaves no prompt below {bounds.most + 1}")
            return False
        return True
