"""The whole way: the shipped file, everything wrong at once, hostile files, secrets, immutability."""

import copy
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.config.loading import ConfigInvalid, load, load_with_warnings
from gateway.config.snapshot import Hop, OverloadStep, PriorityClass, Range, Snapshot
from tests.gateway.config.conftest import MINIMAL, REPO, Loaded, TinyRegistry

GOLDEN = Path(__file__).parent / "golden"
SHIPPED = (REPO / "routes.yaml").read_text()


@pytest.fixture(scope="session")
def shipped_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the shipped file beside an empty tokenizer directory: only its presence is checked."""
    directory = tmp_path_factory.mktemp("shipped")
    (directory / "deploy/tokenizers/headgate-mini").mkdir(parents=True)
    shutil.copy(REPO / "routes.yaml", directory)
    return directory


@pytest.fixture
def shipped(shipped_dir: Path) -> Snapshot:
    snapshot, warnings = load_with_warnings(shipped_dir / "routes.yaml", TinyRegistry(), environ={})
    assert warnings == ()
    return snapshot


# ------------------------------------------------------------------------------------ the shipped file


def test_the_shipped_rules_are_those_of_the_design(shipped: Snapshot) -> None:
    short, long, code, poet, rest = shipped.rules
    assert short.when.model == long.when.model == ("llama3-8b-ru",)
    assert short.when.estimated_total_tokens == Range(lte=4096)
    assert short.chain == (Hop("short-pool"), Hop("long-pool"))
    assert long.chain == (Hop("long-pool"),)
    assert (code.when.model, code.chain) == (("code-7b",), (Hop("code-pool"),))
    assert (poet.when.model, poet.chain) == (("poet-13b",), (Hop("poet-pool"),))
    assert (rest.when.model, rest.chain) == ((), (Hop("default-pool"),))
    assert {name: pool.engine for name, pool in shipped.pools.items()} == {
        "short-pool": "trtllm", "long-pool": "triton", "code-pool": "tgi", "default-pool": "trtllm",
        "poet-pool": "vllm",
    }  # fmt: skip


def test_the_shipped_keys_are_those_of_its_comments(shipped: Snapshot) -> None:
    """And they are the only demo keys there are."""
    for tenant, key in (
        ("acme", "hg-demo-acme-000000000000000000000000"),
        ("globex", "hg-demo-globex-0000000000000000000000"),
    ):
        assert f"#   {tenant:<8} {key}\n" in SHIPPED
        owner, found = shipped.keys[hashlib.sha256(key.encode()).hexdigest()]
        assert (owner.name, found.id) == (tenant, "demo")
    assert len(shipped.keys) == 2


def test_the_shipped_values_arrive_in_their_units(shipped: Snapshot, shipped_dir: Path) -> None:
    assert shipped.source == str(shipped_dir / "routes.yaml")
    assert shipped.hash == hashlib.sha256((shipped_dir / "routes.yaml").read_bytes()).hexdigest()
    assert shipped.server.listen == ("127.0.0.1", 8080)
    assert shipped.server.state == str(shipped_dir / ".headgate")
    assert shipped.server.max_body == 4 * 1024 * 1024
    model = shipped.model("llama3-ru")
    assert model is shipped.models["llama3-8b-ru"]
    assert model.tokenizer.path == str(shipped_dir / "deploy/tokenizers/headgate-mini")
    assert model.defaults == {"temperature": 0.7}
    long = shipped.pools["long-pool"]
    assert long.serves == {"llama3-8b-ru": "ensemble"}
    assert (long.relay, long.timeouts.first_token, long.timeouts.idle) == ("translated", 300, 30)
    assert long.adapter.options == {"text_mode": "delta"}
    assert shipped.pools["short-pool"].relay == "patched"
    assert shipped.pools["code-pool"].upstream.api_key is None
    globex = shipped.tenants["globex"]
    assert [(limit.name, limit.amount, limit.per) for limit in shipped.limits if "acme" in limit.tenants] == [
        ("acme.tokens-per-minute", 200_000, 60),
        ("acme.requests-per-minute", 600, 60),
    ]
    assert (globex.max_class, globex.max_tokens) == (PriorityClass.standard, 1024)
    assert globex.allow.model("llama3-8b-ru")
    assert not globex.allow.model("code-7b")
    assert shipped.model("gpt-4") is None


def test_the_shipped_file_listens_and_sends_where_the_environment_says(shipped_dir: Path) -> None:
    environ = {"HEADGATE_LISTEN": "0.0.0.0:80", "SHORT_POOL_2_URL": "HTTP://Gpu2:8000/", "TGI_KEY": "hunter2"}
    snapshot = load(shipped_dir / "routes.yaml", TinyRegistry(), environ=environ)
    assert snapshot.server.listen == ("0.0.0.0", 80)
    assert [replica.url for replica in snapshot.pools["short-pool"].replicas] == [
        "http://127.0.0.1:9101",
        "http://gpu2:8000",
    ]
    assert snapshot.pools["code-pool"].upstream.api_key == "hunter2"
    assert "hunter2" not in repr(snapshot)


# --------------------------------------------------------------------------------- everything at once


def test_every_mistake_is_told_at_once_with_its_line() -> None:
    """The list is the golden file, word by word; a person can read it beside wrong.yaml."""
    with pytest.raises(ConfigInvalid) as caught:
        load(GOLDEN / "wrong.yaml", TinyRegistry(), environ={})
    assert str(caught.value).splitlines() == (GOLDEN / "wrong.txt").read_text().splitlines()
    assert len(caught.value.problems) > 15


def test_each_golden_problem_is_in_the_line_of_its_mistake() -> None:
    """Every problem's line holds the last word of its path, or the value it quotes."""
    lines = (GOLDEN / "wrong.yaml").read_text().splitlines()
    with pytest.raises(ConfigInvalid) as caught:
        load(GOLDEN / "wrong.yaml", TinyRegistry(), environ={})
    for problem in caught.value.problems:
        key = problem.path.rpartition(".")[2].partition("[")[0]
        quoted = problem.message.split("'")[1] if "'" in problem.message else "\0"
        line = lines[problem.line - 1]
        assert key in line or quoted in line or problem.path.startswith("rules["), problem


