"""From plain values to schema models, item by item, with every schema problem reported.

The sections are not validated as one model: a pool with a bad timeout must still be known to the rules
that name it. An item with faults is kept with whatever of it is good, and `Report.sound` tells `checking`
what is not: it checks what there is and stays silent about what may only be unreadable.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, cast, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gateway.config import schema
from gateway.config.positions import Document, KeyPath
from gateway.config.problems import Report, is_secret, nearest

S = TypeVar("S", bound=schema.Section)


@dataclass(frozen=True, slots=True)
class Read(Generic[S]):
    """An item of the file. Fields that are not sound hold defaults or placeholders."""

    item: S
    path: KeyPath


@dataclass(frozen=True, slots=True)
class File:
    server: Read[schema.Server]
    models: Mapping[str, Read[schema.Model]]
    pools: Mapping[str, Read[schema.Pool]]
    rules: tuple[Read[schema.Rule], ...]
    tenants: Mapping[str, Read[schema.Tenant]]
    limits: tuple[Read[schema.SharedLimit], ...]
    classes: Mapping[str, Read[schema.ClassPolicy]]
    unreadable: frozenset[str]
    """Sections that are absent or of a wrong shape: names in them are unknown, not undeclared."""


def read(values: Any, document: Document, report: Report) -> File:
    """The file's sections. All schema problems go to `report`."""
    return _Reader(document, report).file(values)


