"""Asking engines for counts: whom, what, how often, and what it costs when they do not answer."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import msgspec
import pytest

from backends.contract import Answer, GenerateRequest, HttpRequest
from gateway.call import Call
from gateway.config.snapshot import Allow, Model, Pool, Replica, TokenizerSpec
from gateway.tokens import engine_counts
from gateway.tokens.bounding import bound_output
from gateway.tokens.counting import Counting, CountingLimits
from gateway.tokens.engine_counts import Askable, EngineCounts
from gateway.tokens.estimating import estimate
from tests.gateway.builders import Clock, a_call, a_pool, a_snapshot, a_tenant

ENGINE = Model("llama", TokenizerSpec("engine", pool="counter", timeout=0.2))
GOOD = Answer(200, b'{"count": 7}')


class Engines:
    """Replicas that answer as told: an answer, None, or a number of seconds to wait first."""

    def __init__(self, engine: str = "vllm", **pool) -> None:
        self.pool: Pool = a_pool("counter", engine=engine, replicas=("r1", "r2"), **pool)
        self.fit = list(self.pool.replicas)
        self.answers: dict[str, Answer | float | None] = {}
        self.asked: list[str] = []
        self.questions: list[HttpRequest] = []
        self.clock = Clock()
        self.counts = EngineCounts({"counter": Askable(self.pool, lambda: self.fit)}, self.ask, self.clock)

    async def ask(self, pool: Pool, replica: Replica, question: HttpRequest) -> Answer | None:
        self.asked.append(replica.id)
        self.questions.append(question)
        answer = self.answers.get(replica.id, GOOD)
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            return GOOD
        return answer

    async def count(self, request: GenerateRequest, call: Call | None = None, model: Model = ENGINE):
        return await self.counts.count(model, request, call)


def text(*texts: str) -> GenerateRequest:
    prompt = texts[0] if len(texts) == 1 else list(texts)
    return GenerateRequest(request_id="r", model="", stream=False, prompt=prompt)


def chat(content="hi", **parameters) -> GenerateRequest:
    messages = [{"role": "user", "content": content}]
    return GenerateRequest(request_id="r", model="", stream=False, messages=messages, parameters=parameters)


async def test_a_prompt_is_asked_once_and_then_remembered():
    engines = Engines()
    assert engines.counts.remembered(ENGINE, chat(), None) is None
    told = await engines.count(chat())
    assert (told.tokens, told.exact, told.tier, told.source) == (7, True, "exact", "vllm of pool counter")
    known = engines.counts.remembered(ENGINE, chat(), None)
    assert known == msgspec.structs.replace(told, cached=True)
    assert known.tier == "cached"
    assert engines.counts.remembered(ENGINE, chat("ho"), None) is None
    assert engines.counts.remembered(ENGINE, text("hi"), None) is None
    await engines.count(chat())
    assert engines.asked == ["r1"]
    assert json.loads(engines.questions[0].body)["model"] == "engine-llama"


async def test_several_prompts_are_asked_one_by_one_up_to_a_few():
    engines = Engines()
    told = await engines.count(text("a", "b", "a"))
    assert (told.tokens, told.longest, told.prompts) == (21, 7, 3)
    assert len(engines.asked) == 2
    assert await engines.count(text(*map(str, range(engine_counts.MOST_PROMPTS + 1)))) is None
    assert len(engines.asked) == 2


@pytest.mark.parametrize("bad", [None, Answer(500), Answer(404), Answer(200, b"<html>"), 10.0])
async def test_another_replica_is_tried_once_and_the_first_rests(bad):
    """Whether it is gone, broken, has no such route, makes no sense or hangs."""
    engines = Engines()
    engines.answers["r1"] = bad
    assert (await engines.count(text("a"))).tokens == 7
    assert engines.asked == ["r1", "r2"]
    await engines.count(text("b"))
    assert engines.asked == ["r1", "r2", "r2"]
    engines.clock.tick(engine_counts.RESTING)
    await engines.count(text("c"))
    assert engines.asked[3:] == ["r1", "r2"]


async def test_all_of_them_dead_cost_the_timeout_once():
    engines = Engines()
    engines.answers.update(r1=10.0, r2=10.0)
    async with asyncio.timeout(1):
        assert await engines.count(text("a")) is None
    async with asyncio.timeout(0.1):
        assert await engines.count(text("a")) is None
    assert engines.asked == ["r1", "r2"]


async def test_a_question_that_is_refused_is_at_fault_not_the_replica():
    engines = Engines()
    engines.answers["r1"] = Answer(400, b'{"error": "too long"}')
    assert await engines.count(text("a")) is None
    assert await engines.count(text("a")) is None
    assert engines.asked == ["r1", "r1"]


async def test_nobody_fit_is_nobody_asked():
    engines = Engines()
    engines.fit = []
    assert await engines.count(text("a")) is None
    assert await engines.count(text("a"), model=replace(ENGINE, tokenizer=TokenizerSpec("engine"))) is None
    assert engines.asked == []


async def test_few_questions_are_under_way_at_a_time(monkeypatch: pytest.MonkeyPatch):
    """Those above are not asked, and a place comes back, also from one that was cancelled."""
    monkeypatch.setattr(engine_counts, "IN_FLIGHT", 2)
    engines = Engines()
    engines.answers["r1"] = 0.05
    told = await asyncio.gather(*(engines.count(text(str(number))) for number in range(5)))
    assert [each is not None for each in told] == [True, True, False, False, False]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(engines.count(text(f"more {number}"))) for number in range(2)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
    assert await engines.count(text("again")) is not None


@pytest.mark.parametrize(
    "request_",
    [
        chat(tools=[{"type": "function"}]),
        chat(chat_template_kwargs={"thinking": True}),
        chat(add_generation_prompt=False),
        chat(continue_final_message=True),
        chat([{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": "data:,"}}]),
    ],
)
async def test_what_the_question_cannot_say_is_not_asked(request_):
    """Tools, template arguments, pictures: the count would be another prompt's."""
    engines = Engines()
    assert await engines.count(request_) is None
    assert engines.asked == []
    told = await engines.count(
        chat([{"type": "text", "text": "what?"}], tools=[], add_generation_prompt=True)
    )
    assert told.tokens == 7


