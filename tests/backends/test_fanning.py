"""Requests in parts: who gets which number, what is counted, and what becomes of failures."""

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.contract import Delta, Done, EngineError, ErrorKind, Event, GenerateRequest, Takes, Usage
from backends.fanning import FannedGeneration, first_part, parts_of
from backends.registry import REGISTRY

ONE = Takes(prompts=1, choices=1)
FOUR = Takes(prompts=4, choices=1)


def ask(prompt="a", n=1, **fields) -> GenerateRequest:
    return GenerateRequest(request_id="r1", model="m", stream=True, prompt=prompt, n=n, **fields)


# ------------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize(
    ("prompt", "n", "takes", "calls"),
    [
        ("a", 3, Takes(), [("a", 3, [0, 1, 2])]),
        (["a", "b"], 2, Takes(), [(["a", "b"], 2, [0, 1, 2, 3])]),
        ("a", 1, ONE, [("a", 1, [0])]),
        (["a"], 1, ONE, [(["a"], 1, [0])]),
        ([1, 2, 3], 1, ONE, [([1, 2, 3], 1, [0])]),
        (["a", "b"], 1, ONE, [("a", 1, [0]), ("b", 1, [1])]),
        ([[1, 2], [3]], 1, ONE, [([1, 2], 1, [0]), ([3], 1, [1])]),
        ("a", 2, ONE, [("a", 1, [0]), ("a", 1, [1])]),
        (["a", "b"], 2, ONE, [("a", 1, [0]), ("a", 1, [1]), ("b", 1, [2]), ("b", 1, [3])]),
        (["a", "b", "c", "d", "e"], 1, FOUR, [(["a", "b", "c", "d"], 1, [0, 1, 2, 3]), ("e", 1, [4])]),
        (["a", "b"], 2, FOUR, [(["a", "b"], 1, [0, 2]), (["a", "b"], 1, [1, 3])]),
        ("a", 5, Takes(choices=2), [("a", 2, [0, 1]), ("a", 2, [2, 3]), ("a", 1, [4])]),
    ],
)  # fmt: skip
def test_what_goes_in_which_call(prompt, n, takes, calls):
    """And by which number its choices go in the whole: prompt x n + j."""
    parts = parts_of(ask(prompt, n), takes)
    assert [(part.request.prompt, part.request.n, list(part.choices)) for part in parts] == calls
    if len(parts) == 1:
        assert parts[0].request.request_id == "r1"
    else:
        assert [part.request.request_id for part in parts] == [f"r1.{i}" for i in range(len(parts))]


