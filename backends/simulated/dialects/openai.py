"""OpenAI's own shapes: unknown keys ignored, unknown models refused, errors nested.

The canonical dialect (kind `openai`), after OpenAI's API reference. The servers that speak a dialect of it
(trtllm-serve, vLLM, SGLang, llama.cpp, Triton's frontend) are built on this one and override where they
differ.
"""

import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backends.simulated.dialects.common import Dialect, EngineFailed, Exchange, json_response, sse
from backends.simulated.live import Ending, Piece
from backends.simulated.tokens import TemplateError

__all__ = [
    "DONE",
    "EVENT_STREAM",
    "Ask",
    "ChatRequest",
    "Choice",
    "CompletionRequest",
    "ConversationRequest",
    "OpenAIDialect",
    "Refused",
    "StreamOptions",
]

DONE = b"data: [DONE]\n\n"
EVENT_STREAM = "text/event-stream; charset=utf-8"

_FINISH_REASONS: dict[Ending, str] = {"eos": "stop", "stop": "stop", "length": "length"}


class Refused(Exception):
    """The request is answered with an error before anything is generated."""

    def __init__(self, status: int, body: Any, *, late: bool = False) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body
        self.late = late
        """In a stream the status line is out already when the server sees it; see `refuse_late`."""


@dataclass(slots=True)
class Ask:
    """A request to a chat or completions route, read."""

    id: str
    chat: bool
    model: str
    prompts: list[list[int]]
    created: int = field(default_factory=lambda: int(time.time()))
    max_tokens: int | None = None
    n: int = 1
    stop: Sequence[str] = ()
    stop_ids: frozenset[int] = frozenset()
    keep_stop: bool = False
    seed: int | None = None
    ignore_eos: bool = False
    stream: bool = False
    usage: bool = False
    continuous_usage: bool = False
    logprobs: bool = False
    echo: bool = False


@dataclass(slots=True)
class Choice:
    """What has come of one choice; in a stream, what has come and was not sent yet."""

    text: str = ""
    reasoning: str = ""
    tokens: int = 0
    pieces: list[Piece] = field(default_factory=list)
    finish_reason: str | None = None
    stopped_by: str | int | None = None

    def sent(self) -> None:
        """What has come was sent."""
        self.text = self.reasoning = ""
        self.pieces.clear()


class StreamOptions(BaseModel):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class CommonRequest(BaseModel):
    model_config = ConfigDict(extra="ignore")
    model: str | None = None
    n: int | None = Field(1, ge=1)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    seed: int | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False


