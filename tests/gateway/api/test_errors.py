"""Errors on the wire: OpenAI's envelope, the headers its SDKs obey, and never a second response."""

import json
import logging

import pytest
from starlette.exceptions import HTTPException

from gateway import errors
from gateway.api.errors import ErrorRing, error_body, error_headers
from gateway.errors import (
    BadRequest,
    BudgetExceeded,
    ClientGone,
    EngineFailed,
    GatewayError,
    InvalidKey,
    ModelNotFound,
    QuotaExceeded,
    Unavailable,
)
from gateway.telemetry.records import RecordBook, RequestRecord
from tests.gateway.api.asgi import Client, a_scope
from tests.gateway.builders import Clock


def raising(error: BaseException, *, started: bool = False):
    async def app(scope, receive, send):
        if started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise error

    return app


async def answered(error: BaseException, method: str = "POST") -> tuple[Client, RequestRecord]:
    client, record = Client(), RecordBook().open("id-1", method, "/", Clock())
    scope = a_scope(method, "/nowhere", **{"headgate.record": record})
    await ErrorRing(raising(error))(scope, client.receive, client.send)
    return client, record


def test_the_envelope():
    assert error_body(BadRequest("No.", param="n", code="c")) == {
        "error": {"message": "No.", "type": "invalid_request_error", "param": "n", "code": "c"}
    }


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (BadRequest("x"), {}),
        (InvalidKey("x"), {b"www-authenticate": b"Bearer"}),
        (QuotaExceeded("x", retry_after=1.2341), {b"retry-after": b"2", b"retry-after-ms": b"1235"}),
        (QuotaExceeded("x", retry_after=0.0001), {b"retry-after": b"1", b"retry-after-ms": b"1"}),
        (
            Unavailable("x", reason="draining", retry_after=1e9),
            {b"retry-after": b"60", b"retry-after-ms": b"60000"},
        ),
        (QuotaExceeded("x", retry_after=4.035), {b"retry-after": b"5", b"retry-after-ms": b"4035"}),
        (
            QuotaExceeded("x", limit="acme.day", retry_after=3600),  # longer than any SDK would wait
            {
                b"retry-after": b"3600",
                b"retry-after-ms": b"3600000",
                b"x-should-retry": b"false",
                b"x-headgate-limit": b"acme.day",
            },
        ),
        (
            BudgetExceeded("x", limit="b", hopeless=True),
            {b"x-should-retry": b"false", b"x-headgate-limit": b"b"},
        ),
        (QuotaExceeded("x", retry_after=-1), {b"retry-after": b"0", b"retry-after-ms": b"0"}),
        (QuotaExceeded("x", hopeless=True, retry_after=5), {b"x-should-retry": b"false"}),
        (Unavailable("x", reason="queue_full"), {b"retry-after": b"1", b"retry-after-ms": b"1000"}),
        (EngineFailed("x"), {}),
    ],
)
def test_when_to_come_back(error, headers):
    """Rounded up: a client that obeys is never too early."""
    assert dict(error_headers(error)) == headers


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ModelNotFound("x"), 404, "model_not_found"),
        (HTTPException(405), 405, "method_not_allowed"),
        (HTTPException(404), 404, "unknown_url"),
        (RuntimeError("secret detail"), 500, "internal_error"),
    ],
)
async def test_whatever_is_raised_becomes_an_answer(error, status, code):
    client, record = await answered(error)
    assert client.status == status
    assert client.complete
    assert client.headers[b"content-type"] == b"application/json"
    assert json.loads(client.body)["error"]["code"] == code
    assert b"secret" not in client.body
    assert record.error_code == code


async def test_head_gets_no_body():
    client, _ = await answered(ModelNotFound("x"), "HEAD")
    assert client.body == b""
    assert int(client.headers[b"content-length"]) > 0


async def test_our_own_faults_are_in_the_log(caplog):
    with caplog.at_level(logging.ERROR, "headgate.api"):
        await answered(RuntimeError("detail"))
    assert "detail" in caplog.text


async def test_a_client_that_left_gets_nothing_and_is_499():
    client, record = await answered(ClientGone("x"))
    assert client.messages == []
    assert (record.status, record.outcome, record.error_code) == (499, "cancelled", "client_closed")


@pytest.mark.parametrize("error", [EngineFailed("x"), RuntimeError("x")])
async def test_once_started_no_second_response(error):
    """The server cuts the connection; the record says that it failed."""
    client, record = Client(), RecordBook().open("id-1", "POST", "/", Clock())
    ring = ErrorRing(raising(error, started=True))
    with pytest.raises(GatewayError):
        await ring(a_scope(**{"headgate.record": record}), client.receive, client.send)
    assert len(client.messages) == 1
    assert record.outcome == "failed"


async def test_probes_have_no_record():
    client = Client()
    await ErrorRing(raising(InvalidKey("x")))(a_scope(), client.receive, client.send)
    assert client.status == 401


def test_every_error_has_its_place():
    """Each class: a 4xx or 5xx status, a type and a code of its own; the base class alone is a 500."""
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, GatewayError) and kind is not GatewayError
    ]
    assert len(kinds) >= 15
    for kind in kinds:
        assert 400 <= kind.status < 600
        assert kind.status != 500
        assert kind.type
        assert kind.default_code or kind is BadRequest
        assert kind.__name__ in (errors.__doc__ or ""), "the drawing of the tree is complete"
