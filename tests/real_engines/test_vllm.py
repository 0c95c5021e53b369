"""The official OpenAI and Anthropic SDKs through the gateway to a real vLLM.

The model is random, so what it says means nothing; but the server counts, cuts, stops, constrains, queues,
refuses and cancels for real, and at temperature 0 it says the same thing twice.
"""

import asyncio
import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from backends.vllm.adapter import VllmAdapter
from gateway.app import discovery_of, engine_at
from gateway.examining.calibrating import Calibrator, shapes_of
from gateway.examining.calibrating import Load as Shapes
from tests.conftest import not_run
from tests.end_to_end.world import KEY, World, world
from tests.real_engines.asking import STREAM, ask, told, until
from tests.real_engines.vllm_server import CONTEXT, MODEL, QUEUED, SEQUENCES, VllmServer, program, running

RECIPES = Path(__file__).parents[2] / "backends" / "vllm" / "launch.sh"
ON_AND_ON: dict[str, Any] = {"extra_body": {"ignore_eos": True}}
pytestmark = pytest.mark.timeout(240)  # the first test waits for the server
PROFILES = ("short", "balanced", "throughput", "long", "draft", "big")


PARSER = """
import importlib, shlex, sys
from vllm.utils.argparse_utils import FlexibleArgumentParser

for place in ("launchers", "common", "openai"):  # it has moved from version to version
    try:
        arguments = importlib.import_module(f"vllm.entrypoints.{place}.cli_args")
        break
    except ModuleNotFoundError:
        pass
vllm, serve, model, *flags = shlex.split(sys.stdin.read())
assert (vllm, serve) == ("vllm", "serve")
print(arguments.make_arg_parser(FlexibleArgumentParser()).parse_args(flags).max_model_len)
"""


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    if program() is None:
        not_run("real vLLM: no vllm (set HEADGATE_VLLM)", required=False)
    with running(tmp_path_factory.mktemp("vllm")) as server:
        yield server


def pool(vllm: VllmServer, **more: Any) -> dict[str, Any]:
    return {"kind": "vllm", "url": vllm.url, "served": MODEL, **more}


# ------------------------------------------------------------------------------------------ what it is


async def test_it_is_recognised_with_its_limits(vllm: VllmServer) -> None:
    discovery = discovery_of([vllm.url])
    await discovery.look()
    (found,) = discovery.found
    assert (found.identified.kind, dict(found.identified.models)) == ("vllm", {MODEL: MODEL})
    assert found.identified.limits.context_tokens == CONTEXT


async def test_its_load_is_read(vllm: VllmServer, tmp_path: Path) -> None:
    """While it runs what it can, and the rest waits."""
    adapter = VllmAdapter()
    question = adapter.load_request()
    assert question is not None
    async with world(tmp_path, {"pool": pool(vllm)}) as here:
        async with asyncio.TaskGroup() as group:
            for number in range(SEQUENCES + 1):
                group.create_task(told(here, **ask(f"busy {number}", max_tokens=2000, **ON_AND_ON)))
            await until("one to wait", lambda: vllm.waiting() == 1)
            async with httpx.AsyncClient(base_url=vllm.url, trust_env=False) as http:
                answer = await http.request(question.method, question.path)
    load = adapter.read_load(answer.status_code, answer.content)
    assert load is not None
    assert (load.running, load.waiting) == (SEQUENCES, 1)
    assert load.kv_usage is not None
    assert 0 < load.kv_usage < 1
    assert load.prefix_hit_ratio is not None
    assert load.preemptions_total == 0


async def test_it_can_be_calibrated(vllm: VllmServer) -> None:
    """A few shapes, once each: first tokens and steps are seen."""
    load = Shapes(prompt_tokens=96, sequences=SEQUENCES, seconds=20, rounds=1)
    async with engine_at(vllm.url, "vllm", {}, {}) as engine:
        calibrator = Calibrator(engine, MODEL, load, clock=time.perf_counter, cpu_clock=time.process_time)
        measured = await calibrator.measure(shapes_of(load, CONTEXT, None, SEQUENCES))
    assert {sample.kind for sample in measured.samples} == {"prefill", "decode"}


