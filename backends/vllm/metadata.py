"""How vLLM tells of itself: its model list, and its version.

A card of the list tells `max_model_len`, the served context; LoRA adapters are cards of their own with a
`parent` (vllm/entrypoints/openai/engine/protocol.py, `ModelCard`).
"""

from collections.abc import Sequence

from backends.answers import (
    MODEL_LIST,
    as_count,
    as_name,
    get,
    items_of,
    json_of,
    least,
    model_cards,
    names_of,
    owners_of,
    recognised,
)
from backends.contract import Answers, EngineLimits, HttpRequest, Identified, Metadata

__all__ = ["PATHS", "questions", "read_metadata", "recognise"]

PATHS = (MODEL_LIST, "/version")


def read_metadata(answers: Answers) -> Metadata:
    cards = model_cards(answers)
    context_tokens = least(as_count(card.get("max_model_len")) for card in cards or ())
    return Metadata(
        models=names_of(cards),
        limits=EngineLimits(context_tokens=context_tokens),
        version=as_name(items_of(json_of(answers, "/version")).get("version")),
    )


def questions(answers: Answers) -> Sequence[HttpRequest]:
    return [get(path) for path in PATHS]


def recognise(answers: Answers) -> Identified | None:
    told = read_metadata(answers)
    if "vllm" in owners_of(answers):
        how = "its model list is owned by 'vllm'"
    elif told.models and told.limits.context_tokens and told.version:
        how = "its model list tells max_model_len, and it has a /version, as vLLM's"
    else:
        return None
    return recognised("vllm", how, told)
