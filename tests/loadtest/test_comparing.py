"""Ratios, notes, and regressions beyond a bound; the order of policies."""

import dataclasses

import pytest

from backends.simulated.engine import PROFILES
from loadtest.classes import run_of
from loadtest.comparing import NOISE, TWIN, compare, regressions
from loadtest.ordering import MEASURES, disagreements, in_order
from loadtest.running import Ran
from loadtest.sending import Sample
from loadtest.summary import summarise
from tests.loadtest.test_classes import answered, ran


def figures(result: Ran, **settings: object):
    found = run_of("run", 1.0, 0, result, PROFILES["h200"])
    rows = [row.as_json() for row in found.rows]
    return {"settings": settings, "summary": summarise(result), "rows": rows}


def a_run(*, slower: float = 0.0, lost: int = 0) -> Ran:
    some = [answered(number * 0.1, ttft=0.1 + slower, seconds=0.5 + slower) for number in range(200)]
    some += [answered(30.0, ttft=None, error="timeout") for _ in range(lost)]
    return ran(*some)


def test_compare_shows_ratios_and_what_differs():
    a = figures(a_run(), rate=10, url="x")
    b = figures(a_run(slower=0.5, lost=1), rate=20, url="y")
    text = compare(a, b)
    line = next(line for line in text.splitlines() if line.startswith("latency avg"))
    assert line.split()[-3:] == ["500.0", "1000.0", "2.000"]
    line = next(line for line in text.splitlines() if line.startswith("run short ttft_p99"))
    assert line.split()[-3:] == ["0.100", "0.600", "6.000"]
    assert "rate is 10 in A, 20 in B" in text
    assert "url" not in text
    assert "B had 1 errors" in text
    same = figures(ran(*[answered(n * 0.1) for n in range(200)]))
    assert "not the same" not in compare(same, same)


def test_a_regression_is_named_with_its_bound():
    """Six times the time to the first token; with a bound of ten it is none."""
    worse = regressions(figures(a_run()), figures(a_run(slower=0.5)), 1.2)
    assert any(text.startswith("run short ttft_p99: 0.100 -> 0.600") for text in worse)
    assert not any("goodput" in text for text in worse)
    assert regressions(figures(a_run()), figures(a_run(slower=0.5)), 10) == []
    assert regressions(figures(a_run()), figures(a_run()), 1.0) == []


def test_lost_requests_are_a_regression_of_goodput():
    worse = regressions(figures(a_run()), figures(a_run(lost=100)), 1.2)
    assert any("goodput: 1.000 -> 0.667" in text for text in worse)


def test_noise_is_no_regression():
    assert regressions(figures(a_run()), figures(a_run(slower=NOISE / 2)), 1.0) == []


def test_a_class_that_is_gone_is_a_regression():
    both = figures(ran(answered(0.0), answered(1.0, prompt=5000)))
    assert any("not there" in text for text in regressions(both, figures(ran(answered(0.0))), 2.0))


def rows(**ttft: float):
    """A row for each policy; `twin_` before a name is the twin's."""
    (row,) = (
        row for row in run_of("x", 1.0, 0, ran(answered(0.0)), PROFILES["h200"]).rows if row.cls == "short"
    )
    return [
        dataclasses.replace(
            row,
            policy=name.removeprefix("twin_") + (TWIN if name.startswith("twin_") else ""),
            ttft_p99=value,
        )
        for name, value in ttft.items()
    ]


def test_policies_in_the_same_order():
    found = rows(lanes=0.3, rr=5.0, twin_lanes=0.2, twin_rr=8.0)
    assert disagreements(found) == []
    assert in_order(found, MEASURES[0]) == {
        "sockets": "lanes 0.300, then rr 5.000",
        "twin": "lanes 0.200, then rr 8.000",
    }


def test_another_order_is_named():
    (text,) = disagreements(rows(lanes=6.0, rr=5.0, twin_lanes=0.2, twin_rr=8.0))
    assert "lanes is better than rr in the twin" in text


def test_what_the_twin_holds_close_may_stand_either_way():
    assert disagreements(rows(lanes=0.31, sjf=0.3, twin_lanes=0.2, twin_sjf=0.25)) == []


@pytest.mark.parametrize("late", [0.0, 0.2])
def test_latency_and_first_token_count_from_the_plan(late: float):
    sample = Sample(100.0 + late, late, 101.0, 100.5)
    assert (sample.latency, sample.ttft) == (pytest.approx(1.0), pytest.approx(0.5))
