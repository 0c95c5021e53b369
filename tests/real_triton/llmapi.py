"""A model with the tensors and manners of TensorRT-LLM's PyTorch backend. Triton loads this file.

From triton_backend/all_models/llmapi/tensorrt_llm/1 of TensorRT-LLM: all text so far in each event, stop
strings cut, the prompt in front unless that is excluded, "None" for a reason until there is one; looks every
100 ms whether a request was cancelled, and ends it with an error. A request with `stop` aborts those of its
id, and is answered with an error itself: a stream then ends with one more event, whose reason is "cancelled";
to one that is not streamed nothing more is said, not even that it is over.
"""

import time
from typing import Any

import triton_python_backend_utils as triton  # type: ignore[import-not-found]
from speaking import CANCELLED, FINAL, Run, Speaker, elements  # type: ignore[import-not-found]

PERIOD = 0.1
DEFAULT_MAX_TOKENS = 32


class TritonPythonModel(Speaker):  # type: ignore[misc]
    def initialize(self, args: dict[str, str]) -> None:
        super().initialize(args)
        self.looked: dict[int, float] = {}

    def read(self, request: Any) -> Run:
        flags = ("return_finish_reason", "return_stop_reason", "sampling_param_exclude_input_from_output")
        return Run(
            id=request.request_id(),
            prompt=elements(request, "text_input")[0].decode(),
            max_tokens=next(iter(elements(request, "sampling_param_max_tokens")), DEFAULT_MAX_TOKENS),
            stop_words=[stop.decode() for stop in elements(request, "sampling_param_stop")],
            stream=any(elements(request, "streaming")),
            flags=frozenset(name for name in flags if any(elements(request, name))),
            is_cancelled=request.is_cancelled,
            sender=request.get_response_sender(),
        )

    def serve(self, run: Run) -> None:
        self.looked[id(run)] = time.monotonic()
        try:
            super().serve(run)
        finally:
            self.looked.pop(id(run))

    def gives_up(self, run: Run) -> bool:
        if run.stopped.is_set():
            return True
        if time.monotonic() < self.looked[id(run)] + PERIOD:
            return False
        self.looked[id(run)] = time.monotonic()
        return run.is_cancelled()

    def finish(self, run: Run, how: str) -> None:
        if how == "ended":
            run.sender.send(flags=FINAL)
        elif not run.stopped.is_set():
            error = triton.TritonError(CANCELLED, triton.TritonError.CANCELLED)
            run.sender.send(triton.InferenceResponse(error=error), flags=FINAL)
        elif run.stream:
            run.sender.send(self._said(run, "", "cancelled"), flags=FINAL)

    def response(
        self, run: Run, so_far: bytes, before: str, stopped_by: str | None, reason: str | None
    ) -> Any:
        if not run.stream and reason is None:
            return None
        text = so_far.decode(errors="replace")
        if stopped_by is not None:
            text = text[: text.index(stopped_by)]
        return self._said(run, text, str(reason), str(stopped_by))

    def _said(self, run: Run, text: str, reason: str, stopped_by: str = "None") -> Any:
        if "sampling_param_exclude_input_from_output" not in run.flags:
            text = run.prompt + text
        told = {"finish_reason": reason} if "return_finish_reason" in run.flags else {}
        if "return_stop_reason" in run.flags:
            told["stop_reason"] = stopped_by
        return self.tensors(run, text_output=text.encode(), **told)
