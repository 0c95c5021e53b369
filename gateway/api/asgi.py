"""The ASGI types, and the one way this gateway answers with a whole body."""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import msgspec

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

Headers = Iterable[tuple[bytes, bytes]]

encode_json = msgspec.json.Encoder().encode


async def send_body(
    scope: Scope,
    send: Send,
    status: int,
    body: bytes,
    content_type: str = "application/json",
    headers: Headers = (),
) -> None:
    """Answer with `body`; to HEAD with its headers alone."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", content_type.encode()),
                (b"content-length", str(len(body)).encode()),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def send_json(scope: Scope, send: Send, status: int, value: object, headers: Headers = ()) -> None:
    """Answer with `value` as JSON."""
    await send_body(scope, send, status, encode_json(value), headers=headers)


def authorization(scope: Scope) -> bytes | None:
    """The Authorization header; None where there is none, or more than one: which would be meant?"""
    values = [bytes(value) for key, value in scope["headers"] if key == b"authorization"]
    return values[0] if len(values) == 1 else None


def key_of(scope: Scope) -> bytes | None:
    """As `authorization`; without one, the key of Anthropic's `x-api-key` header."""
    if (given := authorization(scope)) is not None:
        return given
    values = [bytes(value) for key, value in scope["headers"] if key == b"x-api-key"]
    return b"Bearer " + values[0] if len(values) == 1 else None


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of that (lower-case) name."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None