@given(
    st.one_of(st.lists(st.text(max_size=3), min_size=1, max_size=9), st.just("text"), st.just([1, 2])),
    st.integers(1, 5), st.sampled_from([None, 1, 2, 4]), st.sampled_from([None, 1, 2]),
)  # fmt: skip
def test_every_choice_is_asked_for_once(prompt, n, prompts, choices):
    takes = Takes(prompts, choices)
    parts = parts_of(ask(prompt, n), takes)
    count = len(prompt) if isinstance(prompt, list) and isinstance(prompt[0], str) else 1
    assert sorted(number for part in parts for number in part.choices) == list(range(count * n))
    counting = [part for part in parts if part.counts_prompt]
    assert sum(len(part.choices) // part.request.n for part in counting) == count
    for part in parts:
        assert first_part(part.request, takes) == part.request
    assert first_part(ask(prompt, n), takes).n == parts[0].request.n


def test_a_chat_has_one_prompt():
    request = GenerateRequest(request_id="r1", model="m", stream=True, messages=[{}], n=2, rendered="x")
    first, second = parts_of(request, ONE)
    assert (first.request.messages, first.request.rendered, first.request.prompt) == ([{}], "x", None)
    assert (first.counts_prompt, second.counts_prompt) == (True, False)


def test_seeds_differ_between_the_choices_of_a_prompt():
    """Not between prompts; and one that was not given is made, the same one each time."""

    def seeds(**parameters):
        parts = parts_of(ask(["a", "b"], 3, parameters=parameters), ONE)
        return [part.request.parameters.get("seed") for part in parts]

    assert seeds(seed=7) == [7, 8, 9, 7, 8, 9]
    assert seeds(seed=2**63 - 1) == [2**63 - 1, 2**63 - 2, 2**63 - 3] * 2
    made = seeds()
    assert made[0] is made[3] is None
    assert len({*made[1:3]}) == 2
    assert made == seeds() == [*made[:3], *made[:3]]


TAKES = {
    "trtllm": Takes(), "vllm": Takes(), "sglang": Takes(), "openai": Takes(), "tgi": ONE, "triton": ONE,
    "triton-openai": ONE, "llamacpp": ONE,
}  # fmt: skip


@pytest.mark.parametrize("kind", REGISTRY.kinds())
@pytest.mark.parametrize(("prompt", "n"), [(["a", "b", "c"], 2), ("a", 4), (None, 3)])
def test_every_adapter_takes_each_part_of_what_it_lets_pass(kind, prompt, n):
    """Lists and choices are no reason to refuse; and what is encoded asks for one thing where it must."""
    adapter = REGISTRY.adapter(kind, {})
    assert adapter.takes == TAKES[kind]
    chat = {"messages": [{"role": "user", "content": "x"}], "rendered": "x"} if prompt is None else {}
    request = ask(prompt, n, max_tokens=3, **chat)
    assert adapter.unsupported(request) is None
    for part in parts_of(request, adapter.takes):
        assert adapter.unsupported(part.request) is None
        body = msgspec.json.decode(adapter.encode(part.request).body)
        assert body.get("n", 1) == part.request.n


def test_tgis_messages_api_takes_as_many_as_it_was_started_for():
    for options, most in (({}, 4), ({"max_client_batch_size": 32}, 32)):
        adapter = REGISTRY.adapter("tgi", {"api": "messages", **options})
        assert adapter.takes == Takes(prompts=most, choices=1)
        assert adapter.unsupported(ask(["a"] * 50, 2)) is None


# ---------------------------------------------------------------------------------------------- answers


class Script:
    """A generation that gives batches of events, errors, or nothing ever (None)."""

    def __init__(self, *batches: list[Event] | EngineError | None) -> None:
        self.batches = list(batches)
        self.cancelled = False

    async def events(self) -> list[Event]:
        await asyncio.sleep(0)
        if not self.batches:
            raise AssertionError("asked after its end")
        batch = self.batches.pop(0)
        if batch is None:
            await asyncio.get_running_loop().create_future()
        if isinstance(batch, EngineError):
            raise batch
        assert batch is not None
        return batch

    def cancel(self) -> None:
        self.cancelled = True


class Engine:
    """Answers the parts of a request by scripts; an EngineError instead of one refuses it."""

    def __init__(self, *scripts: Script | EngineError) -> None:
        self.scripts = list(scripts)
        self.opened: list[str] = []

    async def open(self, request: GenerateRequest) -> Script:
        await asyncio.sleep(0)
        number = int(request.request_id.partition(".")[2])
        self.opened.append(request.request_id)
        script = self.scripts[number]
        if isinstance(script, EngineError):
            raise script
        return script

    def answer(self, prompt, n=1, takes=ONE, **options) -> FannedGeneration:
        return FannedGeneration(parts_of(ask(prompt, n), takes), self.open, **options)


def error(retryable=True) -> EngineError:
    return EngineError(ErrorKind.ENGINE, "broke", retryable=retryable)


def says(*pieces: str, usage=(5, 2)) -> Script:
    told = [] if usage is None else [Usage(prompt_tokens=usage[0], completion_tokens=usage[1])]
    ends = [Delta(text="", finish_reason="stop"), *told, Done()]
    return Script(*([Delta(text=piece, tokens=1)] for piece in pieces), ends)


async def all_of(generation: FannedGeneration) -> list[Event]:
    events: list[Event] = []
    async with asyncio.timeout(5):
        while not events or not isinstance(events[-1], Done):
            batch = await generation.events()
            assert batch
            events += batch
    return events


def texts(events: list[Event]) -> dict[int, str]:
    said: dict[int, str] = {}
    for event in events:
        if isinstance(event, Delta):
            said[event.index] = said.get(event.index, "") + event.text
    return said


async def test_answers_come_together_under_the_numbers_of_the_whole():
    engine = Engine(says("a", "0"), says("a", "1"), says("b", "0"), says("b", "1"))
    events = await all_of(engine.answer(["a", "b"], 2))
    assert texts(events) == {0: "a0", 1: "a1", 2: "b0", 3: "b1"}
    assert [event.index for event in events if isinstance(event, Delta) and event.finish_reason]
    # One usage, of all: each prompt once, whatever was computed of it twice.
    assert [event for event in events if isinstance(event, Usage)] == [
        Usage(prompt_tokens=10, completion_tokens=8)
    ]


async def test_a_figure_that_one_part_does_not_tell_is_untold():
    engine = Engine(says("a"), says("b", usage=None))
    assert not [event for event in await all_of(engine.answer(["a", "b"])) if isinstance(event, Usage)]
    engine = Engine(says("a"), says("a", usage=(None, 3)))  # the prompt is the first one's to tell
    (usage,) = [event for event in await all_of(engine.answer("a", 2)) if isinstance(event, Usage)]
    assert usage == Usage(prompt_tokens=5, completion_tokens=5)


async def test_a_few_at_a_time():
    scripts = [says(str(i)) for i in range(7)]
    engine = Engine(*scripts)
    generation = engine.answer([str(i) for i in range(7)], at_a_time=3)
    await generation.events()
    assert len(engine.opened) == 3
    events = await all_of(generation)
    assert engine.opened == [f"r1.{i}" for i in range(7)]
    assert isinstance(events[-1], Done)
    with pytest.raises(RuntimeError):
        await generation.events()


async def test_nothing_is_read_ahead():
    """One batch of each part: what the client does not take stays in the socket."""
    script = says(*"abcdef")
    engine = Engine(script, says(*"abcdef"))
    generation = engine.answer(["a", "b"])
    await generation.events()
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(script.batches) >= 5


@pytest.mark.parametrize("broken", [0, 1, 3])
async def test_a_part_that_fails_at_first_fails_the_whole_and_may_be_sent_elsewhere(broken):
    """Although others had something to say: nothing of it has gone out."""
    scripts: list[Script | EngineError] = [says("x", "y") for _ in range(4)]
    scripts[broken] = Script(error())
    generation = Engine(*scripts).answer(["a"] * 4)
    with pytest.raises(EngineError) as raised:
        await generation.events()
    assert raised.value.retryable
    assert all(script.cancelled for script in scripts if script is not scripts[broken])
    with pytest.raises(EngineError):
        await generation.events()


async def test_a_part_that_cannot_be_opened_fails_the_whole():
    hanging = Script(None)
    generation = Engine(hanging, error()).answer(["a", "b"])
    with pytest.raises(EngineError) as raised:
        await generation.events()
    assert raised.value.retryable
    await asyncio.sleep(0.01)
    assert hanging.cancelled


async def test_a_part_that_fails_later_ends_the_whole_for_good():
    first, second = Script([Delta(text="a")], error()), Script([Delta(text="b")], None)
    generation = Engine(first, second).answer(["a", "b"])
    assert texts(await generation.events()) == {0: "a", 1: "b"}
    with pytest.raises(EngineError) as raised:
        await generation.events()
    assert not raised.value.retryable
    assert second.cancelled


async def test_a_part_that_fails_in_a_later_wave_is_not_sent_again():
    generation = Engine(says("a"), error()).answer(["a", "b"], at_a_time=1)
    with pytest.raises(EngineError) as raised:
        await all_of(generation)
    assert not raised.value.retryable


async def test_a_choice_too_many_is_a_fault():
    script = Script([Delta(index=1, text="x")])
    with pytest.raises(EngineError, match="too many"):
        await Engine(script, says("b")).answer(["a", "b"]).events()


@pytest.mark.parametrize("turns", range(6))
async def test_cancel_stops_all_parts_whenever_it_comes(turns):
    scripts = [Script([Delta(text="x")], None) for _ in range(4)]
    engine = Engine(*scripts)
    generation = engine.answer(["a"] * 4, at_a_time=3)
    waiting = asyncio.get_running_loop().create_task(generation.events())
    for _ in range(turns):
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    generation.cancel()
    generation.cancel()
    await asyncio.sleep(0.01)
    assert all(script.cancelled for script in scripts[: len(engine.opened)])
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("part ")]
    with pytest.raises(EngineError):
        await generation.events()


async def test_no_event_is_lost_where_a_wait_is_cut_short():
    """As a time budget does, or a watchdog: what has come is told by the next call."""
    generation = Engine(says(*"abc"), says(*"def")).answer(["a", "b"])
    events: list[Event] = []
    while not events or not isinstance(events[-1], Done):
        task = asyncio.get_running_loop().create_task(generation.events())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            events += task.result()
        await asyncio.sleep(0)
        if not task.cancelled() and isinstance(events[-1], Done):
            break
        events += await generation.events()
    assert texts(events) == {0: "abc", 1: "def"}


def test_parts_share_what_they_can():
    """A part is a request like any other: only these fields differ."""
    request = ask(["a", "b"], parameters={"temperature": 0.5}, stop=("x",), max_tokens=9)
    for part in parts_of(request, ONE):
        changed = {"request_id", "prompt"}
        for name in set(msgspec.structs.asdict(request)) - changed:
            assert getattr(part.request, name) == getattr(request, name)
