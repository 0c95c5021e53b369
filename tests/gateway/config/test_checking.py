# ruff: noqa: E501  # a row of a table here is a whole message
"""Cross checks: names, chains, engines, files, and what is only worth a warning."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.config.conftest import MINIMAL

Find = Callable[..., list[str]]
DIGEST = "0" * 64

TWO = """\
version: 1
models:
  a: {tokenizer: {kind: estimate}, context: 8192}
  b: {tokenizer: {kind: estimate}, aliases: [bee]}
pools:
  pa:
    engine: trtllm
    serves: a
    replicas: [{id: a1, url: "http://127.0.0.1:9001"}]
    labels: {environment: prod}
  pb:
    engine: openai
    serves: {b: b}
    replicas: [{id: b1, url: "http://127.0.0.1:9002"}]
rules:
  - name: first
    when: {model: a}
    pools: [pa]
  - name: else
    pools: [pb]
tenants:
  t:
    keys: [{id: k, hash: "sha256:0000000000000000000000000000000000000000000000000000000000000000"}]
"""


def found(lines: list[str]) -> list[str]:
    """Without the places, which other tests check."""
    return [line.split(": ", 1)[1] for line in lines]


def changed(*changes: tuple[str, str], text: str = TWO) -> str:
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def test_the_file_that_the_others_change_is_good(warnings_of: Find) -> None:
    assert warnings_of(TWO) == []
    assert warnings_of(MINIMAL) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # Names.
        ([("{model: a}", "{model: aa}")], ["rules[0].when.model: 'aa' is not a declared model (did you mean 'a'?)"]),
        ([("{model: a}", "{model: [a, be]}")], [
            "rules[0].when.model[1]: 'be' is not a declared model (did you mean 'bee'?)"]),
        ([("{model: a}", "{tenant: tt, model: a}")], ["rules[0].when.tenant: 'tt' is not a tenant (did you mean 't'?)"]),
        ([("[pa]", "[pc]")], ["rules[0].pools[0]: 'pc' is not a pool (valid: pa, pb)"]),
        ([("engine: openai", "engine: openai\n    lends_to: [pc, pb, pa, pa]")], [
            "pools.pb.lends_to[0]: 'pc' is not a pool (valid: pa, pb)",
            "pools.pb.lends_to[1]: 'pb' is this pool itself",
            "pools.pb.lends_to[3]: 'pa' is named twice"]),
        ([("name: else", "name: first")], ["rules[1].name: 'first' is the name of a rule already, in line 16"]),
        ([("serves: a", "serves: [a, c]")], ["pools.pa.serves[1]: 'c' is not a declared model (valid: a, b)"]),
        ([("aliases: [bee]", "aliases: [a, bee, bee, '*']")], [
            "models.b.aliases[0]: 'a' is the name of a model already",
            "models.b.aliases[2]: 'bee' is an alias already, in line 4",
            "models.b.aliases[3]: '*' is no alias; declare a model of this name"]),
        ([("id: b1", "id: a1")], ["pools.pb.replicas[0].id: 'a1' is the id of a replica already, in line 9"]),
        ([('9001"}]', '9001"}, {id: a2, url: "http://127.0.0.1:9001/"}]')], [
            "pools.pa.replicas[1].url: the same engine as in line 9"]),
        # Overload.
        ([("pools: [pa]", "pools: [pa]\n    overload: [{when: {}, n: 1}, {when: {waiting: 3}}]")], [
            "rules[0].overload[0].when: names no signal: queue_wait_ms, waiting, or both",
            "rules[0].overload[1]: takes nothing: one or more of max_tokens, n, class, model"]),
        ([("pools: [pa]", "pools: [pa]\n    overload: [{when: {waiting: 3}, model: b}, {when: {waiting: 9}, n: 1, pools: [pb]}]")], [
            "rules[0].overload[0].model: 'b' has no pools: no pool of the chain serves it (add `pools`)",
            "rules[0].overload[1].pools: there is no `model` that they would serve"]),
        ([("pools: [pa]", "pools: [pa]\n    overload: [{when: {waiting: 3}, model: c}, {when: {waiting: 9}, model: b, pools: [pa, pc, pb]}]")], [
            "rules[0].overload[0].model: 'c' is not a declared model (valid: a, b)",
            "rules[0].overload[1].pools[0]: pool pa does not serve b (pools that do: pb)",
            "rules[0].overload[1].pools[1]: 'pc' is not a pool (valid: pa, pb)"]),
        ([("tenants:", "classes:\n  batch: {overload: [{when: {waiting: 3}, model: b}]}\n  urgent: {}\ntenants:")], [
            "classes.batch.overload[0].model: 'b' has no pools: a class has no chain (add `pools`)",
            "classes.urgent: 'urgent' is not interactive, standard or batch"]),
        # Chains.
        ([("[pa]", "[pa, pb]")], ["rules[0].pools[1]: pool pb does not serve a (pools that do: pa)"]),
        ([("[pa]", "[pa, pa]")], ["rules[0].pools[1]: pool pa is in this chain already, for the same model"]),
        ([("[pa]", "[pa, {model: a, pools: [pa]}]")], [
            "rules[0].pools[1].pools[0]: pool pa is in this chain already, for the same model"]),
        ([("[pa]", "[pa, {model: b, pools: [pb, pb]}]")], [
            "rules[0].pools[1].pools[1]: pool pb is in this chain already, for the same model"]),
        ([("[pa]", "[pa, {model: bee, pools: [pb]}]")], [
            "rules[0].pools[1].model: 'bee' is not a declared model (valid: a, b)"]),
        ([("[pa]", "[{model: b, pools: [pa]}]")], [
            "models.a: no rule sends this model to a pool that serves it",
            "rules[0].pools[0].pools[0]: pool pa does not serve b (pools that do: pb)"]),
        ([("pools: [pb]", "pools: [pa]")], [
            "models.b: no rule sends this model to a pool that serves it",
            "rules[1].pools[0]: pool pa serves none of the models that reach this rule (they are b)"]),
        ([("  - name: else\n    pools: [pb]\n", "")], ["models.b: no rule sends this model to a pool that serves it"]),
        ([("{model: a}", "{prompt_tokens: {}}")], [
            "rules[0].when.prompt_tokens: names no bound: one or more of lt, lte, gt, gte"]),
        # Engines.
        ([("engine: trtllm", "engine: trt")], ["pools.pa.engine: 'trt' is not an engine kind (did you mean 'trtllm'?)"]),
        ([("engine: trtllm", "engine: triton\n    options: {text_mode: deltaa, add_specialtokens: 1}")], [
            "pools.pa.options.text_mode: bad value 'deltaa' (did you mean 'delta'?)",
            "pools.pa.options.add_specialtokens: unknown option of triton (did you mean 'add_special_tokens'?)"]),
        ([("engine: trtllm", "engine: trtllm\n    relay: raw")], [
            "pools.pa.relay: 'raw' is not possible: trtllm's answers need patching (use auto)"]),
        ([("engine: trtllm", "engine: tgi\n    relay: patched")], [
            "pools.pa.relay: 'patched' is not possible: tgi answers are translated (use auto)"]),
        ([("engine: trtllm", "engine: tgi\n    doors: [chat, embeddings]")], [
            "pools.pa.doors[1]: 'embeddings' is not possible: tgi serves chat, completions"]),
        ([("serves: {b: b}", "serves: {b: bert}\n    relay: raw")], [
            "pools.pb.relay: 'raw' would show the engine's own name for b (use auto, or equal names in serves)"]),
        ([("a: {tokenizer: {kind: estimate}", "a: {tokenizer: {kind: engine, pool: pc}")], [
            "models.a.tokenizer.pool: 'pc' is not a pool (valid: pa, pb)"]),
        ([("a: {tokenizer: {kind: estimate}", "a: {tokenizer: {kind: engine, pool: pb}")], [
            "models.a.tokenizer.pool: 'pb' does not serve a",
            ("models.a.tokenizer.pool: 'pb' cannot count: openai has no question for it "
            "(use huggingface, tiktoken or estimate)")]),
        # Numbers that contradict each other.
        ([("serves: a", "serves: a\n    limits: {prompt: 5000, total: 4096}")], [
            "pools.pa.limits.prompt: 5000 is more than the total, 4096"]),
        ([("context: 8192", "context: 8192, count: auto")], [
            "models.a.count: 'auto' wants a tokenizer that counts; `estimate` does not"]),
        ([("context: 8192", "context: 8192, max_tokens: {default: 9, ceiling: 5}")], [
            "models.a.max_tokens.default: 9 is more than the ceiling, 5"]),
        ([("context: 8192", "defaults: {temperature: 1, stream: true, max_tokens: 7}")], [
            "models.a.defaults.stream: the gateway sets this field itself",
            "models.a.defaults.max_tokens: the gateway sets this field itself (use max_tokens.default)"]),
        # Tenants.
        ([("  t:\n", "  t:\n    class: interactive\n    max_class: batch\n")], [
            "tenants.t.class: class interactive is above max_class batch"]),
        ([("  t:\n", "  t:\n    max_class: batch\n")], [
            "tenants.t.max_class: class standard is above max_class batch"]),
        ([("  t:\n", "  t:\n    allow: {models: [a, bb, 'x*'], environmint: [prod]}\n")], [
            "tenants.t.allow.models[1]: 'bb' is not a declared model (did you mean 'b'?)",
            ("tenants.t.allow.environmint: no pool has a label 'environmint', so this would allow nothing "
            "(did you mean 'environment'?)")]),
        ([(f'"sha256:{DIGEST}"}}]', f'"sha256:{DIGEST}"}}, {{id: k, hash: "sha256:{DIGEST}"}}]')], [
            "tenants.t.keys[1].id: the same as in line 23",
            "tenants.t.keys[1].hash: the same as in line 23"]),
        # Lengths.
        ([("{model: a}", "{model: a, estimated_total_tokens: {gt: 5, if_clamped: 16}}")], [
            "rules[0].when.estimated_total_tokens.if_clamped: there is no bound to clamp to: lt or lte"]),
        ([("{model: a}", "{model: a, estimated_total_tokens: {lt: 17, if_clamped: 16}}")], [
            "rules[0].when.estimated_total_tokens.if_clamped: 16 leaves no prompt below 17"]),
        ([("{model: a}", "{model: a, estimated_total_tokens: {if_clamped: 16}}")], [
            "rules[0].when.estimated_total_tokens: names no bound: one or more of lt, lte, gt, gte"]),
        ([("context: 8192", "context: 8192, media_tokens: {per_detail: {low: 85}}")], [
            "models.a.media_tokens.per_detail: is of images; `image` is for those without"]),
        ([("context: 8192", "context: 8192, max_tokens: {margin: 8192}")], [
            "models.a.max_tokens.margin: 8192 leaves nothing of the context, 8192 tokens"]),
        # The server.
        ([("version: 1\n", "version: 1\nserver: {listen: '127.0.0.1:8081'}\n")], [
            "server.admin: this is the address of `listen` too"]),
        ([("version: 1\n", "version: 1\nserver: {redis_url: 'http://u:hunter2@h'}\n")], [
            ("server.redis_url: redis_url begins with redis://, rediss://, unix://, redis+sentinel://, "
            "redis+cluster://")]),
        ([("version: 1\n", "version: 1\nserver: {listen: '0.0.0.0:80', authentication: off}\n")], [
            ("server.authentication: 'off' lets everyone in who reaches `listen`, which is not a loopback address "
            "(--insecure allows it)")]),
        # Upstream.
        ([("serves: a", "serves: a\n    upstream: {headers: {Host: x, X-Ok: y}, api_key: 'a b'}")], [
            "pools.pa.upstream.headers: a header that the gateway sets itself",
            "pools.pa.upstream.api_key: the key has a blank or a character that no header can hold"]),
        ([("serves: a", "serves: a\n    upstream: {api_key: k, api_key_file: k}")], [
            "pools.pa.upstream.api_key_file: api_key is given too; one of them"]),
        # Roll-outs.
        ([("pools: [pa]", "pools: [{pa: 0}, {pe: 1, pa: 3}]")], [
            "rules[0].pools[1].pe: 'pe' is not a pool (valid: pa, pb)",
            "rules[0].pools[1].pa: pool pa is in this chain already, for the same model"]),
        ([("pools: [pa]", "pools: [{pa: 70}, {pb: -3}]")], [
            "rules[0].pools[1].pb: -3 is less than 0"]),
        ([("pools: [pa]", "pools: [{pa: 0}]\n    mirror: {pool: pb, share: 1}")], [
            "rules[0].pools[0]: no pool of this split gets anything: all weights are 0",
            "rules[0].mirror.pool: pool pb does not serve a (pools that do: pa)"]),
        ([("serves: a", "serves: a\n    upstream: {api_key_file: no/such, ca_file: ca.pem}")], [
            ("pools.pa.upstream.api_key_file: cannot be read: No such file or directory "
            "(paths count from this file's directory)"),
            "pools.pa.upstream.ca_file: the value is not a file (paths count from this file's directory)"]),
    ],
)  # fmt: skip
def test_cross_checks(problems: Find, changes: list[tuple[str, str]], expected: list[str]) -> None:
    """One mistake, its problems, and no other."""
    assert found(problems(changed(*changes))) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([("{model: a}", "{model: [a, b]}"), ("[pa]", "[pc]"), ("  pb:", "  pc: &p"), ("serves: {b: b}", "serves: [a, b]"),
          ("pools: [pb]", "pools: [pc]")], [
            "pools.pa: no rule sends anything to this pool",
            "rules[1]: this rule never matches: rules above take all it asks for, or its bounds exclude all"]),
        ([("pools: [pa]", "pools: [pa]\n  - {name: late, when: {model: a, stream: true}, pools: [pa]}")], [
            "rules[1]: this rule never matches: rules above take all it asks for, or its bounds exclude all"]),
        ([("pools: [pa]", "pools: [pa]\n  - {name: none, when: {model: b, prompt_tokens: {gt: 5, lt: 3}}, pools: [pb]}")], [
            "rules[1]: this rule never matches: rules above take all it asks for, or its bounds exclude all"]),
        ([("{model: a}", "{model: a, stream: true}")], [
            "rules[1].pools: requests for a reach this rule, but no pool of its chain serves them"]),
        ([("- name: else", "- name: else\n    when: {model: bee, class: [batch, standard]}")], [
            "models.b: some requests for this model match no rule, and get an error"]),
        ([("serves: a", "serves: a\n    limits: {total: 9000}")], [
            "pools.pa.limits.total: more than the 8192 tokens of a's context; that is the bound then"]),
        ([("context: 8192", "context: 8192, max_tokens: {ceiling: 9000}")], [
            "models.a.max_tokens.ceiling: more than the model's context of 8192 tokens; that is the bound then"]),
        ([("9002", "9001")], [
            "pools.pb.replicas[0].url: the same engine as in line 9; neither pool sees the other's load"]),
        ([("a: {tokenizer: {kind: estimate}", "a: {tokenizer: {kind: engine, pool: pa}"),
          ("serves: a", "serves: a\n    state: cold")], [
            "models.a.tokenizer.pool: trtllm counts texts only; chats are estimated",
            "models.a.tokenizer.pool: the pool is cold: it is not asked, and prompts are estimated"]),
        ([("pools: [pa]", "pools: [pa]\n    after_ms: 50")], [
            "rules[0].after_ms: has no effect unless `on` has overloaded"]),
        ([("engine: openai", "engine: openai\n    lends_to: [pa]")], [
            "pools.pb.lends_to[0]: no rule's chain goes on from pa to pb: nothing is lent"]),
        ([("pools: [pa]", "pools: [{pa: 5}]\n    sticky: request")], [
            "rules[0].pools[0]: a weight has no effect unless a neighbour has one too"]),
        ([("pools: [pa]", "pools: [pa]\n    sticky: session\n    mirror: {pool: pa, share: 0.5}")], [
            "rules[0].sticky: has no effect unless `pools` has weights",
            "rules[0].mirror.pool: pool pa is in this chain too: it computes answers twice"]),
        ([("  t:\n", "  t:\n    allow: {environment: [prod, prd]}\n")], [
            "tenants.t.allow.environment[1]: no pool has this label as 'prd' (did you mean 'prod'?)"]),
        ([(f'[{{id: k, hash: "sha256:{DIGEST}"}}]', "[]")], [
            "tenants: no tenant has a key, so every request will be answered 401"]),
    ],
)  # fmt: skip
def test_what_is_allowed_but_hardly_meant(
    warnings_of: Find, changes: list[tuple[str, str]], expected: list[str]
) -> None:
    assert found(warnings_of(changed(*changes))) == expected


def test_two_halves_of_a_model_leave_nothing_for_a_third_rule(warnings_of: Find) -> None:
    text = changed(
        ("{model: a}", "{model: a, estimated_total_tokens: {lte: 100}}"),
        (
            "pools: [pa]",
            (
                "pools: [pa]\n  - {name: more, when: {model: a, estimated_total_tokens: {gt: 100}}, pools: [pa]}"
                "\n  - {name: rest, when: {model: a}, pools: [pa]}"
            ),
        ),
    )
    assert [line.split(": ")[1] for line in warnings_of(text)] == ["rules[2]"]


def test_a_fault_in_a_pool_hides_no_dangling_name_elsewhere(problems: Find) -> None:
    """And what may only be unreadable is not called missing: pa's `serves` is, so nothing is said of `a`."""
    text = changed(
        ("serves: a", "serves: [1]"), ("pools: [pb]", "pools: [pd]"), ("  t:\n", "  t:\n    weight: x\n")
    )
    assert found(problems(text)) == [
        "pools.pa.serves: this is not a mapping",
        "rules[1].pools[0]: 'pd' is not a pool (valid: pa, pb)",
        "tenants.t.weight: 'x' is not a number",
    ]


