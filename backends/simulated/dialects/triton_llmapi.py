"""The vocabulary of the llmapi backend: one Python model, `tensorrt_llm`, over TensorRT-LLM's LLM class.

From triton_backend/all_models/llmapi of TensorRT-LLM (1/model.py, config.pbtxt): only the text is required;
sampling tensors are called `sampling_param_*`; each event holds the whole text so far, stop strings cut, the
prompt in front unless it is excluded; every extra output is a string, `None` included. `stop` is no stop
string: true, it cancels the requests of the same `id`, and is answered by an error itself; a stream that was
stopped so ends with one more event, an answer that is not streamed never comes.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from backends.simulated.dialects.triton_tensors import Asked, Refused, Tensors, Vocabulary, as_int32
from backends.simulated.live import Piece

__all__ = ["Llmapi"]

_INPUTS: Tensors = MappingProxyType(
    {
        "text_input": ("BYTES", [-1]),
        "image_url": ("BYTES", [-1]),
        "streaming": ("BOOL", [1]),
        "sampling_param_best_of": ("INT32", [1]),
        "sampling_param_temperature": ("FP32", [1]),
        "sampling_param_top_k": ("INT32", [1]),
        "sampling_param_top_p": ("FP32", [1]),
        "sampling_param_frequency_penalty": ("FP32", [1]),
        "sampling_param_presence_penalty": ("FP32", [1]),
        "sampling_param_max_tokens": ("INT32", [1]),
        "sampling_param_stop": ("BYTES", [-1]),
        "sampling_param_seed": ("UINT64", [1]),
        "sampling_param_exclude_input_from_output": ("BOOL", [1]),
        "sampling_param_return_perf_metrics": ("BOOL", [1]),
        "return_finish_reason": ("BOOL", [1]),
        "return_stop_reason": ("BOOL", [1]),
        "return_cumulative_logprob": ("BOOL", [1]),
        "stop": ("BOOL", [1]),
        "lora_id": ("UINT64", [1]),
        "lora_name": ("BYTES", [1]),
        "lora_path": ("BYTES", [1]),
        "lora_ckpt_source": ("BYTES", [1]),
    }
)
_OUTPUTS: Tensors = MappingProxyType(
    {
        "text_output": ("BYTES", [-1]),
        "finish_reason": ("BYTES", [-1]),
        "stop_reason": ("BYTES", [-1]),
        "cumulative_logprob": ("FP32", [-1]),
        "kv_cache_reused_block": ("INT32", [-1]),
        "kv_cache_missed_block": ("INT32", [-1]),
        "kv_cache_alloc_new_blocks": ("INT32", [-1]),
        "kv_cache_alloc_total_blocks": ("INT32", [-1]),
        "kv_cache_hit_rate": ("FP32", [-1]),
        "arrival_time_ns": ("INT64", [1]),
        "first_scheduled_time_ns": ("INT64", [1]),
        "first_token_time_ns": ("INT64", [1]),
        "last_token_time_ns": ("INT64", [1]),
        "acceptance_rate": ("FP32", [1]),
        "total_accepted_draft_tokens": ("INT32", [1]),
        "total_draft_tokens": ("INT32", [1]),
    }
)
_DEFAULT_MAX_TOKENS = 32  # of tensorrt_llm.SamplingParams
_PERF_OUTPUTS = [name for name in _OUTPUTS if name.startswith(("kv_", "total_")) or name.endswith("_ns")]


class Llmapi(Vocabulary):
    """One model for everything."""

    models = ("tensorrt_llm",)
    speaking = ("tensorrt_llm",)
    decoupled = ("tensorrt_llm",)
    inputs = _INPUTS
    outputs = _OUTPUTS
    required = ("text_input",)
    exports_load = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.max_batch_size = 0

    def asked(self, model: str, request_id: str | None, tensors: dict[str, Any]) -> Asked:
        if tensors.get("streaming") and not self.options.decoupled:
            raise Refused(400, "Error generating request: Streaming is only supported in decoupled mode.")
        max_tokens = as_int32(tensors.get("sampling_param_max_tokens", _DEFAULT_MAX_TOKENS))
        if max_tokens < 1:
            raise Refused(
                400, f"Error generating request: require max_tokens > 0, got max_tokens={max_tokens}"
            )
        if (top_k := tensors.get("sampling_param_top_k", 0)) < 0:
            raise Refused(400, f"Error generating request: require top_k >= 0, got top_k={top_k}")
        text = tensors["text_input"][0] if tensors["text_input"] else ""
        return Asked(
            model=model,
            id=request_id,
            tensors=tensors,
            text=text,
            prompt=self.tokenizer.encode(text, add_special_tokens=True),
            max_tokens=max_tokens,
            streams=bool(tensors.get("streaming")),
            seed=tensors.get("sampling_param_seed"),
            stop=tensors.get("sampling_param_stop", ()),
        )

    def response(
        self, asked: Asked, said: list[list[Piece]], news: Sequence[Piece], *, streamed: bool
    ) -> dict[str, Any]:
        pieces = said[0]
        text = _streamed(pieces) if streamed else "".join(piece.visible for piece in pieces)
        if not asked.flag("sampling_param_exclude_input_from_output"):
            text = asked.text + text
        last = news[-1] if news else None
        ending = None if last is None else last.ending
        body = {"model_name": asked.model, "model_version": "1", "text_output": text}
        if asked.id is not None:
            body["id"] = asked.id
        if asked.flag("return_finish_reason"):
            body["finish_reason"] = "stop" if ending == "eos" else str(ending)
        if asked.flag("return_stop_reason"):
            body["stop_reason"] = str(None if last is None else last.stopped_by)
        if asked.flag("return_cumulative_logprob"):
            body["cumulative_logprob"] = str(sum(piece.logprob for piece in pieces))
        if asked.flag("sampling_param_return_perf_metrics"):
            body |= dict.fromkeys(_PERF_OUTPUTS, "0") | {"kv_cache_hit_rate": "0.0", "acceptance_rate": "0.0"}
        return body

    def failure(self) -> str:
        return "Error generating request: simulated failure of the engine"

    def cancels(self, tensors: Mapping[str, Any]) -> bool:
        return bool(tensors.get("stop"))

    def cancelled(self, asked: Asked, said: list[list[Piece]]) -> dict[str, Any] | None:
        body = self.response(asked, said, [], streamed=True)
        if asked.flag("return_finish_reason"):
            body["finish_reason"] = "cancelled"
        return body


def _streamed(pieces: Sequence[Piece]) -> str:
    """The text so far. Nothing is held back, and what has been let out of a stop string is not taken back."""
    said, last = pieces[:-1], pieces[-1:]
    if not last or last[0].ending != "stop":
        return "".join(piece.text for piece in pieces)
    return max("".join(piece.text for piece in said), "".join(piece.visible for piece in pieces), key=len)
