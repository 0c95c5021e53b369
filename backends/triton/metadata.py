"""How Triton tells of itself: the server, its list of models, and of each model its tensors and its way.

    GET  /v2                        name, version, extensions (a missing extension proves nothing)
    POST /v2/repository/index       models and their states
    GET  /v2/models/{m}             tensor names: which vocabulary it speaks
    GET  /v2/models/{m}/config      decoupled (can it stream?), max_batch_size

(docs/protocol/*.md of the server; all four are plain questions.) A Triton holds parts of models besides
models: only those that take and give text are for clients.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from backends.answers import as_count, as_name, get, items_of, json_of, printable
from backends.contract import Answers, EngineLimits, HttpRequest, Identified, Metadata, Vocabulary

__all__ = ["model_paths", "questions", "read_metadata", "recognise", "server_requests"]

_SERVER = "/v2"
_INDEX = "/v2/repository/index"
_MODELS = "/v2/models/"
_MOST_MODELS = 64
"""Models that are asked one by one."""


def server_requests() -> list[HttpRequest]:
    return [get(_SERVER), HttpRequest("POST", _INDEX)]


def model_paths(model: str) -> tuple[str, str]:
    """Where a model's tensors and its configuration are told."""
    path = _MODELS + quote(model, safe="")
    return path, f"{path}/config"


def read_metadata(answers: Answers) -> Metadata:
    """All that `answers` tell. Tensors and way are told of one model: the first that was asked about."""
    server = items_of(json_of(answers, _SERVER))
    ready = _ready(answers)
    described = [value for path in answers if (value := _description(answers, path))]
    model = described[0] if described else {}
    configs = [path for path in answers if path.startswith(_MODELS) and path.endswith("/config")]
    config = items_of(json_of(answers, configs[0])) if configs else {}
    inputs, outputs = _tensor_names(model.get("inputs")), _tensor_names(model.get("outputs"))
    models = tuple(ready) if ready is not None else tuple(value["name"] for value in described)
    decoupled = items_of(config.get("model_transaction_policy")).get("decoupled")
    return Metadata(
        models=models or None,
        ready=ready,
        limits=EngineLimits(max_batch_size=as_count(config.get("max_batch_size"))),
        server=as_name(server.get("name")),
        version=as_name(server.get("version")),
        extensions=_texts(server.get("extensions")),
        vocabulary=None if inputs is None else vocabulary_of(inputs, outputs or ()),
        decoupled=decoupled if isinstance(decoupled, bool) else None,
        inputs=inputs,
        outputs=outputs,
    )


def vocabulary_of(inputs: Sequence[str], outputs: Sequence[str]) -> Vocabulary:
    """Which names the tensors of a model have. `sampling_param_*` are llmapi's alone."""
    if "text_input" in inputs and "text_output" in outputs:
        if any(name.startswith("sampling_param_") for name in inputs):
            return "llmapi"
        if "max_tokens" in inputs:
            return "classic"
    return "other"


def _ready(answers: Answers) -> Mapping[str, bool] | None:
    index = json_of(answers, _INDEX)
    if not isinstance(index, list):
        return None
    ready: dict[str, bool] = {}
    for entry in map(items_of, index):
        if (name := as_name(entry.get("name"))) is not None:  # a model is listed once for each version
            ready[name] = ready.get(name, False) or entry.get("state") == "READY"
    return ready


def _description(answers: Answers, path: str) -> dict[str, Any]:
    """A model's own metadata, if that is what was asked on `path`."""
    if not path.startswith(_MODELS) or "/" in path.removeprefix(_MODELS):
        return {}
    value = items_of(json_of(answers, path))
    return value if as_name(value.get("name")) else {}


def _texts(value: Any) -> tuple[str, ...] | None:
    return tuple(text for text in value if isinstance(text, str)) if isinstance(value, list) else None


def _tensor_names(value: Any) -> tuple[str, ...] | None:
    if not isinstance(value, list):
        return None
    return tuple(name for tensor in value if (name := as_name(items_of(tensor).get("name"))))


# ------------------------------------------------------------------------------------------- recognising


def questions(answers: Answers) -> Sequence[HttpRequest]:
    if not _is_triton(answers):
        return [get(_SERVER)]
    models = [name for name, is_ready in (_ready(answers) or {}).items() if is_ready][:_MOST_MODELS]
    return [*server_requests(), *(get(path) for model in models for path in model_paths(model))]


def _is_triton(answers: Answers) -> bool:
    server = items_of(json_of(answers, _SERVER))
    return server.get("name") == "triton" and isinstance(server.get("extensions"), list)


def recognise(answers: Answers) -> Identified | None:
    """A pool speaks one vocabulary, so the models of the more frequent one are named (classic at a draw)."""
    if not _is_triton(answers):
        return None
    told = read_metadata(answers)
    described = [value for path in answers if (value := _description(answers, path))]
    by_vocabulary: dict[str, list[str]] = {"classic": [], "llmapi": [], "other": []}
    for model in described:
        vocabulary = vocabulary_of(
            _tensor_names(model.get("inputs")) or (), _tensor_names(model.get("outputs")) or ()
        )
        by_vocabulary[vocabulary].append(model["name"])
    classic, llmapi = by_vocabulary["classic"], by_vocabulary["llmapi"]
    chosen: Vocabulary = "llmapi" if len(llmapi) > len(classic) else "classic"
    names = by_vocabulary[chosen]
    how = "its /v2 says triton"
    if names:
        shown = ", ".join(map(printable, names))
        how += f"; by their tensor names, these models speak the {chosen} vocabulary: {shown}"
        if other := (classic if chosen == "llmapi" else llmapi):
            how += f" (left out, for a pool speaks one: {', '.join(map(printable, other))})"
    else:
        how += "; none of its ready models takes and gives text as TensorRT-LLM's do"
    return Identified(
        kind="triton",
        options={"vocabulary": "llmapi"} if chosen == "llmapi" else {},
        how=how,
        models={name: name for name in names},
        version=told.version,
    )
