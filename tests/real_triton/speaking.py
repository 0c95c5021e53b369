"""What the models of the real Triton have in common: each says what the user said, backwards.

Triton's python backend loads this file beside a `model.py` (`classic.py` or `llmapi.py`, copied).
A token is four bytes of UTF-8, so most Chinese characters come in two halves, as from a real tokenizer.

Words in the user's text that make a model misbehave:

    !slow       a token takes SLOW seconds instead of none
    !prefill    before the first one, PREFILL seconds pass
    !raise N    fails after N tokens, with a traceback for a message
    !too-long   refuses the prompt, in TensorRT-LLM's words
    !nothing    ends without a response
    !invalid    sends the bytes of each token as they are, half characters among them
    !logits N   sends N numbers of logits with each response

What happened goes to `journal.jsonl` beside the model repository, a line for each event: `started`; `told`,
when a model that sleeps between tokens found its request cancelled; then `ended`, `failed` or `cancelled`.
"""

import json
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import triton_python_backend_utils as triton  # type: ignore[import-not-found]  # exists inside the backend

BYTES_PER_TOKEN = 4
SLOW = 0.05
PREFILL = 0.5
LOOK = 0.002
"""Seconds between two looks whether the request was cancelled, while a model sleeps."""
CANCELLED = "Request cancelled by client"
FINAL = triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL
USER = re.compile(r"<\|start_header_id\|>user<\|end_header_id\|>\n\n(.*?)<\|eot_id\|>", re.DOTALL)


@dataclass
class Run:
    """A request under way."""

    id: str
    prompt: str
    max_tokens: int
    stop_words: list[str]
    stream: bool
    flags: frozenset[str]
    """Inputs that are true."""
    is_cancelled: Callable[[], bool]
    """As Triton knows it."""
    sender: Any
    tokens: int = 0
    """Made so far."""
    was_told: bool = False
    stopped: threading.Event = field(default_factory=threading.Event)
    """By a request that says so."""

    @property
    def said(self) -> str:
        """The last message of the user, or all of a prompt that is no chat."""
        said: list[str] = USER.findall(self.prompt)
        return said[-1] if said else self.prompt

    def number(self, word: str) -> int | None:
        """What follows a word that makes it misbehave."""
        found = re.search(rf"{word} (\d+)", self.prompt)
        return int(found[1]) if found else None


class Speaker:
    """A model of Triton's python backend. Subclasses know the tensors."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.parameters = frozenset(config["parameters"])
        self.batched = config["max_batch_size"] > 0
        self.name = args["model_name"]
        self.journal = Path(args["model_repository"]).parents[1] / "journal.jsonl"
        self.runs: dict[str, Run] = {}

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            if any(elements(request, "stop")):
                self.stop(request)
                continue
            run = self.read(request)  # here: Triton takes the tensors back when this method returns
            self.runs[run.id] = run
            serve = threading.Thread(target=self.serve, args=(run,))
            serve.start()
            if "serial" in self.parameters:
                serve.join()

    def stop(self, request: Any) -> None:
        """Stop the request with the same id; the answer is always an error."""
        if (run := self.runs.get(request.request_id())) is not None:
            run.stopped.set()
        error = triton.TritonError(CANCELLED, triton.TritonError.CANCELLED)
        request.get_response_sender().send(triton.InferenceResponse(error=error), flags=FINAL)

    def read(self, request: Any) -> Run:
        raise NotImplementedError

    def serve(self, run: Run) -> None:
        self.note("started", run)
        how = "ended"
        try:
            for response in self.answer(run):
                if self.gives_up(run):
                    how = "cancelled"
                    break
                if response is not None:
                    run.sender.send(response)
            self.finish(run, how)
        except Exception:
            how = "failed"
            error = triton.TritonError(traceback.format_exc())
            run.sender.send(triton.InferenceResponse(error=error), flags=FINAL)
        self.runs.pop(run.id, None)
        self.note(how, run)

    def gives_up(self, run: Run) -> bool:
        return run.stopped.is_set() or run.is_cancelled()

    def finish(self, run: Run, how: str) -> None:
        run.sender.send(flags=FINAL)

    def answer(self, run: Run) -> Iterator[Any]:
        """What to send after each token: None until the last one if it is not streamed."""
        if "!too-long" in run.prompt:
            raise RuntimeError("Prompt length (5056) exceeds maximum input length (2048). Set log level")
        if "!nothing" in run.prompt:
            return
        self.sleep(run, PREFILL if "!prefill" in run.prompt else 0)
        breaks_after = run.number("!raise")
        answer = run.said[::-1].encode()
        tokens = min(run.max_tokens, tokens_of(answer))
        before = ""
        while run.tokens < tokens:
            if run.tokens == breaks_after:
                raise RuntimeError(f"no memory at 0x7f0000000000 for {self.name}")
            self.sleep(run, SLOW if "!slow" in run.prompt else 0)
            so_far = answer[: (run.tokens + 1) * BYTES_PER_TOKEN]
            run.tokens += 1
            text = so_far.decode(errors="ignore")
            stopped_by = next((stop for stop in run.stop_words if stop in text), None)
            reason = "stop" if stopped_by or so_far == answer else "length" if run.tokens == tokens else None
            yield self.response(run, so_far, before, stopped_by, reason)
            if reason is not None:
                return
            before = text

    def response(
        self, run: Run, so_far: bytes, before: str, stopped_by: str | None, reason: str | None
    ) -> Any:
        """What follows a token; None: nothing. `before`: the whole characters up to then."""
        raise NotImplementedError

    def tensors(self, run: Run, **values: Any) -> Any:
        """A response of these tensors, text as bytes; and of logits, if they are wanted."""
        kinds = {bytes: numpy.object_, str: numpy.object_, int: numpy.int32}
        tensors = []
        for name, value in values.items():
            array = numpy.array([value], kinds[type(value)])
            tensors.append(triton.Tensor(name, array[None] if self.batched else array))
        if (logits := run.number("!logits")) is not None:
            array = numpy.linspace(-20, 20, logits, dtype=numpy.float32)
            tensors.append(triton.Tensor("context_logits", array[None, None] if self.batched else array))
        return triton.InferenceResponse(output_tensors=tensors)

    def sleep(self, run: Run, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if not run.was_told and run.is_cancelled():
                run.was_told = True
                self.note("told", run)
            time.sleep(min(left, LOOK))

    def note(self, event: str, run: Run) -> None:
        entry = {
            "model": self.name, "id": run.id, "event": event, "prompt": run.prompt, "tokens": run.tokens,
            "at": time.monotonic(),
        }  # fmt: skip
        with self.journal.open("a") as journal:
            journal.write(json.dumps(entry) + "\n")


def elements(request: Any, name: str) -> list[Any]:
    """Of an input tensor; none where it is absent."""
    tensor = triton.get_input_tensor_by_name(request, name)
    return [] if tensor is None else tensor.as_numpy().flatten().tolist()


def tokens_of(text: bytes) -> int:
    return -(-len(text) // BYTES_PER_TOKEN)
