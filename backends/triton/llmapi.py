"""The `llmapi` vocabulary: TensorRT-LLM's PyTorch backend behind Triton, model `tensorrt_llm`.

Other tensor names than the classic models, and other manners (`model.py` and `config.pbtxt` of TensorRT-LLM's
triton_backend/all_models/llmapi):

    sampling_param_*   everything that steers sampling; no repetition penalty, no constrained output
    streaming          the stream switch; each event holds **all text so far**
    stop               the *cancel* flag: a second request with the same JSON `id` and `stop: true`
    finish reason      only where it is asked for; the words are TensorRT-LLM's, and "None" until there is one
    stop reason        likewise: the stop string, which is cut off; what it began with may be in events before
    token counts       none
    prompt             echoed unless sampling_param_exclude_input_from_output says no
"""

from collections.abc import Mapping
from typing import Any

from backends.contract import GenerateRequest, HttpRequest
from backends.text_engines import plain_text
from backends.triton.wire import DEFAULT_MAX_TOKENS, generate_request

__all__ = ["cancel", "encode"]


def encode(request: GenerateRequest, parameters: Mapping[str, Any]) -> HttpRequest:
    tensors: dict[str, Any] = {
        "id": request.request_id,
        "text_input": plain_text(request),
        "streaming": request.stream,
        "return_finish_reason": True,
        "sampling_param_max_tokens": DEFAULT_MAX_TOKENS,
        "sampling_param_exclude_input_from_output": True,
        **parameters,
    }
    if any(request.stop):
        tensors["return_stop_reason"] = True
    if (lora := request.lora) is not None:
        tensors |= {"lora_id": lora.id, "lora_name": lora.name, "lora_path": lora.path}
    return generate_request(request, tensors, stream=request.stream)


def cancel(request: GenerateRequest) -> HttpRequest:
    """Stops `request` by its JSON `id`. A closed connection is noticed only when Triton next writes to it."""
    tensors = {"id": request.request_id, "text_input": "", "stop": True}
    return generate_request(request, tensors, stream=False)
