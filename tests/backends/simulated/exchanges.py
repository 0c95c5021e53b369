"""A plain client for the simulated servers: requests in each dialect, and what came back."""

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

CHAT = [{"role": "user", "content": "How deep is the canal?"}]

OPENAI_KINDS = ("trtllm", "triton-openai", "vllm", "sglang", "llamacpp", "openai")
"""Those that speak a dialect of OpenAI's."""

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        kind: ("/v1/chat/completions", {"model": "headgate-mini", "messages": CHAT, "max_tokens": 8})
        for kind in OPENAI_KINDS
    },
    "tgi": ("/generate", {"inputs": "How deep is the canal?", "parameters": {"max_new_tokens": 8}}),
    "triton": ("/v2/models/ensemble/generate", {"text_input": "How deep is the canal?", "max_tokens": 8}),
}
"""A request that is not streamed, for each kind."""


def request(kind: str, *, stream: bool, tokens: int = 8) -> tuple[str, dict[str, Any]]:
    """Path and body."""
    path, body = REQUESTS[kind]
    if kind == "tgi":
        return path + "_stream" * stream, {**body, "parameters": {"max_new_tokens": tokens, "details": True}}
    if kind == "triton":
        return path + "_stream" * stream, {**body, "max_tokens": tokens, "stream": stream}
    return path, {**body, "max_tokens": tokens, "stream": stream}


@dataclass
class Answer:
    """What a client saw. `error` is the exception that ended the body, if one did."""

    status: int
    headers: dict[str, str]
    body: bytes
    error: Exception | None = None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def events(self) -> list[Any]:
        """The events of a stream as JSON, `[DONE]` as a string, comments left out."""
        blocks = [block.strip() for block in self.body.decode().split("\n\n")]
        data = [block.removeprefix("data: ") for block in blocks if block.startswith("data:")]
        return [item if item == "[DONE]" else json.loads(item) for item in data]


async def post(url: str, path: str, body: Any, *, raw: bytes | None = None, headers=None) -> Answer:
    """One request on a fresh connection."""
    data = json.dumps(body).encode() if raw is None else raw
    headers = {"content-type": "application/json", **(headers or {})}
    async with (
        asyncio.timeout(10),
        aiohttp.ClientSession(auto_decompress=False) as session,
        session.post(url + path, data=data, headers=headers, allow_redirects=False) as response,
    ):
        received = bytearray()
        error = None
        try:
            async for chunk in response.content.iter_any():
                received += chunk
        except aiohttp.ClientError as problem:
            error = problem
        names = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status, names, bytes(received), error)


async def get(url: str, path: str, method: str = "GET") -> Answer:
    async with (
        asyncio.timeout(10),
        aiohttp.ClientSession() as session,
        session.request(method, url + path) as response,
    ):
        names = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status, names, await response.read())


@asynccontextmanager
async def raw_connection(url: str, path: str, body: Any):
    """(reader, writer) of a connection on which the request has been sent."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    writer.write(f"{head}\r\n\r\n".encode() + data)
    try:
        yield reader, writer
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except ConnectionError:
            pass


async def until(condition, seconds: float = 5.0) -> None:
    """Wait for a condition that a real server brings about in its own time."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)
