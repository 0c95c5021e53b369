"""The fit gives back the constants of the engine that was measured, and says which it could not tell."""

import dataclasses
import random

import pytest

from backends.simulated.engine import PROFILES, Engine, EngineProfile
from gateway.planning.fitting import PLAIN, Fit, Sample, _fit, fit

H200 = PROFILES["h200"]
PROMPTS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 12_000)
BATCHES = ((1, 128), (1, 4096), (4, 1024), (8, 128), (16, 128), (16, 2048), (32, 256), (64, 128), (64, 1024))
REQUEST_S = 0.002


def first_token(profile: EngineProfile, prompt: int) -> float:
    """Seconds to the first token on an idle engine, by the engine model itself."""
    engine = Engine(profile)
    engine.submit(0.0, "one", prompt, 1)
    now = 0.0
    while (at := engine.next_event(now)) is not None:
        step = engine.step(at)
        assert step is not None
        now = step.end
    return now


def between(profile: EngineProfile, sequences: int, prompt: int) -> tuple[float, float]:
    """Seconds between two tokens of so many, and the cached tokens that they read."""
    engine = Engine(profile)
    for number in range(sequences):
        engine.submit(0.0, number, prompt, 4096)
    now = 0.0
    while (step := engine.step(now)) is not None and (step.prompt_tokens or not step.decoding):
        now = step.end
    assert step is not None
    return step.duration, step.kv_tokens


def samples_of(profile: EngineProfile, noise: float = 0.0, seed: int = 0) -> list[Sample]:
    rng = random.Random(seed)
    samples = [
        Sample("prefill", (REQUEST_S + first_token(profile, prompt)) * rng.gauss(1, noise), prompt)
        for prompt in PROMPTS
    ]
    for sequences, prompt in BATCHES:
        seconds, kv_tokens = between(profile, sequences, prompt)
        samples.append(Sample("decode", seconds * rng.gauss(1, noise), prompt, sequences, kv_tokens))
    return samples


def errors(found: Fit, profile: EngineProfile) -> dict[str, float]:
    true = {
        "base": profile.step_s + profile.host_s,
        "e": profile.light_token_s,
        "b": profile.token_s,
        "q": profile.attention_s,
        "d": profile.kv_token_s,
        "request": REQUEST_S,
    }
    return {constant.name: constant.value / true[constant.name] - 1 for constant in found.constants}


@pytest.mark.parametrize("name", [name for name in PROFILES if name != "demo"])
def test_exact_times_give_exact_constants(name):
    """All profiles that ship come back from times that the engine model itself produced."""
    found = fit(samples_of(PROFILES[name]))
    assert all(abs(error) < 1e-6 for error in errors(found, PROFILES[name]).values())
    assert all(constant.identified for constant in found.constants)
    assert found.residuals["all"].most < 1e-8


def test_noise_of_two_percent():
    """The large constants stay within 5 %, and the errors told are of the size of the errors made."""
    worst: dict[str, float] = {}
    told: dict[str, list[float]] = {}
    for seed in range(40):
        found = fit(samples_of(H200, 0.02, seed))
        for name, error in errors(found, H200).items():
            worst[name] = max(worst.get(name, 0.0), abs(error))
        for constant in found.constants:
            told.setdefault(constant.name, []).append(constant.error / max(constant.value, 1e-30))
    assert worst["base"] < 0.05
    assert worst["b"] < 0.06
    assert worst["q"] < 0.3
    assert worst["d"] < 0.25
    for name in ("base", "b", "q", "d"):
        assert worst[name] < 4 * sorted(told[name])[20]


def test_residuals_by_kind():
    """Each kind has residuals of its own, and the furthest sample is named."""
    samples = samples_of(H200)
    samples[3] = Sample("prefill", samples[3].seconds * 2, 256)
    found = fit(samples)
    assert found.residuals["prefill"].samples == len(PROMPTS)
    assert found.residuals["decode"].samples == len(BATCHES)
    assert found.residuals["all"].worst == "first token of 256 tokens"
    assert found.residuals["all"].most == found.residuals["prefill"].most > 0.3
    assert found.residuals["all"].median < found.residuals["all"].rms


def test_what_was_not_measured_is_not_identified():
    """Prompts below the hinge tell nothing of tokens above it, and one sequence nothing of the cache."""
    samples = [Sample("prefill", 0.01 + prompt * 1e-5, prompt) for prompt in (16, 32, 64, 128)]
    samples += [Sample("decode", 0.005, 64, 1, 0.0), Sample("decode", 0.0051, 64, 2, 0.0)]
    found = fit(samples)
    assert not found.b.identified
    assert not found.d.identified
    assert found.e.identified
    assert min(constant.value for constant in found.constants) >= 0


def test_what_comes_out_negative_is_held_at_zero():
    """A dip that the model cannot have does not become a negative constant."""
    samples = [Sample("prefill", 0.02 + 2e-5 * n - 2e-10 * n * n, n) for n in PROMPTS]
    samples += [Sample("decode", 0.02, 128, count, 128.0 * count) for count in (1, 4, 8)]
    found = fit(samples)
    assert found.q.value == 0
    assert not found.q.identified


def test_fit_predicts():
    found = fit(samples_of(H200))
    for sample in samples_of(H200):
        assert found.seconds(sample) == pytest.approx(sample.seconds, rel=1e-6)


@pytest.mark.parametrize("samples", [[], [Sample("prefill", 0.0, 8)] * 6])
def test_too_little_is_refused(samples):
    with pytest.raises(ValueError, match=r"samples|no time"):
        fit(samples)


ONE_BY_ONE = dataclasses.replace(H200, name="one-by-one", sequence_s=300e-6)
"""Each decoding sequence costs 0.3 ms a step, as in llama.cpp on an H200."""


def test_a_cost_of_sequences_is_found():
    """Exactly where the times are exact; the other constants are what they were."""
    found = fit(samples_of(ONE_BY_ONE))
    assert found.s.value == pytest.approx(300e-6, rel=1e-6)
    assert found.residuals["all"].most < 1e-8
    assert abs(found.base.value / (H200.step_s + H200.host_s) - 1) < 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_without_it_the_form_does_not_fit(seed):
    """From a fifth or so down to the noise."""
    samples = samples_of(ONE_BY_ONE, 0.02, seed)
    plain = _fit(samples, 172, 8192, PLAIN).residuals["decode"].rms
    found = fit(samples)
    assert found.s.identified
    assert plain > 0.15
    assert found.residuals["decode"].rms < 0.03


@pytest.mark.parametrize("name", [name for name in PROFILES if name != "demo"])
def test_an_engine_without_it_is_given_none(name):
    """Noise alone does not make a constant of it."""
    for seed in range(10):
        assert fit(samples_of(PROFILES[name], 0.02, seed)).s.value == 0