def test_a_section_that_cannot_be_read_declares_unknown_names_not_none(problems: Find) -> None:
    text = TWO[: TWO.index("pools:\n")] + "pools: []\n" + TWO[TWO.index("rules:\n") :]
    assert found(problems(text)) == ["pools: this is not a mapping"]


def test_an_undeclared_model_may_be_declared_as_a_star(problems: Find) -> None:
    text = changed(("  b: {", "  '*': {"), ("serves: {b: b}", "serves: {'*': any}"))
    assert problems(text) == []


def test_insecure_is_a_decision_of_the_command_line(problems: Find) -> None:
    text = changed(("version: 1\n", "version: 1\nserver: {listen: '0.0.0.0:80', authentication: off}\n"))
    assert problems(text, force_open=True) == []
    assert problems(text.replace("0.0.0.0", "localhost")) == []


def test_files_count_from_the_directory_of_the_file(problems: Find, tmp_path: Path) -> None:
    text = changed(
        (
            "a: {tokenizer: {kind: estimate}",
            "a: {tokenizer: {kind: huggingface, path: tok, chat_template: t.jinja}",
        ),
        ("b: {tokenizer: {kind: estimate}", "b: {tokenizer: {kind: tiktoken, encoding: e, path: v.tiktoken}"),
    )
    assert found(problems(text)) == [
        "models.a.tokenizer.path: 'tok' is not a directory (paths count from this file's directory)",
        "models.a.tokenizer.chat_template: 't.jinja' is not a file (paths count from this file's directory)",
        "models.b.tokenizer.path: 'v.tiktoken' is not a file (paths count from this file's directory)",
    ]
    (tmp_path / "tok").mkdir()
    for name in ("t.jinja", "v.tiktoken"):
        (tmp_path / name).touch()
    assert problems(text) == []


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\xff", b"two words", b"x" * 70_000, b"tab\tbed", b"\xc3\xa9"]
)
def test_bad_secret_files(problems: Find, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    lines = problems(changed(("serves: a", "serves: a\n    upstream: {api_key_file: key}")))
    assert len(lines) == 1
    assert "upstream.api_key_file: " in lines[0]
    assert "words" not in lines[0]


# --------------------------------------------------------------------------------------------- waking


def pool(text: str, engine: str = "openai") -> str:
    """MINIMAL with more lines in its pool."""
    lines = "".join(f"\n    {line}" for line in text.splitlines())
    return MINIMAL.replace("engine: openai", f"engine: {engine}{lines}")


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("wake: engine", "openai knows no sleep (those that do: triton, vllm; else use http, command or"),
        ("wake: {kind: http, wake: [{path: load}]}", "is not a path"),
        ("wake: {kind: http, wake: [{path: /x, headers: {Host: x}}]}", "header that the gateway sets itself"),
        ("wake: {kind: http, wake: [{path: /x}]}\nidle_after_s: 5", "nothing puts this pool to sleep"),
        ("wake: {kind: http}", "wake"),
        ("wake: {kind: kubernetes, name: Big_One}", "is not a name of Kubernetes"),
        ("wake: {kind: command, wake: rm -rf}", "is not a list"),
        ("wake: kubernets", "'kubernets' is not a kind of wake (did you mean 'kubernetes'?)"),
        ("warm_up: {common_prefixes: 99}", "is more than 32"),
    ],
)
def test_what_cannot_wake(problems: Callable[..., list[str]], written: str, problem: str) -> None:
    found = problems(pool(written))
    assert any(problem in line for line in found), found


