# ruff: noqa: E501  # a row of a table here is a whole message
"""Schema problems: the sentence, the place, the nearest name; and that one fault hides no other."""

from collections.abc import Callable

import pytest

from tests.gateway.config.conftest import MINIMAL

Find = Callable[..., list[str]]


def changed(old: str, new: str) -> str:
    assert old in MINIMAL
    return MINIMAL.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("version: 1", "version: 2", ["1:10: version: 2 is not 1"]),
        ("version: 1", "vershion: 1", [
            "1:1: version: is missing", "1:1: unknown key 'vershion' (did you mean 'version'?)",
        ]),
        ("engine: openai", "engine: 3", ["6:13: pools.p.engine: 3 is not text; put it in quotes"]),
        ("engine: openai", "engine: [a]", ["6:5: pools.p.engine: this is not text"]),
        ("    engine: openai\n", "", ["5:3: pools.p.engine: is missing"]),
        ("engine: openai", "engine: openai\n    limitz: {}",
         ["7:5: pools.p: unknown key 'limitz' (did you mean 'limits'?)"]),
        ("engine: openai", "engine: openai\n    limits: {prompt: 1.5, total: 0, in_flight: '4'}", [
            "7:22: pools.p.limits.prompt: 1.5 is not a whole number",
            "7:34: pools.p.limits.total: 0 is less than 1",
            "7:48: pools.p.limits.in_flight: '4' is not a whole number",
        ]),
        ("engine: openai", "engine: openai\n    limits: {prompt: true, total: 99999999999999}", [
            "7:22: pools.p.limits.prompt: 'true' is not a whole number",
            "7:35: pools.p.limits.total: 99999999999999 is more than 1000000000000",
        ]),
        ("engine: openai", "engine: openai\n    timeouts: {idle_s: 0, total_s: .inf, send_s: 1e999, connect_s: -1}", [
            "7:24: pools.p.timeouts.idle_s: 0 is not more than 0",
            "7:36: pools.p.timeouts.total_s: '.inf' is not a number",
            "7:50: pools.p.timeouts.send_s: '1e999' is not a finite number",
            "7:68: pools.p.timeouts.connect_s: -1 is not more than 0",
        ]),
        ("engine: openai", "engine: openai\n    state: hott",
         ["7:12: pools.p.state: 'hott' is not hot, warm or cold (did you mean 'hot'?)"]),
        ("engine: openai", "engine: openai\n    upstream_stream: never",
         ["7:22: pools.p.upstream_stream: 'never' is not auto, always or client"]),
        ("serves: m", "serves: [m, m]", ["7:5: pools.p.serves: this names a model twice"]),
        ("serves: m", "serves: {m: 7}", ["7:17: pools.p.serves.m: 7 is not text; put it in quotes"]),
        ("serves: m", "serves: {}", ["7:5: pools.p.serves: this is empty"]),
        ("  p:\n", "  -p:\n", [("5:3: pools.-p: '-p' is not a name: letters, digits and . _ -, at most 64, "
                               "not beginning with . or -"),
                               "10:26: rules[0].pools[0]: 'p' is not a pool (did you mean '-p'?)"]),
        ("{kind: estimate}", "{kind: estimat}", [
            "3:25: models.m.tokenizer.kind: 'estimat' is not a kind of tokenizer (did you mean 'estimate'?)"]),
        ("{kind: estimate}", "{kind: engine}", ["3:7: models.m.tokenizer.pool: is missing"]),
        ("{kind: estimate}", "{kind: engine, pool: p, timeout_ms: 0}", [
            "3:54: models.m.tokenizer.timeout_ms: 0 is not more than 0"]),
        ("{kind: estimate}", "{kind: engine, pool: p}", [
            ("3:39: models.m.tokenizer.pool: 'p' cannot count: openai has no question for it "
            "(use huggingface, tiktoken or estimate)")]),
        ("{kind: estimate}", "{}", ["3:7: models.m.tokenizer.kind: is missing"]),
        ("{kind: estimate}", "{kind: tiktoken, path: .}", ["3:7: models.m.tokenizer.encoding: is missing"]),
        ("{kind: estimate}", "{kind: estimate, byte_per_token: 3}", [
            "3:35: models.m.tokenizer: unknown key 'byte_per_token' (did you mean 'bytes_per_token'?)"]),
        ("pools: [p]", "pools: [p, 3]", [
            "10:29: rules[0].pools[1]: 3 is neither a pool name, nor {POOL: weight}, nor {model: ..., pools: [...]}"]),
        ("pools: [p]", "pools: [p, {model: m, pool: [p]}]", [
            "10:29: rules[0].pools[1].pools: is missing",
            "10:40: rules[0].pools[1]: unknown key 'pool' (did you mean 'pools'?)"]),
        ("pools: [p]", "pools: p", ["10:25: rules[0].pools: 'p' is not a list"]),
        ("else, pools: [p]", "else, when: {prompt_tokens: {max: 5}}, pools: [p]", [
            "10:25: rules[0].when.prompt_tokens: names no bound: one or more of lt, lte, gt, gte",
            "10:41: rules[0].when.prompt_tokens: unknown key 'max' (valid: gt, gte, lt, lte)"]),
        ("else, pools: [p]", "else, when: {class: urgent, stream: yes}, pools: [p]", [
            "10:32: rules[0].when.class: 'urgent' is not interactive, standard or batch",
            "10:48: rules[0].when.stream: 'yes' is not true or false"]),
        ("rules:\n  - {name: else, pools: [p]}\n", "", ["1:1: rules: is missing"]),
        ("pools:\n  p:\n", "pools:\n  -\n", None),
        ("- {name: else, pools: [p]}", "- else", ["10:5: rules[0]: 'else' is not a mapping"]),
        ('[{id: r1, url: "http://127.0.0.1:9000"}]', '["http://127.0.0.1:9000"]',
         ["8:16: pools.p.replicas[0]: 'http://127.0.0.1:9000' is not a mapping"]),
        ('[{id: r1, url: "http://127.0.0.1:9000"}]', '{id: r1, url: "http://127.0.0.1:9000"}',
         ["8:5: pools.p.replicas: this is not a list"]),
        ('[{id: r1, url: "http://127.0.0.1:9000"}]', '[{id: r1, url: "ftp://h"}, {id: r1, url: "http://h", w: 1}]', [
            "8:30: pools.p.replicas[0].url: 'ftp://h' is not an http:// or https:// URL",
            "8:47: pools.p.replicas[1].id: 'r1' is the id of a replica already, in line 8",
            "8:68: pools.p.replicas[1]: unknown key 'w' (valid: id, url, weight)"]),
        ("keys:", "weight: 0, key:", [
            "12:15: tenants.t.weight: 0 is not more than 0",
            "12:18: tenants.t: unknown key 'key' (did you mean 'keys'?)"]),
    ],
)  # fmt: skip
def test_schema_problems(problems: Find, old: str, new: str, expected: list[str] | None) -> None:
    """The whole list: nothing is missing and nothing is said twice."""
    found = problems(changed(old, new))
    if expected is None:
        assert found
    else:
        assert found == expected


