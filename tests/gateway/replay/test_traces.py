"""Traces: every format is read, the made mix is near the real one, and what clients ask for is filled in."""

import gzip
import json
import random
from collections import Counter

import pytest

from gateway.config.snapshot import PriorityClass
from gateway.replay.mixes import SOURCES, mixed, requests_of
from gateway.replay.requests import (
    SHORT,
    TraceRequest,
    compressed,
    with_classes,
    with_flood,
    with_max_tokens,
    with_streams,
    with_tenants,
)
from gateway.replay.traces import TraceInvalid, mixed_files, read_trace
from tests.conftest import not_run

LOG_LINE = {
    "time": "2026-01-02T03:04:07.500+00:00", "level": "info", "logger": "headgate.request",
    "message": "completed", "outcome": "completed",
    "tenant": "acme", "class": "batch", "model": "llama3", "stream": False,
    "prompt_tokens": 300, "completion_tokens": 40, "max_tokens": 128, "duration_ms": 1500.0,
}  # fmt: skip


def _lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


FORMATS = {
    "azure_code.csv": (
        """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,0
""",
        [TraceRequest(0.0, "code", 4808, 10), TraceRequest(0.052, "code", 3180, 1)],
    ),
    "servegen.csv": (
        "t_s,tenant,in_tokens,out_tokens\n5.002,c26,51,10\n5.018,c12,45,1\n",
        [TraceRequest(0.0, "c26", 51, 10), TraceRequest(0.016, "c12", 45, 1)],
    ),
    "burst.csv": (
        """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
7,ChatGPT,472,18,490,x
9,GPT-4,300,0,300,x
""",
        [
            TraceRequest(0.0, "ChatGPT", 472, 18, model="ChatGPT"),
            TraceRequest(2.0, "GPT-4", 300, 1, model="GPT-4"),
        ],
    ),
    "mooncake.jsonl": (
        """{"timestamp": 100, "input_length": 1100, "output_length": 52, "hash_ids": [46, 47, 48]}

{"timestamp": 10635, "input_length": 672, "output_length": 26, "hash_ids": [46, 47]}
""",
        [
            TraceRequest(0.0, "trace", 1100, 52, blocks=(46, 47)),
            TraceRequest(10.535, "trace", 672, 26, blocks=(46,)),
        ],
    ),
    "sessions.jsonl": (
        """{"session_id": "s", "timestamp": 1000, "input_length": 10, "output_length": 5}
{"session_id": "s", "delay": 2000, "text_input": "four words of text!!", "output_length": 5}
""",
        [TraceRequest(0.0, "trace", 10, 5), TraceRequest(2.0, "trace", 5, 5)],
    ),
    "profile_export.jsonl": (
        _lines(
            {
                "metadata": {"session_num": 0, "request_start_ns": 5_000_000_000},
                "metrics": {
                    "input_sequence_length": {"value": 550, "unit": "tokens"},
                    "output_sequence_length": {"value": 42, "unit": "tokens"},
                },
            },
            {"metadata": {"request_start_ns": 1}, "metrics": {}, "error": {"code": 500}},
        ),
        [TraceRequest(0.0, "aiperf", 550, 42)],
    ),
    "access.log": (
        _lines(
            {"time": "x", "logger": "headgate", "message": "starting"},
            LOG_LINE,
            LOG_LINE | {"outcome": "rejected"},
        ),
        [TraceRequest(0.0, "acme", 300, 40, 128, (), PriorityClass.batch, False, "llama3")],
    ),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("packed", [False, True])
def test_formats(tmp_path, name, packed):
    """Told by the first line; packed or not; the first request is at 0."""
    text, expected = FORMATS[name]
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    found = read_trace(path, random.Random(0))
    assert [request.at for request in found] == pytest.approx([request.at for request in expected], abs=1e-4)
    assert [(r.tenant, r.prompt_tokens, r.output_tokens, r.max_tokens, r.blocks) for r in found] == [
        (r.tenant, r.prompt_tokens, r.output_tokens, r.max_tokens, r.blocks) for r in expected
    ]
    assert [(r.priority, r.streamed, r.model) for r in found] == [
        (r.priority, r.streamed, r.model) for r in expected
    ]


def test_binned_times_are_spread(tmp_path):
    """Mooncake's times are whole multiples of three seconds; nobody arrives like that."""
    path = tmp_path / "binned.jsonl"
    path.write_text("".join(f'{{"t": {3.0 * (n // 20)}, "in": 9, "out": 1}}\n' for n in range(60)))
    found = read_trace(path, random.Random(0))
    assert len({request.at for request in found}) == 60
    assert found[-1].at < 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "no known columns: a, b"),
        ("t_s,tenant,in_tokens,out_tokens\n1,a,x,2\n", ":2: ValueError"),
        ('{"timestamp": 1, "output_length": 5}\n', ":1: KeyError: 'text_input'"),
        ('{"input_length": 1}\n', ":1: KeyError: 'timestamp'"),
        ('{"timestamp"\n', ":1: JSONDecodeError"),
        ("t_s,tenant,in_tokens,out_tokens\n", "no requests in it"),
        ("", "no known columns: none"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, text, message):
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(TraceInvalid, match="(?s).*" + message):
        read_trace(path, random.Random(0))


