"""Live servers: pace, faults with their proof, disconnects in each phase, control routes, a clean end."""

import asyncio
import gc
import sys

import aiohttp
import pytest

from backends.simulated.engine import profile
from backends.simulated.server import DIALECTS, serve
from tests.backends.simulated.exchanges import get, post, raw_connection, request, until

KINDS = list(DIALECTS)


@pytest.fixture
def start(tokenizer):
    """`serve` with the shared tokenizer, quick unless told otherwise."""

    def start(kind, engine="h200", *, speed=50, **options):
        return serve(kind, engine, speed=speed, tokenizer=tokenizer, **options)

    return start


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_leaves_nothing_behind(start, kind):
    """Streams under way, hung requests and idle connections all end with it."""
    before = asyncio.all_tasks()
    async with start(kind, speed=0.01, faults=["hang*1"]) as engine, aiohttp.ClientSession() as session:
        path, body = request(kind, stream=True, tokens=100)
        tasks = [
            asyncio.get_running_loop().create_task(session.post(engine.url + path, json=body))
            for _ in range(4)
        ]
        await until(lambda: engine.statistics().requests == 4)
        assert engine.statistics().in_flight == 4
        await engine.aclose()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, aiohttp.ClientResponse):
                with pytest.raises(aiohttp.ClientError):
                    await result.read()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    gc.collect()  # a task that was never awaited would complain here


async def test_answers_take_the_model_s_time(start):
    """The first token after one step, the last after eight, and not much later."""
    async with start("openai", speed=1) as engine:
        path, body = request("openai", stream=True)
        began = asyncio.get_running_loop().time()
        answer = await post(engine.url, path, body)
        took = asyncio.get_running_loop().time() - began
        busy = engine.statistics().engine.busy_s
    assert len(answer.events) == 10  # role, eight tokens, [DONE]
    assert busy == pytest.approx(8 * 0.0052, rel=0.1)
    assert busy <= took < busy + 0.5


async def test_requests_share_steps(start):
    """Twenty requests at once are a batch, not a queue."""
    async with start("openai") as engine:
        path, body = request("openai", stream=False, tokens=20)
        await asyncio.gather(*(post(engine.url, path, body) for _ in range(20)))
        statistics = engine.statistics().engine
    assert statistics.output_tokens == 400
    assert statistics.steps < 100
    assert (statistics.finished, statistics.kv_used) == (20, 0)


async def test_equal_prompt_ids_give_equal_text_in_every_dialect(start, tokenizer):
    """Where the ids are the same, so is the answer: template, BOS and all."""
    messages = [{"role": "user", "content": "Расскажи о шлюзе."}]
    rendered = tokenizer.render(messages).removeprefix("<|begin_of_text|>")
    texts = {}
    async with start("trtllm") as engine:
        answer = await post(
            engine.url, "/v1/chat/completions", {"model": "m", "messages": messages, "max_tokens": 9}
        )
        texts["trtllm chat"] = answer.json["choices"][0]["message"]["content"]
        answer = await post(
            engine.url, "/v1/completions", {"model": "m", "prompt": rendered, "max_tokens": 9}
        )
        texts["trtllm completions"] = answer.json["choices"][0]["text"]
    async with start("tgi") as engine:
        answer = await post(
            engine.url, "/generate", {"inputs": rendered, "parameters": {"max_new_tokens": 9}}
        )
        texts["tgi"] = answer.json["generated_text"]
    async with start("triton") as engine:
        body = {"text_input": rendered, "max_tokens": 9, "exclude_input_in_output": True}
        answer = await post(engine.url, "/v2/models/tensorrt_llm_bls/generate", body)
        texts["triton"] = answer.json["text_output"]
        doubled = {**body, "text_input": "<|begin_of_text|>" + rendered}
        answer = await post(engine.url, "/v2/models/tensorrt_llm_bls/generate", doubled)
        assert answer.json["text_output"] not in texts.values()  # two BOS
    assert len(set(texts.values())) == 1, texts


