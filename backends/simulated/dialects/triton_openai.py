"""Triton's OpenAI frontend over the TensorRT-LLM backend, on a port of its own (9000 by default).

From python/openai/openai_frontend of the Triton server (engine/triton_engine.py, frontend/fastapi/routers):
errors are FastAPI's `{"detail": ...}`; 16 tokens where none are asked for; every reason to end is `stop`,
also where the length was; no usage; stop strings stay in the text; ids begin with `cmpl-`; the event that
opens a chat goes out before the backend has seen the request, so that what the backend refuses cuts a stream.
"""

import uuid
from collections.abc import Sequence
from typing import Any

from aiohttp import web
from pydantic import BaseModel, Field, ValidationError

from backends.simulated.dialects.common import Exchange, json_response, sse
from backends.simulated.dialects.native import NativeRoutes
from backends.simulated.dialects.openai import EVENT_STREAM, OpenAIDialect
from backends.simulated.dialects.openai_requests import Ask, ChatRequest, CompletionRequest, Refused
from backends.simulated.dialects.openai_shapes import Choice
from backends.simulated.dialects.triton_metrics import triton_metrics
from backends.simulated.live import Piece

__all__ = ["TritonOpenAIDialect"]

_DEFAULT_MAX_TOKENS = 16


class _Chat(ChatRequest):
    logit_bias: dict[str, float] | None = None
    top_logprobs: int | None = None
    top_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)


class _Completion(CompletionRequest):
    logit_bias: dict[str, float] | None = None
    suffix: str | None = None
    top_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)


