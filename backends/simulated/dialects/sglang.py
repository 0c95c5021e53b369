"""SGLang's server: OpenAI's routes, flat errors, and a health route that generates.

From SGLang 0.5.10 (srt/entrypoints/openai, srt/entrypoints/http_server.py, srt/managers): any model name
answers; keys keep their nulls; the end of a choice is a chunk of its own; a full queue is a 503, but in a
stream an error event in a 200; errors of a stream are an event with the flat body inside and [DONE];
`GET /health` makes one token and looks for it once a second.
"""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any, Literal

from aiohttp import web
from pydantic import BaseModel, Field, ValidationError

from backends.simulated.dialects.common import Exchange, json_response, sse
from backends.simulated.dialects.openai import DONE, OpenAIDialect
from backends.simulated.dialects.openai_requests import Ask, ChatRequest, CompletionRequest, Refused
from backends.simulated.dialects.openai_shapes import Choice
from backends.simulated.dialects.prometheus import Family, exposition

__all__ = ["SglangDialect"]

_HEALTH_TIMEOUT_S = 20.0


class _Sampling(BaseModel):
    """What both routes take beside OpenAI's (sampling/sampling_params.py, `verify`)."""

    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    top_k: int | None = None
    min_p: float | None = Field(None, ge=0, le=1)
    min_tokens: int = Field(0, ge=0)
    stop_token_ids: list[int] | None = None
    logit_bias: dict[str, float] | None = None
    skip_special_tokens: bool = True
    no_stop_trim: bool = False
    regex: str | None = None
    ebnf: str | None = None
    json_schema: str | None = None
    cache_salt: list[str] | str | None = None
    rid: str | None = None
    lora_path: str | None = None
    priority: int | None = None


class _Chat(_Sampling, ChatRequest):
    messages: list[dict[str, Any]] = Field()
    top_logprobs: int | None = None
    parallel_tool_calls: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


class _Completion(_Sampling, CompletionRequest):
    pass