@pytest.mark.parametrize("text", ["[]", "3", "null", "version"])
def test_a_file_that_is_no_mapping_is_one_problem(problems: Find, text: str) -> None:
    assert problems(text) == ["1:1: the file is not a mapping of version, models, pools, rules and tenants"]


def test_a_variable_may_be_a_number_a_flag_or_text(try_load: Callable[..., tuple]) -> None:
    text = changed(
        "engine: openai", "engine: openai\n    limits: {in_flight: '${N:-64}', total: '${NONE:-}'}"
    )
    text = text.replace("else, pools", "else, when: {stream: '${S}'}, pools")
    text = text.replace(
        "serves: m", 'serves: m\n    upstream: {api_key: "${KEY}"}\n    labels: {n: "${N:-7}"}'
    )
    snapshot, problems, _ = try_load(text, {"S": "true", "KEY": "12345"})
    assert not problems
    pool = snapshot.pools["p"]
    assert (pool.limits.in_flight, pool.limits.total) == (64, None)
    assert snapshot.rules[0].when.stream is True
    assert pool.upstream.api_key == "12345"
    assert pool.labels["n"] == "7"


def test_an_unset_variable_is_the_only_problem_of_its_value(problems: Find) -> None:
    text = changed("engine: openai", 'engine: ${ENGINE}\n    limits: {total: "${TOTAL}"}')
    assert problems(text) == [
        "6:13: pools.p.engine: the environment variable ENGINE is not set, and there is no default",
        "7:21: pools.p.limits.total: the environment variable TOTAL is not set, and there is no default",
    ]