# --------------------------------------------------------------------------------------- hostile files


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: &a [x,x]\nb: &b [*a,*a]\n" + b"".join(
            b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(ord("c"), ord("l"))
        ), "repeated by aliases"),
        (b"version: 1\n\tserver: {}\n", "a tab"),
        (MINIMAL.replace("engine: openai", "engine: openai\n    engine: tgi").encode(), "given twice"),
        (MINIMAL.replace("openai", "!!python/object/apply:os.system [id]").encode(), "tags are not used"),
        (b"#" * (100 * 1024 * 1024), "larger than 4 MiB"),
        (MINIMAL.replace("engine:", "engin:").encode(), "unknown key 'engin' (did you mean 'engine'?)"),
        (MINIMAL.replace("openai", "${ENGINE}").encode(), "ENGINE is not set"),
        (b"", "empty"),
        (b"\xff\xfe", "UTF-8"),
    ],
)  # fmt: skip
def test_hostile_files(try_load: Callable[..., Loaded], content: bytes, words: str) -> None:
    """Bombs, tabs, duplicates, tags, size, unknown keys, unset variables: each said in one clear line."""
    snapshot, problems, _ = try_load(content)
    assert snapshot is None
    assert any(words in str(problem) for problem in problems)
    assert all(len(str(problem).splitlines()) == 1 and len(str(problem)) < 400 for problem in problems)


def test_a_file_that_is_not_there_is_a_problem_too(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(ConfigInvalid, match="cannot be read: "):
            load(path, TinyRegistry())


MUTANTS = (
    "{", "}", "[", "]", ":", ": ", "-", "\n", "\n  ", "\t", "#", "&a ", "*a", "!!int ", "'", '"', "${", "$$",
    "%",
    "null", "true", "-1", "0", "1e400", "99999999999999999999", "[]", "{}", "~", "\x00", "é", "<<: ",
    "? ", "|\n", "*",
)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """The shipped file with a few lines, words or characters removed, doubled, swapped or replaced."""
    text = SHIPPED
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["drop", "double", "swap", "word", "insert", "cut"]))
        lines = text.splitlines(keepends=True) or [""]
        index = draw(st.integers(0, len(lines) - 1))
        if kind == "drop":
            del lines[index]
        elif kind == "double":
            lines.insert(index, lines[index])
        elif kind == "swap":
            other = draw(st.integers(0, len(lines) - 1))
            lines[index], lines[other] = lines[other], lines[index]
        elif kind == "word":
            key, colon, _ = lines[index].partition(": ")
            lines[index] = f"{key}{colon}{draw(st.sampled_from(MUTANTS))}\n"
        else:
            place = draw(st.integers(0, len(lines[index])))
            end = place + (draw(st.integers(0, 8)) if kind == "cut" else 0)
            new = draw(st.sampled_from(MUTANTS)) if kind == "insert" else ""
            lines[index] = lines[index][:place] + new + lines[index][end:]
        text = "".join(lines)
    return text


