"""How llama.cpp tells of itself: its model list, and `/props`.

The list's `n_ctx_train` is what the model was trained for. The context served to one request is told by
/props, and in newer builds by the list's `n_ctx`; the number of slots by /props alone
(tools/server/README.md). /props also tells what its chat template can: newer builds in `chat_template_caps`
(common/jinja/caps.h); of older ones there is the template itself, and one that never speaks of tools was
given them in a form of llama.cpp's own, so that says nothing.
"""

import re
from collections.abc import Mapping, Sequence
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

_PROPS = "/props"
PATHS = (MODEL_LIST, _PROPS)
_TOOLS = re.compile(r"\btools\b")


def read_metadata(answers: Answers) -> Metadata:
    cards = model_cards(answers)
    props = items_of(json_of(answers, _PROPS))
    settings = items_of(props.get("default_generation_settings"))
    return Metadata(
        models=names_of(cards),
        limits=EngineLimits(
            context_tokens=as_count(settings.get("n_ctx"))
            or least(as_count(items_of(card.get("meta")).get("n_ctx")) for card in cards or ())
            or None,
            train_context_tokens=least(
                as_count(items_of(card.get("meta")).get("n_ctx_train")) for card in cards or ()
            ),
            in_flight=as_count(props.get("total_slots")) or None,
        ),
        template_takes_tools=_takes_tools(props),
        version=as_name(props.get("build_info")),
    )


def _takes_tools(props: Mapping[str, Any]) -> bool | None:
    told = items_of(props.get("chat_template_caps")).get("supports_tools")
    if isinstance(told, bool):
        return told
    templates = (as_name(props.get(name)) or "" for name in ("chat_template", "chat_template_tool_use"))
    return True if any(_TOOLS.search(template) for template in templates) else None


def questions(answers: Answers) -> Sequence[HttpRequest]:
    return [get(path) for path in PATHS]


def recognise(answers: Answers) -> Identified | None:
    told = read_metadata(answers)
    if "llamacpp" in owners_of(answers):
        how = "its model list is owned by 'llamacpp'"
    elif told.models and "default_generation_settings" in items_of(json_of(answers, _PROPS)):
        how = "its /props is llama.cpp's"
    else:
        return None
    return recognised("llamacpp", how, told)