# ------------------------------------------------------------------------------------------- faults


def fired(engine, number=0):
    return engine.statistics().faults[number]["fired"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_close_before_headers(start, kind, stream):
    async with start(kind, faults=["close*1"]) as engine:
        path, body = request(kind, stream=stream)
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await post(engine.url, path, body)
        assert fired(engine) == 1
        assert (await post(engine.url, path, body)).status == 200  # and only once
        assert engine.statistics().closes == ()  # it was not the client


@pytest.mark.parametrize("kind", KINDS)
async def test_hang(start, kind):
    """Not a byte; the client leaves, and that is seen."""
    async with start(kind, faults=["hang*1"]) as engine:
        async with raw_connection(engine.url, *request(kind, stream=True)) as (reader, _):
            await until(lambda: fired(engine) == 1)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await reader.read(1)
        await until(lambda: engine.statistics().closes)
        assert engine.statistics().closes[0].phase == "unanswered"
        assert engine.statistics().in_flight == 0


async def read_to_the_end(reader):
    received = b""
    try:
        while chunk := await reader.read(65536):
            received += chunk
    except ConnectionResetError:
        return received, "reset"
    return received, "end"


CONTENT = {"tgi": b'"token"', "triton": b'"text_output"'}


@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize(("fault", "how"), [("die_after", "reset"), ("fin_after", "end")])
@pytest.mark.parametrize("kind", KINDS)
async def test_streams_cut_after_k_events(start, kind, fault, how, after):
    """Exactly k events arrive; then RST, or FIN without the last chunk."""
    async with start(kind, faults=[f"{fault}={after}*1"]) as engine:
        async with raw_connection(engine.url, *request(kind, stream=True)) as (reader, _):
            received, ending = await read_to_the_end(reader)
        assert fired(engine) == 1
        assert ending == how
        content = CONTENT.get(kind, b'"content":"')
        events = received.count(content) - received.count(b'"content":""')  # that is a role's
        assert events == after
        assert not received.endswith(b"0\r\n\r\n")
        await until(lambda: engine.statistics().in_flight == 0)
        assert engine.statistics().closes == ()
        assert engine.statistics().running == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_body_cut_short(start, kind):
    """Where nothing is streamed, fin_after gives a Content-Length and less than that."""
    async with start(kind, faults=["fin_after=3*1"]) as engine:
        answer = await post(engine.url, *request(kind, stream=False))
        assert answer.status == 200
        assert isinstance(answer.error, aiohttp.ClientPayloadError)
        assert fired(engine) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_silence_after_k_events(start, kind):
    async with start(kind, faults=["silent_after=2*1"]) as engine:
        async with raw_connection(engine.url, *request(kind, stream=True)) as (reader, _):
            received = b""
            while received.count(b"\n\n") < 2:
                received += await reader.read(65536)
            await until(lambda: fired(engine) == 1)
            await until(lambda: engine.statistics().running == 0)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.03):
                    while True:
                        assert await reader.read(65536)
        await until(lambda: engine.statistics().closes)
        close = engine.statistics().closes[0]
        assert (close.phase, close.events) == ("during_stream", 2)


@pytest.mark.parametrize("kind", KINDS)
async def test_slow_first_token(start, kind):
    async with start(kind, faults=["slow_first=0.15*1"]) as engine:
        began = asyncio.get_running_loop().time()
        answer = await post(engine.url, *request(kind, stream=True))
        assert answer.error is None
        assert asyncio.get_running_loop().time() - began >= 0.15
        assert fired(engine) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_slow_headers(start, kind, stream):
    """Nothing comes, then all of it."""
    async with start(kind, faults=["slow_headers=0.15*1"]) as engine:
        began = asyncio.get_running_loop().time()
        async with raw_connection(engine.url, *request(kind, stream=stream)) as (reader, _):
            assert (await reader.read(16)).startswith(b"HTTP/1.1 200")
            assert asyncio.get_running_loop().time() - began >= 0.15
        assert fired(engine) == 1


