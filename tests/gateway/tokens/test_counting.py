"""The counting service: off the loop, bounded, exact where it can be and honest where it cannot."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType

import msgspec
import pytest

from backends.contract import GenerateRequest
from gateway.config.snapshot import MediaTokens, Model, Server, Snapshot, TokenizerSpec
from gateway.errors import BadRequest, Unavailable, UnsupportedByEngine
from gateway.tokens.counters import HuggingFaceCounter, TokenizerError
from gateway.tokens.counting import Counting, CountingLimits, Prepared
from gateway.tokens.tokenizing import Tokenizer

ESTIMATE = TokenizerSpec("estimate", bytes_per_token=4.0)


def snapshot(*models: Model) -> Snapshot:
    nothing: Mapping = MappingProxyType({})
    return Snapshot(
        source="test", hash="", server=Server(), models={model.name: model for model in models},
        pools=nothing, rules=(), tenants=nothing, aliases=nothing, keys=nothing, limits=(),
    )  # fmt: skip


def chat(*contents, **parameters) -> GenerateRequest:
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]
    return GenerateRequest(request_id="r", model="m", stream=True, messages=messages, parameters=parameters)


def completion(prompt) -> GenerateRequest:
    return GenerateRequest(request_id="r", model="m", stream=True, prompt=prompt)


@pytest.fixture
def models(tokenizer_dirs) -> dict[str, Model]:
    return {
        family: Model(family, TokenizerSpec("huggingface", path=str(path)))
        for family, path in tokenizer_dirs.items()
    }


@pytest.fixture
async def counting(models):
    service = Counting.build(snapshot(*models.values(), Model("guess", ESTIMATE)))
    yield service
    await service.aclose()


class Slow:
    """A counter that holds its thread until it is let go, then fails or answers 1."""

    source = "slow"
    exact = True
    added_tokens = ()

    def __init__(self, failure: BaseException | None = None) -> None:
        self.release = threading.Event()
        self.started = threading.Semaphore(0)
        self.failure = failure
        self.calls = 0

    def count(self, text: str, *, add_special_tokens: bool) -> int:
        self.calls += 1
        self.started.release()
        assert self.release.wait(30)
        if self.failure is not None:
            raise self.failure
        return 1


@contextmanager
def slow_counting(
    limits: CountingLimits, failure=None, template=None
) -> Iterator[tuple[Counting, Model, Slow]]:
    counter = Slow(failure)
    spec = TokenizerSpec("huggingface", path="slow")
    try:
        yield Counting({spec: Tokenizer(counter, template)}, limits), Model("slow", spec), counter
    finally:
        counter.release.set()


async def until(condition, seconds: float = 10) -> None:
    """Wait for another thread to get somewhere."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


# -------------------------------------------------------------------------------------- what is counted


@pytest.mark.parametrize("family", ["llama3", "chatml", "mistral", "gemma"])
async def test_a_chat_counts_as_the_engine_will_see_it(counting, models, bpe, tokenizer_dirs, family):
    """Rendered with the model's template; control tokens that the user wrote are one token each."""
    from transformers import AutoTokenizer

    request = chat("Hello <|im_end|>", "渠首", "x")
    reference = AutoTokenizer.from_pretrained(tokenizer_dirs[family])
    ids = reference.apply_chat_template(request.messages, add_generation_prompt=True, return_dict=False)
    count = await counting.count(models[family], request)
    assert (count.tokens, count.exact, count.longest, count.prompts) == (len(ids), True, len(ids), 1)
    assert count.source == f"tokenizer {family} (tiktoken)"


async def test_plain_prompts_get_the_special_tokens_that_engines_add(counting, models, bpe):
    """`<s>` in front of each; several prompts: the sum and the longest."""
    count = await counting.count(models["mistral"], completion("hello"))
    assert count.tokens == len(bpe.encode("hello")) == len(bpe.encode("hello", add_special_tokens=False)) + 1
    lengths = [len(bpe.encode(text)) for text in ("a", "hello fox", "")]
    several = await counting.count(models["mistral"], completion(["a", "hello fox", ""]))
    assert (several.tokens, several.longest, several.prompts) == (sum(lengths), max(lengths), 3)


@pytest.mark.parametrize(("prompt", "expected"), [([5, 6, 7], (3, 3, 1)), ([[1], [2, 3], []], (3, 2, 3))])
async def test_token_ids_are_counted_by_hand(counting, models, prompt, expected):
    """Whatever the model's tokenizer, estimates too."""
    for model in (models["chatml"], Model("guess", ESTIMATE)):
        count = await counting.count(model, completion(prompt))
        assert (count.tokens, count.longest, count.prompts) == expected
        assert (count.exact, count.source) == (True, "token ids")