class _Reader:
    def __init__(self, document: Document, report: Report) -> None:
        self._document = document
        self._report = report

    def file(self, values: Any) -> File:
        if not isinstance(values, dict):
            self._report.spoil((), "the file is not a mapping of version, models, pools, rules and tenants")
            values = {}
        self._good(schema.RoutesFile, self._outline(values), ())
        server = self._item(schema.Server, values.get("server", {}), ("server",))
        models = self._entries(schema.Model, values, "models")
        pools = self._entries(schema.Pool, values, "pools")
        tenants = self._entries(schema.Tenant, values, "tenants")
        return File(
            server=server,
            models=models,
            pools=pools,
            rules=self._items(schema.Rule, values, "rules"),
            tenants=tenants,
            limits=self._items(schema.SharedLimit, values, "limits"),
            classes=self._entries(schema.ClassPolicy, values, "classes"),
            unreadable=frozenset(
                section
                for section, shape in _SHAPES.items()
                if not isinstance(values.get(section, _OPTIONAL.get(section)), shape)
            ),
        )

    def _outline(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The file with every item replaced by a good one, to check its sections and names alone."""
        outline = dict(values)
        for section, stand_in in _STAND_INS.items():
            given = outline.get(section)
            if isinstance(given, dict):
                outline[section] = dict.fromkeys(given, stand_in)
            elif isinstance(given, list):
                outline[section] = [stand_in] * len(given)
        outline.pop("server", None)
        return outline

    def _entries(self, kind: type[S], values: Mapping[str, Any], section: str) -> dict[str, Read[S]]:
        given = values.get(section)
        if not isinstance(given, dict):
            return {}
        return {name: self._item(kind, value, (section, name)) for name, value in given.items()}

    def _items(self, kind: type[S], values: Mapping[str, Any], section: str) -> tuple[Read[S], ...]:
        given = values.get(section)
        if not isinstance(given, list):
            return ()
        return tuple(self._item(kind, value, (section, index)) for index, value in enumerate(given))

    def _item(self, kind: type[S], value: Any, path: KeyPath) -> Read[S]:
        return Read(self._good(kind, value, path) or _salvaged(kind, value), path)

    def _good(self, kind: type[S], value: Any, path: KeyPath) -> S | None:
        try:
            return kind.model_validate(value)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                self._tell(kind, detail, path)
            return None

    # ------------------------------------------------------------------------------------ saying it

    def _tell(self, kind: type[schema.Section], detail: ErrorDetails, base: KeyPath) -> None:
        fault, loc, context = detail["type"], detail["loc"], detail.get("ctx", {})
        path = self._path(base, loc)
        if fault == "missing":
            self._report.spoil((*path, loc[-1]), "is missing")
        elif fault == "extra_forbidden":
            self._unknown_key(path, str(loc[-1]), _keys_at(kind, loc[:-1]))
        elif loc and loc[-1] == "[key]":
            named = "this name" if is_secret(path) else repr(str(loc[-2])[:64])
            self._report.error(path, f"{named} {_predicate(detail)}", key=True)
        elif fault in ("union_tag_invalid", "union_tag_not_found"):
            self._discriminator(path, context)
        else:
            choices = _quoted(context["expected"]) if fault == "literal_error" else []
            written = detail["input"] if isinstance(detail["input"], str) and not is_secret(path) else ""
            hint = nearest(written, choices)
            hint = hint if hint.startswith("did") else ""  # the sentence names all choices
            self._report.spoil(path, f"{self._report.shown(path)} {_predicate(detail)}", hint)

    def _unknown_key(self, path: KeyPath, key: str, known: list[str]) -> None:
        hint = nearest(key, known)
        parent = path[:-1]
        if is_secret(parent) and not hint.startswith("did"):
            # A credential in the wrong place would be the key itself.
            self._report.error(parent, "an unknown key", hint, at=self._document.locate(path, key=True))
        else:
            self._report.error(
                parent, f"unknown key {key[:64]!r}", hint, at=self._document.locate(path, key=True)
            )

    def _discriminator(self, path: KeyPath, context: Mapping[str, Any]) -> None:
        key = context["discriminator"].strip("'")
        # A word alone may stand for the mapping of that kind.
        at = (*path, key) if self._document.has((*path, key)) else path
        if at is path and "tag" not in context:
            self._report.spoil((*path, key), "is missing")
        else:
            known = _quoted(context.get("expected_tags", ""))
            message = f"{self._report.shown(at)} is not a kind of {path[-1]}"
            self._report.spoil(at, message, nearest(str(context.get("tag", "")), known))

    def _path(self, base: KeyPath, loc: tuple[int | str, ...]) -> KeyPath:
        """pydantic's location without the tags of unions, which are not in the file."""
        path = base
        for part in loc:
            if self._document.has((*path, part)):
                path = (*path, part)
        return path


_SHAPES: Mapping[str, type] = {
    "models": dict, "pools": dict, "rules": list, "tenants": dict, "limits": list, "classes": dict,
}  # fmt: skip
_OPTIONAL: Mapping[str, Any] = {"tenants": {}, "limits": [], "classes": {}}
_STAND_INS: Mapping[str, Any] = {
    "models": {"tokenizer": {"kind": "estimate"}},
    "pools": {"engine": "x", "serves": "x", "replicas": [{"id": "x", "url": "http://x"}]},
    "rules": {"name": "x", "pools": ["x"]},
    "tenants": {},
    "limits": {},
    "classes": {},
}


def _salvaged(kind: type[S], value: Any) -> S:
    """An instance with the good fields of `value`; the others have their default or placeholder.

    Sections within are salvaged in the same way, and lists keep their length, so that indexes stay true.
    """
    item = cast("S", kind.model_construct(**kind.placeholders))  # mypy's pydantic plugin loses the type
    for name, field in kind.model_fields.items():
        key = field.alias or name
        if not isinstance(value, dict) or key not in value:
            continue
        try:
            kind.__pydantic_validator__.validate_assignment(item, name, value[key])
        except ValidationError:
            within = list(_sections(field.annotation))
            if len(within) == 1:
                setattr(item, name, _salvaged_within(within[0], value[key], getattr(item, name, None)))
    return item


def _salvaged_within(kind: type[schema.Section], value: Any, otherwise: Any) -> Any:
    """`otherwise` is the field's default or placeholder; it tells one section from a list or a mapping of
    them."""
    if isinstance(otherwise, dict):
        if not isinstance(value, dict):
            return otherwise
        # A pool may serve a model by a name alone; nothing else in a mapping of sections may be one.
        plain = kind is schema.Adapted
        return {
            key: item if plain and isinstance(item, str) else _salvaged(kind, item)
            for key, item in value.items()
        }
    if not isinstance(otherwise, list):
        return _salvaged(kind, value) if isinstance(value, dict) else otherwise
    if not isinstance(value, list):
        return otherwise
    if kind is schema.OtherModel:
        return [_salvaged_entry(item) for item in value]
    return [_salvaged(kind, item) for item in value]


def _salvaged_entry(value: Any) -> Any:
    """An entry of a chain: a name alone, weights by pool (those that are none become 1), or a section."""
    if isinstance(value, str):
        return value
    if schema.entry_tag(value) == schema.SPLIT_TAG:
        return {
            str(pool): weight if isinstance(weight, int | float) else 1.0 for pool, weight in value.items()
        }
    return _salvaged(schema.OtherModel, value)


def _predicate(detail: ErrorDetails) -> str:
    """The end of the sentence that begins with the offending value."""
    fault, context = detail["type"], detail.get("ctx", {})
    if fault == "string_type":
        quotable = isinstance(detail["input"], bool | int | float)
        return "is not text; put it in quotes" if quotable else "is not text"
    if fault == "string_pattern_mismatch":
        return schema.PHRASES[context["pattern"]]
    if fault == "literal_error":
        return f"is not {_either(_quoted(context['expected']) or [context['expected']])}"
    if fault in _PREDICATES:
        return _PREDICATES[fault].format(**{name: _number(bound) for name, bound in context.items()})
    return detail["msg"]


_PREDICATES: Mapping[str, str] = {
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "float_type": "is not a number",
    "finite_number": "is not a finite number",
    "bool_type": "is not true or false",
    "greater_than": "is not more than {gt}",
    "greater_than_equal": "is less than {ge}",
    "less_than_equal": "is more than {le}",
    "string_too_short": "is empty",
    "string_too_long": "is longer than {max_length} characters",
    "too_short": "is empty",
    "dict_type": "is not a mapping",
    "model_type": "is not a mapping",
    "model_attributes_type": "is not a mapping",
    "list_type": "is not a list",
}


def _number(bound: Any) -> Any:
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _quoted(text: str) -> list[str]:
    """pydantic's `'a', 'b' or 'c'` -> the words."""
    return re.findall(r"'([^']*)'", text)


def _keys_at(kind: type[schema.Section], loc: tuple[int | str, ...]) -> list[str]:
    """The keys that are valid at a location within `kind`."""
    candidates = {kind}
    for part in loc:
        fields = [
            field.annotation
            for candidate in candidates
            for name, field in candidate.model_fields.items()
            if (field.alias or name) == part
        ]
        if fields:
            candidates = {section for annotation in fields for section in _sections(annotation)}
        elif tagged := {candidate for candidate in candidates if _tag(candidate) == part}:
            candidates = tagged
    return [field.alias or name for candidate in candidates for name, field in candidate.model_fields.items()]


def _sections(annotation: Any) -> Iterator[type[schema.Section]]:
    if isinstance(annotation, type) and issubclass(annotation, schema.Section):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, UnionType, list, dict):
        for argument in get_args(annotation):
            yield from _sections(argument)


def _tag(kind: type[schema.Section]) -> str | None:
    field = kind.model_fields.get("kind")
    if field is None or get_origin(field.annotation) is not Literal:
        return None
    return str(get_args(field.annotation)[0])