@pytest.mark.parametrize("kind", ["openai", "triton"])
async def test_an_event_byte_by_byte(start, kind):
    """The second event comes in as many chunks as it has bytes; nothing is lost."""
    async with start(kind, faults=["drip=1*1"]) as engine:
        async with raw_connection(engine.url, *request(kind, stream=True)) as (reader, _):
            received = b""
            while not received.endswith(b"\r\n0\r\n\r\n"):
                received += await reader.read(65536)
        assert fired(engine) == 1
        assert received.count(b"\r\n1\r\n") > 100
        plain = await post(engine.url, *request(kind, stream=True))
        assert len(plain.events) >= 8


async def test_a_huge_event(start):
    """Once, in front of what a good answer has."""
    async with start("tgi", faults=["huge_event=3*1"]) as engine:
        answer = await post(engine.url, *request("tgi", stream=True))
        first, *others = answer.body.split(b"\n\n", 1)
        assert 3 * 2**20 <= len(first) < 3.2 * 2**20
        assert others[0].startswith(b'data: {"index":1')
        assert fired(engine) == 1


async def test_a_fault_that_comes_too_late_does_not_fire(start):
    async with start("tgi", faults=["die_after=50*1"]) as engine:
        answer = await post(engine.url, *request("tgi", stream=True))
        assert answer.error is None
        assert fired(engine) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["redirect", "garbage", "gzip"])
async def test_answers_that_no_engine_should_give(start, kind, fault):
    async with start(kind, faults=[f"{fault}*1"]) as engine:
        answer = await post(engine.url, *request(kind, stream=False))
        assert fired(engine) == 1
        if fault == "redirect":
            assert (answer.status, answer.headers["location"][:7]) == (301, "http://")
        elif fault == "garbage":
            assert (answer.status, b"\xff" in answer.body) == (200, True)
        else:
            assert answer.headers["content-encoding"] == "gzip"


async def test_refuse_and_listen_again(start):
    """Connections are refused, idle ones closed, a stream goes on; the port comes back by itself."""
    async with start("openai", speed=5) as engine, aiohttp.ClientSession() as session:
        async with session.get(engine.url + "/health") as response:
            await response.read()
        path, body = request("openai", stream=True, tokens=200)
        async with session.post(engine.url + path, json=body) as stream:
            await stream.content.readany()
            url = engine.url
            engine.arm("refuse=0.05")
            assert (engine.url, engine.statistics().listening, fired(engine)) == (url, False, 1)
            with pytest.raises(aiohttp.ClientConnectorError):
                await get(url, "/health")
            await until(lambda: engine.statistics().listening)
            assert (await get(url, "/health")).status == 200
            assert b"[DONE]" in await stream.read()


async def test_crash_and_restart(start):
    async with start("tgi", speed=5) as engine:
        async with raw_connection(engine.url, *request("tgi", stream=True, tokens=500)) as (reader, _):
            await reader.read(10)
            engine.crash()
            await read_to_the_end(reader)
        with pytest.raises(aiohttp.ClientConnectorError):
            await get(engine.url, "/health")
        assert engine.statistics().closes == ()
        await engine.listen()
        assert (await get(engine.url, "/health")).status == 200


async def test_two_servers_never_share_a_port(start):
    async with start("tgi") as engine:
        with pytest.raises(OSError, match="in use"):
            async with start("tgi", port=engine.port):
                pass


async def test_refused_from_the_start(start):
    async with start("tgi", faults=["refuse=0"]) as engine:
        assert not engine.statistics().listening
        await engine.listen()
        assert (await get(engine.url, "/health")).status == 200