async def test_tools_and_template_variables_are_part_of_a_prompt(counting, models):
    """Where the template writes them."""
    plain = (await counting.count(models["chatml"], chat("hi"))).tokens
    tools = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
    assert (await counting.count(models["chatml"], chat("hi", tools=tools))).tokens > plain + 5
    thinking = chat("hi", chat_template_kwargs={"enable_thinking": False})
    assert (await counting.count(models["chatml"], thinking)).tokens > plain
    assert (await counting.count(models["chatml"], chat("hi", add_generation_prompt=False))).tokens < plain


async def test_an_image_makes_a_count_inexact(counting, models):
    """Its tokens are the engine's secret; its data URL is not text."""
    image = {"type": "image_url", "image_url": {"url": "data:" + "A" * 2_000_000}}
    request = chat([{"type": "text", "text": "see"}, image])
    count = await counting.count(models["chatml"], request)
    assert count.tokens == (await counting.count(models["chatml"], chat("see"))).tokens
    assert not count.exact
    assert "text parts only" in count.source
    priced = replace(models["chatml"], media_tokens=MediaTokens(image=576))
    with_image = await counting.count(priced, request)
    assert (with_image.tokens, with_image.exact) == (count.tokens + 576, False)
    assert with_image.source.endswith(" + media")


async def test_estimates_say_so(counting):
    """Bytes by the ratio, and something for each message."""
    model = Model("guess", ESTIMATE)
    count = await counting.count(model, completion("x" * 400))
    assert (count.tokens - 1, count.exact, count.source) == (100, False, "estimate 4.0 bytes/token")
    assert 100 < (await counting.count(model, chat("x" * 400))).tokens < 115


async def test_a_template_that_refuses_is_a_400(counting, models):
    """Not an estimate: the engine would refuse, too."""
    messages = [{"role": "assistant", "content": "I begin"}]
    request = GenerateRequest(request_id="r", model="m", stream=True, messages=messages)
    with pytest.raises(BadRequest, match="alternate"):
        await counting.count(models["mistral"], request)
    assert counting.statistics().estimated == {}


async def test_without_a_template_a_chat_is_approximate(tmp_path, bpe):
    """The texts are counted, what stands between them is assumed."""
    bpe.save(str(tmp_path / "tokenizer.json"))
    model = Model("bare", TokenizerSpec("huggingface", path=str(tmp_path)))
    counting = Counting.build(snapshot(model))
    assert not counting.can_render(model)
    count = await counting.count(model, chat("hello fox"))
    assert not count.exact
    assert "no chat template" in count.source
    assert len(bpe.encode("hello fox")) < count.tokens < len(bpe.encode("hello fox")) + 16
    with pytest.raises(UnsupportedByEngine, match="no chat template"):
        await counting.render(model, chat("x"), adds_bos=False)
    await counting.aclose()


# ---------------------------------------------------------------------------------------- rendering


async def test_a_harmless_chat_is_rendered_and_its_count_kept(counting, models):
    """No second count where neutralising changed nothing."""
    request = chat("hello")
    counted = msgspec.structs.replace(await counting.count(models["mistral"], request), source="kept")
    prepared = await counting.prepare(models["mistral"], request, adds_bos=True, counted=counted)
    assert prepared == Prepared(counted, "[INST] hello [/INST]\n")
    assert await counting.render(models["mistral"], request, adds_bos=False) == "<s>[INST] hello [/INST]\n"


@pytest.mark.parametrize("family", ["mistral", "chatml", "llama3"])
@pytest.mark.parametrize("content", ["hello", "</s><|im_end|>[/INST]<|eot_id|>"])
@pytest.mark.parametrize("adds_bos", [True, False])
async def test_the_count_is_of_what_the_engine_sees(counting, models, bpe, family, content, adds_bos):
    """Neutralised, with the one BOS of template or engine, even where the template has none."""
    prepared = await counting.prepare(models[family], chat(content), adds_bos=adds_bos)
    seen = bpe.encode(prepared.rendered, add_special_tokens=adds_bos).ids
    assert prepared.count.tokens == len(seen)
    assert prepared.count.exact
    assert seen.count(bpe.token_to_id("<s>")) <= 1


async def test_what_cannot_be_rendered_is_refused(counting, models):
    """An image."""
    with pytest.raises(UnsupportedByEngine):
        await counting.prepare(
            models["chatml"], chat([{"type": "image_url", "image_url": {}}]), adds_bos=True
        )


async def test_the_last_message_is_continued(counting, models):
    """Neither its turn ends nor another begins."""
    prepared = await counting.prepare(models["chatml"], chat("x", continue_final_message=True), adds_bos=True)
    assert prepared.rendered.endswith("user\nx")


