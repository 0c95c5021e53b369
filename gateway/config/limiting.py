"""Limits as they are written, in five places, brought into one list with one name each.

    limits:                       for all together, or `each` tenant, key, model, pool
    models.<name>.limits          for all together, on that model
    tenants.<name>.limits         for that tenant
    tenants.<name>.keys[].limits  for that key

A name is the place and the unit, `acme.tokens-per-minute`, unless one is given. Names make the keys under
which the use of a limit is kept, so they do not change when a list is put into another order: only limits of
the same place, unit, period and scope are told apart by a number. That goes by their order, so there is a
warning; and a name that is given must not be one that is made, lest it rename the limit that had it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from gateway.config import schema, snapshot
from gateway.config.positions import KeyPath
from gateway.config.problems import Report
from gateway.config.reading import File

__all__ = ["check_limits", "limits_of"]

_UNITS: tuple[snapshot.Unit, ...] = (
    "requests", "tokens", "input_tokens", "output_tokens", "cost", "concurrent", "tokens_in_flight",
)  # fmt: skip
_HELD: frozenset[str] = frozenset({"concurrent", "tokens_in_flight"})
"""Given back at a request's end: without a period."""

_PERIODS: Mapping[str, int] = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}


def check_limits(file: File, report: Report, aliases: Mapping[str, str]) -> None:
    """What a limit's own fields cannot tell of each other, and the names they use."""
    names: dict[str, KeyPath] = {}
    made: list[tuple[KeyPath, str]] = []
    for path, place, limit, scope in _placed(file):
        if not report.sound(path):
            continue
        _check_unit(path, limit, report)
        if limit.name is None and len(_units_of(limit)) == 1:
            made.append((path, _name(place, limit, _limit(limit, scope, aliases))))
        if limit.name is not None and (first := names.setdefault(limit.name, path)) is not path:
            report.value_error((*path, "name"), f"is a limit's name already, in line {report.line(first)}")
        for key, written, known in (
            ("model", limit.model, {**file.models, **aliases}),
            ("pool", limit.pool, file.pools),
            ("tenant", list(scope.tenants), {**file.tenants, snapshot.ANONYMOUS.name: None}),
        ):
            section = f"{key}s"
            if section in file.unreadable or (key == "tenant" and not isinstance(limit, schema.SharedLimit)):
                continue
            for index, name in enumerate(written or ()):
                if name not in known:
                    report.unknown(report.item((*path, key), index), f"a declared {key}", known)
        if scope.models and limit.model:
            report.error((*path, "model"), "this limit is a model's already")
    _check_made(made, names, report)


def _check_made(made: list[tuple[KeyPath, str]], names: Mapping[str, KeyPath], report: Report) -> None:
    """`made`: limits without a name and what they are called; `names`: those that are given."""
    first: dict[str, KeyPath] = {}
    for (path, name), numbered in zip(made, _numbered(name for _, name in made), strict=True):
        if (alike := first.setdefault(name, path)) is not path:
            report.warn(
                path,
                f"told from the limit in line {report.line(alike)} by their order alone: they have the same "
                "place, unit, period and scope, so use is swapped when they are",
                "give each a `name`",
            )
        if (given := names.get(numbered)) is not None:
            report.value_error(
                (*given, "name"),
                f"is what the limit in line {report.line(path)} is called, which has no name of its own",
                "give that one a `name` too",
            )


def _check_unit(path: KeyPath, limit: schema.Limit, report: Report) -> None:
    units = _units_of(limit)
    if len(units) != 1:
        report.error(path, f"a limit is of exactly one of {', '.join(_UNITS[:-1])} or {_UNITS[-1]}")
        return
    (unit,) = units
    if unit in _HELD and limit.per is not None:
        report.error((*path, "per"), f"{unit} are given back at a request's end; there is no period")
    if unit not in _HELD and limit.per is None:
        report.error(path, f"{unit} are limited over time: `per` is missing")
    if limit.clamp and unit not in ("tokens", "output_tokens", "cost", "tokens_in_flight"):
        report.error((*path, "clamp"), f"a smaller max_tokens saves no {unit}")
    if limit.overrun == "cut" and unit in ("requests", "input_tokens", "concurrent"):
        report.error((*path, "overrun"), f"an answer cannot outrun a limit of {unit}")


