"""Profiles in files, and the ones that ship."""

import json
from dataclasses import replace

import pytest

from backends.simulated.engine import PROFILES
from backends.simulated.profiles import document_of, profile_from_file, profile_of
from backends.simulated.server import serve


def write(tmp_path, document):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("name", list(PROFILES))
def test_round_trip(tmp_path, name):
    """What is written is what is read, whatever else the file tells of its measurement."""
    path = write(tmp_path, document_of(PROFILES[name], {"rms": 0.02}))
    assert profile_from_file(path) == PROFILES[name]
    assert profile_of(str(path)) == profile_of(name) == PROFILES[name]


def test_a_cost_of_sequences_is_written_where_there_is_one(tmp_path):
    """So that files of engines without it stay readable to those that know no such constant."""
    assert "sequence_s" not in document_of(PROFILES["h200"])
    slow = replace(PROFILES["h200"], sequence_s=3e-4)
    assert profile_from_file(write(tmp_path, document_of(slow))) == slow


def test_the_card_s_constants():
    """H100: the memory-bound constants by the ratio of the bandwidths; 0.5 and 6 ms of host time for each."""
    assert PROFILES["h100"].step_s == pytest.approx(6.68e-3, rel=1e-3)
    assert PROFILES["h100"].kv_token_s == pytest.approx(0.0451e-6, rel=2e-3)
    assert PROFILES["h100"].token_s == PROFILES["h200"].token_s
    assert PROFILES["h200-fa3"].attention_s == 0.85e-9
    for name in ("h200", "h200-fa3", "h100"):
        assert (PROFILES[name].host_s, PROFILES[f"{name}-slow-host"].host_s) == (0.5e-3, 6e-3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "headgate-profile/9"}, "headgate-profile/9"),
        ({"step_s": -1}, "step_s"),
        ({"step_s": "fast"}, "step_s"),
        ({"colour": "green"}, "colour"),
        ({"speed": 0}, "speed must be above 0"),
        ({"step_tokens": 100}, "step_tokens must exceed"),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path, change, says):
    path = write(tmp_path, {**document_of(PROFILES["h200"]), **change})
    with pytest.raises(ValueError, match=says) as caught:
        profile_from_file(path)
    assert str(path) in str(caught.value)


def test_a_missing_constant_is_named(tmp_path):
    document = document_of(PROFILES["h200"])
    del document["token_s"]
    with pytest.raises(ValueError, match="token_s"):
        profile_from_file(write(tmp_path, document))


def test_neither_name_nor_file():
    with pytest.raises(ValueError, match=r"unknown engine profile 'h300': no such file, and none of h200, "):
        profile_of("h300")


async def test_an_engine_takes_a_file(tmp_path):
    document = {**document_of(PROFILES["h200"]), "name": "mine"}
    async with serve("vllm", str(write(tmp_path, document))) as server:
        assert server.profile.name == "mine"
