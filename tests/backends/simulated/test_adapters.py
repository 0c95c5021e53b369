"""The real adapters, the real transport and the simulated engines: refusals, cancels, health, load, counts.

Two descriptions of one wire, written apart: where they disagree one of them is wrong. What answers become:
`tests/backends/conformance`.
"""

import asyncio

import pytest

from backends.client import EngineClient
from backends.contract import Answer, Endpoint, EngineError, ErrorKind, Failure, GenerateRequest
from backends.registry import REGISTRY
from backends.simulated.engine import profile
from backends.simulated.server import DIALECTS, serve
from backends.transport import AiohttpTransport
from tests.backends.folding import fold

MESSAGES = [{"role": "user", "content": "Расскажи о шлюзе."}]
MODELS = {"trtllm": "anything", "sglang": "anything", "tgi": "tgi", "triton": "ensemble"}
SETUPS = [
    *((kind, {}, None, {}) for kind in DIALECTS),
    ("tgi", {"api": "messages"}, None, {}),
    ("triton", {"vocabulary": "llmapi"}, "tensorrt_llm", {"vocabulary": "llmapi"}),
]
"""Kind, the adapter's options, the model's name where it is no other, the server's options."""
IDS = [" ".join([kind, *map(str, options.values())]) for kind, options, _, _ in SETUPS]

every_setup = pytest.mark.parametrize(("kind", "options", "model", "server"), SETUPS, ids=IDS)


@pytest.fixture
async def transport():
    transport = AiohttpTransport()
    yield transport
    await transport.aclose()


@pytest.fixture
def ask(transport, tokenizer):
    """Ask an engine through the real client; the folded result."""

    async def ask(engine, *, stream, tokens=30, model=None, options=None, **fields):
        adapter = REGISTRY.adapter(engine.kind, options or {})
        rendered = tokenizer.render(MESSAGES).removeprefix("<|begin_of_text|>")
        request = GenerateRequest(
            request_id="r1",
            model=model or MODELS.get(engine.kind, "headgate-mini"),
            stream=stream,
            messages=MESSAGES,
            rendered=None if adapter.applies_template else rendered,
            max_tokens=tokens,
            **fields,
        )
        assert adapter.unsupported(request) is None
        events = []
        try:
            async with asyncio.timeout(10):
                generation = await EngineClient(adapter, transport, Endpoint(engine.url)).generate(request)
                while not events or type(events[-1]).__name__ != "Done":
                    events += await generation.events()
        except EngineError as error:
            events.append(Failure(error=error))
        return fold(events)

    return ask


TOLD = [
    (*setup, stream)
    for setup in SETUPS
    for stream in (False, True)
    if not (stream and setup[0] == "triton-openai")
]
"""Where a refusal is put into words: the stream of Triton's OpenAI frontend is cut without one."""


@pytest.mark.parametrize(
    ("kind", "options", "model", "server", "stream"),
    [case for case in TOLD if DIALECTS[case[0]].has_overload_answer],  # with the others, requests wait
)
async def test_overload_is_backpressure(ask, tokenizer, kind, options, model, server, stream):
    async with serve(kind, "h200", speed=50, tokenizer=tokenizer, faults=["overload*1"], **server) as engine:
        result = await ask(engine, stream=stream, model=model, options=options)
    assert (result.error.kind, result.error.retryable) == (ErrorKind.OVERLOADED, True)


@pytest.mark.parametrize(("kind", "options", "model", "server", "stream"), TOLD)
async def test_too_long_prompts_are_the_client_s(ask, tokenizer, kind, options, model, server, stream):
    async with serve(kind, "h200", speed=50, tokenizer=tokenizer, max_input_tokens=5, **server) as engine:
        result = await ask(engine, stream=stream, model=model, options=options)
    assert (result.error.kind, result.error.retryable) == (ErrorKind.CONTEXT_LENGTH, False)


@pytest.mark.parametrize("kind", list(DIALECTS))
async def test_a_cancelled_generation_is_seen(transport, tokenizer, kind):
    """Dropping the connection stops the engine; sglang is told first, and ends its stream by itself."""
    adapter = REGISTRY.adapter(kind, {})
    async with serve(kind, "h200", speed=2, tokenizer=tokenizer, mean_tokens=5000, spread=0) as engine:
        request = GenerateRequest(
            request_id="r1",
            model=MODELS.get(kind, "headgate-mini"),
            stream=True,
            messages=MESSAGES,
            rendered="x",
            max_tokens=3000,
        )
        generation = await EngineClient(adapter, transport, Endpoint(engine.url)).generate(request)
        async with asyncio.timeout(5):
            await generation.events()
            generation.cancel()
            while not engine.statistics().engine.cancelled:
                await asyncio.sleep(0.001)
        assert [close.phase for close in engine.statistics().closes] == ["during_stream"] * (kind != "sglang")
        assert engine.statistics().engine.cancelled == 1


@pytest.mark.parametrize("kind", list(DIALECTS))
async def test_health(transport, tokenizer, kind):
    adapter = REGISTRY.adapter(kind, {})
    async with serve(kind, "h200", tokenizer=tokenizer) as engine:
        exchange = await transport.open(Endpoint(engine.url), adapter.health_request())
        body = b""
        while data := await exchange.events():
            body += data
    health = adapter.read_health(exchange.status, body)
    assert (health.ready, health.live) == (True, True)


