"""llama.cpp's server: OpenAI's routes over a fixed number of slots, with a queue that never ends.

From llama.cpp at 0c1e57098 (tools/server: server-context.cpp, server-task.cpp, README.md): the model's name
is neither needed nor echoed; the status line waits for the first token, so that first errors keep their
status; a stream that fails later ends without [DONE]; the end of a choice is an empty delta; ids begin with
`chatcmpl-` on every route; while the model loads every route is a 503.
"""

import secrets
import string
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web
from pydantic import AliasChoices, BaseModel, Field, ValidationError

from backends.simulated.constrained import instance_of
from backends.simulated.dialects.common import Exchange, json_response, sse
from backends.simulated.dialects.native import NativeRoutes
from backends.simulated.dialects.openai import OpenAIDialect
from backends.simulated.dialects.openai_requests import Ask, CompletionRequest, ConversationRequest, Refused
from backends.simulated.dialects.openai_shapes import Choice
from backends.simulated.dialects.prometheus import Family, exposition

__all__ = ["LlamacppDialect"]

_BUILD = "b6351-5d804a49"
_TRAIN_CONTEXT = 131_072
_SYMBOLS = string.ascii_letters + string.digits
_MAX_TOKENS = AliasChoices("n_predict", "max_completion_tokens", "max_tokens")


class _Lora(BaseModel):
    id: int
    scale: float


class _Sampling(BaseModel):
    """Of its own names (server-schema.cpp). What is out of a soft range is moved into it."""

    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | list[Any] | None = None
    seed: int | None = Field(None, ge=-1, lt=2**32)
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    lora: list[_Lora] = Field(default_factory=list)
    max_tokens: int | None = Field(None, ge=-1, validation_alias=_MAX_TOKENS)


class _Chat(_Sampling, ConversationRequest):
    top_logprobs: int | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None


