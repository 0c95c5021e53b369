"""Triton's generate extension, with the classic TensorRT-LLM tensors, on the wire (`llmapi.py`: the others).

The models are `ensemble` and `tensorrt_llm_bls` of tensorrtllm_backend. Requests are flat JSON in which each
key is an input tensor (docs/protocol/extension_generate.md); which, and in which type: `parameters.py`.

Answers have no end marker and no finish reason. A stream is complete when its body ends cleanly after one
event or more. The reason is derived: a stop string was found -> stop; as many output tokens as asked ->
length; else stop. Where events have a finish reason (llmapi, which says "None" until there is one), a stream
without one is a cut.

Text comes in three ways (`text_mode`), and the metadata does not tell which:

    delta        each event holds new text (`ensemble`; `tensorrt_llm_bls` as shipped)
    cumulative   each event holds all text so far (`tensorrt_llm_bls` with accumulate_tokens); its tail may
                 be U+FFFD until a character is whole, and may change
    auto         decided by the first events, see `_Undecided`
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol
from urllib.parse import quote

import msgspec

from backends.contract import (
    Delta,
    ErrorKind,
    FinishReason,
    GenerateRequest,
    HttpRequest,
    Usage,
)
from backends.decoding import (
    MAX_DOCUMENT_BYTES,
    AnswerDecoder,
    engine_words,
    lenient_json,
    token_count,
)
from backends.headers import json_headers
from backends.text_engines import VisibleText, plain_text
from backends.triton.errors import BROKEN, CLASSIC

__all__ = [
    "DEFAULT_MAX_TOKENS", "TextMode", "TritonDecoder", "encode", "generate_request",
    "max_tokens_sent",
]  # fmt: skip

TextMode = Literal["delta", "cumulative", "auto"]

DEFAULT_MAX_TOKENS = 1024
"""Sent where nobody names a bound: the tensor is required."""

# ---------------------------------------------------------------------------------------------- requests


def encode(request: GenerateRequest, parameters: Mapping[str, Any]) -> HttpRequest:
    """`request` as tensors, those that the table wrote among them, for `generate` or `generate_stream`."""
    tensors: dict[str, Any] = {
        "id": request.request_id,
        "text_input": plain_text(request),
        "max_tokens": DEFAULT_MAX_TOKENS,
        "stream": request.stream,
        "exclude_input_in_output": True,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
        **parameters,
    }
    if request.lora is not None:
        tensors["lora_task_id"] = request.lora.id
    return generate_request(request, tensors, stream=request.stream)


def generate_request(request: GenerateRequest, tensors: Mapping[str, Any], *, stream: bool) -> HttpRequest:
    """`tensors` for the model of `request`."""
    route = "generate_stream" if stream else "generate"
    return HttpRequest(
        "POST",
        f"/v2/models/{quote(request.model, safe='')}/{route}",
        json_headers(request),
        msgspec.json.encode(tensors),
    )


def max_tokens_sent(request: GenerateRequest) -> int:
    """The bound on output tokens that goes to the engine."""
    return DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens


# ----------------------------------------------------------------------------------------- text of streams


class _Reader(Protocol):
    """Makes new text of the `text_output` of successive events."""

    def read(self, piece: str) -> tuple["_Reader", str]:
        """The reader for the next event, and the text that is new for certain."""

    def rest(self, *, by_length: bool) -> str:
        """At the end: what was held back. `by_length`: the bound on its tokens ended the answer."""

    def taken_back(self) -> int:
        """How many characters at the end of what was given the last event has no more."""


_REPLACEMENT = "\ufffd"


class _Deltas:
    def read(self, piece: str) -> tuple[_Reader, str]:
        return self, piece

    def rest(self, *, by_length: bool) -> str:
        return ""

    def taken_back(self) -> int:
        return 0


class _Cumulative:
    """All text so far in each event; given out once, up to characters that may still change."""

    def __init__(self, given: str = "", latest: str = "") -> None:
        self._given = given
        self._latest = latest

    def read(self, piece: str) -> tuple[_Reader, str]:
        if not piece:  # a last event may be empty
            return self, ""
        self._latest = piece
        return self, self._new(piece.rstrip(_REPLACEMENT))

    def rest(self, *, by_length: bool) -> str:
        return self._new(self._latest)

    def taken_back(self) -> int:
        return max(0, len(self._given) - len(self._latest))

    def _new(self, text: str) -> str:
        """What `text` holds behind the beginning that it shares with what was given.

        What was given cannot be taken back. Where the engine changed it, the text goes on from the change: a
        few characters may be seen twice, none is lost.
        """
        common = _common_length(self._given, text)
        if common == len(text):  # nothing new, or shorter for now
            return ""
        self._given = text
        return text[common:]


def _common_length(one: str, other: str) -> int:
    """How many characters the two begin with alike."""
    if other.startswith(one):
        return len(one)
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))


class _Undecided:
    """Deltas or cumulative? Gives out what is right either way, until an event decides.

    An event that does not begin with the one before it can only be a delta. One that does, and is longer, is
    taken as cumulative, unless the one before is too short to prove anything ("\\n", "\\n\\n"; "a", "aa").
    An equal one proves nothing. At the end, a text that grew was cumulative. One that only repeated itself
    ("Yes", "Yes") was cumulative too if the model ended it there: the event of the end has no text of its
    own, so a delta would have been empty.
    """

    _PROOF_CHARACTERS = 2

    def __init__(self) -> None:
        self._pieces = ""  # all text, if these are deltas
        self._latest = ""  # all text, if they are cumulative
        self._given = ""
        self._grew = False
        self._ends_empty = False

    def read(self, piece: str) -> tuple[_Reader, str]:
        self._ends_empty = not piece
        if not piece:
            return self, ""
        before = self._latest.rstrip(_REPLACEMENT)
        is_first = not self._pieces
        self._pieces += piece
        if not is_first and not piece.startswith(before):
            return _Deltas(), self._pieces[len(self._given) :]
        grew = not is_first and len(piece.rstrip(_REPLACEMENT)) > len(before)
        self._grew |= grew
        self._latest = piece
        if grew and len(before.strip()) >= self._PROOF_CHARACTERS:
            return _Cumulative(self._given).read(piece)
        certain = _common_length(self._pieces, piece.rstrip(_REPLACEMENT))
        new = piece[len(self._given) : certain]
        self._given += new
        return self, new

    def rest(self, *, by_length: bool) -> str:
        is_cumulative = self._grew or not (by_length or self._ends_empty)
        return (self._latest if is_cumulative else self._pieces)[len(self._given) :]

    def taken_back(self) -> int:
        return max(0, len(self._given) - len(self._latest)) if self._grew else 0


def _reader(mode: TextMode) -> _Reader:
    match mode:
        case "delta":
            return _Deltas()
        case "cumulative":
            return _Cumulative()
        case "auto":
            return _Undecided()


# ----------------------------------------------------------------------------------------------- answers


class _Tensor(msgspec.Struct):
    """An output of the `infer` route."""

    name: str
    data: msgspec.Raw = msgspec.Raw(b"null")


class _Output(msgspec.Struct):
    """What is read of an event or answer. Whatever else a model gives (context_logits, generation_logits,
    cum_log_probs, ...) is passed over without being built: an object for each number would take three to
    eight times the memory of its bytes."""

    text_output: Any = msgspec.UNSET
    num_input_tokens: Any = msgspec.UNSET
    num_output_tokens: Any = msgspec.UNSET
    finish_reason: Any = msgspec.UNSET
    stop_reason: Any = msgspec.UNSET
    output_log_probs: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    """Only its length is of use, where no count is told."""
    outputs: list[_Tensor] | msgspec.UnsetType = msgspec.UNSET
    error: Any = msgspec.UNSET
    error_type: Any = msgspec.UNSET
    object: Any = msgspec.UNSET
    message: Any = msgspec.UNSET
    code: Any = msgspec.UNSET
    type: Any = msgspec.UNSET
    param: Any = msgspec.UNSET
    detail: Any = msgspec.UNSET


_OUTPUT = msgspec.json.Decoder(_Output)
_NUMBERS = re.compile(rb'(?<!\\)":\s*\[[-+0-9.eE,\sNaIinfty]{1024,}\]')
"""A tensor of many numbers, NaN and Infinity among them."""


def _read_output(data: bytes) -> Any:
    """The wanted tensors of an answer by name, or whatever JSON it is instead. Raises ValueError."""
    try:
        if not data.isascii():
            data.decode()  # msgspec does not look into what it passes over
        output = _OUTPUT.decode(data)
    except (ValueError, RecursionError):  # msgspec's errors and UnicodeDecodeError are ValueErrors
        return lenient_json(_NUMBERS.sub(b'":null', data))
    return {
        name: value for name, value in msgspec.structs.asdict(output).items() if value is not msgspec.UNSET
    }


class TritonDecoder(AnswerDecoder):
    """Answers of `generate` and `generate_stream`.

    `max_tokens` is the bound that was sent; None: nothing is known, so no answer is cut short by `length`.
    """

    def __init__(self, *, stops: Sequence[str], max_tokens: int | None, text_mode: TextMode) -> None:
        super().__init__(CLASSIC, max_event_bytes=MAX_DOCUMENT_BYTES)  # one may hold a tensor
        self._tells_reason = False
        self._told_reason: FinishReason | None = None  # llmapi's, if it was asked for
        self._told_stop: str | None = None  # likewise: the stop string that ended it
        self._stops = tuple(stops)
        self._max_tokens = max_tokens
        self._reader = _reader(text_mode)
        self._text = VisibleText(stops)
        self._answered = False
        self._untold = 0  # events without text since the last one that had some: half characters, or the end
        self._counts = _Counts()

    def read_event(self, data: bytes, raw: bytes) -> None:
        output = self._parse(data)
        if output is None:
            return
        piece = _single(output.get("text_output"))
        if piece is not None and not isinstance(piece, str):
            self.fail(ErrorKind.ENGINE, "a stream of several texts")
            return
        self._answered |= piece is not None
        self._counts.read(output, has_text=bool(piece))
        if (stop := _single(output.get("stop_reason"))) in self._stops:
            self._told_stop = stop
        if self._text.stopped:
            if self._text.has_waited_enough():
                self._end_well()
            return
        if piece is not None:
            self._reader, new = self._reader.read(piece)
            if piece:
                self._emit(self._text.add(new, tokens=1 + self._untold))
            self._untold = 0 if piece else self._untold + 1

    def read_document(self, data: bytes) -> None:
        output = self._parse(data)
        if output is None:
            return
        texts = output.get("text_output")
        texts = texts if isinstance(texts, list) else [texts]
        if not texts or not all(isinstance(text, str) for text in texts):
            self.fail(ErrorKind.ENGINE, "an answer without text_output")
            return
        self._counts.read(output, has_text=True)
        told = self._counts.completion
        reached = told if told is not None else _logprob_entries(output)
        if len(texts) > 1:  # counts are told for all of them together
            told = reached = None
        for index, text in enumerate(texts):
            delta = VisibleText(self._stops).whole(text, told or 0, self._reason(reached))
            delta.index = index
            self.emit(delta)
        self._end_well()

    def stream_ended(self) -> None:
        if self._framer.pending:
            self.fail(ErrorKind.ENGINE, "the stream ended inside an event")
        elif not self._answered:
            self.fail(ErrorKind.ENGINE, "the stream ended without an answer")
        elif self._tells_reason and self._told_reason is None and not self._text.stopped:
            self.fail(ErrorKind.ENGINE, "the stream ended without its finish reason")
        else:
            reason = self._reason(self._counts.completion)
            if not self._text.stopped:
                rest = self._reader.rest(by_length=reason == "length")
                self._emit(self._text.add(rest, tokens=max(0, self._untold - 1)))  # the last was the end
            if self._told_stop is None:
                self._emit(self._text.end(reason))
            else:
                self._emit(self._text.end_at(self._told_stop, self._reader.taken_back()))
            self._end_well()

    def before_failure(self) -> None:
        if not self._text.stopped:
            self._emit(self._text.add(self._reader.rest(by_length=False), tokens=0))
        self._emit(self._text.abandon())
        self._emit_usage()

    def _parse(self, data: bytes) -> dict[str, Any] | None:
        """The output tensors; None if there are none, which has been told as a failure or as the end."""
        try:
            output = _read_output(data)
        except ValueError:
            output = None
        if not isinstance(output, dict):
            self.fail(ErrorKind.ENGINE, f"not a JSON answer: {data[:200]!r}")
            return None
        words = engine_words(output)
        if words is None:
            output = _tensors(output)
            return output if self._has_ended_well(_single(output.get("finish_reason"))) else None
        if self._text.stopped:
            self._end_well()  # the client's answer was whole before the engine failed
        else:
            self.fail_with(words)
        return None

    def _has_ended_well(self, word: Any) -> bool:
        """Take note of llmapi's finish reason. False: it is a bad one, which has been told as a failure."""
        self._tells_reason |= word is not None
        if word in ("stop", "length"):
            self._told_reason = word
        elif word in BROKEN and not self._text.stopped:
            self.fail(BROKEN[word], f"the engine ended the answer with {word!r}")
            return False
        return True

    def _reason(self, tokens: int | None) -> FinishReason:
        if self._told_reason is not None:
            return self._told_reason
        if tokens is not None and self._max_tokens is not None and tokens >= self._max_tokens:
            return "length"
        return "stop"

    def _emit(self, delta: Delta | None) -> None:
        if delta is not None:
            self.emit(delta)

    def _emit_usage(self) -> None:
        if (usage := self._counts.usage()) is not None:
            self.emit(usage)

    def _end_well(self) -> None:
        self._emit_usage()
        self.finish()