def _units_of(limit: schema.Limit) -> list[snapshot.Unit]:
    """The units that are written; a sound limit has exactly one."""
    return [unit for unit in _UNITS if getattr(limit, unit) is not None]


def _placed(file: File) -> Iterator[tuple[KeyPath, str, schema.Limit, snapshot.Limit]]:
    """(where it stands, its place in words, as written, the scope that the place gives) of every limit."""
    for index, shared in enumerate(file.limits):
        scope = _scope(tenants=tuple(shared.item.tenant or ()), each=tuple(dict.fromkeys(shared.item.each)))
        yield ("limits", index), "all", shared.item, scope
    for name, model in file.models.items():
        for index, limit in enumerate(model.item.limits):
            yield (*model.path, "limits", index), f"model-{name}", limit, _scope(models=(name,))
    for name, tenant in file.tenants.items():
        for index, limit in enumerate(tenant.item.limits):
            yield (*tenant.path, "limits", index), name, limit, _scope(tenants=(name,))
        for position, key in enumerate(tenant.item.keys):
            for index, limit in enumerate(key.limits):
                at = (*tenant.path, "keys", position, "limits", index)
                yield at, f"{name}.{key.id}", limit, _scope(tenants=(name,), keys=(key.id,))


def limits_of(file: File, aliases: Mapping[str, str]) -> tuple[snapshot.Limit, ...]:
    """Every limit of a file that `checking` found sound."""
    placed = [(place, written, _limit(written, scope, aliases)) for _, place, written, scope in _placed(file)]
    made = _numbered(_name(*each) for each in placed if each[1].name is None)
    return tuple(
        replace(limit, name=next(made) if written.name is None else written.name)
        for _, written, limit in placed
    )


def _limit(written: schema.Limit, scope: snapshot.Limit, aliases: Mapping[str, str]) -> snapshot.Limit:
    """A limit that has one unit, without its name."""
    (unit,) = _units_of(written)
    amount = getattr(written, unit)
    return replace(
        scope,
        unit=unit,
        amount=round(amount * snapshot.COST_UNIT) if unit == "cost" else amount,
        per=_PERIODS.get(written.per or ""),
        calendar=_calendar(written.per),
        models=scope.models or tuple(dict.fromkeys(aliases.get(each, each) for each in written.model or ())),
        pools=tuple(dict.fromkeys(written.pool or ())),
        enforce=written.enforce,
        store_down=written.store_down,
        overrun=written.overrun,
        clamp=written.clamp,
    )


def _numbered(made: Iterable[str]) -> Iterator[str]:
    """Names that were made, in their order; the second of its kind ends in -2."""
    taken: Counter[str] = Counter()
    for first in made:
        name = first
        while name in taken:
            taken[first] += 1
            name = f"{first}-{taken[first]}"
        taken[name] = 1
        yield name


def _scope(
    *,
    tenants: tuple[str, ...] = (),
    keys: tuple[str, ...] = (),
    models: tuple[str, ...] = (),
    each: tuple[snapshot.Share, ...] = (),
) -> snapshot.Limit:
    return snapshot.Limit("", "requests", 0, tenants=tenants, keys=keys, models=models, each=each)


def _calendar(per: str | None) -> "snapshot.Calendar | None":
    match per:
        case "calendar_day":
            return "day"
        case "calendar_month":
            return "month"
        case _:
            return None


def _name(place: str, written: schema.Limit, limit: snapshot.Limit) -> str:
    parts = [
        place,
        limit.unit.replace("_", "-") + (f"-per-{written.per.replace('_', '-')}" if written.per else ""),
    ]
    parts += [f"each-{share}" for share in limit.each]
    if isinstance(written, schema.SharedLimit):
        parts += [*limit.tenants]
    if written.model:
        parts += [*limit.models]
    parts += [*limit.pools]
    return ".".join(parts)
