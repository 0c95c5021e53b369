"""Receiving: the body of a request, within its bounds; and noticing when the client is gone."""

import asyncio
from types import TracebackType
from typing import Self

from gateway.api.asgi import Receive, Scope, header
from gateway.errors import BodyTimeout, BodyTooLarge, ClientGone, UnsupportedMedia
from gateway.tasks import start

RECEIPT_SECONDS = 60.0
"""How long a client may take to send its body."""


def check_media_type(scope: Scope) -> None:
    """JSON in UTF-8, not compressed, or UnsupportedMedia."""
    content_type = (header(scope, b"content-type") or b"").decode("latin-1").lower()
    essence, _, parameters = content_type.partition(";")
    charset = parameters.partition("charset=")[2].partition(";")[0].strip(' "')
    if essence.strip() != "application/json" or charset not in ("", "utf-8", "utf8"):
        raise UnsupportedMedia("The body must be JSON in UTF-8: send `content-type: application/json`.")
    if (header(scope, b"content-encoding") or b"identity").lower() != b"identity":
        raise UnsupportedMedia("Compressed bodies are not accepted: send the JSON as it is.")


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body, at most `limit` bytes, received within RECEIPT_SECONDS."""
    declared = header(scope, b"content-length")
    if declared is not None and declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(RECEIPT_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone("the client left while sending its body")
                chunk: bytes = message.get("body", b"")
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return b"".join(chunks)
    except TimeoutError:
        raise BodyTimeout(f"The body did not arrive within {RECEIPT_SECONDS:g} s.") from None


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than {limit} bytes.")


class DisconnectWatch:
    """Cancels the work inside its block as soon as the client closes its connection.

    Start it after the body has been read and before anything is sent upstream: a client may go while its
    request is still waiting. Leaving the block because the client went raises ClientGone.

    ASGI servers also report a disconnect after a complete answer, so the sender calls `disarm` just before
    its last message.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._armed = True
        self.gone = False
        """Whether the client closed its connection while the watch was armed."""

    def disarm(self) -> None:
        """From now on a disconnect is no longer of interest."""
        self._armed = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a DisconnectWatch needs a running task")
        self._task = task
        self._cancelling = task.cancelling()
        self._watcher = start(self._watch(), "disconnect watch")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._armed = False
        self._watcher.cancel()
        await asyncio.sleep(0)  # where it ends, unless a server holds its cancellation back
        if not self._watcher.done():
            await asyncio.wait((self._watcher,), timeout=1)
        if not self.gone or self._task.uncancel() > self._cancelling:
            return  # nobody left, or somebody else wants this task to end too
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            raise ClientGone("the client closed the connection") from error

    async def _watch(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                break
        if self._armed:
            self.gone = True
            self._task.cancel("the client closed the connection")