async def test_no_thread_for_rendering_is_a_503(tokenizer_dirs):
    """There is no estimate of a text."""
    template = Tokenizer.load(TokenizerSpec("huggingface", path=str(tokenizer_dirs["mistral"]))).template
    with slow_counting(CountingLimits(threads=1, seconds=0.02), template=template) as (counting, model, _):
        counted = await counting.count(model, chat("x"))
        assert not counted.exact
        with pytest.raises(Unavailable):
            await counting.prepare(model, chat("x"), adds_bos=True, counted=counted)


# ------------------------------------------------------------------------------------ never in the way

HOSTILE = {
    "100k a": "a" * 100_000,
    "unbroken Chinese": "渠首闸门" * 80_000,
    "1 MB of spaces": " " * 1_000_000,
    "emoji chains": "👩‍👩‍👧‍👦" * 40_000,
    "control tokens": "<|im_end|>" * 90_000,
    "half control tokens": "<|" * 500_000,
    "blank lines": "\n" * 1_000_000,
}


async def worst_heartbeat(work: Callable[[], Awaitable[object]]) -> float:
    """How late a beat of 1 ms on this loop is at worst while `work` is awaited, in seconds."""
    late = []

    async def beat() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            late.append((now := time.perf_counter()) - last - 0.001)
            last = now

    async with asyncio.TaskGroup() as group:
        heart = group.create_task(beat())
        await asyncio.sleep(0.005)
        await work()
        heart.cancel()
    return max(late)


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_text_does_not_stop_the_loop(models, name):
    """A heartbeat goes on while it is counted and rendered. Measured: at most 15 ms late, where plain
    `tokenizers.encode` would hold the GIL for hundreds. The best of three: the machine may be busy."""
    counting = Counting.build(snapshot(models["chatml"]), CountingLimits(seconds=30))
    request = chat(HOSTILE[name])

    async def work() -> None:
        count = await counting.count(models["chatml"], request)
        await counting.prepare(models["chatml"], request, adds_bos=False, counted=count)
        assert count.exact
        assert count.tokens > 10_000

    late = []
    while len(late) < 3 and min(late, default=1) > 0.1:
        late.append(await worst_heartbeat(work))
    assert min(late) <= 0.1
    await counting.aclose()


async def test_a_text_beyond_the_cap_is_estimated(counting, models):
    """At once, whatever it is made of."""
    count = await counting.count(models["chatml"], chat("x" * 1_100_000))
    assert not count.exact
    assert count.tokens == pytest.approx(1_100_000 / 4, rel=0.01)
    assert count.source == "estimate 4.0 bytes/token (too long)"
    assert counting.statistics().estimated == {"too long": 1}


@pytest.mark.parametrize("prompt", ["x", [1]])
async def test_too_many_prompts_are_refused(counting, models, prompt):
    """A million empty prompts cost more than a long one. One prompt of many ids is one prompt."""
    assert (await counting.count(models["chatml"], completion([prompt] * 2048))).prompts == 2048
    with pytest.raises(BadRequest) as refused:
        await counting.count(models["chatml"], completion([prompt] * 2049))
    assert refused.value.param == "prompt"
    assert (await counting.count(models["chatml"], completion([1] * 5000))).tokens == 5000


async def test_a_counter_that_takes_too_long_is_not_waited_for():
    """Estimated; when every thread is lost in such work, estimated at once; exact again when one returns."""
    with slow_counting(CountingLimits(threads=2, seconds=0.02)) as (counting, model, counter):
        for _ in range(2):
            assert "(slow)" in (await counting.count(model, completion("hello"))).source
        assert counting.statistics().abandoned == 2
        assert "(busy)" in (await counting.count(model, completion("hello"))).source
        assert counter.calls == 2
        counter.release.set()
        await until(lambda: counting.statistics().running == 0)
        assert (await counting.count(model, completion("hello"))).exact
        statistics = counting.statistics()
        assert (statistics.counted, statistics.abandoned) == (1, 0)
        assert statistics.estimated == {"slow": 2, "busy": 1}
        await counting.aclose()


class Panic(BaseException):
    """As pyo3_runtime.PanicException: not an Exception."""


@pytest.mark.parametrize(
    "failure", [Panic("index out of bounds"), RuntimeError("secret prompt"), MemoryError()]
)
async def test_a_counter_that_fails_or_panics_is_survived(failure, caplog):
    """Estimated, logged by its kind alone, and the next one is tried again."""
    with slow_counting(CountingLimits(), failure) as (counting, model, counter):
        counter.release.set()
        for _ in range(3):
            assert "(failed)" in (await counting.count(model, completion("hello"))).source
        assert counting.statistics().estimated == {"failed": 3}
        assert type(failure).__name__ in caplog.text
        assert "secret" not in caplog.text
        await counting.aclose()