class TritonOpenAIDialect(OpenAIDialect):
    """`openai_frontend/main.py`."""

    kind = "triton-openai"
    doors = ("embeddings",)
    notices = "at_once"
    owned_by = "Triton Inference Server"
    opens_at_once = True
    chat_request: type[BaseModel] = _Chat
    completion_request: type[BaseModel] = _Completion

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/chat/completions", self.host.inference(self.chat)),
            web.post("/v1/completions", self.host.inference(self.completions)),
            web.get("/v1/models", self.models),
            web.get("/v1/models/{model:.+}", self.model),
            web.get("/health/ready", self.health),
            web.get("/metrics", self.metrics),
            *NativeRoutes(self, self.doors).routes(),
        ]

    # ------------------------------------------------------------------------------ what it refuses

    def error(self, status: int, message: str, error_type: str, param: str | None = None) -> Any:
        return {"detail": message}

    def refuse_validation(self, error: ValidationError) -> Refused:
        entries = [
            {"type": entry["type"], "loc": ["body", *entry["loc"]], "msg": entry["msg"]}
            for entry in error.errors(include_url=False, include_context=False)
        ]
        return Refused(422, {"detail": entries})

    def refuse_by_backend(self, message: str) -> Refused:
        """What the model answers is a fault of the server here."""
        return Refused(500, self.error(500, message, ""), late=True)

    def refuse_overload(self) -> Refused:
        return self.refuse_by_backend("[request id: <id_unknown>] Exceeds maximum queue size")

    async def refuse_late(self, exchange: Exchange, refused: Refused) -> web.StreamResponse:
        await exchange.open(EVENT_STREAM)
        return await exchange.close()

    def check_model(self, model: str | None) -> None:
        if model != self.options.model:
            raise self.refuse_request(f"Unknown model: {model}")

    def check_length(self, prompt_tokens: int, max_tokens: int | None) -> None:
        if prompt_tokens > self.options.max_input_tokens:
            raise self.refuse_by_backend(
                f"Prompt length ({prompt_tokens}) exceeds maximum input length "
                f"({self.options.max_input_tokens}). Set log level to info and check TRTGptModel logs for "
                "how maximum input length is set"
            )

    def failure(self) -> tuple[int, Any]:
        return 500, self.error(500, "simulated failure of the engine", "")

    async def fail_stream(self, exchange: Exchange) -> web.StreamResponse:
        # The iterator raises and the body is cut.
        return await exchange.close()

    # ---------------------------------------------------------------------------------- what it reads

    def read_chat(self, body: Any) -> Ask:
        if body.tools and not self.options.tool_calling:
            raise self.refuse_request("having tools in the request requires --tool-call-parser to be set")
        return super().read_chat(body)

    def constraint(self, body: Any) -> str | None:
        """None: the TensorRT-LLM backend is told of no response_format."""
        return None

    def read_completion(self, body: Any) -> Ask:
        if body.suffix is not None:
            raise self.refuse_request("suffix is not currently supported")
        if not isinstance(body.prompt, str):
            raise self.refuse_request("only single string input is supported")
        return super().read_completion(body)

    def read_common(self, ask: Ask, body: Any) -> None:
        self.check_model(body.model)
        if body.n is not None and body.n > 1:
            raise self.refuse_request(
                f"Received n={body.n}, but only single choice (n=1) is currently supported"
            )
        if body.logit_bias is not None:
            raise self.refuse_request("logit bias is not currently supported")
        if body.logprobs or getattr(body, "top_logprobs", None):
            raise self.refuse_request("logprobs are currently available only for the vLLM backend")
        if body.stream_options is not None and not body.stream:
            raise self.refuse_request("`stream_options` can only be used when `stream` is True")
        super().read_common(ask, body)
        if body.seed is not None and not 0 <= body.seed < 2**64:
            raise self.refuse_by_backend(f"Python integer {body.seed} out of bounds for uint64")
        if ask.max_tokens is None:
            ask.max_tokens = _DEFAULT_MAX_TOKENS
        ask.usage = ask.continuous_usage = False  # engine/utils/triton.py: of the vLLM backend only
        ask.keep_stop = True  # it asks the model for `stop_words`, which leaves them in

    def name(self, exchange: Exchange, ask: Ask, body: Any) -> None:
        ask.id = f"cmpl-{uuid.uuid1()}"

    # ------------------------------------------------------------------------------------ the answers

    def take(self, ask: Ask, choice: Choice, piece: Piece) -> None:
        super().take(ask, choice, piece)
        if choice.finish_reason is not None:
            choice.finish_reason = "stop"

    def speaks_now(self, choice: Choice, piece: Piece) -> bool:
        return True  # an event for each response of the model

    def told(self, ask: Ask, choices: list[dict[str, Any]], usage: Any, *, chunk: bool) -> dict[str, Any]:
        head = self.head(ask, chunk=chunk)
        return {
            "id": head["id"], "choices": choices, "created": head["created"], "model": head["model"],
            "system_fingerprint": None, "object": head["object"], "usage": usage,
        }  # fmt: skip

    def opening(self, ask: Ask, index: int) -> bytes:
        delta = {"content": "", "role": "assistant", "function_call": None}
        choice = {"delta": delta, "logprobs": None, "finish_reason": None, "index": index}
        return sse(self.told(ask, [choice], None, chunk=True))

    def chunk(self, ask: Ask, index: int, choice: Choice) -> dict[str, Any]:
        body: dict[str, Any] = {"finish_reason": choice.finish_reason, "index": index, "logprobs": None}
        if ask.chat:
            body["delta"] = {"content": choice.text, "role": None, "function_call": None}
        else:
            body["text"] = choice.text
        return self.told(ask, [body], None, chunk=True)

    def whole(self, ask: Ask, choices: Sequence[Choice]) -> dict[str, Any]:
        body: dict[str, Any] = {"finish_reason": choices[0].finish_reason, "index": 0, "logprobs": None}
        if ask.chat:
            body["message"] = {
                "content": choices[0].text, "tool_calls": None, "role": "assistant", "function_call": None,
            }  # fmt: skip
        else:
            body["text"] = choices[0].text
        return self.told(ask, [body], None, chunk=False)

    # --------------------------------------------------------------------------------------- the rest

    def model_card(self) -> dict[str, Any]:
        card = super().model_card()
        del card["max_model_len"]
        return card

    async def model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        if name != self.options.model:
            return json_response({"detail": f"Unknown model: {name}"}, status=404)
        return json_response(self.model_card())

    async def metrics(self, request: web.Request) -> web.Response:
        return triton_metrics(self.host, self.options.model, with_trtllm=True)