class SglangDialect(OpenAIDialect):
    """`python -m sglang.launch_server`."""

    kind = "sglang"
    doors = ("embeddings", "responses", "messages", "rerank", "score")
    notices = "poll"
    version = "0.5.10.post1"
    owned_by = "sglang"
    reasoning_key = "reasoning_content"
    chat_request: type[BaseModel] = _Chat
    completion_request: type[BaseModel] = _Completion

    def routes(self) -> list[web.RouteDef]:
        both = [
            web.post(prefix + path, handler)
            for prefix in ("", "/v1")
            for path, handler in (("/tokenize", self.tokenize), ("/detokenize", self.detokenize))
        ]
        return [
            *super().routes(),
            *both,
            web.get("/health_generate", self.health),
            web.get("/get_model_info", self.model_info),
            web.get("/model_info", self.model_info),
            web.get("/get_server_info", self.server_info),
            web.get("/server_info", self.server_info),
            web.get("/v1/loads", self.loads),
            web.get("/get_load", self.get_load),
            web.get("/metrics", self.metrics),
            web.post("/abort_request", self.abort_request),
        ]

    # ------------------------------------------------------------------------------ what it refuses

    def error(self, status: int, message: str, error_type: str, param: str | None = None) -> Any:
        return {"object": "error", "message": message, "type": error_type, "param": param, "code": status}

    def refuse_validation(self, error: ValidationError) -> Refused:
        details = "\n".join(
            f"{'.'.join(str(part) for part in entry['loc'])}: {entry['msg']}"
            for entry in error.errors(include_url=False)
        )
        return Refused(400, self.error(400, details, "Bad Request"))

    def refuse_overload(self) -> Refused:
        return Refused(503, self.error(503, "The request queue is full.", "503"), late=True)

    def check_model(self, model: str | None) -> None:
        """Any name will do."""

    def adapter_of(self, body: Any) -> str | None:
        """By `lora_path`, or behind the model's name."""
        name: str | None = body.lora_path or (body.model or "").partition(":")[2] or None
        if name is not None and name not in self.options.adapters:
            raise self.refuse_request(f"Got LoRA adapter that has never been loaded: {name}")
        return name

    def check_length(self, prompt_tokens: int, max_tokens: int | None) -> None:
        limit = min(self.options.max_total_tokens, self.options.max_input_tokens)
        if prompt_tokens >= limit:
            raise self.refuse_request(
                f"The input ({prompt_tokens} tokens) is longer than the model's context length "
                f"({limit} tokens)."
            )
        total = prompt_tokens + (max_tokens or 1)
        if total > self.options.max_total_tokens:
            raise self.refuse_request(
                "Requested token count exceeds the model's maximum context length of "
                f"{self.options.max_total_tokens} tokens. You requested a total of {total} tokens: "
                f"{prompt_tokens} tokens from the input messages and {max_tokens} tokens for the completion. "
                "Please reduce the number of tokens in the input messages or the completion to fit within "
                "the limit."
            )

    def read_common(self, ask: Ask, body: Any) -> None:
        super().read_common(ask, body)
        ask.keep_stop = body.no_stop_trim
        if body.top_k is not None and (body.top_k == 0 or body.top_k < -1):
            raise self.refuse_request(f"top_k must be -1 (disable) or at least 1, got {body.top_k}.")
        bound = getattr(body, "max_completion_tokens", None) or body.max_tokens
        if bound is not None and body.min_tokens > bound:
            raise self.refuse_request(
                f"min_new_tokens must be in [0, max_new_tokens({bound})], got {body.min_tokens}."
            )
        formats = (body.response_format or {}).get("type", "text") != "text"
        if sum(map(bool, (formats, body.regex, body.ebnf, body.json_schema))) > 1:
            raise self.refuse_request("Only one of regex, json_schema, or ebnf can be set.")

    def read_chat(self, body: Any) -> Ask:
        if not body.messages:
            raise self.refuse_request("Messages cannot be empty.")
        return super().read_chat(body)

    def name(self, exchange: Exchange, ask: Ask, body: Any) -> None:
        ask.id = exchange.id = body.rid or uuid.uuid4().hex

    # ------------------------------------------------------------------------------------ the answers

    async def fail_stream(self, exchange: Exchange) -> web.StreamResponse:
        await exchange.send(sse({"error": self.failure()[1]}) + DONE)
        return await exchange.finish()

    async def end_cancelled(
        self, exchange: Exchange, ask: Ask, choices: Sequence[Choice]
    ) -> web.StreamResponse:
        body = self.error(503, "Request aborted", "503")
        if exchange.response is None:
            return json_response(body, status=503)
        await exchange.send(sse({"error": body}) + DONE)
        return await exchange.finish()

    def delta(self, **fields: Any) -> dict[str, Any]:
        return {"role": None, "content": None, "reasoning_content": None, "tool_calls": None, **fields}

    def chat_chunk(
        self, ask: Ask, index: int, delta: dict[str, Any], choice: Choice | None = None, *, last: bool = False
    ) -> dict[str, Any]:
        body = {
            "index": index,
            "delta": delta,
            "logprobs": None if choice is None or last else self.logprobs(ask, choice),
            "finish_reason": choice.finish_reason if choice is not None and last else None,
            "matched_stop": choice.stopped_by if choice is not None and last else None,
        }
        return {**self.head(ask, chunk=True), "choices": [body], "usage": None}

    def opening(self, ask: Ask, index: int) -> bytes:
        return sse(self.chat_chunk(ask, index, self.delta(role="assistant", content="")))

    def chunks(self, ask: Ask, index: int, choice: Choice) -> list[dict[str, Any]]:
        if not ask.chat:
            return [self.chunk(ask, index, choice)]
        bodies = []
        if choice.reasoning:
            delta = self.delta(reasoning_content=choice.reasoning)
            bodies.append(self.chat_chunk(ask, index, delta, choice))
        if choice.text:
            bodies.append(self.chat_chunk(ask, index, self.delta(content=choice.text), choice))
        if choice.finish_reason is not None:
            bodies.append(self.chat_chunk(ask, index, self.delta(), choice, last=True))
        return bodies

    def chunk(self, ask: Ask, index: int, choice: Choice) -> dict[str, Any]:
        body = {
            "index": index, "text": choice.text, "logprobs": self.logprobs(ask, choice),
            "finish_reason": choice.finish_reason, "matched_stop": choice.stopped_by,
        }  # fmt: skip
        return {**self.head(ask, chunk=True), "choices": [body], "usage": None}

    def whole(self, ask: Ask, choices: Sequence[Choice]) -> dict[str, Any]:
        bodies = []
        for index, choice in enumerate(choices):
            body: dict[str, Any] = {"index": index}
            if ask.chat:
                body["message"] = {
                    "role": "assistant", "content": choice.text,
                    "reasoning_content": choice.reasoning or None, "tool_calls": None,
                }  # fmt: skip
            else:
                body["text"] = choice.text
            body |= {
                "logprobs": self.logprobs(ask, choice), "finish_reason": choice.finish_reason,
                "matched_stop": choice.stopped_by,
            }  # fmt: skip
            bodies.append(body)
        metadata = {"weight_version": "default"}
        return {
            **self.head(ask, chunk=False), "choices": bodies, "usage": self.usage(ask, choices),
            "metadata": metadata,
        }  # fmt: skip

    def usage(self, ask: Ask, choices: Sequence[Choice]) -> dict[str, Any]:
        details = self._details(ask)
        return {**super().usage(ask, choices), "prompt_tokens_details": details, "reasoning_tokens": 0}

    def _details(self, ask: Ask) -> dict[str, int] | None:
        return {"cached_tokens": ask.cached} if self.options.tells_cached else None

    # --------------------------------------------------------------------------------------- the rest

    def model_card(self) -> dict[str, Any]:
        card = super().model_card()
        limit = card.pop("max_model_len")
        return {**card, "root": self.options.model, "parent": None, "max_model_len": limit}

    async def health(self, request: web.Request) -> web.Response:
        """Makes a token, behind whatever waits; looks whether it came once a second (`speed` divides)."""
        if self.loading:
            return web.Response(status=503)
        second = 1.0 / self.host.profile.speed
        output = self.host.live.output()
        self.host.live.say(output, [0], 1)
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT_S * second):
                while True:
                    await asyncio.sleep(second)
                    if output.produced:
                        return web.Response()
        except TimeoutError:
            return web.Response(status=503)
        finally:
            output.cancel()

    async def model_info(self, request: web.Request) -> web.Response:
        return json_response(
            {
                "model_path": self.options.model,
                "tokenizer_path": self.options.model,
                "is_generation": True,
                "preferred_sampling_params": None,
                "weight_version": "default",
                "has_image_understanding": False,
                "has_audio_understanding": False,
                "model_type": "llama",
                "architectures": ["LlamaForCausalLM"],
            }
        )

    async def server_info(self, request: web.Request) -> web.Response:
        return json_response(
            {
                "model_path": self.options.model,
                "tokenizer_path": self.options.model,
                "served_model_name": self.options.model,
                "context_length": self.options.max_total_tokens,
                "max_running_requests": self.host.profile.max_sequences,
                "max_queued_requests": self.options.max_queue_size,
                "enable_metrics": self.options.metrics,
                "status": "ready",
                "max_total_num_tokens": self.host.profile.kv_tokens,
                "max_req_input_len": self.options.max_input_tokens,
                "internal_states": [{"last_gen_throughput": 0.0}],
                "version": self.version,
            }
        )

    async def tokenize(self, request: web.Request) -> web.Response:
        try:
            body = await request.json()
            tokens = self.tokenizer.encode(
                body["prompt"], add_special_tokens=body.get("add_special_tokens", True)
            )
        except (ValueError, LookupError, TypeError) as error:
            return json_response(self.error(400, str(error), "BadRequestError"), status=400)
        return json_response(
            {"tokens": tokens, "count": len(tokens), "max_model_len": self.options.max_total_tokens}
        )

    async def detokenize(self, request: web.Request) -> web.Response:
        try:
            text = self.tokenizer.decode((await request.json())["tokens"])
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            return json_response(self.error(400, str(error), "BadRequestError"), status=400)
        return json_response({"text": text})

    async def abort_request(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.cancel(None if body.get("abort_all") else {body.get("rid", "")})
        return web.Response()

    async def loads(self, request: web.Request) -> web.Response:
        engine = self.host.live.statistics()
        usage = engine.kv_used / engine.kv_capacity
        load = {
            "dp_rank": 0,
            "num_running_reqs": engine.running,
            "num_waiting_reqs": engine.waiting,
            "num_used_tokens": engine.kv_used,
            "max_total_num_tokens": engine.kv_capacity,
            "token_usage": usage,
            "gen_throughput": 0.0,
            "cache_hit_rate": 0.0,
            "utilization": engine.running / self.host.profile.max_sequences,
            "max_running_requests": self.host.profile.max_sequences,
        }
        aggregate = {
            "total_running_reqs": engine.running,
            "total_waiting_reqs": engine.waiting,
            "total_reqs": engine.running + engine.waiting,
            "avg_token_usage": usage,
            "avg_throughput": 0.0,
            "avg_utilization": load["utilization"],
        }
        return json_response(
            {"version": self.version, "dp_rank_count": 1, "loads": [load], "aggregate": aggregate}
        )

    async def get_load(self, request: web.Request) -> web.Response:
        engine = self.host.live.statistics()
        load = {
            "dp_rank": 0, "num_reqs": engine.running + engine.waiting, "num_waiting_reqs": engine.waiting,
            "num_tokens": engine.kv_used,
        }  # fmt: skip
        return json_response([load])

    async def metrics(self, request: web.Request) -> web.Response:
        if not self.options.metrics:
            raise web.HTTPNotFound
        engine = self.host.live.statistics()
        label = {"model_name": self.options.model, "engine_type": "unified", "tp_rank": "0"}
        gauges = {
            "sglang:num_running_reqs": engine.running,
            "sglang:num_queue_reqs": engine.waiting,
            "sglang:token_usage": engine.kv_used / engine.kv_capacity,
            "sglang:num_used_tokens": engine.kv_used,
            "sglang:max_total_num_tokens": engine.kv_capacity,
            "sglang:gen_throughput": 0.0,
            "sglang:cache_hit_rate": 0.0,
            "sglang:utilization": engine.running / self.host.profile.max_sequences,
        }
        counters = {
            "sglang:prompt_tokens_total": engine.prompt_tokens,
            "sglang:generation_tokens_total": engine.output_tokens,
            "sglang:num_requests_total": engine.finished,
            "sglang:num_aborted_requests_total": engine.cancelled,
        }
        families: list[Family] = [(name, "gauge", [(label, value)]) for name, value in gauges.items()]
        families += [(name, "counter", [(label, value)]) for name, value in counters.items()]
        return exposition(families)
