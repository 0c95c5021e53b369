"""The last resort: a model list is all that an unknown OpenAI server tells."""

from collections.abc import Sequence

from backends.answers import (
    MODEL_LIST,
    as_count,
    get,
    least,
    model_cards,
    names_of,
    owners_of,
    printable,
)
from backends.contract import Answers, EngineLimits, HttpRequest, Identified, Metadata

__all__ = ["questions", "read_metadata", "recognise"]


def read_metadata(answers: Answers) -> Metadata:
    cards = model_cards(answers)
    context_tokens = least(as_count(card.get("max_model_len")) for card in cards or ())
    return Metadata(
        models=names_of(cards),
        limits=EngineLimits(context_tokens=context_tokens),
        per_model={
            card["id"]: EngineLimits(context_tokens=context)
            for card in cards or ()
            if (context := as_count(card.get("max_model_len")))
        },
    )


def questions(answers: Answers) -> Sequence[HttpRequest]:
    return [get(MODEL_LIST)]


def recognise(answers: Answers) -> Identified | None:
    told = read_metadata(answers)
    if not told.models:
        return None
    owners = ", ".join(repr(printable(owner)) for owner in sorted(owners_of(answers))) or "nobody"
    return Identified(
        kind="openai",
        options={},
        how=f"it has OpenAI's model list, owned by {owners}: no engine that is known by name",
        models={name: name for name in told.models},
        limits=told.limits,
    )
