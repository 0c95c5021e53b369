"""Hugging Face Text Generation Inference, its native routes.

From router/src (server.rs, lib.rs, validation.rs, infer/mod.rs) at v3.3.7: refuses at once beyond its
concurrency limit; validates with 422; every error of a stream is an event in a 200; keeps the stop sequence
in the text; flags special tokens; says why it ended and how much it counted only if `details` were asked
for; ends a stream with its body; fills silence with comment lines. BOS is added to whatever it is given.
"""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from backends.simulated.constrained import instance_of
from backends.simulated.dialects.common import Dialect, EngineFailed, Exchange, json_response, sse, voice_of
from backends.simulated.dialects.prometheus import Family, exposition
from backends.simulated.live import Ending, Piece

__all__ = [
    "GRAMMARS",
    "MAX_BATCH",
    "STREAM_HEADERS",
    "Ask",
    "Malformed",
    "Refused",
    "TgiNative",
    "decode",
    "invalid",
]

GRAMMARS = ("json", "json_object", "regex", "json_schema")
MAX_BATCH = 4
"""Prompts of one request to /v1/completions."""

_FINISH_REASONS: dict[Ending, str] = {"eos": "eos_token", "stop": "stop_sequence", "length": "length"}
STREAM_HEADERS = {
    "x-compute-type": "gpu+optimized",
    "x-accel-buffering": "no",
    "cache-control": "no-cache",
}
_MAX_STOP_SEQUENCES = 4
_MAX_BEST_OF = 2
_MAX_TOP_N_TOKENS = 5

_TYPES: dict[str, tuple[str, tuple[type, ...]]] = {
    "best_of": ("usize", (int,)),
    "temperature": ("f32", (int, float)),
    "repetition_penalty": ("f32", (int, float)),
    "frequency_penalty": ("f32", (int, float)),
    "top_k": ("i32", (int,)),
    "top_p": ("f32", (int, float)),
    "typical_p": ("f32", (int, float)),
    "do_sample": ("a boolean", (bool,)),
    "max_new_tokens": ("u32", (int,)),
    "return_full_text": ("a boolean", (bool,)),
    "stop": ("a sequence", (list,)),
    "truncate": ("usize", (int,)),
    "watermark": ("a boolean", (bool,)),
    "details": ("a boolean", (bool,)),
    "decoder_input_details": ("a boolean", (bool,)),
    "seed": ("u64", (int,)),
    "top_n_tokens": ("u32", (int,)),
    "adapter_id": ("a string", (str,)),
}
"""Parameter -> what serde expects, and the JSON types that it takes."""


