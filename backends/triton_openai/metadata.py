"""How Triton's OpenAI frontend tells of itself: a model list that Triton owns."""

from collections.abc import Sequence

from backends.answers import MODEL_LIST, get, model_cards, names_of, owners_of
from backends.contract import Answers, HttpRequest, Identified, Metadata

__all__ = ["PATHS", "questions", "read_metadata", "recognise"]

PATHS = (MODEL_LIST,)
_OWNER = "triton"


def read_metadata(answers: Answers) -> Metadata:
    return Metadata(models=names_of(model_cards(answers)))


def questions(answers: Answers) -> Sequence[HttpRequest]:
    return [get(path) for path in PATHS]


def recognise(answers: Answers) -> Identified | None:
    if not any(owner.lower().startswith(_OWNER) for owner in owners_of(answers)):
        return None
    names = read_metadata(answers).models or ()
    return Identified(
        kind="triton-openai",
        options={},
        how="its model list is owned by Triton, and it serves OpenAI's routes",
        models={name: name for name in names},
    )
