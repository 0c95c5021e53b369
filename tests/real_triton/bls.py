"""Business logic over another model, as `tensorrt_llm_bls` of TensorRT-LLM is. Triton loads this file.

An instance serves one request at a time and passes on what the inner model says, which it asks under an id
of its own making. As it is shipped (triton_backend/all_models/inflight_batcher_llm/tensorrt_llm_bls/1), it
never asks whether its request was cancelled. With the parameter `attentive` it does, and tells the inner
model to stop, with the tensor that it is told by when a stop word was found: what README.md proposes.
"""

import json
import traceback
import uuid
from typing import Any

import numpy
import triton_python_backend_utils as triton  # type: ignore[import-not-found]

INNER = "inner"
OUTPUTS = ["text_output", "num_input_tokens", "num_output_tokens"]
"""All that the inner model may send: what it sends unasked, Triton frees without holding Python's lock (src/
response_sender.cc of its python backend), and its process may die of that, from Python 3.12 on."""
FINAL = triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.attentive = "attentive" in json.loads(args["model_config"])["parameters"]
        self.heard: list[Any] = []
        """Of the last request: Triton's iterator frees without Python's lock what nobody else holds."""

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                self.relay(request, sender)
            except Exception:
                error = triton.TritonError(traceback.format_exc())
                sender.send(triton.InferenceResponse(error=error))
            sender.send(flags=FINAL)

    def relay(self, request: Any, sender: Any) -> None:
        inner = str(uuid.uuid4())
        self.heard.clear()
        for response in ask(inner, request.inputs()):
            self.heard.append(response)
            if response.has_error():  # its last: whoever waits for more waits for ever
                raise triton.TritonModelException(response.error().message())
            if tensors := response.output_tensors():
                sender.send(triton.InferenceResponse(output_tensors=tensors))
            if self.attentive and request.is_cancelled():
                stop(inner)
                break


def ask(inner: str, tensors: list[Any]) -> Any:
    request = triton.InferenceRequest(
        model_name=INNER, request_id=inner, inputs=tensors, requested_output_names=OUTPUTS
    )
    return request.exec(decoupled=True)


def stop(inner: str) -> None:
    tensors = [
        triton.Tensor("text_input", numpy.array([[b""]], numpy.object_)),
        triton.Tensor("max_tokens", numpy.array([[0]], numpy.int32)),
        triton.Tensor("stop", numpy.array([[True]])),
    ]
    next(iter(ask(inner, tensors)))
