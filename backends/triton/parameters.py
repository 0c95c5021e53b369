"""What Triton's models take, in both vocabularies (inflight_batcher_llm/*/config.pbtxt of
tensorrtllm_backend; all_models/llmapi/tensorrt_llm/config.pbtxt and 1/model.py of TensorRT-LLM).

Triton is exact about types and vague about faults: a value of the wrong type is a 500, an INT32 out of range
wraps, a key that is no tensor is ignored in silence or a 400. So each value is cast and its range checked
here (`tensors.py`), and what has no tensor is refused.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec

from backends.contract import GenerateRequest
from backends.mapping import (
    Check,
    Rule,
    Table,
    Tables,
    Unfit,
    converted,
    emulated,
    is_constrained,
    json_schema_of,
    record,
    refused,
    renamed,
)
from backends.openai_parameters import CHAT_ONLY, CONFLICTS, guided_json
from backends.text_parameters import CHAT, COMPLETIONS, OTHERS, TEXT
from backends.triton.tensors import INT32_MAX, above_zero, fp32, int32, text_list, uint64

__all__ = ["classic_tables", "llmapi_tables"]

_MAX_TOKENS = "cut to the range of INT32, required"
_STOP = "sent, and cut by the gateway: the stop word stays in the text"
_UNCONSTRAINED = refused("This engine cannot constrain its output.", {"type": "text"}, nothing=())


def _tensor(tensor: str, check: Check, says: str = "") -> Rule:
    """A tensor of its own: under the parameter's name, or another."""
    return converted(lambda value: {tensor: check(value)}, says or f"`{tensor}`")


def _cut(value: Any) -> int:
    return min(int(value), INT32_MAX)


def _top_k(value: Any) -> int:
    """-1 is vLLM's word for off, which is 0 here; a negative one ends 1.0-era TensorRT-LLM (#6329)."""
    return 0 if type(value) is int and value == -1 else int32(value)


def _seed(tensor: str) -> Rule:
    return _tensor(tensor, uint64, f"`{tensor}`, UINT64: a negative one modulo 2^64")


def _greedy(prefix: str, tensors: dict[str, Any]) -> None:
    """Greedy is top_k 1 in TensorRT-LLM; some versions refuse a temperature of 0. And with neither top_k nor
    top_p it is greedy whatever the temperature, so that OpenAI's default is told
    (cpp/tensorrt_llm/kernels/samplingTopPKernels.cu: k == 0 and p == 0 -> k = 1)."""
    temperature, top_p, top_k = (prefix + name for name in ("temperature", "top_p", "top_k"))
    if tensors.get(temperature) == 0 or tensors.get(top_p) == 0:
        tensors.pop(temperature, None)
        tensors.pop(top_p, None)
        tensors[top_k] = 1
    elif top_p not in tensors:
        tensors[top_p] = 1.0


_SAMPLING = "; 0 as a top_k of 1, which is greedy"

# -------------------------------------------------------------------------------------------- classic


def _guide(value: Any) -> Mapping[str, Any]:
    """The guided_decoding tensors (tensorrtllm_backend docs/guided_decoding.md)."""
    given = record(value)
    if not is_constrained(given):
        return {}
    if given.get("type") == "json_object":
        return {"guided_decoding_guide_type": "json"}
    if (schema := json_schema_of(given)) is not None:
        guide = msgspec.json.encode(schema).decode()
        return {"guided_decoding_guide_type": "json_schema", "guided_decoding_guide": guide}
    raise Unfit("This engine knows text, json_object, and json_schema with a schema.")


def _guided_regex(value: Any) -> Mapping[str, Any]:
    (guide,) = text_list([value])
    return {"guided_decoding_guide_type": "regex", "guided_decoding_guide": guide}


def _finish_classic(request: GenerateRequest, tensors: dict[str, Any]) -> None:
    _greedy("", tensors)
    if "min_tokens" in tensors and "max_tokens" in tensors:
        tensors["min_tokens"] = min(tensors["min_tokens"], tensors["max_tokens"])


