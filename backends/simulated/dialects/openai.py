"""OpenAI's own shapes: unknown keys ignored, unknown models refused, errors nested.

The canonical dialect (kind `openai`), after OpenAI's API reference. The servers that speak a dialect of it
(trtllm-serve, vLLM, SGLang, llama.cpp, Triton's frontend) are built on this one and override where they
differ. Here: what is refused, what is read, and the order of an answer; `openai_requests.py` has the
requests, `openai_shapes.py` the bodies of answers.
"""

import json
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ValidationError

from backends.simulated.constrained import called, instance_of
from backends.simulated.dialects.common import EngineFailed, Exchange, json_response, sse, voice_of
from backends.simulated.dialects.native import NativeRoutes
from backends.simulated.dialects.openai_requests import Ask, ChatRequest, CompletionRequest, Refused
from backends.simulated.dialects.openai_shapes import Choice, OpenAIShapes
from backends.simulated.live import Ending, Piece
from backends.simulated.tokens import TemplateError

__all__ = ["DONE", "EVENT_STREAM", "OpenAIDialect"]

DONE = b"data: [DONE]\n\n"
EVENT_STREAM = "text/event-stream; charset=utf-8"

_FINISH_REASONS: dict[Ending, str] = {"eos": "stop", "stop": "stop", "length": "length"}


def _calling(choice: dict[str, Any], name: str, *, first: bool) -> dict[str, Any]:
    """A choice of a chat, or a piece of one, whose text is the arguments of a call of `name`."""
    key = "delta" if "delta" in choice else "message"
    spoken = dict(choice[key])
    arguments = spoken.pop("content", None) or ""
    function: dict[str, Any] = {"arguments": arguments}
    call: dict[str, Any] = {"index": 0, "function": function}
    if first:
        call = {"index": 0, "id": f"call_{uuid.uuid4().hex[:8]}", "type": "function", "function": function}
        function["name"] = name
    if first or arguments:
        spoken |= {"content": None, "tool_calls": [call]}
    told = {**choice, key: spoken}
    if told.get("finish_reason") == "stop":
        told["finish_reason"] = "tool_calls"
    return told


