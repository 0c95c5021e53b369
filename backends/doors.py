"""Doors that engines serve natively: embeddings, responses, messages, rerank, score.

Nothing is translated. The client's body goes to the engine with another model name and bound, without what is
not for clients (`NOT_FOR_CLIENTS`), and asks for a stream where the gateway wants to see the answer grow;
every other byte of its values is as it came. The answer goes back as it came, with the public model name
where the engine's own stood. What is read on the way is what the books need: progress, usage, the end, an
error.

How each answer ends well:

    embeddings, rerank, score     one document with its list
    responses, whole              a document whose `status` is `completed` or `incomplete`
    responses, streamed           `response.completed` or `response.incomplete`
    messages, whole               a document with `content`
    messages, streamed            `message_stop`, after the `message_delta` that says why

A stream that ends otherwise has failed, whatever its last event. Events before the first piece of the
answer (`response.created`, `message_start`, ...) travel with it: until then the request can go elsewhere.

Sources: vllm/entrypoints/{anthropic,pooling,openai/responses}, sglang/srt/entrypoints/http_server.py,
llama.cpp tools/server/server.cpp, tensorrt_llm/serve/openai_server.py, Triton's
python/openai/openai_frontend/frontend/fastapi/routers.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from backends.contract import (
    Decoder,
    Delta,
    Door,
    ErrorKind,
    GenerateRequest,
    HttpRequest,
    Lora,
    NativeRequest,
    Usage,
)
from backends.decoding import AnswerDecoder, Classify, EngineWords, engine_words, token_count
from backends.headers import json_headers
from backends.mapping import NEVER, Rule, refused

__all__ = [
    "ALL_DOORS", "BOUNDS", "NOT_FOR_CLIENTS", "NO_DOORS", "PATHS", "NativeDecoder", "NativeDoors", "by_name",
]  # fmt: skip

TRANSLATED: frozenset[Door] = frozenset(("chat", "completions"))

PATHS: Mapping[Door, str] = MappingProxyType(
    {
        "embeddings": "/v1/embeddings",
        "responses": "/v1/responses",
        "messages": "/v1/messages",
        "rerank": "/v1/rerank",
        "score": "/score",
    }
)
"""Where engines serve them, unless an adapter knows better."""

ALL_DOORS: frozenset[Door] = TRANSLATED | PATHS.keys()

BOUNDS: Mapping[Door, str] = MappingProxyType({"responses": "max_output_tokens", "messages": "max_tokens"})
"""The field that bounds the output, of those that have one."""

_ONE_ANSWER = refused("There is one answer here.", 1)
_LIFTS = refused("It would lift the bound on the output.", -1)
_BRINGS = refused("It brings tokens past the prompt that was counted.")
_REACHES = refused("It reaches into the engine; it is not for clients.")
_NUMBERS = refused("It reaches into the engine; it is not for clients.", -1)

_REFUSED: Mapping[str, Rule] = {
    **NEVER,
    "n": _ONE_ANSWER, "n_cmpl": _ONE_ANSWER, "best_of": _ONE_ANSWER,
    "input_embeds": _BRINGS, "embed_overrides": _BRINGS, "previous_input_messages": _BRINGS,
    "n_probs": refused("Log probabilities are asked for by the door's own field."),
    "cache_prompt": refused("It is the gateway's to choose.", True),
    "id_slot": _NUMBERS, "slot_id": _NUMBERS,
    **dict.fromkeys(
        (
            "custom_params", "n_discard", "n_keep", "response_fields", "return_progress",
            "return_routed_experts", "sse_ping_interval", "timings_per_token", "verbose",
        ),
        _REACHES,
    ),
}  # fmt: skip
_ALL_BOUNDS = ("n_predict", "max_new_tokens", "max_tokens", "max_completion_tokens", "max_output_tokens")
"""llama.cpp takes several for one, at all of its doors, and the first of them wins."""

NOT_FOR_CLIENTS: Mapping[Door, Mapping[str, Rule]] = MappingProxyType(
    {
        door: {**_REFUSED, **{name: _LIFTS for name in _ALL_BOUNDS if name != BOUNDS.get(door)}}
        for door in PATHS
    }
)
"""Fields that no client may send, and the values of them that ask for nothing. Chats have a rule for each
field, by engine; a body that is passed on would carry these to whichever engine acts on them. So they are
never passed on, whatever they hold: the `n_predict` of -1 that asks for nothing in a chat is no bound at all
beside another. A test holds them to the engines' tables."""

