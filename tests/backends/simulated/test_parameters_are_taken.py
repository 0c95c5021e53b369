"""The strongest test of the tables: whatever they let pass, the engine takes.

Requests of every parameter, with values of the right types and of wrong ones, go through the real adapter to
the simulated engine of that kind, whose validation was written from the engine's sources and shares no code
with the tables. Each value is refused by the table with its name, or the answer is a 200 without an error.
"""

import asyncio
import http.client
import itertools
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.contract import EngineAdapter, GenerateRequest, HttpRequest
from backends.parameters import GATEWAY, OPENAI_CHAT, OPENAI_COMPLETIONS, cells
from backends.registry import REGISTRY
from backends.simulated.engine import profile
from backends.simulated.server import serve
from tests.backends.asking import served

SETUPS: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("trtllm", {}, {}, "m"),
    ("triton", {}, {}, "ensemble"),
    ("triton", {"guided_decoding": True}, {}, "tensorrt_llm_bls"),
    ("triton", {"vocabulary": "llmapi"}, {"vocabulary": "llmapi"}, "tensorrt_llm"),
    ("triton-openai", {}, {}, "m"),
    ("triton-openai", {"tool_calling": True}, {"tool_calling": True}, "m"),
    ("tgi", {}, {}, "tgi"),
    ("tgi", {"api": "messages"}, {}, "tgi"),
    ("vllm", {}, {}, "m"),
    ("sglang", {}, {}, "m"),
    ("llamacpp", {}, {}, "m"),
    ("llamacpp", {"neutral_sampling": True}, {}, "m"),
]
"""Kind, the adapter's options, the server's, the model. Not `openai`: that one gets whatever it is sent."""
IDS = [" ".join([kind, *map(str, options)]) for kind, options, _, _ in SETUPS]

SCHEMA = {
    "type": "object",
    "properties": {"depth": {"type": "integer"}, "name": {"type": "string"}},
    "required": ["depth"],
}
TOOL = {"type": "function", "function": {"name": "gate", "description": "a gate", "parameters": SCHEMA}}

numbers = st.floats(-3, 3) | st.sampled_from([0, 1, -1, 0.0, 1.0, 2, 1e-7, 1e39, 10**400])
whole = st.integers(-3, 20) | st.sampled_from([2**31, 2**63, 2**64 - 1, -(2**63), 16.0])
texts = st.text("ab{}", max_size=3)
odd = st.none() | st.booleans() | whole | numbers | texts | st.lists(whole | texts, max_size=2)
ids = st.lists(st.integers(0, 500), max_size=3)
FORMATS: tuple[dict[str, Any], ...] = (
    {"type": "json_object"},
    {"type": "json_object", "value": SCHEMA},
    {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
    {"type": "json_schema", "json_schema": {"schema": {"type": "integer"}}},
    {"type": "json_schema", "json_schema": {"name": "n"}},
    {"type": "json_schema"},
    {"type": "json", "schema": SCHEMA},
    {"type": "regex", "regex": "a+"},
    {"type": "regex", "value": "a+"},
    {"type": "ebnf", "ebnf": "root ::= 'a'"},
    {"type": "structural_tag", "format": {}},
    {"type": "grammar"},
)
CHOICES: tuple[Any, ...] = (
    "required",
    {"type": "function", "function": {"name": "gate"}},
    {"type": "function", "function": {"name": "absent"}},
    {"type": "allowed_tools", "allowed_tools": {}},
    {"type": "custom", "custom": {"name": "x"}},
)
tools = st.sampled_from(
    [[], [TOOL], [TOOL, {"type": "custom", "custom": {"name": "x"}}], [{}], [{"type": "function"}]]
)
TYPED: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(
        (
            "temperature",
            "top_p",
            "presence_penalty",
            "frequency_penalty",
            "min_p",
            "typical_p",
            "length_penalty",
        ),
        numbers,
    ),
    "repetition_penalty": st.floats(0.01, 10) | numbers,
    **dict.fromkeys(
        (
            "seed",
            "top_k",
            "min_tokens",
            "best_of",
            "truncate_prompt_tokens",
            "thinking_token_budget",
            "beam_width",
        ),
        whole,
    ),
    **dict.fromkeys(
        (
            "parallel_tool_calls",
            "store",
            "ignore_eos",
            "include_stop_str_in_output",
            "skip_special_tokens",
            "echo",
        ),
        st.booleans(),
    ),
    "top_logprobs": st.integers(0, 21),
    "logprobs": st.booleans() | st.integers(0, 21),
    "logit_bias": st.dictionaries(st.integers(0, 400).map(str), st.floats(-100, 100), max_size=2),
    "response_format": st.sampled_from([{"type": "text"}, *FORMATS]),
    "tools": tools,
    "tool_choice": st.sampled_from(["none", "auto", *CHOICES]),
    "guided_json": st.sampled_from([SCHEMA, json.dumps(SCHEMA), "{", {}]),
    "structured_outputs": st.just({"json": SCHEMA}),
    "json_schema": st.just(SCHEMA),
    **dict.fromkeys(("guided_regex", "regex", "ebnf", "grammar", "suffix", "cache_salt"), texts),
    "stop_token_ids": ids,
    "allowed_token_ids": ids,
    "bad_words": st.lists(texts, max_size=2) | texts,
    "reasoning_effort": st.sampled_from(["none", "minimal", "low", "medium", "high", "xhigh"]),
    "verbosity": st.sampled_from(["low", "medium"]),
    "modalities": st.sampled_from([["text"], ["text", "audio"]]),
    "metadata": st.just({"a": "b"}),
    "chat_template_kwargs": st.just({"thinking": True}),
    "documents": st.just([{"title": "t", "text": "x"}]),
}
NAMES = sorted(
    {cell.parameter for cell in cells()} - GATEWAY.keys() - {"messages", "prompt", "max_tokens", "n", "stop"}
)
PARAMETERS = st.lists(st.sampled_from(NAMES), unique=True, max_size=8).flatmap(
    lambda names: st.fixed_dictionaries({name: TYPED.get(name, odd) | odd for name in names})
)


