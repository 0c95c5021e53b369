"""The classic vocabulary of TensorRT-LLM on Triton: `inflight_batcher_llm`, ids in the middle.

`ensemble` decodes each token alone: pieces of characters come out as U+FFFD. `tensorrt_llm_bls` does so too,
or with `text_mode="cumulative"` sends the whole text so far in each event (its `accumulate_tokens`); stop
words stay in the text; no response tells why it ended.
"""

import json
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from backends.simulated.constrained import instance_of
from backends.simulated.dialects.triton_tensors import Asked, Refused, Tensors, Vocabulary, as_int32
from backends.simulated.live import Piece

__all__ = ["Classic"]

_INPUTS: Tensors = MappingProxyType(
    {
        "text_input": ("BYTES", [-1, 1]),
        "max_tokens": ("INT32", [-1, 1]),
        "bad_words": ("BYTES", [-1, -1]),
        "stop_words": ("BYTES", [-1, -1]),
        "exclude_input_in_output": ("BOOL", [-1, 1]),
        "end_id": ("INT32", [-1, 1]),
        "pad_id": ("INT32", [-1, 1]),
        "top_k": ("INT32", [-1, 1]),
        "top_p": ("FP32", [-1, 1]),
        "temperature": ("FP32", [-1, 1]),
        "length_penalty": ("FP32", [-1, 1]),
        "repetition_penalty": ("FP32", [-1, 1]),
        "min_tokens": ("INT32", [-1, 1]),
        "presence_penalty": ("FP32", [-1, 1]),
        "frequency_penalty": ("FP32", [-1, 1]),
        "seed": ("UINT64", [-1, 1]),
        "return_log_probs": ("BOOL", [-1, 1]),
        "return_num_input_tokens": ("BOOL", [-1, 1]),
        "return_num_output_tokens": ("BOOL", [-1, 1]),
        "beam_width": ("INT32", [-1, 1]),
        "num_return_sequences": ("INT32", [-1, 1]),
        "stream": ("BOOL", [-1, 1]),
        "lora_task_id": ("UINT64", [-1, 1]),
        "guided_decoding_guide_type": ("BYTES", [-1, 1]),
        "guided_decoding_guide": ("BYTES", [-1, 1]),
    }
)
_OUTPUTS: Tensors = MappingProxyType(
    {
        "text_output": ("BYTES", [-1, -1]),
        "cum_log_probs": ("FP32", [-1, -1]),
        "output_log_probs": ("FP32", [-1, -1, -1]),
        "batch_index": ("INT32", [-1, 1]),
        "sequence_index": ("INT32", [-1, 1]),
        "num_input_tokens": ("INT32", [-1, 1]),
        "num_output_tokens": ("INT32", [-1, 1]),
    }
)


def _guided(tensors: dict[str, Any]) -> str | None:
    """All that guided decoding lets the model say. Raises Refused for what the backend cannot read."""
    kind, guide = tensors.get("guided_decoding_guide_type"), tensors.get("guided_decoding_guide")
    match kind:
        case None | "regex" | "ebnf_grammar" | "structural_tag":
            return None  # of these the model here speaks none
        case "json":
            return '{"answer": "water"}'
        case "json_schema" if guide is not None:
            try:
                return instance_of(json.loads(guide))
            except ValueError as error:
                raise Refused(400, f"Failed to parse the guide: {error}") from error
        case _:
            raise Refused(400, f"Unsupported guided decoding guide type: {kind}")


class Classic(Vocabulary):
    """Pre- and postprocessing as models of their own, joined by an ensemble or by business logic."""

    models = ("ensemble", "postprocessing", "preprocessing", "tensorrt_llm", "tensorrt_llm_bls")
    speaking = ("ensemble", "tensorrt_llm_bls")
    # An ensemble is decoupled as soon as one of its steps is.
    decoupled = ("ensemble", "tensorrt_llm", "tensorrt_llm_bls")
    inputs = _INPUTS
    outputs = _OUTPUTS
    required = ("text_input", "max_tokens")
    exports_load = True

    def asked(self, model: str, request_id: str | None, tensors: dict[str, Any]) -> Asked:
        if tensors.get("stream") and not self.options.decoupled:
            raise Refused(400, "Streaming is only supported in decoupled mode.")
        for name in ("top_k", "min_tokens"):  # 1.0-era backends die of it (TensorRT-LLM#6329)
            if tensors.get(name, 0) < 0:
                raise Refused(500, f"Encountered an error in forwardAsync function: invalid {name}")
        end_id = tensors.get("end_id")
        return Asked(
            model=model,
            id=request_id,
            tensors=tensors,
            text=tensors["text_input"],
            prompt=self.tokenizer.encode(tensors["text_input"], add_special_tokens=True),
            max_tokens=as_int32(tensors["max_tokens"]),
            streams=bool(tensors.get("stream")),
            choices=max(1, tensors.get("num_return_sequences", 1)),
            seed=tensors.get("seed"),
            stop=tensors.get("stop_words", ()),
            stop_ids=frozenset() if end_id is None else frozenset({end_id}),
            says=_guided(tensors),
        )

    def response(
        self, asked: Asked, said: list[list[Piece]], news: Sequence[Piece], *, streamed: bool
    ) -> dict[str, Any]:
        choice = news[-1].choice
        ids = [[piece.token_id for piece in pieces] for pieces in said]
        text: str | list[str]
        if not streamed:
            echo = asked.flag("exclude_input_in_output", not self.options.echo_input) is False
            texts = [(asked.text if echo else "") + self.tokenizer.decode(answer) for answer in ids]
            text = texts[0] if len(texts) == 1 else texts
        elif asked.model == "tensorrt_llm_bls" and self.options.text_mode == "cumulative":
            text = self.tokenizer.decode(ids[choice])
        else:
            text = self.tokenizer.decode([news[-1].token_id])
        body: dict[str, Any] = {"model_name": asked.model, "model_version": "1", "text_output": text}
        if asked.id is not None:
            body["id"] = asked.id
        if asked.model == "ensemble":
            body |= {"sequence_end": False, "sequence_id": 0, "sequence_start": False}
        else:
            body |= {"batch_index": 0, "sequence_index": choice if streamed else 0}
        if asked.flag("return_log_probs"):
            logprobs = [piece.logprob for piece in news]
            body |= {
                "cum_log_probs": sum(logprobs),
                "output_log_probs": logprobs[0] if len(logprobs) == 1 else logprobs,
            }
        if asked.flag("return_num_input_tokens"):
            body["num_input_tokens"] = len(asked.prompt)
        if asked.flag("return_num_output_tokens"):
            counts = [len(answer) for answer in ids]
            body["num_output_tokens"] = counts[choice] if streamed or len(counts) == 1 else counts
        return body
