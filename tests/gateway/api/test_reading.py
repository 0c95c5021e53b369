"""Reading hostile and honest bodies: a Call, or a 400/404 that names the field. Rows B.. are those of the
hostile input catalogue."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.reading import MAX_CHOICES, MAX_DEPTH, MAX_MESSAGES, MAX_STOPS, decode_body, read_call
from gateway.call import Call, Dialect
from gateway.config.snapshot import Allow, MediaTokens, PriorityClass, Tenant
from gateway.errors import BadRequest, GatewayError, ModelNotFound, UnsupportedByEngine
from tests.gateway.builders import a_model, a_pool, a_snapshot, a_tenant

SNAPSHOT = a_snapshot(models=[a_model("llama", aliases=("llm",)), a_model("code")])
CPU_SECONDS = 0.05
HI = [{"role": "user", "content": "hi"}]


def read(body: Any, dialect: Dialect = "chat", snapshot=SNAPSHOT, tenant: Tenant | None = None) -> Call:
    return read_call(
        body,
        dialect=dialect,
        call_id="id-1",
        snapshot=snapshot,
        tenant=tenant or snapshot.tenants["acme"],
        key_id="k0",
        received=1.0,
        traceparent="00-x",
    )


def chat(**fields: Any) -> Call:
    return read({"model": "llama", "messages": HI, **fields})


def completion(**fields: Any) -> Call:
    return read({"model": "llama", "prompt": "hi", **fields}, "completions")


def refused(body: dict[str, Any], dialect: Dialect = "chat") -> GatewayError:
    """The refusal of a decoded body: a 400 or 404, told within 50 ms of CPU."""
    began = time.process_time()
    with pytest.raises(GatewayError) as raised:
        read(body, dialect)
    assert time.process_time() - began < CPU_SECONDS
    assert raised.value.status in (400, 404)
    assert len(raised.value.message) < 500
    return raised.value


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"items": value}
    return value


# --------------------------------------------------------------------------------------------- the body


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="B39 empty"),
        pytest.param(b" \n ", id="B39 whitespace"),
        pytest.param(b"model=llama", id="B40 not JSON"),
        pytest.param(b'{"model":"llama"} x', id="B40 trailing garbage"),
        pytest.param(b"{}{}", id="B40 two documents"),
        pytest.param(b"\xef\xbb\xbf{}", id="B40 BOM"),
        pytest.param(b"{'a': 1}", id="B40 single quotes"),
        pytest.param(b'{"a": 1,}', id="B40 trailing comma"),
        pytest.param(b"[]", id="B41 list"),
        pytest.param(b"null", id="B41 null"),
        pytest.param(b'"x"', id="B41 string"),
        pytest.param(b"1", id="B41 number"),
        pytest.param(b'{"model":"\xff\xfe"}', id="B42 invalid UTF-8"),
        pytest.param(b'{"model":"\xed\xa0\x80"}', id="B42 surrogate in UTF-8"),
        pytest.param(b'{"model":"\\ud800"}', id="B42 half a pair"),
        pytest.param('{"model":"x"}'.encode("utf-16"), id="B42 UTF-16"),
        pytest.param(b'{"temperature": NaN}', id="B44 NaN"),
        pytest.param(b'{"temperature": Infinity}', id="B44 Infinity"),
        pytest.param(b'{"temperature": -Infinity}', id="B44 -Infinity"),
        pytest.param(b'{"temperature": 1e999}', id="B44 1e999"),
        pytest.param(b'{"max_tokens": ' + b"9" * 5000 + b"}", id="B45 5,000 digits"),
        pytest.param(b"[" * 100_000, id="B46 100k lists"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, id="B46 100k objects"),
    ],
)
def test_a_body_that_is_no_json_object(body):
    began = time.process_time()
    with pytest.raises(BadRequest) as raised:
        decode_body(body)
    assert time.process_time() - began < CPU_SECONDS
    assert len(raised.value.message) < 300


def test_whitespace_and_the_order_of_keys_mean_nothing():
    """M6."""
    body = {"model": "llama", "messages": HI, "max_tokens": 7, "temperature": 0.5}
    spellings = (
        json.dumps(body),
        json.dumps(body, indent=4),
        json.dumps(dict(reversed(body.items()))),
        json.dumps(body).replace('"model"', '"\\u006dodel"'),
    )
    first, *others = (read(decode_body(text.encode())) for text in spellings)
    assert all(other == first for other in others)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_raise_anything_else(data):
    try:
        assert isinstance(decode_body(data), dict)
    except BadRequest:
        pass


# ------------------------------------------------------------------------------------- the good requests


def test_a_chat_call_in_full():
    """What the gateway acts on is taken out; everything else travels as parameters, as sent."""
    body = {
        "model": "llm",
        "messages": [
            {"role": "system", "content": "Будь краток. 简短。"},
            {"role": "user", "content": [{"type": "text", "text": "a\x00b"}]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]},
            {"role": "tool", "content": "{{7*7}} %s ${jndi:x} <|im_start|>system", "tool_call_id": "1"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 5,
        "max_completion_tokens": 9,
        "n": 2,
        "stop": ["a", "", "b"],
        "temperature": 0,
        "top_p": None,
        "logprobs": True,
        "top_logprobs": 3,
        "unknown": {"__proto__": 1},
        "service_tier": "priority",
        "priority": 3,
    }
    call = read(body)
    request = call.request
    assert (call.model.name, call.asked_model, call.tenant.name, call.key_id) == (
        "llama",
        "llm",
        "acme",
        "k0",
    )
    assert (call.id, call.dialect, call.received, call.traceparent) == ("id-1", "chat", 1.0, "00-x")
    assert (call.stream, call.include_usage, call.asked_max_tokens) == (True, True, 9)
    assert call.priority_class is PriorityClass.interactive
    assert request.request_id == "id-1"
    assert request.messages == body["messages"]
    assert request.prompt is None
    assert (request.n, request.stop, request.max_tokens, request.stream) == (2, ("a", "b"), None, True)
    assert request.parameters == {
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 3,
        "unknown": {"__proto__": 1},
    }


def test_nothing_asked_is_nothing_assumed():
    call = chat()
    assert (call.asked_max_tokens, call.stream, call.include_usage) == (None, False, False)
    assert (call.request.n, call.request.stop, call.request.parameters) == (1, (), {})


@pytest.mark.parametrize("prompt", ["", "hi", ["a", "b"], [1, 2, 2**31 - 1], [[1], [2, 3]]])
def test_the_four_forms_of_a_prompt(prompt):
    call = completion(prompt=prompt)
    assert call.request.prompt == prompt
    assert call.request.messages is None


def test_null_is_as_good_as_absent():
    fields = ("stream", "stream_options", "max_tokens", "n", "stop", "tools", "seed", "user", "priority")
    assert chat(**dict.fromkeys(fields)) == chat()


def test_a_models_defaults_hold_where_the_client_gives_nothing():
    snapshot = a_snapshot(models=[a_model("llama", defaults={"temperature": 0.7, "top_p": 0.9})])
    body = {"model": "llama", "messages": HI, "temperature": 0.1, "top_p": None}
    assert read(body, snapshot=snapshot).request.parameters == {"temperature": 0.1, "top_p": 0.9}
    assert body["top_p"] is None, "the body is left as it was"


@pytest.mark.parametrize(
    ("tier", "max_class", "expected"),
    [
        (None, PriorityClass.interactive, PriorityClass.standard),
        ("auto", PriorityClass.interactive, PriorityClass.standard),
        ("priority", PriorityClass.interactive, PriorityClass.interactive),
        ("fast", PriorityClass.interactive, PriorityClass.interactive),
        ("flex", PriorityClass.interactive, PriorityClass.batch),
        ("priority", PriorityClass.standard, PriorityClass.standard),
        ("priority", PriorityClass.batch, PriorityClass.batch),
        (None, PriorityClass.batch, PriorityClass.batch),
    ],
)
def test_a_tenant_above_its_class_is_lowered_not_refused(tier, max_class, expected):
    body = {"model": "llama", "messages": HI, "service_tier": tier}
    assert read(body, tenant=a_tenant(max_class=max_class)).priority_class is expected


def test_the_bodys_priority_is_never_a_class():
    assert chat(priority=1000).priority_class is PriorityClass.standard


def test_everything_up_to_the_limits_passes():
    messages = HI * MAX_MESSAGES
    call = chat(messages=messages, n=MAX_CHOICES, stop=["x" * 1024] * MAX_STOPS, max_tokens=2**31 - 1)
    assert call.asked_max_tokens == 2**31 - 1
    chat(response_format=nested(MAX_DEPTH - 2), logit_bias={str(i): 1 for i in range(1024)}, user="x" * 1024)


# ------------------------------------------------------------------------------------- the bad requests

CHAT_ROWS: list[tuple[str, dict[str, Any], str]] = [
    ("B52 NUL in model", {"model": "lla\x00ma"}, "model"),
    ("B52 NUL in user", {"user": "a\x00b"}, "user"),
    ("B53 model missing", {"model": None}, "model"),
    ("B53 model empty", {"model": ""}, "model"),
    ("B53 model a number", {"model": 7}, "model"),
    ("B53 model a list", {"model": ["llama"]}, "model"),
    ("B53 model of 10 KiB", {"model": "m" * 10_240}, "model"),
    ("B55 messages missing", {"messages": None}, "messages"),
    ("B55 messages empty", {"messages": []}, "messages"),
    ("B55 messages an object", {"messages": {}}, "messages"),
    ("B55 messages a string", {"messages": "hi"}, "messages"),
    ("B55 too many messages", {"messages": HI * (MAX_MESSAGES + 1)}, "messages"),
    ("B55 a million messages", {"messages": HI * 1_000_000}, "messages"),
    ("B55 a message that is none", {"messages": [HI[0], "hi"]}, "messages[1]"),
    ("B56 no role", {"messages": [{"content": "x"}]}, "messages[0].role"),
    ("B56 unknown role", {"messages": [{"role": "root", "content": "x"}]}, "messages[0].role"),
    ("B56 unhashable role", {"messages": [{"role": {}, "content": "x"}]}, "messages[0].role"),
    ("B56 content null", {"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ("B56 content missing", {"messages": [{"role": "user"}]}, "messages[0].content"),
    ("B56 assistant says nothing", {"messages": [{"role": "assistant"}]}, "messages[0].content"),
    ("B56 content a number", {"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
    ("B56 content an object", {"messages": [{"role": "user", "content": {}}]}, "messages[0].content"),
    ("B56 mixed parts", {"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
    (
        "B56 part without text",
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0]",
    ),
    (
        "B56 part of a wrong text",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
        "messages[0].content[0]",
    ),
    (
        "B56 tool calls a number",
        {"messages": [{"role": "assistant", "content": None, "tool_calls": 5}]},
        "messages[0].tool_calls",
    ),
    (
        "B56 tool calls of numbers",
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [5]}]},
        "messages[0].tool_calls",
    ),
    ("B46 a deep message", {"messages": [{**HI[0], "x": nested(100)}]}, "messages[0]"),
    *((f"B58 max_tokens {bad!r}", {"max_tokens": bad}, "max_tokens") for bad in
      (0, -1, 1.5, 1.0, "10", 2**63, 10**300, True, [], {})),
    *((f"B58 max_completion_tokens {bad!r}", {"max_completion_tokens": bad}, "max_completion_tokens")
      for bad in (0, "10", True)),
    ("B58 the older name is checked too", {"max_tokens": 0, "max_completion_tokens": 5}, "max_tokens"),
    *((f"B61 n {bad!r}", {"n": bad}, "n") for bad in (0, -1, 17, 1_000_000, 1e6, "2", True)),
    *((f"B61 best_of {bad!r}", {"best_of": bad}, "best_of") for bad in (0, 1_000_000, "2")),
    ("B61 best_of below n", {"n": 2, "best_of": 1}, "best_of"),
    *((f"B62 temperature {bad!r}", {"temperature": bad}, "temperature") for bad in
      (-1, 1e308, 10**300, "hot", float("nan"), float("inf"), True, [])),
    *((f"B62 {name} {bad!r}", {name: bad}, name) for name, bad in
      (("top_p", 1.1), ("min_p", -0.1), ("presence_penalty", 3), ("frequency_penalty", -3),
       ("repetition_penalty", 0), ("top_k", -2), ("top_k", 1.5), ("min_tokens", -1), ("ignore_eos", 1))),
    ("B63 too many stops", {"stop": ["x"] * 10_000}, "stop"),
    ("B63 a long stop", {"stop": "x" * 1024 * 1024}, "stop"),
    ("B63 a stop that is none", {"stop": ["x", 1]}, "stop"),
    ("B63 a stop of another kind", {"stop": {"a": 1}}, "stop"),
    ("B64 a million biases", {"logit_bias": {str(i): 1 for i in range(100_000)}}, "logit_bias"),
    ("B64 keys", {"logit_bias": {"cat": 1}}, "logit_bias"),
    ("B64 Arabic digits", {"logit_bias": {"\u0661": 1}}, "logit_bias"),
    ("B64 a negative key", {"logit_bias": {"-1": 1}}, "logit_bias"),
    ("B64 values", {"logit_bias": {"1": 101}}, "logit_bias"),
    ("B64 values of another kind", {"logit_bias": {"1": "x"}}, "logit_bias"),
    ("B64 a list", {"logit_bias": []}, "logit_bias"),
    ("B65 logprobs", {"logprobs": 10**6}, "logprobs"),
    ("B65 top_logprobs", {"logprobs": True, "top_logprobs": 10**6}, "top_logprobs"),
    ("B65 top_logprobs alone", {"top_logprobs": 2}, "top_logprobs"),
    ("B67 a deep schema", {"response_format": nested(1000)}, "response_format"),
    ("B67 no schema", {"response_format": "json"}, "response_format"),
    ("B67 a deep tool", {"tools": [nested(1000)]}, "tools"),
    ("tools of another kind", {"tools": {}}, "tools"),
    ("tools of strings", {"tools": ["x"]}, "tools"),
    ("too many tools", {"tools": [{}] * 513}, "tools"),
    ("tool_choice", {"tool_choice": 1}, "tool_choice"),
    *((f"B68 priority {bad!r}", {"priority": bad}, "priority") for bad in
      ("high", [1], 1.5, 10**9, {"a": [1]}, True)),
    *((f"B69 {name}", {name: value}, name) for name in ("api_base", "base_url", "api_key", "backend", "pool")
      for value in ("http://169.254.169.254", None)),
    ("B69 a template", {"chat_template": "{{ x }}"}, "chat_template"),
    ("B69 a template in disguise", {"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs"),
    ("B69 template arguments", {"chat_template_kwargs": []}, "chat_template_kwargs"),
    ("B69 a deep unknown field", {"whatever": nested(1000)}, "whatever"),
    ("B70 stream", {"stream": "true"}, "stream"),
    ("B70 stream as a number", {"stream": 1}, "stream"),
    ("B70 stream_options alone", {"stream_options": {"include_usage": True}}, "stream_options"),
    ("B70 stream_options a list", {"stream": True, "stream_options": []}, "stream_options"),
    (
        "B70 include_usage",
        {"stream": True, "stream_options": {"include_usage": "yes"}},
        "stream_options.include_usage",
    ),
    *((f"B72 {kind}", {"messages": [{"role": "user", "content": [{"type": kind, kind: {"url": url}}]}]},
       "messages[0].content[0]") for kind, url in (
        ("image_url", "file:///etc/passwd"), ("image_url", "http://169.254.169.254/"),
        ("input_audio", "http://[::ffff:127.0.0.1]/"), ("video_url", "http:\\\\127.0.0.1"),
        ("image_url", "data:image/png;base64," + "A" * 1_000_000))),
    ("B73 user of 1 MiB", {"user": "u" * 1024 * 1024}, "user"),
    ("user a number", {"user": 1}, "user"),
    *((f"B76 seed {bad!r}", {"seed": bad}, "seed") for bad in (1.5, 1e12, "1", 2**64, -(2**63) - 1, True)),
    ("service_tier", {"service_tier": ["priority"]}, "service_tier"),
    ("metadata", {"metadata": "x"}, "metadata"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), [pytest.param(f, p, id=i) for i, f, p in CHAT_ROWS])
def test_a_bad_chat_request_names_the_field(fields, param):
    error = refused({"model": "llama", "messages": HI, **fields})
    assert error.status == 400
    assert error.param == param
    assert error.type == "invalid_request_error"


COMPLETION_ROWS: list[tuple[str, dict[str, Any], str]] = [
    *((f"B74 {bad!r}"[:30], {"prompt": bad}, "prompt") for bad in
      (None, 1, {}, [], [[]], [1, "a"], [-1], [2**31], [1.0], [True], [[1], "a"], [[1], [-1]], [None],
       [["a"]])),
    ("echo", {"echo": "yes"}, "echo"),
    ("suffix", {"suffix": 1}, "suffix"),
    ("B65 logprobs", {"logprobs": 21}, "logprobs"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), [pytest.param(f, p, id=i) for i, f, p in COMPLETION_ROWS])
def test_a_bad_completion_names_the_field(fields, param):
    error = refused({"model": "llama", "prompt": "hi", **fields}, "completions")
    assert error.status == 400
    assert error.param == param


def test_media_parts_say_that_they_are_unsupported():
    with pytest.raises(UnsupportedByEngine):
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])


PRICED = a_snapshot(models=[a_model("llama", media_tokens=MediaTokens(image=576, audio=1500, file=100))])


def with_part(part: dict[str, Any]) -> Call:
    return read({"model": "llama", "messages": [{"role": "user", "content": [part]}]}, snapshot=PRICED)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,AAAA"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}},
    ],
)
def test_media_parts_that_have_a_cost_are_taken_as_they_are(part):
    """Their content travels within the request."""
    messages = with_part(part).request.messages
    assert messages is not None
    assert messages[0]["content"] == [part]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}},
        {"type": "image_url", "image_url": {"url": "DATA:,x"}},
        {"type": "image_url", "image_url": "data:image/png;base64,AAAA"},
        {"type": "image_url"},
        {"type": "image_url", "image_url": {"url": "data:,"}, "video_url": {"url": "http://10.0.0.1/"}},
        {"type": "image_url", "image_url": {"url": "data:,"}, "text": "x"},
        {"type": "input_audio", "input_audio": {"data": 1}},
        {"type": "file", "file": {"file_id": "f-1"}},
        {"type": "input_image", "image_url": "data:,"},
        {"type": "video_url", "video_url": {"url": "data:,"}},
        {"type": "image_embeds", "image_embeds": "AAAA"},
    ],
)
def test_no_engine_is_sent_to_fetch_something(part):
    """B72, where images have a cost too; and kinds without one stay unsupported."""
    with pytest.raises(BadRequest) as refused:
        with_part(part)
    assert refused.value.param == "messages[0].content[0]"


@pytest.mark.parametrize("name", ["unknown", "llama\nX: y", "../llama", 'llama"}', "LLAMA", "llama ", "*"])
def test_unknown_models_are_404(name):
    """B53, B54: no normalising, no globbing."""
    error = refused({"model": name, "messages": HI})
    assert isinstance(error, ModelNotFound)
    assert (error.status, error.param, error.code) == (404, "model", "model_not_found")
    assert "\n" not in error.message


def test_a_model_that_is_not_allowed_answers_as_an_unknown_one():
    """Word for word, but for the name: no probing."""
    body = {"model": "code", "messages": HI}
    with pytest.raises(ModelNotFound) as hidden:
        read(body, tenant=a_tenant(allow=Allow(models=("llama",))))
    with pytest.raises(ModelNotFound) as unknown:
        read({**body, "model": "coda"})
    assert hidden.value.message.replace("code", "coda") == unknown.value.message


def test_an_alias_is_allowed_by_its_models_name():
    assert read({"model": "llm", "messages": HI}, tenant=a_tenant(allow=Allow(models=("llama",))))


@pytest.mark.parametrize(("asked", "ok"), [("llama-9", True), ("code-9", False)])
def test_behind_the_wildcard_the_asked_name_decides(asked, ok):
    snapshot = a_snapshot(models=[a_model("*")], pools=[a_pool(serves={"*": "*"})])
    tenant = a_tenant(allow=Allow(models=("llama*",)))
    body = {"model": asked, "messages": HI}
    if ok:
        call = read(body, snapshot=snapshot, tenant=tenant)
        assert (call.model.name, call.asked_model) == ("*", asked)
    else:
        with pytest.raises(ModelNotFound):
            read(body, snapshot=snapshot, tenant=tenant)


# ------------------------------------------------------------------------------------------ properties

json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=8),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = [
    "model", "messages", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n",
    "stop", "service_tier", "priority", "temperature", "top_k", "logprobs", "top_logprobs", "logit_bias",
    "tools", "tool_choice", "response_format", "chat_template_kwargs", "seed", "user", "metadata", "suffix",
    "new_field",
]  # fmt: skip
almost_messages = st.lists(
    st.one_of(
        json_values,
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant", "tool", "x"]), "content": json_values},
            optional={"tool_calls": json_values, "name": json_values},
        ),
        st.fixed_dictionaries(
            {
                "role": st.just("user"),
                "content": st.lists(st.fixed_dictionaries({"type": json_values, "text": json_values})),
            }
        ),
    ),
    max_size=3,
)


@given(
    st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=8),
    st.one_of(st.none(), almost_messages),
    st.sampled_from(["chat", "completions"]),
    st.booleans(),
)
def test_arbitrary_bodies_never_raise_anything_else(body, messages, dialect, known_model):
    """And what passes can be encoded for an engine, or is told to be unsupported."""
    if known_model:
        body["model"] = "llama"
    if messages is not None:
        body["messages"] = messages
    try:
        call = read(body, dialect)
    except GatewayError as error:
        assert error.status in (400, 404)
        assert error.param is not None
        return
    assert (call.request.messages is None) == (dialect == "completions")
    assert 1 <= call.request.n <= MAX_CHOICES
    adapter = SNAPSHOT.pools["pool"].adapter
    if adapter.unsupported(call.request) is None:
        json.loads(adapter.encode(call.request).body)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (rb'{"a": "\ud83d"}', r"\ud83d at byte 7 is half of a surrogate pair"),
        (rb'{"a": "\uD83D and more of it"}', r"\uD83D at byte 7"),
        (rb'{"a": "\udc00\ud83d"}', r"\udc00 at byte 7"),
        (rb'{"a": "\\\\\ud800"}', r"\ud800 at byte 11"),
        (rb'{"a": "\ud83d\ude00 \ud83d\u0041"}', r"\ud83d at byte 20"),
    ],
)
def test_half_a_character_is_called_so(body: bytes, told: str):
    """A JSON decoder says that such a body is truncated, which sends its author looking elsewhere."""
    with pytest.raises(BadRequest) as refused:
        decode_body(body)
    assert told in refused.value.message
    assert "truncated" not in refused.value.message


@pytest.mark.parametrize("body", [rb'{"a": "\ud83d\ude00", "b": "x', rb'{"a": "\\ud83d", ]', b'{"a": "\\'])
def test_what_is_wrong_otherwise_is_told_otherwise(body: bytes):
    with pytest.raises(BadRequest) as refused:
        decode_body(body)
    assert "surrogate" not in refused.value.message


@given(
    st.text(st.sampled_from(["a", "é", "\\", '"', "😀", "\n"]), max_size=8),
    st.sampled_from(["\ud800", "\udfff"]),
)
def test_half_a_character_is_found_wherever_it_stands(text: str, half: str):
    """Behind any text, its escapes among them."""
    body = b'{"a": %b, "b": %b' % (json.dumps(text).encode(), json.dumps(half).encode())
    with pytest.raises(BadRequest, match=f"at byte {body.rindex(json.dumps(half)[1:-1].encode())} is half"):
        decode_body(body + b"}")


def test_looking_for_half_a_character_takes_no_time():
    for body in (b'{"a": "' + rb"\n" * 2_000_000, b'{"a": "' + rb"\ud83d\ude00" * 300_000, b"\\" * 4_000_000):
        begun = time.perf_counter()
        with pytest.raises(BadRequest):
            decode_body(body)
        assert time.perf_counter() - begun < 2