class OpenAIDialect(OpenAIShapes):
    """A server that does what OpenAI's does."""

    kind = "openai"
    notices = "at_once"
    head_waits = False
    """Whether the status line of a stream waits for the first token."""
    opens_at_once = False
    """Whether the events that open chats go out with the head, not with the first token."""
    doors: tuple[str, ...] = ("embeddings", "responses")
    """Served beside chat and completions."""
    chat_request: type[BaseModel] = ChatRequest
    completion_request: type[BaseModel] = CompletionRequest

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/chat/completions", self.host.inference(self.chat)),
            web.post("/v1/completions", self.host.inference(self.completions)),
            web.get("/v1/models", self.models),
            web.get("/health", self.health),
            *NativeRoutes(self, self.doors).routes(),
        ]

    # ------------------------------------------------------------------------------ what it refuses

    def error(self, status: int, message: str, error_type: str, param: str | None = None) -> Any:
        """The body of an error answer."""
        return {"error": {"message": message, "type": error_type, "param": param, "code": status}}

    def refuse_validation(self, error: ValidationError) -> Refused:
        """What a malformed body is answered with."""
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return Refused(400, self.error(400, f"{first['msg']}: {where}", "BadRequestError", where or None))

    def refuse_request(self, message: str) -> Refused:
        """What an unusable value is answered with."""
        return Refused(400, self.error(400, message, "BadRequestError"))

    def check_length(self, prompt_tokens: int, max_tokens: int | None) -> None:
        """Raises Refused where prompt, or prompt and output, are too long."""
        limit = self.options.max_total_tokens
        asked = max_tokens or 1
        if prompt_tokens + asked > limit or prompt_tokens > self.options.max_input_tokens:
            raise self.refuse_request(
                f"This model's maximum context length is {limit} tokens. However, you requested {asked} "
                f"output tokens and your prompt contains at least {prompt_tokens} input tokens, for a total "
                f"of at least {prompt_tokens + asked} tokens. Please reduce the length of the input prompt "
                "or the number of requested output tokens."
            )

    def check_model(self, model: str | None) -> None:
        if model is None:
            raise self.refuse_request("you must provide a model parameter")
        if model != self.options.model and model not in self.options.adapters:
            message = f"The model `{model}` does not exist."
            raise Refused(404, self.error(404, message, "NotFoundError", "model"))

    def failure(self) -> tuple[int, Any]:
        """Status and body where the engine fails before anything was sent."""
        return 500, self.error(500, "simulated failure of the engine", "InternalServerError")

    async def fail_stream(self, exchange: Exchange) -> web.StreamResponse:
        """How a stream ends when the engine fails in it."""
        await exchange.send(sse(self.failure()[1]) + DONE)
        return await exchange.finish()

    def refuse_overload(self) -> Refused:
        """What a request is answered with when the queue is full."""
        message = (
            "The engine is currently busy and cannot accept new requests. Please try again later or on a "
            "different instance."
        )
        return Refused(503, self.error(503, message, "Service Unavailable"))

    async def overload(self, exchange: Exchange) -> web.StreamResponse:
        try:
            body = json.loads(exchange.body)
            exchange.streamed = isinstance(body, dict) and bool(body.get("stream"))
        except ValueError:
            exchange.streamed = False
        return await self.refuse(exchange, self.refuse_overload())

    async def refuse(self, exchange: Exchange, refused: Refused) -> web.StreamResponse:
        if refused.late and exchange.streamed:
            return await self.refuse_late(exchange, refused)
        return json_response(refused.body, status=refused.status)

    async def refuse_late(self, exchange: Exchange, refused: Refused) -> web.StreamResponse:
        """How a stream is refused whose status line is out."""
        await exchange.open(EVENT_STREAM)
        await exchange.send(sse({"error": refused.body}) + DONE)
        return await exchange.finish()

    # ---------------------------------------------------------------------------------- what it reads

    def read_chat(self, body: Any) -> Ask:
        ask = Ask(id=f"chatcmpl-{uuid.uuid4().hex}", chat=True, model=self.told_model(body), prompts=[])
        self.read_common(ask, body)
        if getattr(body, "max_completion_tokens", None) is not None:
            ask.max_tokens = body.max_completion_tokens
        ask.logprobs = bool(body.logprobs)
        try:
            text = self.tokenizer.render(body.messages, tools=body.tools)
        except TemplateError as error:
            raise self.refuse_request(str(error)) from error
        ask.prompts = [self.tokenizer.encode(text, add_special_tokens=False)]
        self.check_tools(body)
        if body.tools and (call := called(body.tools, body.tool_choice, body.messages)) is not None:
            ask.calls, ask.answer = call
        return ask

    def check_core(self) -> None:
        """Raises Refused where the engine behind the server is in no state to be asked."""

    def check_tools(self, body: Any) -> None:
        """Raises Refused for tools without a name, and for a choice among none."""
        functions = [tool.get("function") for tool in body.tools or ()]
        names = [each.get("name") if isinstance(each, dict) else None for each in functions]
        if not all(isinstance(name, str) and name for name in names):
            raise self.refuse_request("tools: each needs a function with a name")
        choice = body.tool_choice
        if isinstance(choice, dict):
            choice = (choice.get("function") or {}).get("name", "")
            if choice not in names:
                raise self.refuse_request(f"Tool {choice!r} has not been passed in `tools`.")
        elif choice not in (None, "none", "auto", "required"):
            raise self.refuse_request(f"tool_choice: {choice!r} is not valid")
        elif choice == "required" and not names:
            raise self.refuse_request("When using `tool_choice`, `tools` must be set.")

    formats: frozenset[str] = frozenset({"text", "json_object", "json_schema"})
    """The types of `response_format`."""

    def constraint(self, body: Any) -> str | None:
        """All that the answer may say. Raises Refused."""
        given = getattr(body, "response_format", None)
        if given is None:
            return None
        kind = given.get("type")
        if kind not in self.formats:
            raise self.refuse_request(f"response_format type must be one of {sorted(self.formats)}")
        if kind == "json_schema":
            wrapper = given.get("json_schema")
            if not isinstance(wrapper, dict) or not isinstance(wrapper.get("schema"), dict):
                raise self.refuse_request("response_format: json_schema needs a schema")
            return instance_of(wrapper["schema"])
        return '{"answer": "water"}' if kind == "json_object" else None

    def read_completion(self, body: Any) -> Ask:
        ask = Ask(id=f"cmpl-{uuid.uuid4().hex}", chat=False, model=self.told_model(body), prompts=[])
        self.read_common(ask, body)
        ask.logprobs = body.logprobs is not None
        ask.echo = bool(body.echo)
        prompt: Any = body.prompt
        many = isinstance(prompt, list) and not (prompt and isinstance(prompt[0], int))
        for item in prompt if many else [prompt]:
            if isinstance(item, str):
                ask.prompts.append(self.tokenizer.encode(item, add_special_tokens=True))
            elif all(0 <= token_id < self.tokenizer.size for token_id in item):
                ask.prompts.append(item)
            else:
                raise self.refuse_request(f"Token id {max(item)} is out of vocabulary")
        if not ask.prompts or not all(ask.prompts):
            raise self.refuse_request("The prompt is empty")
        return ask

    def told_model(self, body: Any) -> str:
        """The `model` of the answer."""
        return body.model or self.options.model

    def name(self, exchange: Exchange, ask: Ask, body: Any) -> None:
        """Give the answer another id where the request names one, and `exchange` the id to cancel it by."""

    def read_common(self, ask: Ask, body: Any) -> None:
        self.check_model(body.model)
        stop: str | list[str] = body.stop or []
        ask.stop = [stop] if isinstance(stop, str) else stop
        ask.stop_ids = frozenset(body.stop_token_ids or ())
        ask.keep_stop = body.include_stop_str_in_output
        ask.seed = body.seed
        ask.ignore_eos = body.ignore_eos
        salt: list[str] | str | None = getattr(body, "cache_salt", None)
        ask.cache_salt = tuple(salt) if isinstance(salt, list) else salt
        ask.adapter = self.adapter_of(body)
        ask.simulated_tokens = getattr(body, "simulated_tokens", None)
        ask.n = body.n or 1
        ask.answer = self.constraint(body)
        ask.stream = bool(body.stream)
        if hasattr(body, "max_tokens"):
            ask.max_tokens = body.max_tokens
        if body.stream_options is not None:
            if not ask.stream:
                raise self.refuse_request("Stream options can only be defined when `stream=True`.")
            ask.usage = bool(body.stream_options.include_usage)
            ask.continuous_usage = bool(body.stream_options.continuous_usage_stats)

    # ------------------------------------------------------------------------------------ the answers

    async def chat(self, exchange: Exchange) -> web.StreamResponse:
        return await self.serve(exchange, self.chat_request, self.read_chat)

    async def completions(self, exchange: Exchange) -> web.StreamResponse:
        return await self.serve(exchange, self.completion_request, self.read_completion)

    async def serve(
        self, exchange: Exchange, schema: type[BaseModel], read: Callable[[Any], Ask]
    ) -> web.StreamResponse:
        try:
            body = schema.model_validate_json(exchange.body)
            ask = read(body)
            exchange.streamed = ask.stream
            self.name(exchange, ask, body)
            self.submit(exchange, ask)
        except ValidationError as error:
            return await self.refuse(exchange, self.refuse_validation(error))
        except Refused as refused:
            return await self.refuse(exchange, refused)
        return await self.answer(exchange, ask)

    def submit(self, exchange: Exchange, ask: Ask) -> None:
        limit = self.options.max_queue_size
        if self.has_overload_answer and limit is not None and self.host.live.statistics().waiting >= limit:
            raise self.refuse_overload()
        for prompt in ask.prompts:
            self.check_length(len(prompt), ask.max_tokens)
        for number, prompt in enumerate(ask.prompts):
            for variant in range(ask.n):
                self.host.live.say(
                    exchange.output,
                    prompt,
                    self.limit_output(len(prompt), self.output_of(ask)),
                    choice=number * ask.n + variant,
                    variant=variant,
                    seed=voice_of(ask.adapter, ask.seed),
                    salt=(ask.adapter, ask.cache_salt),
                    stop=ask.stop,
                    stop_ids=ask.stop_ids,
                    ignore_eos=ask.ignore_eos or ask.simulated_tokens is not None,
                    text=ask.answer,
                )
        ask.cached = exchange.output.cached
        exchange.submitted = True

    def adapter_of(self, body: Any) -> str | None:
        """The LoRA adapter that is asked for. Raises Refused for one that is not here."""
        return body.model if body.model in self.options.adapters else None

    def output_of(self, ask: Ask) -> int | None:
        """The bound on its output, or the length that a replay wants, if that is less."""
        bounds = [bound for bound in (ask.max_tokens, ask.simulated_tokens) if bound is not None]
        return min(bounds, default=None)

    async def answer(self, exchange: Exchange, ask: Ask) -> web.StreamResponse:
        echoes = [self.tokenizer.decode(prompt) if ask.echo else "" for prompt in ask.prompts]
        choices = [Choice(text=echo) for echo in echoes for _ in range(ask.n)]
        if ask.stream:
            return await self.stream(exchange, ask, choices)
        try:
            while pieces := await exchange.output.next():
                for piece in pieces:
                    await exchange.content()
                    self.take(ask, choices[piece.choice], piece)
        except EngineFailed:
            status, body = self.failure()
            return json_response(body, status=status)
        if exchange.cancelled:
            return await self.end_cancelled(exchange, ask, choices)
        body = self.whole(ask, choices)
        if ask.calls is not None:
            body["choices"] = [_calling(choice, ask.calls, first=True) for choice in body["choices"]]
        return json_response(body, headers=self.answer_headers(exchange))

    async def stream(self, exchange: Exchange, ask: Ask, choices: list[Choice]) -> web.StreamResponse:
        opened: set[int] = set()
        calling: set[int] = set()
        if not self.head_waits:
            await exchange.open(EVENT_STREAM)
        if self.opens_at_once and ask.chat:
            opened.update(range(len(choices)))
            for index in range(len(choices)):
                await exchange.send(self.opening(ask, index))
        try:
            while pieces := await self.next(exchange):
                for piece in pieces:
                    choice = choices[piece.choice]
                    self.take(ask, choice, piece)
                    if not self.speaks_now(choice, piece):
                        continue
                    await exchange.content()
                    if exchange.response is None:
                        await exchange.open(EVENT_STREAM)
                    if ask.chat and piece.choice not in opened:
                        opened.add(piece.choice)
                        await exchange.send(self.opening(ask, piece.choice))
                    for body in self.chunks(ask, piece.choice, choice):
                        if ask.continuous_usage:
                            body["usage"] = self.usage(ask, choices)
                        if ask.calls is not None:
                            first = piece.choice not in calling
                            calling.add(piece.choice)
                            body["choices"] = [
                                _calling(each, ask.calls, first=first) for each in body["choices"]
                            ]
                        await exchange.send(sse(body))
                    choice.sent()
        except EngineFailed:
            if exchange.response is None:
                status, body = self.failure()
                return json_response(body, status=status)
            return await self.fail_stream(exchange)
        if exchange.cancelled:
            return await self.end_cancelled(exchange, ask, choices)
        return await self.end_stream(exchange, ask, choices)

    async def end_stream(self, exchange: Exchange, ask: Ask, choices: Sequence[Choice]) -> web.StreamResponse:
        if ask.usage:
            await exchange.send(sse(self.usage_chunk(ask, choices)))
        await exchange.send(DONE)
        return await exchange.finish()

    async def end_cancelled(
        self, exchange: Exchange, ask: Ask, choices: Sequence[Choice]
    ) -> web.StreamResponse:
        """How an answer ends that an explicit request stopped."""
        if exchange.response is None:
            status, body = self.failure()
            return json_response(body, status=status)
        return await self.fail_stream(exchange)

    def answer_headers(self, exchange: Exchange) -> dict[str, str]:
        """Headers of an answer that is not streamed."""
        return {}

    def take(self, ask: Ask, choice: Choice, piece: Piece) -> None:
        text = piece.text if ask.keep_stop else piece.visible
        if ask.chat and self.reasoning_key is not None and piece.number <= self.options.reasoning_tokens:
            choice.reasoning += text
        else:
            choice.text += text
        choice.tokens += 1
        choice.pieces.append(piece)
        if piece.ending is not None:
            choice.finish_reason = _FINISH_REASONS[piece.ending]
            choice.stopped_by = piece.stopped_by

    def speaks_now(self, choice: Choice, piece: Piece) -> bool:
        """Whether an event is sent when this piece has come."""
        return bool(choice.text or choice.reasoning) or piece.ending is not None

    # --------------------------------------------------------------------------------------- the rest

    async def models(self, request: web.Request) -> web.Response:
        return json_response({"object": "list", "data": [self.model_card()]})

    async def health(self, request: web.Request) -> web.Response:
        return web.Response()
