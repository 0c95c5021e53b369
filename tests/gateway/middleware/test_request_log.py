"""The outermost ring: exactly one outcome and one line per request, whatever happens inside."""

import asyncio
import logging

import pytest

from gateway.middleware.request_log import UNRECORDED, RequestLog
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.records import RecordBook
from tests.gateway.api.asgi import Client, a_scope
from tests.gateway.builders import Clock


class Stage:
    def __init__(self, *, status: int | None = 200, error: BaseException | None = None) -> None:
        self.book, self.client = RecordBook(), Client()
        self.status, self.error = status, error
        self.ring = RequestLog(self._app, self.book, Metrics(), Clock())

    async def _app(self, scope, receive, send) -> None:
        if self.status is not None:
            await send({"type": "http.response.start", "status": self.status, "headers": []})
        if self.error is not None:
            raise self.error
        await send({"type": "http.response.body", "body": b"x"})

    async def call(self, **fields) -> None:
        await self.ring(a_scope(**fields), self.client.receive, self.client.send)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(200, "completed"), (400, "rejected"), (429, "rejected"), (500, "failed"), (503, "failed")],
)
async def test_the_outcome_follows_the_status(status, outcome, caplog):
    stage = Stage(status=status)
    with caplog.at_level(logging.INFO, "headgate.request"):
        await stage.call()
    assert stage.book.outcomes == {outcome: 1}
    assert len(stage.book) == 0
    assert [record.getMessage() for record in caplog.records] == [outcome]
    assert caplog.records[0].fields["status"] == status


@pytest.mark.parametrize(
    ("status", "error", "outcome"),
    [
        (None, asyncio.CancelledError(), "cancelled"),
        (200, asyncio.CancelledError(), "cancelled"),
        (None, RuntimeError(), "failed"),
        (200, RuntimeError(), "failed"),
    ],
)
async def test_what_breaks_through_is_never_a_success(status, error, outcome):
    """Also after a 200 has been sent."""
    stage = Stage(status=status, error=error)
    with pytest.raises(type(error)):
        await stage.call()
    assert stage.book.outcomes == {outcome: 1}
    assert len(stage.book) == 0


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"abc-1._X", True),
        (b"a" * 128, True),
        (b"a" * 129, False),
        (b"", False),
        (b"a b", False),
        (b"a\r\nx: y", False),
        (b"\xff", False),
        (b"abc\n", False),
    ],
)
async def test_a_clients_request_id_is_kept_if_it_is_fit_to_show(sent, kept):
    stage = Stage()
    await stage.call(headers=[(b"x-request-id", sent)])
    shown = stage.client.headers[b"x-request-id"]
    assert (shown == sent) is kept
    if not kept:
        assert len(shown) == 32


@pytest.mark.parametrize("path", sorted(UNRECORDED))
async def test_probes_leave_no_trace(path, caplog):
    stage = Stage()
    with caplog.at_level(logging.INFO, "headgate.request"):
        await stage.call(path=path)
    assert stage.book.accepted == 0
    assert caplog.records == []


async def test_the_query_is_not_logged(caplog):
    """B18."""
    stage = Stage()
    with caplog.at_level(logging.INFO, "headgate.request"):
        await stage.call(query_string=b"api_key=sk-secret")
    assert "sk-secret" not in str(caplog.records[0].__dict__)
