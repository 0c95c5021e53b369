"""Engine options from configuration, read strictly: a bad name or value is an error that says what fits.

An engine declares its options as a frozen `msgspec.Struct`, every field with a default.
"""

from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec

from backends.contract import OptionError

__all__ = ["NoOptions", "read_options"]


class NoOptions(msgspec.Struct, frozen=True):
    """For engines without options."""


Options = TypeVar("Options", bound=msgspec.Struct)


def read_options(declared: type[Options], options: Mapping[str, Any]) -> Options:
    """The values of `options` in the struct `declared`. Raises OptionError."""
    fields = {field.name: field for field in msgspec.structs.fields(declared)}
    values: dict[str, Any] = {}
    for name, value in options.items():
        if name not in fields:
            raise OptionError(name, f"unknown engine option {name!r}", tuple(fields))
        wanted = fields[name].type
        try:
            values[name] = msgspec.convert(value, type=wanted)
        except msgspec.ValidationError as error:
            raise OptionError(name, f"engine option {name!r}: {error}", _choices(wanted)) from error
    return declared(**values)


def _choices(wanted: Any) -> tuple[str, ...]:
    """The values of a Literal, also of an optional one; empty for types without a list of values."""
    if get_origin(wanted) is Literal:
        return get_args(wanted)
    return tuple(
        choice for part in get_args(wanted) if get_origin(part) is Literal for choice in get_args(part)
    )