def test_a_broken_archive_is_named(tmp_path):
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(b"not an archive")
    with pytest.raises(TraceInvalid, match=r"trace\.csv\.gz"):
        read_trace(path, random.Random(0))


def test_the_mix_is_what_its_description_says():
    """31,272 requests in about an hour, 72 % of them short; the same for the same seed."""
    made = mixed(random.Random(1))
    assert made == mixed(random.Random(1))
    assert made != mixed(random.Random(2))
    assert Counter(request.tenant for request in made) == {"conv": 19_366, "code": 8_819, "docs": 3_087}
    assert sum(request.short for request in made) / len(made) == pytest.approx(0.72, abs=0.01)
    assert 3400 < made[-1].at - made[0].at <= 3600
    assert max(request.prompt_tokens for request in made) == 60_000


def test_a_thinner_mix_has_the_same_proportions():
    made = mixed(random.Random(1), 1000)
    assert len(made) == pytest.approx(1000, abs=3)
    assert sum(request.tenant == "conv" for request in made) == pytest.approx(619, abs=3)
    assert requests_of(SOURCES["code"], 50, random.Random(1))[0].tenant == "code"


def test_the_made_mix_is_near_the_files(shared_dir):
    """Means within 4 % (code's outputs, whose tail is long, 15 %), the part of short ones within 1 %, and
    counts per second and per ten seconds as uneven, within 35 %."""
    if not (shared_dir / "traces").is_dir():
        not_run("no traces among the shared material")
    real, made = mixed_files(shared_dir / "traces", random.Random(1)), mixed(random.Random(1))
    assert len(real) == len(made)
    short = [sum(request.short for request in some) / len(some) for some in (real, made)]
    assert short[0] == pytest.approx(short[1], abs=0.01)
    for tenant in SOURCES:
        one, other = ([r for r in some if r.tenant == tenant] for some in (real, made))
        assert _mean(r.prompt_tokens for r in one) == pytest.approx(
            _mean(r.prompt_tokens for r in other), rel=0.04
        )
        assert _mean(r.output_tokens for r in one) == pytest.approx(
            _mean(r.output_tokens for r in other), rel=0.15
        )
        for seconds in (1, 10):
            assert _unevenness(one, seconds) == pytest.approx(_unevenness(other, seconds), rel=0.35), tenant


def _mean(values):
    values = list(values)
    return sum(values) / len(values)


def _unevenness(requests, seconds):
    """Variance over mean of the counts."""
    counts = Counter(int(request.at / seconds) for request in requests)
    every = [counts[slot] for slot in range(int(requests[-1].at / seconds) + 1)]
    mean = _mean(every)
    return _mean((count - mean) ** 2 for count in every) / mean


def test_clients_ask_for_4096_or_the_next_power_of_two():
    plain = [TraceRequest(0.0, "a", 10, output) for output in (1, 2, 3, 100, 128, 129)] * 300
    asked = with_max_tokens(plain, random.Random(0))
    next_power = {1: 1, 2: 2, 3: 4, 100: 128, 128: 128, 129: 256}
    assert all(request.max_tokens in (4096, next_power[request.output_tokens]) for request in asked)
    assert _mean(request.max_tokens == 4096 for request in asked) == pytest.approx(0.4, abs=0.04)
    said = TraceRequest(0.0, "a", 10, 5, max_tokens=77)
    assert with_max_tokens([said], random.Random(0)) == [said]
    huge = with_max_tokens([TraceRequest(0.0, "a", 10, 9000)] * 50, random.Random(0))
    assert {request.max_tokens for request in huge} == {16_384}


def test_time_is_compressed_to_a_rate():
    trace = [TraceRequest(float(at), "a", 10, 5) for at in (0, 1, 10)]
    assert [request.at for request in compressed(trace, 0.6)] == pytest.approx([0.0, 0.5, 5.0])
    assert compressed(trace[:1], 5.0) == trace[:1]


def test_scenarios():
    """Classes, tenants, streams and a flood are dealt out by lot; nothing else changes."""
    rng = random.Random(0)
    trace = [TraceRequest(at / 10, "a", 10, 5) for at in range(3000)]
    shares = {PriorityClass.interactive: 20, PriorityClass.standard: 60, PriorityClass.batch: 20}
    classes = Counter(request.priority for request in with_classes(trace, shares, rng))
    assert classes[PriorityClass.standard] == pytest.approx(1800, abs=120)
    assert set(Counter(request.tenant for request in with_tenants(trace, 8, rng))) == {
        f"t{n}" for n in range(1, 9)
    }
    assert _mean(not request.streamed for request in with_streams(trace, 0.3, rng)) == pytest.approx(
        0.3, abs=0.04
    )
    flooded = with_flood(trace, "noisy", 20.0, rng)
    added = [request for request in flooded if request.flood]
    assert len(added) == pytest.approx(2000, abs=200)
    assert {request.tenant for request in added} == {"noisy"}
    assert 100 <= added[0].at <= added[-1].at <= 200
    assert [request.at for request in flooded] == sorted(request.at for request in flooded)
    assert TraceRequest(0.0, "a", SHORT - 5, 5).short
    assert not TraceRequest(0.0, "a", SHORT - 5, 6).short
