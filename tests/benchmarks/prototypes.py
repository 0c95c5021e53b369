"""What a gateway would cost if it did nothing: two bare proxies on the same libraries.

    python -m tests.benchmarks.prototypes starlette|raw PORT_FD UPSTREAM

`starlette`: Starlette's routing, Request and a streaming body, aiohttp behind. `raw`: a plain ASGI callable,
aiohttp behind. Neither counts, checks, routes, limits, watches, logs or measures anything: the distance from
them to the gateway is what all that costs.
"""

import socket
import sys
from typing import Any

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse  # noqa: TID251  # what most people write
from starlette.routing import Route


class Upstream:
    """One aiohttp session, opened in the server's loop."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session: aiohttp.ClientSession | None = None

    async def post(self, path: str, body: bytes) -> aiohttp.ClientResponse:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=aiohttp.ClientTimeout(None), auto_decompress=False
            )
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        return await self._session.post(self._url + path, data=body, headers=headers)


def starlette_app(upstream: Upstream) -> Any:
    async def chat(request: Request) -> Response:
        answer = await upstream.post(request.url.path, await request.body())
        media_type = answer.headers["content-type"]
        if media_type == "text/event-stream":
            return StreamingResponse(answer.content.iter_any(), answer.status, media_type=media_type)
        return Response(await answer.read(), answer.status, media_type=media_type)

    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])


def raw_app(upstream: Upstream) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        answer = await upstream.post(scope["path"], body)
        headers = [(b"content-type", answer.headers["content-type"].encode())]
        if "content-length" in answer.headers:
            headers.append((b"content-length", answer.headers["content-length"].encode()))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        while piece := await answer.content.readany():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


def main(kind: str, descriptor: str, url: str) -> None:
    app = {"starlette": starlette_app, "raw": raw_app}[kind](Upstream(url))
    config = uvicorn.Config(app, loop="uvloop", http="httptools", ws="none", lifespan="off", access_log=False)
    config.log_config = None
    config.log_level = "warning"
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(descriptor))])


if __name__ == "__main__":
    main(*sys.argv[1:])
