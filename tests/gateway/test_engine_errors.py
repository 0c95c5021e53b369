"""Engines' errors in the client's vocabulary."""

import pytest

from backends.contract import ErrorKind
from gateway.engine_errors import gateway_error_of
from gateway.errors import (
    BadRequest,
    ContextLengthExceeded,
    EngineFailed,
    EngineTimeout,
    NotImplementedHere,
    Unavailable,
    UnsupportedByEngine,
)
from gateway.fallbacks import (
    pool_failed,
)
from tests.gateway.builders import a_call
from tests.gateway.engines import an_error
from tests.gateway.town import BROKEN, CLIENT, OVERLOADED, REFUSED, TOO_LONG


@pytest.mark.parametrize(
    ("error", "kind", "reason", "status"),
    [
        (CLIENT, BadRequest, None, 400),
        (an_error("unsupported"), UnsupportedByEngine, "unavailable", 400),
        (an_error("no_route"), NotImplementedHere, "unavailable", 501),
        (TOO_LONG, ContextLengthExceeded, "too_long", 400),
        (OVERLOADED, Unavailable, "overloaded", 503),
        (an_error("timeout"), EngineTimeout, "failed", 504),
        (an_error("not_found"), EngineFailed, "failed", 502),
        (an_error("auth"), EngineFailed, "failed", 502),
        (BROKEN, EngineFailed, "failed", 502),
        (REFUSED, Unavailable, "unavailable", 503),
    ],
)
def test_engine_errors_in_the_clients_vocabulary(error, kind, reason, status):
    failed = pool_failed(error, a_call())
    assert type(failed.error) is kind
    assert (failed.reason, failed.error.status) == (reason, status)


@pytest.mark.parametrize("kind", ErrorKind)
@pytest.mark.parametrize("reached", [True, False])
@pytest.mark.parametrize(
    "message", ["", "Traceback: secret", "at http://secret:8000", "secret \x00\n/opt/secret/x"]
)
def test_no_engine_error_is_a_500_or_tells_a_secret(kind, reached, message):
    """For every kind there is, S8."""
    error = gateway_error_of(an_error(kind.value, message, reached=reached, retryable=False), a_call())
    assert error.status in (400, 501, 502, 503, 504)
    assert error.message
    assert "secret" not in error.message


@pytest.mark.parametrize("kind", ["timeout", "not_found", "auth", "engine", "overloaded"])
def test_only_a_clients_own_fault_is_told_in_the_engines_words(kind):
    assert "plain words" not in gateway_error_of(an_error(kind, "plain words"), a_call()).message
    assert gateway_error_of(an_error("client", "plain words"), a_call()).message == "plain words"


def test_the_field_at_fault_is_named():
    assert gateway_error_of(CLIENT, a_call()).param == "temperature"
    assert gateway_error_of(TOO_LONG, a_call()).param == "messages"
    assert gateway_error_of(TOO_LONG, a_call(dialect="completions")).param == "prompt"


@pytest.mark.parametrize(("told", "expected"), [(None, 1.0), (7.0, 7.0), (900.0, 60.0)])
def test_an_overloaded_engine_may_say_when(told, expected):
    error = an_error("overloaded", retry_after=told)
    assert gateway_error_of(error, a_call()).retry_after == expected
