"""How trtllm-serve tells of itself: one model card, and its version. No endpoint tells its limits."""

from collections.abc import Sequence

from backends.answers import (
    MODEL_LIST,
    as_name,
    get,
    items_of,
    json_of,
    model_cards,
    names_of,
    owners_of,
    recognised,
)
from backends.contract import Answers, HttpRequest, Identified, Metadata

__all__ = ["PATHS", "questions", "read_metadata", "recognise"]

PATHS = (MODEL_LIST, "/version")


def read_metadata(answers: Answers) -> Metadata:
    return Metadata(
        models=names_of(model_cards(answers)),
        version=as_name(items_of(json_of(answers, "/version")).get("version")),
    )


def questions(answers: Answers) -> Sequence[HttpRequest]:
    return [get(path) for path in PATHS]


def recognise(answers: Answers) -> Identified | None:
    if "tensorrt_llm" not in owners_of(answers):
        return None
    return recognised("trtllm", "its model list is owned by 'tensorrt_llm'", read_metadata(answers))
