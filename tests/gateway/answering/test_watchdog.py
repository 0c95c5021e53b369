"""The watchdog ends waits as `asyncio.timeout` does, at a fraction of its cost."""

import asyncio

import pytest

from gateway.answering.watchdog import Watchdog


async def test_a_wait_that_is_too_long_ends_with_timeout_error():
    with pytest.raises(TimeoutError):
        with Watchdog() as watchdog:
            watchdog.expect(0.01)
            await asyncio.Event().wait()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)  # nothing is left that would cancel us


async def test_every_wait_begins_anew_and_may_be_shorter_or_longer():
    with Watchdog() as watchdog:
        for seconds in (10, 0.05, 10, 0.05):
            watchdog.expect(seconds)
            await asyncio.sleep(0.001)
        watchdog.expect(10)
        await asyncio.sleep(0.1)  # the timer of the short waits looked, and let it pass
    assert not watchdog.expired


async def test_a_cancellation_from_elsewhere_passes_through():
    async def work() -> None:
        with Watchdog() as watchdog:
            watchdog.expect(10)
            await asyncio.Event().wait()

    task = asyncio.get_running_loop().create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_expiry_and_a_cancellation_in_one_turn_is_a_cancellation():
    async def work() -> None:
        with Watchdog() as watchdog:
            watchdog.expect(0)
            loop.call_soon(task.cancel)
            await asyncio.Event().wait()

    loop = asyncio.get_running_loop()
    task = loop.create_task(work())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_other_errors_are_themselves_and_the_timer_ends_with_the_block():
    with pytest.raises(ZeroDivisionError):
        with Watchdog() as watchdog:
            watchdog.expect(0.005)
            raise ZeroDivisionError
    await asyncio.sleep(0.02)


async def test_inside_an_outer_timeout_the_outer_one_wins_its_own_race():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            with Watchdog() as watchdog:
                watchdog.expect(10)
                await asyncio.Event().wait()
    assert not watchdog.expired


async def test_silence_is_told_every_so_often_and_ends_no_wait():
    beats = []
    with Watchdog(0.02, lambda: beats.append(1)) as watchdog:
        watchdog.expect(10)
        await asyncio.sleep(0.09)
    assert 2 <= len(beats) <= 4
    assert not watchdog.expired


async def test_what_comes_in_time_is_no_silence():
    beats = []
    with Watchdog(0.2, lambda: beats.append(1)) as watchdog:
        for _ in range(10):
            watchdog.expect(10)
            await asyncio.sleep(0.03)
    assert not beats


async def test_a_wait_still_ends_when_its_time_is_over():
    beats = []
    with pytest.raises(TimeoutError):
        with Watchdog(0.02, lambda: beats.append(1)) as watchdog:
            watchdog.expect(0.07)
            await asyncio.Event().wait()
    assert 1 <= len(beats) <= 3
