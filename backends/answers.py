"""Reading what engines answer to questions: health, models, limits, load, token counts.

Such answers come from many versions, behind proxies, half there. So everything here is total: a value of the
wrong type, a missing key, a body that is no JSON are all "untold", never an error and never zero.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from backends.contract import Answer, Answers, HttpRequest, Identified, Metadata
from backends.decoding import lenient_json, token_count

__all__ = [
    "MODEL_LIST", "as_count", "as_name", "as_share", "get", "items_of", "json_body", "json_of", "least",
    "model_cards", "names_of", "owners_of", "printable", "ratio", "recognised",
]  # fmt: skip

MODEL_LIST = "/v1/models"


def get(path: str) -> HttpRequest:
    return HttpRequest("GET", path)


def json_body(status: int, body: bytes) -> Any:
    """The JSON of a good answer; None if it is refused or none."""
    if not 200 <= status < 300:
        return None
    try:
        return lenient_json(body)
    except ValueError:
        return None


def json_of(answers: Answers, path: str) -> Any:
    """The JSON that was answered on `path`; None if nothing was, or not in good order."""
    answer = answers.get(path, Answer(0))
    return json_body(answer.status, answer.body)


def items_of(value: Any) -> dict[str, Any]:
    """`value` if it is an object; else an empty one."""
    return value if isinstance(value, dict) else {}


def as_count(value: Any) -> int | None:
    """A whole number that is not negative, also as a whole float (Prometheus knows no other); else None."""
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    return token_count(value)


def as_share(value: Any) -> float | None:
    """A number in 0..1; engines overshoot a little, so a bit more is 1. Else None."""
    if type(value) not in (int, float) or not 0 <= value <= 1.05:  # NaN compares false
        return None
    return min(float(value), 1.0)


def ratio(part: float | None, whole: float | None) -> float | None:
    """`part / whole` as a share; None where either is untold or there is nothing to share."""
    return None if part is None or not whole else as_share(part / whole)


def as_name(value: Any) -> str | None:
    """A text that is not empty; else None."""
    return value if isinstance(value, str) and value else None


def least(counts: Iterable[int | None]) -> int | None:
    """The smallest positive one that was told."""
    return min((count for count in counts if count), default=None)


def printable(text: str) -> str:
    """An engine's own word, safe to print in a sentence of ours."""
    return "".join(character if " " <= character <= "~" else "?" for character in text[:80])


# ------------------------------------------------------------------------------------- OpenAI's model list


def model_cards(answers: Answers) -> list[dict[str, Any]] | None:
    """The models of OpenAI's list, those with a name; None if there is no such list."""
    cards = items_of(json_of(answers, MODEL_LIST)).get("data")
    if not isinstance(cards, list):
        return None
    return [card for card in cards if isinstance(card, dict) and as_name(card.get("id"))]


def names_of(cards: Iterable[Mapping[str, Any]] | None) -> tuple[str, ...] | None:
    return None if cards is None else tuple(dict.fromkeys(card["id"] for card in cards))


def owners_of(answers: Answers) -> frozenset[str]:
    """Who the model list says owns its models: most engines put their own name there."""
    return frozenset(owner for card in model_cards(answers) or () if (owner := as_name(card.get("owned_by"))))


def recognised(kind: str, how: str, told: Metadata) -> Identified:
    """An engine of `kind` without options, which serves its models under the names it tells."""
    return Identified(
        kind=kind,
        options={},
        how=how,
        models={name: name for name in told.models or ()},
        limits=told.limits,
        version=told.version,
    )
