"""`tenants`: classes, what they may reach, keys that are nobody else's."""

from gateway.config import schema
from gateway.config.checking.checks import Checks
from gateway.config.positions import KeyPath
from gateway.config.problems import nearest
from gateway.config.reading import Read
from gateway.config.snapshot import PriorityClass


class TenantChecks(Checks):
    def check(self, read: Read[schema.Tenant]) -> None:
        tenant, path = read.item, read.path
        if (
            PriorityClass[tenant.priority_class] > PriorityClass[tenant.max_class]
            and self._sound(path, "class", "max_class")
        ):  # fmt: skip
            at = (*path, "class") if tenant.priority_class != "standard" else (*path, "max_class")
            message = f"class {tenant.priority_class} is above max_class {tenant.max_class}"
            self._report.error(at, message)
        self._allow(tenant.allow, (*path, "allow"))

    def _allow(self, allow: schema.Allow, path: KeyPath) -> None:
        for index, pattern in enumerate(allow.models):
            literal = not set(pattern) & set("*?[")
            if literal and pattern not in self._file.models and "models" not in self._file.unreadable:
                at = self._report.item((*path, "models"), index)
                self._report.unknown(at, "a declared model", self._file.models)
        pools = self._file.pools.values()
        if "pools" in self._file.unreadable or not all(self._sound(pool.path, "labels") for pool in pools):
            return
        labels: dict[str, set[str]] = {}
        for pool in pools:
            for label, value in pool.item.labels.items():
                labels.setdefault(label, set()).add(value)
        for label, values in (allow.__pydantic_extra__ or {}).items():
            if label not in labels:
                message = f"no pool has a label {label!r}, so this would allow nothing"
                self._report.error((*path, label), message, nearest(label, {*labels, "models"}), key=True)
                continue
            for index, value in enumerate(values):
                if value not in labels[label]:
                    at = self._report.item((*path, label), index)
                    shown = self._report.shown(at)
                    self._report.warn(at, f"no pool has this label as {shown}", nearest(value, labels[label]))

    def check_keys(self) -> None:
        digests: dict[str, KeyPath] = {}
        for tenant in self._file.tenants.values():
            ids: dict[str, KeyPath] = {}
            for index, key in enumerate(tenant.item.keys):
                for known, name, path in (
                    (ids, key.id, (*tenant.path, "keys", index, "id")),
                    (digests, key.hash.lower(), (*tenant.path, "keys", index, "hash")),
                ):
                    if self._report.sound(path) and (first := known.setdefault(name, path)) != path:
                        self._report.error(path, f"the same as in line {self._report.line(first)}")
        readable = self._report.sound(("tenants",)) and self._report.sound(("server",))
        if readable and not digests and self._file.server.item.authentication == "keys":
            self._report.warn(("tenants",), "no tenant has a key, so every request will be answered 401")
