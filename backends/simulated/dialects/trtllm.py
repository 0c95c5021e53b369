"""trtllm-serve: OpenAI's routes over TensorRT-LLM, strict about keys and careless about everything else.

From tensorrt_llm/serve (openai_server.py, openai_protocol.py, postprocess_handlers.py; releases 1.2 and
1.3): unknown keys are refused, sending both `max_tokens` and `max_completion_tokens` too; every error of a
handler is a flat 400; there is no overload answer; headers go out before the first token; the event that
opens a chat choice has a space before its blank line; chat chunks leave null keys out; a failure in the
middle cuts the body. `GET /metrics` is JSON and reading it drains it.
"""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any, Literal

from aiohttp import web
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from backends.simulated.constrained import instance_of
from backends.simulated.dialects.common import Exchange, json_body, json_response
from backends.simulated.dialects.openai import OpenAIDialect
from backends.simulated.dialects.openai_requests import Ask, Refused
from backends.simulated.dialects.openai_shapes import Choice
from backends.simulated.dialects.prometheus import Family, exposition
from backends.simulated.engine import Step
from backends.simulated.live import Piece

__all__ = ["TrtllmDialect"]

_TOKENS_PER_BLOCK = 32


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: bool | None = True
    continuous_usage_stats: bool | None = False


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: str
    frequency_penalty: float | None = 0.0
    logit_bias: dict[str, float] | None = None
    n: int = 1
    presence_penalty: float | None = 0.0
    seed: int | None = None
    stop: str | list[str] | None = Field(default_factory=list)
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    user: str | None = None
    # TensorRT-LLM's own.
    use_beam_search: bool = False
    best_of: int | None = None
    top_k: int = 0
    top_p_min: float = 0.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    early_stopping: bool | int = False
    stop_token_ids: list[int] | None = Field(default_factory=list)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    truncate_prompt_tokens: int | None = Field(None, ge=1)
    lora_request: dict[str, Any] | None = None
    disaggregated_params: dict[str, Any] | None = None
    cache_salt: str | None = None
    priority: float | None = Field(None, ge=0, le=1)


class _ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text", "json", "json_schema", "json_object", "regex", "ebnf", "structural_tag"]
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    json_schema: dict[str, Any] | None = None
    regex: str | None = None
    ebnf: str | None = None
    format: dict[str, Any] | None = None


