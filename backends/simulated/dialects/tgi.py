"""Hugging Face Text Generation Inference: its native routes, and its Messages API with all its traps.

From router/src (server.rs, lib.rs, chat.rs) at v3.3.7. Serde reads the body: `stop` is a list, `max_tokens`
and `max_completion_tokens` are one field and both are a duplicate, `response_format` needs a `value`; all
that is a 422 in plain text. `presence_penalty` becomes a repetition penalty of itself plus 2. `n` is ignored.
Ids are empty, every delta has its role, the stop sequence stays in the text, and any error of a stream is an
event with the status code 422 in a 200, followed by [DONE].
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from aiohttp import web

from backends.simulated.constrained import called
from backends.simulated.dialects.common import EngineFailed, Exchange, json_response, sse, voice_of
from backends.simulated.dialects.tgi_native import (
    GRAMMARS,
    MAX_BATCH,
    STREAM_HEADERS,
    Ask,
    Malformed,
    Refused,
    TgiNative,
    decode,
)
from backends.simulated.live import Ending, Piece
from backends.simulated.tokens import TemplateError

__all__ = ["TgiDialect"]

_DONE = b"data: [DONE]\n\n"
_SHAPE = "Failed to deserialize the JSON body into the target type: "
_REASONS: Mapping[Ending, str] = MappingProxyType(
    {"eos": "stop", "stop": "stop_sequence", "length": "length"}  # only the end of turn gets OpenAI's word
)
_NATIVE_REASONS: Mapping[Ending, str] = MappingProxyType({**_REASONS, "eos": "eos_token"})

_NUMBER = (int, float)
_FIELDS: Mapping[str, tuple[str, tuple[type, ...]]] = MappingProxyType(
    {
        "model": ("a string", (str,)),
        "frequency_penalty": ("f32", _NUMBER),
        "logit_bias": ("a sequence", (list,)),
        "max_tokens": ("u32", (int,)),
        "n": ("u32", (int,)),
        "presence_penalty": ("f32", _NUMBER),
        "repetition_penalty": ("f32", _NUMBER),
        "seed": ("u64", (int,)),
        "stop": ("a sequence", (list,)),
        "stream": ("a boolean", (bool,)),
        "temperature": ("f32", _NUMBER),
        "top_p": ("f32", _NUMBER),
        "stream_options": ("struct StreamOptions", (dict,)),
    }
)
_CHAT_FIELDS = MappingProxyType(
    {
        **_FIELDS,
        "messages": ("a sequence", (list,)),
        "logprobs": ("a boolean", (bool,)),
        "top_logprobs": ("u32", (int,)),
        "tools": ("a sequence", (list,)),
        "response_format": ("adjacently tagged enum GrammarType", (dict,)),
    }
)
_COMPLETION_FIELDS = MappingProxyType(
    {**_FIELDS, "prompt": ("a string or a sequence", (str, list)), "suffix": ("a string", (str,))}
)


@dataclass(slots=True)
class _Call:
    """A request to the Messages API, read."""

    chat: bool
    asks: list[Ask]
    usage: bool
    logprobs: bool
    calls: str | None = None
    """The function that it calls; the text is the arguments."""
    created: int = field(default_factory=lambda: int(time.time()))


class TgiDialect(TgiNative):
    """text-generation-router."""

    kind = "tgi"

    def routes(self) -> list[web.RouteDef]:
        return [
            *super().routes(),
            web.post("/v1/chat/completions", self.host.inference(self.chat)),
            web.post("/v1/completions", self.host.inference(self.completions)),
            web.post("/chat_tokenize", self.chat_tokenize),
        ]

    # ---------------------------------------------------------------------------------- what it reads

    def fields(
        self,
        request: web.Request,
        body: bytes,
        known: Mapping[str, tuple[str, tuple[type, ...]]],
        needed: str,
    ) -> dict[str, Any]:
        """The fields that are not null, unknown ones included. Raises Malformed."""
        content = decode(request, body)
        place = f"at line 1 column {len(body)}"
        if not isinstance(content, dict):
            raise Malformed(422, f"{_SHAPE}invalid type: expected a struct {place}")
        if "max_completion_tokens" in content:  # an alias
            if "max_tokens" in content:
                raise Malformed(422, f"{_SHAPE}duplicate field `max_tokens` {place}")
            content["max_tokens"] = content.pop("max_completion_tokens")
        if needed not in content:
            raise Malformed(422, f"{_SHAPE}missing field `{needed}` {place}")
        fields = {name: value for name, value in content.items() if value is not None}
        for name, value in fields.items():
            expected, types = known.get(name, ("", (object,)))
            wrong = not isinstance(value, types) or (isinstance(value, bool) and bool not in types)
            if expected.startswith("u"):
                wrong = wrong or value < 0
            if wrong and expected:
                raise Malformed(422, f"{_SHAPE}{name}: invalid type: expected {expected} {place}")
        grammar = fields.get("response_format")
        if grammar is not None and known is _CHAT_FIELDS:
            if grammar.get("type") not in GRAMMARS:
                raise Malformed(422, f"{_SHAPE}response_format: unknown variant {place}")
            if "value" not in grammar:
                raise Malformed(422, f"{_SHAPE}response_format: missing field `value` {place}")
        return fields

    def parameters(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of the native routes that these fields become."""
        direct = {"max_tokens": "max_new_tokens", "top_logprobs": "top_n_tokens"}
        same = ("frequency_penalty", "seed", "stop", "temperature", "top_p")
        parameters = {direct[name]: fields[name] for name in direct if name in fields}
        parameters |= {name: fields[name] for name in same if name in fields}
        if parameters.get("temperature") == 0:  # greedy
            del parameters["temperature"]
        if "messages" not in fields:
            parameters |= {name: fields[name] for name in ("repetition_penalty",) if name in fields}
        elif "presence_penalty" in fields:
            parameters["repetition_penalty"] = fields["presence_penalty"] + 2.0
        return parameters

    def rendered(self, fields: Mapping[str, Any]) -> str:
        """Raises Refused."""
        try:
            return self.tokenizer.render(fields["messages"], tools=fields.get("tools") or None)
        except TemplateError as error:
            raise Refused(422, f"Template error: {error}", "template_error") from error

    def submit_call(self, exchange: Exchange, fields: Mapping[str, Any], prompts: Sequence[str]) -> _Call:
        """Raises Refused."""
        chat = "messages" in fields
        self.take_permit()
        parameters = self.parameters(fields)
        asks = [
            self.read(prompt, parameters, stream=exchange.streamed, add_special_tokens=not chat)
            for prompt in prompts
        ]
        adapter = self.adapter(fields.get("model"))
        text = self.constraint(fields.get("response_format")) if chat else None
        call = called(fields.get("tools") or (), fields.get("tool_choice"), fields.get("messages") or ())
        for index, ask in enumerate(asks):
            self.host.live.say(
                exchange.output,
                ask.prompt,
                ask.max_new_tokens,
                choice=index,
                seed=voice_of(adapter, parameters.get("seed")),
                stop=parameters.get("stop", ()),
                salt=adapter,
                text=text if call is None else call[1],
            )
        exchange.submitted = True
        usage = bool(fields.get("stream_options", {}).get("include_usage"))
        return _Call(chat, asks, usage, bool(fields.get("logprobs")), None if call is None else call[0])

    # ------------------------------------------------------------------------------------ the answers

    async def chat(self, exchange: Exchange) -> web.StreamResponse:
        try:
            fields = self.fields(exchange.request, exchange.body, _CHAT_FIELDS, "messages")
            if "tools" in fields and "response_format" in fields:
                message = "Tool error: Grammar and tools are mutually exclusive"
                raise Refused(422, message, "tool_error")
            prompt = self.rendered(fields)
        except Malformed as malformed:
            return malformed.response
        except Refused as refused:  # before the stream begins
            return json_response(refused.body, status=refused.status)
        return await self.answer(exchange, fields, [prompt])

    async def completions(self, exchange: Exchange) -> web.StreamResponse:
        try:
            fields = self.fields(exchange.request, exchange.body, _COMPLETION_FIELDS, "prompt")
        except Malformed as malformed:
            return malformed.response
        prompts = [fields["prompt"]] if isinstance(fields["prompt"], str) else fields["prompt"]
        if "suffix" in fields:
            body = {
                "error": "Suffix is not supported and can be accomplished by preprocessing the prompt.",
                "error_type": "suffix not supported",
            }
            return json_response(body, status=422)
        if not all(isinstance(prompt, str) for prompt in prompts):
            return Malformed(422, f"{_SHAPE}prompt: data did not match any variant").response
        if len(prompts) > MAX_BATCH:
            message = f"Number of prompts exceeds the maximum allowed batch size of {MAX_BATCH}"
            return json_response({"error": message, "error_type": "batch size exceeded"}, status=422)
        return await self.answer(exchange, fields, prompts)

    async def answer(
        self, exchange: Exchange, fields: Mapping[str, Any], prompts: Sequence[str]
    ) -> web.StreamResponse:
        exchange.streamed = bool(fields.get("stream"))
        try:
            call = self.submit_call(exchange, fields, prompts)
        except Refused as refused:
            if exchange.streamed:
                return await self.error_stream(exchange, refused.body)
            return json_response(refused.body, status=refused.status)
        said: list[list[Piece]] = [[] for _ in call.asks]
        if exchange.streamed:
            return await self.stream(exchange, call, said)
        try:
            while pieces := await exchange.output.next():
                for piece in pieces:
                    await exchange.content()
                    said[piece.choice].append(piece)
        except EngineFailed as failed:
            return json_response(self.failure(failed), status=424)
        return json_response(self.whole(call, said))

    async def stream(self, exchange: Exchange, call: _Call, said: list[list[Piece]]) -> web.StreamResponse:
        await exchange.open("text/event-stream", headers=STREAM_HEADERS)
        try:
            while pieces := await self.next(exchange):
                for piece in pieces:
                    await exchange.content()
                    said[piece.choice].append(piece)
                    await exchange.send(sse(self.chunk(call, piece)))
        except EngineFailed as failed:
            await exchange.send(self.error_events(exchange, self.failure(failed)))
            return await exchange.finish()
        if call.usage:
            await exchange.send(
                sse({**self.head(call, chunk=True), "choices": [], "usage": self.usage(call, said)})
            )
        await exchange.send(_DONE)
        return await exchange.finish()

    def error_events(self, exchange: Exchange, body: dict[str, Any]) -> bytes:
        if not exchange.request.path.startswith("/v1/"):
            return super().error_events(exchange, body)
        # 422 for everything, overload included.
        return sse({"error": {"message": body["error"], "http_status_code": 422}}) + _DONE

    # -------------------------------------------------------------------------------------- its shapes

    def head(self, call: _Call, *, chunk: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if call.chat else "text_completion"
        return {
            "object": kind,
            "id": "",
            "created": call.created,
            "model": self.options.model,
            "system_fingerprint": f"{self.version}-native",
        }

    def chunk(self, call: _Call, piece: Piece) -> dict[str, Any]:
        text = "" if piece.token_id in self.tokenizer.special_ids else piece.text
        if not call.chat:
            reason = "" if piece.ending is None else _NATIVE_REASONS[piece.ending]
            choice = {"index": piece.choice, "text": text, "logprobs": None, "finish_reason": reason}
            return {**self.head(call, chunk=True), "choices": [choice]}
        told = {
            "index": 0,
            "delta": {"role": "assistant", **self.spoken(call, text, first=piece.number == 1)},
            "logprobs": self.logprobs([piece]) if call.logprobs else None,
            "finish_reason": None if piece.ending is None else _REASONS[piece.ending],
        }
        return {**self.head(call, chunk=True), "choices": [told], "usage": None}

    def spoken(self, call: _Call, text: str, *, first: bool) -> dict[str, Any]:
        """The text, or a piece of a tool call: id and type in each, the name in the first (chat.rs). A call
        ends for the reason `stop`."""
        if call.calls is None:
            return {"content": text}
        function = {"name": call.calls if first else None, "arguments": text}
        return {"tool_calls": [{"index": 0, "id": "0", "type": "function", "function": function}]}

    def whole(self, call: _Call, said: list[list[Piece]]) -> dict[str, Any]:
        choices = []
        for index, pieces in enumerate(said):
            text = "".join(piece.text for piece in pieces)
            choice: dict[str, Any] = {"index": index}
            if call.chat:
                choice["message"] = {"role": "assistant", **self.spoken(call, text, first=True)}
            else:
                choice["text"] = text
            choice["logprobs"] = self.logprobs(pieces) if call.logprobs else None
            choice["finish_reason"] = _REASONS[pieces[-1].ending or "length"]
            choices.append(choice)
        choices = choices[1::2] + choices[::2] if len(choices) > 1 else choices  # not in order of index
        return {**self.head(call, chunk=False), "choices": choices, "usage": self.usage(call, said)}

    def usage(self, call: _Call, said: list[list[Piece]]) -> dict[str, Any]:
        prompt = sum(len(ask.prompt) for ask in call.asks)
        output = sum(len(pieces) for pieces in said)
        return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}

    def logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Without `bytes`."""
        content = [
            {"token": self.token(piece)["text"], "logprob": piece.logprob, "top_logprobs": []}
            for piece in pieces
        ]
        return {"content": content}

    # --------------------------------------------------------------------------------------- the rest

    async def chat_tokenize(self, request: web.Request) -> web.Response:
        """The prompt that the template makes of messages, and its tokens: no special ones are added."""
        try:
            fields = self.fields(request, await request.read(), _CHAT_FIELDS, "messages")
            text = self.rendered(fields)
        except Malformed as malformed:
            return malformed.response
        except Refused as refused:
            return json_response(refused.body, status=refused.status)
        tokens = self.tokens(text, add_special_tokens=False)
        return json_response({"tokenize_response": tokens, "templated_text": text})
