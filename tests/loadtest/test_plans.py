"""What is asked and when: arrivals, workloads, prompts, and whom we may load."""

import gzip
import itertools
import json
import random
import statistics
from pathlib import Path

import pytest

from gateway.replay.traces import read_trace
from loadtest.arrivals import arrivals
from loadtest.prompts import NONCE_WORDS, WORDS, Calibration, PromptMaker, calibrate
from loadtest.targets import TargetRefused, check_target
from loadtest.workloads import WorkloadInvalid, bounded, dataset, token_distribution, trace


def test_constant_arrivals_do_not_drift():
    times = list(itertools.islice(arrivals("constant", 3.0, seed=0), 3001))
    assert times[0] == 0.0
    assert times[3000] == pytest.approx(1000.0, abs=1e-9)


def test_poisson_arrivals_have_the_rate_and_the_spread():
    """Exponential gaps: standard deviation equals mean. The same seed gives the same times."""
    times = list(itertools.islice(arrivals("poisson", 10.0, seed=1), 20_001))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(0.1, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(0.1, rel=0.05)
    assert times == list(itertools.islice(arrivals("poisson", 10.0, seed=1), 20_001))
    assert times != list(itertools.islice(arrivals("poisson", 10.0, seed=2), 20_001))


def test_token_distribution_draws_around_the_means():
    plan = token_distribution(
        arrivals("constant", 1.0, 0), input_mean=128, input_stdev=5, output_mean=2, output_stdev=4, seed=0
    )
    drawn = list(itertools.islice(plan, 4000))
    prompts = [planned.request.prompt_tokens for planned in drawn]
    assert statistics.mean(prompts) == pytest.approx(128, rel=0.01)
    assert statistics.stdev(prompts) == pytest.approx(5, rel=0.1)
    assert min(planned.request.output_tokens for planned in drawn) == 1


def test_bounds_hold_in_count_and_time():
    times = arrivals("constant", 10.0, 0)

    def plan():
        return token_distribution(times, input_mean=8, input_stdev=0, output_mean=8, output_stdev=0, seed=0)

    assert len(list(bounded(plan(), requests=7, seconds=None))) == 7
    times = arrivals("constant", 10.0, 0)
    assert len(list(bounded(plan(), requests=1000, seconds=1.95))) == 20


def test_dataset_takes_prompts_and_messages_and_ends(tmp_path: Path):
    file = tmp_path / "d.jsonl"
    file.write_text(
        json.dumps({"prompt": "a\u2028b", "max_tokens": 5})
        + "\n\n"
        + json.dumps({"messages": [{"role": "user", "content": "x"}]})
        + "\n",
        encoding="utf-8",
    )
    first, second = dataset(arrivals("constant", 2.0, 0), file)
    assert (first.request.at, first.request.max_tokens) == (0.0, 5)
    assert first.messages == [{"role": "user", "content": "a\u2028b"}]
    assert (second.request.at, second.request.max_tokens) == (0.5, None)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", '"prompt"'),
        ('{"prompt": "x", "max_tokens": 0}', "max_tokens"),
        ('{"prompt": "x", "max_tokens": true}', "max_tokens"),
    ],
)
def test_a_bad_dataset_line_is_named(tmp_path: Path, line: str, what: str):
    file = tmp_path / "d.jsonl"
    file.write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(WorkloadInvalid, match="d.jsonl:2: .*" + what):
        list(dataset(arrivals("constant", 2.0, 0), file))


def recorded(path: Path):
    return trace(read_trace(path, random.Random(0)))


def test_a_trace_is_read_as_the_replay_reads_it(tmp_path: Path):
    """Times from 0, tenants, lengths, blocks; stretched to a rate."""
    table = tmp_path / "t.csv.gz"
    table.write_bytes(
        gzip.compress(
            b"t_s,tenant,in_tokens,out_tokens\n100.0,acme,10,0\n100.5,globex,20,3\n102.0,acme,30,4\n"
        )
    )
    rows = [planned.request for planned in recorded(table)]
    assert [(row.at, row.tenant, row.prompt_tokens, row.output_tokens) for row in rows] == [
        (0.0, "acme", 10, 1),
        (0.5, "globex", 20, 3),
        (2.0, "acme", 30, 4),
    ]
    assert [planned.request.at for planned in trace(rows, rate=3.0)] == [0.0, 0.25, 1.0]
    lines = tmp_path / "t.jsonl.gz"
    lines.write_bytes(gzip.compress(b'{"t": 1, "in": 1500, "out": 6, "h": [7, 8]}\n'))
    assert [planned.request.blocks for planned in recorded(lines)] == [(7, 8)]


def test_calibration_finds_the_line():
    found = calibrate([(40, 40 * 1.25 + 11), (400, 400 * 1.25 + 11), (40, 61)])
    assert (found.fixed, found.per_word, found.measured) == (pytest.approx(11), pytest.approx(1.25), True)
    assert found.words(136) == 100


@pytest.mark.parametrize("points", [[], [(40, 50)], [(40, 50), (40, 52)], [(40, 9), (400, 9)]])
def test_calibration_without_two_sizes_is_a_guess(points: list[tuple[int, int]]):
    assert not calibrate(points).measured


def test_prompts_are_distinct_and_repeatable():
    """Even the shortest, whatever their size; another seed gives others."""
    maker = PromptMaker(0, Calibration(fixed=0, per_word=1.0))
    prompts = [maker.of_tokens(number, 1 + number % 5) for number in range(-10, 3000)]
    assert len(set(prompts)) == len(prompts)
    assert prompts == [maker.of_tokens(number, 1 + number % 5) for number in range(-10, 3000)]
    assert not set(prompts) & {PromptMaker(1, maker.calibration).of_tokens(7, 4)}
    assert len(maker.of_tokens(3, 100).split()) == 100
    assert len({maker.of_tokens(number, 50).split()[0] for number in range(100)}) == 100


def test_words_are_many_and_distinct():
    """The nonce spells a number in base len(WORDS)."""
    assert len(set(WORDS)) == len(WORDS)
    assert len(WORDS) ** NONCE_WORDS > 10_000_000


def test_prompts_of_a_trace_share_their_blocks():
    """As many words as asked for; the same beginning for the same hashes, and never the same end."""
    maker = PromptMaker(0, Calibration(fixed=0, per_word=1.0))
    a, b = maker.of_tokens(1, 1100, (5, 6, 7)).split(), maker.of_tokens(2, 1100, (5, 6, 8)).split()
    assert len(a) == len(b) == 1100
    assert a[:1024] == b[:1024]
    assert a != b
    assert len(maker.of_tokens(3, 600, (5, 6)).split()) == 600


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080", "http://localhost:1/v1/", "http://[::1]:8080"])
def test_this_machine_may_be_loaded(url: str):
    assert not check_target(url, owned=False).endswith(("/", "/v1"))


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "https://10.0.0.1",
        "http://127.0.0.1.example.com",
        "http://localhost.example",
        "http://0.0.0.0:80",
    ],
)
def test_other_hosts_need_an_owner(url: str):
    with pytest.raises(TargetRefused, match="--i-own-this-host"):
        check_target(url, owned=False)
    assert check_target(url, owned=True) == url


@pytest.mark.parametrize(
    "url", ["ftp://localhost", "localhost:8080", "http://", "http://u:p@localhost", "http://localhost?x"]
)
def test_odd_urls_are_refused_whoever_owns_them(url: str):
    with pytest.raises(TargetRefused):
        check_target(url, owned=True)