class _ChatRequest(_Request):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = Field(
        None, ge=1, validation_alias=AliasChoices("max_completion_tokens", "max_tokens")
    )
    logprobs: bool | None = False
    top_logprobs: int | None = None
    response_format: _ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = True
    reasoning_effort: Literal["low", "medium", "high"] | None = None
    echo: bool = False
    add_generation_prompt: bool = True
    add_special_tokens: bool = False
    documents: list[dict[str, str]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    thinking_token_budget: int | None = None


class _CompletionRequest(_Request):
    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = Field(None, ge=1)
    echo: bool = False
    logprobs: int | None = None
    suffix: str | None = None
    response_format: _ResponseFormat | None = None
    add_special_tokens: bool = True
    detokenize: bool = True


class TrtllmDialect(OpenAIDialect):
    """trtllm-serve."""

    kind = "trtllm"
    doors = ("responses",)
    version = "1.2.1"
    owned_by = "tensorrt_llm"
    reasoning_key = "reasoning_content"
    notices = "poll"
    has_overload_answer = False
    chat_request = _ChatRequest
    completion_request = _CompletionRequest

    def routes(self) -> list[web.RouteDef]:
        return [
            *super().routes(),
            web.get("/health_generate", self.host.inference(self.health_generate)),
            web.get("/version", self.get_version),
            web.get("/metrics", self.metrics),
            web.get("/prometheus/metrics", self.prometheus_metrics),
            web.post("/_internal/tokenize", self.tokenize),
        ]

    # ------------------------------------------------------------------------------ what it refuses

    def error(self, status: int, message: str, error_type: str, param: str | None = None) -> Any:
        return {"object": "error", "message": message, "type": error_type, "param": param, "code": status}

    def refuse_validation(self, error: ValidationError) -> Refused:
        # FastAPI's list of errors, as Python writes it; the location begins with where the value was.
        entries = [
            {**entry, "loc": ("body", *entry["loc"])}
            for entry in error.errors(include_url=False, include_context=False)
        ]
        return Refused(400, {"error": repr(entries)})

    def check_length(self, prompt_tokens: int, max_tokens: int | None) -> None:
        # tensorrt_llm/llmapi/llm.py, PyTorch backend: a prompt beyond max_num_tokens, or one that leaves no
        # room for output, is an error; too large a max_tokens is lowered without a word.
        if prompt_tokens > self.options.max_input_tokens:
            raise self.refuse_request(
                f"The sum of prompt length ({prompt_tokens / 1}), query length (0) should not exceed "
                f"max_num_tokens ({self.options.max_input_tokens})"
            )
        left = self.options.max_total_tokens - prompt_tokens
        if left <= 0:
            raise self.refuse_request(
                f"`default_max_tokens` ({left}) must be greater than 0, `default_max_tokens` ({left}) = "
                f"max_seq_len ({self.options.max_total_tokens}) - `splited_prompt_len` ({prompt_tokens}) - "
                "`query_token_len` (0)"
            )

    def check_model(self, model: str | None) -> None:
        """Any name will do."""

    def adapter_of(self, body: Any) -> str | None:
        """By its number; the path must be on the server's disk."""
        if body.lora_request is None:
            return None
        number, path = body.lora_request.get("lora_int_id"), body.lora_request.get("lora_path")
        if not isinstance(number, int) or not 0 <= number < len(self.options.adapters) or not path:
            raise self.refuse_request(f"lora_path does not exist: {path}")
        return self.options.adapters[number]

    def failure(self) -> tuple[int, Any]:
        # Also what breaks inside the server is a 400: the status proves nothing.
        return 400, self.error(400, "simulated failure of the engine", "BadRequestError")

    async def fail_stream(self, exchange: Exchange) -> web.StreamResponse:
        # The generator raises, uvicorn drops the connection: no event, no [DONE], no end of the body.
        return await exchange.close()

    def refuse_overload(self) -> Refused:
        raise AssertionError("trtllm-serve never refuses for load")

    # ---------------------------------------------------------------------------------- what it reads

    def constraint(self, body: Any) -> str | None:
        given = body.response_format
        if given is None or given.type == "text":
            return None
        if given.type == "json_object":
            return '{"answer": "water"}'
        wanted = {
            "json": given.schema_, "json_schema": given.json_schema, "regex": given.regex,
            "ebnf": given.ebnf, "structural_tag": given.format,
        }[given.type]  # fmt: skip
        if wanted is None:
            raise self.refuse_request(f"response_format.{given.type} is required, but got None.")
        if given.type in ("regex", "ebnf", "structural_tag"):
            return None  # the model here speaks no grammar
        return instance_of(wanted.get("schema", wanted))

    def read_chat(self, body: Any) -> Ask:
        if body.cache_salt is not None and not body.cache_salt.strip():
            raise self.refuse_request("Parameter 'cache_salt' must be a non-empty string if provided.")
        if body.top_logprobs is not None and not body.logprobs:
            raise self.refuse_request("logprobs must be set when top_logprobs is set")
        return super().read_chat(body)

    def read_completion(self, body: Any) -> Ask:
        if body.suffix is not None:
            raise self.refuse_request("suffix is not supported")
        return super().read_completion(body)

    def read_common(self, ask: Ask, body: Any) -> None:
        for token in body.logit_bias or ():
            if not token.isdigit() or int(token) >= self.tokenizer.size:
                raise self.refuse_request(
                    f"Token ID {token} out of vocabulary range [0, {self.tokenizer.size})"
                )
        if body.top_k < 0:
            raise self.refuse_request(f"top_k must be non-negative, got {body.top_k}")
        # tensorrt_llm/sampling_params.py, `_validate`.
        if body.top_p is not None and not 0 <= body.top_p <= 1:
            raise self.refuse_request(f"require 0 <= top_p <= 1, got top_p={body.top_p}")
        if body.temperature is not None and body.temperature < 0:
            raise self.refuse_request(f"require temperature >= 0, got temperature={body.temperature}")
        greedy = body.temperature == 0 or body.top_p == 0 or body.top_k == 1
        returns = max(body.n, body.best_of or 1)
        if body.best_of is not None and body.best_of < body.n:
            raise self.refuse_request(f"best_of ({body.best_of}) cannot be less than n ({body.n})")
        if greedy and returns > 1:
            raise self.refuse_request(
                "Greedy decoding in the LLM API does not allow multiple returns. Please set to best_of=1, "
                f"got best_of={returns}."
            )
        if body.seed is not None and not 0 <= body.seed < 2**64:
            raise self.refuse_request("seed(): incompatible function arguments")
        super().read_common(ask, body)

    # -------------------------------------------------------------------------------------- its shapes

    def speaks_now(self, choice: Choice, piece: Piece) -> bool:
        # Chunks with empty content happen: a token was made and no character is complete.
        return (
            piece.number % self.options.stream_interval == 0 or piece.ending is not None or piece.number == 1
        )

    def opening(self, ask: Ask, index: int) -> bytes:
        choice = {"index": index, "delta": {"role": "assistant"}}
        return b"data: " + json_body({**self.head(ask, chunk=True), "choices": [choice]}) + b" \n\n"

    def chunk(self, ask: Ask, index: int, choice: Choice) -> dict[str, Any]:
        logprobs = self.logprobs(ask, choice)
        body: dict[str, Any]
        if ask.chat:  # null keys are left out
            body = {"index": index, "delta": {"content": choice.text, "reasoning_content": choice.reasoning}}
            if logprobs is not None:
                body["logprobs"] = logprobs
            if choice.finish_reason is not None:
                body["finish_reason"] = choice.finish_reason
            if choice.stopped_by is not None:
                body["stop_reason"] = choice.stopped_by
            return {**self.head(ask, chunk=True), "choices": [body]}
        body = {
            "index": index, "text": choice.text, "token_ids": None, "logprobs": logprobs,
            "context_logits": None, "finish_reason": choice.finish_reason, "stop_reason": choice.stopped_by,
            "disaggregated_params": None, "avg_decoded_tokens_per_iter": None,
        }  # fmt: skip
        return {**self.head(ask, chunk=True), "choices": [body], "usage": None}

    def whole(self, ask: Ask, choices: Sequence[Choice]) -> dict[str, Any]:
        bodies: list[dict[str, Any]] = []
        for index, choice in enumerate(choices):
            body: dict[str, Any] = {"index": index}
            if ask.chat:
                body["message"] = {
                    "role": "assistant", "content": choice.text, "reasoning_content": choice.reasoning,
                    "reasoning": None, "tool_calls": [],
                }  # fmt: skip
            else:
                body |= {"text": choice.text, "token_ids": None, "context_logits": None}
            body |= {
                "logprobs": self.logprobs(ask, choice), "finish_reason": choice.finish_reason,
                "stop_reason": choice.stopped_by, "mm_embedding_handle": None, "disaggregated_params": None,
                "avg_decoded_tokens_per_iter": 1.0,
            }  # fmt: skip
            bodies.append(body)
        return {
            **self.head(ask, chunk=False), "choices": bodies, "usage": self.usage(ask, choices),
            "prompt_token_ids": None, "prompt_token_ids_b64": None,
        }  # fmt: skip

    def usage(self, ask: Ask, choices: Sequence[Choice]) -> dict[str, Any]:
        return {**super().usage(ask, choices), "prompt_tokens_details": {"cached_tokens": ask.cached}}

    # --------------------------------------------------------------------------------------- the rest

    def model_card(self) -> dict[str, Any]:
        # No limit is told anywhere.
        return {
            "id": self.options.model, "object": "model", "created": 1_750_784_198, "owned_by": self.owned_by,
        }  # fmt: skip

    async def health_generate(self, exchange: Exchange) -> web.StreamResponse:
        """Makes one token, behind whatever waits."""
        prompt = self.tokenizer.encode("hi", add_special_tokens=True)
        self.submit(exchange, Ask(uuid.uuid4().hex, False, self.options.model, [prompt], max_tokens=1))
        while await exchange.output.next():
            pass
        return web.Response(text="Generation health check OK")

    async def get_version(self, request: web.Request) -> web.Response:
        return json_response({"version": self.version})

    async def tokenize(self, request: web.Request) -> web.Response:
        """Text only, special tokens added; there is no such route for messages."""
        try:
            prompt = (await request.json())["prompt"]
            tokens = self.tokenizer.encode(prompt, add_special_tokens=True)
        except (ValueError, LookupError, TypeError) as error:
            return json_response({"error": repr(error)}, status=400)
        return json_response({"count": len(tokens), "tokens": tokens})

    async def prometheus_metrics(self, request: web.Request) -> web.Response:
        """Mounted with `return_perf_metrics: true` only."""
        if not self.options.metrics:
            raise web.HTTPNotFound
        engine = self.host.live.statistics()
        label = {"model_name": "undefined", "engine_type": "undefined"}  # in several builds
        blocks = engine.kv_capacity // _TOKENS_PER_BLOCK
        used = min(blocks, -(-engine.kv_used // _TOKENS_PER_BLOCK))
        gauges = {
            "trtllm_num_requests_running": engine.running,
            "trtllm_num_requests_waiting": engine.waiting,
            "trtllm_max_num_active_requests": self.host.profile.max_sequences,
            "trtllm_kv_cache_utilization": used / blocks,
            "trtllm_kv_cache_max_blocks": blocks,
            "trtllm_kv_cache_free_blocks": blocks - used,
            "trtllm_kv_cache_used_blocks": used,
            "trtllm_kv_cache_tokens_per_block": _TOKENS_PER_BLOCK,
        }
        counters = {
            "trtllm_prompt_tokens_total": engine.prompt_tokens,
            "trtllm_generation_tokens_total": engine.output_tokens,
        }
        families: list[Family] = [(name, "gauge", [(label, value)]) for name, value in gauges.items()]
        families += [(name, "counter", [(label, value)]) for name, value in counters.items()]
        finished = {**label, "finished_reason": "stop"}
        families.append(("trtllm_request_success_total", "counter", [(finished, engine.finished)]))
        return exposition(families)

    async def metrics(self, request: web.Request) -> web.Response:
        """Iterations since the last reader came; without any it waits before it says so."""
        steps = self.host.steps
        if not steps:
            await asyncio.sleep(self.options.idle_metrics_s)
        statistics = [self.iteration(step) for step in steps]
        steps.clear()
        return json_response(statistics)

    def iteration(self, step: Step) -> dict[str, Any]:
        blocks = self.host.profile.kv_tokens // _TOKENS_PER_BLOCK
        used = min(blocks, -(-step.kv_used // _TOKENS_PER_BLOCK))
        engine = self.host.live.statistics()
        return {
            "iter": step.number,
            "iterLatencyMS": step.duration * 1e3,
            "timestamp": f"{step.end:.6f}",
            "numActiveRequests": engine.running,
            "numQueuedRequests": engine.waiting,
            "numCompletedRequests": len(step.finished),
            "maxNumActiveRequests": self.host.profile.max_sequences,
            "gpuMemUsage": 76_665_782_272,
            "kvCacheStats": {
                "allocNewBlocks": 0,
                "allocTotalBlocks": used,
                "cacheHitRate": 0.0,
                "freeNumBlocks": blocks - used,
                "maxNumBlocks": blocks,
                "missedBlocks": 0,
                "reusedBlocks": 0,
                "tokensPerBlock": _TOKENS_PER_BLOCK,
                "usedNumBlocks": used,
            },
            "inflightBatchingStats": {
                "avgNumDecodedTokensPerIter": 1.0,
                "microBatchId": 0,
                "numContextRequests": len(step.produced) - step.decoding,
                "numCtxTokens": step.prompt_tokens,
                "numGenRequests": step.decoding,
                "numPausedRequests": len(step.preempted),
                "numScheduledRequests": len(step.produced),
            },
        }
