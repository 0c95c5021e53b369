"""How TGI tells of itself: `/info`, which holds its limits (router/src/lib.rs, `Info`).

Its model id is a Hugging Face id or a path; on the wire the base model is called "tgi", and any other name
chooses a LoRA adapter.
"""

from collections.abc import Sequence

from backends.answers import as_count, as_name, get, items_of, json_of
from backends.contract import Answers, EngineLimits, HttpRequest, Identified, Metadata
from backends.tgi.wire import BASE_MODEL

__all__ = ["PATHS", "questions", "read_metadata", "recognise"]

_INFO = "/info"
PATHS = (_INFO,)


def read_metadata(answers: Answers) -> Metadata:
    info = items_of(json_of(answers, _INFO))
    model = as_name(info.get("model_id"))
    prompt_tokens = as_count(info.get("max_input_tokens", info.get("max_input_length")))  # its name in 1.x
    return Metadata(
        models=None if model is None else (model,),
        limits=EngineLimits(
            context_tokens=as_count(info.get("max_total_tokens")),
            prompt_tokens=prompt_tokens,
            in_flight=as_count(info.get("max_concurrent_requests")),
            stop_sequences=as_count(info.get("max_stop_sequences")),
        ),
        server=as_name(info.get("router")),
        version=as_name(info.get("version")),
    )


def questions(answers: Answers) -> Sequence[HttpRequest]:
    return [get(path) for path in PATHS]


def recognise(answers: Answers) -> Identified | None:
    """The option `api: messages` comes with it: nobody knows the model's chat template yet, TGI does."""
    info = items_of(json_of(answers, _INFO))
    if "model_id" not in info or not info.keys() & {"max_concurrent_requests", "max_total_tokens"}:
        return None
    told = read_metadata(answers)
    return Identified(
        kind="tgi",
        options={"api": "messages"},
        how="its /info names a model_id and the limits of text-generation-inference",
        models=dict.fromkeys(told.models or (), BASE_MODEL),
        limits=told.limits,
        version=told.version,
    )
