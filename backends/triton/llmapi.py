"""The `llmapi` vocabulary: TensorRT-LLM's PyTorch backend behind Triton, model `tensorrt_llm`.

Other tensor names than the classic models, and other manners (`model.py` and `config.pbtxt` of TensorRT-LLM's
triton_backend/all_models/llmapi):

    sampling_param_*   everything that steers sampling; no repetition penalty, no constrained output
    streaming          the stream switch; each event holds **all text so far**
    stop               the *cancel* flag: a second request with the same JSON `id` and `stop: true`
    finish reason      only where it is asked for; the words are TensorRT-LLM's, and "None" until there is one
    token counts       none
    prompt             echoed unless sampling_param_exclude_input_from_output says no
"""

from typing import Any

from backends.contract import GenerateRequest, HttpRequest, Unsupported
from backends.text_engines import first_refusal, plain_text
from backends.triton.tensors import INT32_MAX, fp32, int32, uint64
from backends.triton.wire import generate_request, is_constrained, max_tokens_sent

__all__ = ["cancel", "encode", "unsupported"]

_TENSORS = {
    "temperature": fp32,
    "top_p": fp32,
    "top_k": int32,
    "presence_penalty": fp32,
    "frequency_penalty": fp32,
    "seed": uint64,
}
_MISSING = {"repetition_penalty": 1, "length_penalty": 0, "min_tokens": 0, "bad_words": []}
"""What the classic models have a tensor for and these have not, with the value that asks for nothing."""


def unsupported(request: GenerateRequest) -> Unsupported | None:
    """The first field without a tensor, or with a value that does not fit its tensor."""
    if (refusal := first_refusal(request)) is not None:
        return refusal
    for name, neutral in _MISSING.items():
        value = request.parameters.get(name)
        if value is not None and value != neutral:
            return Unsupported(name, f"This engine has no {name}.")
    for name, cast in _TENSORS.items():
        value = request.parameters.get(name)
        if value is not None and cast(value) is None:
            return Unsupported(name, f"This engine cannot take this value of {name}.")
    if is_constrained(request.parameters.get("response_format")):
        return Unsupported("response_format", "This engine cannot constrain its output in this way.")
    return None


def encode(request: GenerateRequest) -> HttpRequest:
    tensors: dict[str, Any] = {
        "id": request.request_id,
        "text_input": plain_text(request),
        "streaming": request.stream,
        "return_finish_reason": True,
        "sampling_param_max_tokens": min(max_tokens_sent(request), INT32_MAX),
        "sampling_param_exclude_input_from_output": True,
    }
    given = {
        name: value
        for name, cast in _TENSORS.items()
        if (value := cast(request.parameters.get(name))) is not None
    }
    if given.get("temperature") == 0 or given.get("top_p") == 0:
        given.pop("temperature", None)
        given.pop("top_p", None)
        given["top_k"] = 1  # greedy
    elif "top_p" not in given and given.get("top_k", 0) != 1:
        given["top_p"] = 1.0  # with neither top_k nor top_p, TensorRT-LLM is greedy
    tensors |= {f"sampling_param_{name}": value for name, value in given.items()}
    if (lora := request.lora) is not None:
        tensors |= {"lora_id": lora.id, "lora_name": lora.name, "lora_path": lora.path}
    if stops := [stop for stop in request.stop if stop]:
        tensors["sampling_param_stop"] = stops
    return generate_request(request, tensors, stream=request.stream)


def cancel(request: GenerateRequest) -> HttpRequest:
    """Stops `request` by its JSON `id`. A closed connection is noticed only when Triton next writes to it."""
    tensors = {"id": request.request_id, "text_input": "", "stop": True}
    return generate_request(request, tensors, stream=False)
