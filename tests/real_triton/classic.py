"""A model with the tensors of TensorRT-LLM's `tensorrt_llm_bls`. Triton loads this file, not the tests.

Parameters in config.pbtxt:

    accumulate_tokens   each event holds all text so far, a half character as U+FFFD (TensorRT-LLM's word for
                        it); otherwise each holds its own whole characters, which may be none
    serial              one request at a time, so that the next ones wait in Triton's own queue
"""

from typing import Any

from speaking import Run, Speaker, elements, tokens_of  # type: ignore[import-not-found]


class TritonPythonModel(Speaker):  # type: ignore[misc]
    def read(self, request: Any) -> Run:
        flags = ("stream", "return_num_input_tokens", "return_num_output_tokens")
        return Run(
            id=request.request_id(),
            prompt=elements(request, "text_input")[0].decode(),
            max_tokens=elements(request, "max_tokens")[0],
            stop_words=[stop.decode() for stop in elements(request, "stop_words")],
            stream=any(elements(request, "stream")),
            flags=frozenset(name for name in flags if any(elements(request, name))),
            is_cancelled=request.is_cancelled,
            sender=request.get_response_sender(),
        )

    def response(
        self, run: Run, so_far: bytes, before: str, stopped_by: str | None, reason: str | None
    ) -> Any:
        """With the stop word; counts are of all tokens so far or of this event, as both are in the wild."""
        if not run.stream and reason is None:
            return None
        in_pieces = run.stream and "accumulate_tokens" not in self.parameters
        text = so_far.decode(errors="ignore")[len(before) :] if in_pieces else so_far.decode(errors="replace")
        raw = so_far[(run.tokens - 1) * 4 :] if in_pieces else so_far
        values: dict[str, Any] = {"text_output": raw if "!invalid" in run.prompt else text.encode()}
        if {"return_num_input_tokens", "return_num_output_tokens"} <= run.flags:
            values["num_input_tokens"] = tokens_of(run.prompt.encode())
            values["num_output_tokens"] = 1 if in_pieces else run.tokens
        return self.tensors(run, **values)