_LISTS: Mapping[Door, tuple[str, ...]] = {
    "embeddings": ("data",),
    "responses": ("output",),
    "messages": ("content",),
    "rerank": ("results",),
    "score": ("data", "scores"),
}
"""What a good document holds: one of these."""

_NO_SUCH_ROUTE = re.compile(
    r"\s*(?:40[45]:? )?(?:(?:file|page|route) )?(?:not found|method not allowed)\.?\s*", re.IGNORECASE
)
"""How FastAPI, llama.cpp and others answer on a route that they lack."""

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def by_name(model: str, lora: Lora) -> Mapping[str, Any]:
    """The fields that ask for an adapter where it is a model of its own: vLLM's way."""
    return {"model": lora.name}


class NativeDoors:
    """`contract.Doors` of engines that take OpenAI's and Anthropic's bodies as they are."""

    def __init__(
        self,
        served: Iterable[Door],
        classify: Classify,
        *,
        paths: Mapping[Door, str] = PATHS,
        possible: Iterable[Door] = ALL_DOORS,
        adapted: Iterable[Door] = (),
        asks_for: Callable[[str, Lora], Mapping[str, Any]] = by_name,
    ) -> None:
        """`served`: beside chat and completions. At those of `adapted`, the fields that `asks_for` makes of
        the base model's name ask for an adapter."""
        self.served = TRANSLATED | frozenset(served)
        self.possible = frozenset(possible)
        self.adapted = frozenset(adapted)
        self._asks_for = asks_for
        self._classify = classify
        self._paths = {**PATHS, **paths}

    def encode(self, request: GenerateRequest) -> HttpRequest:
        native = _native(request)
        fields: dict[str, bytes] = {
            name: bytes(raw)
            for name, raw in _FIELDS.decode(native.body).items()
            if name not in NOT_FOR_CLIENTS[native.door]
        }
        fields["model"] = msgspec.json.encode(request.model)
        if request.lora is not None:
            asked = self._asks_for(request.model, request.lora)
            fields |= {name: msgspec.json.encode(value) for name, value in asked.items()}
        if request.stream:
            fields["stream"] = b"true"  # the client may want it whole
        fields.pop("priority", None)  # the gateway's to say, as in chats
        if native.door in BOUNDS and request.max_tokens is not None:
            fields[BOUNDS[native.door]] = b"%d" % request.max_tokens
        if native.door == "responses":
            fields["store"] = b"false"  # an engine would keep it, and nobody could fetch it
        if (salt := request.parameters.get("cache_salt")) is not None:
            fields["cache_salt"] = msgspec.json.encode(salt)
        headers = {**json_headers(request), "x-request-id": request.request_id, **native.headers}
        return HttpRequest("POST", self._paths[native.door], headers, _joined(fields))

    def decoder(self, request: GenerateRequest) -> Decoder:
        native = _native(request)
        return NativeDecoder(native, self._classify, self._paths[native.door], streamed=request.stream)


class _NoDoors:
    """`contract.Doors` of engines that serve none natively.

    It is asked for none: `possible` keeps such a pool's file from naming one, and the router asks the pool.
    """

    served = TRANSLATED
    possible = TRANSLATED
    adapted: frozenset[Door] = frozenset()

    def encode(self, request: GenerateRequest) -> HttpRequest:
        raise ValueError(f"no native {_native(request).door}")

    def decoder(self, request: GenerateRequest) -> Decoder:
        raise ValueError(f"no native {_native(request).door}")


NO_DOORS = _NoDoors()


def _native(request: GenerateRequest) -> NativeRequest:
    if request.native is None:
        raise ValueError("not a native request")
    return request.native


def _joined(fields: Mapping[str, bytes]) -> bytes:
    """An object of values that are JSON already."""
    return b"{" + b",".join(msgspec.json.encode(name) + b":" + raw for name, raw in fields.items()) + b"}"


class _Event(msgspec.Struct):
    """What counts of an event of either stream. All Any: an odd field must not cost the rest."""

    type: Any = None
    delta: Any = None
    usage: Any = None
    error: Any = None
    response: msgspec.Raw = msgspec.Raw()
    message: msgspec.Raw = msgspec.Raw()


_EVENT = msgspec.json.Decoder(_Event)


