"""Triton Inference Server with a TensorRT-LLM backend, over the generate extension.

Seen live on tritonserver 2.51 and read in its source (src/http_server.cc): a flat JSON body whose keys
become typed tensors or, silently, request parameters; wrong types are 500, missing tensors 400; a stream
sends no head before its first response, keeps its keys sorted, ends with its body and knows no end marker;
a model that fails answers 400 with an event in it, or an event in a 200 when it fails later. What the models
take and give is in `triton_classic.py` and `triton_llmapi.py`.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from aiohttp import web

from backends.simulated.dialects.common import Dialect, EngineFailed, Exchange, Host, json_body, sse, voice_of
from backends.simulated.dialects.napping import Nap
from backends.simulated.dialects.triton_classic import Classic
from backends.simulated.dialects.triton_llmapi import Llmapi
from backends.simulated.dialects.triton_metrics import triton_metrics
from backends.simulated.dialects.triton_tensors import Asked, Refused, Tensors, Vocabulary, read_tensors
from backends.simulated.live import Piece

__all__ = ["TritonDialect"]

_VOCABULARIES: Mapping[str, type[Vocabulary]] = MappingProxyType({"classic": Classic, "llmapi": Llmapi})
_CANCELLED = "Request cancelled by client"
_NOT_ONE = (
    "generate expects model to produce exactly 1 response, use generate stream for models that "
    "may generate various number of responses"
)


def _error(status: int, message: str) -> web.Response:
    return web.Response(body=json_body({"error": message}), status=status, content_type="application/json")


class TritonDialect(Dialect):
    """tritonserver."""

    kind = "triton"
    version = "2.51.0"

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        vocabulary = _VOCABULARIES[self.options.vocabulary]
        self.vocabulary = vocabulary(self.tokenizer, self.options, host.profile.max_sequences)
        self.nap = Nap(self.options)
        looks = self.options.vocabulary == "llmapi" or self.options.attentive
        self.notices = "next_write" if looks else "never"

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
            web.get("/v2/models/{model}/stats", self.model_stats),
            web.post("/v2/repository/index", self.repository_index),
            web.post("/v2/repository/models/{model}/load", self.load_model),
            web.post("/v2/repository/models/{model}/unload", self.unload_model),
            web.get("/metrics", self.metrics),
            web.route("*", "/v2{rest:.*}", self.wrong_method),
        ]

    # ---------------------------------------------------------------------------------- what it reads

    def read(self, model: str, exchange: Exchange) -> Asked:
        """Raises Refused in the order in which the server looks."""
        if model not in self.vocabulary.models:
            raise Refused(404, f"Request for unknown model: '{model}' is not found")
        if self.nap.asleep:
            raise Refused(404, f"Request for unknown model: '{model}' has no available versions")
        required: Sequence[str] = self.vocabulary.required
        if model not in self.vocabulary.speaking:  # the steps of the pipeline, which want ids
            required = ["input_ids", "input_lengths", "request_output_len"]
        exchange.id, tensors = read_tensors(exchange.body, self.vocabulary.inputs, required, model)
        if self.vocabulary.cancels(tensors):
            self.stop(exchange.id)
        return self.vocabulary.asked(model, exchange.id, tensors)

    def stop(self, request_id: str | None) -> None:
        """Answer a request that stops others, which is always with an error."""
        if not request_id:
            raise Refused(400, "A request id must be provided for request cancellation")
        self.cancel({request_id})
        raise Refused(400, _CANCELLED)

    def submit(self, exchange: Exchange, asked: Asked) -> None:
        """Queue the sequences. Raises Refused as the server and the backend do."""
        limit = self.options.max_queue_size
        if limit is not None and self.host.live.statistics().waiting >= limit:
            raise Refused(503, f"[request id: {asked.id or '<id_unknown>'}] Exceeds maximum queue size")
        if len(asked.prompt) > self.options.max_input_tokens:
            raise Refused(
                400,
                f"Prompt length ({len(asked.prompt)}) exceeds maximum input length "
                f"({self.options.max_input_tokens}). Set log level to info and check TRTGptModel logs for "
                "how maximum input length is set",
            )
        if asked.max_tokens < 1:
            return  # wrapped or plainly wrong: the model ends without a response
        try:
            for choice in range(asked.choices):
                self.host.live.say(
                    exchange.output,
                    asked.prompt,
                    self.limit_output(len(asked.prompt), asked.max_tokens),
                    choice=choice,
                    variant=choice,
                    seed=voice_of(self._adapter(asked), asked.seed),
                    salt=self._adapter(asked),
                    stop=asked.stop,
                    stop_ids=asked.stop_ids,
                    text=asked.says,
                )
        except ValueError as error:  # not one token is left for the output
            raise Refused(400, str(error)) from error
        exchange.submitted = True

    def _adapter(self, asked: Asked) -> str | None:
        """By number. Its weights came with an earlier request, or from the prefetch directory; with llmapi
        the request itself says where they are."""
        number: int | None = asked.tensors.get("lora_task_id", asked.tensors.get("lora_id"))
        if number is None:
            return None
        if number >= len(self.options.adapters):
            message = f"LoRA task {number} not found in cache. Please send LoRA weights with request"
            raise Refused(400, message)
        return self.options.adapters[number]

    # ------------------------------------------------------------------------------------ the answers

    async def generate(self, exchange: Exchange) -> web.StreamResponse:
        try:
            asked = self.read(exchange.request.match_info["model"], exchange)
            self.submit(exchange, asked)
        except Refused as refused:
            return _error(refused.status, refused.message)
        said: list[list[Piece]] = [[] for _ in range(asked.choices)]
        seen: list[Piece] = []
        try:
            while pieces := await exchange.output.next():
                for piece in pieces:
                    await exchange.content()
                    said[piece.choice].append(piece)
                    seen.append(piece)
        except EngineFailed:
            return _error(400, self.vocabulary.failure())
        if not seen or exchange.cancelled or (asked.streams and len(seen) > 1):
            return _error(200, _NOT_ONE)  # 200 all the same: the count is known when the head is gone
        body = self.vocabulary.response(asked, said, seen, streamed=False)
        return web.Response(body=json_body(body, sort_keys=True), content_type="application/json")

    async def generate_stream(self, exchange: Exchange) -> web.StreamResponse:
        exchange.streamed = True
        try:
            asked = self.read(exchange.request.match_info["model"], exchange)
            self.submit(exchange, asked)
        except Refused as refused:
            return _error(refused.status, refused.message)
        said: list[list[Piece]] = [[] for _ in range(asked.choices)]
        seen: list[Piece] = []
        try:
            while pieces := await exchange.output.next():
                for piece in pieces:
                    said[piece.choice].append(piece)
                    seen.append(piece)
                    if asked.streams:
                        await exchange.content()
                        body = self.vocabulary.response(asked, said, [piece], streamed=True)
                        await self.send(exchange, body)
            if exchange.cancelled:
                last = self.vocabulary.cancelled(asked, said)
                if last is not None and asked.streams:
                    await self.send(exchange, last)
            elif seen and not asked.streams:
                await exchange.content()
                await self.send(exchange, self.vocabulary.response(asked, said, seen, streamed=False))
        except EngineFailed:
            status = 400 if exchange.response is None else 200
            await self.send(exchange, {"error": self.vocabulary.failure()}, status=status)
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
        body = {"name": "triton", "version": self.version, "extensions": extensions}
        return web.Response(body=json_body(body), content_type="application/json")

    async def model_metadata(self, request: web.Request) -> web.Response:
        model = request.match_info["model"]
        if model not in self.vocabulary.models:
            return _error(404, f"Request for unknown model: '{model}' is not found")

        def tensors(table: Tensors) -> list[dict[str, Any]]:
            return [
                {"name": name, "datatype": datatype, "shape": shape}
                for name, (datatype, shape) in table.items()
            ]

        speaking = model in self.vocabulary.speaking
        body = {
            "name": model,
            "versions": ["1"],
            "platform": "ensemble" if model == "ensemble" else "python",
            "inputs": tensors(self.vocabulary.inputs) if speaking else [],
            "outputs": tensors(self.vocabulary.outputs) if speaking else [],
        }
        return web.Response(body=json_body(body), content_type="application/json")

    async def model_ready(self, request: web.Request) -> web.Response:
        if self.nap.asleep or request.match_info["model"] not in self.vocabulary.models:
            # 400 and not 404, and JSON that calls itself text.
            body = json_body({"error": "Model version not ready"})
            return web.Response(body=body, status=400, content_type="text/plain")
        return web.Response(content_type="text/plain")

    async def model_config(self, request: web.Request) -> web.Response:
        model = request.match_info["model"]
        if model not in self.vocabulary.models:
            return _error(404, f"Request for unknown model: '{model}' is not found")
        body = {
            "name": model,
            "platform": "ensemble" if model == "ensemble" else "",
            "backend": "" if model == "ensemble" else "python",
            "max_batch_size": self.vocabulary.max_batch_size,
            "model_transaction_policy": {
                "decoupled": self.options.decoupled and model in self.vocabulary.decoupled
            },
        }
        return web.Response(body=json_body(body), content_type="application/json")

    async def repository_index(self, request: web.Request) -> web.Response:
        state = {"state": "UNAVAILABLE", "reason": "unloaded"} if self.nap.asleep else {"state": "READY"}
        body = [{"name": model, "version": "1", **state} for model in self.vocabulary.models]
        return web.Response(body=json_body(body), content_type="application/json")

    async def load_model(self, request: web.Request) -> web.Response:
        return await self.control(request, load=True)

    async def unload_model(self, request: web.Request) -> web.Response:
        return await self.control(request, load=False)

    async def control(self, request: web.Request, *, load: bool) -> web.Response:
        """The models are one here, as an ensemble and the models that it is made of are."""
        if not self.nap.possible:
            return _error(503, "explicit model load / unload is not allowed if polling is enabled")
        model = request.match_info["model"]
        if load and model not in self.vocabulary.models:
            return _error(500, f"failed to load '{model}', failed to poll from model repository")
        if load:
            await self.nap.wake()
        elif model in self.vocabulary.models:
            await self.nap.sleep()
        return web.Response()

    async def model_stats(self, request: web.Request) -> web.Response:
        model = request.match_info["model"]
        if model not in self.vocabulary.models:
            return _error(404, f"Request for unknown model: '{model}' is not found")
        engine = self.host.live.statistics()
        count = engine.finished if model in self.vocabulary.speaking else 0
        statistics = {
            "name": model,
            "version": "1",
            "last_inference": 0,
            "inference_count": count,
            "execution_count": count,
            "inference_stats": {"success": {"count": count, "ns": 0}, "fail": {"count": 0, "ns": 0}},
            "response_stats": {},
            "batch_stats": [],
            "memory_usage": [],
        }
        return web.Response(body=json_body({"model_stats": [statistics]}), content_type="application/json")

    async def metrics(self, request: web.Request) -> web.Response:
        return triton_metrics(
            self.host, self.vocabulary.speaking[0], with_trtllm=self.vocabulary.exports_load
        )
