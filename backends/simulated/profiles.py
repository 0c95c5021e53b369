"""Engine profiles in files: what `headgate calibrate` writes, and engines, replays and plans read.

A profile is a JSON object with the fields of `EngineProfile` by their names, `format` and, from a
measurement, how it was found (`measured`), which changes nothing. Durations are seconds.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from backends.simulated.engine import PROFILES, EngineProfile

__all__ = ["FORMAT", "document_of", "profile_from_file", "profile_of"]

FORMAT = "headgate-profile/1"

_Seconds = Annotated[float, msgspec.Meta(ge=0, le=60)]
_Count = Annotated[int, msgspec.Meta(ge=1)]


class _Document(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A file as it must be; what `EngineProfile` gives a default need not be there."""

    format: Literal["headgate-profile/1"]
    name: str
    step_s: _Seconds
    light_token_s: _Seconds
    token_s: _Seconds
    attention_s: _Seconds
    kv_token_s: _Seconds
    host_s: _Seconds
    hinge_tokens: _Count | msgspec.UnsetType = msgspec.UNSET
    kv_tokens: _Count | msgspec.UnsetType = msgspec.UNSET
    max_sequences: _Count | msgspec.UnsetType = msgspec.UNSET
    step_tokens: _Count | msgspec.UnsetType = msgspec.UNSET
    speed: float | msgspec.UnsetType = msgspec.UNSET
    sequence_s: _Seconds | msgspec.UnsetType = msgspec.UNSET
    measured: dict[str, Any] | None = None


def profile_of(text: str) -> EngineProfile:
    """The profile of that name, else the one in the file of that name. Raises ValueError, naming both."""
    if text in PROFILES:
        return PROFILES[text]
    path = Path(text)
    if not path.is_file():
        raise ValueError(f"unknown engine profile {text!r}: no such file, and none of {', '.join(PROFILES)}")
    return profile_from_file(path)


def profile_from_file(path: Path) -> EngineProfile:
    """Raises ValueError, which names the file and the field, for one that is not a profile; OSError."""
    try:
        document = msgspec.json.decode(path.read_bytes(), type=_Document)
        given = {
            name: value
            for name, value in msgspec.structs.asdict(document).items()
            if name not in ("format", "measured") and value is not msgspec.UNSET
        }
        return EngineProfile(**given)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ValueError(f"{path} is no engine profile: {error}") from None


def document_of(profile: EngineProfile, measured: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object of a profile; `measured` tells how it was found."""
    document: dict[str, Any] = {"format": FORMAT, **asdict(profile)}
    if not profile.sequence_s:
        del document["sequence_s"]  # readable to those that know no such constant
    return document if measured is None else {**document, "measured": dict(measured)}
