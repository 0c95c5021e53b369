"""A model for Triton's python backend: says what the user said, backwards, in the shape of a language model.

Triton loads this file, not the tests. The tensors are those of TensorRT-LLM's `tensorrt_llm_bls`. A token is
four bytes of UTF-8, so most Chinese characters come in two halves, as from a real tokenizer. Two parameters
in config.pbtxt:

    accumulate_tokens   each event holds all text so far, a half character as U+FFFD (TensorRT-LLM's word for
                        it); otherwise each holds its own whole characters, which may be none
    serial              one request at a time, so that the next ones wait in Triton's own queue

Words in the user's text that make it misbehave:

    !slow       a token takes SLOW seconds instead of none
    !raise N    fails after N tokens, with a traceback for a message, as `tensorrt_llm_bls` does
    !too-long   refuses the prompt, in TensorRT-LLM's words

What happened goes to `journal.jsonl` beside the model repository, one line for each start and end.
"""

import json
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import triton_python_backend_utils as triton  # type: ignore[import-not-found]  # exists inside the backend

BYTES_PER_TOKEN = 4
SLOW = 0.05
FINAL = triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL
USER = re.compile(r"<\|start_header_id\|>user<\|end_header_id\|>\n\n(.*?)<\|eot_id\|>", re.DOTALL)


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self.cumulative = "accumulate_tokens" in parameters
        self.serial = "serial" in parameters
        self.name = args["model_name"]
        self.journal = Path(args["model_repository"]).parents[1] / "journal.jsonl"

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            question = Question.read(request)  # here: Triton takes the tensors back when this method returns
            serve = threading.Thread(
                target=self.serve, args=(question, request.is_cancelled, request.get_response_sender())
            )
            serve.start()
            if self.serial:
                serve.join()

    def serve(self, question: "Question", is_cancelled: Callable[[], bool], sender: Any) -> None:
        self.note("started", question)
        try:
            for response in self.answer(question):
                if is_cancelled():
                    break
                if response is not None:
                    sender.send(response)
            how = "cancelled" if is_cancelled() else "ended"
            sender.send(flags=FINAL)
        except Exception:
            how = "failed"
            error = triton.TritonError(traceback.format_exc())
            sender.send(triton.InferenceResponse(error=error), flags=FINAL)
        self.note(how, question)

    def answer(self, question: "Question") -> Iterator[Any]:
        """What to send after each token: None until the last one if it is not streamed."""
        if "!too-long" in question.prompt:
            raise RuntimeError("Prompt length (5056) exceeds maximum input length (2048). Set log level")
        broken = re.search(r"!raise (\d+)", question.prompt)
        answer = question.said[::-1].encode()
        tokens = min(question.max_tokens, tokens_of(answer))
        text = ""
        for number in range(1, tokens + 1):
            if broken and number > int(broken[1]):
                raise RuntimeError(f"no memory at 0x7f0000000000 for {self.name}")
            time.sleep(SLOW if "!slow" in question.prompt else 0)
            so_far = answer[: number * BYTES_PER_TOKEN]
            before, text = text, so_far.decode(errors="ignore")
            last = number == tokens or any(stop in text for stop in question.stop_words)
            if question.stream and not self.cumulative:
                yield self.response(question, text[len(before) :], 1)
            elif question.stream or last:
                yield self.response(question, so_far.decode(errors="replace"), number)
            else:
                yield None
            if last:
                return

    def response(self, question: "Question", text: str, tokens: int) -> Any:
        """`tokens`: all so far, or those of this event; both are found in the wild."""
        outputs = [triton.Tensor("text_output", numpy.array([[text.encode()]], dtype=numpy.object_))]
        if question.counts:
            prompt_tokens = tokens_of(question.prompt.encode())
            outputs.append(triton.Tensor("num_input_tokens", numpy.array([[prompt_tokens]], numpy.int32)))
            outputs.append(triton.Tensor("num_output_tokens", numpy.array([[tokens]], numpy.int32)))
        return triton.InferenceResponse(output_tensors=outputs)

    def note(self, event: str, question: "Question") -> None:
        entry = {"model": self.name, "id": question.id, "event": event, "prompt": question.prompt}
        with self.journal.open("a") as journal:
            journal.write(json.dumps(entry) + "\n")


class Question(NamedTuple):
    """The input tensors that matter here."""

    id: str
    prompt: str
    max_tokens: int
    stop_words: list[str]
    stream: bool
    counts: bool

    @classmethod
    def read(cls, request: Any) -> "Question":
        def elements(name: str) -> list[Any]:
            tensor = triton.get_input_tensor_by_name(request, name)
            return [] if tensor is None else tensor.as_numpy().flatten().tolist()

        return cls(
            id=request.request_id(),
            prompt=elements("text_input")[0].decode(),
            max_tokens=elements("max_tokens")[0],
            stop_words=[stop.decode() for stop in elements("stop_words")],
            stream=any(elements("stream")),
            counts=any(elements("return_num_input_tokens")) and any(elements("return_num_output_tokens")),
        )

    @property
    def said(self) -> str:
        """The last message of the user, or all of a prompt that is no chat."""
        said: list[str] = USER.findall(self.prompt)
        return said[-1] if said else self.prompt


def tokens_of(text: bytes) -> int:
    return -(-len(text) // BYTES_PER_TOKEN)
