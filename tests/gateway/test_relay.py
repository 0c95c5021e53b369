"""How a send is counted that had begun to answer: by who ended it."""

import asyncio
from collections.abc import Sequence

import pytest

from backends.contract import Delta, Event
from gateway.errors import ClientGone
from tests.gateway.engines import an_error
from tests.gateway.test_pipeline import END, House, Paper, text


def sends(house: House) -> dict[str, int]:
    """Sends to engines by how they ended."""
    (family,) = house.pipeline.metrics.attempts.collect()
    samples = (each for each in family.samples if each.name.endswith("_total") and each.value)
    return {each.labels["outcome"]: int(each.value) for each in samples}


class Torn(Paper):
    """A reply with a fault of its own."""

    async def write(self, events: Sequence[Event]) -> None:
        raise TypeError("a fault of ours")


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ([*text(3), END], "ok"),
        ([*text(1), an_error("engine")], "error"),
        ([*text(1), [Delta(text="x", index=7)]], "error"),
        ([*text(1), None], "error"),
    ],
    ids=["whole", "broken", "more choices than asked for", "silent"],
)
async def test_what_an_engine_does(script, outcome):
    house = House(script, idle=0.01)
    await house.serve()
    assert sends(house) == {outcome: 1}


async def test_our_own_fault_is_not_the_clients():
    house = House([*text(3), END])
    house.reply = Torn()
    with pytest.raises(TypeError):
        await house.serve()
    assert sends(house) == {"error": 1}
    assert await house.charged() == (0, 0)
    house.assert_at_rest()


async def test_a_client_that_reads_nothing_has_left():
    house = House(text(3), stuck=1, send=0.01)
    with pytest.raises(ClientGone):
        await house.serve()
    assert sends(house) == {"abandoned": 1}


@pytest.mark.parametrize(("cut_off", "outcome"), [(True, "shutdown"), (False, "abandoned")])
async def test_who_ended_a_stream_in_the_middle(cut_off: bool, outcome: str):
    """The gateway, at the end of its drain, or the client."""
    house = House([*text(1), None])
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(house.serve())
        while not house.reply.events:
            await asyncio.sleep(0)
        house.record.cut_off = cut_off
        serving.cancel()
    assert sends(house) == {outcome: 1}
    (family,) = house.pipeline.metrics.abandoned.collect()
    causes = {each.labels["cause"] for each in family.samples if each.name.endswith("_total")}
    assert causes <= {"shutdown" if cut_off else "client"}
    house.assert_at_rest()
