"""The calibration against an engine model whose time is the test's own: what it measures is exact."""

import asyncio
from collections import deque
from dataclasses import replace

import pytest

from backends.contract import Delta, Done, EngineError, ErrorKind, Usage
from backends.registry import REGISTRY
from backends.simulated.engine import PROFILES, Engine, EngineProfile
from gateway.examining.calibrating import Calibrator, CannotMeasure, Load, Shape, shapes_of
from gateway.planning.fitting import fit

H200 = PROFILES["h200"]
QUICK = Load(rounds=1)
IDLE_TURNS = 8
"""Turns of the event loop in which every request that is about to come has come."""


class VirtualEngine:
    """A `contract.Engine` over the engine model. Its clock goes on only while all its clients wait."""

    def __init__(
        self,
        profile: EngineProfile = H200,
        *,
        request_s: float = 0.002,
        told: bool = True,
        refuses: tuple[str, ...] = (),
        burst: int = 1,
        silent: bool = False,
    ) -> None:
        self.adapter = REGISTRY.adapter("vllm", {})
        self.now = 0.0
        self.model = Engine(profile)
        self.requests = []
        self._request_s = request_s
        self._told = told
        self._refuses = refuses
        self.burst = burst
        self.silent = silent
        """Single tokens complete no text."""
        self._answers: dict[int, VirtualAnswer] = {}
        self._pumping = False

    def clock(self) -> float:
        return self.now

    async def generate(self, request):
        self.requests.append(request)
        form = "chat" if request.messages is not None else "text"
        if form in self._refuses or any(name in request.parameters for name in self._refuses):
            raise EngineError(ErrorKind.CLIENT, f"no {form} here", retryable=False)
        text = request.prompt or request.messages[0]["content"]
        answer = VirtualAnswer(self, len(self.requests), len(text.split()) + 3, request.max_tokens)
        self.now += self._request_s if self.model.next_event(self.now) is None else 0.0
        self.model.submit(self.now, answer.number, answer.prompt, answer.max_tokens)
        self._answers[answer.number] = answer
        if not self._pumping:
            self._pumping = True
            self._later(IDLE_TURNS)
        return answer

    def drop(self, number: int) -> None:
        self.model.cancel(self.now, number)
        self._answers.pop(number, None)

    def _later(self, turns: int) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(self._later, turns - 1) if turns else loop.call_soon(self._step)

    def _step(self) -> None:
        step = self.model.step(self.now)
        if step is None:
            self._pumping = False
            return
        self.now = step.end
        for number in step.produced:
            self._answers[number].say(step.end)
        self._later(IDLE_TURNS)

    def usage(self, answer: "VirtualAnswer") -> list[Usage]:
        if not self._told:
            return []
        return [Usage(prompt_tokens=answer.prompt, completion_tokens=answer.said)]


class VirtualAnswer:
    def __init__(self, engine: VirtualEngine, number: int, prompt: int, max_tokens: int) -> None:
        self.engine, self.number, self.prompt, self.max_tokens = engine, number, prompt, max_tokens
        self.said = 0
        self._events: deque = deque()
        self._unsent = 0
        self._arrived = asyncio.Event()

    def say(self, now: float) -> None:
        self.said += 1
        self._unsent += 1
        if self._unsent == self.engine.burst or self.said == self.max_tokens:
            text = "" if self.engine.silent and self.max_tokens == 1 else "word " * self._unsent
            self._events.append(Delta(text=text, finish_reason="length", tokens=self._unsent))
            self._unsent = 0
        if self.said == self.max_tokens:
            self._events += [*self.engine.usage(self), Done()]
        self._arrived.set()

    async def events(self):
        while not self._events:
            self._arrived.clear()
            await self._arrived.wait()
        events = list(self._events)
        self._events.clear()
        return events

    def cancel(self) -> None:
        self.engine.drop(self.number)


def calibrator(engine: VirtualEngine, load: Load = QUICK, **options) -> Calibrator:
    options.setdefault("cpu_clock", lambda: 0.0)
    return Calibrator(engine, "mini", load, clock=engine.clock, **options)


@pytest.mark.parametrize("name", ["h200", "h100-slow-host"])
async def test_constants_come_back(name):
    """Through the whole measurement, within a thousandth: every constant is identified."""
    profile = PROFILES[name]
    engine = VirtualEngine(profile)
    load = Load(rounds=1, sequences=16)
    measured = await calibrator(engine, load).measure(shapes_of(load, 16_384, None, 256))
    found = fit(measured.samples)
    assert measured.notes == []
    assert found.base.value == pytest.approx(profile.step_s + profile.host_s, rel=1e-3)
    assert found.e.value == pytest.approx(profile.light_token_s, rel=1e-2)
    assert found.b.value == pytest.approx(profile.token_s, rel=1e-3)
    assert found.q.value == pytest.approx(profile.attention_s, rel=1e-3)
    assert found.d.value == pytest.approx(profile.kv_token_s, rel=1e-2)
    assert found.request.value == pytest.approx(0.002, rel=1e-2)
    assert all(constant.identified for constant in found.constants)


