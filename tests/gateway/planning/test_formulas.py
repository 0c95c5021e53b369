"""The formulas against arithmetic done by hand, and what they print against what they say."""

import math
import re

import pytest

from gateway.planning.formulas import (
    Line,
    cache_room,
    cost_per_million,
    kv_bytes,
    kv_bytes_per_token,
    latency,
    number,
    rate_of_batch,
    rate_of_work,
    replicas_for,
    weight_bytes,
)
from gateway.planning.shapes import shape_of
from tests.gateway.planning.models import DEEPSEEK_V3, LLAMA2_7B, LLAMA3_8B, LLAMA3_70B


def by_hand(line: Line) -> float:
    """What somebody gets who types the formula in: `x` is times, words say what a number is."""
    formula = re.sub(r"(?<=\d) (?!x\b)[A-Za-z_]+", "", line.formula).replace(" x ", " * ")
    assert re.fullmatch(r"[-+*/().,\d\se]*|(ceil|min)\(.*\)", formula), formula
    value: float = eval(formula, {"ceil": math.ceil, "min": min})  # arithmetic only, as asserted
    return value


@pytest.mark.parametrize(
    ("config", "per_token"),
    [
        (LLAMA3_8B, 131_072),  # 2 x 32 x 8 x 128 x 2
        (LLAMA3_70B, 327_680),  # 2 x 80 x 8 x 128 x 2
        (LLAMA2_7B, 524_288),  # 2 x 32 x 32 x 128 x 2: no grouped-query attention, so all heads
        (DEEPSEEK_V3, 70_272),  # 61 x (512 + 64) x 2: one latent vector per token and layer
    ],
)
def test_kv_bytes_per_token(config, per_token):
    line = kv_bytes_per_token(shape_of(config), 2)
    assert line.value == per_token == by_hand(line)


def test_kv_bytes_of_a_request():
    """Llama 3 8B, 3,000 in and 1,000 out: 4,000 x 131,072 bytes, half a gigabyte; a quarter in FP8."""
    line = kv_bytes(131_072, 3000, 1000)
    assert line.value == 524_288_000 == by_hand(line)
    assert kv_bytes_per_token(shape_of(LLAMA3_8B), 1).value == 65_536


def test_weights_and_room():
    """8,030,261,248 parameters; an H200 (150.1 GB) has (135.09 - 16.06 - 2.5) GB = 889,049 tokens of room."""
    weights = weight_bytes(shape_of(LLAMA3_8B))
    assert weights.value == 16_060_522_496 == by_hand(weights)
    room = cache_room(131_072, 150.1e9, 1, 0.9, weights.value, 2.5e9)
    assert room.value == 889_049
    assert room.value == pytest.approx(by_hand(room), abs=1)
    with pytest.raises(ValueError, match="no room for a cache"):
        cache_room(131_072, 16e9, 1, 0.9, weights.value, 2.5e9)


def test_latency_rate_and_cost():
    """1,000 in at P 20,000, 200 out at D 2,000 with B 32: 0.05 + 200/62.5 = 3.25 s; 9.846 requests/s by
    batch, 1/(0.05 + 0.1) = 6.667 by work; 50 requests/s at 70 % of that: 11 replicas."""
    t = latency(1000, 200, 20_000, 2000, 32, 0.0)
    assert t.value == pytest.approx(3.25)
    batch, work = rate_of_batch(32, t.value), rate_of_work(1000, 200, 20_000, 2000)
    assert batch.value == pytest.approx(9.84615, rel=1e-5)
    assert work.value == pytest.approx(6.66667, rel=1e-5)
    needed = replicas_for(50, work.value, 0.7)
    assert needed.value == 11
    # 50 requests/s of 1,200 tokens are 216M an hour; 11 GPUs at 3.50 are 38.50 an hour.
    cost = cost_per_million(3.5, 11, 50 * 1200 * 3600)
    assert cost.value == pytest.approx(38.5 / 216)
    for line in (t, batch, work, needed, cost):
        assert by_hand(line) == pytest.approx(line.value, rel=1e-4)


def test_replicas_are_whole_and_at_least_one():
    assert replicas_for(0.001, 100, 0.7).value == 1
    assert replicas_for(7, 1, 0.7).value == 10  # 10.000000000000002 by floats
    assert replicas_for(7.1, 1, 0.7).value == 11


@pytest.mark.parametrize(
    ("value", "text"), [(3.0, "3"), (0.25, "0.25"), (1 / 3, "0.333333"), (2e9 + 0.5, "2000000000")]
)
def test_numbers(value, text):
    assert number(value) == text
