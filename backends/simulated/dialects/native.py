"""The doors beside chat and completions: embeddings, responses, messages, rerank, score.

What is asked becomes a chat, or prompts of one token's output, of the dialect that it belongs to; so its
refusals, its faults and its timing are the dialect's. The shapes are vLLM's (entrypoints/anthropic,
entrypoints/openai/responses, entrypoints/pooling); SGLang's rerank is a bare list.
"""

import base64
import hashlib
import json
import struct
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web
from pydantic import ValidationError

from backends.simulated.dialects.common import EngineFailed, Exchange, json_body, json_response
from backends.simulated.dialects.openai_requests import Ask, Refused
from backends.simulated.dialects.openai_shapes import Choice

if TYPE_CHECKING:
    from backends.simulated.dialects.openai import OpenAIDialect

__all__ = ["NativeRoutes"]

EVENT_STREAM = "text/event-stream; charset=utf-8"
DIMENSIONS = 8
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}

Answer = Callable[[Exchange, dict[str, Any]], Awaitable[web.StreamResponse]]


def _event(value: Mapping[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (str(value["type"]).encode(), json_body(value))


def _numbers(ids: Iterable[int], count: int) -> list[float]:
    """Numbers in -1..1 that hang on all of `ids`."""
    seed = ",".join(map(str, ids)).encode()
    digests = (hashlib.sha256(b"%d:%b" % (number, seed)).digest() for number in range(count))
    return [int.from_bytes(digest[:4], "big") / 2**31 - 1 for digest in digests]


class NativeRoutes:
    """Those doors of one dialect that its server has."""

    def __init__(self, dialect: "OpenAIDialect", doors: Iterable[str]) -> None:
        self._dialect = dialect
        self._doors = frozenset(doors)

    def routes(self) -> list[web.RouteDef]:
        handlers: list[tuple[str, str, Answer]] = [
            ("embeddings", "/v1/embeddings", self._embeddings),
            ("responses", "/v1/responses", self._responses),
            ("messages", "/v1/messages", self._messages),
            *(("rerank", f"{prefix}/rerank", self._rerank) for prefix in ("", "/v1", "/v2")),
            *(("score", f"{prefix}/score", self._score) for prefix in ("", "/v1")),
        ]
        return [
            web.post(path, self._dialect.host.inference(self._checked(door, answer)))
            for door, path, answer in handlers
            if door in self._doors
        ]

    def _checked(self, door: str, answer: Answer) -> Callable[[Exchange], Awaitable[web.StreamResponse]]:
        """`answer` with the body read, and with refusals in the door's shape."""

        async def handler(exchange: Exchange) -> web.StreamResponse:
            try:
                self._dialect.check_core()
                body = json.loads(exchange.body)
                if not isinstance(body, dict):
                    raise self._dialect.refuse_request("the body must be an object")
                self._dialect.check_model(body.get("model"))
                return await answer(exchange, body)
            except Refused as refused:
                return self._refused(door, refused)
            except ValidationError as error:
                return self._refused(door, self._dialect.refuse_validation(error))
            except EngineFailed:
                status, failure = self._dialect.failure()
                return self._refused(door, Refused(status, failure))

        return handler

    def _refused(self, door: str, refused: Refused) -> web.Response:
        body = refused.body
        if door == "messages":
            inner = body.get("error", body)
            inner = inner if isinstance(inner, dict) else {"message": inner}
            error = {"type": inner.get("type", "api_error"), "message": inner.get("message", "")}
            body = {"type": "error", "error": error}
        return json_response(body, status=refused.status)

    # ---------------------------------------------------------------------------------- conversations

    def _ask(
        self, exchange: Exchange, body: Mapping[str, Any], messages: list[Any], **more: Any
    ) -> tuple[Ask, Choice]:
        """Queue the chat that a conversation is to the engine."""
        dialect = self._dialect
        kept = {name: body[name] for name in ("stream", "ignore_eos", "temperature", "seed") if name in body}
        chat = {"model": body.get("model"), "messages": messages, **kept, **more}
        request: Any = dialect.chat_request.model_validate(chat)
        ask = dialect.read_chat(request)
        exchange.streamed = ask.stream
        dialect.name(exchange, ask, request)
        dialect.submit(exchange, ask)
        return ask, Choice()

    async def _texts(self, exchange: Exchange, ask: Ask, choice: Choice) -> AsyncIterator[str]:
        """The pieces of the only answer. Raises EngineFailed."""
        while pieces := await self._dialect.next(exchange):
            for piece in pieces:
                await exchange.content()
                self._dialect.take(ask, choice, piece)
                if choice.text or choice.reasoning:
                    yield choice.reasoning + choice.text
                choice.sent()

    async def _messages(self, exchange: Exchange, body: dict[str, Any]) -> web.StreamResponse:
        if not isinstance(body.get("max_tokens"), int):
            raise self._dialect.refuse_request("Field required: max_tokens")
        turns = [
            {"role": each.get("role"), "content": _text(each.get("content"))} for each in body["messages"]
        ]
        if body.get("system"):
            turns.insert(0, {"role": "system", "content": _text(body["system"])})
        stops = body.get("stop_sequences")
        ask, choice = self._ask(exchange, body, turns, max_tokens=body["max_tokens"], stop=stops)
        prompt = len(ask.prompts[0])
        message: dict[str, Any] = {
            "id": ask.id, "type": "message", "role": "assistant", "content": [], "model": ask.model,
            "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": prompt, "output_tokens": 0},
        }  # fmt: skip
        if not ask.stream:
            text = "".join([piece async for piece in self._texts(exchange, ask, choice)])
            message["content"] = [{"type": "text", "text": text}]
            message["stop_reason"] = _STOP_REASONS[choice.finish_reason or "stop"]
            message["usage"]["output_tokens"] = choice.tokens
            return json_response(message)
        await exchange.open(EVENT_STREAM)
        await exchange.send(_event({"type": "message_start", "message": message}))
        block = {"type": "text", "text": ""}
        await exchange.send(_event({"type": "content_block_start", "index": 0, "content_block": block}))
        try:
            async for text in self._texts(exchange, ask, choice):
                delta = {"type": "text_delta", "text": text}
                await exchange.send(_event({"type": "content_block_delta", "index": 0, "delta": delta}))
        except EngineFailed as failed:
            error = {"type": "internal_error", "message": str(failed)}
            await exchange.send(_event({"type": "error", "error": error}))
            return await exchange.finish()
        ended = {"stop_reason": _STOP_REASONS[choice.finish_reason or "stop"], "stop_sequence": None}
        usage = {"input_tokens": prompt, "output_tokens": choice.tokens}
        await exchange.send(
            _event({"type": "content_block_stop", "index": 0})
            + _event({"type": "message_delta", "delta": ended, "usage": usage})
            + _event({"type": "message_stop"})
        )
        return await exchange.finish()

    async def _responses(self, exchange: Exchange, body: dict[str, Any]) -> web.StreamResponse:
        given = body.get("input")
        turns = [{"role": "user", "content": given}] if isinstance(given, str) else []
        if isinstance(given, list):
            turns = [
                {"role": item.get("role", "user"), "content": _text(item.get("content"))} for item in given
            ]
        if body.get("instructions"):
            turns.insert(0, {"role": "system", "content": body["instructions"]})
        # llama.cpp reads such a body as a chat's (server_chat_convert_responses_to_chatcmpl).
        more = {"lora": body["lora"]} if self._dialect.kind == "llamacpp" and "lora" in body else {}
        ask, choice = self._ask(exchange, body, turns, max_tokens=body.get("max_output_tokens"), **more)
        item_id = f"msg_{uuid.uuid4().hex}"
        response: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}", "object": "response", "created_at": int(time.time()),
            "model": ask.model, "status": "in_progress", "error": None, "incomplete_details": None,
            "instructions": body.get("instructions"), "metadata": {}, "output": [],
            "parallel_tool_calls": True, "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0,
            "max_output_tokens": body.get("max_output_tokens"), "store": body.get("store", True),
            "usage": None,
        }  # fmt: skip

        def ended(text: str) -> dict[str, Any]:
            cut = choice.finish_reason == "length"
            part = {"type": "output_text", "text": text, "annotations": []}
            said = {"id": item_id, "type": "message", "role": "assistant", "status": "completed"}
            prompt = len(ask.prompts[0])
            return {
                **response,
                "status": "incomplete" if cut else "completed",
                "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
                "output": [{**said, "content": [part]}],
                "usage": {
                    "input_tokens": prompt,
                    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                    "output_tokens": choice.tokens, "output_tokens_details": {"reasoning_tokens": 0},
                    "total_tokens": prompt + choice.tokens,
                },
            }  # fmt: skip

        if not ask.stream:
            return json_response(
                ended("".join([piece async for piece in self._texts(exchange, ask, choice)]))
            )
        sent = 0

        async def tell(kind: str, **fields: Any) -> None:
            nonlocal sent
            await exchange.send(_event({"type": kind, "sequence_number": sent, **fields}))
            sent += 1

        where = {"item_id": item_id, "output_index": 0, "content_index": 0}
        item = {"id": item_id, "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        empty = {"type": "output_text", "text": "", "annotations": []}
        await exchange.open(EVENT_STREAM)
        await tell("response.created", response=response)
        await tell("response.in_progress", response=response)
        await tell("response.output_item.added", output_index=0, item=item)
        await tell("response.content_part.added", **where, part=empty)
        said = []
        try:
            async for text in self._texts(exchange, ask, choice):
                said.append(text)
                await tell("response.output_text.delta", **where, delta=text, logprobs=[])
        except EngineFailed as failed:
            await tell("error", code="server_error", message=str(failed), param=None)
            return await exchange.finish()
        whole = ended("".join(said))
        await tell("response.output_text.done", **where, text="".join(said), logprobs=[])
        await tell("response.content_part.done", **where, part=whole["output"][0]["content"][0])
        await tell("response.output_item.done", output_index=0, item=whole["output"][0])
        await tell(f"response.{whole['status']}", response=whole)
        return await exchange.finish()

    # ----------------------------------------------------------------------------------- lists of texts

    async def _compute(self, exchange: Exchange, model: str, prompts: list[list[int]]) -> dict[str, int]:
        """Have the engine read the prompts; returns the usage."""
        if not prompts or not all(prompts):
            raise self._dialect.refuse_request("The input is empty")
        self._dialect.submit(exchange, Ask(id="", chat=False, model=model, prompts=prompts, max_tokens=1))
        while pieces := await exchange.output.next():
            for _ in pieces:
                await exchange.content()
        tokens = sum(map(len, prompts))
        return {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}

    def _encode(self, text: str) -> list[int]:
        return self._dialect.tokenizer.encode(text, add_special_tokens=True)

    async def _embeddings(self, exchange: Exchange, body: dict[str, Any]) -> web.StreamResponse:
        given: Any = body.get("input")
        many = isinstance(given, list) and not (given and isinstance(given[0], int))
        prompts = [
            self._encode(each) if isinstance(each, str) else each for each in (given if many else [given])
        ]
        usage = await self._compute(exchange, body["model"], prompts)
        vectors: list[Any] = [_numbers(prompt, body.get("dimensions", DIMENSIONS)) for prompt in prompts]
        if body.get("encoding_format") == "base64":
            vectors = [base64.b64encode(struct.pack(f"<{len(each)}f", *each)).decode() for each in vectors]
        data = [{"index": at, "object": "embedding", "embedding": each} for at, each in enumerate(vectors)]
        head = {"id": f"embd-{uuid.uuid4().hex}", "object": "list", "created": int(time.time())}
        return json_response(
            {**head, "model": self._dialect.told_model(_Named(body)), "data": data, "usage": usage}
        )

    async def _rerank(self, exchange: Exchange, body: dict[str, Any]) -> web.StreamResponse:
        documents = [_text(each) for each in body.get("documents", ())]
        pairs = [self._encode(f"{body.get('query')} {document}") for document in documents]
        usage = await self._compute(exchange, body["model"], pairs)
        scores = [abs(_numbers(pair, 1)[0]) for pair in pairs]
        order = sorted(range(len(pairs)), key=lambda at: -scores[at])[: body.get("top_n") or None]
        if self._dialect.kind == "sglang":
            return json_response(
                [{"score": scores[at], "document": documents[at], "index": at} for at in order]
            )
        results = [
            {"index": at, "document": {"text": documents[at]}, "relevance_score": scores[at]} for at in order
        ]
        head = {"id": f"rerank-{uuid.uuid4().hex}", "model": body["model"]}
        return json_response({**head, "usage": usage, "results": results})

    async def _score(self, exchange: Exchange, body: dict[str, Any]) -> web.StreamResponse:
        first, second = (_listed(body.get(name, "")) for name in ("text_1", "text_2"))
        first = first * len(second) if len(first) == 1 else first
        pairs = [self._encode(f"{one} {other}") for one, other in zip(first, second, strict=True)]
        usage = await self._compute(exchange, body["model"], pairs)
        data = [
            {"index": at, "object": "score", "score": abs(_numbers(pair, 1)[0])}
            for at, pair in enumerate(pairs)
        ]
        head = {"id": f"score-{uuid.uuid4().hex}", "object": "list", "created": int(time.time())}
        return json_response({**head, "model": body["model"], "data": data, "usage": usage})


class _Named:
    """A body as far as `OpenAIDialect.told_model` looks at it."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self.model = body.get("model")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text(content: Any) -> str:
    """The text of a content, whatever its form."""
    if isinstance(content, dict):
        content = content.get("text", "")
    if isinstance(content, list):
        return "\n".join(_text(part) for part in content)
    return content if isinstance(content, str) else ""
