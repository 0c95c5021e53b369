"""A gateway that only thinks: for verbs that answer from the file.

It listens nowhere, probes nobody, and keeps limits in this process, as if nothing were used: the Redis that
the file names belongs to the gateways that run, which count each other there.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from gateway.admin.admin_key import AdminKey
from gateway.app import Gateway
from gateway.config.snapshot import Snapshot
from gateway.tokens.counting import Counting

__all__ = ["offline"]


@asynccontextmanager
async def offline(snapshot: Snapshot) -> AsyncIterator[Gateway]:
    """The gateway of `snapshot` for as long as the block lasts."""
    limits = replace(snapshot.server.limits, redis_url=None)
    snapshot = replace(snapshot, server=replace(snapshot.server, limits=limits))
    counting = await asyncio.to_thread(Counting.build, snapshot)
    async with Gateway(snapshot, counting, AdminKey(""), probe=False) as gateway:
        yield gateway