class _Completion(_Sampling, CompletionRequest):
    best_of: Any = None
    suffix: Any = None


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class LlamacppDialect(OpenAIDialect):
    """`llama-server`."""

    kind = "llamacpp"
    doors = ("embeddings", "responses", "messages", "rerank")
    notices = "quiet_second"
    version = _BUILD
    owned_by = "llamacpp"
    has_overload_answer = False
    reasoning_key = "reasoning_content"
    keep_alive_s = 30.0
    head_waits = True
    chat_request: type[BaseModel] = _Chat
    completion_request: type[BaseModel] = _Completion

    def routes(self) -> list[web.RouteDef]:
        generate = {"/chat/completions": self.chat, "/completions": self.completions}
        routes: list[tuple[str, str, Handler]] = [
            ("POST", prefix + path, self.host.inference(handler))
            for prefix in ("/v1", "")
            for path, handler in generate.items()
            if prefix + path != "/completions"  # the native route, which speaks another dialect
        ]
        routes += [
            ("GET", "/v1/models", self.models),
            ("GET", "/models", self.models),
            ("GET", "/health", self.health),
            ("GET", "/v1/health", self.health),
            ("GET", "/props", self.props),
            ("GET", "/slots", self.slots),
            ("GET", "/metrics", self.metrics),
            ("POST", "/tokenize", self.tokenize),
            ("POST", "/detokenize", self.detokenize),
            ("POST", "/apply-template", self.apply_template),
            ("POST", "/v1/chat/completions/input_tokens", self.input_tokens),
        ]
        routes += [(each.method, each.path, each.handler) for each in NativeRoutes(self, self.doors).routes()]
        return [web.RouteDef(method, path, self.once_loaded(handler), {}) for method, path, handler in routes]

    def once_loaded(self, handler: Handler) -> Handler:
        """`handler`, or the 503 that every route gives while the model loads."""

        async def handle(request: web.Request) -> web.StreamResponse:
            if self.loading:
                return json_response(self.error(503, "Loading model", "unavailable_error"), status=503)
            return await handler(request)

        return handle

    # ------------------------------------------------------------------------------ what it refuses

    def error(self, status: int, message: str, error_type: str, param: str | None = None) -> Any:
        return {"error": {"code": status, "message": message, "type": error_type}}

    def refuse_validation(self, error: ValidationError) -> Refused:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":  # an exception that nobody expected
            return Refused(
                500, self.error(500, f"[json.exception.parse_error.101] {first['msg']}", "server_error")
            )
        where = ".".join(str(part) for part in first["loc"])
        return self.refuse_request(f"{first['msg']}: {where}")

    def refuse_request(self, message: str) -> Refused:
        return Refused(400, self.error(400, message, "invalid_request_error"))

    def check_model(self, model: str | None) -> None:
        """Any name will do, and none."""

    def adapter_of(self, body: Any) -> str | None:
        """By number; those that are not there are ignored (server-common.cpp, `parse_lora_request`)."""
        there = [each.id for each in body.lora if 0 <= each.id < len(self.options.adapters) and each.scale]
        return self.options.adapters[there[0]] if there else None

    @property
    def context(self) -> int:
        """Tokens of a slot."""
        return min(self.options.max_total_tokens, self.options.max_input_tokens)

    def check_length(self, prompt_tokens: int, max_tokens: int | None) -> None:
        if prompt_tokens >= self.context:
            body = self.error(
                400,
                f"request ({prompt_tokens} tokens) exceeds the available context size ({self.context} "
                "tokens), try increasing it",
                "exceed_context_size_error",
            )
            body["error"] |= {"n_prompt_tokens": prompt_tokens, "n_ctx": self.context}
            raise Refused(400, body)

    def limit_output(self, prompt_tokens: int, max_tokens: int | None) -> int:
        left = self.context - prompt_tokens
        return left if max_tokens is None else min(left, max_tokens)

    def failure(self) -> tuple[int, Any]:
        return 500, self.error(500, "simulated failure of the engine", "server_error")

    async def fail_stream(self, exchange: Exchange) -> web.StreamResponse:
        await exchange.send(sse(self.failure()[1]))  # and no [DONE]
        return await exchange.finish()

    def refuse_overload(self) -> Refused:
        raise AssertionError("llama.cpp defers requests without bound")

    # ---------------------------------------------------------------------------------- what it reads

    def told_model(self, body: Any) -> str:
        return self.options.model

    def read_chat(self, body: Any) -> Ask:
        if body.logprobs and body.tools and body.stream:
            raise self.refuse_request("logprobs is not supported with tools + stream")
        if body.top_logprobs is not None and not body.logprobs:
            raise self.refuse_request("top_logprobs requires logprobs to be set to true")
        if body.grammar and body.tools and body.tool_choice != "none":
            raise self.refuse_request("Cannot use custom grammar constraints with tools.")
        return super().read_chat(body)

    def read_completion(self, body: Any) -> Ask:
        if body.echo:
            raise self.refuse_request("Only no echo is supported")
        for name in ("best_of", "suffix"):
            if getattr(body, name) is not None:
                raise self.refuse_request(f"Unsupported param: {name}")
        return super().read_completion(body)

    def constraint(self, body: Any) -> str | None:
        if body.grammar and body.json_schema is not None:
            raise self.refuse_request("Cannot use both json_schema and grammar")
        if body.json_schema is not None:
            return instance_of(body.json_schema)
        # Its completions route copies a response_format, and nothing reads it.
        return super().constraint(body) if hasattr(body, "messages") else None

    def read_common(self, ask: Ask, body: Any) -> None:
        super().read_common(ask, body)
        slots = self.host.profile.max_sequences
        if ask.n > slots:
            raise self.refuse_request(f"n_cmpl must be less than or equal to n_parallel ({slots})")
        if ask.max_tokens is not None and ask.max_tokens < 1:
            # -1: no bound. 0 evaluates the prompt only: the model here makes one token, which is close.
            ask.max_tokens = None if ask.max_tokens < 0 else 1

    def name(self, exchange: Exchange, ask: Ask, body: Any) -> None:
        ask.id = "chatcmpl-" + "".join(secrets.choice(_SYMBOLS) for _ in range(32))

    # -------------------------------------------------------------------------------------- its shapes

    def told(self, ask: Ask, choices: list[dict[str, Any]], *, chunk: bool) -> dict[str, Any]:
        """A body in this server's order of keys."""
        head = self.head(ask, chunk=chunk)
        return {
            "choices": choices, "created": head["created"], "id": head["id"], "model": head["model"],
            "system_fingerprint": self.version, "object": head["object"],
        }  # fmt: skip

    def opening(self, ask: Ask, index: int) -> bytes:
        delta = {"role": "assistant", "content": None}
        return sse(self.told(ask, [{"finish_reason": None, "index": index, "delta": delta}], chunk=True))

    def chunks(self, ask: Ask, index: int, choice: Choice) -> list[dict[str, Any]]:
        bodies = []
        if not ask.chat:
            texts: list[tuple[str, str | None]] = [(choice.text, None)] if choice.text else []
            texts += [("", choice.finish_reason)] if choice.finish_reason else []
            for text, reason in texts:
                logprobs = self.logprobs(ask, choice) if text else None
                told = {"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason}
                bodies.append(self.told(ask, [told], chunk=True))
            return bodies
        deltas: list[tuple[dict[str, Any], str | None]] = []
        if choice.reasoning:
            deltas.append(({"reasoning_content": choice.reasoning}, None))
        if choice.text:
            deltas.append(({"content": choice.text}, None))
        if choice.finish_reason is not None:
            deltas.append(({}, choice.finish_reason))
        for delta, reason in deltas:
            body: dict[str, Any] = {"finish_reason": reason, "index": index, "delta": delta}
            if delta and (logprobs := self.logprobs(ask, choice)) is not None:
                body["logprobs"] = logprobs
            bodies.append(self.told(ask, [body], chunk=True))
        if choice.finish_reason is not None and not ask.usage:
            bodies[-1]["timings"] = self.timings(ask, [choice])
        return bodies

    def usage_chunk(self, ask: Ask, choices: Sequence[Choice]) -> dict[str, Any]:
        return {
            **self.told(ask, [], chunk=True), "usage": self.usage(ask, choices),
            "timings": self.timings(ask, choices),
        }  # fmt: skip

    def whole(self, ask: Ask, choices: Sequence[Choice]) -> dict[str, Any]:
        bodies = []
        for index, choice in enumerate(choices):
            if ask.chat:
                message = {"role": "assistant", "content": choice.text, **self.reasoning(choice)}
                body = {"finish_reason": choice.finish_reason, "index": index, "message": message}
                if (logprobs := self.logprobs(ask, choice)) is not None:
                    body["logprobs"] = logprobs
            else:
                body = {
                    "text": choice.text, "index": index, "logprobs": self.logprobs(ask, choice),
                    "finish_reason": choice.finish_reason,
                }  # fmt: skip
            bodies.append(body)
        told = self.told(ask, bodies, chunk=False)
        identity = told.pop("id")
        return {
            **told, "usage": self.usage(ask, choices), "id": identity, "timings": self.timings(ask, choices),
        }  # fmt: skip

    def usage(self, ask: Ask, choices: Sequence[Choice]) -> dict[str, Any]:
        counts = super().usage(ask, choices)
        return {
            "completion_tokens": counts["completion_tokens"], "prompt_tokens": counts["prompt_tokens"],
            "total_tokens": counts["total_tokens"], "prompt_tokens_details": {"cached_tokens": ask.cached},
        }  # fmt: skip

    def timings(self, ask: Ask, choices: Sequence[Choice]) -> dict[str, Any]:
        counts = super().usage(ask, choices)
        return {
            "cache_n": 0, "prompt_n": counts["prompt_tokens"], "prompt_ms": 1.0,
            "predicted_n": counts["completion_tokens"], "predicted_ms": 1.0,
        }  # fmt: skip

    # --------------------------------------------------------------------------------------- the rest

    async def health(self, request: web.Request) -> web.Response:
        return json_response({"status": "ok"})

    def model_card(self) -> dict[str, Any]:
        card = super().model_card()
        del card["max_model_len"]  # what is served is told by /props
        meta = {
            "vocab_type": 2, "n_vocab": self.tokenizer.size, "n_ctx_train": _TRAIN_CONTEXT, "n_embd": 4096,
            "n_params": 8_030_261_312, "size": 4_912_898_304,
        }  # fmt: skip
        return {**card, "meta": meta}

    async def models(self, request: web.Request) -> web.Response:
        native = {
            "name": self.options.model, "model": self.options.model, "type": "model",
            "capabilities": ["completion"],
        }  # fmt: skip
        return json_response({"models": [native], "object": "list", "data": [self.model_card()]})

    async def props(self, request: web.Request) -> web.Response:
        return json_response(
            {
                "default_generation_settings": {
                    "id": 0,
                    "id_task": -1,
                    "n_ctx": self.context,
                    "speculative": False,
                    "is_processing": False,
                    "params": {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
                },
                "total_slots": self.host.profile.max_sequences,
                "model_alias": self.options.model,
                "model_path": f"models/{self.options.model}.gguf",
                "modalities": {"vision": False, "audio": False},
                "chat_template": "",
                "chat_template_caps": {"supports_tools": True, "supports_tool_calls": True},
                "bos_token": "",
                "eos_token": "",
                "build_info": self.version,
            }
        )

    async def slots(self, request: web.Request) -> web.Response:
        """`fail_on_no_slot=1` makes a health check of it."""
        busy, total = self.host.live.statistics().running, self.host.profile.max_sequences
        if request.query.get("fail_on_no_slot") and busy >= total:
            return json_response(self.error(503, "no slot available", "unavailable_error"), status=503)
        return json_response(
            [
                {
                    "id": number,
                    "id_task": -1,
                    "n_ctx": self.context,
                    "speculative": False,
                    "is_processing": number < busy,
                }
                for number in range(total)
            ]
        )

    async def metrics(self, request: web.Request) -> web.Response:
        if not self.options.metrics:
            message = "This server does not support metrics endpoint. Start it with `--metrics`"
            return json_response(self.error(501, message, "not_supported_error"), status=501)
        engine = self.host.live.statistics()
        counters = {
            "llamacpp:prompt_tokens_total": engine.prompt_tokens,
            "llamacpp:tokens_predicted_total": engine.output_tokens,
            "llamacpp:n_decode_total": engine.steps,
        }
        gauges = {
            "llamacpp:requests_processing": engine.running,
            "llamacpp:requests_deferred": engine.waiting,
            "llamacpp:n_busy_slots_per_decode": engine.output_tokens / max(1, engine.steps),
        }
        families: list[Family] = [(name, "counter", [({}, value)]) for name, value in counters.items()]
        families += [(name, "gauge", [({}, value)]) for name, value in gauges.items()]
        return exposition(families)

    async def tokenize(self, request: web.Request) -> web.Response:
        """No special tokens unless `add_special`; with `with_pieces` ids and texts."""
        try:
            body = await request.json()
            content: str = body.get("content", "")
            ids = self.tokenizer.encode(content, add_special_tokens=bool(body.get("add_special")))
        except (ValueError, AttributeError, TypeError) as error:
            refused = self.refuse_request(str(error))
            return json_response(refused.body, status=refused.status)
        if not body.get("with_pieces"):
            return json_response({"tokens": ids})
        pieces = []
        for token_id in ids:
            raw = self.tokenizer.pieces[token_id]
            try:
                piece: str | list[int] = raw.decode()
            except UnicodeDecodeError:  # a part of a character comes as bytes
                piece = list(raw)
            pieces.append({"id": token_id, "piece": piece})
        return json_response({"tokens": pieces})

    async def detokenize(self, request: web.Request) -> web.Response:
        try:
            content = self.tokenizer.decode((await request.json())["tokens"], skip_special_tokens=False)
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            refused = self.refuse_request(str(error))
            return json_response(refused.body, status=refused.status)
        return json_response({"content": content})

    async def apply_template(self, request: web.Request) -> web.Response:
        try:
            prompt = self.rendered(await request.json())
        except (ValueError, LookupError, TypeError) as error:  # a TemplateError is a ValueError
            refused = self.refuse_request(str(error))
            return json_response(refused.body, status=refused.status)
        return json_response({"prompt": prompt})

    async def input_tokens(self, request: web.Request) -> web.Response:
        try:
            prompt = self.rendered(await request.json())
        except (ValueError, LookupError, TypeError) as error:
            refused = self.refuse_request(str(error))
            return json_response(refused.body, status=refused.status)
        return json_response({"input_tokens": len(self.tokenizer.encode(prompt, add_special_tokens=False))})

    def rendered(self, body: Any) -> str:
        return self.tokenizer.render(body["messages"], tools=body.get("tools"))