# -------------------------------------------------------------------------------------- disconnects


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("phase", ["queued", "before_first_token", "during_stream"])
async def test_a_disconnect_is_seen_in_each_phase(start, tokenizer, kind, phase, stream):
    """At once by default: the engine drops the sequence and the server says in which phase."""
    slow = profile("h200", max_sequences=1, step_tokens=64)
    async with serve(
        kind, slow, speed=2.0 if phase == "during_stream" else 0.02, tokenizer=tokenizer
    ) as engine:
        path, body = request(kind, stream=stream, tokens=400)
        first = engine.live.output()
        if phase == "queued":  # another one has the only place
            engine.live.say(first, [1, 2, 3], 500, ignore_eos=True)
        async with raw_connection(engine.url, path, body) as _:
            await until(lambda: engine.statistics().in_flight == 1)
            if phase == "during_stream":
                await until(lambda: engine.statistics().engine.output_tokens > 2)
            elif phase == "before_first_token":
                await until(lambda: engine.statistics().running == 1)
            else:
                await until(lambda: engine.statistics().waiting == 1)
        await until(lambda: engine.statistics().closes)
        close = engine.statistics().closes[0]
        assert (close.phase, close.streamed, close.path) == (phase, stream, path)
        assert close.noticed_at - close.closed_at < 0.05
        statistics = engine.statistics()
        assert (statistics.engine.cancelled, statistics.waiting) == (1, 0)
        assert statistics.running == (1 if phase == "queued" else 0)


LONG = {"mean_tokens": 5000, "spread": 0}  # so that max_tokens alone ends an answer


async def leave(engine, kind, *, stream, tokens=2000):
    """Hang up after the first tokens; the close as the server recorded it."""
    async with raw_connection(engine.url, *request(kind, stream=stream, tokens=tokens)):
        await until(lambda: engine.statistics().engine.output_tokens > 2)
    await until(lambda: engine.statistics().closes)
    return engine.statistics().closes[0]


async def test_trtllm_notices_by_its_poll(start):
    """Once a second from the start of the request (at speed 5 five times), not before."""
    async with start("trtllm", speed=5, notice="realistic", **LONG) as engine:
        close = await leave(engine, "trtllm", stream=True)
        assert close.noticed_at is None
        await until(lambda: engine.statistics().closes[0].noticed_at is not None)
        close = engine.statistics().closes[0]
        started = engine.statistics().recent[0].at
        assert (close.noticed_at - started) % 0.2 == pytest.approx(0, abs=0.05) or (
            close.noticed_at - started
        ) % 0.2 == pytest.approx(0.2, abs=0.05)
        assert engine.statistics().engine.cancelled == 1


async def test_comments_fill_the_silence(start):
    """`: keep-alive` where vLLM was told to, a bare colon of llama.cpp's once its head is out."""
    for kind, comment in (("vllm", ": keep-alive\n\n"), ("llamacpp", ":\n\n")):
        async with start(kind, speed=0.05, keep_alive_s=0.02) as engine:
            answer = await post(engine.url, *request(kind, stream=True, tokens=2))
            assert comment in answer.text
            assert answer.text.startswith(comment) == (kind == "vllm")
            assert answer.events[-1] == "[DONE]"


async def test_triton_notices_when_it_writes(start):
    """A stream at its next event; an answer that is not streamed is made to its end for nobody. So are both
    where its models do not look, as TensorRT-LLM's."""
    async with start("triton", speed=5, notice="realistic", attentive=True, **LONG) as engine:
        await leave(engine, "triton", stream=True)
        await until(lambda: engine.statistics().engine.cancelled == 1)
        assert engine.statistics().closes[0].noticed_at is not None
    for stream, attentive in ((False, True), (False, False), (True, False)):
        await check_made_to_its_end(start, stream, attentive)


async def check_made_to_its_end(start, stream, attentive):
    async with start("triton", speed=5, notice="realistic", attentive=attentive, **LONG) as engine:
        close = await leave(engine, "triton", stream=stream, tokens=20)
        assert close.noticed_at is None
        await until(lambda: engine.statistics().running == 0)
        assert (engine.statistics().engine.cancelled, engine.statistics().engine.finished) == (0, 1)


