"""Comments in a stream that is silent: lines that clients skip (`: ...`), and that proxies take for life.

They come from timers while the request's own task waits: for its turn, for an engine's first token, or for
the next one. So a comment has a short task of its own; the stream's next write waits until it has left, and
both write whole events or comments, so that neither ever falls into the midst of the other.
"""

import asyncio
import math
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Protocol, Self

from gateway.tasks import start

KEEP_ALIVE = "headgate keep-alive"


class Commentable(Protocol):
    async def comment(self, text: str) -> None:
        """Send a comment. It commits the status."""
        ...


class Comments:
    """The comments of one reply: one at a time, never beside a write of the stream itself."""

    __slots__ = ("_reply", "_task")

    def __init__(self, reply: Commentable) -> None:
        self._reply = reply
        self._task: asyncio.Task[None] | None = None

    @property
    def leaving(self) -> bool:
        """Whether one is on its way: `quiet()` then, before anything else is written."""
        return self._task is not None

    def say(self, text: str) -> None:
        """Send `text` soon; drop it if the one before has not left yet."""
        if self._task is None:
            self._task = start(self._reply.comment(text), "comment")
            self._task.add_done_callback(self._gone)

    async def quiet(self) -> None:
        """Wait until nothing is on its way."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    def close(self) -> None:
        """Send no more: neither what has not begun to leave, nor what its client does not read."""
        if self._task is not None:
            self._task.cancel()

    def _gone(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled():
            task.exception()  # the stream's own next write meets the same


class Announcing:
    """Tells a client that waits how it stands, every so often, from a timer.

    `say` returns what there is to say and None for nothing, `False` once there never will be.
    """

    __slots__ = ("_comments", "_every", "_say", "_timer")

    def __init__(
        self, comments: Comments, every: float, say: Callable[[], str | Literal[False] | None]
    ) -> None:
        self._comments = comments
        self._every = every
        self._say = say
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        if self._every < math.inf:
            self._timer = asyncio.get_running_loop().call_later(self._every, self._tick)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        text = self._say()
        self._timer = None
        if text is False:
            return
        if text is not None:
            self._comments.say(text)
        self._timer = asyncio.get_running_loop().call_later(self._every, self._tick)
