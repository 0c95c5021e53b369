"""The real adapters and the real transport read what the simulated engines send.

Two descriptions of one wire, written apart: where they disagree one of them is wrong.
"""

import asyncio

import pytest

from backends.client import EngineClient
from backends.contract import Endpoint, EngineError, ErrorKind, Failure, GenerateRequest
from backends.registry import REGISTRY
from backends.simulated.server import DIALECTS, serve
from backends.transport import AiohttpTransport
from tests.backends.folding import fold

MESSAGES = [{"role": "user", "content": "Расскажи о шлюзе."}]
MODELS = {"trtllm": "anything", "openai": "headgate-mini", "tgi": "tgi", "triton": "ensemble"}


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
            model=model or MODELS[engine.kind],
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


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", list(DIALECTS))
async def test_an_answer_is_read_whole(ask, tokenizer, kind, stream):
    """Text, reason and counts; the text that every other dialect gives to the same ids."""
    async with serve("trtllm", "h200", speed=50, tokenizer=tokenizer) as reference:
        expected = (await ask(reference, stream=False)).choices[0].text
    async with serve(kind, "h200", speed=50, tokenizer=tokenizer) as engine:
        result = await ask(engine, stream=stream)
    assert (result.complete, result.error) == (True, None)
    assert result.choices[0].text == expected
    assert result.choices[0].finish_reason == "length"
    prompt = len(tokenizer.encode(tokenizer.render(MESSAGES), add_special_tokens=False))
    if result.usage is not None:  # some engines tell nothing, or only half
        assert result.usage["prompt_tokens"] in (None, prompt)
        assert result.usage["completion_tokens"] in (None, 30)
    if kind in ("trtllm", "openai") or (kind == "tgi" and stream):
        assert result.usage is not None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", list(DIALECTS))
async def test_an_answer_that_ends_by_itself(ask, tokenizer, kind, stream):
    async with serve(kind, "h200", speed=50, tokenizer=tokenizer) as engine:
        result = await ask(engine, stream=stream, tokens=1000)
    assert (result.complete, result.choices[0].finish_reason) == (True, "stop")
    assert "<|eot_id|>" not in result.choices[0].text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", list(DIALECTS))
async def test_a_stop_string_never_reaches_the_client(ask, tokenizer, kind, stream):
    """Whether the engine cuts it or leaves it to us."""
    async with serve(kind, "h200", speed=50, tokenizer=tokenizer) as engine:
        full = (await ask(engine, stream=stream)).choices[0].text
        stop = full[30:36]
        result = await ask(engine, stream=stream, stop=(stop,))
    assert result.choices[0].text == full[: full.index(stop)]
    assert (result.complete, result.choices[0].finish_reason) == (True, "stop")


async def test_cumulative_triton_text_with_pieces_of_characters(ask, tokenizer):
    async with serve(
        "triton", "h200", speed=50, tokenizer=tokenizer, text_mode="cumulative", fragments=0.4
    ) as engine:
        whole = await ask(engine, stream=False, tokens=61, model="tensorrt_llm_bls")
        options = {"text_mode": "cumulative"}
        result = await ask(engine, stream=True, tokens=61, model="tensorrt_llm_bls", options=options)
    assert result.choices[0].text.rstrip("\ufffd") == whole.choices[0].text.rstrip("\ufffd")
    assert result.complete


@pytest.mark.parametrize("kind", ["trtllm", "openai", "tgi"])
async def test_pieces_of_characters_in_streams(ask, tokenizer, kind):
    async with serve(kind, "h200", speed=50, tokenizer=tokenizer, fragments=0.4) as engine:
        result = await ask(engine, stream=True, tokens=61)
        whole = await ask(engine, stream=False, tokens=61)
    assert result.choices[0].text == whole.choices[0].text
    assert "\ufffd" not in result.choices[0].text


@pytest.mark.parametrize("fault", ["die_after", "fin_after", "error_after"])
@pytest.mark.parametrize("events", [0, 3])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", list(DIALECTS))
async def test_no_fault_looks_like_a_good_end(ask, tokenizer, kind, stream, events, fault):
    """What broke is an engine error; what came before it was handed out."""
    async with serve(kind, "h200", speed=50, tokenizer=tokenizer, faults=[f"{fault}={events}*1"]) as engine:
        result = await ask(engine, stream=stream)
        assert engine.statistics().faults[0]["fired"] == 1
    assert not result.complete
    assert result.error.kind is ErrorKind.ENGINE
    assert bool(result.choices) == (stream and events > 0)
    assert result.error.retryable == (not result.choices)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["openai", "tgi", "triton"])
async def test_overload_is_backpressure(ask, tokenizer, kind, stream):
    async with serve(kind, "h200", speed=50, tokenizer=tokenizer, faults=["overload*1"]) as engine:
        result = await ask(engine, stream=stream)
    assert (result.error.kind, result.error.retryable) == (ErrorKind.OVERLOADED, True)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", list(DIALECTS))
async def test_too_long_prompts_are_the_client_s(ask, tokenizer, kind, stream):
    async with serve(kind, "h200", speed=50, tokenizer=tokenizer, max_input_tokens=5) as engine:
        result = await ask(engine, stream=stream)
    assert (result.error.kind, result.error.retryable) == (ErrorKind.CONTEXT_LENGTH, False)


@pytest.mark.parametrize("kind", list(DIALECTS))
async def test_a_cancelled_generation_is_seen(transport, tokenizer, kind):
    """Dropping the connection stops the engine."""
    adapter = REGISTRY.adapter(kind, {})
    async with serve(kind, "h200", speed=2, tokenizer=tokenizer, mean_tokens=5000, spread=0) as engine:
        request = GenerateRequest(
            request_id="r1", model=MODELS[kind], stream=True, messages=MESSAGES, rendered="x", max_tokens=3000
        )
        generation = await EngineClient(adapter, transport, Endpoint(engine.url)).generate(request)
        async with asyncio.timeout(5):
            await generation.events()
            generation.cancel()
            while not engine.statistics().closes:
                await asyncio.sleep(0.001)
        assert engine.statistics().closes[0].phase == "during_stream"
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