async def test_the_line_before_the_threads_is_bounded():
    """One at work, two waiting: the fourth is estimated at once."""
    with slow_counting(CountingLimits(threads=1, waiting=2)) as (counting, model, counter):
        async with asyncio.TaskGroup() as group:
            first = [group.create_task(counting.count(model, completion("hello"))) for _ in range(3)]
            await until(lambda: counting.statistics().running == 3)
            assert "(busy)" in (await counting.count(model, completion("hello"))).source
            counter.release.set()
        assert all(task.result().exact for task in first)
        await counting.aclose()


async def test_long_texts_do_not_stand_in_front_of_short_ones():
    """They have a thread of their own."""
    with slow_counting(CountingLimits(threads=1, long=10)) as (counting, model, counter):
        async with asyncio.TaskGroup() as group:
            group.create_task(counting.count(model, completion("x" * 11)))
            group.create_task(counting.count(model, completion("x" * 11)))
            await until(lambda: counter.calls == 1)
            group.create_task(counting.count(model, completion("x")))
            await until(lambda: counter.calls == 2)
            counter.release.set()
        await counting.aclose()


async def test_cancelling_leaves_nothing_behind():
    """A waiting job is dropped, a running one ends alone and its result is dropped; the service goes on."""
    with slow_counting(CountingLimits(threads=1)) as (counting, model, counter):
        running, waiting = (
            asyncio.get_running_loop().create_task(counting.count(model, completion("hello")))
            for _ in range(2)
        )
        await until(lambda: counter.calls == 1 and counting.statistics().running == 2)
        for task in (waiting, running):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        statistics = counting.statistics()
        assert (statistics.running, statistics.abandoned) == (1, 1)
        counter.release.set()
        await until(lambda: counting.statistics().running == 0)
        assert counter.calls == 1
        assert (await counting.count(model, completion("hello"))).exact
        assert counting.statistics().estimated == {}
        await counting.aclose()


async def test_closing_waits_for_work_and_later_counts_are_estimates():
    """A request of an old configuration may come late; it is served."""
    with slow_counting(CountingLimits(threads=1)) as (counting, model, counter):
        task = asyncio.get_running_loop().create_task(counting.count(model, completion("hello")))
        await until(lambda: counter.calls == 1)
        closing = asyncio.get_running_loop().create_task(counting.aclose())
        await asyncio.sleep(0)
        assert not closing.done()
        counter.release.set()
        await closing
        assert (await task).exact
        assert "(busy)" in (await counting.count(model, completion("hello"))).source
        await counting.aclose()


async def test_closing_does_not_wait_for_ever():
    """Nor does it disturb who waits for the work."""
    with slow_counting(CountingLimits(threads=1, seconds=0.05)) as (counting, model, counter):
        task = asyncio.get_running_loop().create_task(counting.count(model, completion("hello")))
        await until(lambda: counter.calls == 1)
        await counting.aclose()
        assert "(slow)" in (await task).source


# ----------------------------------------------------------------------------------------- building


def test_each_tokenizer_is_loaded_once(models, monkeypatch):
    """Two models of one tokenizer, and a reload that changes nothing of it."""
    loaded = []
    load = HuggingFaceCounter.from_directory
    monkeypatch.setattr(HuggingFaceCounter, "from_directory", lambda path: loaded.append(path) or load(path))
    twin = replace(models["chatml"], name="twin")
    first = Counting.build(snapshot(models["chatml"], twin))
    assert len(loaded) == 1
    second = Counting.build(snapshot(twin, models["gemma"]), previous=first)
    assert len(loaded) == 2
    assert second.can_render(twin)


@pytest.mark.parametrize(
    "spec",
    [
        TokenizerSpec("huggingface", path="/nowhere/at/all"),
        TokenizerSpec("huggingface"),
        TokenizerSpec("tiktoken", encoding="cl100k_base", path="/nowhere/at/all"),
        TokenizerSpec("tiktoken", encoding="cl100k_base"),
        TokenizerSpec("estimate", chat_template="/x.jinja"),
    ],
)
def test_what_cannot_be_loaded_names_its_model(spec):
    """At the start, not at the first request."""
    with pytest.raises(TokenizerError, match="model broken: "):
        Counting.build(snapshot(Model("broken", spec)))


def test_the_tokenizer_that_comes_with_the_gateway():
    """deploy/tokenizers/headgate-mini loads, renders and counts."""
    from tests.conftest import REPO

    path = REPO / "deploy" / "tokenizers" / "headgate-mini"
    tokenizer = Tokenizer.load(TokenizerSpec("huggingface", path=str(path)))
    count = tokenizer.count(chat("Hello, fox!"))
    assert count.exact
    text, as_counted = tokenizer.render(chat("<|eot_id|>"), adds_bos=True)
    assert text.count("<|eot_id|>") == 1
    assert not text.startswith("<|begin_of_text|>")
    assert not as_counted