@cache  # a reload compares adapters: the same options, the same tables
def classic_tables(*, guided_decoding: bool) -> Tables:
    """`ensemble` and `tensorrt_llm_bls`. `guided_decoding`: the models have its tensors and a backend for
    them; where they have not, Triton ignores them in silence."""
    guide = converted(_guide, "`guided_decoding_guide_type`, `guided_decoding_guide`")
    off = (
        "This engine was set up without guided decoding (`guided_decoding`), and would ignore it in silence."
    )
    both: Mapping[str, Rule] = {
        **TEXT,
        "max_tokens": _tensor("max_tokens", _cut, _MAX_TOKENS),
        "stop": emulated(lambda value: {"stop_words": value}, f"`stop_words`: {_STOP}"),
        "temperature": _tensor("temperature", fp32, f"FP32{_SAMPLING}"),
        "top_p": _tensor("top_p", fp32, f"FP32, 1 where none is given{_SAMPLING}"),
        "top_k": _tensor("top_k", _top_k, "INT32; -1 as 0: off"),
        "repetition_penalty": _tensor("repetition_penalty", above_zero, "FP32"),
        "presence_penalty": _tensor("presence_penalty", fp32, "FP32"),
        "frequency_penalty": _tensor("frequency_penalty", fp32, "FP32"),
        "min_tokens": _tensor("min_tokens", int32, "INT32, at most max_tokens"),
        "seed": _seed("seed"),
        "bad_words": converted(
            lambda value: {"bad_words": text_list(value)} if value else {}, "BYTES; an empty list is not sent"
        ),
        "response_format": guide if guided_decoding else refused(off, {"type": "text"}, nothing=()),
        "guided_json": guided_json(guide) if guided_decoding else refused(off),
        "guided_regex": converted(_guided_regex, "guide type regex") if guided_decoding else refused(off),
    }
    return Tables(
        chat=Table({**both, **CHAT}, OTHERS, CONFLICTS, _finish_classic),
        completions=Table({**both, **CHAT_ONLY, **COMPLETIONS}, OTHERS, CONFLICTS, _finish_classic),
    )


# --------------------------------------------------------------------------------------------- llmapi


def _finish_llmapi(request: GenerateRequest, tensors: dict[str, Any]) -> None:
    _greedy("sampling_param_", tensors)


@cache  # a reload compares adapters: the same options, the same tables
def llmapi_tables() -> Tables:
    """`tensorrt_llm` of the PyTorch backend: `sampling_param_*`, no repetition penalty, no constraint."""
    prefix = "sampling_param_"
    both: Mapping[str, Rule] = {
        **TEXT,
        "max_tokens": renamed(f"{prefix}max_tokens", _cut),
        "stop": emulated(lambda value: {f"{prefix}stop": value}, f"`{prefix}stop`, and cut by the gateway"),
        "temperature": _tensor(f"{prefix}temperature", fp32, f"`{prefix}temperature`{_SAMPLING}"),
        "top_p": _tensor(f"{prefix}top_p", fp32, f"`{prefix}top_p`, 1 where none is given{_SAMPLING}"),
        "top_k": _tensor(f"{prefix}top_k", _top_k, f"`{prefix}top_k`; -1 as 0: off"),
        "presence_penalty": renamed(f"{prefix}presence_penalty", fp32),
        "frequency_penalty": renamed(f"{prefix}frequency_penalty", fp32),
        "repetition_penalty": refused("This engine has no repetition_penalty.", 1),
        "seed": _seed(f"{prefix}seed"),
        "response_format": _UNCONSTRAINED,
        "guided_json": refused("This engine cannot constrain its output."),
    }
    return Tables(
        chat=Table({**both, **CHAT}, OTHERS, (), _finish_llmapi),
        completions=Table({**both, **CHAT_ONLY, **COMPLETIONS}, OTHERS, (), _finish_llmapi),
    )