async def test_tgi_notices_at_its_next_token(start):
    async with start("tgi", speed=5, notice="realistic", **LONG) as engine:
        await leave(engine, "tgi", stream=False)
        await until(lambda: engine.statistics().engine.cancelled == 1)
        assert engine.statistics().closes[0].noticed_at is not None


async def test_llamacpp_wants_a_quiet_second(start):
    """A whole answer goes on for nobody as long as somebody else's stream has tokens; a stream does not."""
    async with start("llamacpp", speed=5, notice="realistic", **LONG) as engine:
        await leave(engine, "llamacpp", stream=True)
        await until(lambda: engine.statistics().engine.cancelled == 1)
        async with raw_connection(engine.url, *request("llamacpp", stream=True, tokens=2000)):
            await until(lambda: engine.statistics().running == 1)
            await leave(engine, "llamacpp", stream=False, tokens=600)
            await until(lambda: engine.statistics().engine.finished == 1)
            assert engine.statistics().engine.cancelled == 1
        await until(lambda: engine.statistics().engine.cancelled == 2)  # the stream itself
        await leave(engine, "llamacpp", stream=False)
        await until(lambda: engine.statistics().engine.cancelled == 3)


# ------------------------------------------------------------------------------------- control routes


async def test_control_routes(start):
    """Faults at run time and statistics as JSON, over HTTP."""
    async with start("tgi") as engine:
        armed = await post(engine.url, "/_simulated/faults", {"arm": ["error_after=0*1"]})
        assert armed.json == {"faults": [{"fault": "error_after=0*1", "left": 1, "fired": 0}]}
        path, body = request("tgi", stream=False)
        assert (await post(engine.url, path, body)).status == 424
        statistics = (await get(engine.url, "/_simulated/statistics")).json
        assert statistics["faults"] == [{"fault": "error_after=0*0", "left": 0, "fired": 1}]
        assert statistics["requests"] == 1
        assert statistics["recent"][0]["body"] == body
        assert statistics["recent"][0]["headers"]["content-type"] == "application/json"
        assert statistics["engine"]["submitted"] == 1
        await post(engine.url, "/_simulated/faults", {"arm": ["hang"]})
        cleared = await post(engine.url, "/_simulated/faults", {"clear": True})
        assert cleared.json["faults"][1]["left"] == 0
        assert (await post(engine.url, path, body)).status == 200
        assert (await post(engine.url, "/_simulated/faults", {"arm": ["explode"]})).status == 400
        assert (await post(engine.url, "/_simulated/faults", [])).status == 400


async def test_recent_requests_are_bounded(start):
    async with start("tgi") as engine:
        for _ in range(70):
            await post(engine.url, "/generate", None, raw=b"{")
        statistics = engine.statistics()
        assert (statistics.requests, len(statistics.recent)) == (70, 64)
        assert statistics.recent[-1].body == "{"


async def test_run_as_a_process():
    """Serves until SIGTERM, then ends by itself without a word."""
    program = (
        "from backends.simulated.server import run\n"
        "run('tgi', 'h200', port=0, speed=50, on_start=lambda server: print(server.url, flush=True))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", program,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(20):
            url = (await process.stdout.readline()).decode().strip()
            assert (await post(url, *request("tgi", stream=True))).error is None
            process.terminate()
            _, errors = await process.communicate()
        assert (process.returncode, errors) == (0, b"")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(
    ("kind", "options", "complaint"),
    [
        ("h2o", {}, "unknown engine kind"),
        ("tgi", {"engine": "h800"}, "unknown engine profile"),
        ("tgi", {"colour": "red"}, "unknown option"),
        ("tgi", {"faults": ["explode"]}, "unknown fault"),
        ("trtllm", {"faults": ["overload"]}, "no overload answer"),
        ("tgi", {"max_total_tokens": 10**6}, "exceeds the cache"),
    ],
)
async def test_bad_options_are_refused(start, kind, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        async with start(kind, **options):
            pass