class Running:
    """A simulated engine in a thread of its own, and one connection to it."""

    def __init__(self, kind: str, options: dict[str, Any], model: str, tokenizer: Any) -> None:
        self._ready, self._over = threading.Event(), threading.Event()
        self._numbers = itertools.count()
        self._arguments = (kind, options, model, tokenizer)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        assert self._ready.wait(10)
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    async def _run(self) -> None:
        kind, options, model, tokenizer = self._arguments
        fast = profile("h200", speed=500.0)
        async with serve(kind, fast, model=model, tokenizer=tokenizer, **options) as engine:
            self.port = int(engine.url.rsplit(":", 1)[1])
            self._ready.set()
            while not self._over.is_set():
                await asyncio.sleep(0.01)

    def take(self, request: HttpRequest) -> None:
        """Raises AssertionError where the engine does not answer well."""
        self.connection.request(request.method, request.path, request.body, dict(request.headers))
        response = self.connection.getresponse()
        body = response.read()
        assert response.status == 200, (request.body, body)
        for line in body.splitlines():
            if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
                assert not json.loads(line[5:]).get("error"), (request.body, line)

    def stop(self) -> None:
        self.connection.close()
        self._over.set()
        self._thread.join(10)


def asked(model: str, *, is_chat: bool, **fields: Any) -> GenerateRequest:
    prompt: dict[str, Any] = {"prompt": "How deep?"}
    if is_chat:
        messages = [{"role": "user", "content": "How deep is the gate?"}]
        prompt = {"messages": messages, "rendered": "How deep?"}
    return GenerateRequest(
        **{"request_id": "r", "model": model, "stream": False, "max_tokens": 3, **prompt, **fields}
    )


@pytest.fixture(params=SETUPS, ids=IDS, scope="module")
def setup(request: pytest.FixtureRequest, tokenizer: Any) -> Iterator[tuple[EngineAdapter, Running, str]]:
    kind, options, server, model = request.param
    running = Running(kind, server, model, tokenizer)
    yield REGISTRY.adapter(kind, options), running, model
    running.stop()


EDGES: tuple[Any, ...] = (
    True, False, 0, 1, -1, -2, 2, 3, 21, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 1e-7, 1e39, 2**31, 2**63, 2**64 - 1,
    -(2**63), "", "a", "none", "auto", "low", [], ["a"], "water", [""], [1], [{}], {}, {"a": 1}, {"1": 5},
    {"type": "text"}, SCHEMA, [{"title": "t"}], [TOOL], *FORMATS, *CHOICES,
)  # fmt: skip


SAMPLING = {"temperature", "top_p", "top_k", "best_of", "seed"}
"""What `n` may not go together with."""


@pytest.mark.parametrize("is_chat", [True, False])
def test_each_alone(setup: tuple[EngineAdapter, Running, str], is_chat: bool) -> None:
    """Every parameter with every value at an edge: what is let pass is taken, each kind of body once."""
    adapter, running, model = setup
    seen = set()
    for name, value, n in itertools.product(NAMES, EDGES, (1, 2)):
        if n == 2 and (name not in SAMPLING or adapter.takes.choices is not None):
            continue
        request = asked(model, is_chat=is_chat, parameters={name: value}, n=n)
        if (refusal := adapter.unsupported(request)) is not None:
            assert refusal.param in (name, "n")[:n], (name, value, refusal)
            continue
        encoded = adapter.encode(request)
        if encoded.body not in seen:
            seen.add(encoded.body)
            running.take(encoded)
    assert len(seen) > 10


@settings(deadline=None, max_examples=100)
@given(
    parameters=PARAMETERS,
    is_chat=st.booleans(),
    stream=st.booleans(),
    n=st.sampled_from([1, 1, 2]),
    stop=st.lists(st.sampled_from(["water", "END", "."]), max_size=2).map(tuple),
)
def test_what_is_let_pass_is_taken(
    setup: tuple[EngineAdapter, Running, str],
    parameters: dict[str, Any],
    is_chat: bool,
    stream: bool,
    n: int,
    stop: tuple[str, ...],
) -> None:
    """A refusal names the parameter; what is not refused is answered."""
    adapter, running, model = setup
    choices = n if adapter.takes.choices is None else min(n, adapter.takes.choices)
    given = asked(model, is_chat=is_chat, parameters=parameters, stream=stream, n=choices, stop=stop)
    refusal = adapter.unsupported(given)
    assert refusal is None or refusal.param in {*parameters, "n"}
    assert refusal is None or refusal.message
    request = served(adapter, given)
    if request is None:  # sampling is off, and several answers are asked for
        return
    running.take(adapter.encode(request))


def test_the_parameters_are_all_there() -> None:
    """What the official SDK can send, and more."""
    assert {*OPENAI_CHAT, *OPENAI_COMPLETIONS} <= {
        *NAMES,
        *GATEWAY,
        "messages",
        "prompt",
        "max_tokens",
        "n",
        "stop",
    }