ODD: list[Any] = [
    None, True, 0, -1, 1.5, 10**20, "", "x", "*", "${X}", "a b", [], {}, [[]], [None], ["x"], [{}], {"x": {}},
    {"model": 1}, [{"model": "x", "pools": "x"}], {"id": 1, "url": []}, {"kind": []}, {"kind": "huggingface"},
]  # fmt: skip


@st.composite
def misshapen(draw: st.DrawFn) -> str:
    """The shipped file with values of any shape in a few places, as JSON, which is YAML."""
    root: dict[str, Any] = yaml.safe_load(SHIPPED)
    for _ in range(draw(st.integers(1, 4))):
        node: Any = root
        while True:
            if not (isinstance(node, dict | list) and node):
                break
            key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            if not (isinstance(node[key], dict | list) and node[key]) or draw(st.integers(0, 3)) == 0:
                node[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
                break
            node = node[key]
    return json.dumps(root, indent=1)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(mutated(), misshapen()))
def test_a_mutated_file_loads_or_tells_its_problems(text: str, shipped_dir: Path) -> None:
    """Never another exception, never a line outside the file, never pydantic's own words."""
    path = shipped_dir / f"mutated-{os.getpid()}.yaml"
    path.write_bytes(text.encode())
    try:
        load(path, TinyRegistry(), environ={})
    except ConfigInvalid as error:
        assert error.problems
        for problem in (*error.problems, *error.warnings):
            assert 1 <= problem.line <= max(1, len(text.splitlines()))
            assert problem.column >= 1
            assert problem.message
            assert "Input should" not in problem.message
            assert "\n" not in str(problem)


# --------------------------------------------------------------------------------------------- secrets


SECRETIVE = [
    ("engine: openai", "engine: openai\n    upstream: {api_key: [%s]}"),
    ("engine: openai", "engine: openai\n    upstream: %s"),
    ("engine: openai", "engine: openai\n    upstream: {api_key_file: %s}"),
    ("engine: openai", "engine: openai\n    upstream: {ca_file: %s}"),
    ("engine: openai", "engine: openai\n    upstream: {%s: x}"),
    ("engine: openai", "engine: openai\n    upstream: {headers: {Authorization: [%s]}}"),
    ("engine: openai", 'engine: openai\n    upstream: {headers: {"Bearer %s": x}}'),
    ("engine: openai", 'engine: openai\n    upstream: {headers: {Authorization: "%s\\n"}}'),
    ("engine: openai", 'engine: openai\n    upstream: {api_key: "%s %s"}'),
    ("engine: openai", 'engine: "${SECRET}"'),
    ("engine: openai", "engine: triton\n    options: {text_mode: '${SECRET}'}"),
    ("engine: openai", "engine: openai\n    limits: {total: '${SECRET}'}"),
    ("engine: openai", "engine: openai\n    state: '${SECRET}'"),
    ("serves: m", "serves: ['${SECRET}']"),
    ("http://127.0.0.1:9000", "http://u:%s@gpu1"),
    ("http://127.0.0.1:9000", "ftp://${SECRET}"),
    ("keys: [{", "keys: [%s, {"),
    ("id: k", "id: '- %s'"),
    ("id: k", "id: k, %s: k"),
    ("sha256:0000000000000000000000000000000000000000000000000000000000000000", "%s"),
    ("version: 1", "version: 1\nserver: {redis_url: 'http://:%s@h'}"),
    ("version: 1", "version: 1\nserver: {listen: '${SECRET}'}"),
    ("pools: [p]", "pools: ['${SECRET}']"),
]


@pytest.mark.parametrize(("old", "new"), SECRETIVE)
def test_no_message_holds_a_secret(try_load: Callable[..., Loaded], old: str, new: str) -> None:
    """Not a credential in its own place nor in a wrong one, and never what a variable holds."""
    secret = "hunter2hunter2"
    assert old in MINIMAL
    text = MINIMAL.replace(old, new.replace("%s", secret))
    snapshot, problems, warnings = try_load(text, {"SECRET": secret})
    assert snapshot is None
    error = ConfigInvalid(problems, warnings)
    for said in (str(error), repr(error), repr(problems), repr(warnings)):
        assert secret not in said