# -------------------------------------------------------------------------- what engines tell of themselves


@pytest.fixture
def answered(transport):
    """Status and body of a question."""

    async def answered(engine, question):
        async with asyncio.timeout(10):
            exchange = await transport.open(Endpoint(engine.url), question)
            body = b""
            while data := await exchange.events():
                body += data
        return Answer(exchange.status, body)

    return answered


@every_setup
async def test_each_engine_is_recognised(answered, tokenizer, kind, options, model, server):
    """By its answers alone: the kind, the options, the models, the limits that it tells."""
    async with serve(kind, "h200", speed=50, tokenizer=tokenizer, max_total_tokens=8000, **server) as engine:
        answers = {}
        while questions := REGISTRY.questions(answers):
            for question in questions:
                answers[question.path] = await answered(engine, question)
    found = REGISTRY.identify(answers)
    assert found.kind == kind, found
    if kind != "tgi":  # both of its interfaces are there
        assert found.options == options
    if kind == "triton":
        assert list(found.models) == ([model] if model else ["ensemble", "tensorrt_llm_bls"])
    else:
        assert list(found.models) == ["headgate-mini"]
    told = {"tgi", "vllm", "sglang", "llamacpp", "openai"}
    assert found.limits.context_tokens == (8000 if kind in told else None)
    assert found.version == (None if kind in ("openai", "triton-openai") else DIALECTS[kind].version)


@pytest.mark.parametrize("metrics", [True, False])
@every_setup
async def test_the_load_is_told(answered, tokenizer, kind, options, model, server, metrics):
    """One runs, two wait, whatever the name; nothing where metrics are off or there are none."""
    adapter = REGISTRY.adapter(kind, {"metrics": True} if kind == "llamacpp" and metrics else options)
    small = profile("h200", max_sequences=1, step_tokens=64, speed=0.5)
    async with serve(kind, small, tokenizer=tokenizer, metrics=metrics, **server) as engine:
        output = engine.live.output()
        for _ in range(3):
            engine.live.say(output, [1, 2, 3], 500, ignore_eos=True)
        async with asyncio.timeout(5):
            while engine.statistics().waiting != 2:
                await asyncio.sleep(0.001)
        question = adapter.load_request()
        if question is None:
            assert kind in ("openai", "triton-openai")
            return
        answer = await answered(engine, question)
    load = adapter.read_load(answer.status, answer.body)
    if kind == "triton" and server:
        return  # the llmapi backend exports nothing
    assert load is not None
    if kind != "llamacpp" or metrics:
        assert (load.running, load.waiting) == (1, 2)
    else:
        assert load.running == 1  # slots know no queue


async def test_trtllm_tells_its_load_to_prometheus(answered, tokenizer):
    adapter = REGISTRY.adapter("trtllm", {"prometheus": True})
    async with serve("trtllm", "h200", tokenizer=tokenizer) as engine:
        answer = await answered(engine, adapter.load_request())
        load = adapter.read_load(answer.status, answer.body)
        assert (load.running, load.waiting, load.kv_usage) == (0, 0, 0)
    async with serve("trtllm", "h200", tokenizer=tokenizer, metrics=False) as engine:
        answer = await answered(engine, adapter.load_request())
        assert adapter.read_load(answer.status, answer.body) is None


async def test_llmapi_is_cancelled_by_id(transport, answered, tokenizer):
    """The adapter's own request stops the stream, though its connection is still open."""
    adapter = REGISTRY.adapter("triton", {"vocabulary": "llmapi"})
    options = {"vocabulary": "llmapi", "mean_tokens": 5000, "spread": 0}
    async with serve("triton", "h200", speed=2, tokenizer=tokenizer, **options) as engine:
        request = GenerateRequest(
            request_id="r1",
            model="tensorrt_llm",
            stream=True,
            messages=MESSAGES,
            rendered="x",
            max_tokens=3000,
        )
        generation = await EngineClient(adapter, transport, Endpoint(engine.url)).generate(request)
        async with asyncio.timeout(5):
            await generation.events()
            answer = await answered(engine, adapter.cancel_request(request))
            assert b"cancelled by client" in answer.body
            while engine.statistics().in_flight:
                await generation.events()
        assert (engine.statistics().engine.cancelled, engine.statistics().closes) == (1, ())
        generation.cancel()


@every_setup
async def test_tokens_are_counted_alike(answered, tokenizer, kind, options, model, server):
    adapter = REGISTRY.adapter(kind, options)
    text = "Вода пошла по каналу."
    counts = {
        "text": len(tokenizer.encode(text, add_special_tokens=True)),
        "messages": len(tokenizer.encode(tokenizer.render(MESSAGES), add_special_tokens=False)),
    }
    async with serve(kind, "h200", tokenizer=tokenizer, **server) as engine:
        for given in ({"text": text}, {"messages": MESSAGES}):
            question = adapter.tokenize_request("headgate-mini", **given)
            if question is not None:
                answer = await answered(engine, question)
                assert adapter.read_token_count(answer.status, answer.body) == counts[next(iter(given))]
