"""What sections are made of: names, units and bounds of single values, and what each pattern means."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from gateway.config.addresses import base_url, host_port
from gateway.config.positions import Variable, resolved

VARIABLE_PATTERN = r"^\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^{}]*)?\}$"
NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$"
MODEL_PATTERN = r"^(\*|[A-Za-z0-9_][A-Za-z0-9._:/@+-]{0,127})$"
DIGEST_PATTERN = r"^sha256:[0-9a-fA-F]{64}$"
HEADER_PATTERN = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$"
PATH_PATTERN = r"^/[\x21\x22\x24-\x7e]{0,2047}$"
KUBERNETES_PATTERN = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
HEADER_VALUE_PATTERN = r"^[\t\x20-\x7e\x80-\u00ff]{0,8192}$"

PHRASES: Mapping[str, str] = {
    NAME_PATTERN: "is not a name: letters, digits and . _ -, at most 64, not beginning with . or -",
    MODEL_PATTERN: "is not a model name: letters, digits and . _ : / @ + -, at most 128; or * alone",
    DIGEST_PATTERN: "is not sha256: and 64 hex digits (make one with `headgate keys`)",
    HEADER_PATTERN: "is not a header name",
    PATH_PATTERN: "is not a path: it begins with / and has no blanks and no #",
    KUBERNETES_PATTERN: "is not a name of Kubernetes: small letters, digits, - and .",
    HEADER_VALUE_PATTERN: "is not a header value of at most 8192 characters in one line",
}
"""What each pattern means, said of a value that does not match it."""


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )

    placeholders: ClassVar[Mapping[str, Any]] = {}
    """Stand-ins for required fields that could not be read, so that the others can be checked."""


def _typed(value: Any) -> Any:
    return resolved(value) if isinstance(value, Variable) else value


def _typed_deep(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _typed_deep(item) for key, item in value.items()}
    return [_typed_deep(item) for item in value] if isinstance(value, list) else _typed(value)


def listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def kinded(value: Any) -> Any:
    """`lanes` and `{kind: lanes}` mean the same."""
    return {"kind": value} if isinstance(value, str) else value


def _url(value: str) -> str:
    try:
        return base_url(value)
    except ValueError as error:
        raise PydanticCustomError("headgate", "{why}", {"why": str(error)}) from None


def _address(value: Any) -> tuple[str, int]:
    try:
        return host_port(value if isinstance(value, str) else "")
    except ValueError as error:
        raise PydanticCustomError("headgate", "{why}", {"why": str(error)}) from None


VARIABLE = BeforeValidator(_typed)
MOST = 10**12

Text: TypeAlias = Annotated[str, Field(min_length=1, max_length=4096)]
Name: TypeAlias = Annotated[str, Field(pattern=NAME_PATTERN)]
ModelName: TypeAlias = Annotated[str, Field(pattern=MODEL_PATTERN)]
Flag: TypeAlias = Annotated[bool, VARIABLE]
Count: TypeAlias = Annotated[int, Field(ge=1, le=MOST), VARIABLE]
CountFromZero: TypeAlias = Annotated[int, Field(ge=0, le=MOST), VARIABLE]
Seconds: TypeAlias = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False), VARIABLE]
Milliseconds: TypeAlias = Annotated[float, Field(gt=0, le=86_400_000, allow_inf_nan=False), VARIABLE]
Weight: TypeAlias = Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False), VARIABLE]
Address: TypeAlias = Annotated[tuple[str, int], BeforeValidator(_address, json_schema_input_type=str)]
Url: TypeAlias = Annotated[str, AfterValidator(_url)]
ClassName: TypeAlias = Literal["interactive", "standard", "batch"]
OneOrMore: TypeAlias = Annotated[
    list[Text], Field(min_length=1), BeforeValidator(listed, json_schema_input_type=str | list[str])
]
ModelNames: TypeAlias = Annotated[
    list[ModelName], Field(min_length=1), BeforeValidator(listed, json_schema_input_type=str | list[str])
]
Classes: TypeAlias = Annotated[
    list[ClassName],
    Field(min_length=1),
    BeforeValidator(listed, json_schema_input_type=ClassName | list[ClassName]),
]

JsonObject: TypeAlias = Annotated[dict[Text, Any], BeforeValidator(_typed_deep)]


MaybeCount: TypeAlias = Annotated[Count | None, VARIABLE]
MaybeCountFromZero: TypeAlias = Annotated[CountFromZero | None, VARIABLE]
MaybeSeconds: TypeAlias = Annotated[Seconds | None, VARIABLE]
MaybeMilliseconds: TypeAlias = Annotated[Milliseconds | None, VARIABLE]
MaybeText: TypeAlias = Annotated[Text | None, BeforeValidator(lambda value: value or None)]
"""Text, or nothing: also where a variable is empty, `${TGI_KEY:-}`."""
