"""An engine profile (what `headgate calibrate` writes) as the scheduler needs it.

The step of the profile, T = a + e*min(n, 172) + b*max(0, n - 172) + q*sum(chunk*(context + chunk/2)) + d*KV +
s*sequences + host, becomes the two lines of `gateway/fleet/step_model.py`: below the hinge a sequence costs
e + s, a prompt of n tokens b*n + q*n^2/2, an empty step a + host.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.config.snapshot import Pace

__all__ = ["read_pace"]

_Seconds = Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)]


class _Profile(BaseModel):
    """What is used of it; the rest (cache, sequences, how it was measured) is the engine's own to tell."""

    model_config = ConfigDict(extra="ignore", strict=True)

    format: Literal["headgate-profile/1"]
    step_s: _Seconds
    light_token_s: _Seconds
    token_s: _Seconds
    attention_s: _Seconds
    kv_token_s: _Seconds
    host_s: _Seconds
    sequence_s: _Seconds = 0.0
    speed: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


def read_pace(path: Path) -> Pace:
    """Raises ValueError for a file that is no profile, with a phrase that says what is wrong; OSError."""
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        profile = _Profile.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise ValueError(f"is no engine profile: {where}: {first['msg']}") from None
    except ValueError:  # not JSON, or not text
        raise ValueError("is no engine profile: not JSON") from None
    return Pace(
        token_s=profile.token_s / profile.speed,
        attention_s=profile.attention_s / 2 / profile.speed,
        step_s=(profile.step_s + profile.host_s) / profile.speed,
        sequence_s=(profile.light_token_s + profile.sequence_s) / profile.speed,
        kv_s=profile.kv_token_s / profile.speed,
    )