class Refused(Exception):
    """An error as TGI tells it: a status for plain answers, and the same body as an event in a stream."""

    def __init__(self, status: int, message: str, error_type: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.body = {"error": message, "error_type": error_type}


def invalid(message: str) -> Refused:
    return Refused(422, f"Input validation error: {message}", "validation")


class Malformed(Exception):
    """The body is no JSON, or JSON of the wrong shape: axum answers in plain text, also to a stream."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.response = web.Response(status=status, text=message)


@dataclass(slots=True)
class Ask:
    """One generation."""

    inputs: str
    parameters: dict[str, Any]
    prompt: list[int]
    max_new_tokens: int

    def flag(self, name: str) -> bool:
        return bool(self.parameters.get(name))


def decode(request: web.Request, body: bytes) -> Any:
    """The JSON of a body. Raises Malformed."""
    if request.content_type != "application/json":
        raise Malformed(415, "Expected request with `Content-Type: application/json`")
    try:
        return json.loads(body)
    except ValueError as error:
        raise Malformed(400, f"Failed to parse the request body as JSON: {error}") from error


class TgiNative(Dialect):
    """text-generation-router without its Messages API."""

    notices = "next_token"
    version = "3.3.7"
    keep_alive_s = 15.0

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/", self.host.inference(self.compatible)),
            web.post("/generate", self.host.inference(self.generate)),
            web.post("/generate_stream", self.host.inference(self.generate_stream)),
            web.post("/tokenize", self.tokenize),
            web.get("/health", self.health),
            web.get("/ping", self.health),
            web.get("/", self.health),
            web.get("/info", self.info),
            web.get("/v1/models", self.models),
            web.get("/metrics", self.metrics),
        ]

    # ---------------------------------------------------------------------------------- what it reads

    def parse(self, request: web.Request, body: bytes) -> tuple[str, dict[str, Any]]:
        """`inputs` and `parameters`. Raises Malformed."""
        content = decode(request, body)
        shape = "Failed to deserialize the JSON body into the target type: "
        place = f"at line 1 column {len(body)}"
        if not isinstance(content, dict) or "inputs" not in content:
            raise Malformed(422, f"{shape}missing field `inputs` {place}")
        if not isinstance(content["inputs"], str):
            raise Malformed(422, f"{shape}inputs: invalid type: expected a string {place}")
        parameters = {
            name: value for name, value in (content.get("parameters") or {}).items() if value is not None
        }
        for name, value in parameters.items():
            expected, types = _TYPES.get(name, ("", (object,)))
            wrong = not isinstance(value, types) or (isinstance(value, bool) and bool not in types)
            if expected.startswith("u"):
                wrong = wrong or value < 0
            if wrong and expected:
                raise Malformed(
                    422,
                    f"{shape}parameters.{name}: invalid type: expected {expected} {place}",
                )
        return content["inputs"], parameters

    def read(
        self, inputs: str, parameters: dict[str, Any], *, stream: bool, add_special_tokens: bool = True
    ) -> Ask:
        """What is to be generated. Raises Refused with TGI's words."""
        given = parameters.get
        best_of, top_p, typical_p = given("best_of", 1), given("top_p"), given("typical_p")
        if not 1 <= best_of <= _MAX_BEST_OF:
            raise invalid(f"`best_of` must be > 0 and <= {_MAX_BEST_OF}. Given: {best_of}")
        if best_of > 1 and stream:
            raise invalid("`best_of` != 1 is not supported when streaming tokens")
        if given("decoder_input_details") and stream:
            raise invalid("`decoder_input_details` == true is not supported when streaming tokens")
        if given("temperature", 1.0) <= 0:
            raise invalid("`temperature` must be strictly positive")
        if given("repetition_penalty", 1.0) <= 0:
            raise invalid("`repetition_penalty` must be strictly positive")
        if not -2 <= given("frequency_penalty", 0.0) <= 2:
            raise invalid("`frequency_penalty` must be >= -2.0 and <= 2.0")
        if given("top_k", 1) <= 0:
            raise invalid("`top_k` must be strictly positive")
        if top_p is not None and not 0 < top_p < 1:
            raise invalid("`top_p` must be > 0.0 and < 1.0")
        if typical_p is not None and not 0 < typical_p < 1:
            raise invalid("`typical_p` must be > 0.0 and < 1.0")
        if given("top_n_tokens", 0) > _MAX_TOP_N_TOKENS:
            raise invalid(
                f"`top_n_tokens` must be >= 0 and <= {_MAX_TOP_N_TOKENS}. Given: {given('top_n_tokens')}"
            )
        if given("max_new_tokens") == 0:
            raise invalid("`max_new_tokens` must be strictly positive")
        stop = given("stop", [])
        if len(stop) > _MAX_STOP_SEQUENCES:
            raise invalid(f"`stop` supports up to {_MAX_STOP_SEQUENCES} stop sequences. Given: {len(stop)}")
        if not inputs:
            raise invalid("`inputs` cannot be empty")
        prompt = self.tokenizer.encode(inputs, add_special_tokens=add_special_tokens)
        if (truncate := given("truncate")) is not None:
            prompt = prompt[-truncate:]
        total = self.options.max_total_tokens
        max_new_tokens = given("max_new_tokens", max(1, total - len(prompt)))
        if len(prompt) + max_new_tokens > total:
            raise invalid(
                f"`inputs` tokens + `max_new_tokens` must be <= {total}. Given: {len(prompt)} `inputs` "
                f"tokens and {max_new_tokens} `max_new_tokens`"
            )
        if len(prompt) > self.options.max_input_tokens:
            raise invalid(
                f"`inputs` must have less than {self.options.max_input_tokens} tokens. Given: {len(prompt)}"
            )
        return Ask(inputs, parameters, prompt, max_new_tokens)

    def submit(self, exchange: Exchange, inputs: str, parameters: dict[str, Any]) -> Ask:
        self.take_permit()
        ask = self.read(inputs, parameters, stream=exchange.streamed)
        self.host.live.say(
            exchange.output,
            ask.prompt,
            ask.max_new_tokens,
            seed=voice_of(adapter := self.adapter(parameters.get("adapter_id")), parameters.get("seed")),
            stop=parameters.get("stop", ()),
            salt=adapter,
            text=self.constraint(parameters.get("grammar")),
        )
        exchange.submitted = True
        return ask

    def adapter(self, name: str | None) -> str | None:
        """An unknown one is the base model, and nothing says so."""
        return name if name in self.options.adapters else None

    def constraint(self, grammar: Any) -> str | None:
        """All that an answer under `grammar` may say. Raises Refused (validation.rs)."""
        if grammar is None:
            return None
        if not isinstance(grammar, dict) or grammar.get("type") not in GRAMMARS or "value" not in grammar:
            raise invalid("grammar is not valid")
        if grammar["type"] == "regex":
            return None  # the model here speaks no regular language
        schema = grammar["value"]
        if grammar["type"] == "json_schema":
            schema = schema.get("schema") if isinstance(schema, dict) else None
        if not isinstance(schema, dict) or not isinstance(schema.get("properties"), dict):
            raise invalid("Grammar must have a 'properties' field")
        return instance_of(schema)

    def take_permit(self) -> None:
        """Comes before the validation (infer/mod.rs). Raises Refused."""
        if len(self.host.exchanges) > self.options.max_concurrent_requests:
            raise Refused(429, "Model is overloaded", "overloaded")

    # ------------------------------------------------------------------------------------ the answers

    async def compatible(self, exchange: Exchange) -> web.StreamResponse:
        """`compat_generate`, which Hugging Face's clients post to: `stream` chooses between the two, and a
        whole answer comes in a list."""
        try:
            content = decode(exchange.request, exchange.body)
        except Malformed as malformed:
            return malformed.response
        if isinstance(content, dict) and content.get("stream") is True:
            return await self.generate_stream(exchange)
        return await self.generate(exchange, listed=True)

    async def generate(self, exchange: Exchange, *, listed: bool = False) -> web.StreamResponse:
        try:
            inputs, parameters = self.parse(exchange.request, exchange.body)
            ask = self.submit(exchange, inputs, parameters)
        except Malformed as malformed:
            return malformed.response
        except Refused as refused:
            return json_response(refused.body, status=refused.status)
        seen: list[Piece] = []
        try:
            while pieces := await exchange.output.next():
                for piece in pieces:
                    await exchange.content()
                    seen.append(piece)
        except EngineFailed as failed:
            return json_response(self.failure(failed), status=424)
        body: dict[str, Any] = {"generated_text": self.generated_text(ask, seen)}
        if ask.flag("details"):
            body["details"] = {
                "best_of_sequences": None,
                "finish_reason": _FINISH_REASONS[seen[-1].ending or "length"],
                "generated_tokens": len(seen),
                "prefill": [],
                "seed": ask.parameters.get("seed"),
                "tokens": [self.token(piece) for piece in seen],
            }
        spent = round((asyncio.get_running_loop().time() - exchange.started_at) * 1e3)
        headers = {
            "x-compute-type": "gpu+optimized",
            "x-compute-time": str(spent / 1e3),
            "x-compute-characters": str(len(ask.inputs)),
            "x-prompt-tokens": str(len(ask.prompt)),
            "x-generated-tokens": str(len(seen)),
            "x-total-time": str(spent),
            "x-validation-time": "0",
            "x-queue-time": "0",
            "x-inference-time": str(spent),
            "x-time-per-token": str(spent // len(seen)),
        }
        return json_response([body] if listed else body, headers=headers)

    async def generate_stream(self, exchange: Exchange) -> web.StreamResponse:
        exchange.streamed = True
        try:
            inputs, parameters = self.parse(exchange.request, exchange.body)
        except Malformed as malformed:
            return malformed.response
        try:
            ask = self.submit(exchange, inputs, parameters)
        except Refused as refused:
            return await self.error_stream(exchange, refused.body)
        await exchange.open("text/event-stream", headers=STREAM_HEADERS)
        seen: list[Piece] = []
        try:
            while pieces := await self.next(exchange):
                for piece in pieces:
                    await exchange.content()
                    seen.append(piece)
                    await exchange.send(sse(self.event(ask, seen)))
        except EngineFailed as failed:
            await exchange.send(self.error_events(exchange, self.failure(failed)))
        return await exchange.finish()

    async def error_stream(self, exchange: Exchange, body: dict[str, Any]) -> web.StreamResponse:
        await exchange.open("text/event-stream", headers=STREAM_HEADERS)
        await exchange.send(self.error_events(exchange, body))
        return await exchange.finish()

    def error_events(self, exchange: Exchange, body: dict[str, Any]) -> bytes:
        """What a stream tells of an error."""
        return sse(body)

    def wants_stream(self, exchange: Exchange) -> bool:
        """Whether the answer is a stream, also where nothing was read yet."""
        if exchange.request.path == "/generate_stream":
            return True
        try:
            body = json.loads(exchange.body)
        except ValueError:
            return False
        return exchange.request.path != "/generate" and isinstance(body, dict) and body.get("stream") is True

    async def overload(self, exchange: Exchange) -> web.StreamResponse:
        body = {"error": "Model is overloaded", "error_type": "overloaded"}
        if self.wants_stream(exchange):
            return await self.error_stream(exchange, body)
        return json_response(body, status=429)

    def failure(self, failed: EngineFailed) -> dict[str, Any]:
        return {"error": f"Request failed during generation: {failed}", "error_type": "generation"}

    def token(self, piece: Piece) -> dict[str, Any]:
        special = piece.token_id in self.tokenizer.special_ids
        text = self.tokenizer.pieces[piece.token_id].decode() if special else piece.text
        return {"id": piece.token_id, "text": text, "logprob": piece.logprob, "special": special}

    def event(self, ask: Ask, seen: list[Piece]) -> dict[str, Any]:
        piece = seen[-1]
        body: dict[str, Any] = {
            "index": piece.number,
            "token": self.token(piece),
            "generated_text": None,
            "details": None,
        }
        if piece.ending is not None:
            body["generated_text"] = self.generated_text(ask, seen)
            if ask.flag("details"):
                body["details"] = {
                    "finish_reason": _FINISH_REASONS[piece.ending],
                    "generated_tokens": piece.number,
                    "seed": ask.parameters.get("seed"),
                    "input_length": len(ask.prompt),
                }
        return body

    def generated_text(self, ask: Ask, seen: list[Piece]) -> str:
        text = "".join(piece.text for piece in seen)
        return ask.inputs + text if ask.flag("return_full_text") else text

    # --------------------------------------------------------------------------------------- the rest

    async def tokenize(self, request: web.Request) -> web.Response:
        try:
            inputs, parameters = self.parse(request, await request.read())
        except Malformed as malformed:
            return malformed.response
        tokens = self.tokens(inputs, add_special_tokens=True)
        return json_response(tokens[-parameters.get("truncate", len(tokens)) :])

    def tokens(self, text: str, *, add_special_tokens: bool) -> list[dict[str, Any]]:
        """The tokens as the tokenizing routes tell them."""
        return [
            {"id": token_id, "text": piece, "start": start, "stop": stop}
            for token_id, piece, start, stop in self.tokenizer.offsets(
                text, add_special_tokens=add_special_tokens
            )
        ]

    async def health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def info(self, request: web.Request) -> web.Response:
        return json_response(
            {
                "model_id": self.options.model,
                "model_sha": None,
                "model_pipeline_tag": "text-generation",
                "max_concurrent_requests": self.options.max_concurrent_requests,
                "max_best_of": _MAX_BEST_OF,
                "max_stop_sequences": _MAX_STOP_SEQUENCES,
                "max_input_tokens": self.options.max_input_tokens,
                "max_total_tokens": self.options.max_total_tokens,
                "validation_workers": 2,
                "max_client_batch_size": MAX_BATCH,
                "router": "text-generation-router",
                "version": self.version,
                "sha": None,
                "docker_label": None,
            }
        )

    async def models(self, request: web.Request) -> web.Response:
        card = {"id": self.options.model, "object": "model", "created": 0, "owned_by": self.options.model}
        return json_response({"object": "list", "data": [card]})

    async def metrics(self, request: web.Request) -> web.Response:
        engine = self.host.live.statistics()
        gauges = {
            "tgi_queue_size": engine.waiting,
            "tgi_batch_current_size": engine.running,
            "tgi_batch_current_max_tokens": engine.kv_used,
            "tgi_batch_max_total_tokens": engine.kv_capacity,
        }
        counters = {"tgi_request_count": engine.submitted, "tgi_request_success": engine.finished}
        families: list[Family] = [(name, "gauge", [({}, value)]) for name, value in gauges.items()]
        families += [(name, "counter", [({}, value)]) for name, value in counters.items()]
        families.append(("tgi_request_failure", "counter", [({"err": "dropped"}, engine.cancelled)]))
        return exposition(families)
