"""vLLM's server: OpenAI's routes, its own tokenizer routes and its load, told in three ways.

From vLLM 0.33 (entrypoints/openai, entrypoints/serve, v1/metrics/loggers.py): unknown keys are ignored, also
`guided_json`; an unknown model is a 404 that lists the names there are; the status line goes out before the
first token; `delta.reasoning`; a priority other than 0 is an error unless the scheduler was told so; a full
queue is a 503; the request's id becomes part of the answer's.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import BaseModel, Field

from backends.simulated.dialects.common import Exchange, Host, json_body, json_response, sse
from backends.simulated.dialects.napping import Nap
from backends.simulated.dialects.openai import OpenAIDialect
from backends.simulated.dialects.openai_requests import Ask, ChatRequest, CompletionRequest, Refused
from backends.simulated.dialects.openai_shapes import Choice
from backends.simulated.dialects.prometheus import Family, exposition
from backends.simulated.tokens import TemplateError

__all__ = ["VllmDialect"]

_BLOCK = 16


class _Sampling(BaseModel):
    """What both routes take beside OpenAI's (sampling_params.py, `_verify_args`)."""

    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    min_tokens: int = Field(0, ge=0)
    use_beam_search: bool = False
    length_penalty: float = 1.0
    stop_token_ids: list[int] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    logit_bias: dict[str, float] | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    truncate_prompt_tokens: int | None = Field(None, ge=-1)
    prompt_logprobs: int | None = None
    add_special_tokens: bool = True
    thinking_token_budget: int | None = Field(None, ge=-1)
    structured_outputs: dict[str, Any] | None = None
    cache_salt: str | None = Field(None, min_length=1)
    return_tokens_as_token_ids: bool | None = None
    priority: int = 0
    request_id: str | None = None


class _Chat(_Sampling, ChatRequest):
    top_logprobs: int | None = Field(None, ge=-1, le=20)
    parallel_tool_calls: bool | None = True
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    echo: bool = False
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    documents: list[dict[str, str]] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class _Completion(_Sampling, CompletionRequest):
    logprobs: int | None = Field(None, ge=-1, le=20)


