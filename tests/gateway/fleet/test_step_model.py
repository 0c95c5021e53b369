"""The fitted model of a replica finds the speeds that produced what it saw."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.fleet.step_model import KV_S, MOST, REFERENCE, SEQUENCE_S, STEP_S, StepModel


@pytest.mark.parametrize("times", [0.4, 1.0, 2.2, 5.0])
def test_prefill_speed_is_found_in_spite_of_noise(times):
    rng, model = random.Random(1), StepModel()
    for _ in range(200):
        tokens = rng.randrange(600, 20_000)
        model.observe_prefill(tokens, times * REFERENCE.prefill(tokens) * rng.uniform(0.9, 1.15))
    for tokens in (1000, 4000, 16_000):
        assert model.prefill(tokens) == pytest.approx(times * REFERENCE.prefill(tokens), rel=0.1)
    assert model.slowness == pytest.approx(times, rel=0.1)


def test_a_few_samples_tell_a_slow_engine_from_a_fast_one():
    """And until its steps have been seen, they are taken to be as slow."""
    model = StepModel()
    for _ in range(5):
        model.observe_prefill(3000, 2.2 * REFERENCE.prefill(3000))
    assert model.slowness == pytest.approx(2.2, rel=0.15)
    assert model.step(64, 100_000) == pytest.approx(2.2 * REFERENCE.step(64, 100_000), rel=0.15)


def test_the_parts_of_a_step_are_told_apart():
    rng, model = random.Random(2), StepModel()
    for _ in range(600):
        in_flight = rng.randrange(1, 256)
        kv = in_flight * rng.randrange(100, 4000)
        true = 2 * STEP_S + 5 * SEQUENCE_S * in_flight + 0.5 * KV_S * kv
        model.observe_step(in_flight, kv, true * rng.uniform(0.97, 1.03))
    for in_flight, kv in ((1, 500), (64, 60_000), (200, 500_000)):
        true = 2 * STEP_S + 5 * SEQUENCE_S * in_flight + 0.5 * KV_S * kv
        assert model.step(in_flight, kv) == pytest.approx(true, rel=0.15)


def test_a_change_of_speed_is_followed():
    model = StepModel()
    for times in (1.0, 3.0):
        for _ in range(600):
            model.observe_prefill(3000, times * REFERENCE.prefill(3000))
        assert model.slowness == pytest.approx(times, rel=0.1)


def test_a_stall_does_not_spoil_it():
    model = StepModel()
    for i in range(200):
        model.observe_prefill(3000, 30.0 if i == 150 else REFERENCE.prefill(3000))
    assert model.slowness == pytest.approx(1, rel=0.1)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(1, 100_000), st.floats(-1, 1000)), max_size=50))
def test_whatever_it_sees_its_coefficients_stay_within_reason(samples):
    model = StepModel()
    for tokens, seconds in samples:
        model.observe_prefill(tokens, seconds)
        model.observe_step(tokens % 300, tokens, seconds)
    assert 0 < model.prefill(1000) <= MOST * REFERENCE.prefill(1000) * 1.01
    assert 0 < model.step(10, 1000) <= MOST * REFERENCE.step(10, 1000) * 1.01
