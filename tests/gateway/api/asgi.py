"""The two ends of an ASGI application, in memory."""

import asyncio
from collections.abc import Iterable
from typing import Any


def a_scope(
    method: str = "POST",
    path: str = "/v1/chat/completions",
    headers: Iterable[tuple[bytes, bytes]] = (),
    **more,
) -> dict[str, Any]:
    return {"type": "http", "method": method, "path": path, "headers": list(headers), **more}


class Client:
    """What a client sends and sees. After its body it stays until `leave` is called."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = list(chunks)
        self._gone = asyncio.Event()
        self.messages: list[dict[str, Any]] = []
        self.received = 0

    def leave(self) -> None:
        self._gone.set()

    async def receive(self) -> dict[str, Any]:
        if self._chunks:
            self.received += 1
            body = self._chunks.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(self._chunks)}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int | None:
        return self.messages[0]["status"] if self.messages else None

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.messages[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(each["body"] for each in self.messages[1:])

    @property
    def complete(self) -> bool:
        return len(self.messages) > 1 and not self.messages[-1].get("more_body", False)
