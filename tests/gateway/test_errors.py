"""What an engine says reaches clients only in a form that is fit for them."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import (
    ENGINE_TEXT_LIMIT,
    RETRY_AFTER_CAP,
    GatewayError,
    QuotaExceeded,
    Unavailable,
    engine_text,
)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("The prompt is too long.", "The prompt is too long."),
        ("  two\n lines\t here ", "two lines here"),
        ("bell \x07 and \x1b[31m red", "bell and [31m red"),
        ("temperature must be in [0, 2]; got 2.5", "temperature must be in [0, 2]; got 2.5"),
        ("tokens/s and and/or, 1.2.3", "tokens/s and and/or, 1.2.3"),
        ("Длина 简短", "Длина 简短"),
        ("from 1--2 -- or more --- not less", "from 1--2 -- or more --- not less"),
        ("x" * ENGINE_TEXT_LIMIT, "x" * ENGINE_TEXT_LIMIT),
        ("x" * 5000, "x" * (ENGINE_TEXT_LIMIT - 1) + "…"),
        ("", None),
        (" \n\x00 ", None),
    ],
)
def test_fit_words_are_shown_on_one_line(message, shown):
    assert engine_text(message) == shown


@pytest.mark.parametrize(
    "message",
    [
        "Traceback (most recent call last): ...",
        'File "server.py", line 3',
        "<Object at 0x7f3a12bc9d10>",
        "could not reach http://gpu1:8080/v1",
        "grpc://x",
        "no such file: /opt/models/llama/config.json",
        "see '/opt/models'",
        "opened C:\\models\\x",
        "connect to 10.0.0.7 failed",
        "Trace\x00back\nTraceback",
        "x" * 390 + " at /opt/models/llama",
        "tools require --tool-call-parser to be set",
        "start it with `--jinja`",
    ],
)
def test_unfit_words_are_not_shown_at_all(message):
    assert engine_text(message) is None


@given(st.text(max_size=600))
def test_any_text_is_short_printable_and_whole(message):
    text = engine_text(message)
    if text is not None:
        assert 0 < len(text) <= ENGINE_TEXT_LIMIT
        assert text.isprintable()


@pytest.mark.parametrize("piece", ["a", "/a", "1.", " /", "0x", "\\", "\n", "a/"])
def test_hostile_text_costs_little(piece):
    """An engine that echoes a client's prompt must not stop the loop."""
    began = time.process_time()
    engine_text(piece * 1_000_000)
    assert time.process_time() - began < 0.05


def test_retry_after_is_kept_within_bounds():
    assert GatewayError("x", retry_after=1e9).retry_after == RETRY_AFTER_CAP
    assert GatewayError("x", retry_after=-3).retry_after == 0
    assert QuotaExceeded("x", retry_after=1e9).retry_after == 1e9, "a limit knows"
    assert QuotaExceeded("x", retry_after=-3).retry_after == 0
    assert QuotaExceeded("x").retry_after is None


@pytest.mark.parametrize("reason", ["no_replica", "queue_full", "queue_timeout", "overloaded", "draining"])
def test_shared_capacity_always_says_when_to_come_back(reason):
    error = Unavailable("x", reason=reason)
    assert (error.status, error.reason) == (503, reason)
    assert error.retry_after is not None