async def test_tokens_that_come_in_bursts():
    """Four tokens an event: steps are counted by tokens, not by events."""
    engine = VirtualEngine(burst=4)
    measured = await calibrator(engine).measure([Shape(2, 64, 33)])
    step = H200.step_time(2, 0, round(measured.samples[0].kv_tokens))
    assert measured.samples[0].seconds == pytest.approx(step, rel=1e-2)


async def test_a_first_token_without_text():
    """Half a character, say: the answer's end tells when it came."""
    times = []
    for silent in (False, True):
        measured = await calibrator(VirtualEngine(silent=silent)).measure([Shape(0, 512, 1)])
        times.append(measured.samples[0].seconds)
    assert times[0] == times[1]


async def test_prompts_are_of_the_length_wanted_and_all_differ():
    """So that a prefix cache never answers; the engine's own count is what is fitted."""
    engine = VirtualEngine()
    measured = await calibrator(engine).measure([Shape(0, 1000, 1), Shape(4, 500, 40)])
    assert [sample.prompt_tokens for sample in measured.samples] == [
        pytest.approx(1000, abs=2),
        pytest.approx(500, abs=2),
    ]
    heads = [" ".join(request.prompt.split()[:12]) for request in engine.requests]
    assert len(set(heads)) == len(heads) == measured.requests


@pytest.mark.parametrize(
    ("refuses", "chat", "parameters"),
    [
        ((), False, {"ignore_eos": True}),
        (("ignore_eos",), False, {}),
        (("text",), True, {"ignore_eos": True}),
    ],
)
async def test_a_form_that_the_engine_takes(refuses, chat, parameters):
    engine = VirtualEngine(refuses=refuses)
    await calibrator(engine).measure([Shape(0, 64, 1)])
    assert (engine.requests[-1].messages is not None) == chat
    assert engine.requests[-1].parameters == parameters


async def test_an_engine_that_takes_nothing():
    with pytest.raises(CannotMeasure, match="refuses every form of request: no chat here"):
        await calibrator(VirtualEngine(refuses=("text", "chat"))).measure([Shape(0, 64, 1)])


async def test_an_engine_that_answers_in_one_piece():
    with pytest.raises(CannotMeasure, match="in one piece"):
        await calibrator(VirtualEngine(burst=1000)).measure([Shape(0, 64, 1)])


async def test_an_engine_that_does_not_count():
    measured = await calibrator(VirtualEngine(told=False)).measure([Shape(0, 120, 1)])
    assert measured.samples[0].prompt_tokens == 120
    assert "does not count tokens" in measured.notes[-1]


async def test_what_it_may_cost_is_bounded():
    """By requests and by time; what was measured until then is kept."""
    shapes = [Shape(0, 64, 1), Shape(8, 64, 40), Shape(0, 4096, 1)]
    engine = VirtualEngine()
    measured = await calibrator(engine, replace(QUICK, requests=10)).measure(shapes)
    assert measured.requests == len(engine.requests) <= 10
    assert measured.notes == ["10 requests were made in round 0"]
    assert len(measured.samples) == 1
    measured = await calibrator(VirtualEngine(), replace(QUICK, seconds=0.3)).measure(shapes)
    assert measured.notes == ["the 0.3 s were over in round 0"]
    assert len(measured.samples) == 2


async def test_one_shape_that_fails_is_left_out():
    """The engine refuses what its cache cannot hold; the others are measured."""

    class Small(VirtualEngine):
        async def generate(self, request):
            if len(request.prompt.split()) > 500:
                raise EngineError(ErrorKind.CONTEXT_LENGTH, "too long", retryable=False)
            return await super().generate(request)

    measured = await calibrator(Small()).measure([Shape(0, 400, 1), Shape(0, 4096, 1), Shape(2, 4096, 32)])
    assert len(measured.samples) == 1
    assert measured.notes == [
        "not measured: first token of 4096 tokens: too long",
        "not measured: 2 decoding after 4096 tokens each: too long",
    ]


async def test_a_busy_client_measures_nothing():
    """Where this program takes the whole processor, its times are its own."""
    engine = VirtualEngine()
    measured = await calibrator(engine, cpu_clock=lambda: engine.now * 0.95).measure([Shape(2, 64, 32)])
    assert measured.samples == []
    assert "too busy to time it" in measured.notes[0]


def test_shapes_keep_to_the_limits():
    """The engine's and the operator's: context, prompt, requests and tokens at a time."""
    shapes = shapes_of(Load(), 2048, 1000, 4)
    assert max(shape.prompt_tokens for shape in shapes) == 1000
    assert max(shape.sequences for shape in shapes) == 4
    shapes = shapes_of(Load(tokens=4096), None, None, None)
    assert max(shape.requests * (shape.prompt_tokens + shape.output_tokens) for shape in shapes) <= 4097
    assert all(
        shape.prompt_tokens + shape.output_tokens <= 1024 for shape in shapes_of(Load(), 1024, None, None)
    )