@pytest.mark.parametrize("profile", PROFILES)
def test_the_recipe_is_taken_by_its_own_parser(profile: str) -> None:
    """Names, choices and types of every flag, as the program itself reads them."""
    if (found := program()) is None:
        not_run("real vLLM: no vllm (set HEADGATE_VLLM)", required=False)
    printed = subprocess.run(
        [RECIPES, "--print", profile], capture_output=True, text=True, check=True, timeout=10
    )
    read = subprocess.run(
        [Path(found).with_name("python"), "-c", PARSER],
        input=printed.stdout, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert read.returncode == 0, read.stderr[-2000:]
    assert f"--max-model-len {read.stdout.split()[-1]} " in printed.stdout


# ------------------------------------------------------------------------------------------ answers


async def test_whole_and_streamed_say_the_same(vllm: VllmServer, tmp_path: Path) -> None:
    """Text, reason and the engine's own counts; our count of the prompt is the engine's."""
    async with world(tmp_path, {"pool": pool(vllm)}) as here:
        whole, reasons, usage, headers = await told(here, **ask())
        assert (whole, reasons) == (await told(here, **ask(stream=True)))[:2]
        assert reasons == ["length"]
        assert usage.completion_tokens == 12
        assert headers["x-headgate-prompt-tokens"] == str(usage.prompt_tokens)


async def test_connections_are_kept(vllm: VllmServer, tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": pool(vllm)}) as here:
        for number in range(20):
            *_, headers = await told(here, **ask(f"number {number}", max_tokens=2, stream=number % 3 != 0))
            assert headers["x-headgate-attempts"] == "1"


@STREAM
async def test_choices_are_counted_all(vllm: VllmServer, tmp_path: Path, stream: bool) -> None:
    async with world(tmp_path, {"pool": pool(vllm)}) as here:
        texts, _, usage, _ = await told(here, **ask(n=2, temperature=1, stream=stream, **ON_AND_ON))
    assert len(texts) == 2
    assert usage.completion_tokens == 24


async def test_prompts_are_counted_all(vllm: VllmServer, tmp_path: Path) -> None:
    """Strings and token ids, in one call."""
    prompts = ["River", "The gate is open, and the water comes"]
    async with world(tmp_path, {"pool": pool(vllm)}) as here, here.sdk() as sdk:
        given: dict[str, Any] = {"model": "m", "max_tokens": 3, "temperature": 0}
        alone = [await sdk.completions.create(prompt=prompt, **given) for prompt in prompts]
        both = await sdk.completions.create(prompt=prompts, **given)
        ids = await sdk.completions.create(prompt=[[5, 6, 7], [8, 9]], n=2, **given | {"temperature": 1})
    assert [choice.text for choice in both.choices] == [each.choices[0].text for each in alone]
    assert both.usage is not None
    assert both.usage.prompt_tokens == sum(each.usage.prompt_tokens for each in alone if each.usage)
    assert both.usage.completion_tokens == 6
    assert [choice.index for choice in ids.choices] == [0, 1, 2, 3]
    assert ids.usage is not None
    assert ids.usage.prompt_tokens == 5


@STREAM
async def test_a_stop_string_ends_it(vllm: VllmServer, tmp_path: Path, stream: bool) -> None:
    async with world(tmp_path, {"pool": pool(vllm)}) as here:
        (full,), *_ = await told(here, **ask(stream=stream))
        (cut,), reasons, *_ = await told(here, **ask(stream=stream, stop=[full[4:7]]))
    assert (cut, reasons) == (full[: full.index(full[4:7])], ["stop"])


async def test_a_schema_is_followed(vllm: VllmServer, tmp_path: Path) -> None:
    """Even by a model that knows nothing: its grammar leaves no choice."""
    form = {"type": "json_schema", "json_schema": {"name": "gate", "schema": {"enum": ["open", "shut"]}}}
    async with world(tmp_path, {"pool": pool(vllm)}) as here:
        (text,), reasons, *_ = await told(here, **ask(max_tokens=200, response_format=form))
    assert reasons == ["stop"]
    assert json.loads(text) in ("open", "shut")


@STREAM
async def test_a_tool_is_called(vllm: VllmServer, tmp_path: Path, stream: bool) -> None:
    schema = {"type": "object", "properties": {"open": {"enum": [True]}}, "required": ["open"]}
    function = {"name": "turn", "parameters": schema | {"additionalProperties": False}}
    tool = {"type": "function", "function": function}
    choice = {"type": "function", "function": {"name": "turn"}}
    asked = ask(max_tokens=300, tools=[tool], tool_choice=choice)
    async with world(tmp_path, {"pool": pool(vllm)}) as here, here.sdk() as sdk:
        name, arguments, reason = "", "", None
        if stream:
            async for chunk in await sdk.chat.completions.create(**asked, stream=True):
                for told_choice in chunk.choices:
                    reason = told_choice.finish_reason or reason
                    for call in told_choice.delta.tool_calls or ():
                        assert call.function is not None
                        name += call.function.name or ""
                        arguments += call.function.arguments or ""
        else:
            whole = await sdk.chat.completions.create(**asked)
            assert whole.choices[0].message.tool_calls is not None
            (called,) = whole.choices[0].message.tool_calls
            assert called.type == "function"
            name, arguments = called.function.name, called.function.arguments
            reason = whole.choices[0].finish_reason
    assert (name, json.loads(arguments)) == ("turn", {"open": True})
    assert reason in ("tool_calls", "stop")


async def test_log_probabilities_of_both_routes(vllm: VllmServer, tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": pool(vllm)}) as here, here.sdk() as sdk:
        chat = await sdk.chat.completions.create(**ask(logprobs=True, top_logprobs=2, max_tokens=2))
        assert chat.choices[0].logprobs is not None
        assert [len(each.top_logprobs) for each in chat.choices[0].logprobs.content or ()] == [2, 2]
        asked: dict[str, Any] = {"model": "m", "prompt": "The gate", "max_tokens": 3, "logprobs": 2}
        older = await sdk.completions.create(**asked, temperature=0)
        assert older.choices[0].logprobs is not None
        assert len(older.choices[0].logprobs.tokens or ()) == 3


# -------------------------------------------------------------------------------------------- doors


async def test_messages_by_the_sdk_of_anthropic(vllm: VllmServer, tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
    async with world(tmp_path, {"pool": pool(vllm)}) as here:
        base = here.addresses.data
        async with anthropic.AsyncAnthropic(base_url=base, api_key=KEY, max_retries=0) as sdk:
            counted = await sdk.messages.count_tokens(**given)
            whole = await sdk.messages.create(**given, max_tokens=5)
            async with sdk.messages.stream(**given, max_tokens=5) as stream:
                streamed = await stream.get_final_message()
    assert whole.usage.input_tokens == streamed.usage.input_tokens == counted.input_tokens
    assert whole.usage.output_tokens == streamed.usage.output_tokens == 5
    assert whole.stop_reason == streamed.stop_reason == "max_tokens"


async def test_what_it_refuses_is_told_in_the_shape_of_anthropic(vllm: VllmServer, tmp_path: Path) -> None:
    """vLLM answers OpenAI's error on this door too."""
    given: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
    async with world(tmp_path, {"pool": pool(vllm)}) as here:
        base = here.addresses.data
        async with anthropic.AsyncAnthropic(base_url=base, api_key=KEY, max_retries=0) as sdk:
            with pytest.raises(anthropic.BadRequestError) as refused:
                await sdk.messages.create(**given, max_tokens=5, extra_body={"temperature": -1})
    assert isinstance(refused.value.body, dict)
    assert refused.value.body["type"] == "error"
    assert refused.value.body["error"]["type"] == "invalid_request_error"
    assert refused.value.request_id


async def test_responses_by_the_sdk_of_openai(vllm: VllmServer, tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": pool(vllm)}) as here, here.sdk() as sdk:
        whole = await sdk.responses.create(model="m", input="Hello", max_output_tokens=5)
        assert whole.usage is not None
        assert (whole.status, whole.usage.output_tokens) == ("incomplete", 5)
        stream = await sdk.responses.create(model="m", input="Hello", max_output_tokens=5, stream=True)
        kinds = [event.type async for event in stream]
    assert kinds[0] == "response.created"
    assert 1 <= kinds.count("response.output_text.delta") <= 5, "tokens that end within a character wait"


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/embeddings", {"input": "a"}),
        ("/rerank", {"query": "a", "documents": ["b"]}),
        ("/score", {"text_1": "a", "text_2": "b"}),
    ],
)
async def test_a_door_of_another_model_is_said_to_be_shut(
    vllm: VllmServer, tmp_path: Path, path: str, asked: dict[str, Any]
) -> None:
    """vLLM opens the doors that its model can answer, and is 404 on the others."""
    async with world(tmp_path, {"pool": pool(vllm)}) as here, here.http() as http:
        answer = await http.post(path, json={"model": "m", **asked})
    assert answer.status_code == 501, answer.text


# ------------------------------------------------------------------------------------------- errors


@STREAM
async def test_too_long_for_the_engine(vllm: VllmServer, tmp_path: Path, stream: bool) -> None:
    """Its own words, with the code that OpenAI's clients know."""
    async with world(tmp_path, {"pool": pool(vllm)}) as here, here.sdk() as sdk:
        with pytest.raises(openai.BadRequestError) as refused:
            await sdk.chat.completions.create(**ask("gate " * (CONTEXT + 500), stream=stream))
    assert refused.value.code == "context_length_exceeded"


async def test_a_token_outside_the_vocabulary(vllm: VllmServer, tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": pool(vllm)}) as here, here.sdk() as sdk:
        with pytest.raises(openai.BadRequestError, match="999999"):
            await sdk.chat.completions.create(**ask(logit_bias={"999999": 1}))


async def test_a_full_queue_is_no_fault_of_the_client(vllm: VllmServer, tmp_path: Path) -> None:
    """503 with a moment to come back in, and the engine is not thought to be broken."""
    async with world(tmp_path, {"pool": pool(vllm)}) as here, here.http() as http:
        asked = [ask(f"full {number}", max_tokens=300, ignore_eos=True) for number in range(QUEUED + 2)]
        posts = (http.post("/v1/chat/completions", json=body) for body in asked)
        answers = await asyncio.gather(*posts)
        refused = [answer for answer in answers if answer.status_code != 200]
        assert len(refused) == 2, [answer.text for answer in answers]
        for answer in refused:
            assert answer.status_code in (429, 503)
            assert float(answer.headers["retry-after"]) > 0
        assert (await told(here, **ask()))[1] == ["length"]
    assert vllm.metric("admission_rejections_total") >= 2


# ---------------------------------------------------------------------------------------- cancellation


async def left(here: World, vllm: VllmServer, asked: dict[str, Any], *, begun: int) -> None:
    """Ask, and leave once that many run or wait."""
    async with here.http() as http, asyncio.TaskGroup() as group:
        client = group.create_task(http.post("/v1/chat/completions", json=asked))
        await until("it to begin", lambda: vllm.running() + vllm.waiting() == begun)
        client.cancel()


@STREAM
async def test_a_sequence_ends_when_its_client_left(vllm: VllmServer, tmp_path: Path, stream: bool) -> None:
    """Whole or streamed: vLLM looks for its client all the time."""
    before = vllm.metric("generation_tokens_total")
    asked = ask("leave", max_tokens=3500, stream=stream, temperature=1, ignore_eos=True)
    async with world(tmp_path, {"pool": pool(vllm)}) as here:
        await left(here, vllm, asked, begun=1)
        await here.wait_at_rest()
        assert here.gateway.book.outcomes == {"cancelled": 1}
        await until("it to be free", lambda: vllm.running() == 0, seconds=8)
    assert vllm.metric("generation_tokens_total") - before < 3000


@STREAM
async def test_one_that_waits_leaves_the_queue(vllm: VllmServer, tmp_path: Path, stream: bool) -> None:
    async with world(tmp_path, {"pool": pool(vllm)}) as here, here.http() as http:
        async with contextlib.AsyncExitStack() as stack:
            for number in range(SEQUENCES):
                body = ask(f"hold {number}", max_tokens=3000, ignore_eos=True, stream=True)
                await stack.enter_async_context(http.stream("POST", "/v1/chat/completions", json=body))
            await until("all to run", lambda: vllm.running() == SEQUENCES)
            await left(here, vllm, ask("wait", stream=stream), begun=SEQUENCES + 1)
            await until("it to leave", lambda: vllm.waiting() == 0, seconds=8)
            assert vllm.running() == SEQUENCES
        await here.wait_at_rest()
        await until("all to be free", lambda: vllm.running() == 0, seconds=8)
