"""Runs an async test on both event loops that Headgate may run on, and looks what it left behind."""

import asyncio
import contextlib
import functools
import gc
import inspect
import os
from collections.abc import Callable

import pytest
import uvloop

LOOPS = [
    pytest.param(asyncio.new_event_loop, id="asyncio"),
    pytest.param(uvloop.new_event_loop, id="uvloop"),
]


def open_sockets() -> set[str]:
    """This process's sockets; empty where the system does not tell (uvloop keeps other files at times)."""
    found = set()
    with contextlib.suppress(FileNotFoundError):
        for file in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):
                found.add(os.readlink(f"/proc/self/fd/{file}"))
    return {file for file in found if file.startswith("socket:")}


def on_both_loops(test: Callable) -> Callable:
    """Run `test` on asyncio's loop and on uvloop; fail it for tasks or sockets left and for loop errors."""

    async def main(**arguments: object) -> None:
        loop = asyncio.get_running_loop()
        complaints: list[dict] = []
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        sockets = open_sockets()
        await test(**arguments)
        gc.collect()  # lost futures and transports complain when they are collected
        async with asyncio.timeout(2):
            while len(asyncio.all_tasks()) > 1 or open_sockets() - sockets:
                await asyncio.sleep(0.002)
        assert complaints == []

    @functools.wraps(test)
    def run(loop_factory: Callable[[], asyncio.AbstractEventLoop], **arguments: object) -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main(**arguments))

    del run.__wrapped__  # else pytest takes the async function's word for what this is
    loop_factory = inspect.Parameter("loop_factory", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = inspect.Signature([*inspect.signature(test).parameters.values(), loop_factory])
    return pytest.mark.parametrize("loop_factory", LOOPS)(run)