class VllmDialect(OpenAIDialect):
    """`vllm serve`."""

    kind = "vllm"
    doors = ("embeddings", "responses", "messages", "rerank", "score")
    version = "0.33.0"
    owned_by = "vllm"
    reasoning_key = "reasoning"
    keep_alive = b": keep-alive\n\n"
    chat_request: type[BaseModel] = _Chat
    completion_request: type[BaseModel] = _Completion

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.nap = Nap(self.options)
        self.dead = False
        """Its core died of a request while it slept (vllm issue 15483)."""

    def routes(self) -> list[web.RouteDef]:
        return [
            *super().routes(),
            web.get("/ping", self.health),
            web.post("/ping", self.health),
            web.get("/version", self.get_version),
            web.get("/load", self.load),
            web.get("/metrics", self.metrics),
            web.post("/tokenize", self.tokenize),
            web.post("/detokenize", self.detokenize),
            web.post("/abort_requests", self.abort_requests),
            *(
                (
                    web.post("/sleep", self.post_sleep),
                    web.post("/wake_up", self.post_wake_up),
                    web.get("/is_sleeping", self.is_sleeping),
                )
                if self.nap.possible
                else ()
            ),
        ]

    # ------------------------------------------------------------------------------------ its sleep

    async def post_sleep(self, request: web.Request) -> web.Response:
        """What it computes is aborted."""
        self.cancel(None)
        await self.nap.sleep()
        return web.Response()

    async def post_wake_up(self, request: web.Request) -> web.Response:
        await self.nap.wake()
        return web.Response()

    async def is_sleeping(self, request: web.Request) -> web.Response:
        return json_response({"is_sleeping": self.nap.asleep})

    async def health(self, request: web.Request) -> web.Response:
        """Sleep is no illness; a dead core is."""
        return web.Response(status=503) if self.dead else await super().health(request)

    # ------------------------------------------------------------------------------ what it refuses

    def check_model(self, model: str | None) -> None:
        if model is not None and model != self.options.model and model not in self.options.adapters:
            message = f"The model `{model}` does not exist. Valid aliases: {self.options.model}."
            raise Refused(404, self.error(404, message, "NotFoundError", "model"))

    async def serve(
        self, exchange: Exchange, schema: type[BaseModel], read: Callable[[Any], Ask]
    ) -> web.StreamResponse:
        try:
            self.check_core()
        except Refused as dead:
            return await self.refuse(exchange, dead)
        if exchange.request.content_type != "application/json":
            message = "Unsupported Media Type: Only 'application/json' is allowed"
            return json_response(self.error(400, message, "Bad Request"), status=400)
        return await super().serve(exchange, schema, read)

    def check_core(self) -> None:
        """What is asked of an engine that sleeps kills its core, by whichever route it comes."""
        if self.dead or self.nap.asleep:
            self.dead = True
            message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
            raise Refused(500, self.error(500, message, "InternalServerError"))

    def check_tools(self, body: Any) -> None:
        if body.tool_choice not in (None, "none") and not body.tools:
            raise self.refuse_request("When using `tool_choice`, `tools` must be set.")
        super().check_tools(body)

    def read_common(self, ask: Ask, body: Any) -> None:
        super().read_common(ask, body)
        bound = getattr(body, "max_completion_tokens", None) or body.max_tokens
        if bound is not None and body.min_tokens > bound:
            raise self.refuse_request(
                f"min_tokens must be less than or equal to max_tokens={bound}, got {body.min_tokens}."
            )
        if body.temperature is not None and body.temperature < 1e-5 and ask.n > 1:
            raise self.refuse_request(f"n must be 1 when using greedy sampling, got {ask.n}.")
        if getattr(body, "continue_final_message", False) and body.add_generation_prompt:
            raise self.refuse_request(
                "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
            )
        if body.priority != 0 and not self.options.priorities:
            raise self.refuse_request(f"Got priority {body.priority} but Priority scheduling is not enabled.")

    def name(self, exchange: Exchange, ask: Ask, body: Any) -> None:
        given = exchange.request.headers.get("X-Request-Id") or body.request_id
        if given:
            ask.id = f"{'chatcmpl' if ask.chat else 'cmpl'}-{given}"
        exchange.id = ask.id

    # ------------------------------------------------------------------------------------ the answers

    async def end_cancelled(
        self, exchange: Exchange, ask: Ask, choices: Sequence[Choice]
    ) -> web.StreamResponse:
        """It ends well, for the reason `abort`."""
        for index, choice in enumerate(choices):
            if choice.finish_reason is None:
                choice.finish_reason = "abort"
                if ask.stream:
                    await exchange.send(sse(self.chunk(ask, index, choice)))
        if not ask.stream:
            return json_response(self.whole(ask, choices))
        return await self.end_stream(exchange, ask, choices)

    def usage(self, ask: Ask, choices: Sequence[Choice]) -> dict[str, Any]:
        """What was cached is told where it was asked for at its start, and not if it is nothing."""
        told = super().usage(ask, choices)
        if self.options.tells_cached and ask.cached:
            told["prompt_tokens_details"] = {"cached_tokens": ask.cached}
        return told

    def answer_headers(self, exchange: Exchange) -> dict[str, str]:
        """ORCA, where the request asks for it; streams never get it."""
        form = exchange.request.headers.get("endpoint-load-metrics-format", "").lower()
        engine = self.host.live.statistics()
        named = {
            "kv_cache_usage_perc": engine.kv_used / engine.kv_capacity,
            "num_requests_waiting": float(engine.waiting),
        }
        if form == "json":
            text = "JSON " + json_body({"named_metrics": named}).decode()
        elif form == "text":
            text = "TEXT " + ", ".join(f"named_metrics.{name}={value}" for name, value in named.items())
        else:
            return {}
        return {"endpoint-load-metrics": text}

    def whole(self, ask: Ask, choices: Sequence[Choice]) -> dict[str, Any]:
        return {
            **super().whole(ask, choices),
            "service_tier": None,
            "system_fingerprint": None,
            "prompt_logprobs": None,
            "kv_transfer_params": None,
        }

    # --------------------------------------------------------------------------------------- the rest

    def model_card(self) -> dict[str, Any]:
        return {
            **super().model_card(), "root": self.options.model, "parent": None, "permission": [],
        }  # fmt: skip

    async def get_version(self, request: web.Request) -> web.Response:
        return json_response({"version": self.version})

    async def load(self, request: web.Request) -> web.Response:
        """With --enable-server-load-tracking."""
        return json_response({"server_load": len(self.host.exchanges)})

    async def tokenize(self, request: web.Request) -> web.Response:
        try:
            body = await request.json()
            if "messages" in body:
                text = self.tokenizer.render(
                    body["messages"], add_generation_prompt=body.get("add_generation_prompt", True)
                )
                tokens = self.tokenizer.encode(text, add_special_tokens=False)
            else:
                special = body.get("add_special_tokens", True)
                tokens = self.tokenizer.encode(body["prompt"], add_special_tokens=special)
        except (ValueError, LookupError, TypeError, TemplateError) as error:
            return json_response(self.error(400, str(error), "BadRequestError"), status=400)
        return json_response(
            {
                "count": len(tokens),
                "max_model_len": self.options.max_total_tokens,
                "tokens": tokens,
                "token_strs": None,
            }
        )

    async def detokenize(self, request: web.Request) -> web.Response:
        try:
            prompt = self.tokenizer.decode((await request.json())["tokens"], skip_special_tokens=False)
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            return json_response(self.error(400, str(error), "BadRequestError"), status=400)
        return json_response({"prompt": prompt})

    async def abort_requests(self, request: web.Request) -> web.Response:
        """An empty list aborts everything."""
        body = await request.json()
        ids = set(body.get("request_ids") or ())
        self.cancel(ids or None)
        return web.Response()

    async def metrics(self, request: web.Request) -> web.Response:
        engine = self.host.live.statistics()
        label = {"model_name": self.options.model, "engine": "0"}
        cache = {
            **label, "block_size": str(_BLOCK), "num_gpu_blocks": str(engine.kv_capacity // _BLOCK),
            "enable_prefix_caching": "False",
        }  # fmt: skip
        families: list[Family] = [
            ("vllm:num_requests_running", "gauge", [(label, engine.running)]),
            ("vllm:num_requests_waiting", "gauge", [(label, engine.waiting)]),
            ("vllm:kv_cache_usage_perc", "gauge", [(label, engine.kv_used / engine.kv_capacity)]),
            ("vllm:engine_sleep_state", "gauge", [({**label, "sleep_state": "awake"}, 1.0)]),
            ("vllm:cache_config_info", "gauge", [(cache, 1.0)]),
            ("vllm:num_preemptions_total", "counter", [(label, engine.preempted)]),
            ("vllm:prompt_tokens_total", "counter", [(label, engine.prompt_tokens)]),
            ("vllm:generation_tokens_total", "counter", [(label, engine.output_tokens)]),
            (
                "vllm:request_success_total",
                "counter",
                [
                    ({**label, "finished_reason": "stop"}, engine.finished),
                    ({**label, "finished_reason": "abort"}, engine.cancelled),
                ],
            ),
        ]
        return exposition(families)