@pytest.mark.parametrize(
    ("written", "warning"),
    [
        ("state: warm", "is as hot: nothing wakes this pool"),
        ("idle_after_s: 5", "has no effect: nothing wakes this pool"),
        ("wake: engine\nwake_timeout_s: 100", "requests are held for 60 s at most"),
    ],
)
def test_what_hardly_was_meant_by_waking(
    warnings_of: Callable[..., list[str]], written: str, warning: str
) -> None:
    assert any(warning in line for line in warnings_of(pool(written, "vllm")))


@pytest.mark.parametrize(
    ("written", "timeout", "idle_after"),
    [
        ("wake: engine", 60.0, None),
        ("state: warm\nwake: engine", 60.0, 900.0),
        ("state: cold\nwake: {kind: kubernetes, name: big}", 600.0, 900.0),
        ("state: cold\nwake: {kind: command, wake: [start]}", 600.0, None),
        ("state: warm\nwake: engine\nwake_timeout_s: 5\nidle_after_s: 7", 5.0, 7.0),
    ],
)
def test_what_is_meant_where_nothing_is_said(
    try_load: Callable[..., Any], written: str, timeout: float, idle_after: float | None
) -> None:
    snapshot, problems, _ = try_load(pool(written, "vllm"))
    assert not problems
    activation = snapshot.pools["p"].activation
    assert (activation.timeout, activation.idle_after) == (timeout, idle_after)
    assert activation.while_waking == "hold"


def test_a_bound_on_generations_that_whole_answers_escape(try_load):
    """What is not seen as it is made cannot be cut."""
    text = MINIMAL.replace(
        "serves: m\n", "serves: m\n    max_generation_ms: 500\n    upstream_stream: client\n"
    )
    snapshot, problems, warnings = try_load(text)
    assert (snapshot.pools["p"].max_generation, problems) == (0.5, ())
    assert "max_generation_ms" in str(warnings[0])