class NativeDecoder(AnswerDecoder):
    """Answers of all native doors, streamed or whole."""

    def __init__(self, native: NativeRequest, classify: Classify, path: str, *, streamed: bool) -> None:
        super().__init__(classify)
        self._door = native.door
        self._body = native.body
        self._name = msgspec.json.encode(native.model)
        self._path = path
        self._asked_to_stream = streamed
        self._held = b""
        """Events before the first piece of the answer, or before the end."""
        self._usage = Usage()
        self._said_why = False
        """A message told its stop reason."""

    # ------------------------------------------------------------------------------------------ streams

    def read_event(self, data: bytes, raw: bytes) -> None:
        if not self._asked_to_stream:
            self.fail(ErrorKind.ENGINE, "a stream where none was asked for")
            return
        try:
            if not data.isascii():
                data.decode()  # msgspec does not look into the fields that it skips
            event = _EVENT.decode(data)
            kind = event.type if isinstance(event.type, str) else ""
            if kind == "error" or event.error:
                self.fail_with(_words_of(msgspec.json.decode(data)))
            elif self._door == "messages":
                self._message_event(kind, event, data, raw)
            else:
                self._response_event(kind, event, data, raw)
        except (ValueError, RecursionError):
            if data.strip() == b"[DONE]":  # before the end that counts: `stream_ended` says what it means
                return
            self.fail(ErrorKind.ENGINE, f"not a JSON event: {data[:200]!r}")

    def _message_event(self, kind: str, event: _Event, data: bytes, raw: bytes) -> None:
        if kind == "content_block_delta":
            delta = event.delta if isinstance(event.delta, dict) else {}
            texts = (delta.get(name) for name in ("text", "thinking", "partial_json"))
            self._piece(raw, next((text for text in texts if isinstance(text, str)), ""))
        elif kind == "message_start":
            fields = _FIELDS.decode(event.message)
            self._note(msgspec.json.decode(fields["usage"]) if "usage" in fields else None)
            self._beside(self._renamed(raw, data, "message"))
        elif kind == "message_delta":
            self._said_why = isinstance(event.delta, dict) and bool(event.delta.get("stop_reason"))
            self._note(event.usage)
            self._beside(raw)
        elif kind == "message_stop":
            if self._said_why:
                self._end(raw)
            else:
                self.fail(ErrorKind.ENGINE, "a message that ended without its stop reason")
        else:
            self._beside(raw)

    def _response_event(self, kind: str, event: _Event, data: bytes, raw: bytes) -> None:
        if kind.endswith(".delta"):
            self._piece(raw, event.delta if isinstance(event.delta, str) else "")
            return
        if event.response:
            raw = self._renamed(raw, data, "response")
        if kind in ("response.completed", "response.incomplete"):
            self._note(msgspec.json.decode(_FIELDS.decode(event.response).get("usage", b"null")))
            self._end(raw)
        elif kind in ("response.failed", "response.cancelled"):
            self.fail_with(_words_of(msgspec.json.decode(event.response)))
        else:
            self._beside(raw)

    def stream_ended(self) -> None:
        self.fail(ErrorKind.ENGINE, "the stream ended without its last event")

    def _piece(self, raw: bytes, text: str) -> None:
        """An event that holds a piece of the answer."""
        raw, self._held = self._held + raw, b""
        self.emit(Delta(text=text, tokens=1, raw=raw))

    def _beside(self, raw: bytes) -> None:
        """Any other event."""
        if self.delivered:
            self.emit(Delta(raw=raw))
        else:
            self._held += raw

    def _end(self, raw: bytes) -> None:
        if self._usage != Usage():
            self.emit(self._usage)
        self.finish(self._held + raw)

    def _renamed(self, raw: bytes, data: bytes, field: str) -> bytes:
        """An event with the public name in its `field`, which is an object."""
        fields = {name: bytes(value) for name, value in _FIELDS.decode(data).items()}
        renamed = _with_name(fields[field], self._name)
        if renamed is None:
            return raw
        data_then = _joined({**fields, field: renamed})
        if raw.count(data) == 1:
            return raw.replace(data, data_then)
        kind = msgspec.json.decode(fields["type"])  # data over several lines, which nobody sends
        return b"event: %b\ndata: %b\n\n" % (str(kind).encode(), data_then)

    # ---------------------------------------------------------------------------------------- documents

    def read_document(self, data: bytes) -> None:
        if self._asked_to_stream and self._is_for_a_stream():
            self._read_no_stream(data)
            return
        try:
            data.decode()
            if data.startswith(b"[") and self._door in ("rerank", "score"):  # SGLang, TEI
                msgspec.json.decode(data, type=list[msgspec.Raw])
                self._whole(data)
                return
            fields = {name: bytes(value) for name, value in _FIELDS.decode(data).items()}
            if words := _failure_in(fields):
                self.fail_with(words)
            elif not any(fields.get(name, b"").startswith(b"[") for name in _LISTS[self._door]):
                self.fail(ErrorKind.ENGINE, f"an answer without {' or '.join(_LISTS[self._door])}")
            else:
                self._note(msgspec.json.decode(fields.get("usage", b"null")))
                self._whole(_with_name(data, self._name) or data)
        except (ValueError, RecursionError):
            self.fail(ErrorKind.ENGINE, f"not a JSON answer: {data[:200]!r}")

    def _is_for_a_stream(self) -> bool:
        """Whether the client wants one. Engines that know none answer with a document, which is as good where
        only the gateway wanted to see the answer grow."""
        return bytes(_FIELDS.decode(self._body).get("stream", b"")) == b"true"

    def _read_no_stream(self, data: bytes) -> None:
        """A document where a client is to get a stream: an error, if anything."""
        try:
            words = engine_words(msgspec.json.decode(data))
        except (ValueError, RecursionError):
            words = None
        if words is None:
            self.fail(ErrorKind.ENGINE, "a whole answer where a stream was asked for")
        else:
            self.fail_with(words)

    def _whole(self, data: bytes) -> None:
        self.emit(Delta(raw=data, tokens=self._usage.completion_tokens or 0))
        self._end(b"")

    # -------------------------------------------------------------------------------------------- both

    def fail_with(self, words: EngineWords) -> None:
        if self._status in (404, 405) and _NO_SUCH_ROUTE.fullmatch(words.message):
            self.fail(ErrorKind.NO_ROUTE, f"no route {self._path}", status=self._status)
            return
        super().fail_with(words)

    def _note(self, told: Any) -> None:
        """Take the figures of a `usage`, whichever door's names it has; later ones win."""
        if not isinstance(told, dict):
            return
        before, cached = self._usage, None
        if self._door == "messages":
            # Anthropic counts what was read from a cache, or written to it, beside `input_tokens`.
            cached = token_count(told.get("cache_read_input_tokens"))
            prompt = token_count(told.get("input_tokens"))
            if prompt is not None:
                prompt += (cached or 0) + (token_count(told.get("cache_creation_input_tokens")) or 0)
            completion = token_count(told.get("output_tokens"))
        elif self._door == "responses":
            prompt, completion = token_count(told.get("input_tokens")), token_count(told.get("output_tokens"))
            if isinstance(details := told.get("input_tokens_details"), dict):
                cached = token_count(details.get("cached_tokens"))
        else:
            prompt = token_count(told.get("prompt_tokens"))
            if prompt is None:
                prompt = token_count(told.get("total_tokens"))
            completion = token_count(told.get("completion_tokens")) or (None if prompt is None else 0)
        self._usage = Usage(
            prompt_tokens=prompt or before.prompt_tokens,  # 0 is none: vLLM opens a message with it
            completion_tokens=before.completion_tokens if completion is None else completion,
            cached_tokens=before.cached_tokens if cached is None else cached,
        )


def _with_name(data: bytes, name: bytes) -> bytes | None:
    """The object `data` with `name`, JSON, as its `model`; None where that changes nothing."""
    fields = {key: bytes(value) for key, value in _FIELDS.decode(data).items()}
    if fields.get("model", name) == name:
        return None
    return _joined({**fields, "model": name})


def _failure_in(fields: Mapping[str, bytes]) -> EngineWords | None:
    """What a document with status 200 says of its own failure."""
    if fields.get("error", b"null") != b"null" or fields.get("object") == b'"error"':
        return _words_of({name: msgspec.json.decode(raw) for name, raw in fields.items()})
    if fields.get("object") == b'"response"' and "status" in fields:
        status = msgspec.json.decode(fields["status"])
        if status not in ("completed", "incomplete"):
            return EngineWords(f"the response is {status}")
    return None


def _words_of(value: Any) -> EngineWords:
    """The error in an event or document that is one; OpenAI's `error` event has its words at the top."""
    if isinstance(value, dict) and value.get("type") == "error" and "message" in value:
        value = {"error": {**value, "type": ""}}
    return engine_words(value) or EngineWords("the engine failed without a word")