def test_no_traceback_holds_the_validation_error(tmp_path: Path) -> None:
    """pydantic's own error carries the input; ours is raised without it."""
    path = tmp_path / "routes.yaml"
    path.write_text(MINIMAL.replace("engine: openai", "engine: [x]"))
    with pytest.raises(ConfigInvalid) as caught:
        load(path, TinyRegistry(), environ={})
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_secrets_arrive_and_do_not_show(try_load: Callable[..., Loaded], tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hunter2\n")
    upstream = 'upstream: {api_key_file: key, headers: {X-Token: "${TOKEN}"}}'
    text = MINIMAL.replace("serves: m", f"serves: m\n    {upstream}")
    snapshot, problems, _ = try_load(text, {"TOKEN": "hunter3"})
    assert not problems
    assert snapshot is not None
    pool = snapshot.pools["p"]
    assert pool.upstream.api_key == "hunter2"
    assert pool.upstream.headers == {"X-Token": "hunter3"}
    assert "hunter" not in repr(snapshot)
    assert "0" * 64 not in repr(snapshot)


# ---------------------------------------------------------------------------------------- immutability


def parts(value: Any) -> Iterator[Any]:
    yield value
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            if field.name != "adapter":
                yield from parts(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from parts(item)
    elif isinstance(value, tuple | frozenset):
        for item in value:
            yield from parts(item)


def test_a_snapshot_cannot_be_changed(shipped: Snapshot) -> None:
    """Every part of it is frozen: no list, no set, no dict that a request could write to."""
    seen = list(parts(shipped))
    assert len(seen) > 200
    for part in seen:
        assert not isinstance(part, list | set | dict), part
        if dataclasses.is_dataclass(part):
            for field in dataclasses.fields(part)[:1]:
                with pytest.raises(dataclasses.FrozenInstanceError):
                    setattr(part, field.name, None)
        elif isinstance(part, Mapping):
            with pytest.raises(TypeError):
                part["x"] = 1  # type: ignore[index]  # the very point


def test_two_loads_share_nothing_and_are_equal(shipped_dir: Path) -> None:
    first, second = (load(shipped_dir / "routes.yaml", TinyRegistry(), environ={}) for _ in range(2))
    assert first.hash == second.hash
    assert first.models == second.models
    assert first.rules == second.rules
    assert first.tenants == second.tenants


def test_pool_timeouts_override_the_servers_one_by_one(try_load: Callable[..., Loaded]) -> None:
    text = MINIMAL.replace("version: 1", "version: 1\nserver: {timeouts: {idle_s: 7, connect_s: 0.5}}")
    text = text.replace("serves: m", "serves: m\n    timeouts: {idle_s: 9}\n    queue: {max_requests: 5}")
    snapshot, problems, _ = try_load(text)
    assert not problems
    assert snapshot is not None
    pool = snapshot.pools["p"]
    assert (pool.timeouts.idle, pool.timeouts.connect, pool.timeouts.first_token) == (9, 0.5, 120)
    assert (pool.queue.max_requests, pool.queue.max_wait) == (5, 60)


def test_a_chain_with_another_model_becomes_hops_in_order(try_load: Callable[..., Loaded]) -> None:
    text = MINIMAL.replace("m: {tokenizer", "n: {tokenizer: {kind: estimate}}\n  m: {tokenizer")
    text = text.replace("serves: m", "serves: [m, n]")
    text = text.replace("pools: [p]}", "pools: [p, {model: n, pools: [p]}], on: [overloaded], after_ms: 250}")
    snapshot, problems, _ = try_load(text)
    assert not problems
    assert snapshot is not None
    assert snapshot.rules[0].chain == (Hop("p"), Hop("p", "n"))
    assert snapshot.rules[0].on == {"overloaded"}
    assert snapshot.rules[0].after == 0.25


def test_steps_of_a_brown_out_arrive_with_their_pools_and_units(try_load: Callable[..., Loaded]) -> None:
    """Of a rule without `pools`: those of its chain that serve the model."""
    text = MINIMAL.replace("m: {tokenizer", "n: {tokenizer: {kind: estimate}}\n  m: {tokenizer")
    text = text.replace("serves: m", "serves: [m, n]")
    takes = "max_tokens: 64, n: 1, class: batch, model: n"
    steps = f"{{when: {{queue_wait_ms: 1500, waiting: 9}}, dwell_s: 3, {takes}}}"
    text = text.replace("pools: [p]}", f"pools: [p], overload: [{steps}]" + "}")
    text += "classes: {interactive: {overload: [{when: {waiting: 7}, n: 2, off_below: 0.2}]}}\n"
    snapshot, problems, warnings = try_load(text.replace("t: {keys", "t: {degrade: false, keys"))
    assert (problems, warnings) == ((), ())
    assert snapshot is not None
    (step,) = snapshot.rules[0].overload
    assert step == OverloadStep(1.5, 9, 0.5, 3.0, 64, 1, PriorityClass.batch, "n", ("p",))
    assert snapshot.overload == {PriorityClass.interactive: (OverloadStep(waiting=7, n=2, off_below=0.2),)}
    assert snapshot.tenants["t"].degrade is False
    assert snapshot.tenants["t"].keys[0].degrade is True