def _tensors(output: dict[str, Any]) -> dict[str, Any]:
    """The output tensors by name, also out of the shape of the `infer` route, which has them in a list."""
    outputs = output.get("outputs")
    if not isinstance(outputs, list):
        return output
    wanted = _Output.__struct_fields__
    named = {
        tensor.name: tensor.data if tensor.name == "output_log_probs" else msgspec.json.decode(tensor.data)
        for tensor in outputs
        if isinstance(tensor, _Tensor) and tensor.name in wanted
    }
    return named | {
        tensor["name"]: tensor.get("data")
        for tensor in outputs
        if isinstance(tensor, dict) and isinstance(tensor.get("name"), str)
    }


class _Counts:
    """Token counts of an answer.

    `num_output_tokens` of an event is the total so far in some versions and the event's own in others. A
    total is never below the number of events with text; an event's own soon is.
    """

    def __init__(self) -> None:
        self._prompt: int | None = None
        self._latest: int | None = None
        self._sum = 0
        self._events = 0

    def read(self, output: Mapping[str, Any], *, has_text: bool) -> None:
        if (prompt := _count(output.get("num_input_tokens"))) is not None:
            self._prompt = prompt
        if (latest := _count(output.get("num_output_tokens"))) is not None:
            self._latest = latest
            self._sum += latest
            self._events += has_text

    @property
    def completion(self) -> int | None:
        if self._latest is None:
            return None
        return self._latest if self._latest >= self._events else self._sum

    def usage(self) -> Usage | None:
        if self._prompt is None and self._latest is None:
            return None
        return Usage(prompt_tokens=self._prompt, completion_tokens=self.completion)


def _single(value: Any) -> Any:
    """The element of a tensor of one; Triton unwraps it unless the model is a batched one."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _count(value: Any) -> int | None:
    """A count, or the sum of those of several sequences."""
    if isinstance(value, list):
        counts = [count for item in value if (count := token_count(item)) is not None]
        return sum(counts) if counts else None
    return token_count(value)


def _logprob_entries(output: Mapping[str, Any]) -> int | None:
    entries = output.get("output_log_probs")
    if isinstance(entries, msgspec.Raw):
        data = bytes(entries).strip()
        return data.count(b",") + (data != b"[]") if data.startswith(b"[") else None
    return len(entries) if isinstance(entries, list) else None
