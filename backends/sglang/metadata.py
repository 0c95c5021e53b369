"""How SGLang tells of itself: its model list, then `/server_info`.

`/server_info` holds all launch arguments, secrets among them: only the fields named here are read, and its
body must never be logged. It is asked only of a server that is known to be SGLang.
"""

from collections.abc import Sequence
from typing import Any

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

_SERVER = "/server_info"
PATHS = (MODEL_LIST, _SERVER)


def read_metadata(answers: Answers) -> Metadata:
    cards = model_cards(answers)
    server = items_of(json_of(answers, _SERVER))
    return Metadata(
        models=names_of(cards),
        limits=EngineLimits(
            context_tokens=least(
                [
                    *(as_count(card.get("max_model_len")) for card in cards or ()),
                    as_count(server.get("context_length")),
                ]
            ),
            in_flight=_in_flight(server),
        ),
        version=as_name(server.get("version")),
    )


def _in_flight(server: dict[str, Any]) -> int | None:
    running = as_count(server.get("max_running_requests"))
    queued = as_count(server.get("max_queued_requests"))
    return running and running + (queued or 0)


def questions(answers: Answers) -> Sequence[HttpRequest]:
    paths = [MODEL_LIST, "/model_info"]
    if _evidence(answers) is not None:
        paths.append(_SERVER)
    return [get(path) for path in paths]


def _evidence(answers: Answers) -> str | None:
    if "sglang" in owners_of(answers):
        return "its model list is owned by 'sglang'"
    if items_of(json_of(answers, "/model_info")).keys() >= {"model_path", "is_generation"}:
        return "its /model_info is SGLang's"
    return None


def recognise(answers: Answers) -> Identified | None:
    if (how := _evidence(answers)) is None:
        return None
    told = read_metadata(answers)
    return recognised("sglang", how, told)
