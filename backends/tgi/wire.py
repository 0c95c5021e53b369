"""TGI's native routes, /generate and /generate_stream, on the wire.

The native routes tell more than the Messages API: the finish reason in its own words, special tokens marked,
counts in streams, and never a silent second generation. They take text, so the gateway renders the chat
template; TGI puts special tokens (a BOS) before it. Shapes and texts: router/src/lib.rs, server.rs and
validation.rs of text-generation-inference.

Two things of theirs are not for clients: special tokens, and the stop sequence, which stays in the text. A
stream ends with the event that holds `generated_text`; there is no `[DONE]`. Errors: `errors.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

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
    AnswerDecoder,
    engine_words,
    lenient_json,
    token_count,
)
from backends.headers import json_headers
from backends.text_engines import VisibleText, plain_text
from backends.tgi import errors

__all__ = ["BASE_MODEL", "TgiDecoder", "encode"]

BASE_MODEL = "tgi"
"""The model name that means no LoRA adapter; any other is sent as `adapter_id`, as its Messages API does."""

# ---------------------------------------------------------------------------------------------- requests


def encode(request: GenerateRequest, parameters: Mapping[str, Any]) -> HttpRequest:
    """`request` for /generate or /generate_stream, with the `parameters` that the table wrote. Details are
    asked for: without them there is no reason and no count."""
    parameters = {"details": True, "return_full_text": False, **parameters}
    if (adapter := request.model if request.lora is None else request.lora.name) != BASE_MODEL:
        parameters["adapter_id"] = adapter
    body = {"inputs": plain_text(request), "parameters": parameters}
    path = "/generate_stream" if request.stream else "/generate"
    return HttpRequest("POST", path, json_headers(request), msgspec.json.encode(body))


# ----------------------------------------------------------------------------------------------- answers


class TgiDecoder(AnswerDecoder):
    """Answers of /generate and /generate_stream.

    `echoes`: `return_full_text` was asked for, so a whole answer begins with the prompt, which stays and in
    which no stop string is looked for.
    """

    def __init__(self, *, stops: Sequence[str], echoes: bool = False) -> None:
        super().__init__(errors.NATIVE)
        self._stops = tuple(stops)
        self._echoes = echoes
        self._text = VisibleText(stops)
        self._prompt_tokens: int | None = None

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        super().head(status, headers)
        told = headers.get("x-prompt-tokens", "")  # the only place where a whole answer tells it
        self._prompt_tokens = int(told) if told.isascii() and told.isdigit() and len(told) < 10 else None

    def read_event(self, data: bytes, raw: bytes) -> None:
        event = self._parse(data)
        if event is None:
            return
        token = event.get("token")
        if isinstance(token, dict) and token.get("special") is not True:
            piece = token.get("text")
            self._emit(self._text.add(piece if isinstance(piece, str) else "", tokens=1))
        if isinstance(event.get("generated_text"), str):
            details = event.get("details")
            self._emit(
                self._text.end(_reason(details.get("finish_reason") if isinstance(details, dict) else None))
            )
            self._end_well(details)
        elif self._text.stopped and self._text.has_waited_enough():
            self.finish()

    def read_document(self, data: bytes) -> None:
        answer = self._parse(data)
        if answer is None:
            return
        text = answer.get("generated_text")
        if not isinstance(text, str):
            self.fail(ErrorKind.ENGINE, "an answer without generated_text")
            return
        details = answer.get("details")
        tokens = token_count(details.get("generated_tokens")) if isinstance(details, dict) else None
        echo = _echo(text, details) if self._echoes else ""
        reason = _reason(details.get("finish_reason") if isinstance(details, dict) else None)
        self.emit(self._text.whole(text[len(echo) :], tokens or 0, reason, echo=echo))
        self._end_well(details)

    def stream_ended(self) -> None:
        if self._text.stopped:
            self.finish()  # all that the client may see has come
        else:
            self.fail(ErrorKind.ENGINE, "the stream ended without generated_text")

    def before_failure(self) -> None:
        self._emit(self._text.abandon())

    def _parse(self, data: bytes) -> dict[str, Any] | None:
        """The event or answer; None if there is none, which has been told as a failure or as the end."""
        try:
            value = lenient_json(data)
        except ValueError:
            value = None
        if isinstance(value, list) and len(value) == 1:
            value = value[0]  # the compatibility route wraps its answer in a list
        if not isinstance(value, dict):
            self.fail(ErrorKind.ENGINE, f"not a JSON answer: {data[:200]!r}")
            return None
        words = engine_words(value)
        if words is None:
            return value
        if self._text.stopped:
            self.finish()  # the client's answer was whole before the engine failed
        else:
            self.fail_with(words)
        return None

    def _emit(self, delta: Delta | None) -> None:
        if delta is not None:
            self.emit(delta)

    def _end_well(self, details: Any) -> None:
        details = details if isinstance(details, dict) else {}
        input_length = token_count(details.get("input_length"))
        prompt_tokens = self._prompt_tokens if input_length is None else input_length
        completion_tokens = token_count(details.get("generated_tokens"))
        if prompt_tokens is not None or completion_tokens is not None:
            self.emit(Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens))
        self.finish()


def _reason(word: Any) -> FinishReason:
    """TGI's words are length, eos_token and stop_sequence."""
    return "length" if word == "length" else "stop"


def _echo(text: str, details: Any) -> str:
    """The prompt at the beginning of `text`: what stands before the text of the generated tokens."""
    tokens = details.get("tokens") if isinstance(details, dict) else None
    if not isinstance(tokens, list):
        return ""
    generated = "".join(
        token["text"]
        for token in tokens
        if isinstance(token, dict) and token.get("special") is not True and isinstance(token.get("text"), str)
    )
    return text.removesuffix(generated) if generated else text
