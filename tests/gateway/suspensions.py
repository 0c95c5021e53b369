"""Cancelling a coroutine at each of its suspension points, one after the other."""

import asyncio
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Literal

When = Literal["waiting", "as it ends", "twice"]


@types.coroutine
def _counted(coroutine: Coroutine[Any, Any, Any], at_suspension: Callable[[int, Any], None]) -> Generator:
    """Run `coroutine`, telling `at_suspension` of each wait: its number and future (None: a yield)."""
    step, value = coroutine.send, None
    number = 0
    while True:
        try:
            waits_for = step(value)
        except StopIteration as stop:
            return stop.value
        at_suspension(number, waits_for)
        number += 1
        try:
            value = yield waits_for
            step = coroutine.send
        except BaseException as error:
            step, value = coroutine.throw, error


async def cancelled_at(number: int, coroutine: Coroutine[Any, Any, Any], when: When = "waiting") -> Any:
    """The outcome of `coroutine` in a task that is cancelled at suspension `number`.

    `waiting`: in the next turn of the loop. `as it ends`: in the very turn in which what it waits for is
    done, before the task can see that. `twice`: also at the suspension after that one, where it cleans up.
    Returns its result, or the exception that ended it; LookupError where
    it does not suspend that often.
    """
    reached = False

    def at_suspension(it: int, future: Any) -> None:
        nonlocal reached
        if it != number and not (when == "twice" and it == number + 1):
            return
        reached = True
        if when != "as it ends" or future is None:
            asyncio.get_running_loop().call_soon(task.cancel)
        else:
            future.add_done_callback(lambda _: task.cancel())

    async def work() -> Any:
        return await _counted(coroutine, at_suspension)  # type: ignore[misc]

    task = asyncio.get_running_loop().create_task(work())
    await asyncio.wait([task], timeout=5)
    assert task.done(), "it hangs"
    if task.cancelled():
        return asyncio.CancelledError()
    outcome = task.exception() or task.result()
    return outcome if reached else LookupError(number)


async def cancel_everywhere(
    scenario: Callable[[], Coroutine[Any, Any, Any]],
    check: Callable[[Any], Awaitable[None]],
    when: When = "waiting",
    most: int = 200,
) -> int:
    """Run a fresh `scenario` once for each of its suspension points, cancelled there; `check` each outcome.

    Returns how many points there were.
    """
    for number in range(most):
        outcome = await cancelled_at(number, scenario(), when)
        if isinstance(outcome, LookupError):
            return number
        await check(outcome)
    raise AssertionError(f"more than {most} suspension points")