async def test_an_engine_that_counts_texts_alone_is_not_asked_for_chats():
    engines = Engines("sglang")
    assert await engines.count(chat()) is None
    assert (await engines.count(text("a"))).source == "sglang of pool counter"


async def test_a_prompt_goes_nowhere_that_its_tenant_may_not():
    """Not even to be counted; nor is it told what others asked there."""
    engines = Engines(labels={"region": "us"})
    kept_out = a_call(tenant=a_tenant(allow=Allow(labels={"region": ("eu",)})))
    free = a_call(tenant=a_tenant(allow=Allow(labels={"region": ("us", "eu")})))
    assert await engines.count(chat(), free) is not None
    assert await engines.count(chat(), kept_out) is None
    assert engines.counts.remembered(ENGINE, chat(), kept_out) is None
    assert engines.asked == ["r1"]


@pytest.mark.parametrize(
    ("serves", "name"), [({"llama": "*"}, "typed"), ({"*": "*"}, "typed"), ({"llama": "7b"}, "7b")]
)
async def test_the_engine_is_asked_by_its_own_name_for_the_model(serves, name):
    engines = Engines(serves=serves)
    await engines.count(text("a"), a_call(asked_model="typed"))
    assert json.loads(engines.questions[0].body)["model"] == name


# ------------------------------------------------------------------------------------ in the service


@pytest.fixture
def service():
    made = []

    def build(engines: Engines, model: Model = ENGINE, limits: CountingLimits | None = None) -> Counting:
        snapshot = a_snapshot(models=[model], pools=[engines.pool, a_pool()])
        made.append(Counting.build(snapshot, limits or CountingLimits()))
        return made[-1].asking(engines.counts)

    return build


async def test_without_an_answer_it_is_estimated_and_says_why(service: Callable[..., Counting]):
    engines = Engines()
    model = replace(ENGINE, tokenizer=replace(ENGINE.tokenizer, bytes_per_token=2.0))
    counting = service(engines, model)
    assert (await counting.count(model, text("12345678"))).tokens == 7
    engines.fit = []
    guess = await counting.count(model, text("other678"))
    assert (guess.tokens, guess.exact, guess.source) == (4, False, "estimate 2.0 bytes/token (engine)")
    assert (await counting.count(model, text("12345678"))).tier == "cached"
    told = counting.statistics()
    assert (told.counted, told.estimated) == (1, {"engine": 1})


async def test_nothing_is_asked_for_token_ids_and_texts_that_are_too_long(service: Callable[..., Counting]):
    engines = Engines()
    counting = service(engines, limits=CountingLimits(characters=100))
    ids = GenerateRequest(request_id="r", model="", stream=False, prompt=[1, 2, 3])
    assert (await counting.count(ENGINE, ids)).tokens == 3
    assert (await counting.count(ENGINE, text("x" * 101))).source.endswith("(too long)")
    assert engines.asked == []


async def test_tokenize_counts_what_engines_would_read(service: Callable[..., Counting]):
    """Without special tokens there is no question; ids are not told."""
    engines = Engines()
    counting = service(engines)
    told = await counting.tokenize(ENGINE, text("a"), add_special_tokens=True)
    assert (told.count.tokens, told.count.exact, told.ids) == (7, True, None)
    assert (await counting.tokenize(ENGINE, chat(), add_special_tokens=False)).count.exact
    assert not (await counting.tokenize(ENGINE, text("a"), add_special_tokens=False)).count.exact


async def test_what_is_learned_serves_when_the_engine_is_gone(service: Callable[..., Counting]):
    """`auto`: 64 counts teach the ratio; near a boundary, or without an answer, it stands in."""
    engines = Engines()
    counting = service(engines)

    def asks(number: int) -> Call:
        call = a_call(model=ENGINE, dialect="completions")
        request = text(f"the gate at the head of canal number {number:04} " * 20)
        return msgspec.structs.replace(call, request=request)

    async def count(number: int, room=None):
        call = asks(number)
        return await counting.count_for(call, partial(_expect, call), room)

    engines.answers["r1"] = Answer(200, b'{"count": 300}')
    for number in range(64):
        assert (await count(number)).tier == "exact"
    assert (await count(3)).tier == "cached"
    far = await count(100)
    assert (far.tier, far.tokens) == ("estimate", 300)
    near = await count(101, lambda: 300)
    assert (near.tier, near.source) == ("exact", "vllm of pool counter")
    engines.fit = []
    gone = await count(102, lambda: 300)
    assert (gone.tier, gone.tokens, gone.source) == ("estimate", 300, "estimate 4.0 bytes/token (engine)")


def _expect(call: Call, prompt):

    return estimate(prompt, bound_output(None, call.model, call.tenant, prompt), 1, None, call.model)