class ConversationRequest(CommonRequest):
    """A chat without a bound on its output, which has many names."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    logprobs: bool | None = False
    tools: list[dict[str, Any]] | None = None


class ChatRequest(ConversationRequest):
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)


class CompletionRequest(CommonRequest):
    max_tokens: int | None = Field(None, ge=1)
    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: int | None = None
    echo: bool | None = False


class OpenAIDialect(Dialect):
    """A server that does what OpenAI's does."""

    kind = "openai"
    notices = "at_once"
    owned_by = "openai-compatible"
    reasoning_key: str | None = None
    """The field of a message or delta that holds the reasoning."""
    head_waits = False
    """Whether the status line of a stream waits for the first token."""
    opens_at_once = False
    """Whether the events that open chats go out with the head, not with the first token."""
    chat_request: type[BaseModel] = ChatRequest
    completion_request: type[BaseModel] = CompletionRequest

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/chat/completions", self.host.inference(self.chat)),
            web.post("/v1/completions", self.host.inference(self.completions)),
            web.get("/v1/models", self.models),
            web.get("/health", self.health),
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
        if model != self.options.model:
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
        return ask

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
        ask.n = body.n or 1
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
                    self.limit_output(len(prompt), ask.max_tokens),
                    choice=number * ask.n + variant,
                    variant=variant,
                    seed=ask.seed,
                    stop=ask.stop,
                    stop_ids=ask.stop_ids,
                    ignore_eos=ask.ignore_eos,
                )
        exchange.submitted = True

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
        return json_response(self.whole(ask, choices), headers=self.answer_headers(exchange))

    async def stream(self, exchange: Exchange, ask: Ask, choices: list[Choice]) -> web.StreamResponse:
        opened: set[int] = set()
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

    # -------------------------------------------------------------------------------------- its shapes

    def head(self, ask: Ask, *, chunk: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if ask.chat else "text_completion"
        return {"id": ask.id, "object": kind, "created": ask.created, "model": ask.model}

    def opening(self, ask: Ask, index: int) -> bytes:
        """The event that opens a choice of a chat."""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return sse({**self.head(ask, chunk=True), "choices": [choice]})

    def chunks(self, ask: Ask, index: int, choice: Choice) -> list[dict[str, Any]]:
        """The events that say what `choice` has not sent yet."""
        return [self.chunk(ask, index, choice)]

    def chunk(self, ask: Ask, index: int, choice: Choice) -> dict[str, Any]:
        """An event with what `choice` has not sent yet."""
        body: dict[str, Any] = {"index": index}
        if ask.chat:
            body["delta"] = {"content": choice.text, **self.reasoning(choice)}
        else:
            body["text"] = choice.text
        body["logprobs"] = self.logprobs(ask, choice)
        body["finish_reason"] = choice.finish_reason
        if choice.finish_reason is not None or not ask.chat:
            body["stop_reason"] = choice.stopped_by
        return {**self.head(ask, chunk=True), "choices": [body]}

    def usage_chunk(self, ask: Ask, choices: Sequence[Choice]) -> dict[str, Any]:
        return {**self.head(ask, chunk=True), "choices": [], "usage": self.usage(ask, choices)}

    def whole(self, ask: Ask, choices: Sequence[Choice]) -> dict[str, Any]:
        """The answer that is not streamed."""
        bodies = []
        for index, choice in enumerate(choices):
            body: dict[str, Any] = {"index": index}
            if ask.chat:
                body["message"] = {
                    "role": "assistant",
                    "content": choice.text,
                    **self.reasoning(choice),
                    "tool_calls": [],
                }
            else:
                body["text"] = choice.text
            body["logprobs"] = self.logprobs(ask, choice)
            body["finish_reason"] = choice.finish_reason
            body["stop_reason"] = choice.stopped_by
            bodies.append(body)
        return {**self.head(ask, chunk=False), "choices": bodies, "usage": self.usage(ask, choices)}

    def reasoning(self, choice: Choice) -> dict[str, Any]:
        if not choice.reasoning or self.reasoning_key is None:
            return {}
        return {self.reasoning_key: choice.reasoning}

    def usage(self, ask: Ask, choices: Sequence[Choice]) -> dict[str, Any]:
        prompt = sum(len(ids) for ids in ask.prompts)
        output = sum(choice.tokens for choice in choices)
        return {"prompt_tokens": prompt, "total_tokens": prompt + output, "completion_tokens": output}

    def logprobs(self, ask: Ask, choice: Choice) -> dict[str, Any] | None:
        if not ask.logprobs:
            return None
        pieces = [(self.tokenizer.pieces[piece.token_id], piece.logprob) for piece in choice.pieces]
        if ask.chat:
            return {
                "content": [
                    {
                        "token": token.decode(errors="replace"),
                        "logprob": logprob,
                        "bytes": list(token),
                        "top_logprobs": [],
                    }
                    for token, logprob in pieces
                ]
            }
        return {
            "text_offset": [],
            "token_logprobs": [logprob for _, logprob in pieces],
            "tokens": [token.decode(errors="replace") for token, _ in pieces],
            "top_logprobs": None,
        }

    # --------------------------------------------------------------------------------------- the rest

    def model_card(self) -> dict[str, Any]:
        return {
            "id": self.options.model,
            "object": "model",
            "created": 1_750_784_198,
            "owned_by": self.owned_by,
            "max_model_len": self.options.max_total_tokens,
        }

    async def models(self, request: web.Request) -> web.Response:
        return json_response({"object": "list", "data": [self.model_card()]})

    async def health(self, request: web.Request) -> web.Response:
        return web.Response()
