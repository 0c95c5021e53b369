"""Triton Inference Server with the classic TensorRT-LLM backend, over the generate extension.

Seen live on tritonserver 2.51 and read in its source (src/http_server.cc): a flat JSON body whose keys
become typed tensors or, silently, request parameters; wrong types are 500, missing tensors 400; a stream
sends no head before its first response, keeps its keys sorted, ends with its body and knows no end marker;
a model that fails answers 400 with an event in it, or an event in a 200 when it fails later.

Two models speak. `ensemble` decodes each token alone: pieces of characters come out as U+FFFD.
`tensorrt_llm_bls` does so too, or with `text_mode="cumulative"` sends the whole text so far in each event
(its `accumulate_tokens`); stop words stay in the text.

The metrics, on port 8002 of a real server, are served at `/metrics` of the same port here.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from aiohttp import web

from backends.simulated.dialects.common import Dialect, EngineFailed, Exchange, json_body, sse
from backends.simulated.live import Piece

__all__ = ["TritonDialect"]

Datatype = Literal["BYTES", "INT32", "UINT64", "FP32", "BOOL"]

_INPUTS: Mapping[str, tuple[Datatype, list[int]]] = MappingProxyType(
    {
        "text_input": ("BYTES", [-1, 1]),
        "max_tokens": ("INT32", [-1, 1]),
        "bad_words": ("BYTES", [-1, -1]),
        "stop_words": ("BYTES", [-1, -1]),
        "exclude_input_in_output": ("BOOL", [-1, 1]),
        "end_id": ("INT32", [-1, 1]),
        "pad_id": ("INT32", [-1, 1]),
        "top_k": ("INT32", [-1, 1]),
        "top_p": ("FP32", [-1, 1]),
        "temperature": ("FP32", [-1, 1]),
        "length_penalty": ("FP32", [-1, 1]),
        "repetition_penalty": ("FP32", [-1, 1]),
        "min_tokens": ("INT32", [-1, 1]),
        "presence_penalty": ("FP32", [-1, 1]),
        "frequency_penalty": ("FP32", [-1, 1]),
        "seed": ("UINT64", [-1, 1]),
        "return_log_probs": ("BOOL", [-1, 1]),
        "return_num_input_tokens": ("BOOL", [-1, 1]),
        "return_num_output_tokens": ("BOOL", [-1, 1]),
        "beam_width": ("INT32", [-1, 1]),
        "num_return_sequences": ("INT32", [-1, 1]),
        "stream": ("BOOL", [-1, 1]),
        "lora_task_id": ("UINT64", [-1, 1]),
        "guided_decoding_guide_type": ("BYTES", [-1, 1]),
        "guided_decoding_guide": ("BYTES", [-1, 1]),
    }
)
_REQUIRED = ("text_input", "max_tokens")
_OUTPUTS: Mapping[str, tuple[Datatype, list[int]]] = MappingProxyType(
    {
        "text_output": ("BYTES", [-1, -1]),
        "cum_log_probs": ("FP32", [-1, -1]),
        "output_log_probs": ("FP32", [-1, -1, -1]),
        "batch_index": ("INT32", [-1, 1]),
        "sequence_index": ("INT32", [-1, 1]),
        "num_input_tokens": ("INT32", [-1, 1]),
        "num_output_tokens": ("INT32", [-1, 1]),
    }
)
_SPEAKING = ("ensemble", "tensorrt_llm_bls")
_MODELS = ("ensemble", "postprocessing", "preprocessing", "tensorrt_llm", "tensorrt_llm_bls")

_ACCESS_ERRORS: Mapping[Datatype, str] = MappingProxyType(
    {
        "BYTES": "non-string as string",
        "INT32": "non-signed-integer as signed-integer",
        "UINT64": "non-unsigned-integer as unsigned-integer",
        "FP32": "non-number as double",
        "BOOL": "non-boolean as boolean",
    }
)
_FITS: Mapping[Datatype, Callable[[Any], bool]] = MappingProxyType(
    {
        "BYTES": lambda value: isinstance(value, str),
        "INT32": lambda value: type(value) is int,
        "UINT64": lambda value: type(value) is int and value >= 0,
        "FP32": lambda value: type(value) in (int, float),
        "BOOL": lambda value: isinstance(value, bool),
    }
)

_FAILURE = "Traceback (most recent call last):\n  simulated failure of the engine\n"


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message


def _error(status: int, message: str) -> web.Response:
    return web.Response(body=json_body({"error": message}), status=status, content_type="application/json")


@dataclass(slots=True)
class _Ask:
    model: str
    id: str | None
    tensors: dict[str, Any]
    prompt: list[int]
    max_tokens: int
    choices: int

    def flag(self, name: str, default: bool = False) -> bool:
        return bool(self.tensors.get(name, default))


class TritonDialect(Dialect):
    """tritonserver."""

    kind = "triton"
    notices = "next_write"

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v2/models/{model}/generate", self.host.inference(self.generate)),
            web.post("/v2/models/{model}/generate_stream", self.host.inference(self.generate_stream)),
            web.get("/v2/health/live", self.health, allow_head=False),
            web.get("/v2/health/ready", self.health, allow_head=False),
            web.get("/v2", self.server_metadata),
            web.get("/v2/models/{model}", self.model_metadata),
            web.get("/v2/models/{model}/ready", self.model_ready),
            web.get("/v2/models/{model}/config", self.model_config),
            web.post("/v2/repository/index", self.repository_index),
            web.get("/metrics", self.metrics),
            web.route("*", "/v2{rest:.*}", self.wrong_method),
        ]

    # ---------------------------------------------------------------------------------- what it reads

    def read(self, model: str, body: bytes) -> _Ask:
        """Raises _Refused in the order in which the server looks."""
        if model not in _MODELS:
            raise _Refused(404, f"Request for unknown model: '{model}' is not found")
        content = self.parse(body)
        request_id = content.pop("id", None)
        if request_id is not None and not isinstance(request_id, str):
            raise _Refused(500, "attempt to access JSON non-string as string")
        nested = content.pop("parameters", None)
        tensors: dict[str, Any] = {}
        for name, value in [*content.items(), *(nested.items() if isinstance(nested, dict) else ())]:
            if name in _INPUTS:
                tensors[name] = self.tensor(name, value)
            elif not isinstance(value, str | int | float):
                raise _Refused(
                    400,
                    f"parameter '{name}' has invalid type. It should be either 'int', 'bool', or 'string'.",
                )
        if model in _SPEAKING:
            missing = [name for name in _REQUIRED if name not in tensors]
        else:  # the steps of the pipeline, which want ids
            missing = ["input_ids", "input_lengths", "request_output_len"]
        if missing:
            raise _Refused(
                400,
                f"[request id: {request_id or '<id_unknown>'}] expected number of inputs between "
                f"{len(_REQUIRED)} and {len(_INPUTS)} but got {len(tensors)} inputs for model '{model}'. Got "
                f"input(s) {sorted(tensors)}, but missing required input(s) {missing}. "
                "Please provide all required input(s).",
            )
        max_tokens = (tensors["max_tokens"] + 2**31) % 2**32 - 2**31  # not range-checked: it wraps
        prompt = self.tokenizer.encode(tensors["text_input"], add_special_tokens=True)
        choices = max(1, tensors.get("num_return_sequences", 1))
        return _Ask(model, request_id, tensors, prompt, max_tokens, choices)

    def parse(self, body: bytes) -> dict[str, Any]:
        try:
            content = json.loads(body)
        except ValueError as error:
            # RapidJSON's words and its offset, for the two cases that were seen.
            if not body.strip():
                reason = "The document is empty. at 0"
            elif re.match(rb'\s*\{\s*[^"}\s]', body):
                reason = "Missing a name for object member. at 1"
            else:
                reason = f"Invalid value. at {getattr(error, 'pos', 0)}"
            raise _Refused(500, f"failed to parse the request JSON buffer: {reason}") from error
        if not isinstance(content, dict):
            raise _Refused(500, "attempt to access JSON non-object as object")
        return content

    def tensor(self, name: str, value: Any) -> Any:
        """The value of a tensor: a list for `stop_words` and `bad_words`, else its one element."""
        datatype, shape = _INPUTS[name]
        values = value if isinstance(value, list) else [value]
        if not all(_FITS[datatype](item) for item in values):
            message = f"attempt to access JSON {_ACCESS_ERRORS[datatype]}"
            raise _Refused(500, f"Unable to parse 'data': {message}")
        if shape == [-1, -1]:
            return values
        if len(values) != 1:
            raise _Refused(
                400,
                f"[request id: <id_unknown>] input '{name}' batch size does not match other inputs for model",
            )
        return values[0]

    def submit(self, exchange: Exchange, ask: _Ask) -> None:
        """Queue the sequences. Raises _Refused as the server and the backend do."""
        limit = self.options.max_queue_size
        if limit is not None and self.host.live.statistics().waiting >= limit:
            raise _Refused(503, f"[request id: {ask.id or '<id_unknown>'}] Exceeds maximum queue size")
        if len(ask.prompt) > self.options.max_input_tokens:
            raise _Refused(
                400,
                f"Prompt length ({len(ask.prompt)}) exceeds maximum input length "
                f"({self.options.max_input_tokens}). Set log level to info and check TRTGptModel logs for "
                "how maximum input length is set",
            )
        if ask.max_tokens < 1:
            return  # wrapped or plainly wrong: the model ends without a response
        end_id = ask.tensors.get("end_id")
        try:
            for choice in range(ask.choices):
                self.host.live.say(
                    exchange.output,
                    ask.prompt,
                    self.limit_output(len(ask.prompt), ask.max_tokens),
                    choice=choice,
                    variant=choice,
                    seed=ask.tensors.get("seed"),
                    stop=ask.tensors.get("stop_words", ()),
                    stop_ids=frozenset() if end_id is None else frozenset({end_id}),
                )
        except ValueError as error:  # not one token is left for the output
            raise _Refused(400, str(error)) from error
        exchange.submitted = True

    # ------------------------------------------------------------------------------------ the answers

    async def generate(self, exchange: Exchange) -> web.StreamResponse:
        try:
            ask = self.read(exchange.request.match_info["model"], exchange.body)
            self.submit(exchange, ask)
        except _Refused as refused:
            return _error(refused.status, refused.message)
        ids: list[list[int]] = [[] for _ in range(ask.choices)]
        pieces_seen: list[Piece] = []
        try:
            while pieces := await exchange.output.next():
                for piece in pieces:
                    await exchange.content()
                    ids[piece.choice].append(piece.token_id)
                    pieces_seen.append(piece)
        except EngineFailed:
            return _error(400, _FAILURE)
        if not pieces_seen or (ask.flag("stream") and len(pieces_seen) > 1):
            # HTTP 200 all the same: the count is known when the head is gone.
            message = (
                "generate expects model to produce exactly 1 response, use generate stream for models that "
                "may generate various number of responses"
            )
            return _error(200, message)
        body = self.response(ask, ids, pieces_seen, streamed=False)
        return web.Response(body=json_body(body, sort_keys=True), content_type="application/json")

    async def generate_stream(self, exchange: Exchange) -> web.StreamResponse:
        exchange.streamed = True
        try:
            ask = self.read(exchange.request.match_info["model"], exchange.body)
            self.submit(exchange, ask)
        except _Refused as refused:
            return _error(refused.status, refused.message)
        whole = not ask.flag("stream")
        ids: list[list[int]] = [[] for _ in range(ask.choices)]
        seen: list[Piece] = []
        try:
            while pieces := await exchange.output.next():
                for piece in pieces:
                    ids[piece.choice].append(piece.token_id)
                    seen.append(piece)
                    if not whole:
                        await exchange.content()
                        await self.send(exchange, self.response(ask, ids, [piece], streamed=True))
            if whole and seen:
                await exchange.content()
                await self.send(exchange, self.response(ask, ids, seen, streamed=False))
        except EngineFailed:
            status = 400 if exchange.response is None else 200
            await self.send(exchange, {"error": _FAILURE}, status=status)
        if exchange.response is None:  # no response at all: a 200 without one event
            await self.open(exchange, 200)
        return await exchange.finish()

    async def open(self, exchange: Exchange, status: int) -> None:
        await exchange.open("text/event-stream; charset=utf-8", status=status)

    async def send(self, exchange: Exchange, body: dict[str, Any], status: int = 200) -> None:
        """One event; the head goes out with the first."""
        if exchange.response is None:
            await self.open(exchange, status)
        await exchange.send(sse(body, sort_keys=True))

    async def overload(self, exchange: Exchange) -> web.StreamResponse:
        return _error(503, "[request id: <id_unknown>] Exceeds maximum queue size")

    def response(
        self, ask: _Ask, ids: list[list[int]], pieces: list[Piece], *, streamed: bool
    ) -> dict[str, Any]:
        """The output tensors of one response; tensors of one element come as scalars."""
        choice = pieces[-1].choice
        if not streamed:
            echo = ask.flag("exclude_input_in_output", not self.options.echo_input) is False
            head = ask.tensors["text_input"] if echo else ""
            texts = [head + self.tokenizer.decode(answer) for answer in ids]
            text: str | list[str] = texts[0] if len(texts) == 1 else texts
        elif ask.model == "tensorrt_llm_bls" and self.options.text_mode == "cumulative":
            text = self.tokenizer.decode(ids[choice])
        else:
            text = self.tokenizer.decode([pieces[-1].token_id])
        body: dict[str, Any] = {"model_name": ask.model, "model_version": "1", "text_output": text}
        if ask.id is not None:
            body["id"] = ask.id
        if ask.model == "ensemble":
            body |= {"sequence_end": False, "sequence_id": 0, "sequence_start": False}
        else:
            body |= {"batch_index": 0, "sequence_index": choice if streamed else 0}
        if ask.flag("return_log_probs"):
            logprobs = [piece.logprob for piece in pieces]
            body |= {
                "cum_log_probs": sum(logprobs),
                "output_log_probs": logprobs[0] if len(logprobs) == 1 else logprobs,
            }
        if ask.flag("return_num_input_tokens"):
            body["num_input_tokens"] = len(ask.prompt)
        if ask.flag("return_num_output_tokens"):
            counts = [len(answer) for answer in ids]
            body["num_output_tokens"] = counts[choice] if streamed or len(counts) == 1 else counts
        return body

    # --------------------------------------------------------------------------------------- the rest

    async def health(self, request: web.Request) -> web.Response:
        return web.Response(content_type="text/plain")

    async def wrong_method(self, request: web.Request) -> web.Response:
        return _error(405, "Method Not Allowed")

    async def server_metadata(self, request: web.Request) -> web.Response:
        extensions = [
            "classification", "sequence", "model_repository", "model_repository(unload_dependents)",
            "schedule_policy", "model_configuration", "system_shared_memory", "cuda_shared_memory",
            "binary_tensor_data", "parameters", "statistics", "trace", "logging",
        ]  # fmt: skip
        body = {"name": "triton", "version": "2.51.0", "extensions": extensions}
        return web.Response(body=json_body(body), content_type="application/json")

    async def model_metadata(self, request: web.Request) -> web.Response:
        model = request.match_info["model"]
        if model not in _MODELS:
            return _error(404, f"Request for unknown model: '{model}' is not found")

        def tensors(table: Mapping[str, tuple[Datatype, list[int]]]) -> list[dict[str, Any]]:
            return [
                {"name": name, "datatype": datatype, "shape": shape}
                for name, (datatype, shape) in table.items()
            ]

        speaking = model in _SPEAKING
        body = {
            "name": model,
            "versions": ["1"],
            "platform": "ensemble" if model == "ensemble" else "python",
            "inputs": tensors(_INPUTS) if speaking else [],
            "outputs": tensors(_OUTPUTS) if speaking else [],
        }
        return web.Response(body=json_body(body), content_type="application/json")

    async def model_ready(self, request: web.Request) -> web.Response:
        if request.match_info["model"] not in _MODELS:
            # 400 and not 404, and JSON that calls itself text.
            body = json_body({"error": "Model version not ready"})
            return web.Response(body=body, status=400, content_type="text/plain")
        return web.Response(content_type="text/plain")

    async def model_config(self, request: web.Request) -> web.Response:
        model = request.match_info["model"]
        if model not in _MODELS:
            return _error(404, f"Request for unknown model: '{model}' is not found")
        body = {
            "name": model,
            "platform": "ensemble" if model == "ensemble" else "",
            "backend": "" if model == "ensemble" else "python",
            "max_batch_size": self.host.profile.max_sequences,
            "model_transaction_policy": {"decoupled": model in ("tensorrt_llm", "tensorrt_llm_bls")},
        }
        return web.Response(body=json_body(body), content_type="application/json")

    async def repository_index(self, request: web.Request) -> web.Response:
        body = [{"name": model, "version": "1", "state": "READY"} for model in _MODELS]
        return web.Response(body=json_body(body), content_type="application/json")

    async def metrics(self, request: web.Request) -> web.Response:
        engine = self.host.live.statistics()
        label = 'model="tensorrt_llm",version="1"'
        block = 64
        used = -(-engine.kv_used // block)
        blocks = {
            "fraction": used * block / engine.kv_capacity,
            "free": engine.kv_capacity // block - used,
            "max": engine.kv_capacity // block,
            "tokens_per": block,
            "used": used,
        }
        requests = {
            "active": engine.running + engine.waiting,
            "max": self.host.profile.max_sequences,
            "scheduled": engine.running,
            "waiting": engine.waiting,
        }
        lines = [
            "# HELP nv_trt_llm_request_metrics TRT LLM request metrics",
            "# TYPE nv_trt_llm_request_metrics gauge",
            *(f'nv_trt_llm_request_metrics{{{label},request_type="{k}"}} {v}' for k, v in requests.items()),
            "# HELP nv_trt_llm_kv_cache_block_metrics TRT LLM KV cache block metrics",
            "# TYPE nv_trt_llm_kv_cache_block_metrics gauge",
            *(
                f'nv_trt_llm_kv_cache_block_metrics{{kv_cache_block_type="{k}",{label}}} {v}'
                for k, v in blocks.items()
            ),
            "# HELP nv_inference_request_success Number of successful inference requests, all batch sizes",
            "# TYPE nv_inference_request_success counter",
            f'nv_inference_request_success{{model="ensemble",version="1"}} {engine.finished}',
        ]
        return web.Response(text="\n".join(lines) + "\n", content_type="text/plain")
