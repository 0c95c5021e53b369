"""Names to addresses, also while the name service is down."""

import asyncio
import errno
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult


class LastGoodResolver(AbstractResolver):
    """Names to addresses within a time limit; while the name service is down, the last good answer.

    An engine that was reachable a minute ago must not be lost to a name server's bad moment.
    """

    _CAPACITY = 1024

    def __init__(self, resolver: AbstractResolver, timeout: float) -> None:
        """`timeout` in seconds; a lookup that takes longer counts as failed."""
        self._resolver = resolver
        self._timeout = timeout
        self._known: dict[tuple[str, int, int], list[ResolveResult]] = {}

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        key = (host, port, int(family))
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._resolver.resolve(host, port, family)
        except OSError as error:  # TimeoutError is one
            if (known := self._known.get(key)) is not None:
                return known
            if isinstance(error, TimeoutError):
                raise OSError(errno.ETIMEDOUT, f"{host} not resolved within {self._timeout:g} s") from error
            raise
        self._known.pop(key, None)
        self._known[key] = answer
        if len(self._known) > self._CAPACITY:
            del self._known[next(iter(self._known))]
        return answer

    async def close(self) -> None:
        await self._resolver.close()
