"""A profile of `headgate calibrate`, as routes.yaml takes it: the same engine to both who read it."""

import json
from dataclasses import replace

import pytest

from backends.simulated.engine import PROFILES
from backends.simulated.profiles import document_of
from gateway.config.profiles import read_pace
from gateway.fleet.step_model import REFERENCE, StepModel
from gateway.planning.sizing import prefill_seconds
from tests.gateway.config.conftest import MINIMAL


def written(tmp_path, profile, **changes):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({**document_of(profile), **changes}))
    return path


@pytest.mark.parametrize("name", ["h200", "h100-slow-host"])
@pytest.mark.parametrize(("speed", "sequence_s"), [(1.0, 0.0), (0.5, 0.0), (1.0, 250e-6), (0.5, 100e-6)])
def test_the_step_model_begins_where_the_profile_is(tmp_path, name, speed, sequence_s):
    """Prefill and steps of the model are those of the profile, for a replica that nobody has asked yet."""
    profile = replace(PROFILES[name], speed=speed, sequence_s=sequence_s)
    model = StepModel(read_pace(written(tmp_path, profile)))
    for tokens in (100, 4096, 32_000):
        assert model.prefill(tokens) == pytest.approx(prefill_seconds(profile, tokens))
    for sequences, cached in ((1, 100), (64, 60_000), (170, 300_000)):
        assert model.step(sequences, cached) == pytest.approx(
            profile.step_time(sequences, 0.0, cached, sequences)
        )


def test_answers_still_teach(tmp_path):
    """What was measured is a beginning: the replica turns out twice as slow, and the model follows. Its steps
    were measured too, so that a first prompt does not change them."""
    model = StepModel(read_pace(written(tmp_path, PROFILES["h100"])))
    step = model.step(1, 1000)
    model.observe_prefill(4096, 2 * model.prefill(4096))
    assert model.step(1, 1000) == step
    true = 2 * StepModel(read_pace(written(tmp_path, PROFILES["h100"]))).prefill(4096)
    for _ in range(200):
        model.observe_prefill(4096, true)
    assert model.prefill(4096) == pytest.approx(true, rel=0.05)


def test_without_a_profile_it_is_the_reference():
    assert StepModel().prefill(1000) == REFERENCE.prefill(1000)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[1]", "the document"),
        ('{"format": "other"}', "format"),
        (json.dumps({**document_of(PROFILES["h200"]), "token_s": -1}), "token_s"),
        (json.dumps({**document_of(PROFILES["h200"]), "speed": 0}), "speed"),
    ],
)
def test_what_is_no_profile(tmp_path, text, says):
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"is no engine profile: {says}"):
        read_pace(path)


def test_in_a_file(tmp_path, try_load, problems):
    """The path counts from the file's directory; what is wrong with it is said with its line."""
    text = MINIMAL.replace("engine: openai", "engine: openai\n    profile: profile.json")
    assert problems(text) == [
        "7:14: pools.p.profile: 'profile.json' cannot be read (paths count from this file's directory)"
    ]
    written(tmp_path, PROFILES["h100"], step_s=-1.0)
    assert "pools.p.profile: 'profile.json' is no engine profile: step_s" in problems(text)[0]
    path = written(tmp_path, PROFILES["h100"])
    snapshot, _, _ = try_load(text)
    assert snapshot.pools["p"].pace == read_pace(path)
    assert try_load(MINIMAL)[0].pools["p"].pace is None
